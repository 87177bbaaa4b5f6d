// SPDX-License-Identifier: BSD-2-Clause
// Host tests: the stack is whatever the test says.
#pragma once

#include <stdint.h>

__attribute__((weak)) uintptr_t fake_stack_low, fake_stack_high;

static inline void arch_stack_bounds(uintptr_t pointer, uintptr_t *low, uintptr_t *high)
{
    (void)pointer;
    *low = fake_stack_low;
    *high = fake_stack_high;
}
