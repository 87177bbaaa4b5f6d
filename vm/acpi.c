// SPDX-License-Identifier: BSD-2-Clause
// ACPI 6.0 tables (fixed hardware, no reduced profile). Offsets are those of ACPI 6.0, chapter 5.
#include "vm/acpi.h"

#include "kernel/error.h"
#include "kernel/string.h"
#include "vm/memory.h"
// The compiled vm/dsdt.asl: dsdt_aml_code[].
#include "build/dsdt.hex"

#define RSDP_LENGTH  36u
#define HEADER_SIZE  36u
#define FADT_LENGTH  276u
#define FACS_LENGTH  64u
#define MADT_FIXED   44u
#define MADT_LAPIC   8u
#define MADT_IOAPIC  12u
#define MADT_ISO     10u
#define MADT_NMI     6u
#define MADT_MAX     (MADT_FIXED + ACPI_MAX_CPUS * MADT_LAPIC + MADT_IOAPIC + 2 * MADT_ISO + MADT_NMI)
#define XSDT_ENTRIES 2u
#define XSDT_LENGTH  (HEADER_SIZE + 8 * XSDT_ENTRIES)

// All tables but the FACS, each at a fixed place from the start of the ROM.
#define AT_RSDP UINT64_C(0)
#define AT_XSDT UINT64_C(0x40)
#define AT_FADT UINT64_C(0x100)
#define AT_MADT UINT64_C(0x400)
#define AT_DSDT UINT64_C(0x1000)

_Static_assert((ACPI_RSDP & 15) == 0, "the scan steps by 16");
_Static_assert((ACPI_FACS & 63) == 0, "ACPI 5.2.10: the FACS is 64-byte aligned");
_Static_assert(ACPI_FACS + FACS_LENGTH <= LAYOUT_LOW_END, "the FACS fits into the EBDA");
_Static_assert(AT_XSDT + XSDT_LENGTH <= AT_FADT, "XSDT and FADT overlap");
_Static_assert(AT_FADT + FADT_LENGTH <= AT_MADT, "FADT and MADT overlap");
_Static_assert(AT_MADT + MADT_MAX <= AT_DSDT, "MADT and DSDT overlap");
_Static_assert(LAYOUT_ROM + AT_DSDT + sizeof(dsdt_aml_code) <= LAYOUT_ROM_END, "ROM is too small");

// FADT flags (ACPI 6.0, table 5-35).
#define FADT_WBINVD  (1u << 0)
#define FADT_PROC_C1 (1u << 2)
#define FADT_SLP_BTN                                                                               \
    (1u << 5) // no fixed sleep button; PWR_BUTTON = 0: there is a fixed power button
#define FADT_FIX_RTC   (1u << 6) // no RTC wake status
#define FADT_TMR_32BIT (1u << 8)
#define FADT_RESET_REG (1u << 10)
// IAPC_BOOT_ARCH (table 5-37): PIT, UART and RTC may be used; there is no 8042 and no VGA.
#define BOOT_LEGACY_DEVICES (1u << 0)
#define BOOT_NO_VGA         (1u << 2)

#define RESET_VALUE 6u // 0xcf9: hard reset of the CPU
// MPS INTI flags (table 5-46).
#define INTI_EDGE_HIGH  0x5u
#define INTI_LEVEL_HIGH 0xdu

static void put16(uint8_t *at, unsigned value)
{
    at[0] = (uint8_t)value;
    at[1] = (uint8_t)(value >> 8);
}

static void put32(uint8_t *at, uint32_t value)
{
    put16(at, value & 0xffff);
    put16(at + 2, value >> 16);
}

static void put64(uint8_t *at, uint64_t value)
{
    put32(at, (uint32_t)value);
    put32(at + 4, (uint32_t)(value >> 32));
}

static uint8_t checksum(const uint8_t *bytes, size_t size)
{
    unsigned sum = 0;
    for (size_t i = 0; i < size; i++)
        sum += bytes[i];
    return (uint8_t)(0x100 - (sum & 0xff));
}

// Fills in the system description table header (5.2.6) except for the checksum.
static void put_header(uint8_t *table, const char *signature, uint32_t length, uint8_t revision)
{
    memset(table, 0, HEADER_SIZE);
    memcpy(table, signature, 4);
    put32(table + 4, length);
    table[8] = revision;
    memcpy(table + 10, "FUSOR", 5);
    memcpy(table + 16, "FUSORVM", 7);
    put32(table + 24, 1);
    memcpy(table + 28, "FUSR", 4);
    put32(table + 32, 1);
}

// Writes a finished table with its checksum.
static int write_table(struct vm *vm, uint64_t offset, uint8_t *table, uint32_t length)
{
    table[9] = 0;
    table[9] = checksum(table, length);
    return guest_write(vm, gpa(LAYOUT_ROM + offset), table, length);
}

// Generic address structure of an I/O port (5.2.3.2); access: 1 byte, 2 word, 3 dword.
static void put_port(uint8_t *gas, unsigned port, unsigned bits, unsigned access)
{
    gas[0] = 1;
    gas[1] = (uint8_t)bits;
    gas[2] = 0;
    gas[3] = (uint8_t)access;
    put64(gas + 4, port);
}

static int write_rsdp(struct vm *vm)
{
    uint8_t rsdp[RSDP_LENGTH] = {0};
    memcpy(rsdp, "RSD PTR ", 8);
    memcpy(rsdp + 9, "FUSOR", 5);
    rsdp[15] = 2;
    // No RSDT: every system since ACPI 2.0 takes the XSDT.
    put32(rsdp + 20, RSDP_LENGTH);
    put64(rsdp + 24, LAYOUT_ROM + AT_XSDT);
    rsdp[8] = checksum(rsdp, 20); // over the ACPI 1.0 part
    rsdp[32] = checksum(rsdp, RSDP_LENGTH);
    return guest_write(vm, gpa(LAYOUT_ROM + AT_RSDP), rsdp, sizeof(rsdp));
}

