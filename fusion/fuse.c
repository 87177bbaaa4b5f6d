// SPDX-License-Identifier: BSD-2-Clause
// Steps 3 to 5 of design section 3 for one chunk of hints: protect both sides, one shootdown per
// VM, compare, map, one shootdown of the VM whose frames were replaced, free.
//
// Locks: in protect() one gfn lock; in settle() one gfn lock or a pair (ept_lock_pair), and under
// them one bucket lock, which keeps a shared partner alive while it is compared. No lock is held
// over a shootdown.
//
// Whose candidate a leaf is, is said by the version of its frame: a write ends the version
// (split.c), so does everything that takes the frame away from its gfn, and nobody protects what is
// a candidate already. So an intake that finds the version it noted, under the gfn lock, knows that
// the leaf is as it left it and that no write came between.
#include "fusion/engine.h"

#include "fusion/page_ops.h"
#include "kernel/error.h"
#include "kernel/memory.h"
#include "kernel/panic.h"

#define READ_ONLY (EPT_READ | EPT_EXECUTE)

uint32_t fusion_sharers_max = FRAME_COUNT_MAX;

static uint32_t version_of(const struct frame *r)
{
    return (uint32_t)__atomic_load_n(&r->version, __ATOMIC_ACQUIRE);
}

struct fusion_vm *chunk_partner(struct fusion_chunk *chunk, uint8_t slot)
{
    struct fusion_vm *f = &fusion_vms[slot];
    if (f == chunk->self)
        return f; // its caller sees to it that it stays
    if ((chunk->pinned >> slot & 1) == 0) {
        f = fusion_pin(slot);
        if (f == NULL)
            return NULL;
        chunk->pinned |= UINT64_C(1) << slot;
    }
    return f->group == chunk->self->group && f->mode == FUSION_ON ? f : NULL;
}

void chunk_unpin(struct fusion_chunk *chunk)
{
    for (uint64_t left = chunk->pinned; left != 0; left &= left - 1)
        fusion_unpin(&fusion_vms[__builtin_ctzll(left)]);
    chunk->pinned = 0;
}

int fusion_make_small(struct vm *vm, gfn_t gfn)
{
    hfn_t table;
    int status = ept_table_alloc(&table);
    if (status != 0)
        return status;
    ept_lock_gfn(&vm->ept, gfn);
    struct ept_leaf leaf = ept_lookup(&vm->ept, gfn);
    if (leaf.present)
        vm_end_candidate(vm, gfn, &leaf);
    status = leaf.present && leaf.level != EPT_4K ? ept_split_large(&vm->ept, gfn, table) : E_INVAL;
    ept_unlock_gfn(&vm->ept, gfn);
    if (status != 0)
        ept_table_free(table);
    else
        service_note_range(fusion_of(vm), gfn);
    return 0;
}

void fusion_begin_sharing(hfn_t frame, uint64_t key, uint8_t group, struct frame_account *account)
{
    struct frame *r = frame_at(frame);
    // Before the state, for those who look at a record without a lock.
    r->owner = group;
    __atomic_store_n(&r->gfn, key, __ATOMIC_RELEASE);
    frame_share(frame, account);
    index_lock(key);
    // Without a place in the index it is shared all the same; only nobody joins.
    index_add_shared(key, group, frame);
    index_unlock(key);
}

static bool is_in_large(struct ept *ept, gfn_t gfn, hfn_t frame)
{
    struct ept_leaf leaf = ept_lookup(ept, gfn);
    return leaf.present && leaf.level != EPT_4K && leaf.kind == EPT_KIND_PRIVATE &&
           leaf.frame.raw == frame.raw;
}

// Write-protects a private page that still is `frame`; *version is what the frame's was then, and,
// with `same`, had to be. False: it is not so, or no table for a large leaf.
static bool protect(struct fusion_vm *f, gfn_t gfn, hfn_t frame, bool same, uint32_t *version)
{
    struct ept *ept = &f->vm->ept;
    const struct frame *r = frame_at(frame);
    bool small = true, good = false;
    for (;;) {
        ept_lock_gfn(ept, gfn);
        uint32_t now = version_of(r);
        if (r->count == 0 && (!same || now == *version)) {
            good = ept_change(ept, gfn, frame, EPT_KIND_PRIVATE, frame, READ_ONLY,
                              EPT_KIND_CANDIDATE) == 0;
            small = good || !is_in_large(ept, gfn, frame);
        }
        ept_unlock_gfn(ept, gfn);
        *version = now;
        if (small || fusion_make_small(f->vm, gfn) != 0)
            return good;
        same = true;
        small = true;
    }
}

