// SPDX-License-Identifier: BSD-2-Clause
// INIT and STARTUP.
#pragma once

#include "vmx/vcpu.h"

// Takes the INIT or STARTUP that v->startup announces; the vCPU is loaded on this CPU.
void vcpu_take_startup(struct vcpu *v);

// Writes what INIT sets into the loaded VMCS and the vCPU; nothing that INIT leaves alone.
void vcpu_write_init_state(struct vcpu *v);
