// SPDX-License-Identifier: BSD-2-Clause
// Small VMs with a real EPT for the census, whose pages appear, change, vanish and are fused while
// it sleeps or yields: sleep_hook and yield_hook say what happens then.
#pragma once

#include "frame_failures.h"
#include "frames_machine.h"
#include "fusion/engine.h"
#include "fusion/page_ops.h"
#include "kernel/error.h"
#include "kernel/heap.h"
#include "kernel/irq.h"
#include "kernel/sched.h"
#include "kernel/time.h"
#include "vm/layout.h"

#define RANGE_PAGES 512u

struct fusion_vm fusion_vms[INDEX_SLOTS];
static struct vm vms[INDEX_SLOTS];
static unsigned yields, sleeps, hashed_in_batch;
static bool in_batch;
static void (*sleep_hook)(void);
static void (*yield_hook)(void);
static uint64_t slept_from;

// --- The rooms around the census ---

struct fusion_vm *fusion_pin(uint8_t slot)
{
    struct fusion_vm *f = &fusion_vms[slot];
    if (!f->active)
        return NULL;
    f->users++;
    return f;
}

void fusion_unpin(struct fusion_vm *f)
{
    assert_true(f->users != 0);
    f->users--;
}

int fusion_group_find(const char *name)
{
    if (strcmp(name, "web") == 0)
        return 1;
    if (strcmp(name, "db") == 0)
        return 2;
    return -1;
}

static uint64_t weak_mask = UINT64_MAX;

static inline uint64_t hash_page(const void *page)
{
    assert_true(in_batch);
    assert_true(++hashed_in_batch <= 64);
    const uint64_t *w = page;
    uint64_t h = 0x1234567;
    for (unsigned i = 0; i < PAGE_SIZE / 8; i++)
        h = (h ^ w[i]) * 0x100000001b3 + i;
    return h & weak_mask;
}

static const struct page_ops ops = {.hash = hash_page, .name = "test"};

const struct page_ops *page_ops_begin(void)
{
    assert_false(in_batch);
    in_batch = true;
    hashed_in_batch = 0;
    return &ops;
}

void page_ops_end(void)
{
    assert_true(in_batch);
    in_batch = false;
}

static inline void nothing_held(void)
{
    assert_true(spin_none_held());
    assert_false(in_batch);
    for (unsigned i = 0; i < INDEX_SLOTS; i++)
        assert_int_equal(fusion_vms[i].users, 0);
}

void fiber_yield(void)
{
    nothing_held();
    yields++;
    if (yield_hook != NULL)
        yield_hook();
}

void fiber_give_way(void)
{
    fiber_yield();
}

void fiber_give_way_if_due(void)
{
    fiber_yield();
}

// Wakes too early twice, then in time.
void fiber_sleep_until(uint64_t deadline)
{
    nothing_held();
    if (sleeps++ == 0) {
        slept_from = fake_tsc;
        if (sleep_hook != NULL)
            sleep_hook();
    }
    assert_in_range(deadline - slept_from, 10 * tsc_hz - 10, 10 * tsc_hz);
    fake_tsc = sleeps <= 2 ? fake_tsc + tsc_hz : deadline;
}

void irq_send_nmi(uint32_t cpu)
{
    (void)cpu;
    fail();
}

// --- VMs ---

static inline void create(unsigned slot, uint64_t id, uint8_t group, uint64_t ranges)
{
    struct vm *vm = &vms[slot];
    memset(vm, 0, sizeof(*vm));
    vm->id = id;
    vm->ranges = ranges;
    assert_int_equal(ept_init(&vm->ept, id), 0);
    fusion_vms[slot] =
        (struct fusion_vm){.vm = vm, .slot = (uint8_t)slot, .group = group, .active = true};
}

static inline void release_page(void *context, gfn_t gfn, struct ept_leaf leaf)
{
    struct vm *vm = context;
    if (leaf.kind != EPT_KIND_SHARED)
        frame_free(leaf.frame, leaf.level == EPT_4K ? 0 : 9, &vm->account);
    (void)gfn;
}

static inline void destroy(unsigned slot)
{
    struct vm *vm = &vms[slot];
    gfn_t next = {0};
    fusion_vms[slot].active = false;
    while (ept_for_each(&vm->ept, &next, 100, release_page, vm) == E_AGAIN)
        ;
    while (ept_destroy(&vm->ept, 100) == E_AGAIN)
        ;
}

static inline void machine_of(uint64_t frames)
{
    frames_machine(frames, 1);
    heap_init();
    memset(ept_cpus, 0, sizeof(ept_cpus));
    ept_features = (struct ept_features){
        .page_2m = true, .execute_only = true, .invept_single = true, .invept_all = true};
    memset(fusion_vms, 0, sizeof(fusion_vms));
    fail_at = 0;
    yields = sleeps = 0;
    sleep_hook = yield_hook = NULL;
    weak_mask = UINT64_MAX;
}

static inline void machine(void)
{
    machine_of(512);
}

static inline void finish(void)
{
    nothing_held();
    for (unsigned i = 0; i < INDEX_SLOTS; i++)
        if (fusion_vms[i].active)
            destroy(i);
    frames_machine_end();
}

// Contents by number: 0 is the zero page; others differ in the last byte only.
static inline void fill_page(hfn_t f, unsigned content)
{
    uint8_t *p = hfn_to_pointer(f);
    memset(p, content == 0 ? 0 : 0x5a, PAGE_SIZE);
    p[PAGE_SIZE - 1] = (uint8_t)content;
}

static inline void map(unsigned slot, gfn_t gfn, hfn_t frame, enum ept_kind kind)
{
    struct ept *ept = &vms[slot].ept;
    assert_int_equal(ept_prepare(ept, gfn), 0);
    ept_lock_gfn(ept, gfn);
    assert_int_equal(ept_map(ept, gfn, frame, EPT_4K,
                             kind == EPT_KIND_PRIVATE ? EPT_RWX : EPT_READ | EPT_EXECUTE, kind),
                     0);
    ept_unlock_gfn(ept, gfn);
}

static inline hfn_t add_page(unsigned slot, uint64_t gfn_number, unsigned content)
{
    hfn_t f;
    assert_int_equal(frame_alloc(FRAME_PRIVATE, 0, 0, &vms[slot].account, &f), 0);
    fill_page(f, content);
    map(slot, gfn(gfn_number), f, EPT_KIND_PRIVATE);
    return f;
}

static inline void remove_page(unsigned slot, uint64_t gfn_number)
{
    struct ept_leaf old;
    ept_lock_gfn(&vms[slot].ept, gfn(gfn_number));
    assert_int_equal(ept_unmap(&vms[slot].ept, gfn(gfn_number), &old), 0);
    ept_unlock_gfn(&vms[slot].ept, gfn(gfn_number));
    if (old.kind != EPT_KIND_SHARED)
        frame_free(old.frame, 0, &vms[slot].account);
}

static inline struct fusion_census census_of(const char *group)
{
    struct fusion_census out;
    uint64_t before = free_frames();
    sleeps = 0;
    memset(&out, 0xee, sizeof(out));
    assert_int_equal(fusion_census(group, &out), 0);
    assert_int_equal(sleeps, 3);
    if (sleep_hook == NULL && yield_hook == NULL)
        assert_int_equal(free_frames(), before);
    nothing_held();
    return out;
}
