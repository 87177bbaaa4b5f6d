// SPDX-License-Identifier: BSD-2-Clause
// sources: tests/unit/sched_machine.c kernel/sched.c kernel/sched_group.c kernel/lock.c
// libs: -Wl,--wrap=spin_lock
// Who gets how much of the CPUs: weights, groups, sleepers, newcomers, slices that are given away.
#include "sched_machine.h"

static void check_shares(unsigned cpu_number, const uint32_t *weights, unsigned count)
{
    const uint64_t time = 4000 * MS;
    uint64_t sum = 0, all = 0;
    start(cpu_number);
    for (unsigned i = 0; i < count; i++) {
        hog(weights[i]);
        sum += weights[i];
    }
    simulate(time);
    for (unsigned i = 0; i < count; i++) {
        struct sched_entity *e = &actors[i].e;
        assert_near(e->run_ticks, time * cpu_number * weights[i] / sum, 3 * SLICE);
        uint64_t waits = e->state == SCHED_RUNNABLE ? fake_tsc - e->since : 0;
        assert_near(e->run_ticks + e->wait_ticks + waits, time, SLICE);
        all += e->run_ticks;
    }
    assert_near(all, time * cpu_number, cpu_number * SLICE + time / 1000);
    finish();
}

static void test_shares(void **state)
{
    (void)state;
    check_shares(1, (uint32_t[]){100}, 1);
    check_shares(1, (uint32_t[]){100, 100}, 2);
    check_shares(1, (uint32_t[]){100, 300}, 2);
    check_shares(1, (uint32_t[]){1, 10000}, 2);
    check_shares(2, (uint32_t[]){100, 100}, 2);
    check_shares(2, (uint32_t[]){100, 100, 100}, 3);
    check_shares(2, (uint32_t[]){100, 100, 100, 100, 100}, 5);
    check_shares(2, (uint32_t[]){100, 150, 200, 250, 300}, 5);
    check_shares(2, (uint32_t[]){50, 50, 100}, 3);
    check_shares(3, (uint32_t[]){100, 100, 100, 100}, 4);
    check_shares(4, (uint32_t[]){10, 10, 20, 20, 20, 30, 30}, 7);
}

// --- Groups ---

// Shares are the groups', however many they are and on however many CPUs.
static void check_group_shares(unsigned cpu_number, const uint32_t *weights,
                               const unsigned *members, unsigned count)
{
    const uint64_t time = 4000 * MS;
    uint64_t sum = 0;
    start(cpu_number);
    for (unsigned i = 0; i < count; i++) {
        struct sched_group *g = group(weights[i], 0);
        for (unsigned k = 0; k < members[i]; k++)
            member(g, NEVER, 0);
        sum += weights[i];
    }
    simulate(time);
    for (unsigned i = 0; i < count; i++)
        assert_near(ran(&groups[i]), time * cpu_number * weights[i] / sum,
                    time / 50 + 3 * SLICE * members[i]);
    finish_groups();
}

static void test_group_shares(void **state)
{
    (void)state;
    check_group_shares(1, (uint32_t[]){100, 100}, (unsigned[]){1, 4}, 2);
    check_group_shares(2, (uint32_t[]){100, 100}, (unsigned[]){2, 8}, 2);
    check_group_shares(2, (uint32_t[]){100, 200, 400}, (unsigned[]){4, 4, 4}, 3);
    check_group_shares(4, (uint32_t[]){100, 200, 400}, (unsigned[]){4, 3, 8}, 3);
    check_group_shares(1, (uint32_t[]){10, 300}, (unsigned[]){3, 1}, 2);
}

// Of four vCPUs one works: its VM is not served worse than one that has only that one. And those
// that sleep and wake in between gain nothing.
static void test_group_of_sleepers(void **state)
{
    (void)state;
    start(1);
    struct sched_group *many = group(100, 0), *alone = group(100, 0);
    member(many, NEVER, 0);
    for (unsigned i = 0; i < 3; i++)
        member(many, 0, NEVER);
    member(alone, NEVER, 0);
    simulate(4000 * MS);
    assert_near(ran(many), 2000 * MS, 40 * MS);
    finish_groups();
    start(1);
    many = group(100, 0), alone = group(100, 0);
    for (unsigned i = 0; i < 4; i++)
        member(many, 3 * MS + i * 200 * US, 200 * US);
    member(alone, NEVER, 0);
    simulate(4000 * MS);
    assert_in_range(ran(many) / MS, 1500, 2100);
    finish_groups();
}

