// SPDX-License-Identifier: BSD-2-Clause
// The balloon's fiber: asks drivers for memory while a VM waits for some, says when waiting is
// over, and, with auto-balloon, moves targets. It allocates nothing.
#include "balloon/balloon.h"

#include <stdatomic.h>

#include "balloon/policy.h"
#include "kernel/error.h"
#include "kernel/init.h"
#include "kernel/log.h"
#include "kernel/sched.h"
#include "kernel/time.h"
#include "vm/vm_object.h"

static struct fiber *service;
static _Atomic bool automatic;

// Of all VMs at this look; the fiber's.
static struct policy_vm vms[VM_MAX];
static uint64_t ids[VM_MAX];
static unsigned count;

static void wake(void)
{
    fiber_wake(service);
}

void balloon_set_auto(bool on)
{
    automatic = on;
    wake();
}

static void ring(struct vm *vm, void *unused)
{
    (void)unused;
    vm_ring_doorbell(vm);
}

// Table lock held. VMs stand in order of creation, and ids rise: what was noted of a VM at the last
// look is at its place or behind it.
static void note(struct vm *vm, void *unused)
{
    (void)unused;
    unsigned i = count++;
    unsigned old = i;
    while (old < VM_MAX && ids[old] != vm->id)
        old++;
    uint8_t looks_short = old < VM_MAX ? vms[old].looks_short : 0;
    uint8_t looks_spare = old < VM_MAX ? vms[old].looks_spare : 0;
    spin_lock(&vm->device_lock);
    struct vm_report report = vm->report;
    spin_unlock(&vm->device_lock);
    ids[i] = vm->id;
    vms[i] = (struct policy_vm){
        .takes_part = vm->state == VM_RUNNING && vm->balloon_driver && report.present,
        .waits = vm->state == VM_RUNNING && vm_waits_for_memory(vm),
        .memory = vm->config.memory / PAGE_SIZE,
        .minimum = vm->config.memory_min / PAGE_SIZE,
        .target = vm->balloon_target,
        .balloon = vm->account.ballooned,
        .available = report.available,
        .reported_balloon = report.balloon,
        .looks_short = looks_short,
        .looks_spare = looks_spare,
    };
}

static uint64_t kib(uint64_t pages)
{
    return pages * (PAGE_SIZE / KIB);
}

static void carry_out(struct vm *vm, void *context)
{
    const struct policy_host *host = context;
    for (unsigned i = 0; i < count; i++) {
        const struct policy_vm *v = &vms[i];
        // The operator may have set another one meanwhile.
        if (ids[i] != vm->id || v->reason == POLICY_STAYS || vm->balloon_target != v->target)
            continue;
        log_info("auto-balloon: %s %s: %lu -> %lu kB; available %lu of %lu kB, balloon %lu kB, "
                 "spare in the machine %lu kB, wanted %lu kB",
                 vm->config.name, v->reason == POLICY_GIVES ? "gives" : "gets back", kib(v->target),
                 kib(v->new_target), kib(v->available), kib(v->memory), kib(v->balloon),
                 kib(host->spare), kib(host->wanted));
        vm_set_balloon_target(vm, v->new_target);
    }
}

static void look(void)
{
    struct frames_snapshot frames;
    frames_snapshot(&frames, NULL, 0, NULL, NULL);
    struct policy_host host = {.total = frames.total, .spare = frames_beyond_reserve()};
    count = 0;
    vm_for_each(note, NULL);
    for (unsigned i = count; i < VM_MAX; i++)
        ids[i] = 0;
    policy_decide(&host, vms, count);
    vm_for_each(carry_out, &host);
}

static void serve(void *unused)
{
    (void)unused;
    for (;;) {
        bool waits = vm_end_waits();
        if (waits)
            vm_for_each(ring, NULL);
        if (automatic)
            look();
        fiber_sleep_until(waits || automatic ? time_tsc() + tsc_hz : UINT64_MAX);
    }
}

static int balloon_init(const struct boot_info *info)
{
    (void)info;
    service = fiber_create("balloon", serve, NULL);
    if (service == NULL)
        return E_NOMEM;
    vm_set_shortage_hook(wake);
    return 0;
}
INIT_HOOK(INIT_DEVICES, balloon_init);
