// SPDX-License-Identifier: BSD-2-Clause
// sources: fusion/index.c fusion/index_table.c kernel/frames.c kernel/frame_buddy.c
// sources: kernel/frame_cache.c kernel/frame_zero.c kernel/frame_poison.c kernel/frame_account.c
// sources: kernel/frame_share.c kernel/heap.c kernel/lock.c kernel/frame_hold.c
// libs: -Wl,--wrap=frame_alloc
// The content index over the real frame allocator: whom it finds, whom it forgets, who may push out
// whom; every call of a random run is judged by a naive list of what was remembered.
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "fake.h"
#include "fusion/index_table.h"
#include "kernel/error.h"
#include "kernel/frames.h"
#include "kernel/heap.h"
#include "kernel/lock.h"
#include "kernel/percpu.h"

#define MACHINE_FRAMES 2048u // 8 MiB
#define VMS            4u
#define GROUP          3u

static struct frame *table;
static struct frame_account accounts[VMS];
static unsigned fail_at; // the n-th allocation from now fails; 0: none
static bool failed;

int __real_frame_alloc(enum frame_state state, unsigned order, unsigned flags,
                       struct frame_account *account, hfn_t *out);

int __wrap_frame_alloc(enum frame_state state, unsigned order, unsigned flags,
                       struct frame_account *account, hfn_t *out)
{
    if (fail_at != 0 && --fail_at == 0) {
        failed = true;
        return E_NOMEM;
    }
    return __real_frame_alloc(state, order, flags, account, out);
}

static uint64_t random_state;

static uint64_t random64(void)
{
    random_state += 0x9e3779b97f4a7c15;
    uint64_t z = random_state;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9;
    z = (z ^ z >> 27) * 0x94d049bb133111eb;
    return z ^ z >> 31;
}

static uint64_t count_in_state(enum frame_state state)
{
    struct frames_snapshot s;
    frames_snapshot(&s, NULL, 0, NULL, NULL);
    return s.count[state];
}

static void machine_of(uint64_t frames)
{
    fake_machine(frames * PAGE_SIZE, 2);
    free(table);
    table = calloc(1, frames_table_bytes(hpa(frames * PAGE_SIZE)));
    assert_non_null(table);
    frames_init(table, hpa(frames * PAGE_SIZE));
    frames_add(hfn(1), frames - 1, FRAME_FREE);
    heap_init();
    memset(accounts, 0, sizeof(accounts));
    fail_at = 0;
}

// A table with the number of buckets asked for.
static void start(uint64_t buckets)
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

static void finish(void)
{
    assert_true(spin_none_held());
    index_exit();
    free(table);
    table = NULL;
}

// A key in bucket `bucket` of `buckets` with that tag.
static uint64_t key_in(uint64_t bucket, uint32_t tag)
{
    uint64_t key = bucket * (UINT64_MAX / index_table.buckets + 1) + (UINT64_C(1) << 40);
    key = (key & ~UINT64_C(0xffffffff)) | tag;
    assert_int_equal(index_number(key), bucket);
    return key;
}

static hfn_t new_frame(uint8_t slot)
{
    hfn_t f;
    assert_int_equal(frame_alloc(FRAME_PRIVATE, 0, 0, &accounts[slot], &f), 0);
    return f;
}

static struct index_candidate candidate_of(hfn_t f, uint8_t slot)
{
    return (struct index_candidate){f, (uint32_t)frame_of(f)->version, slot};
}

static struct index_candidate new_candidate(uint8_t slot)
{
    return candidate_of(new_frame(slot), slot);
}

static bool remember(uint64_t key, uint8_t group, struct index_candidate c)
{
    index_lock(key);
    bool done = index_remember(key, group, &c);
    index_unlock(key);
    return done;
}

static void forget(uint64_t key, struct index_candidate c)
{
    index_lock(key);
    index_forget(key, &c);
    index_unlock(key);
}

static bool find(uint64_t key, uint8_t group, hfn_t self, struct index_candidate *out, bool *known)
{
    index_lock(key);
    bool found = index_candidate(key, group, self, out, known);
    index_unlock(key);
    return found;
}

// Whether that candidate is in the table, and live.
static bool has(uint64_t key, uint8_t group, struct index_candidate c)
{
    struct index_candidate other;
    bool known;
    find(key, group, c.frame, &other, &known);
    return known;
}

static unsigned shared_at(uint64_t key, uint8_t group, hfn_t *out)
{
    index_lock(key);
    unsigned n = index_shared(key, group, out);
    index_unlock(key);
    return n;
}

// As fusion does it: the frame is shared and named in the index under one lock.
static bool share(uint64_t key, uint8_t group, hfn_t f, uint8_t slot)
{
    index_lock(key);
    frame_share(f, &accounts[slot]);
    bool added = index_add_shared(key, group, f);
    index_unlock(key);
    return added;
}

static bool unshare(uint64_t key, hfn_t f, uint8_t slot)
{
    index_lock(key);
    bool removed = index_remove_shared(key, f);
    frame_share_take_last(f, &accounts[slot]);
    index_unlock(key);
    return removed;
}

