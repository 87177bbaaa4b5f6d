// SPDX-License-Identifier: BSD-2-Clause
// A long list of 64-bit values, made of single frames, for the census.
#pragma once

#include "kernel/types.h"

#define CENSUS_LEAF 512u // values in a frame, and pointers in one

struct census_list {
    uint64_t ***top;
    uint64_t length;
};

// A list of `length` zeros. E_NOMEM without effect. Fiber: yields.
int census_list_create(struct census_list *list, uint64_t length);
// Gives all frames back. Fiber: yields.
void census_list_destroy(struct census_list *list);
// Sorts the first `count` values, in place. Fiber: yields.
void census_list_sort(struct census_list *list, uint64_t count);

static inline uint64_t *census_list_at(const struct census_list *list, uint64_t i)
{
    return &list->top[i / CENSUS_LEAF / CENSUS_LEAF][i / CENSUS_LEAF % CENSUS_LEAF]
                     [i % CENSUS_LEAF];
}
