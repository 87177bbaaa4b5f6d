// SPDX-License-Identifier: BSD-2-Clause
// The output of `metrics` in its three forms: shape, identities, filters.
// sources: shell/config_host_keys.c shell/config_value.c
// sources: shell/console.c shell/terminal.c shell/line_editor.c shell/arguments.c shell/command.c
// sources: shell/cmd_fusion.c shell/cmd_trace.c kernel/trace.c shell/vm_show.c
// sources: shell/cmd_host.c shell/cmd_vm.c shell/attach.c shell/events.c shell/facts.c
// sources: shell/autostart.c shell/metrics.c shell/metrics_print.c shell/config.c
// sources: shell/config_keys.c boot/config_lex.c kernel/format.c kernel/error.c kernel/lock.c
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <inttypes.h>

#include <cmocka.h>

#include "fake.h"
#include "shell_fakes.h"

#define PROMPT "fusor> "
#define LINES  4096u

// Lines of the host; of a VM, 3 reasons of exits and all of rejected hints among them; those of a
// VM that only its driver knows; and all VMs'.
#define HOST_LINES   10u
#define VM_LINES     (24u + 3u + FUSION_REJECTS)
#define DRIVER_LINES 4u

// The answer to a line, without echo and prompt, as lines.
static char answer[1024 * 1024];
static char *lines[LINES];
static unsigned line_count;

static void ask(const char *command)
{
    char sent[256];
    snprintf(sent, sizeof(sent), "%s\r", command);
    const char *got = send_bytes(sent, strlen(sent));
    size_t echo = strlen(command) + 2;
    size_t length = strlen(got);
    assert_true(length >= echo + strlen(PROMPT));
    assert_string_equal(got + length - strlen(PROMPT), PROMPT);
    length -= echo + strlen(PROMPT);
    assert_true(length < sizeof(answer));
    memcpy(answer, got + echo, length);
    answer[length] = '\0';
    line_count = 0;
    for (char *at = answer; *at != '\0';) {
        char *end = strstr(at, "\r\n");
        assert_non_null(end);
        *end = '\0';
        assert_true(line_count < LINES);
        lines[line_count++] = at;
        at = end + 2;
    }
}

// Value of a metric in the last answer; fails when it is not there exactly once.
static uint64_t value(const char *object, const char *metric, const char *unit)
{
    unsigned found = 0;
    uint64_t number = 0;
    for (unsigned i = 0; i < line_count; i++) {
        char o[64], m[128], v[32], u[16];
        assert_int_equal(sscanf(lines[i], "%63s %127s %31s %15s", o, m, v, u), 4);
        if (strcmp(o, object) != 0 || strcmp(m, metric) != 0)
            continue;
        assert_string_equal(u, unit);
        number = strtoull(v, NULL, 10);
        found++;
    }
    if (found != 1)
        fail_msg("%s %s: %u times", object, metric, found);
    return number;
}

static void add(const char *name, uint64_t private_frames, uint64_t shared, uint64_t balloon)
{
    struct vm_info *vm = &vms[vm_count++];
    memset(vm, 0, sizeof(*vm));
    snprintf(vm->config.name, sizeof(vm->config.name), "%s", name);
    vm->configured = 65536;
    vm->private_frames = private_frames;
    vm->shared = shared;
    vm->balloon = balloon;
    vm->untouched = 65536 - private_frames - shared - balloon;
    vm->run_ticks = UINT64_MAX;
    vm->wait_ticks = 7;
    vm->shootdowns = 3;
    vm->large_splits = 2;
    vm->large_collapses = 1;
    struct fusion_figures *f = &fusions[vm - vms].figures;
    *f = (struct fusion_figures){.received = 96,
                                 .fused = 11,
                                 .unmatched = 7,
                                 .splits = 12,
                                 .futile_splits = 13,
                                 .last_sharers = 14,
                                 .cancelled = 15,
                                 .backoff = 16,
                                 .ticks = UINT64_MAX - vm_count,
                                 .large_fused = 17,
                                 .scanned = 18};
    for (unsigned i = 0; i < FUSION_REJECTS; i++)
        f->rejected[i] = i + 1;
}

static void three_vms(void)
{
    vm_count = 0;
    add("alpha", 1000, 20, 300);
    add("beta", 500, 20, 0);
    add("abcdefghijklmnopqrstuvwxyz01234", 0, 0, 65536);
}