static uint64_t count_of(uint8_t slot)
{
    struct index_counts counts;
    index_count(&counts);
    return counts.of_slot[slot];
}

// --- Memory ---

static void test_memory(void **state)
{
    (void)state;
    static const uint64_t buckets[] = {1, 31, 32, 33, 1000, 16383, 16384, 16385, 33000};
    for (unsigned i = 0; i < ARRAY_SIZE(buckets); i++) {
        machine_of(MACHINE_FRAMES);
        uint64_t before = count_in_state(FRAME_FREE);
        uint64_t needed = (buckets[i] * 128 + PAGE_SIZE - 1) / PAGE_SIZE;
        assert_int_equal(index_init((buckets[i] - 1) * 6 + 5), 0);
        // The table in frames, nothing of it rounded up, and one frame of the heap's.
        assert_int_equal(before - count_in_state(FRAME_FREE), needed + 1);
        struct index_counts counts;
        index_count(&counts);
        assert_int_equal(counts.buckets, buckets[i]);
        // The first and the last bucket are there and empty.
        index_set_quota(0, 10);
        const uint64_t ends[] = {0, UINT64_MAX};
        for (unsigned e = 0; e < 2; e++) {
            struct index_candidate c = new_candidate(0);
            assert_false(has(ends[e], GROUP, c));
            assert_true(remember(ends[e], GROUP, c));
            assert_true(has(ends[e], GROUP, c));
            frame_free(c.frame, 0, &accounts[0]);
        }
        index_exit();
        assert_int_equal(count_in_state(FRAME_FREE), before);
    }
    finish();
}

static void test_init_failures(void **state)
{
    (void)state;
    unsigned n = 1;
    do {
        machine_of(MACHINE_FRAMES);
        uint64_t before = count_in_state(FRAME_FREE);
        fail_at = n;
        failed = false;
        int status = index_init(33000 * 6);
        fail_at = 0;
        assert_int_equal(status, failed ? E_NOMEM : 0);
        if (failed) {
            assert_int_equal(count_in_state(FRAME_FREE), before);
            assert_int_equal(index_init(33000 * 6), 0);
        }
        index_exit();
        assert_int_equal(count_in_state(FRAME_FREE), before);
        n++;
    } while (failed);
    assert_int_equal(n, 6); // the directory and three blocks
    // Really too little memory.
    machine_of(512);
    uint64_t before = count_in_state(FRAME_FREE);
    assert_int_equal(index_init(33000 * 6), E_NOMEM);
    assert_int_equal(count_in_state(FRAME_FREE), before);
    finish();
}

// --- Keys ---

static void test_keys(void **state)
{
    (void)state;
    start(4096);
    // Hashes that differ in few bits, six for each bucket.
    static uint8_t load[4096];
    static const unsigned shifts[] = {0, 7, 20, 40, 49};
    for (unsigned s = 0; s < ARRAY_SIZE(shifts); s++) {
        memset(load, 0, sizeof(load));
        for (uint64_t i = 0; i < 4096 * 6; i++)
            load[index_number(index_key(i << shifts[s], GROUP))]++;
        unsigned empty = 0, over = 0;
        for (unsigned b = 0; b < 4096; b++) {
            empty += load[b] == 0;
            over += load[b] > INDEX_BUCKET;
            assert_true(load[b] < 24);
        }
        // Poisson, mean 6: P(0) = 0.25 %, P(> 8) = 15.3 %.
        assert_in_range(empty, 1, 30);
        assert_in_range(over, 500, 760);
    }
    // Tags say something new within one bucket, and every group has keys of its own.
    uint32_t tags[64];
    unsigned n = 0;
    for (uint64_t i = 0; n < 64; i++) {
        uint64_t key = index_key(i, GROUP);
        if (index_number(key) == 17)
            tags[n++] = index_tag(key);
    }
    for (unsigned i = 0; i < n; i++)
        for (unsigned j = 0; j < i; j++)
            assert_int_not_equal(tags[i], tags[j]);
    for (unsigned g = 0; g < 256; g++)
        for (unsigned h = 0; h < g; h++)
            assert_true(index_key(0x1234, (uint8_t)g) != index_key(0x1234, (uint8_t)h));
    finish();
}

// --- Finding and forgetting ---

