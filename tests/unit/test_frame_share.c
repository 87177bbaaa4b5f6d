// SPDX-License-Identifier: BSD-2-Clause
// sources: kernel/frame_share.c kernel/frames.c kernel/frame_buddy.c kernel/frame_cache.c
// sources: kernel/frame_zero.c kernel/frame_poison.c kernel/frame_account.c kernel/lock.c
// sources: kernel/frame_hold.c
// Shared frames' counts and the accounts: each call, what it refuses, and a random run against a
// list of sharers.
#include "frames_machine.h"
#include "kernel/percpu.h"

#define FRAMES 512u
#define VMS    3u

static struct frame_account accounts[VMS];

static void start(void)
{
    frames_machine(FRAMES, 2);
    memset(accounts, 0, sizeof(accounts));
}

static hfn_t alloc(enum frame_state state, unsigned vm)
{
    hfn_t f;
    assert_int_equal(frame_alloc(state, 0, 0, state == FRAME_PRIVATE ? &accounts[vm] : NULL, &f),
                     0);
    return f;
}

static void check(uint64_t fusor, uint64_t private_frames, uint64_t shared, uint64_t saved)
{
    struct frames_snapshot s;
    struct frame_account *list[VMS];
    uint64_t own[VMS], gfns[VMS], sum = 0, all_own = 0, all_gfns = 0;
    for (unsigned n = 0; n < VMS; n++)
        list[n] = &accounts[n];
    frames_snapshot(&s, list, VMS, own, gfns);
    for (unsigned n = 0; n < VMS; n++) {
        all_own += own[n];
        all_gfns += gfns[n];
    }
    for (unsigned i = FRAME_FREE; i < FRAME_STATES; i++)
        sum += s.count[i];
    assert_int_equal(sum, s.total);
    assert_int_equal(s.count[FRAME_FUSOR], fusor);
    assert_int_equal(s.count[FRAME_PRIVATE], private_frames);
    assert_int_equal(s.count[FRAME_SHARED], shared);
    assert_int_equal(s.saved, saved);
    assert_int_equal(all_own, s.count[FRAME_PRIVATE]);
    assert_int_equal(all_gfns, s.count[FRAME_SHARED] + s.saved);
}

// Private, shared, joined, split, last sharer: versions end, states and accounts follow.
static void test_life_of_a_shared_frame(void **state)
{
    (void)state;
    start();
    hfn_t a = alloc(FRAME_PRIVATE, 0), b = alloc(FRAME_PRIVATE, 1), c = alloc(FRAME_PRIVATE, 2);
    uint64_t version = frame_of(a)->version;
    frame_of(a)->flags = 1u << 8;
    frame_share(a, &accounts[0]);
    assert_int_equal(frame_of(a)->state, FRAME_SHARED);
    assert_int_equal(frame_of(a)->count, 1);
    assert_int_equal(frame_of(a)->flags, 0);
    assert_true(frame_of(a)->version > version);
    check(0, 2, 1, 0);
    version = frame_of(b)->version;
    fake_set_cpu(1); // another CPU's section
    assert_true(frame_share_join(a, b, &accounts[1], FRAME_COUNT_MAX));
    fake_set_cpu(0);
    assert_int_equal(frame_of(a)->count, 2);
    assert_int_equal(frame_of(b)->state, FRAME_FUSOR);
    assert_true(frame_of(b)->version > version);
    check(1, 1, 1, 1);
    frame_free(b, 0, NULL);
    assert_false(frame_share_join(a, c, &accounts[2], 2)); // full
    assert_int_equal(frame_of(c)->state, FRAME_PRIVATE);
    check(0, 1, 1, 1);
    assert_true(frame_share_join(a, c, &accounts[2], 3));
    frame_free(c, 0, NULL);
    check(0, 0, 1, 2);

    hfn_t fresh = alloc(FRAME_FUSOR, 0);
    assert_true(frame_share_split(a, fresh, &accounts[0]));
    assert_int_equal(frame_of(fresh)->state, FRAME_PRIVATE);
    check(0, 1, 1, 1);
    assert_true(frame_share_leave(a, &accounts[1]));
    check(0, 1, 1, 0);
    assert_false(frame_share_leave(a, &accounts[2])); // the last one
    hfn_t other = alloc(FRAME_FUSOR, 0);
    assert_false(frame_share_split(a, other, &accounts[2]));
    assert_int_equal(frame_of(other)->state, FRAME_FUSOR);
    check(1, 1, 1, 0);
    version = frame_of(a)->version;
    frame_share_take_last(a, &accounts[2]);
    assert_int_equal(frame_of(a)->state, FRAME_PRIVATE);
    assert_int_equal(frame_of(a)->count, 0);
    assert_true(frame_of(a)->version > version);
    check(1, 2, 0, 0);

    frame_share(a, &accounts[2]);
    frame_share_end(a, &accounts[2]);
    assert_int_equal(frame_of(a)->state, FRAME_FUSOR);
    check(2, 1, 0, 0);
    frame_adopt(other, 0, &accounts[1]);
    check(1, 2, 0, 0);
    version = frame_of(other)->version;
    frame_disown(other, &accounts[1]);
    assert_int_equal(frame_of(other)->state, FRAME_FUSOR);
    assert_true(frame_of(other)->version > version);
    check(2, 1, 0, 0);
    frame_adopt(other, 0, &accounts[1]);
    hfn_t block;
    assert_int_equal(frame_alloc(FRAME_FUSOR, 3, 0, NULL, &block), 0);
    check(9, 2, 0, 0);
    frame_adopt(block, 3, &accounts[1]);
    assert_int_equal(frame_of(hfn(block.raw + 7))->state, FRAME_PRIVATE);
    check(1, 10, 0, 0);
    frame_free(block, 3, &accounts[1]);
    frame_free(a, 0, NULL);
    frame_free(other, 0, &accounts[1]);
    frame_free(fresh, 0, &accounts[0]);
    check(0, 0, 0, 0);
}

