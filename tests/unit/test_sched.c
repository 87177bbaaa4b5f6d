// SPDX-License-Identifier: BSD-2-Clause
// sources: tests/unit/sched_machine.c kernel/sched.c kernel/sched_group.c kernel/lock.c
// libs: -Wl,--wrap=spin_lock
// Sleeping, waking, deadlines, times, removal; and everything together at random.
#include "sched_machine.h"

// The console's CPU looks at its UART every millisecond; the others have longer slices.
static void test_slices(void **state)
{
    (void)state;
    start(2);
    for (unsigned i = 0; i < 4; i++)
        hog(100);
    simulate(100 * MS);
    assert_in_range(sim[0].polls, 95, 110);
    assert_in_range(sim[0].passes, 95, 110);
    assert_in_range(sim[1].passes, 9, 15);
    assert_int_equal(sim[1].polls, 0);
    assert_true(sim[0].watchdogs >= 95 && sim[1].watchdogs >= 9);
    for (unsigned i = 0; i < 4; i++)
        assert_true(actors[i].longest_wait < 3 * SLICE);
    finish();
}

// --- Sleeping and waking ---

// An idle CPU is woken by one interrupt; nobody is disturbed otherwise.
static void test_idle_is_woken(void **state)
{
    (void)state;
    start(2);
    struct actor *a = actor(100 * US, NEVER);
    a->e.cpu_mask = 2;
    simulate(5 * MS);
    assert_int_equal(a->runs, 0);
    sched_wake(&a->e);
    assert_int_equal(sim[1].wakes, 1);
    assert_int_equal(sim[1].nmis, 0);
    simulate(5 * MS);
    assert_int_equal(a->runs, 1);
    assert_int_equal(sim[0].wakes + sim[0].nmis, 0);
    assert_int_equal(sim[1].wakes, 1);
    assert_int_equal(a->e.state, SCHED_BLOCKED);
    // Woken again while it waits or sleeps: one run each.
    sched_wake(&a->e);
    sched_wake(&a->e);
    sched_wake(&a->e);
    simulate(5 * MS);
    assert_int_equal(a->runs, 2);
    finish();
}

static void test_wake_latency(void **state)
{
    (void)state;
    start(1);
    struct actor *a = actor(100 * US, NEVER);
    for (unsigned i = 0; i < 50; i++) {
        simulate(7 * MS);
        uint64_t woken = fake_tsc;
        sched_wake(&a->e);
        assert_int_equal(sim[0].wakes, i + 1);
        simulate(MS);
        assert_int_equal(a->runs, i + 1);
        assert_near(a->started, woken, TOLERANCE);
    }
    finish();
}

// Where everybody is busy, the CPU whose entity is furthest ahead is asked to give way.
static void test_wake_preempts(void **state)
{
    (void)state;
    start(2);
    struct actor *a = actor(NEVER, 0), *b = actor(NEVER, 0), *s = actor(100 * US, NEVER);
    a->e.cpu_mask = 1;
    b->e.cpu_mask = 2;
    s->e.cpu_mask = 2;
    sched_wake(&a->e);
    sched_wake(&b->e);
    simulate(95 * MS);
    unsigned nmis = sim[1].nmis;
    uint64_t woken = fake_tsc;
    sched_wake(&s->e);
    assert_true(sched_must_yield(1));
    assert_false(sched_must_yield(0));
    assert_int_equal(sim[1].nmis, nmis + 1);
    assert_int_equal(sim[0].nmis, 0);
    simulate(5 * MS);
    assert_int_equal(s->runs, 1);
    assert_near(s->started, woken, TOLERANCE);
    finish();
}

