// SPDX-License-Identifier: BSD-2-Clause
// smp: several CPUs: start, identity, atomic counters, IPIs of every kind, timers, INIT and
// STARTUP, TSC.
#include "smp.h"

#define VECTOR_PING    0x70u
#define VECTOR_CLOCK   0x71u
#define MSR_APIC_BASE  0x1bu
#define MSR_TSC_ADJUST 0x3bu
#define LAPIC_LDR      0x0d0u
#define LAPIC_DFR      0x0e0u
#define IOAPIC_PIT     0x14u // redirection entry of pin 2
#define ROUNDS         20000u

static unsigned cpus;
static uint64_t pings[SMP_CPUS_MAX], clocks[SMP_CPUS_MAX], nmis[SMP_CPUS_MAX];

static uint64_t get(const uint64_t *counter)
{
    return __atomic_load_n(counter, __ATOMIC_ACQUIRE);
}

static void count(uint64_t *counters)
{
    __atomic_fetch_add(&counters[smp_self()], 1, __ATOMIC_RELEASE);
}

static void on_ping(struct frame *f)
{
    (void)f;
    count(pings);
    smp_eoi();
}

static void on_clock(struct frame *f)
{
    (void)f;
    count(clocks);
    smp_eoi();
}

static void on_nmi(struct frame *f)
{
    (void)f;
    count(nmis);
}

// Waits, interrupts on, until the counter has this value at least; a second must do.
static bool reaches(const uint64_t *counter, uint64_t value)
{
    uint64_t begin = rdtsc();
    sti();
    while (get(counter) < value && rdtsc() - begin < 2 * tsc_hz())
        __asm__ volatile("pause" : : : "memory");
    cli();
    return get(counter) >= value;
}

static uint64_t sum(const uint64_t *counters)
{
    uint64_t all = 0;
    for (unsigned i = 0; i < cpus; i++)
        all += get(&counters[i]);
    return all;
}

// --- Identity ---

struct identity {
    uint32_t cpuid_id, x2_id, lapic_id, smt, cores, leaf1_count;
    uint64_t base, adjust;
    uint64_t cr0;
};

static void identify(void *result)
{
    struct identity *i = result;
    i->cpuid_id = cpuid(1, 0).b >> 24;
    i->leaf1_count = cpuid(1, 0).b >> 16 & 0xff;
    i->x2_id = cpuid(0xb, 0).d;
    i->smt = cpuid(0xb, 0).b & 0xffff;
    i->cores = cpuid(0xb, 1).b & 0xffff;
    i->lapic_id = smp_lapic_read(LAPIC_ID) >> 24;
    i->base = rdmsr(MSR_APIC_BASE);
    i->adjust = rdmsr(MSR_TSC_ADJUST);
    i->cr0 = read_cr0();
}

static void test_identity(void)
{
    for (unsigned i = 0; i < cpus; i++) {
        struct identity id;
        smp_call(i, identify, &id);
        check(id.cpuid_id == i, id.cpuid_id);
        check(id.lapic_id == i, id.lapic_id);
        check(id.x2_id == i, id.x2_id);
        check(id.smt == 1, id.smt);
        check(id.cores == cpus, id.cores);
        check(id.leaf1_count == cpus, id.leaf1_count);
        check((id.base >> 8 & 1) == (i == 0), id.base);
        check(id.adjust == 0, id.adjust);
        check((id.cr0 & 0x60000000) == 0, id.cr0); // the start-up code has cleared CD and NW
        if (i != 0)
            check(smp_first_svr(i) == 0xff, smp_first_svr(i));
    }
}

// --- Memory ---

static uint64_t shared_counter, own_counter[SMP_CPUS_MAX];

static void increment(void *unused)
{
    (void)unused;
    uint64_t *own = &own_counter[smp_self()];
    for (unsigned i = 0; i < ROUNDS; i++) {
        __atomic_fetch_add(&shared_counter, 1, __ATOMIC_RELAXED);
        *(volatile uint64_t *)own += 1;
    }
}

