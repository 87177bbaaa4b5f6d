// SPDX-License-Identifier: BSD-2-Clause
// Pages that guests take out of use and give away, for test_fusion_property.c.
//
// A guest that is in its right mind gives pages that nobody uses: whoever reads or writes a page
// does it between gives_use and gives_used, and who gives one owns it meanwhile. Others of its VM
// may do wild things with what is owned: read it, write to it, give it as well, take it back. What
// it holds in the end is learnt then.
#pragma once

#include "fusion_world.h"

#include "balloon/balloon.h"

struct gives_happened {
    uint64_t inflated, reported, deflated, refused, wild;
};
extern struct gives_happened gives_happened;

// Forgets all of VM n, which begins anew.
void gives_start(unsigned n);
// False: somebody owns the page.
bool gives_use(unsigned n, uint64_t gfn);
void gives_used(unsigned n, uint64_t gfn);
// Owns `count` pages or, with order 9, ranges of those that `pick` picks, gives, takes and looks at
// them, and lets go. `below` draws.
void gives_work(unsigned cpu, unsigned n, unsigned count, unsigned order, uint64_t (*pick)(void),
                unsigned (*below)(unsigned));
// Something wild with a page that somebody owns, if still.
void gives_wild(unsigned cpu, unsigned n, uint64_t gfn, unsigned (*below)(unsigned));
