// SPDX-License-Identifier: BSD-2-Clause
// Metrics of the host and of the VMs (design section 7): one table each, one snapshot per output.
#pragma once

#include "fusion/fusion.h"
#include "kernel/frames.h"
#include "kernel/types.h"
#include "shell/command.h"
#include "vm/vm.h"

enum metric_unit { METRIC_KB, METRIC_COUNT, METRIC_TICKS };

struct metric {
    const char *name; // "RAM/VMM/Total"
    enum metric_unit unit;
    bool counter; // only grows (Prometheus tells counters from gauges)
};

#define METRICS_HOST    10u
#define METRICS_VM      24u
#define METRIC_NAME_MAX 96u

extern const struct metric metrics_host[METRICS_HOST];
extern const struct metric metrics_vm[METRICS_VM];

const char *metric_unit_name(enum metric_unit unit);

// Everything one output shows. Frames and VMs are taken at one moment, what fusion counted right
// after it.
struct metrics_snapshot {
    struct frames_snapshot frames;
    const struct vm_info *vms;
    const struct fusion_figures *fusion; // of the VM with the same index
    unsigned count;
};

// The value of metrics_host[index], or of metrics_vm[index] for VM number `vm` of the snapshot, in
// its unit. metric_vm_value returns false for what the guest's driver has not told.
uint64_t metric_host_value(unsigned index, const struct metrics_snapshot *snapshot);
bool metric_vm_value(unsigned index, const struct metrics_snapshot *snapshot, unsigned vm,
                     uint64_t *value);

enum metrics_format { METRICS_TEXT, METRICS_JSON, METRICS_PROMETHEUS };

// Prints the metrics of `object` ("host", a VM's name, or "*") whose names match `glob`. Returns
// how many (0: nothing was printed), or E_NOENT when there is no such object.
int metrics_print(struct command_context *c, enum metrics_format format, const char *object,
                  const char *glob);
