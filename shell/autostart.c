// SPDX-License-Identifier: BSD-2-Clause
#include "shell/autostart.h"

#include "kernel/error.h"
#include "kernel/log.h"
#include "kernel/string.h"
#include "shell/config.h"
#include "shell/facts.h"
#include "vm/vm.h"

static const char *config_text;
static size_t config_size;

static struct {
    char name[VM_NAME_MAX + 1];
    unsigned line;
} list[VM_MAX];
static unsigned count;

void autostart_set_config(const char *text, size_t size)
{
    config_text = text;
    config_size = size;
}

static void take_vm(void *unused, const struct vm_config *vm, unsigned line)
{
    char why[VM_WHY_MAX] = "";
    (void)unused;
    if (shell_facts.console_only)
        return;
    int error = vm_create(vm, why);
    if (error < 0) {
        shell_facts.errors++;
        log_error("fusor.conf:%u: VM %s: %s", line, vm->name,
                  why[0] != '\0' ? why : error_text(error));
        return;
    }
    if (!vm->autostart || count == VM_MAX)
        return;
    memcpy(list[count].name, vm->name, sizeof(list[count].name));
    list[count].line = line;
    count++;
}

static void take_complaint(void *unused, bool is_error, const char *message)
{
    (void)unused;
    if (is_error) {
        shell_facts.errors++;
        log_error("%s", message);
    } else {
        shell_facts.warnings++;
        log_warning("%s", message);
    }
}

static void start(const char *name, unsigned line)
{
    char why[VM_WHY_MAX] = "";
    int error = vm_start(name, why);
    if (error < 0)
        log_error("fusor.conf:%u: VM %s did not start: %s", line, name,
                  why[0] != '\0' ? why : error_text(error));
    else
        log_info("VM %s started", name);
}

void autostart_run(void)
{
    static const struct config_sink sink = {take_vm, take_complaint, NULL};
    struct host_config unused; // in effect since shell_init
    count = 0;
    if (config_text == NULL) {
        log_info("no \\fusor\\fusor.conf: no VMs, `vm create` makes one");
        return;
    }
    config_parse(config_text, config_size, &unused, &sink);
    if (shell_facts.console_only)
        log_warning("\\fusor\\console-only exists: VT-x is not used, no VM is created");
    for (unsigned i = 0; i < count; i++)
        start(list[i].name, list[i].line);
}
