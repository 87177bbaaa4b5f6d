// SPDX-License-Identifier: BSD-2-Clause
// What fusion does in the background, in one fiber: splits the pages of VMs whose fusion was
// switched off, scans for VMs that asked for it, and makes ranges large again that were split.
//
// Once a second it looks whether there is anything to do; a VM in which nothing changes costs
// nothing. It holds a pin while it works for a VM and no lock while it yields.
#include "fusion/engine.h"

#include "kernel/error.h"
#include "kernel/sched.h"
#include "kernel/time.h"
#include "vm/layout.h"

#define RANGE_PAGES       UINT64_C(512)
#define LOOKS_WHILE_SHORT 16384u // pages looked at per second while there are no frames
#define RANGES_AT_ONCE    8u     // ranges of one VM that are checked per second
#define SCAN_AT_ONCE      16u    // pages fused in one piece, 3,000 ticks each
#define SCAN_CREDIT_MAX   65536u
#define COLLAPSE_TRIES    30u // seconds that a range may go on being written to

static struct fiber *service;

// A range's byte: the phase, and how often it was found dirty.
enum phase { PHASE_NONE, PHASE_LOOK, PHASE_CLEARED, PHASE_QUIET };
#define PHASE_BITS 2u

static uint8_t state_of(enum phase phase, unsigned tries)
{
    return (uint8_t)((unsigned)phase | tries << PHASE_BITS);
}

void service_note_range(struct fusion_vm *f, gfn_t gfn)
{
    __atomic_store_n(&f->collapse[vm_range_of(f->vm, gfn)], state_of(PHASE_LOOK, 0),
                     __ATOMIC_RELAXED);
}

void service_wake(void)
{
    fiber_wake(service);
}

// The next gfn of RAM from `gfn` on; past the end it is the first one again and *wrapped.
static gfn_t next_ram(const struct vm *vm, gfn_t gfn, bool *wrapped)
{
    gpa_t a = gfn_to_gpa(gfn);
    *wrapped = false;
    if (vm_area_of(vm, gfn) == VM_AREA_RAM)
        return gfn;
    if (a.raw < LAYOUT_ROM_END && vm->config.memory > LAYOUT_ROM_END)
        return gpa_to_gfn((gpa_t){LAYOUT_ROM_END});
    if (a.raw < LAYOUT_ABOVE_4G && vm->config.memory > LAYOUT_HOLE)
        return gpa_to_gfn((gpa_t){LAYOUT_ABOVE_4G});
    *wrapped = true;
    return (gfn_t){0};
}

// --- Fusion was switched off ---

// The last sharer of a small page needs no frame.
static bool is_last_sharer(const struct ept_leaf *leaf)
{
    return leaf->level == EPT_4K &&
           __atomic_load_n(&frame_at(leaf->frame)->count, __ATOMIC_RELAXED) == 1;
}

// Goes on where the last round had to end, and at most once past the end.
static void split_all(struct fusion_vm *f)
{
    bool is_short = false, again = false;
    for (unsigned n = 0; f->mode == FUSION_SPLITTING && f->active; n++) {
        bool wrapped;
        gfn_t gfn = next_ram(f->vm, f->split_next, &wrapped);
        if (wrapped) {
            int splitting = FUSION_SPLITTING;
            f->split_next = (gfn_t){0};
            // Nothing is shared, and nobody but us is at work who could have begun to share.
            if (f->users == 1 && f->vm->account.shared_gfns == 0)
                atomic_compare_exchange_strong(&f->mode, &splitting, FUSION_OFF);
            if (again)
                return;
            again = true;
            continue;
        }
        struct ept_leaf leaf = ept_lookup(&f->vm->ept, gfn);
        if (leaf.present && leaf.kind == EPT_KIND_SHARED && (!is_short || is_last_sharer(&leaf)))
            is_short |= split_gfn(f, gfn, 0, SPLIT_ORDERED) != 0;
        f->split_next.raw = gfn.raw + 1;
        if (is_short && n >= LOOKS_WHILE_SHORT)
            return;
        fiber_give_way_if_due(); // a split costs 30 times as much as a look
    }
}

// --- Guests without a driver ---

