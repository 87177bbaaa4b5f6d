// SPDX-License-Identifier: BSD-2-Clause
// sources: fusion/census.c fusion/census_list.c fusion/index.c fusion/index_table.c
// sources: ept/walk.c ept/map.c ept/large.c ept/destroy.c ept/shootdown.c kernel/frame_hold.c
// sources: kernel/frames.c kernel/frame_buddy.c kernel/frame_cache.c kernel/frame_zero.c
// sources: kernel/frame_poison.c kernel/frame_account.c kernel/heap.c kernel/lock.c
// libs: -Wl,--wrap=frame_alloc
// The census of single cases: who counts as what, VMs that go meanwhile, failures.
#include "census_world.h"

static void test_empty(void **state)
{
    (void)state;
    struct fusion_census out;
    machine();
    assert_int_equal(fusion_census(NULL, &out), E_NOENT);
    create(0, 1, 1, 1);
    assert_int_equal(fusion_census("nobody", &out), E_NOENT);
    assert_int_equal(fusion_census("db", &out), E_NOENT);
    assert_int_equal(sleeps, 0);
    out = census_of("web");
    assert_int_equal(out.vms, 1);
    out.vms = 0;
    const struct fusion_census nothing = {0};
    assert_memory_equal(&out, &nothing, sizeof(out));
    finish();
}

static hfn_t changing[8];

static void change_some(void)
{
    fill_page(changing[0], 7); // to what others have
    fill_page(changing[1], 0);
    remove_page(1, 300);
    add_page(1, 301, 5);
}

static void test_small(void **state)
{
    (void)state;
    machine();
    create(3, 11, 1, 2);
    create(5, 12, 1, 1);
    create(1, 13, 2, 1);
    // web: 7 three times, 5 twice, 8 once, zero three times; 9 and 10 once each for now.
    add_page(3, 0, 7);
    add_page(3, 1023, 7);
    add_page(5, 511, 7);
    add_page(5, 64, 5);
    add_page(3, 63, 5);
    add_page(5, 65, 8);
    add_page(5, 66, 0);
    add_page(5, 67, 0);
    add_page(3, 512, 0);
    changing[0] = add_page(3, 100, 9);
    changing[1] = add_page(3, 101, 10);
    // db: what web has too, and zero pages.
    add_page(1, 5, 7);
    add_page(1, 6, 8);
    add_page(1, 7, 8);
    add_page(1, 8, 0);
    add_page(1, 300, 5);
    struct fusion_census out = census_of("web");
    struct fusion_census expected = {
        .vms = 2,
        .resident = 11,
        .zero = 3,
        .shareable = 2 + 1 + 2,
        .shareable_zero = 2,
        .unchanged = 11,
        .unchanged_shareable = 5,
        .unchanged_shareable_zero = 2,
    };
    assert_memory_equal(&out, &expected, sizeof(out));
    out = census_of(NULL); // groups stay apart
    expected = (struct fusion_census){
        .vms = 3,
        .resident = 16,
        .zero = 4,
        .shareable = 6,
        .shareable_zero = 2,
        .unchanged = 16,
        .unchanged_shareable = 6,
        .unchanged_shareable_zero = 2,
    };
    assert_memory_equal(&out, &expected, sizeof(out));
    sleep_hook = change_some;
    out = census_of(NULL);
    expected = (struct fusion_census){
        .vms = 3,
        .resident = 16,
        .zero = 5,
        .shareable = (3 + 1 + 3) + 1,
        .shareable_zero = 3,
        .unchanged = 13,
        .unchanged_shareable = 6,
        .unchanged_shareable_zero = 2,
    };
    assert_memory_equal(&out, &expected, sizeof(out));
    finish();
}

