// SPDX-License-Identifier: BSD-2-Clause
// The content index: look up, remember, forget; a hash table of buckets with eight entries of 16
// bytes, two cache lines. A tag that matches by chance (1 in 2^32 per entry) costs a compare of two
// pages.
//
// Bounds, whatever a guest hints: every call looks at one bucket, that is at no more than
// INDEX_BUCKET frame records; index_remember at its VM's quota at SWEEP more buckets. One VM's
// candidates never take the place of another VM's live one; only a shared frame, which serves the
// whole group, may.
//
// Nobody ever waits for a second bucket lock: the sweep, which needs one while it holds one, only
// tries.
#include "fusion/index_table.h"

#include "kernel/frames.h"
#include "kernel/panic.h"
#include "kernel/string.h"

#ifndef FUSOR_DEBUG
#define FUSOR_DEBUG 0
#endif

#define SWEEP 16u                        // buckets that one call looks at for an entry to give up
#define ALL   ((1u << INDEX_BUCKET) - 1) // a set of entries: one bit for each

// --- One bucket; its lock is held ---

// Takes the lowest entry out of a set.
static inline unsigned pop(unsigned *set)
{
    unsigned i = (unsigned)__builtin_ctz(*set);
    *set &= *set - 1;
    return i;
}

static inline unsigned matches(const struct index_bucket *b, uint32_t tag)
{
    unsigned set = 0;
#pragma GCC unroll 8
    for (unsigned i = 0; i < INDEX_BUCKET; i++) {
        if (__builtin_expect(b->tag[i] == tag, 0))
            set |= 1u << i;
    }
    return set & b->used;
}

static inline unsigned candidates(const struct index_bucket *b)
{
    return b->used & ~(unsigned)b->shared;
}

// Whether candidate `i` still says something. Its frame may change on another CPU at this moment:
// the answer is a hint, and whoever compares the pages looks again under the gfn lock.
static bool is_live(const struct index_bucket *b, unsigned i)
{
    struct frame *f = frame_of(hfn(b->frame[i]));
    return f != NULL && __atomic_load_n(&f->state, __ATOMIC_RELAXED) == FRAME_PRIVATE &&
           (uint32_t)__atomic_load_n(&f->version, __ATOMIC_RELAXED) == b->version[i];
}

static unsigned stale_of(const struct index_bucket *b, unsigned set)
{
    unsigned stale = 0;
    while (set != 0) {
        unsigned i = pop(&set);
        if (!is_live(b, i))
            stale |= 1u << i;
    }
    return stale;
}

static unsigned of_slot(const struct index_bucket *b, uint8_t slot)
{
    unsigned set = candidates(b), own = 0;
    while (set != 0) {
        unsigned i = pop(&set);
        if (b->slot[i] == slot)
            own |= 1u << i;
    }
    return own;
}

static unsigned oldest(const struct index_bucket *b, unsigned set)
{
    unsigned best = pop(&set);
    while (set != 0) {
        unsigned i = pop(&set);
        if (b->age[i] < b->age[best])
            best = i;
    }
    return best;
}

// The bucket's sequence has come to its end: the ages become small numbers in the same order.
// Those of one bucket all differ.
__attribute__((noinline)) static void renumber(struct index_bucket *b)
{
    uint8_t rank[INDEX_BUCKET] = {0};
    for (unsigned i = 0; i < INDEX_BUCKET; i++) {
        for (unsigned j = 0; j < INDEX_BUCKET; j++)
            rank[i] = (uint8_t)(rank[i] + ((b->used >> j & 1) != 0 && b->age[j] < b->age[i]));
    }
    memcpy(b->age, rank, sizeof(rank));
    b->sequence = INDEX_BUCKET;
}

static inline void write(struct index_bucket *b, unsigned i, uint32_t tag, uint8_t group,
                         hfn_t frame)
{
    if (__builtin_expect(b->sequence == UINT8_MAX, 0))
        renumber(b);
    b->age[i] = b->sequence++;
    b->tag[i] = tag;
    b->frame[i] = (uint32_t)frame.raw;
    b->group[i] = group;
    b->used = (uint8_t)(b->used | 1u << i);
}

static inline void write_candidate(struct index_bucket *b, unsigned i, uint32_t tag, uint8_t group,
                                   const struct index_candidate *c)
{
    b->version[i] = c->version;
    b->slot[i] = c->slot;
    write(b, i, tag, group, c->frame);
}

static void count_out(uint8_t slot)
{
    atomic_fetch_sub_explicit(&index_table.slots[slot].count, 1, memory_order_relaxed);
}

static void drop_candidate(struct index_bucket *b, unsigned i)
{
    b->used = (uint8_t)(b->used & ~(1u << i));
    count_out(b->slot[i]);
}

