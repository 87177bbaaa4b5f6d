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
// Large pages: split for hints, fused as a whole, demoted by a write, made large again.
#include "fusion_world.h"

#define A     0
#define B     1
#define C     2
#define R     UINT64_C(512) // the first gfn of the range
#define PAGES 512u

// VM n of 4 MiB, whose range R is one large page with distinct contents.
static void large_vm(unsigned n)
{
    world_configure(n, 4 * MIB, "all");
    world.vm[n].config.large_pages = VM_LARGE_EAGER;
    assert_int_equal(world_create(n), 0);
    for (unsigned i = 0; i < PAGES; i++)
        fill(1, n, R + i, 1 + i * 1000);
    assert_int_equal(leaf_of(n, R).level, EPT_2M);
}

static void start(unsigned vms)
{
    world_start(0);
    for (unsigned n = 0; n < vms; n++)
        large_vm(n);
}

// Reads a handful of pages on a CPU that is used for nothing else in between.
static void look(unsigned cpu, unsigned n)
{
    for (unsigned i = 0; i < PAGES; i += 37)
        load(cpu, n, R + i);
}

static void test_whole_range(void **state)
{
    (void)state;
    start(3);
    unsigned shootdowns = world.shootdowns;
    assert_int_equal(hint_range(A, R), 1);
    assert_int_equal(leaf_of(A, R).level, EPT_2M); // only remembered
    assert_int_equal(FIGURE(A, unmatched), PAGES);
    assert_int_equal(world.shootdowns, shootdowns);
    look(2, A);
    look(3, B);
    uint64_t free = world_snapshot().count[FRAME_FREE];
    assert_int_equal(hint_range(B, R), 1);
    assert_int_equal(world.shootdowns - shootdowns, 3);
    assert_int_equal(FIGURE(B, fused), PAGES);
    assert_int_equal(FIGURE(B, received), PAGES);
    assert_int_equal(FIGURE(B, large_fused), 1);
    assert_true(world_snapshot().count[FRAME_FREE] - free >= PAGES - 2);
    for (unsigned n = A; n <= B; n++) {
        struct ept_leaf leaf = leaf_of(n, R + 5);
        assert_int_equal(leaf.level, EPT_2M);
        assert_int_equal(leaf.kind, EPT_KIND_SHARED);
        assert_int_equal(leaf.permissions, EPT_READ | EPT_EXECUTE);
    }
    assert_int_equal(world_snapshot().count[FRAME_SHARED], PAGES);
    assert_int_equal(world_snapshot().saved, PAGES);
    look(2, A);
    look(3, B);
    // A third one.
    shootdowns = world.shootdowns;
    assert_int_equal(hint_range(C, R), 1);
    assert_int_equal(world.shootdowns - shootdowns, 2);
    assert_int_equal(sharers_of(A, R + 511), 3);
    assert_int_equal(leaf_of(C, R).level, EPT_2M);
    // Again: nothing to do.
    hint_range(C, R);
    assert_int_equal(rejected(C, FUSION_REJECT_SHARED), PAGES);
    world_check_contents();
    world_finish();
}

static void test_demotion(void **state)
{
    (void)state;
    start(3);
    for (unsigned n = A; n <= C; n++)
        hint_range(n, R);
    look(2, A);
    look(3, B);
    store(1, A, R + 9, 8, 1);
    look(2, A);
    look(3, B);
    assert_int_equal(leaf_of(A, R).level, EPT_4K);
    assert_int_equal(leaf_of(B, R).level, EPT_2M);
    assert_int_equal(leaf_of(C, R).level, EPT_2M);
    assert_int_equal(world.vm[A].ept.large_splits, 1);
    assert_int_equal(sharers_of(A, R + 8), 3);
    assert_false(is_shared(A, R + 9));
    assert_int_equal(sharers_of(B, R + 9), 2);
    world_check();
    // Fused again with what the others share.
    fill(1, A, R + 9, 1 + 9 * 1000);
    hint(A, R + 9);
    assert_true(same_frame(A, R + 9, B, R + 9));
    // The others leave; large shared pages are given back like small ones.
    world_end_vm(B, false);
    world_check();
    world_end_vm(A, false);
    world_check();
    assert_int_equal(sharers_of(C, R), 1);
    store(1, C, R, 8, 4); // the last sharer
    assert_int_equal(FIGURE(C, last_sharers), 1);
    world_check();
    world_check_contents();
    world_finish();
}

