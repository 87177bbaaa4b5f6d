// SPDX-License-Identifier: BSD-2-Clause
// Create, start, pause, resume, reset, stop, destroy; and the service fiber that does what a vCPU
// asked for from inside the guest, and goes on with resets that found too little memory. Every
// operation owns the VM through its busy mark, so they never overlap.
#include "kernel/error.h"
#include "kernel/format.h"
#include "kernel/heap.h"
#include "kernel/init.h"
#include "kernel/log.h"
#include "kernel/string.h"
#include "kernel/time.h"
#include "vm/table.h"

// The least time between two resets that a guest asks for. No guest boots faster; one that resets
// itself over and over would keep the service fiber busy at everybody's cost, and the console with
// events.
#define RESETS_PER_SECOND 10u
// How often a reset that waits for memory looks for it: as often as a vCPU does (vmx/run.c).
#define LOADS_PER_SECOND 100u

const struct vm_platform_ops *vm_platform;
static _Atomic uint64_t next_id = 1; // 64 bits: never reused
static struct fiber *service;
static void (*event_sink)(const char *line);

void vm_set_platform(const struct vm_platform_ops *ops)
{
    vm_platform = ops;
}

void vm_set_event_sink(void (*sink)(const char *line))
{
    event_sink = sink;
}

void vm_event(const char *format, ...)
{
    char line[VM_WHY_MAX + 64];
    va_list args;
    va_start(args, format);
    format_text_v(line, sizeof(line), format, args);
    va_end(args);
    log_info("%s", line);
    if (event_sink != NULL)
        event_sink(line);
}

void vm_wake_service(void)
{
    fiber_wake(service);
}

void vm_ask(struct vm *vm, enum vm_request request)
{
    enum vm_request none = VM_REQUEST_NONE;
    atomic_compare_exchange_strong(&vm->request, &none, request); // the first one counts
    for (unsigned i = 0; i < vm->vcpu_count; i++)
        vcpu_request_stop(vm->vcpus[i]);
    vm_wake_service();
}

static int fail(char *why, int status, const char *format, ...)
    __attribute__((format(printf, 3, 4)));
static int fail(char *why, int status, const char *format, ...)
{
    va_list args;
    va_start(args, format);
    if (why != NULL)
        format_text_v(why, VM_WHY_MAX, format, args);
    va_end(args);
    return status;
}

static int no_such(char *why, const char *name)
{
    return fail(why, E_NOENT, "no VM named %s; `vm list` shows all", name);
}

// Waits until all vCPUs have left the guest and their CPUs. All are told before the first is waited
// for.
static void take_out(struct vm *vm)
{
    for (unsigned i = 0; i < vm->vcpu_count; i++)
        vcpu_request_stop(vm->vcpus[i]);
    for (unsigned i = 0; i < vm->vcpu_count; i++)
        while (!vcpu_is_out(vm->vcpus[i]))
            fiber_sleep_until(time_tsc() + tsc_hz / 20000);
}

static int check_memory(const struct vm_config *config, char *why)
{
    struct frames_snapshot frames;
    frames_snapshot(&frames, NULL, 0, NULL, NULL);
    if (config->memory / PAGE_SIZE > frames.total)
        return fail(why, E_RANGE, "memory: %lu kB is more than this machine has (%lu kB)",
                    config->memory / KIB, frames.total * (PAGE_SIZE / KIB));
    return 0;
}

int vm_create(const struct vm_config *config, char *why)
{
    int status = check_memory(config, why);
    if (status != 0)
        return status;
    if (!vmx_available())
        return fail(why, E_NOSYS, "no VMs on this machine: %s", vmx_unavailable_reason());
    struct vm *vm = heap_alloc(sizeof(*vm));
    if (vm == NULL)
        return fail(why, E_NOMEM, "no memory for another VM; `vm stop` or `vm destroy` one");
    vm->id = next_id++;
    vm->config = *config;
    vm->state = VM_STOPPED;
    vm->balloon_target = config->balloon / PAGE_SIZE;
    spin_init(&vm->device_lock, "device", RANK_DEVICE);
    bus_init(&vm->bus);
    vclock_init(&vm->clock, tsc_hz);
    for (unsigned i = 0; i < VM_CPUS_MAX; i++) {
        vtimer_queue_init(&vm->timers[i].queue);
        vm->timers[i].queue.moved = &vm->timers_moved;
    }
    status = vm_vcpus_prepare(vm);
    if (status != 0) {
        vm_vcpus_free(vm);
        heap_free(vm);
        return fail(why, status, "no memory for another VM; `vm stop` or `vm destroy` one");
    }
    status = vm_platform->create(vm);
    if (status == 0) {
        status = vm_table_add(vm);
        if (status != 0)
            vm_platform->destroy(vm);
    }
    if (status != 0) {
        vm_vcpus_free(vm);
        heap_free(vm);
        if (status == E_EXIST)
            return fail(why, status, "a VM named %s exists already", config->name);
        return fail(why, status, "no room for another VM (at most %u)", VM_MAX);
    }
    return 0;
}

