// SPDX-License-Identifier: BSD-2-Clause
// Host tests: the "physical memory" is an arena that fake.c allocates; physical address 0 is its
// start.
#pragma once

#include <stdint.h>

extern uint8_t *fake_ram;

static inline uintptr_t arch_direct_map_base(void)
{
    return (uintptr_t)fake_ram;
}
