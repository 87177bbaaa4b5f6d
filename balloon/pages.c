// SPDX-License-Identifier: BSD-2-Clause
// Pages come from a guest and go back to it.
//
// Giving is done in steps for the whole chunk: under each gfn lock the pages are unmapped and what
// they mapped is noted; one shootdown; only then are frames freed and shared frames left (until
// then a CPU may still read them). Between the steps the pages are untouched memory. Pages for the
// balloon are marked last, under the gfn lock again, so that Private + Shared + Balloon is never
// more than the VM has; a page that the guest touched meanwhile has left the balloon by that. For
// the same reason vm->leaving says how many pages are on their way out: a first touch for which
// there would be no room beside them looks again until they are gone (vm/memory.c).
//
// Locks: one gfn lock at a time. None is held over the shootdown.
//
// Fusion: a candidate's version ends under the gfn lock before it is unmapped, as by a write, so
// that the intake which protected it finds out (fusion/fuse.c). A private page needs no such thing,
// for whoever wants to protect it looks for it in the EPT, under the lock. Splitting a large
// candidate cancels it (vm_end_candidate).
#include "balloon/balloon.h"

#include "fusion/engine.h"
#include "hypercall/fusor_abi.h"
#include "kernel/error.h"
#include "kernel/memory.h"
#include "vm/ballooned.h"
#include "vm/gfn_filter.h"
#include "vm/reserve.h"

#define RANGE_PAGES 512u
#define RANGE_ORDER 9u

// Ranges that one chunk looks through page by page. Such a range costs some ten thousand
// instructions, one without a page table some hundred; with 64 of them nobody else would get the
// CPU for millions.
#define SLOW_RANGES 4u

#define ENTRY_CLASS_MASK (UINT64_C(0xf) << FUSOR_ENTRY_CLASS_SHIFT)

// What was unmapped, a word each: the frame's number and what it is.
#define GONE_SHARED (UINT64_C(1) << 63)
#define GONE_LARGE  (UINT64_C(1) << 62)

struct batch {
    struct vm *vm;
    unsigned count;
    unsigned slow;  // ranges that were looked through
    uint64_t pages; // of all that is in `gone`: counted in vm->leaving
    uint64_t gone[RANGE_PAGES];
};

static gfn_t entry_gfn(uint64_t entry)
{
    return (gfn_t){entry & FUSOR_ENTRY_GFN_MASK};
}

static unsigned entry_pages(uint64_t entry)
{
    return 1u << (entry >> FUSOR_ENTRY_ORDER_SHIFT & 15);
}

// 0, or what is wrong with an entry, as a fusor_error_code.
static int check_entry(const struct vm *vm, uint64_t entry)
{
    gfn_t gfn = entry_gfn(entry);
    unsigned pages = entry_pages(entry);
    if ((entry & (FUSOR_ENTRY_RESERVED | ENTRY_CLASS_MASK)) != 0 ||
        (pages != 1 && pages != RANGE_PAGES) || gfn.raw % pages != 0)
        return FUSOR_EINVAL;
    if (vm_area_of(vm, gfn) != VM_AREA_RAM ||
        vm_area_of(vm, (gfn_t){gfn.raw + pages - 1}) != VM_AREA_RAM)
        return FUSOR_ERANGE;
    // The first range has a hole and ROM in it.
    return pages != 1 && gfn.raw == 0 ? FUSOR_ERANGE : 0;
}

// --- Giving ---

static bool pinned(const struct ept_leaf *leaf, unsigned pages)
{
    if (leaf->kind == EPT_KIND_SHARED || leaf->kind == EPT_KIND_ZERO)
        return false;
    for (unsigned i = 0; i < pages; i++)
        if (frame_at(hfn(leaf->frame.raw + i))->count != 0)
            return true;
    return false;
}

// gfn lock held: unmaps the leaf at gfn, its first, which is wanted as a whole and not pinned.
static void unmap(struct batch *b, gfn_t gfn, const struct ept_leaf *leaf)
{
    struct ept_leaf old;
    unsigned pages = leaf->level == EPT_2M ? RANGE_PAGES : 1;
    if (leaf->kind == EPT_KIND_CANDIDATE) // whoever compares it sees that
        frame_end_version(leaf->frame);
    atomic_fetch_add(&b->vm->leaving, pages); // before anybody can touch them anew
    b->pages += pages;
    ept_unmap(&b->vm->ept, gfn, &old);
    b->gone[b->count++] = old.frame.raw | (leaf->kind == EPT_KIND_SHARED ? GONE_SHARED : 0) |
                          (leaf->level == EPT_2M ? GONE_LARGE : 0);
    vm_untouch(b->vm, gfn, pages);
}