static void scan_some(struct fusion_vm *f, uint64_t pages)
{
    uint64_t entries[SCAN_AT_ONCE];
    f->scan_credit = MIN(f->scan_credit + pages, (uint64_t)SCAN_CREDIT_MAX);
    while (f->scan_credit != 0 && f->mode == FUSION_ON && f->active) {
        uint64_t began = time_tsc();
        unsigned count = 0;
        unsigned looked = (unsigned)MIN(f->scan_credit, (uint64_t)SCAN_AT_ONCE);
        bool wrapped = false;
        for (unsigned i = 0; i < looked && !wrapped; i++) {
            gfn_t gfn = next_ram(f->vm, f->scan_next, &wrapped);
            struct ept_leaf leaf = ept_lookup(&f->vm->ept, gfn);
            if (!wrapped && leaf.present && leaf.kind == EPT_KIND_PRIVATE)
                entries[count++] = FUSOR_ENTRY(gfn.raw, FUSOR_CLASS_OTHER, 0);
            f->scan_next.raw = wrapped ? 0 : gfn.raw + 1;
        }
        f->scan_credit -= looked;
        if (count != 0)
            fusion_work(f, entries, count);
        fusion_count(&f->count.scanned, count);
        fusion_count(&f->count.ticks, time_tsc() - began);
        fiber_give_way();
    }
}

// --- Large pages come back ---

// gfn lock held: 512 private, writable, unpinned pages of one aligned block? *dirty: one of them
// was written since the flags were cleared; they are cleared again.
static bool is_whole(struct vm *vm, gfn_t first, bool *dirty)
{
    hfn_t block = ept_lookup(&vm->ept, first).frame;
    *dirty = false;
    for (uint64_t i = 0; i < RANGE_PAGES; i++) {
        struct ept_leaf leaf = ept_lookup(&vm->ept, (gfn_t){first.raw + i});
        if (!leaf.present || leaf.level != EPT_4K || leaf.kind != EPT_KIND_PRIVATE ||
            leaf.permissions != EPT_RWX || leaf.frame.raw != block.raw + i ||
            frame_at(leaf.frame)->count != 0)
            return false;
        *dirty |= leaf.dirty;
    }
    return (block.raw & (RANGE_PAGES - 1)) == 0;
}

static void clear_dirty(struct vm *vm, gfn_t first)
{
    bool dirty;
    for (uint64_t i = 0; i < RANGE_PAGES; i++)
        ept_test_clear_dirty(&vm->ept, (gfn_t){first.raw + i}, &dirty);
    ept_shootdown(&vm->ept); // CPUs set the flags again only after it
}

static void check_range(struct fusion_vm *f, uint64_t n)
{
    struct vm *vm = f->vm;
    gfn_t first = vm_page_gfn(n * RANGE_PAGES);
    uint8_t state = __atomic_load_n(&f->collapse[n], __ATOMIC_RELAXED);
    unsigned tries = state >> PHASE_BITS;
    uint8_t next = PHASE_NONE;
    hfn_t table = {0};
    bool dirty, collapsed = false;
    ept_lock_gfn(&vm->ept, first);
    if (is_whole(vm, first, &dirty)) {
        enum phase phase = (enum phase)(state & 3);
        if (phase == PHASE_LOOK || dirty) {
            if (tries < COLLAPSE_TRIES) {
                clear_dirty(vm, first);
                next = state_of(PHASE_CLEARED, tries + 1);
            }
        } else if (phase == PHASE_CLEARED) {
            next = state_of(PHASE_QUIET, tries);
        } else {
            collapsed = ept_collapse(&vm->ept, first, &table) == 0;
        }
    }
    // A range that was split again meanwhile is looked at again.
    __atomic_compare_exchange_n(&f->collapse[n], &state, next, false, __ATOMIC_RELAXED,
                                __ATOMIC_RELAXED);
    ept_unlock_gfn(&vm->ept, first);
    if (collapsed) {
        ept_shootdown(&vm->ept);
        ept_table_free(table);
    }
}

static void collapse_some(struct fusion_vm *f)
{
    unsigned checked = 0;
    for (uint64_t n = 0; n < f->vm->ranges && checked < RANGES_AT_ONCE && f->active; n++) {
        if (__atomic_load_n(&f->collapse[n], __ATOMIC_RELAXED) == PHASE_NONE)
            continue;
        uint64_t began = time_tsc();
        check_range(f, n);
        fusion_count(&f->count.ticks, time_tsc() - began);
        checked++;
        fiber_give_way();
    }
}

static void serve(void *unused)
{
    (void)unused;
    for (;;) {
        for (uint8_t slot = 0; slot < INDEX_SLOTS; slot++) {
            struct fusion_vm *f = fusion_pin(slot);
            if (f == NULL)
                continue;
            if (f->mode == FUSION_SPLITTING)
                split_all(f);
            if (f->vm->config.scan != 0)
                scan_some(f, f->vm->config.scan);
            if (ept_features.accessed_dirty && f->vm->config.large_pages != VM_LARGE_OFF)
                collapse_some(f);
            fusion_unpin(f);
        }
        fiber_sleep_until(time_tsc() + tsc_hz);
    }
}

int service_init(void)
{
    service = fiber_create("fusion", serve, NULL);
    return service == NULL ? E_NOMEM : 0;
}
