// SPDX-License-Identifier: BSD-2-Clause
// Commands about VMs.
#include "shell/command.h"

#include "fusion/fusion.h"
#include "kernel/error.h"
#include "kernel/log.h"
#include "kernel/string.h"
#include "shell/arguments.h"
#include "shell/attach.h"
#include "shell/config.h"
#include "shell/facts.h"
#include "shell/units.h"
#include "shell/vm_show.h"
#include "vm/vm.h"

#define NAME_SHOWN "%.40s"

// Too large for the console fiber's stack, which is the only one to use them.
static struct vm_config draft;
static struct vm_info info;

static int no_such_vm(struct command_context *c, const char *name)
{
    return command_error(c, E_NOENT, "no VM is called \"" NAME_SHOWN "\", `vm list` shows all",
                         name);
}

// Turns the result of a lifecycle call into the answer.
static int answer(struct command_context *c, const char *name, int result, const char *why)
{
    if (result == E_NOENT)
        return no_such_vm(c, name);
    if (result < 0)
        return command_error(c, result, "VM " NAME_SHOWN ": %s", name,
                             why[0] != '\0' ? why : error_text(result));
    return 0;
}

static int refuse_console_only(struct command_context *c)
{
    return command_error(c, E_NOSYS, "VT-x is not in use, remove \\fusor\\console-only and reboot");
}

static int run_list(struct command_context *c, int argc, char **argv)
{
    (void)argc;
    (void)argv;
    struct frames_snapshot frames;
    struct vm_info *vms = shell_infos();
    unsigned count = vm_snapshot(vms, &frames);
    command_print(c, "%-31s %-14s %5s %10s %10s %10s %10s\n", "NAME", "STATE", "VCPUS", "MEMORY",
                  "RESIDENT", "SHARED", "BALLOON");
    for (unsigned i = 0; i < count; i++) {
        const struct vm_info *v = &vms[i];
        command_print(c, "%-31s %-14s %5u %10llu %10llu %10llu %10llu\n", v->config.name,
                      vm_state_name(v->state), v->config.cpus, kib(v->configured),
                      kib(v->private_frames + v->shared), kib(v->shared), kib(v->balloon));
    }
    return 0;
}

// Of the VM in `info`. Fusion need not know a VM that never ran: it will begin as its config says.
static void get_fusion(struct fusion_info *fusion)
{
    if (fusion_get(info.config.name, fusion) == 0)
        return;
    memset(fusion, 0, sizeof(*fusion));
    fusion->mode = info.config.page_fusion ? FUSION_ON : FUSION_OFF;
}

static int run_show(struct command_context *c, int argc, char **argv)
{
    struct fusion_info fusion;
    (void)argc;
    if (vm_get(argv[0], &info) < 0)
        return no_such_vm(c, argv[0]);
    get_fusion(&fusion);
    vm_show(c, &info, &fusion);
    return 0;
}

// Sets the KEY=VALUE words on the draft; *warnings gets a bit per word whose key is not in effect
// yet. A failure prints its one line and nothing else.
static int apply(struct command_context *c, int argc, char **argv, uint64_t *warnings)
{
    char message[CONFIG_MESSAGE_MAX];
    bool modules_cleared = false;
    *warnings = 0;
    for (int i = 0; i < argc; i++) {
        char *value = strchr(argv[i], '=');
        if (value == NULL)
            return command_error(c, E_FORMAT, "expected KEY=VALUE, got \"%.64s\"", argv[i]);
        *value++ = '\0';
        if (strcmp(argv[i], "module") == 0 && !modules_cleared) {
            draft.module_count = 0; // the new ones replace the old ones
            modules_cleared = true;
        }
        for (int j = 0; j < i; j++)
            if (strcmp(argv[j], argv[i]) == 0 && !config_vm_key_repeats(argv[i]))
                return command_error(c, E_INVAL, "%.64s: expected once, it is given twice",
                                     argv[i]);
        int result = config_set_vm_key(&draft, argv[i], value, message);
        if (result < 0)
            return command_error(c, result, "%s", message);
        if (result > 0)
            *warnings |= UINT64_C(1) << i;
    }
    return 0;
}
_Static_assert(ARGUMENTS_MAX <= 64, "a bit per word");

static void warn(struct command_context *c, int argc, char **argv, uint64_t warnings)
{
    for (int i = 0; i < argc; i++)
        if ((warnings & UINT64_C(1) << i) != 0)
            command_warn(c, "%s is not in effect yet", argv[i]);
}

