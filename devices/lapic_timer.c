// SPDX-License-Identifier: BSD-2-Clause
// The LAPIC's timer (SDM vol. 3, 11.5.4): one-shot, periodic, TSC deadline. The count is never
// kept, it follows from the guest's clock.
#include "devices/lapic_inside.h"

// Shortest period of the periodic mode: 1/10000 s. Each period costs exits, and a guest may ask for
// one of a few ticks, which would leave no time for anything else, the guest itself included. KVM's
// bound (min_timer_period_us) is 200 us, no kernel in use asks for less than 250 us (HZ=4000).
#define PERIODS_PER_SECOND 10000u

// SDM 11.5.4, figure 11-10: bits 0, 1 and 3 are the binary logarithm less one, 7 is "by 1".
static inline unsigned divide_shift(uint32_t divide)
{
    return ((divide & 3) + (divide >> 1 & 4) + 1) & 7;
}

static inline enum lapic_timer_mode mode_of(const struct lapic *l)
{
    return lapic_timer_mode(l->lvt[LVT_TIMER]);
}

// Ticks of the guest TSC from the initial count to zero; at most 2^39.
static uint64_t period(const struct lapic *l)
{
    uint64_t ticks = (uint64_t)l->timer_initial << divide_shift(l->timer_divide);
    if (mode_of(l) == TIMER_PERIODIC)
        ticks = MAX(ticks, l->clock->hz / PERIODS_PER_SECOND);
    return MAX(ticks, 1u);
}

// The count as it is at `now`; 0 when the timer does not run.
static uint32_t count_at(const struct lapic *l, uint64_t now)
{
    if (l->timer_initial == 0 || !l->timer_counting)
        return 0;
    uint64_t length = period(l);
    uint64_t elapsed = now - l->timer_start;
    if (elapsed >= length) {
        if (mode_of(l) != TIMER_PERIODIC)
            return 0;
        elapsed %= length;
    }
    unsigned shift = divide_shift(l->timer_divide);
    uint64_t count = (length - elapsed + (UINT64_C(1) << shift) - 1) >> shift;
    // A period that was made longer counts as one that stands at its initial count for a while.
    return (uint32_t)MIN(count, (uint64_t)l->timer_initial);
}

// Sets the vtimer to the next moment at which something happens.
static void program(struct lapic *l, uint64_t now)
{
    uint64_t deadline = UINT64_MAX;
    if (mode_of(l) == TIMER_DEADLINE) {
        if (l->tsc_deadline != 0)
            deadline = l->tsc_deadline;
    } else if (l->timer_counting) {
        uint64_t length = period(l);
        if (mode_of(l) == TIMER_PERIODIC) {
            uint64_t elapsed = now - l->timer_start;
            // However late the call is, one interrupt stands for all periods that went by.
            if (elapsed >= length)
                l->timer_start += elapsed - elapsed % length;
            // A masked periodic timer has nothing to tell: do not wake the vCPU for it.
            if ((l->lvt[LVT_TIMER] & LVT_MASKED) == 0)
                deadline = l->timer_start + length;
        } else {
            deadline = l->timer_start + length;
        }
    }
    if (deadline != l->timer.deadline)
        vtimer_arm(l->timers, &l->timer, deadline);
}

// True when the timer reached zero or its deadline by `now`; then it stands for the next one.
static bool expire(struct lapic *l, uint64_t now)
{
    if (mode_of(l) == TIMER_DEADLINE) {
        if (l->tsc_deadline == 0 || now < l->tsc_deadline)
            return false;
        l->tsc_deadline = 0;
        return true;
    }
    if (!l->timer_counting || now - l->timer_start < period(l))
        return false;
    if (mode_of(l) != TIMER_PERIODIC)
        l->timer_counting = false;
    return true;
}

void lapic_timer_fire(void *lapic, uint64_t now)
{
    struct lapic *l = lapic;
    bool expired = expire(l, now);
    program(l, now);
    if (expired)
        lapic_local(l, LVT_TIMER);
}

// The vtimer is looked at between the guest's runs only. Before a write changes the timer, what is
// due by then must have happened, as it has on hardware.
static inline void catch_up(struct lapic *l, uint64_t now)
{
    if (l->timer.deadline <= now)
        lapic_timer_fire(l, now);
}

void lapic_timer_catch_up(struct lapic *l)
{
    catch_up(l, vclock_now(l->clock));
}

void lapic_timer_stop(struct lapic *l)
{
    l->timer_initial = 0;
    l->timer_counting = false;
    l->tsc_deadline = 0;
    vtimer_arm(l->timers, &l->timer, UINT64_MAX);
}

void lapic_timer_lvt_changed(struct lapic *l, uint32_t old)
{
    enum lapic_timer_mode before = lapic_timer_mode(old);
    enum lapic_timer_mode after = mode_of(l);
    uint64_t now = vclock_now(l->clock);
    if (before == after) {
        // Only a masked periodic timer changes what has to be armed.
        if (after == TIMER_PERIODIC)
            program(l, now);
    } else if (before >= TIMER_DEADLINE || after >= TIMER_DEADLINE) {
        lapic_timer_stop(l); // SDM 11.5.4.1: a switch to or from TSC deadline disarms
    } else {
        // Between one-shot and periodic the count goes on. It is taken over as it stands, because
        // the two may have different lengths for one initial count.
        uint32_t lvt = l->lvt[LVT_TIMER];
        l->lvt[LVT_TIMER] = old;
        uint64_t count = count_at(l, now);
        l->lvt[LVT_TIMER] = lvt;
        l->timer_counting = count != 0;
        l->timer_start = now - (period(l) - (count << divide_shift(l->timer_divide)));
        program(l, now);
    }
}

void lapic_timer_set_initial(struct lapic *l, uint32_t count)
{
    if (mode_of(l) >= TIMER_DEADLINE)
        return; // SDM 11.5.4.1: ignored
    uint64_t now = vclock_now(l->clock);
    catch_up(l, now);
    l->timer_initial = count;
    l->timer_counting = count != 0;
    l->timer_start = now;
    program(l, now);
}

void lapic_timer_set_divide(struct lapic *l, uint32_t divide)
{
    uint64_t now = vclock_now(l->clock);
    catch_up(l, now);
    uint64_t count = count_at(l, now);
    l->timer_divide = divide & 0xb;
    if (mode_of(l) >= TIMER_DEADLINE)
        return;
    // The counter goes on from where it stands, at the new rate.
    l->timer_counting = count != 0;
    l->timer_start = now - (period(l) - (count << divide_shift(l->timer_divide)));
    program(l, now);
}

uint32_t lapic_timer_current(const struct lapic *l)
{
    if (mode_of(l) >= TIMER_DEADLINE)
        return 0;
    return count_at(l, vclock_now(l->clock));
}

void lapic_timer_set_deadline(struct lapic *l, uint64_t deadline)
{
    if (mode_of(l) != TIMER_DEADLINE)
        return;
    uint64_t now = vclock_now(l->clock);
    catch_up(l, now);
    l->tsc_deadline = deadline;
    if (deadline <= now)
        lapic_timer_fire(l, now); // zero: only disarms
    else
        vtimer_arm(l->timers, &l->timer, deadline);
}

uint64_t lapic_timer_deadline(const struct lapic *l)
{
    // Zero once it has passed, also when the vtimer was not looked at yet.
    if (l->tsc_deadline != 0 && vclock_now(l->clock) >= l->tsc_deadline)
        return 0;
    return l->tsc_deadline;
}
