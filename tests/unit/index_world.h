// SPDX-License-Identifier: BSD-2-Clause
// The content index over the real frame allocator: a table of as many buckets as a test wants, keys
// of a bucket, and each call under its lock.
#pragma once

#include "frame_failures.h"
#include "frames_machine.h"
#include "fusion/index_table.h"
#include "kernel/heap.h"
#include "kernel/lock.h"
#include "kernel/percpu.h"

#define MACHINE_FRAMES 2048u // 8 MiB
#define VMS            4u
#define GROUP          3u

static struct frame_account accounts[VMS];

static inline void machine_of(uint64_t frames)
{
    frames_machine(frames, 2);
    heap_init();
    memset(accounts, 0, sizeof(accounts));
    fail_at = 0;
}

// A table with the number of buckets asked for.
static inline void start(uint64_t buckets)
{
    machine_of(MACHINE_FRAMES);
    assert_int_equal(index_init((buckets - 1) * 6), 0);
    struct index_counts counts;
    index_count(&counts);
    assert_int_equal(counts.buckets, buckets);
    assert_int_equal(counts.shared + counts.candidates, 0);
    for (uint8_t slot = 0; slot < VMS; slot++)
        index_set_quota(slot, 1000);
}

static inline void finish(void)
{
    assert_true(spin_none_held());
    index_exit();
    frames_machine_end();
}

// A key in bucket `bucket` of `buckets` with that tag.
static inline uint64_t key_in(uint64_t bucket, uint32_t tag)
{
    uint64_t key = bucket * (UINT64_MAX / index_table.buckets + 1) + (UINT64_C(1) << 40);
    key = (key & ~UINT64_C(0xffffffff)) | tag;
    assert_int_equal(index_number(key), bucket);
    return key;
}

static inline hfn_t new_frame(uint8_t slot)
{
    hfn_t f;
    assert_int_equal(frame_alloc(FRAME_PRIVATE, 0, 0, &accounts[slot], &f), 0);
    return f;
}

static inline struct index_candidate candidate_of(hfn_t f, uint8_t slot)
{
    return (struct index_candidate){f, (uint32_t)frame_of(f)->version, slot};
}

static inline struct index_candidate new_candidate(uint8_t slot)
{
    return candidate_of(new_frame(slot), slot);
}

static inline bool remember(uint64_t key, uint8_t group, struct index_candidate c)
{
    index_lock(key);
    bool done = index_remember(key, group, &c);
    index_unlock(key);
    return done;
}

static inline void forget(uint64_t key, struct index_candidate c)
{
    index_lock(key);
    index_forget(key, &c);
    index_unlock(key);
}

static inline bool find(uint64_t key, uint8_t group, hfn_t self, struct index_candidate *out,
                        bool *known)
{
    index_lock(key);
    bool found = index_candidate(key, group, self, out, known);
    index_unlock(key);
    return found;
}

// Whether that candidate is in the table, and live.
static inline bool has(uint64_t key, uint8_t group, struct index_candidate c)
{
    struct index_candidate other;
    bool known;
    find(key, group, c.frame, &other, &known);
    return known;
}

static inline unsigned shared_at(uint64_t key, uint8_t group, hfn_t *out)
{
    index_lock(key);
    unsigned n = index_shared(key, group, out);
    index_unlock(key);
    return n;
}

// As fusion does it: the frame is shared and named in the index under one lock.
static inline bool share(uint64_t key, uint8_t group, hfn_t f, uint8_t slot)
{
    index_lock(key);
    frame_share(f, &accounts[slot]);
    bool added = index_add_shared(key, group, f);
    index_unlock(key);
    return added;
}

static inline bool unshare(uint64_t key, hfn_t f, uint8_t slot)
{
    index_lock(key);
    bool removed = index_remove_shared(key, f);
    frame_share_take_last(f, &accounts[slot]);
    index_unlock(key);
    return removed;
}

static inline uint64_t count_of(uint8_t slot)
{
    struct index_counts counts;
    index_count(&counts);
    return counts.of_slot[slot];
}
