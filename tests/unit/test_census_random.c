// SPDX-License-Identifier: BSD-2-Clause
// sources: kernel/frame_hold.c
// sources: fusion/census.c fusion/census_list.c fusion/index.c fusion/index_table.c
// sources: ept/walk.c ept/map.c ept/large.c ept/destroy.c ept/shootdown.c
// sources: kernel/frames.c kernel/frame_buddy.c kernel/frame_cache.c kernel/frame_zero.c
// sources: kernel/frame_poison.c kernel/frame_account.c kernel/heap.c kernel/lock.c
// libs: -Wl,--wrap=frame_alloc
// The census of random VMs, compared with a count of every page against every other.
#include "census_world.h"
#include "fake/random.h"

#define VMS   4u
#define PAGES 60u

static struct model_page {
    int before, after; // content, -1: not there
    hfn_t frame;
} model[VMS][PAGES];

static uint64_t gfn_of(unsigned page)
{
    return page * 17; // over two ranges
}

static void mutate(void)
{
    for (unsigned v = 0; v < VMS; v++) {
        for (unsigned i = 0; i < PAGES; i++) {
            struct model_page *p = &model[v][i];
            unsigned what = (unsigned)(random64() % 12);
            if (p->before < 0) {
                if (what < 3) {
                    p->after = (int)(random64() % 12);
                    p->frame = add_page(v, gfn_of(i), (unsigned)p->after);
                }
            } else if (what == 0) {
                remove_page(v, gfn_of(i));
                p->after = -1;
            } else if (what == 1) {
                p->after = (int)(random64() % 12);
                fill_page(p->frame, (unsigned)p->after);
            } else if (what == 2) { // moved, same content
                remove_page(v, gfn_of(i));
                p->frame = add_page(v, gfn_of(i), (unsigned)p->after);
            }
        }
    }
}

static struct fusion_census naive_count(int group)
{
    struct fusion_census out = {0};
    for (unsigned g = 0; g < INDEX_SLOTS; g++) {
        uint64_t all[12] = {0}, unchanged[12] = {0};
        for (unsigned v = 0; v < VMS; v++) {
            if (fusion_vms[v].group != g || (group >= 0 && (int)g != group))
                continue;
            out.vms++;
            for (unsigned i = 0; i < PAGES; i++) {
                const struct model_page *p = &model[v][i];
                if (p->after < 0)
                    continue;
                all[p->after]++;
                unchanged[p->after] += p->before == p->after;
                out.resident++;
                out.unchanged += p->before == p->after;
            }
        }
        out.zero += all[0];
        for (unsigned c = 0; c < 12; c++) {
            uint64_t beyond = all[c] != 0 ? all[c] - 1 : 0;
            uint64_t unchanged_beyond = unchanged[c] != 0 ? unchanged[c] - 1 : 0;
            out.shareable += beyond;
            out.unchanged_shareable += unchanged_beyond;
            if (c == 0) {
                out.shareable_zero += beyond;
                out.unchanged_shareable_zero += unchanged_beyond;
            }
        }
    }
    return out;
}

static void test_random(void **state)
{
    (void)state;
    for (uint64_t seed = 1; seed <= 200; seed++) {
        random_state = seed;
        machine();
        for (unsigned v = 0; v < VMS; v++) {
            create(v, v + 1, (uint8_t)(1 + random64() % 3), 2);
            for (unsigned i = 0; i < PAGES; i++) {
                struct model_page *p = &model[v][i];
                p->before = (int)(random64() % 13) - 1;
                p->after = p->before;
                if (p->before >= 0)
                    p->frame = add_page(v, gfn_of(i), (unsigned)p->before);
            }
        }
        fusion_vms[0].group = 1;
        sleep_hook = mutate;
        bool named = random64() % 2 == 0;
        struct fusion_census out = census_of(named ? "web" : NULL);
        struct fusion_census expected = naive_count(named ? 1 : -1);
        assert_memory_equal(&out, &expected, sizeof(out));
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
