// SPDX-License-Identifier: BSD-2-Clause
// Private to ept/: one step of a walk, and leaves in and out of entries.
//
// Entries change under us: the CPU sets accessed and dirty in leaves (and accessed in table
// entries) at any time with locked operations (SDM vol. 3, 29.3.5), and other CPUs hang tables into
// empty entries. So an entry is read once, judged, and changed only by compare-exchange against the
// value that was judged.
#pragma once

#include <stdatomic.h>

#include "ept/ept.h"
#include "kernel/memory.h"
#include <arch/ept.h>

#define EPT_ROOT_LEVEL  4
#define EPT_FRAME_LIMIT (UINT64_C(1) << 40) // 52 bits of physical address

// Kept beside enum ept_kind in the leaf's software bits.
#define EPT_KIND_MASK     3u
#define EPT_KIND_WITHHELD 4u

typedef _Atomic uint64_t ept_entry_t;

// Where a walk ended: at a leaf, or at an entry that is not present.
struct ept_slot {
    ept_entry_t *entry;
    uint64_t value; // as it was judged
    int level;
};

static inline uint64_t ept_span(int level)
{
    return UINT64_C(1) << (9 * (level - 1));
}

static inline unsigned ept_index(gfn_t gfn, int level)
{
    return (unsigned)(gfn.raw >> (9 * (level - 1))) & (ARCH_EPT_ENTRIES - 1);
}

static inline ept_entry_t *ept_table_at(uint64_t table_frame)
{
    return (ept_entry_t *)hfn_to_pointer(hfn(table_frame));
}

static inline ept_entry_t *ept_root_table(const struct ept *ept)
{
    return (ept_entry_t *)hpa_to_pointer(ept->root);
}

static inline uint64_t ept_read(ept_entry_t *entry)
{
    return atomic_load_explicit(entry, memory_order_acquire);
}

// Walks down to `lowest` at most: there a table entry ends the walk too. gfn is below
// EPT_GFN_LIMIT.
static inline struct ept_slot ept_find_level(const struct ept *ept, gfn_t gfn, int lowest)
{
    ept_entry_t *table = ept_root_table(ept);
    for (int level = EPT_ROOT_LEVEL;; level--) {
        ept_entry_t *entry = &table[ept_index(gfn, level)];
        uint64_t value = ept_read(entry);
        if (level == lowest || !arch_ept_is_table(value, level))
            return (struct ept_slot){entry, value, level};
        table = ept_table_at(arch_ept_table(value, level));
    }
}

// The hot walk: to the level-2 entry that names a level-1 table. False when it met a leaf or an
// empty entry, which *slot is then. Unrolled, so that the level, and with it every shift and mask,
// is constant.
static inline __attribute__((always_inline)) bool ept_find_table(const struct ept *ept, gfn_t gfn,
                                                                 struct ept_slot *slot)
{
    ept_entry_t *table = ept_root_table(ept);
#pragma GCC unroll 4
    for (int level = EPT_ROOT_LEVEL; level >= EPT_2M; level--) {
        slot->entry = &table[ept_index(gfn, level)];
        slot->value = ept_read(slot->entry);
        slot->level = level;
        if (__builtin_expect(!arch_ept_is_table(slot->value, level), 0))
            return false;
        table = ept_table_at(arch_ept_table(slot->value, level));
    }
    return true;
}

// The level-1 entry in the table that ept_find_table found.
static inline struct ept_slot ept_small_slot(const struct ept_slot *table, gfn_t gfn)
{
    ept_entry_t *entry =
        &ept_table_at(arch_ept_table(table->value, EPT_2M))[ept_index(gfn, EPT_4K)];
    return (struct ept_slot){entry, ept_read(entry), EPT_4K};
}

static inline struct ept_slot ept_find(const struct ept *ept, gfn_t gfn)
{
    struct ept_slot slot;
    if (ept_find_table(ept, gfn, &slot))
        slot = ept_small_slot(&slot, gfn);
    return slot;
}

// True when the slot holds something that is a leaf.
static inline bool ept_slot_is_leaf(const struct ept_slot *slot)
{
    return arch_ept_present(slot->value, slot->level) && arch_ept_is_leaf(slot->value, slot->level);
}

// Changes the entry if it still is what was judged. Release: a table is filled before it is seen.
static inline bool ept_slot_change(const struct ept_slot *slot, uint64_t value)
{
    uint64_t expected = slot->value;
    return atomic_compare_exchange_strong_explicit(slot->entry, &expected, value,
                                                   memory_order_acq_rel, memory_order_relaxed);
}

static inline struct ept_leaf ept_decode(uint64_t value, int level, gfn_t gfn)
{
    struct arch_ept_leaf raw = arch_ept_leaf(value, level);
    bool unknown = !ept_features.accessed_dirty;
    return (struct ept_leaf){
        .frame = hfn(raw.frame + (gfn.raw & (ept_span(level) - 1))),
        .level = (enum ept_level)level,
        .permissions = raw.permissions,
        .kind = (enum ept_kind)(raw.kind & EPT_KIND_MASK),
        .present = true,
        .accessed = raw.accessed || unknown,
        .dirty = raw.dirty || unknown,
        .execute_withheld = (raw.kind & EPT_KIND_WITHHELD) != 0,
    };
}

// Takes EPT_EXECUTE out of a large leaf where the machine demands it and remembers that.
static inline uint64_t ept_encode(uint64_t frame, int level, unsigned permissions, unsigned kind)
{
    if (level > EPT_4K && (permissions & EPT_EXECUTE) != 0 && !ept_features.large_executable_safe) {
        permissions &= ~(unsigned)EPT_EXECUTE;
        kind |= EPT_KIND_WITHHELD;
    }
    return arch_ept_make_leaf(frame, level, permissions, kind);
}

// 0, or why no leaf may look like this.
int ept_check_leaf(gfn_t gfn, hfn_t frame, enum ept_level level, unsigned permissions,
                   enum ept_kind kind);
