// SPDX-License-Identifier: BSD-2-Clause
#include "kernel/symbols.h"

#include "kernel/format.h"

// From tools/make-symbols; offsets are from kernel_start and rise.
struct symbol {
    uint32_t offset;
    uint32_t name;
};
extern const uint32_t symbol_count;
extern const struct symbol symbol_table[];
extern const char symbol_names[];
extern const char kernel_start[], kernel_text_end[];

void symbol_name(uintptr_t address, char *buffer, size_t size)
{
    uintptr_t start = (uintptr_t)kernel_start, end = (uintptr_t)kernel_text_end;
    if (address < start || address >= end || symbol_count == 0 ||
        address - start < symbol_table[0].offset) {
        format_text(buffer, size, "0x%lx", (unsigned long)address);
        return;
    }
    uint32_t offset = (uint32_t)(address - start);
    uint32_t low = 0, high = symbol_count; // table[low].offset <= offset < table[high].offset
    while (high - low > 1) {
        uint32_t middle = low + (high - low) / 2;
        if (symbol_table[middle].offset <= offset)
            low = middle;
        else
            high = middle;
    }
    format_text(buffer, size, "%s+0x%x", symbol_names + symbol_table[low].name,
                offset - symbol_table[low].offset);
}

unsigned stack_walk(uintptr_t frame, uintptr_t low, uintptr_t high, uintptr_t *out, unsigned max)
{
    unsigned count = 0;
    while (count < max && frame % sizeof(uintptr_t) == 0 && frame >= low && high >= low + 16 &&
           frame <= high - 16) {
        const uintptr_t *words = (const uintptr_t *)frame; // saved RBP, return address
        if (words[1] == 0)
            break;
        out[count++] = words[1];
        if (words[0] <= frame)
            break;
        frame = words[0];
    }
    return count;
}
