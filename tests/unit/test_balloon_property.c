// SPDX-License-Identifier: BSD-2-Clause
// sources: tests/unit/fusion_world.c tests/unit/fusion_guest.c tests/unit/fusion_check.c
// sources: vm/memory.c vm/ballooned.c vm/shortage.c
// sources: balloon/pages.c
// sources: fusion/backoff.c fusion/budget.c fusion/control.c fusion/fuse.c fusion/index.c
// sources: fusion/index_table.c fusion/intake.c fusion/members.c fusion/page_general.c
// sources: fusion/page_ops.c fusion/range.c fusion/service.c fusion/split.c
// sources: ept/walk.c ept/map.c ept/large.c ept/destroy.c ept/shootdown.c ept/fault.c
// sources: kernel/frames.c kernel/frame_buddy.c kernel/frame_cache.c kernel/frame_zero.c
// sources: kernel/frame_poison.c kernel/frame_account.c kernel/frame_share.c kernel/heap.c
// sources: kernel/lock.c kernel/format.c
// libs: -Wl,--wrap=ept_shootdown,--wrap=ept_lookup,--wrap=spin_lock,--wrap=spin_lock_nested
// libs: -Wl,--wrap=frame_alloc,--wrap=heap_alloc,--wrap=page_ops_begin,--wrap=page_ops_end
// The balloon at random.
#include "balloon_world.h"

// --- At random ---

static uint64_t seed;

static unsigned random_below(unsigned n)
{
    seed = seed * 6364136223846793005 + 1442695040888963407;
    return (unsigned)(seed >> 33) % n;
}

static void test_random(void **state)
{
    (void)state;
    static const uint64_t gfns[] = {P, P + 1, P + 2, R - 512, R - 1, R, R + 1, R + 511, 300, 301};
    for (seed = 1; seed < 40; seed++) {
        uint64_t kept = seed;
        start(3);
        for (unsigned turn = 0; turn < 400; turn++) {
            unsigned n = random_below(3), cpu = 1 + random_below(3);
            uint64_t gfn = gfns[random_below(ARRAY_SIZE(gfns))];
            gfn = MIN(gfn, UINT64_C(1023));
            world_use(0);
            switch (random_below(10)) {
            case 0:
            case 1:
                fill(cpu, n, gfn, random_below(3) * 7);
                break;
            case 2:
                store(cpu, n, gfn, 8 * random_below(512), random_below(4));
                break;
            case 3:
                load(cpu, n, gfn);
                break;
            case 4:
                hint(n, gfn);
                break;
            case 5:
                one(balloon_deflate, n, gfn, 0);
                break;
            case 6:
                one(balloon_free_pages, n, gfn, 0);
                break;
            case 7:
                if (random_below(8) == 0)
                    one(random_below(2) != 0 ? balloon_inflate : balloon_deflate, n, R - 512, 9);
                break;
            case 8:
                if (random_below(20) == 0)
                    world_reset(n);
                break;
            default:
                inflate(n, gfn);
                break;
            }
        }
        world_check();
        world_check_contents();
        world_finish();
        seed = kept;
    }
}

int main(void)
{
    static const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_random),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
