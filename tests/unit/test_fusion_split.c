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
// Writes to shared pages: splits, the last sharer, two at once, without memory; back-off.
#include "fusion_world.h"

#define A 0
#define B 1
#define C 2
#define P UINT64_C(600)

// `count` VMs share the page P, written with 42.
static void start_shared(unsigned count)
{
    world_start(0);
    world_vms(count);
    for (unsigned n = 0; n < count; n++) {
        fill(1, n, P, 42);
        assert_int_equal(hint(n, P), 1);
    }
    assert_int_equal(sharers_of(A, P), count);
}

static void test_split(void **state)
{
    (void)state;
    start_shared(3);
    hfn_t shared = leaf_of(A, P).frame;
    for (unsigned cpu = 1; cpu < WORLD_CPUS; cpu++)
        load(cpu, A, P);
    unsigned shootdowns = world.shootdowns;
    store(1, A, P, 8, 1);
    assert_int_equal(world.shootdowns - shootdowns, 1);
    assert_false(is_shared(A, P));
    assert_int_equal(leaf_of(A, P).permissions, EPT_RWX);
    assert_true(leaf_of(A, P).frame.raw != shared.raw);
    assert_int_equal(sharers_of(B, P), 2);
    assert_int_equal(FIGURE(A, splits), 1);
    assert_int_equal(FIGURE(A, last_sharers), 0);
    world_check();
    for (unsigned cpu = 1; cpu < WORLD_CPUS; cpu++)
        for (unsigned n = A; n <= C; n++)
            load(cpu, n, P);
    world_check_contents();
    world_finish();
}

// With one vCPU the page is writable at once; the shootdown's place says which order it was.
static unsigned permissions_at_shootdown;

static void note_permissions(void)
{
    permissions_at_shootdown = leaf_of(A, P).permissions;
}

static void test_new_frame_is_read_only_until_the_shootdown(void **state)
{
    (void)state;
    for (unsigned vcpus = 1; vcpus <= 2; vcpus++) {
        for (unsigned last = 0; last <= 1; last++) {
            start_shared(2);
            world.vm[A].vcpu_count = vcpus;
            world.vm[A].config.cpus = vcpus;
            if (last)
                store(1, B, P, 8, 1);
            world_at(POINT_SHOOTDOWN, 1, 3, note_permissions);
            store(1, A, P, 8, 2);
            assert_int_equal(world_pending(), 0);
            assert_int_equal(permissions_at_shootdown & EPT_WRITE, vcpus == 1 ? EPT_WRITE : 0);
            assert_int_equal(FIGURE(A, last_sharers), last);
            world_check();
            world_check_contents();
            world_finish();
        }
    }
}

// The other vCPUs read the old content until they read the new one: never the old after the new.
static void read_both(void)
{
    load(2, A, P);
    load(3, A, P);
}

static void test_readers_during_a_split(void **state)
{
    (void)state;
    static const enum world_point points[] = {POINT_SHOOTDOWN, POINT_SHOT, POINT_GFN_LOCK,
                                              POINT_LOOKUP, POINT_ALLOC};
    for (unsigned i = 0; i < ARRAY_SIZE(points); i++) {
        start_shared(3);
        load(2, A, P);
        load(3, A, P);
        world_at(points[i], 1, 3, read_both);
        store(1, A, P, 8, 77);
        world_pending();
        read_both();
        world_check_contents();
        world_finish();
    }
}

static void test_last_sharer(void **state)
{
    (void)state;
    start_shared(2);
    hfn_t shared = leaf_of(A, P).frame;
    store(1, B, P, 8, 1);
    assert_int_equal(sharers_of(A, P), 1); // shared still, by one
    assert_int_equal(world_snapshot().count[FRAME_SHARED], 1);
    assert_int_equal(world_snapshot().saved, 0);
    load(2, A, P);
    unsigned shootdowns = world.shootdowns;
    store(1, A, P, 8, 2);
    assert_true(leaf_of(A, P).frame.raw == shared.raw); // without a copy
    assert_int_equal(world.shootdowns - shootdowns, 1);
    assert_int_equal(FIGURE(A, last_sharers), 1);
    assert_int_equal(FIGURE(A, splits), 0);
    struct index_counts counts;
    index_count(&counts);
    assert_int_equal(counts.shared, 0);
    load(2, A, P);
    world_check_contents();
    world_finish();
}