// Shared frames count as resident at every gfn, and as saved.
static void test_saved(void **state)
{
    (void)state;
    machine();
    create(0, 1, 1, 1);
    create(1, 2, 1, 1);
    create(2, 3, 2, 1);
    hfn_t shared[4];
    for (unsigned i = 0; i < 4; i++) {
        assert_int_equal(frame_alloc(FRAME_FUSOR, 0, 0, NULL, &shared[i]), 0);
        fill_page(shared[i], i == 3 ? 1 : i);
        frame_table[shared[i].raw].state = FRAME_SHARED;
    }
    for (unsigned i = 0; i < 5; i++)
        map(i % 2, gfn(10 + i), shared[0], EPT_KIND_SHARED); // zero, five sharers
    map(0, gfn(20), shared[1], EPT_KIND_SHARED);
    map(1, gfn(20), shared[1], EPT_KIND_SHARED);
    map(1, gfn(21), shared[2], EPT_KIND_SHARED); // the last sharer
    map(1, gfn(22), shared[3], EPT_KIND_SHARED); // a duplicate of shared[1], not saved
    map(2, gfn(9), shared[2], EPT_KIND_CANDIDATE);
    map(2, gfn(8), shared[3], EPT_KIND_SHARED);
    map(2, gfn(7), shared[3], EPT_KIND_SHARED);
    struct fusion_census out = census_of("web");
    assert_int_equal(out.resident, 9);
    assert_int_equal(out.saved, 4 + 1);
    assert_int_equal(out.shareable, 4 + 2);
    assert_int_equal(out.shareable_zero, 4);
    out = census_of("db");
    assert_int_equal(out.resident, 3);
    assert_int_equal(out.saved, 1);
    for (unsigned i = 0; i < 4; i++)
        frame_table[shared[i].raw].state = FRAME_FUSOR;
    for (unsigned s = 0; s < 3; s++) // so that destroy() frees none of these
        fusion_vms[s].active = false;
    finish();
}

// RAM above 4 GiB, a large page, and leaves that are no RAM.
static void test_layout(void **state)
{
    (void)state;
    machine_of(4096);
    uint64_t low = LAYOUT_HOLE / PAGE_SIZE, high = LAYOUT_ABOVE_4G / PAGE_SIZE;
    create(0, 1, 1, low / RANGE_PAGES + 2);
    add_page(0, 0, 3);
    add_page(0, low - 1, 3);
    add_page(0, low, 3); // the hole's first page is no RAM; nobody looks there
    add_page(0, high, 3);
    add_page(0, high + 2 * RANGE_PAGES - 1, 3);
    add_page(0, high + 2 * RANGE_PAGES, 3); // beyond the end
    hfn_t large;
    assert_int_equal(frame_alloc(FRAME_PRIVATE, 9, FRAME_ZEROED, &vms[0].account, &large), 0);
    assert_int_equal(ept_prepare_level(&vms[0].ept, gfn(1024), EPT_2M), 0);
    ept_lock_gfn(&vms[0].ept, gfn(1024));
    assert_int_equal(ept_map(&vms[0].ept, gfn(1024), large, EPT_2M, EPT_RWX, EPT_KIND_PRIVATE), 0);
    ept_unlock_gfn(&vms[0].ept, gfn(1024));
    fill_page(hfn(large.raw + 17), 3);
    struct fusion_census out = census_of(NULL);
    assert_int_equal(out.resident, 4 + 512);
    assert_int_equal(out.zero, 511);
    assert_int_equal(out.shareable, 4 + 510);
    assert_int_equal(out.shareable_zero, 510);
    assert_int_equal(out.unchanged_shareable, 4 + 510);
    finish();
}

// --- VMs that go meanwhile ---

static unsigned go_at; // the yield at which it happens
static unsigned how;

static void go(void)
{
    if (yields != go_at)
        return;
    destroy(1);
    if (how == 1) { // another VM in the slot
        create(1, 99, 1, 3);
        add_page(1, 3, 2);
    } else if (how == 2) { // the same VM was reset
        create(1, 2, 1, 3);
        add_page(1, 3, 2);
    } else if (how == 3) { // the same VM, now in another group
        create(1, 2, 2, 3);
        add_page(1, 3, 2);
    }
}

