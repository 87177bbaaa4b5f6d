// SPDX-License-Identifier: BSD-2-Clause
// What the files of the frame allocator share. Nobody else includes this.
//
// Where a free frame can be: in the buddy's lists, in one CPU's cache (plain or zeroed), in the
// pool of zeroed frames, or for a moment in the hands of frames_zero_some(). All of them count as
// FRAME_FREE.
//
// Locks: frames.lock (RANK_FRAMES) covers the buddy, the pool and every movement between the places
// above. Each cache has a one-word lock of its own, a leaf: nothing is taken and nothing is called
// under it. Order: frames.lock, then one cache.
//
// Reserve: the frames of the reserve are those in the buddy. Caches and pool are filled only from
// what the buddy has beyond the reserve, so an allocation from a cache needs no count; only while
// frames.reserve_short says that the buddy itself is below the reserve do allocations without
// FRAME_RESERVE and all frees go to the buddy, where the check is exact.
#pragma once

#include <stdatomic.h>

#include "kernel/frames.h"
#include "kernel/lock.h"
#include "kernel/percpu.h"

#ifndef FUSOR_DEBUG
#define FUSOR_DEBUG 0
#endif

#define FRAME_NIL         UINT32_MAX // no frame; frame numbers are 32 bits wide, 16 TiB
#define FRAME_CACHE_MAX   48u        // frames in one stack of a cache
#define FRAME_BATCH       32u        // moved at once between cache and buddy
#define FRAME_BATCH_ORDER 5u
#define FRAME_ZERO_BATCH  16u   // zeroed by one call of frames_zero_some()
#define FRAME_ZERO_MAX    1024u // frames in the pool
#define FRAME_POISON      0xdbu

// From this order on (2 MiB) a failure is an everyday event, because callers fall back to single
// frames: the caches are collected for one in FRAME_LARGE_BACKOFF failures only.
#define FRAME_LARGE_ORDER   9u
#define FRAME_LARGE_BACKOFF 64u

// struct frame.flags: the low byte is the allocator's, the high byte the owner's. FRAME_F_HEAD is
// looked at without the frame being owned, so it is never set outside the buddy's lists.
enum frame_private_flags {
    FRAME_F_HEAD = 1u << 0,   // first frame of a block in the buddy's lists
    FRAME_F_POISON = 1u << 1, // debug: filled with FRAME_POISON
};

enum frame_cache_kind { CACHE_PLAIN, CACHE_ZEROED, CACHE_KINDS };
_Static_assert((unsigned)FRAME_ZEROED == (unsigned)CACHE_ZEROED, "the flag selects the stack");

struct frame_stack {
    uint32_t count;
    uint32_t frame[FRAME_CACHE_MAX];
};

// Everything one CPU has of its own, on cache lines of its own.
struct frame_cpu {
    _Atomic uint32_t busy; // the cache's lock
    // Accounting: odd while a section is open; only this CPU writes these.
    _Atomic uint32_t sequence;
    _Atomic int64_t delta[FRAME_STATES];
    _Atomic int64_t saved;
    struct frame_stack stack[CACHE_KINDS];
} __attribute__((aligned(128)));

struct frames {
    // Read by every allocation, written rarely.
    struct frame *table;
    uint64_t limit; // frame numbers below it are in the table
    uint64_t reserve;
    _Atomic uint64_t held;             // of all accounts: as if the reserve were so much larger
    _Atomic uint64_t reserve_epoch;    // how often the reserve was filled up
    _Atomic bool reserve_short;        // buddy_free < reserve + held
    _Atomic uint32_t snapshot_waiting; // readers that sections have to let through

    // Under the lock; buddy_free and zero_count are also glanced at without.
    __attribute__((aligned(64))) struct spinlock lock;
    _Atomic uint64_t buddy_free;
    uint32_t nonempty; // bit n: the list of order n has a block
    uint32_t heads[FRAME_MAX_ORDER + 1];
    uint32_t zero_head;
    _Atomic uint32_t zero_count;
    uint64_t zero_started;  // batches taken for zeroing
    uint64_t zero_finished; // batches that have arrived in the pool
    uint32_t large_failures;
    struct frame_account *holders; // who holds frames, the longest first

    _Atomic uint64_t total;
    _Atomic uint64_t file_frames;
};

_Static_assert(sizeof(struct frame_cpu) == 512, "a power of two, for the sake of frame_alloc");

extern struct frames frames;
extern struct frame_cpu frame_cpus[MAX_CPUS];

static inline struct frame_cpu *frame_this_cpu(void)
{
    struct frame_cpu *c = &frame_cpus[cpu_index()];
    // Keeps the compiler from computing the address anew for every field.
    __asm__("" : "+r"(c));
    return c;
}

