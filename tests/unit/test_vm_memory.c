// SPDX-License-Identifier: BSD-2-Clause
// sources: vm/access.c vm/memory_large.c
// sources: vm/memory.c vm/ballooned.c vm/reserve.c ept/walk.c ept/map.c ept/large.c ept/destroy.c
// sources: ept/shootdown.c ept/fault.c kernel/frames.c kernel/frame_buddy.c kernel/frame_cache.c
// sources: kernel/frame_zero.c kernel/frame_poison.c kernel/frame_share.c kernel/frame_account.c
// sources: kernel/heap.c kernel/lock.c kernel/frame_hold.c
// libs: -Wl,--wrap=frame_alloc
// A VM's memory: what is where, and first touch; also without frames, and by two CPUs at once.
#include "vm_memory_world.h"

// --- Layout ---

static void test_areas(void **state)
{
    (void)state;
    static const struct {
        uint64_t memory, address;
        enum vm_area area;
    } cases[] = {
        {8 * MIB, 0, VM_AREA_RAM},
        {8 * MIB, 0x9f000, VM_AREA_RAM},
        {8 * MIB, 0xa0000, VM_AREA_NONE},
        {8 * MIB, 0xdf000, VM_AREA_NONE},
        {8 * MIB, 0xe0000, VM_AREA_ROM},
        {8 * MIB, 0xff000, VM_AREA_ROM},
        {8 * MIB, 0x100000, VM_AREA_RAM},
        {8 * MIB, 8 * MIB - PAGE_SIZE, VM_AREA_RAM},
        {8 * MIB, 8 * MIB, VM_AREA_NONE},
        {8 * MIB, 3 * GIB, VM_AREA_NONE},
        {8 * MIB, 4 * GIB, VM_AREA_NONE},
        {512 * KIB, 512 * KIB - PAGE_SIZE, VM_AREA_RAM},
        {512 * KIB, 512 * KIB, VM_AREA_NONE},
        {512 * KIB, 0xe0000, VM_AREA_ROM},
        {512 * KIB, 0x100000, VM_AREA_NONE},
        {3 * GIB, 3 * GIB - PAGE_SIZE, VM_AREA_RAM},
        {3 * GIB, 3 * GIB, VM_AREA_NONE},
        {3 * GIB, 4 * GIB, VM_AREA_NONE},
        {5 * GIB, 3 * GIB - PAGE_SIZE, VM_AREA_RAM},
        {5 * GIB, 3 * GIB, VM_AREA_NONE},
        {5 * GIB, 0xfec00000, VM_AREA_NONE},
        {5 * GIB, 0xfee00000, VM_AREA_NONE},
        {5 * GIB, 4 * GIB - PAGE_SIZE, VM_AREA_NONE},
        {5 * GIB, 4 * GIB, VM_AREA_RAM},
        {5 * GIB, 6 * GIB - PAGE_SIZE, VM_AREA_RAM},
        {5 * GIB, 6 * GIB, VM_AREA_NONE},
        {3 * GIB + PAGE_SIZE, 4 * GIB, VM_AREA_RAM},
        {3 * GIB + PAGE_SIZE, 4 * GIB + PAGE_SIZE, VM_AREA_NONE},
        {5 * GIB, UINT64_MAX & ~PAGE_MASK, VM_AREA_NONE},
    };
    for (unsigned i = 0; i < ARRAY_SIZE(cases); i++) {
        vm.config.memory = cases[i].memory;
        enum vm_area area = vm_area_of(&vm, gpa_to_gfn(gpa(cases[i].address)));
        if (area != cases[i].area)
            fail_msg("case %u: area %d", i, (int)area);
    }
}

