// SPDX-License-Identifier: BSD-2-Clause
// Puts a kernel with its initrd and command line into a VM's memory.
#pragma once

#include "kernel/types.h"

struct vm;

struct loader_input {
    struct vm *vm;
    uint64_t memory; // bytes of guest RAM, as laid out in vm/layout.h
    const uint8_t *kernel;
    uint64_t kernel_size;
    const uint8_t *initrd; // NULL: none
    uint64_t initrd_size;
    const char *cmdline;
    // How far the tries before this one got, in bytes that were put; 0 at first.
    uint64_t done;
};

// Registers with which the first vCPU starts: 64-bit mode, paging on, flat segments, IF = 0.
struct loader_entry {
    uint64_t rip;
    uint64_t rsi; // physical address of the zero page
    uint64_t rsp;
    uint64_t cr3;
    uint64_t gdt_base;
    uint16_t gdt_limit;
    uint16_t code_selector;
    uint16_t data_selector;
};

// Loads a bzImage by the Linux x86 64-bit boot protocol. Returns 0, or a negative error with one
// line for the operator in `message` ("kernel: truncated: the header promises 8123456 bytes, the
// file has 4096"). E_NOMEM: called again with the same input, into the same memory, it goes on
// where it stopped; a try that finds no frame copies nothing. Calls guest_write()
// page by page and fiber_give_way() after 64 KiB at most. Fiber; no lock held.
int loader_linux(struct loader_input *input, struct loader_entry *entry, char *message,
                 size_t message_size);