static int write_xsdt(struct vm *vm)
{
    uint8_t xsdt[XSDT_LENGTH];
    put_header(xsdt, "XSDT", XSDT_LENGTH, 1);
    put64(xsdt + HEADER_SIZE, LAYOUT_ROM + AT_FADT);
    put64(xsdt + HEADER_SIZE + 8, LAYOUT_ROM + AT_MADT);
    return write_table(vm, AT_XSDT, xsdt, sizeof(xsdt));
}

static int write_fadt(struct vm *vm)
{
    uint8_t fadt[FADT_LENGTH] = {0};
    put_header(fadt, "FACP", FADT_LENGTH, 6);
    put32(fadt + 36, (uint32_t)ACPI_FACS); // X_FIRMWARE_CTRL stays 0: one of the two (5.2.9)
    put32(fadt + 40, (uint32_t)(LAYOUT_ROM + AT_DSDT));
    fadt[45] = 4; // preferred profile: enterprise server
    put16(fadt + 46, LAYOUT_SCI);
    // SMI_CMD = 0: the machine is always in ACPI mode.
    put32(fadt + 56, LAYOUT_PM1_EVENT);
    put32(fadt + 64, LAYOUT_PM1_CONTROL);
    put32(fadt + 76, LAYOUT_PM_TIMER);
    fadt[88] = 4; // lengths of the three blocks
    fadt[89] = 2;
    fadt[91] = 4;
    put16(fadt + 96, 0x0fff); // latencies that mean: no C2, no C3
    put16(fadt + 98, 0x0fff);
    put16(fadt + 109, BOOT_LEGACY_DEVICES | BOOT_NO_VGA);
    put32(fadt + 112, FADT_WBINVD | FADT_PROC_C1 | FADT_SLP_BTN | FADT_FIX_RTC | FADT_TMR_32BIT |
                          FADT_RESET_REG);
    put_port(fadt + 116, LAYOUT_RESET, 8, 1);
    fadt[128] = RESET_VALUE;
    put64(fadt + 140, LAYOUT_ROM + AT_DSDT);
    put_port(fadt + 148, LAYOUT_PM1_EVENT, 32, 2);
    put_port(fadt + 172, LAYOUT_PM1_CONTROL, 16, 2);
    put_port(fadt + 208, LAYOUT_PM_TIMER, 32, 3);
    memcpy(fadt + 268, "Fusor", 5); // hypervisor vendor identity
    return write_table(vm, AT_FADT, fadt, sizeof(fadt));
}

static int write_facs(struct vm *vm)
{
    uint8_t facs[FACS_LENGTH] = {0};
    memcpy(facs, "FACS", 4);
    put32(facs + 4, FACS_LENGTH);
    facs[32] = 2; // version
    return guest_write(vm, gpa(ACPI_FACS), facs, sizeof(facs));
}

static uint8_t *put_override(uint8_t *at, unsigned irq, uint32_t gsi, unsigned flags)
{
    at[0] = 2;
    at[1] = MADT_ISO;
    at[2] = 0; // ISA
    at[3] = (uint8_t)irq;
    put32(at + 4, gsi);
    put16(at + 8, flags);
    return at + MADT_ISO;
}

static int write_madt(struct vm *vm, unsigned cpus)
{
    uint8_t madt[MADT_MAX] = {0};
    uint8_t *at = madt + MADT_FIXED;
    for (unsigned i = 0; i < cpus; i++) {
        at[0] = 0;
        at[1] = MADT_LAPIC;
        at[2] = (uint8_t)i; // ACPI processor UID
        at[3] = (uint8_t)i; // LAPIC id
        put32(at + 4, 1);   // enabled
        at += MADT_LAPIC;
    }
    at[0] = 1;
    at[1] = MADT_IOAPIC;
    put32(at + 4, (uint32_t)LAYOUT_IOAPIC); // id 0, first GSI 0
    at += MADT_IOAPIC;
    // The PIT's IRQ 0 comes in at pin 2, as on every PC; the SCI is level-triggered, active high.
    at = put_override(at, 0, 2, INTI_EDGE_HIGH);
    at = put_override(at, LAYOUT_SCI, LAYOUT_SCI, INTI_LEVEL_HIGH);
    at[0] = 4;
    at[1] = MADT_NMI;
    at[2] = 0xff; // every processor
    put16(at + 3, 0);
    at[5] = 1; // LINT1
    at += MADT_NMI;

    uint32_t length = (uint32_t)(at - madt);
    put_header(madt, "APIC", length, 4);
    put32(madt + 36, (uint32_t)LAYOUT_LAPIC);
    put32(madt + 40, 1); // PCAT_COMPAT: there is a PIC, too
    return write_table(vm, AT_MADT, madt, length);
}

int acpi_write_tables(struct vm *vm, unsigned cpus, gpa_t *rsdp)
{
    if (cpus == 0 || cpus > ACPI_MAX_CPUS)
        return E_INVAL;
    int error = write_xsdt(vm);
    if (error == 0)
        error = write_fadt(vm);
    if (error == 0)
        error = write_facs(vm);
    if (error == 0)
        error = write_madt(vm, cpus);
    if (error == 0)
        error = guest_write(vm, gpa(LAYOUT_ROM + AT_DSDT), dsdt_aml_code, sizeof(dsdt_aml_code));
    if (error == 0)
        error = write_rsdp(vm);
    if (error == 0)
        *rsdp = gpa(ACPI_RSDP);
    return error;
}