// Its bucket was full, so the index does not know the frame.
static void test_last_sharer_without_entry(void **state)
{
    (void)state;
    start_shared(2);
    uint64_t key = frame_of(leaf_of(A, P).frame)->gfn;
    index_lock(key);
    assert_true(index_remove_shared(key, leaf_of(A, P).frame));
    index_unlock(key);
    store(1, B, P, 8, 1);
    store(1, A, P, 8, 2);
    assert_int_equal(FIGURE(A, last_sharers), 1);
    world_check_contents();
    world_finish();
}

// --- Two at once ---

static void store_again(void)
{
    store(3, A, P, 16, 5);
}

static void others_leave(void)
{
    store(3, B, P, 16, 6);
}

static void both_others_leave(void)
{
    store(3, B, P, 16, 6);
    store(3, C, P, 16, 6);
}

static void c_joins(void)
{
    uint64_t entry = FUSOR_ENTRY(P + 1, FUSOR_CLASS_OTHER, 0);
    assert_int_equal(fusion_hint(&world.vm[C], &entry, 1), 1);
}

static void reset_b(void)
{
    world_end_vm(B, false);
}

static void fusor_stores(void)
{
    static const uint64_t value = 9;
    assert_int_equal(fusor_write(A, (P << PAGE_SHIFT) + 24, &value, 8), 0);
}

static void ordered(void)
{
    assert_int_equal(split_gfn(world_fusion(A), (gfn_t){P}, 0, SPLIT_ORDERED), 0);
}

// Whatever happens before any step of a split that waits for no lock: one wins, nothing is lost.
static void test_splits_at_once(void **state)
{
    (void)state;
    static void (*const actions[])(void) = {
        store_again, others_leave, both_others_leave, c_joins, reset_b, fusor_stores, ordered};
    unsigned runs = 0;
    for (unsigned i = 0; i < ARRAY_SIZE(actions); i++) {
        for (unsigned point = 0; point < 2; point++) {
            for (unsigned n = 1;; n++) {
                start_shared(3);
                fill(2, C, P + 1, 42);
                load(2, A, P);
                world_at(point == 0 ? POINT_ALLOC : POINT_GFN_LOCK, n, 3, actions[i]);
                store(1, A, P, 8, 1);
                bool done = world_pending() == 0;
                assert_false(is_shared(A, P));
                assert_true(FIGURE(A, splits) + FIGURE(A, last_sharers) == 1);
                load(2, A, P);
                load(2, C, P);
                world_check();
                world_check_contents();
                world_finish();
                runs++;
                if (!done)
                    break;
            }
        }
    }
    assert_in_range(runs, 28, 100);
}

// While the shootdown is done the gfn lock is held; who needs another gfn may go on.
static void test_others_during_the_shootdown(void **state)
{
    (void)state;
    static void (*const actions[])(void) = {others_leave, both_others_leave, c_joins, reset_b};
    for (unsigned i = 0; i < ARRAY_SIZE(actions); i++) {
        for (unsigned after = 0; after <= 1; after++) {
            start_shared(3);
            fill(2, C, P + 1, 42);
            world_at(after ? POINT_SHOT : POINT_SHOOTDOWN, 1, 3, actions[i]);
            store(1, A, P, 8, 1);
            assert_int_equal(world_pending(), 0);
            assert_false(is_shared(A, P));
            world_check();
            world_check_contents();
            world_finish();
        }
    }
}

// Both of two sharers split at the same time: the second finds itself alone when its copy is made.
static void test_both_split(void **state)
{
    (void)state;
    start_shared(2);
    world_at(POINT_SHOOTDOWN, 1, 3, others_leave);
    store(1, A, P, 8, 1);
    assert_int_equal(world_pending(), 0);
    assert_int_equal(world_snapshot().count[FRAME_SHARED], 0);
    assert_int_equal(FIGURE(A, splits) + FIGURE(B, splits) + FIGURE(B, last_sharers), 2);
    world_check();
    world_check_contents();
    world_finish();
}

// A fault that another CPU has resolved meanwhile is none.
static void test_spurious_fault(void **state)
{
    (void)state;
    start_shared(2);
    struct ept_fault fault = {
        .address = gpa(P << PAGE_SHIFT), .write = true, .read = true, .leaf = leaf_of(A, P)};
    store(1, A, P, 8, 1);
    hfn_t frame = leaf_of(A, P).frame;
    world_use(0);
    assert_int_equal(ept_run_fault_hooks(&world.vm[A], &fault), EPT_FAULT_RETRY);
    assert_true(leaf_of(A, P).frame.raw == frame.raw);
    assert_int_equal(FIGURE(A, splits), 1);
    world_check();
    world_finish();
}

