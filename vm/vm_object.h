// SPDX-License-Identifier: BSD-2-Clause
// The inside of a VM, for vm/ and the rooms that build its machine.
//
// Locks: the table lock (RANK_VM_TABLE) covers the table and the `busy` marks; whoever set `busy`
// owns the lifecycle fields until it clears the mark, without holding a lock meanwhile. device_lock
// (RANK_DEVICE) covers platform, clock and timers. Memory is covered by the gfn locks of the EPT.
#pragma once

#include <stdatomic.h>

#include "ept/ept.h"
#include "kernel/frames.h"
#include "kernel/lock.h"
#include "vm/bus.h"
#include "vm/clock.h"
#include "vm/vm.h"
#include "vmx/cpuid.h"
#include "vmx/vcpu.h"

// What a VM asks of the service fiber, because a vCPU cannot do it from an exit.
enum vm_request {
    VM_REQUEST_NONE,
    VM_REQUEST_RESET,
    VM_REQUEST_OFF,
    VM_REQUEST_CRASH,
    VM_REQUEST_EXIT
};

// Frames the guest touched before its 2 MiB range becomes one large page (vm/memory.c says why).
#define VM_PROMOTE_TOUCHES 448u
#define VM_RANGE_DONE      UINT16_MAX // promoted, split again, or not worth trying

struct vm {
    uint64_t id;
    struct vm_config config;
    enum vm_state state;
    bool busy;           // a lifecycle operation is under way
    bool memory_present; // EPT and contents exist
    _Atomic enum vm_request request;
    uint8_t exit_code; // for VM_REQUEST_EXIT
    char crash[VM_WHY_MAX];

    struct ept ept;
    struct frame_account account;
    uint16_t *touched; // per 2 MiB range: populated pages, or VM_RANGE_DONE
    uint64_t ranges;
    _Atomic uint64_t rom_writes;
    _Atomic uint64_t promotions;

    struct cpuid_policy cpuid;
    struct vcpu vcpu; // one vCPU today
    struct spinlock device_lock;
    struct bus bus;
    struct vclock clock;
    struct vtimer_queue timers;
    uint64_t armed; // the value of timers.earliest that the vCPU knows
    void *platform; // the devices' own
};

// The devices of a VM, provided by devices/platform.c. device_lock is held unless said otherwise.
struct vm_platform_ops {
    int (*create)(struct vm *vm); // no lock; E_NOMEM
    void (*destroy)(struct vm *vm);
    void (*reset)(struct vm *vm);
    int (*interrupt)(struct vm *vm, struct vcpu *v, bool accept);
    bool (*take_nmi)(struct vm *vm, struct vcpu *v, bool accept);
    int (*read_msr)(struct vm *vm, struct vcpu *v, uint32_t msr, uint64_t *value);
    int (*write_msr)(struct vm *vm, struct vcpu *v, uint32_t msr, uint64_t value);
    uint64_t (*get_cr8)(struct vm *vm, struct vcpu *v);
    void (*set_cr8)(struct vm *vm, struct vcpu *v, uint64_t value);
    enum vcpu_result (*mmio)(struct vm *vm, struct vcpu *v, gpa_t address, bool write); // no lock
    void (*press_power_button)(struct vm *vm);
    size_t (*read_console)(struct vm *vm, uint64_t *cursor, char *buffer, size_t size);
    size_t (*write_console)(struct vm *vm, const char *data, size_t size);
};
void vm_set_platform(const struct vm_platform_ops *ops);
extern const struct vm_platform_ops *vm_platform;

// Leaves a request for the service fiber and takes the vCPUs out of the guest. Any context.
void vm_ask(struct vm *vm, enum vm_request request);
void vm_wake_service(void);
void vm_event(const char *format, ...) __attribute__((format(printf, 1, 2)));

// vm/table.c: finds a VM and marks it busy; waits (fiber) while somebody else has it. NULL: no such
// VM.
struct vm *vm_acquire(const char *name);
void vm_release(struct vm *vm);
struct vm *vm_next_with_request(void); // acquired, or NULL

// vm/memory.c
enum vm_area { VM_AREA_NONE, VM_AREA_RAM, VM_AREA_ROM };
enum vm_area vm_area_of(const struct vm *vm, gfn_t gfn);
int vm_memory_create(struct vm *vm);
void vm_memory_destroy(struct vm *vm); // fiber: yields; no vCPU runs

// vm/vcpu_ops.c
extern const struct vcpu_ops vm_vcpu_ops;
void vm_arm_timer(struct vm *vm); // device_lock held: tells the vCPU the next deadline
// After a device call, device_lock held: the same when it has moved.
static inline void vm_update_timer(struct vm *vm)
{
    if (__builtin_expect(vm->timers.earliest != vm->armed, 0))
        vm_arm_timer(vm);
}
