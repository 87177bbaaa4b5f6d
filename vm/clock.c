// SPDX-License-Identifier: BSD-2-Clause
#include "vm/clock.h"

#include "kernel/panic.h"
#include "kernel/time.h"

void vclock_init(struct vclock *clock, uint64_t hz)
{
    CHECK(hz != 0);
    *clock = (struct vclock){.hz = hz, .frozen = true};
}

void vclock_freeze(struct vclock *clock)
{
    if (clock->frozen)
        return;
    clock->frozen_at = time_tsc() + clock->offset;
    clock->frozen = true;
}

void vclock_thaw(struct vclock *clock)
{
    if (!clock->frozen)
        return;
    clock->offset = clock->frozen_at - time_tsc();
    clock->frozen = false;
}

void vclock_refreeze(struct vclock *clock)
{
    clock->frozen = true;
}

uint64_t vclock_now(const struct vclock *clock)
{
    return clock->frozen ? clock->frozen_at : time_tsc() + clock->offset;
}

uint64_t vclock_to_host(const struct vclock *clock, uint64_t guest)
{
    if (guest == UINT64_MAX || clock->frozen)
        return UINT64_MAX;
    // Read as signed, the offset says on which side the host's TSC is; so a deadline at the end of
    // time does not wrap into the past and fire at once.
    uint64_t behind = 0 - clock->offset;
    uint64_t host;
    if (behind <= INT64_MAX)
        return __builtin_add_overflow(guest, behind, &host) ? UINT64_MAX : host;
    return guest > clock->offset ? guest - clock->offset : 0;
}

// a * b / c for a < c, where a * b does not fit 64 bits: long division, bit by bit. (The compiler's
// 128-bit division is a library call; Fusor links no library.)
static uint64_t multiply_divide(uint64_t a, uint64_t b, uint64_t c)
{
    uint64_t quotient = 0;
    uint64_t remainder = 0;
    for (int bit = 63; bit >= 0; bit--) {
        // remainder = 2 * remainder + (bit of b ? a : 0), kept below c by subtracting early
        uint64_t carry = remainder >= c - remainder;
        remainder = carry != 0 ? remainder - (c - remainder) : remainder * 2;
        uint64_t digit = carry;
        if ((b >> bit & 1) != 0) {
            carry = remainder >= c - a;
            remainder = carry != 0 ? remainder - (c - a) : remainder + a;
            digit += carry;
        }
        quotient = quotient * 2 + digit;
    }
    return quotient;
}

uint64_t vclock_scale(uint64_t ticks, uint64_t from_hz, uint64_t to_hz)
{
    CHECK(from_hz != 0);
    uint64_t whole, part;
    uint64_t rest = ticks % from_hz;
    if (__builtin_mul_overflow(ticks / from_hz, to_hz, &whole))
        return UINT64_MAX;
    // rest * to_hz < from_hz * to_hz: below 2^64 for every pair of a TSC (< 2^34 Hz) and a device
    // clock (< 2^30 Hz), so the slow way is for odd callers only.
    if (__builtin_mul_overflow(rest, to_hz, &part))
        part = multiply_divide(rest, to_hz, from_hz);
    else
        part /= from_hz;
    return __builtin_add_overflow(whole, part, &whole) ? UINT64_MAX : whole;
}

void vtimer_queue_init(struct vtimer_queue *q)
{
    q->first = NULL;
    q->earliest = UINT64_MAX;
    q->moved = NULL;
}

static void find_earliest(struct vtimer_queue *q)
{
    uint64_t earliest = UINT64_MAX;
    for (const struct vtimer *t = q->first; t != NULL; t = t->next)
        earliest = MIN(earliest, t->deadline);
    q->earliest = earliest;
}

void vtimer_add(struct vtimer_queue *q, struct vtimer *t, void (*fire)(void *, uint64_t),
                void *device)
{
    t->fire = fire;
    t->device = device;
    t->deadline = UINT64_MAX;
    for (const struct vtimer *other = q->first; other != NULL; other = other->next) {
        if (other == t) { // linking it again would close the list to a ring
            find_earliest(q);
            return;
        }
    }
    t->next = q->first;
    q->first = t;
}

void vtimer_arm(struct vtimer_queue *q, struct vtimer *t, uint64_t deadline)
{
    uint64_t old = t->deadline;
    uint64_t earliest = q->earliest;
    t->deadline = deadline;
    if (deadline <= earliest)
        q->earliest = deadline;
    else if (old == earliest)
        find_earliest(q);
    if (q->earliest != earliest && q->moved != NULL)
        *q->moved = true;
}

void vtimer_run(struct vtimer_queue *q, uint64_t now)
{
    if (now < q->earliest || q->earliest == UINT64_MAX)
        return;
    for (struct vtimer *t = q->first; t != NULL; t = t->next) {
        if (t->deadline <= now && t->deadline != UINT64_MAX) {
            t->deadline = UINT64_MAX;
            t->fire(t->device, now);
        }
    }
    find_earliest(q);
}
