// SPDX-License-Identifier: BSD-2-Clause
// Fusor's address space (SDM vol. 3, chapter 4). One set of tables for all CPUs:
//
//   ffff8000'00000000  direct map of usable RAM: writable, never executable; the part that holds
//                      the kernel's text and constants is read-only
//   ffffc800'00000000  windows to devices and firmware tables, given out rising, never taken back
//   ffffd000'00000000  stacks: the block at physical address P stands at + 2 P + its size, with its
//                      size unmapped below as guard
//   ffffffff'80000000  the kernel image, one permission per segment
//
// No mapping is writable and executable. A stack's address follows from its frames, so a stale
// translation on another CPU always leads to the same frame, and unmapping needs no shootdown.
#include "kernel/paging.h"

#include "kernel/frames.h"
#include "kernel/lock.h"
#include "kernel/log.h"
#include "kernel/panic.h"
#include "kernel/sched.h"
#include "kernel/string.h"
#include "kernel/x86/machine.h"
#include "kernel/x86/msr.h"
#include "kernel/x86/page_table.h"

#define WINDOW_BASE  UINT64_C(0xffffc80000000000)
#define WINDOW_BYTES (64 * GIB)
#define STACK_BASE   UINT64_C(0xffffd00000000000)
#define RAM_END      (UINT64_C(1) << 44) // frame numbers have 32 bits; also bounds the stacks' part
#define EARLY_TABLES 8u                  // frames taken at a time before there is an allocator

// PAT: 0 write-back, 1 write-combining, 2 uncached-minus, 3 uncached, and again with 5 write-
// protected, 7 write-through. Entries 0 and 3 are as at power-on, so the boot stage's mappings keep
// their types.
#define PAT_VALUE UINT64_C(0x0407050600070106)

extern char kernel_start[], kernel_text_end[], kernel_rodata_end[], kernel_end[];
extern char boot_stack_guard[];

static uint64_t root; // physical
static uint64_t no_execute;
static bool has_1g_pages;
static uint64_t window_next = WINDOW_BASE;
static struct spinlock tables_lock = SPINLOCK_INIT("page tables", RANK_HEAP);

static struct boot_memory *early_memory; // source of tables, NULL once there are frames
static uint64_t spare_first, spare_count;

// Returns the physical address of a zeroed table, or 0.
static uint64_t new_table(void)
{
    if (spare_count == 0 && early_memory != NULL &&
        boot_memory_take(early_memory, EARLY_TABLES, RAM_END >> PAGE_SHIFT, &spare_first) == 0)
        spare_count = EARLY_TABLES;
    if (spare_count > 0) {
        uint64_t table = spare_first++ << PAGE_SHIFT;
        spare_count--;
        memset(hpa_to_pointer(hpa(table)), 0, PAGE_SIZE);
        return table;
    }
    hfn_t frame;
    if (early_memory != NULL ||
        frame_alloc(FRAME_FUSOR, 0, FRAME_ZEROED | FRAME_RESERVE, NULL, &frame) != 0)
        return 0;
    return hfn_to_hpa(frame).raw;
}

// Finds the entry of `level` for `address`, making tables on the way. NULL without memory.
static uint64_t *entry_for(uint64_t table_root, uint64_t address, int level)
{
    uint64_t *table = hpa_to_pointer(hpa(table_root));
    for (int at = 4;; at--) {
        uint64_t *entry = &table[pte_index(address, at)];
        if (at == level)
            return entry;
        if ((*entry & PTE_PRESENT) == 0) {
            uint64_t made = new_table();
            if (made == 0)
                return NULL;
            *entry = made | PTE_PRESENT | PTE_WRITE; // the leaf decides what is allowed
        }
        CHECK(!pte_is_leaf(*entry, at));
        table = pte_table(*entry);
    }
}

