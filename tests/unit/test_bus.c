// SPDX-License-Identifier: BSD-2-Clause
// sources: vm/bus.c
// The bus: routing, overlaps, splitting of wide accesses, unclaimed ones.
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "kernel/error.h"
#include "vm/bus.h"

struct recorder {
    uint32_t base; // a read of offset n gives base + n in each byte position
    unsigned calls;
    uint64_t offset, value;
    unsigned size;
};

static uint32_t port_read(void *device, uint16_t offset, unsigned size)
{
    struct recorder *r = device;
    r->calls++;
    r->offset = offset;
    r->size = size;
    uint32_t value = 0;
    for (unsigned i = 0; i < 4; i++) // more bytes than asked for: the bus must cut them off
        value |= ((r->base + offset + i) & 0xff) << (8 * i);
    return value;
}

static void port_write(void *device, uint16_t offset, unsigned size, uint32_t value)
{
    struct recorder *r = device;
    r->calls++;
    r->offset = offset;
    r->size = size;
    r->value = value;
}

static uint64_t memory_read(void *device, uint64_t offset, unsigned size)
{
    struct recorder *r = device;
    r->calls++;
    r->offset = offset;
    r->size = size;
    return UINT64_C(0x8877665544332211);
}

static void memory_write(void *device, uint64_t offset, unsigned size, uint64_t value)
{
    struct recorder *r = device;
    r->calls++;
    r->offset = offset;
    r->size = size;
    r->value = value;
}

static struct bus bus;

static int fresh(void **state)
{
    (void)state;
    bus_init(&bus);
    return 0;
}

static int add(uint16_t first, uint16_t count, struct recorder *r)
{
    return bus_add_pio(&bus, first, count, port_read, port_write, r);
}

static void test_routing(void **state)
{
    (void)state;
    struct recorder a = {.base = 0x10}, b = {.base = 0x40}, c = {.base = 0x80};
    assert_int_equal(add(0x3f8, 8, &a), 0);
    assert_int_equal(add(0x20, 2, &b), 0);
    assert_int_equal(add(0xcf8, 4, &c), 0);
    assert_int_equal(bus_pio_in(&bus, 0x3fd, 1), 0x15);
    assert_int_equal(a.offset, 5);
    assert_int_equal(bus_pio_in(&bus, 0x20, 2), 0x4140);
    assert_int_equal(b.size, 2);
    assert_int_equal(bus_pio_in(&bus, 0xcf8, 4), 0x83828180);
    bus_pio_out(&bus, 0xcfb, 1, 0xfffffffe);
    assert_int_equal(c.offset, 3);
    assert_int_equal(c.value, 0xfe);
    assert_int_equal(bus.unclaimed, 0);
    // just outside of each range
    static const uint16_t nobody[] = {0x1f, 0x22, 0x3f7, 0x400, 0xcf7, 0xcfc, 0, 0xffff};
    for (unsigned i = 0; i < ARRAY_SIZE(nobody); i++)
        assert_int_equal(bus_pio_in(&bus, nobody[i], 1), 0xff);
    assert_int_equal(bus.unclaimed, ARRAY_SIZE(nobody));
}

static void test_refusals(void **state)
{
    (void)state;
    struct recorder r = {0};
    assert_int_equal(add(0x100, 0x10, &r), 0);
    assert_int_equal(add(0x10f, 1, &r), E_EXIST);
    assert_int_equal(add(0xf0, 0x11, &r), E_EXIST);
    assert_int_equal(add(0x104, 2, &r), E_EXIST);
    assert_int_equal(add(0x80, 0x200, &r), E_EXIST);
    assert_int_equal(add(0xf0, 0x10, &r), 0);
    assert_int_equal(add(0x110, 0x10, &r), 0);
    assert_int_equal(add(0x300, 0, &r), E_INVAL);
    assert_int_equal(add(0xfffe, 3, &r), E_INVAL);
    assert_int_equal(add(0xfffe, 2, &r), 0);
    assert_int_equal(bus_add_pio(&bus, 0x300, 1, NULL, port_write, &r), E_INVAL);
    uint16_t port = 0x1000;
    while (bus.pio_count < BUS_PIO_RANGES)
        assert_int_equal(add(port += 2, 1, &r), 0);
    assert_int_equal(add(0x2000, 1, &r), E_NOMEM);
    bus_pio_in(&bus, port, 1);
    assert_int_equal(bus.unclaimed, 0);
}

static void test_split(void **state)
{
    (void)state;
    struct recorder a = {.base = 0x10}, bytes = {.base = 0x50}, end = {.base = 0x70};
    assert_int_equal(add(0x40, 2, &a), 0);
    assert_int_equal(bus_add_pio_bytes(&bus, 0x42, 2, port_read, port_write, &bytes), 0);
    assert_int_equal(add(0xffff, 1, &end), 0);
    // over the border of two ranges, into nobody's ports, and before the first one
    assert_int_equal(bus_pio_in(&bus, 0x41, 2), 0x5011);
    assert_int_equal(bus_pio_in(&bus, 0x43, 4), 0xffffff51);
    assert_int_equal(bus_pio_in(&bus, 0x3f, 2), 0x10ff);
    // a byte device sees bytes
    bytes.calls = 0;
    assert_int_equal(bus_pio_in(&bus, 0x42, 2), 0x5150);
    assert_int_equal(bytes.calls, 2);
    assert_int_equal(bytes.size, 1);
    bus_pio_out(&bus, 0x42, 2, 0xa1b2);
    assert_int_equal(bytes.offset, 1);
    assert_int_equal(bytes.value, 0xa1);
    // the last port: no wrap to port 0
    assert_int_equal(bus_pio_in(&bus, 0xffff, 4), 0xffffff70);
    bus_pio_out(&bus, 0xffff, 4, 0x11223344);
    assert_int_equal(end.value, 0x44);
    assert_int_equal(bus.unclaimed, 0);
    assert_int_equal(bus_pio_in(&bus, 0x200, 4), 0xffffffff);
    bus_pio_out(&bus, 0x200, 2, 1);
    assert_int_equal(bus.unclaimed, 2);
}

