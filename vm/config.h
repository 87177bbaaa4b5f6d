// SPDX-License-Identifier: BSD-2-Clause
// What a VM is made of, as the config file and `vm create` say it.
#pragma once

#include "kernel/types.h"

#define VM_NAME_MAX    31u
#define VM_PATH_MAX    128u
#define VM_CMDLINE_MAX 2048u
#define VM_MODULES_MAX 8u
#define VM_CPUS_MAX    16u // what works today; a config that asks for more is refused

enum vm_boot { VM_BOOT_DETECT, VM_BOOT_LINUX, VM_BOOT_PVH, VM_BOOT_MULTIBOOT };
enum vm_large_pages { VM_LARGE_AUTO, VM_LARGE_EAGER, VM_LARGE_OFF };

struct vm_config {
    char name[VM_NAME_MAX + 1];
    uint64_t memory; // bytes, a multiple of 4 KiB
    char kernel[VM_PATH_MAX];
    char initrd[VM_PATH_MAX]; // empty: none
    char cmdline[VM_CMDLINE_MAX];
    char modules[VM_MODULES_MAX][VM_PATH_MAX];
    uint32_t module_count;
    enum vm_boot boot;
    uint32_t cpus;
    bool page_fusion;
    char fusion_group[VM_NAME_MAX + 1]; // empty: private
    uint64_t scan;                      // pages per second
    uint64_t balloon;                   // bytes
    uint64_t memory_min;                // bytes
    enum vm_large_pages large_pages;
    uint32_t weight;   // 1..10000
    uint32_t cap;      // percent of one CPU, 0: none
    uint64_t affinity; // bit per CPU; all ones: all
    bool autostart;
};
