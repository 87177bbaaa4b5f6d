// SPDX-License-Identifier: BSD-2-Clause
// The scheduler: entities (vCPUs and fibers) with a virtual run time each; every CPU picks the
// runnable entity that is furthest behind. One run queue for all CPUs, one lock.
//
// An entity is in one of three states. Wake-ups are never lost: sched_wake() on a running entity
// makes the block that follows return at once.
//
// Entities may belong to a group (the vCPUs of one VM), which has one weight and one cap for all of
// them: a group with more entities that want to run gets no more than one with fewer.
#pragma once

#include "kernel/list.h"
#include "kernel/types.h"

enum sched_state { SCHED_BLOCKED, SCHED_RUNNABLE, SCHED_RUNNING };

// What an entity wants when its run() returns.
enum sched_next {
    SCHED_AGAIN, // still runnable (slice over, or preempted)
    SCHED_SLEEP, // block until sched_wake() or wake_deadline
    SCHED_EXIT,  // never run again; sched_remove() waits for it
};

// Zeroed, then sched_group_set() before the first entity of it runs. The scheduler's lock covers
// it.
struct sched_group {
    uint32_t weight;
    uint32_t cap;     // percent of one CPU, 0: none
    uint32_t active;  // entities of it that run or could
    bool throttled;   // the cap's budget of this window is used up, or promised to those that run
    struct list link; // in the list of throttled groups
    // The integral of `active` over time, and where it was taken last. Who runs is charged with its
    // growth: the share of the weight that each of them has at that moment.
    uint64_t load, load_at;
    uint64_t debt;  // what woken entities ran before it was the group's turn (sched_group.c)
    uint64_t clock; // its own virtual time: what it ran and paid in all, by its weight
    // Runs that the clock does not have yet: how many, and the sum of their beginnings.
    uint64_t running, running_since;
    uint64_t used;       // of the window's budget, promises included
    uint64_t window_end; // TSC
};

struct sched_entity {
    struct list link;          // in the run queue or the sleepers' list
    struct sched_group *group; // NULL: none. Set while it is blocked.
    enum sched_state state;
    bool wake_pending;
    bool dead;
    int cpu;      // running on, else -1
    int last_cpu; // ran on last, else -1
    uint64_t cpu_mask;
    uint32_t weight; // default 100; of one without a group
    bool spun;       // it gave up its CPU to another of its group and has not run since
    bool gift;       // this run is paid for by the one that gave up its CPU
    bool gives_way;  // set by the one that runs: afterwards it is owed no more than those that wait
    uint64_t virtual_time;
    uint64_t loan;          // how far its turn is ahead of that: it woke up earlier
    uint64_t clock_before;  // group->clock when it fell asleep
    uint64_t load_before;   // group->load when this run began
    uint64_t promised;      // of the group's budget, for this run
    uint64_t run_ticks;     // sum of time on a CPU
    uint64_t wait_ticks;    // sum of time runnable without a CPU, also because of a cap
    uint64_t sleep_ticks;   // sum of time blocked while that counts
    bool off;               // blocked and waiting time does not count (sched_count_sleep)
    uint64_t since;         // TSC of the last state change
    uint64_t wake_deadline; // TSC, UINT64_MAX for none
    // Runs the entity on this CPU until `until` (TSC) or until it has nothing to do. Interrupts are
    // off.
    enum sched_next (*run)(struct sched_entity *self, uint64_t until);
    const char *name;
};

void sched_entity_init(struct sched_entity *e, const char *name,
                       enum sched_next (*run)(struct sched_entity *, uint64_t));
// Makes a new entity known; it starts blocked.
void sched_add(struct sched_entity *e);
// Takes it away for good; it must be blocked or dead by its owner's doing. Returns E_BUSY while it
// runs.
int sched_remove(struct sched_entity *e);
// Whether the time that it is blocked, or waits for a CPU, counts from now on: not while the VM it
// belongs to is stopped. It does at first.
void sched_count_sleep(struct sched_entity *e, bool counts);
// Its times up to now: what the sums have and what it has been doing since its last change. Their
// sum grows as time does while it counts.
struct sched_times {
    uint64_t run, wait, sleep;
};
struct sched_times sched_times(const struct sched_entity *e);
// Changes where it may run, at once.
void sched_set_affinity(struct sched_entity *e, uint64_t cpu_mask);
// Sets weight and cap of a group, at once. The cap is kept over windows of 100 ms.
void sched_group_set(struct sched_group *g, uint32_t weight, uint32_t cap);
// Before the group's memory goes; its entities are removed.
void sched_group_remove(struct sched_group *g);
// The entity that runs on this CPU waits for something that another one of its group, which has no
// CPU, may have to do. If there is such a one it gets what is left of this CPU's slice, which ends
// at `until`, and true is returned: the entity should return now. It pays for the whole slice, so
// the group as a whole gets no more than before.
bool sched_yield_to_group(struct sched_entity *e, uint64_t until);
// Makes a blocked entity runnable. If it is running now it will not block before running again.
void sched_wake(struct sched_entity *e);

// The CPU's loop; never returns. Called on each CPU's scheduler stack.
_Noreturn void sched_loop(void);

// A function that CPU 0's loop calls each time round, interrupts off: looks at the console's ring
// and wakes its fiber.
void sched_set_console_poll(void (*poll)(void));

// True when something better waits for this CPU, or its loop has work: an entity that runs must
// return.
bool sched_must_yield(uint32_t cpu);

// Time this CPU's current slice may last at most; the console's CPU answers the UART in time with
// it.
uint64_t sched_max_run_ticks(void);

// --- Fibers: Fusor's own cooperative threads (console, teardown, policies). ---

struct fiber;
// A fiber runs with interrupts on, on any CPU, until it yields, sleeps or returns (it is freed
// then). Returns NULL without memory. It starts runnable.
struct fiber *fiber_create(const char *name, void (*function)(void *), void *argument);
// The fiber that runs on this CPU, or NULL in a handler or a vCPU run.
struct fiber *fiber_current(void);
// Lets others run. No lock may be held. Returns possibly on another CPU.
void fiber_yield(void);
// The same for a fiber with much to do: it goes on as an equal of those that wait, also where it
// had time to its credit for having slept (up to a slice, in which plain yields come back at once).
void fiber_give_way(void);
// The same, if the fiber has held its CPU for FIBER_HOLD_TICKS: for loops whose turns cost little
// or nobody knows how much, so that whatever else waits for this CPU is never away for long.
#define FIBER_HOLD_TICKS 20000u
void fiber_give_way_if_due(void);
// Sleeps until TSC `deadline` or fiber_wake().
void fiber_sleep_until(uint64_t deadline);
void fiber_wake(struct fiber *f);
