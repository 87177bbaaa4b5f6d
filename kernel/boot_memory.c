// SPDX-License-Identifier: BSD-2-Clause
#include "kernel/boot_memory.h"

#include "kernel/error.h"

// EFI_MEMORY_DESCRIPTOR, UEFI 2.10 section 7.2.3. Firmware's descriptors may be longer.
struct efi_memory_descriptor {
    uint32_t type;
    uint32_t reserved;
    uint64_t physical_start;
    uint64_t virtual_start;
    uint64_t pages;
    uint64_t attribute;
};
_Static_assert(sizeof(struct efi_memory_descriptor) == 40, "UEFI ABI");

enum {
    EFI_LOADER_CODE = 1,
    EFI_LOADER_DATA = 2,
    EFI_BOOT_SERVICES_CODE = 3,
    EFI_BOOT_SERVICES_DATA = 4,
    EFI_RUNTIME_CODE = 5,
    EFI_RUNTIME_DATA = 6,
    EFI_CONVENTIONAL = 7,
};

#define EFI_MEMORY_WB UINT64_C(0x8)
#define EFI_MEMORY_SP UINT64_C(0x40000) // special-purpose memory

#define MAX_FRAME (UINT64_C(1) << 40) // 52 physical address bits

struct range {
    uint64_t start, end; // frames
    bool usable;
    bool conventional;
    bool runtime;
};

static bool usable_type(uint32_t type)
{
    return type == EFI_LOADER_CODE || type == EFI_LOADER_DATA || type == EFI_BOOT_SERVICES_CODE ||
           type == EFI_BOOT_SERVICES_DATA || type == EFI_CONVENTIONAL;
}

// Reads descriptor `i`. An unaligned start (which the specification forbids) makes it smaller when
// usable and larger when not.
static struct range descriptor(const struct boot_memory *memory, uint64_t i)
{
    // The size may be any, so the records may be unaligned.
    struct efi_memory_descriptor d;
    __builtin_memcpy(&d, memory->map + i * memory->descriptor_size, sizeof(d));

    bool usable = usable_type(d.type) && (d.attribute & EFI_MEMORY_WB) != 0 &&
                  (d.attribute & EFI_MEMORY_SP) == 0;
    uint64_t start = d.physical_start >> PAGE_SHIFT;
    uint64_t pages = MIN(d.pages, MAX_FRAME);
    bool ragged = (d.physical_start & PAGE_MASK) != 0;
    uint64_t end = start + pages;
    if (ragged && pages != 0) {
        if (usable)
            start++;
        else
            end++;
    }
    end = MIN(end, MAX_FRAME);
    start = MIN(start, end);
    return (struct range){start, end, usable, usable && d.type == EFI_CONVENTIONAL,
                          d.type == EFI_RUNTIME_CODE || d.type == EFI_RUNTIME_DATA};
}

int boot_memory_init(struct boot_memory *memory, const void *map, uint64_t size,
                     uint64_t descriptor_size)
{
    if (map == NULL || descriptor_size < sizeof(struct efi_memory_descriptor) ||
        descriptor_size > PAGE_SIZE || size < descriptor_size)
        return E_FORMAT;
    memory->map = map;
    memory->descriptor_size = descriptor_size;
    memory->descriptors = size / descriptor_size;
    memory->reserved_count = 0;
    return 0;
}

int boot_memory_reserve(struct boot_memory *memory, uint64_t base, uint64_t size,
                        enum boot_piece_kind kind)
{
    if (size == 0)
        return 0;
    if (base + size < base)
        return E_RANGE;
    uint64_t first = base >> PAGE_SHIFT;
    uint64_t end = ((base + size - 1) >> PAGE_SHIFT) + 1;

    // Grows the previous entry where it can: page tables come frame by frame.
    if (memory->reserved_count > 0) {
        struct boot_piece *last = &memory->reserved[memory->reserved_count - 1];
        if (last->kind == kind && last->first + last->count == first) {
            last->count += end - first;
            return 0;
        }
    }
    if (memory->reserved_count == BOOT_MEMORY_RESERVED)
        return E_NOMEM;
    memory->reserved[memory->reserved_count++] = (struct boot_piece){first, end - first, kind};
    return 0;
}

