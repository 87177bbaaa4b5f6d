// SPDX-License-Identifier: BSD-2-Clause
// sources: tests/unit/fusion_world.c tests/unit/fusion_guest.c tests/unit/fusion_check.c
// sources: vm/access.c vm/memory_large.c
// sources: vm/memory.c vm/ballooned.c vm/reserve.c vm/shortage.c
// sources: balloon/pages.c
// sources: fusion/backoff.c fusion/budget.c fusion/control.c fusion/fuse.c fusion/index.c
// sources: fusion/index_table.c fusion/intake.c fusion/members.c fusion/page_general.c
// sources: fusion/page_ops.c fusion/range.c fusion/service.c fusion/split.c
// sources: ept/walk.c ept/map.c ept/large.c ept/destroy.c ept/shootdown.c ept/fault.c
// sources: kernel/frames.c kernel/frame_buddy.c kernel/frame_cache.c kernel/frame_zero.c
// sources: kernel/frame_poison.c kernel/frame_account.c kernel/frame_share.c kernel/heap.c
// sources: kernel/lock.c kernel/format.c kernel/frame_hold.c
// libs: -Wl,--wrap=ept_shootdown,--wrap=ept_lookup,--wrap=spin_lock,--wrap=spin_lock_nested
// libs: -Wl,--wrap=frame_alloc,--wrap=heap_alloc,--wrap=page_ops_begin,--wrap=page_ops_end
// The balloon and too little memory: targets and the reserve, each allocation failing, the last
// frame, resets, the reserve.
#include "balloon_world.h"
#include "vm/reserve.h"

// --- Begin and end ---

static void test_reset(void **state)
{
    (void)state;
    shared_page(2);
    fill_large(A, R - 512, 5);
    assert_int_equal(inflate(A, P), 1); // one page of it, and one that was read
    assert_int_equal(inflate(A, 300), 1);
    load(1, A, 300);
    assert_int_equal(ballooned(A), 2);
    world.vm[A].reserve_taken = 5;
    world_reset(A);
    assert_int_equal(ballooned(A), 0);
    assert_int_equal(world.vm[A].reserve_taken, 0);
    load(1, A, 300);
    load(2, B, P);
    assert_int_equal(inflate(A, 300), 1);
    world_check_contents();
    world_finish();
}

static void test_target(void **state)
{
    (void)state;
    start(1);
    world.vm[A].balloon_target = 123;
    world.doorbell[A] = true;
    assert_false(world.vm[A].balloon_driver);
    assert_int_equal(balloon_target(&world.vm[A]), 123);
    assert_false(world.doorbell[A]);
    assert_true(world.vm[A].balloon_driver);
    assert_int_equal(inflate(A, P), 1);
    struct fusor_statistics s = {0};
    balloon_statistics(&world.vm[A], &s);
    assert_int_equal(s.balloon, 1);
    assert_int_equal(s.balloon_target, 123);
    world_finish();
}

// A VM whose target is not reached gets BALLOON_RESERVE frames of the reserve, and not one more
// than it gives.
static void test_reserve(void **state)
{
    (void)state;
    world_start(0);
    world_vm(A, 8 * MIB, "");
    struct vm *vm = &world.vm[A];
    fill(1, A, 512, 1);
    frames_set_reserve(free_now());
    world.may_wait = true;
    assert_false(store(1, A, 513, 0, 1));
    vm->balloon_target = 300;
    assert_false(store(1, A, 513, 0, 1)); // no driver
    vm->balloon_driver = true;
    unsigned got = 0;
    while (got < 1000 && store(1, A, 513 + got, 0, 1))
        got++;
    assert_int_equal(got, BALLOON_RESERVE);
    for (unsigned i = 0; i < 3; i++)
        assert_int_equal(inflate(A, 513 + i), 1);
    for (unsigned i = 0; i < 3; i++)
        assert_true(store(1, A, 513 + i, 0, 2)); // they come back
    assert_false(store(1, A, 1000, 0, 1));
    vm->balloon_target = 0; // reached
    assert_int_equal(inflate(A, 513), 1);
    assert_false(store(1, A, 1000, 0, 1));
    frames_set_reserve(0);
    assert_true(store(1, A, 1000, 0, 1));
    world_finish();
}

