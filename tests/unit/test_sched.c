// SPDX-License-Identifier: BSD-2-Clause
// sources: kernel/sched.c kernel/lock.c
// libs: -Wl,--wrap=spin_lock
// The scheduler on a simulated machine: each CPU is a coroutine in the real sched_loop(), time
// jumps from event to event. Checked at every event: an entity runs on one CPU, where it may; no
// CPU halts while an entity that it could run waits.
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <ucontext.h>

#include <cmocka.h>

#include "fake.h"
#include "kernel/error.h"
#include "kernel/frames.h"
#include "kernel/irq.h"
#include "kernel/lock.h"
#include "kernel/percpu.h"
#include "kernel/sched.h"
#include "kernel/serial.h"
#include "kernel/time.h"
#include "kernel/watchdog.h"

#define CPUS        4u
#define OUTSIDER    CPUS // the CPU in whose name the tests act; the scheduler does not run on it
#define STACK       (256 * KIB)
#define US          UINT64_C(1000) // the clock ticks in ns
#define MS          (1000 * US)
#define SLICE       (10 * MS)
#define NEVER       UINT64_MAX
#define NO_DEADLINE (UINT64_MAX - 1) // sleeps without saying until when
#define HAND_OVER   (200 * US)       // from one CPU to another
#define TOLERANCE   (20 * US)        // each look at the clock costs a tick

// --- The machine ---

enum sim_state { SIM_BUSY, SIM_HALTED };

static struct sim_cpu {
    ucontext_t context;
    char *stack;
    enum sim_state state;
    uint64_t until; // busy: end of what it does; halted: what its timer is armed for
    uint64_t armed;
    bool wake, nmi;                                 // pending
    unsigned wakes, nmis, polls, watchdogs, passes; // counted
    uint64_t last_poll;
} sim[CPUS];

static ucontext_t simulator;
static unsigned online;
static uint64_t zero_work; // turns in which idle CPUs find frames to zero
static void (*lock_hook)(void);
static void (*idle_hook)(void); // when a CPU has found nothing to run and is about to halt
static void (*arm_hook)(void);

static void to_simulator(void)
{
    uint32_t cpu = cpu_index();
    assert_true(spin_none_held());
    assert_int_equal(swapcontext(&sim[cpu].context, &simulator), 0);
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

// The CPU that runs does something until `until` or an NMI.
static void busy(uint64_t until)
{
    sim[cpu_index()].until = until;
    to_simulator();
}

// `f` happens on another CPU at this moment.
static void elsewhere(void (*f)(void))
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
    sim[0].last_poll = fake_tsc;
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

static struct actor actors[16];
static unsigned actor_count;

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

static struct actor *actor(uint64_t burst, uint64_t pause)
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

static struct actor *hog(uint32_t weight)
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

// Lets `time` pass.
static void simulate(uint64_t time)
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
        assert_int_equal(swapcontext(&simulator, &sim[first].context), 0);
    }
    fake_tsc = MAX(fake_tsc, end);
    fake_set_cpu(OUTSIDER);
    check_idle();
}

static void cpu_main(void)
{
    sched_loop();
}

// Boots the machine; its CPUs stay in the scheduler from test to test, as sched.c's state does.
static int boot(void **state)
{
    (void)state;
    fake_machine(0, CPUS + 1);
    cpus[OUTSIDER].online = 0;
    fake_tsc = 5000 * MS;
    fake_halt_hook = halt;
    online = CPUS;
    for (unsigned c = 0; c < CPUS; c++) {
        sim[c].stack = malloc(STACK);
        if (sim[c].stack == NULL || getcontext(&sim[c].context) != 0)
            return -1;
        sim[c].context.uc_stack.ss_sp = sim[c].stack;
        sim[c].context.uc_stack.ss_size = STACK;
        sim[c].until = fake_tsc;
        makecontext(&sim[c].context, cpu_main, 0);
    }
    simulate(MS);
    return 0;
}

static void start(unsigned cpu_number)
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

// Everybody leaves.
static void finish(void)
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

static void assert_near(uint64_t value, uint64_t expected, uint64_t tolerance)
{
    if (value + tolerance < expected || value > expected + tolerance)
        fail_msg("%llu us instead of %llu us", (unsigned long long)(value / US),
                 (unsigned long long)(expected / US));
}

// --- Fairness ---

static void check_shares(unsigned cpu_number, const uint32_t *weights, unsigned count)
{
    const uint64_t time = 4000 * MS;
    uint64_t sum = 0, all = 0;
    start(cpu_number);
    for (unsigned i = 0; i < count; i++) {
        hog(weights[i]);
        sum += weights[i];
    }
    simulate(time);
    for (unsigned i = 0; i < count; i++) {
        struct sched_entity *e = &actors[i].e;
        assert_near(e->run_ticks, time * cpu_number * weights[i] / sum, 3 * SLICE);
        uint64_t waits = e->state == SCHED_RUNNABLE ? fake_tsc - e->since : 0;
        assert_near(e->run_ticks + e->wait_ticks + waits, time, SLICE);
        all += e->run_ticks;
    }
    assert_near(all, time * cpu_number, cpu_number * SLICE + time / 1000);
    finish();
}

static void test_shares(void **state)
{
    (void)state;
    check_shares(1, (uint32_t[]){100}, 1);
    check_shares(1, (uint32_t[]){100, 100}, 2);
    check_shares(1, (uint32_t[]){100, 300}, 2);
    check_shares(1, (uint32_t[]){1, 10000}, 2);
    check_shares(2, (uint32_t[]){100, 100}, 2);
    check_shares(2, (uint32_t[]){100, 100, 100}, 3);
    check_shares(2, (uint32_t[]){100, 100, 100, 100, 100}, 5);
    check_shares(2, (uint32_t[]){100, 150, 200, 250, 300}, 5);
    check_shares(2, (uint32_t[]){50, 50, 100}, 3);
    check_shares(3, (uint32_t[]){100, 100, 100, 100}, 4);
    check_shares(4, (uint32_t[]){10, 10, 20, 20, 20, 30, 30}, 7);
}