// Loads what was begun; then the VM is ready to run, its clock frozen at 0.
static int power_on(struct vm *vm, char *why)
{
    int status = vm_load(vm, why);
    if (status != 0)
        return status;
    spin_lock(&vm->device_lock);
    vclock_init(&vm->clock, tsc_hz);
    vm_platform->reset(vm);
    spin_unlock(&vm->device_lock);
    return 0;
}

// What the last guest said, or died of.
static void forget_guest(struct vm *vm)
{
    spin_lock(&vm->device_lock);
    vm->report = (struct vm_report){0};
    vm->crash[0] = 0;
    spin_unlock(&vm->device_lock);
}

static void run(struct vm *vm)
{
    spin_lock(&vm->device_lock);
    vclock_thaw(&vm->clock);
    for (unsigned i = 0; i < vm->vcpu_count; i++)
        vm->vcpus[i]->tsc_offset = vm->clock.offset + vm->vcpus[i]->tsc_adjust;
    spin_unlock(&vm->device_lock);
    vm->state = VM_RUNNING;
    for (unsigned i = 0; i < vm->vcpu_count; i++)
        vcpu_allow_run(vm->vcpus[i]);
}

static void freeze(struct vm *vm)
{
    take_out(vm);
    spin_lock(&vm->device_lock);
    vclock_freeze(&vm->clock);
    spin_unlock(&vm->device_lock);
    for (unsigned i = 0; i < vm->vcpu_count; i++)
        sched_count_sleep(&vm->vcpus[i]->entity, false);
}

// Ends the VM's run, or a reset that waits for memory; its memory goes back. `again`: it begins
// anew at once, and what it had is held for that.
static void power_off(struct vm *vm, bool again)
{
    freeze(vm);
    vm->request = VM_REQUEST_NONE;
    vm->load.waits = false;
    vm->restarting = again;
    for (unsigned i = 0; i < vm->vcpu_count; i++) {
        vm->vcpus[i]->waiting_memory = false;
        kvm_guest_reset(vm->vcpus[i]); // its pins end before the memory does
    }
    vm->balloon_driver = false;
    vm->waits_said = false;
    if (vm->restarting)
        vm_hold_back(vm);
    else
        vm->held_back = 0;
    vm_memory_destroy(vm);
    if (!again)
        frames_hold_end(&vm->account);
    vm->state = VM_STOPPED; // who sees that it is stopped finds its frames free
}

// overcommit = off: all that the VM may touch has to be there.
static int check_commitment(const struct vm *vm, char *why)
{
    struct vm_commitment c;
    vm_commitment(&c);
    uint64_t needed = vm_commitment_of(&c, vm->config.memory);
    if (needed <= c.left)
        return 0;
    uint64_t kb = PAGE_SIZE / KIB;
    return fail(why, E_NOMEM,
                "needs %lu kB, overcommit = off leaves %lu kB (total %lu - Fusor %lu - reserve %lu "
                "- VMs %lu); `vm balloon` or stop another",
                needed * kb, c.left * kb, c.total * kb, c.fusor * kb, c.reserve * kb,
                c.guests * kb);
}

// Runs `operation` on the VM called `name`, which nobody else touches meanwhile.
static int with_vm(const char *name, char *why, int (*operation)(struct vm *vm, char *why))
{
    struct vm *vm = vm_acquire(name);
    if (vm == NULL)
        return no_such(why, name);
    int status = operation(vm, why);
    vm_release(vm);
    return status;
}

static int not_running(const struct vm *vm, char *why)
{
    return fail(why, E_BUSY, "%s does not run: it is %s", vm->config.name,
                vm_state_name(vm->state));
}