static void test_candidates(void **state)
{
    (void)state;
    start(4);
    uint64_t key = key_in(1, 0x1111);
    struct index_candidate a = new_candidate(0), b = new_candidate(1), out;
    bool known = true;
    assert_false(find(key, GROUP, a.frame, &out, &known));
    assert_false(known);
    assert_true(remember(key, GROUP, a));
    assert_false(find(key, GROUP, a.frame, &out, &known)); // not its own partner
    assert_true(known);
    assert_true(find(key, GROUP, b.frame, &out, &known));
    assert_false(known);
    assert_int_equal(out.frame.raw, a.frame.raw);
    assert_int_equal(out.version, a.version);
    assert_int_equal(out.slot, 0);
    // Another key: other bucket, or other tag in the same one.
    assert_false(find(key_in(2, 0x1111), GROUP, b.frame, &out, &known));
    assert_false(find(key_in(1, 0x1112), GROUP, b.frame, &out, &known));
    // Another group, even with the same key.
    assert_false(find(key, GROUP + 1, b.frame, &out, &known));
    assert_false(find(key, GROUP + 1, a.frame, &out, &known));
    assert_false(known);
    // Remembered twice it is there once.
    assert_true(remember(key, GROUP, a));
    assert_int_equal(count_of(0), 1);
    // Both there: each has the other for a partner.
    assert_true(remember(key, GROUP, b));
    assert_true(find(key, GROUP, a.frame, &out, &known));
    assert_true(known);
    assert_int_equal(out.frame.raw, b.frame.raw);
    assert_int_equal(out.slot, 1);
    // Only exactly that candidate is forgotten.
    struct index_candidate wrong = a;
    wrong.version++;
    forget(key, wrong);
    wrong = a;
    wrong.slot = 1;
    forget(key, wrong);
    forget(key_in(1, 0x1112), a);
    assert_true(has(key, GROUP, a));
    forget(key, a);
    assert_false(has(key, GROUP, a));
    assert_true(has(key, GROUP, b));
    assert_int_equal(count_of(0), 0);
    assert_int_equal(count_of(1), 1);
    // The tag zero is a tag like others: an empty entry does not look like it.
    assert_false(find(key_in(1, 0), 0, b.frame, &out, &known));
    assert_true(remember(key_in(1, 0), 0, a));
    assert_true(has(key_in(1, 0), 0, a));
    finish();
}

enum ending { END_VERSION, END_FREE, END_OTHER_OWNER, END_SHARED, END_SHARED_AND_BACK, ENDINGS };

static void end_binding(hfn_t f, uint8_t slot, enum ending how)
{
    hfn_t again;
    switch (how) {
    case END_VERSION:
        frame_end_version(f);
        break;
    case END_FREE:
        frame_free(f, 0, &accounts[slot]);
        break;
    case END_OTHER_OWNER:
        frame_free(f, 0, &accounts[slot]);
        assert_int_equal(frame_alloc(FRAME_PRIVATE, 0, 0, &accounts[2], &again), 0);
        assert_int_equal(again.raw, f.raw); // the cache's last one
        break;
    case END_SHARED:
        frame_share(f, &accounts[slot]);
        break;
    default:
        frame_share(f, &accounts[slot]);
        frame_share_take_last(f, &accounts[slot]);
        break;
    }
}

// An entry ends with its frame's version, whatever ended that (invariant 5), and its place is free.
static void test_staleness(void **state)
{
    (void)state;
    for (enum ending how = 0; how < ENDINGS; how++) {
        start(4);
        uint64_t key = key_in(2, 77);
        struct index_candidate a = new_candidate(0), b = new_candidate(1), out;
        bool known;
        assert_true(remember(key, GROUP, a));
        end_binding(a.frame, 0, how);
        assert_int_equal(count_of(0), 1); // nobody has looked yet
        assert_false(find(key, GROUP, b.frame, &out, &known));
        assert_int_equal(count_of(0), 0); // whoever finds it stale takes it out
        assert_false(find(key, GROUP, a.frame, &out, &known));
        assert_false(known);
        finish();

        // A full bucket: a stale entry makes room for anybody, without a look-up of its key.
        start(4);
        struct index_candidate eight[INDEX_BUCKET];
        for (unsigned i = 0; i < INDEX_BUCKET; i++) {
            eight[i] = new_candidate(0);
            assert_true(remember(key_in(2, i), GROUP, eight[i]));
        }
        b = new_candidate(1);
        assert_false(remember(key, GROUP, b));
        end_binding(eight[5].frame, 0, how);
        assert_true(remember(key, GROUP, b));
        assert_int_equal(count_of(0), 7);
        assert_int_equal(count_of(1), 1);
        for (unsigned i = 0; i < INDEX_BUCKET; i++)
            assert_int_equal(has(key_in(2, i), GROUP, eight[i]), i != 5);
        finish();
    }
    // The new version of the same frame under the same key: one entry, the new one. Also when the
    // frame is another VM's by now.
    start(4);
    uint64_t key = key_in(3, 5);
    struct index_candidate old = new_candidate(0);
    assert_true(remember(key, GROUP, old));
    end_binding(old.frame, 0, END_OTHER_OWNER);
    struct index_candidate new = candidate_of(old.frame, 2);
    assert_true(remember(key, GROUP, new));
    assert_int_equal(count_of(0), 0);
    assert_int_equal(count_of(2), 1);
    assert_true(has(key, GROUP, new));
    // A frame that is nobody's private one is no candidate, whatever its version.
    struct index_candidate shared = new_candidate(0);
    frame_share(shared.frame, &accounts[0]);
    shared = candidate_of(shared.frame, 0);
    assert_true(remember(key_in(0, 5), GROUP, shared));
    assert_false(has(key_in(0, 5), GROUP, shared));
    // Only 32 bits of the version are kept.
    frame_of(old.frame)->version += UINT64_C(1) << 32;
    assert_true(has(key, GROUP, new));
    finish();
}

