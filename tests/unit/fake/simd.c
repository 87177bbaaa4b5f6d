// SPDX-License-Identifier: BSD-2-Clause
// Weak: the test of kernel/x86/simd.c brings the real ones.
#include "simd.h"

#include "kernel/panic.h"

enum simd_level fake_simd_level;
bool fake_simd_lent;
unsigned fake_simd_batches;

bool fake_simd_host_has_avx2(void)
{
    return __builtin_cpu_supports("avx2") != 0;
}

__attribute__((weak)) enum simd_level simd_level(void)
{
    return fake_simd_level;
}

__attribute__((weak)) void simd_begin(void)
{
    CHECK(!fake_simd_lent && fake_simd_level != SIMD_NONE);
    fake_simd_lent = true;
    fake_simd_batches++;
}

__attribute__((weak)) void simd_end(void)
{
    CHECK(fake_simd_lent);
    fake_simd_lent = false;
}
