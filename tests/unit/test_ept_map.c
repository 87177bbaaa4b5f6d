// SPDX-License-Identifier: BSD-2-Clause
// EPT tables: each function by itself.
// sources: ept/walk.c ept/map.c ept/large.c ept/destroy.c ept/shootdown.c

#include "ept_world.h"

#include "kernel/irq.h"

void irq_send_nmi(uint32_t cpu)
{
    (void)cpu;
    fail_msg("no CPU is in a guest here");
}

#define GIB_PAGES (1u << 18)

static struct ept ept;

static void small_start(void)
{
    world_start(2);
    assert_int_equal(ept_init(&ept, 1), 0);
}

static void small_end(void)
{
    world_end_ept(&ept);
    assert_int_equal(frames_live, 0);
}

static void test_init(void **state)
{
    (void)state;
    world_start(1);
    fail_at = 1;
    memset(&ept, 0x5a, sizeof(ept));
    assert_int_equal(ept_init(&ept, 3), E_NOMEM);
    assert_int_equal(frames_live, 0);
    assert_int_equal(ept_destroy(&ept, 1), 0); // harmless
    assert_int_equal(ept_init(&ept, 3), 0);
    assert_int_equal(ept.table_frames, 1);
    assert_int_equal(ept.vm_id, 3);
    assert_int_equal(ept.eptp, ept.root.raw | 0x5e);
    small_end();

    ept_features.accessed_dirty = false;
    assert_int_equal(ept_init(&ept, 3), 0);
    assert_int_equal(ept.eptp, ept.root.raw | 0x1e);
    small_end();
}

