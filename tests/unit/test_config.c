// SPDX-License-Identifier: BSD-2-Clause
// fusor.conf: every key, good and bad values, sections with errors beside sections without.
// sources: shell/config.c shell/config_keys.c shell/config_host_keys.c shell/config_value.c
// sources: boot/config_lex.c kernel/format.c
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "fake.h"
#include "kernel/error.h"
#include "kernel/files.h"
#include "kernel/frames.h"
#include "kernel/heap.h"
#include "kernel/percpu.h"
#include "shell/config.h"
#include "vm/vm.h"

// --- what the parser needs of other rooms ---

static struct boot_file boot_files[] = {
    {.path = "\\guests\\vmlinuz", .size = 100, .status = BOOT_FILE_LOADED},
    {.path = "\\guests\\initrd.img", .size = 100, .status = BOOT_FILE_LOADED},
    {.path = "\\gone", .status = BOOT_FILE_MISSING},
    {.path = "\\broken", .status = BOOT_FILE_UNREADABLE},
    {.path = "\\huge", .status = BOOT_FILE_NO_MEMORY},
    {.path = "\\guests\\extra\\a", .status = BOOT_FILE_LOADED},
};

#include "fake/boot_files.h"

void frames_snapshot(struct frames_snapshot *out, struct frame_account *const *accounts, size_t n,
                     uint64_t *private_out, uint64_t *shared_out)
{
    (void)accounts;
    (void)n;
    (void)private_out;
    (void)shared_out;
    memset(out, 0, sizeof(*out));
    out->total = GIB / PAGE_SIZE;
}

static bool heap_empty;

void *heap_alloc(size_t size)
{
    return heap_empty ? NULL : calloc(1, size);
}

void heap_free(void *p)
{
    free(p);
}

// --- what the parser said ---

static struct {
    struct vm_config vm[VM_MAX];
    unsigned vm_line[VM_MAX];
    unsigned vms, errors, warnings;
    char text[128 * 1024];
    struct host_config host;
} got;

static void take_vm(void *context, const struct vm_config *vm, unsigned line)
{
    assert_ptr_equal(context, &got);
    assert_true(got.vms < VM_MAX);
    got.vm_line[got.vms] = line;
    got.vm[got.vms++] = *vm;
}

static void take_complaint(void *context, bool is_error, const char *message)
{
    assert_ptr_equal(context, &got);
    assert_true(strlen(message) < CONFIG_MESSAGE_MAX + 32);
    assert_null(strchr(message, '\n'));
    if (is_error)
        got.errors++;
    else
        got.warnings++;
    strcat(got.text, message);
    strcat(got.text, "\n");
}

static void parse_bytes(const char *text, size_t size)
{
    static const struct config_sink sink = {take_vm, take_complaint, &got};
    memset(&got, 0, sizeof(got));
    // A copy of exact size, so that the sanitizer sees a read behind the end.
    char *copy = malloc(size + (size == 0));
    memcpy(copy, text, size);
    config_parse(copy, size, &got.host, &sink);
    free(copy);
}

static void parse(const char *text)
{
    parse_bytes(text, strlen(text));
}

#define GOOD "memory = 256M\nkernel = \\guests\\vmlinuz\n"

static void expect_error(const char *text, const char *message)
{
    parse(text);
    if (got.errors != 1 || strcmp(got.text, message) != 0)
        fail_msg("for\n%s\nexpected: %s\ngot:      %s", text, message, got.text);
}

// The line of a VM section that is otherwise good; the key stands in line 4.
static void expect_bad_value(const char *pair, const char *message)
{
    char text[512], line[400];
    snprintf(text, sizeof(text), "[vm a]\n" GOOD "%s\n", pair);
    snprintf(line, sizeof(line), "fusor.conf:4: %s\n", message);
    expect_error(text, line);
    assert_int_equal(got.vms, 0);
}

static const struct vm_config *expect_good(const char *pair)
{
    char text[512];
    snprintf(text, sizeof(text), "[vm a]\n" GOOD "%s\n", pair);
    parse(text);
    if (got.errors != 0 || got.warnings != 0 || got.vms != 1)
        fail_msg("%s: %s", pair, got.text);
    return &got.vm[0];
}