// What has to stay in the buddy, but for those who may take from the reserve.
static inline uint64_t frame_floor(void)
{
    return frames.reserve + frames.held;
}

static inline struct frame *frame_record(uint32_t n)
{
    return &frames.table[n];
}

// --- frame_account.c ---

// A section: short, without a lock taken or a call inside. Sections do not nest. What begin returns
// is for end.
static inline uint32_t frame_section_begin(struct frame_cpu *c)
{
    while (
        __builtin_expect(atomic_load_explicit(&frames.snapshot_waiting, memory_order_relaxed), 0))
        cpu_relax();
    uint32_t s = atomic_load_explicit(&c->sequence, memory_order_relaxed);
    atomic_store_explicit(&c->sequence, s + 1, memory_order_relaxed);
    atomic_thread_fence(memory_order_release);
    return s;
}

static inline void frame_section_end(struct frame_cpu *c, uint32_t begun)
{
    atomic_store_explicit(&c->sequence, begun + 2, memory_order_release);
}

static inline void frame_section_add(struct frame_cpu *c, enum frame_state state, int64_t n)
{
    int64_t v = atomic_load_explicit(&c->delta[state], memory_order_relaxed);
    atomic_store_explicit(&c->delta[state], v + n, memory_order_relaxed);
}

// `count` frames go from one state to another, as one section; with an account, its private frames
// change by `private_change`.
static inline void frame_account_move(struct frame_cpu *c, enum frame_state from,
                                      enum frame_state to, int64_t count,
                                      struct frame_account *account, int64_t private_change)
{
    uint32_t begun = frame_section_begin(c);
    frame_section_add(c, from, -count);
    frame_section_add(c, to, count);
    if (account != NULL)
        atomic_fetch_add_explicit(&account->private_frames, (uint64_t)private_change,
                                  memory_order_relaxed);
    frame_section_end(c, begun);
}

// --- frame_buddy.c; frames.lock is held ---

void frame_buddy_init(void);
// Gives a block back and merges it with its free neighbours.
void frame_buddy_give(uint32_t n, unsigned order);
// Takes a block out, splitting a larger one; FRAME_NIL when there is none.
uint32_t frame_buddy_take(unsigned order);
// To be called after buddy_free or the reserve changed.
void frame_buddy_note_reserve(void);

// --- frame_cache.c ---

// Takes a frame from this CPU's cache. Returns false when there is none.
static inline bool frame_cache_pop(struct frame_cpu *c, unsigned kind, uint32_t *n)
{
    struct frame_stack *s = &c->stack[kind];
    __asm__("" : "+r"(s));
    while (__builtin_expect(atomic_exchange_explicit(&c->busy, 1, memory_order_acquire) != 0, 0))
        cpu_relax();
    uint32_t left = s->count - 1;
    if (__builtin_expect(left == UINT32_MAX, 0)) {
        atomic_store_explicit(&c->busy, 0, memory_order_release);
        return false;
    }
    *n = s->frame[left];
    s->count = left;
    atomic_store_explicit(&c->busy, 0, memory_order_release);
    return true;
}

// The way round the cache: buddy, pool, then everything that lies in caches. *zeroed says whether
// the frame is zero already. Fills this CPU's cache on the way. holder: NULL, or who may have what
// it holds.
uint32_t frame_take(unsigned order, unsigned flags, struct frame_account *holder, bool *zeroed);
// Gives one free frame to this CPU's cache, or a block to the buddy.
void frame_give(uint32_t n, unsigned order);

// --- frame_hold.c; frames.lock is held ---

// What `holder` has to leave in the buddy.
uint64_t frame_hold_floor(const struct frame_account *holder);
// It has taken one frame, of those it holds if there are any.
void frame_hold_taken(struct frame_account *holder);

// --- frames.c, for frame_hold.c ---

int frame_alloc_slowly(enum frame_state state, unsigned order, unsigned flags,
                       struct frame_account *account, struct frame_account *holder, hfn_t *out);
// The block's records and the accounting, as the first half of a free.
void frame_release(hfn_t first, unsigned order, struct frame_account *account);

// --- frame_zero.c ---

void frame_zero_init(void);
// frames.lock is held; the pool is not empty.
uint32_t frame_zero_pop(void);
void frame_zero_push(uint32_t n);

// --- frame_poison.c: debug builds ---

// Fills free frames, or verifies on their way out that nobody wrote to them since.
void frame_poison_fill(uint32_t n, uint64_t count);
void frame_poison_verify(uint32_t n, uint64_t count);
void frame_poison_verify_zero(uint32_t n);
