// SPDX-License-Identifier: BSD-2-Clause
// sources: fusion/index.c fusion/index_table.c kernel/frames.c kernel/frame_buddy.c
// sources: kernel/frame_cache.c kernel/frame_zero.c kernel/frame_poison.c kernel/frame_account.c
// sources: kernel/frame_share.c kernel/heap.c kernel/lock.c kernel/frame_hold.c
// libs: -Wl,--wrap=frame_alloc
// The content index: what it costs, whom it finds, whom it forgets, shared frames, the combined
// call.
#include "index_world.h"

// --- Memory ---

static void test_memory(void **state)
{
    (void)state;
    static const uint64_t buckets[] = {1, 31, 32, 33, 1000, 16383, 16384, 16385, 33000};
    for (unsigned i = 0; i < ARRAY_SIZE(buckets); i++) {
        machine_of(MACHINE_FRAMES);
        uint64_t before = free_frames();
        uint64_t needed = (buckets[i] * 128 + PAGE_SIZE - 1) / PAGE_SIZE;
        assert_int_equal(index_init((buckets[i] - 1) * 6 + 5), 0);
        // The table in frames, nothing of it rounded up, and one frame of the heap's.
        assert_int_equal(before - free_frames(), needed + 1);
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
        assert_int_equal(free_frames(), before);
    }
    finish();
}

static void test_init_failures(void **state)
{
    (void)state;
    unsigned n = 1;
    do {
        machine_of(MACHINE_FRAMES);
        uint64_t before = free_frames();
        fail_at = n;
        failed = false;
        int status = index_init(33000 * 6);
        fail_at = 0;
        assert_int_equal(status, failed ? E_NOMEM : 0);
        if (failed) {
            assert_int_equal(free_frames(), before);
            assert_int_equal(index_init(33000 * 6), 0);
        }
        index_exit();
        assert_int_equal(free_frames(), before);
        n++;
    } while (failed);
    assert_int_equal(n, 6); // the directory and three blocks
    // Really too little memory.
    machine_of(512);
    uint64_t before = free_frames();
    assert_int_equal(index_init(33000 * 6), E_NOMEM);
    assert_int_equal(free_frames(), before);
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

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_memory),    cmocka_unit_test(test_init_failures),
        cmocka_unit_test(test_keys),      cmocka_unit_test(test_candidates),
        cmocka_unit_test(test_staleness), cmocka_unit_test(test_shared),
        cmocka_unit_test(test_offer),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