static void test_four_fields(void **state)
{
    (void)state;
    three_vms();
    ask("metrics");
    assert_int_equal(line_count, HOST_LINES + 3 * VM_LINES);
    for (unsigned i = 0; i < line_count; i++) {
        char fields[4][128];
        char rest;
        assert_int_equal(sscanf(lines[i], "%127s %127s %127s %127s%c", fields[0], fields[1],
                                fields[2], fields[3], &rest),
                         4);
        // One blank between fields and none else.
        size_t length = 3;
        for (int f = 0; f < 4; f++)
            length += strlen(fields[f]);
        assert_int_equal(strlen(lines[i]), length);
        assert_true(strcmp(fields[3], "kB") == 0 || strcmp(fields[3], "count") == 0 ||
                    strcmp(fields[3], "ticks") == 0);
        assert_true(strcmp(fields[2], "-") == 0 ||
                    strspn(fields[2], "0123456789") == strlen(fields[2]));
    }
}

static void test_identities(void **state)
{
    (void)state;
    static const char *const names[] = {"alpha", "beta", "abcdefghijklmnopqrstuvwxyz01234"};
    three_vms();
    ask("metrics *");
    uint64_t total = value("host", "RAM/VMM/Total", "kB");
    uint64_t parts = value("host", "RAM/VMM/Fusor", "kB") + value("host", "RAM/VMM/Table", "kB") +
                     value("host", "RAM/VMM/Private", "kB") +
                     value("host", "RAM/VMM/Shared", "kB") + value("host", "RAM/VMM/Free", "kB");
    assert_int_equal(total, machine_frames * 4);
    assert_int_equal(total, parts);
    assert_int_equal(value("host", "RAM/VMM/Used", "kB"),
                     total - value("host", "RAM/VMM/Free", "kB"));
    assert_int_equal(value("host", "RAM/VMM/Files", "kB"), 42 * 4);
    uint64_t private_sum = 0;
    uint64_t shared_sum = 0;
    uint64_t balloon_sum = 0;
    for (size_t i = 0; i < ARRAY_SIZE(names); i++) {
        uint64_t private_kb = value(names[i], "Guest/RAM/Usage/Private", "kB");
        uint64_t shared = value(names[i], "Guest/RAM/Usage/Shared", "kB");
        uint64_t balloon = value(names[i], "Guest/RAM/Usage/Balloon", "kB");
        assert_int_equal(value(names[i], "Guest/RAM/Usage/Configured", "kB"),
                         private_kb + shared + balloon +
                             value(names[i], "Guest/RAM/Usage/Untouched", "kB"));
        assert_int_equal(value(names[i], "Guest/RAM/Usage/Resident", "kB"), private_kb + shared);
        private_sum += private_kb;
        shared_sum += shared;
        balloon_sum += balloon;
    }
    assert_int_equal(private_sum, value("host", "RAM/VMM/Private", "kB"));
    assert_int_equal(shared_sum,
                     value("host", "RAM/VMM/Shared", "kB") + value("host", "RAM/VMM/Saved", "kB"));
    assert_int_equal(value("host", "RAM/VMM/Saved", "kB"), 20 * 4);
    assert_int_equal(balloon_sum, value("host", "RAM/VMM/Ballooned", "kB"));
    assert_true(value("alpha", "CPU/Run", "ticks") == UINT64_MAX);
    assert_int_equal(value("alpha", "CPU/Wait", "ticks"), 7);
    assert_int_equal(value("alpha", "EPT/Shootdowns", "count"), 3);
    assert_int_equal(value("alpha", "EPT/LargeSplit", "count"), 2);
    assert_int_equal(value("alpha", "EPT/LargeCollapsed", "count"), 1);
    assert_int_equal(value("alpha", "Exits/cpuid", "count"), 10);
    // A reason of two words is one field.
    assert_int_equal(value("alpha", "Exits/EPT-violation", "count"), 5);
}

