// SPDX-License-Identifier: BSD-2-Clause
// A VM's memory: first touch, promotion to large pages, access by Fusor, and giving it all back.
//
// Locks: one gfn lock at a time; a frame is allocated before the lock is taken and given back when
// the race was lost. Shootdowns are done with the gfn lock held where the protocol of ept/ept.h
// wants it (a CPU that leaves the guest takes no lock before it acknowledges).
//
// Promotion: a 2 MiB range becomes one large page when VM_PROMOTE_TOUCHES = 448 of its 512 pages
// (7/8) were touched. The TLB gains need most of a range in use; and each promotion gives the guest
// at most 64 pages it did not ask for, so memory that promotion wastes stays under 1/8, and mostly
// far below. With large-pages = eager the first touch populates the whole range.
#include "vm/memory.h"

#include "kernel/error.h"
#include "kernel/heap.h"
#include "kernel/init.h"
#include "kernel/log.h"
#include "kernel/memory.h"
#include "kernel/panic.h"
#include "kernel/sched.h"
#include "kernel/string.h"
#include "vm/ballooned.h"
#include "vm/layout.h"
#include "vm/reserve.h"
#include "vm/vm_object.h"

#define RANGE_PAGES 512u
#define RANGE_ORDER 9u

// Without fusion (host tests) no leaf is ever shared.
static const struct vm_memory_ops *memory_ops;

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

// True when all of gfn's 2 MiB range is RAM, so that one large page can stand for it.
static bool range_is_ram(const struct vm *vm, gfn_t gfn)
{
    uint64_t first = ALIGN_DOWN(gfn.raw, RANGE_PAGES);
    return first != 0 && vm_area_of(vm, (gfn_t){first}) == VM_AREA_RAM &&
           vm_area_of(vm, (gfn_t){first + RANGE_PAGES - 1}) == VM_AREA_RAM;
}

static void own_frames(const struct vm *vm, hfn_t first, gfn_t gfn, unsigned count)
{
    for (unsigned i = 0; i < count; i++) {
        struct frame *f = frame_of(hfn(first.raw + i));
        f->owner = vm->id;
        f->gfn = gfn.raw + i;
    }
}

// Is there room for `pages` pages more in what the VM counts as its own? Only what the balloon has
// unmapped and not yet freed can be in the way, for the pages that are touched are untouched
// memory; then the CPU that gives them needs a moment. Each vCPU may be here at the same time.
static bool has_room(const struct vm *vm, unsigned pages)
{
    if (__builtin_expect(vm->leaving == 0, 1))
        return true;
    uint64_t used =
        vm->account.private_frames + vm->account.shared_gfns + vm->account.ballooned + pages;
    return used + VM_CPUS_MAX <= vm->config.memory / PAGE_SIZE;
}

