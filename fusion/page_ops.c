// SPDX-License-Identifier: BSD-2-Clause
#include "fusion/page_ops.h"

#include "fusion/page_key.h"
#include "kernel/simd.h"

uint64_t page_key[PAGE_WORDS + PAGE_KEY_FINAL] __attribute__((aligned(64)));
static const struct page_ops *chosen = &page_ops_general;

void page_ops_init(uint64_t (*random)(void))
{
    for (size_t i = 0; i < ARRAY_SIZE(page_key); i++)
        page_key[i] = random();
    chosen = simd_level() == SIMD_AVX2 ? &page_ops_avx2 : &page_ops_general;
}

const struct page_ops *page_ops_begin(void)
{
    if (chosen == &page_ops_avx2)
        simd_begin();
    return chosen;
}

void page_ops_end(void)
{
    if (chosen == &page_ops_avx2)
        simd_end();
}
