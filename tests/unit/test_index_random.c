// SPDX-License-Identifier: BSD-2-Clause
// sources: kernel/frame_hold.c
// sources: fusion/index.c fusion/index_table.c kernel/frames.c kernel/frame_buddy.c
// sources: kernel/frame_cache.c kernel/frame_zero.c kernel/frame_poison.c kernel/frame_account.c
// sources: kernel/frame_share.c kernel/heap.c kernel/lock.c
// libs: -Wl,--wrap=frame_alloc
// The content index in random runs; every call is judged by a naive list of what was remembered.
#include "fake/random.h"
#include "index_world.h"

#define PAGES   48u
#define BUCKETS 4u

static struct page {
    hfn_t frame;
    uint8_t slot;
    bool exists, shared, indexed;
    // Under which key and version it was remembered or shared last.
    uint64_t key;
    uint8_t group;
    bool remembered, member;
    struct index_candidate as;
} pages[PAGES];

static uint64_t random_key(void)
{
    uint64_t r = random64();
    return key_in(r % BUCKETS, (uint32_t)(r >> 8) % 5);
}

static bool is_live(const struct page *p)
{
    return p->exists && !p->shared && (uint32_t)frame_of(p->frame)->version == p->as.version;
}

static void note(struct page *p, uint64_t key, uint8_t group)
{
    p->key = key;
    p->group = group;
    p->as = candidate_of(p->frame, p->slot);
    p->remembered = true;
}

// The occupancy of a bucket as the list has it: exact but for stale entries that were taken out.
static unsigned occupants(uint64_t bucket, int slot)
{
    unsigned n = 0;
    for (unsigned i = 0; i < PAGES; i++) {
        const struct page *p = &pages[i];
        if (index_number(p->key) != bucket)
            continue;
        n += p->shared ? p->indexed && slot < 0
                       : p->member && is_live(p) && (slot < 0 || p->slot == slot);
    }
    return n;
}

// Compares table and list; losses, where the list says "member" and the table does not, must be
// stale, or belong to `loser` (-1: none may be lost), at most one.
static void judge(int loser, bool any_loser)
{
    unsigned lost = 0;
    uint64_t live[VMS] = {0}, shared = 0;
    for (unsigned i = 0; i < PAGES; i++) {
        struct page *p = &pages[i];
        hfn_t out[INDEX_BUCKET];
        if (p->shared) {
            unsigned n = shared_at(p->key, p->group, out), seen = 0, expected = 0;
            for (unsigned j = 0; j < n; j++)
                seen += out[j].raw == p->frame.raw;
            for (unsigned j = 0; j < PAGES; j++)
                expected += pages[j].shared && pages[j].indexed && pages[j].key == p->key &&
                            pages[j].group == p->group;
            assert_int_equal(seen, p->indexed);
            assert_int_equal(n, expected);
            shared += p->indexed;
            continue;
        }
        if (!p->remembered)
            continue;
        bool now = has(p->key, p->group, p->as);
        if (!is_live(p)) {
            assert_false(now);
        } else if (p->member && !now) {
            assert_true(any_loser || p->slot == loser);
            lost++;
        } else {
            assert_int_equal(now, p->member);
        }
        p->member = now;
        live[p->slot] += now;
        // A partner is live, of this key and group, and not itself.
        struct index_candidate c;
        bool known;
        if (find(p->key, p->group, p->frame, &c, &known)) {
            bool seen = false;
            for (unsigned j = 0; j < PAGES; j++)
                seen |= j != i && pages[j].frame.raw == c.frame.raw && is_live(&pages[j]) &&
                        pages[j].key == p->key && pages[j].group == p->group &&
                        pages[j].slot == c.slot && pages[j].as.version == c.version;
            assert_true(seen);
        }
    }
    assert_true(lost <= 1);
    struct index_counts counts;
    index_count(&counts);
    assert_int_equal(counts.shared, shared);
    for (unsigned s = 0; s < VMS; s++) {
        assert_true(counts.of_slot[s] >= live[s]);
        assert_true(counts.of_slot[s] <= index_table.slots[s].quota);
    }
}

