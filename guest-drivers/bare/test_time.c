// SPDX-License-Identifier: BSD-2-Clause
// spin, spincli, halt, timer, rtc.
#include "bare.h"

static volatile uint64_t ticks_seen, last_tick;

static void on_tick(struct frame *f)
{
    (void)f;
    last_tick = rdtsc();
    ticks_seen++;
    lapic_write(LAPIC_EOI, 0);
}

static void on_pic_tick(struct frame *f)
{
    (void)f;
    last_tick = rdtsc();
    ticks_seen++;
    outb(0x20, 0x20);
}

// Counts for ever, or `seconds=` long.
void test_spin(void)
{
    uint64_t seconds = option("seconds", UINT64_MAX);
    uint64_t second = tsc_hz(), next = rdtsc() + second, count = 0;
    while (seconds != 0) {
        count++;
        uint64_t now = rdtsc();
        if (now < next)
            continue;
        report("count=%lu tsc=%lu", count, now);
        next = now + second;
        seconds--;
    }
}

void test_spincli(void)
{
    cli();
    for (;;)
        __asm__ volatile("" : : : "memory");
}

// Sleeps `seconds=` (1) in HLT with 50 timer interrupts a second.
void test_halt(void)
{
    uint64_t wanted = option("seconds", 1) * 50;
    uint32_t count = (uint32_t)(measured_lapic_hz() / 50);
    set_handler(VECTOR_TIMER, on_tick);
    ticks_seen = 0;
    lapic_write(LAPIC_TIMER, TIMER_PERIODIC | VECTOR_TIMER);
    uint64_t begin = rdtsc();
    lapic_write(LAPIC_INITIAL, count);
    while (ticks_seen < wanted)
        wait_interrupt();
    uint64_t ticks = rdtsc() - begin;
    lapic_write(LAPIC_TIMER, LVT_MASKED);
    report("interrupts=%lu ticks=%lu expected=%lu", ticks_seen, ticks, tsc_hz() * wanted / 50);
}

static bool within_1_percent(uint64_t a, uint64_t b)
{
    return (a > b ? a - b : b - a) <= b / 100;
}

// One interval that was asked for, measured by TSC and PM timer.
struct interval {
    uint64_t begin;
    uint32_t pm_begin;
};

static struct interval start_interval(void)
{
    ticks_seen = 0;
    return (struct interval){rdtsc(), pm_timer()};
}

static void end_interval(struct interval i, const char *kind, uint64_t interrupts, uint64_t us)
{
    uint64_t limit = i.begin + tsc_hz() * 5;
    sti();
    while (ticks_seen < interrupts && rdtsc() < limit)
        __asm__ volatile("pause" : : : "memory");
    cli();
    uint32_t pm = (pm_timer() - i.pm_begin) & 0xffffff;
    uint64_t ticks = last_tick - i.begin;
    uint64_t by_tsc = ticks * 1000000 / tsc_hz(), by_pm = (uint64_t)pm * 1000000 / PM_TIMER_HZ;
    report("kind=%s interrupts=%lu us=%lu tsc_us=%lu pm_us=%lu", kind, ticks_seen, us, by_tsc,
           by_pm);
    check(ticks_seen == interrupts, ticks_seen);
    check(within_1_percent(by_tsc, us), by_tsc);
    check(within_1_percent(by_pm, us), by_pm);
}

static void test_lapic_timer(uint64_t hz)
{
    lapic_write(LAPIC_TIMER, VECTOR_TIMER);
    struct interval i = start_interval();
    lapic_write(LAPIC_INITIAL, (uint32_t)(hz / 20));
    end_interval(i, "oneshot", 1, 50000);

    lapic_write(LAPIC_DIVIDE, 3); // by 16
    i = start_interval();
    lapic_write(LAPIC_INITIAL, (uint32_t)(hz / 20 / 16));
    end_interval(i, "oneshot16", 1, 50000);
    lapic_write(LAPIC_DIVIDE, 0xb);

    lapic_write(LAPIC_TIMER, TIMER_PERIODIC | VECTOR_TIMER);
    i = start_interval();
    lapic_write(LAPIC_INITIAL, (uint32_t)(hz / 100));
    end_interval(i, "periodic", 10, 100000);
    lapic_write(LAPIC_TIMER, LVT_MASKED);
    lapic_write(LAPIC_INITIAL, 0);
}

