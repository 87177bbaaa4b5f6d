// SPDX-License-Identifier: BSD-2-Clause
// Hash, compare and copy of whole pages, by vector registers or without, chosen once by CPUID.
#pragma once

#include "kernel/types.h"

struct page_ops {
    // Keyed hash of 4096 bytes (aligned). A prefilter: equal pages have equal hashes; unequal pages
    // rarely, for whoever does not know the key. The page may change meanwhile.
    uint64_t (*hash)(const void *page);
    bool (*equal)(const void *a, const void *b);
    void (*copy)(void *to, const void *from);
    const char *name; // "avx2", "general"
};

// Draws the boot's key and chooses; once, before any other call. `random` fills the key.
void page_ops_init(uint64_t (*random)(void));

// A batch: what lies between may not yield or enter a guest. The functions returned are valid until
// page_ops_end(). simd_begin/simd_end are called where the choice needs them.
const struct page_ops *page_ops_begin(void);
void page_ops_end(void);

// The path without vector registers, at any time outside a batch too (splits: one page is not worth
// a batch). Its hash differs from the other one's.
extern const struct page_ops page_ops_general;
