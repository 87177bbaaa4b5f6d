// SPDX-License-Identifier: BSD-2-Clause
// sources: tests/unit/fusion_world.c tests/unit/fusion_guest.c tests/unit/fusion_check.c
// sources: vm/access.c vm/memory_large.c
// sources: vm/memory.c vm/ballooned.c vm/reserve.c vm/shortage.c
// sources: fusion/backoff.c fusion/budget.c fusion/control.c fusion/fuse.c fusion/index.c
// sources: fusion/index_table.c fusion/intake.c fusion/members.c fusion/page_general.c
// sources: fusion/page_ops.c fusion/range.c fusion/service.c fusion/split.c
// sources: ept/walk.c ept/map.c ept/large.c ept/destroy.c ept/shootdown.c ept/fault.c
// sources: kernel/frames.c kernel/frame_buddy.c kernel/frame_cache.c kernel/frame_zero.c
// sources: kernel/frame_poison.c kernel/frame_account.c kernel/frame_share.c kernel/heap.c
// sources: kernel/lock.c kernel/format.c kernel/frame_hold.c
// libs: -Wl,--wrap=ept_shootdown,--wrap=ept_lookup,--wrap=spin_lock,--wrap=spin_lock_nested
// libs: -Wl,--wrap=frame_alloc,--wrap=heap_alloc,--wrap=page_ops_begin,--wrap=page_ops_end
// The test of the tests: each shootdown of fusion is left out once, and a guest reads what it has
// not written.
#include "fusion_pair.h"

static void stale_write_a(void)
{
    store(1, A, P, 16, 123);
    load(1, A, P);
}

static void stale_write_b(void)
{
    store(1, B, P, 16, 123);
}

static void stale_read_b(void)
{
    load(1, B, P);
}

// What CPU 1 does at `point` number n of a hint of B whose shootdown number `skip` is left out.
static unsigned stale_with(unsigned skip, enum world_point point, unsigned n, void (*action)(void))
{
    start_pair();
    fill(1, A, P, 42);
    hint(A, P); // its version is another one by now
    fill(1, A, P, 42);
    fill(1, B, P, 42);
    load(1, A, P);
    load(1, B, P);
    world.skip = skip;
    world_at(point, n, 1, action);
    uint64_t entry = FUSOR_ENTRY(P, FUSOR_CLASS_OTHER, 0);
    fake_set_cpu(0);
    fusion_hint(&world.vm[B], &entry, 1);
    assert_int_equal(world_pending(), 0);
    assert_int_equal(world.skipped, skip != 0);
    load(1, A, P);
    load(1, B, P);
    load(2, A, P);
    load(2, B, P);
    unsigned stale = world.stale;
    world.stale = 0;
    world_finish();
    return stale;
}

static void test_fuse_without_shootdown(void **state)
{
    (void)state;
    // With all of them nothing is ever stale.
    for (unsigned n = 1; n <= 3; n++) {
        assert_int_equal(stale_with(0, POINT_SHOOTDOWN, n, stale_write_a), 0);
        assert_int_equal(stale_with(0, POINT_SHOOTDOWN, n, stale_write_b), 0);
        assert_int_equal(stale_with(0, POINT_SHOT, n, stale_read_b), 0);
    }
    // The first of each VM left out: CPU 1 writes into what is shared by then, or compared already.
    assert_true(stale_with(1, POINT_SHOOTDOWN, 3, stale_write_a) > 0);
    assert_true(stale_with(2, POINT_SHOOTDOWN, 3, stale_write_b) > 0);
    // The second: CPU 1, which had read the duplicate, does so again when it is free.
    assert_true(stale_with(3, POINT_SHOT, 2, stale_read_b) > 0);
}

static unsigned stale_split(unsigned skip)
{
    start_pair();
    hint(B, P);
    fill(2, C, P, 42);
    hint(C, P);
    load(1, B, P); // CPU 1 knows the shared frame
    world.skip = skip;
    store(2, B, P, 16, 5);
    assert_int_equal(world.skipped, skip);
    load(1, B, P);
    unsigned stale = world.stale;
    world.stale = 0;
    world_finish();
    return stale;
}

static bool skip_last;

static void a_leaves_and_b_writes(void)
{
    store(3, A, P, 16, 6); // the other sharer splits
    world.skip = skip_last;
    store(3, B, P, 16, 7); // the last one keeps the frame
    assert_int_equal(FIGURE(B, last_sharers), 1);
    load(1, B, P);
}

// B's page was mapped to the shared frame, the shootdown that follows is still to come, and CPU 1
// reads the duplicate: then B becomes the last sharer and writes.
static unsigned stale_last_sharer(bool skip)
{
    start_pair();
    load(1, B, P);
    skip_last = skip;
    world_at(POINT_SHOOTDOWN, 2, 1, stale_read_b); // B's; A's was the first
    world_at(POINT_SHOT, 2, 1, stale_read_b);      // protected by now
    world_at(POINT_SHOOTDOWN, 3, 3, a_leaves_and_b_writes);
    uint64_t entry = FUSOR_ENTRY(P, FUSOR_CLASS_OTHER, 0);
    fake_set_cpu(0);
    fusion_hint(&world.vm[B], &entry, 1);
    assert_int_equal(world_pending(), 0);
    assert_int_equal(world.skipped, skip);
    unsigned stale = world.stale;
    world.stale = 0;
    world_finish();
    return stale;
}

static void test_split_without_shootdown(void **state)
{
    (void)state;
    assert_int_equal(stale_split(0), 0);
    assert_true(stale_split(1) > 0);
    assert_int_equal(stale_last_sharer(false), 0);
    assert_true(stale_last_sharer(true) > 0);
}

int main(void)
{
    static const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_fuse_without_shootdown),
        cmocka_unit_test(test_split_without_shootdown),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
