// SPDX-License-Identifier: BSD-2-Clause
// sources: kernel/frame_hold.c
// sources: vm/access.c vm/memory_large.c
// sources: vm/memory.c vm/ballooned.c vm/reserve.c ept/walk.c ept/map.c ept/large.c ept/destroy.c
// sources: ept/shootdown.c ept/fault.c kernel/frames.c kernel/frame_buddy.c kernel/frame_cache.c
// sources: kernel/frame_zero.c kernel/frame_poison.c kernel/frame_share.c kernel/frame_account.c
// sources: kernel/heap.c kernel/lock.c
// libs: -Wl,--wrap=frame_alloc
// Promotion: 2 MiB ranges of which enough was touched become one page, with the same contents.
#include "vm_memory_world.h"

static void check_promotion(uint64_t memory, uint64_t base, bool irq_on)
{
    start(memory, VM_LARGE_AUTO);
    fake_irq_on = irq_on;
    fill(base, 0, VM_PROMOTE_TOUCHES - 1);
    assert_int_equal(vm.ept.large_leaves, 0);
    assert_int_equal(vm.account.private_frames, VM_PROMOTE_TOUCHES - 1);
    check();
    hfn_t old[512];
    uint64_t versions[512];
    for (unsigned i = 0; i < VM_PROMOTE_TOUCHES - 1; i++) {
        old[i] = leaf_at(scattered(base, i)).frame;
        versions[i] = frame_of(old[i])->version;
    }
    struct frames_snapshot before = snapshot();
    uint64_t tables = vm.ept.table_frames;
    fill(base, VM_PROMOTE_TOUCHES - 1, VM_PROMOTE_TOUCHES);
    assert_int_equal(fake_irq_on, irq_on);

    assert_int_equal(vm.promotions, 1);
    assert_int_equal(vm.ept.large_leaves, 1);
    assert_int_equal(vm.account.private_frames, 512);
    assert_int_equal(vm.ept.table_frames, tables - 1);
    struct frames_snapshot after = snapshot();
    assert_int_equal(after.count[FRAME_FUSOR], before.count[FRAME_FUSOR]);
    assert_int_equal(after.count[FRAME_TABLE], before.count[FRAME_TABLE] - 1);
    assert_int_equal(after.count[FRAME_PRIVATE],
                     before.count[FRAME_PRIVATE] + 512 - (VM_PROMOTE_TOUCHES - 1));
    struct ept_leaf leaf = leaf_at(base);
    assert_int_equal(leaf.level, EPT_2M);
    assert_int_equal(leaf.permissions, EPT_RWX);
    for (unsigned i = 0; i < VM_PROMOTE_TOUCHES - 1; i++) {
        assert_int_equal(frame_of(old[i])->state, FRAME_FREE);
        assert_true(frame_of(old[i])->version == versions[i] + 1);
    }
    check();
    // The word of the last page was written after the promotion, through the large leaf.
    check_filled(base, VM_PROMOTE_TOUCHES);
    fill(base, VM_PROMOTE_TOUCHES, 512); // all there: not one frame more
    check_filled(base, 512);
    assert_int_equal(vm.account.private_frames, 512);
    assert_int_equal(vm.promotions, 1);
    finish();
}

static void test_promotion(void **state)
{
    (void)state;
    check_promotion(8 * MIB, 4 * MIB, false);
    check_promotion(8 * MIB, 6 * MIB, true);
    check_promotion(5 * GIB, 3 * GIB - RANGE, false);
    check_promotion(5 * GIB, 4 * GIB, false);
    check_promotion(5 * GIB, 6 * GIB - RANGE, false);
}

