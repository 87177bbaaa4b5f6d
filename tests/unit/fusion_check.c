// SPDX-License-Identifier: BSD-2-Clause
// What must hold in the tests of fusion whenever nothing is under way: design section 7's
// identities, and that frame table, EPTs, index and figures tell the same story.
#include "fusion_world.h"

#include "ept/entry.h"
#include "fusion/index_table.h"
#include "vm/ballooned.h"
#include "vm/layout.h"

#define FRAMES_MAX 65536u

struct tally {
    struct vm *vm;
    unsigned n;
    uint64_t private_frames, shared_gfns, large;
};

static uint32_t mapped[FRAMES_MAX]; // by how many gfns

static void tally_page(struct tally *t, const struct ept_leaf *leaf, hfn_t frame, uint64_t gfn)
{
    const struct frame *r = frame_of(frame);
    assert_non_null(r);
    bool in_balloon = ballooned_has(t->vm, (gfn_t){gfn});
    assert_true(in_balloon == (leaf->kind == EPT_KIND_ZERO));
    if (in_balloon) { // it was read
        assert_int_equal(frame.raw, t->vm->zero_page.raw);
        assert_int_equal(r->state, FRAME_FUSOR);
        assert_int_equal(leaf->permissions & EPT_WRITE, 0);
        return;
    }
    assert_true(frame.raw < FRAMES_MAX);
    mapped[frame.raw]++;
    if (leaf->kind == EPT_KIND_SHARED) {
        t->shared_gfns++;
        assert_int_equal(r->state, FRAME_SHARED);
        assert_int_equal(leaf->permissions & EPT_WRITE, 0);
        assert_int_equal(r->owner, world_fusion(t->n)->group);
        assert_true(r->count >= mapped[frame.raw]);
        return;
    }
    t->private_frames++;
    assert_int_equal(mapped[frame.raw], 1);
    assert_int_equal(r->state, FRAME_PRIVATE);
    assert_int_equal(r->owner, t->vm->id);
    assert_int_equal(r->gfn, gfn);
    assert_int_equal(leaf->kind, EPT_KIND_PRIVATE);
    bool rom = vm_area_of(t->vm, (gfn_t){gfn}) == VM_AREA_ROM;
    assert_int_equal(leaf->permissions & EPT_WRITE, rom ? 0 : EPT_WRITE);
}

static void tally_leaf(void *context, gfn_t gfn, struct ept_leaf leaf)
{
    struct tally *t = context;
    uint64_t pages = ept_span((int)leaf.level);
    t->large += leaf.level != EPT_4K;
    for (uint64_t i = 0; i < pages; i++)
        tally_page(t, &leaf, hfn(leaf.frame.raw + i), gfn.raw + i);
}

static void check_balloon(const struct tally *t)
{
    uint64_t sum = 0;
    for (uint64_t i = 0; i < t->vm->ranges * BALLOONED_WORDS; i++)
        sum += (uint64_t)__builtin_popcountll(t->vm->ballooned[i]);
    assert_int_equal(sum, t->vm->account.ballooned);
    uint64_t rom = 0; // ACPI tables count as private, beside the VM's memory
    for (uint64_t gfn = LAYOUT_ROM / PAGE_SIZE; gfn < LAYOUT_ROM_END / PAGE_SIZE; gfn++)
        rom += ept_lookup(&t->vm->ept, (gfn_t){gfn}).present;
    assert_true(t->private_frames + t->shared_gfns + sum <= t->vm->config.memory / PAGE_SIZE + rom);
}

static void check_figures(unsigned n)
{
    struct fusion_vm *f = world_fusion(n);
    uint64_t sum = FIGURE(n, fused) + FIGURE(n, unmatched), by_class = 0;
    for (unsigned i = 0; i < FUSION_REJECTS; i++)
        sum += figure(&f->count.rejected[i]);
    assert_int_equal(FIGURE(n, received), sum);
    for (unsigned i = 0; i < FUSOR_CLASSES; i++)
        by_class += figure(&f->count.fused_by_class[i]);
    assert_int_equal(FIGURE(n, fused), by_class);
    assert_int_equal(f->users, 0);
}

