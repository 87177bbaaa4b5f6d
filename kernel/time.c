// SPDX-License-Identifier: BSD-2-Clause
// Conversions; the hardware's part is kernel/x86/clock.c.
#include "kernel/time.h"

#define US_PER_SECOND UINT64_C(1000000)

static uint64_t boot_tsc;

// Whole seconds and rest apart: rest < tsc_hz < 2^40, so no product overflows. Before calibration
// nothing is known.
uint64_t time_tsc_to_us(uint64_t ticks)
{
    if (tsc_hz == 0)
        return 0;
    return ticks / tsc_hz * US_PER_SECOND + ticks % tsc_hz * US_PER_SECOND / tsc_hz;
}

// Saturates: a time too far to express never comes.
uint64_t time_us_to_tsc(uint64_t us)
{
    uint64_t whole, ticks;
    uint64_t rest = us % US_PER_SECOND * tsc_hz / US_PER_SECOND;
    if (__builtin_mul_overflow(us / US_PER_SECOND, tsc_hz, &whole) ||
        __builtin_add_overflow(whole, rest, &ticks))
        return UINT64_MAX;
    return ticks;
}

uint64_t time_since_boot(void)
{
    return time_tsc() - boot_tsc;
}

void time_set_boot(uint64_t tsc)
{
    boot_tsc = tsc;
}
