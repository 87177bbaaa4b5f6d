// SPDX-License-Identifier: BSD-2-Clause
// What the metrics are called and where their values come from.
#include "shell/metrics.h"

#include "shell/units.h"

enum host_metric {
    HOST_TOTAL,
    HOST_FUSOR,
    HOST_TABLE,
    HOST_PRIVATE,
    HOST_SHARED,
    HOST_FREE,
    HOST_USED,
    HOST_FILES,
    HOST_SAVED,
    HOST_BALLOONED,
};

const struct metric metrics_host[METRICS_HOST] = {
    [HOST_TOTAL] = {"RAM/VMM/Total", METRIC_KB, false},
    [HOST_FUSOR] = {"RAM/VMM/Fusor", METRIC_KB, false},
    [HOST_TABLE] = {"RAM/VMM/Table", METRIC_KB, false},
    [HOST_PRIVATE] = {"RAM/VMM/Private", METRIC_KB, false},
    [HOST_SHARED] = {"RAM/VMM/Shared", METRIC_KB, false},
    [HOST_FREE] = {"RAM/VMM/Free", METRIC_KB, false},
    [HOST_USED] = {"RAM/VMM/Used", METRIC_KB, false},
    [HOST_FILES] = {"RAM/VMM/Files", METRIC_KB, false},
    [HOST_SAVED] = {"RAM/VMM/Saved", METRIC_KB, false},
    [HOST_BALLOONED] = {"RAM/VMM/Ballooned", METRIC_KB, false},
};

enum vm_metric {
    VM_CONFIGURED,
    VM_RESIDENT,
    VM_PRIVATE,
    VM_SHARED,
    VM_BALLOON,
    VM_UNTOUCHED,
    VM_TOTAL,
    VM_FREE,
    VM_AVAILABLE,
    VM_CACHE,
    VM_CPU_RUN,
    VM_CPU_WAIT,
    VM_CPU_STEAL,
    VM_SHOOTDOWNS,
    VM_LARGE_SPLIT,
    VM_LARGE_COLLAPSED,
    VM_HINTS_RECEIVED,
    VM_HINTS_FUSED,
    VM_HINTS_UNMATCHED,
    VM_SPLITS,
    VM_FUTILE_SPLITS,
    VM_CANCELLED,
    VM_BACKOFF,
    VM_FUSION_TICKS,
};

const struct metric metrics_vm[METRICS_VM] = {
    [VM_CONFIGURED] = {"Guest/RAM/Usage/Configured", METRIC_KB, false},
    [VM_RESIDENT] = {"Guest/RAM/Usage/Resident", METRIC_KB, false},
    [VM_PRIVATE] = {"Guest/RAM/Usage/Private", METRIC_KB, false},
    [VM_SHARED] = {"Guest/RAM/Usage/Shared", METRIC_KB, false},
    [VM_BALLOON] = {"Guest/RAM/Usage/Balloon", METRIC_KB, false},
    [VM_UNTOUCHED] = {"Guest/RAM/Usage/Untouched", METRIC_KB, false},
    [VM_TOTAL] = {"Guest/RAM/Usage/Total", METRIC_KB, false},
    [VM_FREE] = {"Guest/RAM/Usage/Free", METRIC_KB, false},
    [VM_AVAILABLE] = {"Guest/RAM/Usage/Available", METRIC_KB, false},
    [VM_CACHE] = {"Guest/RAM/Usage/Cache", METRIC_KB, false},
    [VM_CPU_RUN] = {"CPU/Run", METRIC_TICKS, true},
    [VM_CPU_WAIT] = {"CPU/Wait", METRIC_TICKS, true},
    [VM_CPU_STEAL] = {"CPU/Steal", METRIC_TICKS, true},
    [VM_SHOOTDOWNS] = {"EPT/Shootdowns", METRIC_COUNT, true},
    [VM_LARGE_SPLIT] = {"EPT/LargeSplit", METRIC_COUNT, true},
    [VM_LARGE_COLLAPSED] = {"EPT/LargeCollapsed", METRIC_COUNT, true},
    [VM_HINTS_RECEIVED] = {"Fusion/Hints/Received", METRIC_COUNT, true},
    [VM_HINTS_FUSED] = {"Fusion/Hints/Fused", METRIC_COUNT, true},
    [VM_HINTS_UNMATCHED] = {"Fusion/Hints/Unmatched", METRIC_COUNT, true},
    [VM_SPLITS] = {"Fusion/Splits", METRIC_COUNT, true},
    [VM_FUTILE_SPLITS] = {"Fusion/FutileSplits", METRIC_COUNT, true},
    [VM_CANCELLED] = {"Fusion/Cancelled", METRIC_COUNT, true},
    [VM_BACKOFF] = {"Fusion/Backoff", METRIC_COUNT, true},
    [VM_FUSION_TICKS] = {"Fusion/Ticks", METRIC_TICKS, true},
};