static void test_fusion(void **state)
{
    (void)state;
    static const struct {
        const char *metric;
        uint64_t value;
    } counts[] = {{"Hints/Received", 96}, {"Hints/Fused", 11},  {"Hints/Unmatched", 7},
                  {"Splits", 12},         {"FutileSplits", 13}, {"Cancelled", 15},
                  {"Backoff", 16}};
    char name[64];
    three_vms();
    ask("metrics beta Fusion/*");
    assert_int_equal(line_count, ARRAY_SIZE(counts) + 1 + FUSION_REJECTS);
    for (size_t i = 0; i < ARRAY_SIZE(counts); i++) {
        snprintf(name, sizeof(name), "Fusion/%s", counts[i].metric);
        assert_int_equal(value("beta", name, "count"), counts[i].value);
    }
    assert_true(value("beta", "Fusion/Ticks", "ticks") == UINT64_MAX - 2); // its own, not alpha's
    uint64_t rejected = 0;
    for (unsigned i = 0; i < FUSION_REJECTS; i++) {
        snprintf(name, sizeof(name), "Fusion/Hints/Rejected/%s", fusion_reject_names[i]);
        assert_int_equal(value("beta", name, "count"), i + 1);
        rejected += i + 1;
    }
    assert_int_equal(value("beta", "Fusion/Hints/Received", "count"),
                     value("beta", "Fusion/Hints/Fused", "count") +
                         value("beta", "Fusion/Hints/Unmatched", "count") + rejected);

    ask("metrics * Fusion/Hints/*/nomem");
    assert_int_equal(line_count, 3);
    assert_string_equal(lines[0], "alpha Fusion/Hints/Rejected/nomem 12 count");
    ask("metrics --json alpha Fusion/Hints/Rejected/off");
    assert_int_equal(line_count, 3);
    assert_string_equal(lines[1], "{\"object\":\"alpha\",\"metric\":\"Fusion/Hints/Rejected/off\","
                                  "\"value\":5,\"unit\":\"count\"}");
    ask("metrics --prometheus alpha Fusion/Hints/Rejected/[a-z]*");
    assert_int_equal(line_count, 1); // no error of the shell's globs: [ is a character
    ask("metrics --prometheus * Fusion/Hints/Rejected/b*");
    assert_int_equal(line_count, 1 + 3 * 3);
    assert_string_equal(lines[0], "# TYPE fusor_fusion_hints_rejected_total counter");
    assert_string_equal(lines[1],
                        "fusor_fusion_hints_rejected_total{object=\"alpha\",reason=\"budget\"} 4");
    ask("metrics --prometheus alpha CPU/Run");
    assert_string_equal(lines[0], "# TYPE fusor_cpu_run_ticks_total counter");
    ask("metrics --prometheus alpha Fusion/Ticks");
    assert_string_equal(lines[0], "# TYPE fusor_fusion_ticks_total counter");

    // A VM that vanishes behind the snapshot: its frames are in it, what fusion counted is not.
    fusion_lost = "beta";
    ask("metrics");
    fusion_lost = NULL;
    assert_int_equal(line_count, HOST_LINES + 3 * VM_LINES);
    assert_int_equal(value("beta", "Guest/RAM/Usage/Shared", "kB"), 80);
    assert_int_equal(value("beta", "Fusion/Hints/Received", "count"), 0);
    assert_int_equal(value("beta", "Fusion/Ticks", "ticks"), 0);
    assert_int_equal(value("beta", "Fusion/Hints/Rejected/nomem", "count"), 0);
    assert_int_equal(value("alpha", "Fusion/Hints/Received", "count"), 96);
}

static void test_what_the_driver_knows(void **state)
{
    (void)state;
    static const char *const names[] = {"Total", "Free", "Available", "Cache"};
    static const char *const said[] = {"400", "80", "120", "18014398509481980"};
    three_vms();
    // One has a driver, which is not to be trusted.
    vms[1].report = (struct vm_report){true, 100, 20, 30, UINT64_MAX, 0};
    for (size_t i = 0; i < ARRAY_SIZE(names); i++) {
        char command[64], wanted[96];
        snprintf(command, sizeof(command), "metrics beta */%s", names[i]);
        snprintf(wanted, sizeof(wanted), "beta Guest/RAM/Usage/%s %s kB", names[i], said[i]);
        ask(command);
        assert_int_equal(line_count, 1);
        assert_string_equal(lines[0], wanted);
    }
    ask("metrics --json * */Usage/Free");
    assert_int_equal(line_count, 5);
    assert_non_null(
        strstr(lines[1], "\"alpha\",\"metric\":\"Guest/RAM/Usage/Free\",\"value\":null,"));
    assert_non_null(strstr(lines[2], "\"beta\",\"metric\":\"Guest/RAM/Usage/Free\",\"value\":80,"));
    ask("metrics --prometheus * */Usage/Cache");
    assert_int_equal(line_count, 2);
    assert_string_equal(lines[0], "# TYPE fusor_guest_ram_usage_cache_bytes gauge");
    assert_string_equal(lines[1], "fusor_guest_ram_usage_cache_bytes{object=\"beta\"} "
                                  "18446744073709547520");
    three_vms();
    for (size_t i = 0; i < ARRAY_SIZE(names); i++) {
        char command[64], wanted[64];
        snprintf(command, sizeof(command), "metrics alpha *Usage/%s", names[i]);
        snprintf(wanted, sizeof(wanted), "alpha Guest/RAM/Usage/%s - kB", names[i]);
        ask(command);
        assert_int_equal(line_count, 1);
        assert_string_equal(lines[0], wanted);
    }
}

