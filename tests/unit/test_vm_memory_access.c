// SPDX-License-Identifier: BSD-2-Clause
// sources: kernel/frame_hold.c
// sources: vm/access.c vm/memory_large.c
// sources: vm/memory.c vm/ballooned.c vm/reserve.c ept/walk.c ept/map.c ept/large.c ept/destroy.c
// sources: ept/shootdown.c ept/fault.c kernel/frames.c kernel/frame_buddy.c kernel/frame_cache.c
// sources: kernel/frame_zero.c kernel/frame_poison.c kernel/frame_share.c kernel/frame_account.c
// sources: kernel/heap.c kernel/lock.c
// libs: -Wl,--wrap=frame_alloc
// Fusor's own access to a VM's memory: reads populate nothing, writes are complete or can be
// repeated.
#include "vm_memory_world.h"

static void test_read_populates_nothing(void **state)
{
    (void)state;
    start(5 * GIB, VM_LARGE_EAGER);
    static const uint64_t addresses[] = {0,
                                         0xe0000,
                                         0x100000 - 10,
                                         7 * MIB + 5,
                                         4 * GIB - 0,
                                         6 * GIB - 3 * PAGE_SIZE,
                                         3 * GIB - 3 * PAGE_SIZE};
    static uint8_t buffer[3 * PAGE_SIZE];
    struct frames_snapshot before = snapshot(), after;
    for (unsigned i = 0; i < ARRAY_SIZE(addresses); i++) {
        memset(buffer, 0x77, sizeof(buffer));
        assert_int_equal(guest_read(&vm, gpa(addresses[i]), buffer, sizeof(buffer)), 0);
        assert_true(is_all(buffer, 0, sizeof(buffer)));
    }
    after = snapshot();
    assert_memory_equal(&before, &after, sizeof(before));
    assert_int_equal(vm.ept.table_frames, 1);
    finish();
}

static void test_out_of_range(void **state)
{
    (void)state;
    start(5 * GIB, VM_LARGE_AUTO);
    static const struct {
        uint64_t address;
        size_t size;
    } cases[] = {
        {0xa0000, 1},
        {0x9ffff, 2},
        {0x9f000, 0x42000},
        {0xdffff, 2},
        {3 * GIB - 1, 2},
        {3 * GIB - PAGE_SIZE, 2 * PAGE_SIZE},
        {4 * GIB - 1, 2},
        {6 * GIB - 1, 2},
        {6 * GIB, 1},
        {LAYOUT_LAPIC, 4},
        {UINT64_MAX, 1},
        {UINT64_MAX, 2},
        {UINT64_MAX - 4095, 4097},
        {UINT64_C(1) << 48, 8},
        {0, SIZE_MAX},
        {4096, SIZE_MAX - 4095},
    };
    static uint8_t buffer[0x42000];
    struct frames_snapshot before = snapshot(), after;
    memset(buffer, 0x5a, sizeof(buffer));
    for (unsigned i = 0; i < ARRAY_SIZE(cases); i++) {
        assert_int_equal(guest_read(&vm, gpa(cases[i].address), buffer, cases[i].size), E_RANGE);
        assert_int_equal(guest_write(&vm, gpa(cases[i].address), buffer, cases[i].size), E_RANGE);
    }
    assert_true(is_all(buffer, 0x5a, sizeof(buffer))); // nothing was copied
    after = snapshot();
    assert_memory_equal(&before, &after, sizeof(before)); // not even the pages in range
    // Nothing is always in range; the last byte of each area is too.
    assert_int_equal(guest_write(&vm, gpa(UINT64_MAX), buffer, 0), 0);
    assert_int_equal(guest_read(&vm, gpa(0xa0000), buffer, 0), 0);
    static const uint64_t last[] = {0x9ffff, 0xfffff, 3 * GIB - 1, 6 * GIB - 1};
    for (unsigned i = 0; i < ARRAY_SIZE(last); i++) {
        uint8_t byte = 0;
        assert_int_equal(guest_write(&vm, gpa(last[i]), buffer, 1), 0);
        assert_int_equal(guest_read(&vm, gpa(last[i]), &byte, 1), 0);
        assert_int_equal(byte, 0x5a);
        assert_int_equal(page(last[i])[PAGE_MASK], 0x5a);
    }
    assert_int_equal(vm.account.private_frames, ARRAY_SIZE(last));
    finish();
}

