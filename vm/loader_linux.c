// SPDX-License-Identifier: BSD-2-Clause
// The Linux x86 boot protocol, 64-bit entry (Documentation/x86/boot.rst, "64-bit Boot Protocol";
// version 2.12 at least). Offsets into the file and into boot_params are those of the protocol.
//
// Low memory as the kernel finds it:
//   0x07000  zero page (boot_params)
//   0x08000  GDT
//   0x09000  page tables: PML4, PDPT, four directories of 2 MiB pages
//   0x20000  command line
#include "vm/loader.h"

#include "kernel/error.h"
#include "kernel/format.h"
#include "kernel/sched.h"
#include "kernel/string.h"
#include "vm/acpi.h"
#include "vm/config.h"
#include "vm/layout.h"
#include "vm/memory.h"

#define ZERO_PAGE     UINT64_C(0x7000)
#define GDT           UINT64_C(0x8000)
#define PAGE_TABLES   UINT64_C(0x9000)
#define CMDLINE       UINT64_C(0x20000)
#define IDENTITY_GIBS 4u
#define PIECE         (64 * KIB)

#define SECTOR        512u
#define ENTRY_64      0x200u
#define HEADER_START  0x1f1u
#define HEADER_MIN    0x268u // the end of the fields that are read here
#define HEADER_ROOM   0x290u // where boot_params goes on with other things
#define VERSION_64    0x20cu // the first one with xloadflags
#define LOADED_HIGH   0x01u
#define CAN_USE_HEAP  0x80u
#define XLF_KERNEL_64 0x01u
#define LOADER_OTHER  0xffu
#define E820_RAM      1u
#define E820_RESERVED 2u

struct kernel_header {
    uint64_t setup_size; // boot sector and real-mode code
    uint64_t code_size;  // protected-mode code
    uint64_t end;        // of the header in the file
    uint64_t initrd_max; // last byte an initrd may take
    uint64_t cmdline_max;
    uint64_t load;
    uint64_t init_size; // from `load` on, what the kernel needs before it reads the memory map
};

struct load {
    struct loader_input *in;
    char *message;
    size_t message_size;
    uint64_t at;      // bytes that come before what is put next; always the same ones
    uint64_t at_once; // bytes copied since others had the CPU
};

#define FAIL(l, error, ...)                                                                        \
    (format_text((l)->message, (l)->message_size, __VA_ARGS__), (int)(error))

static uint16_t get16(const uint8_t *at)
{
    return (uint16_t)(at[0] | at[1] << 8);
}

static uint32_t get32(const uint8_t *at)
{
    return get16(at) | (uint32_t)get16(at + 2) << 16;
}

static uint64_t get64(const uint8_t *at)
{
    return get32(at) | (uint64_t)get32(at + 4) << 32;
}

static void put32(uint8_t *at, uint32_t value)
{
    for (unsigned i = 0; i < 4; i++)
        at[i] = (uint8_t)(value >> (8 * i));
}

static void put64(uint8_t *at, uint64_t value)
{
    put32(at, (uint32_t)value);
    put32(at + 4, (uint32_t)(value >> 32));
}

// The end of the RAM below the hole.
static uint64_t ram_end(const struct loader_input *in)
{
    return MIN(in->memory, LAYOUT_HOLE);
}

static int read_header(const struct load *l, struct kernel_header *h)
{
    const uint8_t *k = l->in->kernel;
    uint64_t size = l->in->kernel_size;

    if (size < HEADER_MIN)
        return FAIL(l, E_FORMAT, "kernel: truncated: the file has %llu bytes, a header needs %u",
                    (unsigned long long)size, HEADER_MIN);
    if (get16(k + 0x1fe) != 0xaa55 || memcmp(k + 0x202, "HdrS", 4) != 0)
        return FAIL(l, E_FORMAT, "kernel: not a Linux bzImage: no boot signature");
    unsigned version = get16(k + 0x206);
    if (version < VERSION_64)
        return FAIL(l, E_NOSYS, "kernel: boot protocol %u.%u is too old, 2.12 is needed",
                    version >> 8, version & 0xff);
    if ((get16(k + 0x236) & XLF_KERNEL_64) == 0)
        return FAIL(l, E_NOSYS, "kernel: not a 64-bit kernel: it has no 64-bit entry");
    if ((k[0x211] & LOADED_HIGH) == 0)
        return FAIL(l, E_NOSYS, "kernel: a zImage, which loads low; a bzImage is needed");

    // The second byte of the jump at 0x200 says where the header ends.
    h->end = UINT64_C(0x202) + k[0x201];
    if (h->end < HEADER_MIN || h->end > HEADER_ROOM)
        return FAIL(l, E_FORMAT, "kernel: malformed: the header ends at 0x%llx",
                    (unsigned long long)h->end);
    // For historical reasons 0 means 4.
    h->setup_size = (UINT64_C(1) + (k[HEADER_START] == 0 ? 4u : k[HEADER_START])) * SECTOR;
    h->code_size = (uint64_t)get32(k + 0x1f4) * 16;
    if (h->end > h->setup_size)
        return FAIL(l, E_FORMAT, "kernel: malformed: the header is longer than the set-up code");
    if (h->setup_size + h->code_size > size)
        return FAIL(l, E_FORMAT,
                    "kernel: truncated: the header promises %llu bytes, the file has %llu",
                    (unsigned long long)(h->setup_size + h->code_size), (unsigned long long)size);
    if (h->code_size <= ENTRY_64)
        return FAIL(l, E_FORMAT, "kernel: malformed: %llu bytes of code have no 64-bit entry",
                    (unsigned long long)h->code_size);

    h->initrd_max = get32(k + 0x22c);
    h->cmdline_max = get32(k + 0x238);
    h->load = get64(k + 0x258);
    h->init_size = get32(k + 0x260);
    return 0;
}