// One that is further ahead itself has to wait for its turn and disturbs nobody.
static void test_no_preemption(void **state)
{
    (void)state;
    start(1);
    struct actor *ahead = hog(100);
    simulate(100 * MS);
    ahead->burst = ahead->left = 0;
    ahead->pause = NEVER;
    simulate(5 * MS);
    assert_int_equal(ahead->e.state, SCHED_BLOCKED);
    struct actor *h = hog(100);
    ahead->e.virtual_time = h->e.virtual_time + 20 * MS;
    ahead->left = 100 * US;
    simulate(2 * MS + 500 * US);
    unsigned runs = ahead->runs;
    sched_wake(&ahead->e);
    assert_false(sched_must_yield(0));
    simulate(10 * MS);
    assert_int_equal(ahead->runs, runs);
    simulate(15 * MS);
    assert_int_equal(ahead->runs, runs + 1);
    finish();
}

static struct actor *victim;

static void wake_victim(void)
{
    sched_wake(&victim->e);
}

static uint64_t woken_at;

static void victim_is_woken(void)
{
    woken_at = fake_tsc;
    elsewhere(wake_victim);
}

static void wake_in_run(struct actor *a)
{
    if (a->runs == 1)
        victim_is_woken();
}

static void wake_at_next_lock(struct actor *a)
{
    if (a->runs == 1)
        lock_hook = victim_is_woken;
}

static void wake_self(struct actor *a)
{
    if (a->runs == 1)
        sched_wake(&a->e);
}

// A wake-up that comes while it runs, or after run() said SLEEP and before it sleeps, makes it run
// once more; and once only.
static void test_wake_while_running(void **state)
{
    (void)state;
    void (*const scripts[])(struct actor *) = {wake_in_run, wake_at_next_lock, wake_self};
    for (unsigned i = 0; i < ARRAY_SIZE(scripts); i++) {
        start(2);
        victim = actor(0, NEVER);
        victim->e.cpu_mask = 1;
        victim->script = scripts[i];
        sched_wake(&victim->e);
        simulate(50 * MS);
        assert_null(lock_hook);
        assert_int_equal(victim->runs, 2);
        assert_int_equal(victim->e.state, SCHED_BLOCKED);
        assert_false(victim->e.wake_pending);
        sched_wake(&victim->e);
        simulate(50 * MS);
        assert_int_equal(victim->runs, 3);
        finish();
    }
}

// With a deadline beside the wake-up: the deadline is not kept for the next sleep.
static void wake_and_forget(struct actor *a)
{
    if (a->runs == 1)
        lock_hook = victim_is_woken;
    else
        a->pause = NO_DEADLINE;
}

static void test_wake_clears_deadline(void **state)
{
    (void)state;
    start(2);
    victim = actor(0, 20 * MS);
    sched_wake(&victim->e);
    simulate(5 * MS);
    assert_int_equal(victim->runs, 1);
    victim->pause = NO_DEADLINE;
    sched_wake(&victim->e);
    simulate(100 * MS);
    assert_int_equal(victim->runs, 2);
    // The same when the wake-up came before it slept.
    victim->script = wake_and_forget;
    victim->runs = 0;
    victim->pause = 20 * MS;
    sched_wake(&victim->e);
    simulate(100 * MS);
    assert_int_equal(victim->runs, 2);
    finish();
}

// A CPU that found nothing to run, and on its way to the halt somebody is woken for it alone.
static void test_wake_before_halt(void **state)
{
    (void)state;
    for (unsigned place = 0; place < 3; place++) {
        start(2);
        struct actor *h = actor(100 * US, 3 * MS), *other = actor(NEVER, 0);
        h->e.cpu_mask = 2;
        other->e.cpu_mask = 1;
        sched_wake(&other->e);
        victim = actor(0, NEVER);
        victim->e.cpu_mask = 2;
        sched_wake(&h->e);
        simulate(MS);
        assert_int_equal(victim->runs, 0);
        uint64_t before = fake_tsc;
        if (place == 0)
            idle_hook = victim_is_woken;
        else if (place == 1)
            arm_hook = victim_is_woken;
        else
            zero_work = 3;
        h->pause = NEVER; // from now on only the hook wakes anybody
        if (place == 2) {
            simulate(2 * MS + 150 * US); // it is zeroing frames
            victim_is_woken();
        }
        simulate(20 * MS);
        assert_null(idle_hook);
        assert_null(arm_hook);
        assert_int_equal(victim->runs, 1);
        assert_true(woken_at > before);
        assert_near(victim->started, woken_at, HAND_OVER);
        finish();
    }
}

