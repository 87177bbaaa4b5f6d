// SPDX-License-Identifier: BSD-2-Clause
// The console's commands about VMs, and a VM's own console.
// sources: shell/config_host_keys.c shell/config_value.c
// sources: shell/console.c shell/terminal.c shell/line_editor.c shell/arguments.c shell/command.c
// sources: shell/cmd_fusion.c shell/cmd_trace.c shell/vm_show.c kernel/trace.c
// sources: shell/cmd_host.c shell/cmd_vm.c shell/attach.c shell/events.c shell/facts.c
// sources: shell/autostart.c shell/metrics.c shell/metrics_print.c shell/config.c
// sources: shell/config_keys.c boot/config_lex.c kernel/format.c kernel/error.c kernel/lock.c
#include "console_operator.h"
#include "devices/uart.h"
#include "shell/facts.h"

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

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_vm_commands),
        cmocka_unit_test(test_vm_errors),
        cmocka_unit_test(test_vm_show_fusion),
        cmocka_unit_test(test_vm_balloon),
        cmocka_unit_test(test_vm_fusion),
        cmocka_unit_test(test_vm_set_page_fusion),
        cmocka_unit_test(test_vm_console),
        cmocka_unit_test(test_vm_console_ends),
        cmocka_unit_test(test_detach_waits_for_the_replay),
    };
    return cmocka_run_group_tests_name("console: VMs", tests, at_prompt, NULL);
}
