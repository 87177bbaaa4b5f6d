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
// Pages of the balloon beside fusion: what goes in, what reads and writes of it see, what comes
// back; a guest that does everything wrong.
#include "balloon_world.h"

// --- One page ---

static void test_page(void **state)
{
    (void)state;
    start(1);
    fill(1, A, P, 42);
    fill(1, A, P + 1, 43);
    uint64_t before = free_now();
    for (unsigned cpu = 1; cpu < WORLD_CPUS; cpu++)
        load(cpu, A, P);
    assert_int_equal(inflate(A, P), 1);
    assert_int_equal(free_now(), before + 1);
    assert_int_equal(ballooned(A), 1);
    assert_int_equal(private_of(A), 1);
    assert_int_equal(inflate(A, P), -FUSOR_EEXIST);
    for (unsigned cpu = 1; cpu < WORLD_CPUS; cpu++)
        load(cpu, A, P); // zeros
    fusor_read(A, P);
    assert_int_equal(leaf_of(A, P).kind, EPT_KIND_ZERO);
    assert_int_equal(free_now(), before + 1);
    assert_int_equal(ballooned(A), 1);
    // A write brings it back, and every CPU sees it.
    store(1, A, P, 8, 7);
    for (unsigned cpu = 1; cpu < WORLD_CPUS; cpu++)
        load(cpu, A, P);
    assert_int_equal(ballooned(A), 0);
    assert_int_equal(world.vm[A].balloon_returned, 1);
    assert_int_equal(free_now(), before);
    assert_int_equal(inflate(A, P), 1);
    store(1, A, P, 8, 8); // at once
    load(2, A, P);
    assert_int_equal(world.vm[A].balloon_returned, 2);
    world_check();
    world_check_contents();
    world_finish();
}

// The shootdown before a page of zeros becomes writable is needed.
static void test_zero_page_needs_shootdown(void **state)
{
    (void)state;
    start(1);
    fill(1, A, P, 42);
    assert_int_equal(inflate(A, P), 1);
    load(1, A, P);
    load(2, A, P);
    world.skip = 1;
    store(1, A, P, 8, 7);
    load(2, A, P);
    assert_int_equal(world.skipped, 1);
    assert_int_equal(world.stale, 1);
    world.stale = 0;
    world_leave(1);
    world_leave(2);
    ept_shootdown(&world.vm[A].ept);
    world_finish();
}

static void test_fusor_writes(void **state)
{
    (void)state;
    start(1);
    assert_int_equal(inflate(A, P), 1); // never touched
    assert_int_equal(ballooned(A), 1);
    uint64_t value = 99;
    assert_int_equal(fusor_write(A, (P << 12) + 16, &value, 8), 0);
    assert_int_equal(ballooned(A), 0);
    assert_int_equal(inflate(A, P), 1);
    load(1, A, P);
    assert_int_equal(fusor_write(A, (P << 12) + 16, &value, 8), 0);
    load(1, A, P);
    assert_int_equal(ballooned(A), 0);
    assert_int_equal(world.vm[A].balloon_returned, 2);
    // Across the border of a page in the balloon and one that is not.
    assert_int_equal(inflate(A, P + 1), 1);
    assert_int_equal(fusor_write(A, ((P + 1) << 12) - 4, &value, 8), 0);
    assert_int_equal(ballooned(A), 0);
    world_check_contents();
    world_finish();
}

static void give_page(void)
{
    assert_int_equal(inflate(A, P), 1);
}

// A read that found an untouched page, which another vCPU gives before there is a frame for it.
static void test_read_of_what_is_given(void **state)
{
    (void)state;
    start(1);
    fill(1, A, P + 1, 1);
    world_at(POINT_ALLOC, 1, 3, give_page);
    load(1, A, P);
    assert_int_equal(world_pending(), 0);
    assert_int_equal(ballooned(A), 1);
    assert_int_equal(world.vm[A].balloon_returned, 0);
    assert_int_equal(leaf_of(A, P).kind, EPT_KIND_ZERO);
    world_check();
    world_finish();
}

static void test_deflate(void **state)
{
    (void)state;
    start(1);
    fill(1, A, P, 42);
    assert_int_equal(one(balloon_deflate, A, P, 0), -FUSOR_ENOENT);
    assert_int_equal(inflate(A, P), 1);
    assert_int_equal(one(balloon_deflate, A, P, 0), 1);
    assert_int_equal(one(balloon_deflate, A, P, 0), -FUSOR_ENOENT);
    assert_int_equal(ballooned(A), 0);
    assert_false(leaf_of(A, P).present);
    fill(1, A, P, 43);
    load(2, A, P);
    assert_int_equal(world.vm[A].balloon_returned, 0);
    // One that was read meanwhile.
    assert_int_equal(inflate(A, P), 1);
    load(1, A, P);
    load(2, A, P);
    assert_int_equal(one(balloon_deflate, A, P, 0), 1);
    fill(1, A, P, 44);
    load(2, A, P);
    world_check_contents();
    world_finish();
}

