// SPDX-License-Identifier: BSD-2-Clause
// sources: tests/unit/fusion_world.c tests/unit/fusion_guest.c tests/unit/fusion_check.c
// sources: vm/access.c vm/memory_large.c
// sources: tests/unit/fusion_cpus.c
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
// What others may see of a VM and count on while pages of it come and go: a snapshot of metrics at
// any moment, and with overcommit = off the memory that was promised to them.
#include "balloon_world.h"
#include "fusion_cpus.h"
#include "vm/reserve.h"

// --- What a snapshot can see ---

static void no_more_than_it_has(void)
{
    const struct vm *vm = &world.vm[A];
    assert_true(vm->account.private_frames + vm->account.shared_gfns + vm->account.ballooned <=
                vm->config.memory / PAGE_SIZE);
}

// Promotion of a range of a VM that has touched nearly all it has.
static void test_snapshot_while_promoted(void **state)
{
    (void)state;
    for (enum world_point p = 0; p < POINT_HASH; p++)
        for (unsigned n = 1; n < 8; n++) {
            start(1);
            for (uint64_t i = 0; i < 512; i++)
                if (vm_area_of(&world.vm[A], (gfn_t){i}) == VM_AREA_RAM)
                    fill(1, A, i, i + 1);
            for (unsigned i = 0; i < VM_PROMOTE_TOUCHES - 1; i++)
                fill(1, A, 512 + i, i + 1);
            world_at(p, n, 2, no_more_than_it_has);
            fill(1, A, 1000, 1);
            world_pending();
            assert_int_equal(leaf_of(A, 512).level, EPT_2M);
            no_more_than_it_has();
            world_check();
            world_check_contents();
            world_finish();
        }
}

// A large page goes into the balloon of a VM that has touched all it has.
static void test_snapshot_while_given(void **state)
{
    (void)state;
    static const enum world_point points[] = {POINT_SHOOTDOWN, POINT_SHOT, POINT_GFN_LOCK};
    for (unsigned p = 0; p < ARRAY_SIZE(points); p++)
        for (unsigned n = 1; n < 3; n++) {
            start(1);
            for (uint64_t i = 0; i < 512; i++)
                if (vm_area_of(&world.vm[A], (gfn_t){i}) == VM_AREA_RAM)
                    fill(1, A, i, i + 1);
            fill_large(A, 512, 5);
            world_leave(1);
            world_use(0);
            world_at(points[p], n, 2, no_more_than_it_has);
            uint64_t entry = FUSOR_ENTRY(512, 0, 9);
            assert_int_equal(call(balloon_inflate, A, &entry, 1), 1);
            assert_int_equal(world_pending() != 0, points[p] != POINT_GFN_LOCK && n == 2);
            no_more_than_it_has();
            world_check();
            world_finish();
        }
}

// Both wait for the other: the one after its shootdown, when its pages are unmapped and still
// counted, the other when it is told to look again.
static void step_giving(enum world_point point)
{
    if (point == POINT_SHOT || point == POINT_RELAX)
        cpus_yield();
}

static void give_range(void)
{
    uint64_t entry = FUSOR_ENTRY(512, 0, 9);
    forget_model(A, 512, 512);
    assert_int_equal(balloon_free_pages(&world.vm[A], &entry, 1), 1);
}

static void touch_range(void)
{
    for (unsigned i = 0; i < 512; i++)
        store(1, A, 512 + i, 8, i + 1);
    world_leave(1);
}

// All that the VM has, the last range as small or large pages, its own or shared ones.
static void fill_all(enum vm_large_pages mode, bool shared)
{
    world_start(0);
    for (unsigned n = 0; n < (shared ? 2u : 1u); n++) {
        world_configure(n, 4 * MIB, "all");
        world.vm[n].config.large_pages = mode;
        assert_int_equal(world_create(n), 0);
        for (uint64_t i = 0; i < 512 && n == A; i++)
            if (vm_area_of(&world.vm[n], (gfn_t){i}) == VM_AREA_RAM)
                fill(1, n, i, 0xa5a500000000 + i * 1000);
        for (uint64_t i = 0; i < 512; i++)
            fill(1, n, 512 + i, 1 + i * 1000);
        if (shared)
            assert_int_equal(hint_range(n, 512), 1);
    }
    assert_int_equal(leaf_of(A, 512).level, mode == VM_LARGE_OFF ? EPT_4K : EPT_2M);
    assert_int_equal(is_shared(A, 512), shared);
    assert_int_equal(is_shared(A, 1023), shared);
    for (unsigned cpu = 0; cpu < WORLD_CPUS; cpu++)
        world_leave(cpu);
}

