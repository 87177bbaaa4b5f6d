// SPDX-License-Identifier: BSD-2-Clause
// LAPIC, IOAPIC, PIC, PIT and PM timer, as far as the tests use them.
#include "bare.h"

#define PM_TIMER_PORT 0x608u
#define IOAPIC        UINT64_C(0xfec00000)

void lapic_init(void)
{
    lapic_write(LAPIC_SVR, 0x100 | VECTOR_SPURIOUS);
    lapic_write(LAPIC_TPR, 0);
    lapic_write(LAPIC_TIMER, LVT_MASKED);
    lapic_write(LAPIC_LINT0, LVT_MASKED);
    lapic_write(LAPIC_DIVIDE, 0xb); // by 1
}

void self_ipi(unsigned vector)
{
    lapic_write(LAPIC_ICR, ICR_SELF | vector);
}

bool lapic_bit(uint32_t base, unsigned vector)
{
    return (lapic_read(base + vector / 32 * 0x10) >> (vector & 31) & 1) != 0;
}

void pic_init(void)
{
    outb(0x20, 0x11);
    outb(0xa0, 0x11);
    outb(0x21, VECTOR_PIC);
    outb(0xa1, VECTOR_PIC + 8);
    outb(0x21, 4);
    outb(0xa1, 2);
    outb(0x21, 1);
    outb(0xa1, 1);
    pic_mask(0xffff);
}

void pic_mask(uint16_t mask)
{
    outb(0x21, (uint8_t)mask);
    outb(0xa1, (uint8_t)(mask >> 8));
}

static volatile uint32_t *ioapic_at(uint32_t offset)
{
    return (volatile uint32_t *)(IOAPIC + offset); // NOLINT: a device
}

void ioapic_write(uint8_t index, uint32_t value)
{
    *ioapic_at(0) = index;
    *ioapic_at(0x10) = value;
}

uint32_t ioapic_read(uint8_t index)
{
    *ioapic_at(0) = index;
    return *ioapic_at(0x10);
}

void pit_start(unsigned mode, uint32_t count)
{
    outb(0x43, (uint8_t)(0x30 | mode << 1)); // channel 0, low byte and high byte
    outb(0x40, (uint8_t)count);
    outb(0x40, (uint8_t)(count >> 8));
}

uint32_t pm_timer(void)
{
    return inl(PM_TIMER_PORT);
}

// Returns the ticks of TSC during `pm_ticks` of the PM timer, which may have 24 bits only.
static uint64_t tsc_during(uint32_t pm_ticks)
{
    uint32_t start = pm_timer();
    uint64_t begin = rdtsc();
    for (unsigned reads = 0;; reads++) {
        uint32_t passed = (pm_timer() - start) & 0xffffff;
        if (passed >= pm_ticks)
            return rdtsc() - begin;
        if (passed == 0 && reads == 1000000) {
            report("failed: the PM timer does not run");
            power_off();
        }
    }
}

uint64_t measured_tsc_hz(void)
{
    return tsc_during(PM_TIMER_HZ / 10) * 10;
}

uint64_t measured_lapic_hz(void)
{
    lapic_write(LAPIC_TIMER, LVT_MASKED);
    lapic_write(LAPIC_INITIAL, 0xffffffff);
    uint32_t begin = lapic_read(LAPIC_CURRENT);
    tsc_during(PM_TIMER_HZ / 10);
    uint32_t end = lapic_read(LAPIC_CURRENT);
    lapic_write(LAPIC_INITIAL, 0);
    return (uint64_t)(begin - end) * 10;
}

uint64_t tsc_hz(void)
{
    static uint64_t hz;
    if (hz != 0)
        return hz;
    if (cpuid(0, 0).a >= 0x15) {
        struct cpuid c = cpuid(0x15, 0);
        if (c.a != 0 && c.b != 0 && c.c != 0)
            hz = (uint64_t)c.c * c.b / c.a;
    }
    if (hz == 0)
        hz = measured_tsc_hz();
    return hz;
}

void wait_ticks(uint64_t ticks)
{
    uint64_t begin = rdtsc();
    while (rdtsc() - begin < ticks)
        __asm__ volatile("pause");
}
