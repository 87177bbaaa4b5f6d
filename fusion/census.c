// SPDX-License-Identifier: BSD-2-Clause
// The census: what could be shared, counted by brute force over every resident page.
//
// All pages are hashed twice, 10 s apart, into a list with a place for every page, and the sorted
// list is counted. A value in it is 63 bits of the page's key in the index (which keeps groups
// apart); the lowest bit says that the page was the same both times. Two different pages in 2^63
// count as equal. Then the list is used once more, for the shared frames.
//
// Nothing is locked or protected: guests go on, and the census is the truth only as far as they
// stand still. A frame may even be given to somebody else while it is hashed. A VM is pinned for
// one batch of pages at a time; so it can be destroyed meanwhile, and its pages drop out.
#include "fusion/census_list.h"
#include "fusion/engine.h"
#include "fusion/page_ops.h"
#include "kernel/error.h"
#include "kernel/memory.h"
#include "kernel/panic.h"
#include "kernel/sched.h"
#include "kernel/string.h"
#include "kernel/time.h"

#define BATCH       64u // pages between two yields
#define INTERVAL    10u // seconds
#define UNCHANGED   UINT64_C(1)
#define RANGE_PAGES UINT64_C(512)
#define RUN_A_TURN  512u // values counted between two looks at the time

struct census_vm {
    uint64_t id;
    uint64_t first, pages; // its places in the list
    uint8_t slot, group;
    bool gone; // destroyed, or in another group
    uint64_t resident, zero, unchanged, unchanged_zero;
};

// One at a time; too big for a fiber's stack.
static atomic_flag running = ATOMIC_FLAG_INIT;
static struct census {
    struct census_list list;
    uint64_t filled; // values in the list, from the front
    unsigned vm_count;
    struct census_vm vm[INDEX_SLOTS];
    uint64_t zero_hash;
} census;

// Never zero, which stands for a page that is not there.
static uint64_t value_of(uint64_t hash, uint8_t group)
{
    uint64_t value = index_key(hash, group) & ~UNCHANGED;
    return value != 0 ? value : 2;
}

// --- The VMs that take part ---

static struct fusion_vm *pin(struct census_vm *v)
{
    struct fusion_vm *f = fusion_pin(v->slot);
    if (f != NULL && f->vm->id == v->id && f->group == v->group)
        return f;
    if (f != NULL)
        fusion_unpin(f);
    v->gone = true;
    return NULL;
}

// Finds the VMs of `group`, or all (-1), and gives their pages places. Returns the places needed.
static uint64_t enlist(int group)
{
    uint64_t places = 0;
    census.vm_count = 0;
    for (unsigned slot = 0; slot < INDEX_SLOTS; slot++) {
        struct fusion_vm *f = fusion_pin((uint8_t)slot);
        if (f == NULL)
            continue;
        CHECK(f->group < INDEX_SLOTS);
        if (group < 0 || f->group == group) {
            census.vm[census.vm_count++] = (struct census_vm){
                .id = f->vm->id,
                .first = places,
                .pages = f->vm->ranges * RANGE_PAGES,
                .slot = f->slot,
                .group = f->group,
            };
            places += f->vm->ranges * RANGE_PAGES;
        }
        fusion_unpin(f);
    }
    return places;
}

// --- Over all pages ---

// A resident page of `v` at its place `page`.
typedef void (*visit_page)(struct census_vm *v, uint64_t page, const struct ept_leaf *leaf,
                           const struct page_ops *ops);

static void visit_batch(struct fusion_vm *f, struct census_vm *v, uint64_t from, visit_page visit)
{
    const struct page_ops *ops = page_ops_begin();
    for (uint64_t page = from; page < MIN(from + BATCH, v->pages); page++) {
        struct ept_leaf leaf = ept_lookup(&f->vm->ept, vm_page_gfn(page));
        // Also a frame that has just left the VM is RAM; whatever else stands there is not ours.
        if (leaf.present && leaf.kind != EPT_KIND_NONE && frame_of(leaf.frame) != NULL)
            visit(v, page, &leaf, ops);
    }
    page_ops_end();
}

static void visit_vm(struct census_vm *v, visit_page visit)
{
    for (uint64_t page = 0; page < v->pages && !v->gone; page += BATCH) {
        struct fusion_vm *f = pin(v);
        if (f != NULL) {
            visit_batch(f, v, page, visit);
            fusion_unpin(f);
        }
        fiber_give_way();
    }
}

static void hash_first(struct census_vm *v, uint64_t page, const struct ept_leaf *leaf,
                       const struct page_ops *ops)
{
    uint64_t hash = ops->hash(hfn_to_pointer(leaf->frame));
    *census_list_at(&census.list, v->first + page) = value_of(hash, v->group);
}

