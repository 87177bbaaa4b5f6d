// SPDX-License-Identifier: BSD-2-Clause
// The CPUs of fusion_world as coroutines: each runs until it yields, which a test lets it do at the
// points of the world (world.step).
#pragma once

#include "fusion_world.h"

extern bool cpu_finished[WORLD_CPUS];

// `cpu` begins with `function` when it is resumed for the first time; when that returns it has
// finished.
void cpus_make(unsigned cpu, void (*function)(void));
// Runs it until it yields. It is CPU 0 that goes on then.
void cpus_resume(unsigned cpu);
// Called on a coroutine: others may go on.
void cpus_yield(void);
// The NMI that another CPU has sent to this one: it leaves the guest.
void cpus_take_nmi(unsigned cpu);
