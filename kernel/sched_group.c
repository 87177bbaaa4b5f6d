// SPDX-License-Identifier: BSD-2-Clause
// Groups of the scheduler. A group's weight is shared by those of its entities that run or could at
// that moment. Its cap is a budget of run time per window: who starts is promised a piece of it and
// gives back what it does not need; with nothing left to promise the group is throttled until the
// window ends, its entities wait in the queue.
//
// While an entity sleeps those of its group that do not have its share of the weight. So when it
// wakes up its turn (`due` below) is later than its virtual time says, by what the group's own
// virtual time, its clock, has grown meanwhile. To wait for it would make every wake-up beside a
// busy sibling late. Therefore it is *lent* the time: it comes up to a slice before the others, as
// one whose group slept as a whole does with good right; what it runs on loan is its group's debt,
// and who of the group runs on its own account pays that in addition to its own time. A group in
// debt by a slice is lent nothing. Without this VMs with sleepers beside a busy vCPU got up to a
// fifth more than their share (test_calm_beside_sleepers).
#include "kernel/sched_group.h"

#include "kernel/panic.h"
#include "kernel/time.h"

// Caps are kept over this time. Shorter windows would cost more switches, longer ones make a capped
// guest stand still for longer.
#define WINDOW_MS 100u
// Less than this is not worth a switch of vCPUs (some 5 us).
#define LEAST_RUN_US 100u
// No entity that sleeps is further ahead of the others than one run can have brought it: a slice,
// by the weight 1, and as one of 16 of its group; with room to spare.
#define AHEAD_SLICES (4u * 16u * 100u)

static struct list throttled = {&throttled, &throttled};

uint64_t sched_least_run_ticks(void)
{
    return tsc_hz / 1000000 * LEAST_RUN_US;
}

static void set_active(struct sched_group *g, uint32_t active, uint64_t now)
{
    if (now > g->load_at) {
        g->load += (now - g->load_at) * g->active;
        g->load_at = now;
    }
    g->active = active;
}

void group_enter(struct sched_entity *e, uint64_t now)
{
    if (e->group != NULL)
        set_active(e->group, e->group->active + 1, now);
}

// The clock with what those have run so far that run now, and will pay for it: one of them may have
// woken, in the middle of its run, the entity whose turn is reckoned.
static uint64_t clock_at(const struct sched_group *g, uint64_t now)
{
    uint64_t ran = g->running * now - g->running_since;
    return g->clock + (ran + MIN(ran, g->debt)) * 100 / MAX(g->weight, 1u);
}

void group_leave(struct sched_entity *e, uint64_t now)
{
    struct sched_group *g = e->group;
    if (g == NULL)
        return;
    set_active(g, g->active - 1, now);
    e->clock_before = clock_at(g, now);
}

void group_wake(struct sched_entity *e, uint64_t now, uint64_t reached, uint64_t most)
{
    const struct sched_group *g = e->group;
    uint64_t early = reached - most;
    // One that seems to have run too much for that slept for so long that the difference means
    // nothing.
    if (before(early + AHEAD_SLICES * most, e->virtual_time)) {
        e->virtual_time = early;
        e->loan = 0;
    }
    early = later(e->virtual_time, early);
    uint64_t due = e->virtual_time + e->loan;
    if (g != NULL) {
        uint64_t clock = clock_at(g, now);
        if (before(e->clock_before, clock)) // some of it may have turned out to be lent
            due += clock - e->clock_before;
        if (before(reached + most, due)) // it may have had CPUs that nobody else wanted
            due = reached + most;
    }
    bool lends = g != NULL && g->debt < most;
    e->loan = before(early, due) && lends ? due - early : 0;
    e->virtual_time = lends ? early : later(early, due);
}

void group_start(struct sched_entity *e, uint64_t now)
{
    struct sched_group *g = e->group;
    if (g == NULL)
        return;
    set_active(g, g->active, now);
    e->load_before = g->load;
    g->running += !e->gift;
    g->running_since += e->gift ? 0 : now;
}

