// SPDX-License-Identifier: BSD-2-Clause
// Pages in the balloon, as the VM's memory sees them. What goes in and why is balloon/'s affair.
//
// A gfn in the balloon has its bit set and maps nothing, or, once the guest has read it, the VM's
// page of zeros (EPT_KIND_ZERO). The bit changes under the gfn lock; without it a look is a hint.
#pragma once

#include "ept/ept.h"
#include "vm/vm_object.h"

#define BALLOONED_WORDS 8u // per 2 MiB range: 512 bits

// Room for the bits, and the page of zeros. E_NOMEM.
int ballooned_create(struct vm *vm);
// The memory is gone, and with it the balloon.
void ballooned_destroy(struct vm *vm);

static inline uint64_t *ballooned_words(const struct vm *vm, gfn_t gfn)
{
    return &vm->ballooned[vm_range_of(vm, gfn) * BALLOONED_WORDS];
}

// gfn is RAM. On the way of every first touch: without a balloon it is one comparison.
bool ballooned_bit(const struct vm *vm, gfn_t gfn);
static inline bool ballooned_has(const struct vm *vm, gfn_t gfn)
{
    return __builtin_expect(vm->account.ballooned != 0, 0) && ballooned_bit(vm, gfn);
}

// Is any page of gfn's range in the balloon?
bool ballooned_any(const struct vm *vm, gfn_t gfn);

// How many of the `pages` pages from gfn on, one or its whole range, are in the balloon.
unsigned ballooned_count(const struct vm *vm, gfn_t gfn, unsigned pages);

// gfn lock held: RAM that maps nothing goes into the balloon; returns how many of the `pages` pages
// from gfn on did, all of one range. Those that map something stay out.
unsigned ballooned_put(struct vm *vm, gfn_t gfn, unsigned pages);
// gfn lock held: what of the `pages` pages is in the balloon becomes untouched; returns how many.
// Shoots down if the guest had read one.
unsigned ballooned_take(struct vm *vm, gfn_t gfn, unsigned pages);

// gfn lock held: the guest, or Fusor for it, writes to a page of the balloon, and there is a frame
// for it; it becomes untouched.
void ballooned_return(struct vm *vm, gfn_t gfn);
// The guest reads one: shows it zeros.
enum ept_fault_result ballooned_read(struct vm *vm, gfn_t gfn);
