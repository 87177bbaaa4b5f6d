// SPDX-License-Identifier: BSD-2-Clause
// sources: devices/pic.c devices/pit.c devices/rtc.c devices/calendar.c devices/uart.c

// sources: devices/power_control.c vm/bus.c vm/clock.c

// The MC146818: calendar against the C library, formats, setting the time as Linux does, UIP, the
// three interrupts and their bounds.
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <time.h>

#include <cmocka.h>

#include "device_machine.h"
#include "devices/calendar.h"

#define HZ    UINT64_C(1000000000)
#define START UINT64_C(1709164799) // 2024-02-28 23:59:59 UTC, a Wednesday before a leap day

static struct device_machine m;

static int fresh(void **state)
{
    (void)state;
    return machine_init(&m, HZ, START);
}

static uint8_t get(uint8_t index)
{
    machine_out(&m, 0x70, index | 0x80); // with NMIs masked, as firmware does
    return machine_in(&m, 0x71);
}

static void set(uint8_t index, uint8_t value)
{
    machine_out(&m, 0x70, index);
    machine_out(&m, 0x71, value);
}

static void expect_time(const char *text) // century year month day weekday hour minute second
{
    static const uint8_t registers[] = {0x32, 9, 8, 7, 6, 4, 2, 0};
    char got[32];
    size_t at = 0;
    for (unsigned i = 0; i < ARRAY_SIZE(registers); i++) {
        static const char digits[] = "0123456789abcdef";
        uint8_t value = get(registers[i]);
        got[at++] = digits[value >> 4];
        got[at++] = digits[value & 15];
    }
    got[at] = 0;
    assert_string_equal(got, text);
}

static void test_calendar(void **state)
{
    (void)state;
    srand(5);
    for (int i = 0; i < 200000; i++) {
        uint64_t seconds = ((uint64_t)rand() << 20 ^ (uint64_t)rand()) % (CALENDAR_SECONDS_MAX + 1);
        if (i % 2 != 0)
            seconds %= UINT64_C(4102444800); // until 2100
        time_t t = (time_t)seconds;
        struct tm tm;
        gmtime_r(&t, &tm);
        struct calendar c = calendar_from_seconds(seconds);
        assert_int_equal(c.year, tm.tm_year + 1900);
        assert_int_equal(c.month, tm.tm_mon + 1);
        assert_int_equal(c.day, tm.tm_mday);
        assert_int_equal(c.hour, tm.tm_hour);
        assert_int_equal(c.minute, tm.tm_min);
        assert_int_equal(c.second, tm.tm_sec);
        assert_int_equal(c.weekday, tm.tm_wday);
        assert_int_equal(calendar_to_seconds(&c), seconds);
    }
    struct calendar wild = {
        .second = 255, .minute = 255, .hour = 255, .day = 255, .month = 255, .year = 2023};
    assert_int_equal(calendar_to_seconds(&wild), 1704067199); // the last second of 2023
    wild = (struct calendar){.day = 31, .month = 2, .year = 2023};
    assert_int_equal(calendar_to_seconds(&wild), 1677542400); // 28 February
    wild = (struct calendar){0};
    assert_int_equal(calendar_to_seconds(&wild), 0);
    assert_int_equal(calendar_from_seconds(UINT64_MAX).year, 9999);
}

static void test_time_runs(void **state)
{
    (void)state;
    assert_int_equal(get(0x0a), 0x26);
    assert_int_equal(get(0x0b), 0x02);
    assert_int_equal(get(0x0d), 0x80);
    assert_int_equal(machine_in(&m, 0x70), 0xff);
    expect_time("2024022804235959");
    machine_advance(&m, HZ);
    expect_time("2024022905000000");
    machine_advance(&m, 86400 * HZ);
    expect_time("2024030106000000");
}

static void test_formats(void **state)
{
    (void)state;
    set(0x0b, 0x06); // binary, 24 hours
    assert_int_equal(get(4), 23);
    assert_int_equal(get(2), 59);
    set(0x0b, 0x04); // binary, 12 hours
    assert_int_equal(get(4), 0x80 | 11);
    set(0x0b, 0x00); // BCD, 12 hours
    assert_int_equal(get(4), 0x91);
    machine_advance(&m, HZ);
    assert_int_equal(get(4), 0x12); // midnight
    machine_advance(&m, 12 * 3600 * HZ);
    assert_int_equal(get(4), 0x92); // noon
    set(4, 0x12);                   // to midnight of the same day
    set(0x0b, 0x02);
    expect_time("2024022905000000");
}

