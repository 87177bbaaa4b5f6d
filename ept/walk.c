// SPDX-License-Identifier: BSD-2-Clause
// Life and shape of an EPT: set-up, the tables above a leaf, look-ups, locks of ranges.
#include "ept/ept.h"

#include "ept/entry.h"
#include "kernel/error.h"
#include "kernel/frames.h"
#include "kernel/string.h"

struct ept_features ept_features;

int ept_table_alloc(hfn_t *table)
{
    return frame_alloc(FRAME_TABLE, 0, FRAME_ZEROED | FRAME_RESERVE, NULL, table);
}

void ept_table_free(hfn_t table)
{
    frame_free(table, 0, NULL);
}

int ept_init(struct ept *ept, uint64_t vm_id)
{
    hfn_t root;
    int error = ept_table_alloc(&root);
    memset(ept, 0, sizeof(*ept));
    if (error != 0)
        return error;
    ept->root = hfn_to_hpa(root);
    ept->vm_id = vm_id;
    ept->eptp = arch_ept_pointer(root.raw, ept_features.accessed_dirty);
    // seen[] is 0, so that the first entry of every CPU invalidates.
    atomic_store_explicit(&ept->epoch, 1, memory_order_relaxed);
    atomic_store_explicit(&ept->table_frames, 1, memory_order_relaxed);
    for (unsigned i = 0; i < EPT_LOCKS; i++)
        spin_init(&ept->locks[i], "gfn", RANK_GFN);
    return 0;
}

// Hangs tables into the empty entry `top`, down to the one that holds leaves of `level`. The chain
// is built in private and appears with one compare-exchange, so a failure leaves no trace.
static int hang_tables(struct ept *ept, gfn_t gfn, const struct ept_slot *top, int level)
{
    hfn_t tables[EPT_ROOT_LEVEL];
    int wanted = top->level - level;
    int count = 0;
    int error;
    do { // at least one is wanted
        error = ept_table_alloc(&tables[count]);
        if (error == 0)
            count++;
    } while (error == 0 && count < wanted);
    if (error == 0) {
        // tables[i] holds entries of level top->level - 1 - i.
        for (int i = 0; i + 1 < count; i++) {
            int entry_level = top->level - 1 - i;
            ept_entry_t *entry = &ept_table_at(tables[i].raw)[ept_index(gfn, entry_level)];
            atomic_store_explicit(entry, arch_ept_make_table(tables[i + 1].raw, entry_level),
                                  memory_order_relaxed);
        }
        if (ept_slot_change(top, arch_ept_make_table(tables[0].raw, top->level))) {
            atomic_fetch_add_explicit(&ept->table_frames, (uint64_t)count, memory_order_relaxed);
            return 0;
        }
        error = E_AGAIN; // another CPU was faster
    }
    while (count > 0)
        ept_table_free(tables[--count]);
    return error;
}

int ept_prepare_level(struct ept *ept, gfn_t gfn, enum ept_level level)
{
    if (gfn.raw >= EPT_GFN_LIMIT)
        return E_RANGE;
    if (level < EPT_4K || level > EPT_1G)
        return E_INVAL;
    int error;
    do {
        struct ept_slot slot = ept_find_level(ept, gfn, (int)level);
        if (slot.level == (int)level || arch_ept_present(slot.value, slot.level))
            return 0;
        error = hang_tables(ept, gfn, &slot, (int)level);
    } while (error == E_AGAIN);
    return error;
}

int ept_prepare(struct ept *ept, gfn_t gfn)
{
    return ept_prepare_level(ept, gfn, EPT_4K);
}

struct ept_leaf ept_lookup(struct ept *ept, gfn_t gfn)
{
    if (gfn.raw >= EPT_GFN_LIMIT)
        return (struct ept_leaf){.level = EPT_1G};
    struct ept_slot table;
    while (ept_find_table(ept, gfn, &table)) {
        struct ept_slot slot = ept_small_slot(&table, gfn);
        // A table that was taken away may hold anything by now, but it was taken away first: what
        // we read came from a live table if the entry still names it. If only the accessed flag has
        // changed, another turn does no harm.
        if (__builtin_expect(ept_read(table.entry) != table.value, 0))
            continue;
        if (!arch_ept_present(slot.value, EPT_4K))
            return (struct ept_leaf){.level = EPT_4K};
        return ept_decode(slot.value, EPT_4K, gfn);
    }
    if (arch_ept_present(table.value, table.level))
        return ept_decode(table.value, table.level, gfn);
    return (struct ept_leaf){.level = (enum ept_level)MIN(table.level, (int)EPT_1G)};
}

static unsigned lock_index(gfn_t gfn)
{
    return (unsigned)(gfn.raw >> 9) % EPT_LOCKS;
}

void ept_lock_gfn(struct ept *ept, gfn_t gfn)
{
    spin_lock(&ept->locks[lock_index(gfn)]);
}

void ept_lock_gfn_nested(struct ept *ept, gfn_t gfn)
{
    spin_lock_nested(&ept->locks[lock_index(gfn)]);
}

void ept_unlock_gfn(struct ept *ept, gfn_t gfn)
{
    spin_unlock(&ept->locks[lock_index(gfn)]);
}

bool ept_same_lock(const struct ept *ept, gfn_t a, gfn_t b)
{
    (void)ept;
    return lock_index(a) == lock_index(b);
}

void ept_lock_pair(struct ept *a, gfn_t a_gfn, struct ept *b, gfn_t b_gfn)
{
    bool swap = a == b ? lock_index(b_gfn) < lock_index(a_gfn) : b->vm_id < a->vm_id;
    ept_lock_gfn(swap ? b : a, swap ? b_gfn : a_gfn);
    if (a != b || !ept_same_lock(a, a_gfn, b_gfn))
        ept_lock_gfn_nested(swap ? a : b, swap ? a_gfn : b_gfn);
}

void ept_unlock_pair(struct ept *a, gfn_t a_gfn, struct ept *b, gfn_t b_gfn)
{
    ept_unlock_gfn(a, a_gfn);
    if (a != b || !ept_same_lock(a, a_gfn, b_gfn))
        ept_unlock_gfn(b, b_gfn);
}

int ept_for_each(struct ept *ept, gfn_t *next, unsigned budget,
                 void (*visit)(void *context, gfn_t gfn, struct ept_leaf leaf), void *context)
{
    unsigned empty = 0;
    while (next->raw < EPT_GFN_LIMIT && budget > 0) {
        // One run along the table in which the walk for *next ends: to its end or to a table in it.
        struct ept_slot slot = ept_find(ept, *next);
        do {
            uint64_t span = ept_span(slot.level);
            if (budget == 0)
                return E_AGAIN;
            if (ept_slot_is_leaf(&slot)) {
                budget--;
                gfn_t here = *next;
                next->raw = ALIGN_DOWN(here.raw, span) + span;
                visit(context, here, ept_decode(slot.value, slot.level, here));
            } else if (arch_ept_present(slot.value, slot.level)) {
                break; // a table
            } else {
                next->raw = ALIGN_DOWN(next->raw, span) + span;
                budget -= ++empty % EPT_EMPTY_PER_LEAF == 0;
            }
            // The next entry of this table, unless that was the last.
            if (ept_index(*next, slot.level) == 0)
                break;
            slot.entry++;
            slot.value = ept_read(slot.entry);
        } while (true);
    }
    return next->raw < EPT_GFN_LIMIT ? E_AGAIN : 0;
}