// Ranges on both sides of the hole count apart.
static void test_ranges_count_apart(void **state)
{
    (void)state;
    start(5 * GIB, VM_LARGE_AUTO);
    static const uint64_t bases[] = {2 * MIB, 3 * GIB - RANGE, 4 * GIB, 4 * GIB + RANGE,
                                     6 * GIB - RANGE};
    for (unsigned i = 0; i < ARRAY_SIZE(bases); i++)
        fill(bases[i], 0, VM_PROMOTE_TOUCHES - 1);
    assert_int_equal(vm.promotions, 0);
    for (unsigned i = 0; i < ARRAY_SIZE(bases); i++) {
        fill(bases[i], VM_PROMOTE_TOUCHES - 1, VM_PROMOTE_TOUCHES);
        assert_int_equal(vm.promotions, i + 1);
        assert_int_equal(leaf_at(bases[i]).level, EPT_2M);
        check_filled(bases[i], VM_PROMOTE_TOUCHES);
    }
    check();
    finish();
}

// CPU 1 is in the guest while CPU 0 promotes: what must be true when it is made to leave.
static hfn_t before_promotion[512];

static void check_order(void)
{
    struct ept_leaf leaf = leaf_at(4 * MIB);
    if (nmi_count == 1) {
        // First shootdown: nobody can write to what will be copied.
        for (unsigned i = 0; i < 512; i++) {
            leaf = leaf_at(4 * MIB + i * PAGE_SIZE);
            if (leaf.present) {
                assert_int_equal(leaf.level, EPT_4K);
                assert_int_equal(leaf.permissions, EPT_READ | EPT_EXECUTE);
            }
        }
        // CPU 1 still wrote through its old translation until now: that must not be lost.
        memset(hfn_to_pointer(before_promotion[3]), 0x3c, PAGE_SIZE);
    } else {
        // Second: the large leaf stands, and the old frames are nobody else's yet.
        assert_int_equal(leaf.level, EPT_2M);
        for (unsigned i = 0; i < VM_PROMOTE_TOUCHES - 1; i++)
            assert_int_equal(frame_of(before_promotion[i])->state, FRAME_PRIVATE);
    }
    if (nmi_count == 1)
        ept_guest_begin(&vm.ept, 1); // it comes back at once, with the present epoch
}

static void test_promotion_order(void **state)
{
    (void)state;
    start(8 * MIB, VM_LARGE_AUTO);
    fill(4 * MIB, 0, VM_PROMOTE_TOUCHES - 1);
    for (unsigned i = 0; i < VM_PROMOTE_TOUCHES - 1; i++)
        before_promotion[i] = leaf_at(scattered(4 * MIB, i)).frame;
    ept_guest_begin(&vm.ept, 1);
    nmi_hook = check_order;
    uint64_t shootdowns = vm.ept.shootdowns;
    touch(scattered(4 * MIB, 500));
    assert_int_equal(vm.promotions, 1);
    assert_int_equal(vm.ept.shootdowns, shootdowns + 2);
    assert_int_equal(nmi_count, 2);
    assert_true(is_all(page(scattered(4 * MIB, 3)), 0x3c, PAGE_SIZE));
    nmi_hook = NULL;
    finish();
}

static void check_not_promoted(uint64_t base)
{
    assert_int_equal(vm.promotions, 0);
    assert_int_equal(vm.ept.large_leaves, 0);
    fill(base, VM_PROMOTE_TOUCHES, 512);
    assert_int_equal(vm.promotions, 0);
    assert_int_equal(vm.account.private_frames, 512);
    check_filled(base, 512);
    for (unsigned i = 0; i < 512; i++)
        assert_int_equal(leaf_at(base + i * PAGE_SIZE).permissions, EPT_RWX);
    finish();
}

