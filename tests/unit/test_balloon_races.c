// SPDX-License-Identifier: BSD-2-Clause
// sources: tests/unit/fusion_world.c tests/unit/fusion_guest.c tests/unit/fusion_check.c
// sources: vm/memory.c vm/ballooned.c vm/shortage.c
// sources: balloon/pages.c
// sources: fusion/backoff.c fusion/budget.c fusion/control.c fusion/fuse.c fusion/index.c
// sources: fusion/index_table.c fusion/intake.c fusion/members.c fusion/page_general.c
// sources: fusion/page_ops.c fusion/range.c fusion/service.c fusion/split.c
// sources: ept/walk.c ept/map.c ept/large.c ept/destroy.c ept/shootdown.c ept/fault.c
// sources: kernel/frames.c kernel/frame_buddy.c kernel/frame_cache.c kernel/frame_zero.c
// sources: kernel/frame_poison.c kernel/frame_account.c kernel/frame_share.c kernel/heap.c
// sources: kernel/lock.c kernel/format.c
// libs: -Wl,--wrap=ept_shootdown,--wrap=ept_lookup,--wrap=spin_lock,--wrap=spin_lock_nested
// libs: -Wl,--wrap=frame_alloc,--wrap=heap_alloc,--wrap=page_ops_begin,--wrap=page_ops_end
// Two CPUs at work on the same pages, one of them with the balloon.
#include "balloon_world.h"

// --- At the same time ---

static list_call other_call;
static unsigned other_vm;
static uint64_t other_entry;
static int64_t other_done;

static unsigned acted;

// With the gfn lock held by the other CPU, this one would wait: nothing to be seen.
static void act(void)
{
    uint64_t gfn = other_entry & FUSOR_ENTRY_GFN_MASK;
    struct spinlock *lock = &world.vm[other_vm].ept.locks[gfn / 512 % EPT_LOCKS];
    if (lock->next != lock->owner)
        return;
    other_done = call(other_call, other_vm, &other_entry, 1);
    assert_int_equal(other_done, 1);
    acted++;
}

// Comparisons are done under the locks of both sides.
static const enum world_point points[] = {POINT_SHOOTDOWN,   POINT_SHOT,  POINT_GFN_LOCK,
                                          POINT_BUCKET_LOCK, POINT_ALLOC, POINT_HASH};

// While `work` runs on CPU 0, CPU 3 gives a page (or a range) of VM `vm`, at every point there is.
static void at_every_point(void (*prepare)(void), void (*work)(void), unsigned vm, uint64_t entry)
{
    static const list_call calls[] = {balloon_inflate, balloon_free_pages};
    acted = 0;
    for (unsigned c = 0; c < ARRAY_SIZE(calls); c++)
        for (unsigned p = 0; p < ARRAY_SIZE(points); p++)
            for (unsigned n = 1; n < 40; n++) {
                prepare();
                other_call = calls[c];
                other_vm = vm;
                other_entry = entry;
                world_at(points[p], n, 3, act);
                work();
                bool over = world_pending() != 0;
                world_check();
                for (unsigned i = 0; i < 2; i++)
                    load(1, i, P);
                world_check_contents();
                world_finish();
                if (over)
                    break;
            }
    assert_true(acted >= 2);
}

static void two_candidates(void)
{
    start(2);
    fill(1, A, P, 42);
    fill(1, B, P, 42);
    hint(A, P);
}

static void hint_of_b(void)
{
    uint64_t entry = FUSOR_ENTRY(P, FUSOR_CLASS_CACHE, 0);
    world_use(0);
    assert_int_equal(fusion_hint(&world.vm[B], &entry, 1), 1);
}

static void test_fuse_races(void **state)
{
    (void)state;
    static const uint64_t page = FUSOR_ENTRY(P, 0, 0);
    at_every_point(two_candidates, hint_of_b, A, page);
    at_every_point(two_candidates, hint_of_b, B, page);
    at_every_point(two_candidates, hint_of_b, A, FUSOR_ENTRY(R - 512, 0, 9));
}

static void two_sharers(void)
{
    shared_page(2);
}

