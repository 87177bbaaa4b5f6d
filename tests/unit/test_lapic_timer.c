// SPDX-License-Identifier: BSD-2-Clause
// The LAPIC's timer (SDM vol. 3, 11.5.4).

// sources: vm/clock.c
// sources: devices/lapic.c devices/lapic_interrupt.c devices/lapic_virtual.c devices/lapic_timer.c
// vm/clock.c

#include "lapic_machine.h"

#define VECTOR   0xec
#define MASKED   0x10000u
#define PERIODIC 0x20000u
#define DEADLINE 0x40000u

#define DIVIDE_1 0xbu
#define MINIMUM  (HZ / 10000)

static void start_timer(uint32_t lvt, uint32_t divide, uint32_t count)
{
    start(false);
    wr(0x320, lvt);
    wr(0x3e0, divide);
    wr(0x380, count);
}

// Takes the timer's interrupt; false when there is none.
static bool take(void)
{
    if (lapic_pending(&lapic) != VECTOR)
        return false;
    lapic_accept(&lapic, VECTOR);
    wr(0xb0, 0);
    return true;
}

static void one_shot(void **state)
{
    (void)state;
    start_timer(VECTOR, DIVIDE_1, 5000);
    assert_int_equal(rd(0x380), 5000);
    assert_int_equal(rd(0x390), 5000);
    assert_int_equal(timers.earliest, 6000);
    set_time(1001);
    assert_int_equal(rd(0x390), 4999);
    set_time(5999);
    assert_int_equal(rd(0x390), 1);
    assert_false(take());
    set_time(6000);
    assert_int_equal(rd(0x390), 0);
    assert_int_equal(rd(0x380), 5000);
    assert_true(take());
    assert_int_equal(changed_count, 1);
    assert_true(timers.earliest == UINT64_MAX);
    set_time(1000000000);
    assert_false(take());
    // Zero stops, another value starts again.
    wr(0x380, 1000);
    wr(0x380, 0);
    assert_int_equal(rd(0x390), 0);
    assert_true(timers.earliest == UINT64_MAX);
    wr(0x380, 0xffffffff);
    assert_int_equal(timers.earliest, 1000000000 + UINT64_C(0xffffffff));
}

static void divisors(void **state)
{
    (void)state;
    static const uint8_t codes[8] = {0xb, 0x0, 0x1, 0x2, 0x3, 0x8, 0x9, 0xa};
    for (unsigned i = 0; i < 8; i++) {
        start_timer(VECTOR, codes[i], 1000);
        assert_int_equal(timers.earliest, 1000 + (UINT64_C(1000) << i));
        set_time(1000 + (UINT64_C(300) << i));
        assert_int_equal(rd(0x390), 700);
        set_time(1001 + (UINT64_C(300) << i)); // rounded up: zero only at the very end
        assert_int_equal(rd(0x390), i == 0 ? 699 : 700);
    }
    // A change while it runs keeps the count.
    start_timer(VECTOR, DIVIDE_1, 1000);
    set_time(1400);
    wr(0x3e0, 0xa); // 128
    assert_int_equal(rd(0x390), 600);
    assert_int_equal(timers.earliest, 1400 + 600 * 128);
    set_time(1400 + 100 * 128);
    assert_int_equal(rd(0x390), 500);
    wr(0x3e0, DIVIDE_1);
    assert_int_equal(timers.earliest, 1400 + 100 * 128 + 500);
}

static void periodic(void **state)
{
    (void)state;
    start_timer(VECTOR | PERIODIC, DIVIDE_1, 1000000);
    for (uint64_t n = 1; n <= 10; n++) {
        set_time(999 + n * 1000000);
        assert_false(take());
        set_time(1000 + n * 1000000);
        assert_true(take());
        assert_int_equal(rd(0x390), 1000000);
    }
    // Late: one interrupt for all that went by, and the phase stays.
    set_time(1000 + 57 * UINT64_C(1000000) + 400000);
    assert_true(take());
    assert_false(take());
    assert_int_equal(rd(0x390), 600000);
    assert_int_equal(timers.earliest, 1000 + 58 * UINT64_C(1000000));
    // Years later as well.
    set_time(UINT64_C(1) << 62);
    assert_true(take());
    assert_true(timers.earliest > clock_.frozen_at);
    assert_true(timers.earliest <= clock_.frozen_at + 1000000);
}