// Maps [address, + size) to [physical, + size) with pages as large as alignment and max_level
// allow.
static bool map(uint64_t address, uint64_t physical, uint64_t size, uint64_t bits, int max_level)
{
    while (size > 0) {
        int level = max_level;
        while (level > 1 &&
               (((address | physical) & ((UINT64_C(1) << pte_shift(level)) - 1)) != 0 ||
                size < UINT64_C(1) << pte_shift(level)))
            level--;
        uint64_t *entry = entry_for(root, address, level);
        if (entry == NULL)
            return false;
        CHECK((*entry & PTE_PRESENT) == 0);
        *entry = physical | bits | PTE_PRESENT | (level > 1 ? PTE_LARGE : 0);
        uint64_t step = UINT64_C(1) << pte_shift(level);
        address += step;
        physical += step;
        size -= step;
    }
    return true;
}

static void map_or_panic(uint64_t address, uint64_t physical, uint64_t size, uint64_t bits,
                         int max_level)
{
    if (!map(address, physical, size, bits, max_level))
        panic("no conventional memory for page tables");
}

static void map_image(const struct boot_info *info)
{
    uint64_t start = (uint64_t)kernel_start;
    struct {
        const char *from, *to;
        uint64_t bits;
    } parts[] = {
        {kernel_start, kernel_text_end, 0},
        {kernel_text_end, kernel_rodata_end, no_execute},
        {kernel_rodata_end, boot_stack_guard, no_execute | PTE_WRITE},
        {boot_stack_guard + PAGE_SIZE, kernel_end, no_execute | PTE_WRITE},
    };
    for (unsigned i = 0; i < ARRAY_SIZE(parts); i++) {
        uint64_t from = (uint64_t)parts[i].from;
        map_or_panic(from, info->kernel_base + (from - start), (uint64_t)parts[i].to - from,
                     parts[i].bits | PTE_GLOBAL, 1);
    }
}

// Maps RAM [from, to); what holds the kernel's text and constants is read-only here too.
static void map_ram(const struct boot_info *info, uint64_t from, uint64_t to)
{
    uint64_t locked = info->kernel_base;
    uint64_t locked_end = locked + (uint64_t)(kernel_rodata_end - kernel_start);
    while (from < to) {
        uint64_t end = to;
        bool read_only = from >= locked && from < locked_end;
        if (read_only)
            end = MIN(to, locked_end);
        else if (from < locked)
            end = MIN(to, locked);
        map_or_panic(DIRECT_MAP_BASE + from, from, end - from,
                     no_execute | PTE_GLOBAL | (read_only ? 0 : PTE_WRITE), has_1g_pages ? 3 : 2);
        from = end;
    }
}

// Returns the leaf entry that translates `address` and its level, or 0 when none does.
static uint64_t lookup(uint64_t table_root, uint64_t address, int *level)
{
    const uint64_t *table = hpa_to_pointer(hpa(table_root));
    for (int at = 4; at > 0; at--) {
        uint64_t entry = table[pte_index(address, at)];
        if ((entry & PTE_PRESENT) == 0)
            return 0;
        if (pte_is_leaf(entry, at)) {
            *level = at;
            return entry;
        }
        table = pte_table(entry);
    }
    return 0;
}

// Everything the boot stage handed over must lie in memory it declared as usable.
static void check_reserved(const struct boot_memory *memory)
{
    int level;
    for (unsigned i = 0; i < memory->reserved_count; i++) {
        const struct boot_piece *p = &memory->reserved[i];
        for (uint64_t n = p->first; n < p->first + p->count; n++)
            if (lookup(root, DIRECT_MAP_BASE + (n << PAGE_SHIFT), &level) == 0)
                panic("frame 0x%lx, used by the boot stage, is not RAM in the memory map",
                      (unsigned long)n);
    }
}

void paging_init(const struct boot_info *info, struct boot_memory *memory)
{
    struct cpuid_regs features = cpu_cpuid(0x80000001, 0);
    no_execute = (features.edx & 1u << 20) != 0 ? PTE_NX : 0;
    has_1g_pages = (features.edx & 1u << 26) != 0;

    early_memory = memory;
    root = new_table();
    if (root == 0)
        panic("no conventional memory for page tables");
    map_image(info);
    struct boot_piece piece;
    for (uint64_t n = 0; boot_memory_next(memory, n, &piece); n = piece.first + piece.count)
        map_ram(info, piece.first << PAGE_SHIFT,
                MIN((piece.first + piece.count) << PAGE_SHIFT, RAM_END));
    check_reserved(memory);
    paging_init_cpu();
}

