// SPDX-License-Identifier: BSD-2-Clause
// sources: kernel/frame_hold.c
// sources: vm/access.c vm/memory_large.c
// sources: vm/memory.c vm/ballooned.c vm/reserve.c ept/walk.c ept/map.c ept/large.c ept/destroy.c
// sources: ept/shootdown.c ept/fault.c kernel/frames.c kernel/frame_buddy.c kernel/frame_cache.c
// sources: kernel/frame_zero.c kernel/frame_poison.c kernel/frame_share.c kernel/frame_account.c
// sources: kernel/heap.c kernel/lock.c
// libs: -Wl,--wrap=frame_alloc
// Large pages from the first touch on, and those that may not be executed as a whole.
#include "vm_memory_world.h"

// --- Eager large pages ---

static void test_eager(void **state)
{
    (void)state;
    static const uint64_t bases[] = {2 * MIB, 3 * GIB - RANGE, 4 * GIB, 6 * GIB - RANGE};
    static const enum access kinds[] = {READ, WRITE, FETCH, WRITE};
    start(5 * GIB, VM_LARGE_EAGER);
    for (unsigned i = 0; i < ARRAY_SIZE(bases); i++) {
        fake_irq_on = i % 2 == 0;
        assert_int_equal(fault(bases[i] + i * 0x12345, kinds[i]), EPT_FAULT_RETRY);
        assert_int_equal(fake_irq_on, i % 2 == 0);
        struct ept_leaf leaf = leaf_at(bases[i]);
        assert_true(leaf.present);
        assert_int_equal(leaf.level, EPT_2M);
        assert_int_equal(leaf.permissions, EPT_RWX);
        assert_true(is_all(hfn_to_pointer(leaf.frame), 0, RANGE));
        assert_int_equal(vm.ept.large_leaves, i + 1);
        assert_int_equal(vm.account.private_frames, (i + 1) * 512);
        assert_false(leaf_at(bases[i] - 1).present);
        assert_int_equal(fault(bases[i] + RANGE - 1, WRITE), EPT_FAULT_RETRY);
        assert_int_equal(vm.account.private_frames, (i + 1) * 512);
    }
    check();
    // Where a hole is, by single pages.
    touch(0x9f000);
    touch(0x100000);
    assert_int_equal(leaf_at(0x100000).level, EPT_4K);
    assert_int_equal(vm.account.private_frames, ARRAY_SIZE(bases) * 512 + 2);
    finish();

    start(8 * MIB - PAGE_SIZE, VM_LARGE_EAGER);
    touch(7 * MIB);
    assert_int_equal(leaf_at(7 * MIB).level, EPT_4K);
    assert_int_equal(vm.account.private_frames, 1);
    finish();

    start(8 * MIB, VM_LARGE_EAGER);
    ept_features.page_2m = false;
    touch(4 * MIB);
    assert_int_equal(leaf_at(4 * MIB).level, EPT_4K);
    finish();
}

// Without a block, by single pages; and later it is promoted like any other.
static void test_eager_without_block(void **state)
{
    (void)state;
    start(8 * MIB, VM_LARGE_EAGER);
    fail_large = true;
    fill(4 * MIB, 0, VM_PROMOTE_TOUCHES - 1);
    assert_int_equal(vm.ept.large_leaves, 0);
    assert_int_equal(vm.account.private_frames, VM_PROMOTE_TOUCHES - 1);
    check();
    fail_large = false;
    fill(4 * MIB, VM_PROMOTE_TOUCHES - 1, 512);
    assert_int_equal(vm.promotions, 1);
    check_filled(4 * MIB, 512);
    finish();
}

// A table hangs there already, though it maps nothing: the block goes back.
static void test_eager_over_table(void **state)
{
    (void)state;
    start(8 * MIB, VM_LARGE_EAGER);
    assert_int_equal(ept_prepare(&vm.ept, gfn(1024)), 0);
    touch(4 * MIB);
    assert_int_equal(leaf_at(4 * MIB).level, EPT_4K);
    assert_int_equal(vm.account.private_frames, 1);
    finish();
}

