// SPDX-License-Identifier: BSD-2-Clause
// Leaves: map, replace, unmap, permissions, accessed and dirty.
//
// The gfn lock keeps other CPUs away from leaves up to 2 MiB; the CPU's page walker still sets A/D
// flags, and a 1 GiB leaf may be split by the holder of another gfn lock. So every change is a
// compare-exchange, and a failed one walks again.
#include "ept/ept.h"

#include "ept/entry.h"
#include "kernel/error.h"

static inline int check_permissions(unsigned permissions, enum ept_kind kind)
{
    // One bit per combination of permissions. Write without read is a misconfiguration, and so is
    // execute-only where the CPU lacks it (SDM vol. 3, 29.3.3.1). No permission at all would mean
    // "not present".
    enum { READ_ONLY = 1u << EPT_READ | 1u << (EPT_READ | EPT_EXECUTE) | 1u << EPT_EXECUTE };
    static const uint8_t allowed[] = {
        [EPT_KIND_ZERO] = READ_ONLY,
        [EPT_KIND_PRIVATE] = READ_ONLY | 1u << (EPT_READ | EPT_WRITE) | 1u << EPT_RWX,
        [EPT_KIND_SHARED] = READ_ONLY,
        [EPT_KIND_CANDIDATE] = READ_ONLY,
    };
    if (permissions > EPT_RWX || (unsigned)kind >= ARRAY_SIZE(allowed) ||
        (allowed[kind] >> permissions & 1u) == 0)
        return E_INVAL;
    return permissions != EPT_EXECUTE || ept_features.execute_only ? 0 : E_INVAL;
}

static inline int check_small(gfn_t gfn, hfn_t frame, unsigned permissions, enum ept_kind kind)
{
    if (gfn.raw >= EPT_GFN_LIMIT)
        return E_RANGE;
    return frame.raw < EPT_FRAME_LIMIT ? check_permissions(permissions, kind) : E_INVAL;
}

// What a large leaf must fulfil besides.
static __attribute__((noinline)) int check_large(gfn_t gfn, hfn_t frame, int level,
                                                 unsigned permissions)
{
    if (level != EPT_2M && level != EPT_1G)
        return E_INVAL;
    if (!(level == EPT_2M ? ept_features.page_2m : ept_features.page_1g))
        return E_NOSYS;
    // With EPT_EXECUTE withheld nothing would be left of an execute-only one.
    if (permissions == EPT_EXECUTE && !ept_features.large_executable_safe)
        return E_INVAL;
    return ((gfn.raw | frame.raw) & (ept_span(level) - 1)) == 0 ? 0 : E_INVAL;
}

int ept_check_leaf(gfn_t gfn, hfn_t frame, enum ept_level level, unsigned permissions,
                   enum ept_kind kind)
{
    int error = check_small(gfn, frame, permissions, kind);
    if (error == 0 && level != EPT_4K)
        error = check_large(gfn, frame, (int)level, permissions);
    return error;
}

static __attribute__((noinline)) int map_large(struct ept *ept, gfn_t gfn, hfn_t frame, int level,
                                               unsigned permissions, enum ept_kind kind)
{
    int error = check_large(gfn, frame, level, permissions);
    if (error != 0)
        return error;
    struct ept_slot slot = ept_find_level(ept, gfn, level);
    if (arch_ept_present(slot.value, slot.level))
        return E_EXIST;
    if (slot.level != level)
        return E_AGAIN;
    // Who else fills an empty entry: ept_prepare, which takes no lock.
    if (!ept_slot_change(&slot, ept_encode(frame.raw, level, permissions, kind)))
        return E_EXIST;
    atomic_fetch_add_explicit(&ept->large_leaves, 1, memory_order_relaxed);
    return 0;
}

int ept_map(struct ept *ept, gfn_t gfn, hfn_t frame, enum ept_level level, unsigned permissions,
            enum ept_kind kind)
{
    int error = check_small(gfn, frame, permissions, kind);
    if (error != 0)
        return error;
    if (level != EPT_4K)
        return map_large(ept, gfn, frame, (int)level, permissions, kind);
    struct ept_slot slot;
    if (!ept_find_table(ept, gfn, &slot))
        return arch_ept_present(slot.value, slot.level) ? E_EXIST : E_AGAIN;
    slot = ept_small_slot(&slot, gfn);
    if (arch_ept_present(slot.value, EPT_4K) ||
        !ept_slot_change(&slot, ept_encode(frame.raw, EPT_4K, permissions, kind)))
        return E_EXIST;
    return 0;
}

