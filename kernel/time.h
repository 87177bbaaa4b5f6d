// SPDX-License-Identifier: BSD-2-Clause
// Time: the TSC, calibrated once; and one one-shot timer per CPU.
#pragma once

#include "kernel/types.h"
#include <arch/cpu.h>

extern uint64_t tsc_hz; // ticks per second, set before other rooms start

static inline uint64_t time_tsc(void)
{
    return cpu_tsc();
}

uint64_t time_tsc_to_us(uint64_t ticks);
uint64_t time_us_to_tsc(uint64_t us);
// Time since boot of Fusor, in ticks of the TSC.
uint64_t time_since_boot(void);
void time_set_boot(uint64_t tsc); // set-up only

// The machine's wall clock now, in seconds since 1970 (from its RTC, read once).
uint64_t time_wall_seconds(void);

// Arms this CPU's timer interrupt for the TSC value `deadline` (UINT64_MAX: off). An interrupt that
// comes early is allowed; the interrupt only ends a halt or a guest run, it calls nobody.
void time_arm(uint64_t deadline);
// Waits without letting anything else run; for hardware set-up only.
void time_busy_wait_us(uint64_t us);