// Tables above (2), block; when that fails: tables (again), page.
static void test_eager_without_frames(void **state)
{
    (void)state;
    unsigned n = 1;
    for (;; n++) {
        start(8 * MIB, VM_LARGE_EAGER);
        fail_at = n;
        enum ept_fault_result result = fault(4 * MIB, WRITE);
        fail_at = 0;
        assert_int_equal(result, EPT_FAULT_RETRY); // one failure is no reason to wait
        assert_int_equal(leaf_at(4 * MIB).level, failed ? EPT_4K : EPT_2M);
        assert_int_equal(vm.account.private_frames, failed ? 1 : 512);
        finish();
        if (!failed)
            break;
    }
    assert_int_equal(n, 4);
    // No block, and then each of the others: the last table and the page.
    for (n = 1; n <= 6; n++) {
        start(8 * MIB, VM_LARGE_EAGER);
        fail_large = true;
        fail_at = 0;
        touch(0); // tables that are common to all
        failed = false;
        uint64_t private_frames = vm.account.private_frames;
        fail_at = n;
        enum ept_fault_result result = fault(4 * MIB, WRITE);
        unsigned left = fail_at;
        fail_at = 0;
        assert_int_equal(result, left == 0 ? EPT_FAULT_WAIT : EPT_FAULT_RETRY);
        assert_int_equal(left == 0, n <= 2);
        assert_int_equal(vm.account.private_frames, private_frames + (left == 0 ? 0 : 1));
        check();
        touch(4 * MIB);
        finish();
    }
}

// --- ITLB multihit ---

static void test_split_on_fetch(void **state)
{
    (void)state;
    for (unsigned eager = 0; eager < 2; eager++) {
        start(8 * MIB, eager ? VM_LARGE_EAGER : VM_LARGE_AUTO);
        ept_features.large_executable_safe = false;
        fill(4 * MIB, 0, VM_PROMOTE_TOUCHES);
        struct ept_leaf large = leaf_at(4 * MIB);
        assert_int_equal(large.level, EPT_2M);
        assert_int_equal(large.permissions, EPT_READ | EPT_WRITE);
        uint64_t tables = vm.ept.table_frames, shootdowns = vm.ept.shootdowns;
        // Reads and writes do not split it.
        assert_int_equal(fault(4 * MIB, READ), EPT_FAULT_RETRY);
        assert_int_equal(fault(4 * MIB, WRITE), EPT_FAULT_RETRY);
        assert_int_equal(leaf_at(4 * MIB).level, EPT_2M);
        assert_int_equal(vm.ept.large_splits, 0);
        fail_at = 1;
        assert_int_equal(fault(5 * MIB, FETCH), EPT_FAULT_WAIT);
        fail_at = 0;
        assert_int_equal(leaf_at(4 * MIB).level, EPT_2M);
        check();

        assert_int_equal(fault(5 * MIB, FETCH), EPT_FAULT_RETRY);
        assert_int_equal(vm.ept.large_splits, 1);
        assert_int_equal(vm.ept.large_leaves, 0);
        assert_int_equal(vm.ept.table_frames, tables + 1);
        assert_true(vm.ept.shootdowns > shootdowns);
        for (unsigned i = 0; i < 512; i++) {
            struct ept_leaf leaf = leaf_at(4 * MIB + i * PAGE_SIZE);
            assert_int_equal(leaf.level, EPT_4K);
            assert_int_equal(leaf.permissions, EPT_RWX);
            assert_true(leaf.frame.raw == large.frame.raw + i);
        }
        check();
        check_filled(4 * MIB, VM_PROMOTE_TOUCHES);
        // The fault of another CPU that still saw the large leaf.
        assert_int_equal(fault_with(6 * MIB - 1, FETCH, large), EPT_FAULT_RETRY);
        assert_int_equal(vm.ept.large_splits, 1);
        assert_int_equal(vm.ept.table_frames, tables + 1);
        fill(4 * MIB, VM_PROMOTE_TOUCHES, 512); // and it does not become large again
        assert_int_equal(vm.ept.large_leaves, 0);
        check_filled(4 * MIB, 512);
        finish();
    }
}

// Where it is safe, a large page stays whole under fetches.
static void test_no_split_when_safe(void **state)
{
    (void)state;
    start(8 * MIB, VM_LARGE_EAGER);
    touch(4 * MIB);
    assert_int_equal(fault(4 * MIB + 5, FETCH), EPT_FAULT_RETRY);
    assert_int_equal(leaf_at(4 * MIB).level, EPT_2M);
    assert_int_equal(vm.ept.large_splits, 0);
    finish();
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_eager),
        cmocka_unit_test(test_eager_without_block),
        cmocka_unit_test(test_eager_over_table),
        cmocka_unit_test(test_eager_without_frames),
        cmocka_unit_test(test_split_on_fetch),
        cmocka_unit_test(test_no_split_when_safe),
    };
    return cmocka_run_group_tests(tests, register_hook, release);
}
