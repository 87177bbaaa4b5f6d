// SPDX-License-Identifier: BSD-2-Clause
// How many hints a VM may send. A hint costs its sender's own time first; what the budget bounds is
// the time that shootdowns and locks take from others.
//
// A bucket of DEPTH hints that refills evenly, kept as the time at which it will be full again.
#include "fusion/engine.h"

#include "kernel/time.h"

// Enough for two passes over a guest's memory at once, and for half of it in every second.
#define DEPTH_PASSES   2u
#define REFILL_SECONDS 2u // for one pass
#define PAGES_AT_LEAST 32768u

unsigned budget_take(struct fusion_vm *f, unsigned wanted, unsigned least, uint64_t now)
{
    uint64_t pages = MAX(f->vm->config.memory / PAGE_SIZE, PAGES_AT_LEAST);
    uint64_t cost = MAX(REFILL_SECONDS * tsc_hz / pages, UINT64_C(1)); // ticks per hint
    uint64_t depth = DEPTH_PASSES * pages * cost;
    uint64_t full_at = atomic_load_explicit(&f->tokens_full_at, memory_order_relaxed);
    unsigned granted;
    uint64_t next;
    do {
        uint64_t owed = full_at > now ? full_at - now : 0;
        uint64_t left = owed < depth ? (depth - owed) / cost : 0;
        granted = (unsigned)MIN((uint64_t)wanted, left);
        if (granted < least)
            return 0;
        next = now + owed + granted * cost;
    } while (!atomic_compare_exchange_weak_explicit(&f->tokens_full_at, &full_at, next,
                                                    memory_order_relaxed, memory_order_relaxed));
    return granted;
}
