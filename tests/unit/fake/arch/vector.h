// SPDX-License-Identifier: BSD-2-Clause
// Host tests: each pretended CPU has an XCR0 and one register that stands for its vector state. An
// XSAVE or XRSTOR of components that XCR0 does not enable would leave them out, so it stops the
// test, as does an XCR0 that the machine cannot have.
#pragma once

#include <stdio.h>
#include <stdlib.h>

#include "kernel/percpu.h"
#include "kernel/types.h"

#define XCR0_SSE       (UINT64_C(1) << 1)
#define XCR0_AVX       (UINT64_C(1) << 2)
#define XCR0_OPMASK    (UINT64_C(1) << 5)
#define XCR0_ZMM_HI256 (UINT64_C(1) << 6)
#define XCR0_HI16_ZMM  (UINT64_C(1) << 7)

struct fake_vector_cpu {
    uint64_t supported; // what arch_avx2_xcr0 says
    uint64_t xcr0;
    uint64_t registers;
    unsigned xcr0_writes, saves, restores;
    uint64_t mask; // of the last XSAVE or XRSTOR
};

__attribute__((weak)) struct fake_vector_cpu fake_vector[MAX_CPUS];

static inline struct fake_vector_cpu *fake_vector_this(uint64_t mask)
{
    struct fake_vector_cpu *c = &fake_vector[cpu_index()];
    if ((mask & ~c->xcr0) != 0) {
        fprintf(stderr, "vector state %#llx with XCR0 %#llx\n", (unsigned long long)mask,
                (unsigned long long)c->xcr0);
        abort();
    }
    c->mask = mask;
    return c;
}

static inline uint64_t arch_read_xcr0(void)
{
    return fake_vector[cpu_index()].xcr0;
}

static inline void arch_write_xcr0(uint64_t value)
{
    struct fake_vector_cpu *c = &fake_vector[cpu_index()];
    if ((value & ~c->supported) != 0 || (value & 1) == 0)
        abort();
    c->xcr0 = value;
    c->xcr0_writes++;
}

static inline void arch_xsave(void *area, uint64_t mask)
{
    struct fake_vector_cpu *c = fake_vector_this(mask);
    c->saves++;
    *(uint64_t *)area = c->registers;
}

static inline void arch_xrstor(const void *area, uint64_t mask)
{
    struct fake_vector_cpu *c = fake_vector_this(mask);
    c->restores++;
    c->registers = *(const uint64_t *)area;
}

static inline uint64_t arch_avx2_xcr0(void)
{
    return fake_vector[cpu_index()].supported;
}
