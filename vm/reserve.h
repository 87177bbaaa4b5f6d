// SPDX-License-Identifier: BSD-2-Clause
// Who may have what of the reserve when nothing else is free (design section 5).
//
// Fusor's own needs, with the EPT tables of VMs that begin, may have all of it; the tables that a
// guest makes necessary by looking around in its memory all but a quarter. A VM's splits may have a
// part: half of the reserve divided by the VMs that have memory. So the other half is always there
// for the operator's commands and for page tables, no VM has it all, and once the parts are used up
// every VM waits for the same frames: those beyond the reserve, which what is freed fills up first.
// When it is full again the parts are, too.
//
// Beside that a VM whose balloon target is not reached has a credit, for splits and first touches:
// its driver needs some memory to find pages it can give. What it gives counts against it.
//
// With overcommit = off all that VMs may touch was there when they started, but page tables were
// not counted: they are for the reserve to serve. Those that were made while there were other
// frames have taken some of what was promised, so as much of the reserve, but no more than half of
// it, stands in for that.
//
// No function takes a lock or needs one.
#pragma once

#include "ept/ept.h"
#include "kernel/frames.h"

struct vm;

#define BALLOON_RESERVE 256u // frames of credit

// What a frame was taken from.
enum reserve_share { RESERVE_NONE, RESERVE_PART, RESERVE_CREDIT };

// A frame in state FRAME_FUSOR for a split of the VM's, after none was found beyond the reserve,
// and what it counts as. E_NOMEM: the split has to wait.
int reserve_for_split(struct vm *vm, hfn_t *frame, enum reserve_share *share);
// That frame was not there, or was not needed after all.
void reserve_return(struct vm *vm, enum reserve_share share);

// May the guest have the page table for gfn, if there is none? A hint; no lock.
bool reserve_has_table(struct vm *vm, gfn_t gfn);

// Is there a frame of the reserve that stands in for what page tables have taken?
bool reserve_stands_in(void);

// May a first touch take one frame more than the VM would get else? It counts, until it is
// returned.
bool reserve_credit(struct vm *vm);
// The VM has given `count` frames: that much of its credit is there again.
void reserve_repay(struct vm *vm, uint64_t count);