// Of a group with weight 1 and 16 vCPUs virtual time runs 1,600 times as fast as time: at 4 GHz its
// 64 bits last for 33 days. Nothing may change when they are over; who slept meanwhile, for
// however long, begins where the others are.
static void test_virtual_time_wraps(void **state)
{
    (void)state;
    struct actor *hogs[4], *sleepers[4];
    start(2);
    for (unsigned i = 0; i < ARRAY_SIZE(hogs); i++)
        hogs[i] = hog(100);
    for (unsigned k = 0; k < ARRAY_SIZE(sleepers); k++) {
        simulate(50 * MS);
        for (unsigned i = 0; i < ARRAY_SIZE(hogs); i++) { // days go by
            uint64_t now = hogs[i]->e.virtual_time;
            hogs[i]->e.virtual_time = k < 3 ? now + (UINT64_C(1) << 62) : UINT64_MAX - 300 * MS;
        }
        simulate(50 * MS);
        sleepers[k] = actor(MS / 2, NO_DEADLINE);
    }
    uint64_t before[ARRAY_SIZE(hogs)], begin = fake_tsc;
    for (unsigned i = 0; i < ARRAY_SIZE(hogs); i++)
        before[i] = hogs[i]->e.run_ticks;
    for (unsigned k = 0; k < 8; k++) { // before the end, across it, and behind it
        struct actor *sleeper = sleepers[k % ARRAY_SIZE(sleepers)];
        uint64_t woken = fake_tsc;
        sched_wake(&sleeper->e);
        simulate(25 * MS);
        assert_true(sleeper->awake >= woken && sleeper->awake - woken < 2 * SLICE);
        simulate(100 * MS);
    }
    for (unsigned i = 0; i < ARRAY_SIZE(hogs); i++) {
        assert_near(hogs[i]->e.run_ticks - before[i], (fake_tsc - begin) / 2, 4 * SLICE);
        assert_true(hogs[i]->longest_wait < 4 * SLICE);
        assert_true(hogs[i]->e.virtual_time < UINT64_MAX / 4);
    }
    finish();
}

// --- Groups: VMs with several vCPUs ---

static struct sched_group groups[4];

static struct sched_group *group(uint32_t weight, uint32_t cap)
{
    for (unsigned i = 0;; i++) {
        assert_true(i < ARRAY_SIZE(groups));
        if (groups[i].weight != 0)
            continue;
        memset(&groups[i], 0, sizeof(groups[i]));
        sched_group_set(&groups[i], weight, cap);
        return &groups[i];
    }
}

static struct actor *member(struct sched_group *g, uint64_t burst, uint64_t pause)
{
    struct actor *a = actor(burst, pause);
    a->e.group = g;
    sched_wake(&a->e);
    return a;
}

static uint64_t ran(const struct sched_group *g)
{
    uint64_t sum = 0;
    for (unsigned i = 0; i < actor_count; i++) {
        const struct actor *a = &actors[i];
        if (a->e.group == g)
            sum += a->e.run_ticks + (a->inside ? fake_tsc - a->e.since : 0);
    }
    return sum;
}

static void finish_groups(void)
{
    for (unsigned i = 0; i < ARRAY_SIZE(groups); i++)
        if (groups[i].weight != 0)
            sched_group_set(&groups[i], groups[i].weight, 0);
    finish();
    for (unsigned i = 0; i < ARRAY_SIZE(groups); i++) {
        if (groups[i].weight != 0)
            sched_group_remove(&groups[i]);
        groups[i].weight = 0;
    }
}

// Shares are the groups', however many they are and on however many CPUs.
static void check_group_shares(unsigned cpu_number, const uint32_t *weights,
                               const unsigned *members, unsigned count)
{
    const uint64_t time = 4000 * MS;
    uint64_t sum = 0;
    start(cpu_number);
    for (unsigned i = 0; i < count; i++) {
        struct sched_group *g = group(weights[i], 0);
        for (unsigned k = 0; k < members[i]; k++)
            member(g, NEVER, 0);
        sum += weights[i];
    }
    simulate(time);
    for (unsigned i = 0; i < count; i++)
        assert_near(ran(&groups[i]), time * cpu_number * weights[i] / sum,
                    time / 50 + 3 * SLICE * members[i]);
    finish_groups();
}

static void test_group_shares(void **state)
{
    (void)state;
    check_group_shares(1, (uint32_t[]){100, 100}, (unsigned[]){1, 4}, 2);
    check_group_shares(2, (uint32_t[]){100, 100}, (unsigned[]){2, 8}, 2);
    check_group_shares(2, (uint32_t[]){100, 200, 400}, (unsigned[]){4, 4, 4}, 3);
    check_group_shares(4, (uint32_t[]){100, 200, 400}, (unsigned[]){4, 3, 8}, 3);
    check_group_shares(1, (uint32_t[]){10, 300}, (unsigned[]){3, 1}, 2);
}

// Of four vCPUs one works: its VM is not served worse than one that has only that one. And those
// that sleep and wake in between gain nothing.
static void test_group_of_sleepers(void **state)
{
    (void)state;
    start(1);
    struct sched_group *many = group(100, 0), *alone = group(100, 0);
    member(many, NEVER, 0);
    for (unsigned i = 0; i < 3; i++)
        member(many, 0, NEVER);
    member(alone, NEVER, 0);
    simulate(4000 * MS);
    assert_near(ran(many), 2000 * MS, 40 * MS);
    finish_groups();
    start(1);
    many = group(100, 0), alone = group(100, 0);
    for (unsigned i = 0; i < 4; i++)
        member(many, 3 * MS + i * 200 * US, 200 * US);
    member(alone, NEVER, 0);
    simulate(4000 * MS);
    assert_in_range(ran(many) / MS, 1500, 2100);
    finish_groups();
}