// gfn lock held: is this still the candidate that was protected?
static bool still_candidate(hfn_t frame, uint32_t version)
{
    const struct frame *r = frame_at(frame);
    return version_of(r) == version && r->count == 0;
}

// gfn lock held, and the page is our candidate.
static void turn(struct fusion_vm *f, gfn_t gfn, hfn_t frame, hfn_t to, unsigned permissions,
                 enum ept_kind kind)
{
    int status = ept_change(&f->vm->ept, gfn, frame, EPT_KIND_CANDIDATE, to, permissions, kind);
    CHECK(status == 0);
}

// Unless somebody has ended it, the page is still our candidate and gets its permission back.
static void give_back(struct fusion_vm *f, gfn_t gfn, hfn_t frame, uint32_t version)
{
    ept_lock_gfn(&f->vm->ept, gfn);
    if (version_of(frame_at(frame)) == version)
        turn(f, gfn, frame, frame, EPT_RWX, EPT_KIND_PRIVATE);
    ept_unlock_gfn(&f->vm->ept, gfn);
}

static void forget_candidate(const struct fusion_item *item)
{
    index_lock(item->key);
    index_forget(item->key, &item->candidate);
    index_unlock(item->key);
}

// The candidate's side of an item. Its record was read without a lock: protect() finds out. One of
// a VM that takes part no more would keep all others with this content from each other.
static void protect_other(struct fusion_chunk *chunk, struct fusion_item *item)
{
    struct fusion_vm *other = chunk_partner(chunk, item->candidate.slot);
    const struct frame *r = frame_at(item->candidate.frame);
    if (other == NULL || __atomic_load_n(&r->owner, __ATOMIC_RELAXED) != other->vm->id) {
        forget_candidate(item);
        return;
    }
    item->other_gfn = (gfn_t){__atomic_load_n(&r->gfn, __ATOMIC_RELAXED)};
    if (vm_area_of(other->vm, item->other_gfn) == VM_AREA_RAM)
        item->other_protected =
            protect(other, item->other_gfn, item->candidate.frame, true, &item->candidate.version);
}

static void protect_all(struct fusion_chunk *chunk)
{
    uint64_t shoot = 0;
    for (unsigned i = 0; i < chunk->count; i++) {
        struct fusion_item *item = &chunk->item[i];
        if (item->outcome != OUTCOME_MATCHED)
            continue;
        item->protected = protect(chunk->self, item->gfn, item->frame, false, &item->version);
        if (!item->protected)
            continue;
        shoot |= UINT64_C(1) << chunk->self->slot;
        if (item->has_candidate)
            protect_other(chunk, item);
        if (item->other_protected)
            shoot |= UINT64_C(1) << item->candidate.slot;
    }
    for (; shoot != 0; shoot &= shoot - 1)
        ept_shootdown(&fusion_vms[__builtin_ctzll(shoot)].vm->ept);
}

enum settled { SETTLED_FUSED, SETTLED_DIFFERENT, SETTLED_GONE };

// Our page against the shared frames of its key. Under the bucket lock they cannot go away.
static enum settled settle_shared(struct fusion_vm *self, struct fusion_item *item,
                                  const struct page_ops *ops)
{
    struct ept *ept = &self->vm->ept;
    hfn_t shared[INDEX_BUCKET];
    enum settled result = SETTLED_GONE;
    ept_lock_gfn(ept, item->gfn);
    if (still_candidate(item->frame, item->version)) {
        const void *mine = hfn_to_pointer(item->frame);
        unsigned i = 0;
        index_lock(item->key);
        unsigned n = index_shared(item->key, self->group, shared);
        while (i < n &&
               !(ops->equal(mine, hfn_to_pointer(shared[i])) &&
                 frame_share_join(shared[i], item->frame, &self->vm->account, fusion_sharers_max)))
            i++;
        index_unlock(item->key);
        if (i < n)
            turn(self, item->gfn, item->frame, shared[i], READ_ONLY, EPT_KIND_SHARED);
        result = i < n ? SETTLED_FUSED : SETTLED_DIFFERENT;
    }
    ept_unlock_gfn(ept, item->gfn);
    return result;
}

