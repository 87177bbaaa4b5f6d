// SPDX-License-Identifier: BSD-2-Clause
// The guest's ACPI tables.
#pragma once

#include "kernel/types.h"

struct vm;

// Writes RSDP, XSDT, FADT, FACS, MADT and DSDT into the ROM area (vm/layout.h) for `cpus` vCPUs
// with LAPIC ids 0..cpus-1. Returns 0 and the RSDP's address, or the error of guest_write().
int acpi_write_tables(struct vm *vm, unsigned cpus, gpa_t *rsdp);
