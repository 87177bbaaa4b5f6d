// SPDX-License-Identifier: BSD-2-Clause
// sources: kernel/frame_hold.c
// sources: fusion/census_list.c kernel/frames.c kernel/frame_buddy.c kernel/frame_cache.c
// sources: kernel/frame_zero.c kernel/frame_poison.c kernel/frame_account.c kernel/heap.c
// sources: kernel/lock.c
// The census's list of hashes: sorted like qsort() does it, and every frame back.
#include "fake/random.h"
#include "frames_machine.h"
#include "fusion/census_list.h"
#include "kernel/heap.h"
#include "kernel/lock.h"
#include "kernel/sched.h"

void fiber_give_way_if_due(void)
{
}

void fiber_yield(void)
{
    assert_true(spin_none_held());
}

static int by_value(const void *a, const void *b)
{
    uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
    return (x > y) - (x < y);
}

static void test_sort(void **state)
{
    (void)state;
    static const uint64_t counts[] = {0,    1,    2,    3,     4,      511,    512,   513,
                                      1000, 4095, 5000, 65536, 262144, 262145, 300000};
    static const uint64_t masks[] = {UINT64_MAX, 0xff, 0, 1};
    static uint64_t naive[300000];
    frames_machine(1024, 1);
    heap_init();
    for (unsigned i = 0; i < ARRAY_SIZE(counts); i++) {
        for (unsigned m = 0; m < ARRAY_SIZE(masks) + 2; m++) {
            uint64_t n = counts[i], before = free_frames();
            struct census_list list;
            assert_int_equal(census_list_create(&list, n), 0);
            for (uint64_t j = 0; j < n; j++) {
                assert_int_equal(*census_list_at(&list, j), 0);
                naive[j] = m < ARRAY_SIZE(masks)    ? random64() & masks[m]
                           : m == ARRAY_SIZE(masks) ? j
                                                    : n - j;
                *census_list_at(&list, j) = naive[j];
            }
            uint64_t sorted = n - n / 7; // a part of it
            census_list_sort(&list, sorted);
            qsort(naive, sorted, sizeof(*naive), by_value);
            for (uint64_t j = 0; j < n; j++)
                if (*census_list_at(&list, j) != naive[j])
                    fail();
            census_list_destroy(&list);
            assert_int_equal(free_frames(), before);
        }
    }
    frames_machine_end();
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_sort),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