static void test_filters(void **state)
{
    (void)state;
    three_vms();
    ask("metrics host");
    assert_int_equal(line_count, HOST_LINES);
    ask("metrics host RAM/VMM/F*");
    assert_int_equal(line_count, 3);
    ask("metrics beta CPU/*");
    assert_int_equal(line_count, 3);
    ask("metrics * */Shared");
    assert_int_equal(line_count, 4);
    ask("metrics nobody");
    assert_int_equal(line_count, 1);
    assert_string_equal(lines[0], "error: no VM is called \"nobody\", expected host, a VM or *");
    ask("metrics * nothing");
    assert_string_equal(lines[0], "error: no metric matches \"nothing\", `metrics` lists all");
    ask("metrics --xml");
    assert_string_equal(lines[0], "error: unknown option --xml, expected --json or --prometheus");
    ask("metrics a b c");
    assert_string_equal(lines[0], "error: usage: metrics [--json|--prometheus] [OBJECT|* [GLOB]]");
    vm_count = 0;
    ask("metrics");
    assert_int_equal(line_count, HOST_LINES);
}

static void test_json(void **state)
{
    (void)state;
    three_vms();
    ask("metrics --json");
    assert_string_equal(lines[0], "[");
    assert_string_equal(lines[line_count - 1], "]");
    assert_int_equal(line_count, 2 + HOST_LINES + 3 * VM_LINES);
    for (unsigned i = 1; i + 1 < line_count; i++) {
        char object[64], metric[128], number[32], unit[16];
        char end[4] = "";
        int fields = sscanf(lines[i],
                            "{\"object\":\"%63[a-z0-9_-]\",\"metric\":\"%127[A-Za-z0-9/_.-]\","
                            "\"value\":%31[0-9nul],\"unit\":\"%15[a-zB]\"%3s",
                            object, metric, number, unit, end);
        if (fields != 5)
            fail_msg("%s", lines[i]);
        assert_string_equal(end, i + 2 < line_count ? "}," : "}");
        assert_true(strcmp(number, "null") == 0 || strspn(number, "0123456789") == strlen(number));
    }
    ask("metrics --json host RAM/VMM/Total");
    assert_int_equal(line_count, 3);
    assert_string_equal(lines[1], "{\"object\":\"host\",\"metric\":\"RAM/VMM/Total\","
                                  "\"value\":1048576,\"unit\":\"kB\"}");
    ask("metrics --json host nothing");
    assert_int_equal(line_count, 1);
    assert_int_equal(strncmp(lines[0], "error: ", 7), 0);
}

static void test_prometheus(void **state)
{
    (void)state;
    static char seen[64][128];
    unsigned families = 0;
    char family[128] = "";
    three_vms();
    ask("metrics --prometheus");
    for (unsigned i = 0; i < line_count; i++) {
        char name[128], type[16];
        if (sscanf(lines[i], "# TYPE %127s %15s", name, type) == 2) {
            assert_true(strcmp(type, "gauge") == 0 || strcmp(type, "counter") == 0);
            // A family comes once: its samples stand together.
            for (unsigned f = 0; f < families; f++)
                assert_string_not_equal(seen[f], name);
            strcpy(seen[families++], name);
            strcpy(family, name);
            // By the naming rules a counter ends in _total, and a gauge need not.
            if (strcmp(type, "counter") == 0)
                assert_string_equal(name + strlen(name) - 6, "_total");
            assert_int_equal(strspn(name, "abcdefghijklmnopqrstuvwxyz0123456789_"), strlen(name));
            continue;
        }
        uint64_t number;
        char labels[128], rest;
        assert_int_equal(
            sscanf(lines[i], "%127[a-z0-9_]{%127[^}]} %" SCNu64 "%c", name, labels, &number, &rest),
            3);
        assert_string_equal(name, family);
    }
    // One for all exits, and one for all hints rejected.
    assert_int_equal(families, HOST_LINES + 24 - DRIVER_LINES + 2);
    assert_int_equal(line_count, families + HOST_LINES + 3 * (VM_LINES - DRIVER_LINES));
    ask("metrics --prometheus host RAM/VMM/Total");
    assert_int_equal(line_count, 2);
    assert_string_equal(lines[0], "# TYPE fusor_ram_vmm_total_bytes gauge");
    assert_string_equal(lines[1], "fusor_ram_vmm_total_bytes{object=\"host\"} 1073741824");
    ask("metrics --prometheus alpha Exits/io");
    assert_string_equal(lines[0], "# TYPE fusor_exits_total counter");
    assert_string_equal(lines[1], "fusor_exits_total{object=\"alpha\",reason=\"io\"} 700");
}

static int set_up(void **state)
{
    (void)state;
    fake_machine(0, 2);
    console_boot();
    return 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_four_fields), cmocka_unit_test(test_identities),
        cmocka_unit_test(test_fusion),      cmocka_unit_test(test_what_the_driver_knows),
        cmocka_unit_test(test_filters),     cmocka_unit_test(test_json),
        cmocka_unit_test(test_prometheus),
    };
    return cmocka_run_group_tests_name("metrics", tests, set_up, NULL);
}
