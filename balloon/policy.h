// SPDX-License-Identifier: BSD-2-Clause
// auto-balloon: which targets move, from what guests and the machine look like. All in pages.
#pragma once

#include "kernel/types.h"

enum policy_reason { POLICY_STAYS, POLICY_GIVES, POLICY_GETS };

struct policy_vm {
    // What is known of it.
    bool takes_part; // runs, has a driver, and has reported
    bool waits;      // a vCPU waits for memory
    uint64_t memory, minimum, target, balloon;
    uint64_t available; // as its driver says; bounded here by what it can have
    // In the balloon when it said so: what came or went since is not in `available` yet, however
    // seldom the driver reports.
    uint64_t reported_balloon;
    // Looks in a row at which it was short, or had memory to spare: kept from look to look.
    uint8_t looks_short, looks_spare;
    // What was decided.
    enum policy_reason reason;
    uint64_t new_target;
};

struct policy_host {
    uint64_t total;
    uint64_t spare; // free frames beyond the reserve
    // What was decided: frames that are wanted from guests, before any gave.
    uint64_t wanted;
};

// One look. Guests that are short get balloon back while the machine has frames for it; what is
// missing, and what the machine itself is short of, is asked of those that have memory to spare.
void policy_decide(struct policy_host *host, struct policy_vm *vms, unsigned count);