// Another vCPU touches what is being given.
static void test_snapshot_while_given_is_touched(void **state)
{
    (void)state;
    for (unsigned i = 0; i < 4; i++) {
        fill_all((i & 1) != 0 ? VM_LARGE_OFF : VM_LARGE_AUTO, (i & 2) != 0);
        world.coroutines = true;
        world.step = step_giving;
        cpus_make(0, give_range);
        cpus_make(1, touch_range);
        bool waited = false;
        while (!cpu_finished[0]) {
            cpus_resume(0);
            no_more_than_it_has();
            waited |= !cpu_finished[0];
            cpus_resume(1);
            no_more_than_it_has();
        }
        assert_true(waited);
        while (!cpu_finished[1])
            cpus_resume(1);
        world.step = NULL;
        world.coroutines = false;
        no_more_than_it_has();
        assert_int_equal(private_of(A), 416 + 512);
        world_check();
        world_check_contents();
        world_finish();
    }
}

static void touch_eagerly(void)
{
    fill(2, A, 700, 2);
    world_leave(2);
}

// Two vCPUs populate the same range, and there is no other memory.
static void test_snapshot_while_populated(void **state)
{
    (void)state;
    world_start(0);
    world_configure(A, 4 * MIB, "");
    world.vm[A].config.large_pages = VM_LARGE_EAGER;
    assert_int_equal(world_create(A), 0);
    for (uint64_t i = 0; i < 512; i++)
        if (vm_area_of(&world.vm[A], (gfn_t){i}) == VM_AREA_RAM)
            fill(1, A, i, i + 1);
    uint64_t entry = FUSOR_ENTRY(512, 0, 9);
    world_use(0);
    assert_int_equal(call(balloon_free_pages, A, &entry, 1), 1);
    world_at(POINT_ALLOC, 1, 2, touch_eagerly); // no table is needed
    world_at(POINT_GFN_LOCK, 1, 3, no_more_than_it_has);
    fill(1, A, 701, 1);
    assert_int_equal(world_pending(), 0);
    assert_int_equal(leaf_of(A, 512).level, EPT_2M);
    assert_int_equal(private_of(A), 416 + 512);
    world_check();
    world_check_contents();
    world_finish();
}

// --- overcommit = off: what was promised to others ---

static void restart(unsigned n)
{
    struct vm *vm = &world.vm[n]; // as vm/lifecycle.c does
    vm->restarting = true;
    vm_hold_back(vm);
    world_reset(n);
    frames_hold_end(&vm->account);
    vm->restarting = false;
    vm->balloon_driver = false;
}

static uint64_t left_to_promise(void)
{
    struct vm_commitment c;
    vm_commitment(&c);
    return c.left;
}

// The reserve takes all that is left.
static void promise_all(void)
{
    frames_set_reserve(0);
    for (unsigned i = 0; i < 2; i++) // page tables are the reserve's, once there is one
        frames_set_reserve(frames_reserve() + left_to_promise());
    assert_int_equal(left_to_promise(), 0);
}

// What it may touch is 512 pages, less those that other vCPUs might touch at the same time.
#define MAY_TOUCH (512 - (VM_CPUS_MAX - 1))

// Two VMs of 1,024 pages, 512 of A's in the balloon, and the machine has promised all it has.
static void start_promised(void)
{
    world_start(0);
    vm_set_overcommit(false);
    world_vm(A, 4 * MIB, "");
    world_vm(B, 4 * MIB, "");
    assert_int_equal(one(balloon_inflate, A, 512, 9), 1);
    promise_all();
    world.may_wait = true;
}

