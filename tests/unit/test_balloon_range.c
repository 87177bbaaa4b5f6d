// SPDX-License-Identifier: BSD-2-Clause
// sources: tests/unit/fusion_world.c tests/unit/fusion_guest.c tests/unit/fusion_check.c
// sources: vm/access.c vm/memory_large.c
// sources: vm/memory.c vm/ballooned.c vm/reserve.c vm/shortage.c
// sources: balloon/pages.c
// sources: fusion/backoff.c fusion/budget.c fusion/control.c fusion/fuse.c fusion/index.c
// sources: fusion/index_table.c fusion/intake.c fusion/members.c fusion/page_general.c
// sources: fusion/page_ops.c fusion/range.c fusion/service.c fusion/split.c
// sources: ept/walk.c ept/map.c ept/large.c ept/destroy.c ept/shootdown.c ept/fault.c
// sources: kernel/frames.c kernel/frame_buddy.c kernel/frame_cache.c kernel/frame_zero.c
// sources: kernel/frame_poison.c kernel/frame_account.c kernel/frame_share.c kernel/heap.c
// sources: kernel/lock.c kernel/format.c kernel/frame_hold.c
// libs: -Wl,--wrap=ept_shootdown,--wrap=ept_lookup,--wrap=spin_lock,--wrap=spin_lock_nested
// libs: -Wl,--wrap=frame_alloc,--wrap=heap_alloc,--wrap=page_ops_begin,--wrap=page_ops_end
// Whole 2 MiB ranges and parts of them in the balloon: large pages, shared and not, promotion.
#include "balloon_world.h"

// --- Ranges ---

static void test_large(void **state)
{
    (void)state;
    start(1);
    uint64_t before = free_now();
    fill_large(A, R - 512, 5);
    load(1, A, P);
    load(2, A, P);
    unsigned shootdowns = world.shootdowns;
    assert_int_equal(one(balloon_inflate, A, R - 512, 9), 1);
    assert_int_equal(world.shootdowns, shootdowns + 1);
    assert_int_equal(ballooned(A), 512);
    assert_int_equal(private_of(A), 0);
    assert_true(free_now() + 3 >= before); // tables
    load(1, A, P);
    load(2, A, P);
    assert_int_equal(one(balloon_deflate, A, R - 512, 9), 1);
    assert_int_equal(ballooned(A), 0);
    store(1, A, P, 8, 3);
    load(2, A, P);             // which had seen zeros there
    fill_large(A, R - 512, 6); // promoted again
    // A page of it.
    uint64_t splits = world.vm[A].ept.large_splits;
    assert_int_equal(inflate(A, P), 1);
    assert_int_equal(world.vm[A].ept.large_splits, splits + 1);
    assert_int_equal(private_of(A), 511);
    for (unsigned i = 0; i < 3; i++) // with smaller ones beside it
        assert_int_equal(inflate(A, P + 1 + i), 1);
    assert_int_equal(ballooned(A), 4);
    // The rest of it as a range is refused, its pages are not.
    assert_int_equal(one(balloon_inflate, A, R - 512, 9), -FUSOR_EEXIST);
    assert_int_equal(one(balloon_free_pages, A, R - 512, 9), 1);
    assert_int_equal(private_of(A), 0);
    assert_int_equal(ballooned(A), 4);
    world_check_contents();
    world_finish();
}

static void test_many_small_ones(void **state)
{
    (void)state;
    world_start(0);
    world_configure(A, 8 * MIB, "");
    world.vm[A].config.large_pages = VM_LARGE_OFF;
    assert_int_equal(world_create(A), 0);
    uint64_t list[FUSOR_LIST_MAX];
    for (unsigned i = 0; i < 512 * 3; i++)
        fill(1, A, 512 + i, i + 1);
    for (unsigned i = 0; i < 3; i++)
        list[i] = FUSOR_ENTRY(512 + 512 * i, 0, 9);
    world_use(0);
    // A range of small pages fills a batch; what did not fit is for the next call.
    assert_int_equal(call(balloon_inflate, A, list, 3), 1);
    assert_int_equal(call(balloon_inflate, A, list + 1, 2), 1);
    assert_int_equal(call(balloon_free_pages, A, list + 2, 1), 1);
    world_check();
    assert_int_equal(ballooned(A), 1024);
    // Ranges with little in them go together.
    fill(1, A, 512 + 3, 1);
    fill(1, A, 1024 + 3, 1);
    fill(1, A, 1536 + 3, 1);
    assert_int_equal(call(balloon_free_pages, A, list, 3), 3);
    assert_int_equal(ballooned(A), 1022); // two came back by being written
    for (unsigned i = 0; i < 100; i++) {
        fill(1, A, 1536 + i, i + 1);
        list[i] = FUSOR_ENTRY(1536 + i, 0, 0);
    }
    unsigned shootdowns = world.shootdowns;
    assert_int_equal(call(balloon_inflate, A, list, 100), BALLOON_CHUNK);
    assert_int_equal(world.shootdowns, shootdowns + 1);
    world_check();
    world_check_contents();
    world_finish();
}

