// SPDX-License-Identifier: BSD-2-Clause
#include "devices/calendar.h"

#define DAY UINT64_C(86400)
// Days from 0000-03-01 to 1970-01-01. Years that begin in March end with their leap day.
#define EPOCH_DAYS     719468u
#define DAYS_400_YEARS 146097u

static bool leap(uint32_t year)
{
    return year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
}

static uint32_t days_in_month(uint32_t year, uint32_t month)
{
    static const uint8_t days[12] = {31, 28, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31};
    return days[month - 1] + (month == 2 && leap(year) ? 1u : 0u);
}

struct calendar calendar_from_seconds(uint64_t seconds)
{
    seconds = MIN(seconds, CALENDAR_SECONDS_MAX);
    uint32_t days = (uint32_t)(seconds / DAY);
    uint32_t rest = (uint32_t)(seconds % DAY);
    struct calendar c = {.second = rest % 60,
                         .minute = rest / 60 % 60,
                         .hour = rest / 3600,
                         .weekday = (days + 4) % 7}; // 1970-01-01 was a Thursday
    uint32_t shifted = days + EPOCH_DAYS;
    uint32_t era = shifted / DAYS_400_YEARS;
    uint32_t day_of_era = shifted % DAYS_400_YEARS;
    uint32_t year_of_era =
        (day_of_era - day_of_era / 1460 + day_of_era / 36524 - day_of_era / 146096) / 365;
    uint32_t day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    uint32_t month = (5 * day_of_year + 2) / 153; // 0: March
    c.day = day_of_year - (153 * month + 2) / 5 + 1;
    c.month = month < 10 ? month + 3 : month - 9;
    c.year = year_of_era + era * 400 + (c.month <= 2 ? 1u : 0u);
    return c;
}

uint64_t calendar_to_seconds(const struct calendar *c)
{
    uint32_t year = MAX(MIN(c->year, 9999u), 1970u);
    uint32_t month = MAX(MIN(c->month, 12u), 1u);
    uint32_t day = MAX(MIN(c->day, days_in_month(year, month)), 1u);
    uint32_t shifted_year = month <= 2 ? year - 1 : year;
    uint32_t era = shifted_year / 400;
    uint32_t year_of_era = shifted_year % 400;
    uint32_t day_of_year = (153 * (month > 2 ? month - 3 : month + 9) + 2) / 5 + day - 1;
    uint32_t day_of_era = year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year;
    uint64_t days = (uint64_t)era * DAYS_400_YEARS + day_of_era - EPOCH_DAYS;
    return days * DAY + MIN(c->hour, 23u) * 3600 + MIN(c->minute, 59u) * 60 + MIN(c->second, 59u);
}
