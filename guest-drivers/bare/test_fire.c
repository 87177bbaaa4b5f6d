// SPDX-License-Identifier: BSD-2-Clause
// gaps, fill, fire, and `resetloop=1`: for the tests of lifecycle under load.
#include "hypercall.h"
#include "smp.h"

// --- gaps: how long this CPU was away at most, every `every=` ms, for ever ---

void test_gaps(void)
{
    uint64_t every = option("every", 500) * (tsc_hz() / 1000);
    cli();
    for (uint64_t round = 0;; round++) {
        uint64_t most = 0, last = rdtsc(), end = last + every;
        while (last < end) {
            uint64_t now = rdtsc();
            if (now - last > most)
                most = now - last;
            last = now;
        }
        report("round=%lu max=%lu", round, most);
    }
}

// --- fill: all memory written; `distinct=` contents, then `balloon=SIZE` of it given away ---

static uint64_t list[FUSOR_LIST_MAX] __attribute__((aligned(4096)));

static volatile uint64_t *word(uint64_t address)
{
    return (volatile uint64_t *)address; // NOLINT: RAM is mapped to itself
}

static void give(uint64_t from, uint64_t size)
{
    while (size != 0) {
        unsigned n = 0;
        for (; n < FUSOR_LIST_MAX && size != 0; n++, from += PAGE, size -= PAGE)
            list[n] = FUSOR_ENTRY(from / PAGE, 0, 0);
        for (unsigned done = 0; done < n;) {
            int64_t result =
                hypercall(FUSOR_BALLOON_INFLATE, (uint64_t)&list[done], n - done, 0, 0);
            check(result > 0, result);
            if (result <= 0)
                return;
            done += (unsigned)result;
        }
    }
}

void test_fill(void)
{
    uint64_t distinct = option("distinct", UINT64_MAX), balloon = option("balloon", 0), pages = 0;
    uint64_t salt = option("salt", 1) << 32;
    for (unsigned i = 0; i < memory_count; i++)
        for (uint64_t a = memory[i].from; a < memory[i].to; a += PAGE)
            *word(a) = salt | pages++ % distinct;
    if (balloon != 0)
        give(memory[memory_count - 1].to - balloon, balloon);
    report("pages=%lu", pages);
    cli();
    for (;;)
        __asm__ volatile("hlt");
}

// --- fire: each CPU does something else, then, after `ms=`, the VM ends in the way of `end=` ---
//
// 0: it goes on for ever; 1: reset; 2: power-off; 3: triple fault; 4: reset and power-off by two
// CPUs at once; 5: all three; 6: power-off by one and INIT of the first by another (which resets).

static uint64_t ends_at, way;
static unsigned cpus;

static void on_noise(struct frame *f)
{
    (void)f;
    smp_eoi();
}

static _Noreturn void stay(void)
{
    for (;;)
        __asm__ volatile("" : : : "memory");
}

_Noreturn void reset_now(void)
{
    outb(0x64, 0xfe);
    stay();
}

static void until_end(void)
{
    while (rdtsc() < ends_at)
        __asm__ volatile("pause" : : : "memory");
}

static void by_reset(void)
{
    until_end();
    reset_now();
}

static void by_off(void)
{
    until_end();
    power_off();
}

static void by_triple(void)
{
    static const struct __attribute__((packed)) {
        uint16_t limit;
        uint64_t base;
    } none = {0, 0};
    until_end();
    __asm__ volatile("lidt %0; ud2" : : "m"(none));
}

static void by_init(void)
{
    until_end();
    smp_send(0, ICR_ASSERT | ICR_INIT);
    stay();
}

static void fire_halt(void)
{
    sti();
    smp_lapic_write(LAPIC_TIMER, TIMER_PERIODIC | 0x74);
    smp_lapic_write(LAPIC_INITIAL, 10000);
    for (;;)
        __asm__ volatile("hlt");
}

// Long hypercalls over pages that others write.
static void fire_hints(void)
{
    uint64_t base = memory[memory_count - 1].to - FUSOR_LIST_MAX * PAGE;
    for (uint64_t round = 0;; round++) {
        for (unsigned i = 0; i < FUSOR_LIST_MAX; i++) {
            *word(base + (uint64_t)i * PAGE) = round + i % 4;
            list[i] = FUSOR_ENTRY(base / PAGE + i, 0, 0);
        }
        hypercall(FUSOR_HINT, (uint64_t)list, FUSOR_LIST_MAX, 0, 0);
        hypercall(FUSOR_FREE_PAGES, (uint64_t)list, 32, 0, 0);
    }
}

// Every device access takes the VM's device lock.
static void fire_devices(void)
{
    for (;;) {
        outb(0x70, 0);
        inb(0x71);
        smp_lapic_read(LAPIC_PPR);
    }
}

// First touch of all memory but its end, over and over where it is given back.
static void fire_touch(void)
{
    for (uint64_t n = 0;; n++)
        for (unsigned i = 0; i < memory_count; i++)
            for (uint64_t a = memory[i].from; a + 2 * MIB <= memory[i].to; a += PAGE)
                *word(a + 8) = n;
}

// Stops and starts the last CPU, and sends interrupts to the one that halts.
static void fire_inits(void)
{
    for (;;) {
        smp_send(cpus - 1, ICR_ASSERT | ICR_INIT);
        smp_send(1, ICR_ASSERT | 0x74);
        smp_startup_ipi(cpus - 1);
    }
}

static void fire_work(void *unused)
{
    static void (*const roles[])(void) = {stay, fire_halt, fire_hints, fire_devices, fire_touch};
    (void)unused;
    unsigned self = smp_self();
    if (self == cpus - 3 && way != 0) {
        if (way == 1)
            by_reset();
        if (way == 3)
            by_triple();
        by_off();
    }
    if (self == cpus - 2 && way >= 4) {
        if (way == 6)
            by_init();
        by_reset();
    }
    roles[self % ARRAY_SIZE(roles)]();
}

// Needs four CPUs; with eight there is one of each kind. The last one is started and stopped.
void test_fire(void)
{
    cpus = smp_start();
    check(cpus >= 4, cpus);
    way = option("end", 0);
    set_handler(0x74, on_noise);
    report("cpus=%lu end=%lu", (uint64_t)cpus, way);
    ends_at = rdtsc() + option("ms", 50) * (tsc_hz() / 1000);
    for (unsigned i = 1; i + 1 < cpus; i++)
        smp_run(i, fire_work, NULL);
    if (way == 5)
        by_triple();
    fire_inits();
}
