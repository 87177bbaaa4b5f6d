// SPDX-License-Identifier: BSD-2-Clause
// When memory is short: what was promised to guests, who waits, and asking drivers for more.
//
// overcommit = off. What a balloon holds counts as free for others, so they may have been started
// with it. A guest can take it back without asking: by a reset, or by writing to it. So then the VM
// goes on with the memory it had (held_back): a first touch that would need more waits, until the
// guest's driver has given as much again, or there is memory that is not promised. A guest that
// restarts gets as far as it got with its balloon, and nobody else notices.
//
// An episode of waiting begins when a vCPU or a reset finds no frame, and ends when none of the
// VM's has waited for EPISODE_END: a VM that gets on frame by frame is one episode, not hundreds of
// events.
#include "kernel/log.h"
#include "kernel/memory.h"
#include "kernel/time.h"
#include "vm/vm_object.h"

#define EPISODE_END 1u            // seconds
#define HELD_STEP   UINT64_C(512) // pages

static bool overcommit = true;
static void (*shortage_hook)(void);

void vm_set_overcommit(bool on)
{
    overcommit = on;
}

bool vm_overcommits(void)
{
    return overcommit;
}

// At most: one for each 2 MiB, one for each 1 GiB, those above, and what lies elsewhere.
static uint64_t tables_of(uint64_t memory)
{
    return memory / (2 * MIB) + memory / GIB + 8;
}

// Page tables beyond what the reserve serves.
static uint64_t excess(const struct vm_commitment *c, uint64_t tables)
{
    uint64_t served = c->reserve / 2;
    return tables > served ? tables - served : 0;
}

static void add_committed(struct vm *vm, void *context)
{
    struct vm_commitment *c = context;
    if (!vm->memory_present && !vm->restarting)
        return;
    c->guests += vm->config.memory / PAGE_SIZE - MAX(vm->account.ballooned, vm->held_back);
    c->tables += tables_of(vm->config.memory);
}

uint64_t vm_commitment_of(const struct vm_commitment *c, uint64_t memory)
{
    return memory / PAGE_SIZE + excess(c, c->tables + tables_of(memory)) - excess(c, c->tables);
}

static uint64_t promised(const struct vm_commitment *c)
{
    return c->fusor + c->reserve + c->guests;
}

void vm_commitment(struct vm_commitment *out)
{
    struct frames_snapshot frames;
    *out = (struct vm_commitment){.left = UINT64_MAX};
    if (overcommit)
        return;
    frames_snapshot(&frames, NULL, 0, NULL, NULL);
    vm_for_each(add_committed, out);
    out->total = frames.total;
    out->fusor = frames.count[FRAME_FUSOR];
    out->reserve = frames_reserve();
    out->guests += excess(out, out->tables);
    uint64_t used = promised(out);
    out->left = out->total > used ? out->total - used : 0;
}

void vm_hold_back(struct vm *vm)
{
    uint64_t ballooned = vm->account.ballooned, held = vm->held_back;
    while (!overcommit && held < ballooned &&
           !atomic_compare_exchange_weak(&vm->held_back, &held, ballooned))
        ;
}

void vm_hold_less(struct vm *vm, uint64_t pages)
{
    uint64_t held = vm->held_back, less;
    do {
        uint64_t promised_before = MAX(vm->account.ballooned + pages, held);
        less = MIN(held, promised_before - pages);
    } while (less != held && !atomic_compare_exchange_weak(&vm->held_back, &held, less));
}

// Of what is held back, some that nobody was promised.
static bool let_go(struct vm *vm)
{
    struct vm_commitment c;
    vm_commitment(&c);
    uint64_t held = vm->held_back;
    uint64_t n = MIN(MIN(held, c.left), HELD_STEP);
    if (n == 0 || !atomic_compare_exchange_strong(&vm->held_back, &held, held - n))
        return false;
    // Two VMs may have seen the same frames.
    vm_commitment(&c);
    if (promised(&c) <= c.total)
        return true;
    // Back to what it was, not beyond: a write to the balloon may have raised it meanwhile.
    uint64_t now = vm->held_back;
    while (!atomic_compare_exchange_weak(&vm->held_back, &now, MAX(now, MIN(now + n, held))))
        ;
    return false;
}

bool vm_may_grow(struct vm *vm)
{
    do {
        uint64_t held = vm->held_back;
        uint64_t used = vm->account.private_frames + vm->account.shared_gfns;
        // What is in the balloon cannot be touched. Each vCPU may be here at the same time.
        if (held <= vm->account.ballooned ||
            used + VM_CPUS_MAX + held <= vm->config.memory / PAGE_SIZE)
            return true;
    } while (let_go(vm));
    return false;
}

void vm_ring_doorbell(struct vm *vm)
{
    if (!vm->balloon_driver)
        return;
    spin_lock(&vm->device_lock);
    vm_platform->set_doorbell(vm, true);
    spin_unlock(&vm->device_lock);
}

void vm_set_balloon_target(struct vm *vm, uint64_t pages)
{
    if (atomic_exchange(&vm->balloon_target, pages) != pages)
        vm_ring_doorbell(vm);
}

void vm_set_shortage_hook(void (*hook)(void))
{
    shortage_hook = hook;
}

// What has to become free for every vCPU of the VM that waits, or for its reset, and for first
// touches anywhere.
static uint64_t short_kib(const struct vm *vm)
{
    uint64_t free = frames_free(), reserve = frames_reserve(), wanted = 0;
    if (vm->load.waits)
        wanted = vm_load_left(vm);
    for (unsigned i = 0; i < vm->vcpu_count; i++)
        wanted += vcpu_waits_for_memory(vm->vcpus[i]);
    wanted += reserve > free ? reserve - free : 0;
    return wanted * (PAGE_SIZE / KIB);
}

void vm_note_wait(struct vm *vm)
{
    vm->waited_at = time_tsc();
    if (atomic_exchange(&vm->waits_said, true))
        return;
    vm->wait_began = vm->waited_at;
    vm_event("VM %s waits for memory: %lu kB short", vm->config.name, short_kib(vm));
    if (shortage_hook != NULL)
        shortage_hook();
}

static void end_wait(struct vm *vm, void *context)
{
    bool *any = context;
    if (!vm->waits_said)
        return;
    bool over = !vm_waits_for_memory(vm) && time_tsc() - vm->waited_at > EPISODE_END * tsc_hz;
    if (over && atomic_exchange(&vm->waits_said, false) && vm->state == VM_RUNNING)
        vm_event("VM %s goes on after %lu ms: %lu kB are free", vm->config.name,
                 (vm->waited_at - vm->wait_began) / (tsc_hz / 1000),
                 frames_free() * (PAGE_SIZE / KIB));
    *any |= !over;
}

bool vm_end_waits(void)
{
    bool any = false;
    vm_for_each(end_wait, &any);
    return any;
}
