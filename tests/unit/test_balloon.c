// SPDX-License-Identifier: BSD-2-Clause
// sources: tests/unit/fusion_world.c tests/unit/fusion_guest.c tests/unit/fusion_check.c
// sources: vm/memory.c vm/ballooned.c
// sources: balloon/pages.c
// sources: fusion/backoff.c fusion/budget.c fusion/control.c fusion/fuse.c fusion/index.c
// sources: fusion/index_table.c fusion/intake.c fusion/members.c fusion/page_general.c
// sources: fusion/page_ops.c fusion/range.c fusion/service.c fusion/split.c
// sources: ept/walk.c ept/map.c ept/large.c ept/destroy.c ept/shootdown.c ept/fault.c
// sources: kernel/frames.c kernel/frame_buddy.c kernel/frame_cache.c kernel/frame_zero.c
// sources: kernel/frame_poison.c kernel/frame_account.c kernel/frame_share.c kernel/heap.c
// sources: kernel/lock.c kernel/format.c
// libs: -Wl,--wrap=ept_shootdown,--wrap=ept_lookup,--wrap=spin_lock,--wrap=spin_lock_nested
// libs: -Wl,--wrap=frame_alloc,--wrap=heap_alloc,--wrap=page_ops_begin,--wrap=page_ops_end
// The balloon beside fusion: what goes in, what reads and writes of it see, what comes back; fusing
// and splitting meanwhile; without memory; a guest that does everything wrong.
#include "fusion_world.h"

#include "balloon/balloon.h"
#include "vm/ballooned.h"

#define A 0
#define B 1
#define C 2
#define P UINT64_C(600)  // in a range that is all RAM
#define R UINT64_C(1024) // a range

// --- The rooms around ---

static uint64_t uncommitted = UINT64_MAX;
static const struct vm_platform_ops *platform_of_test;
const struct vm_platform_ops *vm_platform;
static int doorbell = -1;

void vm_commitment(struct vm_commitment *out)
{
    *out = (struct vm_commitment){.left = uncommitted};
}

static void set_doorbell(struct vm *vm, bool ringing)
{
    assert_false(spin_none_held());
    (void)vm;
    doorbell = ringing;
}

// --- Helpers ---

static void forget_model(unsigned n, uint64_t gfn, unsigned pages)
{
    for (unsigned i = 0; i < pages; i++) {
        free(world.model[n][gfn + i]);
        world.model[n][gfn + i] = NULL;
    }
}

typedef int64_t (*list_call)(struct vm *vm, const uint64_t *entries, unsigned count);

static int64_t call(list_call work, unsigned n, const uint64_t *entries, unsigned count)
{
    world_leave(cpu_index());
    int64_t done = work(&world.vm[n], entries, count);
    for (int64_t i = 0; i < done && work != balloon_deflate; i++)
        forget_model(n, entries[i] & FUSOR_ENTRY_GFN_MASK,
                     (entries[i] >> FUSOR_ENTRY_ORDER_SHIFT & 15) == 9 ? 512 : 1);
    return done;
}

static int64_t one(list_call work, unsigned n, uint64_t gfn, unsigned order)
{
    uint64_t entry = FUSOR_ENTRY(gfn, 0, order);
    world_use(0);
    int64_t done = call(work, n, &entry, 1);
    world_check();
    return done;
}

static int64_t inflate(unsigned n, uint64_t gfn)
{
    return one(balloon_inflate, n, gfn, 0);
}

static uint64_t ballooned(unsigned n)
{
    return world.vm[n].account.ballooned;
}

static uint64_t private_of(unsigned n)
{
    return world.vm[n].account.private_frames;
}

static uint64_t free_now(void)
{
    return world_snapshot().count[FRAME_FREE];
}

static void start(unsigned vms)
{
    world_start(0);
    uncommitted = UINT64_MAX;
    world_vms(vms);
}

// A range of VM n as one large page, page i holding `pattern` + i.
static void fill_large(unsigned n, uint64_t gfn, uint64_t pattern)
{
    for (unsigned i = 0; i < 512; i++)
        fill(1, n, gfn + i, pattern + 1000 * i);
    assert_int_equal(leaf_of(n, gfn).level, EPT_2M);
}

