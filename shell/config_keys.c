// SPDX-License-Identifier: BSD-2-Clause
// The keys of [vm NAME]: names, values, defaults (design section 7).
#include "kernel/error.h"
#include "kernel/format.h"
#include "kernel/percpu.h"
#include "kernel/string.h"
#include "shell/config_value.h"

#define VM_MEMORY_MIN MIB
#define VM_WEIGHT_MAX 10000u
#define VM_SCAN_MAX   1000000u

static struct vm_config *vm_of(const struct config_attempt *a)
{
    return a->target;
}

static int set_memory(const struct config_attempt *a)
{
    uint64_t bytes = 0;
    int error = config_set_size(a, &bytes);
    if (error == 0 && bytes < VM_MEMORY_MIN)
        error = config_expected(a, E_RANGE, "at least 1M");
    if (error == 0)
        error = config_check_machine_has(a, bytes, 1);
    if (error == 0)
        vm_of(a)->memory = bytes;
    return error;
}

static int set_kernel(const struct config_attempt *a)
{
    return config_set_path(a, vm_of(a)->kernel);
}

static int set_initrd(const struct config_attempt *a)
{
    if (a->value[0] != '\0')
        return config_set_path(a, vm_of(a)->initrd);
    vm_of(a)->initrd[0] = '\0';
    return 0;
}

static int set_cmdline(const struct config_attempt *a)
{
    size_t length = strlen(a->value);
    if (length >= VM_CMDLINE_MAX)
        return config_expected(a, E_RANGE, "at most 2047 characters");
    memcpy(vm_of(a)->cmdline, a->value, length + 1);
    return 0;
}

static int add_module(const struct config_attempt *a)
{
    struct vm_config *vm = vm_of(a);
    if (vm->module_count >= VM_MODULES_MAX)
        return config_expected(a, E_RANGE, "at most 8 modules");
    int error = config_set_path(a, vm->modules[vm->module_count]);
    if (error == 0)
        vm->module_count++;
    return error;
}

static int set_boot(const struct config_attempt *a)
{
    if (equal(a->value, "linux")) {
        vm_of(a)->boot = VM_BOOT_LINUX;
        return 0;
    }
    if (equal(a->value, "pvh") || equal(a->value, "multiboot")) {
        format_text(a->message, CONFIG_MESSAGE_MAX, "%s: expected linux, %s is not supported yet",
                    a->key, a->value);
        return E_NOSYS;
    }
    return config_expected(a, E_INVAL, "linux");
}

static int set_cpus(const struct config_attempt *a)
{
    uint64_t n = 0;
    const char *rest;
    int error = config_parse_decimal(a->value, &n, &rest);
    if (error == 0 && (*rest != '\0' || n < 1 || n > VM_CPUS_MAX))
        error = E_RANGE;
    if (error < 0) {
        char what[64];
        format_text(what, sizeof(what), "1 to %u, more is not supported yet", VM_CPUS_MAX);
        return config_expected(a, error, what);
    }
    vm_of(a)->cpus = (uint32_t)n;
    return error;
}

static int set_page_fusion(const struct config_attempt *a)
{
    return config_set_switch(a, &vm_of(a)->page_fusion);
}

static int set_fusion_group(const struct config_attempt *a)
{
    if (a->value[0] != '\0' && !config_valid_name(a->value))
        return config_expected(a, E_INVAL, "a name of a-z, 0-9, _ and -, at most 31 characters");
    memcpy(vm_of(a)->fusion_group, a->value, strlen(a->value) + 1);
    return 0;
}

static int set_scan(const struct config_attempt *a)
{
    return config_set_number(a, 0, VM_SCAN_MAX, &vm_of(a)->scan);
}

static int set_balloon(const struct config_attempt *a)
{
    return config_set_size(a, &vm_of(a)->balloon);
}

static int set_memory_min(const struct config_attempt *a)
{
    return config_set_size(a, &vm_of(a)->memory_min);
}

static int set_large_pages(const struct config_attempt *a)
{
    static const char *const names[] = {
        [VM_LARGE_AUTO] = "auto", [VM_LARGE_EAGER] = "eager", [VM_LARGE_OFF] = "off"};
    for (unsigned i = 0; i < ARRAY_SIZE(names); i++)
        if (equal(a->value, names[i])) {
            vm_of(a)->large_pages = (enum vm_large_pages)i;
            return 0;
        }
    return config_expected(a, E_INVAL, "auto, eager or off");
}

static int set_weight(const struct config_attempt *a)
{
    uint64_t n = 0;
    int error = config_set_number(a, 1, VM_WEIGHT_MAX, &n);
    if (error == 0)
        vm_of(a)->weight = (uint32_t)n;
    return error;
}

