// SPDX-License-Identifier: BSD-2-Clause
// What the tests of the balloon share: calls of VMs, which forget what the guest has given away.
#pragma once

#include "fusion_world.h"

#include "balloon/balloon.h"
#include "vm/ballooned.h"

#define A 0
#define B 1
#define C 2
#define P UINT64_C(600)  // in a range that is all RAM
#define R UINT64_C(1024) // a range

static inline void forget_model(unsigned n, uint64_t gfn, unsigned pages)
{
    for (unsigned i = 0; i < pages; i++) {
        free(world.model[n][gfn + i]);
        world.model[n][gfn + i] = NULL;
    }
}

typedef int64_t (*list_call)(struct vm *vm, const uint64_t *entries, unsigned count);

static inline int64_t call(list_call work, unsigned n, const uint64_t *entries, unsigned count)
{
    world_leave(cpu_index());
    int64_t done = work(&world.vm[n], entries, count);
    for (int64_t i = 0; i < done && work != balloon_deflate; i++)
        forget_model(n, entries[i] & FUSOR_ENTRY_GFN_MASK,
                     (entries[i] >> FUSOR_ENTRY_ORDER_SHIFT & 15) == 9 ? 512 : 1);
    return done;
}

static inline int64_t one(list_call work, unsigned n, uint64_t gfn, unsigned order)
{
    uint64_t entry = FUSOR_ENTRY(gfn, 0, order);
    world_use(0);
    int64_t done = call(work, n, &entry, 1);
    world_check();
    return done;
}

static inline int64_t inflate(unsigned n, uint64_t gfn)
{
    return one(balloon_inflate, n, gfn, 0);
}

static inline uint64_t ballooned(unsigned n)
{
    return world.vm[n].account.ballooned;
}

static inline uint64_t private_of(unsigned n)
{
    return world.vm[n].account.private_frames;
}

static inline uint64_t free_now(void)
{
    return world_snapshot().count[FRAME_FREE];
}

static inline void start(unsigned vms)
{
    world_start(0);
    world_vms(vms);
}

// A range of VM n as one large page, page i holding `pattern` + i.
static inline void fill_large(unsigned n, uint64_t gfn, uint64_t pattern)
{
    for (unsigned i = 0; i < 512; i++)
        fill(1, n, gfn + i, pattern + 1000 * i);
    assert_int_equal(leaf_of(n, gfn).level, EPT_2M);
}

static inline void shared_page(unsigned vms)
{
    start(vms);
    for (unsigned n = 0; n < vms; n++) {
        fill(1, n, P, 42);
        assert_int_equal(hint(n, P), 1);
    }
    assert_int_equal(sharers_of(A, P), vms);
}
