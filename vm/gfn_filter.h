// SPDX-License-Identifier: BSD-2-Clause
// Which gfns of a list have been met: a bit per gfn modulo 1024. What was never met is said so at
// once, which is nearly every entry; for the others the list has to be looked through.
#pragma once

#include "ept/ept.h"

struct gfn_filter {
    uint64_t bits[16];
};

// Notes gfn. False: it was not noted before.
static inline bool gfn_filter_note(struct gfn_filter *f, gfn_t gfn)
{
    uint64_t *word = &f->bits[gfn.raw >> 6 & 15];
    uint64_t bit = UINT64_C(1) << (gfn.raw & 63);
    bool maybe = (*word & bit) != 0;
    *word |= bit;
    return maybe;
}