// An entity with more weight than it can use up runs ahead on its CPU. Who comes then shares with
// the others, and does not drive them out for what they are ahead.
static void test_newcomer_beside_heavy(void **state)
{
    (void)state;
    start(2);
    struct actor *light = hog(100);
    hog(1000);
    simulate(5000 * MS);
    struct actor *heavy2 = hog(100);
    uint64_t before = light->e.run_ticks;
    simulate(1000 * MS);
    assert_near(light->e.run_ticks - before, 500 * MS, 60 * MS);
    assert_near(heavy2->e.run_ticks, 500 * MS, 60 * MS);
    finish();
}

// The cap holds over every window and in the sum, whatever the number of vCPUs and CPUs, also
// while CPUs are idle; what is kept from them is counted as waiting.
static void test_cap(void **state)
{
    (void)state;
    static const struct {
        unsigned cpus, members;
        uint32_t cap;
    } cases[] = {{1, 1, 25}, {1, 4, 25},  {2, 4, 25},  {4, 4, 25},
                 {2, 1, 50}, {2, 2, 150}, {4, 8, 250}, {2, 3, 1}};
    for (unsigned i = 0; i < ARRAY_SIZE(cases); i++) {
        start(cases[i].cpus);
        struct sched_group *g = group(100, cases[i].cap);
        for (unsigned k = 0; k < cases[i].members; k++)
            member(g, NEVER, 0);
        simulate(2 * MS);
        uint64_t before = ran(g), last = before;
        for (unsigned k = 0; k < 40; k++) {
            simulate(100 * MS);
            // A window may be full at its end, the next one at its beginning.
            assert_true(ran(g) - last <= 2 * cases[i].cap * MS + MS);
            last = ran(g);
        }
        assert_near(last - before, 40 * cases[i].cap * MS, 2 * cases[i].cap * MS + 40 * 200 * US);
        for (unsigned k = 0; k < actor_count; k++) {
            struct sched_entity *e = &actors[k].e;
            uint64_t now = fake_tsc - e->since;
            uint64_t waits = e->wait_ticks + (actors[k].inside ? 0 : now);
            assert_near(waits + e->run_ticks + (actors[k].inside ? now : 0), 4002 * MS, 3 * MS);
            assert_int_equal(e->sleep_ticks / MS, 0);
        }
        // Live: lifted, and back.
        sched_group_set(g, 100, 0);
        before = ran(g);
        simulate(1000 * MS);
        assert_near(ran(g) - before, 1000 * MS * MIN(cases[i].cpus, cases[i].members), 20 * MS);
        sched_group_set(g, 100, 10);
        simulate(200 * MS);
        before = ran(g);
        simulate(1000 * MS);
        assert_near(ran(g) - before, 100 * MS, 22 * MS);
        finish_groups();
    }
}

// A capped group leaves the rest to the others; one that sleeps now and then gets its cap, too.
static void test_cap_beside_others(void **state)
{
    (void)state;
    start(2);
    struct sched_group *capped = group(400, 25), *other = group(100, 0);
    for (unsigned i = 0; i < 4; i++)
        member(capped, NEVER, 0);
    for (unsigned i = 0; i < 2; i++)
        member(other, NEVER, 0);
    struct actor *console = actor(50 * US, 5 * MS);
    sched_wake(&console->e);
    simulate(4000 * MS);
    assert_near(ran(capped), 1000 * MS, 60 * MS);
    assert_near(ran(other), 7000 * MS, 150 * MS);
    assert_true(console->runs > 600);
    finish_groups();
    start(1);
    capped = group(100, 50);
    member(capped, MS, MS / 2); // would use two thirds
    simulate(4000 * MS);
    assert_near(ran(capped), 2000 * MS, 120 * MS);
    finish_groups();
}

// Capped ones come and go in every state.
static void test_cap_and_removal(void **state)
{
    (void)state;
    start(2);
    struct sched_group *g = group(100, 10);
    struct actor *a[3];
    for (unsigned i = 0; i < 3; i++)
        a[i] = member(g, NEVER, 0);
    simulate(60 * MS); // the budget is used up
    assert_true(g->throttled);
    assert_int_equal(g->active, 3);
    for (unsigned i = 0; i < 3; i++) {
        assert_int_equal(sched_remove(&a[i]->e), 0);
        a[i]->known = false;
    }
    assert_int_equal(g->active, 0);
    sched_group_remove(g);
    g->weight = 0;
    simulate(300 * MS);
    for (unsigned c = 0; c < online; c++)
        assert_int_equal(sim[c].state, SIM_HALTED);
    finish_groups();
}

// --- Directed yield ---

static bool yielded;
static uint64_t slice_end;
static struct actor *victim_removed;

static void remove_heir(void)
{
    assert_int_equal(sched_remove(&victim_removed->e), 0);
}

static void spin_in_vain(struct actor *a)
{
    if (a->runs < 3)
        return;
    slice_end = fake_tsc + sched_max_run_ticks();
    yielded = sched_yield_to_group(&a->e, slice_end);
    a->script = NULL;
}

static void test_yield(void **state)
{
    (void)state;
    for (unsigned with_group = 0; with_group < 2; with_group++) {
        start(2);
        struct sched_group *g = group(100, 0), *others = group(100, 0);
        struct actor *a[3], *b[3];
        for (unsigned i = 0; i < 3; i++) {
            a[i] = member(with_group != 0 ? g : NULL, NEVER, 0);
            b[i] = member(others, NEVER, 0);
            a[i]->e.cpu_mask = b[i]->e.cpu_mask = 2;
        }
        simulate(30 * MS);
        yielded = false;
        a[0]->script = spin_in_vain;
        while (a[0]->script != NULL)
            simulate(10 * US);
        assert_int_equal(yielded, with_group);
        uint64_t at = fake_tsc;
        simulate(50 * US);
        // A sibling runs at once, not one of the others, and not beyond the slice that was given
        // up.
        assert_int_equal(a[1]->inside || a[2]->inside, with_group);
        if (with_group != 0) {
            assert_false(a[0]->inside);
            assert_true(a[0]->e.spun);
            struct actor *heir = a[1]->inside ? a[1] : a[2];
            assert_near(heir->started, at, TOLERANCE);
            simulate(2 * SLICE);
            assert_true(heir->ended <= slice_end + TOLERANCE || heir->runs > 4);
        }
        // Neither VM loses by it.
        uint64_t one = 0, two = 0;
        simulate(3000 * MS);
        for (unsigned i = 0; i < 3; i++) {
            one += a[i]->e.run_ticks;
            two += b[i]->e.run_ticks;
        }
        if (with_group != 0)
            assert_near(one, two, 6 * SLICE);
        finish_groups();
    }
}

