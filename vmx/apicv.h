// SPDX-License-Identifier: BSD-2-Clause
// APIC virtualization: virtual-interrupt delivery and posted interrupts (SDM vol. 3, chapter 30).
#pragma once

#include "vmx/vcpu.h"

// The virtual-APIC page, where the CPU can use one. E_NOMEM.
int vcpu_make_vapic(struct vcpu *v);
void vcpu_free_vapic(struct vcpu *v);

// Before an entry: turns the virtualization on or off as the LAPIC's mode asks for, and tells the
// CPU what is requested. The VMCS is loaded; the vCPU is out of the guest. Clears *nmi and
// *interrupt when no NMI, or no interrupt that would have to be injected, is pending.
void vcpu_sync_apic(struct vcpu *v, bool *nmi, bool *interrupt);

enum vcpu_result vcpu_exit_virtualized_eoi(struct vcpu *v);
enum vcpu_result vcpu_exit_apic_write(struct vcpu *v);
