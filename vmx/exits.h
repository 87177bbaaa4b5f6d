// SPDX-License-Identifier: BSD-2-Clause
// What happens at a VM exit, by reason.
#pragma once

#include "vmx/vcpu.h"

// The handler table; reasons without an entry stop the VM with a report.
enum vcpu_result vcpu_handle_exit(struct vcpu *v, uint32_t reason);
// Stops the VM and logs why, where, and the registers.
enum vcpu_result vcpu_crash(struct vcpu *v, const char *format, ...)
    __attribute__((format(printf, 2, 3)));