// --- Shared frames ---

static void test_shared(void **state)
{
    (void)state;
    start(4);
    uint64_t key = key_in(0, 9);
    hfn_t out[INDEX_BUCKET], frame[INDEX_BUCKET];
    struct index_candidate c = new_candidate(0), found;
    bool known;
    assert_int_equal(shared_at(key, GROUP, out), 0);
    assert_true(remember(key, GROUP, c));
    assert_true(share(key, GROUP, c.frame, 0)); // takes its own entry's place
    assert_int_equal(count_of(0), 0);
    assert_false(find(key, GROUP, hfn(1), &found, &known));
    assert_int_equal(shared_at(key, GROUP, out), 1);
    assert_int_equal(out[0].raw, c.frame.raw);
    assert_int_equal(shared_at(key, GROUP + 1, out), 0);
    assert_int_equal(shared_at(key_in(0, 8), GROUP, out), 0);
    assert_int_equal(shared_at(key_in(1, 9), GROUP, out), 0);
    // A candidate's removal does not touch it.
    forget(key, c);
    assert_int_equal(shared_at(key, GROUP, out), 1);
    assert_false(unshare(key_in(0, 8), c.frame, 0)); // a wrong key
    // Named a second time, it would outlive its removal.
    frame_share(c.frame, &accounts[0]);
    assert_true(fake_expect_panic(index_add_shared(key, GROUP, c.frame)));
    assert_true(unshare(key, c.frame, 0));
    assert_int_equal(shared_at(key, GROUP, out), 0);

    // Seven candidates of other VMs, live: a shared frame takes the oldest's place, one by one.
    struct index_candidate eight[INDEX_BUCKET];
    for (unsigned i = 0; i < INDEX_BUCKET; i++) {
        eight[i] = new_candidate(1);
        assert_true(remember(key_in(0, 100 + i), GROUP, eight[i]));
    }
    frame_end_version(eight[6].frame); // and before all a stale one's
    for (unsigned i = 0; i < INDEX_BUCKET; i++) {
        frame[i] = new_frame(0);
        assert_true(share(key, GROUP, frame[i], 0));
        assert_int_equal(shared_at(key, GROUP, out), i + 1);
        for (unsigned j = 0; j < INDEX_BUCKET; j++)
            assert_int_equal(has(key_in(0, 100 + j), GROUP, eight[j]),
                             j != 6 && j >= i + (j > 6 ? 1 : 0));
        if (i == 0)
            assert_false(has(key_in(0, 106), GROUP, eight[6]));
    }
    assert_int_equal(count_of(1), 0);
    // Eight fill the bucket: the ninth cannot be found, and a candidate has no place.
    hfn_t ninth = new_frame(2);
    assert_false(share(key, GROUP, ninth, 2));
    assert_int_equal(shared_at(key, GROUP, out), INDEX_BUCKET);
    assert_false(remember(key, GROUP, new_candidate(2)));
    assert_int_equal(count_of(2), 0);
    assert_false(unshare(key, ninth, 2));
    // When one leaves there is room again.
    assert_true(unshare(key, frame[3], 0));
    assert_true(share(key, GROUP, ninth, 2));
    struct index_counts counts;
    index_count(&counts);
    assert_int_equal(counts.shared, INDEX_BUCKET);
    assert_int_equal(counts.candidates, 0);
    // An entry whose frame stopped being shared first is a broken invariant.
    frame_of(ninth)->state = FRAME_PRIVATE;
    assert_true(fake_expect_panic(shared_at(key, GROUP, out)));
    memset(cpus[0].lock_nesting, 0, sizeof(cpus[0].lock_nesting)); // left behind by the panic
    cpus[0].lock_ranks = cpus[0].locks_held = 0;
    finish();
}

// --- Who may push out whom ---

// A hostile VM with as many pages of one key as it likes.
static void test_made_collisions(void **state)
{
    (void)state;
    start(4);
    uint64_t key = key_in(1, 42);
    struct index_candidate victim[3], hostile[40];
    hfn_t shared = new_frame(0), out[INDEX_BUCKET];
    assert_true(share(key, GROUP, shared, 0));
    for (unsigned i = 0; i < 3; i++) {
        victim[i] = new_candidate((uint8_t)(i % 2));
        assert_true(remember(key, GROUP, victim[i]));
    }
    for (unsigned i = 0; i < 40; i++) {
        hostile[i] = new_candidate(2);
        assert_true(remember(key, GROUP, hostile[i]));
        assert_int_equal(count_of(2), MIN(i + 1, 4));
        for (unsigned v = 0; v < 3; v++)
            assert_true(has(key, GROUP, victim[v]));
        assert_int_equal(shared_at(key, GROUP, out), 1);
        // Of its own, the youngest four are kept.
        for (unsigned j = 0; j <= i; j++)
            assert_int_equal(has(key, GROUP, hostile[j]), j + 4 > i);
    }
    // Without an entry of its own in a full bucket nobody gets one.
    struct index_candidate late = new_candidate(3);
    assert_false(remember(key, GROUP, late));
    assert_int_equal(count_of(3), 0);
    for (unsigned v = 0; v < 3; v++)
        assert_true(has(key, GROUP, victim[v]));
    finish();
}

