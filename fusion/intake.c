// SPDX-License-Identifier: BSD-2-Clause
// Hints come in: each is validated, hashed without protection and looked up. One without partner
// is only remembered; those with one go on to fuse.c.
//
// Locks: one bucket lock for the look-up; one gfn lock where a page that was remembered with
// another content gets a new version.
#include "fusion/engine.h"

#include "fusion/page_ops.h"
#include "kernel/error.h"
#include "kernel/memory.h"
#include "kernel/string.h"
#include "kernel/time.h"
#include "vm/gfn_filter.h"

// In the owner's byte of struct frame.flags while private: the index has, or had, an entry of this
// version. Set without the gfn lock, possibly on a frame that is somebody else's by now: another
// private frame gets one more version from it, and for others (the heap has bits 8 and 9) it must
// be a bit that means nothing.
#define FRAME_F_REMEMBERED (1u << 15)

#define RANGE_PAGES 512u

// Does gfn stand in the chunk already?
static bool seen_before(struct gfn_filter *seen, const struct fusion_chunk *chunk, gfn_t gfn)
{
    bool hit = gfn_filter_note(seen, gfn);
    for (unsigned i = 0; hit && i < chunk->count; i++)
        if (chunk->item[i].gfn.raw == gfn.raw)
            return true;
    return false;
}

static int refuse(struct fusion_vm *f, enum fusion_reject why, int error)
{
    fusion_count(&f->count.received, 1);
    fusion_rejected(f, why);
    return -error;
}

static gfn_t entry_gfn(uint64_t entry)
{
    return (gfn_t){entry & FUSOR_ENTRY_GFN_MASK};
}

static unsigned entry_class(uint64_t entry)
{
    return (unsigned)(entry >> FUSOR_ENTRY_CLASS_SHIFT) & 15;
}

static unsigned entry_order(uint64_t entry)
{
    return (unsigned)(entry >> FUSOR_ENTRY_ORDER_SHIFT) & 15;
}

// What is wrong with an entry, or -1.
static int entry_fault(const struct vm *vm, uint64_t entry)
{
    gfn_t gfn = entry_gfn(entry);
    if ((entry & FUSOR_ENTRY_RESERVED) != 0 || entry_class(entry) >= FUSOR_CLASSES ||
        (entry_order(entry) != 0 &&
         (entry_order(entry) != 9 || (gfn.raw & (RANGE_PAGES - 1)) != 0)))
        return FUSION_REJECT_RESERVED;
    if (vm_area_of(vm, gfn) != VM_AREA_RAM)
        return FUSION_REJECT_RANGE;
    if (entry_order(entry) != 0 &&
        vm_area_of(vm, (gfn_t){gfn.raw + RANGE_PAGES - 1}) != VM_AREA_RAM)
        return FUSION_REJECT_RANGE;
    return -1;
}

static uint32_t version_of(const struct fusion_item *item)
{
    return (uint32_t)__atomic_load_n(&frame_at(item->frame)->version, __ATOMIC_ACQUIRE);
}

// The leaf was read without a lock, so its frame may belong to another VM by now, or to nobody.
// After the version was read: if the frame was this VM's then and the version is still the same
// when the page has been hashed, no other VM's content was read.
static bool is_own(const struct fusion_vm *f, hfn_t frame)
{
    const struct frame *r = frame_at(frame);
    return __atomic_load_n(&r->state, __ATOMIC_RELAXED) == FRAME_PRIVATE &&
           __atomic_load_n(&r->owner, __ATOMIC_RELAXED) == f->vm->id;
}

// A valid hint becomes an item, with the frame that is behind it now. False: rejected.
static bool examine(struct fusion_vm *f, struct fusion_item *item, uint64_t now)
{
    struct ept_leaf leaf = ept_lookup(&f->vm->ept, item->gfn);
    int why = -1;
    if (!leaf.present || leaf.kind == EPT_KIND_ZERO) // in the balloon
        why = FUSION_REJECT_ABSENT;
    else if (leaf.kind == EPT_KIND_SHARED)
        why = FUSION_REJECT_SHARED;
    else if (leaf.kind != EPT_KIND_PRIVATE)
        why = FUSION_REJECT_BUSY;
    else if (frame_at(leaf.frame)->count != 0)
        why = FUSION_REJECT_PINNED;
    else if (backoff_ignores(f->backoff, item->gfn, now))
        why = FUSION_REJECT_BACKOFF;
    else {
        item->frame = leaf.frame;
        item->version = version_of(item);
        if (!is_own(f, leaf.frame))
            why = FUSION_REJECT_BUSY;
    }
    if (why >= 0) {
        item->outcome = OUTCOME_REJECTED;
        fusion_rejected(f, (enum fusion_reject)why);
        return false;
    }
    item->outcome = OUTCOME_NONE;
    return true;
}