// Of a VM's vCPUs some compute and others sleep and wake up, more or less often. The latter come
// before the others, at once if they work little, but what they get so is their VM's: it has no
// more than its share, and no less.
static void check_calm_share(unsigned cpu_number, unsigned hogs, unsigned sleepers, uint64_t burst,
                             uint64_t pause)
{
    const uint64_t time = 4000 * MS;
    const uint64_t share = time * cpu_number / 3;
    start(cpu_number);
    struct sched_group *calm = group(100, 0);
    for (unsigned i = 0; i < cpu_number; i++)
        member(calm, NEVER, 0);
    for (unsigned k = 0; k < 2; k++) {
        struct sched_group *g = group(100, 0);
        for (unsigned i = 0; i < hogs; i++)
            member(g, NEVER, 0);
        for (unsigned i = 0; i < sleepers; i++)
            member(g, burst, pause + i * 7 * US);
    }
    simulate(time);
    if (ran(calm) < share / 100 * 98 || ran(calm) > share / 100 * 102)
        fail_msg("%u CPUs, %u vCPUs that work and %u that work for %lu us and sleep for %lu us: "
                 "the calm VM gets %lu %% of its share",
                 cpu_number, hogs, sleepers, (unsigned long)(burst / US),
                 (unsigned long)(pause / US), (unsigned long)(ran(calm) * 100 / share));
    finish_groups();
}

static void test_calm_beside_sleepers(void **state)
{
    (void)state;
    for (unsigned cpu_number = 1; cpu_number <= 2; cpu_number++)
        for (unsigned hogs = 1; hogs <= 4; hogs += 3)
            for (unsigned sleepers = 1; sleepers <= 2; sleepers++)
                for (uint64_t burst = 50 * US; burst <= 20 * MS; burst *= 7)
                    for (uint64_t pause = 50 * US; pause <= 40 * MS; pause *= 9)
                        check_calm_share(cpu_number, hogs, sleepers, burst, pause);
}

// The same when it is the sibling that wakes the others, in the middle of its runs, as IPIs do.
static struct actor *sleeping[2];

static void work_and_wake(struct actor *a)
{
    (void)a;
    busy(fake_tsc + 150 * US);
    for (unsigned i = 0; i < ARRAY_SIZE(sleeping); i++)
        sched_wake(&sleeping[i]->e);
}

static void test_woken_by_siblings(void **state)
{
    (void)state;
    for (unsigned hogs = 1; hogs <= 3; hogs++) {
        start(1);
        struct sched_group *g = group(100, 0), *calm = group(100, 0);
        member(calm, NEVER, 0);
        for (unsigned i = 0; i < hogs; i++)
            member(g, NEVER, 0)->script = work_and_wake;
        for (unsigned i = 0; i < ARRAY_SIZE(sleeping); i++)
            sleeping[i] = member(g, 20 * US, NEVER);
        simulate(4000 * MS);
        assert_near(ran(calm), 2000 * MS, 20 * MS);
        finish_groups();
    }
}

// An interactive vCPU beside one that computes, each VM the same on one CPU: whoever wakes up for
// so little gets the CPU at once, and the one that computes pays for it.
static void test_interactive_beside_work(void **state)
{
    (void)state;
    start(1);
    for (unsigned i = 0; i < 3; i++) {
        struct sched_group *g = group(100, 0);
        member(g, NEVER, 0);
        member(g, 300 * US, 7 * MS + i * 130 * US);
    }
    simulate(4000 * MS);
    for (unsigned i = 0; i < 6; i++) {
        const struct actor *a = &actors[i];
        if (a->burst == NEVER)
            continue;
        assert_true(a->runs > 400);
        assert_true(a->e.wait_ticks < a->runs * 50 * US);
    }
    for (unsigned i = 0; i < 3; i++)
        assert_near(ran(&groups[i]), 4000 * MS / 3, 20 * MS);
    finish_groups();
}

