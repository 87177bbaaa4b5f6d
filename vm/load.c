// SPDX-License-Identifier: BSD-2-Clause
// From a VM without memory to one that is ready to run: vCPUs, page tables, ACPI tables, kernel and
// initrd. Each step can lack a frame; then what is done stays, and the next try goes on behind it.
#include "kernel/error.h"
#include "kernel/files.h"
#include "kernel/format.h"
#include "kernel/string.h"
#include "vm/acpi.h"
#include "vm/vm_object.h"

static int fail(char *why, int status, const char *format, ...)
    __attribute__((format(printf, 3, 4)));
static int fail(char *why, int status, const char *format, ...)
{
    va_list args;
    va_start(args, format);
    if (why != NULL)
        format_text_v(why, VM_WHY_MAX, format, args);
    va_end(args);
    return status;
}

static int find_file(const char *path, const uint8_t **data, uint64_t *size, char *why)
{
    int status = files_find(path, data, size);
    if (status == E_NOENT)
        return fail(why, status, "%s was not loaded at boot", path);
    if (status != 0)
        return fail(why, status, "%s could not be read at boot", path);
    return 0;
}

int vm_load_begin(struct vm *vm, char *why)
{
    struct loader_input in = {.vm = vm, .memory = vm->config.memory, .cmdline = vm->load.cmdline};
    int status = find_file(vm->config.kernel, &in.kernel, &in.kernel_size, why);
    if (status == 0 && vm->config.initrd[0] != 0)
        status = find_file(vm->config.initrd, &in.initrd, &in.initrd_size, why);
    if (status != 0)
        return status;
    vm->load.input = in;
    memcpy(vm->load.cmdline, vm->config.cmdline, sizeof(vm->load.cmdline));
    vm->load.acpi_done = false;
    return 0;
}

// The part that is there at once, or not at all.
static int begin_memory(struct vm *vm, char *why)
{
    if (vm->memory_present)
        return 0;
    int status = vm_vcpus_prepare(vm);
    if (status != 0)
        return fail(why, status, "no memory for %u vCPUs of %s", vm->config.cpus, vm->config.name);
    status = vm_memory_create(vm);
    if (status != 0)
        return fail(why, status, "no memory for the page tables of %s", vm->config.name);
    return 0;
}

static int write_acpi(struct vm *vm, char *why)
{
    gpa_t rsdp; // always ACPI_RSDP, where the loader says it is
    if (vm->load.acpi_done)
        return 0;
    int status = acpi_write_tables(vm, vm->vcpu_count, &rsdp);
    if (status != 0)
        return fail(why, status, "no memory for the ACPI tables");
    vm->load.acpi_done = true;
    return 0;
}

int vm_load(struct vm *vm, char *why)
{
    struct loader_entry entry;
    int status = begin_memory(vm, why);
    if (status == 0)
        status = write_acpi(vm, why);
    if (status == 0)
        status = loader_linux(&vm->load.input, &entry, why, VM_WHY_MAX);
    if (status != 0)
        return status;
    const struct vcpu_start start = {
        .rip = entry.rip,
        .rsp = entry.rsp,
        .rsi = entry.rsi,
        .cr3 = entry.cr3,
        .gdt_base = entry.gdt_base,
        .gdt_limit = entry.gdt_limit,
        .code_selector = entry.code_selector,
        .data_selector = entry.data_selector,
    };
    for (unsigned i = 0; i < vm->vcpu_count; i++)
        if (vcpu_reset(vm->vcpus[i], i == 0 ? &start : NULL) != 0)
            return fail(why, E_IO, "VT-x refused the VMCS");
    return 0;
}
