// SPDX-License-Identifier: BSD-2-Clause
// KVM's paravirtual interface, as far as Fusor offers it to unmodified Linux: steal time with the
// mark of a preempted vCPU and flushes asked of it, PV EOI, IPIs by hypercall
// (Documentation/virt/kvm/x86/msr.rst and hypercalls.rst). docs/architecture.md says why these.
//
// A guest names addresses of its memory that Fusor writes to whenever a vCPU gets or loses a CPU,
// or takes an interrupt. The page is pinned while the guest has it named: it stays the VM's own
// frame, so these writes need no lock, no look-up and no frame, and cannot fail.
#pragma once

#include "kernel/types.h"

struct vm;
struct vcpu;

#define KVM_MSR_FIRST      0x4b564d00u
#define KVM_MSR_LAST       0x4b564dffu
#define KVM_MSR_STEAL_TIME 0x4b564d03u
#define KVM_MSR_PV_EOI     0x4b564d04u

// Numbers of KVM's calls; Fusor's own (hypercall/fusor_abi.h) leave them out.
#define KVM_CALL_SEND_IPI 10u

#define KVM_EINVAL 22

#define KVM_PREEMPTED 1u // struct kvm_steal_time.preempted: the vCPU has no CPU
#define KVM_FLUSH_TLB 2u // set by a guest: flush before the vCPU runs again

// As the guest has it in its memory, 64 bytes aligned.
struct kvm_steal_time {
    uint64_t steal;   // ns
    uint32_t version; // odd while it changes
    uint32_t flags;
    uint8_t preempted;
    uint8_t reserved[47];
};
_Static_assert(sizeof(struct kvm_steal_time) == 64, "KVM's layout");

// What a vCPU has switched on. Belongs to the CPU that runs the vCPU.
struct kvm_guest {
    uint64_t steal_msr, eoi_msr;  // as written; 0: off
    struct kvm_steal_time *steal; // in a pinned page
    uint64_t steal_base;          // ns that the guest had been told of when it switched on
    uint64_t wait_base;           // the entity's wait_ticks at that time
};

// RDMSR and WRMSR of KVM_MSR_FIRST..KVM_MSR_LAST, on the vCPU's CPU, no lock held. E_INVAL: #GP.
// E_NOMEM: no frame for the page, nothing has changed.
int kvm_guest_read_msr(struct vcpu *v, uint32_t msr, uint64_t *value);
int kvm_guest_write_msr(struct vcpu *v, uint32_t msr, uint64_t value);
// The vCPU gets a CPU: true when its TLB is to be flushed before it runs. No lock needed.
bool kvm_guest_loaded(struct vcpu *v);
void kvm_guest_unloaded(struct vcpu *v); // and loses it
// Power-on, INIT, the end of the VM's memory: everything off. The vCPU does not run, or is on this
// CPU; no lock held.
void kvm_guest_reset(struct vcpu *v);
// A hypercall of KVM's from ring 0: the count of receivers or a negative error. No lock held.
int64_t kvm_guest_send_ipi(struct vm *vm, struct vcpu *v);
