// SPDX-License-Identifier: BSD-2-Clause
// What the UEFI memory map says about RAM (design section 2), as disjoint rising pieces, without
// allocating anything.
//
// A frame is usable when descriptors of conventional, loader or boot-services memory with the
// write-back attribute cover all of it and no other descriptor touches it; page 0 never is.
// Firmware maps are unsorted, and broken ones overlap: then the stricter descriptor wins.
#pragma once

#include "kernel/types.h"

#define BOOT_MEMORY_RESERVED 192u

enum boot_piece_kind {
    BOOT_PIECE_FREE,  // nobody uses it once the boot stage's page tables and stack are left
    BOOT_PIECE_USED,  // kernel image, boot_info, boot files, tables made here
    BOOT_PIECE_FILES, // used, and holds a boot file
};

struct boot_piece {
    uint64_t first; // frame number
    uint64_t count;
    enum boot_piece_kind kind;
};

struct boot_memory {
    const uint8_t *map;
    uint64_t descriptor_size;
    uint64_t descriptors;
    unsigned reserved_count;
    struct boot_piece reserved[BOOT_MEMORY_RESERVED];
};

// `map` holds `size` bytes of EFI_MEMORY_DESCRIPTORs of `descriptor_size` bytes each. Returns
// E_FORMAT when that cannot be.
int boot_memory_init(struct boot_memory *memory, const void *map, uint64_t size,
                     uint64_t descriptor_size);

// Marks the frames that [base, base + size) touches as used. Size 0 is nothing. Returns E_NOMEM
// when the list is full, E_RANGE when the range wraps around.
int boot_memory_reserve(struct boot_memory *memory, uint64_t base, uint64_t size,
                        enum boot_piece_kind kind);

// Finds the first piece of usable memory at or above frame `from`: uniform in kind and as long as
// possible. Returns false when there is none. To visit all, continue at first + count.
bool boot_memory_next(const struct boot_memory *memory, uint64_t from, struct boot_piece *out);

// Finds the first range of `count` frames below frame `limit` that is conventional memory and not
// reserved (so nothing of the firmware or the boot stage lives there), and reserves it. Returns 0
// and sets *first, or E_NOMEM.
int boot_memory_take(struct boot_memory *memory, uint64_t count, uint64_t limit, uint64_t *first);

// One more than the highest usable frame; 0 without any.
uint64_t boot_memory_end(const struct boot_memory *memory);

// One more than the highest physical address of the firmware's runtime code and data; 0 without
// any.
uint64_t boot_memory_runtime_end(const struct boot_memory *memory);
