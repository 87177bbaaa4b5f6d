// SPDX-License-Identifier: BSD-2-Clause
// The inside of a VM, for vm/ and the rooms that build its machine.
//
// Locks: the table lock (RANK_VM_TABLE) covers the table and the `busy` marks; whoever set `busy`
// owns the lifecycle fields until it clears the mark, without holding a lock meanwhile. device_lock
// (RANK_DEVICE) covers platform, clock, timers, report and crash. Memory is covered by the gfn
// locks of the EPT.
//
// Timers: each vCPU has a queue of its own, which only its own runs look at; so a deadline wakes
// the vCPU it is for. The timers of the board (PIT, RTC) hang in vCPU 0's. Who arms a timer of
// another vCPU's tells that vCPU (vm_update_timer).
#pragma once

#include <stdatomic.h>

#include "ept/ept.h"
#include "kernel/frames.h"
#include "kernel/lock.h"
#include "vm/bus.h"
#include "vm/clock.h"
#include "vm/kvm_guest.h"
#include "vm/layout.h"
#include "vm/loader.h"
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

// Frames the guest touched before its 2 MiB range becomes one large page (vm/memory_large.c says
// why).
#define VM_PROMOTE_TOUCHES 448u
#define VM_RANGE_DONE      UINT16_MAX // promoted, split again, or not worth trying

// A vCPU's timers.
struct vm_timers {
    struct vtimer_queue queue;
    uint64_t armed; // the value of queue.earliest that the vCPU knows
};

// What is loaded into the VM's new memory, as the config said when that began.
struct vm_load {
    // A reset found no memory: the VM is what it will be then, running or paused, but has no vCPU
    // that runs, and the service tries to go on at next_try (TSC).
    _Atomic bool waits;
    uint64_t next_try;
    bool acpi_done;
    struct loader_input input; // with how far it has got
    char cmdline[VM_CMDLINE_MAX];
};

struct vm {
    uint64_t id;
    struct vm_config config;
    enum vm_state state;
    bool busy;           // a lifecycle operation is under way
    unsigned waiters;    // operators who want to begin one; table lock
    bool memory_present; // EPT and contents exist
    bool restarting; // they will again, in a moment or when memory is there: what was promised to
                     // it, and its frames, are kept
    struct vm_load load;
    _Atomic enum vm_request request;
    uint64_t next_reset; // TSC before which the guest's own reset is not done
    uint8_t exit_code;   // for VM_REQUEST_EXIT
    char crash[VM_WHY_MAX];

    struct ept ept;
    struct frame_account account;
    void *fusion; // fusion's part of this VM
    // What the guest's driver said last (FUSOR_REPORT), in pages; shown, never trusted.
    // device_lock.
    struct vm_report report;
    uint16_t *touched; // per 2 MiB range: populated pages, or VM_RANGE_DONE
    uint64_t ranges;
    uint64_t *ballooned; // vm/ballooned.h: a bit per page, RANGE_WORDS words per range
    hfn_t zero_page;     // what reads of ballooned pages see
    // Pages that were unmapped and whose frames still count as the VM's, until the shootdown is
    // done (balloon/pages.c). They may be touched anew meanwhile.
    _Atomic uint64_t leaving;
    _Atomic uint64_t balloon_returned; // pages that left the balloon because they were written to
    _Atomic uint64_t balloon_target;   // pages that the operator, or the policy, wants in it
    _Atomic bool balloon_driver;       // a driver has asked for the target since the last reset
    _Atomic uint64_t reserve_taken;    // of its credit at the reserve, vm/reserve.h
    // overcommit = off: so many pages were promised to others while they were in the balloon, and
    // may have left it unasked. vm/shortage.c
    _Atomic uint64_t held_back;
    _Atomic uint64_t split_part; // of the reserve, vm/reserve.c
    _Atomic bool waits_said;     // vm/shortage.c: an episode of waiting for memory is under way
    _Atomic uint64_t waited_at;  // TSC: when a vCPU waited last
    uint64_t wait_began;         // and when the episode began
    _Atomic uint64_t rom_writes;
    _Atomic uint64_t promotions;

    struct cpuid_policy cpuid;
    // vCPUs are made as a start needs them and live as long as the VM; a start may use fewer than
    // there are. Looked at under the table lock, by the vCPUs, or as the owner.
    struct vcpu *vcpus[VM_CPUS_MAX];
    struct sched_group group; // weight and cap of all of them together
    uint32_t vcpu_count;      // in use since the last start
    uint32_t vcpus_made;      // those behind vcpu_count are stopped
    struct spinlock device_lock;
    struct bus bus;
    struct vclock clock;
    struct vm_timers timers[VM_CPUS_MAX];
    struct kvm_guest kvm[VM_CPUS_MAX];
    bool timers_moved;     // the earliest deadline of a queue has changed
    struct vcpu *accessor; // whose access to device memory the bus serves now
    void *platform;        // the devices' own
};

