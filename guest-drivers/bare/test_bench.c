// SPDX-License-Identifier: BSD-2-Clause
// bench: ticks of one exit, and of the things beside it. `loops=` (1000).
#include "bare.h"

#define UNKNOWN_CALL   UINT64_C(0x7fffffff)
#define UNCLAIMED_PORT 0x5a0u
#define MSR_APIC_BASE  0x1bu
#define MSR_TSC_ADJUST 0x3bu

static void op_empty(void)
{
    __asm__ volatile("" : : : "memory");
}

static void op_cpuid(void)
{
    cpuid(0, 0);
}

static void op_vmcall(void)
{
    uint64_t rax = UNKNOWN_CALL;
    __asm__ volatile("vmcall" : "+a"(rax) : : "memory");
}

static void op_rdmsr_apic_base(void)
{
    rdmsr(MSR_APIC_BASE);
}

static void op_rdmsr_tsc_adjust(void)
{
    rdmsr(MSR_TSC_ADJUST);
}

static void op_in_pic(void)
{
    inb(0x21);
}

static void op_in_unclaimed(void)
{
    inb(UNCLAIMED_PORT);
}

static void op_out_80(void)
{
    outb(0x80, 0);
}

static void op_lapic_read(void)
{
    lapic_read(LAPIC_TPR);
}

static void op_cr3(void)
{
    write_cr3(read_cr3());
}

struct result {
    uint64_t min, average;
};

// Always inline, so that the operation stands between the two readings of the TSC by itself.
static inline __attribute__((always_inline)) struct result measure(void (*op)(void), uint64_t loops)
{
    uint64_t min = UINT64_MAX;
    op(); // warm
    uint64_t start = rdtsc();
    for (uint64_t i = 0; i < loops; i++) {
        uint64_t begin = rdtsc();
        op();
        uint64_t ticks = rdtsc() - begin;
        if (ticks < min)
            min = ticks;
    }
    // The average is that of the whole loop: some emulators' TSC moves on in small jumps.
    return (struct result){min, (rdtsc() - start) / loops};
}

static struct result empty;

static void show(const char *name, struct result r)
{
    report("op=%s min=%lu avg=%lu", name, r.min > empty.min ? r.min - empty.min : 0,
           r.average > empty.average ? r.average - empty.average : 0);
}

#define BENCH(op, loops) show(#op, measure(op_##op, loops))

void test_bench(void)
{
    uint64_t loops = option("loops", 1000);
    uint64_t value;
    if (loops == 0)
        loops = 1;
    empty = measure(op_empty, loops);
    report("overhead min=%lu avg=%lu loops=%lu", empty.min, empty.average, loops);
    BENCH(cpuid, loops);
    catch_fault("mov %[call], %%rax; vmcall", [call] "i"(UNKNOWN_CALL));
    if (caught.vector == NO_FAULT)
        BENCH(vmcall, loops);
    else
        report("op=vmcall unsupported vector=%lu", caught.vector);
    BENCH(rdmsr_apic_base, loops);
    if (try_rdmsr(MSR_TSC_ADJUST, &value))
        BENCH(rdmsr_tsc_adjust, loops);
    else
        report("op=rdmsr_tsc_adjust unsupported");
    BENCH(in_pic, loops);
    BENCH(in_unclaimed, loops);
    BENCH(out_80, loops);
    BENCH(lapic_read, loops);
    BENCH(cr3, loops);
}
