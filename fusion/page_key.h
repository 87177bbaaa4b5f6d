// SPDX-License-Identifier: BSD-2-Clause
// The boot's key, and what both ways of hashing a page have in common. For page_*.c and
// simd_avx2.c.
//
// The hash is NH (Black, Halevi, Krawczyk, Krovetz, Rogaway: UMAC, CRYPTO 1999): the page's words
// are added to the key's, multiplied in pairs, and the products added up. For whoever does not know
// the key, the sums of two different pages are equal with a probability of at most 2^-32 (pairs of
// 32 bits, AVX2) or 2^-64 (pairs of 64 bits). Every word of the page meets a key word of its own,
// so exchanged blocks or a single word that is set are nothing special.
//
// Why no library: the candidate, XXH3_64bits_withSecret of libxxhash 0.8.1, executes 1,364
// instructions for a page with AVX2 (GCC 12, -O2; 896 if it were unrolled without any overhead),
// this 680; with general registers 7,938 against 1,902. It is the hottest loop of the
// product, and XXH3 claims no bound for those who do not know the secret.
#pragma once

#include "fusion/page_ops.h"
#include "kernel/types.h"

#define PAGE_WORDS 512u // of 64 bits

__extension__ typedef unsigned __int128 page_u128;

// A key word for each word of a page, and PAGE_KEY_FINAL more for the last step.
#define PAGE_KEY_FINAL 4u
extern uint64_t page_key[PAGE_WORDS + PAGE_KEY_FINAL];

// Mixes two sums into one word: the halves of the product of both with key words added.
static inline uint64_t page_key_fold(uint64_t a, uint64_t b, unsigned n)
{
    page_u128 product =
        (page_u128)(a + page_key[PAGE_WORDS + n]) * (b + page_key[PAGE_WORDS + n + 1]);
    return (uint64_t)product ^ (uint64_t)(product >> 64);
}

// Between simd_begin and simd_end only.
extern const struct page_ops page_ops_avx2;
