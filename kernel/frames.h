// SPDX-License-Identifier: BSD-2-Clause
// The frame allocator and the accounting of all RAM.
//
// Every 4 KiB frame that Fusor took from UEFI has one struct frame and one state. A binary buddy
// allocator (orders 0..18, i.e. up to 1 GiB) stands behind small per-CPU caches of single frames
// and a pool of zeroed frames that idle CPUs fill. Nothing is scrubbed at boot.
//
// Accounting: a change of a frame's state and of the owner's counters is one accounting section of
// the CPU that does it (a per-CPU sequence number), so frames_snapshot() is exact without a global
// lock.
#pragma once

#include "kernel/types.h"

#define FRAME_MAX_ORDER 18u

enum frame_state {
    FRAME_NONE, // not RAM, or RAM that is not Fusor's to use
    FRAME_FREE,
    FRAME_FUSOR,   // Fusor's own: image, stacks, heap, boot files
    FRAME_TABLE,   // EPT tables
    FRAME_PRIVATE, // RAM of one VM
    FRAME_SHARED,  // guest-shared, read-only
    FRAME_STATES
};

// One VM's part of the accounting, in frames. Changed only inside accounting sections.
struct frame_account {
    _Atomic uint64_t private_frames;
    _Atomic uint64_t shared_gfns; // gfns that map a guest-shared frame
    _Atomic uint64_t ballooned;   // gfns in the balloon: they map nothing of their own
    // kernel/frame_hold.c; the allocator's lock.
    uint64_t held;
    struct frame_account *held_next;
};

// 32 bytes; one per 4 KiB of physical address space that holds RAM.
struct frame {
    uint8_t state;  // enum frame_state
    uint8_t order;  // of the free block this frame heads
    uint16_t flags; // low byte: the allocator's; high byte: the owner's, zero after frame_alloc
    uint32_t count; // references while shared, pins while private
    union {
        struct {
            uint32_t next; // free list links, frame numbers
            uint32_t prev;
        } free;
        uint64_t owner; // VM id while private
    };
    uint64_t version; // grows whenever a (VM, gfn) -> frame binding ends
    uint64_t gfn;     // while private: the guest frame it backs
};
_Static_assert(sizeof(struct frame) == 32, "the frame table costs 32 bytes per 4 KiB");

enum frame_flags {
    FRAME_ZEROED = 1u << 0,  // the caller needs it zero-filled
    FRAME_RESERVE = 1u << 1, // may take from the reserve (EPT tables, splits, Fusor's own)
};

struct frames_snapshot {
    uint64_t count[FRAME_STATES]; // frames per state
    uint64_t total;               // all frames taken from UEFI
    uint64_t saved;               // sum over shared frames of (sharers - 1)
    uint64_t file_frames;         // part of FRAME_FUSOR that holds boot files
};

// Set-up, on the boot CPU before any other runs. frames_init places the frame table for physical
// addresses below `end` into [table, table + frames_table_bytes(end)), which must be mapped and
// zero.
size_t frames_table_bytes(hpa_t end);
void frames_init(struct frame *table, hpa_t end);
// Hands [first, first + count) over as free, or as already used by Fusor. Ranges must not overlap.
void frames_add(hfn_t first, uint64_t count, enum frame_state state);
void frames_count_files(uint64_t count);
void frames_set_reserve(uint64_t count);
uint64_t frames_reserve(void);
// Grows whenever the reserve, of which something was taken, is full again.
uint64_t frames_reserve_epoch(void);

// The record of a frame that is known to be Fusor's RAM, without a look.
extern struct frame *frame_records;
static inline struct frame *frame_at(hfn_t n)
{
    return &frame_records[n.raw];
}

// Returns the record of `n`, or NULL when `n` is not RAM that Fusor owns.
struct frame *frame_of(hfn_t n);

// Allocates 2^order contiguous, aligned frames in `state`. For FRAME_PRIVATE `account` is the VM's
// and all its frames count there; else NULL. Returns 0 and sets *out, or E_NOMEM without effect.
int frame_alloc(enum frame_state state, unsigned order, unsigned flags,
                struct frame_account *account, hfn_t *out);
