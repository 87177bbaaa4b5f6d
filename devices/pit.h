// SPDX-License-Identifier: BSD-2-Clause
// The 8254 timer, its gate and speaker bits in port 0x61. Caller holds the VM's device lock.
#pragma once

#include "kernel/types.h"
#include "vm/bus.h"
#include "vm/clock.h"

#define PIT_HZ 1193182u

struct pit_channel {
    uint32_t reload; // 1..65536
    uint64_t start;  // guest TSC of the last load
    uint64_t held;   // ticks counted when the gate stopped the channel
    uint16_t latch;
    uint8_t status;
    uint8_t mode, access, write_low;
    bool bcd, gate, latched, status_latched, read_high, write_high;
    bool armed;  // a complete count was written
    bool loaded; // and the counting element has it (modes 1 and 5 wait for the gate)
};

struct pit {
    struct pit_channel channel[3];
    uint8_t port61;
    bool line;           // level last given to set_irq
    uint64_t ticks_seen; // periods of channel 0 since `start` that were accounted
    uint32_t ticks_owed; // of them still to be delivered
    struct vtimer timer; // channel 0
    struct vclock *clock;
    struct vtimer_queue *timers;
    void (*set_irq)(void *context, bool level); // IRQ 0
    void *context;
};

// Adds the timer to `timers`. May be called again on the same object; its memory must be zero the
// first time.
void pit_init(struct pit *pit, struct vclock *clock, struct vtimer_queue *timers,
              void (*set_irq)(void *, bool), void *context);
// Machine reset: power-on state; the timer stays in its queue.
void pit_reset(struct pit *pit);
int pit_register(struct pit *pit, struct bus *bus); // 0x40-0x43, 0x61
