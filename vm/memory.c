// SPDX-License-Identifier: BSD-2-Clause
// A VM's memory: what is where, first touch, and giving it all back. Large pages are in
// memory_large.c, access by Fusor in access.c.
//
// Locks: one gfn lock at a time; a frame is allocated before the lock is taken and given back when
// the race was lost. Shootdowns are done with the gfn lock held where the protocol of ept/ept.h
// wants it (a CPU that leaves the guest takes no lock before it acknowledges).
#include "vm/memory_internal.h"

#include "kernel/error.h"
#include "kernel/heap.h"
#include "kernel/init.h"
#include "kernel/panic.h"
#include "kernel/sched.h"
#include "vm/ballooned.h"
#include "vm/layout.h"
#include "vm/reserve.h"
#include "vm/vm_object.h"

const struct vm_memory_ops *memory_ops;

_Atomic unsigned vm_memories;

void vm_set_memory_ops(const struct vm_memory_ops *ops)
{
    memory_ops = ops;
}

enum vm_area vm_area_of(const struct vm *vm, gfn_t gfn)
{
    uint64_t a = gfn_to_gpa(gfn).raw;
    uint64_t memory = vm->config.memory;
    if (a < LAYOUT_LOW_END)
        return a < memory ? VM_AREA_RAM : VM_AREA_NONE;
    if (a < LAYOUT_ROM_END)
        return a >= LAYOUT_ROM ? VM_AREA_ROM : VM_AREA_NONE;
    if (a < MIN(memory, LAYOUT_HOLE))
        return VM_AREA_RAM;
    if (memory > LAYOUT_HOLE && a >= LAYOUT_ABOVE_4G &&
        a < LAYOUT_ABOVE_4G + (memory - LAYOUT_HOLE))
        return VM_AREA_RAM;
    return VM_AREA_NONE;
}

uint64_t vm_range_of(const struct vm *vm, gfn_t gfn)
{
    uint64_t range = vm_gfn_page(gfn) / RANGE_PAGES;
    CHECK(range < vm->ranges);
    return range;
}

void memory_own(const struct vm *vm, hfn_t first, gfn_t gfn, unsigned count)
{
    for (unsigned i = 0; i < count; i++) {
        struct frame *f = frame_of(hfn(first.raw + i));
        f->owner = vm->id;
        f->gfn = gfn.raw + i;
    }
}

// Counts a populated page; true when the range is now due for promotion (said once).
static bool count_touch(struct vm *vm, gfn_t gfn)
{
    uint16_t *touched = &vm->touched[vm_range_of(vm, gfn)];
    if (*touched == VM_RANGE_DONE)
        return false;
    if (++*touched < VM_PROMOTE_TOUCHES || vm->config.large_pages == VM_LARGE_OFF)
        return false;
    // When they have come back, or are gone, and it may be touched.
    if (ballooned_any(vm, gfn) || vm_is_held_back(vm) || !memory_has_room(vm, RANGE_PAGES)) {
        --*touched;
        return false;
    }
    *touched = VM_RANGE_DONE;
    return true;
}

// A range that lost pages has to be touched anew before it is promoted (again): one that is given
// and taken in small pieces shall not be copied each time.
void vm_untouch(struct vm *vm, gfn_t gfn, unsigned pages)
{
    uint16_t *touched = &vm->touched[vm_range_of(vm, gfn)];
    *touched = *touched == VM_RANGE_DONE ? 0 : (uint16_t)(*touched - MIN(*touched, pages));
}

// gfn lock held: maps the frame at gfn, which maps nothing or is in the balloon; then only a write
// brings it back (E_EXIST). E_AGAIN: the table is missing. An error is without effect.
static int install(struct vm *vm, gfn_t gfn, hfn_t frame, unsigned permissions, bool write)
{
    if (ballooned_has(vm, gfn)) {
        if (!write)
            return E_EXIST;
        if (ept_lookup(&vm->ept, gfn).level != EPT_4K)
            return E_AGAIN;
        ballooned_return(vm, gfn);
    }
    return ept_map(&vm->ept, gfn, frame, EPT_4K, permissions, EPT_KIND_PRIVATE);
}

