// SPDX-License-Identifier: BSD-2-Clause
// The console as the operator meets it on the serial line: bytes in, bytes out.
// sources: shell/config_host_keys.c shell/config_value.c
// sources: shell/console.c shell/terminal.c shell/line_editor.c shell/arguments.c shell/command.c
// sources: shell/cmd_fusion.c shell/cmd_trace.c shell/vm_show.c kernel/trace.c
// sources: shell/cmd_host.c shell/cmd_vm.c shell/attach.c shell/events.c shell/facts.c
// sources: shell/autostart.c shell/metrics.c shell/metrics_print.c shell/config.c
// sources: shell/config_keys.c boot/config_lex.c kernel/format.c kernel/error.c kernel/lock.c
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "devices/uart.h"
#include "shell/arguments.h"
#include "shell/autostart.h"
#include "shell/command.h"
#include "shell/events.h"
#include "shell/facts.h"
#include "shell/line_editor.h"
#include "shell_fakes.h"

#define PROMPT "fusor> "

static const char *type(const char *text)
{
    return send_bytes(text, strlen(text));
}

// Sends a line and expects its echo, exactly this answer, and a prompt.
static void expect(const char *line, const char *answer)
{
    char sent[2048], wanted[8192];
    snprintf(sent, sizeof(sent), "%s\r", line);
    snprintf(wanted, sizeof(wanted), "%s\r\n%s" PROMPT, line, answer);
    const char *got = type(sent);
    if (strcmp(got, wanted) != 0)
        fail_msg("wanted <<%s>>\ngot <<%s>>", wanted, got);
}

static void expect_error(const char *line, const char *error)
{
    char answer[512];
    snprintf(answer, sizeof(answer), "error: %s\r\n", error);
    expect(line, answer);
}

static size_t occurrences(const char *text, const char *word)
{
    size_t n = 0;
    for (; (text = strstr(text, word)) != NULL; text += strlen(word))
        n++;
    return n;
}

// Every CR is followed by LF and every LF preceded by CR, and there is no control character else.
static void check_clean(const char *text)
{
    for (size_t i = 0; text[i] != '\0'; i++) {
        if (text[i] == '\r')
            assert_int_equal(text[i + 1], '\n');
        else if (text[i] == '\n')
            assert_int_equal(text[i - 1], '\r');
        else
            assert_true(text[i] >= ' ' && text[i] <= '~');
    }
}

static void no_vms(void)
{
    vm_count = 0;
    fusion_refuses = NULL;
    fusion_switched = 0;
    guest_in_used = 0;
    guest_out_used = 0;
    guest_in_room = sizeof(guest_in) - 1;
    on_sleep = NULL;
}

static void create(const char *name)
{
    char line[128];
    snprintf(line, sizeof(line), "vm create %s memory=64M kernel=\\guests\\vmlinuz", name);
    expect(line, "ok\r\n");
}

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