static const struct vm_config *expect_warning(const char *pair)
{
    char text[512], line[128], key[64];
    sscanf(pair, "%63[^ =]", key);
    snprintf(text, sizeof(text), "[vm a]\n" GOOD "%s\n", pair);
    snprintf(line, sizeof(line), "fusor.conf:4: warning: %s is not in effect yet\n", key);
    parse(text);
    assert_string_equal(got.text, line);
    assert_int_equal(got.errors, 0);
    assert_int_equal(got.vms, 1);
    return &got.vm[0];
}

static void test_the_example_of_the_design(void **state)
{
    (void)state;
    parse("[host]\n"
          "console    = com1:115200     ; or an I/O port\n"
          "reserve    = 16M\n"
          "overcommit = on\n"
          "files      = \\guests\\extra   ; loaded beside those that VMs name\n"
          "\n"
          "[vm alpha]\n"
          "memory   = 256M\n"
          "kernel   = \\guests\\vmlinuz\n"
          "initrd   = \\guests\\initrd.img\n"
          "cmdline  = \"console=ttyS0 nokaslr\"\n"
          "fusion-group = web\n");
    assert_string_equal(got.text, "");
    assert_int_equal(got.vms, 1);
    assert_int_equal(got.vm_line[0], 7);
    const struct vm_config *vm = &got.vm[0];
    assert_string_equal(vm->name, "alpha");
    assert_int_equal(vm->memory, 256 * MIB);
    assert_string_equal(vm->kernel, "\\guests\\vmlinuz");
    assert_string_equal(vm->initrd, "\\guests\\initrd.img");
    assert_string_equal(vm->cmdline, "console=ttyS0 nokaslr");
    assert_string_equal(vm->fusion_group, "web");
    assert_int_equal(got.host.console_port, 0x3f8);
    assert_int_equal(got.host.console_baud, 115200);
}

static void test_defaults(void **state)
{
    (void)state;
    const struct vm_config *vm = expect_good("");
    assert_string_equal(vm->initrd, "");
    assert_string_equal(vm->cmdline, "");
    assert_int_equal(vm->module_count, 0);
    assert_int_equal(vm->boot, VM_BOOT_DETECT);
    assert_int_equal(vm->cpus, 1);
    assert_true(vm->page_fusion);
    assert_string_equal(vm->fusion_group, "");
    assert_int_equal(vm->scan, 0);
    assert_int_equal(vm->balloon, 0);
    assert_int_equal(vm->memory_min, 128 * MIB);
    assert_int_equal(vm->large_pages, VM_LARGE_AUTO);
    assert_int_equal(vm->weight, 100);
    assert_int_equal(vm->cap, 0);
    assert_true(vm->affinity == UINT64_MAX);
    assert_true(vm->autostart);

    parse("");
    assert_int_equal(got.errors + got.warnings + got.vms, 0);
    assert_int_equal(got.host.console_port, 0x3f8);
    assert_int_equal(got.host.console_baud, 115200);
    assert_int_equal(got.host.reserve, 16 * MIB);
    assert_true(got.host.overcommit);
    assert_false(got.host.auto_balloon);
    assert_true(got.host.apicv);
}

static void test_sizes(void **state)
{
    (void)state;
    static const struct {
        const char *text;
        int result;
        uint64_t bytes;
    } cases[] = {
        {"0K", 0, 0},
        {"1K", 0, KIB},
        {"256M", 0, 256 * MIB},
        {"17179869183G", 0, UINT64_C(17179869183) << 30},
        {"17179869184G", E_RANGE, 0},
        {"99999999999999999999K", E_RANGE, 0},
        {"18446744073709551615K", E_RANGE, 0},
        {"18446744073709551616K", E_RANGE, 0},
        {"", E_FORMAT, 0},
        {"K", E_FORMAT, 0},
        {"12", E_FORMAT, 0},
        {"1.5G", E_FORMAT, 0},
        {"1MB", E_FORMAT, 0},
        {"1m", E_FORMAT, 0},
        {"1 M", E_FORMAT, 0},
        {"-1M", E_FORMAT, 0},
        {"+1M", E_FORMAT, 0},
        {"0x10M", E_FORMAT, 0},
        {"1T", E_FORMAT, 0},
    };
    for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
        uint64_t bytes = 0;
        int result = config_parse_size(cases[i].text, &bytes);
        if (result != cases[i].result || bytes != cases[i].bytes)
            fail_msg("\"%s\": %d, %llu", cases[i].text, result, (unsigned long long)bytes);
    }
}

