// SPDX-License-Identifier: BSD-2-Clause
// Memory maps as firmware really makes them: unsorted, fragmented, overlapping, with long
// descriptors.
// sources: kernel/boot_memory.c
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#include "kernel/boot_memory.h"
#include "kernel/error.h"

enum { RESERVED, LOADER_CODE, LOADER_DATA, BS_CODE, BS_DATA, RT_CODE, RT_DATA, CONVENTIONAL };
#define ACPI_NVS 10u
#define WB       UINT64_C(0xf)
#define UC       UINT64_C(0x1)
#define SPECIAL  UINT64_C(0x40000)

#define MAX_DESCRIPTORS 600u

// The map under test, packed with any descriptor size, in a heap block of exactly its size, so that
// ASan sees a read behind the end.
static uint8_t *bytes;
static uint64_t stride;
static unsigned descriptors;
static struct boot_memory memory;

static void begin(uint64_t descriptor_size)
{
    free(bytes);
    bytes = NULL;
    stride = descriptor_size;
    descriptors = 0;
}

static void add(uint32_t type, uint64_t start, uint64_t pages, uint64_t attribute)
{
    bytes = realloc(bytes, (descriptors + 1) * stride);
    uint8_t *d = bytes + descriptors++ * stride;
    uint64_t words[5] = {type, start, 0, pages, attribute};
    memset(d, 0xee, stride);
    memcpy(d, words, sizeof(words));
}

static void ready(void)
{
    assert_int_equal(boot_memory_init(&memory, bytes, descriptors * stride, stride), 0);
}

static void expect(uint64_t *from, uint64_t first, uint64_t count, enum boot_piece_kind kind)
{
    struct boot_piece p;
    assert_true(boot_memory_next(&memory, *from, &p));
    assert_int_equal(p.first, first);
    assert_int_equal(p.count, count);
    assert_int_equal(p.kind, kind);
    *from = p.first + p.count;
}

static void expect_end(uint64_t from)
{
    struct boot_piece p;
    assert_false(boot_memory_next(&memory, from, &p));
}

static void test_types(void **state)
{
    (void)state;
    begin(48);
    // Page 0 is left out; neighbours of all usable types join; the rest does not count.
    add(CONVENTIONAL, 0, 0x10, WB);
    add(LOADER_CODE, 0x10000, 1, WB);
    add(LOADER_DATA, 0x11000, 1, WB);
    add(BS_CODE, 0x12000, 1, WB);
    add(BS_DATA, 0x13000, 1, WB);
    add(RT_CODE, 0x14000, 1, WB);
    add(RT_DATA, 0x15000, 1, WB);
    add(ACPI_NVS, 0x16000, 1, WB);
    add(RESERVED, 0x17000, 1, WB);
    add(CONVENTIONAL, 0x18000, 2, UC);
    add(CONVENTIONAL, 0x1a000, 1, WB | SPECIAL);
    add(CONVENTIONAL, 0x1b000, 1, WB);
    add(CONVENTIONAL, 0x1c000, 0, WB);
    ready();
    uint64_t at = 0;
    expect(&at, 1, 0x13, BOOT_PIECE_FREE);
    expect(&at, 0x1b, 1, BOOT_PIECE_FREE);
    expect_end(at);
    assert_int_equal(boot_memory_end(&memory), 0x1c);
    assert_int_equal(boot_memory_runtime_end(&memory), 0x16000);
}

static void test_unsorted_overlapping(void **state)
{
    (void)state;
    begin(40);
    add(CONVENTIONAL, 0x900000, 0x100, WB);
    add(RESERVED, 0x180000, 0x10, UC);      // in the middle of the next
    add(CONVENTIONAL, 0x100000, 0x100, WB); // 0x100..0x200
    add(LOADER_DATA, 0x1f0000, 0x20, WB);   // overlaps its end
    add(RT_DATA, 0x20f000, 0x10, WB);       // overlaps that one's end
    ready();
    uint64_t at = 0;
    expect(&at, 0x100, 0x80, BOOT_PIECE_FREE);
    expect(&at, 0x190, 0x7f, BOOT_PIECE_FREE);
    expect(&at, 0x900, 0x100, BOOT_PIECE_FREE);
    expect_end(at);
}

