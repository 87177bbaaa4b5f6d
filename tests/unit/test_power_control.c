// SPDX-License-Identifier: BSD-2-Clause
// sources: devices/pic.c devices/pit.c devices/rtc.c devices/calendar.c devices/uart.c

// sources: devices/power_control.c vm/bus.c vm/clock.c

// ACPI fixed hardware, resets, debug exit.
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>

#include <cmocka.h>

#include "device_machine.h"

static struct device_machine m;

static int fresh(void **state)
{
    (void)state;
    return machine_init(&m, 1000000000, 0);
}

static uint16_t in16(uint32_t port)
{
    return (uint16_t)bus_pio_in(&m.bus, (uint16_t)port, 2);
}

static void out16(uint32_t port, uint16_t value)
{
    bus_pio_out(&m.bus, (uint16_t)port, 2, value);
}

static void test_power_button(void **state)
{
    (void)state;
    power_control_press_button(&m.power);
    assert_int_equal(in16(LAYOUT_PM1_EVENT), 0x100);
    assert_false(m.level[LAYOUT_SCI]); // not enabled
    out16(LAYOUT_PM1_EVENT + 2, 0x120);
    assert_int_equal(in16(LAYOUT_PM1_EVENT + 2), 0x120); // ACPICA reads it back
    assert_true(m.level[LAYOUT_SCI]);
    out16(LAYOUT_PM1_EVENT, 0xfeff); // other bits
    assert_true(m.level[LAYOUT_SCI]);
    out16(LAYOUT_PM1_EVENT, 0x100);
    assert_false(m.level[LAYOUT_SCI]);
    assert_int_equal(in16(LAYOUT_PM1_EVENT), 0);
    power_control_press_button(&m.power);
    assert_true(m.level[LAYOUT_SCI]);
    assert_int_equal(bus_pio_in(&m.bus, LAYOUT_PM1_EVENT, 4), 0x01200100);
    out16(LAYOUT_PM1_EVENT + 2, 0);
    assert_false(m.level[LAYOUT_SCI]);
    out16(LAYOUT_PM1_EVENT + 2, 0xffff);
    assert_int_equal(in16(LAYOUT_PM1_EVENT + 2), 0x521); // bits that do not exist stay 0
    power_control_reset(&m.power);
    assert_false(m.level[LAYOUT_SCI]);
    assert_int_equal(bus_pio_in(&m.bus, LAYOUT_PM1_EVENT, 4), 0);
}

static void test_power_off(void **state)
{
    (void)state;
    assert_int_equal(in16(LAYOUT_PM1_CONTROL), 1); // SCI_EN
    out16(LAYOUT_PM1_CONTROL, 0);
    assert_int_equal(in16(LAYOUT_PM1_CONTROL), 1);
    for (uint16_t type = 0; type < 8; type++) { // every state but S5 is no request
        out16(LAYOUT_PM1_CONTROL, (uint16_t)(type << 10));
        if (type != POWER_S5_TYPE)
            out16(LAYOUT_PM1_CONTROL, (uint16_t)(type << 10 | 1 << 13));
        assert_int_equal(m.requests[POWER_OFF], 0);
    }
    // ACPICA: first the type, then the type with SLP_EN
    out16(LAYOUT_PM1_CONTROL, POWER_S5_TYPE << 10 | 1);
    assert_int_equal(in16(LAYOUT_PM1_CONTROL), POWER_S5_TYPE << 10 | 1);
    out16(LAYOUT_PM1_CONTROL, POWER_S5_TYPE << 10 | 1u << 13 | 1);
    assert_int_equal(m.requests[POWER_OFF], 1);
    assert_int_equal(in16(LAYOUT_PM1_CONTROL), POWER_S5_TYPE << 10 | 1); // SLP_EN reads 0
    assert_int_equal(m.requests[POWER_RESET], 0);
}