static void test_names(void **state)
{
    (void)state;
    static const char *const good[] = {"a",   "0",     "alpha", "web-1",
                                       "a_b", "hosts", "all1",  "abcdefghijklmnopqrstuvwxyz01234"};
    static const char *const bad[] = {"",
                                      "host",
                                      "all",
                                      "-a",
                                      "_a",
                                      "Alpha",
                                      "a b",
                                      "a.b",
                                      "\xe4",
                                      "a/",
                                      "abcdefghijklmnopqrstuvwxyz012345"};
    for (size_t i = 0; i < ARRAY_SIZE(good); i++)
        assert_true(config_valid_name(good[i]));
    for (size_t i = 0; i < ARRAY_SIZE(bad); i++)
        assert_false(config_valid_name(bad[i]));
}

static void test_good_values(void **state)
{
    (void)state;
    assert_int_equal(expect_good("boot = linux")->boot, VM_BOOT_LINUX);
    assert_int_equal(expect_good("cpus = 1")->cpus, 1);
    char most[32];
    snprintf(most, sizeof(most), "cpus = %u", VM_CPUS_MAX);
    assert_int_equal(expect_good(most)->cpus, VM_CPUS_MAX);
    assert_false(expect_good("page-fusion = off")->page_fusion);
    assert_true(expect_good("page-fusion = on")->page_fusion);
    assert_string_equal(expect_good("fusion-group = g1")->fusion_group, "g1");
    assert_string_equal(expect_good("fusion-group =")->fusion_group, "");
    assert_int_equal(expect_good("scan = 0")->scan, 0);
    assert_int_equal(expect_good("scan = 1000000")->scan, 1000000);
    assert_string_equal(expect_good("initrd =")->initrd, "");
    assert_int_equal(expect_good("large-pages = eager")->large_pages, VM_LARGE_EAGER);
    assert_int_equal(expect_good("large-pages = off")->large_pages, VM_LARGE_OFF);
    assert_int_equal(expect_good("large-pages = auto")->large_pages, VM_LARGE_AUTO);
    assert_int_equal(expect_good("weight = 1")->weight, 1);
    assert_int_equal(expect_good("balloon = 64M")->balloon, 64 * MIB);
    assert_int_equal(expect_good("memory-min = 32M")->memory_min, 32 * MIB);
    assert_int_equal(expect_good("weight = 10000")->weight, 10000);
    assert_int_equal(expect_good("cap = 50")->cap, 50);
    assert_false(expect_good("autostart = off")->autostart);
    assert_true(expect_good("autostart = on")->autostart);
    assert_true(expect_good("affinity = all")->affinity == UINT64_MAX);
    assert_int_equal(expect_good("affinity = 0")->affinity, 1);
    assert_int_equal(expect_good("affinity = 0,2-3")->affinity, 0xd);
    assert_string_equal(expect_good("cmdline = a=b \"c ; d\" # comment")->cmdline, "a=b \"c ; d\"");
}

static void test_keys_without_effect(void **state)
{
    (void)state;
    const struct vm_config *vm = expect_warning("module = \\guests\\initrd.img");
    assert_int_equal(vm->module_count, 1);
    assert_string_equal(vm->modules[0], "\\guests\\initrd.img");
}

