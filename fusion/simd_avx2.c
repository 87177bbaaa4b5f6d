// SPDX-License-Identifier: BSD-2-Clause
// Whole pages with AVX2. The only file of the kernel that is compiled for vector registers (see the
// Makefile); nothing here may run outside simd_begin ... simd_end.
#include "fusion/page_key.h"
#include "fusion/page_ops.h"

// Host tests compile it with everybody's flags.
#define AVX2 __attribute__((target("avx2")))

// GCC's <immintrin.h> includes the C library's <stdlib.h>; the vector extension needs no header.
typedef uint64_t __attribute__((vector_size(32), may_alias)) vector;
typedef uint32_t __attribute__((vector_size(32))) vector32;
typedef int __attribute__((vector_size(32))) factors;
typedef long long __attribute__((vector_size(32))) vector64;

#define VECTORS  (PAGE_SIZE / sizeof(vector))
#define UNROLLED 32u // a quarter of a page

// Five instructions for 32 bytes: load the key, VPADDD the page, VPSRLQ, VPMULUDQ, VPADDQ. The two
// 32-bit halves of each 64-bit word are multiplied with each other; four sums run side by side.
AVX2 static uint64_t hash(const void *page)
{
    const vector *m = page, *key = (const vector *)page_key;
    vector sum = {0};
    for (const vector *end = m + VECTORS; m != end; m += UNROLLED, key += UNROLLED)
#pragma GCC unroll 32
        for (unsigned i = 0; i < UNROLLED; i++) {
            vector low = (vector)((vector32)m[i] + (vector32)key[i]);
            vector high = low >> 32;
            sum += (vector)__builtin_ia32_pmuludq256((factors)low, (factors)high);
            __asm__("" : "+x"(sum)); // in this order: GCC's, with more sums, runs out of registers
        }
    return page_key_fold(sum[0], sum[1], 0) ^ page_key_fold(sum[2], sum[3], 2);
}

// Differences of 256 bytes are collected for one branch: three instructions for 32 bytes, and two
// for VPTEST and the jump.
AVX2 static bool equal(const void *a, const void *b)
{
    const vector *x = a, *y = b;
    for (const vector *end = x + VECTORS; x != end; x += UNROLLED, y += UNROLLED)
#pragma GCC unroll 4
        for (unsigned i = 0; i < UNROLLED; i += 8) {
            vector differences = x[i] ^ y[i];
#pragma GCC unroll 7
            for (unsigned j = i + 1; j < i + 8; j++)
                differences |= x[j] ^ y[j];
            if (!__builtin_ia32_ptestz256((vector64)differences, (vector64)differences))
                return false;
        }
    return true;
}

AVX2 static void copy(void *to, const void *from)
{
    vector *d = to;
    const vector *s = from;
    for (const vector *end = s + VECTORS; s != end; d += UNROLLED, s += UNROLLED)
#pragma GCC unroll 32
        for (unsigned i = 0; i < UNROLLED; i++)
            d[i] = s[i];
}

const struct page_ops page_ops_avx2 = {hash, equal, copy, "avx2"};