// Random writes and reads of any size and alignment against a model, over promotions too. The VM's
// end is not on a 2 MiB boundary.
static void check_against_model(enum vm_large_pages large, bool executable_safe)
{
    static uint8_t model[7 * MIB], buffer[40000];
    start(sizeof(model), large);
    ept_features.large_executable_safe = executable_safe;
    memset(model, 0, sizeof(model));
    srand(11);
    for (unsigned i = 0; i < 2500; i++) {
        size_t size = (size_t)rand() % (i % 3 == 0 ? sizeof(buffer) : 64);
        uint64_t from = LAYOUT_ROM + (uint64_t)rand() % (sizeof(model) - LAYOUT_ROM - size + 1);
        if (i % 4 == 0) {
            assert_int_equal(guest_read(&vm, gpa(from), buffer, size), 0);
            assert_memory_equal(buffer, model + from, size);
        } else {
            for (size_t b = 0; b < size; b++)
                buffer[b] = (uint8_t)rand();
            memcpy(model + from, buffer, size);
            assert_int_equal(guest_write(&vm, gpa(from), buffer, size), 0);
        }
        if (i % 100 == 0)
            check();
        if (i % 50 == 0)
            fault(from, FETCH); // may split what was promoted
    }
    for (uint64_t a = LAYOUT_ROM; a < sizeof(model); a += 8192) {
        assert_int_equal(guest_read(&vm, gpa(a), buffer, 8192), 0);
        assert_memory_equal(buffer, model + a, 8192);
    }
    finish();
}

static void test_model(void **state)
{
    (void)state;
    check_against_model(VM_LARGE_AUTO, true);
    assert_int_equal(vm.promotions, 2); // [2, 4) and [4, 6) MiB
    check_against_model(VM_LARGE_AUTO, false);
    assert_int_equal(vm.promotions, 2);
    check_against_model(VM_LARGE_EAGER, true);
    assert_int_equal(vm.promotions, 0);
    check_against_model(VM_LARGE_EAGER, false);
    check_against_model(VM_LARGE_OFF, true);
    assert_int_equal(vm.promotions, 0);
}

// A write that runs out in the middle can be repeated and is then complete.
static void test_write_without_frames(void **state)
{
    (void)state;
    static uint8_t data[5 * PAGE_SIZE], back[sizeof(data)];
    for (size_t i = 0; i < sizeof(data); i++)
        data[i] = (uint8_t)(i * 7 + 1);
    unsigned n = 1;
    for (;; n++) {
        start(8 * MIB, VM_LARGE_AUTO);
        failed = false;
        fail_at = n;
        // Six pages, over the boundary of two tables.
        int status = guest_write(&vm, gpa(4 * MIB - 2 * PAGE_SIZE - 100), data, sizeof(data));
        fail_at = 0;
        assert_int_equal(status, failed ? E_NOMEM : 0);
        check();
        assert_int_equal(guest_write(&vm, gpa(4 * MIB - 2 * PAGE_SIZE - 100), data, sizeof(data)),
                         0);
        assert_int_equal(guest_read(&vm, gpa(4 * MIB - 2 * PAGE_SIZE - 100), back, sizeof(back)),
                         0);
        assert_memory_equal(back, data, sizeof(data));
        assert_int_equal(vm.account.private_frames, 6);
        finish();
        if (!failed)
            break;
    }
    assert_int_equal(n, 3 + 6 + 1 + 1); // each of the tables and pages failed once
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_read_populates_nothing),
        cmocka_unit_test(test_out_of_range),
        cmocka_unit_test(test_model),
        cmocka_unit_test(test_write_without_frames),
    };
    return cmocka_run_group_tests(tests, register_hook, release);
}
