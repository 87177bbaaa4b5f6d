// SPDX-License-Identifier: BSD-2-Clause
#pragma once

#include "kernel/boot_info.h"
#include "kernel/types.h"

static inline uintptr_t arch_direct_map_base(void)
{
    return DIRECT_MAP_BASE;
}
