// SPDX-License-Identifier: BSD-2-Clause
// The 8254 (Intel datasheet 231164), computed from guest time: nothing ticks, a counter's value and
// its OUT pin follow from when it was loaded. Only channel 0, whose OUT is IRQ 0, has a timer.
//
// Two simplifications: a count is loaded at once when written (the 8254 waits for the next clock,
// and in modes 2 and 3 for the end of the running period), and OUT in mode 0 rises after N clocks,
// not N + 1.
#include "devices/pit.h"

#include "kernel/error.h"
#include "kernel/string.h"

#define CHANNELS 3u
// The timer of channel 0 never fires more often than this: a guest that loads the count 1 must not
// keep the host busy with it.
#define MINIMUM_PERIOD_HZ 10000u
// Periodic ticks that the guest was not there to take (its vCPU did not run) are made up for, a few
// only: guests that count ticks, as Linux does before it has a better clock, keep time across a
// missed slice or two. After longer gaps a flood of ticks would only delay what the guest has to
// catch up with, and a guest with a TSC does not need them.
#define OWED_MAX 8u

enum access { ACCESS_LATCH = 0, ACCESS_LOW = 1, ACCESS_HIGH = 2, ACCESS_BOTH = 3 };
enum port61 { PORT61_GATE = 1u << 0, PORT61_WRITABLE = 0x0f };

static uint64_t saturating_add(uint64_t a, uint64_t b)
{
    uint64_t sum;
    return __builtin_add_overflow(a, b, &sum) ? UINT64_MAX : sum;
}

// Modes 1 and 5 start at a rising gate; 2 and 3 restart there and stand still while it is low.
static bool gate_triggers(const struct pit_channel *c)
{
    return c->mode == 1 || c->mode == 5;
}

static bool gate_holds(const struct pit_channel *c)
{
    return !c->gate && !gate_triggers(c);
}

// Clocks counted since the load.
static uint64_t elapsed(const struct pit *pit, const struct pit_channel *c, uint64_t now)
{
    if (gate_holds(c))
        return c->held;
    return now > c->start ? vclock_scale(now - c->start, pit->clock->hz, PIT_HZ) : 0;
}

// Guest TSC at which `clocks` since the load are over: rounded up, so that elapsed() agrees.
static uint64_t time_of(const struct pit *pit, const struct pit_channel *c, uint64_t clocks)
{
    uint64_t ticks = saturating_add(vclock_scale(clocks, PIT_HZ, pit->clock->hz), 1);
    return saturating_add(c->start, ticks);
}

static uint32_t from_bcd(uint32_t value)
{
    return (value >> 12 & 15) * 1000 + (value >> 8 & 15) * 100 + (value >> 4 & 15) * 10 +
           (value & 15);
}

static uint32_t to_bcd(uint32_t value)
{
    return value / 1000 % 10 << 12 | value / 100 % 10 << 8 | value / 10 % 10 << 4 | value % 10;
}

static uint16_t counter(const struct pit *pit, const struct pit_channel *c, uint64_t now)
{
    uint32_t wrap = c->bcd ? 10000 : 0x10000;
    uint32_t value = c->reload;
    if (c->loaded) {
        uint64_t t = elapsed(pit, c, now);
        if (c->mode == 2) {
            value = c->reload - (uint32_t)(t % c->reload);
        } else if (c->mode == 3) {
            // Counts by two; OUT is high during the first, longer half.
            uint32_t high = (c->reload + 1) / 2;
            uint32_t position = (uint32_t)(t % c->reload);
            if (position >= high)
                position -= high;
            value = (c->reload & ~1u) - 2 * position;
        } else { // goes on below zero
            value = c->reload + wrap - (uint32_t)(t % wrap);
        }
    }
    value %= wrap;
    return (uint16_t)(c->bcd ? to_bcd(value) : value);
}

static bool output(const struct pit *pit, const struct pit_channel *c, uint64_t now)
{
    if (!c->loaded)
        return c->mode != 0;
    uint64_t t = elapsed(pit, c, now);
    switch (c->mode) {
    case 0:
    case 1:
        return t >= c->reload;
    case 2:
        return !c->gate || t % c->reload != c->reload - 1;
    case 3:
        return !c->gate || t % c->reload < (c->reload + 1) / 2;
    default: // 4 and 5: low for one clock
        return t != c->reload;
    }
}

// --- Channel 0: interrupts ---

static void set_line(struct pit *pit, bool level)
{
    if (pit->line == level)
        return;
    pit->line = level;
    pit->set_irq(pit->context, level);
}

static uint64_t minimum_period(const struct pit *pit)
{
    return pit->clock->hz / MINIMUM_PERIOD_HZ + 1;
}

static bool periodic(const struct pit_channel *c)
{
    return c->mode == 2 || c->mode == 3;
}

