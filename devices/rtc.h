// SPDX-License-Identifier: BSD-2-Clause
// The MC146818 clock with 128 bytes of CMOS. Caller holds the VM's device lock.
#pragma once

#include "kernel/types.h"
#include "vm/bus.h"
#include "vm/clock.h"

struct rtc {
    uint8_t index;
    uint8_t cmos[128];     // registers A-C, alarm, RAM; the time only while the clock stands
    uint64_t base_seconds; // seconds since 1970 at guest TSC `origin`
    uint64_t origin;
    uint64_t last_second;  // up to which UF and AF were computed
    uint64_t alarm_at;     // second of the next alarm, UINT64_MAX: never
    uint64_t periods_seen; // up to which PF was computed
    bool line;             // level last given to set_irq
    struct vtimer timer;
    struct vclock *clock;
    struct vtimer_queue *timers;
    void (*set_irq)(void *context, bool level); // IRQ 8
    void *context;
};

// seconds: wall clock at guest TSC 0, in seconds since 1970. Adds the timer to `timers`. May be
// called again on the same object, for a machine whose guest TSC starts anew; its memory must be
// zero the first time.
void rtc_init(struct rtc *rtc, uint64_t seconds, struct vclock *clock, struct vtimer_queue *timers,
              void (*set_irq)(void *, bool), void *context);
// Machine reset: interrupts off; the time and the CMOS go on, as on a battery.
void rtc_reset(struct rtc *rtc);
int rtc_register(struct rtc *rtc, struct bus *bus); // 0x70-0x71
