// SPDX-License-Identifier: BSD-2-Clause
// The local APIC of the machine: x2APIC through MSRs where the CPU has it, else the xAPIC page (SDM
// vol. 3, chapter 11).
#include "kernel/irq.h"
#include "kernel/log.h"
#include "kernel/paging.h"
#include "kernel/panic.h"
#include "kernel/x86/lapic.h"
#include "kernel/x86/machine.h"
#include "kernel/x86/msr.h"

#define APIC_BASE_X2APIC (UINT64_C(1) << 10)
#define APIC_BASE_ENABLE (UINT64_C(1) << 11)
#define APIC_BASE_PAGE   UINT64_C(0x000ffffffffff000)

#define ICR_NMI     0x400u
#define ICR_INIT    0x500u
#define ICR_STARTUP 0x600u
#define ICR_PENDING 0x1000u
#define ICR_ASSERT  0x4000u
#define ICR_OTHERS  0xc0000u

#define LVT_EXTINT 0x700u
#define LVT_NMI    0x400u

static bool x2apic;
static volatile uint32_t *page; // xAPIC registers
static bool ready;

uint32_t apic_read(unsigned offset)
{
    if (x2apic)
        return (uint32_t)cpu_read_msr(MSR_X2APIC + offset / 16);
    return page[offset / 4];
}

void apic_write(unsigned offset, uint32_t value)
{
    if (x2apic)
        cpu_write_msr(MSR_X2APIC + offset / 16, value);
    else
        page[offset / 4] = value;
}

void apic_init(void)
{
    uint64_t base = cpu_read_msr(MSR_APIC_BASE);
    x2apic = (cpu_cpuid(1, 0).ecx & 1u << 21) != 0;
    if (!x2apic) {
        page = paging_map_device(hpa(base & APIC_BASE_PAGE), PAGE_SIZE, PAGING_UNCACHED);
        if (page == NULL)
            panic("no room to map the local APIC");
    }
}

void apic_init_cpu(void)
{
    uint64_t base = cpu_read_msr(MSR_APIC_BASE);
    // Off, xAPIC, x2APIC: each step on its own (SDM vol. 3, 11.12.5).
    if ((base & APIC_BASE_ENABLE) == 0)
        cpu_write_msr(MSR_APIC_BASE, base |= APIC_BASE_ENABLE);
    if (x2apic && (base & APIC_BASE_X2APIC) == 0)
        cpu_write_msr(MSR_APIC_BASE, base | APIC_BASE_X2APIC);

    // What firmware left in the vectors must not fire into ours.
    unsigned last = apic_read(LAPIC_VERSION) >> 16 & 0xff;
    apic_write(LAPIC_LVT_TIMER, LVT_MASKED);
    apic_write(LAPIC_LVT_LINT0, LVT_MASKED);
    apic_write(LAPIC_LVT_LINT1, cpu_index() == 0 ? LVT_NMI : LVT_MASKED);
    apic_write(LAPIC_LVT_ERROR, LVT_MASKED);
    if (last >= 4)
        apic_write(LAPIC_LVT_PERF, LVT_MASKED);
    if (last >= 5)
        apic_write(LAPIC_LVT_THERMAL, LVT_MASKED);
    if (last >= 6)
        apic_write(LAPIC_LVT_CMCI, LVT_MASKED);
    apic_write(LAPIC_TASK_PRIORITY, 0);
    apic_write(LAPIC_SPURIOUS, LAPIC_SOFTWARE_ENABLE | VECTOR_SPURIOUS);
    // Interrupts that were in service when firmware left would block ours of lower priority.
    for (unsigned i = 0; i < 256; i++) {
        bool busy = false;
        for (unsigned n = 0; n < 8; n++)
            busy = busy || apic_read(LAPIC_IN_SERVICE + 16 * n) != 0;
        if (!busy)
            break;
        apic_end_of_interrupt();
    }
    this_cpu()->apic_id = apic_id();
    ready = true;
}

bool apic_ready(void)
{
    return ready;
}

bool apic_is_x2apic(void)
{
    return x2apic;
}

uint32_t apic_id(void)
{
    uint32_t id = apic_read(LAPIC_ID);
    return x2apic ? id : id >> 24;
}

void apic_end_of_interrupt(void)
{
    apic_write(LAPIC_EOI, 0);
}

void apic_accept_pic(void)
{
    apic_write(LAPIC_LVT_LINT0, LVT_EXTINT);
}

static void send(uint32_t apic_id, uint32_t command)
{
    if (x2apic) {
        // MSR writes to the x2APIC are not ordered behind earlier stores (SDM vol. 3, 11.12.3).
        __asm__ volatile("mfence; lfence" ::: "memory");
        cpu_write_msr(MSR_X2APIC + LAPIC_ICR / 16, (uint64_t)apic_id << 32 | command);
        return;
    }
    while ((apic_read(LAPIC_ICR) & ICR_PENDING) != 0)
        cpu_relax();
    apic_write(LAPIC_ICR_HIGH, apic_id << 24);
    apic_write(LAPIC_ICR, command);
    while ((apic_read(LAPIC_ICR) & ICR_PENDING) != 0)
        cpu_relax();
}

void irq_send_wake(uint32_t cpu)
{
    send(cpus[cpu].apic_id, ICR_ASSERT | VECTOR_WAKE);
}

void irq_send_posted(uint32_t cpu)
{
    send(cpus[cpu].apic_id, ICR_ASSERT | VECTOR_POSTED);
}

void irq_send_nmi(uint32_t cpu)
{
    send(cpus[cpu].apic_id, ICR_ASSERT | ICR_NMI);
}

void apic_send_nmi_others(void)
{
    for (uint32_t i = 0; i < cpu_count; i++)
        if (i != cpu_index() && cpus[i].online)
            irq_send_nmi(i);
}

void apic_send_init(uint32_t apic_id)
{
    send(apic_id, ICR_ASSERT | ICR_INIT);
}

void apic_send_startup(uint32_t apic_id, uint8_t start_page)
{
    send(apic_id, ICR_ASSERT | ICR_STARTUP | start_page);
}
