// SPDX-License-Identifier: BSD-2-Clause
// Vector registers for Fusor's own batches. The guest's vector state stays in the CPU while Fusor
// handles an exit; simd_begin() puts it away, simd_end() brings it back. Only functions in files
// named simd_*.c may use vector registers, and only between the two.
#pragma once

#include "kernel/types.h"

enum simd_level { SIMD_NONE, SIMD_AVX2 };

// What every CPU that is online can do (CPUID, XCR0); fixed after bring-up.
enum simd_level simd_level(void);

// On the CPU that runs, from an exit handler or a fiber; interrupts may be on (handlers use no
// vector registers). Does not nest; no yield and no VM entry before simd_end(). Costs an XSAVE and
// an XRSTOR when a guest's state is loaded, else nothing but XCR0.
void simd_begin(void);
void simd_end(void);

// vmx tells whose state is in this CPU's registers: an area for XSAVE and the guest's XCR0; NULL
// for nobody's.
void simd_set_owner(void *xsave_area, const uint64_t *xcr0);
