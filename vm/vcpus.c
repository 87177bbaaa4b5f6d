// SPDX-License-Identifier: BSD-2-Clause
// The vCPUs of a VM: how many there are, what they are called, how they are scheduled.
#include "kernel/error.h"
#include "kernel/format.h"
#include "kernel/heap.h"
#include "kernel/time.h"
#include "vm/vm_object.h"

_Static_assert(VCPU_NAME_SIZE >= VM_NAME_MAX + 4, "a name, a slash, two digits");

static struct cpuid_leaf machine_cpuid(uint32_t leaf, uint32_t subleaf)
{
    struct cpuid_regs r = cpu_cpuid(leaf, subleaf);
    return (struct cpuid_leaf){r.eax, r.ebx, r.ecx, r.edx};
}

static int make_one(struct vm *vm)
{
    struct vcpu *v = heap_alloc(sizeof(*v));
    if (v == NULL)
        return E_NOMEM;
    int status = vcpu_init(v, vm->vcpus_made, vm, &vm->ept, &vm_vcpu_ops, &vm->cpuid);
    if (status != 0) {
        heap_free(v);
        return status;
    }
    v->entity.group = &vm->group;
    // Whoever adds up over the vCPUs meanwhile sees the count after the pointer.
    vm->vcpus[vm->vcpus_made] = v;
    __atomic_store_n(&vm->vcpus_made, vm->vcpus_made + 1, __ATOMIC_RELEASE);
    return 0;
}

void vm_vcpus_schedule(struct vm *vm)
{
    // Weight and cap are the VM's: more vCPUs are no larger share of a busy machine.
    sched_group_set(&vm->group, vm->config.weight, vm->config.cap);
    for (unsigned i = 0; i < vm->vcpu_count; i++)
        sched_set_affinity(&vm->vcpus[i]->entity, vm->config.affinity);
}

int vm_vcpus_prepare(struct vm *vm)
{
    uint32_t count = vm->config.cpus;
    while (vm->vcpus_made < count) {
        int status = make_one(vm);
        if (status != 0)
            return status;
    }
    if (vm->vcpu_count == count)
        return 0;
    cpuid_policy_init(&vm->cpuid, count, tsc_hz, machine_cpuid);
    vmx_limit_cpuid(&vm->cpuid);
    for (unsigned i = 0; i < count; i++) {
        struct vcpu *v = vm->vcpus[i];
        if (count == 1)
            format_text(v->name, sizeof(v->name), "%s", vm->config.name);
        else
            format_text(v->name, sizeof(v->name), "%s/%u", vm->config.name, i);
    }
    __atomic_store_n(&vm->vcpu_count, count, __ATOMIC_RELEASE);
    vm_vcpus_schedule(vm);
    return 0;
}

void vm_vcpus_free(struct vm *vm)
{
    for (unsigned i = 0; i < vm->vcpus_made; i++) {
        struct vcpu *v = vm->vcpus[i];
        while (sched_remove(&v->entity) != 0)
            fiber_yield();
        vcpu_free(v);
        heap_free(v);
    }
    sched_group_remove(&vm->group);
    vm->vcpus_made = 0;
    vm->vcpu_count = 0;
}
