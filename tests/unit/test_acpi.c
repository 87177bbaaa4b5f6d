// SPDX-License-Identifier: BSD-2-Clause
// sources: vm/acpi.c
// The guest's ACPI tables: found as an operating system finds them, checksums, contents, and
// disassembled by ACPICA's own iasl.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#include "kernel/error.h"
#include "vm/acpi.h"
#include "vm/layout.h"
#include "vm/memory.h"

static uint8_t low[LAYOUT_HIGH];
static int writes_left;

int guest_write(struct vm *vm, gpa_t to, const void *from, size_t size)
{
    (void)vm;
    if (writes_left-- == 0)
        return E_NOMEM;
    assert_true((to.raw >= LAYOUT_ROM && to.raw + size <= LAYOUT_ROM_END) ||
                (to.raw >= ACPI_EBDA && to.raw + size <= LAYOUT_LOW_END));
    memcpy(low + to.raw, from, size);
    return 0;
}

static uint16_t get16(const uint8_t *at)
{
    uint16_t v;
    memcpy(&v, at, sizeof(v));
    return v;
}

static uint32_t get32(const uint8_t *at)
{
    uint32_t v;
    memcpy(&v, at, sizeof(v));
    return v;
}

static uint64_t get64(const uint8_t *at)
{
    uint64_t v;
    memcpy(&v, at, sizeof(v));
    return v;
}

static unsigned sum(const uint8_t *bytes, size_t size)
{
    unsigned total = 0;
    for (size_t i = 0; i < size; i++)
        total += bytes[i];
    return total & 0xff;
}

static void make(unsigned cpus)
{
    gpa_t rsdp = {0};
    memset(low, 0, sizeof(low));
    writes_left = -1;
    assert_int_equal(acpi_write_tables(NULL, cpus, &rsdp), 0);
    assert_int_equal(rsdp.raw, ACPI_RSDP);
}

// The legacy scan of ACPI 5.2.5.1.
static const uint8_t *scan(void)
{
    for (uint64_t at = 0xe0000; at < 0x100000; at += 16) {
        if (memcmp(low + at, "RSD PTR ", 8) == 0 && sum(low + at, 20) == 0)
            return low + at;
    }
    return NULL;
}

static const uint8_t *check_table(uint64_t address, const char *signature)
{
    assert_true(address >= LAYOUT_ROM && address + 36 <= LAYOUT_ROM_END);
    const uint8_t *t = low + address;
    assert_memory_equal(t, signature, 4);
    assert_true(get32(t + 4) >= 36 && address + get32(t + 4) <= LAYOUT_ROM_END);
    assert_int_equal(sum(t, get32(t + 4)), 0);
    return t;
}

static const uint8_t *find_table(const char *signature)
{
    const uint8_t *rsdp = scan();
    assert_non_null(rsdp);
    assert_int_equal(rsdp[15], 2);
    assert_int_equal(get32(rsdp + 20), 36);
    assert_int_equal(sum(rsdp, 36), 0);
    const uint8_t *xsdt = check_table(get64(rsdp + 24), "XSDT");
    for (unsigned at = 36; at < get32(xsdt + 4); at += 8) {
        uint64_t address = get64(xsdt + at);
        if (memcmp(low + address, signature, 4) == 0)
            return check_table(address, signature);
    }
    return NULL;
}

static void fadt(void **state)
{
    (void)state;
    make(1);
    const uint8_t *f = find_table("FACP");
    assert_non_null(f);
    assert_int_equal(get32(f + 4), 276);
    assert_int_equal(f[8], 6);
    assert_int_equal(get16(f + 46), LAYOUT_SCI);
    assert_int_equal(get32(f + 48), 0); // no SMI command
    assert_int_equal(get32(f + 56), LAYOUT_PM1_EVENT);
    assert_int_equal(get64(f + 152), LAYOUT_PM1_EVENT);
    assert_int_equal(get32(f + 64), LAYOUT_PM1_CONTROL);
    assert_int_equal(get64(f + 176), LAYOUT_PM1_CONTROL);
    assert_int_equal(get32(f + 76), LAYOUT_PM_TIMER);
    assert_int_equal(get64(f + 212), LAYOUT_PM_TIMER);
    assert_int_equal(f[88] | f[89] << 8 | f[91] << 16, 0x040204);
    uint32_t flags = get32(f + 112);
    assert_int_equal(flags & 1u << 4, 0);         // a fixed power button
    assert_int_equal(flags & 1u << 8, 1u << 8);   // 32-bit timer
    assert_int_equal(flags & 1u << 10, 1u << 10); // reset register
    assert_int_equal(flags & 1u << 20, 0);        // not hardware-reduced
    assert_int_equal(f[116], 1);
    assert_int_equal(get64(f + 120), LAYOUT_RESET);
    assert_int_equal(f[128], 6);
    assert_int_equal(get32(f + 40), get64(f + 140));
    check_table(get64(f + 140), "DSDT");

    const uint8_t *facs = low + get32(f + 36);
    assert_int_equal(get32(f + 36) & 63, 0);
    assert_memory_equal(facs, "FACS", 4);
    assert_int_equal(get32(facs + 4), 64);
}