static void shortest_period(void **state)
{
    (void)state;
    start_timer(VECTOR | PERIODIC, DIVIDE_1, 1);
    assert_int_equal(timers.earliest, 1000 + MINIMUM);
    unsigned ticks = 0;
    for (uint64_t t = 1000; t <= 1000 + HZ / 100; t += 100) {
        set_time(t);
        ticks += take();
        assert_int_equal(rd(0x390), 1);
    }
    assert_int_equal(ticks, 100);
    // A one-shot may be as short as it likes: it does not come again by itself.
    start_timer(VECTOR, DIVIDE_1, 1);
    assert_int_equal(timers.earliest, 1001);
    // Switching a short one-shot to periodic is bounded as well.
    start_timer(VECTOR, DIVIDE_1, 10);
    wr(0x320, VECTOR | PERIODIC);
    set_time(1010);
    assert_true(take());
    assert_int_equal(timers.earliest, 1010 + MINIMUM);
}

static void masked(void **state)
{
    (void)state;
    start_timer(VECTOR | MASKED, DIVIDE_1, 5000);
    set_time(3000);
    assert_int_equal(rd(0x390), 3000);
    set_time(7000);
    assert_int_equal(rd(0x390), 0);
    wr(0x320, VECTOR);
    set_time(8000);
    assert_false(take()); // lost while masked
    // Periodic: runs on, wakes nobody, and is in phase when unmasked.
    start_timer(VECTOR | PERIODIC | MASKED, DIVIDE_1, 1000000);
    assert_true(timers.earliest == UINT64_MAX);
    set_time(1000 + 2500000);
    assert_int_equal(rd(0x390), 500000);
    wr(0x320, VECTOR | PERIODIC);
    assert_false(take());
    assert_int_equal(timers.earliest, 1000 + 3000000);
    set_time(1000 + 3000000);
    assert_true(take());
    wr(0xf0, 0xff); // software disable masks it
    assert_true(timers.earliest == UINT64_MAX);
    set_time(1000 + 4500000);
    assert_int_equal(rd(0x390), 500000);
}

static uint64_t deadline(void)
{
    uint64_t value = 1;
    assert_int_equal(lapic_read_msr(&lapic, 0x6e0, &value), 0);
    return value;
}

static void set_deadline(uint64_t value)
{
    assert_int_equal(lapic_write_msr(&lapic, 0x6e0, value), 0);
}

static void tsc_deadline(void **state)
{
    (void)state;
    start(false);
    set_deadline(5000); // another mode: ignored
    assert_int_equal(deadline(), 0);
    wr(0x320, VECTOR | DEADLINE);
    set_deadline(5000);
    assert_int_equal(deadline(), 5000);
    assert_int_equal(timers.earliest, 5000);
    wr(0x380, 77); // the count is ignored in this mode
    assert_int_equal(rd(0x380), 0);
    assert_int_equal(rd(0x390), 0);
    set_time(4999);
    assert_false(take());
    set_time(5000);
    assert_int_equal(deadline(), 0);
    assert_true(take());
    set_deadline(4000); // the past: at once
    assert_true(take());
    assert_int_equal(deadline(), 0);
    set_deadline(clock_.frozen_at); // now
    assert_true(take());
    set_deadline(9000);
    set_deadline(0); // disarms
    assert_true(timers.earliest == UINT64_MAX);
    set_time(10000);
    assert_false(take());
    set_deadline(UINT64_MAX); // never
    set_time(UINT64_MAX - 1);
    assert_false(take());
    // Masked: no interrupt, but the deadline is used up.
    start(false);
    wr(0x320, VECTOR | DEADLINE | MASKED);
    set_deadline(2000);
    set_time(3000);
    assert_false(take());
    assert_int_equal(deadline(), 0);
    wr(0x320, VECTOR | DEADLINE);
    assert_false(take());
    // By MSR in x2APIC mode
    start(true);
    assert_int_equal(lapic_write_msr(&lapic, 0x832, VECTOR | DEADLINE), 0);
    set_deadline(500);
    assert_int_equal(lapic_pending(&lapic), VECTOR);
}

