// SPDX-License-Identifier: BSD-2-Clause
// sources: vm/loader_linux.c kernel/format.c
// The bzImage loader against good, truncated and corrupted kernels. The kernel file lies in a heap
// block of exactly its size, so a read outside of it is an error of the sanitizer.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#include "kernel/error.h"
#include "kernel/sched.h"
#include "vm/acpi.h"
#include "vm/config.h"
#include "vm/layout.h"
#include "vm/loader.h"
#include "vm/memory.h"

#define SETUP 1024u
#define CODE  200016u
#define LOAD  UINT64_C(0x1000000)
#define INIT  (UINT64_C(8) * MIB)

// --- A guest of which only the pages exist that were written. ---

struct page {
    struct page *next;
    uint64_t number;
    uint8_t bytes[PAGE_SIZE];
};

static struct page *pages[4096];
static uint64_t memory_size;
static unsigned yields, unyielded_bytes;
static int64_t writes_left; // until E_NOMEM, < 0: for ever

static uint8_t *page_at(uint64_t address, bool make)
{
    uint64_t number = address / PAGE_SIZE;
    struct page **slot = &pages[number % ARRAY_SIZE(pages)];
    for (struct page *p = *slot; p != NULL; p = p->next) {
        if (p->number == number)
            return p->bytes;
    }
    if (!make)
        return NULL;
    struct page *p = calloc(1, sizeof(*p));
    p->number = number;
    p->next = *slot;
    *slot = p;
    return p->bytes;
}

static void forget_memory(void)
{
    for (unsigned i = 0; i < ARRAY_SIZE(pages); i++) {
        while (pages[i] != NULL) {
            struct page *next = pages[i]->next;
            free(pages[i]);
            pages[i] = next;
        }
    }
}

static bool is_memory(uint64_t from, uint64_t size)
{
    uint64_t end = from + size;
    return end <= LAYOUT_LOW_END || (from >= LAYOUT_ROM && end <= LAYOUT_ROM_END) ||
           (from >= LAYOUT_HIGH && end <= MIN(memory_size, LAYOUT_HOLE));
}

int guest_write(struct vm *vm, gpa_t to, const void *from, size_t size)
{
    (void)vm;
    assert_true(size <= 64 * KIB);
    unyielded_bytes += (unsigned)size;
    assert_true(unyielded_bytes <= 64 * KIB);
    if (writes_left == 0)
        return E_NOMEM;
    writes_left--;
    if (!is_memory(to.raw, size))
        return E_RANGE;
    const uint8_t *bytes = from;
    for (size_t i = 0; i < size;) {
        size_t offset = (to.raw + i) & PAGE_MASK;
        size_t piece = MIN(size - i, PAGE_SIZE - offset);
        memcpy(page_at(to.raw + i, true) + offset, bytes + i, piece);
        i += piece;
    }
    return 0;
}

static void read_memory(uint64_t from, void *to, size_t size)
{
    uint8_t *bytes = to;
    for (size_t i = 0; i < size; i++) {
        const uint8_t *page = page_at(from + i, false);
        bytes[i] = page == NULL ? 0 : page[(from + i) & PAGE_MASK];
    }
}

void fiber_yield(void)
{
    yields++;
    unyielded_bytes = 0;
}

void fiber_give_way(void)
{
    fiber_yield();
}

const char *error_text(int error)
{
    return error == E_RANGE ? "out of range" : "error";
}

// --- Kernels. ---

static void set16(uint8_t *at, unsigned value)
{
    at[0] = (uint8_t)value;
    at[1] = (uint8_t)(value >> 8);
}

static void set32(uint8_t *at, uint32_t value)
{
    memcpy(at, &value, 4);
}

static void set64(uint8_t *at, uint64_t value)
{
    memcpy(at, &value, 8);
}

