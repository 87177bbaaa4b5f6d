// SPDX-License-Identifier: BSD-2-Clause
#pragma once

#include "kernel/types.h"

// The readable memory [*low, *high) around `pointer` into a stack; empty when there is none. Takes
// no lock and never faults.
void paging_stack_bounds(uintptr_t pointer, uintptr_t *low, uintptr_t *high);

static inline void arch_stack_bounds(uintptr_t pointer, uintptr_t *low, uintptr_t *high)
{
    paging_stack_bounds(pointer, low, high);
}
