// SPDX-License-Identifier: BSD-2-Clause
// sources: tests/unit/fusion_world.c tests/unit/fusion_guest.c tests/unit/fusion_check.c
// sources: tests/unit/fusion_cpus.c tests/unit/fusion_gives.c
// sources: vm/access.c vm/memory_large.c
// sources: vm/memory.c vm/ballooned.c vm/reserve.c vm/shortage.c balloon/pages.c
// sources: fusion/backoff.c fusion/budget.c fusion/control.c fusion/fuse.c fusion/index.c
// sources: fusion/index_table.c fusion/intake.c fusion/members.c fusion/page_general.c
// sources: fusion/page_ops.c fusion/range.c fusion/service.c fusion/split.c
// sources: ept/walk.c ept/map.c ept/large.c ept/destroy.c ept/shootdown.c ept/fault.c
// sources: kernel/frames.c kernel/frame_buddy.c kernel/frame_cache.c kernel/frame_zero.c
// sources: kernel/frame_poison.c kernel/frame_account.c kernel/frame_share.c kernel/heap.c
// sources: kernel/lock.c kernel/format.c kernel/frame_hold.c
// libs: -Wl,--wrap=ept_shootdown,--wrap=ept_lookup,--wrap=spin_lock,--wrap=spin_lock_nested
// libs: -Wl,--wrap=frame_alloc,--wrap=heap_alloc,--wrap=page_ops_begin,--wrap=page_ops_end
// Random runs against a model of what each guest last wrote. CPUs are coroutines: at every lock,
// shootdown, allocation, look at a leaf, hash, compare and turn of a waiting loop any other CPU
// may go on. CPUs run guests, with translations cached like hardware does, hint, write and read for
// guests, order splits, switch fusion, reset VMs, give pages to the balloon and take them back; one
// is the service fiber.
//
// A seed that fails is printed. FUSION_SEEDS=n runs n seeds, FUSION_SEED=n only that one;
// FUSION_SECONDS=n stops after about n seconds.
#include <signal.h>
#include <stdio.h>
#include <time.h>
#include <sys/wait.h>
#include <unistd.h>

#include "fusion_cpus.h"
#include "fusion_gives.h"

#include "kernel/sched.h"

#define WORKERS    3u // CPUs 0..2; CPU 3 is the service fiber's
#define SERVICE    3u
#define VMS        3u
#define OPERATIONS 60u           // of each CPU in one run
#define FIRST      UINT64_C(512) // the pages that are used: in two whole ranges
#define PAGES      12u
#define RANGES     2u   // large ones at 512 and 1024
#define ENOUGH     300u // seeds after which everything has happened

static bool running;
static uint64_t seed, started;
static unsigned skip_every; // so many shootdowns on average one is left out; 0: none
static unsigned contents;   // how many different pages there are
static unsigned patience;   // points that a CPU passes in one go, on average
static bool large;          // ranges are populated at once, and hinted whole
static bool stopping;       // the service may end at its next sleep
static unsigned busy[VMS];  // CPUs that do something for that VM
static bool resetting[VMS];
static bool full;     // what VMs do not use is in their balloons
static bool shortage; // frames are taken away at times
static struct {
    uint64_t steps, fused, splits, last, cancelled, mismatch, resets, waits, large, collapses;
    uint64_t switches, futile, scanned;
} happened;

static unsigned below(unsigned n)
{
    seed ^= seed << 13;
    seed ^= seed >> 7;
    seed ^= seed << 17;
    return (unsigned)(seed * UINT64_C(2685821657736338717) >> 33) % n;
}

// What any output of metrics may show: no VM has more than its memory, and what VMs have is what
// frames there are.
static void check_accounts(bool all)
{
    uint64_t own = 0, gfns = 0;
    for (unsigned n = 0; n < VMS; n++) {
        const struct frame_account *a = &world.vm[n].account;
        if (a->private_frames + a->shared_gfns + a->ballooned >
            world.vm[n].config.memory / PAGE_SIZE)
            abort();
        own += a->private_frames;
        gfns += a->shared_gfns;
    }
    if (!all)
        return;
    struct frames_snapshot s = world_snapshot();
    if (own != s.count[FRAME_PRIVATE] || gfns != s.count[FRAME_SHARED] + s.saved)
        abort();
}

