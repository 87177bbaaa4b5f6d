// SPDX-License-Identifier: BSD-2-Clause
// Hysteresis in three places: a guest is short below 1/16 of its memory and has memory to spare
// above 1/4, and is brought to 1/8 and 3/16; the machine is short below 1/32 of its frames and is
// brought to 1/16; and what is seen must be seen POLICY_LOOKS times in a row. What is already on
// its way (a target that is not reached, or was reached after the guest's last report) counts as
// done, so that nothing is asked for twice. One decision moves at most 1/8 of a guest's memory.
//
// A guest that lies gets back its own balloon at most, or loses memory down to its memory-min.
#include "balloon/policy.h"

#define POLICY_LOOKS 2u

static uint64_t less(uint64_t a, uint64_t b)
{
    return a > b ? a - b : 0;
}

// What the guest will have available when its balloon is what it should be.
static uint64_t settled(const struct policy_vm *v)
{
    uint64_t n = MIN(v->available, less(v->memory, v->reported_balloon));
    return less(n + less(v->reported_balloon, v->target), less(v->target, v->reported_balloon));
}

static void look(struct policy_vm *v)
{
    bool is_short = v->takes_part && settled(v) < v->memory / 16;
    bool spare = v->takes_part && !v->waits && settled(v) > v->memory / 4;
    v->looks_short = (uint8_t)(is_short ? MIN(v->looks_short + 1u, POLICY_LOOKS) : 0);
    v->looks_spare = (uint8_t)(spare ? MIN(v->looks_spare + 1u, POLICY_LOOKS) : 0);
    v->new_target = v->target;
    v->reason = POLICY_STAYS;
}

// What this guest may give now.
static uint64_t surplus(const struct policy_vm *v)
{
    if (v->looks_spare < POLICY_LOOKS || v->reason != POLICY_STAYS)
        return 0;
    uint64_t room = less(less(v->memory, v->minimum), v->target);
    return MIN(MIN(less(settled(v), v->memory / 16 * 3), room), v->memory / 8);
}

static uint64_t low_water(const struct policy_host *host)
{
    return host->total / 32;
}

// Frames that the machine has beyond its low water, once everything on its way has arrived.
static uint64_t to_grant(const struct policy_host *host, const struct policy_vm *vms,
                         unsigned count)
{
    uint64_t leaving = low_water(host);
    for (unsigned i = 0; i < count; i++)
        if (vms[i].takes_part)
            leaving += less(vms[i].balloon, vms[i].target);
    return less(host->spare, leaving);
}

static uint64_t grant(struct policy_vm *v, uint64_t budget, uint64_t *missing)
{
    uint64_t wanted = MIN(less(v->memory / 8, settled(v)), v->target);
    uint64_t n = MIN(MIN(wanted, budget), v->memory / 8);
    *missing += wanted - n;
    if (n != 0) {
        v->new_target = v->target - n;
        v->reason = POLICY_GETS;
    }
    return n;
}

static uint64_t machine_wants(const struct policy_host *host, const struct policy_vm *vms,
                              unsigned count)
{
    uint64_t coming = host->spare;
    bool waits = false;
    for (unsigned i = 0; i < count; i++) {
        waits |= vms[i].waits;
        if (vms[i].takes_part)
            coming += less(vms[i].target, vms[i].balloon);
    }
    return waits || coming < low_water(host) ? less(host->total / 16, coming) : 0;
}

void policy_decide(struct policy_host *host, struct policy_vm *vms, unsigned count)
{
    uint64_t missing = 0;
    uint64_t budget = to_grant(host, vms, count);
    for (unsigned i = 0; i < count; i++) {
        look(&vms[i]);
        if (vms[i].looks_short == POLICY_LOOKS)
            budget -= grant(&vms[i], budget, &missing);
    }
    host->wanted = missing + machine_wants(host, vms, count);
    // Who has most to spare gives first.
    for (uint64_t left = host->wanted; left != 0;) {
        struct policy_vm *richest = NULL;
        for (unsigned i = 0; i < count; i++)
            if (surplus(&vms[i]) > (richest != NULL ? surplus(richest) : 0))
                richest = &vms[i];
        if (richest == NULL)
            return;
        uint64_t n = MIN(surplus(richest), left);
        richest->new_target = richest->target + n;
        richest->reason = POLICY_GIVES;
        left -= n;
    }
}