// A zeroed frame for a first touch; *credit: reserve_credit was taken for it. E_NOMEM.
static int touch_alloc(struct vm *vm, gfn_t gfn, bool write, hfn_t *frame, bool *credit)
{
    *credit = false;
    if (write && ballooned_has(vm, gfn))
        vm_hold_back(vm);
    bool may = !vm_is_held_back(vm) || vm_may_grow(vm);
    // What a VM had is held for it while it restarts: that is beyond what others may take.
    if (may && vm->restarting && frame_alloc_held(FRAME_ZEROED, &vm->account, frame) == 0)
        return 0;
    if (may && !vm->restarting &&
        frame_alloc(FRAME_PRIVATE, 0, FRAME_ZEROED, &vm->account, frame) == 0)
        return 0;
    if (may && reserve_stands_in() &&
        frame_alloc(FRAME_PRIVATE, 0, FRAME_ZEROED | FRAME_RESERVE, &vm->account, frame) == 0)
        return 0;
    if (!reserve_credit(vm))
        return E_NOMEM;
    *credit = true;
    int status = frame_alloc(FRAME_PRIVATE, 0, FRAME_ZEROED | FRAME_RESERVE, &vm->account, frame);
    if (status != 0)
        reserve_return(vm, RESERVE_CREDIT);
    return status;
}

int memory_populate(struct vm *vm, gfn_t gfn, unsigned permissions, bool write)
{
    if (vm->config.large_pages == VM_LARGE_EAGER && permissions == EPT_RWX &&
        vm->touched[vm_range_of(vm, gfn)] == 0 && reserve_has_table(vm, gfn) &&
        memory_populate_large(vm, gfn) == 0)
        return 0;
    for (;;) {
        int status = reserve_has_table(vm, gfn) ? ept_prepare(&vm->ept, gfn) : E_NOMEM;
        if (status != 0)
            return status;
        if (!memory_has_room(vm, 1)) {
            cpu_relax();
            return 0; // look again: the guest faults anew
        }
        hfn_t frame;
        bool credit;
        status = touch_alloc(vm, gfn, write, &frame, &credit);
        if (status != 0)
            return status;
        memory_own(vm, frame, gfn, 1);
        ept_lock_gfn(&vm->ept, gfn);
        status = install(vm, gfn, frame, permissions, write);
        bool due = status == 0 && permissions == EPT_RWX && count_touch(vm, gfn);
        ept_unlock_gfn(&vm->ept, gfn);
        if (status != 0)
            frame_free(frame, 0, &vm->account);
        if (status != 0 && credit)
            reserve_return(vm, RESERVE_CREDIT);
        if (status == E_AGAIN) // the table went away under a promotion: look again
            continue;
        if (due)
            memory_promote(vm, gfn);
        return status == E_EXIST ? 0 : status;
    }
}

// Higher rooms' hooks (fusion's splits) come first; this one knows what is left.
static enum ept_fault_result memory_fault(void *owner, const struct ept_fault *fault)
{
    struct vm *vm = owner;
    gfn_t gfn = gpa_to_gfn(fault->address);
    enum vm_area area = vm_area_of(vm, gfn);
    if (area == VM_AREA_NONE)
        return EPT_FAULT_EMULATE;
    if (area == VM_AREA_ROM && fault->write) {
        vm->rom_writes++;
        return EPT_FAULT_EMULATE; // nobody claims it: the write vanishes
    }
    if (fault->leaf.present) {
        // Under the lock, because a promotion may have the page read-only for a moment.
        ept_lock_gfn(&vm->ept, gfn);
        struct ept_leaf leaf = ept_lookup(&vm->ept, gfn);
        ept_unlock_gfn(&vm->ept, gfn);
        if (!leaf.present) // gone meanwhile: the next fault says so
            return EPT_FAULT_RETRY;
        if (fault->fetch && ept_fetch_needs_split(&leaf))
            return memory_split_for_fetch(vm, gfn);
        if (leaf.kind == EPT_KIND_ZERO && fault->write)
            return memory_populate(vm, gfn, EPT_RWX, true) == 0 ? EPT_FAULT_RETRY : EPT_FAULT_WAIT;
        // It became shared or a candidate meanwhile: the next fault is fusion's.
        if (leaf.kind == EPT_KIND_SHARED || leaf.kind == EPT_KIND_CANDIDATE)
            return EPT_FAULT_RETRY;
        // Allowed by now: another CPU was faster, or the TLB was behind.
        unsigned needed = (fault->read ? EPT_READ : 0u) | (fault->write ? EPT_WRITE : 0u) |
                          (fault->fetch ? EPT_EXECUTE : 0u);
        return (leaf.permissions & needed) == needed ? EPT_FAULT_RETRY : EPT_FAULT_UNHANDLED;
    }
    if (!fault->write && ballooned_has(vm, gfn))
        return ballooned_read(vm, gfn);
    unsigned permissions = area == VM_AREA_ROM ? EPT_READ | EPT_EXECUTE : EPT_RWX;
    return memory_populate(vm, gfn, permissions, fault->write) == 0 ? EPT_FAULT_RETRY
                                                                    : EPT_FAULT_WAIT;
}