static void spin_always(struct actor *a)
{
    busy(fake_tsc + 50 * US);
    sched_yield_to_group(&a->e, fake_tsc + sched_max_run_ticks() / 2);
}

// A VM whose vCPUs give their slices to each other without end gets its share and no more.
static void test_yield_is_paid_for(void **state)
{
    (void)state;
    start(2);
    struct sched_group *g = group(100, 0), *others = group(200, 0);
    for (unsigned i = 0; i < 4; i++) {
        member(g, NEVER, 0)->script = i < 2 ? spin_always : NULL;
        member(others, NEVER, 0);
    }
    simulate(4000 * MS);
    assert_near(ran(g), 8000 * MS / 3, 200 * MS);
    finish_groups();
}

// The heir disappears before its turn; a yield with nothing left of the slice; with nobody waiting.
static struct actor *heir_to_be;
static bool take_heir;

static void yield_then_remove(struct actor *a)
{
    if (a->runs < 3)
        return;
    yielded = sched_yield_to_group(&a->e, fake_tsc + SLICE);
    if (take_heir) {
        victim_removed = heir_to_be;
        elsewhere(remove_heir);
    }
    a->script = NULL;
}

static void test_yield_edges(void **state)
{
    (void)state;
    for (unsigned i = 0; i < 2; i++) {
        start(2);
        struct sched_group *g = group(100, 0);
        struct actor *a = member(g, NEVER, 0);
        a->e.cpu_mask = 2;
        heir_to_be = member(g, NEVER, 0);
        heir_to_be->e.cpu_mask = i == 0 ? 2 : 1; // the second one runs on the other CPU
        simulate(40 * MS);
        yielded = i != 0;
        take_heir = i == 0;
        a->script = yield_then_remove;
        a->runs = 2;
        while (a->script != NULL)
            simulate(10 * US);
        assert_int_equal(yielded, i == 0);
        if (i == 0) {
            assert_true(heir_to_be->e.dead);
            heir_to_be->known = false;
            unsigned runs = heir_to_be->runs;
            simulate(100 * MS);
            assert_int_equal(heir_to_be->runs, runs);
        }
        fake_set_cpu(1);
        assert_false(sched_yield_to_group(&a->e, fake_tsc + 10 * US));
        fake_set_cpu(OUTSIDER);
        finish_groups();
    }
}

// The console's CPU looks at its UART every millisecond; the others have longer slices.
static void test_slices(void **state)
{
    (void)state;
    start(2);
    for (unsigned i = 0; i < 4; i++)
        hog(100);
    simulate(100 * MS);
    assert_in_range(sim[0].polls, 95, 110);
    assert_in_range(sim[0].passes, 95, 110);
    assert_in_range(sim[1].passes, 9, 15);
    assert_int_equal(sim[1].polls, 0);
    assert_true(sim[0].watchdogs >= 95 && sim[1].watchdogs >= 9);
    for (unsigned i = 0; i < 4; i++)
        assert_true(actors[i].longest_wait < 3 * SLICE);
    finish();
}

// Who slept for long may be ahead by a slice, not by all the time it slept.
static void test_sleeper_saves_nothing(void **state)
{
    (void)state;
    start(1);
    struct actor *h = hog(100);
    struct actor *s = actor(NEVER, 0);
    simulate(2000 * MS);
    uint64_t before = h->e.run_ticks;
    sched_wake(&s->e);
    simulate(100 * MS);
    assert_near(h->e.run_ticks - before, 50 * MS, SLICE + 2 * MS);
    assert_true(h->longest_wait <= SLICE + 3 * MS);
    finish();
}

// One that works in short runs, as a fiber does that yields.
static void yield_soon(struct actor *a)
{
    a->left = MS / 2;
    a->e.gives_way = true;
}

// Who gives way does not use up what a sleeper has to its credit, up to a slice, before the others
// get the CPU: they take turns from the second run on.
static void test_giving_way(void **state)
{
    (void)state;
    start(1);
    struct actor *h = hog(100);
    struct actor *s = actor(NEVER, 0);
    s->script = yield_soon;
    simulate(2000 * MS);
    h->longest_wait = 0;
    sched_wake(&s->e);
    simulate(100 * MS);
    assert_true(s->runs > 20);
    assert_true(h->longest_wait <= 2 * MS); // a slice of CPU 0 is one; with the credit it is eleven
    assert_near(s->e.virtual_time, h->e.virtual_time, 2 * MS);
    finish();
}

// A newcomer is as far as the others.
static void test_newcomer(void **state)
{
    (void)state;
    start(1);
    struct actor *h = hog(100);
    simulate(1000 * MS);
    uint64_t before = h->e.run_ticks;
    hog(100);
    simulate(100 * MS);
    assert_near(h->e.run_ticks - before, 50 * MS, SLICE + 2 * MS);
    finish();
}

// --- Sleeping and waking ---