// Another content in one page: nothing is fused as a whole, but the other pages one by one.
static void test_mismatch(void **state)
{
    (void)state;
    static const unsigned places[] = {1, 255, 511};
    for (unsigned i = 0; i < ARRAY_SIZE(places); i++) {
        start(2);
        store(1, B, R + places[i], 8, 1);
        hint_range(A, R);
        hint_range(B, R);
        assert_int_equal(FIGURE(B, large_fused), 0);
        assert_int_equal(FIGURE(B, fused), PAGES - 1);
        assert_false(is_shared(B, R + places[i]));
        world_check_contents();
        world_finish();
    }
    // Against shared frames: as many as are equal from the first on, then the rest one by one.
    for (unsigned i = 0; i < ARRAY_SIZE(places); i++) {
        start(3);
        hint_range(A, R);
        hint_range(B, R);
        store(1, C, R + places[i], 8, 1);
        look(2, C);
        hint_range(C, R);
        assert_int_equal(FIGURE(C, large_fused), 0);
        assert_int_equal(FIGURE(C, fused), PAGES - 1);
        assert_int_equal(leaf_of(C, R).level, EPT_4K);
        assert_int_equal(sharers_of(C, R), 3);
        look(2, C);
        world_check_contents();
        world_finish();
    }
}

static void test_full_frames(void **state)
{
    (void)state;
    start(3);
    fusion_sharers_max = 2;
    hint_range(A, R);
    hint_range(B, R);
    assert_int_equal(FIGURE(B, large_fused), 1);
    hint_range(C, R);
    assert_int_equal(FIGURE(C, fused), 0);
    assert_int_equal(sharers_of(A, R), 2);
    world_check_contents();
    world_finish();

    // Only some are full.
    start(3);
    hint_range(A, R);
    hint_range(B, R);
    fusion_sharers_max = 2;
    store(1, A, R + 0, 8, 1);
    store(1, A, R + 1, 8, 1);
    store(1, A, R + 2, 8, 1);
    hint_range(C, R); // joins the three
    assert_int_equal(FIGURE(C, fused), 3);
    assert_int_equal(FIGURE(C, large_fused), 0);
    assert_true(same_frame(C, R + 2, B, R + 2));
    assert_false(is_shared(C, R + 3));
    look(2, C);
    world_check_contents();
    world_finish();
}

static void test_two_ranges_of_one_vm(void **state)
{
    (void)state;
    world_start(0);
    world_configure(A, 6 * MIB, "");
    world.vm[A].config.large_pages = VM_LARGE_EAGER;
    assert_int_equal(world_create(A), 0);
    for (unsigned i = 0; i < PAGES; i++) {
        fill(1, A, R + i, 1 + i * 1000);
        fill(1, A, R + PAGES + i, 1 + i * 1000);
    }
    hint_range(A, R);
    hint_range(A, R + PAGES);
    assert_int_equal(FIGURE(A, large_fused), 1);
    assert_int_equal(sharers_of(A, R), 2);
    store(1, A, R + PAGES, 8, 1);
    world_check_contents();
    world_finish();
}

// --- Others act meanwhile ---

static void write_a(void)
{
    store(3, A, R + 100, 8, 5);
}

static void write_b(void)
{
    store(3, B, R + 100, 8, 5);
}

static void fusor_writes_b(void)
{
    static const uint64_t value = 3;
    assert_int_equal(fusor_write(B, (R + 7) << PAGE_SHIFT, &value, 8), 0);
}

static void hint_page_of_a(void)
{
    uint64_t entry = FUSOR_ENTRY(R + 3, 1, 0);
    fusion_hint(&world.vm[A], &entry, 1);
}

static void hint_page_of_b(void)
{
    uint64_t entry = FUSOR_ENTRY(R + 3, 1, 0);
    fusion_hint(&world.vm[B], &entry, 1);
}

