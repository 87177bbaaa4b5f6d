// SPDX-License-Identifier: BSD-2-Clause
// sources: devices/pic.c devices/pit.c devices/rtc.c devices/calendar.c devices/uart.c

// sources: devices/power_control.c vm/bus.c vm/clock.c

// The 8254: counters and OUT pins of every mode against guest time, the sequences of Linux's
// calibration and clock event driver, catch-up after starvation, and storms.
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>

#include <cmocka.h>

#include "device_machine.h"

// 1000 guest ticks per clock of the PIT: a round number keeps the expectations exact.
#define CLOCK UINT64_C(1000)
#define HZ    (CLOCK * PIT_HZ)

static struct device_machine m;

static int fresh(void **state)
{
    (void)state;
    return machine_init(&m, HZ, 0);
}

static void program(unsigned channel, unsigned mode, uint16_t count)
{
    machine_out(&m, 0x43, (uint8_t)(channel << 6 | 0x30 | mode << 1));
    machine_out(&m, (uint16_t)(0x40 + channel), (uint8_t)count);
    machine_out(&m, (uint16_t)(0x40 + channel), (uint8_t)(count >> 8));
}

static uint16_t read_counter(unsigned channel)
{
    machine_out(&m, 0x43, (uint8_t)(channel << 6)); // latch
    uint16_t value = machine_in(&m, (uint16_t)(0x40 + channel));
    return (uint16_t)(value | machine_in(&m, (uint16_t)(0x40 + channel)) << 8);
}

static uint8_t read_status(unsigned channel)
{
    machine_out(&m, 0x43, (uint8_t)(0xe0 | 2u << channel));
    return machine_in(&m, (uint16_t)(0x40 + channel));
}

static void clocks(uint64_t n)
{
    m.clock.frozen_at += n * CLOCK;
}

static bool out2(void)
{
    return (machine_in(&m, 0x61) & 0x20) != 0;
}

static void test_mode_0_and_gate(void **state)
{
    (void)state;
    machine_out(&m, 0x61, 0x01);
    program(2, 0, 100);
    assert_false(out2());
    assert_int_equal(read_counter(2), 100);
    clocks(60);
    assert_int_equal(read_counter(2), 40);
    machine_out(&m, 0x61, 0x00); // the gate stops it
    clocks(1000);
    assert_int_equal(read_counter(2), 40);
    machine_out(&m, 0x61, 0x01);
    clocks(39);
    assert_int_equal(read_counter(2), 1);
    assert_false(out2());
    clocks(1);
    assert_true(out2());
    clocks(1);
    assert_int_equal(read_counter(2), 0xffff); // goes on
    clocks(0x10000);
    assert_true(out2());
    machine_out(&m, 0x42, 10); // the first byte of a new count stops it
    assert_false(out2());
    assert_int_equal(read_status(2), 0x70);
}

// arch/x86/kernel/tsc.c, quick_pit_calibrate(): the high byte must count down, read without latch.
static void test_linux_quick_calibration(void **state)
{
    (void)state;
    machine_out(&m, 0x61, (uint8_t)((machine_in(&m, 0x61) & ~0x02) | 0x01));
    machine_out(&m, 0x43, 0xb0);
    machine_out(&m, 0x42, 0xff);
    machine_out(&m, 0x42, 0xff);
    for (unsigned high = 0xff; high > 0x80; high--) {
        machine_in(&m, 0x42);
        assert_int_equal(machine_in(&m, 0x42), high);
        clocks(256);
    }
    // pit_calibrate_tsc(): waits for OUT after 10 ms
    uint64_t start = m.clock.frozen_at;
    machine_out(&m, 0x43, 0xb0);
    machine_out(&m, 0x42, (PIT_HZ / 100) & 0xff);
    machine_out(&m, 0x42, (PIT_HZ / 100) >> 8);
    while (!out2())
        clocks(1);
    assert_int_equal((m.clock.frozen_at - start) / CLOCK, PIT_HZ / 100);
}

static void test_mode_1_and_5(void **state)
{
    (void)state;
    program(2, 1, 50);
    assert_true(out2());
    assert_int_equal(read_status(2) & 0x40, 0x40); // waits for its trigger
    clocks(100);
    assert_true(out2());
    machine_out(&m, 0x61, 1);
    assert_false(out2());
    clocks(20);
    machine_out(&m, 0x61, 0); // a falling gate changes nothing
    clocks(29);
    assert_false(out2());
    assert_int_equal(read_counter(2), 1);
    clocks(1);
    assert_true(out2());
    machine_out(&m, 0x61, 1); // again
    assert_false(out2());
    program(2, 5, 50);
    machine_out(&m, 0x61, 0);
    machine_out(&m, 0x61, 1);
    clocks(49);
    assert_true(out2());
    clocks(1);
    assert_false(out2());
    clocks(1);
    assert_true(out2());
}

