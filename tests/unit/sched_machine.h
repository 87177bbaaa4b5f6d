// SPDX-License-Identifier: BSD-2-Clause
// A simulated machine for the tests of the scheduler: each CPU is a coroutine in the real
// sched_loop(), time jumps from event to event. Checked at every event: an entity runs on one CPU,
// where it may; no CPU halts while an entity that it could run waits.
#pragma once

#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "fake.h"
#include "kernel/error.h"
#include "kernel/lock.h"
#include "kernel/percpu.h"
#include "kernel/sched.h"
#include "kernel/time.h"

#define CPUS        4u
#define OUTSIDER    CPUS // the CPU in whose name the tests act; the scheduler does not run on it
#define US          UINT64_C(1000) // the clock ticks in ns
#define MS          (1000 * US)
#define SLICE       (10 * MS)
#define NEVER       UINT64_MAX
#define NO_DEADLINE (UINT64_MAX - 1) // sleeps without saying until when
#define HAND_OVER   (200 * US)       // from one CPU to another
#define TOLERANCE   (20 * US)        // each look at the clock costs a tick
#define SIM_GROUPS  4u

// --- The machine ---

enum sim_state { SIM_BUSY, SIM_HALTED };

struct sim_cpu {
    enum sim_state state;
    uint64_t until; // busy: end of what it does; halted: what its timer is armed for
    uint64_t armed;
    bool wake, nmi;                                 // pending
    unsigned wakes, nmis, polls, watchdogs, passes; // counted
};

extern struct sim_cpu sim[CPUS];
extern unsigned online;
extern uint64_t zero_work; // turns in which idle CPUs find frames to zero
// Called once, at the next such moment.
extern void (*lock_hook)(void);
extern void (*idle_hook)(void); // when a CPU has found nothing to run and is about to halt
extern void (*arm_hook)(void);

// Boots the machine (setup of a group of tests); its CPUs stay in the scheduler from test to test,
// as sched.c's state does. So after a failure the tests that follow fail too.
int sched_boot(void **state);
int sched_power_off(void **state);
// Each test begins and ends with these: so many CPUs, nobody known; everybody leaves.
void start(unsigned cpu_number);
void finish(void);
// Lets `time` pass.
void simulate(uint64_t time);
// The CPU that runs does something until `until` or an NMI.
void busy(uint64_t until);
// `f` happens on another CPU at this moment.
void elsewhere(void (*f)(void));

// --- Actors: entities that work and sleep ---

struct actor {
    struct sched_entity e;
    char name[8];
    bool known;
    bool inside;    // its run() is active
    uint64_t burst; // works this long between sleeps; NEVER: always
    uint64_t pause; // then sleeps this long; NEVER: until woken
    uint64_t left;  // of the burst
    bool quit;      // the next run is the last
    bool random;    // draws burst and pause anew, wakes others
    unsigned runs;
    uint64_t started, ended; // last run
    uint64_t longest_wait;   // between the end of a run and the next, while it did not sleep
    bool slept;
    uint64_t awake;                  // first run after the last sleep
    void (*script)(struct actor *a); // at the start of each run
};

extern struct actor actors[16];
extern unsigned actor_count;

// Known to the scheduler, asleep.
struct actor *actor(uint64_t burst, uint64_t pause);
// One that always works, awake.
struct actor *hog(uint32_t weight);

// --- Groups: VMs with several vCPUs ---

extern struct sched_group groups[SIM_GROUPS];

struct sched_group *group(uint32_t weight, uint32_t cap);
// An actor of the group, awake.
struct actor *member(struct sched_group *g, uint64_t burst, uint64_t pause);
// What its members ran in all, up to now.
uint64_t ran(const struct sched_group *g);
// finish(), and the groups are gone.
void finish_groups(void);

void assert_near(uint64_t value, uint64_t expected, uint64_t tolerance);
