// SPDX-License-Identifier: BSD-2-Clause
// Entries of the machine's page tables (SDM vol. 3, 4.5).
#pragma once

#include "kernel/memory.h"
#include "kernel/types.h"

#define PTE_PRESENT  (UINT64_C(1) << 0)
#define PTE_WRITE    (UINT64_C(1) << 1)
#define PTE_PWT      (UINT64_C(1) << 3) // PAT entry 1: write-combining
#define PTE_PCD      (UINT64_C(1) << 4) // with PWT PAT entry 3: uncached
#define PTE_LARGE    (UINT64_C(1) << 7)
#define PTE_GLOBAL   (UINT64_C(1) << 8)
#define PTE_NX       (UINT64_C(1) << 63)
#define PTE_ADDRESS  UINT64_C(0x000ffffffffff000)
#define PTE_PER_PAGE 512u

static inline unsigned pte_shift(int level)
{
    return PAGE_SHIFT + 9u * (unsigned)(level - 1);
}

static inline unsigned pte_index(uint64_t address, int level)
{
    return (unsigned)(address >> pte_shift(level)) & (PTE_PER_PAGE - 1);
}

static inline uint64_t *pte_table(uint64_t entry)
{
    return hpa_to_pointer(hpa(entry & PTE_ADDRESS));
}

static inline bool pte_is_leaf(uint64_t entry, int level)
{
    return level == 1 || (entry & PTE_LARGE) != 0;
}