static int check_memory(const struct load *l, const struct kernel_header *h)
{
    uint64_t end = ram_end(l->in);
    if (h->load < LAYOUT_HIGH || (h->load & PAGE_MASK) != 0)
        return FAIL(l, E_FORMAT, "kernel: malformed: it wants to load at 0x%llx",
                    (unsigned long long)h->load);
    if (h->code_size > h->init_size)
        return FAIL(l, E_FORMAT, "kernel: malformed: %llu bytes of code in an init_size of %llu",
                    (unsigned long long)h->code_size, (unsigned long long)h->init_size);
    if (h->load > end || h->init_size > end - h->load)
        return FAIL(l, E_RANGE,
                    "kernel: too big: it needs %llu kB at 0x%llx, low memory ends at %llu kB",
                    (unsigned long long)(ALIGN_UP(h->init_size, KIB) / KIB),
                    (unsigned long long)h->load, (unsigned long long)(end / KIB));
    return 0;
}

// The highest page-aligned place for the initrd above the kernel.
static int place_initrd(const struct load *l, const struct kernel_header *h, uint64_t *address)
{
    uint64_t size = l->in->initrd_size;
    *address = 0;
    if (l->in->initrd == NULL || size == 0)
        return 0;
    uint64_t bottom = ALIGN_UP(h->load + h->init_size, PAGE_SIZE);
    uint64_t top = MIN(ram_end(l->in), h->initrd_max + 1);
    uint64_t room = top > bottom ? top - bottom : 0;
    if (size <= room)
        *address = ALIGN_DOWN(top - size, PAGE_SIZE);
    if (*address < bottom)
        return FAIL(l, E_RANGE, "initrd: too big: it has %llu kB, above the kernel are %llu kB",
                    (unsigned long long)(ALIGN_UP(size, KIB) / KIB),
                    (unsigned long long)(room / KIB));
    return 0;
}

static int check_cmdline(const struct load *l, const struct kernel_header *h, size_t *length)
{
    uint64_t max = MIN(h->cmdline_max, (uint64_t)VM_CMDLINE_MAX - 1);
    *length = strnlen(l->in->cmdline, (size_t)max + 1);
    if (*length > max)
        return FAIL(l, E_RANGE, "cmdline: too long: this kernel takes %llu characters",
                    (unsigned long long)max);
    return 0;
}

// True, and they are behind us, when an earlier try has put these bytes.
static bool skip(struct load *l, uint64_t size)
{
    if (l->in->done < l->at + size)
        return false;
    l->at += size;
    return true;
}

// Copies in pieces, so that this CPU's vCPUs and the console run in between; each is in one page,
// so that it is put as a whole or not at all.
static int put(struct load *l, uint64_t to, const void *from, uint64_t size)
{
    const uint8_t *bytes = from;
    if (skip(l, size))
        return 0;
    for (uint64_t done = l->in->done - l->at; done < size;) {
        uint64_t piece = MIN(size - done, PAGE_SIZE - ((to + done) & PAGE_MASK));
        if (l->at_once + piece > PIECE) {
            l->at_once = 0;
            fiber_give_way();
        }
        int error = guest_write(l->in->vm, gpa(to + done), bytes + done, (size_t)piece);
        if (error == E_NOMEM)
            return FAIL(l, error, "kernel: no free memory left to load it into");
        if (error != 0)
            return FAIL(l, error, "kernel: cannot write to guest memory at 0x%llx: %s",
                        (unsigned long long)(to + done), error_text(error));
        done += piece;
        l->in->done += piece;
        l->at_once += piece;
    }
    l->at += size;
    return 0;
}

static unsigned add_e820(uint8_t *page, unsigned count, uint64_t from, uint64_t to, uint32_t type)
{
    if (from >= to)
        return count;
    uint8_t *entry = page + 0x2d0 + 20 * count;
    put64(entry, from);
    put64(entry + 8, to - from);
    put32(entry + 16, type);
    return count + 1;
}

