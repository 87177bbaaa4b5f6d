// SPDX-License-Identifier: BSD-2-Clause
// The scheduler: one queue of runnable entities for all CPUs, each CPU takes the one whose virtual
// time (run time scaled by weight) is least. Fair by construction over any number of CPUs, and
// simple; with a lock that is taken once per slice it carries the machines Fusor is for.
//
// Groups, their weights and caps: sched_group.c.
//
// One lock, sched_lock (RANK_SCHED), covers the queue, the sleepers and every entity's state.
// Nobody holds it while an entity runs.
#include "kernel/sched.h"

#include <stdatomic.h>

#include "kernel/error.h"
#include "kernel/irq.h"
#include "kernel/frames.h"
#include "kernel/lock.h"
#include "kernel/panic.h"
#include "kernel/percpu.h"
#include "kernel/sched_group.h"
#include "kernel/serial.h"
#include "kernel/time.h"
#include "kernel/watchdog.h"

#define SLICE_MS 10u
// The CPU that serves the console UART looks at it this often even when a guest runs with
// interrupts off: 16 bytes of receive FIFO last 1.4 ms at 115200 baud. (Hardware exits for external
// interrupts whatever the guest's IF; Bochs 2.7 does not.)
#define CONSOLE_SLICE_US 1000u
// How far one that runs may be behind the others by a weight too large to be used up (no entity
// runs on two CPUs), in slices at weight 100.
#define LAG_SLICES 100u

static struct spinlock sched_lock = SPINLOCK_INIT("sched", RANK_SCHED);
static struct list runnable = {&runnable, &runnable};
static struct list sleepers = {&sleepers, &sleepers};
// Virtual time that each CPU's work has reached. CPUs differ when affinities keep them apart, so it
// is kept per CPU: who wakes up is compared with those it competes with, and with nobody else.
static uint64_t floors[MAX_CPUS];
static _Atomic uint32_t must_yield[MAX_CPUS];
static _Atomic uint32_t idle[MAX_CPUS];
static struct sched_entity *current[MAX_CPUS];
// Who gets the rest of the slice of one that spins in vain, and until when.
static struct sched_entity *favoured[MAX_CPUS];
static uint64_t favoured_until[MAX_CPUS];
static void (*console_poll)(void);

void sched_set_console_poll(void (*poll)(void))
{
    console_poll = poll;
}

static uint64_t slice_ticks(void)
{
    return tsc_hz / 1000 * SLICE_MS;
}

uint64_t sched_max_run_ticks(void)
{
    return cpu_index() == 0 ? tsc_hz / 1000000 * CONSOLE_SLICE_US : slice_ticks();
}

bool sched_must_yield(uint32_t cpu)
{
    return must_yield[cpu] != 0;
}

void sched_entity_init(struct sched_entity *e, const char *name,
                       enum sched_next (*run)(struct sched_entity *, uint64_t))
{
    *e = (struct sched_entity){
        .state = SCHED_BLOCKED,
        .cpu = -1,
        .last_cpu = -1,
        .cpu_mask = UINT64_MAX,
        .weight = 100,
        .wake_deadline = UINT64_MAX,
        .run = run,
        .name = name,
    };
    list_init(&e->link);
}

// Lock held. What the CPU that is furthest ahead among those allowed has reached: who comes to it
// there has equals to share it with. (Measured by one that is behind it could drive those that are
// ahead, on CPUs of their own, from theirs for as long as they are ahead.)
static uint64_t floor_of(uint64_t cpu_mask)
{
    uint64_t most = 0;
    bool any = false;
    for (uint32_t i = 0; i < cpu_count; i++) {
        if ((cpu_mask >> i & 1) == 0 || cpus[i].online == 0)
            continue;
        most = any ? later(most, floors[i]) : floors[i];
        any = true;
    }
    return most;
}

static bool may_run(const struct sched_entity *e, uint32_t cpu)
{
    return (e->cpu_mask >> cpu & 1) != 0 && (e->group == NULL || !e->group->throttled);
}

void sched_add(struct sched_entity *e)
{
    spin_lock(&sched_lock);
    e->virtual_time = floor_of(e->cpu_mask);
    e->since = time_tsc();
    list_push_back(&sleepers, &e->link);
    spin_unlock(&sched_lock);
}

int sched_remove(struct sched_entity *e)
{
    spin_lock(&sched_lock);
    int status = e->state == SCHED_RUNNING ? E_BUSY : 0;
    if (status == 0) {
        if (e->state == SCHED_RUNNABLE && !e->dead)
            group_leave(e, time_tsc());
        list_remove(&e->link);
        e->state = SCHED_BLOCKED;
        e->dead = true;
        for (uint32_t i = 0; i < cpu_count; i++)
            if (favoured[i] == e)
                favoured[i] = NULL;
    }
    spin_unlock(&sched_lock);
    return status;
}

