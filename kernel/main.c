// SPDX-License-Identifier: BSD-2-Clause
// Bring-up: from the boot stage's hand-over to the scheduler.
#include "kernel/acpi.h"
#include "kernel/files.h"
#include "kernel/frames.h"
#include "kernel/heap.h"
#include "kernel/init.h"
#include "kernel/log.h"
#include "kernel/memory.h"
#include "kernel/paging.h"
#include "kernel/panic.h"
#include "kernel/sched.h"
#include "kernel/serial.h"
#include "kernel/string.h"
#include "kernel/time.h"
#include "kernel/x86/machine.h"

#define COM1     0x3f8u
#define COM1_IRQ 4u
#define COM_BAUD 115200u

static const struct boot_info *boot_info;
static struct boot_memory boot_memory;

const struct boot_info *boot_info_get(void)
{
    return boot_info;
}

const char *boot_config_text(size_t *size)
{
    *size = boot_info->config != 0 ? boot_info->config_size : 0;
    return boot_info->config != 0 ? hpa_to_pointer(hpa(boot_info->config)) : NULL;
}

static void reserve(uint64_t base, uint64_t size, enum boot_piece_kind kind)
{
    if (boot_memory_reserve(&boot_memory, base, size, kind) != 0)
        panic("the boot stage's record names a range that cannot be: 0x%lx, 0x%lx bytes",
              (unsigned long)base, (unsigned long)size);
}

// Whatever the kernel goes on using of what the boot stage allocated.
static void reserve_boot_ranges(uint64_t physical)
{
    const struct boot_info *info = boot_info;
    reserve(info->kernel_base, info->kernel_size, BOOT_PIECE_USED);
    reserve(physical, sizeof(*info), BOOT_PIECE_USED);
    reserve(info->memory_map, info->memory_map_size, BOOT_PIECE_USED);
    if (info->config != 0)
        reserve(info->config, info->config_size, BOOT_PIECE_USED);
    for (uint32_t i = 0; i < MIN(info->file_count, BOOT_MAX_FILES); i++)
        if (info->files[i].status == BOOT_FILE_LOADED)
            reserve(info->files[i].base, info->files[i].size, BOOT_PIECE_FILES);
}

// Hands all RAM to the frame allocator. The frame table lies in RAM itself.
static void give_frames(void)
{
    uint64_t end = MIN(boot_memory_end(&boot_memory), UINT64_C(1) << 32);
    uint64_t table;
    size_t bytes = frames_table_bytes(hpa(end << PAGE_SHIFT));
    if (boot_memory_take(&boot_memory, ALIGN_UP(bytes, PAGE_SIZE) >> PAGE_SHIFT, end, &table) != 0)
        panic("no %lu KiB of contiguous memory for the frame table", (unsigned long)(bytes / KIB));
    memset(hfn_to_pointer(hfn(table)), 0, ALIGN_UP(bytes, PAGE_SIZE));
    frames_init(hfn_to_pointer(hfn(table)), hpa(end << PAGE_SHIFT));

    struct boot_piece piece;
    uint64_t free = 0, used = 0, files = 0;
    for (uint64_t n = 0; boot_memory_next(&boot_memory, n, &piece) && piece.first < end;
         n = piece.first + piece.count) {
        uint64_t count = MIN(piece.count, end - piece.first);
        frames_add(hfn(piece.first), count,
                   piece.kind == BOOT_PIECE_FREE ? FRAME_FREE : FRAME_FUSOR);
        if (piece.kind == BOOT_PIECE_FREE)
            free += count;
        else
            used += count;
        if (piece.kind == BOOT_PIECE_FILES)
            files += count;
    }
    frames_count_files(files);
    paging_use_frames();
    heap_init();
    log_info("memory: %lu MiB of RAM, %lu KiB in use, %lu KiB of it boot files",
             (unsigned long)((free + used) * PAGE_SIZE / MIB),
             (unsigned long)(used * PAGE_SIZE / KIB), (unsigned long)(files * PAGE_SIZE / KIB));
}

static void find_acpi(void)
{
    int error = acpi_parse(boot_info->rsdp, machine_map_firmware, &acpi_machine);
    if (boot_info->rsdp == 0)
        log_info("ACPI: none; this is a plain PC");
    else if (error != 0)
        log_warning("ACPI: the root table is damaged; going on without");
    else
        log_info("ACPI: %u IOAPIC%s, HPET %s, PM timer %s", acpi_machine.ioapic_count,
                 acpi_machine.ioapic_count == 1 ? "" : "s", acpi_machine.hpet != 0 ? "yes" : "no",
                 acpi_machine.pm_timer.address != 0 ? "yes" : "no");
}

static void say_protected(void)
{
    struct paging_audit audit;
    paging_audit(&audit);
    log_info("paging: %lu mappings, %lu writable and executable", (unsigned long)audit.mappings,
             (unsigned long)audit.writable_executable);
}

_Noreturn void kernel_main(uint64_t physical)
{
    smp_init_boot_cpu();
    boot_info = hpa_to_pointer(hpa(physical));
    time_set_boot(boot_info->entry_tsc);
    serial_init(COM1, COM_BAUD); // without a UART there is the framebuffer
    log_set_early_console(true);
    log_info("Fusor, a hypervisor that fuses equal memory");
    if (boot_info->magic != BOOT_INFO_MAGIC || boot_info->version != BOOT_INFO_VERSION)
        panic("the boot stage's record is not of this version");

    if (boot_memory_init(&boot_memory, hpa_to_pointer(hpa(boot_info->memory_map)),
                         boot_info->memory_map_size, boot_info->memory_descriptor_size) != 0)
        panic("the UEFI memory map makes no sense");
    reserve_boot_ranges(physical);
    paging_init(boot_info, &boot_memory);
    smp_reserve(&boot_memory);
    give_frames();
    if (descriptors_add_stacks(this_cpu()->arch) != 0)
        panic("no memory for CPU 0's stacks");
    say_protected();
    fbcon_init(&boot_info->framebuffer);
    files_init(boot_info);

    find_acpi();
    clock_calibrate();
    apic_init();
    apic_init_cpu();
    clock_init_timer();
    interrupts_init();
    serial_use_irq(COM1_IRQ);
    power_init(boot_info, boot_memory_runtime_end(&boot_memory));
    smp_start(boot_info);

    init_run(boot_info);
    sched_loop();
}
