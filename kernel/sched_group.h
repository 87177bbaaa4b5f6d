// SPDX-License-Identifier: BSD-2-Clause
// The part of the scheduler that deals with groups: who pays how much, and caps. For sched.c alone,
// which holds its lock in all of these.
#pragma once

#include "kernel/sched.h"

// Less run time (ticks) than this is not worth a switch.
uint64_t sched_least_run_ticks(void);

// From `now` on `active` entities of the group run or could.
void group_set_active(struct sched_group *g, uint32_t active, uint64_t now);
// The virtual time of the `ran` ticks since e->load_before was noted: with a group, the ticks of
// each of its active entities count as if this one had run them with the whole weight. The group's
// load is up to date.
uint64_t group_charge(const struct sched_entity *e, uint64_t ran);

// Takes from the group's budget what `e` may run now, `most` at most; returns it.
uint64_t group_promise(struct sched_entity *e, uint64_t most, uint64_t now);
// It ran so long of what it was promised.
void group_settle(struct sched_entity *e, uint64_t ran);
// Throttled groups whose window has ended may go on; returns when the next one's ends.
uint64_t groups_open_windows(uint64_t now);

void group_change(struct sched_group *g, uint32_t weight, uint32_t cap, uint64_t now);
void group_forget(struct sched_group *g);
