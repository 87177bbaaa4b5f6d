// SPDX-License-Identifier: BSD-2-Clause
#include "kernel/lock.h"

#include "kernel/panic.h"
#include "kernel/percpu.h"

// The rank check costs a few instructions per lock; builds without FUSOR_DEBUG only count the locks
// held, for spin_none_held().
#ifdef FUSOR_DEBUG
static void check_rank(const struct spinlock *lock, bool nested)
{
    uint32_t above = this_cpu()->lock_ranks >> (lock->rank + (nested ? 1u : 0u));
    if (above != 0)
        panic("lock order: \"%s\" (rank %u) taken while ranks 0x%x are held", lock->name,
              lock->rank, this_cpu()->lock_ranks);
}

static void note_locked(const struct spinlock *lock)
{
    struct cpu *cpu = this_cpu();
    cpu->lock_nesting[lock->rank]++;
    cpu->lock_ranks |= 1u << lock->rank;
}

static void note_unlocked(const struct spinlock *lock)
{
    struct cpu *cpu = this_cpu();
    if (cpu->lock_nesting[lock->rank] == 0 || lock->next == lock->owner)
        panic("lock \"%s\" released on a CPU that does not hold it", lock->name);
    if (--cpu->lock_nesting[lock->rank] == 0)
        cpu->lock_ranks &= ~(1u << lock->rank);
}
#else
static void check_rank(const struct spinlock *lock, bool nested)
{
    (void)lock;
    (void)nested;
}

static void note_locked(const struct spinlock *lock)
{
    (void)lock;
}

static void note_unlocked(const struct spinlock *lock)
{
    (void)lock;
}
#endif

void spin_init(struct spinlock *lock, const char *name, enum lock_rank rank)
{
    *lock = (struct spinlock)SPINLOCK_INIT(name, (uint8_t)rank);
}

static void acquire(struct spinlock *lock)
{
    uint16_t ticket = __atomic_fetch_add(&lock->next, 1, __ATOMIC_RELAXED);
    while (__atomic_load_n(&lock->owner, __ATOMIC_ACQUIRE) != ticket)
        cpu_relax();
    this_cpu()->locks_held++;
    note_locked(lock);
}

void spin_lock(struct spinlock *lock)
{
    check_rank(lock, false);
    acquire(lock);
}

void spin_lock_nested(struct spinlock *lock)
{
    check_rank(lock, true);
    acquire(lock);
}

// Needs no rank check: who does not wait cannot deadlock.
bool spin_trylock(struct spinlock *lock)
{
    uint16_t owner = __atomic_load_n(&lock->owner, __ATOMIC_RELAXED);
    uint16_t expected = owner;
    if (!__atomic_compare_exchange_n(&lock->next, &expected, (uint16_t)(owner + 1), false,
                                     __ATOMIC_ACQUIRE, __ATOMIC_RELAXED))
        return false;
    this_cpu()->locks_held++;
    note_locked(lock);
    return true;
}

void spin_unlock(struct spinlock *lock)
{
    note_unlocked(lock);
    this_cpu()->locks_held--;
    __atomic_store_n(&lock->owner, (uint16_t)(lock->owner + 1), __ATOMIC_RELEASE);
}

bool spin_none_held(void)
{
    return this_cpu()->locks_held == 0;
}
