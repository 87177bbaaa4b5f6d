// SPDX-License-Identifier: BSD-2-Clause
// The binary buddy behind the frame allocator: one list of free blocks per order, linked through
// the frame table. All functions run with frames.lock held.
#include "kernel/frames_internal.h"

#include "kernel/panic.h"

void frame_buddy_init(void)
{
    for (unsigned order = 0; order <= FRAME_MAX_ORDER; order++)
        frames.heads[order] = FRAME_NIL;
}

static void insert(uint32_t n, unsigned order)
{
    struct frame *f = frame_record(n);
    uint32_t head = frames.heads[order];
    f->order = (uint8_t)order;
    f->free.prev = FRAME_NIL;
    f->free.next = head;
    __atomic_store_n(&f->flags, f->flags | FRAME_F_HEAD, __ATOMIC_RELAXED);
    if (head != FRAME_NIL)
        frame_record(head)->free.prev = n;
    frames.heads[order] = n;
    frames.nonempty |= 1u << order;
}

static void take_out(uint32_t n, unsigned order)
{
    struct frame *f = frame_record(n);
    if (f->free.next != FRAME_NIL)
        frame_record(f->free.next)->free.prev = f->free.prev;
    if (f->free.prev != FRAME_NIL)
        frame_record(f->free.prev)->free.next = f->free.next;
    else
        frames.heads[order] = f->free.next;
    if (frames.heads[order] == FRAME_NIL)
        frames.nonempty &= ~(1u << order);
    __atomic_store_n(&f->flags, f->flags & ~FRAME_F_HEAD, __ATOMIC_RELAXED);
    f->order = 0;
}

// True when `n` heads a free block of `order`. The frame may belong to anybody, on any CPU; but
// only the holder of the lock sets or clears FRAME_F_HEAD.
static bool heads_block(uint32_t n, unsigned order)
{
    if (n >= frames.limit)
        return false;
    const struct frame *f = frame_record(n);
    return (__atomic_load_n(&f->flags, __ATOMIC_RELAXED) & FRAME_F_HEAD) != 0 && f->order == order;
}

static void add_free(int64_t count)
{
    uint64_t now = atomic_load_explicit(&frames.buddy_free, memory_order_relaxed);
    atomic_store_explicit(&frames.buddy_free, now + (uint64_t)count, memory_order_relaxed);
}

void frame_buddy_note_reserve(void)
{
    uint64_t now = atomic_load_explicit(&frames.buddy_free, memory_order_relaxed);
    bool is_short = now < frame_floor();
    if (is_short == atomic_load_explicit(&frames.reserve_short, memory_order_relaxed))
        return;
    atomic_store_explicit(&frames.reserve_short, is_short, memory_order_relaxed);
    if (!is_short) // full beside what is held
        atomic_fetch_add_explicit(&frames.reserve_epoch, 1, memory_order_relaxed);
}

void frame_buddy_give(uint32_t n, unsigned order)
{
    if (FUSOR_DEBUG) {
        CHECK((n & ((1u << order) - 1)) == 0);
        CHECK(frame_record(n)->state == FRAME_FREE);
        CHECK((frame_record(n)->flags & FRAME_F_HEAD) == 0);
    }
    add_free(INT64_C(1) << order);
    while (order < FRAME_MAX_ORDER && heads_block(n ^ (1u << order), order)) {
        take_out(n ^ (1u << order), order);
        n &= ~(1u << order);
        order++;
    }
    insert(n, order);
}

uint32_t frame_buddy_take(unsigned order)
{
    uint32_t fitting = frames.nonempty & ~((1u << order) - 1);
    if (fitting == 0)
        return FRAME_NIL;
    unsigned from = (unsigned)__builtin_ctz(fitting);
    uint32_t n = frames.heads[from];
    take_out(n, from);
    while (from > order) {
        from--;
        insert(n + (1u << from), from);
    }
    add_free(-(INT64_C(1) << order));
    return n;
}
