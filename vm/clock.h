// SPDX-License-Identifier: BSD-2-Clause
// A VM's time: guest TSC = host TSC + offset, frozen while the VM is paused; and timers in guest
// TSC.
#pragma once

#include "kernel/types.h"

struct vclock {
    uint64_t hz;     // ticks per second, as the guest is told
    uint64_t offset; // guest TSC - host TSC, modulo 2^64 (goes into the VMCS)
    bool frozen;
    uint64_t frozen_at; // guest TSC
};

// Starts at guest TSC 0, frozen.
void vclock_init(struct vclock *clock, uint64_t hz);
void vclock_freeze(struct vclock *clock);
void vclock_thaw(struct vclock *clock);
// Freezes it at the time at which it was frozen before: as if the last thaw had not been. For when
// nobody has seen the time since.
void vclock_refreeze(struct vclock *clock);
uint64_t vclock_now(const struct vclock *clock);
// Converts a guest TSC value to host TSC (UINT64_MAX stays). Saturates: a time before host TSC 0
// gives 0. A frozen clock never gets there, so every value gives UINT64_MAX.
uint64_t vclock_to_host(const struct vclock *clock, uint64_t guest);
// ticks of `hz` <-> ticks of a device clock of `device_hz`, rounded down, exact for all arguments;
// a result beyond 2^64 saturates to UINT64_MAX. from_hz must not be 0.
uint64_t vclock_scale(uint64_t ticks, uint64_t from_hz, uint64_t to_hz);

// A timer of a device model. Timers hang in the queue of a vCPU; whoever runs that vCPU fires those
// that are due before each entry.
struct vtimer {
    uint64_t deadline; // guest TSC, UINT64_MAX: off
    void (*fire)(void *device, uint64_t now);
    void *device;
    struct vtimer *next; // all timers of the queue
};

struct vtimer_queue {
    struct vtimer *first;
    uint64_t earliest; // smallest deadline
    bool *moved;       // set when vtimer_arm() changed `earliest`; may be NULL
};

void vtimer_queue_init(struct vtimer_queue *q);
// Links `t`, off. Once per queue and timer; a second time only changes the callback.
void vtimer_add(struct vtimer_queue *q, struct vtimer *t, void (*fire)(void *, uint64_t),
                void *device);
void vtimer_arm(struct vtimer_queue *q, struct vtimer *t, uint64_t deadline);
// Fires everything due at `now`, each timer at most once: one that its callback arms for the past
// fires at the next call, so no device can keep the host here. Fired timers are off until armed.
void vtimer_run(struct vtimer_queue *q, uint64_t now);
