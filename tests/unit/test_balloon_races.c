// SPDX-License-Identifier: BSD-2-Clause
// sources: tests/unit/fusion_world.c tests/unit/fusion_guest.c tests/unit/fusion_check.c
// sources: tests/unit/fusion_cpus.c
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
// Two CPUs at work on the same pages, one of them with the balloon: every order of their steps in
// which the first does n, the second m, then the first and then the second the rest; a step ends
// before a lock, an allocation, a hash or a comparison, after a look at a leaf, and before and
// after a shootdown. Two more CPUs are in guest A and in guest B all the time and use the
// translations they have: what they see is what the page held before or holds after, never what a
// frame holds that was freed too early.
#include <signal.h>

#include "balloon_world.h"
#include "fusion_cpus.h"

#define FIRST_CPU  0u
#define SECOND_CPU 1u
#define IN_A       2u
#define IN_B       3u

#define OLD     UINT64_C(42) // what all pages of the tests hold at first
#define WRITTEN UINT64_C(77) // what is written during them, at offset 8

struct race {
    const char *name;
    void (*prepare)(void);
    void (*first)(void);
    void (*second)(void);
};

// --- Schedules ---

static unsigned left[WORLD_CPUS]; // steps until it yields
static bool blocked;
static bool coarse; // no steps for each page of a range

static void step(enum world_point point)
{
    unsigned cpu = cpu_index();
    if (point == POINT_LOOKUP || (coarse && (point == POINT_LOOKED || point == POINT_BUCKET_LOCK ||
                                             point == POINT_HASH || point == POINT_EQUAL)))
        return;
    if (point == POINT_RELAX || point == POINT_YIELD) {
        blocked = true;
        cpus_yield();
        return;
    }
    if (left[cpu] != 0 && --left[cpu] == 0)
        cpus_yield();
}

// In this order A's page was written to and has not been given: every vCPU sees that.
static bool written_a, given_a;

// The guests go on with what they have in their TLBs, and then take NMIs.
static void guests_look(void)
{
    for (unsigned cpu = IN_A; cpu <= IN_B; cpu++) {
        const uint8_t *page = world_cached(cpu, P);
        if (page != NULL) {
            const uint64_t *w = (const uint64_t *)(const void *)page;
            bool old = w[0] == OLD && w[511] == OLD + 511 && (w[1] == OLD + 1 || w[1] == WRITTEN);
            bool given = w[0] == 0 && w[511] == 0 && (w[1] == 0 || w[1] == WRITTEN);
            assert_true(old || given);
            assert_true(cpu != IN_A || !written_a || given_a || w[1] == WRITTEN);
        }
        cpus_take_nmi(cpu);
    }
}

// Until it has done n steps (0: all), or waits. Returns false when it has finished.
static bool go(unsigned cpu, unsigned n)
{
    left[cpu] = n;
    blocked = false;
    if (!cpu_finished[cpu])
        cpus_resume(cpu);
    guests_look();
    return !cpu_finished[cpu];
}

static void go_to_end(unsigned cpu, unsigned other)
{
    for (unsigned turns = 0; go(cpu, 0); turns++) {
        assert_true(blocked);
        assert_true(turns < 1000);
        go(other, 1);
    }
}

// All agree on what is there, and it is possible.
static void check_pages(void)
{
    for (unsigned n = 0; n < 2; n++) {
        uint64_t page[512];
        if (!world.vm[n].memory_present)
            continue;
        assert_int_equal(guest_read(&world.vm[n], gpa(P << 12), page, PAGE_SIZE), 0);
        uint64_t base = page[511] == 0 ? 0 : OLD;
        for (unsigned i = 0; i < 512; i++) {
            bool good = page[i] == (base == 0 ? 0 : base + i) || (i == 1 && page[i] == WRITTEN);
            assert_true(good);
        }
        memcpy(world_model(n, P), page, PAGE_SIZE);
        for (unsigned cpu = 0; cpu < WORLD_CPUS; cpu++)
            load(cpu, n, P);
    }
}

// The CPU has a translation, if there is one.
static void in_guest(unsigned cpu, unsigned n)
{
    if (world.vm[n].id != 0 && leaf_of(n, P).present)
        load(cpu, n, P);
}

