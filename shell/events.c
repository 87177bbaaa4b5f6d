// SPDX-License-Identifier: BSD-2-Clause
#include "shell/events.h"

#include <stdatomic.h>

#include "kernel/format.h"
#include "kernel/lock.h"
#include "kernel/string.h"
#include "shell/console.h"

#define EVENTS 32u

// Filled from any context, VM exits included, so the lock ranks last and holders only copy.
static struct spinlock lock = SPINLOCK_INIT("events", RANK_LOG);
static char lines[EVENTS][EVENT_MAX];
static uint64_t posted; // counts up; the slot is the count modulo EVENTS
static uint64_t taken;
static uint64_t dropped; // after the last one posted
static _Atomic uint64_t ever_posted;

void console_event(const char *line)
{
    size_t length = strnlen(line, EVENT_MAX - 1);
    spin_lock(&lock);
    // Once one was dropped the others wait behind the line that says so: order is kept.
    if (posted - taken == EVENTS || dropped > 0) {
        dropped++;
    } else {
        char *slot = lines[posted % EVENTS];
        memcpy(slot, line, length);
        slot[length] = '\0';
        posted++;
    }
    spin_unlock(&lock);
    atomic_fetch_add(&ever_posted, 1);
}

uint64_t events_posted(void)
{
    return atomic_load(&ever_posted);
}

bool events_pending(void)
{
    spin_lock(&lock);
    bool pending = posted != taken || dropped > 0;
    spin_unlock(&lock);
    return pending;
}

bool events_take(char line[EVENT_MAX])
{
    bool found = true;
    uint64_t missing = 0;
    spin_lock(&lock);
    if (posted != taken) {
        memcpy(line, lines[taken % EVENTS], EVENT_MAX);
        taken++;
    } else if (dropped > 0) {
        missing = dropped;
        dropped = 0;
    } else {
        found = false;
    }
    spin_unlock(&lock);
    if (missing > 0)
        format_text(line, EVENT_MAX, "%llu events were not shown: they came too fast",
                    (unsigned long long)missing);
    return found;
}
