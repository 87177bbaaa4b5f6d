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
// Who may share with whom; VMs that come, go and are switched off; the scanner.
#include "fusion_world.h"

#define A 0
#define B 1
#define C 2
#define D 3
#define P UINT64_C(600)

static void same_page(unsigned n, uint64_t gfn)
{
    fill(1, n, gfn, 42);
    assert_int_equal(hint(n, gfn), 1);
}

static void test_groups(void **state)
{
    (void)state;
    world_start(0);
    world_vm(A, 4 * MIB, "web");
    world_vm(B, 4 * MIB, "db");
    world_vm(C, 4 * MIB, "web");
    world_vm(D, 4 * MIB, "");
    world_vm(4, 4 * MIB, "");
    for (unsigned n = 0; n < 5; n++)
        same_page(n, P);
    assert_true(same_frame(A, P, C, P));
    assert_int_equal(sharers_of(A, P), 2);
    assert_false(is_shared(B, P));
    assert_false(is_shared(D, P));
    assert_false(is_shared(4, P)); // two private ones do not meet either
    // Within itself a private VM shares.
    same_page(D, P + 1);
    assert_true(same_frame(D, P, D, P + 1));
    assert_int_equal(fusion_group_find("web"), world_fusion(A)->group);
    assert_int_equal(fusion_group_find("db"), world_fusion(B)->group);
    assert_int_equal(fusion_group_find(""), -1);
    assert_int_equal(fusion_group_find("none"), -1);
    world_check_contents();
    world_finish();
    assert_int_equal(fusion_group_find("db"), -1);
}

// Collisions across groups are not even compared.
static void test_groups_with_equal_hashes(void **state)
{
    (void)state;
    world_start(0);
    world.hash_mask = 0;
    world_vm(A, 4 * MIB, "one");
    world_vm(B, 4 * MIB, "two");
    same_page(A, P);
    same_page(B, P);
    assert_int_equal(world.compares, 0);
    assert_false(is_shared(B, P));
    world_finish();
}

static void test_group_is_kept_while_it_has_members(void **state)
{
    (void)state;
    world_start(0);
    world_vm(A, 4 * MIB, "web");
    world_vm(B, 4 * MIB, "web");
    uint8_t group = world_fusion(A)->group;
    same_page(B, P);
    world_end_vm(A, true);
    world_check();
    world_vm(C, 4 * MIB, "other");
    assert_int_not_equal(world_fusion(C)->group, group);
    world_vm(A, 4 * MIB, "web");
    assert_int_equal(world_fusion(A)->group, group);
    same_page(A, P);
    assert_true(same_frame(A, P, B, P));
    world_finish();
}

// A VM that begins while another one's memory is given back must not meet its pages, whose group
// has no other member.
static void create_d(void)
{
    assert_int_equal(world_create(D), 0);
    uint64_t entry = FUSOR_ENTRY(P, FUSOR_CLASS_OTHER, 0);
    fill(3, D, P, 42);
    world_use(3);
    assert_int_equal(fusion_hint(&world.vm[D], &entry, 1), 1);
}

static void test_no_group_of_the_dying(void **state)
{
    (void)state;
    world_start(0);
    world_vm(A, 4 * MIB, "web");
    for (uint64_t gfn = 256; gfn < 1024; gfn++)
        fill(1, A, gfn, gfn == P || gfn == P + 1 ? 42 : gfn * 1000);
    hint(A, P);
    hint(A, P + 1);
    assert_int_equal(sharers_of(A, P), 2);
    world_configure(D, 4 * MIB, "others");
    world_at(POINT_YIELD, 1, 3, create_d);
    world_end_vm(A, false);
    assert_int_equal(world_pending(), 0);
    assert_false(is_shared(D, P));
    world_check();
    world_finish();
}

// --- Ends ---

static void test_end_of_a_vm_with_shared_frames(void **state)
{
    (void)state;
    world_start(0);
    world_vms(3);
    for (unsigned n = A; n <= C; n++)
        for (unsigned i = 0; i < 20; i++) {
            fill(1, n, P + i, 1 + i / (n + 1) * 1000);
            hint(n, P + i);
        }
look: // every CPU knows every translation
    for (unsigned cpu = 1; cpu < WORLD_CPUS; cpu++)
        for (unsigned n = A; n <= C; n++)
            for (unsigned i = 0; i < 20 && world.vm[n].memory_present; i++)
                load(cpu, n, P + i);
    world_check();
    world_check_contents();
    for (unsigned n = A; n <= C; n++) {
        if (world.vm[n].memory_present) {
            world_end_vm(n, true);
            goto look;
        }
    }
    assert_int_equal(world_snapshot().count[FRAME_SHARED], 0);
    world_finish();
}

