// SPDX-License-Identifier: BSD-2-Clause
// EPT tables: thousands of random operations at all levels against a model.
// sources: ept/walk.c ept/map.c ept/large.c ept/destroy.c ept/shootdown.c

#include "ept_model.h"
#include "kernel/irq.h"

void irq_send_nmi(uint32_t cpu)
{
    (void)cpu;
    fail_msg("no CPU is in a guest here");
}

static void (*feature_hook)(void); // changes ept_features for a run

// --- One random operation each; the model predicts the answer. ---

static bool table_for(struct place p, unsigned level)
{
    return level == 3   ? ept_root_table(&ept)[ept_index(place_gfn(p), 4)] != 0
           : level == 2 ? has_level_2[p.region]
                        : has_level_1[p.region][p.page / 512];
}

static unsigned random_level(void)
{
    unsigned n = random_below(100);
    return n < 4 ? 3 : n < 20 ? 2 : 1;
}

static void random_rights(unsigned level, unsigned *permissions, enum ept_kind *kind)
{
    static const unsigned rights[] = {
        EPT_RWX, EPT_RWX, EPT_READ | EPT_WRITE, EPT_READ, EPT_READ | EPT_EXECUTE, EPT_EXECUTE};
    do {
        *permissions = rights[random_below(ARRAY_SIZE(rights))];
    } while (level > 1 && *permissions == EPT_EXECUTE && !ept_features.large_executable_safe);
    *kind = EPT_KIND_PRIVATE;
    if ((*permissions & EPT_WRITE) == 0)
        *kind = (enum ept_kind)(1 + random_below(3));
}

static uint64_t random_frame(unsigned level)
{
    return (random64() & ((UINT64_C(1) << 36) - 1)) & ~(uint64_t)(span_of(level) - 1);
}

static void op_prepare(struct place p)
{
    unsigned level = random_level();
    unsigned covering = page_at(p)->level;
    unsigned missing = 0;
    if (covering == 0 || covering < level) {
        for (unsigned l = level; l <= 3; l++)
            missing += !table_for(p, l) && !(covering > l);
    }
    uint64_t before = ept.table_frames;
    if (missing > 0) {
        for (unsigned n = 1; n <= missing; n++) {
            fail_at = n;
            assert_int_equal(ept_prepare_level(&ept, place_gfn(p), level), E_NOMEM);
            assert_int_equal(fail_at, 0);
            assert_int_equal(frames_live, before);
            assert_int_equal(ept.table_frames, before);
            assert_false(table_for(p, 3) && missing == 3);
        }
    }
    unsigned allocated = frames_allocated;
    int result =
        level == 1 ? ept_prepare(&ept, place_gfn(p)) : ept_prepare_level(&ept, place_gfn(p), level);
    assert_int_equal(result, 0);
    assert_int_equal(frames_allocated - allocated, missing);
    if (covering <= level) {
        if (level <= 2)
            has_level_2[p.region] = true;
        if (level == 1)
            has_level_1[p.region][p.page / 512] = true;
    }
}

static void op_map(struct place p)
{
    unsigned level = random_level();
    unsigned permissions;
    enum ept_kind kind;
    p.page &= ~(span_of(level) - 1);
    random_rights(level, &permissions, &kind);
    uint64_t frame = random_frame(level);
    bool below = level == 3   ? has_level_2[p.region]
                 : level == 2 ? has_level_1[p.region][p.page / 512]
                              : false;
    int want = page_at(p)->level >= level || below ? E_EXIST : !table_for(p, level) ? E_AGAIN : 0;
    assert_int_equal(ept_map(&ept, place_gfn(p), hfn(frame), level, permissions, kind), want);
    if (want == 0)
        set_leaf(p, level, frame, permissions, kind, false, false);
}