static void test_bad_arguments(void **state)
{
    (void)state;
    small_start();
    gfn_t beyond = gfn(EPT_GFN_LIMIT);
    struct ept_leaf old;
    hfn_t table;
    bool dirty;
    assert_int_equal(ept_prepare(&ept, beyond), E_RANGE);
    assert_int_equal(ept_prepare(&ept, gfn(UINT64_MAX)), E_RANGE);
    assert_int_equal(ept_prepare_level(&ept, gfn(0), (enum ept_level)4), E_INVAL);
    assert_int_equal(ept_prepare_level(&ept, gfn(0), (enum ept_level)0), E_INVAL);
    assert_int_equal(ept_map(&ept, beyond, hfn(1), EPT_4K, EPT_RWX, EPT_KIND_PRIVATE), E_RANGE);
    assert_int_equal(ept_replace(&ept, beyond, hfn(1), EPT_4K, EPT_RWX, EPT_KIND_PRIVATE, &old),
                     E_RANGE);
    assert_int_equal(ept_unmap(&ept, beyond, &old), E_RANGE);
    assert_int_equal(ept_protect(&ept, beyond, EPT_READ, EPT_KIND_PRIVATE), E_RANGE);
    assert_int_equal(ept_split_large(&ept, beyond, hfn(1)), E_RANGE);
    assert_int_equal(ept_collapse(&ept, beyond, &table), E_RANGE);
    assert_int_equal(ept_replace_table(&ept, beyond, hfn(512), EPT_RWX, EPT_KIND_PRIVATE, &table),
                     E_RANGE);
    assert_int_equal(ept_test_clear_dirty(&ept, beyond, &dirty), E_RANGE);
    assert_false(ept_lookup(&ept, beyond).present);
    assert_false(ept_lookup(&ept, gfn(UINT64_MAX)).present);
    assert_int_equal(frames_live, 1);

    assert_int_equal(ept_prepare(&ept, gfn(0)), 0);
    assert_int_equal(ept_map(&ept, gfn(0), hfn(1), EPT_4K, 0, EPT_KIND_PRIVATE), E_INVAL);
    assert_int_equal(ept_map(&ept, gfn(0), hfn(1), EPT_4K, 8, EPT_KIND_PRIVATE), E_INVAL);
    assert_int_equal(ept_map(&ept, gfn(0), hfn(1), EPT_4K, EPT_WRITE, EPT_KIND_PRIVATE), E_INVAL);
    assert_int_equal(
        ept_map(&ept, gfn(0), hfn(1), EPT_4K, EPT_WRITE | EPT_EXECUTE, EPT_KIND_PRIVATE), E_INVAL);
    assert_int_equal(ept_map(&ept, gfn(0), hfn(1), EPT_4K, EPT_READ | EPT_WRITE, EPT_KIND_ZERO),
                     E_INVAL);
    assert_int_equal(ept_map(&ept, gfn(0), hfn(1), EPT_4K, EPT_READ, (enum ept_kind)4), E_INVAL);
    assert_int_equal(ept_map(&ept, gfn(0), hfn(1), EPT_4K, EPT_RWX, EPT_KIND_SHARED), E_INVAL);
    assert_int_equal(ept_map(&ept, gfn(0), hfn(1), EPT_4K, EPT_RWX, EPT_KIND_CANDIDATE), E_INVAL);
    assert_int_equal(
        ept_map(&ept, gfn(0), hfn(UINT64_C(1) << 40), EPT_4K, EPT_RWX, EPT_KIND_PRIVATE), E_INVAL);
    assert_int_equal(ept_map(&ept, gfn(1), hfn(512), EPT_2M, EPT_RWX, EPT_KIND_PRIVATE), E_INVAL);
    assert_int_equal(ept_map(&ept, gfn(512), hfn(511), EPT_2M, EPT_RWX, EPT_KIND_PRIVATE), E_INVAL);
    assert_int_equal(ept_map(&ept, gfn(0), hfn(512), EPT_1G, EPT_RWX, EPT_KIND_PRIVATE), E_INVAL);
    assert_int_equal(ept_map(&ept, gfn(0), hfn(1), (enum ept_level)0, EPT_RWX, EPT_KIND_PRIVATE),
                     E_INVAL);
    ept_features.execute_only = false;
    assert_int_equal(ept_map(&ept, gfn(0), hfn(1), EPT_4K, EPT_EXECUTE, EPT_KIND_PRIVATE), E_INVAL);
    ept_features.page_2m = ept_features.page_1g = false;
    assert_int_equal(ept_map(&ept, gfn(512), hfn(512), EPT_2M, EPT_RWX, EPT_KIND_PRIVATE), E_NOSYS);
    assert_int_equal(
        ept_map(&ept, gfn(GIB_PAGES), hfn(GIB_PAGES), EPT_1G, EPT_RWX, EPT_KIND_PRIVATE), E_NOSYS);
    assert_int_equal(ept_replace_table(&ept, gfn(0), hfn(512), EPT_RWX, EPT_KIND_PRIVATE, &table),
                     E_NOSYS);
    for (unsigned i = 0; i < 512; i++)
        assert_int_equal(ept_map(&ept, gfn(i), hfn(1024 + i), EPT_4K, EPT_RWX, EPT_KIND_PRIVATE),
                         0);
    assert_int_equal(ept_collapse(&ept, gfn(0), &table), E_NOSYS);
    ept_features.page_2m = true;
    assert_int_equal(ept_collapse(&ept, gfn(0), &table), 0);
    ept_table_free(table);

    // With execution withheld nothing would be left of an execute-only leaf.
    ept_features.execute_only = true;
    ept_features.large_executable_safe = false;
    assert_int_equal(ept_protect(&ept, gfn(0), EPT_EXECUTE, EPT_KIND_PRIVATE), E_INVAL);
    assert_true(ept_lookup(&ept, gfn(0)).present);
    small_end();
}

static void test_replace_table_of_empty(void **state)
{
    (void)state;
    small_start();
    hfn_t table;
    assert_int_equal(ept_prepare(&ept, gfn(700)), 0);
    assert_int_equal(ept_map(&ept, gfn(512), hfn(512), EPT_2M, EPT_RWX, EPT_KIND_PRIVATE), E_EXIST);
    assert_int_equal(
        ept_replace_table(&ept, gfn(700), hfn(1024), EPT_RWX, EPT_KIND_PRIVATE, &table), 0);
    assert_int_equal(ept.table_frames + 1, frames_live);
    ept_table_free(table);
    assert_int_equal(ept_lookup(&ept, gfn(700)).frame.raw, 1024 + 188);
    // Prepared before the promotion, mapped after it.
    assert_int_equal(ept_map(&ept, gfn(700), hfn(5), EPT_4K, EPT_RWX, EPT_KIND_PRIVATE), E_EXIST);
    struct ept_leaf old;
    assert_int_equal(ept_unmap(&ept, gfn(700), &old), 0);
    assert_int_equal(ept_map(&ept, gfn(700), hfn(5), EPT_4K, EPT_RWX, EPT_KIND_PRIVATE), E_AGAIN);
    small_end();
}