// --- Looking up ---

static unsigned find_shared(const struct index_bucket *b, unsigned set, uint8_t group, hfn_t *out)
{
    unsigned n = 0;
    set &= b->shared;
    while (set != 0) {
        unsigned i = pop(&set);
        if (b->group[i] != group)
            continue;
        if (FUSOR_DEBUG)
            CHECK(frame_of(hfn(b->frame[i]))->state == FRAME_SHARED);
        out[n++] = hfn(b->frame[i]);
    }
    return n;
}

static bool find_candidate(struct index_bucket *b, unsigned set, uint8_t group, hfn_t self,
                           struct index_candidate *out, bool *known)
{
    bool found = false;
    *known = false;
    set &= candidates(b);
    while (set != 0) {
        unsigned i = pop(&set);
        if (!is_live(b, i))
            drop_candidate(b, i);
        else if (b->group[i] != group)
            continue;
        else if (b->frame[i] == (uint32_t)self.raw)
            *known = true;
        else if (!found) {
            *out = (struct index_candidate){hfn(b->frame[i]), b->version[i], b->slot[i]};
            found = true;
        }
    }
    return found;
}

unsigned index_shared(uint64_t key, uint8_t group, hfn_t out[INDEX_BUCKET])
{
    const struct index_bucket *b = index_bucket_at(index_number(key));
    unsigned set = matches(b, index_tag(key));
    return __builtin_expect(set == 0, 1) ? 0 : find_shared(b, set, group, out);
}

bool index_candidate(uint64_t key, uint8_t group, hfn_t self, struct index_candidate *out,
                     bool *known)
{
    struct index_bucket *b = index_bucket_at(index_number(key));
    unsigned set = matches(b, index_tag(key));
    if (__builtin_expect(set != 0, 0))
        return find_candidate(b, set, group, self, out, known);
    *known = false;
    return false;
}

// --- Remembering ---

// Counts one more candidate of the VM, unless it is at its quota.
static inline bool count_in(struct index_slot *s)
{
    uint64_t quota = atomic_load_explicit(&s->quota, memory_order_relaxed);
    if (__builtin_expect(atomic_fetch_add_explicit(&s->count, 1, memory_order_relaxed) < quota, 1))
        return true;
    atomic_fetch_sub_explicit(&s->count, 1, memory_order_relaxed);
    return false;
}

// The VM at its quota gives up one entry of the next SWEEP buckets, a stale one if it has one in
// the first bucket with any. Its count stays: the entry to come takes it over. The lock of bucket
// `held` is held; buckets whose lock another CPU has are left out.
static bool sweep(uint8_t slot, uint64_t held)
{
    struct index_slot *s = &index_table.slots[slot];
    uint64_t n = atomic_load_explicit(&s->hand, memory_order_relaxed);
    bool given = false;
    for (unsigned look = 0; look < SWEEP && !given; look++) {
        if (n >= index_table.buckets)
            n = 0;
        bool other = index_lock_of(n) != index_lock_of(held);
        if (!other || spin_trylock(index_lock_of(n))) {
            struct index_bucket *b = index_bucket_at(n);
            unsigned own = of_slot(b, slot);
            if (own != 0) {
                unsigned stale = stale_of(b, own);
                b->used = (uint8_t)(b->used & ~(1u << oldest(b, stale != 0 ? stale : own)));
                given = true;
            }
            if (other)
                spin_unlock(index_lock_of(n));
        }
        n++;
    }
    atomic_store_explicit(&s->hand, n, memory_order_relaxed);
    return given;
}

// The bucket is full, or the VM at its quota.
__attribute__((noinline)) static bool remember_hard(uint64_t number, uint32_t tag, uint8_t group,
                                                    const struct index_candidate *c)
{
    struct index_bucket *b = index_bucket_at(number);
    unsigned own = of_slot(b, c->slot);
    unsigned stale = stale_of(b, candidates(b));
    unsigned empty = ALL & ~(unsigned)b->used;
    unsigned i;
    if ((own & stale) != 0) {
        i = oldest(b, own & stale);
    } else if ((empty | stale) != 0 &&
               (count_in(&index_table.slots[c->slot]) || (own == 0 && sweep(c->slot, number)))) {
        i = (unsigned)__builtin_ctz(empty != 0 ? empty : stale);
        if (empty == 0)
            count_out(b->slot[i]);
    } else if (own != 0) {
        i = oldest(b, own);
    } else {
        return false;
    }
    write_candidate(b, i, tag, group, c);
    return true;
}

