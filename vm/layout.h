// SPDX-License-Identifier: BSD-2-Clause
// The guest's physical address space.
//
//   0x00000000  RAM, up to 0xa0000 (the last KiB is the EBDA)
//   0x000a0000  hole: reads give ones, writes vanish
//   0x000e0000  ROM: ACPI tables; the guest's writes vanish, counted
//   0x00100000  RAM, up to min(memory, 3 GiB)
//   0xfec00000  IOAPIC
//   0xfee00000  LAPIC
//   4 GiB       the rest of RAM
#pragma once

#define LAYOUT_LOW_END  UINT64_C(0x000a0000)
#define LAYOUT_ROM      UINT64_C(0x000e0000)
#define LAYOUT_ROM_END  UINT64_C(0x00100000)
#define LAYOUT_HIGH     UINT64_C(0x00100000)
#define LAYOUT_HOLE     UINT64_C(0xc0000000)
#define LAYOUT_IOAPIC   UINT64_C(0xfec00000)
#define LAYOUT_LAPIC    UINT64_C(0xfee00000)
#define LAYOUT_ABOVE_4G UINT64_C(0x100000000)

// Ports of the ACPI hardware (FADT) and interrupt of the SCI.
#define LAYOUT_PM1_EVENT   0x600u // 4 bytes: status, enable
#define LAYOUT_PM1_CONTROL 0x604u // 2 bytes
#define LAYOUT_PM_TIMER    0x608u // 4 bytes, 3.579545 MHz, 32 bits
#define LAYOUT_RESET       0xcf9u
#define LAYOUT_SCI         9u
#define LAYOUT_DOORBELL    10u // FUSR0001's interrupt in the DSDT