static void test_vm_commands(void **state)
{
    (void)state;
    no_vms();
    static const char header[] =
        "NAME                            STATE          VCPUS     MEMORY   RESIDENT     SHARED    "
        "BALLOON\r\n";
    expect("vm list", header);
    expect("vm create alpha memory=64M kernel=\\guests\\vmlinuz "
           "cmdline=\"console=ttyS0 a  b\" initrd=\"\\guests\\initrd.img\"",
           "ok\r\n");
    assert_string_equal(vms[0].config.cmdline, "console=ttyS0 a  b");
    assert_string_equal(vms[0].config.initrd, "\\guests\\initrd.img");
    assert_int_equal(vms[0].config.memory_min, 32 * MIB);
    expect("vm start alpha", "ok\r\n");
    char list[512];
    snprintf(list, sizeof(list), "%s%-31s %-14s %5u %10u %10u %10u %10u\r\n", header, "alpha",
             "running", 1, 65536, 400, 0, 0);
    expect("vm list", list);
    expect("vm pause alpha", "ok\r\n");
    expect_error("vm pause alpha", "VM alpha: is paused");
    expect("vm resume alpha", "ok\r\n");
    expect("vm reset alpha", "ok\r\n");
    expect("vm shutdown alpha", "ok\r\n");
    expect("exits alpha", "io: 700\r\ncpuid: 10\r\nEPT violation: 5\r\n");
    expect("vm stop alpha", "ok\r\n");
    const char *show = type("vm show alpha\r");
    check_clean(show);
    static const char *const lines[] = {"name: alpha",
                                        "state: stopped",
                                        "memory: 65536K",
                                        "autostart: on",
                                        "resident: 0 kB",
                                        "untouched: 65536 kB",
                                        "cmdline: console=ttyS0 a  b"};
    for (size_t i = 0; i < ARRAY_SIZE(lines); i++) {
        char line[64];
        snprintf(line, sizeof(line), "\r\n%s\r\n", lines[i]);
        assert_non_null(strstr(show, line));
    }
    expect("vm set alpha memory=128M weight=200", "ok\r\n");
    assert_int_equal(vms[0].config.memory, 128 * MIB);
    assert_int_equal(vms[0].config.memory_min, 64 * MIB);
    assert_int_equal(vms[0].config.weight, 200);
    expect("vm set alpha memory-min=16M cap=10", "ok\r\n");
    expect("vm set alpha memory=64M", "ok\r\n");
    assert_int_equal(vms[0].config.memory_min, 16 * MIB); // chosen, so it stays
    expect("vm set alpha module=\\guests\\vmlinuz module=\\guests\\initrd.img",
           "warning: module is not in effect yet\r\nwarning: module is not in effect yet\r\n"
           "ok\r\n");
    assert_int_equal(vms[0].config.module_count, 2);
    expect("vm set alpha module=\\guests\\initrd.img",
           "warning: module is not in effect yet\r\nok\r\n");
    assert_int_equal(vms[0].config.module_count, 1);
    expect("vm destroy alpha", "ok\r\n");
    assert_int_equal(vm_count, 0);
}

static void test_vm_errors(void **state)
{
    (void)state;
    no_vms();
    static const char *const verbs[] = {"show",     "start", "pause",   "resume", "reset",
                                        "shutdown", "stop",  "destroy", "console"};
    for (size_t i = 0; i < ARRAY_SIZE(verbs); i++) {
        char line[64];
        snprintf(line, sizeof(line), "vm %s nobody", verbs[i]);
        expect_error(line, "no VM is called \"nobody\", `vm list` shows all");
    }
    expect_error("exits nobody", "no VM is called \"nobody\", `vm list` shows all");
    expect_error("vm set nobody cpus=1", "no VM is called \"nobody\", `vm list` shows all");
    expect_error("vm create Alpha memory=1M",
                 "\"Alpha\" is no VM name, expected a-z, 0-9, _ and -, "
                 "at most 31 characters, not host or all");
    expect_error("vm create a", "memory: expected a size, it is required");
    expect_error("vm create a memory=1M", "kernel: expected a path, it is required");
    expect_error("vm create a memory", "expected KEY=VALUE, got \"memory\"");
    expect_error("vm create a memory=12", "memory: expected an integer with K, M or G, got \"12\"");
    expect_error("vm create a memory=1M kernel=\\other", "\\other was not loaded at boot");
    expect_error("vm create a memory=1M memory=2M", "memory: expected once, it is given twice");
    // One line also when a warning would have come before the error.
    expect_error("vm create a cap=5 memory=12",
                 "memory: expected an integer with K, M or G, got \"12\"");
    assert_int_equal(vm_count, 0);
    create("a");
    expect_error("vm create a memory=1M kernel=\\guests\\vmlinuz",
                 "VM a exists, choose another name or `vm destroy a`");
    expect_error("vm set a memory-min=65M",
                 "memory-min: expected at most the VM's memory (65536K), got 66560K");
    assert_int_equal(vms[0].config.memory_min, 32 * MIB);
    shell_facts.console_only = true;
    expect_error("vm start a", "VT-x is not in use, remove \\fusor\\console-only and reboot");
    shell_facts.console_only = false;
    no_vms();
}

// Expects each of the lines in the answer, whole, and in this order.
static void expect_lines(const char *command, const char *const *lines, size_t count)
{
    char sent[64];
    snprintf(sent, sizeof(sent), "%s\r", command);
    const char *got = type(sent);
    check_clean(got);
    const char *at = got;
    for (size_t i = 0; i < count; i++) {
        char line[96];
        snprintf(line, sizeof(line), "\r\n%s\r\n", lines[i]);
        at = strstr(at, line);
        if (at == NULL)
            fail_msg("no line %s, or out of order, in %s", lines[i], got);
        assert_int_equal(occurrences(got, line), 1);
    }
}