static void test_bad_values(void **state)
{
    (void)state;
    expect_bad_value("page-fusion = yes", "page-fusion: expected on or off, got \"yes\"");
    expect_bad_value("autostart = 1", "autostart: expected on or off, got \"1\"");
    const unsigned wrong_cpus[] = {0, VM_CPUS_MAX + 1};
    for (size_t i = 0; i < ARRAY_SIZE(wrong_cpus); i++) {
        char pair[32], message[96];
        snprintf(pair, sizeof(pair), "cpus = %u", wrong_cpus[i]);
        snprintf(message, sizeof(message),
                 "cpus: expected 1 to %u, more is not supported yet, got \"%u\"", VM_CPUS_MAX,
                 wrong_cpus[i]);
        expect_bad_value(pair, message);
    }
    expect_bad_value("scan = 1000001",
                     "scan: expected an integer from 0 to 1000000, got \"1000001\"");
    expect_bad_value("boot = pvh", "boot: expected linux, pvh is not supported yet");
    expect_bad_value("boot = multiboot", "boot: expected linux, multiboot is not supported yet");
    expect_bad_value("boot = dos", "boot: expected linux, got \"dos\"");
    expect_bad_value("initrd = \\nowhere", "\\nowhere was not loaded at boot");
    expect_bad_value("initrd = \\gone",
                     "initrd: expected a readable file, got \\gone: no such file "
                     "on the boot volume");
    expect_bad_value("initrd = \\broken", "initrd: expected a readable file, got \\broken: the "
                                          "firmware could not read it at boot");
    expect_bad_value("initrd = \\huge", "initrd: expected a readable file, got \\huge: no memory "
                                        "was left to load it at boot");
    expect_bad_value("module =",
                     "module: expected the path of a file on the boot volume, got \"\"");
    expect_bad_value("fusion-group = Web", "fusion-group: expected a name of a-z, 0-9, _ and -, at "
                                           "most 31 characters, got \"Web\"");
    expect_bad_value("scan = -1", "scan: expected an integer from 0 to 1000000, got \"-1\"");
    expect_bad_value("weight = 0", "weight: expected an integer from 1 to 10000, got \"0\"");
    expect_bad_value("weight = 5x", "weight: expected an integer from 1 to 10000, got \"5x\"");
    expect_bad_value("cap = 99999", "cap: expected an integer from 0 to 6400, got \"99999\"");
    expect_bad_value("large-pages = on", "large-pages: expected auto, eager or off, got \"on\"");
    static const char *const sets[] = {
        "", "4", "0-4", "3-2", "0,", "a", "0-", "0;1", "99999999999999999999", "-1", "0 1"};
    for (size_t i = 0; i < ARRAY_SIZE(sets); i++) {
        char pair[64], message[160];
        snprintf(pair, sizeof(pair), "affinity = %s", sets[i]);
        snprintf(message, sizeof(message),
                 "affinity: expected all, or CPUs below 4 as in 0,2-3, got \"%s\"", sets[i]);
        expect_bad_value(pair, message);
    }
    expect_bad_value("balloon = 64", "balloon: expected an integer with K, M or G, got \"64\"");
    expect_bad_value("memory-min = 5K", "memory-min: expected a multiple of 4K, got \"5K\"");
    expect_bad_value("memory = 1G", "memory: expected once in a section, it stands in line 2 too");
    expect_bad_value("\x1b[2J = 1", "expected text, found a NUL byte or another control character");
    expect_bad_value("novalue", "expected KEY = VALUE or a section header");
}

static void test_bad_memory(void **state)
{
    (void)state;
    static const struct {
        const char *value, *message;
    } cases[] = {
        {"12", "fusor.conf:2: memory: expected an integer with K, M or G, got \"12\"\n"},
        {"lots", "fusor.conf:2: memory: expected an integer with K, M or G, got \"lots\"\n"},
        {"1020K", "fusor.conf:2: memory: expected at least 1M, got \"1020K\"\n"},
        {"1025K", "fusor.conf:2: memory: expected a multiple of 4K, got \"1025K\"\n"},
        {"2G", "fusor.conf:2: memory: expected at most the 1048576K of this machine, got \"2G\"\n"},
        {"99999999999G", "fusor.conf:2: memory: expected a size below 16777216G, got "
                         "\"99999999999G\"\n"},
    };
    for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
        char text[128];
        snprintf(text, sizeof(text), "[vm a]\nmemory = %s\nkernel = \\guests\\vmlinuz\n",
                 cases[i].value);
        expect_error(text, cases[i].message);
        assert_int_equal(got.vms, 0);
    }
}