static void test_destroyed(void **state)
{
    (void)state;
    for (how = 0; how < 4; how++) {
        bool happened = true, dropped = false;
        for (go_at = 1; happened; go_at++) {
            machine();
            create(0, 1, 1, 1);
            create(1, 2, 1, 3);
            create(2, 3, 1, 1);
            add_page(0, 1, 1);
            add_page(0, 2, 2);
            add_page(1, 1, 1);
            add_page(1, 2, 1);
            add_page(1, 3, 0);
            add_page(2, 1, 1);
            add_page(2, 2, 0);
            yield_hook = go;
            struct fusion_census out = census_of("web");
            happened = yields >= go_at;
            // With VM 1 or without; after a reset its pages count as what they are then.
            if (out.vms == 2) {
                assert_int_equal(out.resident, 4);
                assert_int_equal(out.shareable, 1);
                assert_int_equal(out.zero, 1);
                assert_int_equal(out.shareable_zero, 0);
                assert_int_equal(out.unchanged, 4);
                assert_int_not_equal(how, 2);
                dropped = true;
            } else {
                assert_int_equal(out.vms, 3);
                assert_in_range(out.resident, how == 2 ? 5 : 7, 7);
                assert_in_range(out.unchanged, 4, 7);
                assert_true(out.shareable <= 4);
            }
            finish();
        }
        assert_int_equal(dropped, how != 2);
        assert_true(go_at > 30);
    }
}

// --- Failures ---

static void try_again(void)
{
    struct fusion_census out;
    assert_int_equal(fusion_census(NULL, &out), E_BUSY);
}

static void test_failures(void **state)
{
    (void)state;
    struct fusion_census out;
    unsigned n = 0;
    do {
        machine();
        create(0, 1, 1, 3);
        add_page(0, 1, 1);
        add_page(0, 2, 1);
        uint64_t before = free_frames();
        failed = false;
        fail_at = ++n;
        int status = fusion_census(NULL, &out);
        fail_at = 0;
        assert_int_equal(status, failed ? E_NOMEM : 0);
        assert_int_equal(free_frames(), before);
        sleep_hook = try_again; // the failed one does not count as running, this one does
        assert_int_equal(census_of(NULL).shareable, 1);
        assert_int_equal(free_frames(), before);
        finish();
    } while (failed);
    assert_int_equal(n,
                     1 + 1 + 1 + 3 + 1); // zero page, heap, middle, leaves; and the one that works
    // Not enough beyond the reserve: nothing is taken, not even for a moment.
    machine();
    create(0, 1, 1, 40); // a list of 42 frames
    add_page(0, 1, 1);
    frames_set_reserve(free_frames() - 41);
    uint64_t before = free_frames();
    unsigned yields_before = yields;
    assert_int_equal(fusion_census(NULL, &out), E_NOMEM);
    assert_int_equal(yields, yields_before);
    assert_int_equal(free_frames(), before);
    frames_set_reserve(free_frames() - 42);
    assert_int_equal(fusion_census(NULL, &out), 0);
    assert_int_equal(out.resident, 1);
    finish();
}

// A hash of zero is a page like others.
static void test_hash_zero(void **state)
{
    (void)state;
    machine();
    weak_mask = 0; // so all pages look the same, and like the zero page
    create(0, 1, 1, 1);
    for (unsigned i = 0; i < 100; i++)
        add_page(0, i, i);
    struct fusion_census out = census_of(NULL);
    assert_int_equal(out.resident, 100);
    assert_int_equal(out.zero, 100);
    assert_int_equal(out.shareable, 99);
    finish();
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_empty),     cmocka_unit_test(test_small),
        cmocka_unit_test(test_saved),     cmocka_unit_test(test_layout),
        cmocka_unit_test(test_destroyed), cmocka_unit_test(test_failures),
        cmocka_unit_test(test_hash_zero),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
