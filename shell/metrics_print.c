// SPDX-License-Identifier: BSD-2-Clause
// The metrics as lines of four fields, as JSON, and in Prometheus' text format.
#include "shell/metrics.h"

#include "kernel/error.h"
#include "kernel/format.h"
#include "kernel/string.h"
#include "shell/arguments.h"
#include "shell/facts.h"

struct output {
    struct command_context *c;
    enum metrics_format format;
    const char *object; // "*" for all
    const char *glob;
    int printed;
    // Prometheus wants the samples of one metric together, under one TYPE line.
    char family[METRIC_NAME_MAX];
};

struct sample {
    const char *object;
    const char *metric;
    const char *reason; // last part of the name where a metric is counted by reason, else NULL
    enum metric_unit unit;
    bool counter;
    bool known;
    uint64_t value;
};

static bool wants_object(const struct output *o, const char *object)
{
    return strcmp(o->object, "*") == 0 || strcmp(o->object, object) == 0;
}

static bool is_letter_or_digit(char ch)
{
    return (ch >= 'a' && ch <= 'z') || (ch >= 'A' && ch <= 'Z') || (ch >= '0' && ch <= '9');
}

// "Exits/REASON", "Fusion/Hints/Rejected/REASON": one word, whatever the reason is called.
static void full_name(char name[METRIC_NAME_MAX], const struct sample *s)
{
    format_text(name, METRIC_NAME_MAX, "%s%s%s", s->metric, s->reason != NULL ? "/" : "",
                s->reason != NULL ? s->reason : "");
    for (char *p = name; *p != '\0'; p++)
        if (!is_letter_or_digit(*p) && strchr("/_-.", *p) == NULL)
            *p = '-';
}

// fusor_ram_vmm_total_bytes: lower case, base units, counters end in _total, as Prometheus' naming
// rules ask for.
static void family_name(char family[METRIC_NAME_MAX], const struct sample *s)
{
    const char *unit = s->unit == METRIC_KB ? "_bytes" : s->unit == METRIC_TICKS ? "_ticks" : "";
    if (s->unit == METRIC_TICKS && glob_matches("*/Ticks", s->metric))
        unit = ""; // the name says it
    format_text(family, METRIC_NAME_MAX, "fusor_%s%s%s", s->metric, unit,
                s->counter ? "_total" : "");
    for (char *p = family; *p != '\0'; p++) {
        if (*p >= 'A' && *p <= 'Z')
            *p = (char)(*p - 'A' + 'a');
        else if (!is_letter_or_digit(*p))
            *p = '_';
    }
}

static void print_prometheus(struct output *o, const struct sample *s, const char *name)
{
    char family[METRIC_NAME_MAX];
    if (!s->known)
        return; // a sample that does not exist is left out
    family_name(family, s);
    if (strcmp(family, o->family) != 0) {
        memcpy(o->family, family, sizeof(family));
        command_print(o->c, "# TYPE %s %s\n", family, s->counter ? "counter" : "gauge");
    }
    unsigned long long value = s->unit == METRIC_KB ? s->value * KIB : s->value;
    if (s->reason != NULL)
        command_print(o->c, "%s{object=\"%s\",reason=\"%s\"} %llu\n", family, s->object,
                      name + strlen(s->metric) + 1, value);
    else
        command_print(o->c, "%s{object=\"%s\"} %llu\n", family, s->object, value);
    o->printed++;
}

static void print_sample(struct output *o, const struct sample *s)
{
    char name[METRIC_NAME_MAX];
    char value[24];
    full_name(name, s);
    if (!wants_object(o, s->object) || !glob_matches(o->glob, name))
        return;
    if (o->format == METRICS_PROMETHEUS) {
        print_prometheus(o, s, name);
        return;
    }
    bool json = o->format == METRICS_JSON;
    if (s->known)
        format_text(value, sizeof(value), "%llu", (unsigned long long)s->value);
    else
        format_text(value, sizeof(value), "%s", json ? "null" : "-");
    if (json)
        command_print(o->c, "%s{\"object\":\"%s\",\"metric\":\"%s\",\"value\":%s,\"unit\":\"%s\"}",
                      o->printed == 0 ? "[\n" : ",\n", s->object, name, value,
                      metric_unit_name(s->unit));
    else
        command_print(o->c, "%s %s %s %s\n", s->object, name, value, metric_unit_name(s->unit));
    o->printed++;
}

