// SPDX-License-Identifier: BSD-2-Clause
// The virtual-APIC page of a vCPU (SDM vol. 3, 30.1.1) and its posted-interrupt descriptor (30.6),
// which lies in the part of the page that the CPU does not use.
//
// While the vCPU is in the guest, TPR, PPR, ISR and IRR belong to the CPU that runs it; while it is
// not, to that CPU's root mode. The descriptor is everybody's at any time, by atomic operations.
#pragma once

#include "kernel/types.h"

// Register n of the APIC: xAPIC offset 16 n, x2APIC MSR 0x800 + n. ISR and IRR are 8 registers.
#define VAPIC_TPR 0x08u
#define VAPIC_PPR 0x0au
#define VAPIC_ISR 0x10u
#define VAPIC_IRR 0x20u

struct vapic {
    struct {
        uint32_t value;
        uint32_t unused[3];
    } reg[64];
    uint8_t unused[1024];
    struct {
        uint32_t requests[8];
        // ON: somebody has posted, and nobody has taken it yet. Bits 1 to 31 are the software's.
        uint32_t outstanding;
        uint32_t unused[7];
    } posted;
    uint8_t rest[1984];
};

_Static_assert(sizeof(struct vapic) == 4096, "one page");
_Static_assert(__builtin_offsetof(struct vapic, posted) % 64 == 0, "SDM vol. 3, 27.2.1.1");