// An idle CPU is woken by one interrupt; nobody is disturbed otherwise.
static void test_idle_is_woken(void **state)
{
    (void)state;
    start(2);
    struct actor *a = actor(100 * US, NEVER);
    a->e.cpu_mask = 2;
    simulate(5 * MS);
    assert_int_equal(a->runs, 0);
    sched_wake(&a->e);
    assert_int_equal(sim[1].wakes, 1);
    assert_int_equal(sim[1].nmis, 0);
    simulate(5 * MS);
    assert_int_equal(a->runs, 1);
    assert_int_equal(sim[0].wakes + sim[0].nmis, 0);
    assert_int_equal(sim[1].wakes, 1);
    assert_int_equal(a->e.state, SCHED_BLOCKED);
    // Woken again while it waits or sleeps: one run each.
    sched_wake(&a->e);
    sched_wake(&a->e);
    sched_wake(&a->e);
    simulate(5 * MS);
    assert_int_equal(a->runs, 2);
    finish();
}

static void test_wake_latency(void **state)
{
    (void)state;
    start(1);
    struct actor *a = actor(100 * US, NEVER);
    for (unsigned i = 0; i < 50; i++) {
        simulate(7 * MS);
        uint64_t woken = fake_tsc;
        sched_wake(&a->e);
        assert_int_equal(sim[0].wakes, i + 1);
        simulate(MS);
        assert_int_equal(a->runs, i + 1);
        assert_near(a->started, woken, TOLERANCE);
    }
    finish();
}

// Where everybody is busy, the CPU whose entity is furthest ahead is asked to give way.
static void test_wake_preempts(void **state)
{
    (void)state;
    start(2);
    struct actor *a = actor(NEVER, 0), *b = actor(NEVER, 0), *s = actor(100 * US, NEVER);
    a->e.cpu_mask = 1;
    b->e.cpu_mask = 2;
    s->e.cpu_mask = 2;
    sched_wake(&a->e);
    sched_wake(&b->e);
    simulate(95 * MS);
    unsigned nmis = sim[1].nmis;
    uint64_t woken = fake_tsc;
    sched_wake(&s->e);
    assert_true(sched_must_yield(1));
    assert_false(sched_must_yield(0));
    assert_int_equal(sim[1].nmis, nmis + 1);
    assert_int_equal(sim[0].nmis, 0);
    simulate(5 * MS);
    assert_int_equal(s->runs, 1);
    assert_near(s->started, woken, TOLERANCE);
    finish();
}

// One that is further ahead itself has to wait for its turn and disturbs nobody.
static void test_no_preemption(void **state)
{
    (void)state;
    start(1);
    struct actor *ahead = hog(100);
    simulate(100 * MS);
    ahead->burst = ahead->left = 0;
    ahead->pause = NEVER;
    simulate(5 * MS);
    assert_int_equal(ahead->e.state, SCHED_BLOCKED);
    struct actor *h = hog(100);
    ahead->e.virtual_time = h->e.virtual_time + 20 * MS;
    ahead->left = 100 * US;
    simulate(2 * MS + 500 * US);
    unsigned runs = ahead->runs;
    sched_wake(&ahead->e);
    assert_false(sched_must_yield(0));
    simulate(10 * MS);
    assert_int_equal(ahead->runs, runs);
    simulate(15 * MS);
    assert_int_equal(ahead->runs, runs + 1);
    finish();
}

static struct actor *victim;

static void wake_victim(void)
{
    sched_wake(&victim->e);
}

static uint64_t woken_at;

static void victim_is_woken(void)
{
    woken_at = fake_tsc;
    elsewhere(wake_victim);
}

static void wake_in_run(struct actor *a)
{
    if (a->runs == 1)
        victim_is_woken();
}

static void wake_at_next_lock(struct actor *a)
{
    if (a->runs == 1)
        lock_hook = victim_is_woken;
}

static void wake_self(struct actor *a)
{
    if (a->runs == 1)
        sched_wake(&a->e);
}

// A wake-up that comes while it runs, or after run() said SLEEP and before it sleeps, makes it run
// once more; and once only.
static void test_wake_while_running(void **state)
{
    (void)state;
    void (*const scripts[])(struct actor *) = {wake_in_run, wake_at_next_lock, wake_self};
    for (unsigned i = 0; i < ARRAY_SIZE(scripts); i++) {
        start(2);
        victim = actor(0, NEVER);
        victim->e.cpu_mask = 1;
        victim->script = scripts[i];
        sched_wake(&victim->e);
        simulate(50 * MS);
        assert_null(lock_hook);
        assert_int_equal(victim->runs, 2);
        assert_int_equal(victim->e.state, SCHED_BLOCKED);
        assert_false(victim->e.wake_pending);
        sched_wake(&victim->e);
        simulate(50 * MS);
        assert_int_equal(victim->runs, 3);
        finish();
    }
}

// With a deadline beside the wake-up: the deadline is not kept for the next sleep.
static void wake_and_forget(struct actor *a)
{
    if (a->runs == 1)
        lock_hook = victim_is_woken;
    else
        a->pause = NO_DEADLINE;
}

static void test_wake_clears_deadline(void **state)
{
    (void)state;
    start(2);
    victim = actor(0, 20 * MS);
    sched_wake(&victim->e);
    simulate(5 * MS);
    assert_int_equal(victim->runs, 1);
    victim->pause = NO_DEADLINE;
    sched_wake(&victim->e);
    simulate(100 * MS);
    assert_int_equal(victim->runs, 2);
    // The same when the wake-up came before it slept.
    victim->script = wake_and_forget;
    victim->runs = 0;
    victim->pause = 20 * MS;
    sched_wake(&victim->e);
    simulate(100 * MS);
    assert_int_equal(victim->runs, 2);
    finish();
}