static void test_mode_2_and_3(void **state)
{
    (void)state;
    machine_out(&m, 0x61, 1);
    program(2, 2, 5);
    static const uint16_t counts2[] = {5, 4, 3, 2, 1, 5, 4};
    for (unsigned i = 0; i < ARRAY_SIZE(counts2); i++, clocks(1)) {
        assert_int_equal(read_counter(2), counts2[i]);
        assert_int_equal(out2(), counts2[i] != 1);
    }
    machine_out(&m, 0x61, 0); // OUT high at once, count held
    assert_true(out2());
    machine_out(&m, 0x61, 1); // and reloaded
    assert_int_equal(read_counter(2), 5);
    program(2, 3, 7); // the odd one: four high, three low, counting by two
    static const uint16_t counts3[] = {6, 4, 2, 0, 6, 4, 2, 6};
    for (unsigned i = 0; i < ARRAY_SIZE(counts3); i++, clocks(1)) {
        assert_int_equal(read_counter(2), counts3[i]);
        assert_int_equal(out2(), i % 7 < 4);
    }
    program(2, 3, 0); // 65536
    assert_int_equal(read_counter(2), 0);
    clocks(1);
    assert_int_equal(read_counter(2), 0xfffe);
    clocks(0x7fff);
    assert_false(out2());
    program(2, 6, 10); // 6 is 2
    assert_int_equal(read_status(2) & 0x0e, 0x04);
}

static void test_mode_4(void **state)
{
    (void)state;
    program(0, 4, 1000);
    machine_advance(&m, 1000 * CLOCK);
    assert_int_equal(m.edges[0], 0);
    machine_advance(&m, 2 * CLOCK);
    assert_int_equal(m.edges[0], 1);
    machine_advance(&m, 1000000 * CLOCK);
    assert_int_equal(m.edges[0], 1);
    assert_false(m.level[0]);
}

static void test_access_and_latches(void **state)
{
    (void)state;
    machine_out(&m, 0x43, 0x54); // channel 1, low byte only, mode 2
    machine_out(&m, 0x41, 200);
    clocks(50);
    assert_int_equal(machine_in(&m, 0x41), 150);
    machine_out(&m, 0x43, 0x64); // high byte only
    machine_out(&m, 0x41, 0x80);
    assert_int_equal(machine_in(&m, 0x41), 0x80);
    program(1, 2, 0x1234);
    machine_out(&m, 0x43, 0x40);
    clocks(0x200);
    machine_out(&m, 0x43, 0x40); // the first latch holds
    assert_int_equal(machine_in(&m, 0x41), 0x34);
    assert_int_equal(machine_in(&m, 0x41), 0x12);
    assert_int_equal(read_counter(1), 0x1034);
    machine_out(&m, 0x43, 0xc4); // read back: count and status; the status comes first
    assert_int_equal(machine_in(&m, 0x41), 0xb4);
    assert_int_equal(machine_in(&m, 0x41), 0x34);
    assert_int_equal(machine_in(&m, 0x41), 0x10);
    assert_int_equal(machine_in(&m, 0x43), 0xff);
}

static void test_bcd(void **state)
{
    (void)state;
    machine_out(&m, 0x61, 1);
    machine_out(&m, 0x43, 0xb1);
    machine_out(&m, 0x42, 0x00);
    machine_out(&m, 0x42, 0x10); // 1000
    clocks(1);
    assert_int_equal(read_counter(2), 0x0999);
    clocks(1000);
    assert_int_equal(read_counter(2), 0x9999);
    machine_out(&m, 0x42, 0x00);
    machine_out(&m, 0x42, 0x00); // 10000
    clocks(1);
    assert_int_equal(read_counter(2), 0x9999);
    machine_out(&m, 0x42, 0xff);
    machine_out(&m, 0x42, 0xff); // no decimal digits at all
    read_counter(2);
}

static void test_periodic_interrupt(void **state)
{
    (void)state;
    program(0, 2, 4773); // 250 Hz, as Linux
    machine_advance(&m, 4773 * CLOCK * 1000);
    assert_in_range(m.edges[0], 999, 1000);
    machine_advance(&m, CLOCK);
    assert_int_equal(m.edges[0], 1000); // no drift
    program(0, 3, 4773);
    machine_advance(&m, 4774 * CLOCK);
    assert_int_equal(m.edges[0], 1001);
    machine_out(&m, 0x43, 0x30); // Linux's pit_shutdown(): no tick after it
    unsigned before = m.edges[0];
    machine_advance(&m, 4773 * CLOCK * 1000);
    assert_int_equal(m.edges[0], before);
}

