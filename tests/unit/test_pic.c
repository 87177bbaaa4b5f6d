// SPDX-License-Identifier: BSD-2-Clause
// sources: devices/pic.c vm/bus.c
// The pair of 8259As: initialisation, priorities, EOI forms, cascade, ELCR, poll, spurious
// requests.
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>

#include <cmocka.h>

#include "devices/pic.h"

static struct bus bus;
static struct pic pic;

static void out(uint16_t port, uint8_t value)
{
    bus_pio_out(&bus, port, 1, value);
}

static uint8_t in(uint16_t port)
{
    return (uint8_t)bus_pio_in(&bus, port, 1);
}

// As Linux does (init_8259A): vectors 0x30 and 0x38, cascade on 2, all unmasked here.
static void init_vectors(uint8_t master_icw4)
{
    out(0x20, 0x11);
    out(0x21, 0x30);
    out(0x21, 0x04);
    out(0x21, master_icw4);
    out(0xa0, 0x11);
    out(0xa1, 0x38);
    out(0xa1, 0x02);
    out(0xa1, 0x01);
    out(0x21, 0x00);
    out(0xa1, 0x00);
}

static int fresh(void **state)
{
    (void)state;
    bus_init(&bus);
    pic_init(&pic);
    return pic_register(&pic, &bus);
}

static void pulse(unsigned irq)
{
    pic_set_irq(&pic, irq, true);
    pic_set_irq(&pic, irq, false);
}

static void test_power_on(void **state)
{
    (void)state;
    for (unsigned irq = 0; irq < 16; irq++)
        pulse(irq);
    assert_false(pic_pending(&pic)); // nothing before the guest unmasks it
    // Linux's probe_8259A
    out(0xa1, 0xff);
    out(0x21, 0xfb);
    assert_int_equal(in(0x21), 0xfb);
    assert_int_equal(in(0xa1), 0xff);
}

static void test_vectors_and_priorities(void **state)
{
    (void)state;
    init_vectors(1);
    assert_false(pic_pending(&pic));
    pulse(4);
    pulse(1);
    assert_true(pic_pending(&pic));
    assert_int_equal(pic_acknowledge(&pic), 0x31);
    assert_false(pic_pending(&pic)); // 4 is less urgent than 1 in service
    pulse(0);
    assert_true(pic_pending(&pic)); // 0 is more urgent
    assert_int_equal(pic_acknowledge(&pic), 0x30);
    out(0x20, 0x0b); // read ISR
    assert_int_equal(in(0x20), 0x03);
    out(0x20, 0x0a);
    assert_int_equal(in(0x20), 0x10);
    out(0x20, 0x20); // non-specific: the most urgent, 0
    out(0x20, 0x61); // specific: 1
    assert_int_equal(pic_acknowledge(&pic), 0x34);
}

static void test_edge_and_mask(void **state)
{
    (void)state;
    init_vectors(1);
    out(0x21, 0x10);
    pic_set_irq(&pic, 4, true);
    assert_false(pic_pending(&pic));
    out(0x21, 0x00); // a masked request is kept
    assert_int_equal(pic_acknowledge(&pic), 0x34);
    out(0x20, 0x20);
    assert_false(pic_pending(&pic)); // the line is still high: no second edge
    pic_set_irq(&pic, 4, true);
    assert_false(pic_pending(&pic));
    pic_set_irq(&pic, 4, false);
    pic_set_irq(&pic, 4, true);
    assert_true(pic_pending(&pic));
    init_vectors(1); // ICW1 resets the edge detectors
    assert_false(pic_pending(&pic));
}

static void test_level(void **state)
{
    (void)state;
    init_vectors(1);
    out(0x4d0, 0xff);
    out(0x4d1, 0xff);
    assert_int_equal(in(0x4d0), 0xf8); // 0, 1, 2, 8, 13 stay edge-triggered
    assert_int_equal(in(0x4d1), 0xde);
    pic_set_irq(&pic, 9, true);
    assert_int_equal(pic_acknowledge(&pic), 0x39);
    out(0xa0, 0x20);
    out(0x20, 0x20);
    assert_true(pic_pending(&pic)); // still high
    pic_set_irq(&pic, 9, false);
    assert_false(pic_pending(&pic)); // withdrawn, no trace in the master either
    assert_int_equal(pic_acknowledge(&pic), 0x37);
    pulse(5);
    assert_false(pic_pending(&pic));
    out(0x4d0, 0);
    pulse(5);
    assert_true(pic_pending(&pic));
    out(0x4d0, 0x20); // the latch of an edge does not survive the change
    assert_false(pic_pending(&pic));
}

static void test_cascade(void **state)
{
    (void)state;
    init_vectors(1);
    pulse(12);
    pulse(3);
    assert_int_equal(pic_acknowledge(&pic), 0x3c); // the slave sits at 2, before 3
    pulse(8);
    assert_false(pic_pending(&pic)); // 2 is in service in the master
    out(0xa0, 0x20);
    assert_false(pic_pending(&pic));
    out(0x20, 0x62);
    assert_int_equal(pic_acknowledge(&pic), 0x38);
    out(0xa0, 0x20);
    out(0x20, 0x62);
    assert_int_equal(pic_acknowledge(&pic), 0x33);
    out(0x20, 0x20);
    assert_false(pic_pending(&pic));
    pulse(2); // no such pin
    assert_false(pic_pending(&pic));
    pulse(16);
    assert_false(pic_pending(&pic));
}

static void test_special_fully_nested(void **state)
{
    (void)state;
    init_vectors(0x11);
    pulse(12);
    assert_int_equal(pic_acknowledge(&pic), 0x3c);
    pulse(8);
    assert_true(pic_pending(&pic));
    assert_int_equal(pic_acknowledge(&pic), 0x38);
}