// A CPU that found nothing to run, and on its way to the halt somebody is woken for it alone.
static void test_wake_before_halt(void **state)
{
    (void)state;
    for (unsigned place = 0; place < 3; place++) {
        start(2);
        struct actor *h = actor(100 * US, 3 * MS), *other = actor(NEVER, 0);
        h->e.cpu_mask = 2;
        other->e.cpu_mask = 1;
        sched_wake(&other->e);
        victim = actor(0, NEVER);
        victim->e.cpu_mask = 2;
        sched_wake(&h->e);
        simulate(MS);
        assert_int_equal(victim->runs, 0);
        uint64_t before = fake_tsc;
        if (place == 0)
            idle_hook = victim_is_woken;
        else if (place == 1)
            arm_hook = victim_is_woken;
        else
            zero_work = 3;
        h->pause = NEVER; // from now on only the hook wakes anybody
        if (place == 2) {
            simulate(2 * MS + 150 * US); // it is zeroing frames
            victim_is_woken();
        }
        simulate(20 * MS);
        assert_null(idle_hook);
        assert_null(arm_hook);
        assert_int_equal(victim->runs, 1);
        assert_true(woken_at > before);
        assert_near(victim->started, woken_at, HAND_OVER);
        finish();
    }
}

// --- Deadlines ---

static void test_deadlines(void **state)
{
    (void)state;
    for (unsigned busy_cpus = 0; busy_cpus < 2; busy_cpus++) {
        start(1 + busy_cpus);
        for (unsigned i = 0; i < 2 * busy_cpus; i++)
            hog(100);
        struct actor *a = actor(10 * US, 3 * MS + 300 * US);
        sched_wake(&a->e);
        simulate(MS + SLICE);
        uint64_t worst = 0;
        for (unsigned i = 0; i < 200; i++) {
            unsigned runs = a->runs;
            uint64_t due = a->e.wake_deadline;
            if (due == NEVER) { // between two sleeps
                simulate(20 * US);
                continue;
            }
            while (a->runs == runs)
                simulate(10 * US);
            assert_true(a->started >= due);
            worst = MAX(worst, a->started - due);
            simulate(100 * US);
        }
        assert_true(worst <= TOLERANCE + 20 * US);
        finish();
    }
}

static void test_past_deadline(void **state)
{
    (void)state;
    start(1);
    struct actor *a = actor(10 * US, 0);
    sched_wake(&a->e);
    simulate(10 * MS);
    assert_in_range(a->runs, 900, 1001);
    a->pause = NEVER;
    finish();
}

// Several that are due at once are spread over the idle CPUs.
static void test_due_together(void **state)
{
    (void)state;
    start(4);
    for (unsigned i = 0; i < 4; i++)
        sched_wake(&actor(5 * MS, NEVER)->e);
    simulate(2 * MS);
    unsigned busy_cpus = 0;
    for (unsigned i = 0; i < 4; i++)
        busy_cpus += actors[i].inside;
    assert_int_equal(busy_cpus, 4);
    simulate(20 * MS);
    // The same by their deadlines.
    for (unsigned i = 0; i < 4; i++) {
        assert_int_equal(actors[i].e.state, SCHED_BLOCKED);
        actors[i].pause = 0;
        actors[i].left = 0;
        sched_wake(&actors[i].e);
    }
    uint64_t due = fake_tsc + 10 * MS;
    for (unsigned i = 0; i < 4; i++) {
        actors[i].burst = 5 * MS;
        actors[i].pause = due - fake_tsc - i;
    }
    simulate(9 * MS);
    for (unsigned i = 0; i < 4; i++) {
        assert_int_equal(actors[i].e.state, SCHED_BLOCKED);
        actors[i].pause = NEVER;
    }
    simulate(3 * MS);
    for (unsigned i = 0; i < 4; i++) {
        assert_true(actors[i].inside);
        assert_near(actors[i].awake, due, 100 * US);
    }
    simulate(20 * MS);
    finish();
}

// --- Affinity ---

static void test_affinity(void **state)
{
    (void)state;
    start(3);
    struct actor *a = actor(NEVER, 0), *b = actor(NEVER, 0), *c = actor(NEVER, 0);
    a->e.cpu_mask = b->e.cpu_mask = 2;
    c->e.cpu_mask = 5;
    sched_wake(&a->e);
    sched_wake(&b->e);
    sched_wake(&c->e);
    simulate(1000 * MS);
    // run_actor checks where they are; two share CPU 1 although one is free.
    assert_near(a->e.run_ticks, 500 * MS, SLICE);
    assert_near(b->e.run_ticks, 500 * MS, SLICE);
    assert_near(c->e.run_ticks, 1000 * MS, SLICE);
    finish();
}

// A new mask holds from the next turn on.
static void test_affinity_changes(void **state)
{
    (void)state;
    start(2);
    struct actor *a[4];
    for (unsigned i = 0; i < 4; i++) {
        a[i] = actor(NEVER, 0);
        a[i]->e.cpu_mask = i < 1 ? 1 : 2;
        sched_wake(&a[i]->e);
    }
    simulate(200 * MS);
    struct actor *moved = a[1];
    while (moved->e.state != SCHED_RUNNABLE)
        moved = moved == a[3] ? a[1] : moved + 1;
    assert_int_equal(moved->e.last_cpu, 1);
    sched_set_affinity(&moved->e, 1);
    uint64_t before = moved->e.run_ticks;
    simulate(500 * MS);
    assert_int_equal(moved->e.last_cpu, 0);
    assert_true(moved->e.run_ticks - before > 200 * MS);
    // Also one that runs, at once, and one that sleeps.
    assert_true(a[0]->inside || moved->inside);
    struct actor *here = a[0]->inside ? a[0] : moved;
    sched_set_affinity(&here->e, 2);
    simulate(HAND_OVER);
    assert_false(here->inside && here->e.cpu == 0);
    struct actor *asleep = actor(MS, NEVER);
    sched_set_affinity(&asleep->e, 2);
    simulate(MS);
    assert_int_equal(asleep->runs, 0);
    sched_wake(&asleep->e);
    simulate(50 * MS);
    assert_true(asleep->runs != 0);
    assert_int_equal(asleep->e.last_cpu, 1);
    finish();
}

