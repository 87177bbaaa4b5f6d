// SPDX-License-Identifier: BSD-2-Clause
// VMCS set-up and the loading and unloading of a vCPU on a CPU.
#pragma once

#include "vmx/vcpu.h"

// Makes `v`'s VMCS current on this CPU and loads FPU, MSRs and debug registers. Interrupts are off.
void vcpu_load(struct vcpu *v);
// Stores all of it back and clears the VMCS, so that any CPU may load it.
void vcpu_unload(struct vcpu *v);
// Writes controls, host state and the power-on guest state into the loaded VMCS.
void vmcs_setup(struct vcpu *v, const struct vcpu_start *start);