// How many of the first pages of A may be touched, until one has to wait.
static unsigned touch_many(void)
{
    unsigned n = 0;
    for (uint64_t i = 0; i < 1024; i++) {
        if (vm_area_of(&world.vm[A], (gfn_t){i}) != VM_AREA_RAM)
            continue;
        if (!store(1, A, i, 0, i + 1))
            return n;
        n++;
    }
    return n;
}

static int64_t done_meanwhile;

static void deflate_b(void)
{
    done_meanwhile = one(balloon_deflate, B, 512, 9);
}

// Two VMs take back at the same time, and there is enough for one of them.
static void test_promised_once(void **state)
{
    (void)state;
    start_promised();
    assert_int_equal(one(balloon_inflate, B, 512, 9), 1);
    assert_int_equal(left_to_promise(), 512);
    world_at(POINT_GFN_LOCK, 1, 2, deflate_b); // A has looked at what is left
    assert_int_equal(one(balloon_deflate, A, 512, 9), 1);
    assert_int_equal(world_pending(), 0);
    assert_int_equal(done_meanwhile, -FUSOR_ENOMEM);
    assert_int_equal(left_to_promise(), 0);
    // What was in the way of B alone is no more.
    assert_int_equal(one(balloon_inflate, A, 512, 9), 1);
    deflate_b();
    assert_int_equal(done_meanwhile, 1);
    world_check();
    frames_set_reserve(0);
    world_finish();
}

static void test_reset_keeps_promises(void **state)
{
    (void)state;
    start_promised();
    restart(A);
    struct vm *vm = &world.vm[A];
    assert_int_equal(ballooned(A), 0);
    assert_int_equal(vm->held_back, 512);
    assert_int_equal(left_to_promise(), 0);
    // It has what it had before.
    assert_int_equal(touch_many(), MAY_TOUCH);
    assert_false(store(1, A, 900, 0, 1));
    uint64_t value = 1;
    assert_int_equal(fusor_write(A, UINT64_C(900) << 12, &value, 8), E_NOMEM);
    load(1, A, 1);
    // Promises hold over a second reset.
    restart(A);
    assert_int_equal(vm->held_back, 512);
    assert_int_equal(touch_many(), MAY_TOUCH);
    // What its driver gives counts, and nothing becomes free for promises by that.
    vm->balloon_driver = true;
    for (unsigned i = 0; i < 100; i++)
        assert_int_equal(inflate(A, 256 + i), 1);
    assert_int_equal(left_to_promise(), 0);
    assert_true(store(1, A, 700, 0, 1));
    assert_int_equal(one(balloon_deflate, A, 256, 0), -FUSOR_ENOMEM);
    // With a target it may have 1 MiB more, to find what it can give.
    uint64_t next = 512;
    while (store(1, A, next, 0, 1))
        next++;
    vm->balloon_target = 512;
    vm->reserve_taken = 0;
    uint64_t stuck = next;
    while (store(1, A, next, 0, 1))
        next++;
    assert_int_equal(next - stuck, BALLOON_RESERVE + 1); // page 700 was there
    vm->balloon_target = 0;
    // Another gives as much: it gets on.
    assert_false(store(1, A, 1023, 0, 1));
    assert_int_equal(one(balloon_inflate, B, 512, 9), 1);
    assert_int_equal(left_to_promise(), 512);
    assert_true(store(1, A, 1023, 0, 1));
    assert_int_equal(vm->held_back, 0);
    assert_int_equal(left_to_promise(), ballooned(A));
    world_check();
    world_check_contents();
    frames_set_reserve(0);
    world_finish();
}

// Nor does a large page give what was promised to others.
static void test_large_pages_keep_promises(void **state)
{
    (void)state;
    static const enum vm_large_pages modes[] = {VM_LARGE_AUTO, VM_LARGE_EAGER};
    for (unsigned i = 0; i < ARRAY_SIZE(modes); i++) {
        start_promised();
        world.vm[A].config.large_pages = modes[i];
        restart(A);
        uint64_t next = 512;
        while (next < 1024 && store(1, A, next, 0, next))
            next++;
        assert_int_equal(next - 512, MAY_TOUCH);
        assert_int_equal(private_of(A), MAY_TOUCH);
        assert_int_equal(left_to_promise(), 0);
        world_check();
        frames_set_reserve(0);
        world_finish();
    }
}

