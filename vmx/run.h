// SPDX-License-Identifier: BSD-2-Clause
#pragma once

#include "kernel/types.h"

// While on, every VM exit is recorded in the trace (kernel/trace.h), which has begun already.
void vmx_trace_exits(bool on);

// For the NMI handler in root mode: makes the coming VM entry exit at once.
void vmx_nmi_before_entry(void);