static uint64_t same_page;

static void touch_same_page(void)
{
    assert_true(store(2, A, same_page, 0, 1));
    world_leave(2);
}

// Whoever must touch a page to give it gets on with the reserve in small steps, however many; not
// with a whole range in hand. That is why the Linux driver takes single pages while memory is
// short.
static void test_small_steps_get_on(void **state)
{
    (void)state;
    world_start(0);
    world_vm(A, 8 * MIB, "");
    struct vm *vm = &world.vm[A];
    for (uint64_t i = 512; i < 2048; i += 512)
        fill(1, A, i + 511, 1); // tables are there
    frames_set_reserve(free_now());
    world.may_wait = true;
    vm->balloon_target = 2048;
    vm->balloon_driver = true;
    for (uint64_t first = 512; first < 1536; first += 32) {
        uint64_t list[32];
        for (unsigned i = 0; i < ARRAY_SIZE(list); i++) {
            list[i] = FUSOR_ENTRY(first + i, 0, 0);
            assert_true(store(1, A, first + i, 0, 1));
        }
        world_use(0);
        assert_int_equal(call(balloon_inflate, A, list, ARRAY_SIZE(list)), ARRAY_SIZE(list));
        assert_int_equal(vm->reserve_taken, 0);
    }
    unsigned n = 0;
    while (n < 511 && store(1, A, 1536 + n, 0, 1))
        n++;
    assert_true(n >= BALLOON_RESERVE && n < 511);
    // Two vCPUs touch one page: it took one frame.
    vm->reserve_taken = 0;
    same_page = 1536 + n++;
    world_at(POINT_ALLOC, 2, 2, touch_same_page);
    assert_true(store(1, A, same_page, 0, 1));
    assert_int_equal(world_pending(), 0);
    assert_int_equal(vm->reserve_taken, 1);
    // Where the reserve has nothing either, nothing is used up.
    vm->reserve_taken = 10;
    world_starve(0);
    assert_false(store(1, A, 1536 + n, 0, 1));
    assert_int_equal(vm->reserve_taken, 10);
    world_feed();
    world_check();
    frames_set_reserve(0);
    world_finish();
}

// Only frames that become free by it make up for what a VM took of the reserve.
static void test_shared_pages_pay_nothing(void **state)
{
    (void)state;
    shared_page(2);
    struct vm *vm = &world.vm[A];
    vm->reserve_taken = 5;
    assert_int_equal(inflate(A, P), 1);
    assert_int_equal(vm->reserve_taken, 5);
    fill(1, A, P, 1);
    assert_int_equal(inflate(A, P), 1);
    assert_int_equal(vm->reserve_taken, 4);
    world_finish();
}

// --- Without memory ---

// Everything once, with the n-th allocation failing.
static void everything(void)
{
    uint64_t value = 5;
    uint64_t list[2] = {FUSOR_ENTRY(P, 0, 0), FUSOR_ENTRY(R - 512 + 1, 0, 0)};
    int64_t done = call(balloon_inflate, A, list, 2);
    assert_true(done > 0 || done == -FUSOR_ENOMEM);
    done = call(balloon_inflate, A, (uint64_t[]){FUSOR_ENTRY(R + 7, 0, 0)}, 1);
    assert_int_equal(done, 1); // there is nothing
    load(1, A, R + 7);         // perhaps not: a table is missing
    store(1, A, R + 7, 8, 1);
    load(2, A, P);
    store(1, A, P, 8, 1);
    done = call(balloon_inflate, A, (uint64_t[]){FUSOR_ENTRY(R + 8, 0, 0)}, 1);
    assert_int_equal(done, 1);
    int status = fusor_write(A, (R + 8) << 12, &value, 8);
    assert_true(status == 0 || status == E_NOMEM);
    done = call(balloon_free_pages, A, (uint64_t[]){FUSOR_ENTRY(R - 512, 0, 9)}, 1);
    assert_int_equal(done, 1);
}