// Returns false when the first has fewer than n steps, and in *second_over whether the second has
// fewer than m.
static bool one_order(const struct race *r, unsigned n, unsigned m, bool *second_over)
{
    r->prepare();
    for (unsigned cpu = 0; cpu < WORLD_CPUS; cpu++)
        world_leave(cpu);
    in_guest(IN_A, A);
    in_guest(IN_B, B);
    written_a = given_a = false;
    world.coroutines = true;
    world.step = step;
    cpus_make(FIRST_CPU, r->first);
    cpus_make(SECOND_CPU, r->second);
    bool more = go(FIRST_CPU, n);
    bool stuck = blocked;
    *second_over = !go(SECOND_CPU, m) || blocked;
    go_to_end(FIRST_CPU, SECOND_CPU);
    go_to_end(SECOND_CPU, FIRST_CPU);
    world.step = NULL;
    world.coroutines = false;
    world.sleep = NULL;
    for (unsigned cpu = 0; cpu < WORLD_CPUS; cpu++)
        world_leave(cpu);
    world_check();
    check_pages();
    world_check_contents();
    world_finish();
    return more && !stuck;
}

static unsigned orders, now_n, now_m;
static const char *now_running;

static int after(void **state)
{
    (void)state;
    if (now_running != NULL)
        print_error("\"%s\", %u and %u steps\n", now_running, now_n, now_m);
    return 0;
}

static void say_order(int signal)
{
    (void)signal;
    after(NULL);
}

static void all_orders(const struct race *r)
{
    bool first_over = false;
    for (unsigned n = 1; !first_over; n++) {
        bool second_over = false;
        for (unsigned m = 1; !second_over; m++, orders++) {
            now_running = r->name;
            now_n = n;
            now_m = m;
            first_over = !one_order(r, n, m, &second_over);
        }
    }
}

// --- What they do ---

static void leave_page(unsigned n, uint64_t gfn, unsigned pages)
{
    forget_model(n, gfn, pages); // check_pages() says what it may be
}

static void list(list_call work, unsigned n, uint64_t gfn, unsigned order)
{
    uint64_t entry = FUSOR_ENTRY(gfn, 0, order);
    given_a |= n == A && work != balloon_deflate;
    int64_t done = work(&world.vm[n], &entry, 1);
    assert_true(done == 1 || done == -FUSOR_EEXIST || done == -FUSOR_ENOENT);
    if (work != balloon_deflate && done == 1)
        leave_page(n, gfn, order == 9 ? 512 : 1);
}

#define LIST(name, work, n, gfn, order)                                                            \
    static void name(void)                                                                         \
    {                                                                                              \
        list(work, n, gfn, order);                                                                 \
    }
LIST(inflate_a, balloon_inflate, A, P, 0)
LIST(report_a, balloon_free_pages, A, P, 0)
LIST(deflate_a, balloon_deflate, A, P, 0)
LIST(inflate_b, balloon_inflate, B, P, 0)
LIST(inflate_range_a, balloon_inflate, A, R - 512, 9)
LIST(report_range_a, balloon_free_pages, A, R - 512, 9)
LIST(deflate_range_a, balloon_deflate, A, R - 512, 9)
LIST(inflate_range_b, balloon_inflate, B, R - 512, 9)
LIST(inflate_first_a, balloon_inflate, A, R - 512, 0)

static void hint_of(unsigned n, uint64_t gfn, unsigned order)
{
    uint64_t entry = FUSOR_ENTRY(gfn, FUSOR_CLASS_CACHE, order);
    assert_int_equal(fusion_hint(&world.vm[n], &entry, 1), 1);
}

static void hint_b(void)
{
    hint_of(B, P, 0);
}

static void hint_a(void)
{
    hint_of(A, P, 0);
}

static void hint_range_b(void)
{
    hint_of(B, R - 512, 9);
}

static void write_to(unsigned n)
{
    unsigned cpu = cpu_index();
    uint8_t *page = world_access(cpu, n, P, READ | WRITE);
    *(uint64_t *)(void *)(page + 8) = WRITTEN;
    *(uint64_t *)(void *)(world_model(n, P) + 8) = WRITTEN;
    written_a |= n == A;
    world_leave(cpu);
}

static void write_a(void)
{
    write_to(A);
}

static void write_b(void)
{
    write_to(B);
}

