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
// Hints as they come from guests: everything that can be wrong with them, their cost when they are
// refused, the budget, and a lack of memory at every allocation.
#include "fusion_world.h"

#include "kernel/heap.h"

#define P UINT64_C(600)

struct before {
    uint64_t received, rejected[FUSION_REJECTS], private_frames, shootdowns;
};

static struct before note(unsigned n)
{
    struct before b = {.received = FIGURE(n, received),
                       .private_frames = world_snapshot().count[FRAME_PRIVATE],
                       .shootdowns = world.shootdowns};
    for (unsigned i = 0; i < FUSION_REJECTS; i++)
        b.rejected[i] = rejected(n, (enum fusion_reject)i);
    return b;
}

// One more was received and refused for `why`; nothing else has changed.
static void check_refused(unsigned n, const struct before *b, enum fusion_reject why)
{
    assert_int_equal(FIGURE(n, received), b->received + 1);
    for (unsigned i = 0; i < FUSION_REJECTS; i++)
        assert_int_equal(rejected(n, (enum fusion_reject)i), b->rejected[i] + (i == why));
    assert_int_equal(world_snapshot().count[FRAME_PRIVATE], b->private_frames);
    assert_int_equal(world.shootdowns, b->shootdowns);
}

static const struct {
    uint64_t entry;
    enum fusion_reject why;
    int64_t result;
} bad[] = {
    {0xa0, FUSION_REJECT_RANGE, -FUSOR_ERANGE},    // hole
    {0xe0, FUSION_REJECT_RANGE, -FUSOR_ERANGE},    // ROM
    {0xff, FUSION_REJECT_RANGE, -FUSOR_ERANGE},    //
    {1024, FUSION_REJECT_RANGE, -FUSOR_ERANGE},    // behind its memory
    {0xfec00, FUSION_REJECT_RANGE, -FUSOR_ERANGE}, // IOAPIC
    {0xfee00, FUSION_REJECT_RANGE, -FUSOR_ERANGE}, // LAPIC
    {0x100000, FUSION_REJECT_RANGE, -FUSOR_ERANGE},
    {UINT64_C(1) << 36, FUSION_REJECT_RANGE, -FUSOR_ERANGE},
    {FUSOR_ENTRY_GFN_MASK, FUSION_REJECT_RANGE, -FUSOR_ERANGE},
    {FUSOR_ENTRY(1024, 1, 9), FUSION_REJECT_RANGE, -FUSOR_ERANGE},
    {FUSOR_ENTRY(FUSOR_ENTRY_GFN_MASK - 511, 1, 9), FUSION_REJECT_RANGE, -FUSOR_ERANGE},
    {FUSOR_ENTRY(P, FUSOR_CLASSES, 0), FUSION_REJECT_RESERVED, -FUSOR_EINVAL},
    {FUSOR_ENTRY(P, 15, 0), FUSION_REJECT_RESERVED, -FUSOR_EINVAL},
    {FUSOR_ENTRY(P, 1, 1), FUSION_REJECT_RESERVED, -FUSOR_EINVAL},
    {FUSOR_ENTRY(512, 1, 8), FUSION_REJECT_RESERVED, -FUSOR_EINVAL},
    {FUSOR_ENTRY(512, 1, 15), FUSION_REJECT_RESERVED, -FUSOR_EINVAL},
    {FUSOR_ENTRY(P, 1, 9), FUSION_REJECT_RESERVED, -FUSOR_EINVAL}, // misaligned
    {FUSOR_ENTRY(513, 1, 9), FUSION_REJECT_RESERVED, -FUSOR_EINVAL},
    {P | UINT64_C(1) << 48, FUSION_REJECT_RESERVED, -FUSOR_EINVAL},
    {P | UINT64_C(1) << 63, FUSION_REJECT_RESERVED, -FUSOR_EINVAL},
    {UINT64_MAX, FUSION_REJECT_RESERVED, -FUSOR_EINVAL},
};