// Freed memory comes back as zero, and a root that is used again brings no old translations.
static void test_memory_after_a_reset(void **state)
{
    (void)state;
    world_start(0);
    world_vms(2);
    for (unsigned round = 0; round < 20; round++) {
        for (unsigned n = A; n <= B; n++) {
            for (unsigned i = 0; i < 10; i++)
                load(2, n, P + i); // zero
            for (unsigned i = 0; i < 10; i++) {
                fill(1, n, P + i, 1 + i * 1000 + round);
                hint(n, P + i);
            }
            for (unsigned i = 0; i < 10; i++)
                load(3, n, P + i);
        }
        assert_int_equal(world_snapshot().saved, 10);
        world_reset(round % 2);
        world_check_contents();
        world_reset(!(round % 2));
    }
    world_finish();
}

static void test_slots_come_back(void **state)
{
    (void)state;
    world_start(0);
    world_vm(A, 4 * MIB, "web");
    for (unsigned i = 0; i < 3 * INDEX_SLOTS; i++) {
        world_vm(B, 4 * MIB, i % 2 == 0 ? "web" : "");
        same_page(B, P); // its candidates stay behind
        world_end_vm(B, true);
        world_check();
    }
    same_page(A, P);
    assert_int_equal(FIGURE(A, fused), 0);
    world_finish();
}

// Whoever looks at a slot for a moment does not harm the VM that goes or comes just then.
static void test_pin_of_a_free_slot(void **state)
{
    (void)state;
    world_start(0);
    world_vms(2);
    struct fusion_vm *f = world_fusion(B);
    uint8_t slot = f->slot;
    world_end_vm(B, false);
    atomic_fetch_add(&f->users, 1); // the first half of fusion_pin on another CPU
    fusion_memory_ops.forget(&world.vm[B]);
    world_configure(B, 4 * MIB, "all");
    assert_int_equal(world_create(B), 0);
    assert_int_equal(world_fusion(B)->slot, slot);
    atomic_fetch_sub(&f->users, 1); // the second
    assert_int_equal(f->users, 0);
    assert_ptr_equal(fusion_pin(slot), f);
    fusion_unpin(f);
    world_finish();
}

static void test_create_without_memory(void **state)
{
    (void)state;
    unsigned n = 1;
    for (;; n++) {
        world_start(0);
        world_vm(A, 4 * MIB, "all");
        same_page(A, P);
        world_configure(B, 4 * MIB, "all");
        world.failed = false;
        world.fail_at = n;
        int status = world_create(B);
        world.fail_at = 0;
        assert_int_equal(status, world.failed ? E_NOMEM : 0);
        if (world.failed)
            assert_false(world.vm[B].memory_present);
        world_check();
        bool failed = world.failed;
        if (failed)
            assert_int_equal(world_create(B), 0);
        same_page(B, P);
        assert_true(is_shared(B, P));
        world_finish();
        if (!failed)
            break;
    }
    assert_in_range(n, 4, 10);
    world_start(0);
    world.fail_at = 1;
    assert_int_equal(service_init(), E_NOMEM);
    world_finish();
}

// --- Off and on ---

static void share_many(unsigned count)
{
    for (unsigned n = A; n <= B; n++)
        for (unsigned i = 0; i < count; i++) {
            fill(1, n, P + i, 1 + i * 1000);
            hint(n, P + i);
        }
    assert_int_equal(world.vm[A].account.shared_gfns, count);
}

