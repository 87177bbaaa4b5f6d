// SPDX-License-Identifier: BSD-2-Clause
// 2 MiB ranges fused as a whole: 512 shared frames with a large EPT entry over them on both sides.
//
// A range is found by its first page's key: a large candidate is one whose frame is aligned and
// whose VM maps it by a large leaf; shared frames qualify when 512 of them lie side by side. Each
// of the 512 pages is compared, and becomes a shared frame of its own, so a write to one later
// splits only that one (split.c demotes the writer's entry first).
//
// Locks: as in fuse.c; the gfn lock, or the pair, is held while 2 MiB are compared, and under it
// one bucket lock at a time.
#include "fusion/engine.h"

#include "fusion/page_ops.h"
#include "kernel/error.h"
#include "kernel/heap.h"
#include "kernel/memory.h"
#include "kernel/time.h"

#define RANGE_PAGES 512u
#define RANGE_ORDER 9u
#define READ_ONLY   (EPT_READ | EPT_EXECUTE)

// One side of a fusion: a large leaf, protected by us while `version` is its first frame's.
struct side {
    struct fusion_vm *f;
    gfn_t gfn;
    hfn_t frame;
    uint32_t version;
};

static hfn_t page(hfn_t first, unsigned i)
{
    return hfn(first.raw + i);
}

static uint32_t version_of(hfn_t frame)
{
    return (uint32_t)__atomic_load_n(&frame_at(frame)->version, __ATOMIC_ACQUIRE);
}

static bool aligned(hfn_t frame)
{
    return (frame.raw & (RANGE_PAGES - 1)) == 0;
}

static bool is_large(const struct ept_leaf *leaf, enum ept_kind kind, hfn_t frame)
{
    return leaf->present && leaf->level == EPT_2M && leaf->kind == kind &&
           leaf->frame.raw == frame.raw;
}

static bool none_pinned(hfn_t first)
{
    for (unsigned i = 0; i < RANGE_PAGES; i++)
        if (frame_at(page(first, i))->count != 0)
            return false;
    return true;
}

// gfn lock held: nobody wrote to the range since we protected it.
static bool still_ours(const struct side *s)
{
    struct ept_leaf leaf = ept_lookup(&s->f->vm->ept, s->gfn);
    return is_large(&leaf, EPT_KIND_CANDIDATE, s->frame) && version_of(s->frame) == s->version &&
           none_pinned(s->frame);
}

// `same`: only when the version is the one noted. A range with a pinned page stays private: who
// unpins it counts on that (vm/memory.c). Whoever pins one later makes it private first.
static bool protect(struct side *s, bool same)
{
    struct ept *ept = &s->f->vm->ept;
    ept_lock_gfn(ept, s->gfn);
    struct ept_leaf leaf = ept_lookup(ept, s->gfn);
    uint32_t now = version_of(s->frame);
    bool good = is_large(&leaf, EPT_KIND_PRIVATE, s->frame) &&
                (leaf.permissions & EPT_WRITE) != 0 && (!same || now == s->version) &&
                none_pinned(s->frame) &&
                ept_protect(ept, s->gfn, READ_ONLY, EPT_KIND_CANDIDATE) == 0;
    s->version = now;
    ept_unlock_gfn(ept, s->gfn);
    return good;
}

// gfn lock held.
static void give_back(const struct side *s)
{
    struct ept *ept = &s->f->vm->ept;
    if (version_of(s->frame) != s->version)
        return;
    struct ept_leaf leaf = ept_lookup(ept, s->gfn);
    if (leaf.level != EPT_4K) {
        ept_protect(ept, s->gfn, EPT_RWX, EPT_KIND_PRIVATE);
        return;
    }
    // A fetch split it meanwhile (ITLB multihit). A small page may be another intake's candidate by
    // now, which must see that it was given back.
    for (unsigned i = 0; i < RANGE_PAGES; i++)
        if (ept_change(ept, (gfn_t){s->gfn.raw + i}, page(s->frame, i), EPT_KIND_CANDIDATE,
                       page(s->frame, i), EPT_RWX, EPT_KIND_PRIVATE) == 0)
            frame_end_version(page(s->frame, i));
}

