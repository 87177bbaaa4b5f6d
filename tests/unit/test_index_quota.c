// SPDX-License-Identifier: BSD-2-Clause
// sources: kernel/frame_hold.c
// sources: fusion/index.c fusion/index_table.c kernel/frames.c kernel/frame_buddy.c
// sources: kernel/frame_cache.c kernel/frame_zero.c kernel/frame_poison.c kernel/frame_account.c
// sources: kernel/frame_share.c kernel/heap.c kernel/lock.c
// libs: -Wl,--wrap=frame_alloc
// The content index when it is full: who may push out whom.
#include "index_world.h"

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

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_made_collisions), cmocka_unit_test(test_ages),
        cmocka_unit_test(test_quota),           cmocka_unit_test(test_quota_stale),
        cmocka_unit_test(test_sweep_and_locks),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
