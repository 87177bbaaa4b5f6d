// SPDX-License-Identifier: BSD-2-Clause
// Host tests: vector registers are anybody's, but simd_begin and simd_end must pair.
#pragma once

#include "kernel/simd.h"

extern enum simd_level fake_simd_level; // SIMD_NONE until the test says otherwise
extern bool fake_simd_lent;             // between simd_begin and simd_end
extern unsigned fake_simd_batches;

// Whether the machine that runs the test has AVX2.
bool fake_simd_host_has_avx2(void);
