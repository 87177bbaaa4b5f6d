// SPDX-License-Identifier: BSD-2-Clause
// EPT entries as the CPU sees them (SDM vol. 3, 29.3.2) and the invalidation instructions. ept/
// never encodes an entry itself; the host tests' arch/ept.h shifts the bits per level so that a
// level mistake breaks a test.
#pragma once

#include "kernel/types.h"

struct arch_ept_leaf {
    uint64_t frame; // host frame number of the first 4 KiB
    unsigned permissions;
    unsigned kind;
    bool accessed, dirty;
};

#define ARCH_EPT_ENTRIES 512u

static inline uint64_t arch_ept_make_table(uint64_t table_frame, int level)
{
    (void)level;
    return table_frame << PAGE_SHIFT | 7u;
}

// Bits 2:0 permissions, 5:3 memory type write-back (6), 6 ignore PAT, 7 large, 8 A, 9 D, 54:52
// kind (software, 0..7). Bit 10 (user execute) and 63 (suppress #VE) have no effect without their
// controls.
static inline uint64_t arch_ept_make_leaf(uint64_t frame, int level, unsigned permissions,
                                          unsigned kind)
{
    return frame << PAGE_SHIFT | permissions | 6u << 3 | 1u << 6 | (level > 1 ? 1u << 7 : 0u) |
           (uint64_t)kind << 52;
}

static inline bool arch_ept_present(uint64_t entry, int level)
{
    (void)level;
    return (entry & 7u) != 0;
}

static inline bool arch_ept_is_leaf(uint64_t entry, int level)
{
    return level == 1 || (entry & (1u << 7)) != 0;
}

// Present and no leaf, in one comparison.
static inline bool arch_ept_is_table(uint64_t entry, int level)
{
    (void)level;
    return (entry & (1u << 7 | 7u)) == 7u;
}

static inline uint64_t arch_ept_table(uint64_t entry, int level)
{
    (void)level;
    return (entry & UINT64_C(0x000ffffffffff000)) >> PAGE_SHIFT;
}

static inline struct arch_ept_leaf arch_ept_leaf(uint64_t entry, int level)
{
    (void)level;
    return (struct arch_ept_leaf){
        .frame = (entry & UINT64_C(0x000ffffffffff000)) >> PAGE_SHIFT,
        .permissions = (unsigned)(entry & 7u),
        .kind = (unsigned)(entry >> 52 & 7u),
        .accessed = (entry & 1u << 8) != 0,
        .dirty = (entry & 1u << 9) != 0,
    };
}

static inline uint64_t arch_ept_clear_dirty(uint64_t entry, int level)
{
    (void)level;
    return entry & ~(UINT64_C(3) << 8);
}

// Adds the flags that are true; never takes one away.
static inline uint64_t arch_ept_set_accessed_dirty(uint64_t entry, int level, bool accessed,
                                                   bool dirty)
{
    (void)level;
    return entry | (accessed ? 1u << 8 : 0u) | (dirty ? 1u << 9 : 0u);
}

static inline uint64_t arch_ept_pointer(uint64_t root_frame, bool accessed_dirty)
{
    return root_frame << PAGE_SHIFT | 6u | 3u << 3 | (accessed_dirty ? 1u << 6 : 0u);
}

static inline void arch_invept_single(uint64_t eptp)
{
    struct {
        uint64_t eptp, reserved;
    } descriptor = {eptp, 0};
    __asm__ volatile("invept %0, %1" ::"m"(descriptor), "r"(UINT64_C(1)) : "cc", "memory");
}

static inline void arch_invept_all(void)
{
    struct {
        uint64_t eptp, reserved;
    } descriptor = {0, 0};
    __asm__ volatile("invept %0, %1" ::"m"(descriptor), "r"(UINT64_C(2)) : "cc", "memory");
}