// The bucket's sequence number wraps; who is oldest stays true.
static void test_ages(void **state)
{
    (void)state;
    start(1);
    struct index_candidate c[INDEX_BUCKET];
    for (unsigned i = 0; i < 2000; i++) {
        unsigned at = i % INDEX_BUCKET;
        if (i >= INDEX_BUCKET)
            assert_true(has(7, GROUP, c[at]));
        struct index_candidate new = new_candidate(0);
        assert_true(remember(7, GROUP, new));
        if (i >= INDEX_BUCKET) {
            assert_false(has(7, GROUP, c[at]));
            frame_free(c[at].frame, 0, &accounts[0]);
        }
        c[at] = new;
        for (unsigned j = 0; j < MIN(i, INDEX_BUCKET); j++)
            assert_true(has(7, GROUP, c[j]));
    }
    assert_int_equal(count_of(0), INDEX_BUCKET);
    finish();
}

static void test_quota(void **state)
{
    (void)state;
    start(64);
    index_set_quota(0, 5);
    struct index_candidate c[5], other = new_candidate(1), out;
    bool known;
    for (unsigned i = 0; i < 5; i++) {
        c[i] = new_candidate(0);
        assert_true(remember(key_in(10 * i, 1), GROUP, c[i])); // buckets 0, 10, 20, 30, 40
    }
    assert_true(remember(key_in(20, 2), GROUP, other));
    // An own entry in the bucket makes room, though places are free.
    struct index_candidate d = new_candidate(0);
    assert_true(remember(key_in(20, 3), GROUP, d));
    assert_false(has(key_in(20, 1), GROUP, c[2]));
    assert_true(has(key_in(20, 2), GROUP, other));
    assert_int_equal(count_of(0), 5);
    // Else the sweep: from bucket 0 on, that of c[0] goes.
    struct index_candidate e = new_candidate(0);
    assert_true(remember(key_in(55, 1), GROUP, e));
    assert_false(has(key_in(0, 1), GROUP, c[0]));
    assert_int_equal(count_of(0), 5);
    // The hand stands at 1 now: 10, then 20 (d), 30 and 40.
    struct index_candidate more[6];
    const struct index_candidate *gone[] = {&c[1], &d, &c[3], &c[4]};
    const uint64_t gone_key[] = {key_in(10, 1), key_in(20, 3), key_in(30, 1), key_in(40, 1)};
    for (unsigned i = 0; i < 4; i++) {
        more[i] = new_candidate(0);
        assert_true(remember(key_in(56 + i, 1), GROUP, more[i]));
        for (unsigned j = 0; j < 4; j++)
            assert_int_equal(has(gone_key[j], GROUP, *gone[j]), j > i);
        assert_int_equal(count_of(0), 5);
    }
    // All five are in buckets 55 to 59, the hand at 41: one entry within 16 buckets.
    more[4] = new_candidate(0);
    assert_true(remember(key_in(0, 1), GROUP, more[4]));
    assert_false(has(key_in(55, 1), GROUP, e));
    // Too far away: the hand has gone on by 16 buckets each time, and a later one is remembered.
    for (unsigned i = 0; i < 4; i++)
        forget(key_in(56 + i, 1), more[i]);
    assert_int_equal(count_of(0), 1); // that in bucket 0, the hand at 56
    index_set_quota(0, 1);
    more[5] = new_candidate(0);
    assert_true(remember(key_in(1, 1), GROUP, more[5])); // 56 to 63, then 0
    assert_false(has(key_in(0, 1), GROUP, more[4]));
    unsigned tries = 1;
    forget(key_in(1, 1), more[5]);
    assert_true(remember(key_in(0, 1), GROUP, more[4])); // behind the hand, which is at 1
    while (!remember(key_in(33, 1), GROUP, more[5])) {
        assert_true(has(key_in(0, 1), GROUP, more[4]));
        assert_int_equal(count_of(0), 1);
        tries++;
    }
    assert_int_equal(tries, 4); // 63 buckets to go
    // One call looks at 16 buckets and no more.
    index_set_quota(2, 1);
    struct index_candidate far = new_candidate(2), near = new_candidate(2);
    assert_true(remember(key_in(16, 1), GROUP, far));
    assert_false(remember(key_in(50, 1), GROUP, near)); // 0 to 15
    forget(key_in(16, 1), far);
    assert_true(remember(key_in(31, 1), GROUP, far));
    assert_true(remember(key_in(50, 1), GROUP, near)); // 16 to 31
    // A smaller quota than what is there: it only gets less by and by; a zero one admits nothing.
    index_set_quota(1, 0);
    struct index_candidate f = new_candidate(1);
    assert_false(remember(key_in(40, 3), GROUP, f)); // hand: 0 to 15; its own is in 20
    assert_true(remember(key_in(40, 3), GROUP, f));
    assert_false(find(key_in(20, 2), GROUP, hfn(1), &out, &known));
    assert_int_equal(count_of(1), 1);
    finish();
}