static uint8_t *make_kernel(void)
{
    uint8_t *k = malloc(SETUP + CODE);
    for (unsigned i = 0; i < SETUP + CODE; i++)
        k[i] = (uint8_t)(i * 7 + (i >> 8));
    memset(k + 0x1f1, 0, 0x290 - 0x1f1);
    k[0x1f1] = SETUP / 512 - 1;
    set32(k + 0x1f4, CODE / 16);
    set16(k + 0x1fe, 0xaa55);
    k[0x200] = 0xeb;
    k[0x201] = 0x6a;
    memcpy(k + 0x202, "HdrS", 4);
    set16(k + 0x206, 0x20f);
    k[0x211] = 0x81;
    set32(k + 0x22c, 0x7fffffff);
    set16(k + 0x236, 1);
    set32(k + 0x238, 2047);
    set64(k + 0x250, 0xdead); // setup_data of the file must not survive
    set64(k + 0x258, LOAD);
    set32(k + 0x260, (uint32_t)INIT);
    return k;
}

static char message[200];
static struct loader_entry entry;

static struct loader_input in; // of the last load

static int try_again(void)
{
    yields = 0;
    unyielded_bytes = 0;
    memset(message, 0, sizeof(message));
    memset(&entry, 0, sizeof(entry));
    return loader_linux(&in, &entry, message, sizeof(message));
}

static int load_with(const uint8_t *kernel, uint64_t size, const uint8_t *initrd,
                     uint64_t initrd_size, const char *cmdline)
{
    in = (struct loader_input){.memory = memory_size,
                               .kernel = kernel,
                               .kernel_size = size,
                               .initrd = initrd,
                               .initrd_size = initrd_size,
                               .cmdline = cmdline};
    forget_memory();
    return try_again();
}

static void assert_message(const char *part)
{
    if (strstr(message, part) == NULL)
        fail_msg("message \"%s\" lacks \"%s\"", message, part);
    assert_null(strchr(message, '\n'));
}

static void assert_no_page_written(void)
{
    for (unsigned i = 0; i < ARRAY_SIZE(pages); i++)
        assert_null(pages[i]);
}

static int setup(void **state)
{
    (void)state;
    memory_size = 64 * MIB;
    writes_left = -1;
    return 0;
}

static int teardown(void **state)
{
    (void)state;
    forget_memory();
    return 0;
}

// Walks the guest's page tables as the CPU would.
static uint64_t translate(uint64_t cr3, uint64_t address)
{
    uint64_t table = cr3;
    for (unsigned level = 3; level >= 1; level--) {
        uint64_t e;
        read_memory(table + 8 * ((address >> (12 + 9 * level)) & 511), &e, 8);
        assert_true((e & 3) == 3);
        table = e & UINT64_C(0xffffffffff000);
        if (e & 0x80) {
            assert_int_equal(level, 1);
            return (e & UINT64_C(0xfffffffe00000)) + (address & (2 * MIB - 1));
        }
    }
    fail_msg("a 4 KiB page");
    return 0;
}

static void check_e820(const uint8_t *page)
{
    struct {
        uint64_t from, to;
        uint32_t type;
    } expected[5] = {{0, 0x9fc00, 1},
                     {0x9fc00, 0xa0000, 2},
                     {0xe0000, 0x100000, 2},
                     {0x100000, MIN(memory_size, LAYOUT_HOLE), 1},
                     {LAYOUT_ABOVE_4G, LAYOUT_ABOVE_4G + memory_size - LAYOUT_HOLE, 1}};
    unsigned count = memory_size > LAYOUT_HOLE ? 5 : 4;
    assert_int_equal(page[0x1e8], count);
    for (unsigned i = 0; i < count; i++) {
        const uint8_t *e = page + 0x2d0 + 20 * i;
        uint64_t from, size;
        uint32_t type;
        memcpy(&from, e, 8);
        memcpy(&size, e + 8, 8);
        memcpy(&type, e + 16, 4);
        assert_int_equal(from, expected[i].from);
        assert_int_equal(from + size, expected[i].to);
        assert_int_equal(type, expected[i].type);
    }
}

