// SPDX-License-Identifier: BSD-2-Clause
// Leaves: map, replace, unmap, permissions, accessed and dirty.
//
// The gfn lock keeps other CPUs away from leaves up to 2 MiB; the CPU's page walker still sets A/D
// flags, and a 1 GiB leaf may be split by the holder of another gfn lock. So every change is a
// compare-exchange, and a failed one walks again.
#include "ept/ept.h"

#include "ept/entry.h"
#include "kernel/error.h"

int ept_check_permissions(unsigned permissions, enum ept_kind kind)
{
    // Write without read is a misconfiguration, and so is execute-only where the CPU lacks it
    // (SDM vol. 3, 29.3.3.1). No permission at all would mean "not present".
    if (permissions == 0 || permissions > EPT_RWX)
        return E_INVAL;
    if ((permissions & EPT_READ) == 0 && (permissions != EPT_EXECUTE || !ept_features.execute_only))
        return E_INVAL;
    switch (kind) {
    case EPT_KIND_PRIVATE:
        return 0;
    case EPT_KIND_SHARED:
    case EPT_KIND_CANDIDATE:
        return (permissions & EPT_WRITE) == 0 ? 0 : E_INVAL;
    default:
        return E_INVAL;
    }
}

static int check_size(enum ept_level level, unsigned permissions)
{
    switch (level) {
    case EPT_4K:
        return 0;
    case EPT_2M:
        if (!ept_features.page_2m)
            return E_NOSYS;
        break;
    case EPT_1G:
        if (!ept_features.page_1g)
            return E_NOSYS;
        break;
    default:
        return E_INVAL;
    }
    // With EPT_EXECUTE withheld nothing would be left.
    return permissions == EPT_EXECUTE && !ept_features.large_executable_safe ? E_INVAL : 0;
}

int ept_check_leaf(gfn_t gfn, hfn_t frame, enum ept_level level, unsigned permissions,
                   enum ept_kind kind)
{
    if (gfn.raw >= EPT_GFN_LIMIT)
        return E_RANGE;
    int error = check_size(level, permissions);
    if (error == 0)
        error = ept_check_permissions(permissions, kind);
    if (error == 0 && (((gfn.raw | frame.raw) & (ept_span((int)level) - 1)) != 0 ||
                       frame.raw >= UINT64_C(1) << 40)) // 52 bits of physical address
        error = E_INVAL;
    return error;
}

int ept_map(struct ept *ept, gfn_t gfn, hfn_t frame, enum ept_level level, unsigned permissions,
            enum ept_kind kind)
{
    int error = ept_check_leaf(gfn, frame, level, permissions, kind);
    if (error != 0)
        return error;
    struct ept_slot slot = ept_find_level(ept, gfn, (int)level);
    if (arch_ept_present(slot.value, slot.level))
        return E_EXIST;
    if (slot.level != (int)level)
        return E_AGAIN;
    // Who else fills an empty entry: ept_prepare, which takes no lock.
    if (!ept_slot_change(&slot, ept_encode(frame.raw, (int)level, permissions, kind)))
        return E_EXIST;
    if (level != EPT_4K)
        atomic_fetch_add_explicit(&ept->large_leaves, 1, memory_order_relaxed);
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

int ept_protect(struct ept *ept, gfn_t gfn, unsigned permissions, enum ept_kind kind)
{
    if (gfn.raw >= EPT_GFN_LIMIT)
        return E_RANGE;
    int error = ept_check_permissions(permissions, kind);
    if (error != 0)
        return error;
    struct ept_slot slot;
    uint64_t value;
    do {
        slot = ept_find(ept, gfn);
        if (!ept_slot_is_leaf(&slot))
            return E_NOENT;
        error = check_size((enum ept_level)slot.level, permissions);
        if (error != 0)
            return error;
        struct arch_ept_leaf now = arch_ept_leaf(slot.value, slot.level);
        value = arch_ept_set_accessed_dirty(ept_encode(now.frame, slot.level, permissions, kind),
                                            slot.level, now.accessed, now.dirty);
    } while (!ept_slot_change(&slot, value));
    return 0;
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