static void shared_page(unsigned vms)
{
    start(vms);
    for (unsigned n = 0; n < vms; n++) {
        fill(1, n, P, 42);
        assert_int_equal(hint(n, P), 1);
    }
    assert_int_equal(sharers_of(A, P), vms);
}

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
    uncommitted = 1; // overcommit = off
    assert_int_equal(call(balloon_deflate, A, entries + 2, 2), 1);
    uncommitted = 0;
    assert_int_equal(call(balloon_deflate, A, entries + 3, 1), -FUSOR_ENOMEM);
    uncommitted = UINT64_MAX;
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
    uncommitted = UINT64_MAX;
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
    forget_model(A, P + 2, 1); // taken, as untouched memory
    world_check();
    assert_int_equal(ballooned(A), 2);
    assert_int_equal(call(balloon_inflate, A, list + 2, 2), -FUSOR_EEXIST);
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

// --- Ranges ---

static void test_large(void **state)
{
    (void)state;
    start(1);
    uint64_t before = free_now();
    fill_large(A, R - 512, 5);
    load(1, A, P);
    load(2, A, P);
    unsigned shootdowns = world.shootdowns;
    assert_int_equal(one(balloon_inflate, A, R - 512, 9), 1);
    assert_int_equal(world.shootdowns, shootdowns + 1);
    assert_int_equal(ballooned(A), 512);
    assert_int_equal(private_of(A), 0);
    assert_true(free_now() + 3 >= before); // tables
    load(1, A, P);
    load(2, A, P);
    assert_int_equal(one(balloon_deflate, A, R - 512, 9), 1);
    assert_int_equal(ballooned(A), 0);
    fill_large(A, R - 512, 6); // promoted again
    // A page of it.
    uint64_t splits = world.vm[A].ept.large_splits;
    assert_int_equal(inflate(A, P), 1);
    assert_int_equal(world.vm[A].ept.large_splits, splits + 1);
    assert_int_equal(private_of(A), 511);
    for (unsigned i = 0; i < 3; i++) // with smaller ones beside it
        assert_int_equal(inflate(A, P + 1 + i), 1);
    assert_int_equal(ballooned(A), 4);
    // The rest of it as a range is refused, its pages are not.
    assert_int_equal(one(balloon_inflate, A, R - 512, 9), -FUSOR_EEXIST);
    assert_int_equal(one(balloon_free_pages, A, R - 512, 9), 1);
    assert_int_equal(private_of(A), 0);
    assert_int_equal(ballooned(A), 4);
    world_check_contents();
    world_finish();
}

static void test_many_small_ones(void **state)
{
    (void)state;
    world_start(0);
    world_configure(A, 8 * MIB, "");
    world.vm[A].config.large_pages = VM_LARGE_OFF;
    assert_int_equal(world_create(A), 0);
    uint64_t list[FUSOR_LIST_MAX];
    for (unsigned i = 0; i < 512 * 3; i++)
        fill(1, A, 512 + i, i + 1);
    for (unsigned i = 0; i < 3; i++)
        list[i] = FUSOR_ENTRY(512 + 512 * i, 0, 9);
    world_use(0);
    // A range of small pages fills a batch; what did not fit is for the next call.
    assert_int_equal(call(balloon_inflate, A, list, 3), 1);
    assert_int_equal(call(balloon_inflate, A, list + 1, 2), 1);
    assert_int_equal(call(balloon_free_pages, A, list + 2, 1), 1);
    world_check();
    assert_int_equal(ballooned(A), 1024);
    // Ranges with little in them go together.
    fill(1, A, 512 + 3, 1);
    fill(1, A, 1024 + 3, 1);
    fill(1, A, 1536 + 3, 1);
    assert_int_equal(call(balloon_free_pages, A, list, 3), 3);
    assert_int_equal(ballooned(A), 1022); // two came back by being written
    for (unsigned i = 0; i < 100; i++) {
        fill(1, A, 1536 + i, i + 1);
        list[i] = FUSOR_ENTRY(1536 + i, 0, 0);
    }
    unsigned shootdowns = world.shootdowns;
    assert_int_equal(call(balloon_inflate, A, list, 100), BALLOON_CHUNK);
    assert_int_equal(world.shootdowns, shootdowns + 1);
    world_check();
    world_check_contents();
    world_finish();
}

static void start_shared_range(void)
{
    start(2);
    for (unsigned n = 0; n < 2; n++) {
        fill_large(n, R - 512, 5);
        assert_true(hint_range(n, R - 512) > 0);
    }
    assert_true(is_shared(A, P) && is_shared(B, P));
    assert_int_equal(leaf_of(A, P).level, EPT_2M);
}