static void check_entry(void)
{
    assert_int_equal(entry.code_selector, 0x10);
    assert_int_equal(entry.data_selector, 0x18);
    assert_int_equal(entry.gdt_limit, 31);
    uint64_t gdt[4];
    read_memory(entry.gdt_base, gdt, sizeof(gdt));
    assert_int_equal(gdt[0], 0);
    assert_int_equal(gdt[2], UINT64_C(0x00af9b000000ffff));
    assert_int_equal(gdt[3], UINT64_C(0x00cf93000000ffff));
    static const uint64_t probes[] = {0, 0x7000, LOAD + 0x200, 0xbffff123, 0xfee00020, 0xffffffff};
    for (unsigned i = 0; i < ARRAY_SIZE(probes); i++)
        assert_int_equal(translate(entry.cr3, probes[i]), probes[i]);
}

static void check_zero_page(const uint8_t *kernel, const uint8_t *initrd, uint64_t initrd_size,
                            const char *cmdline)
{
    uint8_t page[PAGE_SIZE];
    read_memory(entry.rsi, page, sizeof(page));
    assert_memory_equal(page + 0x1f1, kernel + 0x1f1, 0x210 - 0x1f1);
    assert_int_equal(page[0x1ef], 0); // the sentinel
    assert_int_equal(page[0x210], 0xff);
    uint32_t at, size, line;
    uint64_t rsdp, setup_data;
    memcpy(&rsdp, page + 0x70, 8);
    memcpy(&at, page + 0x218, 4);
    memcpy(&size, page + 0x21c, 4);
    memcpy(&line, page + 0x228, 4);
    memcpy(&setup_data, page + 0x250, 8);
    assert_int_equal(rsdp, ACPI_RSDP);
    assert_int_equal(setup_data, 0);
    check_e820(page);

    char copy[VM_CMDLINE_MAX];
    read_memory(line, copy, strlen(cmdline) + 1);
    assert_string_equal(copy, cmdline);

    assert_int_equal(size, initrd_size);
    if (initrd_size == 0) {
        assert_int_equal(at, 0);
        return;
    }
    assert_int_equal(at & PAGE_MASK, 0);
    // At the top: one page higher would not fit.
    uint32_t max;
    memcpy(&max, kernel + 0x22c, 4);
    uint64_t top = MIN(MIN(memory_size, LAYOUT_HOLE), (uint64_t)max + 1);
    assert_true(at + initrd_size <= top && at + initrd_size + PAGE_SIZE > top);
    uint8_t *loaded = malloc(initrd_size);
    read_memory(at, loaded, initrd_size);
    assert_memory_equal(loaded, initrd, initrd_size);
    free(loaded);
}

static void good_kernel(void **state)
{
    (void)state;
    static const uint64_t sizes[] = {32 * MIB, 64 * MIB, 3 * GIB, 3 * GIB + 4096, 8 * GIB};
    uint8_t *k = make_kernel();
    uint8_t *initrd = malloc(300001);
    for (unsigned i = 0; i < 300001; i++)
        initrd[i] = (uint8_t)(i >> 3);
    for (unsigned i = 0; i < ARRAY_SIZE(sizes); i++) {
        memory_size = sizes[i];
        assert_int_equal(load_with(k, SETUP + CODE, initrd, 300001, "console=ttyS0 nokaslr"), 0);
        assert_int_equal(entry.rip, LOAD + 0x200);
        check_entry();
        check_zero_page(k, initrd, 300001, "console=ttyS0 nokaslr");
        uint8_t *code = malloc(CODE);
        read_memory(LOAD, code, CODE);
        assert_memory_equal(code, k + SETUP, CODE);
        free(code);
        assert_true(yields >= CODE / (64 * KIB) + 300001 / (64 * KIB));
        uint16_t bios[3];
        read_memory(0x40e, bios, 6);
        assert_int_equal(bios[0], 0x9fc0);
    }
    assert_int_equal(load_with(k, SETUP + CODE, NULL, 0, ""), 0);
    check_zero_page(k, NULL, 0, "");
    free(initrd);
    free(k);
}

