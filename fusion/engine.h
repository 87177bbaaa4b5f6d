// SPDX-License-Identifier: BSD-2-Clause
// The inside of fusion: which VMs take part, in which group, and what the files share.
//
// Locks, outermost first: fusion_members_lock (RANK_VM: slots and groups, never on a hot path); gfn
// locks, one or a pair through ept_lock_pair; one bucket lock of the index. Intake shoots down
// without a lock; a split and the clearing of dirty flags do it with their gfn lock held (a CPU
// that leaves the guest takes no lock before it acknowledges).
//
// A shared frame's record: count = gfns that map it, owner = group, gfn = key in the index. It is
// written before the index names the frame and stays as long as the frame is shared.
#pragma once

#include <stdatomic.h>

#include "ept/ept.h"
#include "fusion/fusion.h"
#include "fusion/index.h"
#include "kernel/frames.h"
#include "vm/vm_object.h"

// Sharers of one frame at most; a full one starts a duplicate (invariant 4). Tests lower it.
extern uint32_t fusion_sharers_max;

// --- members.c ---

extern const struct vm_memory_ops fusion_memory_ops;

// Counters are changed with relaxed atomics by whoever works for the VM.
struct fusion_counters {
    _Atomic uint64_t received, fused, unmatched, rejected[FUSION_REJECTS];
    _Atomic uint64_t fused_by_class[FUSOR_CLASSES];
    _Atomic uint64_t splits, futile_splits, last_sharers, cancelled, backoff, ticks;
    _Atomic uint64_t large_fused, scanned;
};

struct fusion_backoff; // backoff.c

struct fusion_vm {
    struct vm *vm;             // NULL: the slot is free
    uint8_t slot;              // own number: fusion_vms[slot]
    uint8_t group;             // while its memory exists
    _Atomic bool active;       // its memory exists
    _Atomic uint32_t users;    // who pinned it
    _Atomic int mode;          // enum fusion_mode
    _Atomic uint64_t repeated; // entry + 1 that ended the last chunk because its gfn was in it
    _Atomic uint64_t tokens_full_at; // budget.c: when the budget is whole again, TSC
    struct fusion_backoff *backoff;
    uint8_t *collapse;           // per 2 MiB range: service.c's state, 0: nothing to do
    gfn_t scan_next, split_next; // service.c's places in the VM
    uint64_t scan_credit;
    struct fusion_counters count;
};

extern struct fusion_vm fusion_vms[INDEX_SLOTS];
_Static_assert(INDEX_SLOTS >= VM_MAX, "a slot for every VM");

static inline struct fusion_vm *fusion_of(struct vm *vm)
{
    return vm->fusion;
}

// Keeps the memory of the VM in `slot` from being destroyed until fusion_unpin; NULL when there is
// none. Any context; whoever holds a pin for long yields, and gives it up soon.
struct fusion_vm *fusion_pin(uint8_t slot);
void fusion_unpin(struct fusion_vm *f);

// Finds a VM that has had memory by its name, NULL: none; after it members are locked (RANK_VM)
// until fusion_found.
struct fusion_vm *fusion_find(const char *vm_name);
void fusion_found(struct fusion_vm *f);

// The group whose name is `name` (config key fusion-group), or -1. For the census.
int fusion_group_find(const char *name);

static inline void fusion_count(_Atomic uint64_t *counter, uint64_t n)
{
    atomic_fetch_add_explicit(counter, n, memory_order_relaxed);
}

static inline void fusion_rejected(struct fusion_vm *f, enum fusion_reject why)
{
    fusion_count(&f->count.rejected[why], 1);
}

// --- backoff.c: gfns that are split again and again are left alone for ever longer ---

// A table for a VM of `pages` pages, or NULL.
struct fusion_backoff *backoff_create(uint64_t pages);
void backoff_destroy(struct fusion_backoff *b);
// A shared gfn was split. `page_table`: the guest's page walk wrote to it. Returns whether it had
// been split before; *begun when its hints are ignored from now on.
bool backoff_note_split(struct fusion_backoff *b, gfn_t gfn, bool page_table, uint64_t now,
                        bool *begun);
