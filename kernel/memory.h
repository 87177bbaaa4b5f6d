// SPDX-License-Identifier: BSD-2-Clause
// Where physical memory is reachable for Fusor: the direct map. On the host tests' side,
// arch/memory.h places an arena there.
#pragma once

#include "kernel/types.h"
#include <arch/memory.h>

// Pointer to RAM at `a`. Valid for every frame in the frame table, and for nothing else.
static inline void *hpa_to_pointer(hpa_t a)
{
    return (void *)(arch_direct_map_base() + a.raw);
}

static inline hpa_t pointer_to_hpa(const void *p)
{
    return (hpa_t){(uintptr_t)p - arch_direct_map_base()};
}

static inline void *hfn_to_pointer(hfn_t n)
{
    return hpa_to_pointer(hfn_to_hpa(n));
}