static void test_switch_off(void **state)
{
    (void)state;
    world_start(0);
    world_vms(2);
    share_many(300);
    for (unsigned i = 0; i < 300; i += 7)
        load(2, A, P + i);
    struct fusion_info info;
    fusion_off(A);
    assert_int_equal(fusion_get("a", &info), 0);
    assert_int_equal(info.mode, FUSION_SPLITTING);
    assert_int_equal(info.shared_left, 300);
    unsigned yields = world.yields;
    service_round();
    assert_true(world.yields > yields); // in steps
    assert_int_equal(fusion_get("a", &info), 0);
    assert_int_equal(info.mode, FUSION_OFF);
    assert_int_equal(info.shared_left, 0);
    assert_int_equal(FIGURE(A, splits), 300);
    assert_int_equal(FIGURE(A, backoff), 0);
    assert_int_equal(world.vm[A].account.shared_gfns, 0);
    assert_int_equal(world.vm[B].account.shared_gfns, 300); // with one sharer each
    for (unsigned i = 0; i < 300; i += 7) {
        load(2, A, P + i);
        load(2, B, P + i);
    }
    // Nobody fuses with it while it is off; on again it takes part at once.
    fill(1, A, 400, 77);
    fill(1, B, 400, 77);
    hint(B, 400);
    assert_int_equal(hint(A, 400), -FUSOR_EBUSY);
    fusion_on(A);
    hint(A, 400);
    assert_true(same_frame(A, 400, B, 400));
    hint(A, P);
    assert_true(same_frame(A, P, B, P));
    world_check_contents();
    world_finish();
}

static void test_switch_off_without_frames(void **state)
{
    (void)state;
    world_start(0);
    world_vms(2);
    share_many(50);
    world_starve(0);
    fusion_off(A);
    struct fusion_info info;
    for (unsigned i = 0; i < 3; i++) {
        service_round();
        fusion_get("a", &info);
        assert_int_equal(info.mode, FUSION_SPLITTING);
        assert_int_equal(info.shared_left, 50);
    }
    world_feed();
    world_starve(20);
    service_round();
    fusion_get("a", &info);
    assert_int_equal(info.mode, FUSION_SPLITTING);
    assert_int_equal(info.shared_left, 30);
    // Switched on in the middle: what is shared stays.
    fusion_on(A);
    service_round();
    fusion_get("a", &info);
    assert_int_equal(info.mode, FUSION_ON);
    assert_int_equal(world.vm[A].account.shared_gfns, 30);
    fusion_off(A);
    world_feed();
    service_round();
    fusion_get("a", &info);
    assert_int_equal(info.mode, FUSION_OFF);
    world_check_contents();
    world_finish();
}

// Pages behind one that finds no frame: those that need none do not wait for it.
static void test_switch_off_gets_on_without_frames(void **state)
{
    (void)state;
    struct fusion_info info;
    world_start(0);
    world_vms(3);
    for (unsigned i = 0; i < 20; i++) {
        unsigned partner = i < 10 ? B : C;
        fill(1, A, P + i, 42 + i);
        fill(1, partner, P + i, 42 + i);
        hint(A, P + i);
        hint(partner, P + i);
    }
    fusion_off(A);
    world_end_vm(C, true);
    world_starve(0);
    for (unsigned i = 0; i < 2; i++) {
        service_round();
        fusion_get("a", &info);
        assert_int_equal(info.mode, FUSION_SPLITTING);
        assert_int_equal(info.shared_left, 10);
    }
    world_feed();
    service_round();
    fusion_get("a", &info);
    assert_int_equal(info.mode, FUSION_OFF);
    world_check_contents();
    world_finish();
}

static void write_ahead(void)
{
    store(3, A, P + 299, 8, 5);
    store(3, A, P, 8, 6);
    store(3, B, P + 298, 8, 7);
}

static void reset_config(void)
{
    world_fusion(A)->active = false; // what its destruction does first
}

static void test_others_while_splitting(void **state)
{
    (void)state;
    world_start(0);
    world_vms(2);
    share_many(300);
    fusion_off(A);
    world_at(POINT_YIELD, 2, 3, write_ahead);
    service_round();
    assert_int_equal(world_pending(), 0);
    assert_int_equal(world.vm[A].account.shared_gfns, 0);
    world_check_contents();
    // The end of the VM ends the work.
    fusion_on(A);
    share_many(300);
    fusion_off(A);
    world_at(POINT_YIELD, 2, 3, reset_config);
    service_round();
    assert_true(world.vm[A].account.shared_gfns > 0);
    world_fusion(A)->active = true;
    world_finish();
}

// What a VM that is off remembered must not keep others from each other.
static void test_candidates_of_a_vm_that_is_off(void **state)
{
    (void)state;
    world_start(0);
    world_vms(3);
    same_page(A, P);
    fusion_off(A);
    service_round();
    same_page(B, P); // finds A's, in vain
    same_page(C, P);
    hint(B, P);
    hint(C, P);
    assert_false(is_shared(A, P));
    assert_true(same_frame(B, P, C, P));
    world_finish();
}

