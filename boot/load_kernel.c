// SPDX-License-Identifier: BSD-2-Clause
// Loads the kernel: an ELF file that is part of this application (kernel_image.asm).
#include "boot/boot.h"

#include "kernel/string.h"

#define HIDDEN __attribute__((visibility("hidden")))

extern const uint8_t kernel_image[] HIDDEN;
extern const uint8_t kernel_image_end[] HIDDEN;

// The parts of the ELF format that an executable needs (System V ABI, chapter 4 and 5).
struct elf_header {
    uint8_t ident[16];
    uint16_t type, machine;
    uint32_t version;
    uint64_t entry, program_headers, section_headers;
    uint32_t flags;
    uint16_t header_size, program_header_size, program_header_count;
    uint16_t section_header_size, section_header_count, section_names;
};

struct elf_segment {
    uint32_t type, flags;
    uint64_t offset, virtual_address, physical_address, file_size, memory_size, alignment;
};

#define ELF_X86_64    62u
#define ELF_LOAD      1u
#define SEGMENT_EXEC  1u
#define SEGMENT_WRITE 2u

static uint64_t page_down(uint64_t address)
{
    return address & ~(BOOT_PAGE - 1);
}

static uint64_t page_up(uint64_t address)
{
    return page_down(address + BOOT_PAGE - 1);
}

static const struct elf_segment *segment(const struct elf_header *elf, unsigned int index)
{
    return (const struct elf_segment *)(kernel_image + elf->program_headers) + index;
}

static bool valid_header(const struct elf_header *elf, uint64_t size)
{
    return size >= sizeof(*elf) &&
           memcmp(elf->ident,
                  "\x7f"
                  "ELF\2\1",
                  6) == 0 &&
           elf->machine == ELF_X86_64 && elf->program_header_size == sizeof(struct elf_segment) &&
           elf->program_headers <= size &&
           elf->program_header_count <= (size - elf->program_headers) / sizeof(struct elf_segment);
}

static bool valid_segment(const struct elf_segment *s, uint64_t size)
{
    return s->offset <= size && s->file_size <= size - s->offset &&
           s->file_size <= s->memory_size && s->virtual_address >= KERNEL_BASE &&
           s->memory_size <= UINT64_MAX - s->virtual_address &&
           page_down(s->virtual_address) == s->virtual_address &&
           (s->flags & (SEGMENT_EXEC | SEGMENT_WRITE)) != (SEGMENT_EXEC | SEGMENT_WRITE);
}

// Copies a segment to `base` (its memory is zero already) and maps its pages.
static EFI_STATUS load_segment(const struct elf_segment *s, uint64_t base,
                               struct page_tables *tables)
{
    memcpy((void *)(uintptr_t)base, kernel_image + s->offset, s->file_size);
    for (uint64_t done = 0; done < s->memory_size; done += BOOT_PAGE) {
        EFI_STATUS status =
            page_tables_map_kernel(tables, s->virtual_address + done, base + done,
                                   (s->flags & SEGMENT_WRITE) != 0, (s->flags & SEGMENT_EXEC) != 0);
        if (EFI_ERROR(status)) {
            return status;
        }
    }
    return EFI_SUCCESS;
}

EFI_STATUS load_kernel(struct boot_info *info, struct page_tables *tables, uint64_t *entry)
{
    const struct elf_header *elf = (const struct elf_header *)kernel_image;
    uint64_t size = (uint64_t)(kernel_image_end - kernel_image);
    uint64_t low = UINT64_MAX, high = 0;

    if (!valid_header(elf, size)) {
        return EFI_LOAD_ERROR;
    }
    for (unsigned int i = 0; i < elf->program_header_count; i++) {
        const struct elf_segment *s = segment(elf, i);

        if (s->type != ELF_LOAD || s->memory_size == 0) {
            continue;
        }
        if (!valid_segment(s, size)) {
            return EFI_LOAD_ERROR;
        }
        low = s->virtual_address < low ? s->virtual_address : low;
        high =
            s->virtual_address + s->memory_size > high ? s->virtual_address + s->memory_size : high;
    }
    if (low >= high) {
        return EFI_LOAD_ERROR;
    }

    info->kernel_size = page_up(high) - low;
    info->kernel_base = allocate_zeroed(info->kernel_size / BOOT_PAGE);
    if (info->kernel_base == 0) {
        return EFI_OUT_OF_RESOURCES;
    }
    for (unsigned int i = 0; i < elf->program_header_count; i++) {
        const struct elf_segment *s = segment(elf, i);
        EFI_STATUS status = EFI_SUCCESS;

        if (s->type == ELF_LOAD && s->memory_size > 0) {
            status = load_segment(s, info->kernel_base + (s->virtual_address - low), tables);
        }
        if (EFI_ERROR(status)) {
            return status;
        }
    }
    *entry = elf->entry;
    return EFI_SUCCESS;
}
