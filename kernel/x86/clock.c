// SPDX-License-Identifier: BSD-2-Clause
// The TSC's frequency, and the one-shot timer of each CPU.
//
// The frequency is measured against HPET, ACPI's PM timer or the PIT. CPUID's statement (leaves 15h
// and 16h) is exact where it is true, so it replaces the measurement when both agree within 1 %;
// else the measurement wins: emulators state the frequency of the machine they imitate.
#include "kernel/acpi.h"
#include "kernel/irq.h"
#include "kernel/log.h"
#include "kernel/paging.h"
#include "kernel/panic.h"
#include "kernel/time.h"
#include "kernel/x86/lapic.h"
#include "kernel/x86/machine.h"
#include "kernel/x86/msr.h"

#define PIT_HZ       1193182u
#define PM_TIMER_HZ  3579545u
#define HPET_PERIOD  4u // upper half of the capabilities: femtoseconds per tick
#define HPET_CONFIG  0x10u
#define HPET_COUNTER 0xf0u
#define FEMTO        UINT64_C(1000000000000000)

#define PIT_CHANNEL2 0x42u
#define PIT_COMMAND  0x43u
#define PIT_GATE     0x61u

#define WINDOW_DIVISOR 25u // 40 ms; the PIT wraps after 54

uint64_t tsc_hz;

// A counter of known frequency that runs up.
struct reference {
    const char *name;
    uint64_t hz;
    uint64_t mask;
    uint64_t (*read)(void);
};

struct sample {
    uint64_t tsc, count;
};

static volatile uint32_t *hpet;
static volatile uint32_t *pm_timer_memory;

static uint64_t read_hpet(void)
{
    return hpet[HPET_COUNTER / 4];
}

static uint64_t read_pm_timer(void)
{
    return pm_timer_memory != NULL ? *pm_timer_memory
                                   : cpu_in32((uint16_t)acpi_machine.pm_timer.address);
}

static uint64_t read_pit(void)
{
    cpu_out8(PIT_COMMAND, 0x80); // latch channel 2
    unsigned low = cpu_in8(PIT_CHANNEL2);
    return 0xffffu - (low | (unsigned)cpu_in8(PIT_CHANNEL2) << 8);
}

static bool open_hpet(struct reference *out)
{
    if (acpi_machine.hpet == 0)
        return false;
    hpet = paging_map_device(hpa(acpi_machine.hpet), 0x400, PAGING_UNCACHED);
    if (hpet == NULL)
        return false;
    uint64_t period = hpet[HPET_PERIOD / 4];
    if (period == 0 || period > 100000000) // specification: at most 100 ns
        return false;
    hpet[HPET_CONFIG / 4] |= 1; // counts
    *out = (struct reference){"HPET", FEMTO / period, 0xffffffff, read_hpet};
    return true;
}

static bool open_pm_timer(struct reference *out)
{
    const struct acpi_register *timer = &acpi_machine.pm_timer;
    if (timer->address == 0)
        return false;
    if (timer->memory) {
        pm_timer_memory = paging_map_device(hpa(timer->address), 4, PAGING_UNCACHED);
        if (pm_timer_memory == NULL)
            return false;
    }
    *out = (struct reference){"PM timer", PM_TIMER_HZ,
                              acpi_machine.pm_timer_32 ? 0xffffffff : 0xffffff, read_pm_timer};
    return true;
}

// Channel 2 of the PIT, whose gate is ours: one shot from FFFFh, speaker off.
static void open_pit(struct reference *out)
{
    cpu_out8(PIT_GATE, (uint8_t)((cpu_in8(PIT_GATE) & ~2u) | 1u));
    cpu_out8(PIT_COMMAND, 0xb0); // low then high byte, mode 0
    cpu_out8(PIT_CHANNEL2, 0xff);
    cpu_out8(PIT_CHANNEL2, 0xff);
    *out = (struct reference){"PIT", PIT_HZ, 0xffff, read_pit};
}

// Under an emulator or SMIs a read may be torn far apart from its TSC: the tightest of a few
// counts.
static struct sample take(const struct reference *r)
{
    struct sample best = {0, 0};
    uint64_t width = UINT64_MAX;
    for (unsigned i = 0; i < 5; i++) {
        uint64_t before = cpu_tsc();
        uint64_t count = r->read();
        uint64_t after = cpu_tsc();
        if (after - before < width) {
            width = after - before;
            best = (struct sample){before + width / 2, count};
        }
    }
    return best;
}

// Ticks of the TSC per second, or 0 when the reference does not count.
static uint64_t measure(const struct reference *r)
{
    uint64_t wanted = r->hz / WINDOW_DIVISOR;
    struct sample first = take(r);
    uint64_t previous = first.count, passed = 0;
    for (unsigned still = 0; passed < wanted; still++) {
        uint64_t now = r->read();
        if (now != previous)
            still = 0;
        else if (still > 1000000)
            return 0;
        passed = (now - first.count) & r->mask;
        previous = now;
    }
    struct sample last = take(r);
    passed = (last.count - first.count) & r->mask;
    uint64_t ticks = last.tsc - first.tsc;
    // ticks < 2^40 for any window of under a minute, hz < 2^30: the rest needs the split.
    return ticks / passed * r->hz + ticks % passed * r->hz / passed;
}