static void test_what_must_fit_together(void **state)
{
    (void)state;
    expect_error("[vm a]\nkernel = \\guests\\vmlinuz\n",
                 "fusor.conf:1: memory: expected a size, it is required\n");
    expect_error("\n[vm a]\nmemory = 16M\n",
                 "fusor.conf:2: kernel: expected a path, it is required\n");
    parse("[vm a]\n" GOOD "memory-min = 512M\n");
    assert_non_null(strstr(got.text, "fusor.conf:4: memory-min: expected at most the VM's memory "
                                     "(262144K), got 524288K\n"));
    assert_int_equal(got.vms, 0);
    parse("[vm a]\nballoon = 129M\n" GOOD);
    assert_non_null(strstr(got.text, "fusor.conf:2: balloon: expected at most memory - memory-min "
                                     "(131072K), got 132096K\n"));
    assert_int_equal(got.vms, 0);
}

static void test_an_error_spoils_its_section_only(void **state)
{
    (void)state;
    parse("[vm one]\n" GOOD "colour = red\n"
          "[vm two]\n" GOOD "[vm three\n" GOOD "[what]\nmemory = 1\n"
          "[vm four]\n" GOOD "[vm two]\n" GOOD "[vm host]\n" GOOD "[vm]\n[host x]\n"
          "[vm five]\n" GOOD);
    assert_int_equal(got.vms, 3);
    assert_string_equal(got.vm[0].name, "two");
    assert_string_equal(got.vm[1].name, "four");
    assert_string_equal(got.vm[2].name, "five");
    assert_int_equal(got.errors, 7);
    assert_non_null(strstr(got.text, "fusor.conf:4: unknown key \"colour\", expected one of: "
                                     "memory kernel initrd"));
    assert_non_null(strstr(got.text, "duplicate VM: expected a name not used before, two stands in "
                                     "line 5"));
    assert_non_null(strstr(got.text, "got \"host\""));
}

static void test_too_many_vms(void **state)
{
    (void)state;
    char text[8192] = "";
    for (unsigned i = 0; i <= VM_MAX; i++)
        sprintf(text + strlen(text), "[vm v%u]\n" GOOD, i);
    expect_error(text, "fusor.conf:97: VM v32: expected at most 32 VMs\n");
    assert_int_equal(got.vms, VM_MAX);
}

static void test_host(void **state)
{
    (void)state;
    static const struct {
        const char *value;
        uint16_t port;
        uint32_t baud;
    } good[] = {
        {"com1", 0x3f8, 115200},        {"com2:9600", 0x2f8, 9600}, {"com3:57600", 0x3e8, 57600},
        {"com4:115200", 0x2e8, 115200}, {"0x3f8", 0x3f8, 115200},   {"0x3F8:50", 0x3f8, 50},
        {"1016:115200", 0x3f8, 115200}, {"0xfff8", 0xfff8, 115200},
    };
    static const char *const bad[] = {"",
                                      "com",
                                      "com0",
                                      "com5",
                                      "com12",
                                      "com1:",
                                      "com1:0",
                                      "com1:49",
                                      "com1:115201",
                                      "com1:7000",
                                      "com1:96x",
                                      "0x",
                                      "0x3f9",
                                      "0",
                                      "0x10000",
                                      "0xffffffffffffffff8",
                                      "tty"};
    char text[128];
    for (size_t i = 0; i < ARRAY_SIZE(good); i++) {
        snprintf(text, sizeof(text), "[host]\nconsole = %s\n", good[i].value);
        parse(text);
        assert_string_equal(got.text, "");
        assert_int_equal(got.host.console_port, good[i].port);
        assert_int_equal(got.host.console_baud, good[i].baud);
    }
    for (size_t i = 0; i < ARRAY_SIZE(bad); i++) {
        snprintf(text, sizeof(text), "[host]\nreserve = 32M\nconsole = %s\n", bad[i]);
        parse(text);
        assert_int_equal(got.errors, 1);
        assert_int_equal(strncmp(got.text, "fusor.conf:3: console: expected ", 32), 0);
        // The section is left out as a whole.
        assert_int_equal(got.host.reserve, 16 * MIB);
    }
    parse("[host]\nreserve = 32M\novercommit = off\nauto-balloon = on\napicv = off\n"
          "files = \\guests\\extra\nfiles = /guests/EXTRA/\nfiles = \\guests\\vmlinuz\n");
    assert_int_equal(got.errors, 0);
    assert_string_equal(got.text, "");
    assert_int_equal(got.host.reserve, 32 * MIB);
    assert_false(got.host.overcommit);
    assert_true(got.host.auto_balloon);
    assert_false(got.host.apicv);
    expect_error("[host]\nfiles = \\guests\\ext\n",
                 "fusor.conf:2: \\guests\\ext was not loaded at boot\n");
    expect_error("[host]\nreserve = 2G\n", "fusor.conf:2: reserve: expected at most 262144K, "
                                           "1/4 of this machine's memory, got \"2G\"\n");
    expect_error("[host]\nmemory = 2G\n", "fusor.conf:2: unknown key \"memory\", expected one of: "
                                          "console reserve overcommit auto-balloon files apicv\n");
    expect_error(
        "[host]\n[host]\nreserve = 1M\n",
        "fusor.conf:2: duplicate section: expected one [host], the first stands in line 1\n");
}