static void test_no_promotion(void **state)
{
    (void)state;
    // Switched off.
    start(8 * MIB, VM_LARGE_OFF);
    fill(4 * MIB, 0, VM_PROMOTE_TOUCHES);
    check_not_promoted(4 * MIB);
    // Not known to the CPU.
    start(8 * MIB, VM_LARGE_AUTO);
    ept_features.page_2m = false;
    fill(4 * MIB, 0, VM_PROMOTE_TOUCHES);
    check_not_promoted(4 * MIB);
    // A pinned frame must stay where it is.
    start(8 * MIB, VM_LARGE_AUTO);
    fill(4 * MIB, 0, 100);
    struct ept_leaf pinned = leaf_at(scattered(4 * MIB, 50));
    frame_of(pinned.frame)->count = 1;
    fill(4 * MIB, 100, VM_PROMOTE_TOUCHES);
    assert_true(leaf_at(scattered(4 * MIB, 50)).frame.raw == pinned.frame.raw);
    check_not_promoted(4 * MIB);
    // A candidate of fusion's must not be copied either; what it may do stays as it was.
    start(8 * MIB, VM_LARGE_AUTO);
    fill(4 * MIB, 0, 100);
    gfn_t candidate = gpa_to_gfn(gpa(scattered(4 * MIB, 60)));
    ept_lock_gfn(&vm.ept, candidate);
    ept_protect(&vm.ept, candidate, EPT_READ | EPT_EXECUTE, EPT_KIND_CANDIDATE);
    ept_unlock_gfn(&vm.ept, candidate);
    fill(4 * MIB, 100, VM_PROMOTE_TOUCHES);
    struct ept_leaf leaf = ept_lookup(&vm.ept, candidate);
    assert_int_equal(leaf.kind, EPT_KIND_CANDIDATE);
    assert_int_equal(leaf.permissions, EPT_READ | EPT_EXECUTE);
    ept_lock_gfn(&vm.ept, candidate);
    ept_protect(&vm.ept, candidate, EPT_RWX, EPT_KIND_PRIVATE);
    ept_unlock_gfn(&vm.ept, candidate);
    check_not_promoted(4 * MIB);
}

static void test_no_promotion_of_ranges_in_parts(void **state)
{
    (void)state;
    // The first range has a hole and the ROM in it; the last one ends early.
    start(8 * MIB - PAGE_SIZE, VM_LARGE_AUTO);
    uint64_t pages = 0;
    for (uint64_t a = 0; a < RANGE; a += PAGE_SIZE)
        if (vm_area_of(&vm, gpa_to_gfn(gpa(a))) == VM_AREA_RAM) {
            touch(a);
            pages++;
        }
    assert_in_range(pages, VM_PROMOTE_TOUCHES - 32, 511);
    for (uint64_t a = 6 * MIB; a < 8 * MIB - PAGE_SIZE; a += PAGE_SIZE) {
        touch(a);
        pages++;
    }
    assert_int_equal(vm.promotions, 0);
    assert_int_equal(vm.account.private_frames, pages);
    finish();
}

// The touch that promotes allocates the page, the list of old frames and the block.
static void test_promotion_without_frames(void **state)
{
    (void)state;
    for (unsigned n = 1; n <= 4; n++) {
        start(8 * MIB, VM_LARGE_AUTO);
        fill(4 * MIB, 0, VM_PROMOTE_TOUCHES - 1);
        uint64_t fusor = snapshot().count[FRAME_FUSOR];
        fail_at = n;
        enum ept_fault_result result = fault(scattered(4 * MIB, VM_PROMOTE_TOUCHES - 1), WRITE);
        fail_at = 0;
        assert_int_equal(failed, n <= 3);
        assert_int_equal(result, n == 1 ? EPT_FAULT_WAIT : EPT_FAULT_RETRY);
        assert_int_equal(vm.promotions, n == 4);
        assert_int_equal(vm.account.private_frames, n == 1   ? VM_PROMOTE_TOUCHES - 1
                                                    : n == 4 ? 512
                                                             : VM_PROMOTE_TOUCHES);
        assert_int_equal(snapshot().count[FRAME_FUSOR], fusor);
        check();
        check_filled(4 * MIB, VM_PROMOTE_TOUCHES - 1);
        fill(4 * MIB, VM_PROMOTE_TOUCHES - 1, 512);
        assert_int_equal(vm.promotions, n == 1 || n == 4); // after a wait it is done after all
        check_filled(4 * MIB, 512);
        assert_int_equal(vm.account.private_frames, 512);
        finish();
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_promotion),
        cmocka_unit_test(test_ranges_count_apart),
        cmocka_unit_test(test_promotion_order),
        cmocka_unit_test(test_no_promotion),
        cmocka_unit_test(test_no_promotion_of_ranges_in_parts),
        cmocka_unit_test(test_promotion_without_frames),
    };
    return cmocka_run_group_tests(tests, register_hook, release);
}
