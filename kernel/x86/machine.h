// SPDX-License-Identifier: BSD-2-Clause
// What the files of kernel/x86 know of each other.
#pragma once

#include "kernel/boot_info.h"
#include "kernel/boot_memory.h"
#include "kernel/percpu.h"
#include "kernel/types.h"

#define CPU_STACK_PAGES 4u
#define IST_STACK_PAGES 2u

enum { IST_NMI = 1, IST_DOUBLE_FAULT = 2, IST_MACHINE_CHECK = 3, IST_COUNT = 3 };

// Task state segment, SDM vol. 3, figure 8-11.
struct tss {
    uint32_t reserved0;
    uint64_t rsp[3];
    uint64_t reserved1;
    uint64_t ist[7];
    uint64_t reserved2;
    uint16_t reserved3;
    uint16_t io_map;
} __attribute__((packed));
_Static_assert(sizeof(struct tss) == 104, "SDM layout");

// struct cpu.arch.
struct machine_cpu {
    uint64_t gdt[5]; // null, code, data, TSS (two entries)
    struct tss tss;
    _Atomic uint32_t start; // enum start_state; of CPUs other than 0
};

// As traps.asm pushes it.
struct trap_frame {
    uint64_t r15, r14, r13, r12, r11, r10, r9, r8, rdi, rsi, rbp, rbx, rdx, rcx, rax;
    uint64_t vector, error, rip, cs, rflags, rsp, ss;
};

// Interrupt vectors below those of kernel/irq.h: 0x30..0x3f are the PIC's.
#define VECTOR_PIC 0x30u

// descriptors.c: GS base, GDT, TSS, IDT. The stacks of the IST come later, when there are frames.
void descriptors_init_cpu(struct cpu *cpu, struct machine_cpu *machine);
void descriptors_init_idt(void);
int descriptors_add_stacks(struct machine_cpu *machine);

// traps.c
void trap_handle(struct trap_frame *frame);

// paging.c. paging_init leaves the boot stage's tables for ours; boot_memory then also holds what
// the tables took.
void paging_init(const struct boot_info *info, struct boot_memory *memory);
// Control registers, EFER and PAT of the CPU that calls (every CPU).
void paging_init_cpu(void);
// After frames_init: from now on tables come from the frame allocator.
void paging_use_frames(void);
uint64_t paging_root(void);
bool paging_uses_nx(void);
bool paging_has_1g_pages(void);
// Maps firmware's tables readable, cached. For ever.
const void *machine_map_firmware(uint64_t base, uint64_t size);
// foreign_tables.c. Fills four frames, the first of which is the root, with: identity map of one
// page, read-only and executable, and the kernel half.
void paging_make_trampoline_tables(hfn_t first, uint64_t page);
// Fills `tables` frames with an identity map of [0, end) that allows everything, plus the kernel
// half. Returns the number needed when tables is NULL.
unsigned paging_identity_tables(uint64_t end, const hfn_t *tables);
// True when the byte at `address` can be read without a fault; takes no lock.
bool paging_readable(uintptr_t address);
// The mapped stretch around stack pointer `pointer`, a few pages at most.
void paging_stack_bounds(uintptr_t pointer, uintptr_t *low, uintptr_t *high);

// lapic.c
void apic_init(void);     // once: finds the mode, maps the page
void apic_init_cpu(void); // every CPU
bool apic_ready(void);
uint32_t apic_id(void);
void apic_end_of_interrupt(void);
void apic_accept_pic(void); // LINT0 = ExtINT on this CPU
void apic_send_nmi_others(void);
void apic_send_init(uint32_t apic_id);
void apic_send_startup(uint32_t apic_id, uint8_t page);
bool apic_is_x2apic(void);

// interrupts.c
void interrupts_init(void);
uint64_t interrupts_unexpected(void);

// clock.c
void clock_calibrate(void);  // sets tsc_hz
void clock_init_timer(void); // chooses the timer; CPU 0, after apic_init_cpu
void clock_init_cpu(void);   // every other CPU, after apic_init_cpu

// smp.c. First CPU 0's own data, then, before memory is given away, the trampoline's, then the
// start of all others, which wait in init_join().
void smp_init_boot_cpu(void);
void smp_reserve(struct boot_memory *memory);
void smp_start(const struct boot_info *info);

// panic.c
enum stop_kind { STOP_NONE, STOP_PANIC, STOP_POWER };
void machine_stop_others(enum stop_kind kind);
// NMI handler: never returns when a stop was asked for.
void machine_serve_stop(void);
_Noreturn void machine_halt(void);
_Noreturn void panic_trap(const struct trap_frame *frame, const char *what);

// power.c
// runtime_end: one more than the highest physical address that firmware uses.
void power_init(const struct boot_info *info, uint64_t runtime_end);
// Called by power_call.asm.
uint64_t power_find_reset(const uint8_t *system_table);
void power_call_firmware(uint64_t root, uint64_t system_table, uint64_t type);
// Describes the first bank with an error.
void machine_check_report(char *buffer, size_t size);

_Noreturn void ap_main(struct cpu *cpu);
_Noreturn void kernel_main(uint64_t boot_info_physical);
