// SPDX-License-Identifier: BSD-2-Clause
// Fusor's own address space: higher half, W^X, built once; small windows are added later.
#pragma once

#include "kernel/types.h"

enum paging_flags {
    PAGING_WRITE = 1u << 0,
    PAGING_EXECUTE = 1u << 1,
    PAGING_UNCACHED = 1u << 2,
    PAGING_WRITE_COMBINING = 1u << 3,
};

// Maps device memory [base, base + size) uncached (or write-combining), writable, not executable,
// for ever. Returns NULL when there is no room. Set-up time only (boot CPU).
void *paging_map_device(hpa_t base, uint64_t size, unsigned flags);

// Allocates a stack of `pages` frames with an unmapped guard page below. Returns its top (16-byte
// aligned) or NULL. paging_free_stack takes the same top and pages.
void *paging_alloc_stack(unsigned pages);
void paging_free_stack(void *top, unsigned pages);

// Walks the live page tables: counts leaf mappings, and those that are writable and executable at
// once (must be 0). Shown by the console command `host`. Takes the tables' lock for 16 MiB at a
// time; a fiber gives way in between.
struct paging_audit {
    uint64_t mappings;
    uint64_t writable_executable;
};
void paging_audit(struct paging_audit *out);
