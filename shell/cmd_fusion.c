// SPDX-License-Identifier: BSD-2-Clause
// `fusion census`: what could be shared, counted by brute force, beside what is.
#include "fusion/fusion.h"
#include "kernel/error.h"
#include "shell/command.h"
#include "shell/config.h"
#include "shell/units.h"

// Cut off, not rounded: 99.96 % are not shown as 100.0 %.
static void print_share(struct command_context *c, const char *key, uint64_t part, uint64_t whole)
{
    if (whole == 0) {
        command_print(c, "%s: -\n", key);
        return;
    }
    unsigned long long per_mille = part * 1000 / whole; // frames: far from 64 bits
    command_print(c, "%s: %llu.%llu %%\n", key, per_mille / 10, per_mille % 10);
}

static void print_census(struct command_context *c, const struct fusion_census *n)
{
    command_print(c, "vms: %llu\n", (unsigned long long)n->vms);
    command_print(c, "resident: %llu kB\n", kib(n->resident));
    command_print(c, "zero: %llu kB\n", kib(n->zero));
    command_print(c, "shareable: %llu kB\n", kib(n->shareable));
    command_print(c, "shareable-zero: %llu kB\n", kib(n->shareable_zero));
    command_print(c, "unchanged: %llu kB\n", kib(n->unchanged));
    command_print(c, "unchanged-shareable: %llu kB\n", kib(n->unchanged_shareable));
    command_print(c, "unchanged-shareable-zero: %llu kB\n", kib(n->unchanged_shareable_zero));
    command_print(c, "saved: %llu kB\n", kib(n->saved));
    print_share(c, "efficiency-unchanged", n->saved, n->unchanged_shareable);
    print_share(c, "efficiency-all", n->saved, n->shareable);
}

static int census_error(struct command_context *c, int result, const char *group)
{
    switch (result) {
    case E_NOENT:
        if (group == NULL)
            return command_error(c, result, "there is no VM to count, `vm list` shows all");
        return command_error(
            c, result, "no VM is in a group \"%.40s\", `vm show NAME` says fusion-group", group);
    case E_NOMEM:
        return command_error(c, result,
                             "not enough free memory for the census, name one group or "
                             "`vm stop` a VM");
    case E_BUSY:
        return command_error(c, result, "another census runs, try again when it is done");
    default:
        return command_error(c, result, "fusion census: %s", error_text(result));
    }
}

static int run_census(struct command_context *c, int argc, char **argv)
{
    static struct fusion_census census;
    const char *group = argc > 0 ? argv[0] : NULL;
    int result =
        group != NULL && !config_valid_name(group) ? E_NOENT : fusion_census(group, &census);
    if (result < 0)
        return census_error(c, result, group);
    print_census(c, &census);
    return 0;
}

const struct command fusion_commands[] = {
    {"fusion census", "fusion census [GROUP]", "counts what VMs could share, takes over 10 s", 0, 1,
     run_census},
    {NULL, NULL, NULL, 0, 0, NULL},
};
