// SPDX-License-Identifier: BSD-2-Clause
// sources: tests/unit/sched_machine.c kernel/sched.c kernel/sched_group.c kernel/lock.c
// libs: -Wl,--wrap=spin_lock
// Where entities may run.
#include "sched_machine.h"

static void test_affinity(void **state)
{
    (void)state;
    start(3);
    struct actor *a = actor(NEVER, 0), *b = actor(NEVER, 0), *c = actor(NEVER, 0);
    a->e.cpu_mask = b->e.cpu_mask = 2;
    c->e.cpu_mask = 5;
    sched_wake(&a->e);
    sched_wake(&b->e);
    sched_wake(&c->e);
    simulate(1000 * MS);
    // run_actor checks where they are; two share CPU 1 although one is free.
    assert_near(a->e.run_ticks, 500 * MS, SLICE);
    assert_near(b->e.run_ticks, 500 * MS, SLICE);
    assert_near(c->e.run_ticks, 1000 * MS, SLICE);
    finish();
}

// A new mask holds from the next turn on.
static void test_affinity_changes(void **state)
{
    (void)state;
    start(2);
    struct actor *a[4];
    for (unsigned i = 0; i < 4; i++) {
        a[i] = actor(NEVER, 0);
        a[i]->e.cpu_mask = i < 1 ? 1 : 2;
        sched_wake(&a[i]->e);
    }
    simulate(200 * MS);
    struct actor *moved = a[1];
    while (moved->e.state != SCHED_RUNNABLE)
        moved = moved == a[3] ? a[1] : moved + 1;
    assert_int_equal(moved->e.last_cpu, 1);
    sched_set_affinity(&moved->e, 1);
    uint64_t before = moved->e.run_ticks;
    simulate(500 * MS);
    assert_int_equal(moved->e.last_cpu, 0);
    assert_true(moved->e.run_ticks - before > 200 * MS);
    // Also one that runs, at once, and one that sleeps.
    assert_true(a[0]->inside || moved->inside);
    struct actor *here = a[0]->inside ? a[0] : moved;
    sched_set_affinity(&here->e, 2);
    simulate(HAND_OVER);
    assert_false(here->inside && here->e.cpu == 0);
    struct actor *asleep = actor(MS, NEVER);
    sched_set_affinity(&asleep->e, 2);
    simulate(MS);
    assert_int_equal(asleep->runs, 0);
    sched_wake(&asleep->e);
    simulate(50 * MS);
    assert_true(asleep->runs != 0);
    assert_int_equal(asleep->e.last_cpu, 1);
    finish();
}

// Who is driven from its CPU by one that may run only there finds the idle one.
static void test_displaced(void **state)
{
    (void)state;
    start(2);
    struct actor *free_one = actor(NEVER, 0), *bound = actor(NEVER, 0);
    bound->e.cpu_mask = 1;
    sched_wake(&free_one->e);
    simulate(50 * MS);
    bound->e.cpu_mask = UINT64_C(1) << free_one->e.last_cpu;
    sched_wake(&bound->e);
    uint64_t one = free_one->e.run_ticks, two = bound->e.run_ticks;
    simulate(100 * MS);
    assert_near(free_one->e.run_ticks - one, 100 * MS, SLICE);
    assert_near(bound->e.run_ticks - two, 100 * MS, SLICE);
    finish();
}

// What happens on other CPUs is nothing to those that are bound to this one: neither a sleeper that
// wakes up beside its equal, nor the equal, is kept waiting for what others are ahead.
static void test_affinity_does_not_starve(void **state)
{
    (void)state;
    for (unsigned side = 0; side < 2; side++) {
        start(2);
        struct actor *alone = actor(NEVER, 0);
        struct actor *pair[2] = {actor(NEVER, 0), actor(NEVER, 0)};
        alone->e.cpu_mask = 2;
        pair[0]->e.cpu_mask = pair[1]->e.cpu_mask = 1;
        sched_wake(&alone->e);
        sched_wake(&pair[0]->e);
        sched_wake(&pair[1]->e);
        simulate(2000 * MS); // by now `alone` is a second ahead
        struct actor *sleeper = side == 0 ? pair[0] : actor(NEVER, 0);
        struct actor *equal = side == 0 ? pair[1] : alone;
        if (side == 0) {
            sleeper->burst = sleeper->left = 0;
            sleeper->pause = 5 * MS;
            while (sleeper->e.state != SCHED_BLOCKED)
                simulate(MS);
            sleeper->burst = sleeper->left = NEVER;
        } else {
            sleeper->e.cpu_mask = 2;
            sched_wake(&sleeper->e);
        }
        simulate(10 * MS);
        uint64_t one = sleeper->e.run_ticks, two = equal->e.run_ticks;
        simulate(200 * MS);
        assert_near(sleeper->e.run_ticks - one, 100 * MS, 2 * SLICE);
        assert_near(equal->e.run_ticks - two, 100 * MS, 2 * SLICE);
        finish();
    }
}

int main(int argc, char **argv)
{
    static const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_affinity),
        cmocka_unit_test(test_affinity_changes),
        cmocka_unit_test(test_displaced),
        cmocka_unit_test(test_affinity_does_not_starve),
    };
    if (argc > 1)
        cmocka_set_test_filter(argv[1]);
    return cmocka_run_group_tests(tests, sched_boot, sched_power_off);
}
