// SPDX-License-Identifier: BSD-2-Clause
// The MC146818 (Motorola datasheet; register C and the square-wave rates as in PC chipsets). The
// time is computed from guest time when it is read; flags of register C are computed when somebody
// looks, and a timer runs only while an enabled interrupt can come.
//
// The day of the week follows from the date; what a guest writes to it does not last.
#include "devices/rtc.h"

#include "devices/calendar.h"
#include "kernel/error.h"
#include "kernel/string.h"

enum rtc_register {
    REG_SECONDS,
    REG_SECONDS_ALARM,
    REG_MINUTES,
    REG_MINUTES_ALARM,
    REG_HOURS,
    REG_HOURS_ALARM,
    REG_WEEKDAY,
    REG_DAY,
    REG_MONTH,
    REG_YEAR,
    REG_A,
    REG_B,
    REG_C,
    REG_D,
    REG_CENTURY = 0x32
};
enum register_a { A_RATE = 0x0f, A_DIVIDER_RESET = 0x60, A_UPDATE = 0x80 };
enum register_b {
    B_24H = 0x02,
    B_BINARY = 0x04,
    B_SQUARE_WAVE = 0x08,
    B_UPDATE_IRQ = 0x10,
    B_ALARM_IRQ = 0x20,
    B_PERIODIC_IRQ = 0x40,
    B_SET = 0x80
};
enum register_c { C_UPDATE = 0x10, C_ALARM = 0x20, C_PERIODIC = 0x40, C_IRQ = 0x80 };
#define D_VALID   0x80u // the battery is good
#define HOUR_PM   0x80u
#define ALARM_ANY 0xc0u // both top bits set: matches everything

#define CRYSTAL_HZ 32768u
// UIP rises 244 us before an update (datasheet, figure 16); the update itself takes no time here.
#define UPDATE_WARNING_HZ 4098u
// Shortest distance of two timer callbacks.
#define MINIMUM_PERIOD_HZ 10000u

#define DAY    86400u
#define HOUR   3600u
#define MINUTE 60u

static uint64_t saturating_add(uint64_t a, uint64_t b)
{
    uint64_t sum;
    return __builtin_add_overflow(a, b, &sum) ? UINT64_MAX : sum;
}

static bool stopped(const struct rtc *rtc)
{
    return (rtc->cmos[REG_B] & B_SET) != 0 ||
           (rtc->cmos[REG_A] & A_DIVIDER_RESET) == A_DIVIDER_RESET;
}

// Ticks since the origin; 0 should guest time have been set back before it. The origin may lie
// before guest TSC 0, so the difference is signed.
static uint64_t since_origin(const struct rtc *rtc, uint64_t now)
{
    uint64_t ticks = now - rtc->origin;
    return ticks <= INT64_MAX ? ticks : 0;
}

static uint64_t seconds_at(const struct rtc *rtc, uint64_t now)
{
    return MIN(rtc->base_seconds + since_origin(rtc, now) / rtc->clock->hz, CALENDAR_SECONDS_MAX);
}

// --- Formats of register B ---

static uint8_t encode(const struct rtc *rtc, uint32_t value)
{
    if ((rtc->cmos[REG_B] & B_BINARY) != 0)
        return (uint8_t)value;
    return (uint8_t)(value / 10 % 10 << 4 | value % 10);
}

static uint32_t decode(const struct rtc *rtc, uint32_t byte)
{
    return (rtc->cmos[REG_B] & B_BINARY) != 0 ? byte : (byte >> 4) * 10 + (byte & 15);
}

static uint8_t encode_hour(const struct rtc *rtc, uint32_t hour)
{
    if ((rtc->cmos[REG_B] & B_24H) != 0)
        return encode(rtc, hour);
    uint8_t twelve = encode(rtc, hour % 12 == 0 ? 12 : hour % 12);
    return hour >= 12 ? (uint8_t)(twelve | HOUR_PM) : twelve;
}

static uint32_t decode_hour(const struct rtc *rtc, uint32_t byte)
{
    if ((rtc->cmos[REG_B] & B_24H) != 0)
        return decode(rtc, byte);
    uint32_t hour = decode(rtc, byte & 0x7f) % 12;
    return (byte & HOUR_PM) != 0 ? hour + 12 : hour;
}

static bool is_time(uint8_t index)
{
    return index == REG_CENTURY || (index <= REG_YEAR && index != REG_SECONDS_ALARM &&
                                    index != REG_MINUTES_ALARM && index != REG_HOURS_ALARM);
}

