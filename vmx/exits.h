// SPDX-License-Identifier: BSD-2-Clause
// What happens at a VM exit, by reason.
#pragma once

#include "vmx/vcpu.h"

struct vcpu_exit_handler {
    enum vcpu_result (*handle)(struct vcpu *v);
    const char *name; // NULL for a reason nobody expects
};

// One for every reason below EXIT_REASONS; reasons nobody expects stop the VM with a report.
extern const struct vcpu_exit_handler vcpu_exit_handlers[EXIT_REASONS];
enum vcpu_result vcpu_exit_unknown(struct vcpu *v);
// Stops the VM and logs why, where, and the registers.
enum vcpu_result vcpu_crash(struct vcpu *v, const char *format, ...)
    __attribute__((format(printf, 2, 3)));