static void mode_switches(void **state)
{
    (void)state;
    // To and from TSC deadline disarms.
    start_timer(VECTOR, DIVIDE_1, 5000);
    wr(0x320, VECTOR | DEADLINE);
    assert_true(timers.earliest == UINT64_MAX);
    set_deadline(7000);
    wr(0x320, VECTOR);
    assert_true(timers.earliest == UINT64_MAX);
    assert_int_equal(deadline(), 0);
    set_time(10000);
    assert_false(take());
    // One-shot and periodic share the count.
    start_timer(VECTOR, DIVIDE_1, 1000000);
    set_time(1000 + 400000);
    wr(0x320, VECTOR | PERIODIC);
    assert_int_equal(rd(0x390), 600000);
    set_time(1000 + 1000000);
    assert_true(take());
    set_time(1000 + 2000000);
    assert_true(take());
    wr(0x320, VECTOR);
    set_time(1000 + 3000000);
    assert_true(take());
    set_time(1000 + 4000000);
    assert_false(take());
    wr(0x320, VECTOR | PERIODIC); // ran out: nothing to repeat
    assert_true(timers.earliest == UINT64_MAX);
    // Reserved mode: stands still.
    wr(0x320, VECTOR | PERIODIC | DEADLINE);
    wr(0x380, 1000);
    assert_true(timers.earliest == UINT64_MAX);
    assert_int_equal(rd(0x390), 0);
}

// The guest writes registers while something is due that nobody has looked at yet.
static void due_before_the_write(void **state)
{
    (void)state;
    start_timer(VECTOR, DIVIDE_1, 5000);
    clock_.frozen_at = 6000;
    wr(0x380, 9000);
    assert_true(take());
    assert_int_equal(timers.earliest, 15000);
    clock_.frozen_at = 15000;
    wr(0x320, VECTOR | MASKED);
    assert_true(take());
    start(false);
    wr(0x320, VECTOR | DEADLINE);
    set_deadline(2000);
    clock_.frozen_at = 2001;
    assert_int_equal(deadline(), 0);
    set_deadline(3000);
    assert_true(take());
    assert_int_equal(timers.earliest, 3000);
    clock_.frozen_at = 3000;
    wr(0xf0, 0xff);
    assert_int_equal(lapic_pending(&lapic), VECTOR);
}

static void reset_stops(void **state)
{
    (void)state;
    start_timer(VECTOR | PERIODIC, DIVIDE_1, 1000000);
    lapic_reset(&lapic);
    assert_true(timers.earliest == UINT64_MAX);
    start_timer(VECTOR | PERIODIC, DIVIDE_1, 1000000);
    lapic_reset_by_init(&lapic);
    assert_true(timers.earliest == UINT64_MAX);
    start_timer(VECTOR | PERIODIC, DIVIDE_1, 1000000);
    assert_int_equal(lapic_write_msr(&lapic, BASE, LAYOUT_LAPIC), 0);
    assert_true(timers.earliest == UINT64_MAX);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(one_shot),      cmocka_unit_test(divisors),
        cmocka_unit_test(periodic),      cmocka_unit_test(shortest_period),
        cmocka_unit_test(masked),        cmocka_unit_test(tsc_deadline),
        cmocka_unit_test(mode_switches), cmocka_unit_test(due_before_the_write),
        cmocka_unit_test(reset_stops),
    };
    return cmocka_run_group_tests_name("lapic_timer", tests, NULL, NULL);
}
