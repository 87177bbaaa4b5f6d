// SPDX-License-Identifier: BSD-2-Clause
// sources: devices/lapic.c devices/lapic_interrupt.c devices/lapic_virtual.c devices/lapic_timer.c
// sources: vm/clock.c
// KVM's PV EOI beside a guest without: the same interrupts at the same moments must be
// taken in the same order, none must be left behind, and the EOIs in memory must save exits.
#include "lapic_machine.h"

#include <stdlib.h>

static uint8_t byte;

static void start_pv(void)
{
    start(true);
    byte = 0;
    lapic.eoi_byte = &byte;
}

static void accept(uint8_t vector, bool arms)
{
    assert_int_equal(lapic_pending(&lapic), vector);
    lapic_accept(&lapic, vector);
    assert_int_equal(lapic_arm_eoi(&lapic, vector), arms);
    assert_int_equal(byte, arms);
    assert_int_equal(lapic.eoi_armed, arms);
}

static bool in_service(uint8_t vector)
{
    return (lapic.isr[vector / 32] >> (vector % 32) & 1) != 0;
}

static void by_memory(void **state)
{
    (void)state;
    start_pv();
    deliver(APIC_FIXED, 0x40, false);
    accept(0x40, true);
    byte = 0; // the guest's EOI
    lapic_settle_eoi(&lapic);
    assert_false(in_service(0x40));
    lapic_settle_eoi(&lapic); // once
    // An exit before the guest's EOI.
    deliver(APIC_FIXED, 0x40, false);
    accept(0x40, true);
    lapic_settle_eoi(&lapic);
    assert_int_equal(byte, 1);
    assert_true(in_service(0x40));
    byte = 0;
    lapic_settle_eoi(&lapic);
    assert_false(in_service(0x40));
    // The guest writes the register nevertheless, or its EOI comes when this is switched off.
    deliver(APIC_FIXED, 0x40, false);
    accept(0x40, true);
    lapic_settle_eoi(&lapic);
    assert_int_equal(lapic_write_msr(&lapic, 0x80b, 0), 0);
    assert_false(in_service(0x40));
    assert_int_equal(byte, 0);
    assert_false(lapic.eoi_armed);
    deliver(APIC_FIXED, 0x40, false);
    accept(0x40, true);
    lapic_disarm_eoi(&lapic);
    assert_int_equal(byte, 0);
    assert_true(in_service(0x40));
    assert_int_equal(lapic_write_msr(&lapic, 0x80b, 0), 0);
    assert_false(in_service(0x40));
}

static void not_armed(void **state)
{
    (void)state;
    start_pv();
    // The IOAPIC waits for it.
    deliver(APIC_FIXED, 0x40, true);
    accept(0x40, false);
    lapic_write_msr(&lapic, 0x80b, 0);
    assert_int_equal(eoi_count, 1);
    // Another interrupt does, of the same class and of a lower one.
    for (uint8_t other = 0x31; other <= 0x41; other += 0x10) {
        deliver(APIC_FIXED, 0x42, false);
        deliver(APIC_FIXED, other, false);
        accept(0x42, false);
        lapic_write_msr(&lapic, 0x80b, 0);
        accept(other, true);
        lapic_disarm_eoi(&lapic);
        lapic_write_msr(&lapic, 0x80b, 0);
    }
    // Nested in another one, in the same word of ISR and in another.
    for (uint8_t inner = 0x51; inner <= 0x71; inner += 0x20) {
        deliver(APIC_FIXED, 0x41, false);
        accept(0x41, true);
        deliver(APIC_FIXED, inner, false);
        lapic_settle_eoi(&lapic);
        accept(inner, false);
        lapic_write_msr(&lapic, 0x80b, 0);
        lapic_write_msr(&lapic, 0x80b, 0);
        assert_int_equal(lapic.isr_words, 0);
    }
    // Switched off.
    lapic.eoi_byte = NULL;
    deliver(APIC_FIXED, 0x41, false);
    accept(0x41, false);
}

// What comes while ISR is behind must be told, whatever its priority.
static void arrivals_are_told(void **state)
{
    (void)state;
    for (uint8_t vector = 0x31; vector <= 0x51; vector += 0x10) {
        start_pv();
        deliver(APIC_FIXED, 0x41, false);
        accept(0x41, true);
        byte = 0;
        changed_count = 0;
        deliver(APIC_FIXED, vector, false);
        assert_int_equal(changed_count, 1);
        lapic_settle_eoi(&lapic);
        assert_int_equal(lapic_pending(&lapic), vector);
    }
}

static void resets_disarm(void **state)
{
    (void)state;
    start_pv();
    deliver(APIC_FIXED, 0x41, false);
    accept(0x41, true);
    lapic_reset_by_init(&lapic);
    assert_false(lapic.eoi_armed);
    lapic_settle_eoi(&lapic); // touches nothing
    assert_int_equal(byte, 1);
    lapic_reset(&lapic);
    assert_null(lapic.eoi_byte);
}