static void hint_page_of_c(void)
{
    uint64_t entry = FUSOR_ENTRY(R + 3, 1, 0);
    fusion_hint(&world.vm[C], &entry, 1);
}

static void hint_range_of_c(void)
{
    uint64_t entry = FUSOR_ENTRY(R, 1, 9);
    fusion_hint(&world.vm[C], &entry, 1);
}

static void fetch_b(void)
{
    assert_non_null(world_access(3, B, R + 200, FETCH));
}

static struct frame *pinned;

static void pin_b(void)
{
    pinned = frame_of(leaf_of(B, R + 77).frame);
    if (pinned->state == FRAME_PRIVATE)
        pinned->count = 1;
    else
        pinned = NULL; // too late
}

// At every point that a hint of B's range passes without a lock: the partner A, C's page and range.
static void test_actions_at_points(void **state)
{
    (void)state;
    static void (*const actions[])(void) = {write_a,         write_b,        fusor_writes_b,
                                            hint_page_of_a,  hint_page_of_b, hint_page_of_c,
                                            hint_range_of_c, fetch_b,        pin_b};
    static const struct {
        enum world_point point;
        unsigned n;
    } points[] = {{POINT_SHOOTDOWN, 1}, {POINT_SHOOTDOWN, 2}, {POINT_SHOOTDOWN, 3},
                  {POINT_SHOT, 1},      {POINT_SHOT, 2},      {POINT_SHOT, 3},
                  {POINT_GFN_LOCK, 1},  {POINT_GFN_LOCK, 2},  {POINT_ALLOC, 1},
                  {POINT_HASH, 1},      {POINT_HASH, 300}};
    unsigned fused = 0, runs = 0;
    for (unsigned safe = 0; safe <= 1; safe++) {
        for (unsigned i = 0; i < ARRAY_SIZE(actions); i++) {
            for (unsigned j = 0; j < ARRAY_SIZE(points); j++) {
                start(3);
                ept_features.large_executable_safe = safe;
                if (!safe) {
                    for (unsigned n = 0; n < 3; n++) {
                        world_reset(n);
                        for (unsigned k = 0; k < PAGES; k++)
                            fill(1, n, R + k, 1 + k * 1000);
                    }
                }
                hint_range(A, R);
                look(2, A);
                look(3, B);
                store(3, A, R + 100, 0, 1 + 100 * 1000);
                store(3, B, R + 100, 0, 1 + 100 * 1000);
                pinned = NULL;
                world_at(points[j].point, points[j].n, 3, actions[i]);
                uint64_t entry = FUSOR_ENTRY(R, 1, 9);
                world_use(0);
                assert_int_equal(fusion_hint(&world.vm[B], &entry, 1), 1);
                world_pending();
                if (pinned != NULL) {
                    assert_int_equal(pinned->state, FRAME_PRIVATE);
                    pinned->count = 0;
                }
                look(2, A);
                look(3, B);
                look(2, C);
                world_use(0);
                world_check();
                world_check_contents();
                fused += leaf_of(B, R).level == EPT_2M && is_shared(B, R);
                runs++;
                world_finish();
            }
        }
    }
    assert_in_range(fused, runs / 4, runs - 10);
}

static void fetch_and_write_b(void)
{
    fetch_b();
    store(3, B, R, 8, 78);
}

// A fetch takes the protected large page apart, then a write cancels: no piece stays a candidate
// that nobody knows (world_check looks).
static void test_split_and_cancel_of_a_candidate(void **state)
{
    (void)state;
    for (unsigned n = 1; n <= 2; n++) {
        start(2);
        ept_features.large_executable_safe = false;
        for (unsigned vm = 0; vm < 2; vm++) {
            world_reset(vm);
            for (unsigned k = 0; k < PAGES; k++)
                fill(1, vm, R + k, 1 + k * 1000);
        }
        hint_range(A, R);
        world_at(POINT_SHOT, n, 3, fetch_and_write_b);
        hint_range(B, R);
        assert_int_equal(world_pending(), 0);
        world_check();
        world_check_contents();
        hint_range(B, R);
        assert_true(is_shared(B, R + 1)); // fusable all the same
        world_finish();
    }
}