static void test_deflate_without_memory(void **state)
{
    (void)state;
    start(2);
    for (uint64_t i = 0; i < 4; i++)
        fill(1, A, P + i, 42 + i * 7);
    uint64_t entries[4];
    for (uint64_t i = 0; i < 4; i++)
        entries[i] = FUSOR_ENTRY(P + i, 0, 0);
    world_use(0);
    assert_int_equal(call(balloon_inflate, A, entries, 4), 4);
    world_starve(2);
    assert_int_equal(call(balloon_deflate, A, entries, 4), 2);
    world_starve(0);
    assert_int_equal(call(balloon_deflate, A, entries + 2, 2), -FUSOR_ENOMEM);
    assert_int_equal(ballooned(A), 2);
    world_check();
    world_feed();
    // What was promised counts, too.
    vm_set_overcommit(false);
    struct vm_commitment c;
    vm_commitment(&c);
    frames_set_reserve(c.left + c.tables - 1); // which then serves the page tables
    assert_int_equal(call(balloon_deflate, A, entries + 2, 2), 1);
    assert_int_equal(call(balloon_deflate, A, entries + 3, 1), -FUSOR_ENOMEM);
    vm_set_overcommit(true);
    frames_set_reserve(free_now());
    assert_int_equal(call(balloon_deflate, A, entries + 3, 1), -FUSOR_ENOMEM);
    frames_set_reserve(0);
    assert_int_equal(call(balloon_deflate, A, entries + 3, 1), 1);
    world_finish();
}

static void test_bad_input(void **state)
{
    (void)state;
    static const list_call calls[] = {balloon_inflate, balloon_deflate, balloon_free_pages};
    static const struct {
        uint64_t entry;
        int code;
    } bad[] = {
        {FUSOR_ENTRY(P, 0, 0) | UINT64_C(1) << 48, FUSOR_EINVAL},
        {FUSOR_ENTRY(P, 0, 0) | UINT64_C(1) << 63, FUSOR_EINVAL},
        {FUSOR_ENTRY(P, 1, 0), FUSOR_EINVAL},
        {FUSOR_ENTRY(P, 15, 0), FUSOR_EINVAL},
        {FUSOR_ENTRY(P, 0, 1), FUSOR_EINVAL},
        {FUSOR_ENTRY(R, 0, 8), FUSOR_EINVAL},
        {FUSOR_ENTRY(R, 0, 10), FUSOR_EINVAL},
        {FUSOR_ENTRY(R, 0, 15), FUSOR_EINVAL},
        {FUSOR_ENTRY(R + 1, 0, 9), FUSOR_EINVAL},
        {FUSOR_ENTRY(0, 0, 9), FUSOR_ERANGE},       // has a hole
        {FUSOR_ENTRY(0xa0, 0, 0), FUSOR_ERANGE},    // the hole
        {FUSOR_ENTRY(0xe0, 0, 0), FUSOR_ERANGE},    // ROM
        {FUSOR_ENTRY(1024, 0, 0), FUSOR_ERANGE},    // behind its memory
        {FUSOR_ENTRY(512, 0, 9), FUSOR_ERANGE},     // begins in it
        {FUSOR_ENTRY(0xfee00, 0, 0), FUSOR_ERANGE}, // the LAPIC
        {FUSOR_ENTRY(FUSOR_ENTRY_GFN_MASK, 0, 0), FUSOR_ERANGE},
        {FUSOR_ENTRY(UINT64_C(1) << 36, 0, 0), FUSOR_ERANGE},
    };
    world_start(0);
    world_vm(A, 4 * MIB - PAGE_SIZE, "");
    fill(1, A, P, 42);
    for (unsigned c = 0; c < ARRAY_SIZE(calls); c++)
        for (unsigned i = 0; i < ARRAY_SIZE(bad); i++) {
            assert_int_equal(call(calls[c], A, &bad[i].entry, 1), -bad[i].code);
            // Behind a good one it ends the list.
            uint64_t list[3] = {FUSOR_ENTRY(P, 0, 0), bad[i].entry, FUSOR_ENTRY(P + 2, 0, 0)};
            int64_t want = calls[c] == balloon_deflate ? -FUSOR_ENOENT : 1;
            assert_int_equal(call(calls[c], A, list, 3), want);
            world_check();
            if (calls[c] == balloon_inflate)
                assert_int_equal(call(balloon_deflate, A, list, 1), 1);
        }
    assert_int_equal(ballooned(A), 0);
    world_finish();
}