static int put_zero_page(struct load *l, const struct kernel_header *h, uint64_t initrd)
{
    uint8_t page[PAGE_SIZE];
    if (skip(l, sizeof(page)))
        return 0;
    memset(page, 0, sizeof(page));
    memcpy(page + HEADER_START, l->in->kernel + HEADER_START, (size_t)(h->end - HEADER_START));
    page[0x210] = LOADER_OTHER;
    page[0x211] = (uint8_t)(page[0x211] & ~CAN_USE_HEAP);
    put32(page + 0x218, (uint32_t)initrd);
    put32(page + 0x21c, initrd == 0 ? 0 : (uint32_t)l->in->initrd_size);
    put32(page + 0x228, (uint32_t)CMDLINE);
    put64(page + 0x250, 0); // setup_data
    put64(page + 0x70, ACPI_RSDP);

    uint64_t memory = l->in->memory;
    unsigned n = add_e820(page, 0, 0, ACPI_EBDA, E820_RAM);
    n = add_e820(page, n, ACPI_EBDA, LAYOUT_LOW_END, E820_RESERVED);
    n = add_e820(page, n, LAYOUT_ROM, LAYOUT_ROM_END, E820_RESERVED);
    n = add_e820(page, n, LAYOUT_HIGH, ram_end(l->in), E820_RAM);
    if (memory > LAYOUT_HOLE)
        n = add_e820(page, n, LAYOUT_ABOVE_4G, LAYOUT_ABOVE_4G + memory - LAYOUT_HOLE, E820_RAM);
    page[0x1e8] = (uint8_t)n;
    return put(l, ZERO_PAGE, page, sizeof(page));
}

// Maps the first 4 GiB to themselves with 2 MiB pages, which every 64-bit CPU has.
static int put_page_tables(struct load *l)
{
    enum { PRESENT_WRITE_ACCESSED = 0x23, LARGE_DIRTY = 0xc0 };
    if (skip(l, (2 + IDENTITY_GIBS) * PAGE_SIZE))
        return 0;
    uint64_t table[512] = {PAGE_TABLES + PAGE_SIZE + PRESENT_WRITE_ACCESSED};
    int error = put(l, PAGE_TABLES, table, sizeof(table));

    memset(table, 0, sizeof(table));
    for (unsigned i = 0; i < IDENTITY_GIBS; i++)
        table[i] = PAGE_TABLES + (2 + i) * PAGE_SIZE + PRESENT_WRITE_ACCESSED;
    if (error == 0)
        error = put(l, PAGE_TABLES + PAGE_SIZE, table, sizeof(table));

    for (unsigned i = 0; i < IDENTITY_GIBS && error == 0; i++) {
        for (unsigned j = 0; j < 512; j++)
            table[j] = i * GIB + j * 2 * MIB + (PRESENT_WRITE_ACCESSED | LARGE_DIRTY);
        error = put(l, PAGE_TABLES + (2 + i) * PAGE_SIZE, table, sizeof(table));
    }
    return error;
}

// The protocol demands __BOOT_CS = 0x10 and __BOOT_DS = 0x18, flat, and where a PC's firmware says
// that low memory ends: Linux' decompressor looks there for a place of its trampoline.
static int put_tables(struct load *l)
{
    static const uint64_t gdt[4] = {0, 0, UINT64_C(0x00af9b000000ffff),
                                    UINT64_C(0x00cf93000000ffff)};
    static const uint8_t ebda_segment[2] = {(ACPI_EBDA >> 4) & 0xff, (ACPI_EBDA >> 12) & 0xff};
    static const uint8_t low_kib[2] = {(ACPI_EBDA / KIB) & 0xff, (ACPI_EBDA / KIB) >> 8};
    int error = put(l, GDT, gdt, sizeof(gdt));
    if (error == 0)
        error = put(l, 0x40e, ebda_segment, sizeof(ebda_segment));
    if (error == 0)
        error = put(l, 0x413, low_kib, sizeof(low_kib));
    return error != 0 ? error : put_page_tables(l);
}

int loader_linux(struct loader_input *input, struct loader_entry *entry, char *message,
                 size_t message_size)
{
    struct load load = {.in = input, .message = message, .message_size = message_size};
    struct kernel_header h;
    uint64_t initrd;
    size_t cmdline_length;

    int error = read_header(&load, &h);
    if (error == 0)
        error = check_memory(&load, &h);
    if (error == 0)
        error = place_initrd(&load, &h, &initrd);
    if (error == 0)
        error = check_cmdline(&load, &h, &cmdline_length);
    if (error == 0)
        error = put_tables(&load);
    if (error == 0)
        error = put_zero_page(&load, &h, initrd);
    if (error == 0)
        error = put(&load, CMDLINE, input->cmdline, cmdline_length + 1);
    if (error == 0)
        error = put(&load, h.load, input->kernel + h.setup_size, h.code_size);
    if (error == 0 && initrd != 0)
        error = put(&load, initrd, input->initrd, input->initrd_size);
    if (error != 0)
        return error;

    *entry = (struct loader_entry){
        .rip = h.load + ENTRY_64,
        .rsi = ZERO_PAGE,
        .rsp = ZERO_PAGE, // grows down; the kernel takes its own soon
        .cr3 = PAGE_TABLES,
        .gdt_base = GDT,
        .gdt_limit = 4 * 8 - 1,
        .code_selector = 0x10,
        .data_selector = 0x18,
    };
    return 0;
}
