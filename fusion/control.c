// SPDX-License-Identifier: BSD-2-Clause
// Fusion for the console and for the guest's own statistics.
#include "fusion/fusion.h"

#include "fusion/engine.h"
#include "fusion/page_ops.h"
#include "kernel/error.h"
#include "kernel/format.h"
#include "kernel/string.h"
#include "vm/table.h"

static uint64_t get(_Atomic uint64_t *counter)
{
    return atomic_load_explicit(counter, memory_order_relaxed);
}

static void copy_figures(struct fusion_vm *f, struct fusion_figures *out)
{
    struct fusion_counters *c = &f->count;
    out->received = get(&c->received);
    out->fused = get(&c->fused);
    out->unmatched = get(&c->unmatched);
    for (unsigned i = 0; i < FUSION_REJECTS; i++)
        out->rejected[i] = get(&c->rejected[i]);
    for (unsigned i = 0; i < FUSOR_CLASSES; i++)
        out->fused_by_class[i] = get(&c->fused_by_class[i]);
    out->splits = get(&c->splits);
    out->futile_splits = get(&c->futile_splits);
    out->last_sharers = get(&c->last_sharers);
    out->cancelled = get(&c->cancelled);
    out->backoff = get(&c->backoff);
    out->ticks = get(&c->ticks);
    out->large_fused = get(&c->large_fused);
    out->scanned = get(&c->scanned);
}

int fusion_get(const char *vm_name, struct fusion_info *out)
{
    memset(out, 0, sizeof(*out));
    struct fusion_vm *f = fusion_find(vm_name);
    if (f == NULL)
        return E_NOENT;
    out->mode = (enum fusion_mode)f->mode;
    copy_figures(f, &out->figures);
    if (f->active && out->mode == FUSION_SPLITTING)
        out->shared_left = get(&f->vm->account.shared_gfns);
    fusion_found(f);
    return 0;
}

int fusion_switch(const char *vm_name, bool on, char *why)
{
    struct vm *vm = vm_acquire(vm_name);
    if (vm == NULL) {
        format_text(why, VM_WHY_MAX, "no VM named %s; `vm list` shows all", vm_name);
        return E_NOENT;
    }
    struct fusion_vm *f = fusion_of(vm);
    vm->config.page_fusion = on;
    if (f != NULL && f->active) {
        if (on)
            atomic_store(&f->mode, FUSION_ON);
        else if (f->mode == FUSION_ON)
            atomic_store(&f->mode, FUSION_SPLITTING);
        service_wake();
    }
    vm_release(vm);
    return 0;
}

void fusion_statistics(struct vm *vm, struct fusor_statistics *out)
{
    struct fusion_vm *f = fusion_of(vm);
    struct fusion_figures figures;
    copy_figures(f, &figures);
    memset(out, 0, sizeof(*out));
    out->hints_received = figures.received;
    out->hints_fused = figures.fused;
    out->hints_unmatched = figures.unmatched;
    for (unsigned i = 0; i < FUSION_REJECTS; i++)
        out->hints_rejected += figures.rejected[i];
    out->splits = figures.splits;
    out->cancelled = figures.cancelled;
    out->shared = get(&vm->account.shared_gfns);
    for (unsigned i = 0; i < FUSOR_CLASSES; i++)
        out->fused_by_class[i] = figures.fused_by_class[i];
}

const char *fusion_engine(void)
{
    const char *name = page_ops_begin()->name;
    page_ops_end();
    return name;
}