static int register_fault_hook(const struct boot_info *info)
{
    (void)info;
    return ept_register_fault_hook(100, memory_fault);
}
INIT_HOOK(INIT_VM, register_fault_hook);

int vm_memory_create(struct vm *vm)
{
    vm->ranges = (vm->config.memory + RANGE_PAGES * PAGE_SIZE - 1) / (RANGE_PAGES * PAGE_SIZE) + 1;
    vm->touched = heap_alloc(vm->ranges * sizeof(*vm->touched));
    if (vm->touched == NULL)
        return E_NOMEM;
    int status = ballooned_create(vm);
    if (status == 0)
        status = ept_init(&vm->ept, vm->id);
    if (status != 0) {
        ballooned_destroy(vm);
        heap_free(vm->touched);
        vm->touched = NULL;
        return status;
    }
    vm->memory_present = true;
    atomic_fetch_add(&vm_memories, 1);
    if (memory_ops != NULL && memory_ops->create(vm) != 0) {
        vm_memory_destroy(vm);
        return E_NOMEM;
    }
    return 0;
}

// What is done of a VM's end before others get the CPU, in pages: one costs 300 to 700
// instructions, so it is half a millisecond at 100 MHz.
#define TEARDOWN_PAGES 64u

static void free_leaf(void *context, gfn_t gfn, struct ept_leaf leaf)
{
    struct vm *vm = context;
    static const unsigned order[] = {[EPT_4K] = 0, [EPT_2M] = 9, [EPT_1G] = 18};
    struct ept_leaf old;
    ept_unmap(&vm->ept, gfn, &old);
    if (leaf.kind == EPT_KIND_ZERO)
        return;
    if (leaf.kind != EPT_KIND_SHARED) {
        // The records of a block are written one after the other, quickly; but not those of many.
        if (vm->restarting)
            frame_free_held(leaf.frame, order[leaf.level], &vm->account);
        else
            frame_free(leaf.frame, order[leaf.level], &vm->account);
        if (leaf.level != EPT_4K)
            fiber_give_way();
        return;
    }
    // Each page of a large one leaves by itself: nothing maps it any more, so it may take its time.
    uint64_t pages = UINT64_C(1) << order[leaf.level];
    for (uint64_t done = 0; done < pages; done += TEARDOWN_PAGES) {
        if (done != 0)
            fiber_give_way();
        memory_ops->release(vm, gfn, hfn(leaf.frame.raw + done), MIN(pages - done, TEARDOWN_PAGES));
    }
    if (leaf.level != EPT_4K)
        fiber_give_way();
}

void vm_memory_forget(struct vm *vm)
{
    if (memory_ops != NULL)
        memory_ops->forget(vm);
}

void vm_memory_destroy(struct vm *vm)
{
    if (!vm->memory_present)
        return;
    if (memory_ops != NULL)
        memory_ops->destroy(vm);
    // No vCPU runs, and none enters this EPT again before ept_destroy has made every CPU INVEPT; so
    // no translation to a freed frame is used.
    ept_shootdown(&vm->ept);
    gfn_t next = {0};
    while (ept_for_each(&vm->ept, &next, TEARDOWN_PAGES, free_leaf, vm) == E_AGAIN)
        fiber_give_way();
    while (ept_destroy(&vm->ept, TEARDOWN_PAGES) == E_AGAIN)
        fiber_give_way();
    ballooned_destroy(vm);
    heap_free(vm->touched);
    vm->touched = NULL;
    vm->memory_present = false;
    atomic_fetch_sub(&vm_memories, 1);
    CHECK(vm->account.private_frames == 0 && vm->account.shared_gfns == 0);
}
