// SPDX-License-Identifier: BSD-2-Clause
// Copy-on-write: a guest, or Fusor for it, writes to a shared frame or to a candidate.
//
// Locks: the gfn lock of the page from the look at its leaf until the new frame is writable; under
// it the bucket lock where the last sharer's index entry goes. The shootdown is done with the gfn
// lock held: nobody may see the new frame writable while a CPU can still read the old one, and a
// CPU that leaves the guest takes no lock before it acknowledges.
#include "fusion/engine.h"

#include "fusion/page_ops.h"
#include "kernel/error.h"
#include "kernel/memory.h"
#include "kernel/time.h"
#include "vm/reserve.h"

#define READ_ONLY (EPT_READ | EPT_EXECUTE)

// gfn lock held. Whoever compares the page sees its version ended; giving permission needs no
// shootdown.
static void cancel(struct fusion_vm *f, gfn_t gfn, const struct ept_leaf *leaf)
{
    hfn_t first = leaf->frame;
    if (leaf->level == EPT_2M)
        first.raw = ALIGN_DOWN(first.raw, UINT64_C(512));
    ept_protect(&f->vm->ept, gfn, EPT_RWX, EPT_KIND_PRIVATE);
    frame_end_version(first);
    fusion_count(&f->count.cancelled, 1);
}

// Makes the page at gfn writable after whoever may hold an older translation has lost it. `alone`:
// the VM's only vCPU is on this CPU, in this exit, so that nobody can use the entry before the
// epoch is seen.
static void open_after_shootdown(struct vm *vm, gfn_t gfn, bool alone)
{
    if (alone) {
        ept_protect(&vm->ept, gfn, EPT_RWX, EPT_KIND_PRIVATE);
        ept_shootdown(&vm->ept);
    } else {
        ept_shootdown(&vm->ept);
        ept_protect(&vm->ept, gfn, EPT_RWX, EPT_KIND_PRIVATE);
    }
}

static uint32_t sharers(const struct frame *s)
{
    return __atomic_load_n(&s->count, __ATOMIC_ACQUIRE);
}

// gfn lock held: the frame becomes its last sharer's own, without a copy. False when others share
// it. The shootdown is needed because a fusion may still owe the one for this gfn's former frame.
static bool take_last(struct fusion_vm *f, gfn_t gfn, hfn_t shared, bool alone)
{
    struct frame *s = frame_at(shared);
    if (sharers(s) != 1)
        return false;
    uint64_t key = s->gfn;
    index_lock(key);
    bool last = sharers(s) == 1; // nobody finds it any more without this lock
    if (last) {
        index_remove_shared(key, shared);
        frame_share_take_last(shared, &f->vm->account);
        s->owner = f->vm->id;
        s->gfn = gfn.raw;
    }
    index_unlock(key);
    if (!last)
        return false;
    open_after_shootdown(f->vm, gfn, alone);
    fusion_count(&f->count.last_sharers, 1);
    service_note_range(f, gfn);
    return true;
}

// The reference of a gfn that no longer maps `shared` anywhere. Returns true when that was the last
// one: the frame is Fusor's and to be freed.
static bool drop(struct vm *vm, hfn_t shared)
{
    struct frame *s = frame_at(shared);
    while (!frame_share_leave(shared, &vm->account)) {
        uint64_t key = s->gfn;
        index_lock(key);
        bool last = sharers(s) == 1;
        if (last) {
            index_remove_shared(key, shared);
            frame_share_end(shared, &vm->account);
        }
        index_unlock(key);
        if (last)
            return true;
    }
    return false;
}

void split_release(struct vm *vm, hfn_t frame)
{
    if (drop(vm, frame))
        frame_free(frame, 0, NULL);
}

// gfn lock held: `fresh` takes the place of `shared` at gfn. False when something else is there.
static bool replace(struct fusion_vm *f, gfn_t gfn, hfn_t shared, hfn_t fresh, bool alone)
{
    struct vm *vm = f->vm;
    struct frame *n = frame_at(fresh);
    n->owner = vm->id;
    n->gfn = gfn.raw;
    page_ops_begin()->copy(hfn_to_pointer(fresh), hfn_to_pointer(shared));
    page_ops_end();
    // Read-only until every CPU has left the old frame: until then both hold the same.
    if (ept_change(&vm->ept, gfn, shared, EPT_KIND_SHARED, fresh, alone ? EPT_RWX : READ_ONLY,
                   EPT_KIND_PRIVATE) != 0)
        return false;
    ept_shootdown(&vm->ept);
    if (!alone)
        ept_change(&vm->ept, gfn, fresh, EPT_KIND_PRIVATE, fresh, EPT_RWX, EPT_KIND_PRIVATE);
    // The others may have left meanwhile.
    if (!frame_share_split(shared, fresh, &vm->account)) {
        bool free = drop(vm, shared);
        frame_adopt(fresh, 0, &vm->account);
        if (free)
            frame_free(shared, 0, NULL);
    }
    return true;
}

