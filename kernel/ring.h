// SPDX-License-Identifier: BSD-2-Clause
// A byte ring with one producer and one consumer, which need no lock between them: each writes only
// its own index, and the indices run freely, so that full and empty differ.
#pragma once

#include <stdatomic.h>

#include "kernel/types.h"

struct ring {
    uint8_t *bytes;
    uint32_t size;         // a power of two
    _Atomic uint32_t head; // written by the producer
    _Atomic uint32_t tail; // written by the consumer
};

static inline uint32_t ring_used(const struct ring *r)
{
    // The tail first: it never passes the head, so the difference is never negative.
    uint32_t tail = atomic_load_explicit(&r->tail, memory_order_acquire);
    return atomic_load_explicit(&r->head, memory_order_acquire) - tail;
}

static inline uint32_t ring_space(const struct ring *r)
{
    uint32_t used = ring_used(r);
    return used < r->size ? r->size - used : 0;
}

// Producer. Returns false when the ring is full.
static inline bool ring_put(struct ring *r, uint8_t byte)
{
    uint32_t head = atomic_load_explicit(&r->head, memory_order_relaxed);
    if (head - atomic_load_explicit(&r->tail, memory_order_acquire) >= r->size)
        return false;
    r->bytes[head & (r->size - 1)] = byte;
    atomic_store_explicit(&r->head, head + 1, memory_order_release);
    return true;
}

// Consumer. Returns the next byte, or -1 when the ring is empty.
static inline int ring_get(struct ring *r)
{
    uint32_t tail = atomic_load_explicit(&r->tail, memory_order_relaxed);
    if (atomic_load_explicit(&r->head, memory_order_acquire) == tail)
        return -1;
    uint8_t byte = r->bytes[tail & (r->size - 1)];
    atomic_store_explicit(&r->tail, tail + 1, memory_order_release);
    return byte;
}
