// SPDX-License-Identifier: BSD-2-Clause
// The boot stage's own interfaces: a UEFI application that collects the machine, loads the files
// the configuration names and hands everything to the kernel (kernel/boot_info.h).
#pragma once

#include <efi.h>

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "kernel/boot_info.h"

#define FUSOR_VERSION "0.1"

#define BOOT_PAGE UINT64_C(4096)

// Set once by main.c.
extern EFI_SYSTEM_TABLE *efi_table;
extern EFI_BOOT_SERVICES *efi;

// --- print.c
// ---------------------------------------------------------------------------------------

// Finds out where text has to go. Call it first.
void print_init(void);

// Prints to the firmware's console, and to COM1 if that console does not reach a serial line.
void say(const char *format, ...) __attribute__((format(printf, 1, 2)));

// Prints the one line of a refusal: "fusor: refused: REASON".
void say_refused(const char *reason);

// Tells an emulator's debug port (0xE9) a word of the run's fate, if there is such a port.
void print_status(const char *word);

// --- cpu_check.c
// -----------------------------------------------------------------------------------

#define REASON_SIZE 512u

// What no mode of Fusor can do without. False: `reason` says what is missing.
bool cpu_check_base(char reason[REASON_SIZE]);

// Everything Fusor needs to run VMs. False: `reason` says what is missing.
bool cpu_check_virtualization(char reason[REASON_SIZE]);

// --- machine.c
// -------------------------------------------------------------------------------------

// Fills in rsdp and framebuffer.
void machine_find_tables(struct boot_info *info);

// Fills in cpus, the bootstrap processor first. Returns the number of enabled CPUs the machine has,
// which may be more than BOOT_MAX_CPUS.
uint32_t machine_find_cpus(struct boot_info *info);

// A copy of the firmware's memory map.
struct memory_map {
    void *buffer;
    UINTN capacity; // bytes
    UINTN size;     // bytes in use
    UINTN key;
    UINTN descriptor_size;
};

// Allocates a buffer with room for a map that still grows, and reads the map.
EFI_STATUS machine_read_map(struct memory_map *map);

// Reads the map again into the same buffer: allocates nothing.
EFI_STATUS machine_reread_map(struct memory_map *map);

// Bytes of RAM that are free once boot services have ended (kernel/frames.h takes the same types).
uint64_t machine_usable_memory(const struct memory_map *map);

// The address behind the last byte of RAM, of whatever use.
uint64_t machine_end_of_memory(const struct memory_map *map);

// --- files.c
// ---------------------------------------------------------------------------------------

// Opens the volume that `image` was loaded from. Without one there is neither configuration nor
// files.
EFI_STATUS files_open_volume(EFI_HANDLE image);

// Whether the volume has this file.
bool files_exists(const char *path);

// Reads \fusor\fusor.conf and every file it names into `info`.
void files_load(struct boot_info *info);

// --- page_tables.c
// ---------------------------------------------------------------------------------

struct page_tables {
    uint64_t *root;
};

// Maps [0, end) one to one and at DIRECT_MAP_BASE with 2 MiB pages.
EFI_STATUS page_tables_create(struct page_tables *tables, uint64_t end);

// Maps one 4 KiB page of the kernel's image.
EFI_STATUS page_tables_map_kernel(struct page_tables *tables, uint64_t virtual_address,
                                  uint64_t physical, bool writable, bool executable);

// Allocates zeroed pages (EfiLoaderData). 0: none left.
uint64_t allocate_zeroed(uint64_t pages);

// --- load_kernel.c
// ---------------------------------------------------------------------------------

// Loads the embedded kernel, maps it and fills in kernel_base and kernel_size. `entry` gets the
// virtual address of its first instruction. EFI_LOAD_ERROR: the image breaks the rules (not page
// aligned, or a segment both writable and executable).
EFI_STATUS load_kernel(struct boot_info *info, struct page_tables *tables, uint64_t *entry);

// --- instructions
// ----------------------------------------------------------------------------------

struct cpuid {
    uint32_t eax, ebx, ecx, edx;
};

static inline struct cpuid cpuid(uint32_t leaf, uint32_t subleaf)
{
    struct cpuid r;

    __asm__ volatile("cpuid"
                     : "=a"(r.eax), "=b"(r.ebx), "=c"(r.ecx), "=d"(r.edx)
                     : "a"(leaf), "c"(subleaf));
    return r;
}

static inline uint64_t rdmsr(uint32_t msr)
{
    uint32_t low, high;

    __asm__ volatile("rdmsr" : "=a"(low), "=d"(high) : "c"(msr));
    return (uint64_t)high << 32 | low;
}

static inline void wrmsr(uint32_t msr, uint64_t value)
{
    __asm__ volatile("wrmsr" ::"c"(msr), "a"((uint32_t)value), "d"((uint32_t)(value >> 32)));
}

static inline uint64_t rdtsc(void)
{
    uint32_t low, high;

    __asm__ volatile("rdtsc" : "=a"(low), "=d"(high));
    return (uint64_t)high << 32 | low;
}

static inline uint8_t inb(uint16_t port)
{
    uint8_t value;

    __asm__ volatile("inb %1, %0" : "=a"(value) : "Nd"(port));
    return value;
}

static inline void outb(uint16_t port, uint8_t value)
{
    __asm__ volatile("outb %0, %1" ::"a"(value), "Nd"(port));
}