// Gives them back. State and account must be those of the allocation; frames of a block may also be
// freed one by one (order 0).
void frame_free(hfn_t first, unsigned order, struct frame_account *account);

// --- Holding, for a VM that begins anew (kernel/frame_hold.c) ---
//
// What a VM frees with frame_free_held() stays its own to take with frame_alloc_held(), as many
// frames as it freed, whoever else looks for one meanwhile, or does the same. Only FRAME_RESERVE
// may take them when the reserve is gone, because the VM itself needs page tables; what is there
// then goes to who has held longest, so that one of them gets on. Beyond that frame_alloc_held()
// takes what anybody may take and all but a quarter of the reserve, never what others hold.

// As frame_free() of private frames.
void frame_free_held(hfn_t first, unsigned order, struct frame_account *account);
// As frame_alloc() of one private frame. E_NOMEM without effect.
int frame_alloc_held(unsigned flags, struct frame_account *account, hfn_t *out);
// What the account still holds is anybody's again. To be called before the account goes.
void frames_hold_end(struct frame_account *account);

// --- Sharing, for fusion (kernel/frame_share.c) ---
//
// A shared frame counts the gfns that map it. While it is shared its `owner` and `gfn` are
// fusion's. Each call is one accounting section; the callers hold the gfn locks of the mappings
// they change, and the bucket lock of the frame where it says "last". Frames on their way out
// become FRAME_FUSOR: after the shootdown they go with frame_free(f, 0, NULL).

#define FRAME_COUNT_MAX (UINT32_MAX - 1)

// A private frame of `account` becomes shared with one sharer.
void frame_share(hfn_t f, struct frame_account *account);
// One more gfn maps `shared`: that of `duplicate`, a private frame of `account`, which becomes
// Fusor's. False without effect when the count is `limit` (at most FRAME_COUNT_MAX) already.
bool frame_share_join(hfn_t shared, hfn_t duplicate, struct frame_account *account, uint32_t limit);
// A gfn leaves `shared` for `fresh`, a frame in state FRAME_FUSOR that becomes private of
// `account`. False without effect when it is the last sharer.
bool frame_share_split(hfn_t shared, hfn_t fresh, struct frame_account *account);
// A gfn that was unmapped leaves `shared`. False without effect when it is the last sharer.
bool frame_share_leave(hfn_t shared, struct frame_account *account);
// The last sharer's gfn keeps the frame: it becomes private. Count 1, bucket lock held.
void frame_share_take_last(hfn_t shared, struct frame_account *account);
// The last sharer's gfn was unmapped: the frame becomes Fusor's. Count 1, bucket lock held.
void frame_share_end(hfn_t shared, struct frame_account *account);
// A block in state FRAME_FUSOR becomes private of `account`.
void frame_adopt(hfn_t first, unsigned order, struct frame_account *account);
// The reverse for one frame: its gfn is about to map another one. Ends its version.
void frame_disown(hfn_t f, struct frame_account *account);
// Ends the version of a private frame: whoever noted it will see that. Lock-free.
void frame_end_version(hfn_t f);

// Background work: zeroes a few free frames into the pool. Returns true when there is more to do.
bool frames_zero_some(void);

// A snapshot consistent across states, and with it the accounts in accounts[0..n): values are
// written to private_out / shared_out. Retries while sections are open; bounded because sections
// are short.
void frames_snapshot(struct frames_snapshot *out, struct frame_account *const *accounts, size_t n,
                     uint64_t *private_out, uint64_t *shared_out);
// The same with the gfns in balloons.
void frames_snapshot_ballooned(struct frames_snapshot *out, struct frame_account *const *accounts,
                               size_t n, uint64_t *private_out, uint64_t *shared_out,
                               uint64_t *ballooned_out);

// `gfns` more gfns of the account are in its balloon; negative: fewer. Before the first and after
// the second they are untouched, so that private + shared + ballooned is never more than there is.
void frame_balloon(struct frame_account *account, int64_t gfns);

// Free frames, wherever they are, and those beyond the reserve: a glance, for policies.
uint64_t frames_free(void);
uint64_t frames_beyond_reserve(void);
// At most a quarter of the reserve is free.
bool frames_reserve_low(void);
// How many of the free ones are not for everybody: the reserve, and what is held.
uint64_t frames_floor(void);
