// SPDX-License-Identifier: BSD-2-Clause
// This CPU's register state as the host-state area of a VMCS wants it (SDM vol. 3, 25.5).
#pragma once

#include "kernel/types.h"

#define HOST_CS 0x08u
#define HOST_SS 0x10u
#define HOST_TR 0x18u

struct arch_host_state {
    uint16_t cs, ss, ds, es, fs, gs, tr;
    uint64_t fs_base, gs_base, tr_base, gdtr_base, idtr_base;
    uint64_t cr0, cr3, cr4;
    uint64_t efer, pat;
    uint64_t sysenter_cs, sysenter_esp, sysenter_eip;
};

// Reads the state of the CPU it runs on. After a VM exit the CPU's GDTR and IDTR limits are FFFFh:
// that does no harm, so nothing reloads them.
void arch_host_state(struct arch_host_state *out);

// A function that runs in the NMI handler, in root mode, after cpu->kicked was set: closes the
// window between the last look at `kicked` and the VM entry (by making the preemption timer 0).
// It runs on any CPU at any instruction: no locks, no logging. One hook; NULL removes it.
void arch_set_nmi_hook(void (*hook)(void));
