// SPDX-License-Identifier: BSD-2-Clause
// Per-CPU data. Rooms above keep their own per-CPU state in arrays of MAX_CPUS indexed by
// cpu_index(); only what entry code needs at fixed offsets, or what every room needs, stands here.
#pragma once

#include "kernel/types.h"
#include <arch/cpu.h>

#define MAX_CPUS 64u

struct cpu {
    struct cpu *self;      // offset 0: read through GS
    uint32_t index;        // 0 is the bootstrap processor
    uint32_t apic_id;      // of the machine
    uint64_t kernel_stack; // top of this CPU's scheduler stack
    // Set by the NMI handler in root mode: the next VM entry must exit at once (design section 3).
    _Atomic uint32_t kicked;
    _Atomic uint32_t online;
    // Bookkeeping of locks held, for the rank check.
    uint32_t locks_held;
    uint32_t lock_ranks; // bit n: a lock of rank n is held
    // Watchdog: TSC of the last pass through the scheduler or VM entry.
    _Atomic uint64_t last_alive;
    void *arch;               // kernel/x86: descriptor tables and stacks
    uint8_t lock_nesting[16]; // per rank, how many locks are held (debug builds)
};

extern struct cpu cpus[MAX_CPUS];
extern uint32_t cpu_count; // CPUs found; those online have cpus[i].online

// this_cpu() comes from arch/cpu.h: struct cpu *this_cpu(void)
static inline uint32_t cpu_index(void)
{
    return this_cpu()->index;
}
