// SPDX-License-Identifier: BSD-2-Clause
// Which VMs take part, and which of them may share with each other.
//
// Lock: members_lock (RANK_VM) covers slots and groups. Pins need none: whoever pins counts itself
// first and looks at `active` then; whoever ends the memory clears `active` first and waits for the
// count then. Both orders are sequentially consistent, so one of them sees the other.
#include "fusion/engine.h"

#include "kernel/error.h"
#include "kernel/heap.h"
#include "kernel/panic.h"
#include "kernel/sched.h"
#include "kernel/string.h"

struct fusion_vm fusion_vms[INDEX_SLOTS];

// A named group exists while a VM is in it; a private one has no name. A VM stays in its group when
// its memory ends, until it gets memory anew or goes: while its frames are given back, which takes
// time, nobody else's may have the group's number.
static struct group {
    char name[VM_NAME_MAX + 1];
    unsigned members;
} groups[INDEX_SLOTS];
static bool in_group[INDEX_SLOTS]; // per slot: fusion_vm.group counts it

static struct spinlock members_lock = SPINLOCK_INIT("fusion members", RANK_VM);

const char *const fusion_reject_names[FUSION_REJECTS] = {
    [FUSION_REJECT_RANGE] = "range",
    [FUSION_REJECT_RESERVED] = "reserved",
    [FUSION_REJECT_DUPLICATE] = "duplicate",
    [FUSION_REJECT_BUDGET] = "budget",
    [FUSION_REJECT_OFF] = "off",
    [FUSION_REJECT_ABSENT] = "absent",
    [FUSION_REJECT_SHARED] = "shared",
    [FUSION_REJECT_PINNED] = "pinned",
    [FUSION_REJECT_BACKOFF] = "backoff",
    [FUSION_REJECT_BUSY] = "busy",
    [FUSION_REJECT_MISMATCH] = "mismatch",
    [FUSION_REJECT_NOMEM] = "nomem",
};

struct fusion_vm *fusion_pin(uint8_t slot)
{
    struct fusion_vm *f = &fusion_vms[slot];
    atomic_fetch_add(&f->users, 1);
    if (atomic_load(&f->active))
        return f;
    atomic_fetch_sub(&f->users, 1);
    return NULL;
}

void fusion_unpin(struct fusion_vm *f)
{
    atomic_fetch_sub_explicit(&f->users, 1, memory_order_release);
}

struct fusion_vm *fusion_find(const char *vm_name)
{
    spin_lock(&members_lock);
    for (unsigned i = 0; i < INDEX_SLOTS; i++)
        if (fusion_vms[i].vm != NULL && strcmp(fusion_vms[i].vm->config.name, vm_name) == 0)
            return &fusion_vms[i];
    spin_unlock(&members_lock);
    return NULL;
}

void fusion_found(struct fusion_vm *f)
{
    (void)f;
    spin_unlock(&members_lock);
}

int fusion_group_find(const char *name)
{
    int found = -1;
    spin_lock(&members_lock);
    for (unsigned i = 0; i < INDEX_SLOTS && found < 0; i++)
        if (groups[i].members != 0 && strcmp(groups[i].name, name) == 0)
            found = (int)i;
    spin_unlock(&members_lock);
    return name[0] == '\0' ? -1 : found;
}

// members_lock held. There are as many groups as slots, so one is free.
static uint8_t join_group(const char *name)
{
    unsigned vacant = INDEX_SLOTS;
    for (unsigned i = 0; i < INDEX_SLOTS; i++) {
        if (groups[i].members == 0)
            vacant = vacant == INDEX_SLOTS ? i : vacant;
        else if (name[0] != '\0' && strcmp(groups[i].name, name) == 0)
            vacant = i;
        if (vacant == i && groups[i].members != 0)
            break;
    }
    CHECK(vacant < INDEX_SLOTS);
    groups[vacant].members++;
    memcpy(groups[vacant].name, name, strlen(name) + 1);
    return (uint8_t)vacant;
}

// members_lock held.
static struct fusion_vm *take_slot(struct vm *vm)
{
    for (unsigned i = 0; i < INDEX_SLOTS; i++) {
        struct fusion_vm *f = &fusion_vms[i];
        if (f->vm == NULL) {
            // Not `users`: somebody may be about to find that the slot is not active.
            memset(&f->count, 0, sizeof(f->count));
            f->slot = (uint8_t)i;
            f->vm = vm;
            return f;
        }
    }
    panic("more VMs than slots");
}

// members_lock held.
static void leave_group(struct fusion_vm *f)
{
    if (!in_group[f->slot])
        return;
    CHECK(groups[f->group].members != 0);
    groups[f->group].members--;
    in_group[f->slot] = false;
}

static void free_tables(struct fusion_vm *f)
{
    backoff_destroy(f->backoff);
    f->backoff = NULL;
    heap_free(f->collapse);
    f->collapse = NULL;
}

static int memory_create(struct vm *vm)
{
    uint64_t pages = vm->config.memory / PAGE_SIZE;
    struct backoff_tables {
        struct fusion_backoff *backoff;
        uint8_t *collapse;
    } fresh = {backoff_create(pages), heap_alloc(vm->ranges)};
    if (fresh.backoff == NULL || fresh.collapse == NULL) {
        backoff_destroy(fresh.backoff);
        heap_free(fresh.collapse);
        return E_NOMEM;
    }
    spin_lock(&members_lock);
    struct fusion_vm *f = vm->fusion;
    if (f == NULL) {
        f = take_slot(vm);
        vm->fusion = f;
    }
    leave_group(f);
    f->group = join_group(vm->config.fusion_group);
    in_group[f->slot] = true;
    spin_unlock(&members_lock);
    f->backoff = fresh.backoff;
    f->collapse = fresh.collapse;
    f->scan_next = f->split_next = (gfn_t){0};
    f->scan_credit = 0;
    f->tokens_full_at = 0;
    f->mode = vm->config.page_fusion ? FUSION_ON : FUSION_OFF;
    // Stale entries count until they are met, also those of the slot's last VM.
    index_set_quota(f->slot, MAX(pages, index_least_quota()));
    atomic_store(&f->active, true);
    return 0;
}

static void memory_destroy(struct vm *vm)
{
    struct fusion_vm *f = fusion_of(vm);
    if (f == NULL || !f->active)
        return;
    atomic_store(&f->active, false);
    while (atomic_load(&f->users) != 0)
        fiber_give_way(); // they need the CPU
    free_tables(f);
}

static void forget(struct vm *vm)
{
    struct fusion_vm *f = fusion_of(vm);
    if (f == NULL)
        return;
    CHECK(!f->active);
    spin_lock(&members_lock);
    leave_group(f);
    f->vm = NULL;
    vm->fusion = NULL;
    spin_unlock(&members_lock);
}

static int make_private(struct vm *vm, gfn_t gfn)
{
    return split_gfn(fusion_of(vm), gfn, FRAME_RESERVE, SPLIT_WRITTEN);
}

static void release(struct vm *vm, gfn_t gfn, hfn_t first, uint64_t count)
{
    (void)gfn;
    for (uint64_t i = 0; i < count; i++)
        split_release(vm, hfn(first.raw + i));
}

const struct vm_memory_ops fusion_memory_ops = {
    .create = memory_create,
    .destroy = memory_destroy,
    .forget = forget,
    .make_private = make_private,
    .release = release,
};