// --- Deadlines ---

static void test_deadlines(void **state)
{
    (void)state;
    for (unsigned busy_cpus = 0; busy_cpus < 2; busy_cpus++) {
        start(1 + busy_cpus);
        for (unsigned i = 0; i < 2 * busy_cpus; i++)
            hog(100);
        struct actor *a = actor(10 * US, 3 * MS + 300 * US);
        sched_wake(&a->e);
        simulate(MS + SLICE);
        uint64_t worst = 0;
        for (unsigned i = 0; i < 200; i++) {
            unsigned runs = a->runs;
            uint64_t due = a->e.wake_deadline;
            if (due == NEVER) { // between two sleeps
                simulate(20 * US);
                continue;
            }
            while (a->runs == runs)
                simulate(10 * US);
            assert_true(a->started >= due);
            worst = MAX(worst, a->started - due);
            simulate(100 * US);
        }
        assert_true(worst <= TOLERANCE + 20 * US);
        finish();
    }
}

static void test_past_deadline(void **state)
{
    (void)state;
    start(1);
    struct actor *a = actor(10 * US, 0);
    sched_wake(&a->e);
    simulate(10 * MS);
    assert_in_range(a->runs, 900, 1001);
    a->pause = NEVER;
    finish();
}

// Several that are due at once are spread over the idle CPUs.
static void test_due_together(void **state)
{
    (void)state;
    start(4);
    for (unsigned i = 0; i < 4; i++)
        sched_wake(&actor(5 * MS, NEVER)->e);
    simulate(2 * MS);
    unsigned busy_cpus = 0;
    for (unsigned i = 0; i < 4; i++)
        busy_cpus += actors[i].inside;
    assert_int_equal(busy_cpus, 4);
    simulate(20 * MS);
    // The same by their deadlines.
    for (unsigned i = 0; i < 4; i++) {
        assert_int_equal(actors[i].e.state, SCHED_BLOCKED);
        actors[i].pause = 0;
        actors[i].left = 0;
        sched_wake(&actors[i].e);
    }
    uint64_t due = fake_tsc + 10 * MS;
    for (unsigned i = 0; i < 4; i++) {
        actors[i].burst = 5 * MS;
        actors[i].pause = due - fake_tsc - i;
    }
    simulate(9 * MS);
    for (unsigned i = 0; i < 4; i++) {
        assert_int_equal(actors[i].e.state, SCHED_BLOCKED);
        actors[i].pause = NEVER;
    }
    simulate(3 * MS);
    for (unsigned i = 0; i < 4; i++) {
        assert_true(actors[i].inside);
        assert_near(actors[i].awake, due, 100 * US);
    }
    simulate(20 * MS);
    finish();
}

// --- Removal and times ---

static int remove_result;

static void remove_victim(void)
{
    remove_result = sched_remove(&victim->e);
}

static void remove_self(struct actor *a)
{
    if (a->runs == 1)
        elsewhere(remove_victim);
}

