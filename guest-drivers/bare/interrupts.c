// SPDX-License-Identifier: BSD-2-Clause
// GDT, IDT, and faults that a test expects.
#include "bare.h"

struct caught caught;

extern const uint64_t vectors[256];

static _Alignas(16) uint64_t idt[512];
static void (*handlers[256])(struct frame *);

static const uint64_t gdt[] = {
    0, 0, UINT64_C(0x00af9b000000ffff), UINT64_C(0x00cf93000000ffff), UINT64_C(0x00cf13000000ffff),
};
_Static_assert(sizeof(gdt) == GDT_LIMIT + 1, "GDT_LIMIT");

struct __attribute__((packed)) table_pointer {
    uint16_t limit;
    uint64_t base;
};

void interrupts_init(void)
{
    for (unsigned i = 0; i < 256; i++) {
        uint64_t to = vectors[i];
        idt[2 * i] =
            (to & 0xffff) | SELECTOR_CODE << 16 | UINT64_C(0x8e00) << 32 | (to & 0xffff0000) << 32;
        idt[2 * i + 1] = to >> 32;
    }
    struct table_pointer g = {GDT_LIMIT, (uint64_t)(uintptr_t)gdt};
    struct table_pointer i = {sizeof(idt) - 1, (uint64_t)(uintptr_t)idt};
    __asm__ volatile("lgdt %0; lidt %1\n\t"
                     "push %2; lea 1f(%%rip), %%rax; push %%rax; lretq\n1:\n\t"
                     "mov %3, %%ds; mov %3, %%es; mov %3, %%ss\n\t"
                     "xor %%eax, %%eax; mov %%eax, %%fs; mov %%eax, %%gs"
                     :
                     : "m"(g), "m"(i), "i"(SELECTOR_CODE), "r"(SELECTOR_DATA)
                     : "rax", "memory");
}

void set_handler(unsigned vector, void (*handler)(struct frame *))
{
    handlers[vector] = handler;
}

void interrupt(struct frame *f)
{
    if (caught.resume != 0 && f->vector < 32 && f->vector != 2) {
        caught.vector = f->vector;
        caught.error = f->error;
        caught.rip = f->rip;
        caught.cr2 = read_cr2();
        f->rip = caught.resume;
        return;
    }
    if (handlers[f->vector] != NULL) {
        handlers[f->vector](f);
        return;
    }
    if (f->vector == VECTOR_SPURIOUS)
        return;
    report("error: unexpected vector=%lu error=0x%lx rip=0x%lx cr2=0x%lx", f->vector, f->error,
           f->rip, read_cr2());
    report("failed");
    power_off();
}

bool try_rdmsr(uint32_t msr, uint64_t *value)
{
    uint32_t low = 0, high = 0;
    caught.vector = NO_FAULT;
    __asm__ volatile("movq $99f, %2\n\trdmsr\n99:\n\tmovq $0, %2"
                     : "+a"(low), "+d"(high), "+m"(caught.resume)
                     : "c"(msr)
                     : "memory");
    *value = (uint64_t)high << 32 | low;
    return caught.vector == NO_FAULT;
}

bool try_wrmsr(uint32_t msr, uint64_t value)
{
    caught.vector = NO_FAULT;
    __asm__ volatile("movq $99f, %0\n\twrmsr\n99:\n\tmovq $0, %0"
                     : "+m"(caught.resume)
                     : "c"(msr), "a"((uint32_t)value), "d"((uint32_t)(value >> 32))
                     : "memory");
    return caught.vector == NO_FAULT;
}