// gfn lock held, our side is ours: pages 0..k-1 joined `shared`, the others stay as they are.
// Returns whether the table was used.
static bool install(const struct side *mine, hfn_t shared, unsigned k, hfn_t table)
{
    struct ept *ept = &mine->f->vm->ept;
    struct ept_leaf old;
    if (k == RANGE_PAGES) {
        ept_replace(ept, mine->gfn, shared, EPT_2M, READ_ONLY, EPT_KIND_SHARED, &old);
        return false;
    }
    if (k == 0) {
        ept_protect(ept, mine->gfn, EPT_RWX, EPT_KIND_PRIVATE);
        return false;
    }
    ept_split_large(ept, mine->gfn, table);
    for (unsigned i = 0; i < RANGE_PAGES; i++) {
        gfn_t gfn = {mine->gfn.raw + i};
        if (i < k)
            ept_replace(ept, gfn, page(shared, i), EPT_4K, READ_ONLY, EPT_KIND_SHARED, &old);
        else
            ept_protect(ept, gfn, EPT_RWX, EPT_KIND_PRIVATE);
    }
    return true;
}

static bool join(const struct side *mine, hfn_t shared, unsigned i)
{
    return frame_share_join(page(shared, i), page(mine->frame, i), &mine->f->vm->account,
                            fusion_sharers_max);
}

// Page i of our side against shared frame i; equal ones are joined. A frame cannot stop being
// shared while the lock of its key is held.
static bool join_equal(const struct side *mine, hfn_t shared, unsigned i,
                       const struct page_ops *ops)
{
    const struct frame *r = frame_of(page(shared, i));
    if (r == NULL) // behind the end of memory
        return false;
    uint64_t key = __atomic_load_n(&r->gfn, __ATOMIC_RELAXED);
    index_lock(key);
    bool good = __atomic_load_n(&r->state, __ATOMIC_ACQUIRE) == FRAME_SHARED &&
                __atomic_load_n(&r->gfn, __ATOMIC_RELAXED) == key && r->owner == mine->f->group &&
                ops->equal(hfn_to_pointer(page(mine->frame, i)), hfn_to_pointer(page(shared, i))) &&
                join(mine, shared, i);
    index_unlock(key);
    return good;
}

// Returns how many pages, from the first on, were joined to the shared frames at `shared`.
static unsigned fuse_with_shared(struct side *mine, hfn_t shared, hfn_t table, bool *table_used,
                                 const struct page_ops *ops)
{
    struct ept *ept = &mine->f->vm->ept;
    unsigned k = 0;
    if (!protect(mine, false))
        return 0;
    ept_shootdown(ept);
    ept_lock_gfn(ept, mine->gfn);
    if (still_ours(mine)) {
        while (k < RANGE_PAGES && join_equal(mine, shared, k, ops))
            k++;
        *table_used = install(mine, shared, k, table);
    } else {
        give_back(mine);
    }
    ept_unlock_gfn(ept, mine->gfn);
    return k;
}

static bool all_equal(hfn_t a, hfn_t b, const struct page_ops *ops)
{
    for (unsigned i = 0; i < RANGE_PAGES; i++)
        if (!ops->equal(hfn_to_pointer(page(a, i)), hfn_to_pointer(page(b, i))))
            return false;
    return true;
}

// Both gfn locks held, both sides are ours and equal.
static unsigned share_and_join(const struct side *mine, const struct side *theirs,
                               const uint64_t *keys)
{
    for (unsigned i = 0; i < RANGE_PAGES; i++)
        fusion_begin_sharing(page(theirs->frame, i), keys[i], mine->f->group,
                             &theirs->f->vm->account);
    ept_protect(&theirs->f->vm->ept, theirs->gfn, READ_ONLY, EPT_KIND_SHARED);
    unsigned k = 0;
    while (k < RANGE_PAGES && join(mine, theirs->frame, k))
        k++;
    return k;
}

static unsigned fuse_with_candidate(struct side *mine, struct side *theirs, const uint64_t *keys,
                                    hfn_t table, bool *table_used, const struct page_ops *ops)
{
    struct ept *a = &mine->f->vm->ept;
    struct ept *b = &theirs->f->vm->ept;
    unsigned k = 0;
    if (!protect(mine, false))
        return 0;
    bool both = protect(theirs, true);
    if (both) {
        ept_shootdown(a);
        if (a != b)
            ept_shootdown(b);
    }
    ept_lock_pair(a, mine->gfn, b, theirs->gfn);
    if (both && still_ours(mine) && still_ours(theirs) &&
        all_equal(mine->frame, theirs->frame, ops)) {
        k = share_and_join(mine, theirs, keys);
        *table_used = install(mine, theirs->frame, k, table);
    } else {
        give_back(mine);
        if (both)
            give_back(theirs);
    }
    ept_unlock_pair(a, mine->gfn, b, theirs->gfn);
    return k;
}

