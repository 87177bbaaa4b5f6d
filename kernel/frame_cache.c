// SPDX-License-Identifier: BSD-2-Clause
// Per-CPU caches of single frames, and the way round them.
#include "kernel/frames_internal.h"

static void cache_lock(struct frame_cpu *c)
{
    while (atomic_exchange_explicit(&c->busy, 1, memory_order_acquire) != 0)
        cpu_relax();
}

static void cache_unlock(struct frame_cpu *c)
{
    atomic_store_explicit(&c->busy, 0, memory_order_release);
}

static uint64_t buddy_free(void)
{
    return atomic_load_explicit(&frames.buddy_free, memory_order_relaxed);
}

static uint32_t zero_count(void)
{
    return atomic_load_explicit(&frames.zero_count, memory_order_relaxed);
}

// Brings all frames of the caches and of the pool into the buddy, where blocks merge. The lock is
// held. Returns the number of frames that came.
static uint64_t collect(void)
{
    uint64_t came = 0;
    for (uint32_t i = 0; i < cpu_count; i++) {
        struct frame_cpu *c = &frame_cpus[i];
        cache_lock(c);
        for (unsigned kind = 0; kind < CACHE_KINDS; kind++) {
            struct frame_stack *s = &c->stack[kind];
            came += s->count;
            while (s->count != 0)
                frame_buddy_give(s->frame[--s->count], 0);
        }
        cache_unlock(c);
    }
    came += zero_count();
    while (zero_count() != 0)
        frame_buddy_give(frame_zero_pop(), 0);
    frame_buddy_note_reserve();
    return came;
}

// What has to stay in the buddy.
static uint64_t floor_for(unsigned flags, const struct frame_account *holder)
{
    if ((flags & FRAME_RESERVE) != 0)
        return 0;
    return holder != NULL ? frame_hold_floor(holder) : frame_floor();
}

// One attempt, with the lock held.
static uint32_t try_take(unsigned order, unsigned flags, const struct frame_account *holder,
                         bool *zeroed)
{
    uint64_t floor = floor_for(flags, holder);
    bool from_pool = order == 0 && zero_count() != 0 && buddy_free() >= floor;
    *zeroed = from_pool && (flags & FRAME_ZEROED) != 0;
    if (*zeroed)
        return frame_zero_pop();
    uint32_t n = FRAME_NIL;
    if (buddy_free() >= floor + (UINT64_C(1) << order))
        n = frame_buddy_take(order);
    if (n == FRAME_NIL && from_pool)
        n = frame_zero_pop();
    return n;
}

// Fills this CPU's empty stacks, with the lock held. Never takes from the reserve; near exhaustion
// the batches become small, so that one CPU's cache does not hold what others are looking for.
static void refill(unsigned flags)
{
    struct frame_cpu *c = frame_this_cpu();
    struct frame_stack *plain = &c->stack[CACHE_PLAIN];
    struct frame_stack *zeroed = &c->stack[CACHE_ZEROED];
    cache_lock(c);
    if ((flags & FRAME_ZEROED) != 0 && zeroed->count == 0) {
        uint32_t batch = MIN(FRAME_BATCH, zero_count());
        while (batch-- != 0)
            zeroed->frame[zeroed->count++] = frame_zero_pop();
    }
    if (plain->count == 0 && buddy_free() > frame_floor()) {
        uint64_t batch = MIN(FRAME_BATCH, (buddy_free() - frame_floor()) / 8);
        // Blocks instead of single frames, the smallest there are first.
        while (batch != 0) {
            unsigned order = MIN((unsigned)__builtin_ctz(frames.nonempty), FRAME_BATCH_ORDER);
            order = MIN(order, 63u - (unsigned)__builtin_clzll(batch));
            uint32_t n = frame_buddy_take(order);
            for (uint32_t i = 1u << order; i-- != 0;)
                plain->frame[plain->count++] = n + i;
            batch -= UINT64_C(1) << order;
        }
    }
    cache_unlock(c);
}

// Whether a failure at this order is worth disturbing all caches for.
static bool worth_collecting(unsigned order)
{
    return order < FRAME_LARGE_ORDER || frames.large_failures++ % FRAME_LARGE_BACKOFF == 0;
}

// Waits for the batches that other CPUs are zeroing at this moment. The lock is held, and given up
// meanwhile. Returns false when there are none.
static bool wait_for_zeroing(void)
{
    uint64_t started = frames.zero_started;
    if (frames.zero_finished == started)
        return false;
    while (frames.zero_finished < started) {
        spin_unlock(&frames.lock);
        cpu_relax();
        spin_lock(&frames.lock);
    }
    return true;
}

uint32_t frame_take(unsigned order, unsigned flags, struct frame_account *holder, bool *zeroed)
{
    spin_lock(&frames.lock);
    uint32_t n = try_take(order, flags, holder, zeroed);
    if (n == FRAME_NIL && worth_collecting(order)) {
        if (collect() != 0)
            n = try_take(order, flags, holder, zeroed);
        if (n == FRAME_NIL && wait_for_zeroing()) {
            collect();
            n = try_take(order, flags, holder, zeroed);
        }
    }
    if (n != FRAME_NIL && holder != NULL)
        frame_hold_taken(holder);
    if (n != FRAME_NIL && order == 0)
        refill(flags);
    frame_buddy_note_reserve();
    spin_unlock(&frames.lock);
    return n;
}

void frame_give(uint32_t n, unsigned order)
{
    bool is_short = atomic_load_explicit(&frames.reserve_short, memory_order_relaxed);
    struct frame_cpu *c = frame_this_cpu();
    struct frame_stack *plain = &c->stack[CACHE_PLAIN];
    if (order == 0 && !is_short) {
        cache_lock(c);
        bool fits = plain->count < FRAME_CACHE_MAX;
        if (fits)
            plain->frame[plain->count++] = n;
        cache_unlock(c);
        if (fits)
            return;
    }
    spin_lock(&frames.lock);
    frame_buddy_give(n, order);
    if (order == 0 && !is_short) {
        // The cache was full. A batch goes along; the frames freed last, still in the CPU's data
        // caches, stay.
        cache_lock(c);
        uint32_t batch = MIN(FRAME_BATCH, plain->count);
        for (uint32_t i = 0; i < batch; i++)
            frame_buddy_give(plain->frame[i], 0);
        plain->count -= batch;
        for (uint32_t i = 0; i < plain->count; i++)
            plain->frame[i] = plain->frame[i + batch];
        cache_unlock(c);
    }
    frame_buddy_note_reserve();
    spin_unlock(&frames.lock);
}
