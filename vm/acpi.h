// SPDX-License-Identifier: BSD-2-Clause
// The guest's ACPI tables.
#pragma once

#include "kernel/types.h"
#include "vm/layout.h"

struct vm;

// Where the RSDP stands: 16-byte aligned in 0xe0000..0xfffff, so a guest that scans finds it, and
// the same for every VM, so the loader can say it in boot_params.
#define ACPI_RSDP LAYOUT_ROM
// The extended BIOS data area: the last KiB of low RAM, which the e820 map reserves.
#define ACPI_EBDA UINT64_C(0x0009fc00)
// The FACS is the one table the guest writes (global lock, waking vector), so it lies in RAM:
// in the EBDA.
#define ACPI_FACS (ACPI_EBDA + UINT64_C(0x40))
// LAPIC entries of 8 bytes: more would be x2APIC entries, which are 16.
#define ACPI_MAX_CPUS 255u

// Writes RSDP, XSDT, FADT, MADT and DSDT into the ROM area (vm/layout.h) and the FACS into the EBDA
// for `cpus` vCPUs with LAPIC ids 0..cpus-1. Returns 0 and the RSDP's address, E_INVAL for a bad
// number of vCPUs, or the error of guest_write().
int acpi_write_tables(struct vm *vm, unsigned cpus, gpa_t *rsdp);
