// SPDX-License-Identifier: BSD-2-Clause
// Plays bytes as what a hostile guest and an unlucky clock do to the port devices, and checks after
// each step what must always hold. Used with random bytes by test_devices, and by fuzz_devices.
#pragma once

#include <stdio.h>

#include "device_machine.h"

struct script {
    const uint8_t *bytes;
    size_t left;
};

static inline uint64_t script_take(struct script *s, unsigned count)
{
    uint64_t value = 0;
    for (; count > 0 && s->left > 0; count--, s->left--)
        value = value << 8 | *s->bytes++;
    return value;
}

#define SCRIPT_CHECK(condition)                                                                    \
    do {                                                                                           \
        if (!(condition)) {                                                                        \
            fprintf(stderr, "%s:%d: does not hold: %s\n", __FILE__, __LINE__, #condition);         \
            abort();                                                                               \
        }                                                                                          \
    } while (0)

static inline void script_check(const struct device_machine *m)
{
    const struct uart *u = &m->uart;
    SCRIPT_CHECK(u->rx_count <= (u->fifo_on ? 16 : 1));
    SCRIPT_CHECK(u->input_head - u->input_tail <= UART_INPUT_BYTES);
    SCRIPT_CHECK(((u->lsr & 1) != 0) == (u->rx_count > 0));
    SCRIPT_CHECK((u->lsr & 0x60) == 0x60);
    for (unsigned i = 0; i < 3; i++)
        SCRIPT_CHECK(m->pit.channel[i].reload >= 1 && m->pit.channel[i].reload <= 0x10000);
    SCRIPT_CHECK(m->pit.channel[0].mode <= 5);
    SCRIPT_CHECK(m->pit.ticks_owed <= 8);
    SCRIPT_CHECK(m->pic.chip[0].priority < 8 && m->pic.chip[1].priority < 8);
    SCRIPT_CHECK(m->level[0] == m->pit.line);
    SCRIPT_CHECK(m->level[4] == u->line);
    SCRIPT_CHECK(m->level[8] == ((m->rtc.cmos[0x0c] & 0x80) != 0));
    SCRIPT_CHECK(m->level[LAYOUT_SCI] == ((m->power.pm1_status & m->power.pm1_enable) != 0));
    uint64_t earliest = UINT64_MAX;
    unsigned timers = 0;
    for (const struct vtimer *t = m->timers.first; t != NULL; t = t->next, timers++) {
        SCRIPT_CHECK(timers < 2);
        earliest = MIN(earliest, t->deadline);
    }
    SCRIPT_CHECK(timers == 2 && m->timers.earliest == earliest);
}

// A device that is due again at the time it was just served would keep the host in a loop.
static inline void script_run_timers(struct device_machine *m)
{
    uint64_t now = m->clock.frozen_at;
    vtimer_run(&m->timers, now);
    SCRIPT_CHECK(m->timers.earliest > now || now == UINT64_MAX);
}

static inline uint16_t script_port(struct script *s)
{
    static const uint16_t ports[] = {0x20,  0x21,  0xa0,  0xa1,  0x4d0, 0x4d1, 0x40,  0x41,  0x42,
                                     0x43,  0x43,  0x61,  0x70,  0x71,  0x71,  0x3f8, 0x3f9, 0x3fa,
                                     0x3fb, 0x3fc, 0x3fd, 0x3fe, 0x3ff, 0x600, 0x602, 0x604, 0x605,
                                     0x608, 0xcf8, 0xcf9, 0x60,  0x64,  0x92,  0xf4,  0x3f7, 0x607};
    uint64_t choice = script_take(s, 1);
    return choice < 240 ? ports[choice % ARRAY_SIZE(ports)] : (uint16_t)script_take(s, 2);
}

static inline void script_time(struct device_machine *m, struct script *s, uint64_t kind)
{
    uint64_t *now = &m->clock.frozen_at;
    switch (kind % 4) {
    case 0:
        *now += script_take(s, 3);
        break;
    case 1: // a starved vCPU: up to hours
        *now += script_take(s, 6);
        break;
    case 2: // as the run loop does: from deadline to deadline
        for (unsigned i = 0; i < 20 && m->timers.earliest != UINT64_MAX; i++) {
            *now = MAX(*now, m->timers.earliest);
            script_run_timers(m);
        }
        break;
    default: // guest time was written
        *now = script_take(s, 8);
        break;
    }
    script_run_timers(m);
}

static inline void script_outside(struct device_machine *m, struct script *s, uint64_t kind)
{
    char text[300] = {0};
    uint64_t cursor;
    switch (kind % 8) {
    case 0:
        power_control_press_button(&m->power);
        break;
    case 1:
        cursor = script_take(s, 2);
        uart_read_output(&m->uart, &cursor, text, sizeof(text));
        SCRIPT_CHECK(cursor <= m->uart.output_total);
        break;
    case 2:
        pit_reset(&m->pit);
        rtc_reset(&m->rtc);
        uart_reset(&m->uart);
        power_control_reset(&m->power);
        break;
    case 3:
        pic_set_irq(&m->pic, (unsigned)script_take(s, 1), true);
        break;
    case 4:
        pic_set_irq(&m->pic, (unsigned)script_take(s, 1), false);
        break;
    default: {
        size_t size = (size_t)script_take(s, 1);
        SCRIPT_CHECK(uart_write_input(&m->uart, text, size) <= size);
        break;
    }
    }
}

static inline void script_play(struct device_machine *m, const uint8_t *bytes, size_t size)
{
    static const unsigned sizes[] = {1, 1, 2, 4};
    struct script s = {bytes, size};
    while (s.left > 0) {
        uint64_t step = script_take(&s, 1);
        unsigned width = sizes[step >> 3 & 3];
        uint16_t port;
        switch (step & 7) {
        case 0:
        case 1:
        case 2:
            port = script_port(&s);
            bus_pio_out(&m->bus, port, width, (uint32_t)script_take(&s, width));
            break;
        case 3:
        case 4: {
            uint32_t value = bus_pio_in(&m->bus, script_port(&s), width);
            SCRIPT_CHECK(width == 4 || value >> (8 * width) == 0);
            break;
        }
        case 5:
            if (pic_pending(&m->pic))
                pic_acknowledge(&m->pic);
            break;
        case 6:
            script_time(m, &s, step >> 3);
            break;
        default:
            script_outside(m, &s, step >> 3);
            break;
        }
        script_check(m);
    }
}
