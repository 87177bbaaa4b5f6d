// SPDX-License-Identifier: BSD-2-Clause
// The firmware's ACPI tables, good and broken.
// sources: kernel/acpi.c
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#include "kernel/acpi.h"
#include "kernel/error.h"

// "Physical memory" of the test: a few blocks, each of exactly its size. A mapping is a copy of
// exactly the bytes asked for, so that ASan sees a read behind the end.
#define BLOCKS 12

static struct {
    uint64_t base;
    uint8_t bytes[512];
    size_t size;
} blocks[BLOCKS];
static unsigned block_count;
static void *copies[256];
static unsigned copy_count;
static struct acpi_machine machine;

static const void *mapper(uint64_t base, uint64_t size)
{
    for (unsigned i = 0; i < block_count; i++) {
        if (base < blocks[i].base || base + size > blocks[i].base + blocks[i].size)
            continue;
        void *copy = malloc(size);
        memcpy(copy, blocks[i].bytes + (base - blocks[i].base), size);
        copies[copy_count++] = copy;
        return copy;
    }
    return NULL;
}

static void put(uint8_t *bytes, unsigned offset, unsigned width, uint64_t value)
{
    for (unsigned i = 0; i < width; i++)
        bytes[offset + i] = (uint8_t)(value >> (8 * i));
}

static void seal(uint8_t *bytes, size_t size, unsigned at)
{
    uint8_t sum = 0;
    bytes[at] = 0;
    for (size_t i = 0; i < size; i++)
        sum = (uint8_t)(sum + bytes[i]);
    bytes[at] = (uint8_t)-sum;
}

static uint8_t *block(uint64_t base, size_t size)
{
    assert_true(block_count < BLOCKS && size <= sizeof(blocks[0].bytes));
    blocks[block_count].base = base;
    blocks[block_count].size = size;
    memset(blocks[block_count].bytes, 0, sizeof(blocks[0].bytes));
    return blocks[block_count++].bytes;
}

static uint8_t *table(uint64_t base, const char *signature, size_t size)
{
    uint8_t *t = block(base, size);
    memcpy(t, signature, 4);
    put(t, 4, 4, size);
    return t;
}

#define RSDP 0xe0000u
#define XSDT 0x10000u
#define MADT 0x11000u
#define FADT 0x12000u
#define HPET 0x13000u
#define DSDT 0x14000u

static int tear_down(void **state)
{
    (void)state;
    while (copy_count > 0)
        free(copies[--copy_count]);
    block_count = 0;
    return 0;
}

static void make_root(unsigned revision)
{
    uint8_t *p = block(RSDP, revision >= 2 ? 36 : 20);
    memcpy(p, "RSD PTR ", 8);
    p[15] = (uint8_t)revision;
    put(p, 16, 4, XSDT);
    seal(p, 20, 8);
    if (revision >= 2) {
        put(p, 20, 4, 36);
        put(p, 24, 8, XSDT);
        seal(p, 36, 32);
    }
    unsigned width = revision >= 2 ? 8 : 4;
    uint8_t *root = table(XSDT, revision >= 2 ? "XSDT" : "RSDT", 36 + 4 * width);
    put(root, 36, width, MADT);
    put(root, 36 + width, width, FADT);
    put(root, 36 + 2 * width, width, HPET);
    put(root, 36 + 3 * width, width, 0x99000); // not there
    seal(root, 36 + 4 * width, 9);
}

static uint8_t *make_madt(void)
{
    uint8_t *m = table(MADT, "APIC", 44 + 12 + 10 + 10 + 8);
    uint8_t *e = m + 44;
    e[0] = 1, e[1] = 12;
    put(e, 4, 4, 0xfec00000);
    put(e, 8, 4, 0);
    e += 12;
    e[0] = 2, e[1] = 10, e[3] = 0;
    put(e, 4, 4, 2);
    e += 10;
    e[0] = 2, e[1] = 10, e[3] = 9;
    put(e, 4, 4, 9);
    put(e, 8, 2, 0xf); // level, low
    e += 10;
    e[0] = 0, e[1] = 8;
    seal(m, 84, 9);
    return m;
}

static uint8_t *make_fadt(void)
{
    uint8_t *f = table(FADT, "FACP", 244);
    put(f, 40, 4, DSDT);
    put(f, 64, 4, 0x604);
    put(f, 76, 4, 0x608);
    f[91] = 4;
    put(f, 112, 4, 1u << 10 | 1u << 8);
    f[116] = 1, f[117] = 8;
    put(f, 120, 8, 0xcf9);
    f[128] = 0x0f;
    seal(f, 244, 9);
    return f;
}

static void make_dsdt(const uint8_t *aml, size_t size)
{
    uint8_t *d = table(DSDT, "DSDT", 36 + size);
    memcpy(d + 36, aml, size);
    seal(d, 36 + size, 9);
}

static const uint8_t s5[] = {0x10, 0, 0x08, '_', 'S', '5', '_', 0x12, 6, 4, 0x0a, 5, 1, 0, 0};

static void make_hpet(void)
{
    uint8_t *h = table(HPET, "HPET", 56);
    put(h, 44, 8, 0xfed00000);
    seal(h, 56, 9);
}

static void make_all(unsigned revision)
{
    make_root(revision);
    make_madt();
    make_fadt();
    make_dsdt(s5, sizeof(s5));
    make_hpet();
}

