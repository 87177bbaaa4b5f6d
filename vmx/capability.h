// SPDX-License-Identifier: BSD-2-Clause
// What VT-x offers on this machine, and the control words derived from it.
#pragma once

#include "kernel/types.h"

struct vmx_capability {
    uint32_t revision; // VMCS revision identifier
    uint32_t pin, primary, secondary, exit, entry;
    uint64_t cr0_fixed0, cr0_fixed1, cr4_fixed0, cr4_fixed1;
    unsigned preemption_shift; // the timer counts TSC >> shift
    bool xsave;
    uint64_t xcr0; // all the machine has
    uint32_t xsave_bytes;
    uint64_t arch_capabilities; // 0 without
    bool ibpb, flush_l1d, verw; // what has to be done when another VM gets a CPU
    bool apicv;                 // virtual-interrupt delivery in x2APIC mode
    bool posted;                // with it: posted interrupts
};

extern struct vmx_capability vmx_capability;

// Reads the capability MSRs of this CPU and computes the controls. NULL, or the name of what is
// missing.
const char *vmx_read_capability(struct vmx_capability *c);
