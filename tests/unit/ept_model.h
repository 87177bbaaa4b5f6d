// SPDX-License-Identifier: BSD-2-Clause
// A model of an EPT for random operations: one record per guest page and no tables; and what it and
// the tables must agree on.
#pragma once

#include "ept_world.h"

// Four GiB of the guest, at the edges of the upper tables.

#define REGIONS 4u
#define PAGES   (1u << 18)
#define RANGES  (PAGES / 512)

static const uint64_t region_first[REGIONS] = {0, PAGES, UINT64_C(512) * PAGES,
                                               (UINT64_C(512) * 512 - 1) * PAGES};

struct page {
    uint64_t frame;
    uint8_t level; // 0: nothing
    uint8_t permissions, kind;
    bool withheld, accessed, dirty; // accessed, dirty: in the first page of the leaf
};
static struct page *model[REGIONS];
static bool has_level_2[REGIONS];
static bool has_level_1[REGIONS][RANGES];
static struct ept ept;
static uint64_t seed = 88172645463325252;

static inline uint64_t random64(void)
{
    seed ^= seed << 13;
    seed ^= seed >> 7;
    seed ^= seed << 17;
    return seed * UINT64_C(2685821657736338717) >> 11;
}

static inline unsigned random_below(unsigned n)
{
    return (unsigned)(random64() % n);
}

static inline unsigned span_of(unsigned level)
{
    return level == 0 ? 1 : 1u << (9 * (level - 1));
}

struct place {
    unsigned region, page;
};

static inline gfn_t place_gfn(struct place p)
{
    return gfn(region_first[p.region] + p.page);
}

static inline struct page *page_at(struct place p)
{
    return &model[p.region][p.page];
}

static inline struct page *leaf_at(struct place p)
{
    unsigned level = page_at(p)->level;
    return &model[p.region][p.page & ~(span_of(level) - 1)];
}

static inline void set_leaf(struct place p, unsigned level, uint64_t frame, unsigned permissions,
                            unsigned kind, bool accessed, bool dirty)
{
    bool withheld = level > 1 && (permissions & EPT_EXECUTE) && !ept_features.large_executable_safe;
    if (withheld)
        permissions &= ~(unsigned)EPT_EXECUTE;
    unsigned first = p.page & ~(span_of(level) - 1);
    for (unsigned i = 0; i < span_of(level); i++)
        model[p.region][first + i] =
            (struct page){frame + i, (uint8_t)level, (uint8_t)permissions, (uint8_t)kind, withheld,
                          accessed,  dirty};
}

static inline void clear_leaf(struct place p)
{
    unsigned span = span_of(page_at(p)->level);
    memset(&model[p.region][p.page & ~(span - 1)], 0, span * sizeof(struct page));
}

// What model and tables must agree on.
static inline void same_leaf(struct place p, struct ept_leaf leaf)
{
    const struct page *want = page_at(p);
    assert_int_equal(leaf.present, want->level != 0);
    if (want->level == 0) {
        assert_int_equal(leaf.kind, EPT_KIND_NONE);
        assert_int_equal(leaf.permissions, 0);
        return;
    }
    assert_int_equal(leaf.level, want->level);
    assert_int_equal(leaf.frame.raw, want->frame);
    assert_int_equal(leaf.permissions, want->permissions);
    assert_int_equal(leaf.kind, want->kind);
    assert_int_equal(leaf.execute_withheld, want->withheld);
    assert_int_equal(leaf.accessed, leaf_at(p)->accessed || !ept_features.accessed_dirty);
    assert_int_equal(leaf.dirty, leaf_at(p)->dirty || !ept_features.accessed_dirty);
    assert_int_equal(ept_fetch_needs_split(&leaf), want->withheld);
}

// ept_for_each must come by in this order.
static struct place expected;
static unsigned visits;

static inline void expected_skip_empty(void)
{
    while (expected.region < REGIONS && (expected.page == PAGES || page_at(expected)->level == 0)) {
        if (expected.page++ >= PAGES)
            expected = (struct place){expected.region + 1, 0};
    }
}

static inline void visit_leaf(void *context, gfn_t at, struct ept_leaf leaf)
{
    assert_ptr_equal(context, &expected);
    expected_skip_empty();
    assert_true(expected.region < REGIONS);
    assert_int_equal(at.raw, place_gfn(expected).raw);
    same_leaf(expected, leaf);
    expected.page += span_of(leaf.level);
    visits++;
}

static inline unsigned count_tables(void)
{
    unsigned tables = 1;
    for (unsigned r = 0; r < REGIONS; r++) {
        tables += has_level_2[r];
        for (unsigned i = 0; i < RANGES; i++)
            tables += has_level_1[r][i];
    }
    for (unsigned i = 0; i < 512; i++)
        tables += ept_root_table(&ept)[i] != 0;
    return tables;
}

static inline void verify_all(void)
{
    unsigned large = 0;
    for (unsigned r = 0; r < REGIONS; r++) {
        for (unsigned i = 0; i < PAGES;) {
            unsigned level = model[r][i].level;
            large += level > 1;
            i += level == 0 ? 1 : span_of(level);
        }
    }
    expected = (struct place){0, 0};
    gfn_t next = gfn(0);
    unsigned budget = 1 + random_below(3000);
    int result;
    do {
        gfn_t before = next;
        visits = 0;
        result = ept_for_each(&ept, &next, budget, visit_leaf, &expected);
        assert_true(visits <= budget);
        assert_true(next.raw > before.raw);
    } while (result == E_AGAIN);
    assert_int_equal(result, 0);
    assert_int_equal(next.raw, EPT_GFN_LIMIT);
    expected_skip_empty();
    assert_int_equal(expected.region, REGIONS); // none was left out
    assert_int_equal(ept.large_leaves, large);
    assert_int_equal(ept.table_frames, frames_live);
    assert_int_equal(ept.table_frames, count_tables());
}