// Who is driven from its CPU by one that may run only there finds the idle one.
static void test_displaced(void **state)
{
    (void)state;
    start(2);
    struct actor *free_one = actor(NEVER, 0), *bound = actor(NEVER, 0);
    bound->e.cpu_mask = 1;
    sched_wake(&free_one->e);
    simulate(50 * MS);
    bound->e.cpu_mask = UINT64_C(1) << free_one->e.last_cpu;
    sched_wake(&bound->e);
    uint64_t one = free_one->e.run_ticks, two = bound->e.run_ticks;
    simulate(100 * MS);
    assert_near(free_one->e.run_ticks - one, 100 * MS, SLICE);
    assert_near(bound->e.run_ticks - two, 100 * MS, SLICE);
    finish();
}

// What happens on other CPUs is nothing to those that are bound to this one: neither a sleeper that
// wakes up beside its equal, nor the equal, is kept waiting for what others are ahead.
static void test_affinity_does_not_starve(void **state)
{
    (void)state;
    for (unsigned side = 0; side < 2; side++) {
        start(2);
        struct actor *alone = actor(NEVER, 0);
        struct actor *pair[2] = {actor(NEVER, 0), actor(NEVER, 0)};
        alone->e.cpu_mask = 2;
        pair[0]->e.cpu_mask = pair[1]->e.cpu_mask = 1;
        sched_wake(&alone->e);
        sched_wake(&pair[0]->e);
        sched_wake(&pair[1]->e);
        simulate(2000 * MS); // by now `alone` is a second ahead
        struct actor *sleeper = side == 0 ? pair[0] : actor(NEVER, 0);
        struct actor *equal = side == 0 ? pair[1] : alone;
        if (side == 0) {
            sleeper->burst = sleeper->left = 0;
            sleeper->pause = 5 * MS;
            while (sleeper->e.state != SCHED_BLOCKED)
                simulate(MS);
            sleeper->burst = sleeper->left = NEVER;
        } else {
            sleeper->e.cpu_mask = 2;
            sched_wake(&sleeper->e);
        }
        simulate(10 * MS);
        uint64_t one = sleeper->e.run_ticks, two = equal->e.run_ticks;
        simulate(200 * MS);
        assert_near(sleeper->e.run_ticks - one, 100 * MS, 2 * SLICE);
        assert_near(equal->e.run_ticks - two, 100 * MS, 2 * SLICE);
        finish();
    }
}

// --- Removal ---

static int remove_result;

static void remove_victim(void)
{
    remove_result = sched_remove(&victim->e);
}

static void remove_self(struct actor *a)
{
    if (a->runs == 1)
        elsewhere(remove_victim);
}

static void test_remove(void **state)
{
    (void)state;
    start(2);
    // Running.
    victim = actor(MS, NEVER);
    victim->e.cpu_mask = 1;
    victim->script = remove_self;
    remove_result = 1;
    sched_wake(&victim->e);
    simulate(100 * US);
    assert_true(victim->inside);
    assert_int_equal(remove_result, E_BUSY);
    assert_int_equal(sched_remove(&victim->e), E_BUSY);
    assert_false(victim->e.dead);
    simulate(10 * MS);
    // Blocked, without and with a deadline.
    assert_int_equal(victim->e.state, SCHED_BLOCKED);
    assert_int_equal(sched_remove(&victim->e), 0);
    sched_wake(&victim->e);
    simulate(10 * MS);
    assert_int_equal(victim->runs, 1);
    assert_int_equal(sched_remove(&victim->e), 0); // again: nothing
    struct actor *a = actor(0, 5 * MS);
    sched_wake(&a->e);
    simulate(MS);
    assert_int_equal(a->runs, 1);
    assert_int_equal(sched_remove(&a->e), 0);
    // Waiting for its turn.
    struct actor *h = actor(NEVER, 0), *w = actor(NEVER, 0);
    h->e.cpu_mask = w->e.cpu_mask = 1;
    sched_wake(&h->e);
    simulate(5 * MS);
    sched_wake(&w->e);
    while (w->e.state != SCHED_RUNNABLE || w->inside)
        simulate(100 * US);
    unsigned runs = w->runs;
    assert_int_equal(sched_remove(&w->e), 0);
    simulate(100 * MS);
    assert_int_equal(a->runs, 1);
    assert_int_equal(w->runs, runs);
    assert_near(h->e.run_ticks + h->e.wait_ticks, 105 * MS, SLICE);
    victim->known = a->known = w->known = false;
    finish();
}

// A VM is stopped while its vCPU waits for a CPU: what it has waited counts, what it waits then and
// what a wake-up costs meanwhile does not, so that its guest is told of no time stolen while its
// clock stood still.
static void test_stopped_while_it_waits(void **state)
{
    (void)state;
    for (unsigned runs = 0; runs <= 1; runs++) { // while it is stopped
        start(1);
        struct actor *hog = actor(NEVER, 0);
        struct actor *w = actor(100 * US, NEVER);
        sched_wake(&hog->e);
        simulate(20 * MS);
        sched_wake(&w->e);
        assert_int_equal(w->e.state, SCHED_RUNNABLE);
        fake_tsc += 3 * MS;
        sched_count_sleep(&w->e, false);
        struct sched_times stopped = sched_times(&w->e);
        assert_near(stopped.wait, 3 * MS, 10 * US);
        if (runs != 0)
            simulate(50 * MS);
        else
            fake_tsc += 5 * MS;
        assert_int_equal(w->runs, runs);
        struct sched_times t = sched_times(&w->e);
        assert_int_equal(t.wait, stopped.wait);
        assert_int_equal(t.sleep, stopped.sleep);
        sched_count_sleep(&w->e, true);
        t = sched_times(&w->e);
        assert_near(t.wait, stopped.wait, 10 * US);
        assert_near(t.sleep, stopped.sleep, 10 * US);
        finish();
    }
}

