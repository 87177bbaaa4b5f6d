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
// Two pages become one: every order of hints, writes and the ends of partners round the steps of
// fuse.c.
#include "fusion_pair.h"

static void test_two_pages(void **state)
{
    (void)state;
    start_pair();
    uint64_t private_before = world_snapshot().count[FRAME_PRIVATE];
    unsigned shootdowns = world.shootdowns;
    assert_int_equal(hint(B, P), 1);
    assert_true(same_frame(A, P, B, P));
    assert_int_equal(sharers_of(A, P), 2);
    assert_int_equal(FIGURE(B, fused), 1);
    assert_int_equal(FIGURE(A, fused), 0);
    assert_int_equal(world.shootdowns - shootdowns, 3); // two to protect, one to free
    struct frames_snapshot s = world_snapshot();
    assert_int_equal(s.count[FRAME_PRIVATE], private_before - 2);
    assert_int_equal(s.count[FRAME_SHARED], 1);
    assert_int_equal(s.saved, 1);
    for (unsigned cpu = 0; cpu < WORLD_CPUS; cpu++) {
        load(cpu, A, P);
        load(cpu, B, P);
    }
    // Hinted again: nothing is done.
    assert_int_equal(hint(B, P), 1);
    assert_int_equal(rejected(B, FUSION_REJECT_SHARED), 1);
    // A third one joins; its shootdowns are its own only.
    fill(1, C, P, 42);
    shootdowns = world.shootdowns;
    assert_int_equal(hint(C, P), 1);
    assert_int_equal(sharers_of(C, P), 3);
    assert_int_equal(world.shootdowns - shootdowns, 2);
    world_check_contents();
    world_finish();
}

static void test_page_without_partner_costs_nothing(void **state)
{
    (void)state;
    start_pair();
    unsigned shootdowns = world.shootdowns;
    fill(2, B, P, 43);
    assert_int_equal(hint(B, P), 1);
    assert_int_equal(FIGURE(B, unmatched), 1);
    assert_int_equal(world.shootdowns, shootdowns);
    assert_int_equal(world.compares, 0);
    // And again.
    assert_int_equal(hint(B, P), 1);
    assert_int_equal(FIGURE(B, unmatched), 2);
    world_finish();
}

// Equal pages in one list, of one VM: the first is remembered, the others join it.
static void test_equal_pages_in_one_chunk(void **state)
{
    (void)state;
    for (unsigned n = 2; n <= 5; n++) {
        world_start(0);
        world_vms(2);
        uint64_t gfns[5];
        for (unsigned i = 0; i < n; i++) {
            gfns[i] = P + i * 7;
            fill(1, A, gfns[i], 5);
        }
        unsigned shootdowns = world.shootdowns;
        assert_int_equal(hint_many(A, gfns, n), n);
        assert_int_equal(FIGURE(A, fused), n - 1);
        assert_int_equal(sharers_of(A, P), n);
        assert_int_equal(world.shootdowns - shootdowns, 2);
        assert_int_equal(world.vm[A].account.shared_gfns, n);
        store(1, A, gfns[1], 8, 1);
        assert_int_equal(sharers_of(A, P), n - 1);
        world_check_contents();
        world_finish();
    }
}

// The same where the candidate is another VM's.
static void test_three_equal_in_two_vms(void **state)
{
    (void)state;
    start_pair();
    uint64_t gfns[] = {P, P + 1, P + 2};
    fill(1, B, P + 1, 42);
    fill(1, B, P + 2, 42);
    unsigned shootdowns = world.shootdowns;
    assert_int_equal(hint_many(B, gfns, 3), 3);
    assert_int_equal(FIGURE(B, fused), 3);
    assert_int_equal(sharers_of(A, P), 4);
    assert_int_equal(world.shootdowns - shootdowns, 3);
    world_check_contents();
    world_finish();
}

static void test_zero_pages(void **state)
{
    (void)state;
    world_start(0);
    world_vm(A, 4 * MIB, "one");
    world_vm(B, 4 * MIB, "one");
    world_vm(C, 4 * MIB, "other");
    uint64_t gfns[40];
    for (unsigned i = 0; i < 40; i++)
        gfns[i] = 256 + i;
    for (unsigned n = A; n <= C; n++) {
        for (unsigned i = 0; i < 40; i++)
            load(1, n, gfns[i]); // populated by reading
        assert_int_equal(hint_many(n, gfns, 40), 40);
    }
    assert_int_equal(world_snapshot().count[FRAME_SHARED], 2); // one for each group
    assert_int_equal(sharers_of(A, 256), 80);
    assert_int_equal(sharers_of(C, 256), 40);
    assert_int_equal(world_snapshot().saved, 118);
    world_reset(A);
    assert_int_equal(sharers_of(B, 256), 40);
    load(1, A, 256);
    world_check_contents();
    world_finish();
}