// Chooses who must look at the queue because `e` became runnable: an idle CPU, else one that runs
// somebody further ahead. Returns -1 when the queue's order can wait.
static int choose_cpu(const struct sched_entity *e)
{
    int worst = -1;
    uint64_t most = e->virtual_time;
    for (uint32_t i = 0; i < cpu_count; i++) {
        if (!may_run(e, i) || cpus[i].online == 0)
            continue;
        // Halted, or on its way there: whoever was asked already is left to the one who asked.
        if (current[i] == NULL && must_yield[i] == 0)
            return (int)i;
        if (current[i] != NULL && before(most, current[i]->virtual_time)) {
            most = current[i]->virtual_time;
            worst = (int)i;
        }
    }
    return worst;
}

// Lock held. The time since `since`, which it was blocked or waited, as far as it counts.
static uint64_t idle_time(const struct sched_entity *e, uint64_t now)
{
    return e->off || e->dead ? 0 : now - e->since;
}

static void make_runnable(struct sched_entity *e, uint64_t now)
{
    list_remove(&e->link);
    e->state = SCHED_RUNNABLE;
    e->sleep_ticks += idle_time(e, now);
    e->since = now;
    e->wake_deadline = UINT64_MAX;
    // A sleeper does not save up time: it may be ahead of the others by one slice at most.
    uint64_t reached = floor_of(e->cpu_mask);
    group_enter(e, now);
    group_wake(e, now, reached, slice_ticks());
    list_push_back(&runnable, &e->link);
}

// Lock held. Tells `cpu` to look at the queue; returns true when it needs an NMI because it may be
// in a guest.
static bool ask_to_yield(int cpu)
{
    if (cpu < 0)
        return false;
    must_yield[cpu] = 1;
    if ((uint32_t)cpu == cpu_index()) {
        cpus[cpu].kicked = 1; // a vCPU that runs here looks before it enters the guest again
        return false;
    }
    if (idle[cpu] != 0) {
        irq_send_wake((uint32_t)cpu);
        return false;
    }
    return true;
}

void sched_count_sleep(struct sched_entity *e, bool counts)
{
    spin_lock(&sched_lock);
    uint64_t now = time_tsc();
    if (e->state == SCHED_BLOCKED) {
        e->sleep_ticks += idle_time(e, now);
        e->since = now;
    } else if (e->state == SCHED_RUNNABLE) {
        e->wait_ticks += idle_time(e, now);
        e->since = now;
    }
    e->off = !counts;
    spin_unlock(&sched_lock);
}

struct sched_times sched_times(const struct sched_entity *e)
{
    spin_lock(&sched_lock);
    struct sched_times t = {e->run_ticks, e->wait_ticks, e->sleep_ticks};
    uint64_t now = time_tsc();
    if (e->state == SCHED_RUNNING)
        t.run += now - e->since;
    else if (e->state == SCHED_RUNNABLE)
        t.wait += idle_time(e, now);
    else
        t.sleep += idle_time(e, now);
    spin_unlock(&sched_lock);
    return t;
}

void sched_set_affinity(struct sched_entity *e, uint64_t cpu_mask)
{
    int cpu = -1;
    spin_lock(&sched_lock);
    e->cpu_mask = cpu_mask;
    // It comes to its new competitors as their equal, whatever it was where it comes from.
    uint64_t reached = floor_of(cpu_mask);
    e->virtual_time = later(e->virtual_time, reached);
    if (before(reached + slice_ticks(), e->virtual_time))
        e->virtual_time = reached + slice_ticks();
    e->loan = 0;
    if (e->state == SCHED_RUNNABLE)
        cpu = choose_cpu(e);
    else if (e->state == SCHED_RUNNING && (cpu_mask >> e->cpu & 1) == 0)
        cpu = e->cpu;
    bool nmi = ask_to_yield(cpu);
    spin_unlock(&sched_lock);
    if (nmi)
        irq_send_nmi((uint32_t)cpu);
}

void sched_wake(struct sched_entity *e)
{
    bool nmi = false;
    int cpu = -1;
    spin_lock(&sched_lock);
    if (e->dead) {
        // Nobody waits for it any more.
    } else if (e->state == SCHED_BLOCKED) {
        make_runnable(e, time_tsc());
        cpu = choose_cpu(e);
        nmi = ask_to_yield(cpu);
    } else if (e->state == SCHED_RUNNING) {
        e->wake_pending = true;
    }
    spin_unlock(&sched_lock);
    if (nmi)
        irq_send_nmi((uint32_t)cpu);
}

