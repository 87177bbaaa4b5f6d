// SPDX-License-Identifier: BSD-2-Clause
// Groups of the scheduler. A group's weight is shared by those of its entities that run or could at
// that moment. Its cap is a budget of run time per window: who starts is promised a piece of it and
// gives back what it does not need; with nothing left to promise the group is throttled until the
// window ends, its entities wait in the queue.
#include "kernel/sched_group.h"

#include "kernel/panic.h"
#include "kernel/time.h"

// Caps are kept over this time. Shorter windows would cost more switches, longer ones make a capped
// guest stand still for longer.
#define WINDOW_MS 100u
// Less than this is not worth a switch of vCPUs (some 5 us).
#define LEAST_RUN_US 100u

static struct list throttled = {&throttled, &throttled};

uint64_t sched_least_run_ticks(void)
{
    return tsc_hz / 1000000 * LEAST_RUN_US;
}

void group_set_active(struct sched_group *g, uint32_t active, uint64_t now)
{
    if (now > g->load_at) {
        g->load += (now - g->load_at) * g->active;
        g->load_at = now;
    }
    g->active = active;
}

uint64_t group_charge(const struct sched_entity *e, uint64_t ran)
{
    const struct sched_group *g = e->group;
    if (g == NULL)
        return ran * 100 / MAX(e->weight, 1u);
    return (g->load - e->load_before) * 100 / MAX(g->weight, 1u);
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