static void write_of_b(void)
{
    store(1, B, P, 8, 77);
}

static void test_split_races(void **state)
{
    (void)state;
    at_every_point(two_sharers, write_of_b, A, FUSOR_ENTRY(P, 0, 0));
}

// VM A gives the page at the same time as it writes to it: whatever wins, the page is zero with
// perhaps the written word.
static void write_of_a(void)
{
    uint8_t *page = world_access(1, A, P, READ | WRITE);
    *(uint64_t *)(void *)(page + 8) = 77;
    world_leave(1);
    fill(1, A, P, 3); // for the model
}

static void test_own_split_races(void **state)
{
    (void)state;
    at_every_point(two_sharers, write_of_a, A, FUSOR_ENTRY(P, 0, 0));
}

static void large_candidates(void)
{
    start(2);
    fill_large(A, R - 512, 5);
    fill_large(B, R - 512, 5);
    hint_range(A, R - 512);
}

static void hint_range_of_b(void)
{
    uint64_t entry = FUSOR_ENTRY(R - 512, FUSOR_CLASS_CACHE, 9);
    world_use(0);
    assert_int_equal(fusion_hint(&world.vm[B], &entry, 1), 1);
}

static void test_range_races(void **state)
{
    (void)state;
    static const uint64_t entries[] = {FUSOR_ENTRY(P, 0, 0), FUSOR_ENTRY(R - 512, 0, 0),
                                       FUSOR_ENTRY(R - 512, 0, 9)};
    for (unsigned vm = 0; vm < 2; vm++)
        for (unsigned i = 0; i < ARRAY_SIZE(entries); i++)
            for (unsigned p = 0; p < 3; p++) // shootdowns
                for (unsigned n = 1; n < 4; n++) {
                    large_candidates();
                    other_call = balloon_inflate;
                    other_vm = vm;
                    other_entry = entries[i];
                    world_at(points[p], n, 3, act);
                    hint_range_of_b();
                    world_pending();
                    world_check();
                    world_check_contents();
                    world_finish();
                }
}

// Two vCPUs of one VM give, take and use the same page.
static void give_a(void)
{
    uint64_t entry = FUSOR_ENTRY(P, 0, 0);
    int64_t done = call(balloon_inflate, A, &entry, 1);
    assert_true(done == 1 || done == 0 || done == -FUSOR_EEXIST);
}

static void take_a(void)
{
    uint64_t entry = FUSOR_ENTRY(P, 0, 0);
    int64_t done = call(balloon_deflate, A, &entry, 1);
    assert_true(done == 1 || done == -FUSOR_ENOENT);
}

static void touch_a(void)
{
    fill(3, A, P, 9);
    world_leave(3);
    forget_model(A, P, 1);
}

static void test_one_vm_races(void **state)
{
    (void)state;
    static void (*const work[])(void) = {give_a, take_a, touch_a};
    for (unsigned a = 0; a < 3; a++)
        for (unsigned b = 0; b < 3; b++)
            for (unsigned in = 0; in < 2; in++)
                for (unsigned p = 0; p < ARRAY_SIZE(points); p++)
                    for (unsigned n = 1; n < 12; n++) {
                        start(1);
                        fill(1, A, P, 42);
                        if (in)
                            inflate(A, P);
                        if (work[b] == touch_a && work[a] == touch_a)
                            continue;
                        world_use(work[a] == touch_a ? 2 : 0);
                        world_at(points[p], n, work[a] == touch_a ? 2 : 3, work[b]);
                        if (work[a] == touch_a)
                            world_use(1);
                        work[a]();
                        bool over = world_pending() != 0;
                        world_check();
                        fill(1, A, P, 11);
                        load(2, A, P);
                        assert_int_equal(ballooned(A), 0);
                        world_finish();
                        if (over)
                            break;
                    }
}

int main(void)
{
    static const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_fuse_races),      cmocka_unit_test(test_split_races),
        cmocka_unit_test(test_own_split_races), cmocka_unit_test(test_range_races),
        cmocka_unit_test(test_one_vm_races),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
