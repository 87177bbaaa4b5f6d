// SPDX-License-Identifier: BSD-2-Clause
// What surrounds vm/lifecycle.c and vm/vcpus.c, pretended: heap, frames, loader, scheduler, CPUID,
// files, a platform without devices. Fibers and the vCPUs' ways are the test's own, and what it
// looks at when memory comes and goes. For one translation unit per program, which has the two
// files in it: their service fiber is static.
#pragma once

#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "fake.h"
#include "kernel/types.h"

struct cpuid_regs {
    uint32_t eax, ebx, ecx, edx;
};

static struct cpuid_regs cpu_cpuid(uint32_t leaf, uint32_t subleaf)
{
    return (struct cpuid_regs){leaf, subleaf, 0, 0};
}

#undef fail // cmocka's
#include "vm/lifecycle.c"
#include "vm/vcpus.c"

static int objects; // allocated and not freed: heap, vCPUs, memories, platforms

void *heap_alloc(size_t size)
{
    objects++;
    return calloc(1, size);
}

void heap_free(void *p)
{
    objects -= p != NULL;
    free(p);
}

// --- vCPUs ---

// The part of vcpu_init() that every pretended vCPU has.
static void set_up_vcpu(struct vcpu *v, uint32_t id, void *vm, struct ept *ept,
                        const struct vcpu_ops *ops, const struct cpuid_policy *cpuid)
{
    objects++;
    v->id = id;
    v->vm = vm;
    v->ept = ept;
    v->ops = ops;
    v->cpuid = cpuid;
    v->stop = 1;
    v->entity.cpu = -1;
    v->entity.off = true;
}

static unsigned policy_for; // number of vCPUs that CPUID shows

void cpuid_policy_init(struct cpuid_policy *p, unsigned vcpus, uint64_t hz,
                       struct cpuid_leaf (*host)(uint32_t leaf, uint32_t subleaf))
{
    (void)hz;
    memset(p, 0, sizeof(*p));
    p->basic[1] = host(1, 0);
    policy_for = vcpus;
}

void vmx_limit_cpuid(struct cpuid_policy *p)
{
    (void)p;
}

bool vmx_available(void)
{
    return true;
}

const char *vmx_unavailable_reason(void)
{
    return "";
}

const char *vmx_exit_name(unsigned reason)
{
    return reason == EXIT_CPUID ? "CPUID" : reason == EXIT_HLT ? "HLT" : NULL;
}

const struct vcpu_ops vm_vcpu_ops;

// --- Files and frames ---

static bool file_missing;
static uint64_t image_pages; // of the kernel

int files_find(const char *path, const uint8_t **data, uint64_t *size)
{
    (void)path;
    *data = NULL;
    *size = image_pages * PAGE_SIZE;
    return file_missing ? E_NOENT : 0;
}

// Frames that are free and nobody's. A VM's memory takes one, its ACPI tables another one, then its
// image. What a VM holds is in account.held, as in kernel/frame_hold.c.
#define PLENTY 1000000u
static uint64_t frames_there;

static int take_frame(struct vm *vm)
{
    if (vm->account.held != 0)
        vm->account.held--;
    else if (frames_there != 0)
        frames_there--;
    else
        return E_NOMEM;
    vm->account.private_frames++;
    return 0;
}

void frames_hold_end(struct frame_account *account)
{
    frames_there += account->held;
    account->held = 0;
}

static int make_memory(struct vm *vm)
{
    assert_false(vm->memory_present);
    if (take_frame(vm) != 0)
        return E_NOMEM;
    objects++;
    vm->memory_present = true;
    return 0;
}

static void drop_memory(struct vm *vm)
{
    objects--;
    vm->memory_present = false;
    *(vm->restarting ? &vm->account.held : &frames_there) += vm->account.private_frames;
    vm->account.private_frames = 0;
    vm->account.ballooned = 0;
}

static unsigned madt_cpus;

int acpi_write_tables(struct vm *vm, unsigned number, gpa_t *rsdp)
{
    assert_true(vm->memory_present);
    madt_cpus = number;
    *rsdp = gpa(0xe0000);
    return take_frame(vm);
}

static bool load_fails;

int loader_linux(struct loader_input *input, struct loader_entry *entry, char *why, size_t why_size)
{
    struct vm *vm = input->vm;
    uint64_t all = input->kernel_size;
    memset(entry, 0, sizeof(*entry));
    if (load_fails) {
        format_text(why, why_size, "no kernel");
        return E_INVAL;
    }
    for (; input->done < all; input->done += PAGE_SIZE) {
        fiber_give_way();
        assert_true(vm->memory_present && vm->busy);
        // Nothing is loaded twice.
        assert_int_equal(vm->account.private_frames, 2 + input->done / PAGE_SIZE);
        if (take_frame(vm) != 0) {
            format_text(why, why_size, "no memory to load it into");
            return E_NOMEM;
        }
    }
    return 0;
}

static uint64_t fusor_frames; // of a million

void frames_snapshot(struct frames_snapshot *out, struct frame_account *const *accounts, size_t n,
                     uint64_t *private_frames, uint64_t *shared)
{
    (void)accounts;
    memset(out, 0, sizeof(*out));
    out->total = 1000000;
    out->count[FRAME_FUSOR] = fusor_frames;
    for (size_t i = 0; i < n; i++)
        private_frames[i] = shared[i] = 0;
}

void frames_snapshot_ballooned(struct frames_snapshot *out, struct frame_account *const *accounts,
                               size_t n, uint64_t *private_frames, uint64_t *shared,
                               uint64_t *ballooned)
{
    frames_snapshot(out, accounts, n, private_frames, shared);
    for (size_t i = 0; i < n; i++)
        ballooned[i] = atomic_load(&accounts[i]->ballooned);
}

uint64_t frames_reserve(void)
{
    return 1000;
}

uint64_t frames_free(void)
{
    return 500;
}

// --- Scheduler ---

struct sched_times sched_times(const struct sched_entity *e)
{
    return (struct sched_times){e->run_ticks, e->wait_ticks, e->sleep_ticks};
}

void sched_count_sleep(struct sched_entity *e, bool counts)
{
    e->off = !counts;
}

void sched_set_affinity(struct sched_entity *e, uint64_t cpu_mask)
{
    e->cpu_mask = cpu_mask;
}

void sched_group_set(struct sched_group *g, uint32_t weight, uint32_t cap)
{
    g->weight = weight;
    g->cap = cap;
}

void sched_group_remove(struct sched_group *g)
{
    assert_int_equal(g->active, 0);
}

int sched_remove(struct sched_entity *e)
{
    e->dead = true;
    return 0;
}

// --- The platform, and what the console would say ---

static int platform_create(struct vm *vm)
{
    objects++;
    vm->platform = vm;
    return 0;
}

static void platform_destroy(struct vm *vm)
{
    assert_int_equal(vm->account.held, 0);
    objects--;
    vm->platform = NULL;
}

static void platform_reset(struct vm *vm)
{
    assert_true(vm->clock.frozen);
    for (unsigned i = 0; i < vm->vcpus_made; i++)
        assert_int_not_equal(vm->vcpus[i]->stop, 0);
}

static void platform_button(struct vm *vm)
{
    assert_int_equal(vm->state, VM_RUNNING);
    assert_false(vm->load.waits);
}

static const struct vm_platform_ops platform = {.create = platform_create,
                                                .destroy = platform_destroy,
                                                .reset = platform_reset,
                                                .press_power_button = platform_button};

static char said[VM_WHY_MAX]; // the last event
