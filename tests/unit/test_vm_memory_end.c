// SPDX-License-Identifier: BSD-2-Clause
// sources: kernel/frame_hold.c
// sources: vm/access.c vm/memory_large.c
// sources: vm/memory.c vm/ballooned.c vm/reserve.c ept/walk.c ept/map.c ept/large.c ept/destroy.c
// sources: ept/shootdown.c ept/fault.c kernel/frames.c kernel/frame_buddy.c kernel/frame_cache.c
// sources: kernel/frame_zero.c kernel/frame_poison.c kernel/frame_share.c kernel/frame_account.c
// sources: kernel/heap.c kernel/lock.c
// libs: -Wl,--wrap=frame_alloc
// A VM's memory begins and ends: nothing is left, others do not notice, no step is long.
#include "vm_memory_world.h"

static void test_create_without_frames(void **state)
{
    (void)state;
    machine();
    unsigned n = 1;
    for (;; n++) {
        memset(&vm, 0, sizeof(vm));
        vm.id = 7;
        vm.config.memory = 8 * MIB;
        failed = false;
        fail_at = n;
        int status = vm_memory_create(&vm);
        fail_at = 0;
        assert_int_equal(status, failed ? E_NOMEM : 0);
        if (!failed)
            break;
        assert_null(vm.touched);
        assert_false(vm.memory_present);
        vm_memory_destroy(&vm); // harmless
        assert_int_equal(free_frames(), free_at_start);
    }
    assert_int_equal(n, 5);
    finish();
}

static void test_destroy(void **state)
{
    (void)state;
    machine();
    create(&vm, 7, 5 * GIB, VM_LARGE_AUTO);
    create(&other, 8, 16 * MIB, VM_LARGE_EAGER);
    static const char text[] = "mine";
    char back[sizeof(text)];
    assert_int_equal(guest_write(&other, gpa(2 * MIB + 4094), text, sizeof(text)), 0);
    assert_int_equal(guest_write(&other, gpa(0x500), text, sizeof(text)), 0);
    uint64_t others = other.account.private_frames;
    assert_int_equal(others, 512 + 1);

    fill(4 * GIB, 0, 512); // a large page
    fill(2 * MIB, 0, 400); // single ones
    assert_int_equal(fault(LAYOUT_ROM, READ), EPT_FAULT_RETRY);
    touch(0);
    touch(2 * GIB);
    for (uint64_t a = 0; a < 100 * GIB; a += GIB / 2)
        fault(a, READ);
    assert_int_equal(vm.ept.large_leaves, 1);
    check();
    uint64_t shootdowns = vm.ept.shootdowns;
    vm_memory_destroy(&vm);
    assert_true(vm.ept.shootdowns > shootdowns);
    assert_true(yields > 0); // in steps
    assert_null(vm.touched);
    assert_int_equal(vm.account.private_frames, 0);
    check();
    vm_memory_destroy(&vm); // again: nothing
    check();
    // The other one did not notice.
    assert_int_equal(other.account.private_frames, others);
    assert_int_equal(guest_read(&other, gpa(2 * MIB + 4094), back, sizeof(back)), 0);
    assert_string_equal(back, text);

    // Again: what it had before is not seen by whoever gets the frames now.
    create(&vm, 9, 8 * MIB, VM_LARGE_AUTO);
    for (uint64_t a = MIB; a < 8 * MIB; a += PAGE_SIZE) {
        touch(a);
        assert_true(is_all(page(a), 0, PAGE_SIZE));
    }
    finish();
}

// The CPU that runs it does not keep translations of the root that is freed.
static void test_destroy_flushes(void **state)
{
    (void)state;
    start(8 * MIB, VM_LARGE_AUTO);
    touch(MIB);
    ept_guest_begin(&vm.ept, 1);
    ept_guest_end(1);
    assert_int_equal(ept_cpus[1].flush_all, 0);
    finish();
    assert_int_equal(ept_cpus[1].flush_all, 1);
    assert_int_equal(ept_cpus[0].flush_all, 0); // it never entered
}

// Between two yields of a teardown no more than so many pages, or one large one, are given back.
#define PAGES_PER_STEP 64u

static uint64_t resident_before, tables_before;
static unsigned longest, large_steps;

static void measure_step(void)
{
    uint64_t pages = resident_before - vm.account.private_frames;
    uint64_t tables = tables_before - vm.ept.table_frames;
    large_steps += pages >= 512;
    assert_true(pages <= PAGES_PER_STEP || (pages >= 512 && pages <= 512 + PAGES_PER_STEP));
    assert_true(tables <= PAGES_PER_STEP + 1);
    longest = (unsigned)MAX(longest, pages + tables);
    resident_before = vm.account.private_frames;
    tables_before = vm.ept.table_frames;
}

static void test_destroy_in_steps(void **state)
{
    (void)state;
    machine();
    create(&vm, 7, 64 * MIB, VM_LARGE_AUTO);
    fill(4 * MIB, 0, 512); // two large pages
    fill(6 * MIB, 0, 512);
    for (unsigned range = 4; range < 14; range++) // many single ones
        fill(range * RANGE, 0, 400);
    for (unsigned range = 24; range < 32; range++) // few
        touch(range * RANGE);
    assert_int_equal(vm.ept.large_leaves, 2);
    resident_before = vm.account.private_frames;
    tables_before = vm.ept.table_frames;
    assert_int_equal(resident_before, 2 * 512 + 10 * 400 + 8);
    longest = large_steps = yields = 0;
    yield_hook = measure_step;
    vm_memory_destroy(&vm);
    yield_hook = NULL;
    assert_in_range(longest, PAGES_PER_STEP, 512 + PAGES_PER_STEP);
    assert_int_equal(large_steps, 2); // each by itself
    assert_in_range(yields, 10 * 400 / PAGES_PER_STEP, 4 * 10 * 400 / PAGES_PER_STEP);
    check();
    // Tables that map nothing any more are looked through in steps as well: 30 of them.
    create(&vm, 8, 64 * MIB, VM_LARGE_OFF);
    for (unsigned range = 1; range < 31; range++)
        assert_int_equal(ept_prepare(&vm.ept, (gfn_t){range * (RANGE / PAGE_SIZE)}), 0);
    yields = 0;
    vm_memory_destroy(&vm);
    assert_true(yields >= 30 * ARCH_EPT_ENTRIES / EPT_EMPTY_PER_LEAF / PAGES_PER_STEP);
    finish();
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_create_without_frames),
        cmocka_unit_test(test_destroy),
        cmocka_unit_test(test_destroy_flushes),
        cmocka_unit_test(test_destroy_in_steps),
    };
    return cmocka_run_group_tests(tests, register_hook, release);
}