// gfn lock held: may all pages of this range, which has a table, go, and does the batch have room
// for them? Counts those that map a frame.
static int check_small(const struct batch *b, gfn_t gfn, unsigned *mapped)
{
    *mapped = 0;
    for (unsigned i = 0; i < RANGE_PAGES; i++) {
        struct ept_leaf leaf = ept_lookup(&b->vm->ept, (gfn_t){gfn.raw + i});
        if (leaf.present && pinned(&leaf, 1))
            return E_NOENT;
        *mapped += leaf.present && leaf.kind != EPT_KIND_ZERO;
    }
    return b->count + *mapped > RANGE_PAGES ? E_BUSY : 0;
}

// gfn lock held. E_AGAIN: a large leaf has to be split first. E_BUSY: the batch is full. Whatever
// the error, nothing was taken.
static int take_locked(struct batch *b, gfn_t gfn, unsigned pages, bool for_balloon)
{
    struct vm *vm = b->vm;
    struct ept_leaf leaf = ept_lookup(&vm->ept, gfn);
    if (for_balloon && ballooned_count(vm, gfn, pages) != 0)
        return E_EXIST;
    if (leaf.level == EPT_2M && leaf.present && pages == 1)
        return E_AGAIN;
    // One leaf speaks for all, or none: without a table nothing is mapped. That is the usual case
    // of a range that was never touched, or was reported as free before.
    if (pages == 1 || leaf.level != EPT_4K) {
        if (!leaf.present || leaf.kind == EPT_KIND_ZERO)
            return 0;
        if (pinned(&leaf, pages))
            return E_NOENT;
        if (b->count == RANGE_PAGES)
            return E_BUSY;
        unmap(b, gfn, &leaf);
        return 0;
    }
    unsigned mapped;
    b->slow++;
    int status = check_small(b, gfn, &mapped);
    for (unsigned i = 0; i < RANGE_PAGES && mapped != 0 && status == 0; i++) {
        gfn_t page = {gfn.raw + i};
        leaf = ept_lookup(&vm->ept, page);
        if (leaf.present && leaf.kind != EPT_KIND_ZERO) { // reported, and in the balloon
            unmap(b, page, &leaf);
            mapped--;
        }
    }
    return status;
}

static int take(struct batch *b, uint64_t entry, bool for_balloon)
{
    struct vm *vm = b->vm;
    gfn_t gfn = entry_gfn(entry);
    for (;;) {
        ept_lock_gfn(&vm->ept, gfn);
        int status = take_locked(b, gfn, entry_pages(entry), for_balloon);
        ept_unlock_gfn(&vm->ept, gfn);
        if (status != E_AGAIN)
            return status;
        if (fusion_make_small(vm, gfn) != 0)
            return E_NOMEM;
    }
}

// Shoots down, then lets go of everything. The VM's credit at the reserve grows by what it gave.
static void finish(struct batch *b)
{
    struct vm *vm = b->vm;
    uint64_t freed = 0;
    if (b->count == 0)
        return;
    ept_shootdown(&vm->ept);
    for (unsigned i = 0; i < b->count; i++) {
        hfn_t frame = {b->gone[i] & ~(GONE_SHARED | GONE_LARGE)};
        unsigned order = (b->gone[i] & GONE_LARGE) != 0 ? RANGE_ORDER : 0;
        if ((b->gone[i] & GONE_SHARED) != 0) {
            for (unsigned j = 0; j < 1u << order; j++)
                split_release(vm, hfn(frame.raw + j));
        } else {
            frame_free(frame, order, &vm->account);
            freed += UINT64_C(1) << order;
        }
    }
    atomic_fetch_sub(&vm->leaving, b->pages);
    reserve_repay(vm, freed);
}

// The entries were taken: marks them. One that another vCPU has given at the same time, or that the
// guest has touched again, is done all the same.
static void mark(struct vm *vm, const uint64_t *entries, unsigned count)
{
    for (unsigned i = 0; i < count; i++) {
        gfn_t gfn = entry_gfn(entries[i]);
        ept_lock_gfn(&vm->ept, gfn);
        ballooned_put(vm, gfn, entry_pages(entries[i]));
        ept_unlock_gfn(&vm->ept, gfn);
    }
}

// Finds what stands twice in a list, which `mark` would find too late. The filter answers for
// pages, until there is a range.
struct seen {
    struct gfn_filter pages;
    bool ranges;
};

static bool overlaps(uint64_t a, uint64_t b)
{
    uint64_t x = entry_gfn(a).raw, y = entry_gfn(b).raw;
    return x < y + entry_pages(b) && y < x + entry_pages(a);
}

static bool seen_before(struct seen *s, const uint64_t *entries, unsigned n)
{
    bool hit = gfn_filter_note(&s->pages, entry_gfn(entries[n]));
    s->ranges |= entry_pages(entries[n]) != 1;
    hit |= s->ranges;
    for (unsigned i = 0; hit && i < n; i++)
        if (overlaps(entries[i], entries[n]))
            return true;
    return false;
}

static int64_t error_code(int status)
{
    switch (status) {
    case 0:
    case E_BUSY: // the first of the next call: a batch that is full is not empty
        return 0;
    case E_EXIST:
        return -FUSOR_EEXIST;
    case E_NOENT:
        return -FUSOR_ENOENT;
    default:
        return -FUSOR_ENOMEM;
    }
}

