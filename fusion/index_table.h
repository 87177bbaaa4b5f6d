// SPDX-License-Identifier: BSD-2-Clause
// The content index's table, for the files of the index only.
//
// The parts of a bucket's entries stand in arrays, so that the eight tags, all that most look-ups
// read, fill half a line. A bucket's number comes from the high bits of the key, the tag is its
// low 32 bits. Bucket n is under lock n % STRIPES.
#pragma once

#include <stdatomic.h>

#include "fusion/index.h"
#include "kernel/lock.h"

#define INDEX_STRIPES     256u
#define INDEX_CHUNK_ORDER 9u  // the table consists of blocks of 2 MiB
#define INDEX_CHUNK_SHIFT 14u // buckets in one, as a power of two

struct index_bucket {
    uint32_t tag[INDEX_BUCKET];
    uint32_t frame[INDEX_BUCKET];
    uint32_t version[INDEX_BUCKET]; // of candidates
    uint8_t group[INDEX_BUCKET];
    uint8_t slot[INDEX_BUCKET]; // of candidates
    uint8_t age[INDEX_BUCKET];  // the bucket's sequence number when it came
    uint8_t used;               // the entries that are there
    uint8_t shared;             // of these, the shared frames
    uint8_t sequence;
    uint8_t reserved[5];
} __attribute__((aligned(128)));
_Static_assert(sizeof(struct index_bucket) == INDEX_BUCKET * 16, "two cache lines");
_Static_assert(sizeof(struct index_bucket) << INDEX_CHUNK_SHIFT == PAGE_SIZE << INDEX_CHUNK_ORDER,
               "a full chunk");

// What a VM has in the table. Changed under any bucket's lock, so atomic.
struct index_slot {
    _Atomic uint64_t count; // its candidates, stale ones included
    _Atomic uint64_t quota;
    _Atomic uint64_t hand; // the bucket its next sweep begins with
} __attribute__((aligned(64)));

struct index_stripe {
    struct spinlock lock;
} __attribute__((aligned(64)));

struct index_table {
    struct index_bucket **chunks;
    uint64_t buckets;
    _Atomic uint64_t shared;
    struct index_slot slots[INDEX_SLOTS];
    struct index_stripe stripes[INDEX_STRIPES];
};
extern struct index_table index_table;

static inline uint32_t index_tag(uint64_t key)
{
    return (uint32_t)key;
}

// The high half of key * index_table.buckets: evenly spread without a division.
static inline uint64_t index_number(uint64_t key)
{
    return (uint64_t)((unsigned __int128)key * index_table.buckets >> 64);
}

static inline struct index_bucket *index_bucket_at(uint64_t number)
{
    return &index_table
                .chunks[number >> INDEX_CHUNK_SHIFT][number & ((1u << INDEX_CHUNK_SHIFT) - 1)];
}

static inline struct spinlock *index_lock_of(uint64_t number)
{
    return &index_table.stripes[number % INDEX_STRIPES].lock;
}
