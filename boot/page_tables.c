// SPDX-License-Identifier: BSD-2-Clause
// The page tables the kernel is entered with (kernel/boot_info.h):
//
//   PML4[0 …]    one to one            \ the same PDPTs, 2 MiB pages, one PD per GiB
//   PML4[256 …]  DIRECT_MAP_BASE       /
//   PML4[511]    KERNEL_BASE: the kernel's segments, 4 KiB pages with their own rights
//
// They live until the kernel has built its own.
#include "boot/boot.h"

#include "kernel/string.h"

#define PRESENT  UINT64_C(0x001)
#define WRITABLE UINT64_C(0x002)
#define LARGE    UINT64_C(0x080)
#define NX       (UINT64_C(1) << 63)
#define ADDRESS  UINT64_C(0x000ffffffffff000)

#define ENTRIES      512u
#define SIZE_2M      (UINT64_C(1) << 21)
#define SIZE_1G      (UINT64_C(1) << 30)
#define SIZE_512G    (UINT64_C(1) << 39)
#define DIRECT_INDEX ((DIRECT_MAP_BASE >> 39) & 511)
#define KERNEL_INDEX ((KERNEL_BASE >> 39) & 511)

// The direct map must not reach the kernel's own PML4 entry.
#define MAX_END ((KERNEL_INDEX - DIRECT_INDEX) * SIZE_512G)

uint64_t allocate_zeroed(uint64_t pages)
{
    EFI_PHYSICAL_ADDRESS base;

    if (EFI_ERROR(efi->AllocatePages(AllocateAnyPages, EfiLoaderData, pages, &base))) {
        return 0;
    }
    memset((void *)(uintptr_t)base, 0, pages * BOOT_PAGE);
    return base;
}

static uint64_t *table_of(uint64_t entry)
{
    return (uint64_t *)(uintptr_t)(entry & ADDRESS);
}

// The table behind `entry`; a new one if there is none. NULL: out of memory.
static uint64_t *get_table(uint64_t *entry)
{
    if ((*entry & PRESENT) == 0) {
        uint64_t table = allocate_zeroed(1);

        if (table == 0) {
            return NULL;
        }
        *entry = table | PRESENT | WRITABLE;
    }
    return table_of(*entry);
}

// One page directory: 1 GiB in 2 MiB pages.
static EFI_STATUS map_gigabyte(uint64_t *root, uint64_t base)
{
    uint64_t *pdpt = get_table(&root[base / SIZE_512G]);
    uint64_t *pd = pdpt != NULL ? get_table(&pdpt[base / SIZE_1G % ENTRIES]) : NULL;

    if (pd == NULL) {
        return EFI_OUT_OF_RESOURCES;
    }
    for (uint64_t i = 0; i < ENTRIES; i++) {
        pd[i] = (base + i * SIZE_2M) | PRESENT | WRITABLE | LARGE;
    }
    return EFI_SUCCESS;
}

EFI_STATUS page_tables_create(struct page_tables *tables, uint64_t end)
{
    uint64_t *root = (uint64_t *)(uintptr_t)allocate_zeroed(1);

    if (root == NULL) {
        return EFI_OUT_OF_RESOURCES;
    }
    if (end > MAX_END) {
        return EFI_UNSUPPORTED;
    }
    for (uint64_t base = 0; base < end; base += SIZE_1G) {
        EFI_STATUS status = map_gigabyte(root, base);

        if (EFI_ERROR(status)) {
            return status;
        }
    }
    for (uint64_t i = 0; i * SIZE_512G < end; i++) {
        root[DIRECT_INDEX + i] = root[i];
    }
    tables->root = root;
    return EFI_SUCCESS;
}

EFI_STATUS page_tables_map_kernel(struct page_tables *tables, uint64_t virtual_address,
                                  uint64_t physical, bool writable, bool executable)
{
    uint64_t *pdpt = get_table(&tables->root[virtual_address / SIZE_512G % ENTRIES]);
    uint64_t *pd = pdpt != NULL ? get_table(&pdpt[virtual_address / SIZE_1G % ENTRIES]) : NULL;
    uint64_t *pt = pd != NULL ? get_table(&pd[virtual_address / SIZE_2M % ENTRIES]) : NULL;
    uint64_t *entry;

    if (pt == NULL) {
        return EFI_OUT_OF_RESOURCES;
    }
    entry = &pt[virtual_address / BOOT_PAGE % ENTRIES];
    if ((*entry & PRESENT) != 0) {
        return EFI_LOAD_ERROR; // two segments in one page
    }
    *entry = physical | PRESENT | (writable ? WRITABLE : 0) | (executable ? 0 : NX);
    return EFI_SUCCESS;
}
