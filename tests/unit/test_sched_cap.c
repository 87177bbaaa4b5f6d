// SPDX-License-Identifier: BSD-2-Clause
// sources: tests/unit/sched_machine.c kernel/sched.c kernel/sched_group.c kernel/lock.c
// libs: -Wl,--wrap=spin_lock
// Caps of groups, and what becomes of a group whose cap holds it back.
#include "sched_machine.h"

// The cap holds over every window and in the sum, whatever the number of vCPUs and CPUs, also
// while CPUs are idle; what is kept from them is counted as waiting.
static void test_cap(void **state)
{
    (void)state;
    static const struct {
        unsigned cpus, members;
        uint32_t cap;
    } cases[] = {{1, 1, 25}, {1, 4, 25},  {2, 4, 25},  {4, 4, 25},
                 {2, 1, 50}, {2, 2, 150}, {4, 8, 250}, {2, 3, 1}};
    for (unsigned i = 0; i < ARRAY_SIZE(cases); i++) {
        start(cases[i].cpus);
        struct sched_group *g = group(100, cases[i].cap);
        for (unsigned k = 0; k < cases[i].members; k++)
            member(g, NEVER, 0);
        simulate(2 * MS);
        uint64_t before = ran(g), last = before;
        for (unsigned k = 0; k < 40; k++) {
            simulate(100 * MS);
            // A window may be full at its end, the next one at its beginning.
            assert_true(ran(g) - last <= 2 * cases[i].cap * MS + MS);
            last = ran(g);
        }
        assert_near(last - before, 40 * cases[i].cap * MS, 2 * cases[i].cap * MS + 40 * 200 * US);
        for (unsigned k = 0; k < actor_count; k++) {
            struct sched_entity *e = &actors[k].e;
            uint64_t now = fake_tsc - e->since;
            uint64_t waits = e->wait_ticks + (actors[k].inside ? 0 : now);
            assert_near(waits + e->run_ticks + (actors[k].inside ? now : 0), 4002 * MS, 3 * MS);
            assert_int_equal(e->sleep_ticks / MS, 0);
        }
        // Live: lifted, and back.
        sched_group_set(g, 100, 0);
        before = ran(g);
        simulate(1000 * MS);
        assert_near(ran(g) - before, 1000 * MS * MIN(cases[i].cpus, cases[i].members), 20 * MS);
        sched_group_set(g, 100, 10);
        simulate(200 * MS);
        before = ran(g);
        simulate(1000 * MS);
        assert_near(ran(g) - before, 100 * MS, 22 * MS);
        finish_groups();
    }
}

// A capped group leaves the rest to the others; one that sleeps now and then gets its cap, too.
static void test_cap_beside_others(void **state)
{
    (void)state;
    start(2);
    struct sched_group *capped = group(400, 25), *other = group(100, 0);
    for (unsigned i = 0; i < 4; i++)
        member(capped, NEVER, 0);
    for (unsigned i = 0; i < 2; i++)
        member(other, NEVER, 0);
    struct actor *console = actor(50 * US, 5 * MS);
    sched_wake(&console->e);
    simulate(4000 * MS);
    assert_near(ran(capped), 1000 * MS, 60 * MS);
    assert_near(ran(other), 7000 * MS, 150 * MS);
    assert_true(console->runs > 600);
    finish_groups();
    start(1);
    capped = group(100, 50);
    member(capped, MS, MS / 2); // would use two thirds
    simulate(4000 * MS);
    assert_near(ran(capped), 2000 * MS, 120 * MS);
    finish_groups();
}

// Capped ones come and go in every state.
static void test_cap_and_removal(void **state)
{
    (void)state;
    start(2);
    struct sched_group *g = group(100, 10);
    struct actor *a[3];
    for (unsigned i = 0; i < 3; i++)
        a[i] = member(g, NEVER, 0);
    simulate(60 * MS); // the budget is used up
    assert_true(g->throttled);
    assert_int_equal(g->active, 3);
    for (unsigned i = 0; i < 3; i++) {
        assert_int_equal(sched_remove(&a[i]->e), 0);
        a[i]->known = false;
    }
    assert_int_equal(g->active, 0);
    sched_group_remove(g);
    g->weight = 0;
    simulate(300 * MS);
    for (unsigned c = 0; c < online; c++)
        assert_int_equal(sim[c].state, SIM_HALTED);
    finish_groups();
}

int main(int argc, char **argv)
{
    static const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_cap),
        cmocka_unit_test(test_cap_beside_others),
        cmocka_unit_test(test_cap_and_removal),
    };
    if (argc > 1)
        cmocka_set_test_filter(argv[1]);
    return cmocka_run_group_tests(tests, sched_boot, sched_power_off);
}
