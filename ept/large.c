// SPDX-License-Identifier: BSD-2-Clause
// Large leaves: split, collapse in place, replacement of a whole table.
#include "ept/ept.h"

#include "ept/entry.h"
#include "kernel/error.h"

// What a large leaf allows once it is split: execution that was withheld comes back.
static unsigned whole_permissions(const struct arch_ept_leaf *leaf)
{
    return leaf->permissions | ((leaf->kind & EPT_KIND_WITHHELD) != 0 ? (unsigned)EPT_EXECUTE : 0u);
}

static void fill_from_large(ept_entry_t *table, const struct ept_slot *large)
{
    struct arch_ept_leaf leaf = arch_ept_leaf(large->value, large->level);
    int level = large->level - 1;
    unsigned permissions = whole_permissions(&leaf);
    for (unsigned i = 0; i < ARCH_EPT_ENTRIES; i++) {
        uint64_t value = ept_encode(leaf.frame + i * ept_span(level), level, permissions,
                                    leaf.kind & EPT_KIND_MASK);
        value = arch_ept_set_accessed_dirty(value, level, leaf.accessed, leaf.dirty);
        atomic_store_explicit(&table[i], value, memory_order_relaxed);
    }
}

int ept_split_large(struct ept *ept, gfn_t gfn, hfn_t table)
{
    if (gfn.raw >= EPT_GFN_LIMIT)
        return E_RANGE;
    struct ept_slot slot = ept_find(ept, gfn);
    if (!ept_slot_is_leaf(&slot))
        return E_NOENT;
    if (slot.level == EPT_4K)
        return E_INVAL;
    for (;;) {
        int level = slot.level;
        fill_from_large(ept_table_at(table.raw), &slot);
        if (ept_slot_change(&slot, arch_ept_make_table(table.raw, level)))
            break;
        // A flag was set meanwhile, and the new leaves must have it; or another holder of another
        // gfn lock changed this 1 GiB leaf.
        slot = ept_find(ept, gfn);
        if (slot.level != level || !ept_slot_is_leaf(&slot))
            return E_AGAIN;
    }
    if (slot.level == EPT_1G)
        atomic_fetch_add_explicit(&ept->large_leaves, ARCH_EPT_ENTRIES - 1, memory_order_relaxed);
    else
        atomic_fetch_sub_explicit(&ept->large_leaves, 1, memory_order_relaxed);
    atomic_fetch_add_explicit(&ept->table_frames, 1, memory_order_relaxed);
    atomic_fetch_add_explicit(&ept->large_splits, 1, memory_order_relaxed);
    return 0;
}

// Puts `leaf` where `slot` holds a table. Only the table entry's accessed flag can have changed:
// what else would change it needs the gfn lock, which the caller holds.
static hfn_t put_over_table(struct ept *ept, struct ept_slot slot, uint64_t leaf)
{
    while (!ept_slot_change(&slot, leaf))
        slot.value = ept_read(slot.entry);
    atomic_fetch_sub_explicit(&ept->table_frames, 1, memory_order_relaxed);
    atomic_fetch_add_explicit(&ept->large_leaves, 1, memory_order_relaxed);
    return hfn(arch_ept_table(slot.value, slot.level));
}

int ept_collapse(struct ept *ept, gfn_t gfn, hfn_t *table)
{
    if (gfn.raw >= EPT_GFN_LIMIT)
        return E_RANGE;
    gfn.raw = ALIGN_DOWN(gfn.raw, ept_span(EPT_2M));
    struct ept_slot slot = ept_find_level(ept, gfn, EPT_2M);
    if (slot.level != EPT_2M || !arch_ept_present(slot.value, EPT_2M) ||
        arch_ept_is_leaf(slot.value, EPT_2M))
        return E_INVAL;
    ept_entry_t *entries = ept_table_at(arch_ept_table(slot.value, EPT_2M));
    struct arch_ept_leaf first = {0};
    bool accessed = false;
    bool dirty = false;
    for (unsigned i = 0; i < ARCH_EPT_ENTRIES; i++) {
        uint64_t value = ept_read(&entries[i]);
        if (!arch_ept_present(value, EPT_4K))
            return E_INVAL;
        struct arch_ept_leaf leaf = arch_ept_leaf(value, EPT_4K);
        if (i == 0)
            first = leaf;
        if ((leaf.kind & EPT_KIND_MASK) != EPT_KIND_PRIVATE || leaf.frame != first.frame + i ||
            leaf.permissions != first.permissions)
            return E_INVAL;
        accessed |= leaf.accessed;
        dirty |= leaf.dirty;
    }
    int error = ept_check_leaf(gfn, hfn(first.frame), EPT_2M, first.permissions, EPT_KIND_PRIVATE);
    if (error != 0)
        return error;
    bool writable = (first.permissions & EPT_WRITE) != 0;
    uint64_t leaf = ept_encode(first.frame, EPT_2M, first.permissions, EPT_KIND_PRIVATE);
    leaf = arch_ept_set_accessed_dirty(leaf, EPT_2M, accessed || writable, dirty || writable);
    *table = put_over_table(ept, slot, leaf);
    atomic_fetch_add_explicit(&ept->large_collapses, 1, memory_order_relaxed);
    return 0;
}

int ept_replace_table(struct ept *ept, gfn_t gfn, hfn_t large_frame, unsigned permissions,
                      enum ept_kind kind, hfn_t *table)
{
    gfn.raw = ALIGN_DOWN(gfn.raw, ept_span(EPT_2M));
    int error = ept_check_leaf(gfn, large_frame, EPT_2M, permissions, kind);
    if (error != 0)
        return error;
    struct ept_slot slot = ept_find_level(ept, gfn, EPT_2M);
    if (!arch_ept_present(slot.value, slot.level))
        return E_NOENT;
    if (arch_ept_is_leaf(slot.value, slot.level))
        return E_EXIST;
    ept_entry_t *entries = ept_table_at(arch_ept_table(slot.value, EPT_2M));
    for (unsigned i = 0; i < ARCH_EPT_ENTRIES; i++) {
        uint64_t value = ept_read(&entries[i]);
        // A writable leaf may change while it is copied, or was given back after the copy.
        if (arch_ept_present(value, EPT_4K) &&
            (arch_ept_leaf(value, EPT_4K).permissions & EPT_WRITE) != 0)
            return E_BUSY;
    }
    *table = put_over_table(ept, slot, ept_encode(large_frame.raw, EPT_2M, permissions, kind));
    return 0;
}
