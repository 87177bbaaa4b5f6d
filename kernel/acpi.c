// SPDX-License-Identifier: BSD-2-Clause
#include "kernel/acpi.h"

#include "kernel/error.h"
#include "kernel/log.h"
#include "kernel/string.h"

#define HEADER_BYTES    36u
#define MAX_TABLE_BYTES (16 * MIB)
#define MAX_TABLES      256u

enum { SPACE_MEMORY = 0, SPACE_IO = 1 };

struct acpi_machine acpi_machine;

struct table {
    const uint8_t *bytes;
    uint32_t length;
};

// Fields are little-endian and may be unaligned.
static uint64_t field(const uint8_t *bytes, unsigned offset, unsigned width)
{
    uint64_t value = 0;
    for (unsigned i = 0; i < width; i++)
        value |= (uint64_t)bytes[offset + i] << (8 * i);
    return value;
}

// As above; a table too short for the field says 0: the revision that wrote it did not know it.
static uint64_t table_field(const struct table *t, unsigned offset, unsigned width)
{
    return offset + width <= t->length ? field(t->bytes, offset, width) : 0;
}

static bool sum_is_zero(const uint8_t *bytes, size_t size)
{
    uint8_t sum = 0;
    for (size_t i = 0; i < size; i++)
        sum = (uint8_t)(sum + bytes[i]);
    return sum == 0;
}

// Maps the table at `address` and checks it. Returns false when it is none.
static bool open_table(uint64_t address, acpi_mapper mapper, struct table *out)
{
    const uint8_t *header = address != 0 ? mapper(address, HEADER_BYTES) : NULL;
    if (header == NULL)
        return false;
    uint32_t length = (uint32_t)field(header, 4, 4);
    if (length < HEADER_BYTES || length > MAX_TABLE_BYTES)
        return false;
    const uint8_t *bytes = mapper(address, length);
    // Firmware may have changed the length meanwhile only by being broken; the checksum tells.
    if (bytes == NULL || !sum_is_zero(bytes, length))
        return false;
    *out = (struct table){bytes, length};
    return true;
}

static bool is(const struct table *t, const char *signature)
{
    return memcmp(t->bytes, signature, 4) == 0;
}

// Generic address structure, ACPI 6.5 section 5.2.3.2.
static struct acpi_register generic_address(const struct table *t, unsigned offset)
{
    uint64_t space = table_field(t, offset, 1);
    uint64_t address = table_field(t, offset + 4, 8);
    if (space == SPACE_MEMORY)
        return (struct acpi_register){address, true};
    if (space == SPACE_IO && address <= 0xffff)
        return (struct acpi_register){address, false};
    return (struct acpi_register){0};
}

static void parse_madt(const struct table *t, struct acpi_machine *out)
{
    uint32_t at = 44;
    while (at + 2 <= t->length) {
        const uint8_t *entry = t->bytes + at;
        uint32_t type = entry[0], length = entry[1];
        if (length < 2 || length > t->length - at) {
            log_warning("ACPI: MADT entry at %u has length %u; the rest is ignored", at, length);
            return;
        }
        if (type == 1 && length >= 12 && out->ioapic_count < ACPI_MAX_IOAPICS) {
            out->ioapics[out->ioapic_count++] = (struct acpi_ioapic){
                .base = field(entry, 4, 4), .gsi_base = (uint32_t)field(entry, 8, 4)};
        } else if (type == 2 && length >= 10 && entry[2] == 0 && entry[3] < ACPI_ISA_IRQS) {
            // Source override; "conforms" means edge, active high for ISA.
            unsigned flags = (unsigned)field(entry, 8, 2);
            out->isa[entry[3]] = (struct acpi_isa_irq){.gsi = (uint32_t)field(entry, 4, 4),
                                                       .level = (flags >> 2 & 3) == 3,
                                                       .active_low = (flags & 3) == 3};
        }
        at += length;
    }
}

// Length of an AML package: ACPI 6.5 section 20.2.4. Only the number of its bytes matters here.
static unsigned package_length_bytes(uint8_t lead)
{
    return 1u + (lead >> 6);
}

// Reads one AML constant of at most a byte; returns the bytes it took, or 0.
static unsigned byte_constant(const uint8_t *aml, uint32_t left, uint8_t *value)
{
    if (left >= 2 && aml[0] == 0x0a) { // BytePrefix
        *value = aml[1];
        return 2;
    }
    if (left >= 1 && aml[0] <= 1) { // ZeroOp, OneOp
        *value = aml[0];
        return 1;
    }
    return 0;
}