// A stale entry of the own VM goes before a live one, in the bucket and in the sweep.
static void test_quota_stale(void **state)
{
    (void)state;
    start(64);
    index_set_quota(0, 3);
    struct index_candidate c[3], d = new_candidate(0), e = new_candidate(0);
    for (unsigned i = 0; i < 3; i++) {
        c[i] = new_candidate(0);
        assert_true(remember(key_in(5, i), GROUP, c[i]));
    }
    frame_end_version(c[1].frame);
    assert_true(remember(key_in(5, 9), GROUP, d));
    assert_true(has(key_in(5, 0), GROUP, c[0]));
    assert_true(has(key_in(5, 2), GROUP, c[2]));
    frame_end_version(c[2].frame);
    assert_true(remember(key_in(60, 0), GROUP, e));
    assert_true(has(key_in(5, 0), GROUP, c[0]));
    assert_true(has(key_in(5, 9), GROUP, d));
    assert_int_equal(count_of(0), 3);
    // Another VM's stale entry is no way round the quota.
    struct index_candidate eight[INDEX_BUCKET];
    for (unsigned i = 0; i < INDEX_BUCKET; i++) {
        eight[i] = new_candidate(1);
        assert_true(remember(key_in(30, i), GROUP, eight[i]));
    }
    frame_end_version(eight[0].frame);
    assert_false(remember(key_in(30, 100), GROUP, new_candidate(0))); // hand: 6 to 21
    assert_int_equal(count_of(0), 3);
    assert_int_equal(count_of(1), 8);
    finish();
}

// Another CPU holds the lock of the bucket that the sweep comes to: nobody waits for a second one.
static void test_sweep_and_locks(void **state)
{
    (void)state;
    start(1024);
    index_set_quota(0, 2);
    struct index_candidate a = new_candidate(0), b = new_candidate(0), c = new_candidate(0);
    assert_true(remember(key_in(3, 1), GROUP, a));
    assert_true(remember(key_in(4, 1), GROUP, b));
    fake_set_cpu(1);
    index_lock(key_in(3, 1));
    fake_set_cpu(0);
    assert_true(remember(key_in(300, 1), GROUP, c));
    fake_set_cpu(1);
    index_unlock(key_in(3, 1));
    assert_true(spin_none_held());
    fake_set_cpu(0);
    assert_true(has(key_in(3, 1), GROUP, a));
    assert_false(has(key_in(4, 1), GROUP, b));
    assert_int_equal(count_of(0), 2);
    // A bucket under the lock that is held already (256 stripes) is swept without it.
    struct index_candidate d = new_candidate(0), e = new_candidate(0);
    forget(key_in(3, 1), a);
    assert_true(remember(key_in(6, 1), GROUP, d));
    assert_true(remember(key_in(6 + INDEX_STRIPES, 1), GROUP, e));
    assert_false(has(key_in(6, 1), GROUP, d));
    assert_true(has(key_in(300, 1), GROUP, c));
    finish();
}

// --- The combined call ---