// Every page of RAM is exactly memory's worth, less the hole below 1 MiB.
static void test_ram_adds_up(void **state)
{
    (void)state;
    static const uint64_t sizes[] = {8 * MIB, 3 * GIB, 3 * GIB + 12 * KIB, 4 * GIB, 5 * GIB};
    for (unsigned i = 0; i < ARRAY_SIZE(sizes); i++) {
        vm.config.memory = sizes[i];
        uint64_t ram = 0;
        for (uint64_t n = 0; n < 8 * GIB / PAGE_SIZE; n++)
            ram += vm_area_of(&vm, (gfn_t){n}) == VM_AREA_RAM;
        assert_int_equal(ram, (sizes[i] - (LAYOUT_HIGH - LAYOUT_LOW_END)) / PAGE_SIZE);
    }
}

// --- First touch ---

static void test_first_touch(void **state)
{
    (void)state;
    static const enum access kinds[] = {READ, WRITE, FETCH};
    start(5 * GIB, VM_LARGE_AUTO);
    static const uint64_t addresses[] = {0,           0x9ffff,     0x100000,       5 * MIB + 123,
                                         3 * GIB - 1, 4 * GIB + 1, 6 * GIB - 4096, 2 * GIB};
    uint64_t populated = 0;
    for (unsigned i = 0; i < ARRAY_SIZE(addresses); i++) {
        assert_false(leaf_at(addresses[i]).present);
        assert_int_equal(fault(addresses[i], kinds[i % 3]), EPT_FAULT_RETRY);
        struct ept_leaf leaf = leaf_at(addresses[i]);
        assert_true(leaf.present);
        assert_int_equal(leaf.level, EPT_4K);
        assert_int_equal(leaf.permissions, EPT_RWX);
        assert_true(is_all(hfn_to_pointer(leaf.frame), 0, PAGE_SIZE));
        assert_int_equal(vm.account.private_frames, ++populated);
        check();
        // Faults that come late (another CPU was faster) find it done and change nothing.
        for (unsigned k = 0; k < 3; k++)
            assert_int_equal(fault(addresses[i], kinds[k]), EPT_FAULT_RETRY);
        assert_int_equal(fault_with(addresses[i], WRITE, (struct ept_leaf){.level = EPT_4K}),
                         EPT_FAULT_RETRY);
        assert_true(leaf_at(addresses[i]).frame.raw == leaf.frame.raw);
        assert_int_equal(vm.account.private_frames, populated);
    }
    finish();
}

static void test_holes(void **state)
{
    (void)state;
    start(5 * GIB, VM_LARGE_EAGER);
    static const uint64_t addresses[] = {0xa0000, 0xb8000,           0xdffff,
                                         3 * GIB, LAYOUT_IOAPIC,     LAYOUT_LAPIC,
                                         6 * GIB, UINT64_C(1) << 47, UINT64_C(1) << 51};
    struct frames_snapshot before = snapshot(), after;
    for (unsigned i = 0; i < ARRAY_SIZE(addresses); i++) {
        assert_int_equal(fault(addresses[i], READ), EPT_FAULT_EMULATE);
        assert_int_equal(fault(addresses[i], WRITE), EPT_FAULT_EMULATE);
    }
    after = snapshot();
    assert_memory_equal(&before, &after, sizeof(before));
    assert_int_equal(vm.rom_writes, 0);
    finish();
}