static void print_host_metric(struct output *o, const struct metrics_snapshot *snapshot,
                              unsigned index)
{
    const struct metric *m = &metrics_host[index];
    struct sample s = {
        "host", m->name, NULL, m->unit, m->counter, true, metric_host_value(index, snapshot)};
    print_sample(o, &s);
}

static void print_vm_metric(struct output *o, const struct metrics_snapshot *snapshot, unsigned vm,
                            unsigned index)
{
    const struct metric *m = &metrics_vm[index];
    struct sample s = {snapshot->vms[vm].config.name, m->name, NULL, m->unit, m->counter, false, 0};
    s.known = metric_vm_value(index, snapshot, vm, &s.value);
    print_sample(o, &s);
}

static void print_rejected(struct output *o, const struct metrics_snapshot *snapshot, unsigned vm)
{
    for (unsigned i = 0; i < FUSION_REJECTS; i++) {
        struct sample s = {snapshot->vms[vm].config.name,
                           "Fusion/Hints/Rejected",
                           fusion_reject_names[i],
                           METRIC_COUNT,
                           true,
                           true,
                           snapshot->fusion[vm].rejected[i]};
        print_sample(o, &s);
    }
}

static void print_exits(struct output *o, const struct vm_info *vm)
{
    static struct vm_exit_count exits[VM_EXIT_KINDS];
    int count = vm_exits(vm->config.name, exits, VM_EXIT_KINDS);
    for (int i = 0; i < count; i++) {
        struct sample s = {vm->config.name, "Exits", exits[i].reason, METRIC_COUNT, true, true,
                           exits[i].count};
        print_sample(o, &s);
    }
}

// Right after the snapshot of the frames: fusion counts beside them.
static const struct fusion_figures *fusion_figures_of(const struct vm_info *vms, unsigned count)
{
    static struct fusion_figures figures[VM_MAX];
    struct fusion_info info;
    for (unsigned v = 0; v < count; v++) {
        if (fusion_get(vms[v].config.name, &info) == 0)
            figures[v] = info.figures;
        else // it is gone since
            memset(&figures[v], 0, sizeof(figures[v]));
    }
    return figures;
}

int metrics_print(struct command_context *c, enum metrics_format format, const char *object,
                  const char *glob)
{
    struct metrics_snapshot snapshot;
    struct vm_info *vms = shell_infos();
    struct output o = {.c = c, .format = format, .object = object, .glob = glob};
    snapshot.count = vm_snapshot(vms, &snapshot.frames);
    snapshot.vms = vms;
    snapshot.fusion = fusion_figures_of(vms, snapshot.count);

    bool found = wants_object(&o, "host");
    for (unsigned v = 0; v < snapshot.count; v++)
        found = found || wants_object(&o, vms[v].config.name);
    if (!found)
        return E_NOENT;

    for (unsigned i = 0; i < METRICS_HOST; i++)
        print_host_metric(&o, &snapshot, i);
    if (format == METRICS_PROMETHEUS) {
        for (unsigned i = 0; i < METRICS_VM; i++)
            for (unsigned v = 0; v < snapshot.count; v++)
                print_vm_metric(&o, &snapshot, v, i);
        for (unsigned v = 0; v < snapshot.count; v++)
            print_rejected(&o, &snapshot, v);
        for (unsigned v = 0; v < snapshot.count; v++)
            print_exits(&o, &vms[v]);
    } else {
        for (unsigned v = 0; v < snapshot.count; v++) {
            for (unsigned i = 0; i < METRICS_VM; i++)
                print_vm_metric(&o, &snapshot, v, i);
            print_rejected(&o, &snapshot, v);
            print_exits(&o, &vms[v]);
        }
    }
    if (format == METRICS_JSON && o.printed > 0)
        command_print(c, "\n]\n");
    return o.printed;
}
