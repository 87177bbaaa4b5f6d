// SPDX-License-Identifier: BSD-2-Clause
// Starting, feeding and interrupting the other CPUs.
#include "smp.h"

#define TRAMPOLINE    UINT64_C(0x10000) // RAM that nobody uses any more once main() has begun
#define STACK_SIZE    8192u             // trampoline.asm has the same
#define MSR_APIC_BASE 0x1bu
#define MSR_GS_BASE   0xc0000101u
#define MSR_X2APIC    0x800u
#define BASE_X2APIC   (UINT64_C(1) << 10)
#define BASE_ENABLE   (UINT64_C(1) << 11)

struct smp_cpu {
    struct smp_cpu *self; // offset 0: read through GS
    unsigned index;
    bool x2apic;
    unsigned starts;
    uint32_t first_svr;
    unsigned caller; // who waits for the work
    void (*function)(void *);
    void *argument;
    bool busy; // `function` was given and has not returned
};

struct __attribute__((packed)) table_pointer {
    uint16_t limit;
    uint64_t base;
};

extern const uint8_t trampoline_begin[], trampoline_end[];
extern const uint8_t trampoline_gdt[], trampoline_cr0[], trampoline_cr3[];

_Alignas(16) uint8_t smp_stacks[SMP_CPUS_MAX][STACK_SIZE]; // for trampoline.asm
struct table_pointer smp_idt_pointer;                      // for trampoline.asm
void smp_main(unsigned index);                             // called by trampoline.asm

static struct smp_cpu smp_cpus[SMP_CPUS_MAX];
static unsigned running; // 0: smp_start() was not called

static struct smp_cpu *this_cpu(void)
{
    struct smp_cpu *self;
    __asm__ volatile("mov %%gs:0, %0" : "=r"(self));
    return self;
}

unsigned smp_self(void)
{
    return running == 0 ? 0 : this_cpu()->index;
}

uint32_t smp_lapic_read(uint32_t reg)
{
    return this_cpu()->x2apic ? (uint32_t)rdmsr(MSR_X2APIC + (reg >> 4)) : lapic_read(reg);
}

void smp_lapic_write(uint32_t reg, uint32_t value)
{
    if (this_cpu()->x2apic)
        wrmsr(MSR_X2APIC + (reg >> 4), value);
    else
        lapic_write(reg, value);
}

void smp_eoi(void)
{
    smp_lapic_write(LAPIC_EOI, 0);
}

void smp_send_to(uint32_t destination, uint32_t icr)
{
    if (this_cpu()->x2apic) {
        wrmsr(MSR_X2APIC + (LAPIC_ICR >> 4), (uint64_t)destination << 32 | icr);
    } else {
        lapic_write(LAPIC_ICR_HIGH, destination << 24);
        lapic_write(LAPIC_ICR, icr);
    }
}

void smp_send(unsigned cpu, uint32_t icr)
{
    smp_send_to(cpu, icr);
}

static void enable_lapic(void)
{
    smp_lapic_write(LAPIC_SVR, 0x100 | VECTOR_SPURIOUS);
    smp_lapic_write(LAPIC_TPR, 0);
    smp_lapic_write(LAPIC_TIMER, LVT_MASKED);
    smp_lapic_write(LAPIC_DIVIDE, 0xb); // by 1
}

void smp_set_x2apic(bool on)
{
    struct smp_cpu *c = this_cpu();
    if (c->x2apic == on)
        return;
    uint64_t base = rdmsr(MSR_APIC_BASE);
    if (on) {
        wrmsr(MSR_APIC_BASE, base | BASE_X2APIC);
    } else {
        wrmsr(MSR_APIC_BASE, base & ~(BASE_X2APIC | BASE_ENABLE));
        wrmsr(MSR_APIC_BASE, (base & ~BASE_X2APIC) | BASE_ENABLE);
    }
    c->x2apic = on;
    enable_lapic();
}

static void on_wake(struct frame *f)
{
    (void)f;
    smp_eoi();
}

static void work(struct smp_cpu *c)
{
    c->function(c->argument);
    cli();
    unsigned caller = c->caller;
    __atomic_store_n(&c->busy, false, __ATOMIC_RELEASE);
    smp_send(caller, VECTOR_SMP);
}

// A CPU's life after STARTUP, interrupts off.
void smp_main(unsigned index)
{
    struct smp_cpu *c = &smp_cpus[index];
    c->self = c;
    wrmsr(MSR_GS_BASE, (uint64_t)(uintptr_t)c);
    c->index = index;
    c->x2apic = (rdmsr(MSR_APIC_BASE) & BASE_X2APIC) != 0; // INIT keeps the mode
    c->first_svr = smp_lapic_read(LAPIC_SVR);
    enable_lapic();
    c->busy = false;
    __atomic_fetch_add(&c->starts, 1, __ATOMIC_RELEASE);
    for (;;) {
        if (__atomic_load_n(&c->busy, __ATOMIC_ACQUIRE))
            work(c);
        else
            wait_interrupt(); // interrupts were off: no wake-up gets lost
    }
}

unsigned smp_starts(unsigned cpu)
{
    return __atomic_load_n(&smp_cpus[cpu].starts, __ATOMIC_ACQUIRE);
}

uint32_t smp_first_svr(unsigned cpu)
{
    return smp_cpus[cpu].first_svr;
}

