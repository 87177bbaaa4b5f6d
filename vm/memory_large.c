// SPDX-License-Identifier: BSD-2-Clause
// Large pages of a VM: at once (large-pages = eager), by promotion, and split again for a fetch.
//
// Promotion: a 2 MiB range becomes one large page when VM_PROMOTE_TOUCHES = 448 of its 512 pages
// (7/8) were touched. The TLB gains need most of a range in use; and each promotion gives the guest
// at most 64 pages it did not ask for, so memory that promotion wastes stays under 1/8, and mostly
// far below. With large-pages = eager the first touch populates the whole range.
//
// Locks: as memory.c.
#include "vm/memory_internal.h"

#include "kernel/error.h"
#include "kernel/heap.h"
#include "kernel/memory.h"
#include "kernel/string.h"
#include "vm/ballooned.h"

// True when all of gfn's 2 MiB range is RAM, so that one large page can stand for it.
static bool range_is_ram(const struct vm *vm, gfn_t gfn)
{
    uint64_t first = ALIGN_DOWN(gfn.raw, RANGE_PAGES);
    return first != 0 && vm_area_of(vm, (gfn_t){first}) == VM_AREA_RAM &&
           vm_area_of(vm, (gfn_t){first + RANGE_PAGES - 1}) == VM_AREA_RAM;
}

int memory_populate_large(struct vm *vm, gfn_t gfn)
{
    gfn_t first = {ALIGN_DOWN(gfn.raw, RANGE_PAGES)};
    hfn_t frame;
    struct ept_leaf leaf = ept_lookup(&vm->ept, first);
    if (leaf.present || leaf.level == EPT_4K) // a table hangs there, if an empty one
        return E_AGAIN;
    if (ballooned_any(vm, first) || vm_is_held_back(vm)) // not all of it may be touched
        return E_AGAIN;
    if (!ept_features.page_2m || !range_is_ram(vm, gfn) ||
        ept_prepare_level(&vm->ept, first, EPT_2M) != 0)
        return E_AGAIN;
    bool were_on = cpu_irq_enabled();
    cpu_irq_enable(); // as in memory_promote()
    int allocated = frame_alloc(FRAME_FUSOR, RANGE_ORDER, FRAME_ZEROED, NULL, &frame);
    if (!were_on)
        cpu_irq_disable();
    if (allocated != 0)
        return E_AGAIN;
    memory_own(vm, frame, first, RANGE_PAGES);
    ept_lock_gfn(&vm->ept, first);
    int status = ballooned_any(vm, first) || !memory_has_room(vm, RANGE_PAGES)
                     ? E_AGAIN
                     : ept_map(&vm->ept, first, frame, EPT_2M, EPT_RWX, EPT_KIND_PRIVATE);
    if (status == 0) {
        frame_adopt(frame, RANGE_ORDER, &vm->account);
        vm->touched[vm_range_of(vm, first)] = VM_RANGE_DONE;
    }
    ept_unlock_gfn(&vm->ept, first);
    if (status != 0) {
        frame_free(frame, RANGE_ORDER, NULL);
        return E_AGAIN;
    }
    return 0;
}