// A vCPU met the read-only page of another one's split; until its fault is looked at, the page was
// made private, and fused again.
static void test_fault_overtaken_by_a_fusion(void **state)
{
    (void)state;
    start_shared(2);
    struct ept_fault fault = {
        .address = gpa(P << PAGE_SHIFT), .write = true, .read = true, .leaf = leaf_of(A, P)};
    fault.leaf.kind = EPT_KIND_PRIVATE;
    world_use(0);
    assert_int_equal(ept_run_fault_hooks(&world.vm[A], &fault), EPT_FAULT_RETRY);
    assert_true(store(1, A, P, 8, 1)); // the next fault says what it is
    world_check_contents();
    world_finish();
}

static void test_reads_and_fetches_do_not_split(void **state)
{
    (void)state;
    start_shared(2);
    assert_non_null(world_access(1, A, P, READ));
    assert_non_null(world_access(1, A, P, FETCH));
    assert_int_equal(sharers_of(A, P), 2);
    world_finish();
}

// --- Fusor's own writes ---

static void test_fusor_writes(void **state)
{
    (void)state;
    start_shared(2);
    for (unsigned n = 0; n < 2; n++) {
        fill(1, n, P + 1, 43);
        hint(n, P + 1);
    }
    assert_int_equal(sharers_of(A, P + 1), 2);
    load(2, A, P);
    load(2, A, P + 1);
    char text[100]; // over both pages
    memset(text, 'x', sizeof(text));
    assert_int_equal(fusor_write(A, ((P + 1) << PAGE_SHIFT) - 50, text, sizeof(text)), 0);
    assert_false(is_shared(A, P));
    assert_false(is_shared(A, P + 1));
    load(2, A, P);
    load(2, A, P + 1);
    load(2, B, P);
    world_check();
    world_check_contents();
    world_finish();
}

// --- Out of frames ---

static void test_split_without_memory(void **state)
{
    (void)state;
    start_shared(3);
    world_starve(0);
    world.may_wait = true;
    assert_false(store(1, A, P, 8, 1));
    uint64_t value = 1;
    assert_int_equal(fusor_write(A, P << PAGE_SHIFT, &value, 8), E_NOMEM);
    assert_int_equal(sharers_of(A, P), 3);
    load(1, A, P);
    world_check();
    // The last sharer needs none.
    world_end_vm(B, true);
    world_starve(0);
    world_end_vm(C, true);
    world_starve(0);
    assert_int_equal(sharers_of(A, P), 1);
    assert_true(store(1, A, P, 8, 1));
    world_feed();
    world_check();
    world_finish();
}

// Splits may take from the reserve, ordered ones may not.
static void test_reserve(void **state)
{
    (void)state;
    start_shared(2);
    frames_set_reserve(20);
    world_starve(20);
    assert_int_equal(split_gfn(world_fusion(A), (gfn_t){P}, 0, SPLIT_ORDERED), E_NOMEM);
    assert_int_equal(sharers_of(A, P), 2);
    assert_true(store(1, A, P, 8, 1));
    frames_set_reserve(0);
    world_feed();
    world_check_contents();
    world_finish();
}

// Writes to shared pages of VM n until it has to wait; returns how many it had split.
static unsigned split_until_short(unsigned n, unsigned *next)
{
    unsigned done = 0;
    while (store(1, n, *next, 8, 1)) {
        ++*next;
        done++;
    }
    return done;
}

// Half of the reserve is for splits, in equal parts; the parts come back when it is full again.
static void test_parts_of_the_reserve(void **state)
{
    (void)state;
    enum { PAGES = 120, RESERVE = 60 };
    world_start(0);
    world_vms(3);
    for (unsigned n = A; n <= C; n++)
        for (unsigned i = 0; i < PAGES; i++) {
            fill(1, n, P + i, 42 + i * 1000);
            hint(n, P + i);
        }
    frames_set_reserve(RESERVE);
    hfn_t others[2 * RESERVE]; // memory of other VMs
    unsigned count = 0;
    while (count < ARRAY_SIZE(others))
        assert_int_equal(frame_alloc(FRAME_FUSOR, 0, 0, NULL, &others[count++]), 0);
    world_starve(RESERVE);
    world.may_wait = true;
    unsigned next[] = {P, P, P};
    for (unsigned round = 0; round < 2; round++) {
        assert_int_equal(split_until_short(A, &next[A]), RESERVE / 2 / 3);
        assert_int_equal(split_until_short(B, &next[B]), RESERVE / 2 / 3);
        assert_int_equal(split_until_short(A, &next[A]), 0);
        assert_int_equal(world_snapshot().count[FRAME_FREE], RESERVE - RESERVE / 3);
        // A driver that has to give finds a bit more.
        world.vm[A].balloon_driver = true;
        world.vm[A].balloon_target = 100;
        assert_true(store(1, A, next[A]++, 8, 1));
        world.vm[A].balloon_target = 0;
        // What is freed fills the reserve up first, and is nobody's before.
        while (world_snapshot().count[FRAME_FREE] < RESERVE) {
            assert_int_equal(split_until_short(A, &next[A]), 0);
            frame_free(others[--count], 0, NULL);
        }
    }
    while (count != 0)
        frame_free(others[--count], 0, NULL);
    frames_set_reserve(0);
    world_feed();
    world_check_contents();
    world_finish();
}

