// SPDX-License-Identifier: BSD-2-Clause
// smpspin, smptriple, smpreset, smpoff: several CPUs at the end of a VM, for the tests of
// lifecycle.
#include "smp.h"

#define CMOS_MARK 0x41u

static volatile uint64_t turns[SMP_CPUS_MAX];

static void spin(void *unused)
{
    (void)unused;
    for (unsigned self = smp_self();;) // interrupts are off
        turns[self]++;
}

// All other CPUs spin with interrupts off; this one says every second how far each has come.
void test_smpspin(void)
{
    unsigned n = smp_start();
    for (unsigned i = 1; i < n; i++)
        smp_run(i, spin, NULL);
    report("cpus=%lu", (uint64_t)n);
    for (;;) {
        uint64_t before[SMP_CPUS_MAX];
        for (unsigned i = 1; i < n; i++)
            before[i] = turns[i];
        wait_ticks(tsc_hz());
        uint64_t moved = 0;
        for (unsigned i = 1; i < n; i++)
            moved += turns[i] != before[i];
        report("tsc=%lu moved=%lu", rdtsc(), moved);
    }
}

static void triple(void *unused)
{
    (void)unused;
    test_triple();
}

// The last CPU triple-faults while the others halt.
void test_smptriple(void)
{
    unsigned n = smp_start();
    smp_run(n - 1, triple, NULL);
    smp_wait(n - 1);
}

static void off(void *unused)
{
    (void)unused;
    power_off();
}

void test_smpoff(void)
{
    unsigned n = smp_start();
    report("cpus=%lu", (uint64_t)n);
    for (unsigned i = 1; i + 1 < n; i++)
        smp_run(i, spin, NULL);
    smp_run(n - 1, off, NULL);
    spin(NULL);
}

static void reset(void *unused)
{
    (void)unused;
    outb(0xcf9, 2);
    outb(0xcf9, 6);
    for (;;)
        __asm__ volatile("hlt");
}

// The last CPU resets the machine once, while the others spin; afterwards all start again.
void test_smpreset(void)
{
    outb(0x70, CMOS_MARK);
    uint8_t boots = inb(0x71);
    unsigned n = smp_start();
    report("boots=%lu cpus=%lu", (uint64_t)boots, (uint64_t)n);
    outb(0x70, CMOS_MARK);
    if (boots == 0) {
        outb(0x71, 1);
        for (unsigned i = 1; i + 1 < n; i++)
            smp_run(i, spin, NULL);
        smp_run(n - 1, reset, NULL);
        spin(NULL);
    }
    outb(0x71, 0);
}