// drivers/rtc/rtc-mc146818-lib.c, mc146818_set_time()
static void linux_set_time(void)
{
    uint8_t control = get(0x0b);
    set(0x0b, control | 0x80);
    uint8_t divider = get(0x0a);
    set(0x0a, divider | 0x70);
    set(9, 0x99);
    set(8, 0x12);
    set(7, 0x31);
    set(4, 0x23);
    set(2, 0x59);
    set(0, 0x58);
    set(0x32, 0x20);
    set(0x0b, control);
    set(0x0a, divider & 0x7f);
}

static void test_set_time(void **state)
{
    (void)state;
    machine_advance(&m, HZ / 3);
    linux_set_time();
    expect_time("2099123105235958");
    machine_advance(&m, HZ / 2 - 1); // half a second from the release of the divider
    assert_int_equal(get(0), 0x58);
    machine_advance(&m, 1);
    expect_time("2099123105235959");
    machine_advance(&m, HZ);
    expect_time("2100010106000000");
    // SET holds the registers; the time goes on from what they hold
    set(0x0b, 0x82);
    machine_advance(&m, 100 * HZ);
    assert_int_equal(get(0), 0x00);
    assert_int_equal(get(0x0a) & 0x80, 0); // and no update is in progress
    set(0, 0x30);
    set(0x0b, 0x02);
    assert_int_equal(get(0), 0x30);
    set(2, 0x15); // without SET, while it runs
    expect_time("2100010106001530");
    // nonsense is brought into range once it counts
    set(8, 0xff);
    set(7, 0xff);
    set(4, 0xff);
    assert_int_equal(get(8), 0x12);
    assert_int_equal(get(7), 0x31);
    assert_int_equal(get(4), 0x23);
    set(0x0b, 0x82); // a machine that is reset while the clock is held
    set(0, 0x11);
    rtc_reset(&m.rtc);
    assert_int_equal(get(0x0b), 0x02);
    assert_int_equal(get(0), 0x11);
}

static void test_update_in_progress(void **state)
{
    (void)state;
    unsigned seen = 0;
    for (unsigned i = 0; i < 100000; i++) { // each 10 us for a second
        seen += get(0x0a) >> 7;
        machine_advance(&m, HZ / 100000);
    }
    assert_in_range(seen, 20, 30); // 244 us
    assert_int_equal(get(0x0a), 0x26);
}

static void test_cmos(void **state)
{
    (void)state;
    for (unsigned i = 0x0e; i < 128; i++) {
        if (i == 0x32)
            continue;
        set((uint8_t)i, (uint8_t)(i * 3));
        assert_int_equal(get((uint8_t)i), (uint8_t)(i * 3));
    }
    set(0x0c, 0xff);
    set(0x0d, 0x00);
    assert_int_equal(get(0x0c), 0);
    assert_int_equal(get(0x0d), 0x80);
    set(0x0a, 0xa6); // UIP is read-only
    assert_int_equal(get(0x0a), 0x26);
}

static void test_update_interrupt(void **state)
{
    (void)state;
    machine_advance(&m, 3 * HZ);
    assert_int_equal(get(0x0c) & 0x10, 0x10); // flag without interrupt, computed when read
    assert_int_equal(get(0x0c), 0);
    set(0x0b, 0x12);
    for (int i = 0; i < 5; i++) {
        machine_advance(&m, HZ);
        assert_true(m.level[8]);
        assert_int_equal(get(0x0c) & 0xb0, 0x90);
        assert_false(m.level[8]);
    }
    assert_int_equal(m.edges[8], 5);
    machine_advance(&m, 100 * HZ); // nobody reads: one interrupt, and no timer
    assert_int_equal(m.edges[8], 6);
    assert_true(m.rtc.timer.deadline == UINT64_MAX);
    set(0x0b, 0x92); // SET clears the enable bit
    assert_int_equal(get(0x0b), 0x82);
    assert_false(m.level[8]);
}