static void read_a(void)
{
    world_access(cpu_index(), A, P, READ);
    world_leave(cpu_index());
}

static void write_for_a(void)
{
    uint64_t value = WRITTEN;
    assert_int_equal(guest_write(&world.vm[A], gpa((P << 12) + 8), &value, 8), 0);
}

static void order_split_a(void)
{
    assert_int_equal(split_gfn(world_fusion(A), (gfn_t){P}, 0, SPLIT_ORDERED), 0);
}

static void end_b(void)
{
    if (world.cpu[IN_B].vm == B)
        world_leave(IN_B);
    vm_memory_destroy(&world.vm[B]);
    forget_model(B, 0, WORLD_GFNS);
}

static void sleep_for_ever(void)
{
    world.sleep = NULL;
    cpu_finished[cpu_index()] = true;
    for (;;)
        cpus_yield();
}

static void serve(void)
{
    fake_tsc += SECOND;
    world.sleep = sleep_for_ever;
    world.serve(NULL);
}

// --- What they find ---

static void machine(unsigned vms)
{
    world_start(2048);
    world_vms(vms);
}

static void two_candidates(void)
{
    machine(2);
    fill(IN_A, A, P, OLD);
    fill(IN_B, B, P, OLD);
    hint(A, P);
}

static void two_sharers(void)
{
    two_candidates();
    hint(B, P);
    assert_int_equal(sharers_of(A, P), 2);
}

static void private_page(void)
{
    machine(1);
    fill(IN_A, A, P, OLD);
}

static void ballooned_page(void)
{
    private_page();
    assert_int_equal(inflate(A, P), 1);
}

static void seen_page(void)
{
    ballooned_page();
    load(SECOND_CPU, A, P);
}

static void untouched_page(void)
{
    machine(1);
    fill(IN_A, A, P + 1, OLD);
}

// The pages of the range hold OLD + i, as P's words do, so that the range's are no candidates of
// each other.
static void fill_range(unsigned n)
{
    for (unsigned i = 0; i < 512; i++)
        fill(SECOND_CPU, n, R - 512 + i, R - 512 + i == P ? OLD : OLD + 1000 * (i + 1));
    assert_int_equal(leaf_of(n, P).level, EPT_2M);
}

static void large_page(void)
{
    machine(1);
    fill_range(A);
}

static void large_candidates(void)
{
    machine(2);
    fill_range(A);
    fill_range(B);
    hint_range(A, R - 512);
}

static void large_sharers(void)
{
    large_candidates();
    hint_range(B, R - 512);
    assert_true(is_shared(A, P));
    assert_int_equal(leaf_of(A, P).level, EPT_2M);
}

// The next round of the service makes the range large again.
static void quiet_range(void)
{
    large_page();
    assert_int_equal(fusion_make_small(&world.vm[A], (gfn_t){P}), 0);
    service_round();
    service_round();
    assert_int_equal(leaf_of(A, P).level, EPT_4K);
}

// The next touch of P promotes the range.
static void due_range(void)
{
    machine(1);
    for (unsigned i = 0; i < VM_PROMOTE_TOUCHES; i++)
        if (R - 512 + i != P)
            fill(SECOND_CPU, A, R - 512 + i, 1 + i);
    world_leave(SECOND_CPU);
}

static const struct race of_pages[] = {
    {"fuse, its candidate goes into the balloon", two_candidates, hint_b, inflate_a},
    {"fuse, its candidate is reported", two_candidates, hint_b, report_a},
    {"fuse, its page goes into the balloon", two_candidates, hint_b, inflate_b},
    {"into the balloon, fuse", two_candidates, inflate_a, hint_b},
    {"a candidate is written, and given", two_candidates, hint_b, write_a},
    {"split, the other sharer gives", two_sharers, write_b, inflate_a},
    {"split, the other sharer reports", two_sharers, write_b, report_a},
    {"give, the other sharer splits", two_sharers, inflate_a, write_b},
    {"both sharers give", two_sharers, inflate_a, inflate_b},
    {"split by order and give", two_sharers, order_split_a, inflate_a},
    {"give and split by order", two_sharers, inflate_a, order_split_a},
    {"own split and give", two_sharers, write_a, inflate_a},
    {"give and own split", two_sharers, inflate_a, write_a},
    {"give, the other sharer ends", two_sharers, inflate_a, end_b},
    {"a VM ends, the other sharer gives", two_sharers, end_b, inflate_a},
    {"hint again and report", two_sharers, hint_a, report_a},
};