// The same for a guest that just writes to its balloon.
static void test_writes_keep_promises(void **state)
{
    (void)state;
    start_promised();
    // The hole below 1 MiB counts as its memory, too, so some pages of the balloon come back.
    assert_int_equal(touch_many(), MAY_TOUCH);
    struct vm *vm = &world.vm[A];
    uint64_t returned = MAY_TOUCH - 416;
    assert_int_equal(left_to_promise(), 0);
    assert_int_equal(ballooned(A), 512 - returned);
    assert_int_equal(vm->balloon_returned, returned);
    // What is agreed to is not held back, also after others have used what was left then.
    assert_int_equal(one(balloon_inflate, B, 512, 9), 1);
    assert_int_equal(left_to_promise(), 512);
    uint64_t list[1] = {FUSOR_ENTRY(1000, 0, 0)};
    world_use(0);
    assert_int_equal(call(balloon_deflate, A, list, 1), 1);
    assert_int_equal(vm->held_back, 511);
    assert_int_equal(left_to_promise(), 511);
    assert_int_equal(one(balloon_deflate, B, 512, 9), -FUSOR_ENOMEM);
    assert_true(store(1, A, 1000, 0, 1));
    assert_true(store(1, A, 1001, 0, 1)); // some of what is left is taken for it
    world_check();
    world_check_contents();
    frames_set_reserve(0);
    world_finish();
}

// A VM that is all the machine has room for, and touches one page in each range: page tables, which
// no promise counts, must not leave it waiting for what it was promised.
static void test_page_tables_are_the_reserves(void **state)
{
    (void)state;
    const unsigned ranges = 200;
    world_start(0);
    vm_set_overcommit(false);
    world_configure(A, 4 * MIB, "");
    world.vm[A].config.memory = ranges * 2 * MIB;
    assert_int_equal(world_create(A), 0);
    world_use(0);
    for (unsigned i = 1; i < ranges; i++) {
        uint64_t range = FUSOR_ENTRY(i * 512, 0, 9);
        assert_int_equal(balloon_inflate(&world.vm[A], &range, 1), 1);
    }
    for (unsigned i = 1; i < ranges; i++) {
        uint64_t page = FUSOR_ENTRY(i * 512 + i, 0, 0);
        assert_int_equal(balloon_deflate(&world.vm[A], &page, 1), 1);
    }
    promise_all();
    world.may_wait = true;
    for (uint64_t i = 0; i < 512; i++)
        if (vm_area_of(&world.vm[A], (gfn_t){i}) == VM_AREA_RAM)
            assert_non_null(world_access(1, A, i, READ | WRITE));
    for (unsigned i = 1; i < ranges; i++)
        assert_non_null(world_access(1, A, i * 512 + i, READ | WRITE));
    assert_true(world_snapshot().count[FRAME_FREE] < frames_reserve());
    world_check();
    frames_set_reserve(0);
    world_finish();
}

// With overcommit = on nobody is held back.
static void test_nothing_promised(void **state)
{
    (void)state;
    start(1);
    assert_int_equal(one(balloon_inflate, A, 512, 9), 1);
    restart(A);
    assert_int_equal(world.vm[A].held_back, 0);
    assert_int_equal(one(balloon_inflate, A, 512, 9), 1);
    assert_int_equal(touch_many(), 416 + 512);
    assert_int_equal(world.vm[A].held_back, 0);
    world_finish();
}

int main(void)
{
    static const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_snapshot_while_promoted),
        cmocka_unit_test(test_snapshot_while_given),
        cmocka_unit_test(test_snapshot_while_given_is_touched),
        cmocka_unit_test(test_snapshot_while_populated),
        cmocka_unit_test(test_promised_once),
        cmocka_unit_test(test_reset_keeps_promises),
        cmocka_unit_test(test_large_pages_keep_promises),
        cmocka_unit_test(test_writes_keep_promises),
        cmocka_unit_test(test_page_tables_are_the_reserves),
        cmocka_unit_test(test_nothing_promised),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