// The second values move up to the front of the list, over first ones that were looked at already:
// there are never more of them than places before this page's.
static void hash_second(struct census_vm *v, uint64_t page, const struct ept_leaf *leaf,
                        const struct page_ops *ops)
{
    uint64_t value = value_of(ops->hash(hfn_to_pointer(leaf->frame)), v->group);
    bool same = *census_list_at(&census.list, v->first + page) == value;
    bool zero = value == value_of(census.zero_hash, v->group);
    v->resident++;
    v->zero += zero;
    v->unchanged += same;
    v->unchanged_zero += same && zero;
    *census_list_at(&census.list, census.filled++) = same ? value | UNCHANGED : value;
}

static void note_shared(struct census_vm *v, uint64_t page, const struct ept_leaf *leaf,
                        const struct page_ops *ops)
{
    (void)v;
    (void)page;
    (void)ops;
    if (leaf->kind == EPT_KIND_SHARED)
        *census_list_at(&census.list, census.filled++) = leaf->frame.raw;
}

// Fills the list from its front with what `visit` finds, without the VMs that go meanwhile.
static void fill(visit_page visit)
{
    census.filled = 0;
    for (unsigned i = 0; i < census.vm_count; i++) {
        uint64_t before = census.filled;
        visit_vm(&census.vm[i], visit);
        if (census.vm[i].gone)
            census.filled = before;
    }
}

static void wait(void)
{
    uint64_t deadline = time_tsc() + INTERVAL * tsc_hz;
    while (time_tsc() < deadline)
        fiber_sleep_until(deadline);
}

// --- Counting ---

static uint64_t beyond_first(uint64_t n)
{
    return n != 0 ? n - 1 : 0;
}

// Equal values stand together, those of changed pages first.
static void count_equal(struct fusion_census *out)
{
    uint64_t content = 0, all = 0, unchanged = 0;
    census_list_sort(&census.list, census.filled);
    for (uint64_t i = 0; i < census.filled; i++) {
        uint64_t value = *census_list_at(&census.list, i);
        if ((value | UNCHANGED) != content) {
            out->shareable += beyond_first(all);
            out->unchanged_shareable += beyond_first(unchanged);
            content = value | UNCHANGED;
            all = unchanged = 0;
        }
        all++;
        unchanged += value & UNCHANGED;
        if (i % RUN_A_TURN == RUN_A_TURN - 1)
            fiber_give_way_if_due();
    }
    out->shareable += beyond_first(all);
    out->unchanged_shareable += beyond_first(unchanged);
}

// What each VM counted, and of the zero pages what each group could share.
static void count_vms(struct fusion_census *out)
{
    uint64_t unchanged_zero[INDEX_SLOTS] = {0}, zero[INDEX_SLOTS] = {0};
    for (unsigned i = 0; i < census.vm_count; i++) {
        const struct census_vm *v = &census.vm[i];
        if (v->gone)
            continue;
        out->vms++;
        out->resident += v->resident;
        out->zero += v->zero;
        out->unchanged += v->unchanged;
        zero[v->group] += v->zero;
        unchanged_zero[v->group] += v->unchanged_zero;
    }
    for (unsigned g = 0; g < INDEX_SLOTS; g++) {
        out->shareable_zero += beyond_first(zero[g]);
        out->unchanged_shareable_zero += beyond_first(unchanged_zero[g]);
    }
}

// The gfns that are fused now, but for one of each frame.
static void count_saved(struct fusion_census *out)
{
    fill(note_shared);
    census_list_sort(&census.list, census.filled);
    for (uint64_t i = 1; i < census.filled; i++) {
        out->saved += *census_list_at(&census.list, i) == *census_list_at(&census.list, i - 1);
        if (i % RUN_A_TURN == RUN_A_TURN - 1)
            fiber_give_way_if_due();
    }
}

// The hash is keyed anew at every boot and chosen by CPUID: that of a zero page is computed.
static int hash_zero_page(void)
{
    hfn_t frame;
    int error = frame_alloc(FRAME_FUSOR, 0, FRAME_ZEROED, NULL, &frame);
    if (error != 0)
        return error;
    census.zero_hash = page_ops_begin()->hash(hfn_to_pointer(frame));
    page_ops_end();
    frame_free(frame, 0, NULL);
    return 0;
}

static int take_census(const char *group, struct fusion_census *out)
{
    int number = group == NULL ? -1 : fusion_group_find(group);
    if (group != NULL && number < 0)
        return E_NOENT;
    uint64_t places = enlist(number);
    if (census.vm_count == 0)
        return E_NOENT;
    int error = hash_zero_page();
    if (error == 0)
        error = census_list_create(&census.list, places);
    if (error != 0)
        return error;
    for (unsigned i = 0; i < census.vm_count; i++)
        visit_vm(&census.vm[i], hash_first);
    wait();
    fill(hash_second);
    count_vms(out);
    count_equal(out);
    count_saved(out);
    census_list_destroy(&census.list);
    return 0;
}

int fusion_census(const char *group, struct fusion_census *out)
{
    memset(out, 0, sizeof(*out));
    if (atomic_flag_test_and_set(&running))
        return E_BUSY;
    int status = take_census(group, out);
    atomic_flag_clear(&running);
    return status;
}