static void test_rom(void **state)
{
    (void)state;
    start(8 * MIB, VM_LARGE_EAGER);
    // A write before the first touch populates nothing.
    assert_int_equal(fault(LAYOUT_ROM, WRITE), EPT_FAULT_EMULATE);
    assert_int_equal(vm.rom_writes, 1);
    assert_false(leaf_at(LAYOUT_ROM).present);
    assert_int_equal(fault(LAYOUT_ROM, READ), EPT_FAULT_RETRY);
    assert_int_equal(leaf_at(LAYOUT_ROM).permissions, EPT_READ | EPT_EXECUTE);
    assert_int_equal(leaf_at(LAYOUT_ROM).level, EPT_4K);
    assert_int_equal(fault(LAYOUT_ROM, WRITE), EPT_FAULT_EMULATE);
    assert_int_equal(vm.rom_writes, 2);
    assert_int_equal(fault(LAYOUT_ROM, FETCH), EPT_FAULT_RETRY);
    assert_int_equal(leaf_at(LAYOUT_ROM).permissions, EPT_READ | EPT_EXECUTE);
    // Fusor itself may write it, and the guest still may not.
    static const char text[] = "RSD PTR ";
    char back[sizeof(text)];
    uint64_t last = LAYOUT_ROM_END - PAGE_SIZE;
    assert_int_equal(guest_write(&vm, gpa(LAYOUT_ROM + 100), text, sizeof(text)), 0);
    assert_int_equal(guest_write(&vm, gpa(last), text, sizeof(text)), 0);
    assert_int_equal(leaf_at(last).permissions, EPT_READ | EPT_EXECUTE);
    assert_int_equal(guest_read(&vm, gpa(LAYOUT_ROM + 100), back, sizeof(back)), 0);
    assert_string_equal(back, text);
    assert_string_equal((char *)page(last), text);
    assert_int_equal(vm.account.private_frames, 2);
    finish();
}

static void test_permission_that_nobody_gives(void **state)
{
    (void)state;
    start(8 * MIB, VM_LARGE_AUTO);
    touch(MIB);
    ept_lock_gfn(&vm.ept, gfn(256));
    assert_int_equal(ept_protect(&vm.ept, gfn(256), EPT_READ, EPT_KIND_PRIVATE), 0);
    ept_unlock_gfn(&vm.ept, gfn(256));
    assert_int_equal(fault(MIB, READ), EPT_FAULT_RETRY);
    assert_int_equal(fault(MIB, WRITE), EPT_FAULT_UNHANDLED);
    assert_int_equal(fault(MIB, FETCH), EPT_FAULT_UNHANDLED);
    assert_int_equal(leaf_at(MIB).permissions, EPT_READ);
    finish();
}

// Each allocation of a first touch: three tables and the page.
static void test_first_touch_without_frames(void **state)
{
    (void)state;
    for (unsigned n = 1; n <= 5; n++) {
        start(8 * MIB, VM_LARGE_AUTO);
        fail_at = n;
        enum ept_fault_result result = fault(5 * MIB, WRITE);
        assert_int_equal(failed, n <= 4);
        assert_int_equal(result, failed ? EPT_FAULT_WAIT : EPT_FAULT_RETRY);
        assert_int_equal(leaf_at(5 * MIB).present, !failed);
        assert_int_equal(vm.account.private_frames, failed ? 0 : 1);
        check();
        fail_at = 0;
        touch(5 * MIB); // the same access again, when there is memory
        assert_true(is_all(page(5 * MIB), 0, PAGE_SIZE));
        assert_int_equal(vm.account.private_frames, 1);
        finish();
    }
}

static void test_machine_is_full(void **state)
{
    (void)state;
    start(8 * MIB, VM_LARGE_EAGER);
    touch(0);
    static hfn_t taken[MACHINE_FRAMES];
    unsigned count = 0;
    while (frame_alloc(FRAME_FUSOR, 0, 0, NULL, &taken[count]) == 0)
        count++;
    assert_int_equal(free_frames(), 0);
    struct frames_snapshot before = snapshot(), after;
    for (unsigned i = 0; i < 10; i++) {
        assert_int_equal(fault(0x1000, WRITE), EPT_FAULT_WAIT);
        assert_int_equal(fault(5 * MIB, WRITE), EPT_FAULT_WAIT);
        uint32_t word = i;
        assert_int_equal(guest_write(&vm, gpa(0x1000), &word, 4), E_NOMEM);
        assert_int_equal(guest_read(&vm, gpa(0x1000), &word, 4), 0);
        assert_int_equal(word, 0);
    }
    after = snapshot();
    assert_memory_equal(&before, &after, sizeof(before));
    check();
    frame_free(taken[--count], 0, NULL);
    touch(0x1000);
    assert_int_equal(fault(0x2000, WRITE), EPT_FAULT_WAIT);
    while (count > 0)
        frame_free(taken[--count], 0, NULL);
    touch(0x2000);
    touch(5 * MIB);
    finish();
}

