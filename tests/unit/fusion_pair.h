// SPDX-License-Identifier: BSD-2-Clause
// Three VMs; P is the same page in A and B, and A's is remembered.
#pragma once

#include "fusion_world.h"

#define A 0
#define B 1
#define C 2
#define P UINT64_C(600)

static inline void start_pair(void)
{
    world_start(0);
    world_vms(3);
    fill(1, A, P, 42);
    fill(2, B, P, 42);
    assert_int_equal(hint(A, P), 1);
    assert_int_equal(FIGURE(A, unmatched), 1);
}
