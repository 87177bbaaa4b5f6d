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
// VMs that fight for the last frames, at random and one step after the other: pages are given,
// taken, reported, written, read, fused and split, VMs are reset, stopped and started, targets
// change, any allocation may fail. After every step the identities hold and every page holds what
// its guest last wrote; who is told that there is no memory finds everything as it was; with
// overcommit = off nobody waits who was not told that the balloon he emptied himself is somebody
// else's by now.
//
// A seed that fails is printed. BALLOON_SEEDS=n runs n seeds, BALLOON_SEED=n only that one,
// BALLOON_SECONDS=n stops after about n seconds.
#include <signal.h>
#include <stdio.h>
#include <time.h>

#include "balloon_world.h"

#define VMS        3u
#define MEMORY     (4 * MIB)
#define OPERATIONS 150u
#define RESERVE    96u
#define LIST       6u
#define ENOUGH     50u // seeds after which everything has happened

static uint64_t seed, started;
static bool promises; // overcommit = off
static struct {
    uint64_t steps, inflated, reported, deflated, waits, refused_starts, resets, held, no_memory;
} happened;

static unsigned below(unsigned n)
{
    seed = seed * 6364136223846793005 + 1442695040888963407;
    return (unsigned)(seed >> 33) % n;
}

// Few pages, of two ranges, the first of which is not RAM as a whole.
static uint64_t any_gfn(void)
{
    static const uint64_t at[] = {300, 512, 600, 1016};
    return at[below(ARRAY_SIZE(at))] + below(8);
}

// --- NOMEM without effect ---

struct state {
    uint64_t private_frames, shared, ballooned, returned, reserve_taken;
    struct ept_leaf leaf[LIST];
    bool in_balloon[LIST];
};

static struct state state_of(unsigned n, const uint64_t *gfns, unsigned count)
{
    const struct vm *vm = &world.vm[n];
    struct state s;
    memset(&s, 0, sizeof(s));
    s.private_frames = vm->account.private_frames;
    s.shared = vm->account.shared_gfns;
    s.ballooned = vm->account.ballooned;
    s.returned = vm->balloon_returned;
    s.reserve_taken = vm->reserve_taken;
    for (unsigned i = 0; i < count; i++) {
        struct ept_leaf leaf = leaf_of(n, gfns[i]);
        s.in_balloon[i] = ballooned_bit(vm, (gfn_t){gfns[i]});
        if (!leaf.present)
            continue;
        s.leaf[i].present = true;
        s.leaf[i].frame = leaf.frame;
        s.leaf[i].kind = leaf.kind;
        s.leaf[i].permissions = leaf.permissions;
    }
    return s;
}

static void assert_same(const struct state *before, unsigned n, const uint64_t *gfns,
                        unsigned count)
{
    struct state now = state_of(n, gfns, count);
    assert_memory_equal(before, &now, sizeof(now));
    happened.no_memory++;
}

// --- Steps ---

static void write_page(unsigned n)
{
    uint64_t gfn = any_gfn();
    struct state before = state_of(n, &gfn, 1);
    bool held = vm_is_held_back(&world.vm[n]) || before.in_balloon[0];
    if (store(1, n, gfn, 8 * below(4), below(3)))
        return;
    assert_same(&before, n, &gfn, 1);
    happened.waits++;
    happened.held += held;
    assert_true(!promises || held || world.failed);
}

static void write_for(unsigned n)
{
    uint64_t gfn = any_gfn(), value = below(3);
    struct state before = state_of(n, &gfn, 1);
    int status = fusor_write(n, (gfn << PAGE_SHIFT) + 8 * below(4), &value, 8);
    assert_true(status == 0 || status == E_NOMEM);
    if (status != 0)
        assert_same(&before, n, &gfn, 1);
}

