// SPDX-License-Identifier: BSD-2-Clause
// The console as the operator meets it on the serial line: bytes in, bytes out; lines, words,
// unknown commands, events.
// sources: shell/config_host_keys.c shell/config_value.c
// sources: shell/console.c shell/terminal.c shell/line_editor.c shell/arguments.c shell/command.c
// sources: shell/cmd_fusion.c shell/cmd_trace.c shell/vm_show.c kernel/trace.c
// sources: shell/cmd_host.c shell/cmd_vm.c shell/attach.c shell/events.c shell/facts.c
// sources: shell/autostart.c shell/metrics.c shell/metrics_print.c shell/config.c
// sources: shell/config_keys.c boot/config_lex.c kernel/format.c kernel/error.c kernel/lock.c
#include "console_operator.h"
#include "shell/arguments.h"
#include "shell/autostart.h"
#include "shell/command.h"
#include "shell/events.h"
#include "shell/facts.h"
#include "shell/line_editor.h"

static void test_boot(void **state)
{
    (void)state;
    static const char config[] =
        "[host]\nauto-balloon = on\n"
        "[vm one]\nmemory=64M\nkernel=\\guests\\vmlinuz\nmodule=\\guests\\initrd.img\n"
        "[vm two]\nmemory=64M\nkernel=\\gone\n"
        "[vm three]\nmemory=64M\nkernel=\\guests\\vmlinuz\n"
        "autostart = off\n";
    autostart_set_config(config, sizeof(config) - 1);
    assert_true(log_early);
    console_event("VM one said something before the first prompt");
    console_boot();
    assert_false(log_early);
    assert_string_equal(power_said, "ready");
    assert_string_equal(line_out, "* VM one said something before the first prompt\r\n" PROMPT);
    assert_string_equal(log_lines[0],
                        "warning: fusor.conf:6: warning: module is not in effect yet");
    assert_string_equal(log_lines[1], "error: fusor.conf:9: kernel: expected a readable file, got "
                                      "\\gone: no such file on the boot volume");
    assert_string_equal(log_lines[2], "info: VM one started");
    assert_int_equal(log_count, 3);
    assert_int_equal(vm_count, 2);
    assert_int_equal(vms[0].state, VM_RUNNING);
    assert_int_equal(vms[1].state, VM_STOPPED);
    assert_int_equal(shell_facts.errors, 1);
    assert_int_equal(shell_facts.warnings, 1);
    no_vms();
}

static void test_line_ends(void **state)
{
    (void)state;
    assert_string_equal(type("term plain\r"), "term plain\r\nok\r\n" PROMPT);
    assert_string_equal(type("term plain\n"), "term plain\r\nok\r\n" PROMPT);
    assert_string_equal(type("term plain\r\n"), "term plain\r\nok\r\n" PROMPT);
    // The LF of a CRLF may come late.
    assert_string_equal(type("term plain\r"), "term plain\r\nok\r\n" PROMPT);
    assert_string_equal(type("\n"), "");
    assert_string_equal(type("\n"), "\r\n" PROMPT);
    assert_string_equal(type("\r\r"), "\r\n" PROMPT "\r\n" PROMPT);
    assert_string_equal(type("\n\r"), "\r\n" PROMPT); // the LF belongs to the CR above
    assert_string_equal(type("   \r"), "   \r\n" PROMPT);
}

static void test_editing(void **state)
{
    (void)state;
    assert_string_equal(type("term plaim\bn\r"), "term plaim\b \bn\r\nok\r\n" PROMPT);
    assert_string_equal(type("term plaim\177n\r"), "term plaim\b \bn\r\nok\r\n" PROMPT);
    assert_string_equal(type("xy\025term plain\r"), "xy\b \b\b \bterm plain\r\nok\r\n" PROMPT);
    assert_string_equal(type("poweroff\003"), "poweroff^C\r\n" PROMPT);
    assert_string_equal(type("\b\177term\tplain\r"), "term plain\r\nok\r\n" PROMPT);
}

