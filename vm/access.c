// SPDX-License-Identifier: BSD-2-Clause
// Fusor's access to a VM's memory: copies in and out, and pages that stay where they are.
//
// Locks: one gfn lock at a time, and none while a page is made the VM's own.
#include "vm/memory.h"

#include "kernel/error.h"
#include "kernel/memory.h"
#include "kernel/panic.h"
#include "kernel/string.h"
#include "vm/memory_internal.h"

static bool all_memory(const struct vm *vm, gpa_t a, size_t size)
{
    if (size == 0)
        return true;
    if (a.raw + size - 1 < a.raw)
        return false;
    for (uint64_t n = a.raw >> PAGE_SHIFT; n <= (a.raw + size - 1) >> PAGE_SHIFT; n++)
        if (vm_area_of(vm, (gfn_t){n}) == VM_AREA_NONE)
            return false;
    return true;
}

int guest_read(struct vm *vm, gpa_t from, void *to, size_t size)
{
    if (!all_memory(vm, from, size))
        return E_RANGE;
    uint8_t *p = to;
    while (size > 0) {
        gfn_t gfn = gpa_to_gfn(from);
        size_t offset = from.raw & PAGE_MASK;
        size_t piece = MIN(size, (size_t)PAGE_SIZE - offset);
        ept_lock_gfn(&vm->ept, gfn);
        struct ept_leaf leaf = ept_lookup(&vm->ept, gfn);
        if (leaf.present)
            memcpy(p, (uint8_t *)hfn_to_pointer(leaf.frame) + offset, piece);
        else
            memset(p, 0, piece); // never touched: reading populates nothing
        ept_unlock_gfn(&vm->ept, gfn);
        p += piece;
        from.raw += piece;
        size -= piece;
    }
    return 0;
}

// For guest_write: a page that is not the VM's own becomes so. 0: look again.
static int make_writable(struct vm *vm, gfn_t gfn, const struct ept_leaf *leaf)
{
    if (leaf->present && leaf->kind != EPT_KIND_ZERO)
        return memory_ops->make_private(vm, gfn);
    if (vm_area_of(vm, gfn) == VM_AREA_ROM)
        return memory_populate(vm, gfn, EPT_READ | EPT_EXECUTE, true);
    return memory_populate(vm, gfn, EPT_RWX, true);
}

int guest_write(struct vm *vm, gpa_t to, const void *from, size_t size)
{
    if (!all_memory(vm, to, size))
        return E_RANGE;
    const uint8_t *p = from;
    while (size > 0) {
        gfn_t gfn = gpa_to_gfn(to);
        size_t offset = to.raw & PAGE_MASK;
        size_t piece = MIN(size, (size_t)PAGE_SIZE - offset);
        ept_lock_gfn(&vm->ept, gfn);
        struct ept_leaf leaf = ept_lookup(&vm->ept, gfn);
        bool own = leaf.present && leaf.kind == EPT_KIND_PRIVATE;
        if (own)
            memcpy((uint8_t *)hfn_to_pointer(leaf.frame) + offset, p, piece);
        ept_unlock_gfn(&vm->ept, gfn);
        if (!own) {
            int status = make_writable(vm, gfn, &leaf);
            if (status != 0)
                return status;
            continue; // look again, under the lock
        }
        p += piece;
        to.raw += piece;
        size -= piece;
    }
    return 0;
}

int guest_pin(struct vm *vm, gfn_t gfn, void **page)
{
    if (vm_area_of(vm, gfn) != VM_AREA_RAM)
        return E_RANGE;
    for (;;) {
        ept_lock_gfn(&vm->ept, gfn);
        struct ept_leaf leaf = ept_lookup(&vm->ept, gfn);
        bool own = leaf.present && leaf.kind == EPT_KIND_PRIVATE;
        if (own) {
            frame_of(leaf.frame)->count++; // whoever wants to move it looks under this lock
            *page = hfn_to_pointer(leaf.frame);
        }
        ept_unlock_gfn(&vm->ept, gfn);
        if (own)
            return 0;
        int status = make_writable(vm, gfn, &leaf);
        if (status != 0)
            return status;
    }
}

void guest_unpin(struct vm *vm, gfn_t gfn)
{
    ept_lock_gfn(&vm->ept, gfn);
    struct ept_leaf leaf = ept_lookup(&vm->ept, gfn);
    CHECK(leaf.present && leaf.kind == EPT_KIND_PRIVATE && frame_of(leaf.frame)->count != 0);
    frame_of(leaf.frame)->count--;
    ept_unlock_gfn(&vm->ept, gfn);
}