// A VM that is loaded anew may have what is held for it, which stands behind the reserve's line.
static void test_restart_without_frames(void **state)
{
    (void)state;
    start(8 * MIB, VM_LARGE_OFF);
    touch(0);
    frames_set_reserve(free_frames());
    uint32_t word = 1;
    assert_int_equal(guest_write(&vm, gpa(0x1000), &word, 4), E_NOMEM);
    vm.restarting = true;
    assert_int_equal(guest_write(&vm, gpa(0x1000), &word, 4), 0);
    // But not all of the reserve: others need it for their page tables.
    frames_set_reserve(4 * (free_frames() - 1));
    assert_int_equal(guest_write(&vm, gpa(0x2000), &word, 4), 0);
    assert_int_equal(guest_write(&vm, gpa(0x3000), &word, 4), E_NOMEM);
    vm.restarting = false;
    assert_int_equal(guest_write(&vm, gpa(0x3000), &word, 4), E_NOMEM);
    frames_set_reserve(0);
    assert_int_equal(guest_write(&vm, gpa(0x3000), &word, 4), 0);
    check();
    finish();
}

// Two CPUs touch at once: who comes second gives its frame back and counts nothing.
static uint64_t rival_address;

static void rival_touches(void)
{
    touch(rival_address);
    page(rival_address)[0] = 77;
}

static void test_second_toucher(void **state)
{
    (void)state;
    start(8 * MIB, VM_LARGE_AUTO);
    rival_address = 5 * MIB;
    private_hook = rival_touches;
    touch(5 * MIB);
    assert_null(private_hook);
    assert_int_equal(page(5 * MIB)[0], 77);
    assert_int_equal(vm.account.private_frames, 1);
    assert_int_equal(vm.touched[2], 1);
    check();
    // The rival's touch promotes the range.
    for (unsigned i = 0; i < VM_PROMOTE_TOUCHES - 2; i++)
        touch(4 * MIB + i % 256 * PAGE_SIZE + (i < 256 ? 0 : MIB + PAGE_SIZE));
    rival_address = 6 * MIB - PAGE_SIZE;
    private_hook = rival_touches;
    touch(6 * MIB - 2 * PAGE_SIZE);
    assert_int_equal(vm.promotions, 1);
    assert_int_equal(leaf_at(6 * MIB - 2 * PAGE_SIZE).level, EPT_2M);
    assert_int_equal(vm.account.private_frames, 512);
    assert_int_equal(page(5 * MIB)[0], 77);
    finish();

    start(8 * MIB, VM_LARGE_EAGER);
    rival_address = 5 * MIB;
    private_hook = rival_touches;
    touch(4 * MIB);
    assert_int_equal(vm.account.private_frames, 512);
    assert_int_equal(page(5 * MIB)[0], 77);
    finish();

    // And Fusor's own write meets the guest's.
    start(8 * MIB, VM_LARGE_AUTO);
    rival_address = 5 * MIB;
    private_hook = rival_touches;
    assert_int_equal(guest_write(&vm, gpa(5 * MIB + 1), "x", 1), 0);
    assert_int_equal(page(5 * MIB)[0], 77);
    assert_int_equal(page(5 * MIB)[1], 'x');
    finish();
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_areas),
        cmocka_unit_test(test_ram_adds_up),
        cmocka_unit_test(test_first_touch),
        cmocka_unit_test(test_holes),
        cmocka_unit_test(test_rom),
        cmocka_unit_test(test_permission_that_nobody_gives),
        cmocka_unit_test(test_first_touch_without_frames),
        cmocka_unit_test(test_machine_is_full),
        cmocka_unit_test(test_restart_without_frames),
        cmocka_unit_test(test_second_toucher),
    };
    return cmocka_run_group_tests(tests, register_hook, release);
}
