// SPDX-License-Identifier: BSD-2-Clause
// The I/O APIC, alone and together with a LAPIC.

// sources: devices/ioapic.c devices/lapic.c devices/lapic_interrupt.c devices/lapic_virtual.c
// sources: devices/lapic_timer.c

// sources: vm/bus.c vm/clock.c

#include <stdlib.h>

#include "lapic_machine.h"

#include "devices/ioapic.h"

static struct ioapic io;
static struct bus bus;
static struct apic_message last;
static unsigned delivered;

static void record(void *context, const struct apic_message *message)
{
    assert_ptr_equal(context, &bus);
    last = *message;
    delivered++;
}

static void begin(void)
{
    bus_init(&bus);
    ioapic_init(&io, record, &bus);
    assert_int_equal(ioapic_register(&io, &bus), 0);
    delivered = 0;
}

static uint32_t get(uint8_t reg)
{
    bus_mmio_store(&bus, gpa(0xfec00000), 4, reg);
    return (uint32_t)bus_mmio_load(&bus, gpa(0xfec00010), 4);
}

static void put(uint8_t reg, uint32_t value)
{
    bus_mmio_store(&bus, gpa(0xfec00000), 4, reg);
    bus_mmio_store(&bus, gpa(0xfec00010), 4, value);
}

static void set_pin(unsigned pin, uint64_t entry)
{
    put((uint8_t)(0x11 + 2 * pin), (uint32_t)(entry >> 32));
    put((uint8_t)(0x10 + 2 * pin), (uint32_t)entry);
}

#define LEVEL      0x8000u
#define MASKED     0x10000u
#define REMOTE_IRR 0x4000u

static void registers(void **state)
{
    (void)state;
    begin();
    assert_int_equal(get(1), 0x00170011);
    assert_int_equal(get(0), 0);
    put(0, 0xffffffff);
    assert_int_equal(get(0), 0x0f000000);
    assert_int_equal(get(2), 0x0f000000);
    put(1, 0);
    put(2, 0);
    assert_int_equal(get(1), 0x00170011);
    assert_int_equal(get(2), 0x0f000000);
    for (uint8_t pin = 0; pin < IOAPIC_PINS; pin++) {
        assert_int_equal(get((uint8_t)(0x10 + 2 * pin)), MASKED);
        assert_int_equal(get((uint8_t)(0x11 + 2 * pin)), 0);
        put((uint8_t)(0x11 + 2 * pin), 0xffffffff);
        assert_int_equal(get((uint8_t)(0x11 + 2 * pin)), 0xff000000);
        put((uint8_t)(0x10 + 2 * pin), 0xffffffff);
        assert_int_equal(get((uint8_t)(0x10 + 2 * pin)), 0x1afff); // status and remote IRR are not
    }
    for (unsigned reg = 3; reg < 256; reg++) {
        if (reg >= 0x10 && reg < 0x40)
            continue;
        put((uint8_t)reg, 0xffffffff);
        assert_int_equal(get((uint8_t)reg), 0);
    }
    assert_int_equal(delivered, 0);
}

static void widths(void **state)
{
    (void)state;
    begin();
    bus_mmio_store(&bus, gpa(0xfec00000), 1, 0x01);
    assert_int_equal(bus_mmio_load(&bus, gpa(0xfec00000), 1), 0x01);
    assert_int_equal(bus_mmio_load(&bus, gpa(0xfec00010), 1), 0x11);
    assert_int_equal(bus_mmio_load(&bus, gpa(0xfec00012), 1), 0x17);
    assert_int_equal(bus_mmio_load(&bus, gpa(0xfec00012), 2), 0x17);
    assert_int_equal(bus_mmio_load(&bus, gpa(0xfec00010), 8), 0x170011);
    bus_mmio_store(&bus, gpa(0xfec00000), 4, 0xffffff10); // the index has 8 bits
    assert_int_equal(bus_mmio_load(&bus, gpa(0xfec00000), 4), 0x10);
    bus_mmio_store(&bus, gpa(0xfec00010), 4, MASKED | 0x3344);
    bus_mmio_store(&bus, gpa(0xfec00010), 1, 0x55);
    assert_int_equal(get(0x10), MASKED | 0x2355);
    bus_mmio_store(&bus, gpa(0xfec00011), 1, 0x08);
    assert_int_equal(get(0x10), MASKED | 0x0855);
    assert_int_equal(bus_mmio_load(&bus, gpa(0xfec00020), 4), 0);
    bus_mmio_store(&bus, gpa(0xfec00040), 4, 0x55); // no EOI register in this version
    assert_int_equal(bus_mmio_load(&bus, gpa(0xfec00fff), 4) & 0xff, 0);
    assert_int_equal(delivered, 0);
}

