// SPDX-License-Identifier: BSD-2-Clause
// KVM's paravirtual interface. No lock is taken with another one held: gfn locks (guest_pin) by
// themselves, the device lock for the LAPICs.
#include "vm/kvm_guest.h"

#include "kernel/error.h"
#include "kernel/time.h"
#include "vm/memory.h"
#include "vm/vm_object.h"

#define STEAL_ENABLE   UINT64_C(1)
#define STEAL_RESERVED UINT64_C(0x3e)
#define EOI_ENABLE     UINT64_C(1)
#define EOI_RESERVED   UINT64_C(2)

// ICR of KVM_CALL_SEND_IPI: fixed or NMI to the LAPICs named, nothing else.
#define ICR_VECTOR UINT64_C(0xff)
#define ICR_NMI    UINT64_C(0x400)

static struct kvm_guest *kvm_of(struct vcpu *v)
{
    struct vm *vm = v->vm;
    return &vm->kvm[v->id];
}

static uint64_t nanoseconds(uint64_t ticks)
{
    const uint64_t second = 1000000000;
    return ticks / tsc_hz * second + ticks % tsc_hz * second / tsc_hz;
}

static void unpin(struct vm *vm, uint64_t msr)
{
    if (msr != 0)
        guest_unpin(vm, gpa_to_gfn(gpa(msr)));
}

// Both areas are aligned to their size, so that they lie in one page.
static int pin(struct vm *vm, uint64_t address, void **at)
{
    void *page = NULL;
    int status = guest_pin(vm, gpa_to_gfn(gpa(address)), &page);
    if (status == 0)
        *at = (uint8_t *)page + (address & PAGE_MASK);
    return status == E_RANGE ? E_INVAL : status;
}

static void set_eoi_byte(struct vcpu *v, uint8_t *byte)
{
    struct vm *vm = v->vm;
    spin_lock(&vm->device_lock);
    vm_platform->set_eoi_byte(vm, v, byte);
    spin_unlock(&vm->device_lock);
}

static int write_steal_time(struct vcpu *v, uint64_t value)
{
    struct kvm_guest *k = kvm_of(v);
    struct vm *vm = v->vm;
    void *at = NULL;
    if ((value & STEAL_ENABLE) == 0) {
        value = 0;
    } else if ((value & STEAL_RESERVED) != 0) {
        return E_INVAL;
    } else {
        int status = pin(vm, value & ~(STEAL_ENABLE | STEAL_RESERVED), &at);
        if (status != 0)
            return status;
    }
    unpin(vm, k->steal_msr);
    k->steal_msr = value;
    k->steal = at;
    v->tells_guest = at != NULL;
    if (at != NULL) {
        // As KVM: time goes on from what the area says. So it does not run backwards when Linux
        // takes a CPU off and on again, and begins at 0 in a kernel started by kexec.
        k->steal_base = __atomic_load_n(&k->steal->steal, __ATOMIC_RELAXED);
        k->wait_base = v->entity.wait_ticks;
        (void)kvm_guest_loaded(v); // a flush is in the past now: nobody could have asked for it
    }
    return 0;
}

static int write_eoi(struct vcpu *v, uint64_t value)
{
    struct kvm_guest *k = kvm_of(v);
    struct vm *vm = v->vm;
    void *at = NULL;
    if ((value & EOI_ENABLE) == 0) {
        value = 0;
    } else if ((value & EOI_RESERVED) != 0) {
        return E_INVAL;
    } else {
        int status = pin(vm, value & ~(EOI_ENABLE | EOI_RESERVED), &at);
        if (status != 0)
            return status;
    }
    set_eoi_byte(v, at); // before the old page may go
    unpin(vm, k->eoi_msr);
    k->eoi_msr = value;
    return 0;
}

int kvm_guest_read_msr(struct vcpu *v, uint32_t msr, uint64_t *value)
{
    const struct kvm_guest *k = kvm_of(v);
    switch (msr) {
    case KVM_MSR_STEAL_TIME:
        *value = k->steal_msr;
        return 0;
    case KVM_MSR_PV_EOI:
        *value = k->eoi_msr;
        return 0;
    default:
        return E_INVAL;
    }
}