static void test_off_from_the_start(void **state)
{
    (void)state;
    world_start(0);
    world_vm(A, 4 * MIB, "all");
    world_configure(B, 4 * MIB, "all");
    world.vm[B].config.page_fusion = false;
    assert_int_equal(world_create(B), 0);
    struct fusion_info info;
    assert_int_equal(fusion_get("b", &info), 0);
    assert_int_equal(info.mode, FUSION_OFF);
    fill(1, B, P, 42);
    assert_int_equal(hint(B, P), -FUSOR_EBUSY);
    same_page(A, P);
    service_round();
    assert_false(is_shared(A, P));
    world_finish();
}

// --- The scanner ---

static void test_scanner(void **state)
{
    (void)state;
    world_start(0);
    for (unsigned n = A; n <= B; n++) {
        world_configure(n, 4 * MIB, "all");
        world.vm[n].config.scan = 500;
        assert_int_equal(world_create(n), 0);
        for (unsigned i = 0; i < 100; i++)
            fill(1, n, P + i, 1 + i * 1000);
        fill(1, n, 3, 9); // below the hole
    }
    world_vm(C, 4 * MIB, "all");
    fill(1, C, P, 1);
    // 928 pages of RAM: two seconds for all of them, and once more.
    for (unsigned i = 0; i < 4; i++)
        service_round();
    assert_int_equal(world.vm[A].account.shared_gfns, 101);
    assert_int_equal(world.vm[B].account.shared_gfns, 101);
    assert_int_equal(world.vm[C].account.shared_gfns, 0);
    assert_in_range(FIGURE(A, scanned), 101, 303);
    assert_true(FIGURE(A, ticks) > 0);
    // A budget of hints is not touched, and off means off.
    fusion_off(A);
    service_round();
    uint64_t scanned = FIGURE(A, scanned);
    service_round();
    service_round();
    assert_int_equal(FIGURE(A, scanned), scanned);
    world_check_contents();
    world_finish();
}

// The scanner goes on behind the hole below 4 GiB, and begins again.
static void test_scan_of_odd_sizes(void **state)
{
    (void)state;
    static const uint64_t sizes[] = {4 * MIB, 4 * MIB - PAGE_SIZE, 512 * 1024, 1 * MIB, PAGE_SIZE};
    for (unsigned i = 0; i < ARRAY_SIZE(sizes); i++) {
        world_start(0);
        world_configure(A, sizes[i], "all");
        world.vm[A].config.scan = 100000;
        assert_int_equal(world_create(A), 0);
        uint64_t last = sizes[i] / PAGE_SIZE - 1;
        last = last >= 0xa0 && last < 0x100 ? 0x9f : last;
        load(1, A, 0);
        load(1, A, last);
        for (unsigned k = 0; k < 3; k++)
            service_round();
        assert_int_equal(is_shared(A, last), last != 0);
        world_finish();
    }
}

// Figures of a VM that was reset go on; those of a new one begin at zero.
static void test_figures_after_a_reset(void **state)
{
    (void)state;
    world_start(0);
    world_vms(2);
    same_page(A, P);
    same_page(B, P);
    world_reset(B);
    assert_int_equal(FIGURE(B, fused), 1);
    world_end_vm(B, true);
    world_vm(B, 4 * MIB, "all");
    assert_int_equal(FIGURE(B, fused), 0);
    assert_int_equal(FIGURE(B, received), 0);
    world_finish();
}

int main(void)
{
    static const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_groups),
        cmocka_unit_test(test_groups_with_equal_hashes),
        cmocka_unit_test(test_group_is_kept_while_it_has_members),
        cmocka_unit_test(test_no_group_of_the_dying),
        cmocka_unit_test(test_end_of_a_vm_with_shared_frames),
        cmocka_unit_test(test_memory_after_a_reset),
        cmocka_unit_test(test_slots_come_back),
        cmocka_unit_test(test_pin_of_a_free_slot),
        cmocka_unit_test(test_create_without_memory),
        cmocka_unit_test(test_switch_off),
        cmocka_unit_test(test_switch_off_without_frames),
        cmocka_unit_test(test_switch_off_gets_on_without_frames),
        cmocka_unit_test(test_others_while_splitting),
        cmocka_unit_test(test_candidates_of_a_vm_that_is_off),
        cmocka_unit_test(test_off_from_the_start),
        cmocka_unit_test(test_scanner),
        cmocka_unit_test(test_scan_of_odd_sizes),
        cmocka_unit_test(test_figures_after_a_reset),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