static void test_each_allocation_fails(void **state)
{
    (void)state;
    unsigned n = 1;
    for (;; n++) {
        world_start(0);
        world_vm(A, 8 * MIB, "all");
        world_vm(B, 8 * MIB, "all");
        for (unsigned vm = 0; vm < 2; vm++) {
            fill_large(vm, R - 512, 5);
            hint_range(vm, R - 512);
        }
        world.may_wait = true;
        world.fail_at = n;
        everything();
        world.fail_at = 0;
        world_check();
        world_check_contents();
        bool failed = world.failed;
        world_finish();
        if (!failed)
            break;
    }
    assert_true(n > 5);
}

static void test_create_fails(void **state)
{
    (void)state;
    unsigned n = 1;
    for (;; n++) {
        world_start(0);
        world_configure(A, 8 * MIB, "");
        world.fail_at = n;
        int status = world_create(A);
        world.fail_at = 0;
        assert_int_equal(status, world.failed ? E_NOMEM : 0);
        assert_true(world.failed == (world.vm[A].ballooned == NULL));
        bool failed = world.failed;
        world_finish();
        if (!failed)
            break;
    }
    assert_true(n > 4);
}

// Two VMs want the last frame; who is late waits, until the other one gives a page.
static void take_last_frame(void)
{
    assert_true(store(3, B, P + 1, 0, 1));
    world_leave(3);
}

static void test_last_frame(void **state)
{
    (void)state;
    start(2);
    for (unsigned n = 0; n < 2; n++)
        fill(1, n, P, 42); // tables are there
    world.may_wait = true;
    world_starve(1);
    world_at(POINT_ALLOC, 1, 3, take_last_frame);
    assert_false(store(1, A, P + 1, 0, 1));
    assert_int_equal(world_pending(), 0);
    world_check();
    assert_int_equal(free_now(), 0);
    assert_false(store(1, A, P + 1, 0, 1));
    assert_int_equal(inflate(B, P), 1);
    assert_true(store(1, A, P + 1, 0, 1));
    // A shared page: giving it frees nothing, and the sharer's write needs no frame any more.
    world_feed();
    fill(1, A, P, 7);
    fill(1, B, P, 7);
    hint(A, P);
    hint(B, P);
    assert_int_equal(sharers_of(A, P), 2);
    world_starve(0);
    assert_false(store(1, A, P, 0, 8));
    assert_int_equal(inflate(B, P), 1);
    assert_int_equal(free_now(), 0);
    assert_true(store(1, A, P, 0, 8));
    world_check();
    world_check_contents();
    world_feed();
    world_finish();
}

// --- Nothing has happened where there was no memory ---

// A write to a page of the balloon, by the guest or by Fusor for it, that finds no frame.
static void test_return_without_memory(void **state)
{
    (void)state;
    start(1);
    fill(1, A, P + 9, 1); // tables are there
    for (unsigned seen = 0; seen < 2; seen++) {
        assert_int_equal(inflate(A, P), 1);
        if (seen)
            load(1, A, P);
        world.may_wait = true;
        world_starve(0);
        uint64_t value = 7, returned = world.vm[A].balloon_returned;
        assert_false(store(1, A, P, 0, 1));
        assert_int_equal(fusor_write(A, P << 12, &value, 8), E_NOMEM);
        assert_int_equal(ballooned(A), 1);
        assert_int_equal(world.vm[A].balloon_returned, returned);
        load(1, A, P);
        load(2, A, P);
        world_check();
        world_feed();
        assert_int_equal(fusor_write(A, P << 12, &value, 8), 0);
        load(1, A, P);
        load(2, A, P);
        assert_int_equal(ballooned(A), 0);
        assert_int_equal(world.vm[A].balloon_returned, returned + 1);
        world_check();
    }
    world_check_contents();
    world_finish();
}