// True while hints for gfn are to be ignored.
bool backoff_ignores(const struct fusion_backoff *b, gfn_t gfn, uint64_t now);

// --- budget.c: how many hints a VM may send ---

// Takes up to `wanted` from the VM's budget, but at least `least`; returns how many it may work on,
// 0: none now.
unsigned budget_take(struct fusion_vm *f, unsigned wanted, unsigned least, uint64_t now);

// --- intake.c ---

// fusion_hint without the budget, for the scanner too.
int64_t fusion_work(struct fusion_vm *f, const uint64_t *entries, unsigned count);

// --- fuse.c: steps 3 to 5 of design section 3 for one chunk ---

enum fusion_outcome {
    OUTCOME_NONE,     // an examined hint: frame and key are known
    OUTCOME_REJECTED, // counted already
    OUTCOME_UNMATCHED,
    OUTCOME_MATCHED, // has a partner: a candidate, or shared frames in the index
    OUTCOME_FUSED,
};

struct fusion_item {
    gfn_t gfn;
    hfn_t frame;
    uint64_t key;
    uint32_t version;     // of `frame` when it was protected
    uint8_t class;        // enum fusor_class
    uint8_t outcome;      // enum fusion_outcome
    bool shared_known;    // the index has shared frames with this key
    bool has_candidate;   // and `candidate`
    bool protected;       // our side is write-protected by this chunk
    bool other_protected; // and the candidate's
    gfn_t other_gfn;
    struct index_candidate candidate;
};

struct fusion_chunk {
    struct fusion_vm *self;
    unsigned count;
    uint64_t pinned; // bit per slot: fusion_pin was taken for this chunk
    struct fusion_item item[FUSION_CHUNK];
};

struct page_ops;
// Write-protects both sides of every matched item, one shootdown per VM, compares, maps, shoots
// down, frees. Inside a page_ops batch; no lock held.
void fuse_chunk(struct fusion_chunk *chunk, const struct page_ops *ops);
// The VM of a candidate, pinned for the rest of the chunk, or NULL.
struct fusion_vm *chunk_partner(struct fusion_chunk *chunk, uint8_t slot);
void chunk_unpin(struct fusion_chunk *chunk);
// Splits the large leaf that covers gfn, if there is one. 0, or E_NOMEM without effect. No lock.
int fusion_make_small(struct vm *vm, gfn_t gfn);
// Under the gfn lock of its only mapping: a private frame becomes shared and is indexed.
void fusion_begin_sharing(hfn_t frame, uint64_t key, uint8_t group, struct frame_account *account);

// --- range.c: whole 2 MiB ranges ---

// Fuses the aligned range at gfn of chunk->self with an equal one, if both are large leaves. Inside
// no batch. Returns how many of its pages, from the first on, are fused now, and counted.
unsigned range_fuse(struct fusion_chunk *chunk, gfn_t gfn, unsigned class);

// --- split.c ---

enum split_reason {
    SPLIT_WRITTEN,    // by the guest, or by Fusor for it
    SPLIT_PAGE_TABLE, // by the CPU's walk of guest page tables
    SPLIT_ORDERED,    // fusion was switched off
};

// Makes gfn private if it is shared or a candidate; `flags` for frame_alloc. 0 also when it was
// private already; E_NOMEM without effect. No lock held.
int split_gfn(struct fusion_vm *f, gfn_t gfn, unsigned flags, enum split_reason reason);
// A gfn that mapped the shared frame is unmapped and shot down: leaves it.
void split_release(struct vm *vm, hfn_t frame);
int split_init(void);

// --- service.c: the fiber that scans, collapses and splits in the background ---

// The 2 MiB range of gfn may have become whole again: it is looked at.
void service_note_range(struct fusion_vm *f, gfn_t gfn);
void service_wake(void);
int service_init(void);