// Looks for Name (_S5_, Package () {a, b, ...}) in the DSDT. Without an AML interpreter its bytes
// are what can be recognised.
static void parse_s5(const struct table *t, struct acpi_machine *out)
{
    for (uint32_t i = HEADER_BYTES + 2; i + 8 <= t->length; i++) {
        const uint8_t *p = t->bytes + i;
        if (memcmp(p, "_S5_", 4) != 0 || p[4] != 0x12)
            continue;
        if (p[-1] != 0x08 && !(p[-1] == '\\' && p[-2] == 0x08)) // NameOp
            continue;
        uint32_t at = i + 5 + package_length_bytes(p[5]) + 1; // and the element count
        uint8_t a, b;
        unsigned used = at < t->length ? byte_constant(t->bytes + at, t->length - at, &a) : 0;
        if (used == 0)
            return;
        at += used;
        if (at >= t->length || byte_constant(t->bytes + at, t->length - at, &b) == 0)
            b = a;
        out->s5_type_a = a & 7;
        out->s5_type_b = b & 7;
        out->has_s5 = true;
        return;
    }
}

static void parse_fadt(const struct table *t, acpi_mapper mapper, struct acpi_machine *out)
{
    uint32_t flags = (uint32_t)table_field(t, 112, 4);
    out->pm_timer_32 = (flags & 1u << 8) != 0;
    uint64_t port = table_field(t, 76, 4);
    if (port != 0 && port <= 0xffff && table_field(t, 91, 1) == 4)
        out->pm_timer = (struct acpi_register){port, false};
    struct acpi_register timer = generic_address(t, 208);
    if (timer.address != 0)
        out->pm_timer = timer;

    if ((flags & 1u << 10) != 0) {
        out->reset = generic_address(t, 116);
        out->reset_value = (uint8_t)table_field(t, 128, 1);
    }

    uint64_t control_a = table_field(t, 64, 4), control_b = table_field(t, 68, 4);
    if (control_a <= 0xffff)
        out->pm1a_control = (uint16_t)control_a;
    if (control_b <= 0xffff)
        out->pm1b_control = (uint16_t)control_b;

    uint64_t dsdt_address = table_field(t, 140, 8);
    if (dsdt_address == 0)
        dsdt_address = table_field(t, 40, 4);
    struct table dsdt;
    if (open_table(dsdt_address, mapper, &dsdt) && is(&dsdt, "DSDT"))
        parse_s5(&dsdt, out);
}

static void parse_hpet(const struct table *t, struct acpi_machine *out)
{
    struct acpi_register base = generic_address(t, 40);
    if (base.memory)
        out->hpet = base.address;
}

static bool open_root(uint64_t rsdp, acpi_mapper mapper, struct table *root, unsigned *entry_bytes)
{
    const uint8_t *p = rsdp != 0 ? mapper(rsdp, 20) : NULL;
    if (p == NULL || memcmp(p, "RSD PTR ", 8) != 0 || !sum_is_zero(p, 20))
        return false;
    if (p[15] >= 2) { // revision
        p = mapper(rsdp, 36);
        if (p == NULL)
            return false;
        if (sum_is_zero(p, 36) && open_table(field(p, 24, 8), mapper, root) && is(root, "XSDT")) {
            *entry_bytes = 8;
            return true;
        }
    }
    *entry_bytes = 4;
    return open_table(field(p, 16, 4), mapper, root) && is(root, "RSDT");
}

int acpi_parse(uint64_t rsdp, acpi_mapper mapper, struct acpi_machine *out)
{
    memset(out, 0, sizeof(*out));
    for (unsigned i = 0; i < ACPI_ISA_IRQS; i++)
        out->isa[i].gsi = i;

    struct table root;
    unsigned entry_bytes;
    if (!open_root(rsdp, mapper, &root, &entry_bytes))
        return E_FORMAT;
    unsigned count = (root.length - HEADER_BYTES) / entry_bytes;
    for (unsigned i = 0; i < MIN(count, MAX_TABLES); i++) {
        struct table t;
        uint64_t address = field(root.bytes, HEADER_BYTES + i * entry_bytes, entry_bytes);
        if (!open_table(address, mapper, &t)) {
            log_warning("ACPI: the table at 0x%lx is damaged", (unsigned long)address);
            continue;
        }
        if (is(&t, "APIC"))
            parse_madt(&t, out);
        else if (is(&t, "FACP"))
            parse_fadt(&t, mapper, out);
        else if (is(&t, "HPET"))
            parse_hpet(&t, out);
    }
    return 0;
}