static void test_bad_entries(void **state)
{
    (void)state;
    world_start(0);
    world_vms(2);
    fill(1, 0, P, 1);
    fill(1, 1, P, 1);
    hint(1, P);
    for (unsigned i = 0; i < ARRAY_SIZE(bad); i++) {
        struct before b = note(0);
        int64_t result = hint_entry(0, bad[i].entry);
        if (result != bad[i].result)
            fail_msg("entry %u %#lx: %ld", i, bad[i].entry, result);
        check_refused(0, &b, bad[i].why);
        world_use(0);
        assert_int_equal(fusion_unhint(&world.vm[0], &bad[i].entry, 1), bad[i].result);
        // Behind a good one: the list ends before it, and it is not counted yet.
        uint64_t entries[2] = {P + 1, bad[i].entry};
        b = note(0);
        assert_int_equal(fusion_hint(&world.vm[0], entries, 2), 1);
        check_refused(0, &b, FUSION_REJECT_ABSENT);
        assert_int_equal(fusion_unhint(&world.vm[0], entries, 2), 1);
    }
    assert_int_equal(FIGURE(0, fused), 0);
    // After all that a good one.
    assert_int_equal(hint(0, P), 1);
    assert_int_equal(FIGURE(0, fused), 1);
    world_check_contents();
    world_finish();
}

// A range with the hole of the first MiB in it: its pages are looked at one by one.
static void test_range_over_the_hole(void **state)
{
    (void)state;
    world_start(0);
    world_vms(2);
    for (unsigned n = 0; n < 2; n++) {
        for (uint64_t i = 0; i < 512; i++)
            if (i < 0xa0 || i >= 0xe0) {
                if (i >= 0xe0 && i < 0x100)
                    assert_non_null(world_access(1, n, i, READ)); // ROM
                else
                    fill(1, n, i, 10 + i * 1000);
            }
        hint_range(n, 0);
    }
    for (uint64_t i = 0; i < 512; i++)
        assert_int_equal(is_shared(0, i), (i < 0xa0 || i >= 0x100));
    world_check_contents();
    world_finish();
}

static void test_reasons(void **state)
{
    (void)state;
    world_start(0);
    world_vms(2);
    struct before b = note(0);
    assert_int_equal(hint(0, P), 1);
    check_refused(0, &b, FUSION_REJECT_ABSENT);
    assert_false(leaf_of(0, P).present); // a hint populates nothing
    fill(1, 0, P, 3);
    frame_of(leaf_of(0, P).frame)->count = 2;
    b = note(0);
    assert_int_equal(hint(0, P), 1);
    check_refused(0, &b, FUSION_REJECT_PINNED);
    frame_of(leaf_of(0, P).frame)->count = 0;
    fusion_off(0);
    b = note(0);
    assert_int_equal(hint(0, P), -FUSOR_EBUSY);
    check_refused(0, &b, FUSION_REJECT_OFF);
    service_round();
    b = note(0);
    assert_int_equal(hint(0, P), -FUSOR_EBUSY);
    check_refused(0, &b, FUSION_REJECT_OFF);
    fusion_on(0);
    assert_int_equal(hint(0, P), 1);
    assert_int_equal(FIGURE(0, unmatched), 1);
    fill(1, 1, P, 3);
    assert_int_equal(hint(1, P), 1);
    b = note(0);
    assert_int_equal(hint(0, P), 1);
    check_refused(0, &b, FUSION_REJECT_SHARED);
    assert_int_equal(fusion_hint(&world.vm[0], NULL, 0), 0);
    world_finish();
}

