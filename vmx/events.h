// SPDX-License-Identifier: BSD-2-Clause
// Delivery of interrupts, NMIs and exceptions to the guest.
#pragma once

#include "vmx/vcpu.h"

// Before an entry: puts the event that goes first into the VMCS, opens windows for what has to
// wait. Called when v->recheck or v->requeue_info is set.
void vcpu_prepare_events(struct vcpu *v);

// After an exit: an event whose delivery the exit interrupted is delivered again at the next entry.
void vcpu_save_interrupted_event(struct vcpu *v, uint32_t vectoring_info);

void vcpu_close_interrupt_window(struct vcpu *v);
void vcpu_nmi_window(struct vcpu *v); // the guest has finished its NMI handler