// The page at gfn has another content than the index remembers: what it remembers becomes stale.
static void renew_version(struct fusion_vm *f, const struct fusion_item *item)
{
    struct ept *ept = &f->vm->ept;
    ept_lock_gfn(ept, item->gfn);
    struct ept_leaf leaf = ept_lookup(ept, item->gfn);
    // A candidate's version is the mark of the intake that protected it.
    if (leaf.present && leaf.kind == EPT_KIND_PRIVATE && leaf.frame.raw == item->frame.raw)
        frame_end_version(item->frame);
    ept_unlock_gfn(ept, item->gfn);
}

static struct index_candidate as_candidate(const struct fusion_vm *f,
                                           const struct fusion_item *item)
{
    return (struct index_candidate){item->frame, version_of(item), f->slot};
}

// The index had an entry of this frame: it is looked for first, and ended when the content is new.
static enum index_answer offer_again(struct fusion_vm *f, struct fusion_item *item)
{
    hfn_t shared[INDEX_BUCKET];
    bool known = false;
    index_lock(item->key);
    item->shared_known = index_shared(item->key, f->group, shared) != 0;
    item->has_candidate =
        index_candidate(item->key, f->group, item->frame, &item->candidate, &known);
    index_unlock(item->key);
    if (item->shared_known || item->has_candidate)
        return INDEX_PARTNERS;
    if (known)
        return INDEX_KNOWN;
    renew_version(f, item);
    struct index_candidate mine = as_candidate(f, item);
    index_lock(item->key);
    bool good = index_remember(item->key, f->group, &mine);
    index_unlock(item->key);
    return good ? INDEX_REMEMBERED : INDEX_NO_PLACE;
}

static enum index_answer offer(struct fusion_vm *f, struct fusion_item *item)
{
    uint16_t *flags = &frame_at(item->frame)->flags;
    if ((__atomic_load_n(flags, __ATOMIC_RELAXED) & FRAME_F_REMEMBERED) != 0)
        return offer_again(f, item);
    __atomic_fetch_or(flags, FRAME_F_REMEMBERED, __ATOMIC_RELAXED);
    struct index_candidate mine = as_candidate(f, item);
    struct index_partners partners;
    enum index_answer answer = index_offer(item->key, f->group, &mine, &partners);
    if (answer == INDEX_PARTNERS) {
        item->shared_known = partners.shared != 0;
        item->has_candidate = partners.found;
        item->candidate = partners.candidate;
    }
    return answer;
}

static void look_up(struct fusion_vm *f, struct fusion_item *item, const struct page_ops *ops)
{
    item->key = index_key(ops->hash(hfn_to_pointer(item->frame)), f->group);
    if (version_of(item) != item->version) { // it may hold somebody else's content by now
        item->outcome = OUTCOME_REJECTED;
        fusion_rejected(f, FUSION_REJECT_BUSY);
        return;
    }
    switch (offer(f, item)) {
    case INDEX_PARTNERS:
        item->outcome = OUTCOME_MATCHED;
        return;
    case INDEX_KNOWN:
    case INDEX_REMEMBERED:
        item->outcome = OUTCOME_UNMATCHED;
        fusion_count(&f->count.unmatched, 1);
        return;
    case INDEX_NO_PLACE:
    default:
        item->outcome = OUTCOME_REJECTED;
        fusion_rejected(f, FUSION_REJECT_NOMEM);
    }
}

// Steps 1 and 2, then the rest, for items that hold gfn and class.
static void work(struct fusion_chunk *chunk)
{
    struct fusion_vm *f = chunk->self;
    uint64_t now = time_tsc();
    bool good = false, matched = false;
    fusion_count(&f->count.received, chunk->count);
    for (unsigned i = 0; i < chunk->count; i++)
        good |= examine(f, &chunk->item[i], now);
    if (!good) // no page to read: the guest's vector state can stay where it is
        return;
    const struct page_ops *ops = page_ops_begin();
    for (unsigned i = 0; i < chunk->count; i++) {
        struct fusion_item *item = &chunk->item[i];
        if (item->outcome != OUTCOME_NONE)
            continue;
        look_up(f, item, ops);
        matched |= item->outcome == OUTCOME_MATCHED;
    }
    if (matched)
        fuse_chunk(chunk, ops);
    page_ops_end();
    chunk_unpin(chunk);
}

static void add_item(struct fusion_chunk *chunk, gfn_t gfn, unsigned class)
{
    struct fusion_item *item = &chunk->item[chunk->count++];
    item->gfn = gfn;
    item->class = (uint8_t) class;
    item->protected = false;
    item->other_protected = false;
}

