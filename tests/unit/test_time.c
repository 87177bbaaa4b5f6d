// SPDX-License-Identifier: BSD-2-Clause
// Conversions between ticks and microseconds, up to the ends of their ranges.
// sources: kernel/time.c
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "fake.h"
#include "kernel/time.h"

static void test_conversions(void **state)
{
    (void)state;
    static const uint64_t rates[] = {99999391, 1000000000, 2596119856, 7000000001};
    for (unsigned r = 0; r < sizeof(rates) / sizeof(rates[0]); r++) {
        tsc_hz = rates[r];
        for (uint64_t x = 1; x < UINT64_MAX / 3; x = x * 3 + 1) {
            __extension__ typedef unsigned __int128 wide;
            assert_int_equal(time_tsc_to_us(x), (uint64_t)((wide)x * 1000000 / tsc_hz));
            wide ticks = (wide)x * tsc_hz / 1000000;
            assert_int_equal(time_us_to_tsc(x), ticks > UINT64_MAX ? UINT64_MAX : (uint64_t)ticks);
        }
        assert_int_equal(time_us_to_tsc(UINT64_MAX), UINT64_MAX);
        assert_int_equal(time_tsc_to_us(0), 0);
    }
}

static void test_before_calibration(void **state)
{
    (void)state;
    tsc_hz = 0;
    assert_int_equal(time_tsc_to_us(UINT64_MAX), 0);
    assert_int_equal(time_us_to_tsc(1000), 0);
}

static void test_since_boot(void **state)
{
    (void)state;
    fake_tsc = 5000;
    time_set_boot(4000);
    assert_int_equal(time_since_boot(), 1001); // the look itself is a tick
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_conversions),
        cmocka_unit_test(test_before_calibration),
        cmocka_unit_test(test_since_boot),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
