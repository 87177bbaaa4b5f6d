// SPDX-License-Identifier: BSD-2-Clause
// sources: devices/pic.c devices/pit.c devices/rtc.c devices/calendar.c devices/uart.c

// sources: devices/power_control.c vm/bus.c vm/clock.c

// Any guest input in any order, with any jump of the clock: random scripts under the sanitizers.
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>

#include <cmocka.h>

#include "device_script.h"

static void test_random_scripts(void **state)
{
    (void)state;
    static struct device_machine m;
    static uint8_t bytes[4096];
    static const uint64_t frequencies[] = {1, 100000000, 3500000000, UINT64_C(1) << 34};
    srand(6);
    for (unsigned round = 0; round < 400; round++) {
        uint64_t hz = frequencies[round % ARRAY_SIZE(frequencies)];
        assert_int_equal(machine_init(&m, hz, (uint64_t)rand()), 0);
        for (size_t i = 0; i < sizeof(bytes); i++)
            bytes[i] = (uint8_t)(rand() >> 8);
        script_play(&m, bytes, sizeof(bytes));
    }
}

static void test_registration_fills_no_table(void **state)
{
    (void)state;
    static struct device_machine m;
    assert_int_equal(machine_init(&m, 1000000000, 0), 0);
    assert_true(m.bus.pio_count <= BUS_PIO_RANGES / 2);    // room for what comes later
    assert_int_not_equal(pic_register(&m.pic, &m.bus), 0); // the ports are taken
    assert_int_not_equal(pit_register(&m.pit, &m.bus), 0);
    assert_int_not_equal(rtc_register(&m.rtc, &m.bus), 0);
    assert_int_not_equal(uart_register(&m.uart, &m.bus, 0x3f8), 0);
    assert_int_not_equal(power_control_register(&m.power, &m.bus), 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_random_scripts),
        cmocka_unit_test(test_registration_fills_no_table),
    };
    return cmocka_run_group_tests_name("devices", tests, NULL, NULL);
}
