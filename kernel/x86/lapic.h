// SPDX-License-Identifier: BSD-2-Clause
// Registers of the machine's local APIC (SDM vol. 3, table 11-1), by their offset in the xAPIC
// page.
#pragma once

#include "kernel/types.h"

#define LAPIC_ID            0x020u
#define LAPIC_VERSION       0x030u
#define LAPIC_TASK_PRIORITY 0x080u
#define LAPIC_EOI           0x0b0u
#define LAPIC_SPURIOUS      0x0f0u
#define LAPIC_IN_SERVICE    0x100u
#define LAPIC_LVT_CMCI      0x2f0u
#define LAPIC_ICR           0x300u
#define LAPIC_ICR_HIGH      0x310u
#define LAPIC_LVT_TIMER     0x320u
#define LAPIC_LVT_THERMAL   0x330u
#define LAPIC_LVT_PERF      0x340u
#define LAPIC_LVT_LINT0     0x350u
#define LAPIC_LVT_LINT1     0x360u
#define LAPIC_LVT_ERROR     0x370u
#define LAPIC_TIMER_INITIAL 0x380u
#define LAPIC_TIMER_CURRENT 0x390u
#define LAPIC_TIMER_DIVIDE  0x3e0u

#define LAPIC_SOFTWARE_ENABLE  0x100u
#define LVT_MASKED             0x10000u
#define LVT_TIMER_TSC_DEADLINE 0x40000u

uint32_t apic_read(unsigned offset);
void apic_write(unsigned offset, uint32_t value);
