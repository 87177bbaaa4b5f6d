// SPDX-License-Identifier: BSD-2-Clause
// The log: a ring of lines.
#include "kernel/log.h"

#include <stdatomic.h>

#include "kernel/format.h"
#include "kernel/lock.h"
#include "kernel/percpu.h"
#include "kernel/serial.h"
#include "kernel/string.h"
#include "kernel/time.h"

#define LOG_LINES    512u
#define LOG_TEXT_MAX 200u

struct line {
    uint64_t time; // ticks since boot
    uint8_t level;
    uint8_t cpu;
    uint8_t length;
    char text[LOG_TEXT_MAX + 1]; // in the ring not terminated
};
_Static_assert(LOG_TEXT_MAX <= UINT8_MAX && MAX_CPUS <= UINT8_MAX, "fields of struct line");

static struct spinlock lock = SPINLOCK_INIT("log", RANK_LOG);
static struct line lines[LOG_LINES];
static uint64_t next_sequence; // number of the next line; line n stands in lines[n % LOG_LINES]
static _Atomic bool early_console = true;

static const char *const level_names[LOG_LEVELS] = {"error", "warning", "info", "debug"};

const char *log_level_name(enum log_level level)
{
    return level < LOG_LEVELS ? level_names[level] : "unknown";
}

void log_set_early_console(bool on)
{
    early_console = on;
}

// Writes the line as readers see it and returns its length, which is cut to what fits.
static size_t render(const struct line *l, char *buffer, size_t size)
{
    uint64_t us = time_tsc_to_us(l->time);
    int length =
        format_text(buffer, size, "[%llu.%06llu] cpu%u %s: %.*s",
                    (unsigned long long)(us / 1000000), (unsigned long long)(us % 1000000), l->cpu,
                    log_level_name((enum log_level)l->level), (int)l->length, l->text);
    return MIN((size_t)length, size == 0 ? 0 : size - 1);
}

// A log line is one line: what a guest or a file name brings along must not forge another.
static void clean(struct line *l)
{
    for (size_t i = 0; i < l->length; i++) {
        if ((uint8_t)l->text[i] < ' ' || l->text[i] == 0x7f)
            l->text[i] = '?';
    }
}

// A function of its own, so that other writers do not pay for its stack.
__attribute__((noinline)) static void show(const struct line *l)
{
    char out[256];
    size_t used = render(l, out, sizeof(out) - 2);
    out[used++] = '\r';
    out[used++] = '\n';
    serial_write(out, used);
    fbcon_write(out, used);
}

void log_write(enum log_level level, const char *format, ...)
{
    struct line l = {
        .time = time_since_boot(),
        .level = (uint8_t)level,
        .cpu = (uint8_t)cpu_index(),
    };
    va_list args;
    va_start(args, format);
    int length = format_text_v(l.text, sizeof(l.text), format, args);
    va_end(args);
    l.length = (uint8_t)MIN((unsigned)length, LOG_TEXT_MAX);
    clean(&l);

    spin_lock(&lock);
    memcpy(&lines[next_sequence++ % LOG_LINES], &l, offsetof(struct line, text) + l.length);
    spin_unlock(&lock);
    if (early_console)
        show(&l);
}

bool log_read(uint64_t *sequence, enum log_level max_level, char *buffer, size_t size)
{
    struct line copy;
    bool found = false;
    spin_lock(&lock);
    uint64_t oldest = next_sequence > LOG_LINES ? next_sequence - LOG_LINES : 0;
    uint64_t at = MAX(*sequence, oldest);
    for (; at < next_sequence && !found; at++) {
        const struct line *l = &lines[at % LOG_LINES];
        if (l->level > max_level)
            continue;
        memcpy(&copy, l, offsetof(struct line, text) + l->length);
        found = true;
    }
    spin_unlock(&lock);
    if (!found)
        return false;
    *sequence = at;
    render(&copy, buffer, size);
    return true;
}