// Our page against the candidate, which becomes the shared frame when they are equal. Both keep
// what they have else.
static enum settled settle_pair(struct fusion_vm *self, struct fusion_item *item,
                                const struct page_ops *ops)
{
    struct fusion_vm *other = &fusion_vms[item->candidate.slot];
    struct ept *ept = &self->vm->ept;
    hfn_t theirs = item->candidate.frame;
    enum settled result = SETTLED_GONE;
    ept_lock_pair(ept, item->gfn, &other->vm->ept, item->other_gfn);
    bool mine_good = still_candidate(item->frame, item->version);
    if (still_candidate(theirs, item->candidate.version)) {
        item->other_protected = false;
        if (mine_good && ops->equal(hfn_to_pointer(item->frame), hfn_to_pointer(theirs))) {
            fusion_begin_sharing(theirs, item->key, self->group, &other->vm->account);
            turn(other, item->other_gfn, theirs, theirs, READ_ONLY, EPT_KIND_SHARED);
            // Others may have found it at once and filled it.
            if (frame_share_join(theirs, item->frame, &self->vm->account, fusion_sharers_max)) {
                turn(self, item->gfn, item->frame, theirs, READ_ONLY, EPT_KIND_SHARED);
                result = SETTLED_FUSED;
            }
        } else {
            turn(other, item->other_gfn, theirs, theirs, EPT_RWX, EPT_KIND_PRIVATE);
            if (mine_good) {
                forget_candidate(item);
                result = SETTLED_DIFFERENT;
            }
        }
    }
    ept_unlock_pair(ept, item->gfn, &other->vm->ept, item->other_gfn);
    return result;
}

// Nothing was equal: our own page may be what later ones are compared with.
static void remember_different(struct fusion_vm *self, const struct fusion_item *item)
{
    struct index_candidate mine = {item->frame, item->version, self->slot};
    index_lock(item->key);
    index_remember(item->key, self->group, &mine);
    index_unlock(item->key);
}

static void settle(struct fusion_chunk *chunk, struct fusion_item *item, const struct page_ops *ops)
{
    struct fusion_vm *self = chunk->self;
    if (!item->protected) {
        item->outcome = OUTCOME_REJECTED;
        fusion_rejected(self, FUSION_REJECT_BUSY);
        return;
    }
    enum settled result = SETTLED_GONE;
    bool different = false;
    // A partner that could not be protected may have been fused earlier in this chunk.
    if (item->shared_known || !item->other_protected) {
        result = settle_shared(self, item, ops);
        different = item->shared_known && result == SETTLED_DIFFERENT;
    }
    if (result != SETTLED_FUSED && item->other_protected) {
        result = settle_pair(self, item, ops);
        different |= result == SETTLED_DIFFERENT;
    }
    if (item->other_protected)
        give_back(&fusion_vms[item->candidate.slot], item->other_gfn, item->candidate.frame,
                  item->candidate.version);
    if (result == SETTLED_FUSED) {
        item->outcome = OUTCOME_FUSED;
        fusion_count(&self->count.fused, 1);
        fusion_count(&self->count.fused_by_class[item->class], 1);
        return;
    }
    give_back(self, item->gfn, item->frame, item->version);
    item->outcome = OUTCOME_REJECTED;
    fusion_rejected(self, different ? FUSION_REJECT_MISMATCH : FUSION_REJECT_BUSY);
    if (different)
        remember_different(self, item);
}

void fuse_chunk(struct fusion_chunk *chunk, const struct page_ops *ops)
{
    protect_all(chunk);
    bool fused = false;
    for (unsigned i = 0; i < chunk->count; i++) {
        if (chunk->item[i].outcome == OUTCOME_MATCHED) {
            settle(chunk, &chunk->item[i], ops);
            fused |= chunk->item[i].outcome == OUTCOME_FUSED;
        }
    }
    if (!fused)
        return;
    // Only now has every CPU left the duplicates.
    ept_shootdown(&chunk->self->vm->ept);
    for (unsigned i = 0; i < chunk->count; i++)
        if (chunk->item[i].outcome == OUTCOME_FUSED)
            frame_free(chunk->item[i].frame, 0, NULL);
}
