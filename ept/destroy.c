// SPDX-License-Identifier: BSD-2-Clause
// The end of an EPT, in steps.
#include "ept/ept.h"

#include "ept/entry.h"
#include "kernel/error.h"
#include "kernel/panic.h"

static void check_nobody_inside(const struct ept *ept)
{
    for (uint32_t cpu = 0; cpu < cpu_count; cpu++) {
        CHECK(atomic_load_explicit(&ept_cpus[cpu].in_guest, memory_order_acquire) == 0 ||
              atomic_load_explicit(&ept_cpus[cpu].current, memory_order_acquire) != ept);
    }
}

// Frees the tables below `table`, whose entries are of `level`. What is freed leaves its entry, so
// the next call finds the place again after at most one table scan per level. False when the budget
// ended.
static bool free_below(struct ept *ept, ept_entry_t *table, int level, unsigned *budget)
{
    for (unsigned i = 0; i < ARCH_EPT_ENTRIES; i++) {
        uint64_t value = ept_read(&table[i]);
        if (!arch_ept_present(value, level) || arch_ept_is_leaf(value, level))
            continue;
        uint64_t child = arch_ept_table(value, level);
        // Below level 2 there are only leaves.
        if (level > EPT_2M && !free_below(ept, ept_table_at(child), level - 1, budget))
            return false;
        if (*budget == 0)
            return false;
        (*budget)--;
        atomic_store_explicit(&table[i], 0, memory_order_relaxed);
        ept_table_free(hfn(child));
        atomic_fetch_sub_explicit(&ept->table_frames, 1, memory_order_relaxed);
    }
    return true;
}

int ept_destroy(struct ept *ept, unsigned budget)
{
    if (ept->root.raw == 0) // frame 0 is never RAM of Fusor
        return 0;
    if (!ept->dying) {
        ept_shootdown(ept);
        ept->dying = true;
    }
    check_nobody_inside(ept);
    if (!free_below(ept, ept_root_table(ept), EPT_ROOT_LEVEL, &budget) || budget == 0)
        return E_AGAIN;

    // Translations cached for this root are used again as soon as another EPT has the same root
    // (SDM vol. 3, 29.4.2: they are tagged with it). The flag is set before the frame can be
    // anybody's.
    for (uint32_t cpu = 0; cpu < cpu_count; cpu++) {
        if (atomic_load_explicit(&ept->seen[cpu], memory_order_acquire) != 0)
            atomic_store_explicit(&ept_cpus[cpu].flush_all, 1, memory_order_release);
    }
    hfn_t root = hpa_to_hfn(ept->root);
    ept->root = hpa(0);
    ept_table_free(root);
    atomic_fetch_sub_explicit(&ept->table_frames, 1, memory_order_relaxed);
    return 0;
}
