// SPDX-License-Identifier: BSD-2-Clause
// The content index's table: its memory, locks and figures.
#include "fusion/index_table.h"

#include "kernel/error.h"
#include "kernel/frames.h"
#include "kernel/heap.h"
#include "kernel/memory.h"
#include "kernel/panic.h"
#include "kernel/string.h"

#define FRAMES_PER_BUCKET 6u

struct index_table index_table;

static uint64_t chunk_count(uint64_t buckets)
{
    return ALIGN_UP(buckets, UINT64_C(1) << INDEX_CHUNK_SHIFT) >> INDEX_CHUNK_SHIFT;
}

// Frames of chunk `i`: all are full, but for the last.
static uint64_t chunk_frames(uint64_t i)
{
    uint64_t buckets =
        MIN(index_table.buckets - (i << INDEX_CHUNK_SHIFT), UINT64_C(1) << INDEX_CHUNK_SHIFT);
    return ALIGN_UP(buckets * sizeof(struct index_bucket), PAGE_SIZE) >> PAGE_SHIFT;
}

// Gives [first, end) of an aligned block back in the largest pieces that are aligned.
static void free_range(uint64_t first, uint64_t end)
{
    while (first < end) {
        unsigned order = first == 0 ? FRAME_MAX_ORDER : (unsigned)__builtin_ctzll(first);
        order = MIN(order, FRAME_MAX_ORDER);
        while (UINT64_C(1) << order > end - first)
            order--;
        frame_free(hfn(first), order, NULL);
        first += UINT64_C(1) << order;
    }
}

static int alloc_chunk(uint64_t i)
{
    uint64_t needed = chunk_frames(i);
    unsigned order = 0;
    while (UINT64_C(1) << order < needed)
        order++;
    hfn_t block;
    int error = frame_alloc(FRAME_FUSOR, order, 0, NULL, &block);
    if (error != 0)
        return error;
    free_range(block.raw + needed, block.raw + (UINT64_C(1) << order));
    index_table.chunks[i] = hfn_to_pointer(block);
    memset(index_table.chunks[i], 0, needed << PAGE_SHIFT);
    return 0;
}

int index_init(uint64_t frames)
{
    index_table.buckets = frames / FRAMES_PER_BUCKET + 1;
    index_table.chunks =
        heap_alloc(chunk_count(index_table.buckets) * sizeof(struct index_bucket *));
    if (index_table.chunks == NULL) {
        index_table.buckets = 0;
        return E_NOMEM;
    }
    for (unsigned i = 0; i < INDEX_STRIPES; i++)
        spin_init(&index_table.stripes[i].lock, "index bucket", RANK_BUCKET);
    memset(index_table.slots, 0, sizeof(index_table.slots));
    atomic_store_explicit(&index_table.shared, 0, memory_order_relaxed);
    for (uint64_t i = 0; i < chunk_count(index_table.buckets); i++) {
        int error = alloc_chunk(i);
        if (error != 0) {
            index_exit();
            return error;
        }
    }
    return 0;
}

void index_exit(void)
{
    // heap_alloc's memory is zeroed: what was not allocated yet is NULL.
    for (uint64_t i = 0; i < chunk_count(index_table.buckets) && index_table.chunks[i] != NULL;
         i++) {
        uint64_t first = pointer_to_hpa(index_table.chunks[i]).raw >> PAGE_SHIFT;
        free_range(first, first + chunk_frames(i));
    }
    heap_free(index_table.chunks);
    index_table.chunks = NULL;
    index_table.buckets = 0;
}

// --- Keys and locks ---

// The finalizer of MurmurHash3, a bijection: a hash whose bits are not all equally good spreads
// over buckets and tags, and different hashes never become one key within a group.
uint64_t index_key(uint64_t hash, uint8_t group)
{
    uint64_t x = hash ^ (group + UINT64_C(1)) * UINT64_C(0x9e3779b97f4a7c15);
    x = (x ^ x >> 33) * UINT64_C(0xff51afd7ed558ccd);
    x = (x ^ x >> 33) * UINT64_C(0xc4ceb9fe1a85ec53);
    return x ^ x >> 33;
}

void index_lock(uint64_t key)
{
    spin_lock(index_lock_of(index_number(key)));
}

void index_unlock(uint64_t key)
{
    spin_unlock(index_lock_of(index_number(key)));
}

// --- Quotas and figures ---

uint64_t index_least_quota(void)
{
    return index_table.buckets * INDEX_BUCKET / 8;
}

void index_set_quota(uint8_t slot, uint64_t entries)
{
    CHECK(slot < INDEX_SLOTS);
    atomic_store_explicit(&index_table.slots[slot].quota, entries, memory_order_relaxed);
}

void index_count(struct index_counts *out)
{
    *out = (struct index_counts){
        .buckets = index_table.buckets,
        .shared = atomic_load_explicit(&index_table.shared, memory_order_relaxed),
    };
    for (unsigned i = 0; i < INDEX_SLOTS; i++) {
        out->of_slot[i] = atomic_load_explicit(&index_table.slots[i].count, memory_order_relaxed);
        out->candidates += out->of_slot[i];
    }
}