static void on_all(void (*work)(void *))
{
    for (unsigned i = 1; i < cpus; i++)
        smp_run(i, work, NULL);
    work(NULL);
    for (unsigned i = 1; i < cpus; i++)
        smp_wait(i);
}

static void test_counters(void)
{
    on_all(increment);
    check(shared_counter == (uint64_t)cpus * ROUNDS, shared_counter);
    check(sum(own_counter) == shared_counter, sum(own_counter));
    report("counter=%lu", shared_counter);
}

// --- TSC ---

static uint64_t last_tsc, tsc_lock, tsc_errors;

static void watch_tsc(void *unused)
{
    (void)unused;
    for (unsigned i = 0; i < ROUNDS / 10; i++) {
        while (__atomic_exchange_n(&tsc_lock, 1, __ATOMIC_ACQUIRE) != 0)
            __asm__ volatile("pause" : : : "memory");
        uint64_t now = rdtsc();
        tsc_errors += now < last_tsc;
        last_tsc = now;
        __atomic_store_n(&tsc_lock, 0, __ATOMIC_RELEASE);
    }
}

static void test_tsc(void)
{
    on_all(watch_tsc);
    check(tsc_errors == 0, tsc_errors);
    report("tsc_reads=%lu backwards=%lu", (uint64_t)cpus * (ROUNDS / 10), tsc_errors);
}

// --- Interrupts ---

static uint64_t pairs, least_ticks;

static void ping_all(void *unused)
{
    (void)unused;
    for (unsigned to = 0; to < cpus; to++) {
        for (unsigned k = 0; k < 4; k++) {
            uint64_t before = get(&pings[to]);
            uint64_t begin = rdtsc();
            smp_send(to, VECTOR_PING);
            bool came = reaches(&pings[to], before + 1);
            uint64_t ticks = rdtsc() - begin;
            check(came && get(&pings[to]) == before + 1, get(&pings[to]) - before);
            if (to != smp_self() && ticks < least_ticks)
                least_ticks = ticks;
        }
        pairs++;
    }
}

// Every CPU to every CPU, itself included.
static void test_pairs(const char *mode)
{
    pairs = 0;
    least_ticks = UINT64_MAX;
    for (unsigned from = 0; from < cpus; from++)
        smp_call(from, ping_all, NULL);
    check(pairs == (uint64_t)cpus * cpus, pairs);
    report("mode=%s pairs=%lu min=%lu", mode, pairs, least_ticks);
}

// Sends once from here and expects one ping at each CPU whose bit is set, and nothing else.
static void expect_at(uint32_t set, uint32_t destination, uint32_t icr)
{
    uint64_t before[SMP_CPUS_MAX];
    for (unsigned i = 0; i < cpus; i++)
        before[i] = get(&pings[i]);
    smp_send_to(destination, icr | VECTOR_PING);
    for (unsigned i = 0; i < cpus; i++)
        if ((set >> i & 1) != 0)
            check(reaches(&pings[i], before[i] + 1), i);
    sti();
    wait_ticks(tsc_hz() / 2000);
    cli();
    for (unsigned i = 0; i < cpus; i++)
        check(get(&pings[i]) == before[i] + (set >> i & 1), icr);
}

static void test_shorthands(uint32_t everybody)
{
    uint32_t all = (1u << cpus) - 1;
    expect_at(1, 0, ICR_SELF);
    expect_at(all, 0, ICR_ALL);
    expect_at(all & ~1u, 0, ICR_ALL_BUT_SELF);
    expect_at(all, everybody, 0);
    if (everybody == 0xff)
        return;
    expect_at(0, 0xff, 0); // 0xff is an id like others here
}

// One of the addressed gets each, and not always the same.
static void test_lowest(uint32_t destination)
{
    uint64_t before = sum(pings), first = get(&pings[0]);
    uint64_t rounds = 4 * (uint64_t)cpus;
    for (unsigned i = 0; i < rounds; i++) {
        uint64_t now = sum(pings);
        smp_send_to(destination, ICR_LOGICAL | ICR_LOWEST | VECTOR_PING);
        uint64_t begin = rdtsc();
        sti();
        while (sum(pings) == now && rdtsc() - begin < tsc_hz())
            __asm__ volatile("pause" : : : "memory");
        cli();
    }
    check(sum(pings) == before + rounds, sum(pings) - before);
    check(cpus == 1 || get(&pings[0]) < first + rounds, get(&pings[0]) - first);
}

