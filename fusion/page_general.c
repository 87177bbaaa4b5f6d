// SPDX-License-Identifier: BSD-2-Clause
// Whole pages with the general registers: the way of machines without AVX2, and of single pages.
#include "fusion/page_key.h"
#include "fusion/page_ops.h"
#include "kernel/string.h"

#define UNROLLED 32u

typedef uint64_t __attribute__((may_alias)) word;

// Seven instructions for 16 bytes: two loads, two additions of the key, MUL, ADD, ADC.
static uint64_t hash(const void *page)
{
    const word *m = page;
    const uint64_t *key = page_key;
    page_u128 sum = 0;
    for (const word *end = m + PAGE_WORDS; m != end; m += UNROLLED, key += UNROLLED)
#pragma GCC unroll 16
        for (unsigned i = 0; i < UNROLLED; i += 2)
            sum += (page_u128)(m[i] + key[i]) * (m[i + 1] + key[i + 1]);
    return page_key_fold((uint64_t)sum, (uint64_t)(sum >> 64), 0);
}

// Load, compare with memory, branch: the CPU fuses the last two, and no other exact comparison
// needs fewer instructions for a word (REPE CMPSQ is one, and slower).
static bool equal(const void *a, const void *b)
{
    const word *x = a, *y = b;
    for (const word *end = x + PAGE_WORDS; x != end; x += UNROLLED, y += UNROLLED)
#pragma GCC unroll 32
        for (unsigned i = 0; i < UNROLLED; i++)
            if (x[i] != y[i])
                return false;
    return true;
}

static void copy(void *to, const void *from)
{
    memcpy(to, from, PAGE_SIZE); // REP MOVSQ
}

const struct page_ops page_ops_general = {hash, equal, copy, "general"};