static void check_entry(const struct index_bucket *b, unsigned i, uint64_t number)
{
    const struct frame *r = frame_of(hfn(b->frame[i]));
    assert_non_null(r);
    if ((b->shared >> i & 1) == 0)
        return;
    // Invariant 5: what is named is shared, under this key, and has sharers.
    assert_int_equal(r->state, FRAME_SHARED);
    assert_int_equal(index_number(r->gfn), number);
    assert_int_equal(index_tag(r->gfn), b->tag[i]);
    assert_int_equal(r->owner, b->group[i]);
    assert_true(r->count > 0 && mapped[b->frame[i]] == r->count);
}

static void check_index(void)
{
    struct index_counts counts;
    uint64_t shared = 0, of_slot[INDEX_SLOTS] = {0};
    index_count(&counts);
    for (uint64_t n = 0; n < index_table.buckets; n++) {
        const struct index_bucket *b = index_bucket_at(n);
        assert_int_equal(b->shared & ~b->used, 0);
        for (unsigned i = 0; i < INDEX_BUCKET; i++) {
            if ((b->used >> i & 1) == 0)
                continue;
            check_entry(b, i, n);
            if ((b->shared >> i & 1) != 0)
                shared++;
            else
                of_slot[b->slot[i]]++;
        }
    }
    assert_int_equal(counts.shared, shared);
    for (unsigned i = 0; i < INDEX_SLOTS; i++)
        assert_int_equal(counts.of_slot[i], of_slot[i]);
}

static void check_leaves(void)
{
    struct frames_snapshot s;
    struct frame_account *accounts[WORLD_VMS];
    uint64_t own[WORLD_VMS], gfns[WORLD_VMS], sum = 0, tables = 0, all_own = 0, all_gfns = 0;
    for (unsigned n = 0; n < WORLD_VMS; n++)
        accounts[n] = &world.vm[n].account;
    frames_snapshot(&s, accounts, WORLD_VMS, own, gfns);
    memset(mapped, 0, sizeof(mapped));
    for (unsigned n = 0; n < WORLD_VMS; n++) {
        struct vm *vm = &world.vm[n];
        struct tally t = {.vm = vm, .n = n};
        gfn_t next = {0};
        while (vm->memory_present && ept_for_each(&vm->ept, &next, 1000, tally_leaf, &t) == E_AGAIN)
            ;
        assert_int_equal(t.private_frames, own[n]);
        assert_int_equal(t.shared_gfns, gfns[n]);
        if (vm->memory_present) {
            assert_int_equal(t.large, vm->ept.large_leaves);
            tables += vm->ept.table_frames;
            check_figures(n);
            check_balloon(&t);
        }
        all_own += own[n];
        all_gfns += gfns[n];
    }
    assert_int_equal(all_own, s.count[FRAME_PRIVATE]);
    assert_int_equal(all_gfns, s.count[FRAME_SHARED] + s.saved);
    assert_int_equal(tables, s.count[FRAME_TABLE]);
    for (unsigned i = FRAME_FREE; i < FRAME_STATES; i++)
        sum += s.count[i];
    assert_int_equal(sum, s.total);
    uint64_t limit = fake_ram_size / PAGE_SIZE;
    for (uint64_t i = 1; i < limit; i++) {
        const struct frame *r = frame_of(hfn(i));
        if (r != NULL && r->state == FRAME_SHARED)
            assert_int_equal(r->count, mapped[i]);
    }
}

void world_check_contents(void)
{
    for (unsigned n = 0; n < WORLD_VMS; n++) {
        if (!world.vm[n].memory_present)
            continue;
        for (uint64_t i = 0; i < WORLD_GFNS; i++)
            if (world.model[n][i] != NULL)
                fusor_read(n, i);
    }
    assert_int_equal(world.stale, 0);
}

void world_check(void)
{
    void (*step)(enum world_point) = world.step;
    world.step = NULL;
    assert_true(spin_none_held());
    check_leaves();
    check_index();
    assert_int_equal(world.stale, 0);
    world.step = step;
}