static void set_flat(void *unused)
{
    (void)unused;
    smp_lapic_write(LAPIC_DFR, 0xffffffff);
    smp_lapic_write(LAPIC_LDR, 1u << (24 + smp_self() % 8));
}

static void set_clusters(void *unused)
{
    (void)unused;
    unsigned self = smp_self();
    smp_lapic_write(LAPIC_DFR, 0x0fffffff);
    smp_lapic_write(LAPIC_LDR, (self / 2 << 4 | 1u << self % 2) << 24); // two in each cluster
}

static void set_x2apic(void *on)
{
    smp_set_x2apic(on != NULL);
}

static void test_xapic(void)
{
    uint32_t all = (1u << cpus) - 1;
    test_pairs("xapic");
    test_shorthands(0xff);
    for (unsigned i = 0; i < cpus; i++)
        smp_call(i, set_flat, NULL);
    if (cpus <= 8) {
        for (unsigned i = 0; i < cpus; i++)
            expect_at(1u << i, 1u << i, ICR_LOGICAL);
        expect_at(all & 5, 5, ICR_LOGICAL);
        expect_at(all, 0xff, ICR_LOGICAL);
        test_lowest(0xff);
    }
    for (unsigned i = 0; i < cpus; i++)
        smp_call(i, set_clusters, NULL);
    for (unsigned i = 0; i < cpus; i++) {
        expect_at(1u << i, i / 2 << 4 | 1u << i % 2, ICR_LOGICAL);
        expect_at(all & 3u << (i & ~1u), i / 2 << 4 | 3, ICR_LOGICAL);
    }
    for (unsigned i = 0; i < cpus; i++)
        smp_call(i, set_flat, NULL);
}

static bool has_x2apic(void)
{
    return (cpuid(1, 0).c >> 21 & 1) != 0;
}

static void test_x2apic(void)
{
    uint32_t all = (1u << cpus) - 1;
    // Half of them first: ids are the same in both modes.
    for (unsigned i = 1; i < cpus; i += 2)
        smp_call(i, set_x2apic, &cpus);
    test_pairs("mixed");
    for (unsigned i = 0; i < cpus; i += 2)
        smp_call(i, set_x2apic, &cpus);
    test_pairs("x2apic");
    test_shorthands(0xffffffff);
    for (unsigned i = 0; i < cpus; i++)
        expect_at(1u << i, 1u << i, ICR_LOGICAL); // cluster 0 has 16
    expect_at(all & 6, 6, ICR_LOGICAL);
    expect_at(0, 0x10001, ICR_LOGICAL);
    test_lowest(all);
    for (unsigned i = cpus; i-- > 0;)
        smp_call(i, set_x2apic, NULL);
    test_pairs("back");
}

static volatile bool release;

static void spin_until_released(void *unused)
{
    (void)unused;
    while (!release) // interrupts are off
        __asm__ volatile("pause" : : : "memory");
}

static void test_nmis(void)
{
    for (unsigned i = 0; i < cpus; i++) {
        release = false;
        if (i != 0)
            smp_run(i, spin_until_released, NULL);
        for (unsigned k = 1; k <= 50; k++) {
            smp_send(i, ICR_NMI);
            check(reaches(&nmis[i], k), get(&nmis[i]));
        }
        release = true;
        if (i != 0)
            smp_wait(i);
        check(get(&nmis[i]) == 50, get(&nmis[i]));
    }
    report("nmis=%lu", sum(nmis));
}

// --- Timers ---