static void test_pm_timer(void **state)
{
    (void)state;
    assert_int_equal(bus_pio_in(&m.bus, LAYOUT_PM_TIMER, 4), 0);
    m.clock.frozen_at = UINT64_C(10) * 1000000000;
    assert_int_equal(bus_pio_in(&m.bus, LAYOUT_PM_TIMER, 4), 35795450);
    assert_int_equal(in16(LAYOUT_PM_TIMER + 2), 35795450 >> 16);
    assert_int_equal(machine_in(&m, LAYOUT_PM_TIMER + 3), 35795450 >> 24);
    bus_pio_out(&m.bus, LAYOUT_PM_TIMER, 4, 7);
    assert_int_equal(bus_pio_in(&m.bus, LAYOUT_PM_TIMER, 4), 35795450);
    m.clock.frozen_at = UINT64_C(2000) * 1000000000; // wraps at 32 bits
    assert_int_equal(bus_pio_in(&m.bus, LAYOUT_PM_TIMER, 4), UINT64_C(7159090000) & 0xffffffff);
}

static void test_reset_port(void **state)
{
    (void)state;
    machine_out(&m, LAYOUT_RESET, 0x02);
    assert_int_equal(m.requests[POWER_RESET], 0);
    assert_int_equal(machine_in(&m, LAYOUT_RESET), 0x02);
    machine_out(&m, LAYOUT_RESET, 0x06);
    assert_int_equal(m.requests[POWER_RESET], 1);
    machine_out(&m, LAYOUT_RESET, 0x06); // no edge
    assert_int_equal(m.requests[POWER_RESET], 1);
    power_control_reset(&m.power);
    machine_out(&m, LAYOUT_RESET, 0x0e);
    assert_int_equal(m.requests[POWER_RESET], 2);
    // A PCI configuration address is no reset, whatever device it names; no PCI bus answers.
    power_control_reset(&m.power);
    bus_pio_out(&m.bus, 0xcf8, 4, 0x80000600);
    bus_pio_out(&m.bus, 0xcf8, 2, 0x0600);
    assert_int_equal(bus_pio_in(&m.bus, 0xcf8, 4), 0xffffffff);
    assert_int_equal(bus_pio_in(&m.bus, 0xcfc, 4), 0xffffffff);
    assert_int_equal(m.requests[POWER_RESET], 2);
}

static void test_keyboard_and_port_92(void **state)
{
    (void)state;
    // Linux's i8042_flush(): more than 16 bytes waiting means that there is no controller.
    for (int i = 0; i < 17; i++) {
        assert_int_equal(machine_in(&m, 0x64) & 1, 1);
        machine_in(&m, 0x60);
    }
    machine_out(&m, 0x64, 0xaa);
    machine_out(&m, 0x60, 0xfe);
    assert_int_equal(m.requests[POWER_RESET], 0);
    machine_out(&m, 0x64, 0xfe);
    assert_int_equal(m.requests[POWER_RESET], 1);
    assert_int_equal(machine_in(&m, 0x92), 0x02);
    machine_out(&m, 0x92, 0x02);
    assert_int_equal(m.requests[POWER_RESET], 1);
    machine_out(&m, 0x92, 0x03);
    assert_int_equal(m.requests[POWER_RESET], 2);
    machine_out(&m, 0x92, 0x01);
    assert_int_equal(m.requests[POWER_RESET], 2);
}

static void test_debug_exit(void **state)
{
    (void)state;
    machine_out(&m, 0xf4, 0x2a);
    assert_int_equal(m.requests[POWER_DEBUG_EXIT], 1);
    assert_int_equal(m.power.debug_code, 0x2a);
    bus_pio_out(&m.bus, 0xf4, 4, 0x11223310);
    assert_int_equal(m.requests[POWER_DEBUG_EXIT], 2);
    assert_int_equal(m.power.debug_code, 0x10);
    machine_out(&m, 0xf5, 1);
    assert_int_equal(m.requests[POWER_DEBUG_EXIT], 2);
    assert_int_equal(machine_in(&m, 0xf4), 0xff);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup(test_power_button, fresh),
        cmocka_unit_test_setup(test_power_off, fresh),
        cmocka_unit_test_setup(test_pm_timer, fresh),
        cmocka_unit_test_setup(test_reset_port, fresh),
        cmocka_unit_test_setup(test_keyboard_and_port_92, fresh),
        cmocka_unit_test_setup(test_debug_exit, fresh),
    };
    return cmocka_run_group_tests_name("power_control", tests, NULL, NULL);
}