static void test_noise(void **state)
{
    (void)state;
    static const char noise_error[] =
        "error: the line was ignored, it has bytes that are not printable ASCII\r\n" PROMPT;
    char wanted[256];
    snprintf(wanted, sizeof(wanted), "poweroff\r\n%s", noise_error);
    power_said[0] = '\0';
    static const char *const lines[] = {"\xffpoweroff\r", "poweroff\x1b\r", "power\x80off\r",
                                        "power\x01off\r"};
    for (size_t i = 0; i < ARRAY_SIZE(lines); i++)
        assert_string_equal(type(lines[i]), wanted);
    assert_string_equal(send_bytes("poweroff\0\r", 10), wanted);
    // Taking characters back does not make noise a command.
    assert_string_equal(type("poweroff\x80x\b\r"), "poweroffx\b \b\r\nerror: the line was ignored, "
                                                   "it has bytes that are not printable "
                                                   "ASCII\r\n" PROMPT);
    // Nor does Ctrl-U, which may be noise itself; Ctrl-C begins anew.
    snprintf(wanted, sizeof(wanted), "term plain\r\n%s", noise_error);
    assert_string_equal(type("\x80\025term plain\r"), wanted);
    assert_string_equal(type("\x80\003term plain\r"),
                        "^C\r\n" PROMPT "term plain\r\nok\r\n" PROMPT);
    assert_string_equal(power_said, "");

    // Pure noise: nothing runs, every line is answered, no noise comes back.
    static char noise[100000];
    srand(7);
    for (size_t i = 0; i < sizeof(noise); i++)
        noise[i] = (char)rand();
    noise[sizeof(noise) - 1] = '\003'; // a clean line for what follows
    size_t count = vm_count;
    const char *got = send_bytes(noise, sizeof(noise));
    assert_true(occurrences(got, "\r\n" PROMPT) > 100);
    assert_int_equal(occurrences(got, "ok\r\n"), 0);
    for (size_t i = 0; got[i] != '\0'; i++)
        assert_true(got[i] == '\r' || got[i] == '\n' || got[i] == '\b' ||
                    (got[i] >= ' ' && got[i] <= '~'));
    assert_int_equal(vm_count, count);
    assert_string_equal(power_said, "");
    expect("term plain", "ok\r\n");
}

static void test_long_lines(void **state)
{
    (void)state;
    static const char too_long[] =
        "\r\nerror: the line was ignored, it has more than 1023 characters\r\n" PROMPT;
    static char line[10001], wanted[2048];
    memset(line, 'a', sizeof(line));
    line[10000] = '\r';
    memset(wanted, 'a', 1023);
    strcpy(wanted + 1023, too_long);
    assert_string_equal(send_bytes(line, sizeof(line)), wanted);
    // A command in front of a long tail does not run, nor when some of it is taken back.
    power_said[0] = '\0';
    memset(line, ' ', sizeof(line));
    memcpy(line, "poweroff", 8);
    memset(line + 1100, '\b', 200);
    line[10000] = '\r';
    assert_true(strstr(send_bytes(line, sizeof(line)), too_long) != NULL);
    assert_string_equal(power_said, "");
    // 1023 characters are a line.
    memset(line, ' ', 1023);
    memcpy(line, "term plain", 10);
    line[1023] = '\r';
    const char *got = send_bytes(line, 1024);
    assert_string_equal(got + 1023, "\r\nok\r\n" PROMPT);
}

static void test_burst(void **state)
{
    (void)state;
    static char burst[200 * 64];
    size_t used = 0;
    no_vms();
    for (int i = 0; i < 25; i++)
        used += (size_t)snprintf(burst + used, sizeof(burst) - used,
                                 "vm create v%d memory=4M kernel=\\guests\\vmlinuz\r\n"
                                 "vm start v%d\nvm stop v%d\rvm destroy v%d\r\n",
                                 i, i, i, i);
    const char *got = send_bytes(burst, used);
    assert_int_equal(occurrences(got, "\r\nok\r\n" PROMPT), 100);
    assert_int_equal(occurrences(got, PROMPT), 100);
    assert_int_equal(vm_count, 0);
    check_clean(got);
}

static void test_words(void **state)
{
    (void)state;
    char *argv[ARGUMENTS_MAX];
    char line[256];
    strcpy(line, "  a  b\tc=\"x  y\" \"\" d\"e f\"g \\n ");
    assert_int_equal(arguments_split(line, argv), 6);
    assert_string_equal(argv[0], "a");
    assert_string_equal(argv[1], "b");
    assert_string_equal(argv[2], "c=x  y");
    assert_string_equal(argv[3], "");
    assert_string_equal(argv[4], "de fg");
    assert_string_equal(argv[5], "\\n");
    strcpy(line, "a \"b");
    assert_int_equal(arguments_split(line, argv), E_FORMAT);
    strcpy(line, "");
    assert_int_equal(arguments_split(line, argv), 0);
    for (int i = 0; i <= ARGUMENTS_MAX; i++)
        memcpy(line + 2 * i, "x ", 3);
    assert_int_equal(arguments_split(line, argv), E_RANGE);

    expect_error("term \"plain", "a quote is not closed, add the missing \"");
    expect("term \"plain\"", "ok\r\n");
}

static void test_globs(void **state)
{
    (void)state;
    static const struct {
        const char *pattern, *text;
        bool matches;
    } cases[] = {
        {"*", "", true},
        {"", "", true},
        {"", "a", false},
        {"a*", "abc", true},
        {"*c", "abc", true},
        {"*b", "abc", false},
        {"a?c", "abc", true},
        {"a?c", "ac", false},
        {"*a*b*", "xxaxxbxx", true},
        {"*ab", "aab", true},
        {"RAM/*", "RAM/VMM/Total", true},
        {"ram/*", "RAM/VMM/Total", false},
        {"**", "abc", true},
        {"?", "", false},
        {"*?", "", false},
        {"a*a", "a", false},
    };
    for (size_t i = 0; i < ARRAY_SIZE(cases); i++)
        if (glob_matches(cases[i].pattern, cases[i].text) != cases[i].matches)
            fail_msg("%s %s", cases[i].pattern, cases[i].text);
    // Exponential matchers would not come back from this.
    assert_false(glob_matches("*a*a*a*a*a*a*a*a*a*a*a*a*a*b",
                              "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"));
}