// What CPUID states, or 0 (SDM vol. 2, CPUID leaves 15h and 16h).
static uint64_t stated_hz(void)
{
    uint32_t leaves = cpu_cpuid(0, 0).eax;
    if (leaves < 0x15)
        return 0;
    struct cpuid_regs tsc = cpu_cpuid(0x15, 0);
    uint64_t crystal = tsc.ecx;
    if (tsc.eax == 0 || tsc.ebx == 0)
        return 0;
    if (crystal == 0 && leaves >= 0x16)
        return (uint64_t)(cpu_cpuid(0x16, 0).eax & 0xffff) * 1000000; // base frequency, MHz
    return crystal * tsc.ebx / tsc.eax;
}

void clock_calibrate(void)
{
    struct reference r;
    uint64_t measured = 0;
    const char *source;
    if (open_hpet(&r))
        measured = measure(&r);
    if (measured == 0 && open_pm_timer(&r))
        measured = measure(&r);
    if (measured == 0) {
        open_pit(&r);
        measured = measure(&r);
    }
    uint64_t stated = stated_hz();
    uint64_t apart = MAX(stated, measured) - MIN(stated, measured);
    if (measured == 0 && stated == 0)
        panic("neither HPET, PM timer, PIT nor CPUID tells how fast the TSC counts");
    if (measured == 0 || (stated != 0 && apart <= measured / 100)) {
        tsc_hz = stated;
        source = "CPUID";
    } else {
        tsc_hz = measured;
        source = r.name;
        if (stated != 0)
            log_warning("CPUID states a TSC of %lu kHz; the %s measures %lu kHz, which is used",
                        (unsigned long)(stated / 1000), r.name, (unsigned long)(measured / 1000));
    }
    log_info("time: TSC %lu kHz (%s)", (unsigned long)(tsc_hz / 1000), source);
}

void time_busy_wait_us(uint64_t us)
{
    uint64_t start = cpu_tsc(), ticks = time_us_to_tsc(us);
    while (cpu_tsc() - start < ticks)
        cpu_relax();
}

// --- Timer ---

static bool deadline_mode;
static uint64_t timer_hz; // of the APIC's counter, divided by 16

void clock_init_cpu(void)
{
    if (deadline_mode) {
        apic_write(LAPIC_LVT_TIMER, LVT_TIMER_TSC_DEADLINE | VECTOR_TIMER);
        // In xAPIC mode that store must arrive before the MSR is written (SDM vol. 3, 11.5.4.1).
        __asm__ volatile("mfence" ::: "memory");
        cpu_write_msr(MSR_TSC_DEADLINE, 0);
    } else {
        apic_write(LAPIC_TIMER_DIVIDE, 3); // by 16
        apic_write(LAPIC_TIMER_INITIAL, 0);
        apic_write(LAPIC_LVT_TIMER, VECTOR_TIMER);
    }
}

void clock_init_timer(void)
{
    deadline_mode = (cpu_cpuid(1, 0).ecx & 1u << 24) != 0;
    if (!deadline_mode) {
        apic_write(LAPIC_TIMER_DIVIDE, 3);
        apic_write(LAPIC_LVT_TIMER, LVT_MASKED);
        apic_write(LAPIC_TIMER_INITIAL, UINT32_MAX);
        uint64_t start = cpu_tsc();
        time_busy_wait_us(20000);
        uint64_t counted = UINT32_MAX - apic_read(LAPIC_TIMER_CURRENT);
        uint64_t ticks = cpu_tsc() - start;
        apic_write(LAPIC_TIMER_INITIAL, 0);
        timer_hz = counted * (tsc_hz / 1000) / (ticks / 1000);
        if (timer_hz == 0)
            panic("the local APIC's timer does not count");
    }
    clock_init_cpu();
    log_info("time: one-shot timer %s", deadline_mode ? "by TSC deadline" : "by APIC count");
}

void time_arm(uint64_t deadline)
{
    if (deadline_mode) {
        // 0 would disarm; UINT64_MAX lies beyond the life of the machine but some emulators add.
        cpu_write_msr(MSR_TSC_DEADLINE, deadline == UINT64_MAX ? 0 : MAX(deadline, 1));
        return;
    }
    if (deadline == UINT64_MAX) {
        apic_write(LAPIC_TIMER_INITIAL, 0);
        return;
    }
    uint64_t now = cpu_tsc();
    uint64_t delta = deadline > now ? deadline - now : 0;
    delta = MIN(delta, tsc_hz * 8); // early is allowed; keeps the product small
    uint64_t count = delta * (timer_hz / 1000) / (tsc_hz / 1000);
    apic_write(LAPIC_TIMER_INITIAL, (uint32_t)MIN(MAX(count, 1), UINT32_MAX));
}