static void test_large_shared(void **state)
{
    (void)state;
    start_shared_range();
    load(1, A, P);
    load(2, B, P);
    assert_int_equal(inflate(A, P), 1);
    assert_int_equal(sharers_of(B, P), 1);
    assert_int_equal(sharers_of(B, P + 1), 2);
    load(1, A, P);
    load(2, B, P);
    assert_int_equal(one(balloon_inflate, B, R - 512, 9), 1);
    assert_int_equal(ballooned(B), 512);
    assert_int_equal(sharers_of(A, P + 1), 1);
    for (unsigned i = 0; i < 512; i++) {
        load(1, A, R - 512 + i);
        load(2, B, R - 512 + i);
    }
    assert_int_equal(one(balloon_free_pages, A, R - 512, 9), 1);
    assert_int_equal(world_snapshot().count[FRAME_SHARED], 0);
    world_check_contents();
    world_finish();
}

// A range is not promoted while pages of it are in the balloon, nor at once when they come back.
static void test_promotion(void **state)
{
    (void)state;
    start(1);
    for (unsigned i = 0; i < VM_PROMOTE_TOUCHES - 1; i++)
        fill(1, A, 512 + i, i + 1);
    assert_int_equal(inflate(A, 1023), 1);
    for (unsigned i = VM_PROMOTE_TOUCHES - 1; i < 511; i++)
        fill(1, A, 512 + i, i + 1);
    assert_int_equal(leaf_of(A, 512).level, EPT_4K);
    assert_int_equal(ballooned(A), 1);
    fill(1, A, 1023, 9); // the last comes back
    assert_int_equal(leaf_of(A, 512).level, EPT_2M);
    for (unsigned turn = 0; turn < 100; turn++) {
        assert_int_equal(one(balloon_free_pages, A, 700, 0), 1);
        fill(1, A, 700, turn);
    }
    assert_int_equal(leaf_of(A, 512).level, EPT_4K);
    assert_int_equal(world.vm[A].promotions, 1);
    world_check_contents();
    world_finish();
}

static void test_eager(void **state)
{
    (void)state;
    world_start(0);
    world_configure(A, 8 * MIB, "");
    world.vm[A].config.large_pages = VM_LARGE_EAGER;
    assert_int_equal(world_create(A), 0);
    assert_int_equal(inflate(A, R + 5), 1);
    fill(1, A, R, 1);
    assert_int_equal(leaf_of(A, R).level, EPT_4K);
    fill(1, A, R + 512, 1);
    assert_int_equal(leaf_of(A, R + 512).level, EPT_2M);
    assert_int_equal(one(balloon_inflate, A, R + 512, 9), 1);
    assert_int_equal(one(balloon_deflate, A, R + 512, 9), 1);
    fill(1, A, R + 512, 1);
    assert_int_equal(leaf_of(A, R + 512).level, EPT_2M);
    world_check();
    world_finish();
}

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
    world_reset(A);
    assert_int_equal(ballooned(A), 0);
    load(1, A, 300);
    load(2, B, P);
    assert_int_equal(inflate(A, 300), 1);
    world_check_contents();
    world_finish();
}