// --- Somebody acts between the steps ---

static void write_a(void)
{
    store(3, A, P, 16, 1);
}

static void write_b(void)
{
    store(3, B, P, 16, 2);
}

static void write_a_and_back(void)
{
    store(3, A, P, 16, 1);
    fill(3, A, P, 42);
}

static void fusor_writes_a(void)
{
    static const uint64_t value = 3;
    assert_int_equal(fusor_write(A, P << PAGE_SHIFT, &value, sizeof(value)), 0);
}

static void fusor_writes_b(void)
{
    static const uint64_t value = 4;
    assert_int_equal(fusor_write(B, P << PAGE_SHIFT, &value, sizeof(value)), 0);
}

static void hint_c(void)
{
    uint64_t entry = FUSOR_ENTRY(P, FUSOR_CLASS_OTHER, 0);
    assert_int_equal(fusion_hint(&world.vm[C], &entry, 1), 1);
}

static void hint_a(void)
{
    uint64_t entry = FUSOR_ENTRY(P, FUSOR_CLASS_OTHER, 0);
    assert_int_equal(fusion_hint(&world.vm[A], &entry, 1), 1);
}

static void unhint_a(void)
{
    uint64_t entry = FUSOR_ENTRY(P, FUSOR_CLASS_OTHER, 0);
    assert_int_equal(fusion_unhint(&world.vm[A], &entry, 1), 1);
}

static void read_all(void)
{
    load(3, A, P);
    load(3, B, P);
    load(2, A, P);
    load(2, B, P);
}

static void pin_a(void)
{
    frame_of(leaf_of(A, P).frame)->count = 1;
}

static void (*const actions[])(void) = {
    write_a, write_b, write_a_and_back, fusor_writes_a, fusor_writes_b,
    hint_c,  hint_a,  unhint_a,         read_all,
};

// Any of these at any of the points that a hint passes, with translations of all CPUs cached.
// Locks in hand cannot be waited for by a test with one thread, so those points are left out.
static void test_every_action_at_every_point(void **state)
{
    (void)state;
    static const enum world_point points[] = {POINT_SHOOTDOWN, POINT_SHOT, POINT_GFN_LOCK,
                                              POINT_HASH};
    unsigned runs = 0, fused = 0;
    for (unsigned i = 0; i < ARRAY_SIZE(actions); i++) {
        for (unsigned j = 0; j < ARRAY_SIZE(points); j++) {
            for (unsigned n = 1;; n++) {
                start_pair();
                fill(3, C, P, 42);
                for (unsigned cpu = 1; cpu < WORLD_CPUS; cpu++) {
                    store(cpu, A, P, 0, 42);
                    store(cpu, B, P, 0, 42);
                }
                world_at(points[j], n, 3, actions[i]);
                assert_int_equal(hint(B, P), 1);
                bool done = world_pending() == 0;
                for (unsigned cpu = 0; cpu < WORLD_CPUS; cpu++) {
                    load(cpu, A, P);
                    load(cpu, B, P);
                    load(cpu, C, P);
                }
                runs++;
                fused += is_shared(B, P);
                world_check_contents();
                world_finish();
                if (!done)
                    break;
            }
        }
    }
    assert_in_range(runs, 100, 1000);
    assert_in_range(fused, runs / 4, runs - 30);
}

// A write to either side after both were protected cancels; nothing is fused.
static void test_write_while_protected(void **state)
{
    (void)state;
    static void (*const writes[])(void) = {write_a, write_b, fusor_writes_a, fusor_writes_b,
                                           write_a_and_back};
    for (unsigned i = 0; i < ARRAY_SIZE(writes); i++) {
        start_pair();
        world_at(POINT_SHOT, 2, 3, writes[i]);
        assert_int_equal(hint(B, P), 1);
        assert_int_equal(world_pending(), 0);
        assert_false(is_shared(A, P));
        assert_false(is_shared(B, P));
        assert_int_equal(rejected(B, FUSION_REJECT_BUSY), 1);
        assert_int_equal(FIGURE(A, cancelled) + FIGURE(B, cancelled), 1);
        assert_int_equal(world.compares, 0);
        world_check_contents();
        world_finish();
    }
}

