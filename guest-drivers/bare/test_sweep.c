// SPDX-License-Identifier: BSD-2-Clause
// msr, ports, mmio: everything there is to touch.
#include "bare.h"

#define MSR_TSC 0x10u

struct msr_counts {
    uint64_t readable, faults, rewritten;
};

static void sweep(uint32_t from, uint32_t to, struct msr_counts *n)
{
    uint32_t run = 0; // first of a run of readable ones
    bool in_run = false;
    for (uint32_t msr = from;; msr++) {
        uint64_t value = 0;
        bool readable = msr != to && try_rdmsr(msr, &value);
        if (readable && !in_run)
            run = msr;
        if (!readable && in_run)
            report("readable=0x%lx-0x%lx", (uint64_t)run, (uint64_t)msr - 1);
        in_run = readable;
        if (msr == to)
            return;
        if (!readable) {
            check(caught.vector == 13 && caught.error == 0, caught.vector);
            n->faults++;
            continue;
        }
        n->readable++;
        if (msr == MSR_TSC || msr == MSR_TSC_DEADLINE)
            continue;
        n->rewritten += try_wrmsr(msr, value);
    }
}

void test_msr(void)
{
    struct msr_counts n = {0, 0, 0};
    uint64_t denied = 0;
    sweep(0, 0x2000, &n);
    sweep(0xc0000000, 0xc0002000, &n);
    // Far outside of the MSR bitmaps.
    for (uint32_t msr = 0x40000000; msr < 0x40001000; msr += 0x10) {
        uint64_t value;
        denied += !try_rdmsr(msr, &value);
        denied += !try_wrmsr(msr, UINT64_MAX);
    }
    report("read=%lu readable=%lu gp=%lu rewritten=%lu synthetic_gp=%lu", n.readable + n.faults,
           n.readable, n.faults, n.rewritten, denied);
}

// Ports whose writing ends the VM or the test.
static bool harmless(uint32_t port, unsigned size)
{
    static const uint16_t deadly[] = {0x64, 0x92, 0xf4, 0x604, 0x605, 0xcf9};
    for (unsigned i = 0; i < ARRAY_SIZE(deadly); i++) {
        if (deadly[i] >= port && deadly[i] < port + size)
            return false;
    }
    return true;
}

static void hammer(uint16_t port, unsigned size, uint32_t *in)
{
    // The serial line gets zeros only, so that it stays as it is, more or less.
    bool serial = port >= 0x3f5 && port <= 0x3ff;
    uint32_t value = serial ? 0 : port * UINT32_C(2654435761);
    bool write = harmless(port, size);
    if (size == 1) {
        *in = inb(port);
        if (write)
            outb(port, (uint8_t)value);
    } else if (size == 2) {
        *in = inw(port);
        if (write)
            outw(port, (uint16_t)value);
    } else {
        *in = inl(port);
        if (write)
            outl(port, value);
    }
}

// Ports `from=` (0) to `to=` (65535).
void test_ports(void)
{
    uint64_t from = option("from", 0), to = option("to", 65535), accesses = 0, ones = 0;
    cli();
    for (unsigned size = 1; size <= 4; size *= 2) {
        for (uint64_t port = from; port <= to && port <= 0xffff; port++) {
            uint32_t in;
            hammer((uint16_t)port, size, &in);
            ones += in == UINT32_MAX >> (32 - 8 * size);
            accesses++;
        }
        uart_init();
        print("\n");
        report("size=%lu accesses=%lu ones=%lu", (uint64_t)size, accesses, ones);
    }
    pic_init();
}

static uint64_t load(uint64_t at, unsigned size)
{
    uint64_t value;
    if (size == 1)
        __asm__ volatile("movzbl (%1), %k0" : "=r"(value) : "r"(at) : "memory");
    else if (size == 2)
        __asm__ volatile("movzwl (%1), %k0" : "=r"(value) : "r"(at) : "memory");
    else if (size == 4)
        __asm__ volatile("movl (%1), %k0" : "=r"(value) : "r"(at) : "memory");
    else
        __asm__ volatile("movq (%1), %0" : "=r"(value) : "r"(at) : "memory");
    return value;
}

static void store(uint64_t at, unsigned size, uint64_t value)
{
    if (size == 1)
        __asm__ volatile("movb %b0, (%1)" : : "q"(value), "r"(at) : "memory");
    else if (size == 2)
        __asm__ volatile("movw %w0, (%1)" : : "r"(value), "r"(at) : "memory");
    else if (size == 4)
        __asm__ volatile("movl %k0, (%1)" : : "r"(value), "r"(at) : "memory");
    else
        __asm__ volatile("movq %0, (%1)" : : "r"(value), "r"(at) : "memory");
}

// Reads, writes and reads again; nothing may be kept.
static void touch_hole(const char *name, uint64_t from, uint64_t to, uint64_t step)
{
    uint64_t reads = 0, ones = 0, kept = 0;
    for (uint64_t at = from; at < to; at += step) {
        for (unsigned size = 1; size <= 8; size *= 2) {
            uint64_t before = load(at, size);
            store(at, size, ~before);
            uint64_t after = load(at, size);
            reads += 2;
            ones += before == UINT64_MAX >> (64 - 8 * size);
            ones += after == UINT64_MAX >> (64 - 8 * size);
            kept += before != after;
        }
    }
    check(kept == 0, kept);
    report("hole=%s reads=%lu ones=%lu kept=%lu", name, reads, ones, kept);
}

