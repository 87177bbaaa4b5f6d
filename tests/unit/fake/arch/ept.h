// SPDX-License-Identifier: BSD-2-Clause
// EPT entries of the host tests: the interface of kernel/x86/arch/ept.h with the bits shifted per
// level and the level in the top bits, so that an entry judged or made with the wrong level stops
// the test (the idea is Hafnium's). Freed memory, filled with 0xa5, is no valid entry either.
//
//   63:61 level | frame (40 bits) | 8:6 kind | 5 D | 4 A | 3 large or level 1 | 2:0 permissions,
//   all but the level shifted left by 3 * level
#pragma once

#include <stdio.h>
#include <stdlib.h>

#include "kernel/percpu.h"
#include "kernel/types.h"

struct arch_ept_leaf {
    uint64_t frame;
    unsigned permissions;
    unsigned kind;
    bool accessed, dirty;
};

#define ARCH_EPT_ENTRIES 512u

#define FAKE_EPT_LEAF       (1u << 3)
#define FAKE_EPT_ACCESSED   (1u << 4)
#define FAKE_EPT_DIRTY      (1u << 5)
#define FAKE_EPT_FRAME_MASK ((UINT64_C(1) << 40) - 1)

// Calls since the test last cleared them, per CPU that made them.
__attribute__((weak)) unsigned fake_invept_singles[MAX_CPUS];
__attribute__((weak)) unsigned fake_invept_alls[MAX_CPUS];
__attribute__((weak)) uint64_t fake_invept_last[MAX_CPUS]; // the EPT pointer
__attribute__((weak)) void (*fake_invept_hook)(void);      // called in the middle of every INVEPT

static inline uint64_t fake_ept_pack(uint64_t fields, int level)
{
    if (level < 1 || level > 4) {
        fprintf(stderr, "EPT entry of level %d\n", level);
        abort();
    }
    return (uint64_t)level << 61 | fields << (3 * level);
}

static inline uint64_t fake_ept_fields(uint64_t entry, int level)
{
    if (entry == 0)
        return 0;
    if (entry >> 61 != (uint64_t)level) {
        fprintf(stderr, "EPT entry %#llx judged as level %d\n", (unsigned long long)entry, level);
        abort();
    }
    return (entry & ~(UINT64_C(7) << 61)) >> (3 * level);
}

static inline uint64_t arch_ept_make_table(uint64_t table_frame, int level)
{
    if (level < 2)
        abort();
    return fake_ept_pack(table_frame << 9 | 7u, level);
}

static inline uint64_t arch_ept_make_leaf(uint64_t frame, int level, unsigned permissions,
                                          unsigned kind)
{
    if (level > 3 || (frame & ~FAKE_EPT_FRAME_MASK) != 0 || permissions > 7 || kind > 7)
        abort();
    return fake_ept_pack(frame << 9 | kind << 6 | FAKE_EPT_LEAF | permissions, level);
}

static inline bool arch_ept_present(uint64_t entry, int level)
{
    return (fake_ept_fields(entry, level) & 7u) != 0;
}

static inline bool arch_ept_is_leaf(uint64_t entry, int level)
{
    return (fake_ept_fields(entry, level) & FAKE_EPT_LEAF) != 0 || level == 1;
}

static inline bool arch_ept_is_table(uint64_t entry, int level)
{
    return level > 1 && arch_ept_present(entry, level) && !arch_ept_is_leaf(entry, level);
}

static inline uint64_t arch_ept_table(uint64_t entry, int level)
{
    uint64_t fields = fake_ept_fields(entry, level);
    if ((fields & FAKE_EPT_LEAF) != 0)
        abort();
    return fields >> 9 & FAKE_EPT_FRAME_MASK;
}

static inline struct arch_ept_leaf arch_ept_leaf(uint64_t entry, int level)
{
    uint64_t fields = fake_ept_fields(entry, level);
    if ((fields & FAKE_EPT_LEAF) == 0)
        abort();
    return (struct arch_ept_leaf){
        .frame = fields >> 9 & FAKE_EPT_FRAME_MASK,
        .permissions = (unsigned)(fields & 7u),
        .kind = (unsigned)(fields >> 6 & 7u),
        .accessed = (fields & FAKE_EPT_ACCESSED) != 0,
        .dirty = (fields & FAKE_EPT_DIRTY) != 0,
    };
}

static inline uint64_t arch_ept_clear_dirty(uint64_t entry, int level)
{
    uint64_t fields = fake_ept_fields(entry, level);
    return fake_ept_pack(fields & ~(uint64_t)(FAKE_EPT_ACCESSED | FAKE_EPT_DIRTY), level);
}

static inline uint64_t arch_ept_set_accessed_dirty(uint64_t entry, int level, bool accessed,
                                                   bool dirty)
{
    uint64_t fields = fake_ept_fields(entry, level);
    return fake_ept_pack(
        fields | (accessed ? FAKE_EPT_ACCESSED : 0u) | (dirty ? FAKE_EPT_DIRTY : 0u), level);
}

static inline uint64_t arch_ept_pointer(uint64_t root_frame, bool accessed_dirty)
{
    return root_frame << PAGE_SHIFT | 6u | 3u << 3 | (accessed_dirty ? 1u << 6 : 0u);
}

static inline void arch_invept_single(uint64_t eptp)
{
    fake_invept_singles[cpu_index()]++;
    fake_invept_last[cpu_index()] = eptp;
    if (fake_invept_hook != NULL)
        fake_invept_hook();
}

static inline void arch_invept_all(void)
{
    fake_invept_alls[cpu_index()]++;
    if (fake_invept_hook != NULL)
        fake_invept_hook();
}