static void test_target(void **state)
{
    (void)state;
    static const struct vm_platform_ops ops = {.set_doorbell = set_doorbell};
    start(1);
    platform_of_test = &ops;
    vm_platform = platform_of_test;
    world.vm[A].balloon_target = 123;
    doorbell = 1;
    assert_false(world.vm[A].balloon_driver);
    assert_int_equal(balloon_target(&world.vm[A]), 123);
    assert_int_equal(doorbell, 0);
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
        uncommitted = UINT64_MAX;
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

// --- At the same time ---

static list_call other_call;
static unsigned other_vm;
static uint64_t other_entry;
static int64_t other_done;

static unsigned acted;

// With the gfn lock held by the other CPU, this one would wait: nothing to be seen.
static void act(void)
{
    uint64_t gfn = other_entry & FUSOR_ENTRY_GFN_MASK;
    struct spinlock *lock = &world.vm[other_vm].ept.locks[gfn / 512 % EPT_LOCKS];
    if (lock->next != lock->owner)
        return;
    other_done = call(other_call, other_vm, &other_entry, 1);
    assert_int_equal(other_done, 1);
    acted++;
}

// Comparisons are done under the locks of both sides.
static const enum world_point points[] = {POINT_SHOOTDOWN,   POINT_SHOT,  POINT_GFN_LOCK,
                                          POINT_BUCKET_LOCK, POINT_ALLOC, POINT_HASH};

// While `work` runs on CPU 0, CPU 3 gives a page (or a range) of VM `vm`, at every point there is.
static void at_every_point(void (*prepare)(void), void (*work)(void), unsigned vm, uint64_t entry)
{
    static const list_call calls[] = {balloon_inflate, balloon_free_pages};
    acted = 0;
    for (unsigned c = 0; c < ARRAY_SIZE(calls); c++)
        for (unsigned p = 0; p < ARRAY_SIZE(points); p++)
            for (unsigned n = 1; n < 40; n++) {
                prepare();
                other_call = calls[c];
                other_vm = vm;
                other_entry = entry;
                world_at(points[p], n, 3, act);
                work();
                bool over = world_pending() != 0;
                world_check();
                for (unsigned i = 0; i < 2; i++)
                    load(1, i, P);
                world_check_contents();
                world_finish();
                if (over)
                    break;
            }
    assert_true(acted >= 2);
}

static void two_candidates(void)
{
    start(2);
    fill(1, A, P, 42);
    fill(1, B, P, 42);
    hint(A, P);
}

static void hint_of_b(void)
{
    uint64_t entry = FUSOR_ENTRY(P, FUSOR_CLASS_CACHE, 0);
    world_use(0);
    assert_int_equal(fusion_hint(&world.vm[B], &entry, 1), 1);
}

static void test_fuse_races(void **state)
{
    (void)state;
    static const uint64_t page = FUSOR_ENTRY(P, 0, 0);
    at_every_point(two_candidates, hint_of_b, A, page);
    at_every_point(two_candidates, hint_of_b, B, page);
    at_every_point(two_candidates, hint_of_b, A, FUSOR_ENTRY(R - 512, 0, 9));
}

static void two_sharers(void)
{
    shared_page(2);
}

static void write_of_b(void)
{
    store(1, B, P, 8, 77);
}

static void test_split_races(void **state)
{
    (void)state;
    at_every_point(two_sharers, write_of_b, A, FUSOR_ENTRY(P, 0, 0));
}

// VM A gives the page at the same time as it writes to it: whatever wins, the page is zero with
// perhaps the written word.
static void write_of_a(void)
{
    uint8_t *page = world_access(1, A, P, READ | WRITE);
    *(uint64_t *)(void *)(page + 8) = 77;
    world_leave(1);
    fill(1, A, P, 3); // for the model
}

static void test_own_split_races(void **state)
{
    (void)state;
    at_every_point(two_sharers, write_of_a, A, FUSOR_ENTRY(P, 0, 0));
}

static void large_candidates(void)
{
    start(2);
    fill_large(A, R - 512, 5);
    fill_large(B, R - 512, 5);
    hint_range(A, R - 512);
}

static void hint_range_of_b(void)
{
    uint64_t entry = FUSOR_ENTRY(R - 512, FUSOR_CLASS_CACHE, 9);
    world_use(0);
    assert_int_equal(fusion_hint(&world.vm[B], &entry, 1), 1);
}

static void test_range_races(void **state)
{
    (void)state;
    static const uint64_t entries[] = {FUSOR_ENTRY(P, 0, 0), FUSOR_ENTRY(R - 512, 0, 0),
                                       FUSOR_ENTRY(R - 512, 0, 9)};
    for (unsigned vm = 0; vm < 2; vm++)
        for (unsigned i = 0; i < ARRAY_SIZE(entries); i++)
            for (unsigned p = 0; p < 3; p++) // shootdowns
                for (unsigned n = 1; n < 4; n++) {
                    large_candidates();
                    other_call = balloon_inflate;
                    other_vm = vm;
                    other_entry = entries[i];
                    world_at(points[p], n, 3, act);
                    hint_range_of_b();
                    world_pending();
                    world_check();
                    world_check_contents();
                    world_finish();
                }
}

// Two vCPUs of one VM give, take and use the same page.
static void give_a(void)
{
    uint64_t entry = FUSOR_ENTRY(P, 0, 0);
    int64_t done = call(balloon_inflate, A, &entry, 1);
    assert_true(done == 1 || done == 0 || done == -FUSOR_EEXIST);
}

static void take_a(void)
{
    uint64_t entry = FUSOR_ENTRY(P, 0, 0);
    int64_t done = call(balloon_deflate, A, &entry, 1);
    assert_true(done == 1 || done == -FUSOR_ENOENT);
}

static void touch_a(void)
{
    fill(3, A, P, 9);
    world_leave(3);
    forget_model(A, P, 1);
}

static void test_one_vm_races(void **state)
{
    (void)state;
    static void (*const work[])(void) = {give_a, take_a, touch_a};
    for (unsigned a = 0; a < 3; a++)
        for (unsigned b = 0; b < 3; b++)
            for (unsigned in = 0; in < 2; in++)
                for (unsigned p = 0; p < ARRAY_SIZE(points); p++)
                    for (unsigned n = 1; n < 12; n++) {
                        start(1);
                        fill(1, A, P, 42);
                        if (in)
                            inflate(A, P);
                        if (work[b] == touch_a && work[a] == touch_a)
                            continue;
                        world_use(work[a] == touch_a ? 2 : 0);
                        world_at(points[p], n, work[a] == touch_a ? 2 : 3, work[b]);
                        if (work[a] == touch_a)
                            world_use(1);
                        work[a]();
                        bool over = world_pending() != 0;
                        world_check();
                        fill(1, A, P, 11);
                        load(2, A, P);
                        assert_int_equal(ballooned(A), 0);
                        world_finish();
                        if (over)
                            break;
                    }
}

// --- At random ---

static uint64_t seed;

static unsigned random_below(unsigned n)
{
    seed = seed * 6364136223846793005 + 1442695040888963407;
    return (unsigned)(seed >> 33) % n;
}

static void test_random(void **state)
{
    (void)state;
    static const uint64_t gfns[] = {P, P + 1, P + 2, R - 512, R - 1, R, R + 1, R + 511, 300, 301};
    for (seed = 1; seed < 40; seed++) {
        uint64_t kept = seed;
        start(3);
        for (unsigned turn = 0; turn < 400; turn++) {
            unsigned n = random_below(3), cpu = 1 + random_below(3);
            uint64_t gfn = gfns[random_below(ARRAY_SIZE(gfns))];
            gfn = MIN(gfn, UINT64_C(1023));
            world_use(0);
            switch (random_below(10)) {
            case 0:
            case 1:
                fill(cpu, n, gfn, random_below(3) * 7);
                break;
            case 2:
                store(cpu, n, gfn, 8 * random_below(512), random_below(4));
                break;
            case 3:
                load(cpu, n, gfn);
                break;
            case 4:
                hint(n, gfn);
                break;
            case 5:
                one(balloon_deflate, n, gfn, 0);
                break;
            case 6:
                one(balloon_free_pages, n, gfn, 0);
                break;
            case 7:
                if (random_below(8) == 0)
                    one(random_below(2) != 0 ? balloon_inflate : balloon_deflate, n, R - 512, 9);
                break;
            case 8:
                if (random_below(20) == 0)
                    world_reset(n);
                break;
            default:
                inflate(n, gfn);
                break;
            }
        }
        world_check();
        world_check_contents();
        world_finish();
        seed = kept;
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_page),
        cmocka_unit_test(test_zero_page_needs_shootdown),
        cmocka_unit_test(test_fusor_writes),
        cmocka_unit_test(test_deflate),
        cmocka_unit_test(test_deflate_without_memory),
        cmocka_unit_test(test_bad_input),
        cmocka_unit_test(test_twice_in_a_list),
        cmocka_unit_test(test_pinned),
        cmocka_unit_test(test_shared),
        cmocka_unit_test(test_hints_for_the_balloon),
        cmocka_unit_test(test_large),
        cmocka_unit_test(test_many_small_ones),
        cmocka_unit_test(test_large_shared),
        cmocka_unit_test(test_promotion),
        cmocka_unit_test(test_eager),
        cmocka_unit_test(test_reset),
        cmocka_unit_test(test_target),
        cmocka_unit_test(test_reserve),
        cmocka_unit_test(test_each_allocation_fails),
        cmocka_unit_test(test_create_fails),
        cmocka_unit_test(test_last_frame),
        cmocka_unit_test(test_fuse_races),
        cmocka_unit_test(test_split_races),
        cmocka_unit_test(test_own_split_races),
        cmocka_unit_test(test_range_races),
        cmocka_unit_test(test_one_vm_races),
        cmocka_unit_test(test_random),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