static void test_vm_show_fusion(void **state)
{
    (void)state;
    static const char *const none[] = {"guest-total: -", "guest-free: -",      "guest-available: -",
                                       "guest-cache: -", "fusion: on",         "hints-received: 0",
                                       "hints-fused: 0", "hints-unmatched: 0", "hints-rejected: 0",
                                       "splits: 0",      "futile-splits: 0",   "last-sharers: 0",
                                       "cancelled: 0",   "backoff: 0",         "fusion-ticks: 0",
                                       "large-fused: 0", "scanned: 0"};
    static const char *const all[] = {
        "guest-total: 400 kB", "guest-free: 80 kB", "guest-available: 120 kB",
        // A guest may say anything.
        "guest-cache: 18014398509481980 kB", "fusion: splitting", "fusion-left: 20 kB",
        "hints-received: 96", "hints-fused: 11", "hints-unmatched: 7", "hints-rejected: 78",
        "splits: 12", "futile-splits: 13", "last-sharers: 14", "cancelled: 15", "backoff: 16",
        "fusion-ticks: 18446744073709551615", "large-fused: 17", "scanned: 18"};
    no_vms();
    create("a");
    expect_lines("vm show a", none, ARRAY_SIZE(none));
    assert_null(strstr(type("vm show a\r"), "fusion-left"));
    fusion_lost = "a"; // fusion does not know it yet
    expect_lines("vm show a", none, ARRAY_SIZE(none));
    fusion_lost = NULL;
    vms[0].report = (struct vm_report){true, 100, 20, 30, UINT64_MAX, 0};
    fusions[0].mode = FUSION_SPLITTING;
    fusions[0].shared_left = 5;
    struct fusion_figures *f = &fusions[0].figures;
    *f = (struct fusion_figures){.received = 96,
                                 .fused = 11,
                                 .unmatched = 7,
                                 .splits = 12,
                                 .futile_splits = 13,
                                 .last_sharers = 14,
                                 .cancelled = 15,
                                 .backoff = 16,
                                 .ticks = UINT64_MAX,
                                 .large_fused = 17,
                                 .scanned = 18};
    for (unsigned i = 0; i < FUSION_REJECTS; i++)
        f->rejected[i] = i + 1; // 78 in all
    expect_lines("vm show a", all, ARRAY_SIZE(all));
    fusions[0].mode = FUSION_OFF;
    assert_non_null(strstr(type("vm show a\r"), "\r\nfusion: off\r\nhints-received: 96\r\n"));
}

static void test_vm_balloon(void **state)
{
    (void)state;
    static const char *const none[] = {"balloon: 0 kB", "balloon-target: 0 kB",
                                       "balloon-returned: 0 kB", "held-back: 0 kB"};
    static const char *const pending[] = {"balloon-target: 16384 kB (pending: no driver)"};
    static const char *const there[] = {"balloon: 8192 kB", "balloon-target: 16384 kB",
                                        "balloon-returned: 12 kB", "held-back: 20 kB"};
    no_vms();
    create("a"); // of 64M, memory-min 32M
    expect_lines("vm show a", none, ARRAY_SIZE(none));
    expect("vm balloon a 16M", "ok\r\n");
    assert_int_equal(vms[0].config.balloon, 16 * MIB);
    expect_lines("vm show a", pending, ARRAY_SIZE(pending));
    vms[0].balloon_driver = true;
    vms[0].balloon = 2048;
    vms[0].balloon_returned = 3;
    vms[0].held_back = 5;
    expect_lines("vm show a", there, ARRAY_SIZE(there));
    expect_error("vm balloon nobody 1M", "no VM is called \"nobody\", `vm list` shows all");
    expect_error("vm balloon a 12", "expected an integer with K, M or G, got \"12\"");
    expect_error("vm balloon a -1M", "expected an integer with K, M or G, got \"-1M\"");
    expect_error("vm balloon a 1K", "expected a multiple of 4K below 16777216G, got \"1K\"");
    expect_error("vm balloon a 99999999999G",
                 "expected a multiple of 4K below 16777216G, got \"99999999999G\"");
    expect_error("vm balloon a 65M", "VM a: too much");
    assert_int_equal(vms[0].config.balloon, 16 * MIB);
    expect("vm balloon a 0K", "ok\r\n");
    assert_int_equal(vms[0].balloon_target, 0);
}