static void test_offer(void **state)
{
    (void)state;
    start(4);
    index_set_quota(2, 1);
    uint64_t key = key_in(1, 42);
    struct index_partners out;
    struct index_candidate a = new_candidate(0), b = new_candidate(1), c = new_candidate(2);
    assert_int_equal(index_offer(key, GROUP, &a, &out), INDEX_REMEMBERED);
    assert_int_equal(index_offer(key, GROUP, &a, &out), INDEX_KNOWN);
    assert_int_equal(count_of(0), 1);
    assert_int_equal(index_offer(key, GROUP, &b, &out), INDEX_PARTNERS);
    assert_int_equal(out.shared, 0);
    assert_true(out.found);
    assert_int_equal(out.candidate.frame.raw, a.frame.raw);
    assert_int_equal(out.candidate.version, a.version);
    assert_int_equal(out.candidate.slot, 0);
    assert_int_equal(count_of(1), 0); // was not remembered
    // Another group has no partner there, and is remembered beside.
    assert_int_equal(index_offer(key, GROUP + 1, &c, &out), INDEX_REMEMBERED);
    assert_int_equal(index_offer(key, GROUP + 1, &c, &out), INDEX_KNOWN);
    assert_int_equal(index_offer(key_in(2, 5), GROUP, &c, &out), INDEX_REMEMBERED); // swept
    assert_int_equal(index_offer(key_in(2, 5), GROUP, &c, &out), INDEX_KNOWN);
    assert_int_equal(count_of(2), 1);
    // A VM that changed its group: its frames leave the old one, with one entry each.
    struct index_candidate d = new_candidate(3);
    assert_int_equal(index_offer(key_in(0, 7), GROUP, &d, &out), INDEX_REMEMBERED);
    assert_int_equal(index_offer(key_in(0, 7), GROUP + 1, &d, &out), INDEX_REMEMBERED);
    assert_false(has(key_in(0, 7), GROUP, d));
    assert_true(has(key_in(0, 7), GROUP + 1, d));
    assert_int_equal(count_of(3), 1);
    // A new version of the same frame is remembered in the old one's place.
    frame_end_version(a.frame);
    struct index_candidate again = candidate_of(a.frame, 0);
    assert_int_equal(index_offer(key, GROUP, &again, &out), INDEX_REMEMBERED);
    assert_int_equal(count_of(0), 1);
    // Shared frames and a candidate at once.
    hfn_t shared[2] = {new_frame(1), new_frame(1)};
    assert_true(share(key, GROUP, shared[0], 1));
    assert_true(share(key, GROUP, shared[1], 1));
    assert_int_equal(index_offer(key, GROUP, &b, &out), INDEX_PARTNERS);
    assert_int_equal(out.shared, 2);
    assert_int_equal(out.frame[0].raw + out.frame[1].raw, shared[0].raw + shared[1].raw);
    assert_true(out.found);
    forget(key, again);
    assert_int_equal(index_offer(key, GROUP, &b, &out), INDEX_PARTNERS);
    assert_int_equal(out.shared, 2);
    assert_false(out.found);
    // No place: full of others' live ones.
    for (unsigned i = 0; i < INDEX_BUCKET; i++)
        assert_true(remember(key_in(3, i), GROUP, new_candidate(0)));
    assert_int_equal(index_offer(key_in(3, 99), GROUP, &b, &out), INDEX_NO_PLACE);
    assert_int_equal(index_offer(key_in(3, 0), GROUP + 1, &b, &out), INDEX_NO_PLACE);
    assert_int_equal(count_of(1), 0);
    struct index_candidate stranger = {b.frame, b.version, INDEX_SLOTS};
    assert_true(fake_expect_panic(index_offer(key_in(0, 0), GROUP, &stranger, &out)));
    memset(cpus[0].lock_nesting, 0, sizeof(cpus[0].lock_nesting)); // left behind by the panic
    cpus[0].lock_ranks = cpus[0].locks_held = 0;
    finish();
}

// --- Random runs against a list ---

#define PAGES   48u
#define BUCKETS 4u

static struct page {
    hfn_t frame;
    uint8_t slot;
    bool exists, shared, indexed;
    // Under which key and version it was remembered or shared last.
    uint64_t key;
    uint8_t group;
    bool remembered, member;
    struct index_candidate as;
} pages[PAGES];

static uint64_t random_key(void)
{
    uint64_t r = random64();
    return key_in(r % BUCKETS, (uint32_t)(r >> 8) % 5);
}

static bool is_live(const struct page *p)
{
    return p->exists && !p->shared && (uint32_t)frame_of(p->frame)->version == p->as.version;
}

static void note(struct page *p, uint64_t key, uint8_t group)
{
    p->key = key;
    p->group = group;
    p->as = candidate_of(p->frame, p->slot);
    p->remembered = true;
}

// The occupancy of a bucket as the list has it: exact but for stale entries that were taken out.
static unsigned occupants(uint64_t bucket, int slot)
{
    unsigned n = 0;
    for (unsigned i = 0; i < PAGES; i++) {
        const struct page *p = &pages[i];
        if (index_number(p->key) != bucket)
            continue;
        n += p->shared ? p->indexed && slot < 0
                       : p->member && is_live(p) && (slot < 0 || p->slot == slot);
    }
    return n;
}

// Compares table and list; losses, where the list says "member" and the table does not, must be
// stale, or belong to `loser` (-1: none may be lost), at most one.
static void judge(int loser, bool any_loser)
{
    unsigned lost = 0;
    uint64_t live[VMS] = {0}, shared = 0;
    for (unsigned i = 0; i < PAGES; i++) {
        struct page *p = &pages[i];
        hfn_t out[INDEX_BUCKET];
        if (p->shared) {
            unsigned n = shared_at(p->key, p->group, out), seen = 0, expected = 0;
            for (unsigned j = 0; j < n; j++)
                seen += out[j].raw == p->frame.raw;
            for (unsigned j = 0; j < PAGES; j++)
                expected += pages[j].shared && pages[j].indexed && pages[j].key == p->key &&
                            pages[j].group == p->group;
            assert_int_equal(seen, p->indexed);
            assert_int_equal(n, expected);
            shared += p->indexed;
            continue;
        }
        if (!p->remembered)
            continue;
        bool now = has(p->key, p->group, p->as);
        if (!is_live(p)) {
            assert_false(now);
        } else if (p->member && !now) {
            assert_true(any_loser || p->slot == loser);
            lost++;
        } else {
            assert_int_equal(now, p->member);
        }
        p->member = now;
        live[p->slot] += now;
        // A partner is live, of this key and group, and not itself.
        struct index_candidate c;
        bool known;
        if (find(p->key, p->group, p->frame, &c, &known)) {
            bool seen = false;
            for (unsigned j = 0; j < PAGES; j++)
                seen |= j != i && pages[j].frame.raw == c.frame.raw && is_live(&pages[j]) &&
                        pages[j].key == p->key && pages[j].group == p->group &&
                        pages[j].slot == c.slot && pages[j].as.version == c.version;
            assert_true(seen);
        }
    }
    assert_true(lost <= 1);
    struct index_counts counts;
    index_count(&counts);
    assert_int_equal(counts.shared, shared);
    for (unsigned s = 0; s < VMS; s++) {
        assert_true(counts.of_slot[s] >= live[s]);
        assert_true(counts.of_slot[s] <= index_table.slots[s].quota);
    }
}