// Against a plain array that says who owns each port.
static void test_random_ranges(void **state)
{
    (void)state;
    static struct recorder devices[BUS_PIO_RANGES];
    static int owner[0x10000];
    srand(1);
    for (int round = 0; round < 20; round++) {
        bus_init(&bus);
        memset(owner, -1, sizeof(owner));
        for (int tries = 0; tries < 200; tries++) {
            uint32_t limit = tries % 2 != 0 ? 0x10000u : 0x900u;
            uint32_t first = (uint32_t)rand() % limit;
            uint32_t count = 1 + (uint32_t)rand() % 40;
            bool free_range = first + count <= 0x10000;
            for (uint32_t p = first; free_range && p < first + count; p++)
                free_range = owner[p] < 0;
            uint32_t index = bus.pio_count;
            int error =
                add((uint16_t)first, (uint16_t)count, &devices[index < BUS_PIO_RANGES ? index : 0]);
            if (error != 0) {
                assert_true(!free_range || (error == E_NOMEM && index == BUS_PIO_RANGES));
                continue;
            }
            assert_true(free_range);
            for (uint32_t p = first; p < first + count; p++)
                owner[p] = (int)index;
        }
        for (uint32_t p = 0; p < 0x10000; p++) {
            for (uint32_t i = 0; i < bus.pio_count; i++)
                devices[i].calls = 0;
            bus_pio_in(&bus, (uint16_t)p, 1);
            for (uint32_t i = 0; i < bus.pio_count; i++)
                assert_int_equal(devices[i].calls, owner[p] == (int)i ? 1 : 0);
        }
    }
}

static void test_mmio(void **state)
{
    (void)state;
    struct recorder a = {0}, b = {0}, c = {0};
    assert_int_equal(bus_add_mmio(&bus, gpa(0xfee00000), 0x1000, memory_read, memory_write, &a), 0);
    assert_int_equal(bus_add_mmio(&bus, gpa(0xfec00000), 0x1000, memory_read, memory_write, &b), 0);
    assert_int_equal(bus_add_mmio(&bus, gpa(0xfee00fff), 1, memory_read, memory_write, &b),
                     E_EXIST);
    assert_int_equal(bus_add_mmio(&bus, gpa(0xfebfffff), 2, memory_read, memory_write, &b),
                     E_EXIST);
    assert_int_equal(bus_add_mmio(&bus, gpa(UINT64_MAX), 2, memory_read, memory_write, &b),
                     E_INVAL);
    assert_int_equal(bus_add_mmio(&bus, gpa(0), 0, memory_read, memory_write, &b), E_INVAL);
    assert_int_equal(bus_add_mmio(&bus, gpa(UINT64_MAX - 15), 15, memory_read, memory_write, &c),
                     0);
    assert_true(bus_mmio_claimed(&bus, gpa(0xfee00000)));
    assert_true(bus_mmio_claimed(&bus, gpa(0xfee00fff)));
    assert_false(bus_mmio_claimed(&bus, gpa(0xfee01000)));
    assert_false(bus_mmio_claimed(&bus, gpa(0xfedfffff)));
    assert_int_equal(bus_mmio_load(&bus, gpa(0xfee00020), 4), 0x44332211);
    assert_int_equal(a.offset, 0x20);
    assert_true(bus_mmio_load(&bus, gpa(0xfec00000), 8) == UINT64_C(0x8877665544332211));
    bus_mmio_store(&bus, gpa(0xfec00010), 2, 0xdeadbeef);
    assert_int_equal(b.value, 0xbeef);
    // over the end: the bytes outside are nobody's
    assert_int_equal(bus_mmio_load(&bus, gpa(0xfee00ffe), 4), 0xffff1111);
    bus_mmio_store(&bus, gpa(0xfee00ffe), 4, 0x44332211);
    assert_int_equal(a.value, 0x22);
    assert_int_equal(a.offset, 0xfff);
    assert_int_equal(bus.unclaimed, 0);
    assert_true(bus_mmio_load(&bus, gpa(0xd0000000), 8) == UINT64_MAX);
    bus_mmio_store(&bus, gpa(UINT64_MAX), 1, 1);
    bus_mmio_load(&bus, gpa(UINT64_MAX - 8), 8); // up to the last byte, no wrap
    assert_int_equal(bus.unclaimed, 2);
    for (uint64_t i = 3; i < BUS_MMIO_RANGES; i++)
        assert_int_equal(bus_add_mmio(&bus, gpa(i << 20), 16, memory_read, memory_write, &c), 0);
    assert_int_equal(bus_add_mmio(&bus, gpa(1 << 28), 16, memory_read, memory_write, &c), E_NOMEM);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup(test_routing, fresh),
        cmocka_unit_test_setup(test_refusals, fresh),
        cmocka_unit_test_setup(test_split, fresh),
        cmocka_unit_test_setup(test_random_ranges, fresh),
        cmocka_unit_test_setup(test_mmio, fresh),
    };
    return cmocka_run_group_tests_name("bus", tests, NULL, NULL);
}