unsigned smp_expected(void)
{
    if (cpuid(0, 0).a >= 0xb && (cpuid(0xb, 1).b & 0xffff) != 0)
        return cpuid(0xb, 1).b & 0xffff;
    struct cpuid one = cpuid(1, 0);
    return (one.d >> 28 & 1) != 0 ? one.b >> 16 & 0xff : 1;
}

static void set32(const uint8_t *field, uint32_t value)
{
    volatile uint32_t *at =
        (volatile uint32_t *)(TRAMPOLINE + (uint64_t)(field - trampoline_begin)); // NOLINT
    *at = value;
}

static void place_trampoline(void)
{
    volatile uint8_t *to = (volatile uint8_t *)TRAMPOLINE; // NOLINT: an address by design
    for (size_t i = 0; i < (size_t)(trampoline_end - trampoline_begin); i++)
        to[i] = trampoline_begin[i];
    struct table_pointer gdt;
    __asm__ volatile("sgdt %0; sidt %1" : "=m"(gdt), "=m"(smp_idt_pointer));
    to[trampoline_gdt - trampoline_begin] = (uint8_t)gdt.limit;
    to[trampoline_gdt - trampoline_begin + 1] = (uint8_t)(gdt.limit >> 8);
    set32(trampoline_gdt + 2, (uint32_t)gdt.base);
    set32(trampoline_cr0, (uint32_t)read_cr0());
    set32(trampoline_cr3, (uint32_t)read_cr3());
}

static unsigned count_started(void)
{
    unsigned n = 1;
    for (unsigned i = 1; i < SMP_CPUS_MAX; i++)
        n += smp_starts(i) != 0;
    return n;
}

unsigned smp_start(void)
{
    if (running != 0)
        return running;
    struct smp_cpu *self = &smp_cpus[0];
    self->self = self;
    wrmsr(MSR_GS_BASE, (uint64_t)(uintptr_t)self);
    self->x2apic = (rdmsr(MSR_APIC_BASE) & BASE_X2APIC) != 0;
    self->starts = 1;
    running = 1;
    set_handler(VECTOR_SMP, on_wake);
    unsigned expected = smp_expected();
    if (expected == 1)
        return running;
    place_trampoline();
    // The pauses are those of the MP specification, B.4, but for the 10 ms.
    smp_send_to(0, ICR_ALL_BUT_SELF | ICR_ASSERT | ICR_INIT);
    wait_ticks(tsc_hz() / 1000);
    smp_send_to(0, ICR_ALL_BUT_SELF | ICR_ASSERT | ICR_STARTUP | (uint32_t)(TRAMPOLINE >> 12));
    uint64_t begin = rdtsc();
    while (count_started() < expected && rdtsc() - begin < 5 * tsc_hz())
        __asm__ volatile("pause" : : : "memory");
    running = count_started();
    return running;
}

void smp_run(unsigned cpu, void (*function)(void *), void *argument)
{
    struct smp_cpu *c = &smp_cpus[cpu];
    c->caller = smp_self();
    c->function = function;
    c->argument = argument;
    __atomic_store_n(&c->busy, true, __ATOMIC_SEQ_CST);
    smp_send(cpu, VECTOR_SMP);
}

bool smp_wait_ticks(unsigned cpu, uint64_t ticks)
{
    const struct smp_cpu *c = &smp_cpus[cpu];
    uint64_t begin = rdtsc();
    bool done = false;
    // A timer of the own ends the halt when the other CPU does not answer.
    smp_lapic_write(LAPIC_TIMER, TIMER_PERIODIC | VECTOR_SMP);
    smp_lapic_write(LAPIC_INITIAL, ticks > UINT32_MAX ? UINT32_MAX : (uint32_t)ticks);
    for (;;) {
        cli();
        done = !__atomic_load_n(&c->busy, __ATOMIC_ACQUIRE);
        if (done || rdtsc() - begin >= ticks)
            break;
        wait_interrupt();
    }
    smp_lapic_write(LAPIC_INITIAL, 0);
    smp_lapic_write(LAPIC_TIMER, LVT_MASKED);
    return done;
}

void smp_wait(unsigned cpu)
{
    if (smp_wait_ticks(cpu, 10 * tsc_hz()))
        return;
    report("error: cpu=%lu does not end its work", (uint64_t)cpu);
    report("failed");
    power_off();
}

void smp_call(unsigned cpu, void (*function)(void *), void *argument)
{
    if (cpu == smp_self()) {
        function(argument);
        return;
    }
    smp_run(cpu, function, argument);
    smp_wait(cpu);
}

void smp_startup_ipi(unsigned cpu)
{
    smp_send(cpu, ICR_ASSERT | ICR_STARTUP | (uint32_t)(TRAMPOLINE >> 12));
}

bool smp_restart(unsigned cpu)
{
    unsigned before = smp_starts(cpu);
    smp_send(cpu, ICR_ASSERT | ICR_INIT);
    wait_ticks(tsc_hz() / 1000);
    smp_startup_ipi(cpu);
    uint64_t begin = rdtsc();
    while (smp_starts(cpu) == before && rdtsc() - begin < 5 * tsc_hz())
        __asm__ volatile("pause" : : : "memory");
    return smp_starts(cpu) == before + 1;
}