// A large shared page, every allocation fails once.
static void test_split_of_a_range_without_memory(void **state)
{
    (void)state;
    unsigned n = 1;
    for (;; n++) {
        world_start(0);
        for (unsigned v = 0; v < 2; v++) {
            world_configure(v, 4 * MIB, "all");
            world.vm[v].config.large_pages = VM_LARGE_EAGER;
            assert_int_equal(world_create(v), 0);
            for (unsigned i = 0; i < 512; i++)
                fill(1, v, 512 + i, 1 + i * 1000);
            hint_range(v, 512);
        }
        assert_int_equal(leaf_of(A, P).level, EPT_2M);
        assert_true(is_shared(A, P));
        world.may_wait = true;
        world.failed = false;
        world.fail_at = n;
        bool good = store(1, A, P, 8, 1);
        world.fail_at = 0;
        assert_true(good || world.failed);
        world_check();
        bool failed = world.failed;
        assert_true(store(1, A, P, 8, 1));
        assert_true(is_shared(A, P + 1));
        world_check_contents();
        world_finish();
        if (!failed)
            break;
    }
    assert_int_equal(n, 3); // the table, the frame
}

// --- Back-off ---

static void fuse_again(void)
{
    fill(1, A, P, 42);
    hint(A, P);
}

static void test_backoff(void **state)
{
    (void)state;
    start_shared(3);
    // The first split is nothing special.
    store(1, A, P, 8, 1);
    assert_int_equal(FIGURE(A, backoff), 0);
    fuse_again();
    assert_true(is_shared(A, P));
    // Each further one is futile, and doubles the time in which hints are ignored.
    uint64_t waited = 1;
    for (unsigned i = 1; i <= 9; i++) {
        store(1, A, P, 8, 1);
        assert_int_equal(FIGURE(A, futile_splits), i);
        assert_int_equal(FIGURE(A, backoff), i);
        fuse_again();
        assert_int_equal(rejected(A, FUSION_REJECT_BACKOFF), 2 * i - 1);
        uint64_t begun = fake_tsc;
        fake_tsc = begun + waited * SECOND - SECOND / 50;
        hint(A, P);
        assert_int_equal(rejected(A, FUSION_REJECT_BACKOFF), 2 * i);
        assert_false(is_shared(A, P));
        fake_tsc = begun + waited * SECOND + SECOND / 50;
        fuse_again();
        assert_true(is_shared(A, P));
        waited *= 2;
    }
    // Others' gfns are not concerned.
    store(1, A, P, 8, 1);
    assert_int_equal(FIGURE(B, backoff), 0);
    fill(1, A, P + 1, 42);
    hint(A, P + 1);
    assert_true(is_shared(A, P + 1));
    // Long after, it is forgotten.
    fake_tsc += (1024 + 200) * SECOND;
    fuse_again();
    store(1, A, P, 8, 1);
    fuse_again();
    assert_true(is_shared(A, P));
    world_finish();
}

// Page tables are written for as long as they exist: half a minute at the first split.
static void test_page_walks(void **state)
{
    (void)state;
    start_shared(2);
    uint8_t *page = world_access(1, A, P, READ | WRITE | WALK);
    assert_non_null(page);
    assert_false(is_shared(A, P));
    assert_int_equal(FIGURE(A, splits), 1);
    assert_int_equal(FIGURE(A, futile_splits), 0);
    assert_int_equal(FIGURE(A, backoff), 1);
    hint(A, P);
    assert_int_equal(rejected(A, FUSION_REJECT_BACKOFF), 1);
    fake_tsc += 31 * SECOND;
    hint(A, P);
    assert_int_equal(rejected(A, FUSION_REJECT_BACKOFF), 2);
    fake_tsc += 2 * SECOND;
    hint(A, P);
    assert_true(is_shared(A, P));
    world_finish();
}