static void madt(void **state)
{
    (void)state;
    static const unsigned counts[] = {1, 2, 8, ACPI_MAX_CPUS};
    for (unsigned c = 0; c < ARRAY_SIZE(counts); c++) {
        make(counts[c]);
        const uint8_t *m = find_table("APIC");
        assert_non_null(m);
        assert_int_equal(get32(m + 36), LAYOUT_LAPIC);
        assert_int_equal(get32(m + 40), 1);
        unsigned lapics = 0, ioapics = 0, nmis = 0;
        uint32_t overrides[16] = {0};
        uint32_t at = 44, length = get32(m + 4);
        for (; at + 2 <= length; at += m[at + 1]) {
            assert_true(m[at + 1] >= 6 && at + m[at + 1] <= length);
            if (m[at] == 0) {
                assert_int_equal(m[at + 3], lapics++);
                assert_int_equal(get32(m + at + 4), 1);
            } else if (m[at] == 1) {
                ioapics++;
                assert_int_equal(get32(m + at + 4), LAYOUT_IOAPIC);
                assert_int_equal(get32(m + at + 8), 0);
            } else if (m[at] == 2) {
                assert_true(m[at + 3] < 16);
                overrides[m[at + 3]] = get32(m + at + 4) | (uint32_t)get16(m + at + 8) << 16;
            } else {
                assert_int_equal(m[at], 4);
                assert_int_equal(m[at + 2], 0xff);
                assert_int_equal(m[at + 5], 1);
                nmis++;
            }
        }
        assert_int_equal(at, length);
        assert_int_equal(lapics, counts[c]);
        assert_int_equal(ioapics, 1);
        assert_int_equal(nmis, 1);
        assert_int_equal(overrides[0], 2 | 5 << 16);   // GSI 2, edge, active high
        assert_int_equal(overrides[9], 9 | 0xd << 16); // level, active high
    }
}

// Disassembles one table in a directory of its own; the text goes to `text`.
static void disassemble(const char *directory, const char *name, const uint8_t *table, char *text,
                        size_t size)
{
    char path[200], command[700];
    snprintf(path, sizeof(path), "%s/%s.aml", directory, name);
    FILE *f = fopen(path, "wb");
    assert_non_null(f);
    assert_int_equal(fwrite(table, 1, get32(table + 4), f), get32(table + 4));
    fclose(f);
    snprintf(command, sizeof(command), "cd %s && iasl -d %s.aml > %s.log 2>&1", directory, name,
             name);
    assert_int_equal(system(command), 0);
    // Complaints stand in the log or as comments in the text.
    snprintf(command, sizeof(command),
             "! grep -iE 'error|warning|invalid|incorrect|unknown|exceeds' %s/%s.log %s/%s.dsl",
             directory, name, directory, name);
    assert_int_equal(system(command), 0);
    snprintf(path, sizeof(path), "%s/%s.dsl", directory, name);
    f = fopen(path, "r");
    assert_non_null(f);
    text[fread(text, 1, size - 1, f)] = 0;
    fclose(f);
}

static void iasl_agrees(void **state)
{
    (void)state;
    static char text[100000];
    if (system("iasl -v > /dev/null 2>&1") != 0) {
        print_message("skipped: no iasl (package acpica-tools)\n");
        skip();
    }
    char directory[] = "/tmp/fusor-acpi-XXXXXX";
    assert_non_null(mkdtemp(directory));
    make(3);
    const uint8_t *f = find_table("FACP");
    disassemble(directory, "facp", f, text, sizeof(text));
    assert_non_null(strstr(text, "Hardware Reduced (V5) : 0"));
    assert_non_null(strstr(text, "Control Method Power Button (V1) : 0"));
    assert_non_null(strstr(text, "Reset Register Supported (V2) : 1"));
    assert_non_null(strstr(text, "8042 Present on ports 60/64 (V2) : 0"));
    assert_non_null(strstr(text, "Legacy Devices Supported (V2) : 1"));
    disassemble(directory, "apic", find_table("APIC"), text, sizeof(text));
    assert_non_null(strstr(text, "Local APIC NMI"));
    disassemble(directory, "xsdt", low + get64(scan() + 24), text, sizeof(text));
    disassemble(directory, "facs", low + get32(f + 36), text, sizeof(text));
    disassemble(directory, "dsdt", low + get64(f + 140), text, sizeof(text));
    assert_non_null(strstr(text, "FUSR0001"));
    assert_non_null(strstr(text, "PNP0501"));
    // The source that the disassembler gives compiles to the same bytes' meaning again.
    char command[300];
    snprintf(command, sizeof(command), "cd %s && iasl -we -p again dsdt.dsl > again.log 2>&1",
             directory);
    assert_int_equal(system(command), 0);
    snprintf(command, sizeof(command), "cmp -s %s/dsdt.aml %s/again.aml", directory, directory);
    assert_int_equal(system(command), 0);
    snprintf(command, sizeof(command), "rm -r %s", directory);
    assert_int_equal(system(command), 0);
}

static void failures(void **state)
{
    (void)state;
    gpa_t rsdp = {42};
    assert_int_equal(acpi_write_tables(NULL, 0, &rsdp), E_INVAL);
    assert_int_equal(acpi_write_tables(NULL, ACPI_MAX_CPUS + 1, &rsdp), E_INVAL);
    for (int n = 0; n < 6; n++) {
        memset(low, 0, sizeof(low));
        writes_left = n;
        assert_int_equal(acpi_write_tables(NULL, 1, &rsdp), E_NOMEM);
        assert_null(scan()); // the RSDP comes last
        assert_int_equal(rsdp.raw, 42);
    }
    writes_left = 6;
    assert_int_equal(acpi_write_tables(NULL, 1, &rsdp), 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(fadt),
        cmocka_unit_test(madt),
        cmocka_unit_test(iasl_agrees),
        cmocka_unit_test(failures),
    };
    return cmocka_run_group_tests_name("acpi", tests, NULL, NULL);
}