// Lock held. Wakes sleepers that are due; returns the next deadline.
static uint64_t wake_due(uint64_t now)
{
    uint64_t next = UINT64_MAX;
    list_for_each_safe(it, &sleepers)
    {
        struct sched_entity *e = container_of(it, struct sched_entity, link);
        if (e->wake_deadline <= now) {
            make_runnable(e, now);
            int cpu = choose_cpu(e);
            if (cpu >= 0 && current[cpu] == NULL)
                ask_to_yield(cpu);
        } else {
            next = MIN(next, e->wake_deadline);
        }
    }
    return MIN(next, groups_open_windows(now)); // hand_on() tells the others
}

static struct sched_entity *take_favoured(uint32_t cpu)
{
    struct sched_entity *e = favoured[cpu];
    favoured[cpu] = NULL;
    return e != NULL && e->state == SCHED_RUNNABLE && may_run(e, cpu) ? e : NULL;
}

// Nobody else wants this CPU, or so much weight cannot be used up: what such a one is behind is not
// what the others owe it.
static void limit_lag(struct sched_entity *e, bool alone)
{
    uint64_t slack = alone ? 0 : LAG_SLICES * slice_ticks();
    uint64_t least = floor_of(e->cpu_mask) - slack;
    if (before(e->virtual_time, least)) {
        e->loan -= MIN(e->loan, least - e->virtual_time);
        e->virtual_time = least;
    }
}

// Lock held. The runnable entity furthest behind that may run here; within half a slice of that,
// one that ran here last is preferred for its warm caches.
static struct sched_entity *pick(uint32_t cpu)
{
    struct sched_entity *best = NULL;
    unsigned others = 0;
    list_for_each(it, &runnable)
    {
        struct sched_entity *e = container_of(it, struct sched_entity, link);
        if (!may_run(e, cpu))
            continue;
        others += best != NULL;
        if (best == NULL || before(e->virtual_time, best->virtual_time))
            best = e;
    }
    if (best == NULL) {
        // An idle CPU has no history: whoever comes next is compared with the busiest.
        floors[cpu] = later(floors[cpu], floor_of(UINT64_MAX));
        return NULL;
    }
    limit_lag(best, others == 0);
    uint64_t near = best->virtual_time + slice_ticks() / 2;
    floors[cpu] = later(floors[cpu], best->virtual_time);
    if (best->last_cpu == (int)cpu)
        return best;
    list_for_each(it, &runnable)
    {
        struct sched_entity *e = container_of(it, struct sched_entity, link);
        if (e->last_cpu == (int)cpu && !before(near, e->virtual_time) && may_run(e, cpu))
            return e;
    }
    return best;
}

// Whether another CPU is halted, or on its way there, and was not asked yet.
static bool other_is_free(void)
{
    for (uint32_t i = 0; i < cpu_count; i++)
        if (current[i] == NULL && must_yield[i] == 0 && i != cpu_index())
            return true;
    return false;
}

// Lock held. Who had to give up a CPU, or was not chosen, may run on another one that is idle.
static void hand_on(void)
{
    if (!other_is_free())
        return;
    list_for_each(it, &runnable)
    {
        int cpu = choose_cpu(container_of(it, struct sched_entity, link));
        if (cpu >= 0 && current[cpu] == NULL && (uint32_t)cpu != cpu_index())
            ask_to_yield(cpu);
    }
}

void sched_group_set(struct sched_group *g, uint32_t weight, uint32_t cap)
{
    spin_lock(&sched_lock);
    group_change(g, weight, cap, time_tsc());
    hand_on();
    spin_unlock(&sched_lock);
}

void sched_group_remove(struct sched_group *g)
{
    spin_lock(&sched_lock);
    group_forget(g);
    spin_unlock(&sched_lock);
}

bool sched_yield_to_group(struct sched_entity *e, uint64_t until)
{
    uint32_t cpu = cpu_index();
    struct sched_entity *best = NULL;
    if (e->group == NULL || until < time_tsc() + sched_least_run_ticks())
        return false;
    spin_lock(&sched_lock);
    list_for_each(it, &runnable)
    {
        struct sched_entity *other = container_of(it, struct sched_entity, link);
        if (other->group != e->group || (other->cpu_mask >> cpu & 1) == 0)
            continue;
        // One that waits for its CPU since it spun itself holds no lock, most likely; but it may be
        // the next in line for one.
        if (best == NULL || other->spun < best->spun ||
            (other->spun == best->spun && other->since < best->since))
            best = other;
    }
    if (best != NULL) {
        uint64_t now = time_tsc();
        uint64_t rest = until > now ? until - now : 0;
        group_charge_gift(e, rest);
        e->spun = true;
        favoured[cpu] = best;
        favoured_until[cpu] = until;
        must_yield[cpu] = 1;
    }
    spin_unlock(&sched_lock);
    return best != NULL;
}