static void work_on_list(unsigned n)
{
    static const list_call calls[] = {balloon_inflate, balloon_inflate, balloon_free_pages,
                                      balloon_deflate};
    uint64_t gfns[LIST], entries[LIST];
    unsigned count = 1 + below(LIST), at = below(ARRAY_SIZE(calls));
    for (unsigned i = 0; i < count; i++) {
        gfns[i] = any_gfn();
        // What is not there is refused: mostly something else.
        for (unsigned tries = 0; tries < 8 && calls[at] == balloon_deflate; tries++)
            if (!ballooned_bit(&world.vm[n], (gfn_t){gfns[i]}))
                gfns[i] = any_gfn();
        entries[i] = FUSOR_ENTRY(gfns[i], 0, 0);
        if (below(40) == 0)
            entries[i] = FUSOR_ENTRY(512, 0, 9);
        if (below(40) == 0)
            entries[i] = FUSOR_ENTRY(0xc0, 0, 0);
    }
    struct state before = state_of(n, gfns, count);
    int64_t done = call(calls[at], n, entries, count); // what is not done keeps its content
    if (done == -FUSOR_ENOMEM)
        assert_same(&before, n, gfns, count);
    uint64_t pages = (uint64_t)MAX(done, 0);
    *(at < 2 ? &happened.inflated : at == 2 ? &happened.reported : &happened.deflated) += pages;
}

static bool may_start(void)
{
    struct vm_commitment c;
    vm_commitment(&c);
    return MEMORY / PAGE_SIZE <= c.left;
}

static void start_vm(unsigned n)
{
    world.vm[n].held_back = 0;
    if (!may_start()) {
        happened.refused_starts++;
        return;
    }
    uint64_t target = world.vm[n].balloon_target;
    world_configure(n, MEMORY, "all");
    world.vm[n].balloon_target = target;
    if (world_create(n) != 0) {
        assert_true(world.failed || !promises);
        assert_false(world.vm[n].memory_present);
        fusion_memory_ops.forget(&world.vm[n]);
        world.vm[n].id = 0;
    }
}

// As vm/lifecycle.c does it.
static void reset_vm(unsigned n)
{
    struct vm *vm = &world.vm[n];
    vm->restarting = true;
    vm_hold_back(vm);
    world_end_vm(n, false);
    int status = world_create(n);
    frames_hold_end(&vm->account);
    vm->restarting = false;
    vm->balloon_driver = false;
    happened.resets++;
    if (status == 0)
        return;
    fusion_memory_ops.forget(vm);
    vm->id = 0;
}

static void change_target(unsigned n)
{
    vm_set_balloon_target(&world.vm[n], below(2) * 300);
    if (below(2) != 0)
        assert_int_equal(balloon_target(&world.vm[n]), world.vm[n].balloon_target);
}

static void hint_some(unsigned n)
{
    uint64_t gfns[4];
    for (unsigned i = 0; i < ARRAY_SIZE(gfns); i++)
        gfns[i] = any_gfn();
    hint_many(n, gfns, ARRAY_SIZE(gfns));
}

static void split(unsigned n)
{
    uint64_t gfn = any_gfn();
    struct state before = state_of(n, &gfn, 1);
    int status = split_gfn(world_fusion(n), (gfn_t){gfn}, 0, SPLIT_ORDERED);
    if (status != 0)
        assert_same(&before, n, &gfn, 1);
}

static void step(unsigned n)
{
    unsigned what = below(100);
    world_use(0);
    if (!world.vm[n].memory_present) {
        if (what < 30)
            start_vm(n);
        return;
    }
    if (what < 35)
        write_page(n);
    else if (what < 45)
        write_for(n);
    else if (what < 55)
        load(1 + below(3), n, any_gfn());
    else if (what < 80)
        work_on_list(n);
    else if (what < 88)
        hint_some(n);
    else if (what < 92)
        split(n);
    else if (what < 95)
        change_target(n);
    else if (what < 96)
        reset_vm(n);
    else if (what < 97)
        world_end_vm(n, true);
    else if (what < 98)
        (below(2) != 0 ? fusion_on : fusion_off)(n);
    else
        service_round();
}