static void test_destroy_in_steps(void **state)
{
    (void)state;
    small_start();
    for (unsigned i = 0; i < 100; i++)
        assert_int_equal(ept_prepare(&ept, gfn(i * UINT64_C(0x3ffff01))), 0);
    unsigned live = frames_live;
    assert_true(live > 200);
    assert_int_equal(ept_destroy(&ept, 0), E_AGAIN);
    assert_int_equal(frames_live, live);
    int result;
    do {
        unsigned before = frames_live;
        result = ept_destroy(&ept, 7);
        assert_true(before - frames_live <= 7 && before > frames_live);
        assert_int_equal(ept.table_frames, frames_live);
    } while (result == E_AGAIN);
    assert_int_equal(result, 0);
    assert_int_equal(frames_live, 0);
    assert_int_equal(ept_destroy(&ept, 7), 0); // nothing twice
}

static void ignore_leaf(void *context, gfn_t at, struct ept_leaf leaf)
{
    (void)at;
    (void)leaf;
    ++*(unsigned *)context;
}

// Tables without leaves must not make one call unbounded.
static void test_for_each_is_bounded_in_empty_tables(void **state)
{
    (void)state;
    small_start();
    for (unsigned i = 0; i < 300; i++)
        assert_int_equal(ept_prepare(&ept, gfn(i * UINT64_C(512))), 0);
    assert_int_equal(ept_map(&ept, gfn(300 * 512 - 1), hfn(9), EPT_4K, EPT_READ, EPT_KIND_SHARED),
                     0);
    gfn_t next = gfn(0);
    unsigned leaves = 0, calls = 0;
    while (ept_for_each(&ept, &next, 10, ignore_leaf, &leaves) == E_AGAIN)
        calls++;
    assert_int_equal(leaves, 1);
    unsigned costs = 300 * ARCH_EPT_ENTRIES / EPT_EMPTY_PER_LEAF; // and the upper levels' tables
    assert_in_range(calls, costs / 10, costs / 10 + 10);
    next = gfn(0);
    assert_int_equal(ept_for_each(&ept, &next, 0, ignore_leaf, &leaves), E_AGAIN);
    assert_int_equal(next.raw, 0);
    small_end();
}

static void test_locks(void **state)
{
    (void)state;
    small_start();
    static struct ept other;
    assert_int_equal(ept_init(&other, 2), 0);
    gfn_t a = gfn(5), same_range = gfn(500), same_hash = gfn(512 * EPT_LOCKS + 3), b = gfn(512 * 3);
    assert_true(ept_same_lock(&ept, a, same_range));
    assert_true(ept_same_lock(&ept, a, same_hash));
    assert_false(ept_same_lock(&ept, a, b));

    ept_lock_pair(&ept, a, &ept, same_hash);
    assert_int_equal(locks_held, 1);
    ept_unlock_pair(&ept, a, &ept, same_hash);

    // Ranges 1 and 64, whose locks are 1 and 0: both ways round lock 0 first.
    for (unsigned i = 0; i < 2; i++) {
        gfn_t one = gfn(512), far = gfn(512 * 64);
        ept_lock_pair(&ept, i ? one : far, &ept, i ? far : one);
        assert_int_equal(locks_held, 2);
        assert_ptr_equal(locks_taken[0], &ept.locks[0]);
        assert_ptr_equal(locks_taken[1], &ept.locks[1]);
        ept_unlock_pair(&ept, i ? one : far, &ept, i ? far : one);
        assert_int_equal(locks_held, 0);
    }
    for (unsigned i = 0; i < 2; i++) {
        struct ept *x = i ? &other : &ept, *y = i ? &ept : &other;
        ept_lock_pair(x, a, y, same_range); // the same index, but two locks
        assert_ptr_equal(locks_taken[0], &ept.locks[0]);
        assert_ptr_equal(locks_taken[1], &other.locks[0]);
        ept_unlock_pair(x, a, y, same_range);
        assert_int_equal(locks_held, 0);
    }
    ept_lock_gfn(&ept, a);
    ept_lock_gfn_nested(&ept, b);
    ept_unlock_gfn(&ept, same_range);
    ept_unlock_gfn(&ept, b);
    assert_int_equal(locks_held, 0);
    world_end_ept(&other);
    small_end();
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_init),
        cmocka_unit_test(test_bad_arguments),
        cmocka_unit_test(test_replace_table_of_empty),
        cmocka_unit_test(test_destroy_in_steps),
        cmocka_unit_test(test_for_each_is_bounded_in_empty_tables),
        cmocka_unit_test(test_locks),
    };
    return cmocka_run_group_tests_name("ept tables", tests, NULL, NULL);
}