// Intake 2 (C's) protects A's page again after a write took it from intake 1 (B's): intake 1 must
// not compare it, because intake 2's shootdown is still to come.
static void write_then_hint_c(void)
{
    write_a_and_back();
    hint_c();
}

static void test_candidate_of_another_intake(void **state)
{
    (void)state;
    start_pair();
    fill(1, C, P, 42);
    world_at(POINT_SHOT, 2, 3, write_then_hint_c);
    assert_int_equal(hint(B, P), 1);
    assert_int_equal(world_pending(), 0);
    assert_false(is_shared(A, P)); // its version ended with the write
    world_check_contents();
    world_finish();
}

// --- The partner goes ---

static void end_a(void)
{
    world_end_vm(A, false);
}

static void test_partner_destroyed_before(void **state)
{
    (void)state;
    start_pair();
    end_a();
    assert_int_equal(hint(B, P), 1);
    assert_int_equal(FIGURE(B, unmatched), 1); // a stale candidate is none
    world_finish();
}

static unsigned yields_left;

static void unpin_by_and_by(void)
{
    assert_int_not_equal(world_fusion(A)->users, 0);
    if (--yields_left == 0)
        fusion_unpin(world_fusion(A));
    else
        world_at(POINT_YIELD, 1, 2, unpin_by_and_by);
}

// While somebody works with its pages a VM's memory stays.
static void test_destroy_waits_for_pins(void **state)
{
    (void)state;
    start_pair();
    assert_ptr_equal(fusion_pin(world_fusion(A)->slot), world_fusion(A));
    yields_left = 5;
    world_at(POINT_YIELD, 1, 2, unpin_by_and_by);
    end_a();
    assert_int_equal(yields_left, 0);
    assert_null(fusion_pin(world_fusion(A)->slot));
    assert_int_equal(world_fusion(A)->users, 0);
    world_finish();
}

static void test_partner_reset_with_same_content(void **state)
{
    (void)state;
    start_pair();
    assert_int_equal(hint(B, P), 1);
    world_reset(A);
    assert_int_equal(sharers_of(B, P), 1);
    load(1, A, P); // zero
    load(1, B, P);
    fill(1, A, P, 42);
    assert_int_equal(hint(A, P), 1); // joins B's, alone until now
    assert_int_equal(sharers_of(B, P), 2);
    world_check_contents();
    world_finish();
}

// --- Wrong hints ---

static void collide(void)
{
    world.hash_mask = 0;
}

// Equal hashes, unequal pages: each costs one compare with each partner, and the stale candidate
// leaves the index.
static void test_mismatch(void **state)
{
    (void)state;
    world_start(0);
    world_vms(3);
    collide();
    fill(1, A, P, 1);
    fill(1, B, P, 2);
    hint(A, P);
    assert_int_equal(hint(B, P), 1);
    assert_int_equal(rejected(B, FUSION_REJECT_MISMATCH), 1);
    assert_int_equal(world.compares, 1);
    assert_false(is_shared(A, P));
    // Now B's is the one that others are compared with.
    fill(1, C, P, 2);
    assert_int_equal(hint(C, P), 1);
    assert_int_equal(FIGURE(C, fused), 1);
    assert_true(same_frame(B, P, C, P));
    world_check_contents();
    world_finish();
}

// 64 pages, all different, all colliding, again and again: bounded compares, nothing fused.
static void test_collisions_made_on_purpose(void **state)
{
    (void)state;
    world_start(0);
    world_vms(2);
    collide();
    uint64_t gfns[64];
    for (unsigned i = 0; i < 64; i++) {
        gfns[i] = P + i;
        fill(1, A, gfns[i], 100 + i * 1000);
        fill(1, B, gfns[i], 100000 + i * 1000);
    }
    for (unsigned round = 0; round < 5; round++) {
        hint_many(A, gfns, 64);
        hint_many(B, gfns, 64);
    }
    assert_int_equal(FIGURE(A, fused) + FIGURE(B, fused), 0);
    assert_true(world.compares <= 640);
    // Eight shared frames with this hash fill the bucket; more are shared but not found.
    uint64_t more[2] = {0, 0};
    for (unsigned i = 0; i < 12; i++) {
        more[0] = 300 + i * 2;
        more[1] = 301 + i * 2;
        fill(1, A, more[0], 7000000 + i * 1000);
        fill(1, A, more[1], 7000000 + i * 1000);
        hint_many(A, more, 2);
        hint_many(A, more, 2);
        hint_many(A, more, 2);
    }
    struct index_counts counts;
    index_count(&counts);
    assert_int_equal(counts.shared, INDEX_BUCKET);
    world_check_contents();
    world_finish();
}

