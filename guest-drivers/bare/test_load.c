// SPDX-License-Identifier: BSD-2-Clause
// lock, latency, storm: several CPUs that load the scheduler, and figures of what it
// costs.
#include "hypercall.h"
#include "smp.h"

#define VECTOR_STAMP 0x72u
#define VECTOR_NOISE 0x73u

static unsigned cpus;

// --- lock: all CPUs want one lock. `rounds=` each, `hold=` ticks inside, `ticket=1`: in order ---

static uint64_t lock_word, next_ticket, now_serving;
static uint64_t rounds, hold, in_order, inside, acquired;

static void take(void)
{
    if (in_order != 0) {
        uint64_t mine = __atomic_fetch_add(&next_ticket, 1, __ATOMIC_RELAXED);
        while (__atomic_load_n(&now_serving, __ATOMIC_ACQUIRE) != mine)
            __asm__ volatile("pause" : : : "memory");
        return;
    }
    while (__atomic_exchange_n(&lock_word, 1, __ATOMIC_ACQUIRE) != 0)
        while (__atomic_load_n(&lock_word, __ATOMIC_RELAXED) != 0)
            __asm__ volatile("pause" : : : "memory");
}

static void give(void)
{
    if (in_order != 0)
        __atomic_store_n(&now_serving, now_serving + 1, __ATOMIC_RELEASE);
    else
        __atomic_store_n(&lock_word, 0, __ATOMIC_RELEASE);
}

// Work without PAUSE.
static void busy(uint64_t ticks)
{
    uint64_t begin = rdtsc();
    while (rdtsc() - begin < ticks)
        __asm__ volatile("" : : : "memory");
}

static void contend(void *unused)
{
    (void)unused;
    for (uint64_t i = 0; i < rounds; i++) {
        take();
        check(inside == 0, inside);
        inside = 1;
        for (uint64_t k = 0; k < hold; k++)
            __asm__ volatile("" : : : "memory");
        acquired++;
        inside = 0;
        give();
        for (uint64_t k = 0; k < hold / 4; k++)
            __asm__ volatile("" : : : "memory");
    }
}

void test_lock(void)
{
    rounds = option("rounds", 200);
    hold = option("hold", 20000);
    in_order = option("ticket", 0);
    cpus = smp_start();
    uint64_t begin = rdtsc();
    for (unsigned i = 1; i < cpus; i++)
        smp_run(i, contend, NULL);
    contend(NULL);
    for (unsigned i = 1; i < cpus; i++)
        while (!smp_wait_ticks(i, tsc_hz()))
            ;
    uint64_t ticks = rdtsc() - begin;
    check(acquired == cpus * rounds, acquired);
    report("cpus=%lu ticket=%lu acquired=%lu ticks=%lu per_round=%lu", (uint64_t)cpus, in_order,
           acquired, ticks, ticks / acquired);
}

// --- latency: IPIs to a CPU that runs and to one that halts, and the own timer. `x2apic=1` ---

static uint64_t stamp, stamps;
static volatile bool stop;

static void on_stamp(struct frame *f)
{
    (void)f;
    __atomic_store_n(&stamp, rdtsc(), __ATOMIC_RELAXED);
    __atomic_fetch_add(&stamps, 1, __ATOMIC_RELEASE);
    smp_eoi();
}

static void run_open(void *unused)
{
    (void)unused;
    sti();
    while (!stop)
        __asm__ volatile("" : : : "memory");
    cli();
}

static void to_x2apic(void *unused)
{
    (void)unused;
    smp_set_x2apic(true);
}

struct figures {
    uint64_t min, max, sum, count;
};

static void add(struct figures *f, uint64_t ticks)
{
    if (f->count++ == 0 || ticks < f->min)
        f->min = ticks;
    if (ticks > f->max)
        f->max = ticks;
    f->sum += ticks;
}

static void show(const char *what, const struct figures *f)
{
    check(f->count != 0, f->count);
    if (f->count != 0)
        report("what=%s min=%lu avg=%lu max=%lu", what, f->min, f->sum / f->count, f->max);
}

static bool stamped(uint64_t before)
{
    uint64_t begin = rdtsc();
    while (__atomic_load_n(&stamps, __ATOMIC_ACQUIRE) == before)
        if (rdtsc() - begin > tsc_hz())
            return false;
    return true;
}