static bool given(int argc, char **argv, const char *key)
{
    for (int i = 0; i < argc; i++)
        if (strcmp(argv[i], key) == 0)
            return true;
    return false;
}

static uint64_t half(uint64_t memory)
{
    return ALIGN_DOWN(memory / 2, PAGE_SIZE);
}

static int check_draft(struct command_context *c)
{
    char message[CONFIG_MESSAGE_MAX];
    const char *key;
    int result = config_check_vm(&draft, &key, message);
    return result < 0 ? command_error(c, result, "%s", message) : 0;
}

static int run_create(struct command_context *c, int argc, char **argv)
{
    char why[VM_WHY_MAX] = "";
    uint64_t warnings;
    if (shell_facts.console_only)
        return refuse_console_only(c);
    if (!config_valid_name(argv[0]))
        return command_error(c, E_INVAL,
                             "\"" NAME_SHOWN "\" is no VM name, expected a-z, 0-9, _ "
                             "and -, at most 31 characters, not host or all",
                             argv[0]);
    if (vm_get(argv[0], &info) == 0)
        return command_error(c, E_EXIST, "VM %s exists, choose another name or `vm destroy %s`",
                             argv[0], argv[0]);
    config_vm_defaults(&draft);
    memcpy(draft.name, argv[0], strlen(argv[0]) + 1);
    int result = apply(c, argc - 1, argv + 1, &warnings);
    if (result < 0)
        return result;
    if (!given(argc - 1, argv + 1, "memory-min"))
        draft.memory_min = half(draft.memory);
    result = check_draft(c);
    if (result < 0)
        return result;
    result = vm_create(&draft, why);
    if (result < 0)
        return command_error(c, result, "VM %s: %s", draft.name,
                             why[0] != '\0' ? why : error_text(result));
    warn(c, argc - 1, argv + 1, warnings);
    return 0;
}

// Fusion follows page-fusion at once. Where it cannot, the whole change is taken back, so that what
// `vm show` says of the config is what is in effect.
static int follow_page_fusion(struct command_context *c, bool was_on)
{
    char why[VM_WHY_MAX] = "";
    char unused[VM_WHY_MAX];
    if (draft.page_fusion == was_on && draft.page_fusion == info.config.page_fusion)
        return 0;
    int result = fusion_switch(draft.name, draft.page_fusion, why);
    if (result < 0)
        vm_set(&info.config, unused);
    return answer(c, draft.name, result, why);
}

static int run_set(struct command_context *c, int argc, char **argv)
{
    char why[VM_WHY_MAX] = "";
    uint64_t warnings;
    struct fusion_info fusion;
    if (vm_get(argv[0], &info) < 0)
        return no_such_vm(c, argv[0]);
    get_fusion(&fusion);
    draft = info.config;
    int result = apply(c, argc - 1, argv + 1, &warnings);
    if (result < 0)
        return result;
    // The default follows memory; a value that was chosen stays.
    if (!given(argc - 1, argv + 1, "memory-min") &&
        info.config.memory_min == half(info.config.memory))
        draft.memory_min = half(draft.memory);
    result = check_draft(c);
    if (result < 0)
        return result;
    result = answer(c, argv[0], vm_set(&draft, why), why);
    if (result == 0 && given(argc - 1, argv + 1, "page-fusion"))
        result = follow_page_fusion(c, fusion.mode == FUSION_ON);
    if (result == 0)
        warn(c, argc - 1, argv + 1, warnings);
    return result;
}

typedef int (*lifecycle_call)(const char *name, char *why);

static int lifecycle(struct command_context *c, const char *verb, const char *name,
                     lifecycle_call call)
{
    log_info("console: vm %s %.40s", verb, name); // when it began; events say what came of it
    char why[VM_WHY_MAX] = "";
    // Asked first: a missing file may be E_NOENT too.
    if (vm_get(name, &info) < 0)
        return no_such_vm(c, name);
    int result = call(name, why);
    if (result == E_NOENT && why[0] != '\0')
        result = E_INVAL;
    return answer(c, name, result, why);
}

static int run_start(struct command_context *c, int argc, char **argv)
{
    (void)argc;
    return shell_facts.console_only ? refuse_console_only(c)
                                    : lifecycle(c, "start", argv[0], vm_start);
}