static void truncated_everywhere(void **state)
{
    (void)state;
    uint8_t *k = make_kernel();
    for (uint64_t size = 0; size < SETUP + CODE; size += size < 2 * SETUP ? 1 : 997) {
        uint8_t *copy = malloc(size == 0 ? 1 : size);
        memcpy(copy, k, size);
        assert_int_equal(load_with(copy, size, NULL, 0, ""), E_FORMAT);
        assert_message("kernel: truncated: the ");
        assert_no_page_written();
        free(copy);
    }
    assert_int_equal(load_with(k, SETUP + CODE - 1, NULL, 0, ""), E_FORMAT);
    assert_message("kernel: truncated: the header promises 201040 bytes, the file has 201039");
    free(k);
}

struct bad {
    unsigned offset, bytes;
    uint64_t value;
    int error;
    const char *says;
};

static void bad_headers(void **state)
{
    (void)state;
    static const struct bad cases[] = {
        {0x1fe, 2, 0x55aa, E_FORMAT, "not a Linux bzImage"},
        {0x202, 1, 'h', E_FORMAT, "not a Linux bzImage"},
        {0x206, 2, 0x20b, E_NOSYS, "boot protocol 2.11 is too old"},
        {0x236, 2, 0xfffe, E_NOSYS, "not a 64-bit kernel"},
        {0x211, 1, 0, E_NOSYS, "zImage"},
        {0x201, 1, 0x10, E_FORMAT, "the header ends at"},
        {0x201, 1, 0x8f, E_FORMAT, "the header ends at"},
        {0x1f1, 1, 0, E_FORMAT, "truncated"},
        {0x1f1, 1, 255, E_FORMAT, "truncated"},
        {0x1f4, 4, 0xffffffff, E_FORMAT, "truncated"},
        {0x1f4, 4, 0x20, E_FORMAT, "no 64-bit entry"},
        {0x1f4, 4, 0, E_FORMAT, "no 64-bit entry"},
        {0x258, 8, 0xf0000, E_FORMAT, "wants to load at 0xf0000"},
        {0x258, 8, 0x100800, E_FORMAT, "wants to load at"},
        {0x258, 8, 0, E_FORMAT, "wants to load at"},
        {0x258, 8, 0xfffffffffffff000, E_RANGE, "too big"},
        {0x258, 8, 0x3ffe000, E_RANGE, "too big"},
        {0x260, 4, 0xffffffff, E_RANGE,
         "kernel: too big: it needs 4194304 kB at 0x1000000, low "
         "memory ends at 65536 kB"},
        {0x260, 4, 4096, E_FORMAT, "in an init_size of 4096"},
        {0x260, 4, (48 << 20) + 1, E_RANGE, "too big"},
    };
    for (unsigned i = 0; i < ARRAY_SIZE(cases); i++) {
        uint8_t *k = make_kernel();
        memcpy(k + cases[i].offset, &cases[i].value, cases[i].bytes);
        assert_int_equal(load_with(k, SETUP + CODE, NULL, 0, ""), cases[i].error);
        assert_message("kernel: ");
        assert_message(cases[i].says);
        assert_no_page_written();
        free(k);
    }
    uint8_t *k = make_kernel();
    set32(k + 0x260, 48u << 20); // fits exactly
    assert_int_equal(load_with(k, SETUP + CODE, NULL, 0, ""), 0);
    free(k);
}