static void test_unknown_commands(void **state)
{
    (void)state;
    expect_error("hello", "unknown command \"hello\", `help` lists the commands");
    expect_error("vm", "\"vm\" needs one of: list, show, create, set, start, pause, resume, reset, "
                       "shutdown, stop, destroy, balloon, fusion, console");
    expect_error("vm cap a 5", "\"vm\" needs one of: list, show, create, set, start, pause, "
                               "resume, reset, shutdown, stop, destroy, balloon, fusion, console");
    expect_error("vm balloon a", "usage: vm balloon NAME SIZE");
    expect_error("vm show", "usage: vm show NAME");
    expect_error("vm show a b", "usage: vm show NAME");
    expect_error("reboot now", "usage: reboot");
    expect_error("Help", "unknown command \"Help\", `help` lists the commands");
    expect_error("fusion", "\"fusion\" needs one of: census");
    expect_error("fusion off", "\"fusion\" needs one of: census");
    expect_error("vm fusion a", "usage: vm fusion NAME on|off");
    expect_error("vm fusion a on off", "usage: vm fusion NAME on|off");
    expect_error("fusion census a b", "usage: fusion census [GROUP]");
}

static void test_help(void **state)
{
    (void)state;
    const char *got = type("help\r");
    check_clean(got);
    static const char *const commands[] = {"help",
                                           "host",
                                           "metrics",
                                           "log",
                                           "term",
                                           "reboot",
                                           "poweroff",
                                           "vm list",
                                           "vm console NAME",
                                           "exits NAME",
                                           "vm fusion NAME on|off",
                                           "fusion census [GROUP]",
                                           "trace on",
                                           "trace show [COUNT]"};
    for (size_t i = 0; i < ARRAY_SIZE(commands); i++) {
        char line[64];
        snprintf(line, sizeof(line), "\r\n%s ", commands[i]);
        assert_non_null(strstr(got, line));
    }
    size_t lines = 1; // help itself
    for (const struct command *c = host_commands; c->name != NULL; c++)
        lines++;
    for (const struct command *c = vm_commands; c->name != NULL; c++)
        lines++;
    for (const struct command *c = fusion_commands; c->name != NULL; c++)
        lines++;
    for (const struct command *c = trace_commands; c->name != NULL; c++)
        lines++;
    assert_int_equal(occurrences(got, "\r\n"), lines + 1);
    assert_non_null(strstr(type("help vm start\r"), "\r\nvm start NAME "));
    assert_int_equal(occurrences(type("help vm\r"), "\r\nvm "), 14);
    assert_int_equal(occurrences(type("help fusion\r"), "\r\nfusion "), 1);
    expect_error("help nonsense", "unknown command \"nonsense\", `help` lists the commands");
    expect_error("help host x", "usage: help [COMMAND]");
}

static void test_events(void **state)
{
    (void)state;
    // Into the middle of a line.
    assert_string_equal(type("term pl"), "term pl");
    console_event("VM a crashed: bad luck \x1b[2J");
    assert_string_equal(type("ain\r"), "\r\n* VM a crashed: bad luck ?[2J\r\n" PROMPT
                                       "term plain\r\nok\r\n" PROMPT);
    // With escape sequences allowed, in place of the line.
    expect("term ansi", "ok\r\n");
    assert_string_equal(type("term pl"), "term pl");
    console_event("again");
    assert_string_equal(type("ain\r"), "\r\x1b[K* again\r\n" PROMPT "term plain\r\nok\r\n" PROMPT);
    // More than there is room for: the rest is counted.
    for (int i = 0; i < 40; i++)
        console_event("event");
    const char *got = type("");
    assert_int_equal(occurrences(got, "\r\n* event\r\n") + occurrences(got, "\n* event\r\n* "), 32);
    assert_non_null(strstr(got, "\r\n* 8 events were not shown: they came too fast\r\n" PROMPT));
    // A long one is cut, not split.
    char longest[1000];
    memset(longest, 'e', sizeof(longest));
    longest[999] = '\0';
    console_event(longest);
    got = type("");
    assert_int_equal(strlen(got), 2 + 2 + EVENT_MAX - 1 + 2 + strlen(PROMPT));
}

static int set_up(void **state)
{
    (void)state;
    fake_machine(0, 4);
    return 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_boot), // first: the others go on from the prompt it reaches
        cmocka_unit_test(test_line_ends), cmocka_unit_test(test_editing),
        cmocka_unit_test(test_noise),     cmocka_unit_test(test_long_lines),
        cmocka_unit_test(test_burst),     cmocka_unit_test(test_words),
        cmocka_unit_test(test_globs),     cmocka_unit_test(test_unknown_commands),
        cmocka_unit_test(test_help),      cmocka_unit_test(test_events),
    };
    return cmocka_run_group_tests_name("console", tests, set_up, NULL);
}