static void test_spurious(void **state)
{
    (void)state;
    init_vectors(1);
    assert_int_equal(pic_acknowledge(&pic), 0x37);
    out(0x20, 0x0b);
    assert_int_equal(in(0x20), 0); // no in-service bit
}

static void test_auto_eoi_and_rotation(void **state)
{
    (void)state;
    init_vectors(3);
    pulse(1);
    assert_int_equal(pic_acknowledge(&pic), 0x31);
    pulse(3);
    assert_int_equal(pic_acknowledge(&pic), 0x33); // nothing stayed in service
    out(0x20, 0x80);                               // rotate on automatic EOI
    pulse(4);
    assert_int_equal(pic_acknowledge(&pic), 0x34); // now 5 comes first, 4 last
    pulse(4);
    pulse(0);
    pulse(6);
    assert_int_equal(pic_acknowledge(&pic), 0x36);
    assert_int_equal(pic_acknowledge(&pic), 0x30);
    assert_int_equal(pic_acknowledge(&pic), 0x34);
    init_vectors(1);
    out(0x20, 0xc3); // set priority: 3 is last
    pulse(3);
    pulse(7);
    assert_int_equal(pic_acknowledge(&pic), 0x37);
    out(0x20, 0xa0); // EOI with rotation: 7 is last
    pulse(0);
    assert_int_equal(pic_acknowledge(&pic), 0x30);
    out(0x20, 0x20);
    assert_int_equal(pic_acknowledge(&pic), 0x33);
}

static void test_special_mask(void **state)
{
    (void)state;
    init_vectors(1);
    pulse(1);
    assert_int_equal(pic_acknowledge(&pic), 0x31);
    pulse(5);
    assert_false(pic_pending(&pic));
    out(0x20, 0x68);
    out(0x21, 0x02); // the level in service is masked: it no longer holds up others
    assert_int_equal(pic_acknowledge(&pic), 0x35);
    out(0x20, 0x20); // ends 5, not the masked 1
    out(0x20, 0x0b);
    assert_int_equal(in(0x20), 0x02);
    out(0x20, 0x48);
    pulse(5);
    assert_false(pic_pending(&pic));
}

static void test_poll(void **state)
{
    (void)state;
    init_vectors(1);
    out(0x20, 0x0c);
    assert_int_equal(in(0x20), 0x00);
    pulse(6);
    out(0x20, 0x0c);
    assert_int_equal(in(0x20), 0x86);
    assert_false(pic_pending(&pic));
    out(0x20, 0x0b);
    assert_int_equal(in(0x20), 0x40);
}

static void test_initialisation_forms(void **state)
{
    (void)state;
    out(0x20, 0x13); // single, ICW4: no ICW3
    out(0x21, 0x47); // low bits of the vector do not count
    out(0x21, 0x01);
    out(0x21, 0xa5);
    assert_int_equal(in(0x21), 0xa5);
    assert_int_equal(pic_acknowledge(&pic), 0x47);
    out(0x20, 0x10); // cascade, no ICW4
    out(0x21, 0x50);
    out(0x21, 0x04);
    out(0x21, 0x5a);
    assert_int_equal(in(0x21), 0x5a);
    bus_pio_out(&bus, 0x20, 2, 0x7712); // a wide write is both ports: ICW1, ICW2
    assert_int_equal(pic.chip[0].vector_base, 0x70);
}

static void test_random(void **state)
{
    (void)state;
    static const uint16_t ports[] = {0x20, 0x21, 0xa0, 0xa1, 0x4d0, 0x4d1};
    srand(4);
    for (int i = 0; i < 300000; i++) {
        uint16_t port = ports[(unsigned)rand() % ARRAY_SIZE(ports)];
        switch (rand() % 4) {
        case 0:
            out(port, (uint8_t)rand());
            break;
        case 1:
            in(port);
            break;
        case 2:
            pic_set_irq(&pic, (unsigned)rand() % 18, rand() % 2 != 0);
            break;
        default:
            if (pic_pending(&pic)) {
                const struct pic before = pic;
                uint8_t vector = pic_acknowledge(&pic);
                // what was acknowledged was requested and not masked
                const struct pic_chip *c = &before.chip[0];
                unsigned bits = c->irr & ~(unsigned)c->imr;
                assert_true(bits != 0);
                bool of_master = (vector & 0xf8) == c->vector_base && (bits >> (vector & 7) & 1);
                const struct pic_chip *s = &before.chip[1];
                bool of_slave = (vector & 0xf8) == s->vector_base &&
                                ((s->irr & ~(unsigned)s->imr) >> (vector & 7) & 1) != 0;
                assert_true(of_master || of_slave);
            }
            break;
        }
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup(test_power_on, fresh),
        cmocka_unit_test_setup(test_vectors_and_priorities, fresh),
        cmocka_unit_test_setup(test_edge_and_mask, fresh),
        cmocka_unit_test_setup(test_level, fresh),
        cmocka_unit_test_setup(test_cascade, fresh),
        cmocka_unit_test_setup(test_special_fully_nested, fresh),
        cmocka_unit_test_setup(test_spurious, fresh),
        cmocka_unit_test_setup(test_auto_eoi_and_rotation, fresh),
        cmocka_unit_test_setup(test_special_mask, fresh),
        cmocka_unit_test_setup(test_poll, fresh),
        cmocka_unit_test_setup(test_initialisation_forms, fresh),
        cmocka_unit_test_setup(test_random, fresh),
    };
    return cmocka_run_group_tests_name("pic", tests, NULL, NULL);
}