const char *metric_unit_name(enum metric_unit unit)
{
    switch (unit) {
    case METRIC_KB:
        return "kB";
    case METRIC_COUNT:
        return "count";
    default:
        return "ticks";
    }
}

static uint64_t host_frames(unsigned index, const struct metrics_snapshot *s)
{
    const struct frames_snapshot *f = &s->frames;
    uint64_t ballooned = 0;
    switch (index) {
    case HOST_TOTAL:
        return f->total;
    case HOST_FUSOR:
        return f->count[FRAME_FUSOR];
    case HOST_TABLE:
        return f->count[FRAME_TABLE];
    case HOST_PRIVATE:
        return f->count[FRAME_PRIVATE];
    case HOST_SHARED:
        return f->count[FRAME_SHARED];
    case HOST_FREE:
        return f->count[FRAME_FREE];
    case HOST_USED:
        return f->total - f->count[FRAME_FREE];
    case HOST_FILES:
        return f->file_frames;
    case HOST_SAVED:
        return f->saved;
    default:
        for (unsigned i = 0; i < s->count; i++)
            ballooned += s->vms[i].balloon;
        return ballooned;
    }
}

uint64_t metric_host_value(unsigned index, const struct metrics_snapshot *s)
{
    return kib(host_frames(index, s));
}

static uint64_t usage(unsigned index, const struct vm_info *vm)
{
    switch (index) {
    case VM_CONFIGURED:
        return vm->configured;
    case VM_RESIDENT:
        return vm->private_frames + vm->shared;
    case VM_PRIVATE:
        return vm->private_frames;
    case VM_SHARED:
        return vm->shared;
    case VM_BALLOON:
        return vm->balloon;
    case VM_UNTOUCHED:
        return vm->untouched;
    case VM_TOTAL:
        return vm->report.total;
    case VM_FREE:
        return vm->report.free;
    case VM_AVAILABLE:
        return vm->report.available;
    default:
        return vm->report.cache;
    }
}

static uint64_t counter(unsigned index, const struct vm_info *vm, const struct fusion_figures *f)
{
    switch (index) {
    case VM_CPU_RUN:
        return vm->run_ticks;
    case VM_CPU_WAIT:
        return vm->wait_ticks;
    case VM_CPU_STEAL:
        return vm->steal_ticks;
    case VM_SHOOTDOWNS:
        return vm->shootdowns;
    case VM_LARGE_SPLIT:
        return vm->large_splits;
    case VM_LARGE_COLLAPSED:
        return vm->large_collapses;
    case VM_HINTS_RECEIVED:
        return f->received;
    case VM_HINTS_FUSED:
        return f->fused;
    case VM_HINTS_UNMATCHED:
        return f->unmatched;
    case VM_SPLITS:
        return f->splits;
    case VM_FUTILE_SPLITS:
        return f->futile_splits;
    case VM_CANCELLED:
        return f->cancelled;
    case VM_BACKOFF:
        return f->backoff;
    default:
        return f->ticks;
    }
}

static bool is_reported(unsigned index)
{
    return index >= VM_TOTAL && index <= VM_CACHE;
}

bool metric_vm_value(unsigned index, const struct metrics_snapshot *s, unsigned vm, uint64_t *value)
{
    const struct vm_info *info = &s->vms[vm];
    if (is_reported(index) && !info->report.present)
        return false;
    *value = metrics_vm[index].unit == METRIC_KB ? kib(usage(index, info))
                                                 : counter(index, info, &s->fusion[vm]);
    return true;
}