static void test_page_changed_since_it_was_remembered(void **state)
{
    (void)state;
    start_pair();
    fill(1, A, P, 77);
    assert_int_equal(hint(B, P), 1); // the hash says equal, the pages differ
    assert_int_equal(rejected(B, FUSION_REJECT_MISMATCH), 1);
    // A's page is hinted anew, with its new content; the old entry is no more.
    assert_int_equal(hint(A, P), 1);
    fill(1, C, P, 77);
    assert_int_equal(hint(C, P), 1);
    assert_true(same_frame(A, P, C, P));
    assert_false(is_shared(B, P));
    world_check_contents();
    world_finish();
}

static void test_unhint(void **state)
{
    (void)state;
    start_pair();
    unhint_a();
    assert_int_equal(hint(B, P), 1);
    assert_int_equal(FIGURE(B, unmatched), 1);
    world_finish();
}

static void test_pinned(void **state)
{
    (void)state;
    start_pair();
    pin_a();
    assert_int_equal(hint(A, P), 1);
    assert_int_equal(rejected(A, FUSION_REJECT_PINNED), 1);
    assert_int_equal(hint(B, P), 1);
    assert_false(is_shared(B, P));
    frame_of(leaf_of(A, P).frame)->count = 0;
    world_at(POINT_SHOT, 2, 3, pin_a); // between protecting and comparing
    uint64_t entry = FUSOR_ENTRY(P, FUSOR_CLASS_OTHER, 0);
    fake_set_cpu(0);
    assert_int_equal(fusion_hint(&world.vm[B], &entry, 1), 1);
    assert_int_equal(world_pending(), 0);
    assert_false(is_shared(B, P));
    frame_of(leaf_of(A, P).frame)->count = 0;
    world_check(); // A's page is writable again
    world_finish();
}

// --- Saturation ---

static void test_saturation(void **state)
{
    (void)state;
    for (uint32_t max = 2; max <= 3; max++) {
        world_start(0);
        world_vms(2);
        fusion_sharers_max = max;
        uint64_t gfns[24];
        for (unsigned i = 0; i < 12; i++) {
            gfns[i] = P + i;
            fill(1, A, P + i, 9);
            fill(1, B, P + i, 9);
        }
        for (unsigned round = 0; round < 12; round++) {
            hint_many(A, gfns, 12);
            hint_many(B, gfns, 12);
        }
        for (unsigned i = 0; i < 12; i++) {
            assert_true(sharers_of(A, P + i) <= max);
            assert_true(sharers_of(B, P + i) <= max);
        }
        // The bucket finds eight frames; with those full there is no place for a candidate.
        assert_int_equal(world_snapshot().count[FRAME_SHARED], 8);
        assert_int_equal(world_snapshot().saved, 8 * (max - 1));
        world_check_contents();
        world_finish();
    }
    // In one chunk.
    world_start(0);
    world_vms(1);
    fusion_sharers_max = 2;
    uint64_t gfns[4] = {P, P + 1, P + 2, P + 3};
    for (unsigned i = 0; i < 4; i++)
        fill(1, A, gfns[i], 9);
    for (unsigned i = 0; i < 4; i++)
        hint_many(A, gfns, 4);
    assert_int_equal(world_snapshot().count[FRAME_SHARED], 2);
    assert_int_equal(world_snapshot().saved, 2);
    world_finish();
}

int main(void)
{
    static const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_two_pages),
        cmocka_unit_test(test_page_without_partner_costs_nothing),
        cmocka_unit_test(test_equal_pages_in_one_chunk),
        cmocka_unit_test(test_three_equal_in_two_vms),
        cmocka_unit_test(test_zero_pages),
        cmocka_unit_test(test_every_action_at_every_point),
        cmocka_unit_test(test_write_while_protected),
        cmocka_unit_test(test_candidate_of_another_intake),
        cmocka_unit_test(test_partner_destroyed_before),
        cmocka_unit_test(test_destroy_waits_for_pins),
        cmocka_unit_test(test_partner_reset_with_same_content),
        cmocka_unit_test(test_mismatch),
        cmocka_unit_test(test_collisions_made_on_purpose),
        cmocka_unit_test(test_page_changed_since_it_was_remembered),
        cmocka_unit_test(test_unhint),
        cmocka_unit_test(test_pinned),
        cmocka_unit_test(test_saturation),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
