// SPDX-License-Identifier: BSD-2-Clause
// What the boot stage hands to the kernel: the only header both include.
//
// Entry contract: long mode, IF = 0, RDI = physical address of struct boot_info. The boot stage's
// page tables map (a) all memory below max(4 GiB, end of RAM) one to one, (b) the same again at
// DIRECT_MAP_BASE, (c) the kernel ELF's segments at their link addresses. All pointers below are
// physical. Everything the boot stage allocated is EfiLoaderData except the memory itself listed
// here, which the kernel must keep: kernel image, boot_info, files, config, memory map.
#pragma once

#include <stdint.h>

#define BOOT_INFO_MAGIC   UINT64_C(0x726f737546746f42) /* "BootFuso" bytes */
#define BOOT_INFO_VERSION 1u
#define BOOT_MAX_CPUS     64u
#define BOOT_MAX_FILES    64u
#define BOOT_PATH_MAX     128u

#define DIRECT_MAP_BASE UINT64_C(0xffff800000000000)
#define KERNEL_BASE     UINT64_C(0xffffffff80000000)

// boot_info.flags
#define BOOT_CONSOLE_ONLY (1u << 0) /* \fusor\console-only exists: start without VT-x, no VMs */
#define BOOT_CONFIG       (1u << 1) /* \fusor\fusor.conf was read */

enum boot_file_status {
    BOOT_FILE_LOADED = 0,
    BOOT_FILE_MISSING = 1,
    BOOT_FILE_UNREADABLE = 2,
    BOOT_FILE_NO_MEMORY = 3,
};

enum boot_framebuffer_format { BOOT_FB_NONE = 0, BOOT_FB_RGBX = 1, BOOT_FB_BGRX = 2 };

struct boot_file {
    char path[BOOT_PATH_MAX]; // as written in the config, terminated
    uint64_t base;            // physical, page aligned; identical files share one copy
    uint64_t size;            // bytes
    uint32_t status;          // enum boot_file_status
    uint32_t reserved;
};

struct boot_cpu {
    uint32_t apic_id;
    uint32_t reserved;
};

struct boot_framebuffer {
    uint64_t base;
    uint64_t size; // bytes
    uint32_t width;
    uint32_t height;
    uint32_t stride; // pixels per line
    uint32_t format; // enum boot_framebuffer_format
};

struct boot_info {
    uint64_t magic;
    uint32_t version;
    uint32_t flags;
    uint64_t entry_tsc;   // TSC when the UEFI application was entered
    uint64_t kernel_base; // physical, contiguous
    uint64_t kernel_size; // bytes in memory, bss included
    uint64_t memory_map;  // EFI_MEMORY_DESCRIPTOR array as at ExitBootServices
    uint64_t memory_map_size;
    uint64_t memory_descriptor_size;
    uint64_t system_table; // EFI_SYSTEM_TABLE, for ResetSystem
    uint64_t rsdp;         // ACPI 2.0 (else 1.0) RSDP, 0 without ACPI
    uint64_t config;       // text of fusor.conf, 0 without
    uint64_t config_size;
    uint64_t loaded_base; // reserved for debuggers: base of the UEFI image
    struct boot_framebuffer framebuffer;
    uint32_t cpu_count; // CPU 0 is the bootstrap processor
    uint32_t file_count;
    struct boot_cpu cpus[BOOT_MAX_CPUS];
    struct boot_file files[BOOT_MAX_FILES];
};
