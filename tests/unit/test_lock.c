// SPDX-License-Identifier: BSD-2-Clause
// Ticket locks: order of tickets, wrap-around, and the rank check of debug builds.
// sources: kernel/lock.c
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "fake.h"
#include "kernel/lock.h"
#include "kernel/percpu.h"

static int set_up(void **state)
{
    (void)state;
    fake_machine(0, 2);
    return 0;
}

static void test_counts(void **state)
{
    (void)state;
    struct spinlock vm = SPINLOCK_INIT("vm", RANK_VM);
    struct spinlock frames;
    spin_init(&frames, "frames", RANK_FRAMES);
    assert_true(spin_none_held());
    spin_lock(&vm);
    spin_lock(&frames);
    assert_false(spin_none_held());
    assert_int_equal(this_cpu()->lock_ranks, 1u << RANK_VM | 1u << RANK_FRAMES);
    fake_set_cpu(1);
    assert_true(spin_none_held());
    fake_set_cpu(0);
    spin_unlock(&vm); // any order
    spin_unlock(&frames);
    assert_true(spin_none_held());
    assert_int_equal(this_cpu()->lock_ranks, 0);
}

static void test_tickets_wrap(void **state)
{
    (void)state;
    struct spinlock lock = SPINLOCK_INIT("wrap", RANK_LOG);
    for (unsigned i = 0; i < 70000; i++) {
        spin_lock(&lock);
        assert_false(spin_trylock(&lock));
        spin_unlock(&lock);
    }
    assert_int_equal(lock.next, (uint16_t)70000);
    assert_int_equal(lock.owner, lock.next);
}

static struct spinlock contended = SPINLOCK_INIT("contended", RANK_SCHED);
static unsigned turns;

// While CPU 0 waits, CPU 1 lets go.
static void release_on_cpu1(void)
{
    if (++turns == 3) {
        fake_set_cpu(1);
        spin_unlock(&contended);
        fake_set_cpu(0);
    }
}

static void test_waits_for_owner(void **state)
{
    (void)state;
    fake_set_cpu(1);
    spin_lock(&contended);
    fake_set_cpu(0);
    assert_false(spin_trylock(&contended));
    fake_relax_hook = release_on_cpu1;
    spin_lock(&contended);
    fake_relax_hook = NULL;
    assert_int_equal(turns, 3);
    assert_int_equal(cpus[0].locks_held, 1);
    assert_int_equal(cpus[1].locks_held, 0);
    spin_unlock(&contended);
}

static void test_rank_order(void **state)
{
    (void)state;
    struct spinlock vm = SPINLOCK_INIT("vm", RANK_VM);
    struct spinlock frames = SPINLOCK_INIT("frames", RANK_FRAMES);
    spin_lock(&frames);
    assert_true(fake_expect_panic(spin_lock(&vm)));
    assert_true(fake_expect_panic(spin_lock_nested(&vm)));
    // Nobody waits in a trylock.
    assert_true(spin_trylock(&vm));
    spin_unlock(&vm);
    spin_unlock(&frames);
    spin_lock(&vm);
    spin_lock(&frames);
    spin_unlock(&frames);
    spin_unlock(&vm);
}

static void test_equal_rank(void **state)
{
    (void)state;
    struct spinlock a = SPINLOCK_INIT("a", RANK_GFN), b = SPINLOCK_INIT("b", RANK_GFN);
    struct spinlock vm = SPINLOCK_INIT("vm", RANK_VM);
    spin_lock(&a);
    assert_true(fake_expect_panic(spin_lock(&b)));
    assert_true(fake_expect_panic(spin_lock(&a))); // itself: would wait for ever
    spin_lock_nested(&b);
    spin_unlock(&a);
    // b is still held, so the rank is too.
    assert_true(fake_expect_panic(spin_lock(&vm)));
    spin_unlock(&b);
    spin_lock(&vm);
    spin_unlock(&vm);
}

static void test_wrong_release(void **state)
{
    (void)state;
    struct spinlock lock = SPINLOCK_INIT("lock", RANK_VM);
    assert_true(fake_expect_panic(spin_unlock(&lock)));
    spin_lock(&lock);
    fake_set_cpu(1);
    assert_true(fake_expect_panic(spin_unlock(&lock)));
    fake_set_cpu(0);
    spin_unlock(&lock);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup(test_counts, set_up),
        cmocka_unit_test_setup(test_tickets_wrap, set_up),
        cmocka_unit_test_setup(test_waits_for_owner, set_up),
        cmocka_unit_test_setup(test_rank_order, set_up),
        cmocka_unit_test_setup(test_equal_rank, set_up),
        cmocka_unit_test_setup(test_wrong_release, set_up),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
