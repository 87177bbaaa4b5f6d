// SPDX-License-Identifier: BSD-2-Clause
#include "sched_machine.h"

#include <ucontext.h>

#include "kernel/frames.h"
#include "kernel/irq.h"
#include "kernel/serial.h"
#include "kernel/watchdog.h"

#define STACK (256 * KIB)

// --- The machine ---

struct sim_cpu sim[CPUS];
unsigned online;
uint64_t zero_work;
void (*lock_hook)(void);
void (*idle_hook)(void);
void (*arm_hook)(void);

static ucontext_t contexts[CPUS];
static char *stacks[CPUS];
static ucontext_t simulator;

static void to_simulator(void)
{
    uint32_t cpu = cpu_index();
    assert_true(spin_none_held());
    assert_int_equal(swapcontext(&contexts[cpu], &simulator), 0);
}

static void halt(void)
{
    struct sim_cpu *s = &sim[cpu_index()];
    s->state = SIM_HALTED;
    s->until = s->armed;
    s->nmi =
        false; // one that came before is handled, and ends no halt; an interrupt waited for STI
    to_simulator();
    s->state = SIM_BUSY;
}

void busy(uint64_t until)
{
    sim[cpu_index()].until = until;
    to_simulator();
}

void elsewhere(void (*f)(void))
{
    uint32_t self = cpu_index();
    fake_set_cpu(OUTSIDER);
    f();
    fake_set_cpu(self);
}

void irq_send_wake(uint32_t cpu)
{
    assert_true(cpu < online && cpu != cpu_index());
    sim[cpu].wake = true;
    sim[cpu].wakes++;
}

void irq_send_nmi(uint32_t cpu)
{
    assert_true(cpu < online && cpu != cpu_index());
    sim[cpu].nmi = true;
    sim[cpu].nmis++;
    cpus[cpu].kicked = 1;
}

void time_arm(uint64_t deadline)
{
    sim[cpu_index()].armed = deadline;
    void (*hook)(void) = arm_hook;
    arm_hook = NULL;
    if (hook != NULL)
        hook();
}

bool frames_zero_some(void)
{
    void (*hook)(void) = idle_hook;
    idle_hook = NULL;
    if (hook != NULL)
        hook();
    if (zero_work == 0)
        return false;
    zero_work--;
    busy(fake_tsc + 50 * US);
    return true;
}

void serial_poll(void)
{
    assert_int_equal(cpu_index(), 0);
    sim[0].polls++;
}

void watchdog_check(void)
{
    assert_true(spin_none_held());
    sim[cpu_index()].watchdogs++;
}

void __real_spin_lock(struct spinlock *lock);
void __wrap_spin_lock(struct spinlock *lock)
{
    void (*hook)(void) = lock_hook;
    lock_hook = NULL;
    if (hook != NULL)
        hook();
    __real_spin_lock(lock);
}

// --- Actors ---

struct actor actors[16];
unsigned actor_count;

static void wake_somebody(void)
{
    struct actor *a = &actors[(unsigned)rand() % actor_count];
    sched_wake(&a->e);
}