static void op_replace(struct place p)
{
    unsigned now = page_at(p)->level;
    unsigned level = random_below(8) != 0 && now != 0 ? now : random_level();
    unsigned permissions;
    enum ept_kind kind;
    p.page &= ~(span_of(level) - 1);
    now = page_at(p)->level;
    random_rights(level, &permissions, &kind);
    bool same = now == level && random_below(2) == 0;
    uint64_t frame = same ? page_at(p)->frame : random_frame(level);
    bool below = level == 3   ? has_level_2[p.region]
                 : level == 2 ? has_level_1[p.region][p.page / 512]
                              : false;
    int want = now == 0 ? E_NOENT : now != level ? E_INVAL : 0;
    struct ept_leaf old = {0};
    if (below && now == 0)
        want = E_NOENT;
    assert_int_equal(ept_replace(&ept, place_gfn(p), hfn(frame), level, permissions, kind, &old),
                     want);
    if (want != 0)
        return;
    same_leaf(p, old);
    same = frame == page_at(p)->frame;
    bool accessed = same && leaf_at(p)->accessed, dirty = same && leaf_at(p)->dirty;
    set_leaf(p, level, frame, permissions, kind, accessed, dirty);
}

static void op_unmap(struct place p)
{
    struct ept_leaf old;
    int want = page_at(p)->level == 0 ? E_NOENT : 0;
    assert_int_equal(ept_unmap(&ept, place_gfn(p), &old), want);
    if (want != 0)
        return;
    same_leaf(p, old);
    clear_leaf(p);
}

static void op_protect(struct place p)
{
    unsigned permissions;
    enum ept_kind kind;
    unsigned level = page_at(p)->level;
    random_rights(level, &permissions, &kind);
    assert_int_equal(ept_protect(&ept, place_gfn(p), permissions, kind), level ? 0 : E_NOENT);
    if (level == 0)
        return;
    struct page leaf = *leaf_at(p);
    set_leaf(p, level, leaf.frame, permissions, kind, leaf.accessed, leaf.dirty);
}

// What the CPU's walker does on an access.
static void op_touch(struct place p)
{
    bool write = random_below(2) != 0;
    struct ept_slot slot = ept_find(&ept, place_gfn(p));
    if (page_at(p)->level == 0 || (write && (page_at(p)->permissions & EPT_WRITE) == 0))
        return;
    *slot.entry = arch_ept_set_accessed_dirty(slot.value, slot.level, true, write);
    struct page leaf = *leaf_at(p);
    unsigned permissions = leaf.permissions | (leaf.withheld ? EPT_EXECUTE : 0u);
    set_leaf(p, leaf.level, leaf.frame, permissions, leaf.kind, true, leaf.dirty || write);
}

static void op_clear_dirty(struct place p)
{
    bool dirty = false;
    struct page leaf = *leaf_at(p);
    int want = leaf.level == 0 ? E_NOENT : 0;
    assert_int_equal(ept_test_clear_dirty(&ept, place_gfn(p), &dirty), want);
    if (want != 0)
        return;
    assert_int_equal(dirty, leaf.dirty || !ept_features.accessed_dirty);
    unsigned permissions = leaf.permissions | (leaf.withheld ? EPT_EXECUTE : 0u);
    set_leaf(p, leaf.level, leaf.frame, permissions, leaf.kind, false, false);
}

static void op_split(struct place p)
{
    unsigned level = page_at(p)->level;
    int want = level == 0 ? E_NOENT : level == 1 ? E_INVAL : 0;
    hfn_t table;
    uint64_t splits = ept.large_splits;
    assert_int_equal(ept_table_alloc(&table), 0);
    assert_int_equal(ept_split_large(&ept, place_gfn(p), table), want);
    assert_int_equal(ept.large_splits, splits + (want == 0));
    if (want != 0) {
        ept_table_free(table);
        return;
    }
    struct page leaf = *leaf_at(p);
    unsigned permissions = leaf.permissions | (leaf.withheld ? EPT_EXECUTE : 0u);
    struct place child = {p.region, p.page & ~(span_of(level) - 1)};
    for (unsigned i = 0; i < 512; i++) {
        set_leaf(child, level - 1, leaf.frame + i * span_of(level - 1), permissions, leaf.kind,
                 leaf.accessed, leaf.dirty);
        child.page += span_of(level - 1);
    }
    if (level == 3)
        has_level_2[p.region] = true;
    else
        has_level_1[p.region][p.page / 512] = true;
}

