// SPDX-License-Identifier: BSD-2-Clause
// vcpu_advance() for the exit handlers, inline: it ends almost every one of them.
#pragma once

#include "vmx/instructions.h"
#include "vmx/vcpu.h"

#define RFLAGS_TF (1u << 8)
// Pending debug exceptions (25.4.2).
#define PENDING_BREAKPOINT (UINT64_C(1) << 12) // one that DR7 enables
#define PENDING_BS         (UINT64_C(1) << 14)

// RIP alone. Outside 64-bit code it wraps at 32 bits: VM entry refuses more there (27.3.1.4).
static inline void vcpu_step_rip(struct vcpu *v, unsigned length)
{
    uint64_t rip = vmcs_read(VMCS_GUEST_RIP) + length;
    if (__builtin_expect((uint32_t)rip < length, 0) && vcpu_code_size(v) != 8)
        rip &= 0xffffffffu;
    vmcs_write(VMCS_GUEST_RIP, rip);
}

static inline void vcpu_advance_fast(struct vcpu *v, unsigned length)
{
    vcpu_step_rip(v, length);
    uint32_t blocking = vmcs_read32(VMCS_GUEST_INTERRUPTIBILITY);
    if (__builtin_expect((blocking & (BLOCKING_STI | BLOCKING_MOV_SS)) != 0, 0))
        vmcs_write(VMCS_GUEST_INTERRUPTIBILITY, blocking & ~(BLOCKING_STI | BLOCKING_MOV_SS));
    // Single-stepping over an emulated instruction traps behind it.
    if (__builtin_expect((vmcs_read(VMCS_GUEST_RFLAGS) & RFLAGS_TF) != 0, 0))
        vmcs_write(VMCS_GUEST_PENDING_DEBUG, vmcs_read(VMCS_GUEST_PENDING_DEBUG) | PENDING_BS);
}