static void test_reserved(void **state)
{
    (void)state;
    begin(48);
    add(CONVENTIONAL, 0x100000, 0x100, WB);
    ready();
    assert_int_equal(boot_memory_reserve(&memory, 0x110000, 0x1001, BOOT_PIECE_USED), 0);
    assert_int_equal(boot_memory_reserve(&memory, 0x111800, 0x100, BOOT_PIECE_FILES), 0);
    assert_int_equal(boot_memory_reserve(&memory, 0x111800, 0x100, BOOT_PIECE_FILES), 0);
    assert_int_equal(boot_memory_reserve(&memory, 0x1ff000, 0x5000, BOOT_PIECE_USED), 0);
    assert_int_equal(boot_memory_reserve(&memory, 0x5000, 0, BOOT_PIECE_USED), 0);
    assert_int_equal(boot_memory_reserve(&memory, UINT64_MAX, 2, BOOT_PIECE_USED), E_RANGE);
    uint64_t at = 0;
    expect(&at, 0x100, 0x10, BOOT_PIECE_FREE);
    expect(&at, 0x110, 1, BOOT_PIECE_USED);
    expect(&at, 0x111, 1, BOOT_PIECE_FILES);
    expect(&at, 0x112, 0xed, BOOT_PIECE_FREE);
    expect(&at, 0x1ff, 1, BOOT_PIECE_USED);
    expect_end(at);
}

static void test_reserve_full(void **state)
{
    (void)state;
    begin(48);
    add(CONVENTIONAL, 0x100000, 0x10000, WB);
    ready();
    for (uint64_t i = 0; i < BOOT_MEMORY_RESERVED; i++)
        assert_int_equal(
            boot_memory_reserve(&memory, 0x100000 + i * 0x2000, 0x1000, BOOT_PIECE_USED), 0);
    assert_int_equal(boot_memory_reserve(&memory, 0x4000000, 1, BOOT_PIECE_USED), E_NOMEM);
    // What touches the last entry still fits.
    uint64_t end = 0x100000 + (BOOT_MEMORY_RESERVED - 1) * 0x2000 + 0x1000;
    assert_int_equal(boot_memory_reserve(&memory, end, 0x1000, BOOT_PIECE_USED), 0);
    // A single free frame before it does not.
    uint64_t first;
    assert_int_equal(boot_memory_take(&memory, 1, UINT64_MAX, &first), E_NOMEM);
}

static void test_take(void **state)
{
    (void)state;
    begin(48);
    add(CONVENTIONAL, 0, 3, WB);           // frames 1, 2
    add(LOADER_DATA, 0x3000, 0x1d, WB);    // the boot stage lives there
    add(BS_DATA, 0x20000, 0x20, WB);       // and there
    add(CONVENTIONAL, 0x40000, 0x10, WB);  // 0x40..0x50
    add(RESERVED, 0x50000, 1, WB);         //
    add(CONVENTIONAL, 0x51000, 0x100, WB); // 0x51..0x151
    ready();
    uint64_t first;
    assert_int_equal(boot_memory_take(&memory, 1, 256, &first), 0);
    assert_int_equal(first, 1);
    assert_int_equal(boot_memory_take(&memory, 0x11, 256, &first), 0);
    assert_int_equal(first, 0x51);
    assert_int_equal(boot_memory_take(&memory, 0x10, 256, &first), 0);
    assert_int_equal(first, 0x40);
    assert_int_equal(boot_memory_take(&memory, 0x40, 0x80, &first), E_NOMEM); // below the limit
    assert_int_equal(boot_memory_take(&memory, 0x40, 0x100, &first), 0);
    assert_int_equal(first, 0x62);
    assert_int_equal(boot_memory_take(&memory, 0x200, UINT64_MAX, &first), E_NOMEM);
    assert_int_equal(boot_memory_take(&memory, 0, UINT64_MAX, &first), E_NOMEM);
    uint64_t at = 0;
    expect(&at, 1, 1, BOOT_PIECE_USED);
    expect(&at, 2, 0x3e, BOOT_PIECE_FREE);
    expect(&at, 0x40, 0x10, BOOT_PIECE_USED);
    expect(&at, 0x51, 0x51, BOOT_PIECE_USED);
}

