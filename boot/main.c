// SPDX-License-Identifier: BSD-2-Clause
// The UEFI application BOOTX64.EFI: from the firmware to the kernel's first instruction.
#include "boot/boot.h"

#include "kernel/string.h"

#define CONSOLE_ONLY_PATH "\\fusor\\console-only"

#define MIB          (UINT64_C(1) << 20)
#define FOUR_GIB     (UINT64_C(1) << 32)
#define MSR_EFER     0xc0000080u
#define EFER_NXE     (UINT64_C(1) << 11)
#define EXIT_TRIES   16u
#define REFUSAL_WAIT 10u // seconds for which a refusal stays on the screen

EFI_SYSTEM_TABLE *efi_table;
EFI_BOOT_SERVICES *efi;

EFI_STATUS efi_main(EFI_HANDLE image, EFI_SYSTEM_TABLE *table);

// Firmware goes on with its next boot option, which may clear the screen: leave time to read,
// unless a key is hit.
static void wait_for_reader(void)
{
    EFI_INPUT_KEY key;

    for (unsigned int i = 0; i < REFUSAL_WAIT * 10; i++) {
        if (efi_table->ConIn != NULL &&
            !EFI_ERROR(efi_table->ConIn->ReadKeyStroke(efi_table->ConIn, &key))) {
            return;
        }
        efi->Stall(100 * 1000);
    }
}

static EFI_STATUS refuse(const char *reason)
{
    say_refused(reason);
    wait_for_reader();
    return EFI_UNSUPPORTED;
}

static void show_machine(struct boot_info *info, const struct memory_map *map)
{
    uint32_t cpus = machine_find_cpus(info);

    say("fusor: %u CPU%s, %llu MiB of RAM\n", cpus, cpus == 1 ? "" : "s",
        (unsigned long long)(machine_usable_memory(map) / MIB));
    if (cpus > info->cpu_count) {
        say("fusor: only the first %u CPUs are used\n", info->cpu_count);
    }
}

// True: Fusor can start, perhaps without VMs. False: it was refused, with the reason in `reason`.
static bool check_cpu(struct boot_info *info, char reason[REASON_SIZE])
{
    if (!cpu_check_base(reason)) {
        return false;
    }
    if (files_exists(CONSOLE_ONLY_PATH)) {
        info->flags |= BOOT_CONSOLE_ONLY;
        say("fusor: console only, because " CONSOLE_ONLY_PATH " exists: no VMs\n");
        return true;
    }
    return cpu_check_virtualization(reason);
}

// Ends boot services. The firmware's timer events may change the map between reading it and
// leaving; then the key is stale, and only these two calls are allowed any more (UEFI 2.10,
// section 7.4.6).
static EFI_STATUS leave_boot_services(EFI_HANDLE image, struct memory_map *map)
{
    EFI_STATUS status = EFI_ABORTED;

    for (unsigned int i = 0; i < EXIT_TRIES; i++) {
        status = machine_reread_map(map);
        if (EFI_ERROR(status)) {
            return status;
        }
        status = efi->ExitBootServices(image, map->key);
        if (status != EFI_INVALID_PARAMETER) {
            return status;
        }
    }
    return status;
}

// Switches to the kernel's page tables and jumps. This code is mapped one to one in both.
static _Noreturn void enter_kernel(const struct page_tables *tables, uint64_t entry,
                                   const struct boot_info *info)
{
    // The tables use NX bits: without NXE they would be reserved bits.
    __asm__ volatile("cli");
    wrmsr(MSR_EFER, rdmsr(MSR_EFER) | EFER_NXE);
    __asm__ volatile("cld\n\t"
                     "mov %0, %%cr3\n\t"
                     "jmp *%1"
                     :
                     : "r"(tables->root), "r"(entry), "D"(info)
                     : "memory");
    __builtin_unreachable();
}

static EFI_STATUS fail(const char *what, EFI_STATUS status)
{
    // The error bit aside, these are small numbers (UEFI 2.10, appendix D).
    say("fusor: %s (EFI status %u)\n", what, (unsigned int)(status & 0xffff));
    return refuse("the boot stage could not finish, see the line above");
}

static struct boot_info *new_boot_info(EFI_SYSTEM_TABLE *table, uint64_t entry_tsc)
{
    uint64_t pages = (sizeof(struct boot_info) + BOOT_PAGE - 1) / BOOT_PAGE;
    struct boot_info *info = (struct boot_info *)(uintptr_t)allocate_zeroed(pages);

    if (info != NULL) {
        info->magic = BOOT_INFO_MAGIC;
        info->version = BOOT_INFO_VERSION;
        info->entry_tsc = entry_tsc;
        info->system_table = (uint64_t)(uintptr_t)table;
    }
    return info;
}

static EFI_STATUS boot(EFI_HANDLE image, struct boot_info *info)
{
    static char reason[REASON_SIZE];
    struct memory_map map;
    struct page_tables tables;
    uint64_t entry, end;
    EFI_STATUS status = machine_read_map(&map);

    if (EFI_ERROR(status)) {
        return fail("the memory map cannot be read", status);
    }
    machine_find_tables(info);
    show_machine(info, &map);
    if (EFI_ERROR(files_open_volume(image))) {
        say("fusor: the boot device has no file system: no configuration\n");
    }
    if (!check_cpu(info, reason)) {
        return refuse(reason);
    }
    files_load(info);

    end = machine_end_of_memory(&map);
    status = page_tables_create(&tables, end > FOUR_GIB ? end : FOUR_GIB);
    if (EFI_ERROR(status)) {
        return fail("the page tables cannot be built", status);
    }
    status = load_kernel(info, &tables, &entry);
    if (EFI_ERROR(status)) {
        return fail("the kernel cannot be loaded", status);
    }

    // From here on nothing may print or allocate.
    status = leave_boot_services(image, &map);
    if (EFI_ERROR(status)) {
        // The firmware is half gone: there is nothing to return to.
        print_status("panic");
        for (;;) {
            __asm__ volatile("cli; hlt");
        }
    }
    info->memory_map = (uint64_t)(uintptr_t)map.buffer;
    info->memory_map_size = map.size;
    info->memory_descriptor_size = map.descriptor_size;
    enter_kernel(&tables, entry, info);
}

EFI_STATUS efi_main(EFI_HANDLE image, EFI_SYSTEM_TABLE *table)
{
    uint64_t entry_tsc = rdtsc();
    struct boot_info *info;

    efi_table = table;
    efi = table->BootServices;
    print_init();
    say("fusor: boot stage %s\n", FUSOR_VERSION);
    // The firmware's watchdog would reset the machine while large files are loaded.
    efi->SetWatchdogTimer(0, 0, 0, NULL);

    info = new_boot_info(table, entry_tsc);
    if (info == NULL) {
        return fail("out of memory", EFI_OUT_OF_RESOURCES);
    }
    return boot(image, info);
}