static void test_ordered_splits_are_not_held_against_it(void **state)
{
    (void)state;
    start_shared(2);
    for (unsigned i = 0; i < 5; i++) {
        assert_int_equal(split_gfn(world_fusion(A), (gfn_t){P}, 0, SPLIT_ORDERED), 0);
        assert_false(is_shared(A, P));
        hint(A, P);
        assert_true(is_shared(A, P));
    }
    assert_int_equal(FIGURE(A, backoff), 0);
    assert_int_equal(FIGURE(A, futile_splits), 0);
    world_finish();
}

// Against a naive list, for single places and many gfns that want the same one.
static void test_backoff_table(void **state)
{
    (void)state;
    world_start(0);
    struct fusion_backoff *b = backoff_create(64);
    assert_non_null(b);
    bool begun;
    uint64_t now = 5000 * SECOND;
    assert_false(backoff_ignores(b, (gfn_t){0}, now));
    assert_false(backoff_note_split(b, (gfn_t){0}, false, now, &begun));
    assert_false(begun);
    assert_true(backoff_note_split(b, (gfn_t){0}, false, now, &begun));
    assert_true(begun);
    assert_true(backoff_ignores(b, (gfn_t){0}, now + SECOND / 2));
    assert_false(backoff_ignores(b, (gfn_t){1}, now));
    // Another gfn in its place: the first one's history is lost, and only that.
    for (uint64_t gfn = 0; gfn < 100000; gfn++) {
        assert_false(backoff_ignores(b, (gfn_t){gfn + 64}, now));
        assert_false(backoff_note_split(b, (gfn_t){gfn + 64}, false, now, &begun));
        assert_false(begun);
    }
    // The longest time is bounded: 512 s.
    for (unsigned i = 0; i < 30; i++)
        backoff_note_split(b, (gfn_t){7}, false, now, &begun);
    assert_true(backoff_ignores(b, (gfn_t){7}, now + 511 * SECOND));
    assert_false(backoff_ignores(b, (gfn_t){7}, now + 513 * SECOND));
    // Where the time wraps in the entry.
    for (uint64_t t = UINT64_C(1) << 48; t > (UINT64_C(1) << 48) - 40 * SECOND; t -= SECOND) {
        backoff_note_split(b, (gfn_t){9}, true, t, &begun);
        assert_true(begun && backoff_ignores(b, (gfn_t){9}, t + SECOND));
    }
    // What has ended stays ended, however long ago: 28 bits of time go round.
    backoff_note_split(b, (gfn_t){11}, false, now, &begun);
    backoff_note_split(b, (gfn_t){11}, false, now, &begun);
    assert_true(begun);
    for (uint64_t ago = 2 * SECOND; ago < UINT64_C(1) << 49; ago += UINT64_C(1) << 44)
        assert_false(backoff_ignores(b, (gfn_t){11}, now + ago));
    assert_false(
        backoff_note_split(b, (gfn_t){11}, false, now + (UINT64_C(1) << 47) + SECOND, &begun));
    backoff_destroy(b);
    world_finish();
}

int main(void)
{
    static const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_split),
        cmocka_unit_test(test_new_frame_is_read_only_until_the_shootdown),
        cmocka_unit_test(test_readers_during_a_split),
        cmocka_unit_test(test_last_sharer),
        cmocka_unit_test(test_last_sharer_without_entry),
        cmocka_unit_test(test_splits_at_once),
        cmocka_unit_test(test_others_during_the_shootdown),
        cmocka_unit_test(test_both_split),
        cmocka_unit_test(test_spurious_fault),
        cmocka_unit_test(test_fault_overtaken_by_a_fusion),
        cmocka_unit_test(test_reads_and_fetches_do_not_split),
        cmocka_unit_test(test_fusor_writes),
        cmocka_unit_test(test_split_without_memory),
        cmocka_unit_test(test_reserve),
        cmocka_unit_test(test_parts_of_the_reserve),
        cmocka_unit_test(test_split_of_a_range_without_memory),
        cmocka_unit_test(test_backoff),
        cmocka_unit_test(test_page_walks),
        cmocka_unit_test(test_ordered_splits_are_not_held_against_it),
        cmocka_unit_test(test_backoff_table),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