static void count_split(struct fusion_vm *f, gfn_t gfn, enum split_reason reason, uint64_t now)
{
    fusion_count(&f->count.splits, 1);
    if (reason == SPLIT_ORDERED)
        return;
    bool begun;
    bool before = backoff_note_split(f->backoff, gfn, reason == SPLIT_PAGE_TABLE, now, &begun);
    if (before)
        fusion_count(&f->count.futile_splits, 1);
    if (begun)
        fusion_count(&f->count.backoff, 1);
}

static bool is_shared(const struct ept_leaf *leaf, enum ept_level level)
{
    return leaf->present && leaf->kind == EPT_KIND_SHARED && leaf->level == level;
}

// gfn lock held: what can be done without a frame. Returns true when the page is private now.
static bool settle(struct fusion_vm *f, gfn_t gfn, const struct ept_leaf *leaf, bool alone)
{
    if (!leaf->present || leaf->kind == EPT_KIND_PRIVATE || leaf->kind == EPT_KIND_ZERO)
        return true;
    if (leaf->kind == EPT_KIND_SHARED)
        return leaf->level == EPT_4K && take_last(f, gfn, leaf->frame, alone);
    cancel(f, gfn, leaf);
    return true;
}

static int take_frame(struct fusion_vm *f, unsigned flags, hfn_t *fresh, enum reserve_share *share)
{
    *share = RESERVE_NONE;
    if (frame_alloc(FRAME_FUSOR, 0, 0, NULL, fresh) == 0)
        return 0;
    return (flags & FRAME_RESERVE) != 0 ? reserve_for_split(f->vm, fresh, share) : E_NOMEM;
}

// As split_gfn; `expected` is what the leaf looked like without the lock.
static int make_private(struct fusion_vm *f, gfn_t gfn, const struct ept_leaf *expected,
                        unsigned flags, enum split_reason reason, bool alone)
{
    struct ept_leaf leaf = *expected;
    struct ept *ept = &f->vm->ept;
    hfn_t fresh = {0};
    enum reserve_share share = RESERVE_NONE;
    bool allocated = false, used = false, done = false;
    int status = 0;
    while (!done && status == 0) {
        bool small = is_shared(&leaf, EPT_4K);
        if (is_shared(&leaf, EPT_2M)) {
            status = fusion_make_small(f->vm, gfn);
        } else if (small && !allocated && sharers(frame_at(leaf.frame)) != 1) {
            status = take_frame(f, flags, &fresh, &share);
            allocated = status == 0;
        }
        if (status != 0)
            break;
        ept_lock_gfn(ept, gfn);
        used = small && allocated && replace(f, gfn, leaf.frame, fresh, alone);
        done = used;
        if (!done) {
            leaf = ept_lookup(ept, gfn);
            done = settle(f, gfn, &leaf, alone);
        }
        ept_unlock_gfn(ept, gfn);
    }
    if (used) {
        count_split(f, gfn, reason, time_tsc());
    } else if (allocated) {
        frame_free(fresh, 0, NULL);
        reserve_return(f->vm, share);
    }
    return status;
}

int split_gfn(struct fusion_vm *f, gfn_t gfn, unsigned flags, enum split_reason reason)
{
    struct ept_leaf leaf = ept_lookup(&f->vm->ept, gfn);
    return make_private(f, gfn, &leaf, flags, reason, false);
}

// The common fault: a small shared page that others share, too, and a frame beyond the reserve.
// Returns false when it is something else, and make_private() has to look closer.
static bool split_at_once(struct fusion_vm *f, gfn_t gfn, hfn_t shared, bool page_walk, bool alone,
                          uint64_t now)
{
    struct ept *ept = &f->vm->ept;
    hfn_t fresh;
    if (sharers(frame_at(shared)) == 1 || frame_alloc(FRAME_FUSOR, 0, 0, NULL, &fresh) != 0)
        return false;
    ept_lock_gfn(ept, gfn);
    bool used = replace(f, gfn, shared, fresh, alone);
    ept_unlock_gfn(ept, gfn);
    if (used)
        count_split(f, gfn, page_walk ? SPLIT_PAGE_TABLE : SPLIT_WRITTEN, now);
    else
        frame_free(fresh, 0, NULL);
    return used;
}

static enum ept_fault_result split_fault(void *owner, const struct ept_fault *fault)
{
    const struct ept_leaf *leaf = &fault->leaf;
    if (!fault->write || !leaf->present || leaf->kind == EPT_KIND_PRIVATE ||
        leaf->kind == EPT_KIND_ZERO)
        return EPT_FAULT_UNHANDLED;
    struct vm *vm = owner;
    struct fusion_vm *f = fusion_of(vm);
    gfn_t gfn = gpa_to_gfn(fault->address);
    uint64_t began = time_tsc();
    int status = 0;
    if (!is_shared(leaf, EPT_4K) ||
        !split_at_once(f, gfn, leaf->frame, fault->page_walk, vm->vcpu_count == 1, began))
        status =
            make_private(f, gfn, leaf, FRAME_RESERVE,
                         fault->page_walk ? SPLIT_PAGE_TABLE : SPLIT_WRITTEN, vm->vcpu_count == 1);
    fusion_count(&f->count.ticks, time_tsc() - began);
    return status == 0 ? EPT_FAULT_RETRY : EPT_FAULT_WAIT;
}

int split_init(void)
{
    return ept_register_fault_hook(50, split_fault);
}
