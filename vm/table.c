// SPDX-License-Identifier: BSD-2-Clause
// The table of VMs: finding, marking busy, and the facts for the console.
//
// table_lock (RANK_VM_TABLE) covers the table and the busy marks. It is held over a whole snapshot,
// so that a VM cannot go away meanwhile; no lifecycle work is done under it.
#include "vm/table.h"

#include "kernel/error.h"
#include "kernel/heap.h"
#include "kernel/string.h"
#include "kernel/sched.h"
#include "kernel/time.h"

static struct spinlock table_lock = SPINLOCK_INIT("vm-table", RANK_VM_TABLE);
static struct vm *table[VM_MAX]; // in order of creation, without gaps
static unsigned count;

static struct vm *find(const char *name)
{
    for (unsigned i = 0; i < count; i++)
        if (strcmp(table[i]->config.name, name) == 0)
            return table[i];
    return NULL;
}

int vm_table_add(struct vm *vm)
{
    int status = 0;
    spin_lock(&table_lock);
    if (find(vm->config.name) != NULL)
        status = E_EXIST;
    else if (count == VM_MAX)
        status = E_NOMEM;
    else
        table[count++] = vm;
    spin_unlock(&table_lock);
    return status;
}

void vm_table_remove(struct vm *vm)
{
    spin_lock(&table_lock);
    unsigned i = 0;
    while (table[i] != vm)
        i++;
    count--;
    for (; i < count; i++)
        table[i] = table[i + 1];
    spin_unlock(&table_lock);
}

struct vm *vm_acquire(const char *name)
{
    uint64_t waited_for = 0; // the VM that counts us among its waiters; ids are never 0 nor reused
    for (;;) {
        spin_lock(&table_lock);
        struct vm *vm = find(name);
        bool mine = vm != NULL && !vm->busy;
        if (mine) {
            vm->busy = true;
            vm->waiters -= vm->id == waited_for;
        } else if (vm != NULL && vm->id != waited_for) {
            vm->waiters++;
            waited_for = vm->id;
        }
        spin_unlock(&table_lock);
        if (mine || vm == NULL)
            return vm;
        fiber_sleep_until(time_tsc() + tsc_hz / 1000);
    }
}

void vm_release(struct vm *vm)
{
    spin_lock(&table_lock);
    vm->busy = false;
    // While the VM was busy, or by who had it.
    bool asked = vm->request != VM_REQUEST_NONE || vm->load.waits;
    spin_unlock(&table_lock);
    if (asked)
        vm_wake_service();
}

// When the service has something to do with the VM: 0 is now, UINT64_MAX never.
static uint64_t service_due(const struct vm *vm)
{
    if (vm->load.waits)
        return vm->load.next_try;
    if (vm->request == VM_REQUEST_NONE)
        return UINT64_MAX;
    return vm->request == VM_REQUEST_RESET ? vm->next_reset : 0;
}

struct vm *vm_next_with_request(uint64_t *when)
{
    static uint64_t last_id; // whose turn it was last; table_lock
    struct vm *found = NULL;
    uint64_t now = time_tsc();
    *when = UINT64_MAX;
    spin_lock(&table_lock);
    for (unsigned i = 0; i < count; i++) {
        struct vm *vm = table[i];
        // Who waits for the VM comes first: a guest that asks for its reset over and over would
        // keep the operator out.
        if (vm->busy || vm->waiters != 0)
            continue;
        uint64_t due = service_due(vm);
        if (due > now) {
            *when = MIN(*when, due);
            continue;
        }
        // The first one behind the last, whose ids are higher; else the first of all. So such a
        // guest keeps nobody else from being served.
        if (found == NULL || (found->id <= last_id && vm->id > last_id))
            found = vm;
    }
    if (found != NULL) {
        found->busy = true;
        last_id = found->id;
    }
    spin_unlock(&table_lock);
    return found;
}

void vm_for_each(void (*visit)(struct vm *vm, void *context), void *context)
{
    spin_lock(&table_lock);
    for (unsigned i = 0; i < count; i++)
        visit(table[i], context);
    spin_unlock(&table_lock);
}

const char *vm_state_name(enum vm_state state)
{
    static const char *const names[] = {"stopped", "running", "paused", "waiting-memory",
                                        "crashed"};
    return names[state];
}

bool vm_waits_for_memory(const struct vm *vm)
{
    if (vm->load.waits)
        return true;
    for (unsigned i = 0; i < vm->vcpu_count; i++)
        if (vcpu_waits_for_memory(vm->vcpus[i]))
            return true;
    return false;
}