static void check_all(void)
{
    assert_int_equal(machine.ioapic_count, 1);
    assert_int_equal(machine.ioapics[0].base, 0xfec00000);
    assert_int_equal(machine.isa[0].gsi, 2);
    assert_false(machine.isa[0].level);
    assert_int_equal(machine.isa[4].gsi, 4);
    assert_true(machine.isa[9].level && machine.isa[9].active_low);
    assert_int_equal(machine.pm_timer.address, 0x608);
    assert_true(machine.pm_timer_32);
    assert_int_equal(machine.reset.address, 0xcf9);
    assert_false(machine.reset.memory);
    assert_int_equal(machine.reset_value, 0x0f);
    assert_true(machine.has_s5);
    assert_int_equal(machine.s5_type_a, 5);
    assert_int_equal(machine.s5_type_b, 1);
    assert_int_equal(machine.pm1a_control, 0x604);
    assert_int_equal(machine.hpet, 0xfed00000);
}

static void test_good(void **state)
{
    (void)state;
    make_all(2);
    assert_int_equal(acpi_parse(RSDP, mapper, &machine), 0);
    check_all();
}

static void test_acpi1(void **state)
{
    (void)state;
    make_all(0);
    assert_int_equal(acpi_parse(RSDP, mapper, &machine), 0);
    check_all();
}

static void test_none(void **state)
{
    (void)state;
    assert_int_equal(acpi_parse(0, mapper, &machine), E_FORMAT);
    assert_int_equal(acpi_parse(RSDP, mapper, &machine), E_FORMAT);
    assert_int_equal(machine.isa[4].gsi, 4); // a plain PC
    make_all(2);
    blocks[0].bytes[3] ^= 1;
    assert_int_equal(acpi_parse(RSDP, mapper, &machine), E_FORMAT);
    blocks[0].bytes[3] ^= 1;
    blocks[1].bytes[40] ^= 1;
    assert_int_equal(acpi_parse(RSDP, mapper, &machine), E_FORMAT);
}

static void test_damaged_tables_are_left_out(void **state)
{
    (void)state;
    make_root(2);
    make_madt()[50] ^= 1;
    put(make_fadt(), 4, 4, 0xffffffff);
    make_hpet();
    assert_int_equal(acpi_parse(RSDP, mapper, &machine), 0);
    assert_int_equal(machine.ioapic_count, 0);
    assert_int_equal(machine.reset.address, 0);
    assert_int_equal(machine.hpet, 0xfed00000);
}

static void test_madt_entry_lengths(void **state)
{
    (void)state;
    static const uint8_t lengths[] = {0, 1, 255, 41};
    for (unsigned i = 0; i < sizeof(lengths); i++) {
        make_root(2);
        uint8_t *m = make_madt();
        m[44 + 12 + 1] = lengths[i]; // the second entry
        seal(m, 84, 9);
        assert_int_equal(acpi_parse(RSDP, mapper, &machine), 0);
        assert_int_equal(machine.ioapic_count, 1);
        assert_int_equal(machine.isa[9].gsi, 9);
        assert_false(machine.isa[9].level);
        tear_down(NULL);
    }
}

static void test_old_fadt(void **state)
{
    (void)state;
    make_root(2);
    make_fadt();
    put(blocks[block_count - 1].bytes, 4, 4, 116); // ends before the reset register
    blocks[block_count - 1].size = 116;
    seal(blocks[block_count - 1].bytes, 116, 9);
    assert_int_equal(acpi_parse(RSDP, mapper, &machine), 0);
    assert_int_equal(machine.pm_timer.address, 0x608);
    assert_int_equal(machine.reset.address, 0);
}

static void test_truncated_s5(void **state)
{
    (void)state;
    for (size_t size = 0; size < sizeof(s5); size++) {
        make_root(2);
        make_fadt();
        make_dsdt(s5, size);
        assert_int_equal(acpi_parse(RSDP, mapper, &machine), 0);
        assert_int_equal(machine.has_s5, size >= 12);
        tear_down(NULL);
    }
}

// Any byte may be anything: nothing is read outside what was mapped.
static void test_noise(void **state)
{
    (void)state;
    srand(3);
    for (unsigned round = 0; round < 3000; round++) {
        make_all(round % 3 == 0 ? 0 : 2);
        for (unsigned n = 0; n < 3; n++) {
            unsigned b = 2 + (unsigned)rand() % (block_count - 2);
            size_t at = 10 + (size_t)rand() % (blocks[b].size - 10);
            blocks[b].bytes[at] = (uint8_t)rand();
            seal(blocks[b].bytes, blocks[b].size, 9);
        }
        assert_int_equal(acpi_parse(RSDP, mapper, &machine), 0);
        assert_true(machine.ioapic_count <= ACPI_MAX_IOAPICS);
        tear_down(NULL);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_teardown(test_good, tear_down),
        cmocka_unit_test_teardown(test_acpi1, tear_down),
        cmocka_unit_test_teardown(test_none, tear_down),
        cmocka_unit_test_teardown(test_damaged_tables_are_left_out, tear_down),
        cmocka_unit_test_teardown(test_madt_entry_lengths, tear_down),
        cmocka_unit_test_teardown(test_old_fadt, tear_down),
        cmocka_unit_test_teardown(test_truncated_s5, tear_down),
        cmocka_unit_test_teardown(test_noise, tear_down),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
