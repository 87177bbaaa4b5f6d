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
    uint16_t latch;
    uint8_t status;
    uint8_t mode, access, write_low;
    bool bcd, gate, latched, status_latched, read_high, write_high, armed;
};

struct pit {
    struct pit_channel channel[3];
    uint8_t port61;
    struct vtimer timer; // channel 0
    struct vclock *clock;
    struct vtimer_queue *timers;
    void (*set_irq)(void *context, bool level); // IRQ 0
    void *context;
};

void pit_init(struct pit *pit, struct vclock *clock, struct vtimer_queue *timers,
              void (*set_irq)(void *, bool), void *context);
int pit_register(struct pit *pit, struct bus *bus); // 0x40-0x43, 0x61