static uint8_t time_register(const struct rtc *rtc, uint8_t index, const struct calendar *c)
{
    switch (index) {
    case REG_SECONDS:
        return encode(rtc, c->second);
    case REG_MINUTES:
        return encode(rtc, c->minute);
    case REG_HOURS:
        return encode_hour(rtc, c->hour);
    case REG_WEEKDAY:
        return encode(rtc, c->weekday + 1);
    case REG_DAY:
        return encode(rtc, c->day);
    case REG_MONTH:
        return encode(rtc, c->month);
    case REG_YEAR:
        return encode(rtc, c->year % 100);
    default:
        return encode(rtc, c->year / 100);
    }
}

// The clock stops: from now on the registers hold the time.
static void hold_time(struct rtc *rtc, uint64_t now)
{
    struct calendar c = calendar_from_seconds(seconds_at(rtc, now));
    for (unsigned i = 0; i < ARRAY_SIZE(rtc->cmos); i++) {
        if (is_time((uint8_t)i))
            rtc->cmos[i] = time_register(rtc, (uint8_t)i, &c);
    }
}

// The smallest second after `after` at which the alarm registers match, UINT64_MAX when none does.
// Skips whole hours and minutes, so it needs at most 24 + 60 + 60 steps and a few.
static uint64_t next_alarm(const struct rtc *rtc, uint64_t after)
{
    const uint8_t *r = rtc->cmos;
    bool any_second = r[REG_SECONDS_ALARM] >= ALARM_ANY;
    bool any_minute = r[REG_MINUTES_ALARM] >= ALARM_ANY;
    bool any_hour = r[REG_HOURS_ALARM] >= ALARM_ANY;
    uint32_t second = decode(rtc, r[REG_SECONDS_ALARM]);
    uint32_t minute = decode(rtc, r[REG_MINUTES_ALARM]);
    uint32_t hour = decode_hour(rtc, r[REG_HOURS_ALARM]);
    // The chip compares bytes: what no time of day is written like never matches.
    if ((!any_second && (second > 59 || encode(rtc, second) != r[REG_SECONDS_ALARM])) ||
        (!any_minute && (minute > 59 || encode(rtc, minute) != r[REG_MINUTES_ALARM])) ||
        (!any_hour && (hour > 23 || encode_hour(rtc, hour) != r[REG_HOURS_ALARM])))
        return UINT64_MAX;
    uint64_t t = after + 1;
    for (;;) {
        uint32_t of_day = (uint32_t)(t % DAY);
        if (!any_hour && of_day / HOUR != hour)
            t += HOUR - of_day % HOUR;
        else if (!any_minute && of_day / MINUTE % 60 != minute)
            t += MINUTE - of_day % MINUTE;
        else if (!any_second && of_day % 60 != second)
            t++;
        else
            return t;
    }
}

static uint32_t period_clocks(const struct rtc *rtc)
{
    uint32_t rate = rtc->cmos[REG_A] & A_RATE;
    if (rate == 0 || (rtc->cmos[REG_A] & A_DIVIDER_RESET) == A_DIVIDER_RESET)
        return 0;
    if (rate <= 2) // datasheet, table 5: 1 and 2 repeat 8 and 9
        rate += 7;
    return 1u << (rate - 1);
}

static uint64_t periods_at(const struct rtc *rtc, uint64_t now)
{
    uint32_t clocks = period_clocks(rtc);
    if (clocks == 0)
        return 0;
    return vclock_scale(since_origin(rtc, now), rtc->clock->hz, CRYSTAL_HZ) / clocks;
}

// Forgets what happened before: the time, the rate or the alarm was set.
static void resynchronise(struct rtc *rtc, uint64_t now)
{
    rtc->last_second = seconds_at(rtc, now);
    rtc->alarm_at = next_alarm(rtc, rtc->last_second);
    rtc->periods_seen = periods_at(rtc, now);
}

// The clock goes on with the time in the registers, and with the phase of the second it has.
static void release_time(struct rtc *rtc, uint64_t now)
{
    uint32_t century = decode(rtc, rtc->cmos[REG_CENTURY]);
    struct calendar c = {.second = decode(rtc, rtc->cmos[REG_SECONDS]),
                         .minute = decode(rtc, rtc->cmos[REG_MINUTES]),
                         .hour = decode_hour(rtc, rtc->cmos[REG_HOURS]),
                         .day = decode(rtc, rtc->cmos[REG_DAY]),
                         .month = decode(rtc, rtc->cmos[REG_MONTH]),
                         .year = century * 100 + decode(rtc, rtc->cmos[REG_YEAR]) % 100};
    rtc->origin = now - since_origin(rtc, now) % rtc->clock->hz;
    rtc->base_seconds = calendar_to_seconds(&c);
    resynchronise(rtc, now);
}