static void fill(struct vm_info *info, struct vm *vm, uint64_t private_frames, uint64_t shared,
                 uint64_t ballooned)
{
    info->id = vm->id;
    info->config = vm->config;
    info->state =
        vm->state == VM_RUNNING && vm_waits_for_memory(vm) ? VM_WAITING_MEMORY : vm->state;
    info->configured = vm->config.memory / PAGE_SIZE;
    info->private_frames = private_frames;
    info->shared = shared;
    info->balloon = ballooned;
    info->balloon_target = vm->balloon_target;
    info->balloon_returned = vm->balloon_returned;
    info->held_back = vm->held_back > ballooned ? vm->held_back - ballooned : 0;
    info->balloon_driver = vm->balloon_driver;
    uint64_t used = private_frames + shared + ballooned;
    info->untouched = info->configured > used ? info->configured - used : 0;
    info->table_frames = vm->memory_present ? vm->ept.table_frames : 0;
    info->run_ticks = info->wait_ticks = info->steal_ticks = info->unknown_msrs = 0;
    for (unsigned i = 0; i < vm->vcpus_made; i++) {
        const struct vcpu *v = vm->vcpus[i];
        struct sched_times times = sched_times(&v->entity);
        info->run_ticks += times.run;
        info->wait_ticks += times.sleep;
        info->steal_ticks += times.wait;
        info->unknown_msrs += v->unknown_msrs;
    }
    info->shootdowns = vm->ept.shootdowns;
    info->large_splits = vm->ept.large_splits;
    info->large_collapses = vm->ept.large_collapses;
    info->large_leaves = vm->memory_present ? vm->ept.large_leaves : 0;
    info->promotions = vm->promotions;
    info->unclaimed_io = vm->bus.unclaimed;
    info->rom_writes = vm->rom_writes;
    spin_lock(&vm->device_lock);
    info->report = vm->report;
    memcpy(info->crash, vm->crash, sizeof(info->crash));
    spin_unlock(&vm->device_lock);
}

unsigned vm_snapshot(struct vm_info *infos, struct frames_snapshot *frames)
{
    struct frame_account *accounts[VM_MAX];
    uint64_t private_frames[VM_MAX], shared[VM_MAX], ballooned[VM_MAX];
    spin_lock(&table_lock);
    for (unsigned i = 0; i < count; i++)
        accounts[i] = &table[i]->account;
    frames_snapshot_ballooned(frames, accounts, count, private_frames, shared, ballooned);
    for (unsigned i = 0; i < count; i++)
        fill(&infos[i], table[i], private_frames[i], shared[i], ballooned[i]);
    unsigned n = count;
    spin_unlock(&table_lock);
    return n;
}

int vm_get(const char *name, struct vm_info *info)
{
    int status = E_NOENT;
    spin_lock(&table_lock);
    struct vm *vm = find(name);
    if (vm != NULL) {
        struct frame_account *account = &vm->account;
        struct frames_snapshot frames;
        uint64_t private_frames, shared, ballooned;
        frames_snapshot_ballooned(&frames, &account, 1, &private_frames, &shared, &ballooned);
        fill(info, vm, private_frames, shared, ballooned);
        status = 0;
    }
    spin_unlock(&table_lock);
    return status;
}

static uint64_t exits_of(const struct vm *vm, unsigned reason)
{
    uint64_t sum = 0;
    for (unsigned i = 0; i < vm->vcpus_made; i++)
        sum += vm->vcpus[i]->exits[reason];
    return sum;
}

int vm_exits(const char *name, struct vm_exit_count *counts, unsigned room)
{
    int n = E_NOENT;
    spin_lock(&table_lock);
    struct vm *vm = find(name);
    if (vm != NULL) {
        n = 0;
        for (unsigned i = 0; i < EXIT_REASONS && (unsigned)n < room; i++) {
            uint64_t exits = exits_of(vm, i);
            if (exits != 0 && vmx_exit_name(i) != NULL)
                counts[n++] = (struct vm_exit_count){vmx_exit_name(i), exits};
        }
    }
    spin_unlock(&table_lock);
    return n;
}

int vm_console_read(const char *name, uint64_t *cursor, char *buffer, size_t size)
{
    int n = E_NOENT;
    spin_lock(&table_lock);
    struct vm *vm = find(name);
    if (vm != NULL) {
        spin_lock(&vm->device_lock);
        n = (int)vm_platform->read_console(vm, cursor, buffer, size);
        spin_unlock(&vm->device_lock);
    }
    spin_unlock(&table_lock);
    return n;
}

int vm_console_write(const char *name, const char *data, size_t size)
{
    int n = E_NOENT;
    spin_lock(&table_lock);
    struct vm *vm = find(name);
    if (vm != NULL) {
        spin_lock(&vm->device_lock);
        n = (int)vm_platform->write_console(vm, data, size);
        spin_unlock(&vm->device_lock);
    }
    spin_unlock(&table_lock);
    return n;
}