static void test_duplicates(void **state)
{
    (void)state;
    world_start(0);
    world_vms(2);
    uint64_t gfns[64];
    for (unsigned i = 0; i < 64; i++)
        gfns[i] = P + i % 3;
    for (unsigned i = 0; i < 3; i++) {
        fill(1, 0, P + i, 1 + i * 1000);
        fill(1, 1, P + i, 1 + i * 1000);
    }
    // The fourth is the first again: it ends the call, and is refused when it comes back.
    for (unsigned vm = 0; vm < 2; vm++) {
        assert_int_equal(hint_many(vm, gfns, 64), 3);
        assert_int_equal(rejected(vm, FUSION_REJECT_DUPLICATE), 0);
        assert_int_equal(hint_many(vm, gfns + 3, 61), -FUSOR_EEXIST);
        assert_int_equal(rejected(vm, FUSION_REJECT_DUPLICATE), 1);
    }
    assert_int_equal(FIGURE(0, unmatched), 3);
    assert_int_equal(FIGURE(1, fused), 3);
    // Once only: the guest may hint it anew.
    assert_int_equal(hint_many(0, gfns + 3, 1), 1);
    // Gfns that look alike are not duplicates: 1024 apart.
    world_vm(2, 16 * MIB, "all");
    uint64_t alike[3] = {600, 600 + 1024, 600 + 2048};
    for (unsigned i = 0; i < 3; i++)
        fill(1, 2, alike[i], 5 + i * 1000);
    assert_int_equal(hint_many(2, alike, 3), 3);
    assert_int_equal(rejected(2, FUSION_REJECT_DUPLICATE), 0);
    assert_int_equal(FIGURE(2, unmatched), 3);
    world_finish();
}

// A chunk at once, the rest for another call; a range is a call of its own.
static void test_chunks(void **state)
{
    (void)state;
    world_start(0);
    world_vms(1);
    uint64_t gfns[200], entries[3];
    for (unsigned i = 0; i < 200; i++) {
        gfns[i] = 256 + i;
        fill(1, 0, gfns[i], 1 + i * 1000);
    }
    assert_int_equal(hint_many(0, gfns, 200), FUSION_CHUNK);
    assert_int_equal(FIGURE(0, unmatched), FUSION_CHUNK);
    assert_int_equal(hint_many(0, gfns + 192, 8), 8);
    entries[0] = FUSOR_ENTRY(300, 1, 0);
    entries[1] = FUSOR_ENTRY(512, 1, 9);
    entries[2] = FUSOR_ENTRY(301, 1, 0);
    world_use(0);
    assert_int_equal(fusion_hint(&world.vm[0], entries, 3), 1);
    assert_int_equal(fusion_hint(&world.vm[0], entries + 1, 2), 1);
    assert_int_equal(fusion_hint(&world.vm[0], entries + 2, 1), 1);
    assert_false(fake_irq_on); // as it was
    fake_irq_on = true;
    assert_int_equal(fusion_hint(&world.vm[0], entries, 1), 1);
    assert_true(fake_irq_on);
    world_check();
    world_finish();
}

static void test_budget(void **state)
{
    (void)state;
    world_start(0);
    world_vms(1);
    fill(1, 0, P, 1);
    uint64_t granted = 0;
    uint64_t gfn = P;
    while (hint(0, gfn) == 1)
        assert_true(++granted <= 200000);
    // Two passes over 128 MiB, the least that counts as memory, and what came in meanwhile.
    assert_in_range(granted, 65536, 70000);
    struct before b = note(0);
    assert_int_equal(hint(0, gfn), -FUSOR_EAGAIN);
    check_refused(0, &b, FUSION_REJECT_BUDGET);
    // It comes back with time: half a pass in a second.
    fake_tsc += SECOND;
    granted = 0;
    while (hint(0, gfn) == 1)
        granted++;
    assert_in_range(granted, 16384, 18000);
    // And no more than two passes, however long it waits.
    fake_tsc += 1000 * SECOND;
    for (granted = 0; budget_take(world_fusion(0), 64, 1, fake_tsc) == 64; granted += 64)
        ;
    assert_in_range(granted, 65536 - 64, 65536);
    world_finish();
}

