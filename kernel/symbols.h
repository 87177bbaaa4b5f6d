// SPDX-License-Identifier: BSD-2-Clause
// Names of Fusor's functions, for stack traces.
#pragma once

#include "kernel/types.h"

// Writes "function+0x12" into buffer (always terminated), or the bare address when no function
// holds it. Takes no lock.
void symbol_name(uintptr_t address, char *buffer, size_t size);

// Follows frame pointers from `frame` and stores at most `max` return addresses. Stops at the first
// frame that lies outside the stack [low, high) or does not rise, so it never faults.
unsigned stack_walk(uintptr_t frame, uintptr_t low, uintptr_t high, uintptr_t *out, unsigned max);
