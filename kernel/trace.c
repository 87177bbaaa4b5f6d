// SPDX-License-Identifier: BSD-2-Clause
// The trace's rings. Each CPU writes its own; a record's number is written last and taken away
// first, so that the reader knows a torn one. The rings are allocated when tracing begins for the
// first time and stay, for memory may be short when the trace is needed.
#include "kernel/trace.h"

#include "kernel/error.h"
#include "kernel/format.h"
#include "kernel/heap.h"
#include "kernel/memory.h"
#include "kernel/string.h"
#include "kernel/time.h"

struct record {
    _Atomic uint64_t number; // from 1 on; 0: being written, or never was
    uint64_t tsc;
    const char *what;
    uint64_t value[3];
    enum trace_event event;
    char who[TRACE_WHO];
};

struct cpu_trace {
    _Atomic uint64_t written; // number of the newest record
    struct record records[TRACE_RECORDS];
};

// What a record of each kind is called, and its values; NULL: has none.
static const struct {
    const char *name;
    const char *values[3];
} kinds[TRACE_EVENTS] = {
    [TRACE_EXIT] = {"exit", {"rip", "info", "address"}},
    [TRACE_RUN] = {"run", {"until", NULL, NULL}},
    [TRACE_LEAVE] = {"leave", {NULL, NULL, NULL}},
    [TRACE_FIBER] = {"held", {"ticks", NULL, NULL}},
    [TRACE_KICK] = {"shootdown", {"epoch", "cpus", "ticks"}},
};

_Atomic bool trace_enabled;
static bool wanted; // on, though recording may rest
static struct cpu_trace *rings[MAX_CPUS];

int trace_start(void)
{
    trace_enabled = false;
    for (uint32_t cpu = 0; cpu < cpu_count; cpu++) {
        if (rings[cpu] == NULL)
            rings[cpu] = heap_alloc(sizeof(*rings[cpu]));
        if (rings[cpu] == NULL)
            return E_NOMEM;
        for (unsigned i = 0; i < TRACE_RECORDS; i++)
            rings[cpu]->records[i].number = 0;
    }
    wanted = true;
    trace_enabled = true;
    return 0;
}

void trace_stop(void)
{
    wanted = false;
    trace_enabled = false;
}

void trace_record(enum trace_event event, const char *who, const char *what, uint64_t a, uint64_t b,
                  uint64_t c)
{
    struct cpu_trace *t = rings[cpu_index()];
    uint64_t number = atomic_load_explicit(&t->written, memory_order_relaxed) + 1;
    struct record *r = &t->records[number % TRACE_RECORDS];
    atomic_store_explicit(&r->number, 0, memory_order_relaxed);
    atomic_thread_fence(memory_order_release);
    r->tsc = time_tsc();
    r->what = what;
    r->value[0] = a;
    r->value[1] = b;
    r->value[2] = c;
    r->event = event;
    size_t length = strnlen(who, sizeof(r->who) - 1);
    memcpy(r->who, who, length);
    r->who[length] = '\0';
    atomic_store_explicit(&r->number, number, memory_order_release);
    atomic_store_explicit(&t->written, number, memory_order_release);
}

// A copy of record `number` of that CPU, if it is still, or already, there.
static bool get(uint32_t cpu, uint64_t number, struct record *copy)
{
    const struct record *r = &rings[cpu]->records[number % TRACE_RECORDS];
    if (atomic_load_explicit(&r->number, memory_order_acquire) != number)
        return false;
    copy->tsc = r->tsc;
    copy->what = r->what;
    memcpy(copy->value, r->value, sizeof(copy->value));
    copy->event = r->event;
    memcpy(copy->who, r->who, sizeof(copy->who));
    atomic_thread_fence(memory_order_acquire);
    return atomic_load_explicit(&r->number, memory_order_relaxed) == number;
}

// The CPU whose next record is the oldest of all. False: none has one.
static bool oldest(struct trace_reader *reader, uint32_t *cpu, struct record *record)
{
    bool found = false;
    for (uint32_t i = 0; i < cpu_count; i++) {
        struct record r;
        if (rings[i] == NULL)
            continue;
        uint64_t end = rings[i]->written;
        while (reader->next[i] <= end && !get(i, reader->next[i], &r))
            reader->next[i]++;
        if (reader->next[i] > end || (found && r.tsc >= record->tsc))
            continue;
        *record = r;
        *cpu = i;
        found = true;
    }
    return found;
}

unsigned trace_read_begin(struct trace_reader *reader, unsigned most)
{
    struct record r;
    uint32_t cpu;
    unsigned count = 0;
    trace_enabled = false;
    for (uint32_t i = 0; i < cpu_count; i++) {
        uint64_t end = rings[i] != NULL ? rings[i]->written : 0;
        reader->next[i] = end < TRACE_RECORDS ? 1 : end - TRACE_RECORDS + 1;
        for (uint64_t n = reader->next[i]; n <= end; n++)
            count += get(i, n, &r);
    }
    for (; count > most && oldest(reader, &cpu, &r); count--)
        reader->next[cpu]++;
    return count;
}

bool trace_next(struct trace_reader *reader, char *line, size_t size)
{
    struct record r;
    uint32_t cpu;
    if (!oldest(reader, &cpu, &r))
        return false;
    reader->next[cpu]++;
    size_t used = (size_t)format_text(line, size, "%llu cpu%u %s %s%s%s", (unsigned long long)r.tsc,
                                      cpu, r.who, kinds[r.event].name, r.what != NULL ? " " : "",
                                      r.what != NULL ? r.what : "");
    for (unsigned i = 0; i < 3 && kinds[r.event].values[i] != NULL && used < size; i++)
        used += (size_t)format_text(line + used, size - used, " %s=%#llx", kinds[r.event].values[i],
                                    (unsigned long long)r.value[i]);
    return true;
}

void trace_read_end(void)
{
    trace_enabled = wanted;
}
