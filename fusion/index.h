// SPDX-License-Identifier: BSD-2-Clause
// The content index: from the hash of a page to the frames that had it.
//
// One table for all groups, with the group in every key. An entry is 16 bytes; a bucket has 8. Two
// kinds: a *shared* frame, and a *candidate* (frame, version): nothing but a memory that a VM's
// private frame had this hash. A candidate is stale, and its place free, as soon as its frame has
// another version or is no longer private; nobody has to remove it.
//
// Locks: bucket locks (RANK_BUCKET, striped); the caller takes them with index_lock where the
// comment says so. A shared entry is removed under the bucket lock before its frame stops being
// shared, so whoever holds the lock and sees it may use the frame (invariant 5).
#pragma once

#include "kernel/types.h"

#define INDEX_BUCKET 8u
#define INDEX_SLOTS  32u // VMs (slot numbers) that may have candidates

struct index_candidate {
    hfn_t frame;
    uint32_t version;
    uint8_t slot;
};

// Allocates the table for a machine with `frames` frames (about 0.5 % of them). E_NOMEM.
int index_init(uint64_t frames);
void index_exit(void); // host tests
// Most candidates that VM `slot` may have; beyond it only its own entries make room. Called when a
// VM joins; the count of its entries starts at what is still there.
void index_set_quota(uint8_t slot, uint64_t entries);

// An eighth of the table: the least quota with which a VM that has reached it finds, in a sweep, an
// entry of its own to give up (128 entries are looked at). What VMs have beyond their live
// candidates is stale, and anybody may take its place, so quotas may add up to more than the table.
uint64_t index_least_quota(void);

// A page's key in a group (0..255): mixes both, so that groups do not meet.
uint64_t index_key(uint64_t hash, uint8_t group);

void index_lock(uint64_t key);
void index_unlock(uint64_t key);

// Lock held: the shared frames with this key, at most INDEX_BUCKET. Returns how many.
unsigned index_shared(uint64_t key, uint8_t group, hfn_t out[INDEX_BUCKET]);
// Lock held: true and one live candidate with this key, but not of frame `self`. *known is true
// when `self` itself is remembered under this key with its present version.
bool index_candidate(uint64_t key, uint8_t group, hfn_t self, struct index_candidate *out,
                     bool *known);
// Lock held: remembers a candidate. Place: free or stale, else the same VM's oldest, else, while
// the VM is below its quota, nothing. False when there was no place; at the quota the VM loses an
// entry elsewhere for it (bounded sweep).
bool index_remember(uint64_t key, uint8_t group, const struct index_candidate *candidate);
// Lock held: forgets that candidate, if it is there.
void index_forget(uint64_t key, const struct index_candidate *candidate);
// Lock held: `frame` is shared from now on; takes the place of its own candidate entry if that is
// there, else free, stale, or any candidate's. False when 8 shared frames fill the bucket: then it
// is shared but cannot be found.
bool index_add_shared(uint64_t key, uint8_t group, hfn_t frame);
// Lock held. Returns whether it was there.
bool index_remove_shared(uint64_t key, hfn_t frame);

// The first look at a hinted page, in one pass and half the instructions of the calls above: takes
// the lock, looks for partners, remembers `self` when there is none, gives the lock back. What it
// found is a hint like the candidates are: a shared frame must be looked up again under the lock
// before it is used.
enum index_answer {
    INDEX_PARTNERS,   // *out says which; `self` was not remembered
    INDEX_KNOWN,      // no partner; `self` was remembered before
    INDEX_REMEMBERED, // no partner; `self` is remembered now
    INDEX_NO_PLACE,   // no partner, and no place for `self`
};
struct index_partners {
    unsigned shared; // frames of frame[] in use
    bool found;      // candidate is filled in
    hfn_t frame[INDEX_BUCKET];
    struct index_candidate candidate;
};
enum index_answer index_offer(uint64_t key, uint8_t group, const struct index_candidate *self,
                              struct index_partners *out);

struct index_counts {
    uint64_t buckets, shared, candidates; // entries, stale candidates included
    uint64_t of_slot[INDEX_SLOTS];
};
void index_count(struct index_counts *out);
