// SPDX-License-Identifier: BSD-2-Clause
// What a VM answers its vCPU (vmx/vcpu.h): devices under the device lock, memory, the end.
#include "kernel/format.h"
#include "kernel/time.h"
#include "vm/memory.h"
#include "vm/vm_object.h"

static struct vm *vm_of(struct vcpu *v)
{
    return v->vm;
}

void vm_arm_timer(struct vm *vm)
{
    vm->armed = vm->timers.earliest;
    vcpu_set_timer(&vm->vcpu, vclock_to_host(&vm->clock, vm->timers.earliest));
}

static uint32_t pio_in(struct vcpu *v, uint16_t port, unsigned size)
{
    struct vm *vm = vm_of(v);
    spin_lock(&vm->device_lock);
    uint32_t value = bus_pio_in(&vm->bus, port, size);
    vm_update_timer(vm); // reading RTC register C arms its timer
    spin_unlock(&vm->device_lock);
    return value;
}

static void pio_out(struct vcpu *v, uint16_t port, unsigned size, uint32_t value)
{
    struct vm *vm = vm_of(v);
    spin_lock(&vm->device_lock);
    bus_pio_out(&vm->bus, port, size, value);
    vm_update_timer(vm);
    spin_unlock(&vm->device_lock);
    // An end of interrupt or a mask may let the next one through; everything else says so itself.
    if ((port & ~0x81u) == 0x20) // 20h, 21h, a0h, a1h: the PICs
        v->recheck = 1;
}

static int read_msr(struct vcpu *v, uint32_t msr, uint64_t *value)
{
    struct vm *vm = vm_of(v);
    spin_lock(&vm->device_lock);
    int status = vm_platform->read_msr(vm, v, msr, value);
    spin_unlock(&vm->device_lock);
    return status;
}

static int write_msr(struct vcpu *v, uint32_t msr, uint64_t value)
{
    struct vm *vm = vm_of(v);
    spin_lock(&vm->device_lock);
    int status = vm_platform->write_msr(vm, v, msr, value);
    vm_update_timer(vm);
    spin_unlock(&vm->device_lock);
    v->recheck = 1;
    return status;
}

static uint64_t get_cr8(struct vcpu *v)
{
    struct vm *vm = vm_of(v);
    spin_lock(&vm->device_lock);
    uint64_t value = vm_platform->get_cr8(vm, v);
    spin_unlock(&vm->device_lock);
    return value;
}

static void set_cr8(struct vcpu *v, uint64_t value)
{
    struct vm *vm = vm_of(v);
    spin_lock(&vm->device_lock);
    vm_platform->set_cr8(vm, v, value);
    spin_unlock(&vm->device_lock);
    v->recheck = 1;
}

static enum vcpu_result mmio(struct vcpu *v, gpa_t address, bool write)
{
    enum vcpu_result result = vm_platform->mmio(vm_of(v), v, address, write);
    if (write)
        v->recheck = 1;
    return result;
}

static int interrupt(struct vcpu *v, bool accept)
{
    struct vm *vm = vm_of(v);
    spin_lock(&vm->device_lock);
    int vector = vm_platform->interrupt(vm, v, accept);
    spin_unlock(&vm->device_lock);
    return vector;
}

static bool take_nmi(struct vcpu *v, bool accept)
{
    struct vm *vm = vm_of(v);
    spin_lock(&vm->device_lock);
    bool taken = vm_platform->take_nmi(vm, v, accept);
    spin_unlock(&vm->device_lock);
    return taken;
}

static uint64_t run_timers(struct vcpu *v, uint64_t host_now)
{
    struct vm *vm = vm_of(v);
    spin_lock(&vm->device_lock);
    vtimer_run(&vm->timers, host_now + vm->clock.offset);
    vm->armed = vm->timers.earliest;
    uint64_t next = vclock_to_host(&vm->clock, vm->armed);
    spin_unlock(&vm->device_lock);
    return next;
}

static void wait_memory(struct vcpu *v, bool begin)
{
    struct vm *vm = vm_of(v);
    spin_lock(&vm->device_lock);
    if (begin) {
        vclock_freeze(&vm->clock);
    } else {
        vclock_thaw(&vm->clock);
        v->tsc_offset = vm->clock.offset + v->tsc_adjust;
        vm_arm_timer(vm);
    }
    spin_unlock(&vm->device_lock);
}

// The hypercall interface has its own room to come; CPUID announces none, so every call is unknown.
static uint64_t hypercall(struct vcpu *v)
{
    (void)v;
    return (uint64_t)-1; // not permitted, not known: -EPERM's value on every guest
}

static int read_memory(struct vcpu *v, gpa_t from, void *to, size_t size)
{
    return guest_read(vm_of(v), from, to, size);
}

static int write_memory(struct vcpu *v, gpa_t to, const void *from, size_t size)
{
    return guest_write(vm_of(v), to, from, size);
}

static void crashed(struct vcpu *v, const char *why)
{
    struct vm *vm = vm_of(v);
    format_text(vm->crash, sizeof(vm->crash), "%s at rip %#lx", why, vcpu_rip(v));
    vm_ask(vm, VM_REQUEST_CRASH);
}

const struct vcpu_ops vm_vcpu_ops = {
    .pio_in = pio_in,
    .pio_out = pio_out,
    .read_msr = read_msr,
    .write_msr = write_msr,
    .get_cr8 = get_cr8,
    .set_cr8 = set_cr8,
    .mmio = mmio,
    .interrupt = interrupt,
    .take_nmi = take_nmi,
    .run_timers = run_timers,
    .wait_memory = wait_memory,
    .hypercall = hypercall,
    .read_memory = read_memory,
    .write_memory = write_memory,
    .crashed = crashed,
};
