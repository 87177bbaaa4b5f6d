// SPDX-License-Identifier: BSD-2-Clause
// Who may have what of the reserve when nothing else is free (design section 5).
//
// EPT tables and Fusor's own needs may have all of it. A VM's splits may have a part: half of the
// reserve divided by the VMs that have memory. So the other half is always there for the operator's
// commands and for page tables, no VM has it all, and once the parts are used up every VM waits for
// the same frames: those beyond the reserve, which what is freed fills up first. When it is full
// again the parts are, too.
#pragma once

#include "vm/ballooned.h"
#include "vm/vm_object.h"

// A frame in state FRAME_FUSOR for a split of the VM's, after none was found beyond the reserve.
// E_NOMEM: the split has to wait.
static inline int reserve_for_split(struct vm *vm, hfn_t *frame)
{
    uint64_t epoch = frames_reserve_epoch();
    unsigned vms = vm_memories;
    if (atomic_exchange(&vm->split_epoch, epoch) != epoch)
        vm->split_taken = 0;
    bool part = atomic_fetch_add(&vm->split_taken, 1) < frames_reserve() / 2 / MAX(vms, 1u);
    bool credit = !part && ballooned_credit(vm);
    if ((part || credit) && frame_alloc(FRAME_FUSOR, 0, FRAME_RESERVE, NULL, frame) == 0)
        return 0;
    if (credit)
        ballooned_uncredit(vm);
    atomic_fetch_sub(&vm->split_taken, 1);
    return E_NOMEM;
}
