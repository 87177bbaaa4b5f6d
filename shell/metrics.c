// SPDX-License-Identifier: BSD-2-Clause
// What the metrics are called and where their values come from.
#include "shell/metrics.h"

#define KIB_PER_FRAME (PAGE_SIZE / KIB)

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
    return host_frames(index, s) * KIB_PER_FRAME;
}

bool metric_vm_value(unsigned index, const struct vm_info *vm, uint64_t *value)
{
    switch (index) {
    case VM_CONFIGURED:
        *value = vm->configured * KIB_PER_FRAME;
        return true;
    case VM_RESIDENT:
        *value = (vm->private_frames + vm->shared) * KIB_PER_FRAME;
        return true;
    case VM_PRIVATE:
        *value = vm->private_frames * KIB_PER_FRAME;
        return true;
    case VM_SHARED:
        *value = vm->shared * KIB_PER_FRAME;
        return true;
    case VM_BALLOON:
        *value = vm->balloon * KIB_PER_FRAME;
        return true;
    case VM_UNTOUCHED:
        *value = vm->untouched * KIB_PER_FRAME;
        return true;
    case VM_CPU_RUN:
        *value = vm->run_ticks;
        return true;
    case VM_CPU_WAIT:
        *value = vm->wait_ticks;
        return true;
    case VM_CPU_STEAL:
        *value = vm->steal_ticks;
        return true;
    case VM_SHOOTDOWNS:
        *value = vm->shootdowns;
        return true;
    case VM_LARGE_SPLIT:
        *value = vm->large_splits;
        return true;
    case VM_LARGE_COLLAPSED:
        *value = vm->large_collapses;
        return true;
    default: // what the guest's own driver knows
        return false;
    }
}
