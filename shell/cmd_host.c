// SPDX-License-Identifier: BSD-2-Clause
// Commands about the machine and Fusor itself.
#include "shell/command.h"

#include "ept/ept.h"
#include "fusion/fusion.h"
#include "hypercall/fusor_abi.h"
#include "hypercall/hypercall.h"
#include "kernel/error.h"
#include "kernel/sched.h"
#include "kernel/files.h"
#include "kernel/frames.h"
#include "kernel/log.h"
#include "kernel/paging.h"
#include "kernel/percpu.h"
#include "kernel/power.h"
#include "kernel/serial.h"
#include "kernel/string.h"
#include "kernel/time.h"
#include "shell/console_internal.h"
#include "shell/events.h"
#include "shell/facts.h"
#include "shell/metrics.h"
#include "shell/terminal.h"
#include "shell/units.h"
#include "shell/version.h"
#include "vmx/vcpu.h"

#define LOG_LINE_MAX 256u
#define FOLLOW_US    20000u

static void host_memory(struct command_context *c)
{
    struct frames_snapshot f;
    frames_snapshot(&f, NULL, 0, NULL, NULL);
    command_print(c, "memory-total: %llu kB\n", kib(f.total));
    command_print(c, "memory-used: %llu kB\n", kib(f.total - f.count[FRAME_FREE]));
    command_print(c, "memory-free: %llu kB\n", kib(f.count[FRAME_FREE]));
    command_print(c, "memory-reserve: %llu kB\n", kib(frames_reserve()));
}

static void host_engine(struct command_context *c)
{
    if (shell_facts.console_only) {
        command_print(c, "vt-x: not used, \\fusor\\console-only exists\n");
        return;
    }
    const struct ept_features *e = &ept_features;
    command_print(c, "vt-x: on\n");
    command_print(c, "ept: 4k%s%s%s%s\n", e->page_2m ? " 2m" : "", e->page_1g ? " 1g" : "",
                  e->accessed_dirty ? " accessed-dirty" : "",
                  e->execute_only ? " execute-only" : "");
    command_print(c, "invept: %s%s\n", e->invept_single ? "single " : "",
                  e->invept_all ? "all" : "");
    command_print(c, "large-executable-pages: %s\n",
                  e->large_executable_safe ? "safe" : "split on fetch");
    command_print(c, "fusion-engine: %s\n", fusion_engine());
    uint64_t refused = 0;
    for (unsigned code = 1; code <= FUSOR_ENOSYS; code++)
        refused += hypercall_refused(code);
    command_print(c, "hypercalls-refused: %llu\n", (unsigned long long)refused);
}

static void host_files(struct command_context *c)
{
    static const char *const status[] = {
        [BOOT_FILE_LOADED] = "loaded",
        [BOOT_FILE_MISSING] = "missing",
        [BOOT_FILE_UNREADABLE] = "unreadable",
        [BOOT_FILE_NO_MEMORY] = "no memory",
    };
    command_print(c, "files: %u\n", files_count());
    for (unsigned i = 0; i < files_count(); i++) {
        const struct boot_file *f = files_get(i);
        command_print(c, "file: %.*s, %llu bytes, %s\n", (int)BOOT_PATH_MAX, f->path,
                      (unsigned long long)f->size,
                      f->status < ARRAY_SIZE(status) ? status[f->status] : "unknown");
    }
}

static int run_host(struct command_context *c, int argc, char **argv)
{
    (void)argc;
    (void)argv;
    unsigned online = 0;
    for (uint32_t i = 0; i < cpu_count; i++)
        online += cpus[i].online != 0;
    uint64_t up = time_tsc_to_us(time_since_boot());
    struct paging_audit audit;
    paging_audit(&audit);

    command_print(c, "version: %s\n", FUSOR_VERSION);
    command_print(c, "cpus: %u\n", cpu_count);
    command_print(c, "cpus-online: %u\n", online);
    command_print(c, "tsc-hz: %llu\n", (unsigned long long)tsc_hz);
    command_print(c, "uptime: %llu.%06llu s\n", (unsigned long long)(up / 1000000),
                  (unsigned long long)(up % 1000000));
    command_print(c, "entry-to-console: %llu ticks\n",
                  (unsigned long long)(shell_facts.console_tsc - shell_facts.entry_tsc));
    host_memory(c);
    host_engine(c);
    command_print(c, "mappings: %llu\n", (unsigned long long)audit.mappings);
    command_print(c, "writable-executable-mappings: %llu\n",
                  (unsigned long long)audit.writable_executable);
    command_print(c, "console: 0x%x, %u baud\n", shell_facts.host.console_port,
                  shell_facts.host.console_baud);
    command_print(c, "serial-lost-bytes: %llu\n", (unsigned long long)serial_lost_bytes());
    command_print(c, "overcommit: %s\n", shell_facts.host.overcommit ? "on" : "off");
    command_print(c, "apicv: %s\n", vmx_apicv_state());
    command_print(c, "auto-balloon: %s\n", shell_facts.host.auto_balloon ? "on" : "off");
    if (shell_facts.config_read)
        command_print(c, "config: \\fusor\\fusor.conf, %u errors, %u warnings\n",
                      shell_facts.errors, shell_facts.warnings);
    else
        command_print(c, "config: none\n");
    host_files(c);
    return 0;
}