// The table went away under a large page that went into the balloon as a whole; the last frame is
// needed for a new one.
static void take_all(void)
{
    assert_int_equal(one(balloon_free_pages, A, 512, 9), 1);
    fill_large(A, 512, 3);
    world_leave(1);
    assert_int_equal(one(balloon_inflate, A, 512, 9), 1);
    world_starve(1);
}

static void test_return_without_table(void **state)
{
    (void)state;
    start(1);
    fill(2, A, P + 1, 1);
    assert_int_equal(inflate(A, P), 1);
    world.may_wait = true;
    world_at(POINT_ALLOC, 1, 0, take_all); // its frame, after it has seen the table
    uint64_t value = 1;
    world_use(3);
    assert_int_equal(guest_write(&world.vm[A], gpa(P << 12), &value, 8), E_NOMEM);
    world_use(0);
    assert_int_equal(world_pending(), 0);
    assert_int_equal(ballooned(A), 512);
    world_check();
    world_feed();
    store(1, A, P, 0, 1);
    world_check_contents();
    world_finish();
}

// A guest can have a page table made for each range it looks at, without a frame for itself. That
// does not empty the reserve: a quarter stays for others.
static void test_tables_leave_some(void **state)
{
    (void)state;
    world_start(8192);
    world_configure(A, 16 * MIB, "");
    assert_int_equal(world_create(A), 0);
    fill(2, A, 3, 1); // the tables above
    for (unsigned i = 1; i < 6; i++)
        assert_int_equal(one(balloon_inflate, A, i * 512, 9), 1);
    frames_set_reserve(16);
    world_starve(6);
    world.may_wait = true;
    unsigned seen = 0;
    for (unsigned i = 1; i < 6; i++)
        seen += world_access(1, A, i * 512, READ) != NULL;
    assert_int_equal(seen, 2);
    assert_int_equal(free_now(), 4);
    assert_null(world_access(1, A, 6 * 512, READ | WRITE)); // not in the balloon
    assert_int_equal(free_now(), 4);
    assert_non_null(world_access(1, A, 513, READ)); // its range has a table
    hfn_t table;
    assert_int_equal(ept_table_alloc(&table), 0);
    ept_table_free(table);
    world.vm[A].restarting = true; // that is what the rest is for
    assert_non_null(world_access(1, A, 4 * 512, READ));
    world.vm[A].restarting = false;
    world_feed();
    assert_non_null(world_access(1, A, 5 * 512, READ));
    assert_non_null(world_access(1, A, 6 * 512, READ | WRITE));
    frames_set_reserve(0);
    world_check();
    world_finish();
}

// Nor do fetches from large pages, where these are not executable.
static void test_fetches_leave_some(void **state)
{
    (void)state;
    world_start(8192);
    ept_features.large_executable_safe = false;
    world_configure(A, 16 * MIB, "");
    assert_int_equal(world_create(A), 0);
    for (unsigned i = 1; i < 4; i++)
        fill_large(A, i * 512, 1);
    frames_set_reserve(16);
    world_starve(5);
    world.may_wait = true;
    assert_non_null(world_access(1, A, 512, FETCH));
    assert_null(world_access(1, A, 1024, FETCH));
    assert_int_equal(free_now(), 4);
    world_feed();
    assert_non_null(world_access(1, A, 1024, FETCH));
    frames_set_reserve(0);
    world_check();
    world_finish();
}

int main(void)
{
    static const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_reset),
        cmocka_unit_test(test_target),
        cmocka_unit_test(test_reserve),
        cmocka_unit_test(test_small_steps_get_on),
        cmocka_unit_test(test_shared_pages_pay_nothing),
        cmocka_unit_test(test_each_allocation_fails),
        cmocka_unit_test(test_create_fails),
        cmocka_unit_test(test_last_frame),
        cmocka_unit_test(test_return_without_memory),
        cmocka_unit_test(test_return_without_table),
        cmocka_unit_test(test_tables_leave_some),
        cmocka_unit_test(test_fetches_leave_some),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