static void test_groups(void **state)
{
    (void)state;
    expect_error("[group web]\nsecure = on\n",
                 "fusor.conf:2: secure: expected off, on is not supported yet\n");
    expect_error("[group web]\nsecure = maybe\n",
                 "fusor.conf:2: secure: expected on or off, got \"maybe\"\n");
    expect_error("[group web]\nsize = 1\n",
                 "fusor.conf:2: unknown key \"size\", expected one of: secure\n");
    expect_error("[group Web]\n", "fusor.conf:1: group name: expected a-z, 0-9, _ and -, at most "
                                  "31 characters, not host or all\n");
    parse("[group web]\nsecure = off\n");
    assert_int_equal(got.errors, 0);
}

static void test_modules(void **state)
{
    (void)state;
    char text[1024] = "[vm a]\n" GOOD;
    for (unsigned i = 0; i < VM_MODULES_MAX; i++)
        strcat(text, "module = \\guests\\vmlinuz\n");
    parse(text);
    assert_int_equal(got.errors, 0);
    assert_int_equal(got.vm[0].module_count, VM_MODULES_MAX);
    strcat(text, "module = \\guests\\vmlinuz\n");
    parse(text);
    assert_int_equal(got.errors, 1);
    assert_non_null(strstr(got.text, "fusor.conf:12: module: expected at most 8 modules"));
}

static void test_files_that_are_not_text(void **state)
{
    (void)state;
    static char noise[65536];
    srand(1);
    for (int round = 0; round < 20; round++) {
        for (size_t i = 0; i < sizeof(noise); i++)
            noise[i] = (char)rand();
        parse_bytes(noise, sizeof(noise));
        assert_int_equal(got.vms, 0);
        // The log is not flooded.
        assert_true(got.errors > 0 && got.errors <= 64);
    }
    // A line longer than any buffer.
    memset(noise, 'a', sizeof(noise));
    parse_bytes(noise, sizeof(noise));
    assert_int_equal(got.errors, 1);
    // A file cut off in the middle of a word.
    const char *text = "[vm a]\n" GOOD "cmdline = \"quiet";
    for (size_t n = 0; n < strlen(text); n++)
        parse_bytes(text, n);
}

static void test_no_memory(void **state)
{
    (void)state;
    heap_empty = true;
    parse("[vm a]\n" GOOD);
    heap_empty = false;
    assert_int_equal(got.errors, 1);
    assert_int_equal(got.host.reserve, 16 * MIB);
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
        cmocka_unit_test(test_the_example_of_the_design),
        cmocka_unit_test(test_defaults),
        cmocka_unit_test(test_sizes),
        cmocka_unit_test(test_names),
        cmocka_unit_test(test_good_values),
        cmocka_unit_test(test_keys_without_effect),
        cmocka_unit_test(test_bad_values),
        cmocka_unit_test(test_bad_memory),
        cmocka_unit_test(test_what_must_fit_together),
        cmocka_unit_test(test_an_error_spoils_its_section_only),
        cmocka_unit_test(test_too_many_vms),
        cmocka_unit_test(test_host),
        cmocka_unit_test(test_groups),
        cmocka_unit_test(test_modules),
        cmocka_unit_test(test_files_that_are_not_text),
        cmocka_unit_test(test_no_memory),
    };
    return cmocka_run_group_tests_name("config", tests, set_up, NULL);
}
