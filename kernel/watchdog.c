// SPDX-License-Identifier: BSD-2-Clause
#include "kernel/watchdog.h"

#include <stdatomic.h>

#include "kernel/irq.h"
#include "kernel/log.h"
#include "kernel/percpu.h"
#include "kernel/symbols.h"
#include "kernel/time.h"
#include <arch/stack.h>

#define CHECK_PERIOD_US 100000u
#define ANSWER_US       50000u

enum answer { ANSWER_NONE, ANSWER_ASKED, ANSWER_WRITING, ANSWER_READY };

// One question at a time; whoever holds `busy` asks.
static _Atomic uint32_t busy;
static _Atomic uint32_t asked_cpu;
static _Atomic uint32_t answer; // enum answer
static uintptr_t trace[WATCHDOG_DEPTH + 1];
static unsigned trace_count;

static _Atomic uint64_t last_check;
static _Atomic uint64_t incidents;
static uint64_t reported[MAX_CPUS]; // last_alive of the incident that was reported

void watchdog_nmi(uintptr_t pc, uintptr_t frame)
{
    uint32_t expected = ANSWER_ASKED;
    if (answer != expected || asked_cpu != cpu_index() ||
        !atomic_compare_exchange_strong(&answer, &expected, (uint32_t)ANSWER_WRITING))
        return;
    uintptr_t low, high;
    arch_stack_bounds(frame, &low, &high);
    trace[0] = pc;
    trace_count = 1 + stack_walk(frame, low, high, trace + 1, WATCHDOG_DEPTH);
    answer = ANSWER_READY;
}

static void report(const struct cpu *cpu, uint64_t silent)
{
    char name[96];
    incidents++;
    log_error("watchdog: CPU %u has not passed its scheduler for %lu ms", cpu->index,
              (unsigned long)(time_tsc_to_us(silent) / 1000));
    asked_cpu = cpu->index;
    answer = ANSWER_ASKED;
    irq_send_nmi(cpu->index);
    uint64_t start = time_tsc(), limit = time_us_to_tsc(ANSWER_US);
    while (answer != ANSWER_READY && time_tsc() - start < limit)
        cpu_relax();
    // Takes the question back, unless the answer is there or being written (which is short).
    uint32_t expected = ANSWER_ASKED;
    if (atomic_compare_exchange_strong(&answer, &expected, (uint32_t)ANSWER_NONE)) {
        log_error("watchdog: CPU %u does not answer an NMI", cpu->index);
        return;
    }
    while (answer != ANSWER_READY)
        cpu_relax();
    for (unsigned i = 0; i < trace_count; i++) {
        symbol_name(trace[i], name, sizeof(name));
        log_error("watchdog:   %s %s", i == 0 ? "at" : "by", name);
    }
    answer = ANSWER_NONE;
}

void watchdog_check(void)
{
    uint64_t now = time_tsc();
    if (now - last_check < time_us_to_tsc(CHECK_PERIOD_US))
        return;
    uint32_t nobody = 0;
    if (!atomic_compare_exchange_strong(&busy, &nobody, 1u))
        return;
    last_check = now;
    for (uint32_t i = 0; i < cpu_count; i++) {
        const struct cpu *cpu = &cpus[i];
        uint64_t alive = cpu->last_alive;
        // Times of other CPUs may lie slightly ahead of ours; so may UINT64_MAX, which is idle.
        if (i == cpu_index() || !cpu->online || alive >= now || alive == reported[i])
            continue;
        if (now - alive > time_us_to_tsc(WATCHDOG_SECONDS * UINT64_C(1000000))) {
            reported[i] = alive;
            report(cpu, now - alive);
        }
    }
    atomic_store_explicit(&busy, 0u, memory_order_release);
}

uint64_t watchdog_incidents(void)
{
    return incidents;
}
