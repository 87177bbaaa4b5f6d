// SPDX-License-Identifier: BSD-2-Clause
// Two LAPICs and an IOAPIC's kind of messages under random register accesses, messages and clock
// jumps, checked after each step. Also run by tests/unit/test_lapic.c.
//
// Invariants: no fixed interrupt is lost (IRR only loses what was accepted or reset), ISR only
// loses by EOI, the summaries agree with the registers, lapic_pending() is what the SDM's rule
// says, and the timer never stands at a moment that has passed nor tells the VM more than once per
// step.

// sources: devices/lapic.c devices/lapic_interrupt.c devices/lapic_virtual.c devices/lapic_timer.c
// sources: vm/clock.c

#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "devices/lapic.h"
#include "vm/layout.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

#define LAPICS 2u

struct machine {
    struct vclock clock;
    struct vtimer_queue timers;
    struct lapic lapics[LAPICS];
    unsigned changed[LAPICS], sends, eois;
};

// Bytes of the input; zero after its end.
struct input {
    const uint8_t *data;
    size_t size;
};

#define REQUIRE(condition)                                                                         \
    do {                                                                                           \
        if (!(condition)) {                                                                        \
            fprintf(stderr, "%s:%d: %s\n", __FILE__, __LINE__, #condition);                        \
            abort();                                                                               \
        }                                                                                          \
    } while (0)

static uint64_t take(struct input *in, size_t bytes)
{
    uint64_t value = 0;
    size_t n = MIN(bytes, in->size);
    memcpy(&value, in->data, n);
    in->data += n;
    in->size -= n;
    return value;
}

static bool has(const uint32_t *set, unsigned vector)
{
    return (set[vector / 32] >> (vector % 32) & 1) != 0;
}

// What the VM does with messages; and a fixed one to an enabled LAPIC must be in IRR afterwards.
static void deliver(struct lapic *l, const struct apic_message *m)
{
    lapic_deliver(l, m);
    bool fixed = m->delivery == APIC_FIXED || m->delivery == APIC_LOWEST;
    if (fixed && m->vector >= 16 && lapic_enabled(l) && (l->svr & 0x100) != 0) {
        REQUIRE(has(l->irr, m->vector));
        REQUIRE(has(l->tmr, m->vector) == m->level);
    }
}

static void on_send(void *context, unsigned from, const struct apic_message *m)
{
    struct machine *machine = context;
    machine->sends++;
    REQUIRE(m->vector >= 16 || (m->delivery != APIC_FIXED && m->delivery != APIC_LOWEST));
    for (unsigned i = 0; i < LAPICS; i++) {
        if (lapic_receives(&machine->lapics[i], from, m))
            deliver(&machine->lapics[i], m);
    }
}

static void on_eoi(void *context, uint8_t vector)
{
    struct machine *machine = context;
    machine->eois++;
    REQUIRE(vector >= 16);
}

static void on_changed(void *context, unsigned id)
{
    struct machine *machine = context;
    REQUIRE(id < LAPICS);
    machine->changed[id]++;
}

static const struct lapic_ops ops = {.send = on_send, .eoi = on_eoi, .changed = on_changed};

static int slow_highest(const uint32_t *set)
{
    for (int v = 255; v >= 0; v--) {
        if (has(set, (unsigned)v))
            return v;
    }
    return -1;
}

static void check(const struct machine *machine, const struct lapic *l)
{
    for (unsigned w = 0; w < 8; w++) {
        REQUIRE((l->irr[w] != 0) == ((l->irr_words >> w & 1) != 0));
        REQUIRE((l->isr[w] != 0) == ((l->isr_words >> w & 1) != 0));
    }
    REQUIRE((l->irr[0] & 0xffff) == 0 && (l->isr[0] & 0xffff) == 0);
    int request = slow_highest(l->irr);
    int service = slow_highest(l->isr);
    unsigned floor = MAX(l->tpr >> 4, service < 0 ? 0u : (unsigned)service >> 4);
    int want = lapic_enabled(l) && request >= 0 && (unsigned)request >> 4 > floor ? request : -1;
    REQUIRE(lapic_pending(l) == want);
    REQUIRE((l->icr & 0x1000) == 0);
    if ((l->svr & 0x100) == 0) {
        for (unsigned i = 1; i < 7; i++)
            REQUIRE((l->lvt[i] & 0x10000) != 0);
    }
    REQUIRE(l->timer.deadline > machine->clock.frozen_at || l->timer.deadline == UINT64_MAX);
    uint32_t mode = l->lvt[1] >> 17 & 3;
    if (mode == 1 && l->timer.deadline != UINT64_MAX) // periodic: bounded below and above
        REQUIRE(l->timer.deadline - machine->clock.frozen_at <= UINT64_C(1) << 39);
    if (mode != 2)
        REQUIRE(l->tsc_deadline == 0);
}

static uint64_t value_of(struct input *in)
{
    uint64_t kind = take(in, 1);
    switch (kind % 5) {
    case 0:
        return 0;
    case 1:
        return take(in, 1);
    case 2:
        return take(in, 4);
    case 3:
        return UINT64_C(1) << (kind / 5 % 64);
    default:
        return take(in, 8);
    }
}

// Registers that exist are worth more tries than those that do not.
static uint32_t register_of(struct input *in)
{
    static const uint8_t known[] = {0x02, 0x08, 0x0b, 0x0d, 0x0e, 0x0f, 0x28, 0x30, 0x31, 0x32,
                                    0x33, 0x35, 0x36, 0x37, 0x38, 0x39, 0x3e, 0x3f, 0x32, 0x38};
    uint8_t b = (uint8_t)take(in, 1);
    return b < 200 ? known[b % ARRAY_SIZE(known)] : (uint32_t)take(in, 1);
}

static void step(struct machine *machine, struct input *in)
{
    unsigned which = (unsigned)take(in, 1);
    struct lapic *l = &machine->lapics[which >> 4 & 1];
    struct lapic before[LAPICS];
    memcpy(before, machine->lapics, sizeof(before));
    bool accepted = false, reset = false;
    uint64_t value;
    memset(machine->changed, 0, sizeof(machine->changed));
    machine->sends = machine->eois = 0;
    switch (which & 15) {
    case 0:
    case 1:
    case 2:
    case 3: {
        uint32_t reg = register_of(in);
        value = value_of(in);
        if (lapic_x2apic(l))
            (void)lapic_write_msr(l, 0x800 + reg, value);
        else
            lapic_mmio_write(l, reg << 4, (uint32_t)value);
        break;
    }
    case 4:
        (void)lapic_mmio_read(l, (uint32_t)take(in, 2));
        break;
    case 5:
        (void)lapic_read_msr(l, 0x800 + register_of(in), &value);
        (void)lapic_read_msr(l, 0x6e0, &value);
        break;
    case 6:
        (void)lapic_write_msr(l, 0x6e0, machine->clock.frozen_at + value_of(in));
        break;
    case 7: {
        uint8_t flags = (uint8_t)take(in, 1);
        struct apic_message m = {.vector = (uint8_t)take(in, 1),
                                 .delivery = (enum apic_delivery)(flags & 7),
                                 .level = (flags & 8) != 0,
                                 .assert_level = (flags & 16) != 0};
        deliver(l, &m);
        break;
    }
    case 8:
    case 9:
    case 10:
        if (lapic_pending(l) >= 0) {
            accepted = true;
            lapic_accept(l, (uint8_t)lapic_pending(l));
        }
        break;
    case 11:
    case 12:
        machine->clock.frozen_at += take(in, 1) << take(in, 1) % 40;
        break;
    case 13:
        if (take(in, 1) < 32) {
            value = take(in, 1) & 3;
            reset = lapic_write_msr(l, 0x1b, LAYOUT_LAPIC | value << 10) == 0;
        } else if (take(in, 1) < 8) {
            lapic_reset_by_init(l);
            reset = true;
        }
        break;
    case 14: // enable it, so that most of the time something happens
        if (lapic_x2apic(l))
            (void)lapic_write_msr(l, 0x80f, 0x1ff);
        else
            lapic_mmio_write(l, 0xf0, 0x1ff);
        break;
    default:
        lapic_set_cr8(l, take(in, 1));
        (void)lapic_get_cr8(l);
        break;
    }
    vtimer_run(&machine->timers, machine->clock.frozen_at);

    REQUIRE(machine->sends <= 1 && machine->eois <= 1);
    for (unsigned i = 0; i < LAPICS; i++) {
        const struct lapic *now = &machine->lapics[i];
        check(machine, now);
        // At most: an IPI, the timer, and the error interrupt of each.
        REQUIRE(machine->changed[i] <= 4);
        if (reset && now == l)
            continue;
        unsigned requests_lost = 0, services_lost = 0;
        for (unsigned v = 0; v < 256; v++) {
            requests_lost += has(before[i].irr, v) && !has(now->irr, v);
            services_lost += has(before[i].isr, v) && !has(now->isr, v);
            if (has(now->isr, v) && !has(before[i].isr, v))
                REQUIRE(accepted && now == l && has(before[i].irr, v));
        }
        REQUIRE(requests_lost <= (accepted && now == l ? 1u : 0u));
        REQUIRE(services_lost <= (now == l ? 1u : 0u));
        if (lapic_pending(now) > before[i].pending && now != l)
            REQUIRE(machine->changed[i] > 0); // nobody else would wake it
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct machine machine;
    memset(&machine, 0, sizeof(machine));
    vclock_init(&machine.clock, 2000000000);
    machine.clock.frozen_at = 12345;
    vtimer_queue_init(&machine.timers);
    for (unsigned i = 0; i < LAPICS; i++)
        lapic_init(&machine.lapics[i], i, &machine.clock, &machine.timers, &ops, &machine);
    lapic_virtual_wire(&machine.lapics[0]);
    struct input in = {data, size};
    while (in.size > 0)
        step(&machine, &in);
    return 0;
}