// The devices of a VM, provided by devices/platform.c. device_lock is held unless said otherwise.
struct vm_platform_ops {
    int (*create)(struct vm *vm); // no lock; E_NOMEM
    void (*destroy)(struct vm *vm);
    void (*reset)(struct vm *vm);
    int (*interrupt)(struct vm *vm, struct vcpu *v, bool accept);
    void (*sync_apic)(struct vm *vm, struct vcpu *v, struct vcpu_apic *apic);
    void (*virtual_eoi)(struct vm *vm, struct vcpu *v, uint8_t vector);
    bool (*take_nmi)(struct vm *vm, struct vcpu *v, bool accept);
    // INIT and STARTUP, VCPU_GOT_*; v->parked says whether a STARTUP counts.
    unsigned (*take_startup)(struct vm *vm, struct vcpu *v, uint8_t *vector);
    int (*read_msr)(struct vm *vm, struct vcpu *v, uint32_t msr, uint64_t *value);
    int (*write_msr)(struct vm *vm, struct vcpu *v, uint32_t msr, uint64_t value);
    uint64_t (*get_cr8)(struct vm *vm, struct vcpu *v);
    void (*set_cr8)(struct vm *vm, struct vcpu *v, uint64_t value);
    // KVM's PV EOI: where the guest wants to see whether an interrupt needs none, NULL: nowhere.
    // settle_eoi, with v->eoi_armed, after an exit: the EOI that the guest may have given there.
    void (*set_eoi_byte)(struct vm *vm, struct vcpu *v, uint8_t *byte);
    void (*settle_eoi)(struct vm *vm, struct vcpu *v);
    // An IPI to the LAPICs whose bits are set: a fixed interrupt, or an NMI.
    void (*send_ipi)(struct vm *vm, uint32_t receivers, uint8_t vector, bool nmi);
    enum vcpu_result (*mmio)(struct vm *vm, struct vcpu *v, gpa_t address, bool write); // no lock
    void (*press_power_button)(struct vm *vm);
    void (*set_doorbell)(struct vm *vm, bool ringing);
    size_t (*read_console)(struct vm *vm, uint64_t *cursor, char *buffer, size_t size);
    size_t (*write_console)(struct vm *vm, const char *data, size_t size);
};
void vm_set_platform(const struct vm_platform_ops *ops);
extern const struct vm_platform_ops *vm_platform;

// Leaves a request for the service fiber and takes the vCPUs out of the guest. Any context.
void vm_ask(struct vm *vm, enum vm_request request);
void vm_wake_service(void);
// Tells the guest's balloon driver, if there is one, to look at its target. No device lock held.
void vm_ring_doorbell(struct vm *vm);
void vm_set_balloon_target(struct vm *vm, uint64_t pages); // and rings, if it is another
void vm_event(const char *format, ...) __attribute__((format(printf, 1, 2)));

// vm/table.c: finds a VM and marks it busy; waits (fiber) while somebody else has it. NULL: no such
// VM.
struct vm *vm_acquire(const char *name);
void vm_release(struct vm *vm);
// One that asked for something, or whose reset can be tried again, and that nobody else has or
// waits for, acquired; in turns. NULL: none before *when (TSC).
struct vm *vm_next_with_request(uint64_t *when);
// Calls `visit` for every VM, under the table lock.
void vm_for_each(void (*visit)(struct vm *vm, void *context), void *context);
// True while its reset or one of its vCPUs waits for a frame.
bool vm_waits_for_memory(const struct vm *vm);

// vm/shortage.c
// A vCPU, or a reset, begins to wait for memory or does so again. No lock held.
void vm_note_wait(struct vm *vm);
// Who shall know that a VM has begun to wait: called from any context. Once, at init.
void vm_set_shortage_hook(void (*hook)(void));
// Pages are about to leave the balloon without having asked (reset, write). With overcommit = off
// what the balloon holds stays promised to others: vm->held_back.
void vm_hold_back(struct vm *vm);
// `pages` pages have left the balloon after vm_commitment() had agreed: they are the VM's again.
void vm_hold_less(struct vm *vm, uint64_t pages);
static inline bool vm_is_held_back(const struct vm *vm)
{
    return __builtin_expect(vm->held_back != 0, 0) && vm->held_back > vm->account.ballooned;
}

// May a VM that is held back touch another page? Only if the others' promises can be kept.
bool vm_may_grow(struct vm *vm);
// Says so of VMs that wait no longer. Returns true while there is one that does. Fiber.
bool vm_end_waits(void);

