// SPDX-License-Identifier: BSD-2-Clause
// Metrics of the host and of the VMs (design section 7): one table each, one snapshot per output.
#pragma once

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
#define METRICS_VM      16u
#define METRIC_NAME_MAX 96u

extern const struct metric metrics_host[METRICS_HOST];
extern const struct metric metrics_vm[METRICS_VM];

const char *metric_unit_name(enum metric_unit unit);

// Everything one output shows, taken at one moment.
struct metrics_snapshot {
    struct frames_snapshot frames;
    const struct vm_info *vms;
    unsigned count;
};

// The value of metrics_host[index] / metrics_vm[index] in its unit. metric_vm_value returns false
// for what only the guest's driver could tell.
uint64_t metric_host_value(unsigned index, const struct metrics_snapshot *snapshot);
bool metric_vm_value(unsigned index, const struct vm_info *vm, uint64_t *value);

enum metrics_format { METRICS_TEXT, METRICS_JSON, METRICS_PROMETHEUS };

// Prints the metrics of `object` ("host", a VM's name, or "*") whose names match `glob`. Returns
// how many (0: nothing was printed), or E_NOENT when there is no such object.
int metrics_print(struct command_context *c, enum metrics_format format, const char *object,
                  const char *glob);