// The first maximal range of usable (or, with conventional_only, conventional) frames that starts
// at or above `from`.
static bool next_usable(const struct boot_memory *memory, uint64_t from, bool conventional_only,
                        struct range *out)
{
    uint64_t start = MAX(from, 1); // page 0 never
    for (;;) {
        // The lowest frame that some usable descriptor offers ...
        uint64_t best = UINT64_MAX;
        for (uint64_t i = 0; i < memory->descriptors; i++) {
            struct range r = descriptor(memory, i);
            if ((conventional_only ? r.conventional : r.usable) && r.end > start && r.start < r.end)
                best = MIN(best, MAX(r.start, start));
        }
        if (best == UINT64_MAX)
            return false;
        // ... unless an unusable one lies over it.
        start = best;
        uint64_t skip = start;
        for (uint64_t i = 0; i < memory->descriptors; i++) {
            struct range r = descriptor(memory, i);
            if (!(conventional_only ? r.conventional : r.usable) && r.start <= start &&
                r.end > start)
                skip = MAX(skip, r.end);
        }
        if (skip == start)
            break;
        start = skip;
    }

    uint64_t end = start;
    for (bool grown = true; grown;) {
        grown = false;
        for (uint64_t i = 0; i < memory->descriptors; i++) {
            struct range r = descriptor(memory, i);
            if ((conventional_only ? r.conventional : r.usable) && r.start <= end && r.end > end) {
                end = r.end;
                grown = true;
            }
        }
    }
    for (uint64_t i = 0; i < memory->descriptors; i++) {
        struct range r = descriptor(memory, i);
        if (!(conventional_only ? r.conventional : r.usable) && r.start < r.end && r.start > start)
            end = MIN(end, r.start);
    }
    *out = (struct range){.start = start, .end = end};
    return true;
}

// Cuts the usable range at the first change of reservation. A boot file's frame that something else
// shares counts as file.
static struct boot_piece cut(const struct boot_memory *memory, struct range range)
{
    struct boot_piece piece = {.first = range.start, .kind = BOOT_PIECE_FREE};
    for (unsigned i = 0; i < memory->reserved_count; i++) {
        const struct boot_piece *r = &memory->reserved[i];
        if (r->first <= range.start && r->first + r->count > range.start)
            piece.kind = MAX(piece.kind, r->kind);
    }
    uint64_t end = range.end;
    for (unsigned i = 0; i < memory->reserved_count; i++) {
        const struct boot_piece *r = &memory->reserved[i];
        if (r->first > range.start)
            end = MIN(end, r->first);
        if (r->first + r->count > range.start)
            end = MIN(end, r->first + r->count);
    }
    piece.count = end - range.start;
    return piece;
}

bool boot_memory_next(const struct boot_memory *memory, uint64_t from, struct boot_piece *out)
{
    struct range range;
    if (!next_usable(memory, from, false, &range))
        return false;
    *out = cut(memory, range);
    while (out->first + out->count < range.end) {
        struct range rest = {.start = out->first + out->count, .end = range.end};
        struct boot_piece more = cut(memory, rest);
        if (more.kind != out->kind)
            break;
        out->count += more.count;
    }
    return true;
}

int boot_memory_take(struct boot_memory *memory, uint64_t count, uint64_t limit, uint64_t *first)
{
    struct range range;
    if (count == 0)
        return E_NOMEM;
    for (uint64_t from = 1; next_usable(memory, from, true, &range); from = range.end) {
        // Within the conventional range, the pieces nobody reserved.
        struct range rest = range;
        while (rest.start < rest.end) {
            struct boot_piece piece = cut(memory, rest);
            if (piece.kind == BOOT_PIECE_FREE && piece.count >= count && piece.first < limit &&
                count <= limit - piece.first) {
                int error = boot_memory_reserve(memory, piece.first << PAGE_SHIFT,
                                                count << PAGE_SHIFT, BOOT_PIECE_USED);
                if (error == 0)
                    *first = piece.first;
                return error;
            }
            rest.start = piece.first + piece.count;
        }
    }
    return E_NOMEM;
}

uint64_t boot_memory_end(const struct boot_memory *memory)
{
    uint64_t end = 0;
    struct range range;
    for (uint64_t from = 0; next_usable(memory, from, false, &range); from = range.end)
        end = range.end;
    return end;
}

uint64_t boot_memory_runtime_end(const struct boot_memory *memory)
{
    uint64_t end = 0;
    for (uint64_t i = 0; i < memory->descriptors; i++) {
        struct range r = descriptor(memory, i);
        if (r.runtime)
            end = MAX(end, r.end);
    }
    return end << PAGE_SHIFT;
}