// What fusion, a higher room, does for memory.
struct vm_memory_ops {
    // The VM's memory begins to exist: its EPT is there, nothing is mapped. E_NOMEM.
    int (*create)(struct vm *vm);
    // It ends: no vCPU runs any more, the leaves are still there. Fiber; may yield.
    void (*destroy)(struct vm *vm);
    // The VM itself goes; its memory is gone.
    void (*forget)(struct vm *vm);
    // guest_write or a promotion met a leaf that is not EPT_KIND_PRIVATE: makes it so. No lock
    // held. Returns 0 (look again) or E_NOMEM. Never waits.
    int (*make_private)(struct vm *vm, gfn_t gfn);
    // `count` shared frames from `first` on are no longer mapped at gfn..., and shot down.
    void (*release)(struct vm *vm, gfn_t gfn, hfn_t first, uint64_t count);
};
void vm_set_memory_ops(const struct vm_memory_ops *ops); // once, at init

// vm/memory.c, vm/memory_large.c
enum vm_area { VM_AREA_NONE, VM_AREA_RAM, VM_AREA_ROM };
enum vm_area vm_area_of(const struct vm *vm, gfn_t gfn);
// The n-th page of memory, which has the hole below 4 GiB in it, and back. The first pages and the
// last range need not be RAM (vm_area_of).
static inline gfn_t vm_page_gfn(uint64_t n)
{
    uint64_t hole = (LAYOUT_ABOVE_4G - LAYOUT_HOLE) / PAGE_SIZE;
    return (gfn_t){n < LAYOUT_HOLE / PAGE_SIZE ? n : n + hole};
}

static inline uint64_t vm_gfn_page(gfn_t gfn)
{
    uint64_t hole = (LAYOUT_ABOVE_4G - LAYOUT_HOLE) / PAGE_SIZE;
    return gfn.raw < LAYOUT_ABOVE_4G / PAGE_SIZE ? gfn.raw : gfn.raw - hole;
}

// The number of gfn's 2 MiB range, below vm->ranges. gfn is RAM.
uint64_t vm_range_of(const struct vm *vm, gfn_t gfn);
// gfn lock held: `pages` pages of gfn's range were taken from the guest.
void vm_untouch(struct vm *vm, gfn_t gfn, unsigned pages);
int vm_memory_create(struct vm *vm);
extern _Atomic unsigned vm_memories; // VMs that have any
// gfn lock held, before a large leaf is split: if an intake has it protected as a whole, it gets
// its permission back and the intake sees that, because the pieces would be nobody's candidates.
void vm_end_candidate(struct vm *vm, gfn_t gfn, const struct ept_leaf *leaf);
void vm_memory_destroy(struct vm *vm); // fiber: yields; no vCPU runs
void vm_memory_forget(struct vm *vm);  // the VM itself goes

// vm/load.c: for the owner of the VM, in a fiber, no lock held.
// Notes what the config wants loaded. E_NOENT, or what made the file unreadable: without effect.
int vm_load_begin(struct vm *vm, char *why);
// Makes memory and loads it, and resets the vCPUs. E_NOMEM: what is done stays, the next call goes
// on from there, and one that finds no frame copies nothing. Other errors are final. Both leave
// vm_memory_destroy() to the caller.
int vm_load(struct vm *vm, char *why);
// How many pages are still to be loaded, at least 1. About: the tables in low memory count as done,
// but the set-up code of the kernel does not.
static inline uint64_t vm_load_left(const struct vm *vm)
{
    const struct loader_input *in = &vm->load.input;
    uint64_t all = in->kernel_size + in->initrd_size;
    return all > in->done ? (all - in->done + PAGE_SIZE - 1) / PAGE_SIZE : 1;
}

// vm/vcpus.c: the vCPUs of a VM that does not run.
// Makes as many as the config asks for, with the CPUID that belongs to that number. E_NOMEM.
int vm_vcpus_prepare(struct vm *vm);
void vm_vcpus_free(struct vm *vm); // fiber
// Weight, cap and affinity as the config says; also while it runs.
void vm_vcpus_schedule(struct vm *vm);

// vm/vcpu_ops.c
// The hypercall dispatcher, a higher room: called on the vCPU's CPU in the exit handler; reads the
// arguments from the vCPU and returns RAX. Without one every call is unknown. Once, at init.
void vm_set_hypercall(uint64_t (*handler)(struct vm *vm, struct vcpu *v));
extern const struct vcpu_ops vm_vcpu_ops;
// device_lock held: tells `v`, which runs on this CPU, and vCPU 0 their next deadlines.
void vm_arm_timers(struct vm *vm, struct vcpu *v);
// After a device call for `v`, device_lock held: the same when one has moved.
static inline void vm_update_timer(struct vm *vm, struct vcpu *v)
{
    if (__builtin_expect(vm->timers_moved, 0))
        vm_arm_timers(vm, v);
}