static int run_metrics(struct command_context *c, int argc, char **argv)
{
    enum metrics_format format = METRICS_TEXT;
    if (argc > 0 && argv[0][0] == '-') {
        if (strcmp(argv[0], "--json") == 0)
            format = METRICS_JSON;
        else if (strcmp(argv[0], "--prometheus") == 0)
            format = METRICS_PROMETHEUS;
        else
            return command_error(c, E_INVAL,
                                 "unknown option %.32s, expected --json or --prometheus", argv[0]);
        argc--;
        argv++;
    }
    if (argc > 2)
        return command_error(c, E_INVAL, "usage: metrics [--json|--prometheus] [OBJECT|* [GLOB]]");
    const char *object = argc > 0 ? argv[0] : "*";
    const char *glob = argc > 1 ? argv[1] : "*";
    int count = metrics_print(c, format, object, glob);
    if (count == E_NOENT)
        return command_error(c, count, "no VM is called \"%.32s\", expected host, a VM or *",
                             object);
    if (count == 0)
        return command_error(c, E_NOENT, "no metric matches \"%.64s\", `metrics` lists all", glob);
    return 0;
}

// The number behind the last line there is. Bounds `log`, which would otherwise chase a log that
// grows as fast as the line sends it.
static uint64_t log_end(void)
{
    char line[LOG_LINE_MAX];
    uint64_t next = 0;
    while (log_read(&next, LOG_DEBUG, line, sizeof(line)))
        ;
    return next;
}

static void follow(struct command_context *c)
{
    char line[LOG_LINE_MAX];
    uint64_t next = log_end();
    command_print(c, "following the log, any key ends it\n");
    int key;
    while ((key = terminal_getc(TERMINAL_RAW)) < 0) {
        bool any = console_print_events();
        // Looks for the key between lines too: a log that never pauses must not hold the console.
        if (log_read(&next, LOG_DEBUG, line, sizeof(line))) {
            command_print(c, "%s\n", line);
            fiber_give_way();
        } else if (!any)
            console_sleep_us(FOLLOW_US);
    }
    if (key == '\r')
        terminal_swallow_lf();
}

static int run_log(struct command_context *c, int argc, char **argv)
{
    int level = LOG_DEBUG;
    if (argc == 1 && strcmp(argv[0], "follow") == 0) {
        follow(c);
        return 0;
    }
    if (argc == 1) {
        for (level = 0; level < LOG_LEVELS; level++)
            if (strcmp(argv[0], log_level_name((enum log_level)level)) == 0)
                break;
        if (level == LOG_LEVELS)
            return command_error(c, E_INVAL,
                                 "unknown level \"%.32s\", expected follow, %s, %s, %s "
                                 "or %s",
                                 argv[0], log_level_name(LOG_ERROR), log_level_name(LOG_WARNING),
                                 log_level_name(LOG_INFO), log_level_name(LOG_DEBUG));
    }
    char line[LOG_LINE_MAX];
    uint64_t end = log_end();
    uint64_t next = 0;
    while (log_read(&next, (enum log_level)level, line, sizeof(line)) && next <= end)
        command_print(c, "%s\n", line);
    return 0;
}

static int run_term(struct command_context *c, int argc, char **argv)
{
    (void)argc;
    bool ansi = strcmp(argv[0], "ansi") == 0;
    if (!ansi && strcmp(argv[0], "plain") != 0)
        return command_error(c, E_INVAL, "unknown terminal \"%.32s\", expected ansi or plain",
                             argv[0]);
    terminal_set_ansi(ansi);
    return 0;
}

static int run_reboot(struct command_context *c, int argc, char **argv)
{
    (void)argc;
    (void)argv;
    command_print(c, "rebooting\n");
    serial_drain();
    power_reboot();
}

static int run_poweroff(struct command_context *c, int argc, char **argv)
{
    (void)argc;
    (void)argv;
    command_print(c, "powering off\n");
    serial_drain();
    power_off();
}

const struct command host_commands[] = {
    {"host", "host", "shows facts about the machine and Fusor", 0, 0, run_host},
    {"metrics", "metrics [--json|--prometheus] [OBJECT|* [GLOB]]",
     "prints OBJECT METRIC VALUE UNIT lines", 0, 3, run_metrics},
    {"log", "log [follow|LEVEL]", "prints the log, follows it, or only up to a level", 0, 1,
     run_log},
    {"term", "term ansi|plain", "allows escape sequences, or forbids them", 1, 1, run_term},
    {"reboot", "reboot", "restarts the machine at once", 0, 0, run_reboot},
    {"poweroff", "poweroff", "switches the machine off at once", 0, 0, run_poweroff},
    {NULL, NULL, NULL, 0, 0, NULL},
};