static void test_remove(void **state)
{
    (void)state;
    start(2);
    // Running.
    victim = actor(MS, NEVER);
    victim->e.cpu_mask = 1;
    victim->script = remove_self;
    remove_result = 1;
    sched_wake(&victim->e);
    simulate(100 * US);
    assert_true(victim->inside);
    assert_int_equal(remove_result, E_BUSY);
    assert_int_equal(sched_remove(&victim->e), E_BUSY);
    assert_false(victim->e.dead);
    simulate(10 * MS);
    // Blocked, without and with a deadline.
    assert_int_equal(victim->e.state, SCHED_BLOCKED);
    assert_int_equal(sched_remove(&victim->e), 0);
    sched_wake(&victim->e);
    simulate(10 * MS);
    assert_int_equal(victim->runs, 1);
    assert_int_equal(sched_remove(&victim->e), 0); // again: nothing
    struct actor *a = actor(0, 5 * MS);
    sched_wake(&a->e);
    simulate(MS);
    assert_int_equal(a->runs, 1);
    assert_int_equal(sched_remove(&a->e), 0);
    // Waiting for its turn.
    struct actor *h = actor(NEVER, 0), *w = actor(NEVER, 0);
    h->e.cpu_mask = w->e.cpu_mask = 1;
    sched_wake(&h->e);
    simulate(5 * MS);
    sched_wake(&w->e);
    while (w->e.state != SCHED_RUNNABLE || w->inside)
        simulate(100 * US);
    unsigned runs = w->runs;
    assert_int_equal(sched_remove(&w->e), 0);
    simulate(100 * MS);
    assert_int_equal(a->runs, 1);
    assert_int_equal(w->runs, runs);
    assert_near(h->e.run_ticks + h->e.wait_ticks, 105 * MS, SLICE);
    victim->known = a->known = w->known = false;
    finish();
}

// Run, wait and sleep are all of an entity's time, at any moment, but for what does not count.
static void test_times_add_up(void **state)
{
    (void)state;
    start(2);
    struct actor *a[6];
    uint64_t begin[6], skipped[6] = {0};
    struct sched_times last[6] = {0};
    for (unsigned i = 0; i < 6; i++) {
        begin[i] = fake_tsc;
        a[i] = actor(i == 0 ? NEVER : i * MS, i == 1 ? NEVER : 3 * MS);
        a[i]->e.group = i % 3 == 0 ? group(100, i == 3 ? 30 : 0) : NULL;
        sched_wake(&a[i]->e);
    }
    for (unsigned round = 0; round < 400; round++) {
        simulate((round * 37 % 23) * 100 * US);
        for (unsigned i = 0; i < 6; i++) {
            struct sched_entity *e = &a[i]->e;
            if (round % 50 != 10 + i || e->state == SCHED_RUNNING)
                continue;
            sched_count_sleep(e, false);
            fake_tsc += (round % 5) * US;
            sched_count_sleep(e, true);
            skipped[i] += (round % 5) * US;
        }
        for (unsigned i = 0; i < 6; i++) {
            struct sched_times t = sched_times(&a[i]->e);
            assert_near(t.run + t.wait + t.sleep, fake_tsc - begin[i] - skipped[i],
                        100); // looks take time
            assert_true(t.run >= last[i].run && t.wait >= last[i].wait && t.sleep >= last[i].sleep);
            last[i] = t;
        }
    }
    for (unsigned i = 0; i < 6; i++)
        assert_true(last[i].run > 0 && last[i].wait > 0);
    finish_groups();
}

// A VM is stopped while its vCPU waits for a CPU: what it has waited counts, what it waits then and
// what a wake-up costs meanwhile does not, so that its guest is told of no time stolen while its
// clock stood still.
static void test_stopped_while_it_waits(void **state)
{
    (void)state;
    for (unsigned runs = 0; runs <= 1; runs++) { // while it is stopped
        start(1);
        struct actor *hog = actor(NEVER, 0);
        struct actor *w = actor(100 * US, NEVER);
        sched_wake(&hog->e);
        simulate(20 * MS);
        sched_wake(&w->e);
        assert_int_equal(w->e.state, SCHED_RUNNABLE);
        fake_tsc += 3 * MS;
        sched_count_sleep(&w->e, false);
        struct sched_times stopped = sched_times(&w->e);
        assert_near(stopped.wait, 3 * MS, 10 * US);
        if (runs != 0)
            simulate(50 * MS);
        else
            fake_tsc += 5 * MS;
        assert_int_equal(w->runs, runs);
        struct sched_times t = sched_times(&w->e);
        assert_int_equal(t.wait, stopped.wait);
        assert_int_equal(t.sleep, stopped.sleep);
        sched_count_sleep(&w->e, true);
        t = sched_times(&w->e);
        assert_near(t.wait, stopped.wait, 10 * US);
        assert_near(t.sleep, stopped.sleep, 10 * US);
        finish();
    }
}