static void expect_alarm(uint8_t hour, uint8_t minute, uint8_t second, uint64_t seconds)
{
    assert_int_equal(machine_init(&m, HZ, START), 0); // 23:59:59
    set(5, hour);
    set(3, minute);
    set(1, second);
    set(0x0b, 0x22);
    if (seconds == 0) {
        machine_advance(&m, 3 * 86400 * HZ);
        assert_false(m.level[8]);
        return;
    }
    machine_advance(&m, seconds * HZ - 1);
    assert_false(m.level[8]);
    machine_advance(&m, 1);
    assert_true(m.level[8]);
    assert_int_equal(get(0x0c) & 0xa0, 0xa0);
}

static void test_alarm(void **state)
{
    (void)state;
    expect_alarm(0x00, 0x00, 0x00, 1);
    expect_alarm(0x23, 0x59, 0x59, 86400); // this second has begun
    expect_alarm(0x06, 0x30, 0x15, 1 + 6 * 3600 + 30 * 60 + 15);
    expect_alarm(0xff, 0x30, 0x15, 1 + 30 * 60 + 15);
    expect_alarm(0xff, 0xff, 0x15, 1 + 15);
    expect_alarm(0xff, 0xff, 0xff, 1);
    expect_alarm(0xc0, 0x10, 0xff, 1 + 10 * 60);
    expect_alarm(0x05, 0xff, 0xff, 1 + 5 * 3600);
    expect_alarm(0x24, 0x00, 0x00, 0); // never
    expect_alarm(0x00, 0x60, 0x00, 0);
    expect_alarm(0xff, 0xff, 0x5a, 0);
    expect_alarm(0x1a, 0xff, 0xff, 0);
}

static void test_periodic_interrupt(void **state)
{
    (void)state;
    static const unsigned per_second[16] = {0,   256, 128, 8192, 4096, 2048, 1024, 512,
                                            256, 128, 64,  32,   16,   8,    4,    2};
    for (uint8_t rate = 0; rate < 16; rate++) {
        assert_int_equal(machine_init(&m, HZ, START), 0);
        set(0x0a, 0x20 | rate);
        set(0x0b, 0x42);
        unsigned count = 0;
        uint64_t end = m.clock.frozen_at + HZ + HZ / 16384;
        while (m.clock.frozen_at < end) {
            machine_advance(&m, HZ / 100000);
            if (m.level[8]) {
                assert_int_equal(get(0x0c) & 0xc0, 0xc0);
                count++;
            }
        }
        assert_in_range(count, per_second[rate] - per_second[rate] / 50, per_second[rate]);
    }
    set(0x0a, 0x26);
    machine_starve(&m, 3600 * HZ); // one interrupt stands for all that were missed
    assert_int_equal(get(0x0c) & 0xc0, 0xc0);
    assert_int_equal(get(0x0c), 0);
}

static void test_clock_set_back(void **state)
{
    (void)state;
    set(0x0b, 0x72);
    m.clock.frozen_at = 1000 * HZ;
    vtimer_run(&m.timers, m.clock.frozen_at);
    linux_set_time();
    m.clock.frozen_at = 10;
    expect_time("2099123105235958");
    get(0x0c);
    vtimer_run(&m.timers, m.clock.frozen_at);
    m.clock.frozen_at = UINT64_MAX / 2;
    get(0x0c);
    vtimer_run(&m.timers, m.clock.frozen_at);
    m.clock.frozen_at = UINT64_MAX;
    get(0x0c);
    vtimer_run(&m.timers, m.clock.frozen_at);
    expect_time("2099123105235958"); // more than 2^63 ticks after the origin counts as before it
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup(test_calendar, fresh),
        cmocka_unit_test_setup(test_time_runs, fresh),
        cmocka_unit_test_setup(test_formats, fresh),
        cmocka_unit_test_setup(test_set_time, fresh),
        cmocka_unit_test_setup(test_update_in_progress, fresh),
        cmocka_unit_test_setup(test_cmos, fresh),
        cmocka_unit_test_setup(test_update_interrupt, fresh),
        cmocka_unit_test_setup(test_alarm, fresh),
        cmocka_unit_test_setup(test_periodic_interrupt, fresh),
        cmocka_unit_test_setup(test_clock_set_back, fresh),
    };
    return cmocka_run_group_tests_name("rtc", tests, NULL, NULL);
}