// Gathers what is there of the range into one aligned 2 MiB block, in the order of
// ept_replace_table. Whatever stands in the way, the range stays as it is. The block is Fusor's
// until it takes the place of the old frames: a metrics snapshot must not see both as the VM's.
static void gather(struct vm *vm, gfn_t gfn)
{
    gfn_t first = {ALIGN_DOWN(gfn.raw, RANGE_PAGES)};
    hfn_t block, table;
    hfn_t *old = heap_alloc(RANGE_PAGES * sizeof(*old));
    if (old == NULL)
        return;
    if (frame_alloc(FRAME_FUSOR, RANGE_ORDER, 0, NULL, &block) != 0) {
        heap_free(old);
        return;
    }
    memory_own(vm, block, first, RANGE_PAGES);
    ept_lock_gfn(&vm->ept, first);
    // Pages of the balloon would come back unasked.
    bool good = !ballooned_any(vm, first) && memory_has_room(vm, RANGE_PAGES);
    for (unsigned i = 0; i < RANGE_PAGES && good; i++) {
        struct ept_leaf leaf = ept_lookup(&vm->ept, (gfn_t){first.raw + i});
        good = !leaf.present || (leaf.level == EPT_4K && leaf.kind == EPT_KIND_PRIVATE &&
                                 frame_of(leaf.frame)->count == 0); // pinned frames stay
        old[i] = leaf.present ? leaf.frame : hfn(0);
    }
    if (good) {
        for (unsigned i = 0; i < RANGE_PAGES; i++)
            if (old[i].raw != 0)
                ept_protect(&vm->ept, (gfn_t){first.raw + i}, EPT_READ | EPT_EXECUTE,
                            EPT_KIND_PRIVATE);
        ept_shootdown(&vm->ept);
        for (unsigned i = 0; i < RANGE_PAGES; i++) {
            void *to = hfn_to_pointer(hfn(block.raw + i));
            if (old[i].raw != 0)
                memcpy(to, hfn_to_pointer(old[i]), PAGE_SIZE);
            else
                memset(to, 0, PAGE_SIZE);
        }
        good = ept_replace_table(&vm->ept, first, block, EPT_RWX, EPT_KIND_PRIVATE, &table) == 0;
        if (good) {
            ept_shootdown(&vm->ept);
            for (unsigned i = 0; i < RANGE_PAGES; i++)
                if (old[i].raw != 0)
                    frame_disown(old[i], &vm->account);
            frame_adopt(block, RANGE_ORDER, &vm->account);
        } else {
            for (unsigned i = 0; i < RANGE_PAGES; i++)
                if (old[i].raw != 0)
                    ept_protect(&vm->ept, (gfn_t){first.raw + i}, EPT_RWX, EPT_KIND_PRIVATE);
        }
    }
    ept_unlock_gfn(&vm->ept, first);
    if (good) {
        for (unsigned i = 0; i < RANGE_PAGES; i++)
            if (old[i].raw != 0)
                frame_free(old[i], 0, NULL);
        ept_table_free(table);
        vm->promotions++;
    } else {
        frame_free(block, RANGE_ORDER, NULL);
    }
    heap_free(old);
}

// Copying or zeroing 2 MiB takes long enough for a UART to overflow, so interrupts are let in;
// their handlers take no locks.
void memory_promote(struct vm *vm, gfn_t gfn)
{
    if (!ept_features.page_2m || !range_is_ram(vm, gfn))
        return;
    bool were_on = cpu_irq_enabled();
    cpu_irq_enable();
    gather(vm, gfn);
    if (!were_on)
        cpu_irq_disable();
}

void vm_end_candidate(struct vm *vm, gfn_t gfn, const struct ept_leaf *leaf)
{
    if (leaf->kind != EPT_KIND_CANDIDATE || leaf->level == EPT_4K)
        return;
    ept_protect(&vm->ept, gfn, EPT_RWX, EPT_KIND_PRIVATE);
    frame_end_version(hfn(ALIGN_DOWN(leaf->frame.raw, (uint64_t)RANGE_PAGES)));
}

// ITLB multihit rule (design section 2): a fetch from a large entry splits it.
enum ept_fault_result memory_split_for_fetch(struct vm *vm, gfn_t gfn)
{
    hfn_t table;
    if (frames_reserve_low() || ept_table_alloc(&table) != 0)
        return EPT_FAULT_WAIT;
    ept_lock_gfn(&vm->ept, gfn);
    struct ept_leaf leaf = ept_lookup(&vm->ept, gfn);
    if (ept_fetch_needs_split(&leaf))
        vm_end_candidate(vm, gfn, &leaf);
    int status = ept_fetch_needs_split(&leaf) ? ept_split_large(&vm->ept, gfn, table) : E_INVAL;
    ept_unlock_gfn(&vm->ept, gfn);
    if (status != 0)
        ept_table_free(table);
    ept_shootdown(&vm->ept);
    return EPT_FAULT_RETRY;
}