// What the index knows about our first page: an aligned shared frame, or else a large candidate.
static hfn_t find_partner(struct fusion_chunk *chunk, const struct side *mine, uint64_t key,
                          struct side *theirs)
{
    hfn_t shared[INDEX_BUCKET];
    struct index_candidate candidate;
    bool known;
    index_lock(key);
    unsigned n = index_shared(key, mine->f->group, shared);
    bool found = index_candidate(key, mine->f->group, mine->frame, &candidate, &known);
    index_unlock(key);
    theirs->f = NULL;
    for (unsigned i = 0; i < n; i++)
        if (aligned(shared[i]))
            return shared[i];
    if (!found || !aligned(candidate.frame))
        return hfn(0);
    struct fusion_vm *other = chunk_partner(chunk, candidate.slot);
    const struct frame *r = frame_at(candidate.frame);
    gfn_t gfn = {__atomic_load_n(&r->gfn, __ATOMIC_RELAXED)};
    if (other == NULL || __atomic_load_n(&r->owner, __ATOMIC_RELAXED) != other->vm->id ||
        (gfn.raw & (RANGE_PAGES - 1)) != 0 || vm_area_of(other->vm, gfn) != VM_AREA_RAM ||
        (other == mine->f && gfn.raw == mine->gfn.raw))
        return hfn(0);
    *theirs = (struct side){other, gfn, candidate.frame, candidate.version};
    return hfn(0);
}

// The table is for a fusion that ends in the middle, the keys for frames that become shared.
static unsigned fuse(struct fusion_chunk *chunk, struct side *mine, uint64_t *keys, hfn_t table,
                     bool *table_used, const struct page_ops *ops)
{
    struct side theirs;
    keys[0] = index_key(ops->hash(hfn_to_pointer(mine->frame)), mine->f->group);
    hfn_t shared = find_partner(chunk, mine, keys[0], &theirs);
    if (shared.raw != 0)
        return fuse_with_shared(mine, shared, table, table_used, ops);
    if (theirs.f == NULL)
        return 0;
    for (unsigned i = 1; i < RANGE_PAGES; i++)
        keys[i] = index_key(ops->hash(hfn_to_pointer(page(mine->frame, i))), mine->f->group);
    return fuse_with_candidate(mine, &theirs, keys, table, table_used, ops);
}

static void free_joined(hfn_t first, unsigned k)
{
    if (k == RANGE_PAGES) {
        frame_free(first, RANGE_ORDER, NULL);
        return;
    }
    for (unsigned i = 0; i < k; i++)
        frame_free(page(first, i), 0, NULL);
}

unsigned range_fuse(struct fusion_chunk *chunk, gfn_t gfn, unsigned class)
{
    struct fusion_vm *f = chunk->self;
    struct ept_leaf leaf = ept_lookup(&f->vm->ept, gfn);
    if (!leaf.present || leaf.level != EPT_2M || leaf.kind != EPT_KIND_PRIVATE ||
        backoff_ignores(f->backoff, gfn, time_tsc()))
        return 0;
    struct side mine = {f, gfn, leaf.frame, 0};
    uint64_t *keys = heap_alloc(RANGE_PAGES * sizeof(*keys));
    hfn_t table;
    unsigned k = 0;
    bool table_used = false;
    if (keys != NULL && ept_table_alloc(&table) == 0) {
        const struct page_ops *ops = page_ops_begin();
        k = fuse(chunk, &mine, keys, table, &table_used, ops);
        page_ops_end();
        if (k != 0)
            ept_shootdown(&f->vm->ept);
        free_joined(mine.frame, k);
        if (!table_used)
            ept_table_free(table);
    }
    heap_free(keys);
    chunk_unpin(chunk);
    fusion_count(&f->count.received, k);
    fusion_count(&f->count.fused, k);
    fusion_count(&f->count.fused_by_class[class], k);
    if (k == RANGE_PAGES)
        fusion_count(&f->count.large_fused, 1);
    return k;
}
