// SPDX-License-Identifier: BSD-2-Clause
// Seconds since 1970 <-> date and time of day (proleptic Gregorian, no leap seconds).
#pragma once

#include "kernel/types.h"

#define CALENDAR_SECONDS_MAX UINT64_C(253402300799) // 9999-12-31 23:59:59

struct calendar {
    uint32_t second, minute, hour;
    uint32_t day;     // 1..31
    uint32_t month;   // 1..12
    uint32_t year;    // 1970..9999
    uint32_t weekday; // 0: Sunday
};

// Later times than CALENDAR_SECONDS_MAX are taken as that.
struct calendar calendar_from_seconds(uint64_t seconds);
// Values outside their range are brought into it (the 31st of February is its last day); weekday is
// ignored.
uint64_t calendar_to_seconds(const struct calendar *c);
