// SPDX-License-Identifier: BSD-2-Clause
// What memory.c, memory_large.c and access.c have of each other.
#pragma once

#include "vm/vm_object.h"

#define RANGE_PAGES 512u // of 4 KiB in a 2 MiB range
#define RANGE_ORDER 9u

// Fusion's; NULL without it (host tests), and then no leaf is ever shared.
extern const struct vm_memory_ops *memory_ops;

// --- memory.c ---

// Notes in the records of `count` frames from `first` that they are the VM's, at gfn and behind.
void memory_own(const struct vm *vm, hfn_t first, gfn_t gfn, unsigned count);
// Is there room for `pages` pages more in what the VM counts as its own? Only what the balloon has
// unmapped and not yet freed can be in the way, for the pages that are touched are untouched
// memory; then the CPU that gives them needs a moment. Each vCPU may be here at the same time.
static inline bool memory_has_room(const struct vm *vm, unsigned pages)
{
    if (__builtin_expect(vm->leaving == 0, 1))
        return true;
    uint64_t used =
        vm->account.private_frames + vm->account.shared_gfns + vm->account.ballooned + pages;
    return used + VM_CPUS_MAX <= vm->config.memory / PAGE_SIZE;
}
// Gives gfn a zeroed frame of its own, and takes it out of the balloon if it is to be written. 0
// also when somebody else was faster. E_NOMEM without effect. No gfn lock held.
int memory_populate(struct vm *vm, gfn_t gfn, unsigned permissions, bool write);

// --- memory_large.c; no gfn lock held ---

// Populates gfn's whole range with one zeroed large page. Returns 0, or E_AGAIN when it has to be
// done page by page.
int memory_populate_large(struct vm *vm, gfn_t gfn);
// Makes gfn's range, enough of which was touched, one large page, if that can be.
void memory_promote(struct vm *vm, gfn_t gfn);
// The guest fetches from a large page that it may not execute as a whole.
enum ept_fault_result memory_split_for_fetch(struct vm *vm, gfn_t gfn);