static void test_malformed(void **state)
{
    (void)state;
    begin(48);
    add(CONVENTIONAL, 0x100000, 0x10, WB);
    assert_int_equal(boot_memory_init(&memory, NULL, 48, 48), E_FORMAT);
    assert_int_equal(boot_memory_init(&memory, bytes, 48, 0), E_FORMAT);
    assert_int_equal(boot_memory_init(&memory, bytes, 48, 39), E_FORMAT);
    assert_int_equal(boot_memory_init(&memory, bytes, 47, 48), E_FORMAT);
    assert_int_equal(boot_memory_init(&memory, bytes, 0, 48), E_FORMAT);
    assert_int_equal(boot_memory_init(&memory, bytes, 1 << 20, 1 << 20), E_FORMAT);

    // Lengths and addresses that would wrap, and starts that are not aligned.
    begin(43);
    add(CONVENTIONAL, UINT64_C(0xfffffffffffff000), UINT64_MAX, WB);
    add(CONVENTIONAL, 0x100800, 3, WB);
    add(CONVENTIONAL, 0x200000, 0x10, WB);
    add(RESERVED, 0x207fff, 1, WB);
    ready();
    uint64_t at = 0;
    expect(&at, 0x101, 2, BOOT_PIECE_FREE);
    expect(&at, 0x200, 7, BOOT_PIECE_FREE);
    expect(&at, 0x209, 7, BOOT_PIECE_FREE);
    expect_end(at);
}

// Against a plain model: one byte per frame.
static void test_random(void **state)
{
    (void)state;
    enum { FRAMES = 512 };
    static const uint32_t types[] = {CONVENTIONAL, CONVENTIONAL, BS_DATA, RESERVED, LOADER_DATA};
    srand(7);
    for (unsigned round = 0; round < 300; round++) {
        uint8_t model[FRAMES] = {0}; // 1 usable, 2 forbidden
        begin(40 + (uint64_t)(rand() % 4) * 8);
        unsigned count = 1 + (unsigned)rand() % 30;
        for (unsigned i = 0; i < count; i++) {
            uint32_t type = types[(unsigned)rand() % 5];
            uint64_t first = (uint64_t)rand() % FRAMES, pages = (uint64_t)rand() % 40;
            add(type, first << 12, pages, WB);
            for (uint64_t n = first; n < first + pages && n < FRAMES; n++)
                model[n] = type == RESERVED || model[n] == 2 ? 2 : 1;
        }
        ready();
        uint8_t kind[FRAMES] = {0};
        for (unsigned i = 0; i < 6; i++) {
            uint64_t first = (uint64_t)rand() % FRAMES, pages = 1 + (uint64_t)rand() % 20;
            unsigned k = 1 + (unsigned)rand() % 2;
            assert_int_equal(boot_memory_reserve(&memory, first << 12, pages << 12, k), 0);
            for (uint64_t n = first; n < first + pages && n < FRAMES; n++)
                kind[n] = (uint8_t)MAX(kind[n], k);
        }
        model[0] = 2;
        struct boot_piece p;
        uint64_t at = 0;
        while (boot_memory_next(&memory, at, &p)) {
            assert_true(p.count > 0);
            for (uint64_t n = at; n < p.first && n < FRAMES; n++)
                assert_int_not_equal(model[n], 1);
            for (uint64_t n = p.first; n < p.first + p.count && n < FRAMES; n++) {
                assert_int_equal(model[n], 1);
                assert_int_equal(kind[n], p.kind);
            }
            at = p.first + p.count;
        }
        for (uint64_t n = at; n < FRAMES; n++)
            assert_int_not_equal(model[n], 1);
    }
}

static void test_fragmented(void **state)
{
    (void)state;
    begin(48);
    for (uint64_t i = MAX_DESCRIPTORS; i-- > 0;)
        add(i % 2 == 0 ? CONVENTIONAL : RT_DATA, 0x100000 + i * 0x1000, 1, WB);
    ready();
    uint64_t at = 0;
    for (uint64_t i = 0; i < MAX_DESCRIPTORS; i += 2)
        expect(&at, 0x100 + i, 1, BOOT_PIECE_FREE);
    expect_end(at);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_types),    cmocka_unit_test(test_unsorted_overlapping),
        cmocka_unit_test(test_reserved), cmocka_unit_test(test_reserve_full),
        cmocka_unit_test(test_take),     cmocka_unit_test(test_malformed),
        cmocka_unit_test(test_random),   cmocka_unit_test(test_fragmented),
    };
    int failed = cmocka_run_group_tests(tests, NULL, NULL);
    free(bytes);
    return failed;
}