// So many ticks, which are so much of the entity's virtual time.
static void charge(struct sched_entity *e, uint64_t ticks, uint64_t virtual_time)
{
    struct sched_group *g = e->group;
    e->virtual_time += virtual_time;
    if (g == NULL || virtual_time == 0 || ticks == 0)
        return;
    uint64_t lent = MIN(virtual_time, e->loan);
    uint64_t borrowed = ticks * (lent * 1024 / virtual_time) / 1024; // fits for hours
    uint64_t paid = MIN(g->debt, ticks - borrowed);
    e->loan -= lent;
    // Paid for at the rate of its own ticks, with those of the group that were active then: the
    // others are told by the clock.
    e->virtual_time += paid * (virtual_time * 1024 / ticks) / 1024;
    g->debt = g->debt + borrowed - paid;
    g->clock += (ticks - borrowed + paid) * 100 / MAX(g->weight, 1u);
}

void group_charge(struct sched_entity *e, uint64_t ran, uint64_t now)
{
    struct sched_group *g = e->group;
    if (g == NULL) {
        charge(e, ran, ran * 100 / MAX(e->weight, 1u));
    } else if (!e->gift) {
        set_active(g, g->active, now);
        g->running--;
        g->running_since -= now - ran;
        charge(e, ran, (g->load - e->load_before) * 100 / MAX(g->weight, 1u));
    }
}

void group_charge_gift(struct sched_entity *e, uint64_t ticks)
{
    charge(e, ticks, ticks * e->group->active * 100 / MAX(e->group->weight, 1u));
}

static uint64_t window_ticks(void)
{
    return tsc_hz / 1000 * WINDOW_MS;
}

static uint64_t budget_of(const struct sched_group *g)
{
    return window_ticks() / 100 * g->cap;
}

// What may still be promised in this window.
static uint64_t budget_left(const struct sched_group *g)
{
    if (g->cap == 0)
        return UINT64_MAX;
    uint64_t budget = budget_of(g);
    return g->used < budget ? budget - g->used : 0;
}

static void set_throttled(struct sched_group *g)
{
    bool now = budget_left(g) < sched_least_run_ticks();
    if (now == g->throttled)
        return;
    g->throttled = now;
    if (now)
        list_push_back(&throttled, &g->link);
    else
        list_remove(&g->link);
}

// Windows follow each other while the group runs. What was overdrawn is paid in the next ones; what
// was not used is lost.
static void open_window(struct sched_group *g, uint64_t now)
{
    if (g->cap == 0 || now < g->window_end)
        return;
    uint64_t windows = MIN((now - g->window_end) / window_ticks() + 1, 100u);
    g->used -= MIN(g->used, windows * budget_of(g));
    g->window_end = now + window_ticks();
    set_throttled(g);
}

uint64_t groups_open_windows(uint64_t now)
{
    uint64_t next = UINT64_MAX;
    list_for_each_safe(it, &throttled)
    {
        struct sched_group *g = container_of(it, struct sched_group, link);
        open_window(g, now);
        if (g->throttled)
            next = MIN(next, g->window_end);
    }
    return next;
}

uint64_t group_promise(struct sched_entity *e, uint64_t most, uint64_t now)
{
    struct sched_group *g = e->group;
    if (g == NULL || g->cap == 0) {
        e->promised = 0;
        return most;
    }
    open_window(g, now);
    e->promised = MIN(most, budget_left(g));
    g->used += e->promised;
    set_throttled(g);
    return e->promised;
}

void group_settle(struct sched_entity *e, uint64_t ran)
{
    struct sched_group *g = e->group;
    if (g == NULL || g->cap == 0)
        return;
    g->used = g->used + ran - MIN(g->used + ran, e->promised);
    set_throttled(g);
}

void group_change(struct sched_group *g, uint32_t weight, uint32_t cap, uint64_t now)
{
    if (g->cap != cap) {
        g->cap = cap;
        g->used = 0;
        g->window_end = now + window_ticks();
    }
    g->weight = weight;
    set_throttled(g);
}

void group_forget(struct sched_group *g)
{
    CHECK(g->active == 0);
    if (g->throttled)
        list_remove(&g->link);
    g->throttled = false;
}