static const struct race of_one_vm[] = {
    {"two give", private_page, inflate_a, inflate_a},
    {"give and report", private_page, inflate_a, report_a},
    {"two report", private_page, report_a, report_a},
    {"give and take", private_page, inflate_a, deflate_a},
    {"give and write", private_page, inflate_a, write_a},
    {"write and give", private_page, write_a, inflate_a},
    {"give and Fusor writes", private_page, inflate_a, write_for_a},
    {"report and write", private_page, report_a, write_a},
    {"give untouched and touch", untouched_page, inflate_a, write_a},
    {"touch and give untouched", untouched_page, write_a, inflate_a},
    {"two take", ballooned_page, deflate_a, deflate_a},
    {"take and write", ballooned_page, deflate_a, write_a},
    {"write and take", ballooned_page, write_a, deflate_a},
    {"two write", ballooned_page, write_a, write_a},
    {"read and write", ballooned_page, read_a, write_a},
    {"write and read", ballooned_page, write_a, read_a},
    {"read and take", ballooned_page, read_a, deflate_a},
    {"take, seen, and write", seen_page, deflate_a, write_a},
    {"write, seen, and take", seen_page, write_a, deflate_a},
    {"two write, seen", seen_page, write_a, write_a},
    {"take, seen, and read", seen_page, deflate_a, read_a},
    {"write, seen, and Fusor writes", seen_page, write_a, write_for_a},
    {"Fusor writes, and give again", seen_page, write_for_a, inflate_a},
};

static const struct race of_ranges[] = {
    {"fuse, the candidate's range goes", two_candidates, hint_b, inflate_range_a},
    {"give a range, write", large_page, inflate_range_a, write_a},
    {"give a range, give a page of it", large_page, inflate_range_a, inflate_a},
    {"give a page, give its range", large_page, inflate_a, inflate_range_a},
    {"give a page, report its range", large_page, inflate_a, report_range_a},
    {"two ranges", large_page, inflate_range_a, inflate_range_a},
    {"give a page, write", large_page, inflate_a, write_a},
    {"fuse a range, a page is given", large_candidates, hint_range_b, inflate_a},
    {"fuse a range, its first page is given", large_candidates, hint_range_b, inflate_first_a},
    {"fuse a range, it is given", large_candidates, hint_range_b, inflate_range_a},
    {"fuse a range, it gives itself", large_candidates, hint_range_b, inflate_range_b},
    {"give a shared range, the other one", large_sharers, inflate_range_a, inflate_range_b},
    {"give a page of a shared range, write", large_sharers, inflate_a, write_b},
    {"collapse, a page is given", quiet_range, serve, inflate_a},
    {"collapse, the range is given", quiet_range, serve, report_range_a},
    {"a page is given, collapse", quiet_range, inflate_a, serve},
    {"promote, a page is given", due_range, write_a, inflate_first_a},
    {"promote, the range is given", due_range, write_a, inflate_range_a},
    {"a page is given, promote", due_range, inflate_first_a, write_a},
    {"take a range, write to it", large_page, deflate_range_a, write_a},
};

static void run_all(const struct race *races, unsigned count, bool ranges)
{
    orders = 0;
    coarse = ranges;
    for (unsigned i = 0; i < count; i++)
        all_orders(&races[i]);
    now_running = NULL;
    print_message("%u orders\n", orders);
    assert_true(orders > 4 * count);
}

static void test_pages(void **state)
{
    (void)state;
    run_all(of_pages, ARRAY_SIZE(of_pages), false);
}

static void test_one_vm(void **state)
{
    (void)state;
    run_all(of_one_vm, ARRAY_SIZE(of_one_vm), false);
}

static void test_ranges(void **state)
{
    (void)state;
    run_all(of_ranges, ARRAY_SIZE(of_ranges), true);
}

int main(void)
{
    signal(SIGABRT, say_order);
    static const struct CMUnitTest tests[] = {
        cmocka_unit_test_teardown(test_pages, after),
        cmocka_unit_test_teardown(test_one_vm, after),
        cmocka_unit_test_teardown(test_ranges, after),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