static void test_deadline(void)
{
    if ((cpuid(1, 0).c & 1u << 24) == 0) {
        report("kind=deadline unsupported");
        return;
    }
    lapic_write(LAPIC_TIMER, TIMER_DEADLINE | VECTOR_TIMER);
    struct interval i = start_interval();
    wrmsr(MSR_TSC_DEADLINE, i.begin + tsc_hz() / 20);
    end_interval(i, "deadline", 1, 50000);
    check(rdmsr(MSR_TSC_DEADLINE) == 0, rdmsr(MSR_TSC_DEADLINE)); // disarmed by firing
    // A deadline in the past fires at once.
    i = start_interval();
    wrmsr(MSR_TSC_DEADLINE, 1);
    sti();
    for (unsigned n = 0; n < 100000 && ticks_seen == 0; n++)
        __asm__ volatile("pause" : : : "memory");
    cli();
    check(ticks_seen == 1, ticks_seen);
    // Writing 0 disarms.
    ticks_seen = 0;
    wrmsr(MSR_TSC_DEADLINE, rdtsc() + tsc_hz() / 50);
    wrmsr(MSR_TSC_DEADLINE, 0);
    sti();
    wait_ticks(tsc_hz() / 25);
    cli();
    check(ticks_seen == 0, ticks_seen);
    lapic_write(LAPIC_TIMER, LVT_MASKED);
}

static void test_pit(void)
{
    set_handler(VECTOR_PIC, on_pic_tick);
    lapic_write(LAPIC_LINT0, LINT_EXTINT);
    struct interval i = start_interval();
    pit_start(2, PIT_HZ / 100);
    pic_init(); // forgets the edge that setting the mode may have made
    pic_mask(0xfffe);
    end_interval(i, "pit_pic", 10, 100000);
    pic_mask(0xffff);
    lapic_write(LAPIC_LINT0, LVT_MASKED);

    // Pin 2 of the IOAPIC, edge, to this CPU.
    ioapic_write(0x10 + 2 * 2 + 1, lapic_read(LAPIC_ID) & 0xff000000);
    ioapic_write(0x10 + 2 * 2, VECTOR_TIMER);
    i = start_interval();
    pit_start(0, PIT_HZ / 20);
    end_interval(i, "pit_ioapic", 1, 50000);
    ioapic_write(0x10 + 2 * 2, LVT_MASKED);
}

void test_timer(void)
{
    set_handler(VECTOR_TIMER, on_tick);
    uint64_t hz = measured_tsc_hz(), lapic_hz = measured_lapic_hz();
    report("tsc_hz=%lu measured=%lu lapic_hz=%lu", tsc_hz(), hz, lapic_hz);
    check(within_1_percent(hz, tsc_hz()), hz);
    test_lapic_timer(lapic_hz);
    test_deadline();
    test_pit();
}

static uint8_t cmos(uint8_t index)
{
    outb(0x70, index);
    return inb(0x71);
}

static uint64_t from_bcd(uint8_t value)
{
    return (cmos(0xb) & 4) != 0 ? value : (uint64_t)(value >> 4) * 10 + (value & 15);
}

static uint64_t seconds_of_day(void)
{
    for (;;) {
        while ((cmos(0xa) & 0x80) != 0)
            ;
        uint8_t s = cmos(0), m = cmos(2), h = cmos(4);
        if (s != cmos(0) || (cmos(0xa) & 0x80) != 0)
            continue;
        return from_bcd(h & 0x7f) * 3600 + from_bcd(m) * 60 + from_bcd(s);
    }
}

// Reads the clock, waits `seconds=` (2) by TSC and reads again.
void test_rtc(void)
{
    uint64_t wait = option("seconds", 2);
    uint64_t first = seconds_of_day();
    report("date=%lu-%lu-%lu", 2000 + from_bcd(cmos(9)), from_bcd(cmos(8)), from_bcd(cmos(7)));
    report("seconds=%lu", first);
    wait_ticks(wait * tsc_hz());
    uint64_t second = seconds_of_day();
    uint64_t passed = (second + 86400 - first) % 86400;
    report("seconds=%lu passed=%lu waited=%lu", second, passed, wait);
    check(passed >= wait && passed <= wait + 1, passed);
    check(from_bcd(cmos(8)) >= 1 && from_bcd(cmos(8)) <= 12, cmos(8));
    check(from_bcd(cmos(7)) >= 1 && from_bcd(cmos(7)) <= 31, cmos(7));
}
