// SPDX-License-Identifier: BSD-2-Clause
// Frames as the console shows them.
#pragma once

#include "kernel/types.h"

// Also of numbers that a guest made up: they end at what still fits when it is shown in bytes.
static inline unsigned long long kib(uint64_t frames)
{
    return MIN(frames, UINT64_MAX / PAGE_SIZE) * (PAGE_SIZE / KIB);
}