static void test_vm_fusion(void **state)
{
    (void)state;
    no_vms();
    create("a");
    expect("vm fusion a off", "ok\r\n");
    assert_int_equal(fusions[0].mode, FUSION_OFF);
    expect("vm fusion a on", "ok\r\n");
    assert_int_equal(fusions[0].mode, FUSION_ON);
    vms[0].shared = 8;
    expect("vm fusion a off", "ok\r\n");
    assert_int_equal(fusions[0].mode, FUSION_SPLITTING);
    assert_int_equal(fusion_switched, 3);
    expect_error("vm fusion a maybe", "expected on or off, got \"maybe\"");
    expect_error("vm fusion a On", "expected on or off, got \"On\"");
    expect_error("vm fusion nobody on", "no VM is called \"nobody\", `vm list` shows all");
    fusion_refuses = "no memory for its list, `vm stop` another VM";
    expect_error("vm fusion a on", "VM a: no memory for its list, `vm stop` another VM");
    fusion_refuses = "";
    expect_error("vm fusion a on", "VM a: out of memory");
    assert_int_equal(fusion_switched, 3);
}

static void test_vm_set_page_fusion(void **state)
{
    (void)state;
    no_vms();
    create("a");
    expect("vm set a fusion-group=web scan=100 weight=7", "ok\r\n");
    assert_string_equal(vms[0].config.fusion_group, "web");
    assert_int_equal(vms[0].config.scan, 100);
    // Only what changes is switched.
    expect("vm set a page-fusion=on", "ok\r\n");
    assert_int_equal(fusion_switched, 0);
    expect("vm set a page-fusion=off weight=8", "ok\r\n");
    assert_int_equal(fusion_switched, 1);
    assert_int_equal(fusions[0].mode, FUSION_OFF);
    expect("vm set a weight=9", "ok\r\n");
    expect("vm set a page-fusion=off", "ok\r\n");
    assert_int_equal(fusion_switched, 1);
    expect("vm set a page-fusion=on cap=5", "ok\r\n");
    assert_int_equal(fusion_switched, 2);
    assert_int_equal(fusions[0].mode, FUSION_ON);
    // Also when the switch stands otherwise than the config said.
    fusions[0].mode = FUSION_OFF;
    expect("vm set a page-fusion=on", "ok\r\n");
    assert_int_equal(fusion_switched, 3);
    assert_int_equal(fusions[0].mode, FUSION_ON);
    // All or nothing, and one line.
    fusion_refuses = "no memory";
    expect_error("vm set a page-fusion=off weight=10 cap=6", "VM a: no memory");
    assert_true(vms[0].config.page_fusion);
    assert_int_equal(vms[0].config.weight, 9);
    assert_int_equal(vms[0].config.cap, 5);
    fusion_refuses = NULL;
    expect_error("vm set a page-fusion=off memory=12",
                 "memory: expected an integer with K, M or G, got \"12\"");
    assert_int_equal(fusion_switched, 3);
    // A new VM begins as its config says, nothing is switched.
    expect("vm create b memory=4M kernel=\\guests\\vmlinuz page-fusion=off fusion-group=web",
           "ok\r\n");
    assert_int_equal(fusions[1].mode, FUSION_OFF);
    assert_int_equal(fusion_switched, 3);
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

static void guest_says(const char *text)
{
    memcpy(guest_out + guest_out_used, text, strlen(text));
    guest_out_used += strlen(text);
}

static void guest_says_and_hears_ctrl_bracket(void)
{
    // Once the typed line has arrived, the guest answers; then the operator detaches.
    static int stage;
    if (stage == 0 && guest_in_used == 14) {
        guest_says("Linux\r\n");
        console_event("VM a did something");
        stage = 1;
    } else if (stage == 1) {
        line_in = "\035";
        line_in_left = 1;
        stage = 2;
    }
}

static void test_vm_console(void **state)
{
    (void)state;
    no_vms();
    create("a");
    guest_says("booted\r\n# ");
    on_sleep = guest_says_and_hears_ctrl_bracket;
    const char *got = type("vm console a\r\nuname\177e -a\x1b[A\r");
    assert_string_equal(got,
                        "vm console a\r\nattached to a, Ctrl-] detaches\r\n"
                        "booted\r\n# Linux\r\n* VM a did something\r\ndetached from a\r\n" PROMPT);
    on_sleep = NULL;
    // Bytes as typed, without the LF of the command's own CRLF.
    assert_int_equal(guest_in_used, 14);
    assert_memory_equal(guest_in, "uname\177e -a\x1b[A\r", 14);
}

static void test_detach_waits_for_the_replay(void **state)
{
    (void)state;
    no_vms();
    create("a");
    char said[801];
    for (int i = 0; i < 80; i++)
        memcpy(said + 10L * i, "12345678\r\n", 11);
    guest_out_used = 0;
    guest_says(said);
    const char *got = type("vm console a\r\035term plain\r");
    char wanted[1024];
    snprintf(wanted, sizeof(wanted),
             "vm console a\r\nattached to a, Ctrl-] detaches\r\n%sdetached from a\r\n" PROMPT
             "term plain\r\nok\r\n" PROMPT,
             said);
    assert_string_equal(got, wanted);
    // One that always has more to say shows what can be kept, and does not hold the operator.
    guest_never_silent = true;
    got = type("vm console a\r\035");
    assert_non_null(strstr(got, "z\r\ndetached from a\r\n" PROMPT));
    assert_int_equal(occurrences(got, "z"), UART_OUTPUT_BYTES);
    guest_never_silent = false;
}

static void destroy_vm(void)
{
    no_vms();
}

static void test_vm_console_ends(void **state)
{
    (void)state;
    // What follows Ctrl-] is for Fusor again.
    no_vms();
    create("a");
    assert_string_equal(
        type("vm console a\rhi\035term plain\r"),
        "vm console a\r\nattached to a, Ctrl-] detaches\r\ndetached from a\r\n" PROMPT
        "term plain\r\nok\r\n" PROMPT);
    assert_memory_equal(guest_in, "hi", 2);
    // A guest that reads nothing does not hold the operator, however much he typed.
    static char typed[3000];
    memset(typed, 'x', sizeof(typed));
    memcpy(typed, "vm console a\r", 13);
    strcpy(typed + sizeof(typed) - 13, "\035term plain\r");
    guest_in_room = guest_in_used;
    const char *got = send_bytes(typed, sizeof(typed) - 1);
    assert_non_null(strstr(got, "detached from a\r\n" PROMPT "term plain\r\nok\r\n" PROMPT));
    // The VM goes away.
    tx_used = 0; // so that the first sleep is that of the command
    on_sleep = destroy_vm;
    got = type("vm console a\r");
    assert_non_null(strstr(got, "\r\ndetached: VM a is gone\r\n" PROMPT));
    no_vms();
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
        cmocka_unit_test(test_line_ends),
        cmocka_unit_test(test_editing),
        cmocka_unit_test(test_noise),
        cmocka_unit_test(test_long_lines),
        cmocka_unit_test(test_burst),
        cmocka_unit_test(test_words),
        cmocka_unit_test(test_globs),
        cmocka_unit_test(test_unknown_commands),
        cmocka_unit_test(test_help),
        cmocka_unit_test(test_trace),
        cmocka_unit_test(test_host),
        cmocka_unit_test(test_vm_commands),
        cmocka_unit_test(test_vm_errors),
        cmocka_unit_test(test_vm_show_fusion),
        cmocka_unit_test(test_vm_balloon),
        cmocka_unit_test(test_vm_fusion),
        cmocka_unit_test(test_vm_set_page_fusion),
        cmocka_unit_test(test_census),
        cmocka_unit_test(test_vm_console),
        cmocka_unit_test(test_detach_waits_for_the_replay),
        cmocka_unit_test(test_vm_console_ends),
        cmocka_unit_test(test_events),
        cmocka_unit_test(test_log),
        cmocka_unit_test(test_power),
    };
    return cmocka_run_group_tests_name("console", tests, set_up, NULL);
}