int ept_replace(struct ept *ept, gfn_t gfn, hfn_t frame, enum ept_level level, unsigned permissions,
                enum ept_kind kind, struct ept_leaf *old)
{
    int error = ept_check_leaf(gfn, frame, level, permissions, kind);
    if (error != 0)
        return error;
    uint64_t fresh = ept_encode(frame.raw, (int)level, permissions, kind);
    struct ept_slot slot;
    uint64_t value;
    do {
        slot = ept_find(ept, gfn);
        if (!ept_slot_is_leaf(&slot))
            return E_NOENT;
        if (slot.level != (int)level)
            return E_INVAL;
        struct arch_ept_leaf now = arch_ept_leaf(slot.value, slot.level);
        value = fresh;
        if (now.frame == frame.raw)
            value = arch_ept_set_accessed_dirty(value, slot.level, now.accessed, now.dirty);
    } while (!ept_slot_change(&slot, value));
    *old = ept_decode(slot.value, slot.level, gfn);
    return 0;
}

int ept_change(struct ept *ept, gfn_t gfn, hfn_t frame, enum ept_kind kind, hfn_t to,
               unsigned permissions, enum ept_kind to_kind)
{
    struct ept_slot slot;
    if (gfn.raw >= EPT_GFN_LIMIT || !ept_find_table(ept, gfn, &slot))
        return E_AGAIN;
    slot = ept_small_slot(&slot, gfn);
    uint64_t fresh = ept_encode(to.raw, EPT_4K, permissions, to_kind);
    for (;;) {
        if (!arch_ept_present(slot.value, EPT_4K))
            return E_AGAIN;
        struct arch_ept_leaf now = arch_ept_leaf(slot.value, EPT_4K);
        if (now.frame != frame.raw || (now.kind & EPT_KIND_MASK) != (unsigned)kind)
            return E_AGAIN;
        uint64_t value = fresh;
        if (frame.raw == to.raw)
            value = arch_ept_set_accessed_dirty(value, EPT_4K, now.accessed, now.dirty);
        if (ept_slot_change(&slot, value))
            return 0;
        slot.value = ept_read(slot.entry); // the CPU set a flag
    }
}

int ept_unmap(struct ept *ept, gfn_t gfn, struct ept_leaf *old)
{
    if (gfn.raw >= EPT_GFN_LIMIT)
        return E_RANGE;
    struct ept_slot slot;
    do {
        slot = ept_find(ept, gfn);
        if (!ept_slot_is_leaf(&slot))
            return E_NOENT;
    } while (!ept_slot_change(&slot, 0));
    if (slot.level != EPT_4K)
        atomic_fetch_sub_explicit(&ept->large_leaves, 1, memory_order_relaxed);
    *old = ept_decode(slot.value, slot.level, gfn);
    return 0;
}

// Inlined per level, so that everything about the entry is constant.
static inline __attribute__((always_inline)) bool
protect_slot(const struct ept_slot *slot, int level, unsigned permissions, enum ept_kind kind)
{
    struct arch_ept_leaf now = arch_ept_leaf(slot->value, level);
    uint64_t value = ept_encode(now.frame, level, permissions, kind);
    return ept_slot_change(slot,
                           arch_ept_set_accessed_dirty(value, level, now.accessed, now.dirty));
}

// Any leaf; the way of large ones, and of the small one that changed under ept_protect.
static __attribute__((noinline)) int protect_slow(struct ept *ept, gfn_t gfn, unsigned permissions,
                                                  enum ept_kind kind)
{
    struct ept_slot slot;
    do {
        slot = ept_find(ept, gfn);
        if (!ept_slot_is_leaf(&slot))
            return E_NOENT;
        if (slot.level != EPT_4K) {
            int error = check_large((gfn_t){0}, hfn(0), slot.level, permissions);
            if (error != 0)
                return error;
        }
    } while (!protect_slot(&slot, slot.level, permissions, kind));
    return 0;
}

int ept_protect(struct ept *ept, gfn_t gfn, unsigned permissions, enum ept_kind kind)
{
    int error = check_small(gfn, hfn(0), permissions, kind);
    if (error != 0)
        return error;
    struct ept_slot slot;
    if (ept_find_table(ept, gfn, &slot)) {
        slot = ept_small_slot(&slot, gfn);
        if (arch_ept_present(slot.value, EPT_4K) && protect_slot(&slot, EPT_4K, permissions, kind))
            return 0;
    }
    return protect_slow(ept, gfn, permissions, kind);
}

int ept_test_clear_dirty(struct ept *ept, gfn_t gfn, bool *dirty)
{
    if (gfn.raw >= EPT_GFN_LIMIT)
        return E_RANGE;
    struct ept_slot slot;
    do {
        slot = ept_find(ept, gfn);
        if (!ept_slot_is_leaf(&slot))
            return E_NOENT;
    } while (!ept_slot_change(&slot, arch_ept_clear_dirty(slot.value, slot.level)));
    *dirty = ept_decode(slot.value, slot.level, gfn).dirty;
    return 0;
}