static void test_budget_grows_with_memory(void **state)
{
    (void)state;
    static const uint64_t sizes[] = {1, 64, 256, 1024, 65536}; // MiB
    world_start(0);
    world_vms(1);
    struct fusion_vm *f = world_fusion(0);
    for (unsigned i = 0; i < ARRAY_SIZE(sizes); i++) {
        uint64_t memory = world.vm[0].config.memory, pages = sizes[i] * MIB / PAGE_SIZE;
        world.vm[0].config.memory = sizes[i] * MIB;
        f->tokens_full_at = 0;
        uint64_t granted = 0;
        while (granted < UINT64_C(100000000)) {
            unsigned n = budget_take(f, 64, 1, SECOND);
            if (n == 0)
                break;
            granted += n;
        }
        assert_int_equal(granted, 2 * MAX(pages, UINT64_C(32768)));
        assert_int_equal(budget_take(f, 1, 1, SECOND), 0);
        assert_int_equal(budget_take(f, 1, 1, 2 * SECOND), 1);
        // All or nothing: the rest of a budget does not pay for a range.
        f->tokens_full_at = 0;
        assert_int_equal(budget_take(f, 2 * (unsigned)MAX(pages, UINT64_C(32768)) - 511, 1, SECOND),
                         2 * MAX(pages, UINT64_C(32768)) - 511);
        assert_int_equal(budget_take(f, 512, 512, SECOND), 0);
        assert_int_equal(budget_take(f, 512, 1, SECOND), 511);
        world.vm[0].config.memory = memory;
    }
    world_finish();
}

// Every allocation fails once: nothing changes but figures, and later it works.
static void test_hint_without_memory(void **state)
{
    (void)state;
    unsigned n = 1;
    for (;; n++) {
        world_start(0);
        world_vms(2);
        for (unsigned v = 0; v < 2; v++) {
            world.vm[v].config.large_pages = VM_LARGE_EAGER;
            for (unsigned i = 0; i < 8; i++)
                fill(1, v, P + i, 1 + i * 1000); // a large page
            assert_int_equal(leaf_of(v, P).level, EPT_2M);
        }
        uint64_t gfns[8];
        for (unsigned i = 0; i < 8; i++)
            gfns[i] = P + i;
        hint_many(0, gfns, 8);
        world.failed = false;
        world.fail_at = n;
        assert_int_equal(hint_many(1, gfns, 8), 8);
        world.fail_at = 0;
        bool failed = world.failed;
        if (!failed)
            assert_int_equal(FIGURE(1, fused), 8);
        assert_int_equal(hint_many(1, gfns, 8), 8);
        hint_many(0, gfns, 8);
        hint_many(1, gfns, 8);
        for (unsigned i = 0; i < 8; i++)
            assert_true(same_frame(0, P + i, 1, P + i));
        world_check_contents();
        world_finish();
        if (!failed)
            break;
    }
    assert_int_equal(n, 3); // a table for each side
}

// A hint with no free frame at all: pages in small entries need none.
static void test_hint_when_the_machine_is_full(void **state)
{
    (void)state;
    world_start(0);
    world_vms(2);
    fill(1, 0, P, 1);
    fill(1, 1, P, 1);
    world_starve(0);
    hint(0, P);
    hint(1, P);
    assert_true(same_frame(0, P, 1, P));
    world_feed();
    world_finish();
}

// Between the first look at a page and the index its frame became the heap's: the mark that hints
// leave on frames must not mean anything to others.
static void *taken;

static void fuse_and_take_the_frame(void)
{
    hfn_t frame = leaf_of(0, P).frame;
    uint64_t entry = FUSOR_ENTRY(P, FUSOR_CLASS_OTHER, 0);
    assert_int_equal(fusion_hint(&world.vm[0], &entry, 1), 1);
    assert_true(is_shared(0, P));
    taken = heap_alloc(PAGE_SIZE); // of this CPU's cache the youngest
    assert_ptr_equal(taken, hfn_to_pointer(frame));
}

