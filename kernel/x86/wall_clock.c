// SPDX-License-Identifier: BSD-2-Clause
// The machine's wall clock: the MC146818 RTC, read once; the TSC carries on from there.
#include <arch/cpu.h>

#include "kernel/time.h"

#define RTC_INDEX 0x70u
#define RTC_DATA  0x71u

struct wall_time {
    uint8_t second, minute, hour, day, month, year;
};

static uint8_t read_cmos(uint8_t reg)
{
    cpu_out8(RTC_INDEX, reg);
    return cpu_in8(RTC_DATA);
}

static void read_rtc(struct wall_time *t)
{
    for (unsigned i = 0; i < 1000 && (read_cmos(0xa) & 0x80) != 0; i++) // update in progress
        time_busy_wait_us(10);
    *t = (struct wall_time){read_cmos(0), read_cmos(2), read_cmos(4),
                            read_cmos(7), read_cmos(8), read_cmos(9)};
}

static uint8_t from_bcd(uint8_t value, bool binary)
{
    return binary ? value : (uint8_t)((value >> 4) * 10 + (value & 15));
}

// Days since 1970 of a date in the Gregorian calendar, years 2000..2099.
static uint64_t days(unsigned year, unsigned month, unsigned day)
{
    static const uint16_t before[12] = {0, 31, 59, 90, 120, 151, 181, 212, 243, 273, 304, 334};
    unsigned leap_days = (year - 1968) / 4; // since 1970, this year's included
    if (year % 4 == 0 && month <= 2)
        leap_days--;
    return (uint64_t)(year - 1970) * 365 + leap_days + before[(month + 11) % 12] + day - 1;
}

static uint64_t read_wall_clock(void)
{
    struct wall_time a, b;
    read_rtc(&a);
    for (unsigned i = 0; i < 10; i++) { // two equal readings are no torn one
        read_rtc(&b);
        if (__builtin_memcmp(&a, &b, sizeof(a)) == 0)
            break;
        a = b;
    }
    uint8_t format = read_cmos(0xb);
    bool binary = (format & 4) != 0;
    bool pm = (format & 2) == 0 && (a.hour & 0x80) != 0;
    unsigned hour = from_bcd(a.hour & 0x7f, binary);
    if ((format & 2) == 0)
        hour = hour % 12 + (pm ? 12 : 0);
    return days(2000u + from_bcd(a.year, binary), from_bcd(a.month, binary),
                from_bcd(a.day, binary)) *
               86400 +
           hour * 3600u + from_bcd(a.minute, binary) * 60u + from_bcd(a.second, binary);
}

uint64_t time_wall_seconds(void)
{
    static uint64_t base, base_tsc;
    if (base == 0) { // first called by one fiber, when the first VM is made
        base = read_wall_clock();
        base_tsc = time_tsc();
    }
    return base + (time_tsc() - base_tsc) / tsc_hz;
}
