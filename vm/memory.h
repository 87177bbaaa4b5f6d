// SPDX-License-Identifier: BSD-2-Clause
// Fusor's access to guest memory.
#pragma once

#include "kernel/types.h"

struct vm;

// Copies between guest-physical memory and a buffer. Pages that were never touched read as zero and
// are populated by a write; ROM may be written. Returns 0; E_RANGE when any byte is outside the
// VM's memory (nothing is copied); E_NOMEM when a frame is missing (guest_write may have written
// the pages before it; it can be repeated). Never waits.
int guest_read(struct vm *vm, gpa_t from, void *to, size_t size);
int guest_write(struct vm *vm, gpa_t to, const void *from, size_t size);

// Makes gfn a frame of the VM's own that stays where it is until guest_unpin(): it is not fused,
// ballooned or moved. *page is where Fusor has it. Pins add up. E_RANGE: not RAM (ROM is not);
// E_NOMEM: a frame is missing. Never waits; no gfn lock held.
int guest_pin(struct vm *vm, gfn_t gfn, void **page);
void guest_unpin(struct vm *vm, gfn_t gfn);
