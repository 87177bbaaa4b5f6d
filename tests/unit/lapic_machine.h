// SPDX-License-Identifier: BSD-2-Clause
// A LAPIC with a clock that the test moves, and a record of what it told the VM.
#pragma once

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "devices/lapic.h"
#include "kernel/error.h"
#include "vm/layout.h"

#define HZ UINT64_C(1000000000)

static struct vclock clock_;
static struct vtimer_queue timers;
static struct lapic lapic;
static struct apic_message sent;
static unsigned sent_count, eoi_count, changed_count;
static uint8_t eoi_vector;

static void record_send(void *context, unsigned from, const struct apic_message *message)
{
    assert_ptr_equal(context, &timers);
    assert_int_equal(from, lapic.id);
    sent = *message;
    sent_count++;
}

static void record_eoi(void *context, uint8_t vector)
{
    assert_ptr_equal(context, &timers);
    eoi_vector = vector;
    eoi_count++;
}

static void record_changed(void *context, unsigned id)
{
    assert_ptr_equal(context, &timers);
    assert_int_equal(id, lapic.id);
    changed_count++;
}

static const struct lapic_ops recorder = {
    .send = record_send, .eoi = record_eoi, .changed = record_changed};

static inline void set_time(uint64_t tsc)
{
    clock_.frozen_at = tsc;
    vtimer_run(&timers, tsc);
}

static inline void start_with_id(uint32_t id)
{
    vclock_init(&clock_, HZ);
    clock_.frozen_at = 1000;
    vtimer_queue_init(&timers);
    lapic_init(&lapic, id, &clock_, &timers, &recorder, &timers);
    sent_count = eoi_count = changed_count = 0;
}

#define BASE   0x1bu
#define ENABLE 0x800u
#define X2APIC 0xc00u

// A LAPIC that is enabled by software: xAPIC or x2APIC mode.
static inline void start(bool x2apic)
{
    start_with_id(0);
    if (x2apic) {
        assert_int_equal(lapic_write_msr(&lapic, BASE, LAYOUT_LAPIC | X2APIC), 0);
        assert_int_equal(lapic_write_msr(&lapic, 0x80f, 0x1ff), 0);
    } else {
        lapic_mmio_write(&lapic, 0xf0, 0x1ff);
    }
}

static inline void deliver(enum apic_delivery delivery, uint8_t vector, bool level)
{
    lapic_deliver(
        &lapic, &(struct apic_message){
                    .delivery = delivery, .vector = vector, .level = level, .assert_level = true});
}

static inline uint32_t rd(uint32_t offset)
{
    return lapic_mmio_read(&lapic, offset);
}

static inline void wr(uint32_t offset, uint32_t value)
{
    lapic_mmio_write(&lapic, offset, value);
}

static inline bool irr(uint8_t vector)
{
    return (lapic.irr[vector / 32] >> (vector % 32) & 1) != 0;
}
