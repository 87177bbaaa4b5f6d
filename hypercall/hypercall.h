// SPDX-License-Identifier: BSD-2-Clause
// The dispatcher behind VMCALL: checks every argument, then calls the room that does the work. The
// interface itself is hypercall/fusor_abi.h and docs/hypercalls.md.
#pragma once

#include "kernel/types.h"

struct vm;
struct vcpu;

// Carries out the call in `v`'s registers and returns what RAX becomes. On the CPU that runs `v`,
// in its exit handler, no lock held; lists are worked on with interrupts let in between.
uint64_t hypercall_dispatch(struct vm *vm, struct vcpu *v);

// The enum fusor_error_code (positive) that tells a guest of `error`, one of enum fusor_error
// (kernel/error.h). What no call can return becomes FUSOR_EINVAL.
int hypercall_error(int error);

// How many calls of all VMs ended with the error `code` (an enum fusor_error_code) so far.
uint64_t hypercall_refused(unsigned code);