// Fills a range with what may be collapsed, or nearly.
static void op_fill_range(struct place p)
{
    p.page &= ~511u;
    if (!has_level_1[p.region][p.page / 512])
        return;
    uint64_t frame = random_frame(2);
    unsigned permissions;
    enum ept_kind kind;
    random_rights(1, &permissions, &kind);
    unsigned flaw = random_below(1024);
    unsigned flaw_type = random_below(5);
    for (unsigned i = 0; i < 512; i++) {
        struct place q = {p.region, p.page + i};
        struct ept_leaf old;
        if (page_at(q)->level != 0) {
            assert_int_equal(ept_unmap(&ept, place_gfn(q), &old), 0);
            clear_leaf(q);
        }
        uint64_t f = frame + i + (flaw_type == 4);
        unsigned perms = permissions;
        enum ept_kind k = EPT_KIND_PRIVATE;
        if (i == flaw) {
            if (flaw_type == 0)
                continue;
            if (flaw_type == 1)
                f ^= 1;
            if (flaw_type == 2)
                perms = permissions == EPT_READ ? EPT_RWX : EPT_READ;
            if (flaw_type == 3 && (permissions & EPT_WRITE) == 0)
                k = EPT_KIND_CANDIDATE;
        }
        assert_int_equal(ept_map(&ept, place_gfn(q), hfn(f), EPT_4K, perms, k), 0);
        set_leaf(q, 1, f, perms, k, false, false);
    }
    if (random_below(2) != 0)
        op_touch((struct place){p.region, p.page + random_below(512)});
}

static void op_collapse(struct place p)
{
    struct place first = {p.region, p.page & ~511u};
    struct page base = *page_at(first);
    bool possible = has_level_1[p.region][p.page / 512] && (base.frame & 511) == 0;
    bool accessed = false, dirty = false;
    if (base.permissions == EPT_EXECUTE && !ept_features.large_executable_safe)
        possible = false;
    for (unsigned i = 0; possible && i < 512; i++) {
        struct page *q = page_at((struct place){p.region, first.page + i});
        possible = q->level == 1 && q->kind == EPT_KIND_PRIVATE && q->frame == base.frame + i &&
                   q->permissions == base.permissions;
        accessed |= q->accessed;
        dirty |= q->dirty;
    }
    hfn_t table = hfn(0);
    uint64_t collapses = ept.large_collapses;
    assert_int_equal(ept_collapse(&ept, place_gfn(p), &table), possible ? 0 : E_INVAL);
    assert_int_equal(ept.large_collapses, collapses + possible);
    if (!possible)
        return;
    ept_table_free(table);
    has_level_1[p.region][p.page / 512] = false;
    bool writable = (base.permissions & EPT_WRITE) != 0;
    set_leaf(first, 2, base.frame, base.permissions, EPT_KIND_PRIVATE, accessed || writable,
             dirty || writable);
}

static void op_replace_table(struct place p)
{
    struct place first = {p.region, p.page & ~511u};
    bool protect = random_below(2) != 0;
    bool writable = false;
    bool has = has_level_1[p.region][p.page / 512];
    for (unsigned i = 0; has && i < 512; i++) {
        struct place q = {p.region, first.page + i};
        struct page leaf = *page_at(q);
        if (leaf.level != 0 && protect) {
            assert_int_equal(ept_protect(&ept, place_gfn(q), EPT_READ, leaf.kind), 0);
            set_leaf(q, 1, leaf.frame, EPT_READ, leaf.kind, leaf.accessed, leaf.dirty);
        }
        writable |= (page_at(q)->permissions & EPT_WRITE) != 0;
    }
    unsigned permissions;
    enum ept_kind kind;
    random_rights(2, &permissions, &kind);
    uint64_t frame = random_frame(2);
    int want = !has ? (page_at(p)->level != 0 ? E_EXIST : E_NOENT) : writable ? E_BUSY : 0;
    hfn_t table = hfn(0);
    assert_int_equal(ept_replace_table(&ept, place_gfn(p), hfn(frame), permissions, kind, &table),
                     want);
    if (want != 0)
        return;
    ept_table_free(table);
    has_level_1[p.region][p.page / 512] = false;
    set_leaf(first, 2, frame, permissions, kind, false, false);
}

