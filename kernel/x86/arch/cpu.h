// SPDX-License-Identifier: BSD-2-Clause
// Instructions that C cannot say. Host tests have their own arch/cpu.h.
#pragma once

#include "kernel/types.h"

struct cpu;

static inline struct cpu *this_cpu(void)
{
    struct cpu *self;
    __asm__ volatile("mov %%gs:0, %0" : "=r"(self)); // volatile: a fiber may move between CPUs
    return self;
}

static inline void cpu_relax(void)
{
    __asm__ volatile("pause" ::: "memory");
}

static inline uint64_t cpu_tsc(void)
{
    uint32_t low, high;
    __asm__ volatile("rdtsc" : "=a"(low), "=d"(high)::"memory");
    return ((uint64_t)high << 32) | low;
}

static inline uint64_t cpu_read_msr(uint32_t msr)
{
    uint32_t low, high;
    __asm__ volatile("rdmsr" : "=a"(low), "=d"(high) : "c"(msr) : "memory");
    return ((uint64_t)high << 32) | low;
}

static inline void cpu_write_msr(uint32_t msr, uint64_t value)
{
    __asm__ volatile("wrmsr" ::"c"(msr), "a"((uint32_t)value), "d"((uint32_t)(value >> 32))
                     : "memory");
}

struct cpuid_regs {
    uint32_t eax, ebx, ecx, edx;
};

static inline struct cpuid_regs cpu_cpuid(uint32_t leaf, uint32_t subleaf)
{
    struct cpuid_regs r;
    __asm__ volatile("cpuid"
                     : "=a"(r.eax), "=b"(r.ebx), "=c"(r.ecx), "=d"(r.edx)
                     : "a"(leaf), "c"(subleaf));
    return r;
}

// RDRAND, where CPUID announces it. False when the CPU had nothing to give.
static inline bool cpu_random(uint64_t *value)
{
    bool good;
    __asm__ volatile("rdrand %0" : "=r"(*value), "=@ccc"(good) : : "cc");
    return good;
}

static inline void cpu_out8(uint16_t port, uint8_t value)
{
    __asm__ volatile("outb %0, %1" ::"a"(value), "Nd"(port) : "memory");
}

static inline uint8_t cpu_in8(uint16_t port)
{
    uint8_t value;
    __asm__ volatile("inb %1, %0" : "=a"(value) : "Nd"(port) : "memory");
    return value;
}

static inline void cpu_out16(uint16_t port, uint16_t value)
{
    __asm__ volatile("outw %0, %1" ::"a"(value), "Nd"(port) : "memory");
}

static inline uint16_t cpu_in16(uint16_t port)
{
    uint16_t value;
    __asm__ volatile("inw %1, %0" : "=a"(value) : "Nd"(port) : "memory");
    return value;
}

static inline void cpu_out32(uint16_t port, uint32_t value)
{
    __asm__ volatile("outl %0, %1" ::"a"(value), "Nd"(port) : "memory");
}

static inline uint32_t cpu_in32(uint16_t port)
{
    uint32_t value;
    __asm__ volatile("inl %1, %0" : "=a"(value) : "Nd"(port) : "memory");
    return value;
}

#define CPU_READ_CR(n)                                                                             \
    static inline uint64_t cpu_read_cr##n(void)                                                    \
    {                                                                                              \
        uint64_t value;                                                                            \
        __asm__ volatile("mov %%cr" #n ", %0" : "=r"(value)::"memory");                            \
        return value;                                                                              \
    }
#define CPU_WRITE_CR(n)                                                                            \
    static inline void cpu_write_cr##n(uint64_t value)                                             \
    {                                                                                              \
        __asm__ volatile("mov %0, %%cr" #n ::"r"(value) : "memory");                               \
    }
CPU_READ_CR(0)
CPU_READ_CR(2)
CPU_READ_CR(3)
CPU_READ_CR(4)
CPU_WRITE_CR(0)
CPU_WRITE_CR(2)
CPU_WRITE_CR(3)
CPU_WRITE_CR(4)
static inline uint64_t cpu_read_dr6(void)
{
    uint64_t value;
    __asm__ volatile("mov %%db6, %0" : "=r"(value));
    return value;
}

static inline void cpu_write_dr6(uint64_t value)
{
    __asm__ volatile("mov %0, %%db6" ::"r"(value));
}

#undef CPU_READ_CR
#undef CPU_WRITE_CR

static inline void cpu_irq_enable(void)
{
    __asm__ volatile("sti" ::: "memory");
}

static inline void cpu_irq_disable(void)
{
    __asm__ volatile("cli" ::: "memory");
}

static inline bool cpu_irq_enabled(void)
{
    uint64_t flags;
    __asm__ volatile("pushfq; pop %0" : "=r"(flags)::"memory");
    return (flags & (1u << 9)) != 0;
}

// Enables interrupts and halts until one came; STI's shadow makes the pair atomic (SDM vol. 2,
// STI).
static inline void cpu_irq_enable_and_halt(void)
{
    __asm__ volatile("sti; hlt" ::: "memory");
}
