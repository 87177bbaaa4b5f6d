// SPDX-License-Identifier: BSD-2-Clause
// What surrounds vm/lifecycle.c and vm/vcpus.c, pretended: heap, frames, scheduler, CPUID, files, a
// platform without devices. Memory, loader, fibers and the vCPUs' ways are the test's own. For one
// translation unit per program, which has the two files in it: their service fiber is static.
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

int files_find(const char *path, const uint8_t **data, uint64_t *size)
{
    (void)path;
    *data = NULL;
    *size = 0;
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
}

static const struct vm_platform_ops platform = {.create = platform_create,
                                                .destroy = platform_destroy,
                                                .reset = platform_reset,
                                                .press_power_button = platform_button};

static char said[VM_WHY_MAX]; // the last event