static int start(struct vm *vm, char *why)
{
    const char *name = vm->config.name;
    if (vm->state == VM_RUNNING)
        return fail(why, E_BUSY, "%s runs already", name);
    if (vm->state == VM_PAUSED)
        return fail(why, E_BUSY, "%s is paused; use `vm resume %s`", name, name);
    int status = vm_load_begin(vm, why);
    if (status != 0)
        return status;
    power_off(vm, false); // what a crashed VM left for inspection
    status = check_commitment(vm, why);
    if (status != 0)
        return status;
    status = power_on(vm, why);
    if (status != 0) {
        vm_memory_destroy(vm);
        return status;
    }
    forget_guest(vm);
    run(vm);
    return 0;
}

static int pause(struct vm *vm, char *why)
{
    if (vm->state != VM_RUNNING)
        return not_running(vm, why);
    freeze(vm);
    vm->state = VM_PAUSED;
    return 0;
}

static int resume(struct vm *vm, char *why)
{
    if (vm->state != VM_PAUSED)
        return fail(why, E_BUSY, "%s is not paused: it is %s", vm->config.name,
                    vm_state_name(vm->state));
    if (vm->load.waits)
        vm->state = VM_RUNNING; // as soon as it is loaded
    else if (vm->request != VM_REQUEST_NONE)
        vm->state = VM_RUNNING; // what it asked for before the pause is done first
    else
        run(vm);
    return 0;
}

// Goes on with a reset: as far as there is memory. Without enough the VM waits for it, in the state
// it will have, and the service tries again; nothing is lost meanwhile, and it can be stopped.
static int begin_anew(struct vm *vm, enum vm_state after, char *why)
{
    int status = power_on(vm, why);
    if (status == E_NOMEM) {
        if (why != NULL)
            why[0] = 0; // it is no failure
        vm->state = after;
        vm->load.next_try = time_tsc() + tsc_hz / LOADS_PER_SECOND;
        vm->load.waits = true;
        vm_note_wait(vm);
        return 0;
    }
    vm->load.waits = false;
    vm->restarting = false;
    if (status != 0) {
        vm->held_back = 0;
        vm_memory_destroy(vm);
    }
    frames_hold_end(&vm->account);
    vm->state = status != 0 ? VM_STOPPED : after;
    if (vm->state == VM_RUNNING)
        run(vm);
    return status;
}

// A VM that was paused begins anew paused. With overcommit = off it does so with what it had beside
// its balloon, for the rest may be promised to others (vm/shortage.c). VMs that wait for memory
// shall not take what this one needs: what it had is held for it.
static int restart(struct vm *vm, char *why)
{
    enum vm_state after = vm->state == VM_PAUSED ? VM_PAUSED : VM_RUNNING;
    // After a reset that failed it has no memory, and what it had may be promised to others.
    int status = vm->memory_present || vm->restarting ? 0 : check_commitment(vm, why);
    if (status == 0)
        status = vm_load_begin(vm, why);
    if (status != 0)
        return status;
    power_off(vm, true);
    forget_guest(vm);
    return begin_anew(vm, after, why);
}

static int reset(struct vm *vm, char *why)
{
    const char *name = vm->config.name;
    if (vm->state == VM_STOPPED)
        return fail(why, E_BUSY, "%s is stopped; use `vm start %s`", name, name);
    return restart(vm, why);
}

static int press_power_button(struct vm *vm, char *why)
{
    if (vm->state != VM_RUNNING)
        return not_running(vm, why);
    if (vm->load.waits)
        return fail(why, E_BUSY, "%s is being reset and waits for memory; use `vm stop %s`",
                    vm->config.name, vm->config.name);
    spin_lock(&vm->device_lock);
    vm_platform->press_power_button(vm);
    spin_unlock(&vm->device_lock);
    return 0;
}

static int stop(struct vm *vm, char *why)
{
    if (vm->state == VM_STOPPED)
        return fail(why, E_BUSY, "%s is stopped already", vm->config.name);
    power_off(vm, false);
    return 0;
}

int vm_start(const char *name, char *why)
{
    return with_vm(name, why, start);
}

int vm_pause(const char *name, char *why)
{
    return with_vm(name, why, pause);
}

int vm_resume(const char *name, char *why)
{
    return with_vm(name, why, resume);
}

int vm_reset(const char *name, char *why)
{
    return with_vm(name, why, reset);
}

int vm_shutdown(const char *name, char *why)
{
    return with_vm(name, why, press_power_button);
}

int vm_stop(const char *name, char *why)
{
    return with_vm(name, why, stop);
}

