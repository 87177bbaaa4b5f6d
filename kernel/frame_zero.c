// SPDX-License-Identifier: BSD-2-Clause
// The pool of zeroed frames, filled by CPUs that have nothing else to do.
#include "kernel/frames_internal.h"

#include "kernel/memory.h"
#include "kernel/string.h"

void frame_zero_init(void)
{
    frames.zero_head = FRAME_NIL;
}

static void set_count(uint32_t count)
{
    atomic_store_explicit(&frames.zero_count, count, memory_order_relaxed);
}

static uint32_t count_now(void)
{
    return atomic_load_explicit(&frames.zero_count, memory_order_relaxed);
}

uint32_t frame_zero_pop(void)
{
    uint32_t n = frames.zero_head;
    frames.zero_head = frame_record(n)->free.next;
    set_count(count_now() - 1);
    return n;
}

void frame_zero_push(uint32_t n)
{
    frame_record(n)->free.next = frames.zero_head;
    frames.zero_head = n;
    set_count(count_now() + 1);
}

// Frames that may be zeroed now. Also a glance without the lock, so nothing must be derived from
// two readings of one value.
static uint64_t wanted(void)
{
    uint64_t pool = count_now();
    uint64_t buddy = atomic_load_explicit(&frames.buddy_free, memory_order_relaxed);
    uint64_t target = MIN((buddy + pool) / 16, FRAME_ZERO_MAX);
    uint64_t reserve = frame_floor();
    if (pool >= target || buddy <= reserve)
        return 0;
    return MIN(target - pool, buddy - reserve);
}

bool frames_zero_some(void)
{
    if (wanted() == 0)
        return false;
    uint32_t batch[FRAME_ZERO_BATCH];
    unsigned count = 0;
    spin_lock(&frames.lock);
    for (uint64_t n = MIN(wanted(), FRAME_ZERO_BATCH); count < n; count++)
        batch[count] = frame_buddy_take(0);
    if (count != 0)
        frames.zero_started++;
    frame_buddy_note_reserve();
    spin_unlock(&frames.lock);
    if (count == 0)
        return false;

    for (unsigned i = 0; i < count; i++) {
        if (FUSOR_DEBUG)
            frame_poison_verify(batch[i], 1);
        memset(hfn_to_pointer(hfn(batch[i])), 0, PAGE_SIZE);
    }

    spin_lock(&frames.lock);
    for (unsigned i = 0; i < count; i++)
        frame_zero_push(batch[i]);
    frames.zero_finished++;
    spin_unlock(&frames.lock);
    return wanted() != 0;
}
