// SPDX-License-Identifier: BSD-2-Clause
// Host tests: one or more pretended CPUs; the test says which one "runs" with fake_set_cpu().
#pragma once

#include <stdbool.h>
#include <stdint.h>

struct cpu;

extern struct cpu *fake_cpu;
extern uint64_t fake_tsc;
extern bool fake_irq_on;

static inline struct cpu *this_cpu(void)
{
    return fake_cpu;
}

// Called in every turn of a waiting loop when set, so that a test can let "other CPUs" advance.
__attribute__((weak)) void (*fake_relax_hook)(void);

static inline void cpu_relax(void)
{
    if (fake_relax_hook != (void (*)(void))0)
        fake_relax_hook();
}

// Each look at the clock moves it, so that waits with a time limit end.
static inline uint64_t cpu_tsc(void)
{
    return ++fake_tsc;
}

static inline void cpu_irq_enable(void)
{
    fake_irq_on = true;
}

static inline void cpu_irq_disable(void)
{
    fake_irq_on = false;
}

static inline bool cpu_irq_enabled(void)
{
    return fake_irq_on;
}

// What happens while a CPU halts; the test sets it.
__attribute__((weak)) void (*fake_halt_hook)(void);

static inline void cpu_irq_enable_and_halt(void)
{
    fake_irq_on = true;
    if (fake_halt_hook != (void (*)(void))0)
        fake_halt_hook();
}

// The registers that a guest owns while it is loaded.
__attribute__((weak)) uint64_t fake_dr6, fake_cr2;

static inline uint64_t cpu_read_dr6(void)
{
    return fake_dr6;
}

static inline void cpu_write_dr6(uint64_t value)
{
    fake_dr6 = value;
}

static inline void cpu_write_cr2(uint64_t value)
{
    fake_cr2 = value;
}

// No machine-check banks, nor anything else.
static inline uint64_t cpu_read_msr(uint32_t msr)
{
    (void)msr;
    return 0;
}

static inline void cpu_write_msr(uint32_t msr, uint64_t value)
{
    (void)msr;
    (void)value;
}