static void step(enum world_point point)
{
    happened.steps++;
    fake_tsc += below(20000);
    if (point == POINT_SHOOTDOWN && skip_every != 0 && below(skip_every) == 0)
        world.skip = 1;
    check_accounts(happened.steps % 64 == 0);
    // Who waits lets others go on; else some points pass without.
    if (point == POINT_RELAX || point == POINT_YIELD || below(patience) == 0)
        cpus_yield();
}

// --- Guests ---

static uint64_t any_gfn(void)
{
    if (large && below(3) == 0)
        return FIRST + below(RANGES) * 512 + (below(2) == 0 ? below(512) : below(4));
    return FIRST + below(PAGES);
}

// Pages of few different contents, so that many are equal.
static void write_page(unsigned cpu, unsigned vm, uint64_t gfn, unsigned what)
{
    uint8_t *page = world_access(cpu, vm, gfn, READ | WRITE);
    if (page == NULL) {
        happened.waits++;
        return;
    }
    uint8_t *m = world_model(vm, gfn);
    memset(m, (int)what, PAGE_SIZE);
    memcpy(page, m, PAGE_SIZE);
}

static void run_guest(unsigned cpu, unsigned vm)
{
    for (unsigned n = below(12); n > 0; n--) {
        uint64_t gfn = any_gfn();
        unsigned what = below(large ? 100 : 20);
        if (!gives_use(vm, gfn)) {
            gives_wild(cpu, vm, gfn, below);
            continue;
        }
        if (what < 10 || what >= 20)
            load(cpu, vm, gfn);
        else if (what < 15)
            write_page(cpu, vm, gfn, below(contents));
        else if (what < 19)
            happened.waits += !store(cpu, vm, gfn, 8 * below(512), below(3));
        else
            world_access(cpu, vm, gfn, READ | WRITE | WALK);
        gives_used(vm, gfn);
        cpus_yield();
    }
    world_leave(cpu);
}

// --- What Fusor does for them ---

static void send_hints(unsigned vm, bool un)
{
    uint64_t entries[16];
    unsigned n = 1 + below(16);
    if (large && below(20) != 0)
        n = 0;
    for (unsigned i = 0; i < n; i++)
        entries[i] = FUSOR_ENTRY(any_gfn(), below(FUSOR_CLASSES), 0);
    if (n == 0)
        entries[n++] = FUSOR_ENTRY(FIRST + below(RANGES) * 512, 1, 9);
    if (un)
        fusion_unhint(&world.vm[vm], entries, n);
    else
        fusion_hint(&world.vm[vm], entries, n);
}

static void write_for(unsigned vm)
{
    uint64_t value = below(3), gfn = any_gfn();
    if (!gives_use(vm, gfn))
        return;
    if (fusor_write(vm, (gfn << PAGE_SHIFT) + 8 * below(512), &value, sizeof(value)) != 0)
        happened.waits++;
    gives_used(vm, gfn);
}

static void read_for(unsigned vm)
{
    uint64_t gfn = any_gfn();
    if (!gives_use(vm, gfn))
        return;
    fusor_read(vm, gfn);
    gives_used(vm, gfn);
}

static void give(unsigned cpu, unsigned vm)
{
    bool range = large && below(8) == 0;
    gives_work(cpu, vm, range ? 1 : 1 + below(8), range ? 9 : 0, any_gfn, below);
}

static void order_split(unsigned vm)
{
    int status = split_gfn(world_fusion(vm), (gfn_t){any_gfn()}, 0, SPLIT_ORDERED);
    if (status != 0 && status != E_NOMEM)
        abort();
}

static void note_figures(unsigned vm)
{
    happened.fused += FIGURE(vm, fused);
    happened.splits += FIGURE(vm, splits);
    happened.last += FIGURE(vm, last_sharers);
    happened.cancelled += FIGURE(vm, cancelled);
    happened.mismatch += rejected(vm, FUSION_REJECT_MISMATCH);
    happened.large += FIGURE(vm, large_fused);
    happened.futile += FIGURE(vm, futile_splits);
    happened.scanned += FIGURE(vm, scanned);
    happened.collapses += world.vm[vm].ept.large_collapses;
}