static int set_cap(const struct config_attempt *a)
{
    uint64_t n = 0;
    int error = config_set_number(a, 0, 100u * MAX_CPUS, &n);
    if (error == 0)
        vm_of(a)->cap = (uint32_t)n;
    return error;
}

// "all", or CPU numbers and ranges: "0,2-3".
static int set_affinity(const struct config_attempt *a)
{
    uint64_t mask = 0;
    const char *at = a->value;
    char what[80];
    if (equal(at, "all")) {
        vm_of(a)->affinity = UINT64_MAX;
        return 0;
    }
    format_text(what, sizeof(what), "all, or CPUs below %u as in 0,2-3", cpu_count);
    for (;;) {
        uint64_t first, last;
        if (config_parse_decimal(at, &first, &at) < 0)
            return config_expected(a, E_FORMAT, what);
        last = first;
        if (*at == '-' && config_parse_decimal(at + 1, &last, &at) < 0)
            return config_expected(a, E_FORMAT, what);
        if (first > last || last >= cpu_count || last >= MAX_CPUS)
            return config_expected(a, E_RANGE, what);
        for (uint64_t cpu = first; cpu <= last; cpu++)
            if (cpus[cpu].online == 0)
                return config_expected(a, E_RANGE, "CPUs that came up, see `host`");
        for (uint64_t cpu = first; cpu <= last; cpu++)
            mask |= UINT64_C(1) << cpu;
        if (*at == '\0')
            break;
        if (*at++ != ',')
            return config_expected(a, E_FORMAT, what);
    }
    vm_of(a)->affinity = mask;
    return 0;
}

static int set_autostart(const struct config_attempt *a)
{
    return config_set_switch(a, &vm_of(a)->autostart);
}

static const struct config_key vm_keys[] = {
    {"memory", set_memory, false, false},
    {"kernel", set_kernel, false, false},
    {"initrd", set_initrd, false, false},
    {"cmdline", set_cmdline, false, false},
    {"module", add_module, true, true},
    {"boot", set_boot, false, false},
    {"cpus", set_cpus, false, false},
    {"page-fusion", set_page_fusion, false, false},
    {"fusion-group", set_fusion_group, false, false},
    {"scan", set_scan, false, false},
    {"balloon", set_balloon, false, false},
    {"memory-min", set_memory_min, false, false},
    {"large-pages", set_large_pages, false, false},
    {"weight", set_weight, false, false},
    {"cap", set_cap, false, false},
    {"affinity", set_affinity, false, false},
    {"autostart", set_autostart, false, false},
};
_Static_assert(ARRAY_SIZE(vm_keys) <= CONFIG_KEYS_MAX, "the parser remembers a line per key");

void config_vm_defaults(struct vm_config *vm)
{
    memset(vm, 0, sizeof(*vm));
    vm->boot = VM_BOOT_DETECT;
    vm->cpus = 1;
    vm->page_fusion = true;
    vm->large_pages = VM_LARGE_AUTO;
    vm->weight = 100;
    vm->affinity = UINT64_MAX;
    vm->autostart = true;
}

int config_check_vm(const struct vm_config *vm, const char **key, char *message)
{
    if (vm->memory == 0) {
        *key = "memory";
        format_text(message, CONFIG_MESSAGE_MAX, "memory: expected a size, it is required");
        return E_INVAL;
    }
    if (vm->kernel[0] == '\0') {
        *key = "kernel";
        format_text(message, CONFIG_MESSAGE_MAX, "kernel: expected a path, it is required");
        return E_INVAL;
    }
    unsigned long long kib = (unsigned long long)(vm->memory / KIB);
    if (vm->memory_min > vm->memory) {
        *key = "memory-min";
        format_text(message, CONFIG_MESSAGE_MAX,
                    "memory-min: expected at most the VM's memory (%lluK), got %lluK", kib,
                    (unsigned long long)(vm->memory_min / KIB));
        return E_INVAL;
    }
    if (vm->balloon > vm->memory - vm->memory_min) {
        *key = "balloon";
        format_text(message, CONFIG_MESSAGE_MAX,
                    "balloon: expected at most memory - memory-min (%lluK), got %lluK",
                    (unsigned long long)((vm->memory - vm->memory_min) / KIB),
                    (unsigned long long)(vm->balloon / KIB));
        return E_INVAL;
    }
    return 0;
}

int config_vm_key_index(const char *key)
{
    return config_find_key(vm_keys, ARRAY_SIZE(vm_keys), key);
}

bool config_vm_key_repeats(const char *key)
{
    int index = config_vm_key_index(key);
    return index >= 0 && vm_keys[index].repeats;
}

int config_set_vm_key(struct vm_config *vm, const char *key, const char *value, char *message)
{
    struct config_attempt a = {vm, key, value, message};
    return config_set_key(vm_keys, ARRAY_SIZE(vm_keys), &a);
}
