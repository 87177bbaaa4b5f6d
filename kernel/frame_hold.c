// SPDX-License-Identifier: BSD-2-Clause
// Frames that are held for whom they belonged to.
//
// The buddy has them as any other free frame; what is held is only a number, as if the reserve were
// so much larger. It never grows before the frames are there, so nobody else waits for less than
// what it does not get; and it becomes less with each frame that its holder takes.
#include "kernel/frames_internal.h"

static void join(struct frame_account *holder)
{
    struct frame_account **at = &frames.holders;
    while (*at != NULL)
        at = &(*at)->held_next;
    holder->held_next = NULL;
    *at = holder;
}

static void leave(struct frame_account *holder)
{
    struct frame_account **at = &frames.holders;
    while (*at != holder)
        at = &(*at)->held_next;
    *at = holder->held_next;
    holder->held_next = NULL;
}

static void hold_less(struct frame_account *holder, uint64_t count)
{
    holder->held -= count;
    frames.held -= count;
    if (holder->held == 0)
        leave(holder);
}

uint64_t frame_hold_floor(const struct frame_account *holder)
{
    // A quarter of the reserve is left for page tables and what the operator does next.
    if (holder->held == 0)
        return frames.reserve / 4 + frames.held;
    // Its own: those of others stay, as far as they are there. If the users of the reserve took
    // some, two holders that left each other's would both find none for as long as both wait.
    uint64_t longer = 0;
    for (const struct frame_account *a = frames.holders; a != holder; a = a->held_next)
        longer += a->held;
    return longer;
}

void frame_hold_taken(struct frame_account *holder)
{
    if (holder->held != 0)
        hold_less(holder, 1);
}

int frame_alloc_held(unsigned flags, struct frame_account *account, hfn_t *out)
{
    // Not from a cache: what comes from there would have to be counted under the lock, too.
    return frame_alloc_slowly(FRAME_PRIVATE, 0, flags, account, account, out);
}

void frame_free_held(hfn_t first, unsigned order, struct frame_account *account)
{
    frame_release(first, order, account);
    spin_lock(&frames.lock);
    frame_buddy_give((uint32_t)first.raw, order);
    if (account->held == 0)
        join(account);
    account->held += UINT64_C(1) << order;
    frames.held += UINT64_C(1) << order;
    frame_buddy_note_reserve();
    spin_unlock(&frames.lock);
}

void frames_hold_end(struct frame_account *account)
{
    spin_lock(&frames.lock);
    if (account->held != 0)
        hold_less(account, account->held);
    frame_buddy_note_reserve();
    spin_unlock(&frames.lock);
}