static void test_frame_taken_by_the_heap(void **state)
{
    (void)state;
    world_start(0);
    world_vms(2);
    fill(1, 0, P, 42);
    fill(1, 1, P, 42);
    hint(1, P);
    // The inner hint has its hash, too; orders are not obeyed within an action.
    world_at(POINT_HASH, 1, 3, fuse_and_take_the_frame);
    hint(0, P);
    assert_int_equal(world_pending(), 0);
    heap_free(taken);
    world_check_contents();
    world_finish();
}

// Between the look at the leaf and the read of the version the page was freed by a sibling vCPU and
// given to another VM: nobody learns from the index what is in it.
static void test_frame_of_another_vm(void **state)
{
    (void)state;
    world_start(0);
    world_vms(2);
    fill(1, 0, P, 42);
    fill(1, 1, P, 42);
    hint(1, P);
    uint64_t entry = P;
    struct frame *r = frame_of(leaf_of(0, P).frame);
    r->owner = world.vm[1].id;
    struct before b = note(0);
    assert_int_equal(fusion_hint(&world.vm[0], &entry, 1), 1);
    check_refused(0, &b, FUSION_REJECT_BUSY);
    r->owner = world.vm[0].id;
    uint8_t was = r->state;
    r->state = FRAME_FREE; // or nobody has it, and the owner's bits mean something else
    b = note(0);
    assert_int_equal(fusion_hint(&world.vm[0], &entry, 1), 1);
    check_refused(0, &b, FUSION_REJECT_BUSY);
    r->state = was;
    assert_false(is_shared(0, P));
    assert_int_equal(hint(0, P), 1);
    assert_true(is_shared(0, P));
    world_check_contents();
    world_finish();
}

static void test_statistics(void **state)
{
    (void)state;
    world_start(0);
    world_vms(2);
    fill(1, 0, P, 1);
    fill(1, 1, P, 1);
    hint(0, P);
    hint(1, P);
    hint(1, P);
    struct fusor_statistics s;
    fusion_statistics(&world.vm[1], &s);
    assert_int_equal(s.hints_received, 2);
    assert_int_equal(s.hints_fused, 1);
    assert_int_equal(s.hints_unmatched, 0);
    assert_int_equal(s.hints_rejected, 1);
    assert_int_equal(s.shared, 1);
    assert_int_equal(s.fused_by_class[FUSOR_CLASS_CACHE], 1);
    store(1, 1, P, 0, 9);
    fusion_statistics(&world.vm[1], &s);
    assert_int_equal(s.splits, 1);
    assert_int_equal(s.shared, 0);
    struct fusion_info info;
    assert_int_equal(fusion_get("b", &info), 0);
    assert_int_equal(info.mode, FUSION_ON);
    assert_int_equal(info.figures.received, 2);
    assert_int_equal(info.figures.splits, 1);
    assert_int_equal(fusion_get("nobody", &info), E_NOENT);
    char why[VM_WHY_MAX];
    assert_int_equal(fusion_switch("nobody", false, why), E_NOENT);
    assert_non_null(strstr(why, "nobody"));
    world_finish();
}

int main(void)
{
    static const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_bad_entries),
        cmocka_unit_test(test_range_over_the_hole),
        cmocka_unit_test(test_reasons),
        cmocka_unit_test(test_duplicates),
        cmocka_unit_test(test_chunks),
        cmocka_unit_test(test_budget),
        cmocka_unit_test(test_budget_grows_with_memory),
        cmocka_unit_test(test_hint_without_memory),
        cmocka_unit_test(test_hint_when_the_machine_is_full),
        cmocka_unit_test(test_frame_taken_by_the_heap),
        cmocka_unit_test(test_frame_of_another_vm),
        cmocka_unit_test(test_statistics),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
