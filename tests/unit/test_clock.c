// SPDX-License-Identifier: BSD-2-Clause
// sources: vm/clock.c
// Guest time and its timers.
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>

#include <cmocka.h>

#include "fake.h"
#include "vm/clock.h"
#include <arch/cpu.h>

__extension__ typedef unsigned __int128 u128;

static void test_freeze(void **state)
{
    (void)state;
    struct vclock c;
    fake_tsc = 5000000;
    vclock_init(&c, 1000);
    assert_int_equal(vclock_now(&c), 0);
    assert_true(vclock_to_host(&c, 100) == UINT64_MAX);
    vclock_thaw(&c);
    fake_tsc += 1000;
    uint64_t now = vclock_now(&c);
    assert_in_range(now, 1000, 1003);
    assert_true(vclock_now(&c) > now);
    vclock_freeze(&c);
    now = vclock_now(&c);
    fake_tsc += 1000000;
    vclock_freeze(&c); // twice: nothing happens
    assert_int_equal(vclock_now(&c), now);
    vclock_thaw(&c);
    vclock_thaw(&c);
    assert_in_range(vclock_now(&c), now, now + 3); // the pause is not in guest time
}

static void test_to_host(void **state)
{
    (void)state;
    struct vclock c;
    fake_tsc = 1 << 20;
    vclock_init(&c, 1000);
    vclock_thaw(&c);
    uint64_t now = vclock_now(&c);
    assert_int_equal(vclock_to_host(&c, now), fake_tsc);
    assert_int_equal(vclock_to_host(&c, now + 77), fake_tsc + 77);
    assert_true(vclock_to_host(&c, UINT64_MAX) == UINT64_MAX);
    assert_true(vclock_to_host(&c, UINT64_MAX - 1) == UINT64_MAX); // does not wrap into the past
    c.offset = 1000;                                               // guest ahead of host
    assert_int_equal(vclock_to_host(&c, 1500), 500);
    assert_int_equal(vclock_to_host(&c, 999), 0);
}

static uint64_t exact(uint64_t t, uint64_t from, uint64_t to)
{
    // t * to fits 128 bits
    u128 value = (u128)t * to / from;
    return value > UINT64_MAX ? UINT64_MAX : (uint64_t)value;
}

static uint64_t random64(void)
{
    uint64_t value = 0;
    for (int i = 0; i < 5; i++)
        value = value << 15 ^ (uint64_t)rand();
    return value >> (unsigned)(rand() % 64);
}

static void test_scale(void **state)
{
    (void)state;
    const uint64_t tsc = 3500000000;
    assert_int_equal(vclock_scale(tsc * 86400 * 365, tsc, 1193182),
                     UINT64_C(1193182) * 86400 * 365);
    assert_true(vclock_scale(UINT64_MAX, 1, 2) == UINT64_MAX);
    assert_true(vclock_scale(UINT64_MAX, UINT64_MAX, UINT64_MAX) == UINT64_MAX);
    assert_true(vclock_scale(UINT64_MAX - 1, UINT64_MAX, UINT64_MAX) == UINT64_MAX - 1);
    assert_int_equal(vclock_scale(5, 1, 0), 0);
    assert_true(fake_expect_panic(vclock_scale(1, 0, 1)));
    srand(2);
    for (int i = 0; i < 200000; i++) {
        uint64_t t = random64(), from = random64() | 1, to = random64();
        assert_true(vclock_scale(t, from, to) == exact(t, from, to));
    }
}

struct clockwork {
    struct vtimer timer;
    struct vtimer_queue *queue;
    unsigned fired;
    uint64_t last;
    uint64_t rearm; // ticks after now, UINT64_MAX: not
};

static void fire(void *device, uint64_t now)
{
    struct clockwork *w = device;
    w->fired++;
    w->last = now;
    if (w->rearm != UINT64_MAX)
        vtimer_arm(w->queue, &w->timer, now + w->rearm);
}

static void test_timers(void **state)
{
    (void)state;
    struct vtimer_queue q;
    struct clockwork w[3] = {0};
    vtimer_queue_init(&q);
    for (int i = 0; i < 3; i++) {
        w[i].queue = &q;
        w[i].rearm = UINT64_MAX;
        vtimer_add(&q, &w[i].timer, fire, &w[i]);
    }
    vtimer_add(&q, &w[1].timer, fire, &w[1]); // again: no ring
    assert_true(q.earliest == UINT64_MAX);
    vtimer_run(&q, UINT64_MAX); // off is off, even at the end of time
    assert_int_equal(w[0].fired + w[1].fired + w[2].fired, 0);
    vtimer_arm(&q, &w[0].timer, 300);
    vtimer_arm(&q, &w[1].timer, 100);
    vtimer_arm(&q, &w[2].timer, 200);
    assert_int_equal(q.earliest, 100);
    vtimer_arm(&q, &w[1].timer, 250); // the earliest moves back
    assert_int_equal(q.earliest, 200);
    vtimer_run(&q, 199);
    assert_int_equal(w[2].fired, 0);
    vtimer_run(&q, 250);
    assert_int_equal(w[1].fired, 1);
    assert_int_equal(w[2].fired, 1);
    assert_int_equal(w[0].fired, 0);
    assert_int_equal(q.earliest, 300);
    vtimer_arm(&q, &w[0].timer, UINT64_MAX);
    assert_true(q.earliest == UINT64_MAX);
    // one that re-arms for now fires once per call, and the queue says it is due again
    w[0].rearm = 0;
    vtimer_arm(&q, &w[0].timer, 400);
    vtimer_run(&q, 500);
    assert_int_equal(w[0].fired, 1);
    assert_int_equal(q.earliest, 500);
    vtimer_run(&q, 500);
    assert_int_equal(w[0].fired, 2);
}

static void test_timers_random(void **state)
{
    (void)state;
    enum { COUNT = 8 };
    struct vtimer_queue q;
    struct clockwork w[COUNT] = {0};
    uint64_t model[COUNT];
    vtimer_queue_init(&q);
    for (int i = 0; i < COUNT; i++) {
        w[i].queue = &q;
        w[i].rearm = i % 2 != 0 ? (uint64_t)(i * 10) : UINT64_MAX;
        model[i] = UINT64_MAX;
        vtimer_add(&q, &w[i].timer, fire, &w[i]);
    }
    srand(3);
    uint64_t now = 0;
    for (int step = 0; step < 20000; step++) {
        int i = rand() % COUNT;
        if (rand() % 3 != 0) {
            model[i] = rand() % 5 == 0 ? UINT64_MAX : now + (uint64_t)(rand() % 100);
            vtimer_arm(&q, &w[i].timer, model[i]);
        } else {
            now += (uint64_t)(rand() % 60);
            unsigned before[COUNT];
            for (int j = 0; j < COUNT; j++)
                before[j] = w[j].fired;
            vtimer_run(&q, now);
            for (int j = 0; j < COUNT; j++) {
                bool due = model[j] <= now;
                assert_int_equal(w[j].fired - before[j], due ? 1 : 0);
                if (due)
                    model[j] = w[j].rearm == UINT64_MAX ? UINT64_MAX : now + w[j].rearm;
            }
        }
        uint64_t earliest = UINT64_MAX;
        for (int j = 0; j < COUNT; j++)
            earliest = MIN(earliest, model[j]);
        assert_true(q.earliest == earliest);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_freeze),        cmocka_unit_test(test_to_host),
        cmocka_unit_test(test_scale),         cmocka_unit_test(test_timers),
        cmocka_unit_test(test_timers_random),
    };
    return cmocka_run_group_tests_name("clock", tests, NULL, NULL);
}