// Populates a whole 2 MiB range with one zeroed large page. Returns 0, or E_AGAIN when it has to be
// done page by page.
static int populate_large(struct vm *vm, gfn_t gfn)
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
    cpu_irq_enable(); // as in promote()
    int allocated = frame_alloc(FRAME_FUSOR, RANGE_ORDER, FRAME_ZEROED, NULL, &frame);
    if (!were_on)
        cpu_irq_disable();
    if (allocated != 0)
        return E_AGAIN;
    own_frames(vm, frame, first, RANGE_PAGES);
    ept_lock_gfn(&vm->ept, first);
    int status = ballooned_any(vm, first) || !has_room(vm, RANGE_PAGES)
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
    own_frames(vm, block, first, RANGE_PAGES);
    ept_lock_gfn(&vm->ept, first);
    // Pages of the balloon would come back unasked.
    bool good = !ballooned_any(vm, first) && has_room(vm, RANGE_PAGES);
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
static void promote(struct vm *vm, gfn_t gfn)
{
    bool were_on = cpu_irq_enabled();
    cpu_irq_enable();
    gather(vm, gfn);
    if (!were_on)
        cpu_irq_disable();
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
    if (ballooned_any(vm, gfn) || vm_is_held_back(vm) || !has_room(vm, RANGE_PAGES)) {
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
    unsigned flags = FRAME_ZEROED | (vm->restarting ? FRAME_HELD : 0);
    if (may && frame_alloc(FRAME_PRIVATE, 0, flags, &vm->account, frame) == 0)
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

// Gives gfn a zeroed frame of its own, and takes it out of the balloon if it is to be written. 0
// also when somebody else was faster. E_NOMEM without effect.
static int populate(struct vm *vm, gfn_t gfn, unsigned permissions, bool write)
{
    if (vm->config.large_pages == VM_LARGE_EAGER && permissions == EPT_RWX &&
        vm->touched[vm_range_of(vm, gfn)] == 0 && reserve_has_table(vm, gfn) &&
        populate_large(vm, gfn) == 0)
        return 0;
    for (;;) {
        int status = reserve_has_table(vm, gfn) ? ept_prepare(&vm->ept, gfn) : E_NOMEM;
        if (status != 0)
            return status;
        if (!has_room(vm, 1)) {
            cpu_relax();
            return 0; // look again: the guest faults anew
        }
        hfn_t frame;
        bool credit;
        status = touch_alloc(vm, gfn, write, &frame, &credit);
        if (status != 0)
            return status;
        own_frames(vm, frame, gfn, 1);
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
        if (due && ept_features.page_2m && range_is_ram(vm, gfn))
            promote(vm, gfn);
        return status == E_EXIST ? 0 : status;
    }
}

void vm_end_candidate(struct vm *vm, gfn_t gfn, const struct ept_leaf *leaf)
{
    if (leaf->kind != EPT_KIND_CANDIDATE || leaf->level == EPT_4K)
        return;
    ept_protect(&vm->ept, gfn, EPT_RWX, EPT_KIND_PRIVATE);
    frame_end_version(hfn(ALIGN_DOWN(leaf->frame.raw, (uint64_t)RANGE_PAGES)));
}

// ITLB multihit rule (design section 2): a fetch from a large entry splits it.
static enum ept_fault_result split_for_fetch(struct vm *vm, gfn_t gfn)
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
            return split_for_fetch(vm, gfn);
        if (leaf.kind == EPT_KIND_ZERO && fault->write)
            return populate(vm, gfn, EPT_RWX, true) == 0 ? EPT_FAULT_RETRY : EPT_FAULT_WAIT;
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
    return populate(vm, gfn, permissions, fault->write) == 0 ? EPT_FAULT_RETRY : EPT_FAULT_WAIT;
}

static int register_fault_hook(const struct boot_info *info)
{
    (void)info;
    return ept_register_fault_hook(100, memory_fault);
}
INIT_HOOK(INIT_VM, register_fault_hook);

static bool all_memory(const struct vm *vm, gpa_t a, size_t size)
{
    if (size == 0)
        return true;
    if (a.raw + size - 1 < a.raw)
        return false;
    for (uint64_t n = a.raw >> PAGE_SHIFT; n <= (a.raw + size - 1) >> PAGE_SHIFT; n++)
        if (vm_area_of(vm, (gfn_t){n}) == VM_AREA_NONE)
            return false;
    return true;
}

int guest_read(struct vm *vm, gpa_t from, void *to, size_t size)
{
    if (!all_memory(vm, from, size))
        return E_RANGE;
    uint8_t *p = to;
    while (size > 0) {
        gfn_t gfn = gpa_to_gfn(from);
        size_t offset = from.raw & PAGE_MASK;
        size_t piece = MIN(size, (size_t)PAGE_SIZE - offset);
        ept_lock_gfn(&vm->ept, gfn);
        struct ept_leaf leaf = ept_lookup(&vm->ept, gfn);
        if (leaf.present)
            memcpy(p, (uint8_t *)hfn_to_pointer(leaf.frame) + offset, piece);
        else
            memset(p, 0, piece); // never touched: reading populates nothing
        ept_unlock_gfn(&vm->ept, gfn);
        p += piece;
        from.raw += piece;
        size -= piece;
    }
    return 0;
}

// For guest_write: a page that is not the VM's own becomes so. 0: look again.
static int make_writable(struct vm *vm, gfn_t gfn, const struct ept_leaf *leaf)
{
    if (leaf->present && leaf->kind != EPT_KIND_ZERO)
        return memory_ops->make_private(vm, gfn);
    if (vm_area_of(vm, gfn) == VM_AREA_ROM)
        return populate(vm, gfn, EPT_READ | EPT_EXECUTE, true);
    return populate(vm, gfn, EPT_RWX, true);
}

int guest_write(struct vm *vm, gpa_t to, const void *from, size_t size)
{
    if (!all_memory(vm, to, size))
        return E_RANGE;
    const uint8_t *p = from;
    while (size > 0) {
        gfn_t gfn = gpa_to_gfn(to);
        size_t offset = to.raw & PAGE_MASK;
        size_t piece = MIN(size, (size_t)PAGE_SIZE - offset);
        ept_lock_gfn(&vm->ept, gfn);
        struct ept_leaf leaf = ept_lookup(&vm->ept, gfn);
        bool own = leaf.present && leaf.kind == EPT_KIND_PRIVATE;
        if (own)
            memcpy((uint8_t *)hfn_to_pointer(leaf.frame) + offset, p, piece);
        ept_unlock_gfn(&vm->ept, gfn);
        if (!own) {
            int status = make_writable(vm, gfn, &leaf);
            if (status != 0)
                return status;
            continue; // look again, under the lock
        }
        p += piece;
        to.raw += piece;
        size -= piece;
    }
    return 0;
}

int guest_pin(struct vm *vm, gfn_t gfn, void **page)
{
    if (vm_area_of(vm, gfn) != VM_AREA_RAM)
        return E_RANGE;
    for (;;) {
        ept_lock_gfn(&vm->ept, gfn);
        struct ept_leaf leaf = ept_lookup(&vm->ept, gfn);
        bool own = leaf.present && leaf.kind == EPT_KIND_PRIVATE;
        if (own) {
            frame_of(leaf.frame)->count++; // whoever wants to move it looks under this lock
            *page = hfn_to_pointer(leaf.frame);
        }
        ept_unlock_gfn(&vm->ept, gfn);
        if (own)
            return 0;
        int status = make_writable(vm, gfn, &leaf);
        if (status != 0)
            return status;
    }
}

void guest_unpin(struct vm *vm, gfn_t gfn)
{
    ept_lock_gfn(&vm->ept, gfn);
    struct ept_leaf leaf = ept_lookup(&vm->ept, gfn);
    CHECK(leaf.present && leaf.kind == EPT_KIND_PRIVATE && frame_of(leaf.frame)->count != 0);
    frame_of(leaf.frame)->count--;
    ept_unlock_gfn(&vm->ept, gfn);
}

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