// Returns how long it may run.
static uint64_t start(struct sched_entity *e, uint32_t cpu, uint64_t now)
{
    list_remove(&e->link);
    group_start(e, now);
    e->spun = false;
    e->wait_ticks += idle_time(e, now);
    e->since = now;
    e->state = SCHED_RUNNING;
    e->wake_pending = false;
    e->last_cpu = (int)cpu;
    // Before the entity looks whether it was told to stop (vcpu_is_out looks the other way round).
    __atomic_store_n(&e->cpu, (int)cpu, __ATOMIC_SEQ_CST);
    current[cpu] = e;
    return group_promise(e, sched_max_run_ticks(), now);
}

static void finish(struct sched_entity *e, enum sched_next next, uint32_t cpu)
{
    spin_lock(&sched_lock);
    uint64_t now = time_tsc();
    uint64_t ran = now - e->since;
    bool sleeps = next == SCHED_EXIT || (next == SCHED_SLEEP && !e->wake_pending);
    e->run_ticks += ran;
    group_charge(e, ran, now);
    e->gift = false;
    if (e->gives_way)
        e->virtual_time = later(e->virtual_time, floors[cpu]);
    e->gives_way = false;
    group_settle(e, ran);
    if (sleeps)
        group_leave(e, now);
    e->since = now;
    current[cpu] = NULL;
    if (next == SCHED_EXIT) {
        e->dead = true;
        e->state = SCHED_BLOCKED;
    } else if (sleeps) {
        e->state = SCHED_BLOCKED;
        list_push_back(&sleepers, &e->link);
    } else {
        e->state = SCHED_RUNNABLE;
        e->wake_deadline = UINT64_MAX;
        list_push_back(&runnable, &e->link);
    }
    __atomic_store_n(&e->cpu, -1, __ATOMIC_RELEASE);
    spin_unlock(&sched_lock);
}

// Nothing to run: scrub free frames, then halt until an interrupt or the next sleeper's time.
static void be_idle(struct cpu *cpu, uint64_t deadline)
{
    if (frames_zero_some())
        return;
    time_arm(deadline);
    cpu->last_alive = UINT64_MAX;
    // Whoever makes an entity runnable after this sees idle and sends the wake-up interrupt, which
    // ends the halt; whoever did before has set must_yield.
    atomic_store_explicit(&idle[cpu->index], 1, memory_order_seq_cst);
    if (must_yield[cpu->index] == 0)
        cpu_irq_enable_and_halt();
    cpu_irq_disable();
    idle[cpu->index] = 0;
    cpu->last_alive = time_tsc();
}

_Noreturn void sched_loop(void)
{
    struct cpu *cpu = this_cpu();
    cpu_irq_disable();
    for (;;) {
        cpu_irq_enable(); // a window for what is pending
        cpu_relax();
        cpu_irq_disable();
        CHECK(spin_none_held());
        if (cpu->index == 0) {
            serial_poll();
            if (console_poll != NULL)
                console_poll();
        }
        watchdog_check();

        spin_lock(&sched_lock);
        uint64_t now = time_tsc();
        cpu->last_alive = now;
        uint64_t next_wake = wake_due(now);
        struct sched_entity *e = take_favoured(cpu->index);
        uint64_t end = e != NULL ? favoured_until[cpu->index] : UINT64_MAX;
        if (e != NULL)
            e->gift = true;
        else
            e = pick(cpu->index);
        if (e != NULL) {
            uint64_t allowed = now + start(e, cpu->index, now);
            end = MIN(end, allowed);
        }
        hand_on();
        // The queue was looked at; whoever asks from here on asks anew. A kick for the one who runs
        // next is no news either: it looks at its flags first.
        must_yield[cpu->index] = 0;
        cpu->kicked = 0;
        spin_unlock(&sched_lock);

        if (e == NULL) {
            be_idle(cpu, next_wake);
            continue;
        }
        // Sleepers that become due end the run, so that they are woken in time.
        uint64_t until = MIN(end, MAX(next_wake, now + tsc_hz / 100000));
        enum sched_next next = e->run(e, until);
        finish(e, next, cpu->index);
    }
}
