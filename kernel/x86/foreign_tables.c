// SPDX-License-Identifier: BSD-2-Clause
// Page tables for the few moments outside Fusor's own address space: a CPU that starts, and the
// firmware's ResetSystem. Both also hold the kernel half. They are the only ones that allow
// execution elsewhere, and no CPU stays on them.
#include "kernel/string.h"
#include "kernel/x86/machine.h"
#include "kernel/x86/page_table.h"

static void copy_kernel_half(uint64_t *table)
{
    const uint64_t *own = hpa_to_pointer(hpa(paging_root()));
    memcpy(table + PTE_PER_PAGE / 2, own + PTE_PER_PAGE / 2, PAGE_SIZE / 2);
}

void paging_make_trampoline_tables(hfn_t first, uint64_t page)
{
    for (int level = 4; level > 0; level--) {
        uint64_t *table = hfn_to_pointer(hfn(first.raw + (uint64_t)(4 - level)));
        memset(table, 0, PAGE_SIZE);
        uint64_t next = hfn_to_hpa(hfn(first.raw + (uint64_t)(5 - level))).raw;
        table[pte_index(page, level)] = (level == 1 ? page : next) | PTE_PRESENT;
        if (level == 4)
            copy_kernel_half(table);
    }
}

unsigned paging_identity_tables(uint64_t end, const hfn_t *tables)
{
    uint64_t gib = ALIGN_UP(end, GIB) / GIB;
    unsigned upper = (unsigned)(ALIGN_UP(gib, PTE_PER_PAGE) / PTE_PER_PAGE);
    unsigned needed = 1 + upper + (paging_has_1g_pages() ? 0 : (unsigned)gib);
    if (tables == NULL)
        return needed;

    const uint64_t bits = PTE_PRESENT | PTE_WRITE;
    for (unsigned i = 0; i < needed; i++)
        memset(hfn_to_pointer(tables[i]), 0, PAGE_SIZE);
    uint64_t *top = hfn_to_pointer(tables[0]);
    copy_kernel_half(top);
    for (unsigned i = 0; i < upper; i++)
        top[i] = hfn_to_hpa(tables[1 + i]).raw | bits;
    for (uint64_t g = 0; g < gib; g++) {
        uint64_t *entry = hfn_to_pointer(tables[1 + g / PTE_PER_PAGE]);
        entry += g % PTE_PER_PAGE;
        if (paging_has_1g_pages()) {
            *entry = g * GIB | bits | PTE_LARGE;
            continue;
        }
        hfn_t directory = tables[1 + upper + g];
        *entry = hfn_to_hpa(directory).raw | bits;
        uint64_t *pages = hfn_to_pointer(directory);
        for (uint64_t p = 0; p < PTE_PER_PAGE; p++)
            pages[p] = (g * GIB + p * 2 * MIB) | bits | PTE_LARGE;
    }
    return needed;
}
