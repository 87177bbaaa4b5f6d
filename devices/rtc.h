// SPDX-License-Identifier: BSD-2-Clause
// The MC146818 clock with 128 bytes of CMOS. Caller holds the VM's device lock.
#pragma once

#include "kernel/types.h"
#include "vm/bus.h"
#include "vm/clock.h"

struct rtc {
    uint8_t index;
    uint8_t cmos[128];
    uint64_t base_seconds; // seconds since 1970 at guest TSC 0
    struct vtimer timer;
    struct vclock *clock;
    struct vtimer_queue *timers;
    void (*set_irq)(void *context, bool level); // IRQ 8
    void *context;
};

// seconds: wall clock at guest TSC 0, in seconds since 1970.
void rtc_init(struct rtc *rtc, uint64_t seconds, struct vclock *clock, struct vtimer_queue *timers,
              void (*set_irq)(void *, bool), void *context);
int rtc_register(struct rtc *rtc, struct bus *bus); // 0x70-0x71
