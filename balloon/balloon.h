// SPDX-License-Identifier: BSD-2-Clause
// The balloon as the rooms above see it: what guests give and take, and who asks them to.
#pragma once

#include "kernel/types.h"

struct fusor_statistics;
struct vm;

#define BALLOON_CHUNK 64u // entries worked on at once

// The hypercalls of hypercall/fusor_abi.h. `entries` are Fusor's copy of up to BALLOON_CHUNK
// entries of the list. Each returns how many were done, from the first on, or a negative
// fusor_error_code for the first one. Called in the exit handler of one of the VM's vCPUs; no lock
// held; let interrupts in.
int64_t balloon_inflate(struct vm *vm, const uint64_t *entries, unsigned count);
int64_t balloon_deflate(struct vm *vm, const uint64_t *entries, unsigned count);
int64_t balloon_free_pages(struct vm *vm, const uint64_t *entries, unsigned count);
// The target in pages; from now on the VM has a driver.
int64_t balloon_target(struct vm *vm);
// The balloon's part of the statistics.
void balloon_statistics(struct vm *vm, struct fusor_statistics *out);

// auto-balloon.
void balloon_set_auto(bool on);
