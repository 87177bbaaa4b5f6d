// SPDX-License-Identifier: BSD-2-Clause
// Random numbers that a seed repeats (splitmix64).
#pragma once

#include <stdint.h>

static uint64_t random_state; // the seed: any number

static inline uint64_t random64(void)
{
    random_state += UINT64_C(0x9e3779b97f4a7c15);
    uint64_t z = random_state;
    z = (z ^ z >> 30) * UINT64_C(0xbf58476d1ce4e5b9);
    z = (z ^ z >> 27) * UINT64_C(0x94d049bb133111eb);
    return z ^ z >> 31;
}