static void step_remember(struct page *p)
{
    uint64_t key = random_key(), bucket = index_number(key);
    uint8_t group = (uint8_t)(random64() % 2);
    // A page has one entry at a time in these runs: the old one is forgotten first.
    if (p->remembered)
        forget(p->key, p->as);
    p->member = false;
    judge(-1, false);
    bool full = occupants(bucket, -1) == INDEX_BUCKET;
    bool own = occupants(bucket, p->slot) != 0;
    bool quota_left = count_of(p->slot) < index_table.slots[p->slot].quota;
    note(p, key, group);
    bool done;
    if (random64() % 2 == 0) {
        done = remember(key, group, p->as);
    } else {
        struct index_partners out;
        enum index_answer answer = index_offer(key, group, &p->as, &out);
        assert_int_not_equal(answer, INDEX_KNOWN);
        if (answer == INDEX_PARTNERS) {
            p->remembered = false;
            judge(-1, false);
            return;
        }
        done = answer == INDEX_REMEMBERED;
    }
    // BUCKETS is less than a sweep: whoever is at the quota always finds an entry to give up.
    assert_int_equal(done, own || !full);
    p->member = done;
    judge(full || !quota_left ? p->slot : -1, false);
}

static void step(void)
{
    struct page *p = &pages[random64() % PAGES];
    unsigned what = (unsigned)(random64() % 16);
    if (!p->exists) {
        *p = (struct page){.exists = true, .slot = (uint8_t)(random64() % VMS)};
        p->frame = new_frame(p->slot);
    } else if (p->shared) {
        if (what < 4) {
            assert_int_equal(unshare(p->key, p->frame, p->slot), p->indexed);
            p->shared = p->remembered = false;
        }
    } else if (what == 0) {
        frame_free(p->frame, 0, &accounts[p->slot]);
        p->exists = p->remembered = false;
    } else if (what == 1) {
        frame_end_version(p->frame);
    } else if (what == 2 && p->remembered) {
        forget(p->key, p->as);
        p->remembered = p->member = false;
    } else if (what == 3) {
        // Under the key it was remembered with, or another one.
        bool same = p->remembered && random64() % 2 == 0;
        uint64_t key = same ? p->key : random_key();
        bool member = same && p->member && is_live(p);
        unsigned shared_before = 0;
        for (unsigned i = 0; i < PAGES; i++)
            shared_before += pages[i].shared && pages[i].indexed &&
                             index_number(pages[i].key) == index_number(key);
        bool full = occupants(index_number(key), -1) == INDEX_BUCKET && !member;
        p->indexed = share(key, (uint8_t)(random64() % 2), p->frame, p->slot);
        // The group is the table's word only: take it from there.
        p->shared = true;
        p->remembered = p->member = false;
        p->key = key;
        hfn_t out[INDEX_BUCKET];
        p->group = 1;
        for (unsigned i = shared_at(key, 0, out); i-- > 0;)
            p->group = out[i].raw == p->frame.raw ? 0 : p->group;
        assert_int_equal(p->indexed, shared_before < INDEX_BUCKET);
        judge(-1, full && p->indexed);
        return;
    } else {
        step_remember(p);
        return;
    }
    judge(-1, false);
}

static void test_random(void **state)
{
    (void)state;
    for (uint64_t seed = 1; seed <= 300; seed++) {
        random_state = seed;
        start(BUCKETS);
        memset(pages, 0, sizeof(pages));
        for (uint8_t s = 0; s < VMS; s++)
            index_set_quota(s, seed % 3 == 0 ? 1000 : 1 + random64() % 12);
        for (unsigned i = 0; i < 400; i++)
            step();
        finish();
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_random),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