// Whoever switches the LAPIC off in a handler and on again must not find the old word there: the
// next interrupt may need its EOI.
static void switched_off_and_on(void **state)
{
    (void)state;
    start_pv();
    deliver(APIC_FIXED, 0x41, false);
    accept(0x41, true);
    assert_int_equal(byte, 1);
    assert_int_equal(lapic_write_msr(&lapic, BASE, LAYOUT_LAPIC), 0);
    assert_int_equal(byte, 0);
    assert_false(lapic.eoi_armed);
    lapic_settle_eoi(&lapic);
    assert_int_equal(lapic_write_msr(&lapic, BASE, LAYOUT_LAPIC | (X2APIC & ~0x400u)), 0);
    assert_int_equal(lapic_write_msr(&lapic, BASE, LAYOUT_LAPIC | X2APIC), 0);
    assert_int_equal(lapic_write_msr(&lapic, 0x80f, 0x1ff), 0);
    deliver(APIC_FIXED, 0x42, true);
    accept(0x42, false);
    assert_int_equal(byte, 0);
    assert_int_equal(lapic_write_msr(&lapic, 0x80b, 0), 0);
    assert_int_equal(eoi_count, 1);
}

// --- A guest: handlers run with interrupts off; between the exits nobody looks at the LAPIC ---

struct guest {
    struct lapic *l;
    uint8_t byte;
    bool in_handler, window;
    unsigned exits, taken_count;
    uint8_t taken[4096];
};

static void take(struct guest *g)
{
    int vector = lapic_pending(g->l);
    if (vector < 0)
        return;
    if (g->in_handler) {
        g->window = true;
        return;
    }
    lapic_accept(g->l, (uint8_t)vector);
    (void)lapic_arm_eoi(g->l, (uint8_t)vector);
    g->taken[g->taken_count++] = (uint8_t)vector;
    g->in_handler = true;
    g->window = lapic_pending(g->l) >= 0;
}

static void leave_guest(struct guest *g)
{
    g->exits++;
    lapic_settle_eoi(g->l);
    take(g);
}

// The end of a handler: EOI, then IRET.
static void end_handler(struct guest *g)
{
    if (!g->in_handler)
        return;
    if ((g->byte & 1) != 0) {
        g->byte = 0;
    } else {
        g->exits++;
        lapic_settle_eoi(g->l);
        assert_int_equal(lapic_write_msr(g->l, 0x80b, 0), 0);
        take(g);
    }
    g->in_handler = false;
    if (g->window) {
        g->window = false;
        leave_guest(g);
    }
}

static struct guest plain, pv;

static void told(void *context, unsigned id)
{
    (void)id;
    ((struct guest *)context)->l->startup_vector = 1; // marks a kick
}

static void no_eoi(void *context, uint8_t vector)
{
    (void)context;
    (void)vector;
}

static void make(struct guest *g, struct lapic *l, uint8_t *eoi_byte)
{
    static const struct lapic_ops ops = {.send = record_send, .eoi = no_eoi, .changed = told};
    *g = (struct guest){.l = l};
    lapic_init(l, 0, &clock_, &timers, &ops, g);
    assert_int_equal(lapic_write_msr(l, BASE, LAYOUT_LAPIC | X2APIC), 0);
    assert_int_equal(lapic_write_msr(l, 0x80f, 0x1ff), 0);
    l->eoi_byte = eoi_byte;
}

static void send_to(struct guest *g, uint8_t vector, bool level)
{
    g->l->startup_vector = 0;
    lapic_deliver(
        g->l, &(struct apic_message){
                  .delivery = APIC_FIXED, .vector = vector, .level = level, .assert_level = true});
    if (g->l->startup_vector != 0)
        leave_guest(g);
}

static void same_as_without(void **state)
{
    (void)state;
    unsigned saved = 0;
    for (unsigned seed = 1; seed <= 300; seed++) {
        static struct lapic a, b;
        vclock_init(&clock_, HZ);
        vtimer_queue_init(&timers);
        make(&plain, &a, NULL);
        make(&pv, &b, &pv.byte);
        srand(seed);
        for (unsigned i = 0; i < 2000; i++) {
            unsigned what = (unsigned)rand() % 8;
            if (what < 3) {
                uint8_t vector = (uint8_t)(0x30 + rand() % (seed % 2 != 0 ? 200 : 40));
                bool level = rand() % 8 == 0;
                send_to(&plain, vector, level);
                send_to(&pv, vector, level);
            } else if (what < 7) {
                end_handler(&plain);
                end_handler(&pv);
            } else { // an exit for another reason
                leave_guest(&plain);
                leave_guest(&pv);
            }
            assert_int_equal(plain.in_handler, pv.in_handler);
            assert_int_equal(plain.taken_count, pv.taken_count);
        }
        while (plain.in_handler || pv.in_handler) {
            end_handler(&plain);
            end_handler(&pv);
        }
        lapic_settle_eoi(&b);
        assert_int_equal(a.irr_words | a.isr_words | b.irr_words | b.isr_words, 0);
        assert_int_equal(plain.taken_count, pv.taken_count);
        assert_memory_equal(plain.taken, pv.taken, pv.taken_count);
        assert_true(pv.exits <= plain.exits);
        saved += plain.exits - pv.exits;
    }
    assert_true(saved > 10000);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(by_memory),           cmocka_unit_test(not_armed),
        cmocka_unit_test(arrivals_are_told),   cmocka_unit_test(resets_disarm),
        cmocka_unit_test(switched_off_and_on), cmocka_unit_test(same_as_without),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
