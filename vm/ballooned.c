// SPDX-License-Identifier: BSD-2-Clause
// The pages of a VM that are in its balloon: their bits, reads that see zeros, writes that bring
// them back.
//
// Whoever makes a page of zeros (EPT_KIND_ZERO) writable shoots it down first, with the gfn lock
// held: otherwise a vCPU could go on reading zeros after another has written.
#include "vm/ballooned.h"

#include "kernel/error.h"
#include "kernel/heap.h"
#include "kernel/panic.h"
#include "vm/reserve.h"

int ballooned_create(struct vm *vm)
{
    vm->ballooned = heap_alloc(vm->ranges * BALLOONED_WORDS * sizeof(*vm->ballooned));
    if (vm->ballooned == NULL)
        return E_NOMEM;
    if (frame_alloc(FRAME_FUSOR, 0, FRAME_ZEROED | FRAME_RESERVE, NULL, &vm->zero_page) != 0) {
        heap_free(vm->ballooned);
        vm->ballooned = NULL;
        return E_NOMEM;
    }
    vm->reserve_taken = 0;
    return 0;
}

void ballooned_destroy(struct vm *vm)
{
    if (vm->ballooned == NULL)
        return;
    frame_balloon(&vm->account, -(int64_t)vm->account.ballooned);
    frame_free(vm->zero_page, 0, NULL);
    heap_free(vm->ballooned);
    vm->ballooned = NULL;
}

bool ballooned_bit(const struct vm *vm, gfn_t gfn)
{
    uint64_t word = __atomic_load_n(&ballooned_words(vm, gfn)[gfn.raw >> 6 & 7], __ATOMIC_RELAXED);
    return (word >> (gfn.raw & 63) & 1) != 0;
}

bool ballooned_any(const struct vm *vm, gfn_t gfn)
{
    uint64_t all = 0;
    if (vm->account.ballooned == 0)
        return false;
    for (unsigned i = 0; i < BALLOONED_WORDS; i++)
        all |= __atomic_load_n(&ballooned_words(vm, gfn)[i], __ATOMIC_RELAXED);
    return all != 0;
}

static void flip(struct vm *vm, gfn_t gfn)
{
    uint64_t *word = &ballooned_words(vm, gfn)[gfn.raw >> 6 & 7];
    __atomic_store_n(word, *word ^ UINT64_C(1) << (gfn.raw & 63), __ATOMIC_RELAXED);
}

unsigned ballooned_count(const struct vm *vm, gfn_t gfn, unsigned pages)
{
    unsigned n = 0;
    if (pages == 1 || !ballooned_any(vm, gfn))
        return ballooned_has(vm, gfn);
    for (unsigned i = 0; i < BALLOONED_WORDS; i++)
        for (uint64_t word = ballooned_words(vm, gfn)[i]; word != 0; word &= word - 1) {
            if (word == UINT64_MAX) {
                n += 64;
                break;
            }
            n++;
        }
    return n;
}

// gfn lock held. A whole range without a page table maps nothing: its bits are set or cleared at
// once, provided that they all are what they have to be. What the common extent of a balloon costs.
static bool whole_range(struct vm *vm, gfn_t gfn, unsigned pages, uint64_t from)
{
    struct ept_leaf leaf = ept_lookup(&vm->ept, gfn);
    if (pages != 64 * BALLOONED_WORDS || leaf.present || leaf.level == EPT_4K)
        return false;
    uint64_t *words = ballooned_words(vm, gfn);
    for (unsigned i = 0; i < BALLOONED_WORDS; i++)
        if (words[i] != from)
            return false;
    for (unsigned i = 0; i < BALLOONED_WORDS; i++)
        __atomic_store_n(&words[i], ~from, __ATOMIC_RELAXED);
    return true;
}

unsigned ballooned_put(struct vm *vm, gfn_t gfn, unsigned pages)
{
    unsigned n = 0;
    if (whole_range(vm, gfn, pages, 0)) {
        frame_balloon(&vm->account, pages);
        return pages;
    }
    for (unsigned i = 0; i < pages; i++) {
        gfn_t page = {gfn.raw + i};
        if (ballooned_bit(vm, page) || ept_lookup(&vm->ept, page).present)
            continue;
        flip(vm, page);
        n++;
    }
    if (n != 0)
        frame_balloon(&vm->account, n);
    return n;
}

unsigned ballooned_take(struct vm *vm, gfn_t gfn, unsigned pages)
{
    unsigned n = 0;
    bool seen = false;
    if (vm->account.ballooned == 0)
        return 0;
    if (whole_range(vm, gfn, pages, UINT64_MAX)) {
        frame_balloon(&vm->account, -(int64_t)pages);
        return pages;
    }
    for (unsigned i = 0; i < pages; i++) {
        gfn_t page = {gfn.raw + i};
        struct ept_leaf old;
        if (!ballooned_bit(vm, page))
            continue;
        flip(vm, page);
        n++;
        if (ept_unmap(&vm->ept, page, &old) == 0) {
            CHECK(old.kind == EPT_KIND_ZERO);
            seen = true;
        }
    }
    if (seen)
        ept_shootdown(&vm->ept);
    if (n != 0)
        frame_balloon(&vm->account, -(int64_t)n);
    return n;
}

void ballooned_return(struct vm *vm, gfn_t gfn)
{
    vm->balloon_returned += ballooned_take(vm, gfn, 1);
}

enum ept_fault_result ballooned_read(struct vm *vm, gfn_t gfn)
{
    if (!reserve_has_table(vm, gfn) || ept_prepare(&vm->ept, gfn) != 0)
        return EPT_FAULT_WAIT;
    ept_lock_gfn(&vm->ept, gfn);
    // Whatever else is there by now, the guest finds out.
    if (ballooned_bit(vm, gfn))
        ept_map(&vm->ept, gfn, vm->zero_page, EPT_4K, EPT_READ | EPT_EXECUTE, EPT_KIND_ZERO);
    ept_unlock_gfn(&vm->ept, gfn);
    return EPT_FAULT_RETRY;
}
