// SPDX-License-Identifier: BSD-2-Clause
// `trace`: what every CPU did last.
#include "kernel/error.h"
#include "kernel/sched.h"
#include "kernel/trace.h"
#include "shell/command.h"
#include "shell/config_value.h"
#include "vmx/run.h"

static int run_on(struct command_context *c, int argc, char **argv)
{
    (void)argc;
    (void)argv;
    int status = trace_start();
    if (status < 0)
        return command_error(c, status,
                             "not enough free memory for the trace, `vm stop` a VM or "
                             "`vm balloon` one");
    vmx_trace_exits(true);
    return 0;
}

static int run_off(struct command_context *c, int argc, char **argv)
{
    (void)c;
    (void)argc;
    (void)argv;
    vmx_trace_exits(false);
    trace_stop();
    return 0;
}

static int run_show(struct command_context *c, int argc, char **argv)
{
    static struct trace_reader reader;
    uint64_t most = TRACE_SHOWN;
    char line[TRACE_LINE_MAX];
    const char *rest = "";
    if (argc > 0 && (config_parse_decimal(argv[0], &most, &rest) < 0 || *rest != '\0' ||
                     most == 0 || most > TRACE_RECORDS * MAX_CPUS))
        return command_error(c, E_INVAL, "bad number \"%.32s\", expected 1 to %u records", argv[0],
                             TRACE_RECORDS * MAX_CPUS);
    if (trace_read_begin(&reader, (unsigned)most) == 0)
        command_print(c, "nothing was recorded, `trace on` begins\n");
    while (trace_next(&reader, line, sizeof(line))) {
        command_print(c, "%s\n", line);
        fiber_give_way(); // as `log`; nothing is recorded meanwhile
    }
    trace_read_end();
    return 0;
}

const struct command trace_commands[] = {
    {"trace on", "trace on", "begins to record VM exits, vCPU runs and shootdowns", 0, 0, run_on},
    {"trace off", "trace off", "ends recording and keeps what was recorded", 0, 0, run_off},
    {"trace show", "trace show [COUNT]", "prints the newest records, 100 unless told otherwise", 0,
     1, run_show},
    {NULL, NULL, NULL, 0, 0, NULL},
};
