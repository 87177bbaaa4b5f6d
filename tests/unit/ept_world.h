// SPDX-License-Identifier: BSD-2-Clause
// What stands around ept/ in its host tests: frames with injected failure and leak tracking, locks
// that notice misuse, and the CPU's page walker.
#pragma once

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "ept_cpus.h"
#include "ept/entry.h"
#include "ept/ept.h"
#include "fake.h"
#include "kernel/error.h"
#include "kernel/frames.h"
#include "kernel/memory.h"

#define WORLD_FRAMES 8192u

static bool frame_used[WORLD_FRAMES];
static unsigned frames_live;
static unsigned frames_allocated;
static unsigned fail_at; // the n-th allocation from now fails; 0: none

int frame_alloc(enum frame_state state, unsigned order, unsigned flags,
                struct frame_account *account, hfn_t *out)
{
    assert_int_equal(state, FRAME_TABLE);
    assert_int_equal(order, 0);
    assert_int_equal(flags, FRAME_ZEROED | FRAME_RESERVE);
    assert_null(account);
    if (fail_at != 0 && --fail_at == 0)
        return E_NOMEM;
    for (unsigned tries = 0; tries < WORLD_FRAMES; tries++) {
        static unsigned hint;
        unsigned n = hint++ % WORLD_FRAMES;
        if (n == 0 || frame_used[n])
            continue;
        frame_used[n] = true;
        frames_live++;
        frames_allocated++;
        *out = hfn(n);
        memset(hfn_to_pointer(*out), 0, PAGE_SIZE);
        return 0;
    }
    return E_NOMEM;
}

void frame_free(hfn_t first, unsigned order, struct frame_account *account)
{
    assert_int_equal(order, 0);
    assert_null(account);
    assert_in_range(first.raw, 1, WORLD_FRAMES - 1);
    assert_true(frame_used[first.raw]);
    frame_used[first.raw] = false;
    frames_live--;
    memset(hfn_to_pointer(first), 0xa5, PAGE_SIZE);
}

void spin_init(struct spinlock *lock, const char *name, enum lock_rank rank)
{
    *lock = (struct spinlock){.name = name, .rank = (uint8_t)rank};
}

static struct spinlock *locks_taken[4];
static unsigned locks_held;

void spin_lock_nested(struct spinlock *lock)
{
    assert_int_equal(lock->rank, RANK_GFN);
    assert_int_equal(lock->owner, 0); // else this CPU would wait for itself
    lock->owner = 1;
    locks_taken[locks_held++] = lock;
}

void spin_lock(struct spinlock *lock)
{
    assert_int_equal(locks_held, 0);
    spin_lock_nested(lock);
}

void spin_unlock(struct spinlock *lock)
{
    assert_int_equal(lock->owner, 1);
    lock->owner = 0;
    locks_held--;
}

static void world_start(unsigned cpu_number)
{
    fake_machine(WORLD_FRAMES * PAGE_SIZE, cpu_number);
    memset(frame_used, 0, sizeof(frame_used));
    frames_live = 0;
    frames_allocated = 0;
    fail_at = 0;
    locks_held = 0;
    ept_cpus_start();
    fake_invept_hook = NULL;
    fake_relax_hook = NULL;
}

static inline void world_end_ept(struct ept *ept)
{
    while (ept_destroy(ept, 64) == E_AGAIN)
        ;
    assert_int_equal(ept->table_frames, 0);
}
