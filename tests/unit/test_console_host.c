// SPDX-License-Identifier: BSD-2-Clause
// The console's commands about the machine: host, log, trace, census, power.
// sources: shell/config_host_keys.c shell/config_value.c
// sources: shell/console.c shell/terminal.c shell/line_editor.c shell/arguments.c shell/command.c
// sources: shell/cmd_fusion.c shell/cmd_trace.c shell/vm_show.c kernel/trace.c
// sources: shell/cmd_host.c shell/cmd_vm.c shell/attach.c shell/events.c shell/facts.c
// sources: shell/autostart.c shell/metrics.c shell/metrics_print.c shell/config.c
// sources: shell/config_keys.c boot/config_lex.c kernel/format.c kernel/error.c kernel/lock.c
#include "console_operator.h"

static void test_trace(void **state)
{
    (void)state;
    expect("trace show", "nothing was recorded, `trace on` begins\r\n");
    expect("trace on", "ok\r\n");
    assert_true(exits_traced);
    trace(TRACE_EXIT, "alpha/1", "HLT", 0x1000, 2, 3);
    trace(TRACE_LEAVE, "alpha/1", "halted", 0, 0, 0);
    const char *got = type("trace show\r");
    assert_non_null(strstr(got, " cpu0 alpha/1 exit HLT rip=0x1000 info=0x2 address=0x3\r\n"));
    assert_non_null(strstr(got, " cpu0 alpha/1 leave halted\r\n"));
    got = type("trace show 1\r");
    assert_null(strstr(got, "exit"));
    assert_non_null(strstr(got, "leave"));
    expect("trace off", "ok\r\n");
    assert_false(exits_traced);
    trace(TRACE_LEAVE, "late", NULL, 0, 0, 0);
    got = type("trace show\r");
    assert_null(strstr(got, "late")); // nothing is recorded any more
    assert_non_null(strstr(got, "leave"));
    static const char *const bad[] = {"0", "x", "3x", "32769", "99999999999999999999"};
    for (size_t i = 0; i < ARRAY_SIZE(bad); i++) {
        char line[64], expected[80];
        snprintf(line, sizeof(line), "trace show %s", bad[i]);
        snprintf(expected, sizeof(expected), "bad number \"%s\", expected 1 to 32768 records",
                 bad[i]);
        expect_error(line, expected);
    }
}

static void test_host(void **state)
{
    (void)state;
    const char *got = type("host\r");
    check_clean(got);
    static const char *const lines[] = {"version: ",
                                        "cpus: 4",
                                        "cpus-online: 4",
                                        "tsc-hz: 1000000000",
                                        "uptime: ",
                                        "entry-to-console: ",
                                        "memory-total: 1048576 kB",
                                        "memory-used: ",
                                        "memory-free: ",
                                        "ept: 4k 2m 1g",
                                        "fusion-engine: general\r",
                                        "hypercalls-refused: 7\r",
                                        "writable-executable-mappings: 0",
                                        "serial-lost-bytes: 0",
                                        "files: 3",
                                        "file: \\gone, 0 bytes, missing"};
    for (size_t i = 0; i < ARRAY_SIZE(lines); i++) {
        char line[64];
        snprintf(line, sizeof(line), "\r\n%s", lines[i]);
        if (strstr(got, line) == NULL)
            fail_msg("no line %s in %s", lines[i], got);
    }
}