int vm_destroy(const char *name, char *why)
{
    struct vm *vm = vm_acquire(name);
    if (vm == NULL)
        return no_such(why, name);
    power_off(vm, false);
    vm_memory_forget(vm);
    vm_table_remove(vm);
    vm_vcpus_free(vm);
    vm_platform->destroy(vm);
    heap_free(vm);
    return 0;
}

int vm_set(const struct vm_config *config, char *why)
{
    struct vm *vm = vm_acquire(config->name);
    if (vm == NULL)
        return no_such(why, config->name);
    int status = check_memory(config, why);
    bool stopped = vm->state == VM_STOPPED;
    if (status == 0 && !stopped && config->memory != vm->config.memory)
        status =
            fail(why, E_BUSY, "memory of %s can change only while it is stopped; use `vm stop %s`",
                 config->name, config->name);
    if (status == 0) {
        bool balloon = config->balloon != vm->config.balloon;
        vm->config = *config;
        vm_vcpus_schedule(vm);
        // One that auto-balloon has set may be more than is allowed now.
        uint64_t most = (config->memory - config->memory_min) / PAGE_SIZE;
        uint64_t target = balloon ? config->balloon / PAGE_SIZE : vm->balloon_target;
        vm_set_balloon_target(vm, MIN(target, most));
    }
    vm_release(vm);
    return status;
}

int vm_balloon(const char *name, uint64_t bytes, char *why)
{
    struct vm *vm = vm_acquire(name);
    if (vm == NULL)
        return no_such(why, name);
    int status = 0;
    if (bytes > vm->config.memory)
        status = fail(why, E_RANGE, "%lu kB are more than its memory, %lu kB", bytes / KIB,
                      vm->config.memory / KIB);
    else if (bytes > vm->config.memory - vm->config.memory_min)
        status = fail(why, E_RANGE, "expected at most memory - memory-min, %lu kB",
                      (vm->config.memory - vm->config.memory_min) / KIB);
    if (status == 0) {
        vm->config.balloon = bytes;
        vm_set_balloon_target(vm, bytes / PAGE_SIZE);
    }
    vm_release(vm);
    return status;
}

static void could_not_be_reset(struct vm *vm, const char *why)
{
    if (vm->memory_present)
        power_off(vm, false);
    vm->state = VM_CRASHED;
    spin_lock(&vm->device_lock);
    memcpy(vm->crash, why, sizeof(vm->crash));
    spin_unlock(&vm->device_lock);
    vm_event("VM %s could not be reset: %s", vm->config.name, why);
}

static void serve(struct vm *vm)
{
    char why[VM_WHY_MAX] = "";
    if (vm->load.waits) {
        if (begin_anew(vm, vm->state, why) != 0)
            could_not_be_reset(vm, why);
        return;
    }
    enum vm_request request = atomic_exchange(&vm->request, VM_REQUEST_NONE);
    if (vm->state != VM_RUNNING && vm->state != VM_PAUSED)
        return; // it was stopped meanwhile
    switch (request) {
    case VM_REQUEST_RESET:
        vm->next_reset = time_tsc() + tsc_hz / RESETS_PER_SECOND;
        if (restart(vm, why) == 0)
            vm_event("VM %s reset by the guest", vm->config.name);
        else
            could_not_be_reset(vm, why);
        break;
    case VM_REQUEST_OFF:
        power_off(vm, false);
        vm_event("VM %s powered off", vm->config.name);
        break;
    case VM_REQUEST_EXIT:
        power_off(vm, false);
        vm_event("VM %s ended with code %u", vm->config.name, vm->exit_code);
        break;
    case VM_REQUEST_CRASH:
        freeze(vm); // its memory stays, for whoever wants to look, until stop, start or destroy
        vm->state = VM_CRASHED;
        vm_event("VM %s crashed: %s", vm->config.name, vm->crash);
        break;
    case VM_REQUEST_NONE:
        break;
    }
}

static void serve_all(void *unused)
{
    (void)unused;
    for (;;) {
        struct vm *vm;
        uint64_t when;
        while ((vm = vm_next_with_request(&when)) != NULL) {
            serve(vm);
            vm_release(vm);
        }
        fiber_sleep_until(when);
    }
}

static int start_service(const struct boot_info *info)
{
    (void)info;
    service = fiber_create("vm-service", serve_all, NULL);
    return service == NULL ? E_NOMEM : 0;
}
INIT_HOOK(INIT_VM, start_service);