static void work_on_range(struct fusion_chunk *chunk, gfn_t first, unsigned class)
{
    unsigned i = range_fuse(chunk, first, class);
    while (i < RANGE_PAGES) {
        chunk->count = 0;
        for (; i < RANGE_PAGES && chunk->count < FUSION_CHUNK; i++) {
            gfn_t gfn = {first.raw + i};
            // In the first range the hole and the ROM, which guests must not get to write to.
            if (vm_area_of(chunk->self->vm, gfn) == VM_AREA_RAM)
                add_item(chunk, gfn, class);
        }
        work(chunk);
    }
}

int64_t fusion_work(struct fusion_vm *f, const uint64_t *entries, unsigned count)
{
    struct fusion_chunk chunk; // its items are set one by one
    struct gfn_filter seen = {0};
    unsigned done = 0;
    chunk.self = f;
    chunk.count = 0;
    chunk.pinned = 0;
    for (; done < MIN(count, FUSION_CHUNK); done++) {
        gfn_t gfn = entry_gfn(entries[done]);
        int fault = entry_fault(f->vm, entries[done]);
        if (done > 0 && (fault >= 0 || entry_order(entries[done]) != 0))
            break; // the first of the next call
        if (fault >= 0)
            return refuse(f, (enum fusion_reject)fault,
                          fault == FUSION_REJECT_RANGE ? FUSOR_ERANGE : FUSOR_EINVAL);
        if (entry_order(entries[done]) != 0) {
            work_on_range(&chunk, gfn, entry_class(entries[done]));
            return 1;
        }
        if (seen_before(&seen, &chunk, gfn)) {
            f->repeated = entries[done] + 1; // refused when it is offered again
            break;
        }
        add_item(&chunk, gfn, entry_class(entries[done]));
    }
    work(&chunk);
    return done;
}

static int64_t hint(struct fusion_vm *f, const uint64_t *entries, unsigned count)
{
    uint64_t began = time_tsc();
    // A range is worked on alone, so pages are paid for up to the first one.
    unsigned pages = 0;
    while (pages < MIN(count, FUSION_CHUNK) && entry_order(entries[pages]) == 0)
        pages++;
    if (f->repeated != 0 && f->repeated == entries[0] + 1) {
        f->repeated = 0;
        return refuse(f, FUSION_REJECT_DUPLICATE, FUSOR_EEXIST);
    }
    unsigned granted =
        budget_take(f, pages > 0 ? pages : RANGE_PAGES, pages > 0 ? 1 : RANGE_PAGES, began);
    if (granted == 0)
        return refuse(f, FUSION_REJECT_BUDGET, FUSOR_EAGAIN);
    granted = MIN(granted, MAX(pages, 1u));
    bool were_on = cpu_irq_enabled();
    cpu_irq_enable(); // long enough for a UART to overflow; handlers take no locks
    int64_t done = fusion_work(f, entries, granted);
    if (!were_on)
        cpu_irq_disable();
    fusion_count(&f->count.ticks, time_tsc() - began);
    return done;
}

int64_t fusion_hint(struct vm *vm, const uint64_t *entries, unsigned count)
{
    struct fusion_vm *f = fusion_of(vm);
    if (count == 0)
        return 0;
    // Pinned: whoever splits all pages of this VM waits for the hints that saw FUSION_ON.
    fusion_pin(f->slot);
    int64_t done =
        f->mode == FUSION_ON ? hint(f, entries, count) : refuse(f, FUSION_REJECT_OFF, FUSOR_EBUSY);
    fusion_unpin(f);
    return done;
}

static void unhint_page(struct fusion_vm *f, gfn_t gfn)
{
    struct ept_leaf leaf = ept_lookup(&f->vm->ept, gfn);
    if (!leaf.present || leaf.kind != EPT_KIND_PRIVATE)
        return;
    struct fusion_item item = {.gfn = gfn, .frame = leaf.frame};
    renew_version(f, &item);
}

int64_t fusion_unhint(struct vm *vm, const uint64_t *entries, unsigned count)
{
    struct fusion_vm *f = fusion_of(vm);
    unsigned n = MIN(count, FUSION_CHUNK);
    for (unsigned i = 0; i < n; i++) {
        int fault = entry_fault(vm, entries[i]);
        if (fault >= 0) // the errors of hints; unhints are not counted among them
            return i > 0 ? (int64_t)i
                         : -(int64_t)(fault == FUSION_REJECT_RANGE ? FUSOR_ERANGE : FUSOR_EINVAL);
        gfn_t gfn = entry_gfn(entries[i]);
        for (uint64_t j = 0; j < UINT64_C(1) << entry_order(entries[i]); j++)
            unhint_page(f, (gfn_t){gfn.raw + j});
        if (entry_order(entries[i]) != 0)
            return (int64_t)i + 1; // long enough for one call
    }
    return n;
}