static void test_census(void **state)
{
    (void)state;
    no_vms();
    census_result = 0;
    census_says = (struct fusion_census){2, 1000, 100, 400, 50, 900, 370, 45, 360};
    expect("fusion census", "vms: 2\r\nresident: 4000 kB\r\nzero: 400 kB\r\n"
                            "shareable: 1600 kB\r\nshareable-zero: 200 kB\r\n"
                            "unchanged: 3600 kB\r\nunchanged-shareable: 1480 kB\r\n"
                            "unchanged-shareable-zero: 180 kB\r\nsaved: 1440 kB\r\n"
                            "efficiency-unchanged: 97.2 %\r\nefficiency-all: 90.0 %\r\n");
    assert_string_equal(census_group, "(all)");
    static const struct {
        uint64_t saved, shareable;
        const char *shown;
    } shares[] = {{0, 0, "-"},
                  {5, 0, "-"},
                  {0, 7, "0.0 %"},
                  {1, 1001, "0.0 %"},
                  {1, 1000, "0.1 %"},
                  {9999, 10000, "99.9 %"},
                  {7, 7, "100.0 %"},
                  {1025, 1000, "102.5 %"},
                  {UINT64_C(1) << 40, UINT64_C(1) << 40, "100.0 %"}};
    for (size_t i = 0; i < ARRAY_SIZE(shares); i++) {
        char lines[128];
        census_says.saved = shares[i].saved;
        census_says.shareable = shares[i].shareable;
        census_says.unchanged_shareable = shares[i].shareable;
        snprintf(lines, sizeof(lines),
                 " kB\r\nefficiency-unchanged: %s\r\nefficiency-all: %s\r\n" PROMPT,
                 shares[i].shown, shares[i].shown);
        const char *got = type("fusion census web\r");
        if (strstr(got, lines) == NULL)
            fail_msg("no %s in %s", lines, got);
        assert_string_equal(census_group, "web");
    }
    // Names that no group can have do not get there.
    expect_error("fusion census Web", "no VM is in a group \"Web\", `vm show NAME` says "
                                      "fusion-group");
    assert_string_equal(census_group, "web");
    census_result = E_NOENT;
    expect_error("fusion census db", "no VM is in a group \"db\", `vm show NAME` says "
                                     "fusion-group");
    assert_string_equal(census_group, "db");
    expect_error("fusion census", "there is no VM to count, `vm list` shows all");
    census_result = E_NOMEM;
    expect_error("fusion census", "not enough free memory for the census, name one group or "
                                  "`vm stop` a VM");
    census_result = E_BUSY;
    expect_error("fusion census", "another census runs, try again when it is done");
    census_result = E_NOSYS;
    char error[128];
    snprintf(error, sizeof(error), "fusion census: %s", error_text(E_NOSYS));
    expect_error("fusion census", error);
}

static void press_key(void)
{
    log_write(LOG_DEBUG, "line while following");
    line_in = "q";
    line_in_left = 1;
    on_sleep = NULL;
}

static void test_log(void **state)
{
    (void)state;
    log_count = 0;
    log_write(LOG_INFO, "one");
    log_write(LOG_ERROR, "two");
    log_write(LOG_DEBUG, "three");
    expect("log", "info: one\r\nerror: two\r\ndebug: three\r\n");
    expect("log error", "error: two\r\n");
    expect("log warning", "error: two\r\n");
    expect("log info", "info: one\r\nerror: two\r\n");
    expect_error("log loud", "unknown level \"loud\", expected follow, error, warning, info or "
                             "debug");
    tx_used = 0; // so that the first sleep is that of the command
    on_sleep = press_key;
    const char *got = type("log follow\r\n");
    assert_non_null(strstr(got, "\r\ndebug: line while following\r\n"));
    assert_non_null(strstr(got, "\r\nfollowing the log, any key ends it\r\n"));
    assert_null(strstr(got, "three"));
    assert_string_equal(got + strlen(got) - strlen(PROMPT), PROMPT);
    line_in_left = 0;
    log_count = 0;
    expect("log", "ok\r\n");
}

static void test_power(void **state)
{
    (void)state;
    assert_string_equal(type("poweroff\r"), "poweroff\r\npowering off\r\n");
    assert_string_equal(power_said, "poweroff");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_trace), cmocka_unit_test(test_host),  cmocka_unit_test(test_census),
        cmocka_unit_test(test_log),   cmocka_unit_test(test_power),
    };
    return cmocka_run_group_tests_name("console: host", tests, at_prompt, NULL);
}