// What breaks an invariant stops Fusor.
static void test_misuse(void **state)
{
    (void)state;
    start();
    hfn_t a = alloc(FRAME_PRIVATE, 0), b = alloc(FRAME_PRIVATE, 1), t = alloc(FRAME_TABLE, 0);
    frame_of(a)->count = 1; // pinned
    assert_true(fake_expect_panic(frame_share(a, &accounts[0])));
    frame_of(a)->count = 0;
    assert_true(fake_expect_panic(frame_share(t, &accounts[0])));
    assert_true(fake_expect_panic(frame_share(hfn(FRAMES), &accounts[0])));
    assert_true(fake_expect_panic(frame_share_join(a, b, &accounts[1], 2)));
    frame_share(a, &accounts[0]);
    assert_true(fake_expect_panic(frame_share(a, &accounts[0])));
    assert_true(fake_expect_panic(frame_share_join(a, t, &accounts[1], 2)));
    frame_of(b)->count = 1;
    assert_true(fake_expect_panic(frame_share_join(a, b, &accounts[1], 2)));
    frame_of(b)->count = 0;
    assert_true(fake_expect_panic(frame_share_join(a, b, &accounts[1], UINT32_MAX)));
    assert_true(frame_share_join(a, b, &accounts[1], 2));
    assert_true(fake_expect_panic(frame_share_take_last(a, &accounts[0])));
    assert_true(fake_expect_panic(frame_share_end(a, &accounts[0])));
    assert_true(fake_expect_panic(frame_adopt(a, 0, &accounts[0])));
    assert_true(fake_expect_panic(frame_disown(a, &accounts[0])));
    assert_true(fake_expect_panic(frame_share_split(a, t, &accounts[0])));
    assert_true(fake_expect_panic(frame_free(a, 0, &accounts[0])));
}

// The count stops short of where it would wrap.
static void test_count_saturates(void **state)
{
    (void)state;
    start();
    hfn_t a = alloc(FRAME_PRIVATE, 0), b = alloc(FRAME_PRIVATE, 1);
    frame_share(a, &accounts[0]);
    frame_of(a)->count = FRAME_COUNT_MAX;
    assert_false(frame_share_join(a, b, &accounts[1], FRAME_COUNT_MAX));
    assert_int_equal(frame_of(a)->count, FRAME_COUNT_MAX);
    frame_of(a)->count = FRAME_COUNT_MAX - 1;
    assert_true(frame_share_join(a, b, &accounts[1], FRAME_COUNT_MAX));
    assert_int_equal(frame_of(a)->count, FRAME_COUNT_MAX);
}

static uint64_t seed = 1;

static unsigned below(unsigned n)
{
    seed = seed * UINT64_C(6364136223846793005) + 1442695040888963407;
    return (unsigned)(seed >> 33) % n;
}

// Gfns of VMs, each with a frame; groups of them share.
static void test_random(void **state)
{
    (void)state;
    start();
    enum { GFNS = 60 };
    hfn_t frame[GFNS];
    unsigned sharers[FRAMES] = {0};
    uint64_t shared = 0, saved = 0;
    for (unsigned i = 0; i < GFNS; i++)
        frame[i] = alloc(FRAME_PRIVATE, i % VMS);
    for (unsigned turn = 0; turn < 20000; turn++) {
        fake_set_cpu(below(2));
        unsigned i = below(GFNS), j = below(GFNS);
        struct frame_account *account = &accounts[i % VMS];
        unsigned *mine = &sharers[frame[i].raw], *theirs = &sharers[frame[j].raw];
        if (*mine == 0 && *theirs == 0 && below(8) == 0) {
            frame_share(frame[i], account);
            *mine = 1;
            shared++;
        } else if (*mine == 0 && *theirs != 0) {
            bool good = frame_share_join(frame[j], frame[i], account, 5);
            assert_int_equal(good, *theirs < 5);
            if (good) {
                frame_free(frame[i], 0, NULL);
                frame[i] = frame[j];
                ++*theirs;
                saved++;
            }
        } else if (*mine == 1) {
            frame_share_take_last(frame[i], account);
            *mine = 0;
            shared--;
        } else if (*mine > 1) {
            hfn_t fresh = alloc(FRAME_FUSOR, 0);
            if (below(2) == 0) {
                assert_true(frame_share_split(frame[i], fresh, account));
            } else {
                assert_true(frame_share_leave(frame[i], account));
                frame_adopt(fresh, 0, account);
            }
            --*mine;
            saved--;
            frame[i] = fresh;
            sharers[fresh.raw] = 0;
        }
        for (unsigned k = 0; k < GFNS; k++)
            assert_int_equal(frame_of(frame[k])->count, sharers[frame[k].raw]);
        check(0, GFNS - shared - saved, shared, saved);
    }
    assert_true(shared > 0 && saved > 0);
}

int main(void)
{
    static const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_life_of_a_shared_frame),
        cmocka_unit_test(test_misuse),
        cmocka_unit_test(test_count_saturates),
        cmocka_unit_test(test_random),
    };
    int failed = cmocka_run_group_tests(tests, NULL, NULL);
    frames_machine_end();
    return failed;
}