static void create(unsigned vm)
{
    world_configure(vm, large ? 6 * MIB : 4 * MIB, vm == 2 && below(4) == 0 ? "" : "all");
    world.vm[vm].config.large_pages = large ? VM_LARGE_EAGER : VM_LARGE_AUTO;
    world.vm[vm].config.scan = !large && below(4) == 0 ? 100 : 0;
    // Without memory it is tried again.
    while (world_create(vm) != 0) {
        if (world.vm[vm].memory_present)
            abort();
    }
    gives_start(vm);
    world.vm[vm].balloon_driver = true;
    world.vm[vm].balloon_target = below(2) * 100;
    // A VM that has all the memory it may have, nearly: the rest is in its balloon.
    void (*stepping)(enum world_point) = world.step;
    world.step = NULL;
    for (uint64_t gfn = 0; full && gfn < FIRST + 512; gfn++) {
        uint64_t entry = FUSOR_ENTRY(gfn, 0, 0);
        if (gfn < FIRST || gfn >= FIRST + PAGES)
            balloon_inflate(&world.vm[vm], &entry, 1);
    }
    world.step = stepping;
}

static void reset(unsigned vm)
{
    if (resetting[vm])
        return;
    resetting[vm] = true;
    busy[vm]--;
    while (busy[vm] != 0)
        cpus_yield();
    note_figures(vm);
    world_end_vm(vm, true);
    create(vm);
    busy[vm]++;
    resetting[vm] = false;
    happened.resets++;
}

static void switch_vm(unsigned vm, bool on)
{
    char why[VM_WHY_MAX];
    if (fusion_switch(world.vm[vm].config.name, on, why) != 0)
        abort();
    happened.switches++;
}

static void operate(unsigned cpu)
{
    unsigned vm = below(VMS);
    if (resetting[vm])
        return;
    busy[vm]++;
    unsigned what = below(100);
    if (what < 35)
        run_guest(cpu, vm);
    else if (what < 50)
        give(cpu, vm);
    else if (what < 75)
        send_hints(vm, false);
    else if (what < 77)
        send_hints(vm, true);
    else if (what < 85)
        write_for(vm);
    else if (what < 90)
        read_for(vm);
    else if (what < 93)
        order_split(vm);
    else if (what < 94)
        reset(vm);
    else if (what < 98)
        switch_vm(vm, what > 95);
    else if (shortage)
        world.fail_at = 1 + below(10);
    busy[vm]--;
}

static void work(void)
{
    unsigned cpu = cpu_index();
    for (unsigned i = 0; i < OPERATIONS; i++) {
        operate(cpu);
        cpus_yield();
    }
}

// --- The service fiber, on a CPU of its own ---

static void sleep_between(void)
{
    fake_tsc += SECOND / 4;
    if (stopping) {
        cpu_finished[SERVICE] = true;
        for (;;)
            cpus_yield();
    }
    for (unsigned i = 0; i < 20; i++)
        cpus_yield();
}

static void serve(void)
{
    world.serve(NULL);
}

static void resume(unsigned cpu)
{
    cpus_resume(cpu);
    if (world.stale != 0) {
        print_error("seed %lu: stale after %lu steps\n", started, happened.steps);
        abort();
    }
}

// --- One run ---

static void check_all(void)
{
    fake_set_cpu(0);
    for (unsigned cpu = 0; cpu < WORLD_CPUS; cpu++)
        world_leave(cpu);
    world_check();
    world_check_contents();
    for (unsigned cpu = 0; cpu < WORLD_CPUS; cpu++) {
        for (unsigned vm = 0; vm < VMS; vm++)
            for (unsigned i = 0; i < PAGES; i++)
                load(cpu, vm, FIRST + i);
        world_leave(cpu);
    }
    assert_int_equal(world.stale, 0);
}

