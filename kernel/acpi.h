// SPDX-License-Identifier: BSD-2-Clause
// The machine's ACPI tables, as far as Fusor needs them (ACPI 6.5, chapter 5). The firmware's word
// is checked like any input: signatures, checksums, lengths.
#pragma once

#include "kernel/types.h"

#define ACPI_MAX_IOAPICS 8u
#define ACPI_ISA_IRQS    16u

// A register in I/O space (memory = false) or memory.
struct acpi_register {
    uint64_t address; // 0: absent
    bool memory;
};

struct acpi_ioapic {
    uint64_t base;
    uint32_t gsi_base;
};

struct acpi_isa_irq {
    uint32_t gsi;
    bool level, active_low;
};

struct acpi_machine {
    unsigned ioapic_count; // 0: no MADT, ISA interrupts come through the PIC
    struct acpi_ioapic ioapics[ACPI_MAX_IOAPICS];
    struct acpi_isa_irq isa[ACPI_ISA_IRQS];
    struct acpi_register pm_timer;
    bool pm_timer_32; // else 24 bits
    struct acpi_register reset;
    uint8_t reset_value;
    uint16_t pm1a_control, pm1b_control; // ports, 0: absent
    bool has_s5;
    uint8_t s5_type_a, s5_type_b; // SLP_TYP values of soft-off
    uint64_t hpet;                // physical base, 0: absent
};

// Makes [base, base + size) of firmware memory readable for ever, or returns NULL.
typedef const void *(*acpi_mapper)(uint64_t base, uint64_t size);

// Reads the tables that the RSDP at `rsdp` leads to. Returns 0, or E_FORMAT when the RSDP or the
// root table is bad. A bad table below is logged and left out. *out is always well defined: without
// tables it says that the machine is a plain PC.
int acpi_parse(uint64_t rsdp, acpi_mapper mapper, struct acpi_machine *out);

// What acpi_parse() found at boot.
extern struct acpi_machine acpi_machine;
