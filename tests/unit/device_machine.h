// SPDX-License-Identifier: BSD-2-Clause
// A machine of port devices for host tests: bus, guest clock under the test's control, PIC with
// PIT, RTC, UART and power control wired to it as in a VM.
#pragma once

#include <stdlib.h>
#include <string.h>

#include "devices/pic.h"
#include "devices/pit.h"
#include "devices/power_control.h"
#include "devices/rtc.h"
#include "devices/uart.h"
#include "vm/clock.h"
#include "vm/layout.h"

struct device_machine {
    struct bus bus;
    struct vclock clock; // frozen: the test moves frozen_at
    struct vtimer_queue timers;
    struct pic pic;
    struct pit pit;
    struct rtc rtc;
    struct uart uart;
    struct power_control power;
    bool level[16];
    unsigned edges[16]; // rising ones, per IRQ
    unsigned requests[3];
};

static inline void machine_irq(struct device_machine *m, unsigned irq, bool level)
{
    if (level == m->level[irq])
        abort(); // devices report changes only
    m->edges[irq] += level ? 1 : 0;
    m->level[irq] = level;
    pic_set_irq(&m->pic, irq, level);
}

static inline void machine_irq0(void *m, bool level)
{
    machine_irq(m, 0, level);
}

static inline void machine_irq4(void *m, bool level)
{
    machine_irq(m, 4, level);
}

static inline void machine_irq8(void *m, bool level)
{
    machine_irq(m, 8, level);
}

static inline void machine_sci(void *m, bool level)
{
    machine_irq(m, LAYOUT_SCI, level);
}

static inline void machine_request(void *context, enum power_request request)
{
    struct device_machine *m = context;
    m->requests[request]++;
}

// Returns 0 when everything could be registered.
static inline int machine_init(struct device_machine *m, uint64_t hz, uint64_t wall_clock)
{
    memset(m, 0, sizeof(*m));
    bus_init(&m->bus);
    vclock_init(&m->clock, hz);
    vtimer_queue_init(&m->timers);
    pic_init(&m->pic);
    pit_init(&m->pit, &m->clock, &m->timers, machine_irq0, m);
    rtc_init(&m->rtc, wall_clock, &m->clock, &m->timers, machine_irq8, m);
    uart_init(&m->uart, machine_irq4, m);
    power_control_init(&m->power, &m->clock, machine_sci, machine_request, m);
    int error = pic_register(&m->pic, &m->bus);
    error = error != 0 ? error : pit_register(&m->pit, &m->bus);
    error = error != 0 ? error : rtc_register(&m->rtc, &m->bus);
    error = error != 0 ? error : uart_register(&m->uart, &m->bus, 0x3f8);
    return error != 0 ? error : power_control_register(&m->power, &m->bus);
}

static inline uint8_t machine_in(struct device_machine *m, uint16_t port)
{
    return (uint8_t)bus_pio_in(&m->bus, port, 1);
}

static inline void machine_out(struct device_machine *m, uint16_t port, uint8_t value)
{
    bus_pio_out(&m->bus, port, 1, value);
}

// Lets guest time pass, stopping at each deadline as a vCPU's run loop does.
static inline void machine_advance(struct device_machine *m, uint64_t ticks)
{
    uint64_t end = m->clock.frozen_at + ticks;
    while (m->timers.earliest <= end) {
        if (m->timers.earliest > m->clock.frozen_at)
            m->clock.frozen_at = m->timers.earliest;
        vtimer_run(&m->timers, m->clock.frozen_at);
    }
    m->clock.frozen_at = end;
}

// Guest time passes while no vCPU of the VM runs; then the timers are looked at once.
static inline void machine_starve(struct device_machine *m, uint64_t ticks)
{
    m->clock.frozen_at += ticks;
    vtimer_run(&m->timers, m->clock.frozen_at);
}