// --- Flags and interrupts ---

static uint64_t next_event(const struct rtc *rtc, uint64_t now)
{
    uint64_t hz = rtc->clock->hz;
    uint8_t enabled = rtc->cmos[REG_B];
    uint64_t elapsed = since_origin(rtc, now);
    uint64_t next = UINT64_MAX; // ticks after `now`
    if (!stopped(rtc)) {
        if ((enabled & B_UPDATE_IRQ) != 0)
            next = hz - elapsed % hz;
        if ((enabled & B_ALARM_IRQ) != 0 && rtc->alarm_at > rtc->last_second &&
            rtc->alarm_at != UINT64_MAX) {
            uint64_t whole = vclock_scale(rtc->alarm_at - rtc->last_second - 1, 1, hz);
            next = MIN(next, saturating_add(hz - elapsed % hz, whole));
        }
    }
    uint32_t clocks = period_clocks(rtc);
    if ((enabled & B_PERIODIC_IRQ) != 0 && clocks != 0) {
        uint64_t end = (rtc->periods_seen + 1) * clocks;
        uint64_t ticks = saturating_add(vclock_scale(end, CRYSTAL_HZ, hz), 1); // rounded up
        next = MIN(next, ticks > elapsed ? ticks - elapsed : 0);
    }
    if (next == UINT64_MAX)
        return next;
    return saturating_add(now, MAX(next, hz / MINIMUM_PERIOD_HZ + 1));
}

// Brings register C, the line and the timer up to date.
static void update(struct rtc *rtc, uint64_t now)
{
    uint8_t *flags = &rtc->cmos[REG_C];
    uint64_t second = seconds_at(rtc, now);
    if (!stopped(rtc) && second != rtc->last_second) {
        if (second > rtc->last_second) {
            *flags |= C_UPDATE;
            if (rtc->alarm_at <= second)
                *flags |= C_ALARM;
        }
        if (rtc->alarm_at <= second || second < rtc->last_second)
            rtc->alarm_at = next_alarm(rtc, second);
        rtc->last_second = second;
    }
    uint64_t periods = periods_at(rtc, now);
    if (periods > rtc->periods_seen) // however many: register C has one bit
        *flags |= C_PERIODIC;
    rtc->periods_seen = periods;

    bool level = (*flags & rtc->cmos[REG_B] & (C_UPDATE | C_ALARM | C_PERIODIC)) != 0;
    *flags = (uint8_t)((*flags & ~(unsigned)C_IRQ) | (level ? C_IRQ : 0u));
    // The line stays until the guest reads register C; till then no timer is needed, so a guest
    // that does not read it costs nothing.
    vtimer_arm(rtc->timers, &rtc->timer, level ? UINT64_MAX : next_event(rtc, now));
    if (level != rtc->line) {
        rtc->line = level;
        rtc->set_irq(rtc->context, level);
    }
}

static void fire(void *device, uint64_t now)
{
    update(device, now);
}

// --- Registers ---

static void write_control(struct rtc *rtc, uint8_t index, uint8_t value, uint64_t now)
{
    bool was_stopped = stopped(rtc);
    bool divider_was_reset = (rtc->cmos[REG_A] & A_DIVIDER_RESET) == A_DIVIDER_RESET;
    uint32_t clocks = period_clocks(rtc);
    if (index == REG_B && (value & B_SET) != 0)
        value = (uint8_t)(value & ~B_UPDATE_IRQ); // datasheet: SET clears UIE
    if (index == REG_A)
        value = (uint8_t)(value & ~A_UPDATE);
    bool stops = index == REG_B ? (value & B_SET) != 0 || divider_was_reset
                                : (value & A_DIVIDER_RESET) == A_DIVIDER_RESET ||
                                      (rtc->cmos[REG_B] & B_SET) != 0;
    rtc->cmos[index] = value; // the format of the held time is that of the new register B
    if (!was_stopped && stops)
        hold_time(rtc, now);
    if (divider_was_reset && (rtc->cmos[REG_A] & A_DIVIDER_RESET) != A_DIVIDER_RESET) {
        // The first update comes half a second after the divider chain is let go (datasheet).
        rtc->origin = now - rtc->clock->hz / 2;
        rtc->periods_seen = periods_at(rtc, now);
    }
    if (was_stopped && !stops)
        release_time(rtc, now);
    else if (!stops) // formats of the alarm may have changed
        rtc->alarm_at = next_alarm(rtc, rtc->last_second);
    if (period_clocks(rtc) != clocks)
        rtc->periods_seen = periods_at(rtc, now);
}