// Clocks from the load to the rising edge of OUT in the one-shot modes.
static uint64_t one_shot_clocks(const struct pit_channel *c)
{
    return c->mode == 0 ? c->reload : (uint64_t)c->reload + 1;
}

// A new control word or count: the line falls in mode 0, and the next edge is computed anew.
static void restart_timer(struct pit *pit)
{
    const struct pit_channel *c = &pit->channel[0];
    pit->ticks_seen = 0;
    pit->ticks_owed = 0;
    set_line(pit, false);
    uint64_t deadline = UINT64_MAX;
    if (c->loaded && !gate_triggers(c)) {
        deadline = time_of(pit, c, periodic(c) ? c->reload : one_shot_clocks(c));
        if (periodic(c))
            deadline = MAX(deadline, saturating_add(c->start, minimum_period(pit)));
    }
    vtimer_arm(pit->timers, &pit->timer, deadline);
}

static void fire_periodic(struct pit *pit, uint64_t now)
{
    const struct pit_channel *c = &pit->channel[0];
    uint64_t clocks = elapsed(pit, c, now);
    uint64_t periods = clocks / c->reload;
    if (periods > pit->ticks_seen) {
        uint64_t missed = periods - pit->ticks_seen;
        pit->ticks_owed = (uint32_t)MIN(pit->ticks_owed + MIN(missed, OWED_MAX), OWED_MAX);
    }
    pit->ticks_seen = periods;
    if (pit->ticks_owed > 0) {
        pit->ticks_owed--;
        set_line(pit, true);
        set_line(pit, false);
    }
    uint64_t next = time_of(pit, c, saturating_add(clocks, c->reload - clocks % c->reload));
    if (pit->ticks_owed > 0) {
        // Twice as fast until the debt is paid: the guest needs time to take each.
        uint64_t half = vclock_scale(c->reload, PIT_HZ, pit->clock->hz) / 2;
        next = MIN(next, saturating_add(now, half));
    }
    next = MAX(next, saturating_add(now, minimum_period(pit)));
    vtimer_arm(pit->timers, &pit->timer, next);
}

static void fire(void *device, uint64_t now)
{
    struct pit *pit = device;
    const struct pit_channel *c = &pit->channel[0];
    if (!c->loaded)
        return;
    if (periodic(c)) {
        fire_periodic(pit, now);
    } else if (elapsed(pit, c, now) < one_shot_clocks(c)) { // guest time was set back
        vtimer_arm(pit->timers, &pit->timer, time_of(pit, c, one_shot_clocks(c)));
    } else {
        set_line(pit, true);
        if (c->mode != 0) // the strobe of mode 4 is over; OUT of mode 0 stays high
            set_line(pit, false);
    }
}

// --- Programming ---

static void load(struct pit *pit, unsigned index, uint32_t value)
{
    struct pit_channel *c = &pit->channel[index];
    if (c->bcd)
        value = from_bcd(value);
    if (value == 0)
        value = c->bcd ? 10000 : 0x10000;
    c->reload = value;
    c->armed = true;
    if (!gate_triggers(c)) {
        c->loaded = true;
        c->start = vclock_now(pit->clock);
        c->held = 0;
    }
    if (index == 0)
        restart_timer(pit);
}

static void write_count(struct pit *pit, unsigned index, uint8_t value)
{
    struct pit_channel *c = &pit->channel[index];
    switch (c->access) {
    case ACCESS_LOW:
        load(pit, index, value);
        break;
    case ACCESS_HIGH:
        load(pit, index, (uint32_t)value << 8);
        break;
    default:
        if (!c->write_high) {
            c->write_high = true;
            c->write_low = value;
            if (c->mode == 0) { // the first byte stops the count
                c->loaded = false;
                if (index == 0)
                    restart_timer(pit);
            }
        } else {
            c->write_high = false;
            load(pit, index, (uint32_t)value << 8 | c->write_low);
        }
        break;
    }
}

static void latch_count(const struct pit *pit, struct pit_channel *c, uint64_t now)
{
    if (c->latched) // the first latch holds until it is read
        return;
    c->latch = counter(pit, c, now);
    c->latched = true;
}

static void latch_status(const struct pit *pit, struct pit_channel *c, uint64_t now)
{
    if (c->status_latched)
        return;
    c->status = (uint8_t)((output(pit, c, now) ? 0x80u : 0u) | (c->loaded ? 0u : 0x40u) |
                          (unsigned)c->access << 4 | (unsigned)c->mode << 1 | (c->bcd ? 1u : 0u));
    c->status_latched = true;
}