int kvm_guest_write_msr(struct vcpu *v, uint32_t msr, uint64_t value)
{
    switch (msr) {
    case KVM_MSR_STEAL_TIME:
        return write_steal_time(v, value);
    case KVM_MSR_PV_EOI:
        return write_eoi(v, value);
    default:
        return E_INVAL;
    }
}

void kvm_guest_reset(struct vcpu *v)
{
    struct kvm_guest *k = kvm_of(v);
    if (k->eoi_msr != 0)
        set_eoi_byte(v, NULL);
    unpin(v->vm, k->steal_msr);
    unpin(v->vm, k->eoi_msr);
    *k = (struct kvm_guest){0};
    v->tells_guest = false;
}

// Other vCPUs read and, for `preempted`, write the area meanwhile, and a hostile guest writes
// anything: every access is atomic, and nothing read from it but the flush bit and the version
// matters here.
bool kvm_guest_loaded(struct vcpu *v)
{
    const struct kvm_guest *k = kvm_of(v);
    struct kvm_steal_time *t = k->steal;
    // From here on a vCPU that wants a flush here sends an IPI; until here it left a word.
    uint8_t before = __atomic_exchange_n(&t->preempted, 0, __ATOMIC_SEQ_CST);
    uint32_t version = __atomic_load_n(&t->version, __ATOMIC_RELAXED) | 1; // odd
    uint64_t steal = k->steal_base + nanoseconds(v->entity.wait_ticks - k->wait_base);
    __atomic_store_n(&t->version, version, __ATOMIC_RELAXED);
    __atomic_thread_fence(__ATOMIC_RELEASE);
    __atomic_store_n(&t->steal, steal, __ATOMIC_RELAXED);
    __atomic_store_n(&t->version, version + 1, __ATOMIC_RELEASE);
    return (before & KVM_FLUSH_TLB) != 0;
}

void kvm_guest_unloaded(struct vcpu *v)
{
    // The vCPU has left the guest: whoever sees this and asks for a flush asks before it runs
    // again.
    __atomic_store_n(&kvm_of(v)->steal->preempted, KVM_PREEMPTED, __ATOMIC_SEQ_CST);
}

// RBX and RCX: a bit for each of 128 LAPICs from id RDX on (64 from RDX in a 32-bit kernel), RSI:
// the ICR.
int64_t kvm_guest_send_ipi(struct vm *vm, struct vcpu *v)
{
    uint64_t low = vcpu_gpr(v, REG_RBX), high = vcpu_gpr(v, REG_RCX);
    uint64_t first = vcpu_gpr(v, REG_RDX), icr = vcpu_gpr(v, REG_RSI);
    unsigned width = 64;
    if (vcpu_code_size(v) != 8) {
        width = 32;
        low &= UINT32_MAX;
        high &= UINT32_MAX;
        first &= UINT32_MAX;
        icr &= UINT32_MAX;
    }
    bool nmi = (icr & ~ICR_VECTOR) == ICR_NMI;
    if (!nmi && ((icr & ~ICR_VECTOR) != 0 || icr < 16))
        return -KVM_EINVAL;
    uint32_t receivers = 0;
    int64_t count = 0;
    for (unsigned i = 0; i < vm->vcpu_count; i++) {
        uint64_t at = i - first; // huge when it lies before
        bool named = i >= first && (at < width       ? (low >> at & 1) != 0
                                    : at < 2 * width ? (high >> (at - width) & 1) != 0
                                                     : false);
        receivers |= (uint32_t)named << i;
        count += named;
    }
    spin_lock(&vm->device_lock);
    vm_platform->send_ipi(vm, receivers, (uint8_t)(icr & ICR_VECTOR), nmi);
    vm_update_timer(vm, v);
    spin_unlock(&vm->device_lock);
    return count;
}