static void test_pinned_page_in_a_range(void **state)
{
    (void)state;
    start(2);
    hint_range(A, R);
    frame_of(leaf_of(B, R + 5).frame)->count = 1;
    world_use(0);
    uint64_t entry = FUSOR_ENTRY(R, 1, 9);
    assert_int_equal(fusion_hint(&world.vm[B], &entry, 1), 1);
    assert_false(is_shared(B, R + 5));
    assert_int_equal(FIGURE(B, large_fused), 0);
    assert_int_equal(FIGURE(B, fused), PAGES - 1);
    frame_of(leaf_of(B, R + 5).frame)->count = 0;
    world_check();
    world_finish();
}

// The last frames of the machine are no whole range: what lies behind them is not looked at.
static void test_shared_frame_at_the_end_of_memory(void **state)
{
    (void)state;
    world_late_frames = 1;
    world_start(0);
    world_late_frames = 0;
    large_vm(B);
    world_vm(A, 4 * MIB, "all");
    fill(1, A, 600, 1);
    world_starve(0);
    frames_add(hfn(4096), 1, FRAME_FREE);
    fill(1, A, 601, 1);
    world_feed();
    assert_int_equal(leaf_of(A, 601).frame.raw, 4096);
    hint(A, 601);
    hint(A, 600);
    assert_int_equal(leaf_of(A, 600).frame.raw, 4096);
    hint_range(B, R); // its first page is equal
    assert_true(same_frame(B, R, A, 600));
    world_check_contents();
    world_finish();
}

// --- Without memory ---

static void test_without_memory(void **state)
{
    (void)state;
    for (unsigned third = 0; third <= 1; third++) {
        unsigned n = 1;
        for (;; n++) {
            start(3);
            hint_range(A, R);
            if (third)
                hint_range(C, R);
            world.failed = false;
            world.fail_at = n;
            assert_int_equal(hint_range(B, R), 1);
            world.fail_at = 0;
            bool failed = world.failed;
            assert_int_equal(FIGURE(B, large_fused), !failed);
            world_check_contents();
            hint_range(B, R);
            assert_int_equal(world.vm[B].account.shared_gfns, PAGES);
            world_check_contents();
            world_finish();
            if (!failed)
                break;
        }
        assert_in_range(n, 2, 5);
    }
}

// --- Large again ---

static void split_for_a_hint(unsigned n)
{
    fill(1, n == A ? B : A, 300, 1 + 7 * 1000);
    hint(n == A ? B : A, 300);
    hint(n, R + 7); // its partner is a small page elsewhere: the range is split
    assert_int_equal(leaf_of(n, R).level, EPT_4K);
}

static void test_collapse(void **state)
{
    (void)state;
    start(2);
    split_for_a_hint(A);
    assert_true(is_shared(A, R + 7));
    for (unsigned i = 0; i < 5; i++)
        service_round();
    assert_int_equal(leaf_of(A, R).level, EPT_4K); // one page of it is shared
    // The other sharer leaves, and the page is written: whole again, when it is quiet.
    store(1, B, 300, 8, 1);
    store(1, A, R + 7, 8, 2);
    assert_int_equal(FIGURE(A, last_sharers), 1);
    world_leave(1);
    bool contiguous = leaf_of(A, R + 7).frame.raw == leaf_of(A, R).frame.raw + 7;
    for (unsigned i = 0; i < 3; i++) {
        look(1, A);
        look(2, A);
        service_round();
        assert_int_equal(leaf_of(A, R).level, i < 2 || !contiguous ? EPT_4K : EPT_2M);
    }
    assert_int_equal(world.vm[A].ept.large_collapses, contiguous);
    look(1, A);
    store(2, A, R + 3, 8, 9);
    look(1, A);
    world_check_contents();
    world_finish();
}

// The range is split and nothing of it is fused.
static void split_in_vain(void)
{
    assert_int_equal(fusion_make_small(&world.vm[A], (gfn_t){R + 5}), 0);
    assert_int_equal(leaf_of(A, R).level, EPT_4K);
}

