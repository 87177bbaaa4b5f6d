// SPDX-License-Identifier: BSD-2-Clause
// The bare guest: small tests that run alone in a VM. `test=NAME[,NAME...]` on the command line
// says which; each prints lines "bare: NAME key=value ..." and ends with "bare: NAME done", or with
// "bare: NAME failed" after lines "bare: NAME error: ..."; then the machine is powered off.
#pragma once

#include "cpu.h"

#define PAGE 4096u
#define MIB  (UINT64_C(1) << 20)
#define GIB  (UINT64_C(1) << 30)

#define ARRAY_SIZE(a) (sizeof(a) / sizeof((a)[0]))

// --- print.c ---
void uart_init(void);
// Knows %s, %lu, %ld, %lx and %%.
void print(const char *format, ...) __attribute__((format(printf, 1, 2)));
// print() with "bare: NAME " in front and a newline behind.
void report(const char *format, ...) __attribute__((format(printf, 1, 2)));
// Reports an error of the running test when `good` is false.
void check_that(bool good, const char *what, uint64_t got);
#define check(condition, got) check_that((condition), #condition, (uint64_t)(got))
extern const char *test_name;
extern unsigned errors;

// --- main.c ---
// Number after `key=` on the command line; K, M, G are understood.
uint64_t option(const char *key, uint64_t otherwise);
bool under_fusor(void);
_Noreturn void power_off(void);
_Noreturn void reset_now(void); // by the keyboard controller; test_fire.c

// --- memory.c ---
struct region {
    uint64_t from, to;
};
extern struct region memory[16]; // RAM from 2 MiB on, cut to 2 MiB, without the initrd
extern unsigned memory_count;
extern uint64_t memory_top;     // end of RAM
extern uint64_t memory_low_end; // end of the RAM below 4 GiB
void memory_init(const uint8_t *boot_params);

// Page tables of the guest's own: RAM and devices mapped to themselves, and a window of
// WINDOW_PAGES single pages.
#define WINDOW       UINT64_C(0x8000000000)
#define WINDOW_PAGES 512u
#define PTE_PRESENT  UINT64_C(1)
#define PTE_WRITE    UINT64_C(2)
#define PTE_GLOBAL   UINT64_C(0x100)
#define PTE_NX       (UINT64_C(1) << 63)
void paging_init(void);
// Sets the window's entry and flushes nothing. Returns the address.
volatile uint64_t *window_set(unsigned index, uint64_t pte);
uint64_t window_get(unsigned index);

// --- interrupts.c ---
struct frame {
    uint64_t r15, r14, r13, r12, r11, r10, r9, r8, rdi, rsi, rbp, rbx, rdx, rcx, rax;
    uint64_t vector, error, rip, cs, rflags, rsp, ss;
};

#define NO_FAULT UINT64_C(~0)
// What the last instruction run by catch_fault() met; vector is NO_FAULT when it went through.
struct caught {
    uint64_t resume; // 0: not armed
    uint64_t vector, error, rip, cr2;
};
extern struct caught caught;

#define SELECTOR_CODE   0x10u
#define SELECTOR_DATA   0x18u
#define SELECTOR_ABSENT 0x20u // a data segment that is not present
#define GDT_LIMIT       0x27u

void interrupts_init(void);
void set_handler(unsigned vector, void (*handler)(struct frame *));
void interrupt(struct frame *frame);

// Runs one instruction (or a few); a fault in it goes on behind it and is described in `caught`.
// RAX is lost. The operands name what the instruction needs.
#define catch_fault(instruction, ...)                                                              \
    do {                                                                                           \
        caught.vector = NO_FAULT;                                                                  \
        __asm__ volatile("movq $99f, %[caught_resume]\n\t" instruction "\n99:\n\t"                 \
                         "movq $0, %[caught_resume]"                                               \
                         : [caught_resume] "+m"(caught.resume)                                     \
                         : __VA_ARGS__                                                             \
                         : "memory", "rax", "cc");                                                 \
    } while (0)