static unsigned looks;

static void count_looks(enum world_point point)
{
    looks += point == POINT_LOOKED;
}

// Calls until all is done; none looks at more than a few thousand pages.
static unsigned calls_for(list_call work, const uint64_t *list, unsigned count)
{
    unsigned calls = 0;
    for (unsigned done = 0; done < count; calls++) {
        world_use(0);
        looks = 0;
        world.step = count_looks;
        int64_t n = call(work, A, list + done, count - done);
        world.step = NULL;
        assert_true(n > 0);
        assert_in_range(looks, 0, 2 * 4 * 512 + 64);
        done += (unsigned)n;
        world_check();
    }
    return calls;
}

// Ranges with a page table, of which each page has to be looked at, do not all go in one call: that
// would keep the CPU from everybody else.
static void test_many_tables(void **state)
{
    (void)state;
    world_start(8192);
    world_configure(A, 16 * MIB, "");
    assert_int_equal(world_create(A), 0);
    uint64_t list[7];
    for (unsigned i = 0; i < 7; i++) {
        list[i] = FUSOR_ENTRY(512 + 512 * i, 0, 9);
        fill(1, A, 512 + 512 * i + i, 1);
    }
    assert_int_equal(calls_for(balloon_free_pages, list, 7), 2);
    assert_int_equal(private_of(A), 0);
    assert_int_equal(calls_for(balloon_inflate, list, 7), 2);
    assert_int_equal(ballooned(A), 7 * 512);
    for (unsigned i = 0; i < 7; i++)
        load(1, A, 512 + 512 * i + i);
    assert_int_equal(calls_for(balloon_deflate, list, 7), 2);
    assert_int_equal(ballooned(A), 0);
    world_check_contents();
    // Without tables a range is one look.
    world_end_vm(A, false);
    assert_int_equal(world_create(A), 0);
    assert_int_equal(calls_for(balloon_inflate, list, 7), 1);
    assert_int_equal(calls_for(balloon_deflate, list, 7), 1);
    // But not if it is in the balloon in pieces.
    for (unsigned i = 0; i < 7; i++)
        assert_int_equal(inflate(A, 512 + 512 * i + i), 1);
    assert_int_equal(calls_for(balloon_deflate, list, 7), 2);
    assert_int_equal(ballooned(A), 0);
    world_finish();
}

// What fits a batch goes in one call: 512 pages that map something of their own, and not one more.
static void test_full_batch(void **state)
{
    (void)state;
    world_start(0);
    world_configure(A, 8 * MIB, "");
    world.vm[A].config.large_pages = VM_LARGE_OFF;
    assert_int_equal(world_create(A), 0);
    for (unsigned i = 0; i < 512; i++)
        fill(1, A, 512 + i, i + 1);
    fill(1, A, 1024, 1);
    uint64_t range_first[2] = {FUSOR_ENTRY(512, 0, 9), FUSOR_ENTRY(1024, 0, 0)};
    uint64_t page_first[2] = {range_first[1], range_first[0]};
    world_use(0);
    assert_int_equal(call(balloon_free_pages, A, page_first, 2), 1);
    fill(1, A, 1024, 1);
    world_use(0);
    assert_int_equal(call(balloon_free_pages, A, range_first, 2), 1);
    world_check_contents();
    // One of the range shows zeros, which is not its own.
    for (unsigned i = 0; i < 511; i++)
        fill(1, A, 512 + i, i + 1);
    assert_int_equal(inflate(A, 1023), 1);
    load(1, A, 1023);
    world_use(0);
    assert_int_equal(call(balloon_free_pages, A, page_first, 2), 2);
    assert_int_equal(private_of(A), 0);
    assert_int_equal(ballooned(A), 1);
    world_check();
    world_check_contents();
    world_finish();
}