static enum sched_next run_actor(struct sched_entity *e, uint64_t until)
{
    struct actor *a = container_of(e, struct actor, e);
    uint32_t cpu = cpu_index();
    uint64_t now = fake_tsc;
    assert_true(spin_none_held());
    assert_false(fake_irq_on);
    assert_true(a->known && !a->inside && !e->dead);
    assert_int_equal(e->state, SCHED_RUNNING);
    assert_int_equal(e->cpu, cpu);
    assert_int_equal(e->last_cpu, cpu);
    assert_true((e->cpu_mask >> cpu & 1) != 0);
    assert_true(until > now - TOLERANCE && until <= now + sched_max_run_ticks());
    a->inside = true;
    a->runs++;
    if (!a->slept && a->runs > 1)
        a->longest_wait = MAX(a->longest_wait, now - a->ended);
    a->started = now;
    if (a->slept)
        a->awake = now;
    if (a->script != NULL)
        a->script(a);
    uint64_t end = a->left < until - MIN(now, until) ? now + a->left : until;
    if (end > fake_tsc && !sched_must_yield(cpu))
        busy(end);
    assert_int_equal(cpu_index(), cpu);
    uint64_t done = fake_tsc - now;
    if (a->burst != NEVER)
        a->left -= MIN(a->left, done);
    a->inside = false;
    a->ended = fake_tsc;
    a->slept = false;
    if (a->quit)
        return SCHED_EXIT;
    if (a->random && rand() % 3 == 0)
        wake_somebody();
    if (a->left > 0)
        return SCHED_AGAIN;
    if (a->random) {
        a->burst = 1 + (uint64_t)rand() % (3 * MS);
        a->pause = rand() % 4 == 0 ? NEVER : (uint64_t)rand() % (5 * MS);
    }
    a->left = a->burst;
    a->slept = true;
    if (a->pause != NO_DEADLINE)
        e->wake_deadline = a->pause == NEVER ? NEVER : fake_tsc + a->pause;
    return SCHED_SLEEP;
}

struct actor *actor(uint64_t burst, uint64_t pause)
{
    assert_true(actor_count < ARRAY_SIZE(actors));
    struct actor *a = &actors[actor_count++];
    memset(a, 0, sizeof(*a));
    a->name[0] = (char)('a' + actor_count - 1);
    a->burst = a->left = burst;
    a->pause = pause;
    a->slept = true;
    sched_entity_init(&a->e, a->name, run_actor);
    sched_add(&a->e);
    a->known = true;
    return a;
}

struct actor *hog(uint32_t weight)
{
    struct actor *a = actor(NEVER, 0);
    a->e.weight = weight;
    sched_wake(&a->e);
    return a;
}

// --- Running the machine ---

// A wake-up is on its way to a CPU that may run it: whose cap was lifted just now.
static bool is_asked_for(const struct sched_entity *e)
{
    for (unsigned c = 0; c < online; c++)
        if (e->group != NULL && sim[c].wake && (e->cpu_mask >> c & 1) != 0)
            return true;
    return false;
}

static void check_idle(void)
{
    for (unsigned c = 0; c < online; c++) {
        if (sim[c].state != SIM_HALTED || sim[c].wake || sim[c].until <= fake_tsc)
            continue;
        for (unsigned i = 0; i < actor_count; i++)
            if (actors[i].known && actors[i].e.state == SCHED_RUNNABLE && !actors[i].e.dead &&
                (actors[i].e.group == NULL || !actors[i].e.group->throttled) &&
                !is_asked_for(&actors[i].e) && actors[i].e.since + HAND_OVER < fake_tsc &&
                (actors[i].e.cpu_mask >> c & 1) != 0)
                fail_msg("CPU %u halts while %s waits", c, actors[i].name);
    }
}

static uint64_t next_event(unsigned c)
{
    struct sim_cpu *s = &sim[c];
    bool now = s->nmi || (s->state == SIM_HALTED && s->wake);
    return now ? fake_tsc : s->until;
}

void simulate(uint64_t time)
{
    uint64_t end = fake_tsc + time;
    for (;;) {
        unsigned first = 0;
        for (unsigned c = 1; c < online; c++)
            if (next_event(c) < next_event(first))
                first = c;
        if (next_event(first) > end)
            break;
        check_idle();
        fake_tsc = MAX(fake_tsc, next_event(first));
        sim[first].wake = sim[first].nmi = false;
        sim[first].passes++;
        fake_set_cpu(first);
        fake_irq_on = false;
        assert_int_equal(swapcontext(&simulator, &contexts[first]), 0);
    }
    fake_tsc = MAX(fake_tsc, end);
    fake_set_cpu(OUTSIDER);
    check_idle();
}