static void write_control(struct pit *pit, uint8_t value)
{
    uint64_t now = vclock_now(pit->clock);
    unsigned index = value >> 6;
    if (index == 3) { // read-back; bits 4 and 5 are active low
        for (unsigned i = 0; i < CHANNELS; i++) {
            if ((value >> (i + 1) & 1) == 0)
                continue;
            if ((value & 0x20) == 0)
                latch_count(pit, &pit->channel[i], now);
            if ((value & 0x10) == 0)
                latch_status(pit, &pit->channel[i], now);
        }
        return;
    }
    struct pit_channel *c = &pit->channel[index];
    if ((value >> 4 & 3) == ACCESS_LATCH) {
        latch_count(pit, c, now);
        return;
    }
    c->access = value >> 4 & 3;
    c->mode = value >> 1 & 7;
    if (c->mode > 5) // bit 2 of the mode does not count for 2 and 3
        c->mode = (uint8_t)(c->mode - 4);
    c->bcd = (value & 1) != 0;
    c->armed = false;
    c->loaded = false;
    c->latched = false;
    c->status_latched = false;
    c->read_high = false;
    c->write_high = false;
    c->held = 0;
    if (index == 0)
        restart_timer(pit);
}

static uint8_t read_count(struct pit *pit, struct pit_channel *c)
{
    if (c->status_latched) {
        c->status_latched = false;
        return c->status;
    }
    uint16_t value = c->latched ? c->latch : counter(pit, c, vclock_now(pit->clock));
    if (c->access == ACCESS_BOTH && !c->read_high) {
        c->read_high = true;
        return (uint8_t)value; // a latch lasts until its second byte
    }
    bool high = c->access != ACCESS_LOW;
    c->read_high = false;
    c->latched = false;
    return (uint8_t)(high ? value >> 8 : value);
}

// Channel 2 only; the gates of the others are wired high.
static void set_gate(struct pit *pit, struct pit_channel *c, bool gate)
{
    uint64_t now = vclock_now(pit->clock);
    if (c->gate == gate)
        return;
    if (!gate) {
        c->held = elapsed(pit, c, now);
        c->gate = false;
        return;
    }
    c->gate = true;
    if (c->mode == 0 || c->mode == 4) { // goes on where it stopped
        uint64_t counted = vclock_scale(c->held, PIT_HZ, pit->clock->hz);
        c->start = now > counted ? now - counted : 0;
    } else {
        c->start = now;
        c->loaded = c->armed;
    }
}

static void pit_write(void *device, uint16_t offset, unsigned size, uint32_t value)
{
    (void)size;
    if (offset == 3)
        write_control(device, (uint8_t)value);
    else
        write_count(device, offset, (uint8_t)value);
}

static uint32_t pit_read(void *device, uint16_t offset, unsigned size)
{
    (void)size;
    struct pit *pit = device;
    return offset == 3 ? 0xff : read_count(pit, &pit->channel[offset]);
}

static void port61_write(void *device, uint16_t offset, unsigned size, uint32_t value)
{
    (void)offset;
    (void)size;
    struct pit *pit = device;
    pit->port61 = value & PORT61_WRITABLE;
    set_gate(pit, &pit->channel[2], (value & PORT61_GATE) != 0);
}

static uint32_t port61_read(void *device, uint16_t offset, unsigned size)
{
    (void)offset;
    (void)size;
    const struct pit *pit = device;
    uint64_t now = vclock_now(pit->clock);
    // Bit 4 toggles with each refresh request, every 18 clocks on a PC; old software waits by it.
    uint64_t refresh = vclock_scale(now, pit->clock->hz, PIT_HZ) / 18 & 1;
    uint32_t out = output(pit, &pit->channel[2], now) ? 1 : 0;
    return (uint32_t)pit->port61 | (uint32_t)refresh << 4 | out << 5;
}

void pit_reset(struct pit *pit)
{
    memset(pit->channel, 0, sizeof(pit->channel));
    for (unsigned i = 0; i < CHANNELS; i++) {
        pit->channel[i].reload = 0x10000;
        pit->channel[i].mode = 3;
        pit->channel[i].access = ACCESS_BOTH;
        pit->channel[i].gate = i != 2;
    }
    pit->port61 = 0;
    restart_timer(pit);
}

void pit_init(struct pit *pit, struct vclock *clock, struct vtimer_queue *timers,
              void (*set_irq)(void *, bool), void *context)
{
    struct vtimer timer = pit->timer; // may hang in the queue already
    memset(pit, 0, sizeof(*pit));
    pit->timer = timer;
    pit->clock = clock;
    pit->timers = timers;
    pit->set_irq = set_irq;
    pit->context = context;
    vtimer_add(timers, &pit->timer, fire, pit);
    pit_reset(pit);
}

int pit_register(struct pit *pit, struct bus *bus)
{
    int error = bus_add_pio_bytes(bus, 0x40, 4, pit_read, pit_write, pit);
    if (error == 0)
        error = bus_add_pio_bytes(bus, 0x61, 1, port61_read, port61_write, pit);
    return error;
}