static void initrd_limits(void **state)
{
    (void)state;
    uint8_t *k = make_kernel();
    uint64_t room = memory_size - LOAD - INIT;
    uint8_t *initrd = calloc(1, room + 1);
    assert_int_equal(load_with(k, SETUP + CODE, initrd, room, ""), 0);
    check_zero_page(k, initrd, room, "");
    assert_int_equal(load_with(k, SETUP + CODE, initrd, room + 1, ""), E_RANGE);
    assert_message("initrd: too big: it has 40961 kB, above the kernel are 40960 kB");
    assert_no_page_written();

    set32(k + 0x22c, 0x1c00fff); // initrd_addr_max: 4 MiB and a page above the kernel
    assert_int_equal(load_with(k, SETUP + CODE, initrd, 4 * MIB, ""), 0);
    check_zero_page(k, initrd, 4 * MIB, "");
    assert_int_equal(load_with(k, SETUP + CODE, initrd, 4 * MIB + 4097, ""), E_RANGE);
    set32(k + 0x22c, 0x100000);
    assert_int_equal(load_with(k, SETUP + CODE, initrd, 1, ""), E_RANGE);
    assert_message("above the kernel are 0 kB");
    free(initrd);
    free(k);
}

static void cmdline_limits(void **state)
{
    (void)state;
    uint8_t *k = make_kernel();
    char line[VM_CMDLINE_MAX + 1];
    memset(line, 'x', sizeof(line));
    line[sizeof(line) - 1] = 0;
    assert_int_equal(load_with(k, SETUP + CODE, NULL, 0, line), E_RANGE);
    assert_message("cmdline: too long: this kernel takes 2047 characters");
    line[2047] = 0;
    assert_int_equal(load_with(k, SETUP + CODE, NULL, 0, line), 0);
    check_zero_page(k, NULL, 0, line);
    set32(k + 0x238, 255);
    line[256] = 0;
    assert_int_equal(load_with(k, SETUP + CODE, NULL, 0, line), E_RANGE);
    assert_message("takes 255 characters");
    line[255] = 0;
    assert_int_equal(load_with(k, SETUP + CODE, NULL, 0, line), 0);
    free(k);
}

// Whatever stands in the header: an error with a line and no memory touched, or a load whose
// entry lies in RAM.
static void random_headers(void **state)
{
    (void)state;
    srand(4711);
    uint8_t initrd[5000] = {1};
    unsigned loaded = 0;
    for (unsigned round = 0; round < 20000; round++) {
        uint8_t *k = make_kernel();
        unsigned changes = 1 + (unsigned)rand() % 4;
        for (unsigned i = 0; i < changes; i++)
            k[0x1f1 + (unsigned)rand() % (0x270 - 0x1f1)] = (uint8_t)rand();
        uint64_t size = SETUP + CODE;
        if (rand() % 8 == 0) {
            size = (unsigned)rand() % size;
            k = realloc(k, size == 0 ? 1 : size);
        }
        int error = load_with(k, size, initrd, sizeof(initrd), "a=b");
        if (error == 0) {
            loaded++;
            assert_true(is_memory(entry.rip, 1));
        } else {
            assert_true(error == E_FORMAT || error == E_NOSYS || error == E_RANGE);
            assert_true(strlen(message) > 10);
            assert_null(strchr(message, '\n'));
            assert_no_page_written();
        }
        free(k);
    }
    assert_true(loaded > 100 && loaded < 19900);
}

static void no_memory(void **state)
{
    (void)state;
    uint8_t *k = make_kernel();
    uint8_t initrd[100] = {1};
    int error;
    int64_t n = 0;
    do {
        writes_left = n++;
        error = load_with(k, SETUP + CODE, initrd, sizeof(initrd), "x");
        if (error != 0) {
            assert_int_equal(error, E_NOMEM);
            assert_message("no free memory");
        }
    } while (error != 0);
    // GDT, two BIOS words, 6 page tables, zero page, command line, 49 pages of code, initrd.
    assert_int_equal(n - 1, 61);
    free(k);
}

// What the guest's memory looks like, as one number.
static uint64_t fingerprint(void)
{
    uint64_t sum = 0;
    for (unsigned i = 0; i < ARRAY_SIZE(pages); i++)
        for (const struct page *p = pages[i]; p != NULL; p = p->next) {
            uint64_t hash = p->number;
            for (unsigned k = 0; k < PAGE_SIZE; k++)
                hash = hash * UINT64_C(0x100000001b3) + p->bytes[k];
            sum += hash;
        }
    return sum;
}