static void cpu_main(void)
{
    sched_loop();
}

int sched_boot(void **state)
{
    (void)state;
    fake_machine(0, CPUS + 1);
    cpus[OUTSIDER].online = 0;
    fake_tsc = 5000 * MS;
    fake_halt_hook = halt;
    online = CPUS;
    for (unsigned c = 0; c < CPUS; c++) {
        stacks[c] = malloc(STACK);
        if (stacks[c] == NULL || getcontext(&contexts[c]) != 0)
            return -1;
        contexts[c].uc_stack.ss_sp = stacks[c];
        contexts[c].uc_stack.ss_size = STACK;
        sim[c].until = fake_tsc;
        makecontext(&contexts[c], cpu_main, 0);
    }
    simulate(MS);
    return 0;
}

void start(unsigned cpu_number)
{
    online = cpu_number;
    actor_count = 0;
    for (unsigned c = 0; c < CPUS; c++) {
        cpus[c].online = c < cpu_number;
        sim[c].wakes = sim[c].nmis = sim[c].polls = sim[c].watchdogs = sim[c].passes = 0;
        assert_int_equal(sim[c].state, SIM_HALTED);
    }
    fake_set_cpu(OUTSIDER);
}

void finish(void)
{
    for (unsigned i = 0; i < actor_count; i++) {
        actors[i].quit = true;
        actors[i].script = NULL;
        if (actors[i].known)
            sched_wake(&actors[i].e);
    }
    simulate(500 * MS);
    for (unsigned i = 0; i < actor_count; i++) {
        struct actor *a = &actors[i];
        if (!a->known)
            continue;
        assert_true(a->e.dead);
        unsigned runs = a->runs;
        sched_wake(&a->e); // nobody
        simulate(MS);
        assert_int_equal(a->runs, runs);
        assert_int_equal(sched_remove(&a->e), 0);
    }
    for (unsigned c = 0; c < online; c++)
        assert_int_equal(sim[c].state, SIM_HALTED);
}

void assert_near(uint64_t value, uint64_t expected, uint64_t tolerance)
{
    if (value + tolerance < expected || value > expected + tolerance)
        fail_msg("%llu us instead of %llu us", (unsigned long long)(value / US),
                 (unsigned long long)(expected / US));
}

// --- Groups: VMs with several vCPUs ---

struct sched_group groups[SIM_GROUPS];

struct sched_group *group(uint32_t weight, uint32_t cap)
{
    for (unsigned i = 0;; i++) {
        assert_true(i < SIM_GROUPS);
        if (groups[i].weight != 0)
            continue;
        memset(&groups[i], 0, sizeof(groups[i]));
        sched_group_set(&groups[i], weight, cap);
        return &groups[i];
    }
}

struct actor *member(struct sched_group *g, uint64_t burst, uint64_t pause)
{
    struct actor *a = actor(burst, pause);
    a->e.group = g;
    sched_wake(&a->e);
    return a;
}

uint64_t ran(const struct sched_group *g)
{
    uint64_t sum = 0;
    for (unsigned i = 0; i < actor_count; i++) {
        const struct actor *a = &actors[i];
        if (a->e.group == g)
            sum += a->e.run_ticks + (a->inside ? fake_tsc - a->e.since : 0);
    }
    return sum;
}

void finish_groups(void)
{
    for (unsigned i = 0; i < SIM_GROUPS; i++)
        if (groups[i].weight != 0)
            sched_group_set(&groups[i], groups[i].weight, 0);
    finish();
    for (unsigned i = 0; i < SIM_GROUPS; i++) {
        if (groups[i].weight != 0)
            sched_group_remove(&groups[i]);
        groups[i].weight = 0;
    }
}

int sched_power_off(void **state)
{
    (void)state;
    for (unsigned c = 0; c < CPUS; c++)
        free(stacks[c]);
    return 0;
}