static void check(void)
{
    for (unsigned cpu = 0; cpu < WORLD_CPUS; cpu++)
        world_leave(cpu);
    world_check();
    world_check_contents();
    if (!promises)
        return;
    struct vm_commitment c;
    vm_commitment(&c);
    assert_true(c.fusor + c.reserve + c.guests <= c.total + RESERVE);
    for (unsigned n = 0; n < VMS; n++) {
        const struct vm *vm = &world.vm[n];
        if (vm->memory_present)
            assert_true(vm->account.private_frames + vm->account.shared_gfns <=
                        vm->config.memory / PAGE_SIZE - MAX(vm->account.ballooned, vm->held_back) +
                            vm->reserve_taken);
    }
}

// Everything but a few pages of VM n is in its balloon, or was touched: what is there counts.
static void fill_up(unsigned n)
{
    for (uint64_t gfn = 0; gfn < MEMORY / PAGE_SIZE; gfn++)
        if (vm_area_of(&world.vm[n], (gfn_t){gfn}) == VM_AREA_RAM)
            store(1, n, gfn, 0, 0);
    world_leave(1);
}

static void run(uint64_t number)
{
    started = number;
    seed = (number + 1) * UINT64_C(0x9e3779b97f4a7c15);
    below(2);
    promises = below(3) == 0;
    // With overcommit = off two VMs and some frames, of which the balloons decide whose they are;
    // else what is left of the machine is fewer than VMs have pages to fight for.
    world_start(promises ? 3 * 1024 : 2048);
    world.may_wait = true;
    vm_set_overcommit(!promises);
    frames_set_reserve(RESERVE);
    for (unsigned n = 0; n < VMS; n++)
        start_vm(n);
    if (promises && below(2) != 0)
        fill_up(0);
    if (!promises)
        world_starve(RESERVE / 2 + below(RESERVE));
    for (unsigned i = 0; i < OPERATIONS; i++) {
        world.failed = false;
        world.fail_at = below(4) == 0 ? 1 + below(6) : 0;
        step(below(VMS));
        happened.steps++;
        world.fail_at = 0;
        check();
    }
    world_feed();
    frames_set_reserve(0);
    world_finish();
    vm_set_overcommit(true);
}

static void say_seed(int signal)
{
    (void)signal;
    fprintf(stderr, "test_balloon_property: seed %lu failed\n", started);
}

static bool failed = true;

static int after(void **state)
{
    (void)state;
    if (failed)
        say_seed(0);
    return 0;
}

static void test_property(void **state)
{
    (void)state;
    const char *only = getenv("BALLOON_SEED"), *count = getenv("BALLOON_SEEDS");
    const char *limit = getenv("BALLOON_SECONDS");
    bool asked = only != NULL || count != NULL || limit != NULL;
    uint64_t first = only != NULL ? strtoull(only, NULL, 0) : 0;
    uint64_t end = only != NULL ? first + 1 : count != NULL ? strtoull(count, NULL, 0) : 400;
    time_t stop = time(NULL) + (limit != NULL ? atol(limit) : count != NULL ? 1000000 : 6);
    uint64_t number = first;
    // So many that they went everywhere, also on a slow machine.
    for (; number < end && (time(NULL) <= stop || (!asked && number - first < ENOUGH)); number++)
        run(number);
    failed = false;
    print_message(
        "%lu seeds, %lu steps: %lu entries inflated, %lu reported, %lu deflated; %lu writes "
        "waited, %lu for what was promised,\n%lu times nothing had changed, %lu starts "
        "refused, %lu resets\n",
        number - first, happened.steps, happened.inflated, happened.reported, happened.deflated,
        happened.waits, happened.held, happened.no_memory, happened.refused_starts,
        happened.resets);
    if (number - first < ENOUGH)
        return;
    assert_true(happened.inflated > 500 && happened.reported > 100 && happened.deflated > 50);
    assert_true(happened.waits > 50 && happened.no_memory > 100 && happened.refused_starts > 5);
    assert_true(happened.resets > 10);
}

int main(void)
{
    signal(SIGABRT, say_seed);
    static const struct CMUnitTest tests[] = {
        cmocka_unit_test_teardown(test_property, after),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