// A vCPU that has a CPU for itself makes its VM get more than its share, of time nobody else
// wanted: its sibling, which wakes up where others are, is not kept waiting for that.
static void test_sleeper_of_lonely_vm(void **state)
{
    (void)state;
    for (unsigned kind = 0; kind < 2; kind++) {
        start(2);
        struct sched_group *g = group(100, 0), *others[2] = {group(100, 0), group(100, 0)};
        member(g, NEVER, 0)->e.cpu_mask = 2;
        struct actor *s = actor(kind == 0 ? 300 * US : 9 * MS, kind == 0 ? 7 * MS : MS);
        s->e.group = g;
        for (unsigned i = 0; i < 2; i++)
            member(others[i], NEVER, 0)->e.cpu_mask = 1;
        s->e.cpu_mask = 1;
        simulate(3000 * MS);
        sched_wake(&s->e);
        simulate(4000 * MS);
        if (kind == 0)
            assert_true(s->runs > 500 && s->e.wait_ticks < s->runs * 50 * US);
        else // half of its VM's weight beside two whole ones
            assert_near(s->e.run_ticks, 4000 * MS / 5, 40 * MS);
        finish_groups();
    }
}

// Two vCPUs that hand each other the work, one asleep at any time: never late, were it not for the
// others. They have their half, and not all that they ask for.
static struct actor *ping, *pong;

static void wake_other(struct actor *a)
{
    sched_wake(a == ping ? &pong->e : &ping->e);
}

static void test_turns(void **state)
{
    (void)state;
    for (uint64_t burst = 30 * US; burst <= 10 * MS; burst *= 6) {
        start(1);
        struct sched_group *pair = group(100, 0), *calm = group(100, 0);
        member(calm, NEVER, 0);
        ping = member(pair, burst, NEVER);
        pong = member(pair, burst, NEVER);
        ping->script = pong->script = wake_other;
        simulate(4000 * MS);
        assert_near(ran(calm), 2000 * MS, 40 * MS);
        finish_groups();
    }
}

// --- Newcomers and sleepers ---

// An entity with more weight than it can use up runs ahead on its CPU. Who comes then shares with
// the others, and does not drive them out for what they are ahead.
static void test_newcomer_beside_heavy(void **state)
{
    (void)state;
    start(2);
    struct actor *light = hog(100);
    hog(1000);
    simulate(5000 * MS);
    struct actor *heavy2 = hog(100);
    uint64_t before = light->e.run_ticks;
    simulate(1000 * MS);
    assert_near(light->e.run_ticks - before, 500 * MS, 60 * MS);
    assert_near(heavy2->e.run_ticks, 500 * MS, 60 * MS);
    finish();
}

// A newcomer is as far as the others.
static void test_newcomer(void **state)
{
    (void)state;
    start(1);
    struct actor *h = hog(100);
    simulate(1000 * MS);
    uint64_t before = h->e.run_ticks;
    hog(100);
    simulate(100 * MS);
    assert_near(h->e.run_ticks - before, 50 * MS, SLICE + 2 * MS);
    finish();
}

// Who slept for long may be ahead by a slice, not by all the time it slept.
static void test_sleeper_saves_nothing(void **state)
{
    (void)state;
    start(1);
    struct actor *h = hog(100);
    struct actor *s = actor(NEVER, 0);
    simulate(2000 * MS);
    uint64_t before = h->e.run_ticks;
    sched_wake(&s->e);
    simulate(100 * MS);
    assert_near(h->e.run_ticks - before, 50 * MS, SLICE + 2 * MS);
    assert_true(h->longest_wait <= SLICE + 3 * MS);
    finish();
}

// One that works in short runs, as a fiber does that yields.
static void yield_soon(struct actor *a)
{
    a->left = MS / 2;
    a->e.gives_way = true;
}