static int64_t give(struct vm *vm, const uint64_t *entries, unsigned count, bool for_balloon)
{
    struct batch b; // filled as far as `count` says
    struct seen seen = {0};
    unsigned done = 0;
    int64_t error = 0;
    int status = 0;
    b.vm = vm;
    b.count = 0;
    b.slow = 0;
    b.pages = 0;
    while (done < MIN(count, BALLOON_CHUNK) && b.slow < SLOW_RANGES && error == 0 && status == 0) {
        error = -(int64_t)check_entry(vm, entries[done]);
        if (error == 0 && for_balloon && seen_before(&seen, entries, done))
            error = -FUSOR_EEXIST;
        if (error == 0) {
            status = take(&b, entries[done], for_balloon);
            error = error_code(status);
        }
        done += error == 0 && status == 0;
    }
    finish(&b);
    if (for_balloon)
        mark(vm, entries, done);
    return done > 0 ? (int64_t)done : error;
}

// --- Taking back ---

// gfn lock held: is the range one without a page table that is in the balloon as a whole?
static bool is_quick(struct vm *vm, gfn_t gfn, unsigned pages, unsigned there)
{
    struct ept_leaf leaf = ept_lookup(&vm->ept, gfn);
    return there == pages && !leaf.present && leaf.level != EPT_4K;
}

// One entry; `budget` pages may be promised.
static int give_back(struct vm *vm, uint64_t entry, uint64_t *budget, unsigned *slow)
{
    gfn_t gfn = entry_gfn(entry);
    unsigned pages = entry_pages(entry);
    int status = E_NOENT;
    ept_lock_gfn(&vm->ept, gfn);
    unsigned there = ballooned_count(vm, gfn, pages);
    if (there > *budget)
        status = E_NOMEM;
    else if (there != 0)
        status = 0;
    if (status == 0) {
        *slow += pages != 1 && !is_quick(vm, gfn, pages, there);
        unsigned n = ballooned_take(vm, gfn, pages);
        *budget -= n;
        vm_hold_less(vm, n);
    }
    ept_unlock_gfn(&vm->ept, gfn);
    return status;
}

// Pages that the deflates under way in all VMs may take at most. Each leaves to those that came
// before what they may take, so that no frame is given to two.
static _Atomic uint64_t deflating;

static int64_t take_back(struct vm *vm, const uint64_t *entries, unsigned count)
{
    struct vm_commitment commitment;
    uint64_t most = 0;
    unsigned done = 0, slow = 0;
    int64_t error = 0;
    count = MIN(count, BALLOON_CHUNK);
    for (unsigned i = 0; i < count; i++)
        most += MIN(entry_pages(entries[i]), RANGE_PAGES);
    uint64_t others = atomic_fetch_add(&deflating, most);
    vm_commitment(&commitment);
    uint64_t budget = MIN(frames_beyond_reserve(), commitment.left);
    budget -= MIN(budget, others);
    while (done < count && slow < SLOW_RANGES && error == 0) {
        error = -(int64_t)check_entry(vm, entries[done]);
        if (error == 0)
            error = error_code(give_back(vm, entries[done], &budget, &slow));
        done += error == 0;
    }
    atomic_fetch_sub(&deflating, most);
    return done > 0 ? (int64_t)done : error;
}

// --- The calls ---

// What a call does takes long enough for a UART to overflow, so interrupts are let in; their
// handlers take no locks.
static bool let_interrupts_in(void)
{
    bool were_on = cpu_irq_enabled();
    cpu_irq_enable();
    return were_on;
}

static void end_interrupts(bool were_on)
{
    if (!were_on)
        cpu_irq_disable();
}

int64_t balloon_inflate(struct vm *vm, const uint64_t *entries, unsigned count)
{
    bool were_on = let_interrupts_in();
    int64_t done = give(vm, entries, count, true);
    end_interrupts(were_on);
    return done;
}

int64_t balloon_free_pages(struct vm *vm, const uint64_t *entries, unsigned count)
{
    bool were_on = let_interrupts_in();
    int64_t done = give(vm, entries, count, false);
    end_interrupts(were_on);
    return done;
}

int64_t balloon_deflate(struct vm *vm, const uint64_t *entries, unsigned count)
{
    bool were_on = let_interrupts_in();
    int64_t done = take_back(vm, entries, count);
    end_interrupts(were_on);
    return done;
}

int64_t balloon_target(struct vm *vm)
{
    vm->balloon_driver = true;
    spin_lock(&vm->device_lock);
    vm_platform->set_doorbell(vm, false); // a target that changes from now on rings again
    spin_unlock(&vm->device_lock);
    return (int64_t)vm->balloon_target;
}

void balloon_statistics(struct vm *vm, struct fusor_statistics *out)
{
    out->balloon = vm->account.ballooned;
    out->balloon_target = vm->balloon_target;
}