#define LIFECYCLE_COMMAND(verb)                                                                    \
    static int run_##verb(struct command_context *c, int argc, char **argv)                        \
    {                                                                                              \
        (void)argc;                                                                                \
        return lifecycle(c, #verb, argv[0], vm_##verb);                                            \
    }
LIFECYCLE_COMMAND(pause)
LIFECYCLE_COMMAND(resume)
LIFECYCLE_COMMAND(reset)
LIFECYCLE_COMMAND(shutdown)
LIFECYCLE_COMMAND(stop)
LIFECYCLE_COMMAND(destroy)
#undef LIFECYCLE_COMMAND

static int run_balloon(struct command_context *c, int argc, char **argv)
{
    char why[VM_WHY_MAX] = "";
    uint64_t bytes;
    (void)argc;
    if (vm_get(argv[0], &info) < 0)
        return no_such_vm(c, argv[0]);
    int result = config_parse_size(argv[1], &bytes);
    if (result == E_FORMAT)
        return command_error(c, result, "expected an integer with K, M or G, got \"%.32s\"",
                             argv[1]);
    if (result < 0 || (bytes & PAGE_MASK) != 0)
        return command_error(c, E_RANGE, "expected a multiple of 4K below 16777216G, got \"%.32s\"",
                             argv[1]);
    return answer(c, argv[0], vm_balloon(argv[0], bytes, why), why);
}

static int run_fusion(struct command_context *c, int argc, char **argv)
{
    char why[VM_WHY_MAX] = "";
    (void)argc;
    bool on = strcmp(argv[1], "on") == 0;
    if (!on && strcmp(argv[1], "off") != 0)
        return command_error(c, E_INVAL, "expected on or off, got \"%.32s\"", argv[1]);
    return answer(c, argv[0], fusion_switch(argv[0], on, why), why);
}

static int run_console(struct command_context *c, int argc, char **argv)
{
    (void)argc;
    int result = attach(c, argv[0]);
    return result < 0 ? no_such_vm(c, argv[0]) : 0;
}

static int run_exits(struct command_context *c, int argc, char **argv)
{
    static struct vm_exit_count exits[VM_EXIT_KINDS];
    (void)argc;
    int count = vm_exits(argv[0], exits, VM_EXIT_KINDS);
    if (count < 0)
        return no_such_vm(c, argv[0]);
    // Most frequent first; a few dozen at most.
    for (int i = 1; i < count; i++) {
        struct vm_exit_count moved = exits[i];
        int j = i;
        for (; j > 0 && exits[j - 1].count < moved.count; j--)
            exits[j] = exits[j - 1];
        exits[j] = moved;
    }
    for (int i = 0; i < count; i++)
        command_print(c, "%s: %llu\n", exits[i].reason, (unsigned long long)exits[i].count);
    return 0;
}

const struct command vm_commands[] = {
    {"vm list", "vm list", "lists the VMs, sizes in kB", 0, 0, run_list},
    {"vm show", "vm show NAME", "shows everything about a VM", 1, 1, run_show},
    {"vm create", "vm create NAME KEY=VALUE...", "creates a VM, keys as in fusor.conf", 1,
     ARGUMENTS_MAX, run_create},
    {"vm set", "vm set NAME KEY=VALUE...", "changes a VM's keys", 2, ARGUMENTS_MAX, run_set},
    {"vm start", "vm start NAME", "loads the kernel and starts the VM", 1, 1, run_start},
    {"vm pause", "vm pause NAME", "freezes a VM and its time", 1, 1, run_pause},
    {"vm resume", "vm resume NAME", "lets a paused VM go on", 1, 1, run_resume},
    {"vm reset", "vm reset NAME", "restarts a VM from its files", 1, 1, run_reset},
    {"vm shutdown", "vm shutdown NAME", "presses the VM's power button", 1, 1, run_shutdown},
    {"vm stop", "vm stop NAME", "stops a VM at once", 1, 1, run_stop},
    {"vm destroy", "vm destroy NAME", "removes a VM and gives its memory back", 1, 1, run_destroy},
    {"vm balloon", "vm balloon NAME SIZE", "asks a VM's driver to give so much of its memory", 2, 2,
     run_balloon},
    {"vm fusion", "vm fusion NAME on|off",
     "lets a VM share equal pages, or takes its own copies back", 2, 2, run_fusion},
    {"vm console", "vm console NAME", "attaches to the VM's serial port, Ctrl-] detaches", 1, 1,
     run_console},
    {"exits", "exits NAME", "counts a VM's exits by reason", 1, 1, run_exits},
    {NULL, NULL, NULL, 0, 0, NULL},
};