void paging_init_cpu(void)
{
    struct cpuid_regs basic = cpu_cpuid(1, 0);
    uint32_t extended = cpu_cpuid(0, 0).eax >= 7 ? cpu_cpuid(7, 0).ebx : 0;

    cpu_write_msr(MSR_EFER, (cpu_read_msr(MSR_EFER) & ~(uint64_t)EFER_SCE) |
                                (no_execute != 0 ? EFER_NXE : 0));
    cpu_write_msr(MSR_PAT, PAT_VALUE);
    cpu_write_cr0(CR0_PE | CR0_MP | CR0_ET | CR0_NE | CR0_WP | CR0_PG);
    // Without PGE first: loading CR3 then drops what the boot stage mapped as global.
    uint64_t cr4 = CR4_PAE | CR4_DE | CR4_MCE | CR4_OSFXSR | CR4_OSXMMEXCPT;
    if ((basic.ecx & 1u << 26) != 0)
        cr4 |= CR4_OSXSAVE;
    cpu_write_cr4(cr4);
    cpu_write_cr3(root);
    cr4 |= CR4_PGE;
    if ((extended & 1u << 7) != 0)
        cr4 |= CR4_SMEP;
    if ((extended & 1u << 20) != 0)
        cr4 |= CR4_SMAP;
    cpu_write_cr4(cr4);
}

void paging_use_frames(void)
{
    early_memory = NULL;
}

uint64_t paging_root(void)
{
    return root;
}

bool paging_has_1g_pages(void)
{
    return has_1g_pages;
}

bool paging_uses_nx(void)
{
    return no_execute != 0;
}

// --- Windows ---

static void *map_window(hpa_t base, uint64_t size, uint64_t bits)
{
    uint64_t offset = base.raw & PAGE_MASK;
    uint64_t physical = base.raw - offset;
    if (size == 0 || size > WINDOW_BYTES || base.raw + size < base.raw ||
        base.raw + size > PTE_ADDRESS)
        return NULL;
    size = ALIGN_UP(size + offset, PAGE_SIZE);

    spin_lock(&tables_lock);
    uint64_t address = window_next;
    if (size >= 2 * MIB) // the same alignment, so that large pages fit
        address = ALIGN_UP(address, 2 * MIB) + (physical & (2 * MIB - 1));
    void *result = NULL;
    if (address + size <= WINDOW_BASE + WINDOW_BYTES) {
        // Also where mapping fails half-way the addresses are spent.
        window_next = address + size;
        if (map(address, physical, size, bits | no_execute | PTE_GLOBAL, 2))
            result = (void *)(address + offset);
    }
    spin_unlock(&tables_lock);
    return result;
}

void *paging_map_device(hpa_t base, uint64_t size, unsigned flags)
{
    uint64_t type = (flags & PAGING_WRITE_COMBINING) != 0 ? PTE_PWT : PTE_PWT | PTE_PCD;
    return map_window(base, size, type | PTE_WRITE);
}

const void *machine_map_firmware(uint64_t base, uint64_t size)
{
    return map_window(hpa(base), size, 0);
}

// --- Stacks ---

static unsigned stack_order(unsigned pages)
{
    unsigned order = 0;
    while (1u << order < pages)
        order++;
    return order;
}

void *paging_alloc_stack(unsigned pages)
{
    unsigned order = stack_order(pages);
    uint64_t size = PAGE_SIZE << order;
    hfn_t frame;
    if (pages == 0 || order > FRAME_MAX_ORDER ||
        frame_alloc(FRAME_FUSOR, order, FRAME_RESERVE, NULL, &frame) != 0)
        return NULL;
    uint64_t physical = hfn_to_hpa(frame).raw;
    uint64_t address = STACK_BASE + 2 * physical + size;

    // First all tables, so that a lack of memory leaves nothing mapped.
    spin_lock(&tables_lock);
    bool room = true;
    for (uint64_t at = 0; at < size && room; at += PAGE_SIZE)
        room = entry_for(root, address + at, 1) != NULL;
    if (room)
        room = map(address, physical, size, PTE_WRITE | no_execute | PTE_GLOBAL, 1);
    spin_unlock(&tables_lock);
    if (!room) {
        frame_free(frame, order, NULL);
        return NULL;
    }
    return (void *)(address + size);
}