static struct place random_place(void)
{
    // A few busy ranges, so that operations meet.
    struct place p = {random_below(REGIONS), 0};
    static const unsigned ranges[] = {0, 1, 200, 511};
    p.page = ranges[random_below(ARRAY_SIZE(ranges))] * 512;
    switch (random_below(3)) {
    case 0:
        p.page += random_below(4);
        break;
    case 1:
        p.page += 508 + random_below(4);
        break;
    default:
        p.page += random_below(512);
        break;
    }
    return p;
}

static struct {
    unsigned level[4]; // look-ups that met a leaf of each level, or none
    uint64_t splits, collapses;
} met;

// From a fresh EPT: once tables hang everywhere there is no room for 1 GiB leaves.
static void random_round(unsigned operations)
{
    static void (*const table[])(struct place) = {
        op_prepare,    op_prepare,  op_map,           op_map,         op_map,
        op_replace,    op_unmap,    op_protect,       op_touch,       op_split,
        op_fill_range, op_collapse, op_replace_table, op_clear_dirty,
    };
    world_start(2);
    if (feature_hook != NULL)
        feature_hook();
    assert_int_equal(ept_init(&ept, 7), 0);
    memset(has_level_1, 0, sizeof(has_level_1));
    memset(has_level_2, 0, sizeof(has_level_2));
    for (unsigned r = 0; r < REGIONS; r++)
        memset(model[r], 0, PAGES * sizeof(struct page));
    // Most regions begin as one 1 GiB leaf; afterwards there is seldom room for one.
    for (unsigned r = 0; r < REGIONS - 1; r++) {
        struct place p = {r, 0};
        uint64_t frame = random_frame(3);
        assert_int_equal(ept_prepare_level(&ept, place_gfn(p), EPT_1G), 0);
        assert_int_equal(ept_map(&ept, place_gfn(p), hfn(frame), EPT_1G, EPT_RWX, EPT_KIND_PRIVATE),
                         0);
        set_leaf(p, 3, frame, EPT_RWX, EPT_KIND_PRIVATE, false, false);
    }
    for (unsigned i = 0; i < operations; i++) {
        struct place p = random_place();
        unsigned choice = random_below(ARRAY_SIZE(table));
        if (table[choice] == op_fill_range && random_below(4) != 0)
            choice = 2;
        table[choice](p);
        for (unsigned j = 0; j < 3; j++) {
            same_leaf(p, ept_lookup(&ept, place_gfn(p)));
            met.level[page_at(p)->level]++;
            p = random_place();
        }
    }
    verify_all();
    met.splits += ept.large_splits;
    met.collapses += ept.large_collapses;
    world_end_ept(&ept);
    assert_int_equal(frames_live, 0);
}

static void run_random(unsigned rounds, unsigned operations)
{
    for (unsigned r = 0; r < REGIONS; r++) {
        model[r] = calloc(PAGES, sizeof(struct page));
        assert_non_null(model[r]);
    }
    memset(&met, 0, sizeof(met));
    for (unsigned i = 0; i < rounds; i++)
        random_round(operations);
    for (unsigned level = 0; level < 4; level++)
        assert_true(met.level[level] > 10 * rounds);
    assert_true(met.splits > rounds && met.collapses > rounds);
    for (unsigned r = 0; r < REGIONS; r++) {
        free(model[r]);
        model[r] = NULL;
    }
}

static void test_random_operations(void **state)
{
    (void)state;
    run_random(40, 1000);
}

static void restrict_large_executable(void)
{
    ept_features.large_executable_safe = false;
}

static void test_random_operations_itlb_rule(void **state)
{
    (void)state;
    feature_hook = restrict_large_executable;
    run_random(25, 1000);
    feature_hook = NULL;
}

static void no_flags(void)
{
    ept_features.accessed_dirty = false;
}

static void test_random_operations_without_flags(void **state)
{
    (void)state;
    feature_hook = no_flags;
    run_random(15, 1000);
    feature_hook = NULL;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_random_operations),
        cmocka_unit_test(test_random_operations_itlb_rule),
        cmocka_unit_test(test_random_operations_without_flags),
    };
    return cmocka_run_group_tests_name("random ept operations", tests, NULL, NULL);
}