static void edges(void **state)
{
    (void)state;
    begin();
    ioapic_set_irq(&io, 4, true); // masked: lost
    set_pin(4, UINT64_C(0x0300000000000031));
    assert_int_equal(delivered, 0);
    ioapic_set_irq(&io, 4, true); // no edge
    assert_int_equal(delivered, 0);
    ioapic_set_irq(&io, 4, false);
    ioapic_set_irq(&io, 4, true);
    assert_int_equal(delivered, 1);
    assert_int_equal(last.vector, 0x31);
    assert_int_equal(last.destination, 3);
    assert_int_equal(last.delivery, APIC_FIXED);
    assert_false(last.logical || last.level);
    assert_true(last.assert_level);
    assert_int_equal(get(0x18), 0x31); // no remote IRR
    ioapic_set_irq(&io, 4, false);
    ioapic_set_irq(&io, 4, true);
    assert_int_equal(delivered, 2);
    set_pin(4, UINT64_C(0xff00000000000931)); // lowest priority, logical, everybody
    ioapic_set_irq(&io, 4, false);
    ioapic_set_irq(&io, 4, true);
    assert_int_equal(last.delivery, APIC_LOWEST);
    assert_true(last.logical);
    assert_true(last.destination == APIC_BROADCAST);
    ioapic_set_irq(&io, IOAPIC_PINS, true); // no such pin
    ioapic_set_irq(&io, 1000, true);
    assert_int_equal(delivered, 3);
}

static void delivery_modes(void **state)
{
    (void)state;
    static const bool works[8] = {true, true, false, false, true, true, false, false};
    for (unsigned mode = 0; mode < 8; mode++) {
        for (unsigned trigger = 0; trigger < 2; trigger++) {
            begin();
            set_pin(2, 0x40 | mode << 8 | (trigger != 0 ? LEVEL : 0));
            ioapic_set_irq(&io, 2, true);
            assert_int_equal(delivered, works[mode]);
            if (!works[mode])
                continue;
            assert_int_equal(last.delivery, mode);
            // Remote IRR and level are for fixed and lowest priority only.
            bool level = trigger != 0 && mode <= 1;
            assert_int_equal(last.level, level);
            assert_int_equal((get(0x14) & REMOTE_IRR) != 0, level);
            ioapic_set_irq(&io, 2, false);
            ioapic_set_irq(&io, 2, true);
            assert_int_equal(delivered, level ? 1 : 2);
        }
    }
}

static void levels(void **state)
{
    (void)state;
    begin();
    ioapic_set_irq(&io, 9, true);
    set_pin(9, 0x49 | LEVEL | MASKED);
    assert_int_equal(delivered, 0);
    set_pin(9, 0x49 | LEVEL); // unmasking delivers
    assert_int_equal(delivered, 1);
    assert_true(last.level);
    assert_int_equal(get(0x22), 0x49 | LEVEL | REMOTE_IRR);
    ioapic_set_irq(&io, 9, false);
    ioapic_set_irq(&io, 9, true); // in service
    put(0x22, 0x49 | LEVEL);      // cannot clear remote IRR
    assert_int_equal(delivered, 1);
    ioapic_eoi(&io, 0x48);
    assert_int_equal(delivered, 1);
    ioapic_eoi(&io, 0x49); // still asserted
    assert_int_equal(delivered, 2);
    ioapic_set_irq(&io, 9, false);
    ioapic_eoi(&io, 0x49);
    assert_int_equal(delivered, 2);
    assert_int_equal(get(0x22), 0x49 | LEVEL);
    // Masked while in service: the EOI frees it, unmasking delivers.
    ioapic_set_irq(&io, 9, true);
    assert_int_equal(delivered, 3);
    put(0x22, 0x49 | LEVEL | MASKED);
    ioapic_eoi(&io, 0x49);
    assert_int_equal(delivered, 3);
    put(0x22, 0x49 | LEVEL);
    assert_int_equal(delivered, 4);
    // Linux' way without an EOI register: edge and masked, then back.
    put(0x22, 0x49 | MASKED);
    assert_int_equal(get(0x22), 0x49 | MASKED);
    put(0x22, 0x49 | LEVEL);
    assert_int_equal(delivered, 5);
    // Two pins with one vector
    set_pin(10, 0x49 | LEVEL);
    ioapic_set_irq(&io, 10, true);
    assert_int_equal(delivered, 6);
    ioapic_set_irq(&io, 9, false);
    ioapic_eoi(&io, 0x49);
    assert_int_equal(delivered, 7);
    assert_int_equal(get(0x22), 0x49 | LEVEL);
    assert_int_equal(get(0x24), 0x49 | LEVEL | REMOTE_IRR);
}

