// SPDX-License-Identifier: BSD-2-Clause
// XCR0, XSAVE and XRSTOR (SDM vol. 1, chapter 13). Host tests have their own arch/vector.h.
#pragma once

#include "kernel/types.h"
#include <arch/cpu.h>

#define XCR0_SSE       (UINT64_C(1) << 1)
#define XCR0_AVX       (UINT64_C(1) << 2)
#define XCR0_OPMASK    (UINT64_C(1) << 5)
#define XCR0_ZMM_HI256 (UINT64_C(1) << 6)
#define XCR0_HI16_ZMM  (UINT64_C(1) << 7)

static inline uint64_t arch_read_xcr0(void)
{
    uint32_t low, high;
    __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    return (uint64_t)high << 32 | low;
}

static inline void arch_write_xcr0(uint64_t value)
{
    __asm__ volatile("xsetbv" ::"c"(0), "a"((uint32_t)value), "d"((uint32_t)(value >> 32))
                     : "memory");
}

static inline void arch_xsave(void *area, uint64_t mask)
{
    __asm__ volatile("xsave64 (%0)" ::"r"(area), "a"((uint32_t)mask), "d"((uint32_t)(mask >> 32))
                     : "memory");
}

static inline void arch_xrstor(const void *area, uint64_t mask)
{
    __asm__ volatile("xrstor64 (%0)" ::"r"(area), "a"((uint32_t)mask), "d"((uint32_t)(mask >> 32))
                     : "memory");
}

// The bits that XCR0 may have on this CPU when AVX2 can be used on it (SDM vol. 1, 14.3 and
// 14.7.1), else 0. CR0.TS is never set in root mode.
static inline uint64_t arch_avx2_xcr0(void)
{
    const uint32_t needed = 1u << 27 | 1u << 28; // OSXSAVE and AVX
    if ((cpu_cpuid(1, 0).ecx & needed) != needed || cpu_cpuid(0, 0).eax < 0xd)
        return 0;
    if ((cpu_cpuid(7, 0).ebx & 1u << 5) == 0)
        return 0;
    struct cpuid_regs r = cpu_cpuid(0xd, 0);
    uint64_t xcr0 = (uint64_t)r.edx << 32 | r.eax;
    return (xcr0 & XCR0_SSE) != 0 && (xcr0 & XCR0_AVX) != 0 ? xcr0 : 0;
}
