// SPDX-License-Identifier: BSD-2-Clause
// Ticket spinlocks with ranks.
//
// Fusor runs handlers of interrupts with no lock: they move bytes and set flags. So a lock needs no
// interrupt masking. A CPU takes locks in rising rank only (equal rank only through
// spin_lock_nested, whose caller states its own order); debug builds and host tests check it.
#pragma once

#include "kernel/types.h"

enum lock_rank {
    RANK_SHELL,     // console state
    RANK_VM_TABLE,  // list of VMs
    RANK_VM,        // one VM's lifecycle state
    RANK_DEVICE,    // device models of one VM
    RANK_GFN,       // a 2 MiB range of one EPT (equal rank order: VM id, then range)
    RANK_BUCKET,    // content index (fusion)
    RANK_SCHED,     // run queue
    RANK_HEAP,      // small objects
    RANK_FRAMES,    // frame allocator
    RANK_SHOOTDOWN, // epoch bookkeeping
    RANK_LOG,       // log ring, serial output ring
    RANK_COUNT
};

struct spinlock {
    uint16_t next;
    uint16_t owner;
    uint8_t rank;
    const char *name;
};

#define SPINLOCK_INIT(lock_name, lock_rank)                                                        \
    {                                                                                              \
        .rank = (lock_rank), .name = (lock_name)                                                   \
    }

void spin_init(struct spinlock *lock, const char *name, enum lock_rank rank);
void spin_lock(struct spinlock *lock);
// For a second lock of the same rank; the caller documents the order.
void spin_lock_nested(struct spinlock *lock);
bool spin_trylock(struct spinlock *lock);
void spin_unlock(struct spinlock *lock);
// True when this CPU holds no lock at all; for CHECKs at places that may wait.
bool spin_none_held(void);