static void test_two_quiet_intervals(void **state)
{
    (void)state;
    start(1);
    split_in_vain();
    service_round(); // dirty flags are cleared
    service_round(); // quiet once
    assert_int_equal(leaf_of(A, R).level, EPT_4K);
    service_round();
    assert_int_equal(leaf_of(A, R).level, EPT_2M);
    // From then on nothing is done any more.
    unsigned shootdowns = world.shootdowns;
    for (unsigned i = 0; i < 10; i++)
        service_round();
    assert_int_equal(world.shootdowns, shootdowns);
    // A write between two looks begins it anew.
    split_in_vain();
    for (unsigned i = 0; i < 6; i++) {
        service_round();
        store(1, A, R + 70 + i, 8, i);
    }
    assert_int_equal(leaf_of(A, R).level, EPT_4K);
    for (unsigned i = 0; i < 4; i++)
        service_round();
    assert_int_equal(leaf_of(A, R).level, EPT_2M);
    world_check_contents();
    world_finish();
}

static void test_range_that_is_always_written(void **state)
{
    (void)state;
    start(1);
    split_in_vain();
    for (unsigned i = 0; i < 60; i++) {
        store(1, A, R + i, 8, i);
        service_round();
    }
    assert_int_equal(leaf_of(A, R).level, EPT_4K);
    // It was given up: no shootdowns any more.
    unsigned shootdowns = world.shootdowns;
    for (unsigned i = 0; i < 10; i++)
        service_round();
    assert_int_equal(world.shootdowns, shootdowns);
    assert_int_equal(leaf_of(A, R).level, EPT_4K);
    world_finish();
}

static void test_no_collapse(void **state)
{
    (void)state;
    for (unsigned i = 0; i < 3; i++) {
        start(1);
        split_in_vain();
        struct frame *f = frame_of(leaf_of(A, R + 500).frame);
        if (i == 0)
            f->count = 1; // pinned
        if (i == 1)
            world.vm[A].config.large_pages = VM_LARGE_OFF;
        if (i == 2)
            ept_features.accessed_dirty = false;
        for (unsigned k = 0; k < 6; k++)
            service_round();
        assert_int_equal(leaf_of(A, R).level, EPT_4K);
        f->count = 0;
        world_finish();
    }
}

// The end of a VM with a large shared page: its 512 pages leave in steps, as sharer and as the last
// one, whatever else goes on in between.
static uint64_t shared_before;
static unsigned shared_steps;

static void measure_step(enum world_point point)
{
    if (point != POINT_YIELD)
        return;
    uint64_t shared = world.vm[A].account.shared_gfns + world.vm[B].account.shared_gfns;
    assert_true(shared_before - shared <= 64);
    shared_steps += shared != shared_before;
    shared_before = shared;
}

static void test_end_in_steps(void **state)
{
    (void)state;
    start(2);
    assert_int_equal(hint_range(A, R), 1);
    assert_int_equal(hint_range(B, R), 1);
    assert_int_equal(world_snapshot().saved, PAGES);
    for (unsigned n = A; n <= B; n++) {
        shared_before = world.vm[A].account.shared_gfns + world.vm[B].account.shared_gfns;
        shared_steps = 0;
        world.step = measure_step;
        world_end_vm(n, true);
        world.step = NULL;
        assert_int_equal(shared_steps, PAGES / 64);
        assert_int_equal(world_snapshot().saved, 0);
        assert_int_equal(world_snapshot().count[FRAME_SHARED], n == A ? PAGES : 0);
    }
    world_finish();
}

int main(void)
{
    static const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_whole_range),
        cmocka_unit_test(test_demotion),
        cmocka_unit_test(test_mismatch),
        cmocka_unit_test(test_full_frames),
        cmocka_unit_test(test_two_ranges_of_one_vm),
        cmocka_unit_test(test_actions_at_points),
        cmocka_unit_test(test_split_and_cancel_of_a_candidate),
        cmocka_unit_test(test_pinned_page_in_a_range),
        cmocka_unit_test(test_shared_frame_at_the_end_of_memory),
        cmocka_unit_test(test_without_memory),
        cmocka_unit_test(test_collapse),
        cmocka_unit_test(test_two_quiet_intervals),
        cmocka_unit_test(test_range_that_is_always_written),
        cmocka_unit_test(test_no_collapse),
        cmocka_unit_test(test_end_in_steps),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
