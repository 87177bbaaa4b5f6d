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

void vm_arm_timers(struct vm *vm, struct vcpu *v)
{
    vm->timers_moved = false;
    struct vm_timers *own = &vm->timers[v->id];
    own->armed = own->queue.earliest;
    vcpu_set_timer(v, vclock_to_host(&vm->clock, own->armed));
    struct vm_timers *board = &vm->timers[0];
    // A deadline that moved away costs vCPU 0 one look in vain; one that came nearer must be told.
    if (board->queue.earliest < board->armed) {
        board->armed = board->queue.earliest;
        vcpu_notify_timer(vm->vcpus[0]);
    }
}

// Both read v->vm anew instead of keeping it and what hangs on it in registers over the calls:
// these two are among the most frequent exits.
static uint32_t pio_in(struct vcpu *v, uint16_t port, unsigned size)
{
    spin_lock(&vm_of(v)->device_lock);
    uint32_t value = bus_pio_in(&vm_of(v)->bus, port, size);
    vm_update_timer(vm_of(v), v); // reading RTC register C arms its timer
    spin_unlock(&vm_of(v)->device_lock);
    return value;
}

static void pio_out(struct vcpu *v, uint16_t port, unsigned size, uint32_t value)
{
    spin_lock(&vm_of(v)->device_lock);
    bus_pio_out(&vm_of(v)->bus, port, size, value);
    vm_update_timer(vm_of(v), v);
    spin_unlock(&vm_of(v)->device_lock);
    // An end of interrupt or a mask may let the next one through to vCPU 0; everything else says so
    // itself.
    if ((port & ~0x81u) == 0x20) { // 20h, 21h, a0h, a1h: the PICs
        if (v->id == 0)
            v->recheck = 1;
        else
            vcpu_notify(vm_of(v)->vcpus[0]);
    }
}

static bool is_kvm_msr(uint32_t msr)
{
    return msr >= KVM_MSR_FIRST && msr <= KVM_MSR_LAST;
}

static int read_msr(struct vcpu *v, uint32_t msr, uint64_t *value)
{
    struct vm *vm = vm_of(v);
    if (is_kvm_msr(msr))
        return kvm_guest_read_msr(v, msr, value);
    spin_lock(&vm->device_lock);
    int status = vm_platform->read_msr(vm, v, msr, value);
    spin_unlock(&vm->device_lock);
    return status;
}

static int write_msr(struct vcpu *v, uint32_t msr, uint64_t value)
{
    struct vm *vm = vm_of(v);
    if (is_kvm_msr(msr))
        return kvm_guest_write_msr(v, msr, value);
    spin_lock(&vm->device_lock);
    int status = vm_platform->write_msr(vm, v, msr, value);
    vm_update_timer(vm, v);
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

static void sync_apic(struct vcpu *v, struct vcpu_apic *apic)
{
    struct vm *vm = vm_of(v);
    spin_lock(&vm->device_lock);
    vm_platform->sync_apic(vm, v, apic);
    spin_unlock(&vm->device_lock);
}

static void virtual_eoi(struct vcpu *v, uint8_t vector)
{
    struct vm *vm = vm_of(v);
    spin_lock(&vm->device_lock);
    vm_platform->virtual_eoi(vm, v, vector);
    spin_unlock(&vm->device_lock);
}

static void settle_eoi(struct vcpu *v)
{
    struct vm *vm = vm_of(v);
    spin_lock(&vm->device_lock);
    vm_platform->settle_eoi(vm, v);
    spin_unlock(&vm->device_lock);
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
    struct vm_timers *own = &vm->timers[v->id];
    vtimer_run(&own->queue, host_now + vm->clock.offset);
    own->armed = own->queue.earliest;
    vm->timers_moved = false; // what fired has armed timers of this queue only
    uint64_t next = vclock_to_host(&vm->clock, own->armed);
    spin_unlock(&vm->device_lock);
    return next;
}

// Device lock held. Guest time stands still while every vCPU waits for memory or for a STARTUP, and
// only then. While one can run (halted or not) time must go on: what it reads with RDTSC cannot be
// stopped, and a thaw would set it back. To stop the others as well would be no way out, for one of
// them may run the driver that gives the missing frames back. To a vCPU that waits beside others
// that run, the wait is as being without a CPU.
//
// The flags belong to the vCPUs and are set before this is called, so the last one to come here
// sees all of them; one that is seen too early is out of the guest already.
//
// nothing_ran: since the clock was thawed the VM's only vCPU has tried in vain, a hundred times a
// second, and executed nothing.
static void settle_clock(struct vm *vm, bool nothing_ran)
{
    bool runs = false;
    for (unsigned i = 0; i < vm->vcpu_count; i++)
        runs |= !vm->vcpus[i]->waiting_memory && !vm->vcpus[i]->parked;
    if (runs)
        vclock_thaw(&vm->clock);
    else if (nothing_ran)
        vclock_refreeze(&vm->clock);
    else
        vclock_freeze(&vm->clock);
}

static void wait_memory(struct vcpu *v, bool begin)
{
    struct vm *vm = vm_of(v);
    spin_lock(&vm->device_lock);
    settle_clock(vm, begin && v->nothing_ran && vm->vcpu_count == 1);
    if (!begin) {
        v->tsc_offset = vm->clock.offset + v->tsc_adjust;
        vm_arm_timers(vm, v);
    }
    spin_unlock(&vm->device_lock);
    if (begin)
        vm_note_wait(vm);
}

static unsigned take_startup(struct vcpu *v, uint8_t *vector)
{
    struct vm *vm = vm_of(v);
    spin_lock(&vm->device_lock);
    unsigned got = vm_platform->take_startup(vm, v, vector);
    bool init = (got & VCPU_GOT_INIT) != 0;
    if (got != 0) {
        v->parked = (got & VCPU_GOT_STARTUP) == 0;
        settle_clock(vm, false);
        v->tsc_offset = vm->clock.offset + v->tsc_adjust;
        vm_update_timer(vm, v); // INIT stops the LAPIC's
    }
    spin_unlock(&vm->device_lock);
    if (init)
        kvm_guest_reset(v);
    return got;
}

static uint64_t no_hypercall(struct vm *vm, struct vcpu *v)
{
    (void)vm;
    (void)v;
    return (uint64_t)-1; // CPUID announces none then
}

static uint64_t (*hypercall_handler)(struct vm *vm, struct vcpu *v) = no_hypercall;

void vm_set_hypercall(uint64_t (*handler)(struct vm *vm, struct vcpu *v))
{
    hypercall_handler = handler;
}

static uint64_t hypercall(struct vcpu *v)
{
    return hypercall_handler(vm_of(v), v);
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
    char where[24] = "";
    if (vm->vcpu_count > 1)
        format_text(where, sizeof(where), " on vCPU %u", v->id);
    spin_lock(&vm->device_lock);
    if (vm->request == VM_REQUEST_NONE) // what came first counts
        format_text(vm->crash, sizeof(vm->crash), "%s at rip %#lx%s", why, vcpu_rip(v), where);
    vm_ask(vm, VM_REQUEST_CRASH);
    spin_unlock(&vm->device_lock);
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
    .sync_apic = sync_apic,
    .virtual_eoi = virtual_eoi,
    .settle_eoi = settle_eoi,
    .loaded = kvm_guest_loaded,
    .unloaded = kvm_guest_unloaded,
    .take_nmi = take_nmi,
    .take_startup = take_startup,
    .run_timers = run_timers,
    .wait_memory = wait_memory,
    .hypercall = hypercall,
    .read_memory = read_memory,
    .write_memory = write_memory,
    .crashed = crashed,
};