static void test_twice_in_a_list(void **state)
{
    (void)state;
    start(1);
    fill_large(A, R - 512, 5);
    uint64_t list[4] = {FUSOR_ENTRY(P, 0, 0), FUSOR_ENTRY(P + 1, 0, 0), FUSOR_ENTRY(P, 0, 0),
                        FUSOR_ENTRY(P + 2, 0, 0)};
    world_use(0);
    assert_int_equal(call(balloon_inflate, A, list, 4), 2);
    world_check();
    world_check_contents(); // P + 2 was not touched
    assert_int_equal(ballooned(A), 2);
    assert_int_equal(call(balloon_inflate, A, list + 2, 2), -FUSOR_EEXIST);
    // Reported twice is not reported wrong.
    assert_int_equal(call(balloon_free_pages, A, list, 3), 3);
    assert_int_equal(call(balloon_inflate, A, list + 3, 1), 1);
    // A range with a page that is in, and a range behind one of its pages.
    assert_int_equal(one(balloon_inflate, A, R - 512, 9), -FUSOR_EEXIST);
    assert_int_equal(one(balloon_deflate, A, R - 512, 9), 1);
    assert_int_equal(ballooned(A), 0);
    assert_int_equal(one(balloon_deflate, A, R - 512, 9), -FUSOR_ENOENT);
    uint64_t both[2] = {FUSOR_ENTRY(R - 512, 0, 9), FUSOR_ENTRY(P, 0, 0)};
    assert_int_equal(call(balloon_inflate, A, both, 2), 1);
    assert_int_equal(ballooned(A), 512);
    world_check();
    assert_int_equal(one(balloon_deflate, A, P, 0), 1);
    assert_int_equal(ballooned(A), 511);
    world_check_contents();
    world_finish();
}

static void test_pinned(void **state)
{
    (void)state;
    start(1);
    fill_large(A, R - 512, 5);
    struct frame *r = frame_of(leaf_of(A, P).frame);
    r->count = 1;
    world_use(0);
    uint64_t range = FUSOR_ENTRY(R - 512, 0, 9), page = FUSOR_ENTRY(P, 0, 0);
    assert_int_equal(call(balloon_inflate, A, &range, 1), -FUSOR_ENOENT);
    assert_int_equal(call(balloon_free_pages, A, &range, 1), -FUSOR_ENOENT);
    assert_int_equal(call(balloon_free_pages, A, &page, 1), -FUSOR_ENOENT);
    assert_int_equal(call(balloon_inflate, A, &range, 1), -FUSOR_ENOENT); // small by now
    assert_int_equal(ballooned(A), 0);
    r->count = 0;
    world_check_contents();
    world_finish();
}

// --- Shared pages ---

static void test_shared(void **state)
{
    (void)state;
    shared_page(3);
    uint64_t before = free_now();
    for (unsigned n = 0; n < 3; n++)
        load(n + 1, n, P);
    assert_int_equal(inflate(A, P), 1);
    assert_int_equal(sharers_of(B, P), 2);
    assert_int_equal(free_now(), before);
    for (unsigned n = 0; n < 3; n++)
        load(n + 1, n, P);
    assert_int_equal(one(balloon_free_pages, B, P, 0), 1);
    assert_int_equal(sharers_of(C, P), 1);
    load(3, C, P);
    assert_int_equal(inflate(C, P), 1);
    assert_int_equal(free_now(), before + 1);
    for (unsigned n = 0; n < 3; n++)
        load(n + 1, n, P);
    assert_int_equal(ballooned(A) + ballooned(B) + ballooned(C), 2);
    assert_int_equal(world_snapshot().count[FRAME_SHARED], 0);
    fill(1, A, P, 42); // nothing remembers it
    assert_int_equal(hint(A, P), 1);
    assert_int_equal(FIGURE(A, unmatched), 2);
    world_check_contents();
    world_finish();
}

static void test_hints_for_the_balloon(void **state)
{
    (void)state;
    start(2);
    fill(1, A, P, 0);
    fill(1, B, P, 0);
    assert_int_equal(hint(B, P), 1);
    assert_int_equal(inflate(A, P), 1);
    assert_int_equal(hint(A, P), 1);
    load(1, A, P);
    assert_int_equal(leaf_of(A, P).kind, EPT_KIND_ZERO);
    assert_int_equal(hint(A, P), 1);
    assert_int_equal(rejected(A, FUSION_REJECT_ABSENT), 2);
    // A candidate of the index that is in the balloon by now.
    fill(1, A, P + 1, 77);
    assert_int_equal(hint(A, P + 1), 1);
    assert_int_equal(inflate(A, P + 1), 1);
    load(1, A, P + 1);
    fill(1, B, P + 1, 77);
    assert_int_equal(hint(B, P + 1), 1);
    assert_false(is_shared(B, P + 1));
    fusion_off(A);
    for (unsigned i = 0; i < 40; i++)
        service_round();
    world_check_contents();
    world_finish();
}

int main(void)
{
    static const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_page),
        cmocka_unit_test(test_zero_page_needs_shootdown),
        cmocka_unit_test(test_fusor_writes),
        cmocka_unit_test(test_read_of_what_is_given),
        cmocka_unit_test(test_deflate),
        cmocka_unit_test(test_deflate_without_memory),
        cmocka_unit_test(test_bad_input),
        cmocka_unit_test(test_twice_in_a_list),
        cmocka_unit_test(test_pinned),
        cmocka_unit_test(test_shared),
        cmocka_unit_test(test_hints_for_the_balloon),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