static void test_one_shot_interrupt(void **state)
{
    (void)state;
    program(0, 0, 1000);
    machine_advance(&m, 999 * CLOCK);
    assert_false(m.level[0]);
    machine_advance(&m, 2 * CLOCK);
    assert_true(m.level[0]);
    machine_advance(&m, 10000000 * CLOCK);
    assert_int_equal(m.edges[0], 1);
    program(0, 0, 1000);
    assert_false(m.level[0]);
    program(0, 1, 10); // its gate never rises
    machine_advance(&m, 10000000 * CLOCK);
    assert_int_equal(m.edges[0], 1);
}

static void test_starvation(void **state)
{
    (void)state;
    const uint64_t period = 4773 * CLOCK;
    program(0, 2, 4773);
    machine_advance(&m, period + CLOCK);
    assert_int_equal(m.edges[0], 1);
    machine_starve(&m, 3 * period); // a missed slice: every tick is made up for, at double speed
    assert_int_equal(m.edges[0], 2);
    machine_advance(&m, period + CLOCK);
    assert_int_equal(m.edges[0], 4);
    machine_advance(&m, 10 * period);
    unsigned before = m.edges[0];
    assert_int_equal(before, 15);
    machine_starve(&m, 1000000 * period); // hours: a few, not a million
    machine_advance(&m, 100 * period);
    assert_in_range(m.edges[0] - before, 100, 110);
}

static void test_storm(void **state)
{
    (void)state;
    for (unsigned mode = 2; mode <= 3; mode++) {
        for (uint16_t count = 1; count < 200; count = (uint16_t)(count + 13)) {
            unsigned before = m.edges[0];
            program(0, mode, count);
            machine_advance(&m, HZ / 10); // 100 ms
            assert_in_range(m.edges[0] - before, 500, 1001);
        }
    }
}

static void test_clock_set_back(void **state)
{
    (void)state;
    for (unsigned mode = 0; mode < 8; mode++) {
        m.clock.frozen_at = 1000000 * CLOCK;
        program(0, mode, 500);
        machine_advance(&m, 2000 * CLOCK);
        m.clock.frozen_at = 0;
        read_counter(0);
        vtimer_run(&m.timers, m.clock.frozen_at);
        machine_advance(&m, 2000 * CLOCK);
        m.clock.frozen_at = UINT64_MAX - 5;
        read_counter(0);
        vtimer_run(&m.timers, m.clock.frozen_at);
    }
}

static void test_reset(void **state)
{
    (void)state;
    program(0, 0, 10);
    machine_advance(&m, 100 * CLOCK);
    assert_true(m.level[0]);
    machine_out(&m, 0x61, 0x0f);
    assert_int_equal(machine_in(&m, 0x61) & 0x0f, 0x0f);
    pit_reset(&m.pit);
    assert_false(m.level[0]);
    assert_int_equal(machine_in(&m, 0x61) & 0x0f, 0);
    assert_true(m.pit.timer.deadline == UINT64_MAX);
    pit_init(&m.pit, &m.clock, &m.timers, machine_irq0, &m); // again: the queue stays whole
    unsigned count = 0;
    for (const struct vtimer *t = m.timers.first; t != NULL; t = t->next)
        count++;
    assert_int_equal(count, 2);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup(test_mode_0_and_gate, fresh),
        cmocka_unit_test_setup(test_linux_quick_calibration, fresh),
        cmocka_unit_test_setup(test_mode_1_and_5, fresh),
        cmocka_unit_test_setup(test_mode_2_and_3, fresh),
        cmocka_unit_test_setup(test_mode_4, fresh),
        cmocka_unit_test_setup(test_access_and_latches, fresh),
        cmocka_unit_test_setup(test_bcd, fresh),
        cmocka_unit_test_setup(test_periodic_interrupt, fresh),
        cmocka_unit_test_setup(test_one_shot_interrupt, fresh),
        cmocka_unit_test_setup(test_starvation, fresh),
        cmocka_unit_test_setup(test_storm, fresh),
        cmocka_unit_test_setup(test_clock_set_back, fresh),
        cmocka_unit_test_setup(test_reset, fresh),
    };
    return cmocka_run_group_tests_name("pit", tests, NULL, NULL);
}
