// SPDX-License-Identifier: BSD-2-Clause
// The memory map and the guest's page tables.
#include "bare.h"

#define E820_RAM    1u
#define FIRST       (2 * MIB) // below lies the image
#define MAPPED_GIBS 16u

#define PTE_LARGE  UINT64_C(0x80)
#define PTE_DEVICE UINT64_C(0x18) // PWT, PCD

struct region memory[16];
unsigned memory_count;
uint64_t memory_top, memory_low_end;

static _Alignas(PAGE) uint64_t pml4[512], pdpt[512], window_pdpt[512], window_pd[512];
static _Alignas(PAGE) uint64_t window_pt[WINDOW_PAGES];
static _Alignas(PAGE) uint64_t pd[MAPPED_GIBS][512];

static uint64_t get(const uint8_t *at, unsigned bytes)
{
    uint64_t value = 0;
    for (unsigned i = bytes; i-- > 0;)
        value = value << 8 | at[i];
    return value;
}

void memory_init(const uint8_t *boot_params)
{
    uint64_t initrd = get(boot_params + 0x218, 4);
    for (unsigned i = 0; i < boot_params[0x1e8]; i++) {
        const uint8_t *e = boot_params + 0x2d0 + 20 * i;
        uint64_t from = get(e, 8), to = from + get(e + 8, 8);
        if (get(e + 16, 4) != E820_RAM)
            continue;
        if (to > memory_top)
            memory_top = to;
        if (from < 4 * GIB && to > memory_low_end)
            memory_low_end = to;
        if (initrd > from && initrd < to)
            to = initrd;
        from = from < FIRST ? FIRST : (from + 2 * MIB - 1) & ~(2 * MIB - 1);
        to &= ~(2 * MIB - 1);
        if (to > MAPPED_GIBS * GIB)
            to = MAPPED_GIBS * GIB;
        if (from < to && memory_count < ARRAY_SIZE(memory))
            memory[memory_count++] = (struct region){from, to};
    }
}

static uint64_t entry(const void *table)
{
    return (uint64_t)(uintptr_t)table | PTE_PRESENT | PTE_WRITE;
}

void paging_init(void)
{
    pml4[0] = entry(pdpt);
    pml4[WINDOW >> 39] = entry(window_pdpt);
    window_pdpt[0] = entry(window_pd);
    window_pd[0] = entry(window_pt);
    for (unsigned g = 0; g < MAPPED_GIBS; g++) {
        pdpt[g] = entry(pd[g]);
        for (unsigned i = 0; i < 512; i++) {
            uint64_t device = g == 3 ? PTE_DEVICE : 0; // no RAM in the fourth GiB
            pd[g][i] = (g * GIB + i * 2 * MIB) | device | PTE_LARGE | PTE_PRESENT | PTE_WRITE;
        }
    }
    write_cr3((uint64_t)(uintptr_t)pml4);
    write_cr0(read_cr0() | 1u << 16); // WP
}

uint64_t window_get(unsigned index)
{
    return *(volatile uint64_t *)&window_pt[index];
}

volatile uint64_t *window_set(unsigned index, uint64_t pte)
{
    *(volatile uint64_t *)&window_pt[index] = pte;
    return (volatile uint64_t *)(WINDOW + (uint64_t)index * PAGE); // NOLINT: an address by design
}