// Who gives way does not use up what a sleeper has to its credit, up to a slice, before the others
// get the CPU: they take turns from the second run on.
static void test_giving_way(void **state)
{
    (void)state;
    start(1);
    struct actor *h = hog(100);
    struct actor *s = actor(NEVER, 0);
    s->script = yield_soon;
    simulate(2000 * MS);
    h->longest_wait = 0;
    sched_wake(&s->e);
    simulate(100 * MS);
    assert_true(s->runs > 20);
    assert_true(h->longest_wait <= 2 * MS); // a slice of CPU 0 is one; with the credit it is eleven
    assert_near(s->e.virtual_time, h->e.virtual_time, 2 * MS);
    finish();
}

// --- Directed yield ---

static bool yielded;
static uint64_t slice_end;
static struct actor *victim_removed;

static void remove_heir(void)
{
    assert_int_equal(sched_remove(&victim_removed->e), 0);
}

static void spin_in_vain(struct actor *a)
{
    if (a->runs < 3)
        return;
    slice_end = fake_tsc + sched_max_run_ticks();
    yielded = sched_yield_to_group(&a->e, slice_end);
    a->script = NULL;
}

static void test_yield(void **state)
{
    (void)state;
    for (unsigned with_group = 0; with_group < 2; with_group++) {
        start(2);
        struct sched_group *g = group(100, 0), *others = group(100, 0);
        struct actor *a[3], *b[3];
        for (unsigned i = 0; i < 3; i++) {
            a[i] = member(with_group != 0 ? g : NULL, NEVER, 0);
            b[i] = member(others, NEVER, 0);
            a[i]->e.cpu_mask = b[i]->e.cpu_mask = 2;
        }
        simulate(30 * MS);
        yielded = false;
        a[0]->script = spin_in_vain;
        while (a[0]->script != NULL)
            simulate(10 * US);
        assert_int_equal(yielded, with_group);
        uint64_t at = fake_tsc;
        simulate(50 * US);
        // A sibling runs at once, not one of the others, and not beyond the slice that was given
        // up.
        assert_int_equal(a[1]->inside || a[2]->inside, with_group);
        if (with_group != 0) {
            assert_false(a[0]->inside);
            assert_true(a[0]->e.spun);
            struct actor *heir = a[1]->inside ? a[1] : a[2];
            assert_near(heir->started, at, TOLERANCE);
            simulate(2 * SLICE);
            assert_true(heir->ended <= slice_end + TOLERANCE || heir->runs > 4);
        }
        // Neither VM loses by it.
        uint64_t one = 0, two = 0;
        simulate(3000 * MS);
        for (unsigned i = 0; i < 3; i++) {
            one += a[i]->e.run_ticks;
            two += b[i]->e.run_ticks;
        }
        if (with_group != 0)
            assert_near(one, two, 6 * SLICE);
        finish_groups();
    }
}

static void spin_always(struct actor *a)
{
    busy(fake_tsc + 50 * US);
    sched_yield_to_group(&a->e, fake_tsc + sched_max_run_ticks() / 2);
}

// A VM whose vCPUs give their slices to each other without end gets its share and no more.
static void test_yield_is_paid_for(void **state)
{
    (void)state;
    start(2);
    struct sched_group *g = group(100, 0), *others = group(200, 0);
    for (unsigned i = 0; i < 4; i++) {
        member(g, NEVER, 0)->script = i < 2 ? spin_always : NULL;
        member(others, NEVER, 0);
    }
    simulate(4000 * MS);
    assert_near(ran(g), 8000 * MS / 3, 200 * MS);
    finish_groups();
}

// The heir disappears before its turn; a yield with nothing left of the slice; with nobody waiting.
static struct actor *heir_to_be;
static bool take_heir;

static void yield_then_remove(struct actor *a)
{
    if (a->runs < 3)
        return;
    yielded = sched_yield_to_group(&a->e, fake_tsc + SLICE);
    if (take_heir) {
        victim_removed = heir_to_be;
        elsewhere(remove_heir);
    }
    a->script = NULL;
}