// Memory comes in drops of every size: each try goes on where the last one stopped, writes nothing
// twice, and ends with what one try would have written.
static void goes_on(void **state)
{
    (void)state;
    uint8_t *k = make_kernel();
    uint8_t *initrd = malloc(50000);
    for (unsigned i = 0; i < 50000; i++)
        initrd[i] = (uint8_t)(i * 13 + (i >> 9));
    assert_int_equal(load_with(k, SETUP + CODE, initrd, 50000, "x"), 0);
    uint64_t expected = fingerprint(), bytes = in.done;
    struct loader_entry expected_entry = entry;
    for (int64_t drop = 1; drop < 80; drop++) {
        unsigned tries = 1;
        writes_left = drop;
        int error = load_with(k, SETUP + CODE, initrd, 50000, "x");
        while (error == E_NOMEM) {
            assert_int_equal(writes_left, 0);
            assert_message("no free memory");
            uint64_t before = in.done;
            assert_int_equal(try_again(), E_NOMEM); // nothing has come
            assert_int_equal(in.done, before);
            writes_left = drop;
            error = try_again();
            assert_true(in.done > before);
            tries++;
        }
        assert_int_equal(error, 0);
        assert_int_equal(tries, (73 + drop - 1) / drop);
        assert_int_equal(in.done, bytes);
        assert_int_equal(fingerprint(), expected);
        assert_memory_equal(&entry, &expected_entry, sizeof(entry));
    }
    free(initrd);
    free(k);
}

// --- The files that are really booted. ---

static uint8_t *read_file(const char *path, uint64_t *size)
{
    FILE *f = fopen(path, "rb");
    if (f == NULL)
        return NULL;
    fseek(f, 0, SEEK_END);
    *size = (uint64_t)ftell(f);
    rewind(f);
    uint8_t *bytes = malloc(*size);
    assert_int_equal(fread(bytes, 1, *size, f), *size);
    fclose(f);
    return bytes;
}

static void load_file(const char *path, uint64_t memory)
{
    uint64_t size;
    uint8_t *k = read_file(path, &size);
    if (k == NULL) {
        print_message("skipped: %s is not there\n", path);
        skip();
    }
    memory_size = memory;
    if (load_with(k, size, NULL, 0, "test=hello") != 0)
        fail_msg("%s: %s", path, message);
    check_zero_page(k, NULL, 0, "test=hello");
    uint64_t setup_size = (k[0x1f1] + 1u) * 512u;
    uint8_t code[64];
    read_memory(entry.rip, code, sizeof(code));
    assert_memory_equal(code, k + setup_size + 0x200, sizeof(code));
    free(k);
}

static void debian_kernel(void **state)
{
    (void)state;
    load_file("build/guest/vmlinuz", 256 * MIB);
}

static void bare_guest(void **state)
{
    (void)state;
    load_file("build/guest/bare.bin", 4 * MIB);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(good_kernel, setup, teardown),
        cmocka_unit_test_setup_teardown(truncated_everywhere, setup, teardown),
        cmocka_unit_test_setup_teardown(bad_headers, setup, teardown),
        cmocka_unit_test_setup_teardown(initrd_limits, setup, teardown),
        cmocka_unit_test_setup_teardown(cmdline_limits, setup, teardown),
        cmocka_unit_test_setup_teardown(random_headers, setup, teardown),
        cmocka_unit_test_setup_teardown(no_memory, setup, teardown),
        cmocka_unit_test_setup_teardown(goes_on, setup, teardown),
        cmocka_unit_test_setup_teardown(debian_kernel, setup, teardown),
        cmocka_unit_test_setup_teardown(bare_guest, setup, teardown),
    };
    return cmocka_run_group_tests_name("loader", tests, NULL, NULL);
}