static void touch_rom(void)
{
    uint64_t kept = 0;
    for (uint64_t at = 0xe0000; at < 0x100000; at += PAGE) {
        uint64_t before = load(at, 8);
        store(at, 8, ~before);
        kept += load(at, 8) == before;
    }
    check(kept == 32, kept);
    report("rom=32 unchanged=%lu", kept);
}

// The forms of instructions that drivers use on device pages, each with a known result.
static void test_forms(void)
{
    uint64_t tpr = 0xfee00000 + LAPIC_TPR, value = 0;
    bool zero, above;
    __asm__ volatile("movl $0x90, (%0)" : : "r"(tpr) : "memory");
    __asm__ volatile("orl $0x0f, (%0)" : : "r"(tpr) : "memory", "cc");
    check(lapic_read(LAPIC_TPR) == 0x9f, lapic_read(LAPIC_TPR));
    __asm__ volatile("andl $0xf3, (%0)" : : "r"(tpr) : "memory", "cc");
    check(lapic_read(LAPIC_TPR) == 0x93, lapic_read(LAPIC_TPR));
    __asm__ volatile("xorl %k1, (%0)" : : "r"(tpr), "r"(UINT64_C(0x30)) : "memory", "cc");
    check(lapic_read(LAPIC_TPR) == 0xa3, lapic_read(LAPIC_TPR));
    __asm__ volatile("testl $0x5c, (%1)" : "=@ccz"(zero) : "r"(tpr) : "memory");
    check(zero, 0);
    __asm__ volatile("cmpl $0xa2, (%1)" : "=@cca"(above) : "r"(tpr) : "memory");
    check(above, 0);
    __asm__ volatile("cmpl (%1), %k2" : "=@cca"(above) : "r"(tpr), "r"(UINT64_C(0xa4)) : "memory");
    check(above, 0);
    __asm__ volatile("movsbl (%1), %k0" : "=r"(value) : "r"(tpr) : "memory");
    check(value == 0xffffffa3, value);
    __asm__ volatile("movsbq (%1), %0" : "=r"(value) : "r"(tpr) : "memory");
    check(value == UINT64_C(0xffffffffffffffa3), value);
    __asm__ volatile("movabs 0xfee00080, %%eax" : "=a"(value) : : "memory");
    check((uint32_t)value == 0xa3, value);
    __asm__ volatile("stosl" : "+D"(tpr) : "a"(0x40) : "memory");
    check(lapic_read(LAPIC_TPR) == 0x40, lapic_read(LAPIC_TPR));
    check(tpr == 0xfee00084, tpr);
    lapic_write(LAPIC_TPR, 0);
}

static void copy(uint64_t to, uint64_t from, uint64_t size)
{
    __asm__ volatile("rep movsb" : "+D"(to), "+S"(from), "+c"(size) : : "memory");
}

// As memcpy() and `dd if=/dev/mem` do it: a device, or a hole, on one side, memory on the other.
static void test_copies(void)
{
    static uint8_t buffer[3 * PAGE];
    uint8_t *across = buffer + PAGE - ((uintptr_t)buffer & (PAGE - 1)) + PAGE - 10;
    const uint64_t hole = 0xb8000;
    for (unsigned i = 0; i < 20; i++)
        across[i] = (uint8_t)i;
    copy((uint64_t)(uintptr_t)across + 1, hole, 18);
    for (unsigned i = 0; i < 20; i++)
        check(across[i] == (i == 0 || i == 19 ? i : 0xff), i);
    copy(hole, (uint64_t)(uintptr_t)across, 20); // vanishes
    uint64_t tpr = 0xfee00000 + LAPIC_TPR, memory_side = (uint64_t)(uintptr_t)across;
    *(volatile uint32_t *)across = 0x50;
    __asm__ volatile("movsl" : "+S"(memory_side), "+D"(tpr) : : "memory");
    check(lapic_read(LAPIC_TPR) == 0x50, lapic_read(LAPIC_TPR));
    check(tpr == 0xfee00084 && memory_side == (uint64_t)(uintptr_t)across + 4, tpr);
    tpr -= 4;
    __asm__ volatile("std; movsl; cld" : "+S"(tpr), "+D"(memory_side) : : "memory");
    check(*(volatile uint32_t *)(across + 4) == 0x50, *(volatile uint32_t *)(across + 4));
    check(tpr == 0xfee0007c && memory_side == (uint64_t)(uintptr_t)across, memory_side);
    lapic_write(LAPIC_TPR, 0);
}

// Made for Fusor's machine: a PC has option ROMs and reserved RAM in these places.
void test_mmio(void)
{
    uint64_t low_top = memory_low_end, high_top = memory_top < 4 * GIB ? 4 * GIB : memory_top;
    touch_hole("low", 0xa0000, 0xe0000, PAGE);
    touch_hole("middle", low_top, low_top + 64 * PAGE, PAGE);
    touch_hole("devices", 0xfe000000, 0xfec00000, MIB);
    touch_hole("high", high_top, high_top + 64 * PAGE, PAGE);
    touch_rom();

    uint64_t sum = 0;
    for (unsigned size = 1; size <= 8; size *= 2) {
        for (uint64_t at = 0; at + 8 <= PAGE; at += 4) {
            sum += load(0xfee00000 + at, size);
            sum += load(0xfec00000 + at, size);
        }
        store(0xfee00000 + LAPIC_VERSION, size, 0); // read-only
        store(0xfee00000 + 0x40, size, 0);          // reserved
        store(0xfee00ff8, size, 0);
        store(0xfec00ff8, size, 0);
    }
    check((lapic_read(LAPIC_VERSION) & 0xff) >= 0x10, lapic_read(LAPIC_VERSION));
    report("lapic_ioapic_sum=0x%lx", sum);
    test_forms();
    test_copies();
}
