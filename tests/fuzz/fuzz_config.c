// SPDX-License-Identifier: BSD-2-Clause
// Any bytes as fusor.conf: what comes through as a VM is whole and valid.
// sources: shell/config_host_keys.c shell/config_value.c
// sources: tests/unit/fake/fake.c shell/config.c shell/config_keys.c boot/config_lex.c
// sources: kernel/format.c kernel/error.c kernel/lock.c shell/terminal.c shell/console.c
// sources: shell/line_editor.c shell/arguments.c shell/command.c shell/cmd_host.c shell/cmd_vm.c
// sources: shell/attach.c shell/events.c shell/facts.c shell/autostart.c shell/metrics.c
// sources: shell/metrics_print.c shell/cmd_fusion.c shell/cmd_trace.c shell/vm_show.c
// sources: kernel/trace.c
#include "fake.h"
#include "shell/config.h"
#include "shell_fakes.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static char names[VM_MAX][VM_NAME_MAX + 1];
static unsigned name_count;

static void require(bool condition)
{
    if (!condition)
        abort();
}

static void take_vm(void *context, const struct vm_config *vm, unsigned line)
{
    char message[CONFIG_MESSAGE_MAX];
    const char *key;
    (void)context;
    require(line > 0);
    require(config_valid_name(vm->name));
    require(config_check_vm(vm, &key, message) == 0);
    require(vm->memory >= MIB && vm->memory % PAGE_SIZE == 0 && vm->memory <= GIB);
    require(vm->cpus >= 1 && vm->cpus <= VM_CPUS_MAX);
    require(vm->weight >= 1 && vm->weight <= 10000);
    require(vm->affinity == UINT64_MAX || (vm->affinity != 0 && vm->affinity < 16));
    require(vm->module_count <= VM_MODULES_MAX);
    require(memchr(vm->cmdline, 0, sizeof(vm->cmdline)) != NULL);
    for (unsigned i = 0; i < name_count; i++)
        require(strcmp(names[i], vm->name) != 0);
    require(name_count < VM_MAX);
    strcpy(names[name_count++], vm->name);
}

static void take_complaint(void *context, bool is_error, const char *message)
{
    (void)context;
    (void)is_error;
    require(strncmp(message, "fusor.conf:", 11) == 0);
    for (; *message != '\0'; message++)
        require(*message >= ' ' && *message <= '~');
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static const struct config_sink sink = {take_vm, take_complaint, NULL};
    struct host_config host;
    fake_machine(0, 4);
    name_count = 0;
    config_parse((const char *)data, size, &host, &sink);
    require(host.console_port != 0 && host.console_baud >= 50 && host.console_baud <= 115200);
    require(host.reserve % PAGE_SIZE == 0);
    return 0;
}