static void test_yield_edges(void **state)
{
    (void)state;
    for (unsigned i = 0; i < 2; i++) {
        start(2);
        struct sched_group *g = group(100, 0);
        struct actor *a = member(g, NEVER, 0);
        a->e.cpu_mask = 2;
        heir_to_be = member(g, NEVER, 0);
        heir_to_be->e.cpu_mask = i == 0 ? 2 : 1; // the second one runs on the other CPU
        simulate(40 * MS);
        yielded = i != 0;
        take_heir = i == 0;
        a->script = yield_then_remove;
        a->runs = 2;
        while (a->script != NULL)
            simulate(10 * US);
        assert_int_equal(yielded, i == 0);
        if (i == 0) {
            assert_true(heir_to_be->e.dead);
            heir_to_be->known = false;
            unsigned runs = heir_to_be->runs;
            simulate(100 * MS);
            assert_int_equal(heir_to_be->runs, runs);
        }
        fake_set_cpu(1);
        assert_false(sched_yield_to_group(&a->e, fake_tsc + 10 * US));
        fake_set_cpu(OUTSIDER);
        finish_groups();
    }
}

// Of a group with weight 1 and 16 vCPUs virtual time runs 1,600 times as fast as time: at 4 GHz its
// 64 bits last for 33 days. Nothing may change when they are over; who slept meanwhile, for
// however long, begins where the others are.
static void test_virtual_time_wraps(void **state)
{
    (void)state;
    struct actor *hogs[4], *sleepers[4];
    start(2);
    for (unsigned i = 0; i < ARRAY_SIZE(hogs); i++)
        hogs[i] = hog(100);
    for (unsigned k = 0; k < ARRAY_SIZE(sleepers); k++) {
        simulate(50 * MS);
        for (unsigned i = 0; i < ARRAY_SIZE(hogs); i++) { // days go by
            uint64_t now = hogs[i]->e.virtual_time;
            hogs[i]->e.virtual_time = k < 3 ? now + (UINT64_C(1) << 62) : UINT64_MAX - 300 * MS;
        }
        simulate(50 * MS);
        sleepers[k] = actor(MS / 2, NO_DEADLINE);
    }
    uint64_t before[ARRAY_SIZE(hogs)], begin = fake_tsc;
    for (unsigned i = 0; i < ARRAY_SIZE(hogs); i++)
        before[i] = hogs[i]->e.run_ticks;
    for (unsigned k = 0; k < 8; k++) { // before the end, across it, and behind it
        struct actor *sleeper = sleepers[k % ARRAY_SIZE(sleepers)];
        uint64_t woken = fake_tsc;
        sched_wake(&sleeper->e);
        simulate(25 * MS);
        assert_true(sleeper->awake >= woken && sleeper->awake - woken < 2 * SLICE);
        simulate(100 * MS);
    }
    for (unsigned i = 0; i < ARRAY_SIZE(hogs); i++) {
        assert_near(hogs[i]->e.run_ticks - before[i], (fake_tsc - begin) / 2, 4 * SLICE);
        assert_true(hogs[i]->longest_wait < 4 * SLICE);
        assert_true(hogs[i]->e.virtual_time < UINT64_MAX / 4);
    }
    finish();
}

int main(int argc, char **argv)
{
    static const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_virtual_time_wraps),
        cmocka_unit_test(test_shares),
        cmocka_unit_test(test_group_shares),
        cmocka_unit_test(test_group_of_sleepers),
        cmocka_unit_test(test_calm_beside_sleepers),
        cmocka_unit_test(test_woken_by_siblings),
        cmocka_unit_test(test_interactive_beside_work),
        cmocka_unit_test(test_sleeper_of_lonely_vm),
        cmocka_unit_test(test_turns),
        cmocka_unit_test(test_newcomer_beside_heavy),
        cmocka_unit_test(test_newcomer),
        cmocka_unit_test(test_sleeper_saves_nothing),
        cmocka_unit_test(test_giving_way),
        cmocka_unit_test(test_yield),
        cmocka_unit_test(test_yield_is_paid_for),
        cmocka_unit_test(test_yield_edges),
    };
    if (argc > 1)
        cmocka_set_test_filter(argv[1]);
    return cmocka_run_group_tests(tests, sched_boot, sched_power_off);
}