// --- With a LAPIC ---

static void to_lapic(void *context, const struct apic_message *message)
{
    (void)context;
    if (lapic_matches(&lapic, message))
        lapic_deliver(&lapic, message);
}

static void eoi_to_ioapic(void *context, uint8_t vector)
{
    (void)context;
    ioapic_eoi(&io, vector);
}

static void together(void **state)
{
    (void)state;
    static const struct lapic_ops ops = {
        .send = record_send, .eoi = eoi_to_ioapic, .changed = record_changed};
    start(false);
    lapic.ops = &ops;
    bus_init(&bus);
    ioapic_init(&io, to_lapic, NULL);
    assert_int_equal(ioapic_register(&io, &bus), 0);
    set_pin(5, 0x55 | LEVEL);
    set_pin(6, 0x66);
    ioapic_set_irq(&io, 5, true);
    ioapic_set_irq(&io, 6, true);
    assert_int_equal(lapic_pending(&lapic), 0x66);
    lapic_accept(&lapic, 0x66);
    wr(0xb0, 0);
    for (unsigned n = 0; n < 3; n++) { // comes again until the device is quiet
        assert_int_equal(lapic_pending(&lapic), 0x55);
        lapic_accept(&lapic, 0x55);
        wr(0xb0, 0);
    }
    lapic_accept(&lapic, 0x55);
    ioapic_set_irq(&io, 5, false);
    wr(0xb0, 0);
    assert_int_equal(lapic_pending(&lapic), -1);
    assert_int_equal(get(0x1a), 0x55 | LEVEL);
}

// Random accesses and lines: remote IRR stands on level-triggered pins only, and a pin that should
// deliver has done so.
static void random_accesses(void **state)
{
    (void)state;
    begin();
    srandom(7);
    for (unsigned n = 0; n < 300000; n++) {
        uint32_t r = (uint32_t)random();
        uint32_t value = (uint32_t)random() << 1 ^ (uint32_t)random();
        switch (r % 5) {
        case 0:
            bus_mmio_store(&bus, gpa(0xfec00000 + (r >> 8) % 0x18), 1u << (r >> 4) % 4, value);
            break;
        case 1:
            put((uint8_t)(0x10 + (r >> 8) % 48), value & ~(value & 0x700 & (r >> 3)));
            break;
        case 2:
            (void)bus_mmio_load(&bus, gpa(0xfec00000 + (r >> 8) % 0x1000), 1u << (r >> 4) % 4);
            break;
        case 3:
            ioapic_set_irq(&io, (r >> 8) % 26, (value & 1) != 0);
            break;
        default:
            ioapic_eoi(&io, (uint8_t)value);
            break;
        }
        for (unsigned pin = 0; pin < IOAPIC_PINS; pin++) {
            uint64_t entry = io.redirection[pin];
            assert_true((entry & ~UINT64_C(0xff0000000001efff)) == 0);
            if ((entry & REMOTE_IRR) != 0)
                assert_true((entry & LEVEL) != 0);
            bool fixed = (entry >> 8 & 7) <= 1;
            if (fixed && (entry & LEVEL) != 0 && (entry & MASKED) == 0 &&
                (io.lines >> pin & 1) != 0)
                assert_true((entry & REMOTE_IRR) != 0);
        }
    }
    assert_true(delivered > 1000);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(registers),       cmocka_unit_test(widths), cmocka_unit_test(edges),
        cmocka_unit_test(delivery_modes),  cmocka_unit_test(levels), cmocka_unit_test(together),
        cmocka_unit_test(random_accesses),
    };
    return cmocka_run_group_tests_name("ioapic", tests, NULL, NULL);
}
