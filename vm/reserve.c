// SPDX-License-Identifier: BSD-2-Clause
// The reserve in parts. Every count moves in one step, from what it is to what it may become: one
// that is raised first and taken back when it was too much can meet another vCPU's reset of it in
// between, end below zero, and deny the VM its share for good.
#include "vm/reserve.h"

#include "kernel/error.h"
#include "vm/vm_object.h"

// vm->split_part: how many frames the VM's splits took since the reserve was full last, below the
// number of that time.
#define PART_BITS  32u
#define PART_TAKEN UINT64_C(0xffffffff)

static bool take_part(struct vm *vm)
{
    uint64_t old = vm->split_part, taken, epoch;
    do {
        epoch = frames_reserve_epoch() << PART_BITS;
        taken = (old & ~PART_TAKEN) == epoch ? old & PART_TAKEN : 0;
        if (taken >= frames_reserve() / 2 / MAX(vm_memories, 1u))
            return false;
    } while (!atomic_compare_exchange_weak(&vm->split_part, &old, epoch | (taken + 1)));
    return true;
}

static void return_part(struct vm *vm)
{
    uint64_t old = vm->split_part;
    while ((old & PART_TAKEN) != 0 && !atomic_compare_exchange_weak(&vm->split_part, &old, old - 1))
        ;
}

bool reserve_credit(struct vm *vm)
{
    if (vm->balloon_target <= vm->account.ballooned || !vm->balloon_driver)
        return false;
    uint64_t taken = vm->reserve_taken;
    do {
        if (taken >= BALLOON_RESERVE)
            return false;
    } while (!atomic_compare_exchange_weak(&vm->reserve_taken, &taken, taken + 1));
    return true;
}

void reserve_repay(struct vm *vm, uint64_t count)
{
    uint64_t taken = vm->reserve_taken;
    while (!atomic_compare_exchange_weak(&vm->reserve_taken, &taken, taken - MIN(taken, count)))
        ;
}

void reserve_return(struct vm *vm, enum reserve_share share)
{
    if (share == RESERVE_PART)
        return_part(vm);
    else if (share == RESERVE_CREDIT)
        reserve_repay(vm, 1);
}

bool reserve_has_table(struct vm *vm, gfn_t gfn)
{
    if (__builtin_expect(!frames_reserve_low(), 1) || vm->restarting)
        return true;
    struct ept_leaf leaf = ept_lookup(&vm->ept, gfn);
    return leaf.present || leaf.level == EPT_4K;
}

bool reserve_stands_in(void)
{
    struct frames_snapshot s;
    if (vm_overcommits())
        return false;
    frames_snapshot(&s, NULL, 0, NULL, NULL);
    return s.count[FRAME_FREE] + MIN(s.count[FRAME_TABLE], frames_reserve() / 2) > frames_floor();
}

int reserve_for_split(struct vm *vm, hfn_t *frame, enum reserve_share *share)
{
    *share = RESERVE_NONE;
    if (reserve_stands_in() && frame_alloc(FRAME_FUSOR, 0, FRAME_RESERVE, NULL, frame) == 0)
        return 0;
    *share = take_part(vm) ? RESERVE_PART : reserve_credit(vm) ? RESERVE_CREDIT : RESERVE_NONE;
    if (*share != RESERVE_NONE && frame_alloc(FRAME_FUSOR, 0, FRAME_RESERVE, NULL, frame) == 0)
        return 0;
    reserve_return(vm, *share);
    *share = RESERVE_NONE;
    return E_NOMEM;
}