static void measure_ipis(const char *what)
{
    struct figures send = {0}, arrive = {0};
    for (unsigned i = 0; i < 100; i++) {
        busy(tsc_hz() / 5000); // 200 us: the other one has settled
        uint64_t before = stamps, begin = rdtsc();
        smp_send(1, VECTOR_STAMP);
        add(&send, rdtsc() - begin);
        bool came = stamped(before);
        check(came, i);
        add(&arrive, stamp - begin);
    }
    show(what, &arrive);
    show("ipi-send", &send);
}

static void measure_timer(bool halts)
{
    struct figures late = {0};
    smp_lapic_write(LAPIC_TIMER, TIMER_DEADLINE | VECTOR_STAMP);
    for (unsigned i = 0; i < 100; i++) {
        uint64_t before = stamps, deadline = rdtsc() + tsc_hz() / 2000; // 500 us
        wrmsr(MSR_TSC_DEADLINE, deadline);
        if (halts) {
            while (stamps == before)
                wait_interrupt();
        } else {
            sti();
            bool came = stamped(before);
            cli();
            check(came, i);
        }
        check(stamp >= deadline, deadline - stamp);
        add(&late, stamp - deadline);
    }
    smp_lapic_write(LAPIC_TIMER, LVT_MASKED);
    show(halts ? "timer-halted" : "timer-running", &late);
}

void test_latency(void)
{
    cpus = smp_start();
    set_handler(VECTOR_STAMP, on_stamp);
    if (option("x2apic", 0) != 0)
        for (unsigned i = cpus; i-- > 0;)
            smp_call(i, to_x2apic, NULL);
    if (cpus > 1) {
        smp_run(1, run_open, NULL);
        measure_ipis("ipi-running");
        stop = true;
        smp_wait(1);
        measure_ipis("ipi-halted");
    }
    measure_timer(false);
    measure_timer(true);
}

// --- storm: everything a guest can do to be in the way, for ever ---

static void on_noise(struct frame *f)
{
    (void)f;
    smp_eoi();
}

static void on_nmi(struct frame *f)
{
    (void)f;
}

static void storm_spin(void)
{
    for (;;)
        __asm__ volatile("" : : : "memory"); // interrupts are off
}

static void storm_ipis(void)
{
    for (;;) {
        smp_send_to(0, ICR_ALL_BUT_SELF | ICR_ASSERT | VECTOR_NOISE);
        // Not to all: the CPU that is being started has no handler yet and would triple-fault.
        for (unsigned i = 0; i + 1 < cpus; i++)
            if (i != smp_self())
                smp_send(i, ICR_ASSERT | ICR_NMI);
    }
}

static void storm_timers(void)
{
    smp_lapic_write(LAPIC_TIMER, TIMER_PERIODIC | VECTOR_NOISE);
    smp_lapic_write(LAPIC_INITIAL, 1);
    for (;;)
        wait_interrupt();
}

static void storm_deadlines(void)
{
    sti();
    smp_lapic_write(LAPIC_TIMER, TIMER_DEADLINE | VECTOR_NOISE);
    for (;;)
        wrmsr(MSR_TSC_DEADLINE, 1); // has passed
}

static void storm_exits(void)
{
    for (;;) {
        cpuid(0x40000000, 0);
        inb(0x71);
        hypercall(0x7fffffff, 0, 0, 0, 0);
        __asm__ volatile("pause");
    }
}

static void storm_work(void *unused)
{
    static void (*const kinds[])(void) = {storm_exits, storm_ipis, storm_timers, storm_spin,
                                          storm_deadlines};
    (void)unused;
    kinds[smp_self() % ARRAY_SIZE(kinds)]();
}

// The first CPU stops and starts the last one, over and over; the others each do something else.
void test_storm(void)
{
    cpus = smp_start();
    set_handler(VECTOR_NOISE, on_noise);
    set_handler(2, on_nmi);
    report("cpus=%lu", (uint64_t)cpus);
    for (unsigned i = 1; i + 1 < cpus; i++)
        smp_run(i, storm_work, NULL);
    if (cpus == 1)
        storm_exits();
    for (;;) {
        smp_send(cpus - 1, ICR_ASSERT | ICR_INIT);
        smp_startup_ipi(cpus - 1);
    }
}
