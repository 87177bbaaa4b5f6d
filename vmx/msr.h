// SPDX-License-Identifier: BSD-2-Clause
// MSR and control-register policy.
#pragma once

#include "vmx/vcpu.h"

// The bitmap page shared by all vCPUs: what is not passed through exits. Physical address.
// `apicv`: the CPU virtualizes the x2APIC registers that interrupts need.
hpa_t vcpu_msr_bitmap(bool rdtscp, bool apicv);

enum vcpu_result vcpu_exit_rdmsr(struct vcpu *v);
enum vcpu_result vcpu_exit_wrmsr(struct vcpu *v);

// Bits of CR0 / CR4 whose change by the guest exits.
uint64_t vcpu_cr0_owned(void);
uint64_t vcpu_cr4_forced(void); // bits that are set whatever the guest writes
uint64_t vcpu_cr4_owned(const struct vcpu *v);
enum vcpu_result vcpu_exit_cr(struct vcpu *v);
enum vcpu_result vcpu_exit_xsetbv(struct vcpu *v);