static void run_timer(void *unused)
{
    (void)unused;
    uint64_t *own = &clocks[smp_self()];
    uint64_t begin = rdtsc(), before = get(own);
    smp_lapic_write(LAPIC_TIMER, TIMER_PERIODIC | VECTOR_CLOCK);
    smp_lapic_write(LAPIC_INITIAL, (uint32_t)(tsc_hz() / 200)); // 5 ms
    while (get(own) < before + 10 && rdtsc() - begin < 5 * tsc_hz())
        wait_interrupt();
    smp_lapic_write(LAPIC_INITIAL, 0);
    smp_lapic_write(LAPIC_TIMER, LVT_MASKED);
}

// Each CPU arms the PIT, whose timer hangs at another vCPU, and gets its interrupt.
static void run_pit(void *unused)
{
    (void)unused;
    unsigned self = smp_self();
    uint64_t *own = &clocks[self];
    uint64_t before = get(own);
    ioapic_write(IOAPIC_PIT + 1, self << 24);
    ioapic_write(IOAPIC_PIT, VECTOR_CLOCK);
    for (unsigned k = 1; k <= 3; k++) {
        uint64_t begin = rdtsc();
        pit_start(0, PIT_HZ / 500); // 2 ms
        bool came = reaches(own, before + k);
        uint64_t ticks = rdtsc() - begin;
        check(came, self);
        check(ticks >= tsc_hz() / 500 - tsc_hz() / 5000, ticks);
    }
    ioapic_write(IOAPIC_PIT, LVT_MASKED);
    check(get(own) == before + 3, get(own) - before);
}

static void test_timers(void)
{
    on_all(run_timer);
    for (unsigned i = 0; i < cpus; i++)
        check(get(&clocks[i]) >= 10, get(&clocks[i]));
    for (unsigned i = 0; i < cpus; i++)
        smp_call(i, run_pit, NULL);
    report("timers=%lu", (uint64_t)cpus * 2);
}

// --- INIT and STARTUP ---

static volatile uint64_t turns;

static void spin(void *unused)
{
    (void)unused;
    for (;;)
        turns++;
}

static bool turns_go_on(void)
{
    uint64_t before = turns, begin = rdtsc();
    while (turns == before && rdtsc() - begin < tsc_hz())
        __asm__ volatile("pause" : : : "memory");
    return turns != before;
}

static void test_restart(void)
{
    unsigned restarts = 0;
    for (unsigned i = 1; i < cpus; i++) {
        for (unsigned k = 0; k < 5; k++) {
            smp_run(i, spin, NULL); // interrupts off, never ends
            check(turns_go_on(), i);
            unsigned starts = smp_starts(i);
            smp_startup_ipi(i); // it does not wait for one: ignored
            wait_ticks(tsc_hz() / 2000);
            check(turns_go_on() && smp_starts(i) == starts, i);
            bool up = smp_restart(i);
            check(up, smp_starts(i));
            restarts++;
        }
        check(smp_first_svr(i) == 0xff, smp_first_svr(i));
        // INIT alone: it stands still until the STARTUP, and takes nothing meanwhile.
        smp_run(i, spin, NULL);
        check(turns_go_on(), i);
        smp_send(i, ICR_ASSERT | ICR_INIT);
        wait_ticks(tsc_hz() / 100);
        uint64_t before = get(&pings[i]);
        smp_send(i, VECTOR_PING);
        check(!turns_go_on(), i);
        check(get(&pings[i]) == before, i);
        bool up = smp_restart(i);
        check(up, smp_starts(i));
        struct identity id;
        smp_call(i, identify, &id);
        check(id.cpuid_id == i, id.cpuid_id);
    }
    report("restarts=%lu", (uint64_t)restarts);
}

void test_smp(void)
{
    set_handler(VECTOR_PING, on_ping);
    set_handler(VECTOR_CLOCK, on_clock);
    set_handler(2, on_nmi);
    cpus = smp_start();
    report("cpus=%lu expected=%lu", (uint64_t)cpus, (uint64_t)smp_expected());
    check(cpus == smp_expected(), cpus);
    test_identity();
    test_counters();
    test_tsc();
    test_xapic();
    if (has_x2apic())
        test_x2apic();
    test_nmis();
    test_timers();
    test_restart();
}