// `c` is not in the bucket under this tag.
static inline bool remember(uint64_t number, uint32_t tag, uint8_t group,
                            const struct index_candidate *c)
{
    CHECK(c->slot < INDEX_SLOTS);
    struct index_bucket *b = index_bucket_at(number);
    unsigned empty = ALL & ~(unsigned)b->used;
    if (__builtin_expect(empty == 0 || !count_in(&index_table.slots[c->slot]), 0))
        return remember_hard(number, tag, group, c);
    write_candidate(b, (unsigned)__builtin_ctz(empty), tag, group, c);
    return true;
}

// One frame has one entry under a tag: what an earlier version of it left there goes.
static void drop_frame(struct index_bucket *b, unsigned set, hfn_t frame)
{
    set &= candidates(b);
    while (set != 0) {
        unsigned i = pop(&set);
        if (b->frame[i] == (uint32_t)frame.raw)
            drop_candidate(b, i);
    }
}

bool index_remember(uint64_t key, uint8_t group, const struct index_candidate *candidate)
{
    uint64_t number = index_number(key);
    struct index_bucket *b = index_bucket_at(number);
    unsigned set = matches(b, index_tag(key));
    if (__builtin_expect(set != 0, 0))
        drop_frame(b, set, candidate->frame);
    return remember(number, index_tag(key), group, candidate);
}

void index_forget(uint64_t key, const struct index_candidate *candidate)
{
    struct index_bucket *b = index_bucket_at(index_number(key));
    unsigned set = matches(b, index_tag(key)) & candidates(b);
    while (set != 0) {
        unsigned i = pop(&set);
        if (b->frame[i] == (uint32_t)candidate->frame.raw && b->version[i] == candidate->version &&
            b->slot[i] == candidate->slot)
            drop_candidate(b, i);
    }
}

// Some tag of the bucket matches.
__attribute__((noinline)) static enum index_answer
offer_matching(uint64_t number, unsigned set, uint32_t tag, uint8_t group,
               const struct index_candidate *self, struct index_partners *out)
{
    struct index_bucket *b = index_bucket_at(number);
    bool known;
    out->shared = find_shared(b, set, group, out->frame);
    out->found = find_candidate(b, set, group, self->frame, &out->candidate, &known);
    if (out->shared != 0 || out->found)
        return INDEX_PARTNERS;
    if (known)
        return INDEX_KNOWN;
    drop_frame(b, set, self->frame);
    return remember(number, tag, group, self) ? INDEX_REMEMBERED : INDEX_NO_PLACE;
}

enum index_answer index_offer(uint64_t key, uint8_t group, const struct index_candidate *self,
                              struct index_partners *out)
{
    uint64_t number = index_number(key);
    struct spinlock *lock = index_lock_of(number);
    enum index_answer answer;
    spin_lock(lock);
    unsigned set = matches(index_bucket_at(number), index_tag(key));
    if (__builtin_expect(set != 0, 0))
        answer = offer_matching(number, set, index_tag(key), group, self, out);
    else
        answer = remember(number, index_tag(key), group, self) ? INDEX_REMEMBERED : INDEX_NO_PLACE;
    spin_unlock(lock);
    return answer;
}

// --- Shared frames ---

bool index_add_shared(uint64_t key, uint8_t group, hfn_t frame)
{
    struct index_bucket *b = index_bucket_at(index_number(key));
    unsigned set = matches(b, index_tag(key));
    unsigned shared = set & b->shared;
    while (shared != 0)
        CHECK(b->frame[pop(&shared)] != (uint32_t)frame.raw);
    drop_frame(b, set, frame);
    unsigned empty = ALL & ~(unsigned)b->used;
    unsigned i;
    if (empty != 0) {
        i = (unsigned)__builtin_ctz(empty);
    } else if (candidates(b) != 0) {
        unsigned stale = stale_of(b, candidates(b));
        i = oldest(b, stale != 0 ? stale : candidates(b));
        drop_candidate(b, i);
    } else {
        return false;
    }
    write(b, i, index_tag(key), group, frame);
    b->shared = (uint8_t)(b->shared | 1u << i);
    atomic_fetch_add_explicit(&index_table.shared, 1, memory_order_relaxed);
    return true;
}

bool index_remove_shared(uint64_t key, hfn_t frame)
{
    struct index_bucket *b = index_bucket_at(index_number(key));
    unsigned set = matches(b, index_tag(key)) & b->shared;
    while (set != 0) {
        unsigned i = pop(&set);
        if (b->frame[i] != (uint32_t)frame.raw)
            continue;
        b->used = (uint8_t)(b->used & ~(1u << i));
        b->shared = (uint8_t)(b->shared & ~(1u << i));
        atomic_fetch_sub_explicit(&index_table.shared, 1, memory_order_relaxed);
        return true;
    }
    return false;
}