// Run, wait and sleep are all of an entity's time, at any moment, but for what does not count.
static void test_times_add_up(void **state)
{
    (void)state;
    start(2);
    struct actor *a[6];
    uint64_t begin[6], skipped[6] = {0};
    struct sched_times last[6] = {0};
    for (unsigned i = 0; i < 6; i++) {
        begin[i] = fake_tsc;
        a[i] = actor(i == 0 ? NEVER : i * MS, i == 1 ? NEVER : 3 * MS);
        a[i]->e.group = i % 3 == 0 ? group(100, i == 3 ? 30 : 0) : NULL;
        sched_wake(&a[i]->e);
    }
    for (unsigned round = 0; round < 400; round++) {
        simulate((round * 37 % 23) * 100 * US);
        for (unsigned i = 0; i < 6; i++) {
            struct sched_entity *e = &a[i]->e;
            if (round % 50 != 10 + i || e->state == SCHED_RUNNING)
                continue;
            sched_count_sleep(e, false);
            fake_tsc += (round % 5) * US;
            sched_count_sleep(e, true);
            skipped[i] += (round % 5) * US;
        }
        for (unsigned i = 0; i < 6; i++) {
            struct sched_times t = sched_times(&a[i]->e);
            assert_near(t.run + t.wait + t.sleep, fake_tsc - begin[i] - skipped[i],
                        100); // looks take time
            assert_true(t.run >= last[i].run && t.wait >= last[i].wait && t.sleep >= last[i].sleep);
            last[i] = t;
        }
    }
    for (unsigned i = 0; i < 6; i++)
        assert_true(last[i].run > 0 && last[i].wait > 0);
    finish_groups();
}

static void test_exit(void **state)
{
    (void)state;
    start(2);
    struct actor *a = actor(100 * US, MS);
    sched_wake(&a->e);
    simulate(10 * MS);
    unsigned runs = a->runs;
    assert_true(runs > 5);
    a->quit = true;
    simulate(10 * MS);
    assert_in_range(a->runs, runs, runs + 1);
    runs = a->runs;
    assert_true(a->e.dead);
    assert_int_equal(a->e.cpu, -1);
    sched_wake(&a->e);
    simulate(10 * MS);
    assert_int_equal(a->runs, runs);
    assert_int_equal(sched_remove(&a->e), 0);
    finish();
}

// --- Everything together ---

static unsigned console_polls;

static void count_console_poll(void)
{
    assert_int_equal(cpu_index(), 0);
    assert_false(fake_irq_on);
    assert_true(spin_none_held());
    console_polls++;
}

// Random sleeps, wake-ups and affinities. Nobody who has been woken waits longer than all the
// others' turns, no wake-up is lost, and CPUs never halt beside work (simulate checks).
static void test_random(void **state)
{
    (void)state;
    srand(3);
    for (unsigned round = 0; round < 20; round++) {
        start(1 + round % CPUS);
        console_polls = 0;
        sched_set_console_poll(count_console_poll);
        for (unsigned i = 0; i < 12; i++) {
            struct actor *a = actor(1 + (uint64_t)rand() % (3 * MS), (uint64_t)rand() % (5 * MS));
            a->random = true;
            if (rand() % 3 == 0)
                a->e.cpu_mask = UINT64_C(1) << (unsigned)rand() % online;
            a->e.weight = 50 + (uint32_t)rand() % 100;
            sched_wake(&a->e);
        }
        for (unsigned i = 0; i < 200; i++) {
            simulate((uint64_t)rand() % (3 * MS));
            zero_work = (unsigned)rand() % 3;
            struct actor *a = &actors[(unsigned)rand() % actor_count];
            unsigned runs = a->runs;
            if (a->e.state != SCHED_BLOCKED)
                continue;
            sched_wake(&a->e);
            for (unsigned turns = 0; a->runs == runs; turns++) {
                assert_true(turns < 300);
                simulate(MS);
            }
        }
        zero_work = 0;
        assert_true(console_polls != 0);
        assert_int_equal(console_polls, sim[0].polls);
        sched_set_console_poll(NULL);
        for (unsigned i = 0; i < actor_count; i++) {
            actors[i].random = false;
            actors[i].left = 0;
        }
        finish();
    }
}

static int power_off(void **state)
{
    (void)state;
    for (unsigned c = 0; c < CPUS; c++)
        free(sim[c].stack);
    return 0;
}

// After a failure the tests that follow fail too, for the machine is theirs as well: a name as the
// argument runs that test alone.
int main(int argc, char **argv)
{
    if (argc > 1)
        cmocka_set_test_filter(argv[1]);
    static const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_shares),
        cmocka_unit_test(test_virtual_time_wraps),
        cmocka_unit_test(test_group_shares),
        cmocka_unit_test(test_group_of_sleepers),
        cmocka_unit_test(test_newcomer_beside_heavy),
        cmocka_unit_test(test_cap),
        cmocka_unit_test(test_cap_beside_others),
        cmocka_unit_test(test_cap_and_removal),
        cmocka_unit_test(test_yield),
        cmocka_unit_test(test_yield_is_paid_for),
        cmocka_unit_test(test_yield_edges),
        cmocka_unit_test(test_slices),
        cmocka_unit_test(test_sleeper_saves_nothing),
        cmocka_unit_test(test_giving_way),
        cmocka_unit_test(test_newcomer),
        cmocka_unit_test(test_idle_is_woken),
        cmocka_unit_test(test_wake_latency),
        cmocka_unit_test(test_wake_preempts),
        cmocka_unit_test(test_no_preemption),
        cmocka_unit_test(test_wake_while_running),
        cmocka_unit_test(test_wake_clears_deadline),
        cmocka_unit_test(test_wake_before_halt),
        cmocka_unit_test(test_deadlines),
        cmocka_unit_test(test_past_deadline),
        cmocka_unit_test(test_due_together),
        cmocka_unit_test(test_affinity),
        cmocka_unit_test(test_affinity_changes),
        cmocka_unit_test(test_displaced),
        cmocka_unit_test(test_affinity_does_not_starve),
        cmocka_unit_test(test_remove),
        cmocka_unit_test(test_times_add_up),
        cmocka_unit_test(test_stopped_while_it_waits),
        cmocka_unit_test(test_exit),
        cmocka_unit_test(test_random),
    };
    return cmocka_run_group_tests(tests, boot, power_off);
}
