// SPDX-License-Identifier: BSD-2-Clause
#pragma once

#include "vm/vm_object.h"

// Executes the guest's instruction at RIP, whose memory operand is device memory at `address`.
// Takes the device lock for the access. Returns VCPU_STOP after a crash, VCPU_WAIT when the
// instruction could not be read for lack of memory.
enum vcpu_result mmio_execute(struct vm *vm, struct vcpu *v, gpa_t address, bool write);
