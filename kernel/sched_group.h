// SPDX-License-Identifier: BSD-2-Clause
// The part of the scheduler that deals with groups: who pays how much, and caps. For sched.c alone,
// which holds its lock in all of these.
#pragma once

#include "kernel/sched.h"

// Virtual times wrap around: with little weight and many vCPUs 64 bits last for weeks. Those that
// are compared lie close together; the difference says which comes first.
static inline bool before(uint64_t a, uint64_t b)
{
    return (int64_t)(a - b) < 0;
}

static inline uint64_t later(uint64_t a, uint64_t b)
{
    return before(a, b) ? b : a;
}

// Less run time (ticks) than this is not worth a switch.
uint64_t sched_least_run_ticks(void);

// The entity is one of those that run or could, or no longer. Also without a group.
void group_enter(struct sched_entity *e, uint64_t now);
void group_leave(struct sched_entity *e, uint64_t now);
// Where an entity that wakes up stands: at its turn, or before the others by up to `most` of
// virtual time. `reached`: the virtual time of those it competes with.
void group_wake(struct sched_entity *e, uint64_t now, uint64_t reached, uint64_t most);
// A run begins. What another one has paid for (e->gift) is not charged at its end.
void group_start(struct sched_entity *e, uint64_t now);
// It ends, after `ran` ticks, before group_leave(): raises the entity's virtual time.
void group_charge(struct sched_entity *e, uint64_t ran, uint64_t now);
// The entity, which runs, pays for another one's run of so many ticks.
void group_charge_gift(struct sched_entity *e, uint64_t ticks);

// Takes from the group's budget what `e` may run now, `most` at most; returns it.
uint64_t group_promise(struct sched_entity *e, uint64_t most, uint64_t now);
// It ran so long of what it was promised.
void group_settle(struct sched_entity *e, uint64_t ran);
// Throttled groups whose window has ended may go on; returns when the next one's ends.
uint64_t groups_open_windows(uint64_t now);

void group_change(struct sched_group *g, uint32_t weight, uint32_t cap, uint64_t now);
void group_forget(struct sched_group *g);
