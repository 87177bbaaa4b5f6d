// SPDX-License-Identifier: BSD-2-Clause
// Segments, task state and interrupt table (SDM vol. 3, chapters 3, 6 and 8). Every CPU has its own
// GDT and TSS; TR must be loaded before VMXON, and a VM exit loads all of them from the VMCS.
#include <arch/host_state.h>

#include "kernel/error.h"
#include "kernel/paging.h"
#include "kernel/x86/machine.h"
#include "kernel/x86/msr.h"

struct gate {
    uint16_t offset_low;
    uint16_t selector;
    uint8_t ist;
    uint8_t type;
    uint16_t offset_middle;
    uint32_t offset_high;
    uint32_t reserved;
};
_Static_assert(sizeof(struct gate) == 16, "SDM layout");

struct table_register {
    uint16_t limit;
    uint64_t base;
} __attribute__((packed));

extern const uint64_t trap_stubs[256];

static struct gate idt[256] __attribute__((aligned(4096)));

// For a fault before there are frames: only then, on CPU 0, so one for all three is enough.
static uint8_t early_ist[4096] __attribute__((aligned(16)));

void descriptors_init_idt(void)
{
    for (unsigned v = 0; v < 256; v++) {
        uint64_t offset = trap_stubs[v];
        idt[v] = (struct gate){
            .offset_low = (uint16_t)offset,
            .selector = HOST_CS,
            .ist = v == 2    ? IST_NMI
                   : v == 8  ? IST_DOUBLE_FAULT
                   : v == 18 ? IST_MACHINE_CHECK
                             : 0,
            .type = 0x8e, // present, interrupt gate: IF is cleared
            .offset_middle = (uint16_t)(offset >> 16),
            .offset_high = (uint32_t)(offset >> 32),
        };
    }
}

static void load_segments(const struct machine_cpu *machine)
{
    struct table_register gdtr = {sizeof(machine->gdt) - 1, (uint64_t)machine->gdt};
    struct table_register idtr = {sizeof(idt) - 1, (uint64_t)idt};
    __asm__ volatile("lgdt %0\n"
                     "lidt %1\n"
                     "pushq %2\n"
                     "leaq 1f(%%rip), %%rax\n"
                     "pushq %%rax\n"
                     "lretq\n"
                     "1: mov %w3, %%ss\n"
                     "mov %w3, %%ds\n"
                     "mov %w3, %%es\n"
                     "xor %%eax, %%eax\n"
                     "mov %%ax, %%fs\n"
                     "mov %%ax, %%gs\n"
                     "lldt %%ax\n"
                     "ltr %w4\n" ::"m"(gdtr),
                     "m"(idtr), "i"(HOST_CS), "r"(HOST_SS), "r"(HOST_TR)
                     : "rax", "memory");
}

void descriptors_init_cpu(struct cpu *cpu, struct machine_cpu *machine)
{
    machine->tss.io_map = sizeof(machine->tss);
    for (unsigned i = 0; i < IST_COUNT; i++)
        machine->tss.ist[i] = (uint64_t)(early_ist + sizeof(early_ist));

    uint64_t base = (uint64_t)&machine->tss;
    machine->gdt[HOST_CS / 8] = UINT64_C(0x00af9b000000ffff);
    machine->gdt[HOST_SS / 8] = UINT64_C(0x00cf93000000ffff);
    machine->gdt[HOST_TR / 8] = (sizeof(machine->tss) - 1) | (base & 0xffffff) << 16 |
                                UINT64_C(0x89) << 40 | (base >> 24 & 0xff) << 56;
    machine->gdt[HOST_TR / 8 + 1] = base >> 32;

    cpu->self = cpu;
    cpu->arch = machine;
    load_segments(machine); // a null selector clears the GS base, so that comes after
    cpu_write_msr(MSR_FS_BASE, 0);
    cpu_write_msr(MSR_GS_BASE, (uint64_t)cpu);
}

int descriptors_add_stacks(struct machine_cpu *machine)
{
    for (unsigned i = 0; i < IST_COUNT; i++) {
        void *top = paging_alloc_stack(IST_STACK_PAGES);
        if (top == NULL)
            return E_NOMEM;
        machine->tss.ist[i] = (uint64_t)top;
    }
    return 0;
}

void arch_host_state(struct arch_host_state *out)
{
    const struct machine_cpu *machine = this_cpu()->arch;
    *out = (struct arch_host_state){
        .cs = HOST_CS,
        .ss = HOST_SS,
        .ds = HOST_SS,
        .es = HOST_SS,
        .tr = HOST_TR,
        .gs_base = (uint64_t)this_cpu(),
        .tr_base = (uint64_t)&machine->tss,
        .gdtr_base = (uint64_t)machine->gdt,
        .idtr_base = (uint64_t)idt,
        .cr0 = cpu_read_cr0(),
        .cr3 = cpu_read_cr3(),
        .cr4 = cpu_read_cr4(),
        .efer = cpu_read_msr(MSR_EFER),
        .pat = cpu_read_msr(MSR_PAT),
    };
}