static void run(uint64_t number)
{
    started = number;
    running = true;
    seed = (number + 1) * UINT64_C(0x9e3779b97f4a7c15);
    below(2);
    contents = 2 + below(4);
    patience = 2u << below(5);
    large = below(4) == 0;
    full = !large && below(8) == 0;
    shortage = below(3) == 0;
    stopping = false;
    world_start(large ? 8192 : 1536);
    world.may_wait = true;
    world.hash_mask = below(3) == 0 ? below(2) : UINT64_MAX; // collisions
    fusion_sharers_max = below(4) == 0 ? 2 + below(3) : FRAME_COUNT_MAX;
    for (unsigned vm = 0; vm < VMS; vm++) {
        busy[vm] = 0;
        resetting[vm] = false;
        create(vm);
        // Ranges that are equal in all VMs, of pages that are not.
        for (uint64_t i = 0; large && i < RANGES * 512; i++)
            fill(0, vm, FIRST + i, 1 + i % 512 * 1000);
    }
    world_leave(0);
    world.coroutines = true;
    world.step = step;
    world.sleep = sleep_between;
    for (unsigned cpu = 0; cpu < WORKERS; cpu++)
        cpus_make(cpu, work);
    cpus_make(SERVICE, serve);
    for (unsigned left = WORKERS; left != 0;) {
        unsigned cpu = below(WORLD_CPUS);
        if (cpu_finished[cpu])
            continue;
        resume(cpu);
        if (cpu != SERVICE && cpu_finished[cpu])
            left--;
    }
    stopping = true;
    while (!cpu_finished[SERVICE])
        resume(SERVICE);
    world.step = NULL;
    world.sleep = NULL;
    world.coroutines = false;
    world.fail_at = 0;
    check_all();
    for (unsigned vm = 0; vm < VMS; vm++) {
        note_figures(vm);
        world_end_vm(vm, true);
    }
    world_finish();
    running = false;
}

// The test of the test: with every tenth shootdown left out it does not get far.
static void test_missing_shootdowns_are_noticed(void **state)
{
    (void)state;
    pid_t child = fork();
    assert_true(child >= 0);
    if (child == 0) {
        freopen("/dev/null", "w", stderr);
        freopen("/dev/null", "w", stdout);
        skip_every = 10;
        for (uint64_t number = 0; number < 200; number++)
            run(number);
        _exit(0);
    }
    int status;
    assert_int_equal(waitpid(child, &status, 0), child);
    assert_true(WIFSIGNALED(status) || WEXITSTATUS(status) != 0);
}

static void say_seed(int signal)
{
    (void)signal;
    fprintf(stderr, "test_fusion_property: seed %lu failed\n", started);
}

static int after(void **state)
{
    (void)state;
    if (running)
        say_seed(0);
    return 0;
}

static void test_property(void **state)
{
    (void)state;
    const char *only = getenv("FUSION_SEED"), *count = getenv("FUSION_SEEDS");
    const char *limit = getenv("FUSION_SECONDS");
    bool asked = only != NULL || count != NULL || limit != NULL;
    uint64_t first = only != NULL ? strtoull(only, NULL, 0) : 0;
    uint64_t end = only != NULL ? first + 1 : count != NULL ? strtoull(count, NULL, 0) : 3000;
    time_t stop = time(NULL) + (limit != NULL ? atol(limit) : count != NULL ? 1000000 : 15);
    uint64_t number = first;
    // So many that they went everywhere, also on a slow machine.
    for (; number < end && (time(NULL) <= stop || (!asked && number - first < ENOUGH)); number++)
        run(number);
    print_message("%lu seeds, %lu steps: %lu fused, %lu split (%lu again), %lu last sharers, %lu "
                  "cancelled, %lu mismatches,\n%lu ranges fused, %lu collapsed, %lu resets, %lu "
                  "switches, %lu scanned, %lu waits for memory\n",
                  number - first, happened.steps, happened.fused, happened.splits, happened.futile,
                  happened.last, happened.cancelled, happened.mismatch, happened.large,
                  happened.collapses, happened.resets, happened.switches, happened.scanned,
                  happened.waits);
    print_message("balloon: %lu pages inflated, %lu reported, %lu deflated, %lu calls refused, %lu "
                  "wild accesses\n",
                  gives_happened.inflated, gives_happened.reported, gives_happened.deflated,
                  gives_happened.refused, gives_happened.wild);
    if (number - first < ENOUGH)
        return;
    // The runs went everywhere.
    assert_true(happened.fused > 1000 && happened.splits > 1000 && happened.last > 100);
    assert_true(happened.cancelled > 10 && happened.mismatch > 10 && happened.large > 2);
    assert_true(gives_happened.inflated > 1000 && gives_happened.deflated > 100);
    assert_true(gives_happened.reported > 1000 && gives_happened.wild > 100);
    assert_true(happened.resets > 10 && happened.switches > 100 && happened.waits > 10);
}

int main(void)
{
    signal(SIGABRT, say_seed);
    static const struct CMUnitTest tests[] = {
        cmocka_unit_test_teardown(test_property, after),
        cmocka_unit_test(test_missing_shootdowns_are_noticed),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
