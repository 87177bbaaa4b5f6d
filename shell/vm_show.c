// SPDX-License-Identifier: BSD-2-Clause
#include "shell/vm_show.h"

#include "shell/units.h"

static const char *or_dash(const char *text)
{
    return text[0] != '\0' ? text : "-";
}

static void show_config(struct command_context *c, const struct vm_config *v)
{
    static const char *const boot[] = {[VM_BOOT_DETECT] = "detect",
                                       [VM_BOOT_LINUX] = "linux",
                                       [VM_BOOT_PVH] = "pvh",
                                       [VM_BOOT_MULTIBOOT] = "multiboot"};
    static const char *const large[] = {
        [VM_LARGE_AUTO] = "auto", [VM_LARGE_EAGER] = "eager", [VM_LARGE_OFF] = "off"};
    command_print(c, "memory: %lluK\n", (unsigned long long)(v->memory / KIB));
    command_print(c, "kernel: %s\n", or_dash(v->kernel));
    command_print(c, "initrd: %s\n", or_dash(v->initrd));
    command_print(c, "cmdline: %s\n", or_dash(v->cmdline));
    for (uint32_t i = 0; i < v->module_count; i++)
        command_print(c, "module: %s\n", v->modules[i]);
    command_print(c, "boot: %s\n", boot[v->boot]);
    command_print(c, "cpus: %u\n", v->cpus);
    command_print(c, "page-fusion: %s\n", v->page_fusion ? "on" : "off");
    command_print(c, "fusion-group: %s\n", or_dash(v->fusion_group));
    command_print(c, "scan: %llu\n", (unsigned long long)v->scan);
    command_print(c, "memory-min: %lluK\n", (unsigned long long)(v->memory_min / KIB));
    command_print(c, "large-pages: %s\n", large[v->large_pages]);
    command_print(c, "weight: %u\n", v->weight);
    command_print(c, "cap: %u\n", v->cap);
    if (v->affinity == UINT64_MAX)
        command_print(c, "affinity: all\n");
    else
        command_print(c, "affinity: mask 0x%llx\n", (unsigned long long)v->affinity);
    command_print(c, "autostart: %s\n", v->autostart ? "on" : "off");
}

static const char *mode_name(enum fusion_mode mode)
{
    switch (mode) {
    case FUSION_ON:
        return "on";
    case FUSION_SPLITTING:
        return "splitting";
    default:
        return "off";
    }
}

static void show_count(struct command_context *c, const char *key, uint64_t count)
{
    command_print(c, "%s: %llu\n", key, (unsigned long long)count);
}

static void show_fusion(struct command_context *c, const struct fusion_info *fusion)
{
    const struct fusion_figures *f = &fusion->figures;
    uint64_t rejected = 0;
    for (unsigned i = 0; i < FUSION_REJECTS; i++)
        rejected += f->rejected[i];
    command_print(c, "fusion: %s\n", mode_name(fusion->mode));
    if (fusion->mode == FUSION_SPLITTING)
        command_print(c, "fusion-left: %llu kB\n", kib(fusion->shared_left));
    show_count(c, "hints-received", f->received);
    show_count(c, "hints-fused", f->fused);
    show_count(c, "hints-unmatched", f->unmatched);
    show_count(c, "hints-rejected", rejected);
    show_count(c, "splits", f->splits);
    show_count(c, "futile-splits", f->futile_splits);
    show_count(c, "last-sharers", f->last_sharers);
    show_count(c, "cancelled", f->cancelled);
    show_count(c, "backoff", f->backoff);
    show_count(c, "fusion-ticks", f->ticks);
    show_count(c, "large-fused", f->large_fused);
    show_count(c, "scanned", f->scanned);
}

static void show_report(struct command_context *c, const struct vm_report *report)
{
    const struct {
        const char *key;
        uint64_t frames;
    } lines[] = {{"guest-total", report->total},
                 {"guest-free", report->free},
                 {"guest-available", report->available},
                 {"guest-cache", report->cache}};
    for (unsigned i = 0; i < ARRAY_SIZE(lines); i++)
        if (report->present)
            command_print(c, "%s: %llu kB\n", lines[i].key, kib(lines[i].frames));
        else
            command_print(c, "%s: -\n", lines[i].key);
}

void vm_show(struct command_context *c, const struct vm_info *info,
             const struct fusion_info *fusion)
{
    command_print(c, "name: %s\n", info->config.name);
    show_count(c, "id", info->id);
    command_print(c, "state: %s\n", vm_state_name(info->state));
    if (info->crash[0] != '\0')
        command_print(c, "crash: %s\n", info->crash);
    show_config(c, &info->config);
    command_print(c, "configured: %llu kB\n", kib(info->configured));
    command_print(c, "resident: %llu kB\n", kib(info->private_frames + info->shared));
    command_print(c, "private: %llu kB\n", kib(info->private_frames));
    command_print(c, "shared: %llu kB\n", kib(info->shared));
    command_print(c, "balloon: %llu kB\n", kib(info->balloon));
    command_print(c, "balloon-target: %llu kB%s\n", kib(info->balloon_target),
                  info->balloon_target != 0 && !info->balloon_driver ? " (pending: no driver)"
                                                                     : "");
    command_print(c, "balloon-returned: %llu kB\n", kib(info->balloon_returned));
    command_print(c, "held-back: %llu kB\n", kib(info->held_back));
    command_print(c, "untouched: %llu kB\n", kib(info->untouched));
    show_report(c, &info->report);
    show_fusion(c, fusion);
    command_print(c, "ept-tables: %llu kB\n", kib(info->table_frames));
    show_count(c, "large-leaves", info->large_leaves);
    show_count(c, "promotions", info->promotions);
    show_count(c, "large-splits", info->large_splits);
    show_count(c, "large-collapses", info->large_collapses);
    show_count(c, "shootdowns", info->shootdowns);
    show_count(c, "run-ticks", info->run_ticks);
    show_count(c, "wait-ticks", info->wait_ticks);
    show_count(c, "steal-ticks", info->steal_ticks);
    show_count(c, "unknown-msrs", info->unknown_msrs);
    show_count(c, "unclaimed-io", info->unclaimed_io);
    show_count(c, "rom-writes", info->rom_writes);
}