static void write_register(struct rtc *rtc, uint8_t index, uint8_t value)
{
    uint64_t now = vclock_now(rtc->clock);
    if (index == REG_C || index == REG_D) // read-only
        return;
    update(rtc, now); // events before the write count by the old registers
    if (index == REG_A || index == REG_B) {
        write_control(rtc, index, value, now);
    } else if (is_time(index) && !stopped(rtc)) {
        hold_time(rtc, now);
        rtc->cmos[index] = value;
        release_time(rtc, now);
    } else {
        rtc->cmos[index] = value;
        if (index <= REG_HOURS_ALARM)
            rtc->alarm_at = next_alarm(rtc, rtc->last_second);
    }
    if (index <= REG_B)
        update(rtc, now);
}

static uint8_t read_register(struct rtc *rtc, uint8_t index)
{
    if (is_time(index) && !stopped(rtc)) {
        struct calendar c = calendar_from_seconds(seconds_at(rtc, vclock_now(rtc->clock)));
        return time_register(rtc, index, &c);
    }
    if (index == REG_A) {
        uint64_t hz = rtc->clock->hz;
        uint64_t left = hz - since_origin(rtc, vclock_now(rtc->clock)) % hz;
        bool soon = !stopped(rtc) && left <= hz / UPDATE_WARNING_HZ;
        return (uint8_t)(rtc->cmos[REG_A] | (soon ? A_UPDATE : 0u));
    }
    if (index == REG_C) {
        uint64_t now = vclock_now(rtc->clock);
        update(rtc, now);
        uint8_t value = rtc->cmos[REG_C];
        rtc->cmos[REG_C] = 0;
        update(rtc, now);
        return value;
    }
    return index == REG_D ? D_VALID : rtc->cmos[index];
}

static void rtc_write(void *device, uint16_t offset, unsigned size, uint32_t value)
{
    (void)size;
    struct rtc *rtc = device;
    if (offset == 0)
        rtc->index = value & 0x7f; // bit 7 masks NMIs on a PC; there are none
    else
        write_register(rtc, rtc->index, (uint8_t)value);
}

static uint32_t rtc_read(void *device, uint16_t offset, unsigned size)
{
    (void)size;
    struct rtc *rtc = device;
    return offset == 0 ? 0xff : read_register(rtc, rtc->index); // 0x70 is write-only
}

void rtc_reset(struct rtc *rtc)
{
    uint64_t now = vclock_now(rtc->clock);
    const uint8_t lost = B_SET | B_PERIODIC_IRQ | B_ALARM_IRQ | B_UPDATE_IRQ | B_SQUARE_WAVE;
    write_control(rtc, REG_B, (uint8_t)(rtc->cmos[REG_B] & ~lost), now);
    rtc->index = 0;
    rtc->cmos[REG_C] = 0;
    resynchronise(rtc, now);
    update(rtc, now);
}

void rtc_init(struct rtc *rtc, uint64_t seconds, struct vclock *clock, struct vtimer_queue *timers,
              void (*set_irq)(void *, bool), void *context)
{
    struct vtimer timer = rtc->timer; // may hang in the queue already
    memset(rtc, 0, sizeof(*rtc));
    rtc->timer = timer;
    rtc->base_seconds = MIN(seconds, CALENDAR_SECONDS_MAX);
    rtc->clock = clock;
    rtc->timers = timers;
    rtc->set_irq = set_irq;
    rtc->context = context;
    rtc->cmos[REG_A] = 0x26; // 32768 Hz, 1024 Hz periodic: what PC firmware leaves
    rtc->cmos[REG_B] = B_24H;
    vtimer_add(timers, &rtc->timer, fire, rtc);
    resynchronise(rtc, vclock_now(clock));
}

int rtc_register(struct rtc *rtc, struct bus *bus)
{
    return bus_add_pio_bytes(bus, 0x70, 2, rtc_read, rtc_write, rtc);
}
