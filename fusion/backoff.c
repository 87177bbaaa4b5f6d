// SPDX-License-Identifier: BSD-2-Clause
// Gfns that are split again and again: fusing them costs two exits and a copy each time and saves
// memory for a moment only, so their hints are ignored, after each split for twice as long.
//
// A table of fixed size per VM, direct-mapped by gfn: a guest that splits more gfns than it has
// places loses history, which costs that guest time and nothing else. An entry is one word, so no
// lock is needed; of two CPUs that note at once for the same place one is forgotten.
#include "fusion/engine.h"

#include "kernel/heap.h"
#include "kernel/time.h"

#define PAGES_PER_ENTRY 32u
#define ENTRIES_MIN     64u
#define LEVEL_MAX       11u // 2^(11 - 2) s: 8.5 minutes
#define LEVEL_TABLE     7u  // page tables are written for as long as they exist: 32 s at once
#define FORGET_SECONDS  120u
// Time in units of 2^20 ticks, below a millisecond on hardware; 28 bits of it last for hours.
#define UNIT_SHIFT 20u
#define TIME_BITS  28u
#define TIME_MASK  ((UINT32_C(1) << TIME_BITS) - 1)

struct fusion_backoff {
    uint32_t mask;
    _Atomic uint64_t entry[]; // 63:32 gfn + 1, 31:28 level, 27:0 ignored until
};

struct note {
    uint32_t gfn; // + 1
    unsigned level;
    uint32_t until;
};

static struct note unpack(uint64_t e)
{
    return (struct note){(uint32_t)(e >> 32), (unsigned)(e >> TIME_BITS & 15),
                         (uint32_t)e & TIME_MASK};
}

static uint64_t pack(struct note n)
{
    return (uint64_t)n.gfn << 32 | (uint64_t)n.level << TIME_BITS | (n.until & TIME_MASK);
}

// a - b, where both are near each other.
static int32_t difference(uint32_t a, uint32_t b)
{
    return (int32_t)((a - b) << (32 - TIME_BITS)) >> (32 - TIME_BITS);
}

static uint32_t units(uint64_t tsc)
{
    return (uint32_t)(tsc >> UNIT_SHIFT) & TIME_MASK;
}

static uint32_t seconds(uint64_t n)
{
    return (uint32_t)MIN(n * tsc_hz >> UNIT_SHIFT, TIME_MASK >> 2) + 1;
}

// For how long hints are ignored, in units.
static int32_t period(unsigned level)
{
    return level > 1 ? (int32_t)seconds(UINT64_C(1) << (level - 2)) : 0;
}

static _Atomic uint64_t *entry_of(struct fusion_backoff *b, gfn_t gfn)
{
    // Neighbours go to neighbouring places, far ones are spread.
    return &b->entry[(gfn.raw ^ gfn.raw >> 12) & b->mask];
}

struct fusion_backoff *backoff_create(uint64_t pages)
{
    uint32_t entries = ENTRIES_MIN;
    while (entries < pages / PAGES_PER_ENTRY)
        entries *= 2;
    struct fusion_backoff *b = heap_alloc(sizeof(*b) + entries * sizeof(b->entry[0]));
    if (b != NULL)
        b->mask = entries - 1;
    return b;
}

void backoff_destroy(struct fusion_backoff *b)
{
    heap_free(b);
}

bool backoff_note_split(struct fusion_backoff *b, gfn_t gfn, bool page_table, uint64_t now,
                        bool *begun)
{
    _Atomic uint64_t *entry = entry_of(b, gfn);
    struct note n = unpack(atomic_load_explicit(entry, memory_order_relaxed));
    uint32_t time = units(now);
    int32_t since = difference(time, n.until);
    // Longer ahead than it was ever set: the clock has gone round.
    bool before = n.gfn == (uint32_t)gfn.raw + 1 && since < (int32_t)seconds(FORGET_SECONDS) &&
                  since >= -period(n.level);
    n.gfn = (uint32_t)gfn.raw + 1;
    n.level = before ? MIN(n.level + 1, LEVEL_MAX) : 1;
    if (page_table)
        n.level = MAX(n.level, LEVEL_TABLE);
    *begun = n.level > 1;
    n.until = time + (uint32_t)period(n.level);
    atomic_store_explicit(entry, pack(n), memory_order_relaxed);
    return before;
}

bool backoff_ignores(const struct fusion_backoff *b, gfn_t gfn, uint64_t now)
{
    const _Atomic uint64_t *entry = entry_of((struct fusion_backoff *)(uintptr_t)b, gfn);
    uint64_t e = atomic_load_explicit(entry, memory_order_relaxed);
    if ((uint32_t)(e >> 32) != (uint32_t)gfn.raw + 1)
        return false;
    struct note n = unpack(e);
    int32_t since = difference(units(now), n.until);
    return since < 0 && since >= -period(n.level);
}