static void test_exit(void **state)
{
    (void)state;
    start(2);
    struct actor *a = actor(100 * US, MS);
    sched_wake(&a->e);
    simulate(10 * MS);
    unsigned runs = a->runs;
    assert_true(runs > 5);
    a->quit = true;
    simulate(10 * MS);
    assert_in_range(a->runs, runs, runs + 1);
    runs = a->runs;
    assert_true(a->e.dead);
    assert_int_equal(a->e.cpu, -1);
    sched_wake(&a->e);
    simulate(10 * MS);
    assert_int_equal(a->runs, runs);
    assert_int_equal(sched_remove(&a->e), 0);
    finish();
}

// --- Everything together ---

static unsigned console_polls;

static void count_console_poll(void)
{
    assert_int_equal(cpu_index(), 0);
    assert_false(fake_irq_on);
    assert_true(spin_none_held());
    console_polls++;
}

// Random sleeps, wake-ups and affinities. Nobody who has been woken waits longer than all the
// others' turns, no wake-up is lost, and CPUs never halt beside work (simulate checks).
static void test_random(void **state)
{
    (void)state;
    srand(3);
    for (unsigned round = 0; round < 20; round++) {
        start(1 + round % CPUS);
        console_polls = 0;
        sched_set_console_poll(count_console_poll);
        for (unsigned i = 0; i < 12; i++) {
            struct actor *a = actor(1 + (uint64_t)rand() % (3 * MS), (uint64_t)rand() % (5 * MS));
            a->random = true;
            if (rand() % 3 == 0)
                a->e.cpu_mask = UINT64_C(1) << (unsigned)rand() % online;
            a->e.weight = 50 + (uint32_t)rand() % 100;
            sched_wake(&a->e);
        }
        for (unsigned i = 0; i < 200; i++) {
            simulate((uint64_t)rand() % (3 * MS));
            zero_work = (unsigned)rand() % 3;
            struct actor *a = &actors[(unsigned)rand() % actor_count];
            unsigned runs = a->runs;
            if (a->e.state != SCHED_BLOCKED)
                continue;
            sched_wake(&a->e);
            for (unsigned turns = 0; a->runs == runs; turns++) {
                assert_true(turns < 300);
                simulate(MS);
            }
        }
        zero_work = 0;
        assert_true(console_polls != 0);
        assert_int_equal(console_polls, sim[0].polls);
        sched_set_console_poll(NULL);
        for (unsigned i = 0; i < actor_count; i++) {
            actors[i].random = false;
            actors[i].left = 0;
        }
        finish();
    }
}

int main(int argc, char **argv)
{
    static const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_slices),
        cmocka_unit_test(test_idle_is_woken),
        cmocka_unit_test(test_wake_latency),
        cmocka_unit_test(test_wake_preempts),
        cmocka_unit_test(test_no_preemption),
        cmocka_unit_test(test_wake_while_running),
        cmocka_unit_test(test_wake_clears_deadline),
        cmocka_unit_test(test_wake_before_halt),
        cmocka_unit_test(test_deadlines),
        cmocka_unit_test(test_past_deadline),
        cmocka_unit_test(test_due_together),
        cmocka_unit_test(test_remove),
        cmocka_unit_test(test_times_add_up),
        cmocka_unit_test(test_stopped_while_it_waits),
        cmocka_unit_test(test_exit),
        cmocka_unit_test(test_random),
    };
    if (argc > 1)
        cmocka_set_test_filter(argv[1]);
    return cmocka_run_group_tests(tests, sched_boot, sched_power_off);
}