static void step_remember(struct page *p)
{
    uint64_t key = random_key(), bucket = index_number(key);
    uint8_t group = (uint8_t)(random64() % 2);
    // A page has one entry at a time in these runs: the old one is forgotten first.
    if (p->remembered)
        forget(p->key, p->as);
    p->member = false;
    judge(-1, false);
    bool full = occupants(bucket, -1) == INDEX_BUCKET;
    bool own = occupants(bucket, p->slot) != 0;
    bool quota_left = count_of(p->slot) < index_table.slots[p->slot].quota;
    note(p, key, group);
    bool done;
    if (random64() % 2 == 0) {
        done = remember(key, group, p->as);
    } else {
        struct index_partners out;
        enum index_answer answer = index_offer(key, group, &p->as, &out);
        assert_int_not_equal(answer, INDEX_KNOWN);
        if (answer == INDEX_PARTNERS) {
            p->remembered = false;
            judge(-1, false);
            return;
        }
        done = answer == INDEX_REMEMBERED;
    }
    // BUCKETS is less than a sweep: whoever is at the quota always finds an entry to give up.
    assert_int_equal(done, own || !full);
    p->member = done;
    judge(full || !quota_left ? p->slot : -1, false);
}

static void step(void)
{
    struct page *p = &pages[random64() % PAGES];
    unsigned what = (unsigned)(random64() % 16);
    if (!p->exists) {
        *p = (struct page){.exists = true, .slot = (uint8_t)(random64() % VMS)};
        p->frame = new_frame(p->slot);
    } else if (p->shared) {
        if (what < 4) {
            assert_int_equal(unshare(p->key, p->frame, p->slot), p->indexed);
            p->shared = p->remembered = false;
        }
    } else if (what == 0) {
        frame_free(p->frame, 0, &accounts[p->slot]);
        p->exists = p->remembered = false;
    } else if (what == 1) {
        frame_end_version(p->frame);
    } else if (what == 2 && p->remembered) {
        forget(p->key, p->as);
        p->remembered = p->member = false;
    } else if (what == 3) {
        // Under the key it was remembered with, or another one.
        bool same = p->remembered && random64() % 2 == 0;
        uint64_t key = same ? p->key : random_key();
        bool member = same && p->member && is_live(p);
        unsigned shared_before = 0;
        for (unsigned i = 0; i < PAGES; i++)
            shared_before += pages[i].shared && pages[i].indexed &&
                             index_number(pages[i].key) == index_number(key);
        bool full = occupants(index_number(key), -1) == INDEX_BUCKET && !member;
        p->indexed = share(key, (uint8_t)(random64() % 2), p->frame, p->slot);
        // The group is the table's word only: take it from there.
        p->shared = true;
        p->remembered = p->member = false;
        p->key = key;
        hfn_t out[INDEX_BUCKET];
        p->group = 1;
        for (unsigned i = shared_at(key, 0, out); i-- > 0;)
            p->group = out[i].raw == p->frame.raw ? 0 : p->group;
        assert_int_equal(p->indexed, shared_before < INDEX_BUCKET);
        judge(-1, full && p->indexed);
        return;
    } else {
        step_remember(p);
        return;
    }
    judge(-1, false);
}

static void test_random(void **state)
{
    (void)state;
    for (uint64_t seed = 1; seed <= 300; seed++) {
        random_state = seed;
        start(BUCKETS);
        memset(pages, 0, sizeof(pages));
        for (uint8_t s = 0; s < VMS; s++)
            index_set_quota(s, seed % 3 == 0 ? 1000 : 1 + random64() % 12);
        for (unsigned i = 0; i < 400; i++)
            step();
        finish();
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_memory),
        cmocka_unit_test(test_init_failures),
        cmocka_unit_test(test_keys),
        cmocka_unit_test(test_candidates),
        cmocka_unit_test(test_staleness),
        cmocka_unit_test(test_shared),
        cmocka_unit_test(test_made_collisions),
        cmocka_unit_test(test_ages),
        cmocka_unit_test(test_quota),
        cmocka_unit_test(test_quota_stale),
        cmocka_unit_test(test_sweep_and_locks),
        cmocka_unit_test(test_offer),
        cmocka_unit_test(test_random),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