void paging_free_stack(void *top, unsigned pages)
{
    unsigned order = stack_order(pages);
    uint64_t size = PAGE_SIZE << order;
    uint64_t address = (uint64_t)top - size;
    uint64_t physical = (address - size - STACK_BASE) / 2;

    spin_lock(&tables_lock);
    for (uint64_t at = 0; at < size; at += PAGE_SIZE) {
        uint64_t *entry = entry_for(root, address + at, 1);
        CHECK(entry != NULL && (*entry & PTE_ADDRESS) == physical + at);
        *entry = 0;
        __asm__ volatile("invlpg (%0)" ::"r"(address + at) : "memory");
    }
    spin_unlock(&tables_lock);
    frame_free(hpa_to_hfn(hpa(physical)), order, NULL);
}

// --- Looking at the live tables ---

bool paging_readable(uintptr_t address)
{
    uint64_t top = address >> 47;
    int level;
    return (top == 0 || top == 0x1ffff) &&
           lookup(cpu_read_cr3() & PTE_ADDRESS, address, &level) != 0;
}

void paging_stack_bounds(uintptr_t pointer, uintptr_t *low, uintptr_t *high)
{
    *low = *high = pointer & ~(uintptr_t)PAGE_MASK;
    for (unsigned i = 0; i < 16 && paging_readable(*high); i++)
        *high += PAGE_SIZE;
}

static void audit(struct paging_audit *out, const uint64_t *table, unsigned entries, int level,
                  bool writable, bool executable)
{
    for (unsigned i = 0; i < entries; i++) {
        uint64_t entry = table[i];
        if ((entry & PTE_PRESENT) == 0)
            continue;
        bool w = writable && (entry & PTE_WRITE) != 0;
        bool x = executable && (entry & PTE_NX) == 0;
        if (pte_is_leaf(entry, level)) {
            out->mappings++;
            out->writable_executable += w && x ? 1 : 0;
        } else {
            audit(out, pte_table(entry), PTE_PER_PAGE, level - 1, w, x);
        }
    }
}

#define AUDIT_ENTRIES 8u // of 2 MiB each that are looked at with the lock held

// The part below entry `high` of the root and entry `low` of the table there, from entry `at` of
// the table there on. False: there is no such table.
static bool audit_part(struct paging_audit *out, unsigned high, unsigned low, unsigned at)
{
    const uint64_t *live = hpa_to_pointer(hpa(cpu_read_cr3() & PTE_ADDRESS));
    bool more = false;
    spin_lock(&tables_lock);
    uint64_t top = live[high];
    uint64_t next = (top & PTE_PRESENT) != 0 ? pte_table(top)[low] : 0;
    bool w = (top & next & PTE_WRITE) != 0, x = ((top | next) & PTE_NX) == 0;
    if ((next & PTE_PRESENT) != 0 && pte_is_leaf(next, 3)) {
        out->mappings++;
        out->writable_executable += w && x ? 1 : 0;
    } else if ((next & PTE_PRESENT) != 0) {
        audit(out, pte_table(next) + at, AUDIT_ENTRIES, 2, w, x);
        more = true;
    }
    spin_unlock(&tables_lock);
    return more;
}

void paging_audit(struct paging_audit *out)
{
    const uint64_t *live = hpa_to_pointer(hpa(cpu_read_cr3() & PTE_ADDRESS));
    *out = (struct paging_audit){0};
    for (unsigned high = 0; high < PTE_PER_PAGE; high++)
        for (unsigned low = 0; low < PTE_PER_PAGE && (live[high] & PTE_PRESENT) != 0; low++)
            for (unsigned at = 0; at < PTE_PER_PAGE && audit_part(out, high, low, at);
                 at += AUDIT_ENTRIES)
                if (fiber_current() != NULL)
                    fiber_give_way_if_due();
}