// Returns false when #GP came instead.
bool try_rdmsr(uint32_t msr, uint64_t *value);
bool try_wrmsr(uint32_t msr, uint64_t value);

// --- timers.c: LAPIC, IOAPIC, PIC, PIT, PM timer ---
#define LAPIC_ID       0x020u
#define LAPIC_VERSION  0x030u
#define LAPIC_TPR      0x080u
#define LAPIC_PPR      0x0a0u
#define LAPIC_EOI      0x0b0u
#define LAPIC_SVR      0x0f0u
#define LAPIC_ISR      0x100u
#define LAPIC_IRR      0x200u
#define LAPIC_ESR      0x280u
#define LAPIC_ICR      0x300u
#define LAPIC_ICR_HIGH 0x310u
#define LAPIC_TIMER    0x320u
#define LAPIC_LINT0    0x350u
#define LAPIC_INITIAL  0x380u
#define LAPIC_CURRENT  0x390u
#define LAPIC_DIVIDE   0x3e0u

#define LVT_MASKED       0x10000u
#define TIMER_PERIODIC   0x20000u
#define TIMER_DEADLINE   0x40000u
#define LINT_EXTINT      0x700u
#define ICR_SELF         0x40000u
#define ICR_NMI          0x400u
#define MSR_TSC_DEADLINE 0x6e0u

#define VECTOR_PIC      0x20u // IRQ 0..15
#define VECTOR_TIMER    0x60u
#define VECTOR_SCI      0x61u
#define VECTOR_SPURIOUS 0xffu

#define PIT_HZ      1193182u
#define PM_TIMER_HZ 3579545u
#define IRQ_SCI     9u

static inline volatile uint32_t *lapic_register(uint32_t reg)
{
    return (volatile uint32_t *)(UINT64_C(0xfee00000) + reg); // NOLINT: a device
}

static inline uint32_t lapic_read(uint32_t reg)
{
    return *lapic_register(reg);
}

static inline void lapic_write(uint32_t reg, uint32_t value)
{
    *lapic_register(reg) = value;
}

void lapic_init(void);
void self_ipi(unsigned vector);
bool lapic_bit(uint32_t base, unsigned vector); // of IRR or ISR
void pic_init(void);                            // IRQ 0..15 at VECTOR_PIC, all masked
void pic_mask(uint16_t mask);
void ioapic_write(uint8_t index, uint32_t value);
uint32_t ioapic_read(uint8_t index);
void pit_start(unsigned mode, uint32_t count);
uint32_t pm_timer(void);
uint64_t tsc_hz(void);          // by CPUID 15h, else measured
uint64_t measured_tsc_hz(void); // against the PM timer
uint64_t measured_lapic_hz(void);
void wait_ticks(uint64_t ticks);

// --- the tests; main.c lists them ---
// --- test_fpu.c ---
void enable_sse(void);

void test_hello(void);
void test_bench(void);
void test_touch(void);
void test_pattern(void);
void test_tlb(void);
void test_spin(void);
void test_spincli(void);
void test_halt(void);
void test_timer(void);
void test_rtc(void);
void test_irq(void);
void test_sti(void);
void test_movss(void);
void test_nmi(void);
void test_fault(void);
void test_fpu(void);
void test_msr(void);
void test_ports(void);
void test_mmio(void);
void test_triple(void);
void test_void(void);
void test_badinsn(void);
void test_button(void);
void test_reset(void);
void test_hypercall(void);
void test_fuse(void);
void test_balloon(void);
void test_driver(void);
// --- test_torture.c ---
void test_torture(void);
// --- test_smp.c, test_smp_end.c ---
void test_smp(void);
void test_smpspin(void);
void test_smptriple(void);
void test_smpreset(void);
void test_smpoff(void);
// --- test_load.c ---
void test_lock(void);
void test_latency(void);
void test_storm(void);
void test_gaps(void);
void test_fill(void);
void test_fire(void);
// --- test_stress.c ---
void test_stress(void);
// --- test_shootdown.c ---
void test_shootdown(void);