static void start_shared_range(void)
{
    start(2);
    for (unsigned n = 0; n < 2; n++) {
        fill_large(n, R - 512, 5);
        assert_true(hint_range(n, R - 512) > 0);
    }
    assert_true(is_shared(A, P) && is_shared(B, P));
    assert_int_equal(leaf_of(A, P).level, EPT_2M);
}

static void test_large_shared(void **state)
{
    (void)state;
    start_shared_range();
    load(1, A, P);
    load(2, B, P);
    assert_int_equal(inflate(A, P), 1);
    assert_int_equal(sharers_of(B, P), 1);
    assert_int_equal(sharers_of(B, P + 1), 2);
    load(1, A, P);
    load(2, B, P);
    assert_int_equal(one(balloon_inflate, B, R - 512, 9), 1);
    assert_int_equal(ballooned(B), 512);
    assert_int_equal(sharers_of(A, P + 1), 1);
    for (unsigned i = 0; i < 512; i++) {
        load(1, A, R - 512 + i);
        load(2, B, R - 512 + i);
    }
    assert_int_equal(one(balloon_free_pages, A, R - 512, 9), 1);
    assert_int_equal(world_snapshot().count[FRAME_SHARED], 0);
    world_check_contents();
    world_finish();
}

// A range is not promoted while pages of it are in the balloon, nor at once when they come back.
static void test_promotion(void **state)
{
    (void)state;
    start(1);
    for (unsigned i = 0; i < VM_PROMOTE_TOUCHES - 1; i++)
        fill(1, A, 512 + i, i + 1);
    assert_int_equal(inflate(A, 1023), 1);
    for (unsigned i = VM_PROMOTE_TOUCHES - 1; i < 511; i++)
        fill(1, A, 512 + i, i + 1);
    assert_int_equal(leaf_of(A, 512).level, EPT_4K);
    assert_int_equal(ballooned(A), 1);
    fill(1, A, 1023, 9); // the last comes back
    assert_int_equal(leaf_of(A, 512).level, EPT_2M);
    for (unsigned turn = 0; turn < 100; turn++) {
        assert_int_equal(one(balloon_free_pages, A, 700, 0), 1);
        fill(1, A, 700, turn);
    }
    assert_int_equal(leaf_of(A, 512).level, EPT_4K);
    assert_int_equal(world.vm[A].promotions, 1);
    world_check_contents();
    world_finish();
}

static void give_one(void)
{
    assert_int_equal(inflate(A, P), 1);
}

// Another vCPU gives a page of the range that is about to be populated.
static void test_eager_and_give(void **state)
{
    (void)state;
    world_start(0);
    world_configure(A, 8 * MIB, "");
    world.vm[A].config.large_pages = VM_LARGE_EAGER;
    assert_int_equal(world_create(A), 0);
    world_at(POINT_ALLOC, 1, 3, give_one);
    fill(1, A, P + 1, 1);
    assert_int_equal(world_pending(), 0);
    assert_int_equal(leaf_of(A, P + 1).level, EPT_4K);
    assert_int_equal(ballooned(A), 1);
    load(1, A, P);
    world_check();
    world_check_contents();
    world_finish();
}

static void test_eager(void **state)
{
    (void)state;
    world_start(0);
    world_configure(A, 8 * MIB, "");
    world.vm[A].config.large_pages = VM_LARGE_EAGER;
    assert_int_equal(world_create(A), 0);
    assert_int_equal(inflate(A, R + 5), 1);
    fill(1, A, R, 1);
    assert_int_equal(leaf_of(A, R).level, EPT_4K);
    fill(1, A, R + 512, 1);
    assert_int_equal(leaf_of(A, R + 512).level, EPT_2M);
    assert_int_equal(one(balloon_inflate, A, R + 512, 9), 1);
    assert_int_equal(one(balloon_deflate, A, R + 512, 9), 1);
    fill(1, A, R + 512, 1);
    assert_int_equal(leaf_of(A, R + 512).level, EPT_2M);
    world_check();
    world_finish();
}

int main(void)
{
    static const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_large),          cmocka_unit_test(test_many_small_ones),
        cmocka_unit_test(test_full_batch),     cmocka_unit_test(test_large_shared),
        cmocka_unit_test(test_promotion),      cmocka_unit_test(test_eager),
        cmocka_unit_test(test_eager_and_give), cmocka_unit_test(test_many_tables),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
