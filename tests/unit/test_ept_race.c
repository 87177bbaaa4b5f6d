// SPDX-License-Identifier: BSD-2-Clause
// EPT tables under real concurrency: threads as CPUs that prepare, split and change leaves, and one
// that sets accessed and dirty as the page walker does. Nothing may be lost: no flag, no table, no
// split.

// sources: ept/walk.c ept/map.c ept/large.c ept/destroy.c ept/shootdown.c
// libs: -lpthread

#include <pthread.h>
#include <sched.h>

#define frame_alloc frame_alloc_unlocked
#define frame_free  frame_free_unlocked
#include "ept_world.h"
#undef frame_alloc
#undef frame_free

#include "kernel/irq.h"

static pthread_mutex_t frames_mutex = PTHREAD_MUTEX_INITIALIZER;
static struct ept ept;

int frame_alloc(enum frame_state state, unsigned order, unsigned flags,
                struct frame_account *account, hfn_t *out)
{
    pthread_mutex_lock(&frames_mutex);
    int error = frame_alloc_unlocked(state, order, flags, account, out);
    pthread_mutex_unlock(&frames_mutex);
    return error;
}

void frame_free(hfn_t first, unsigned order, struct frame_account *account)
{
    pthread_mutex_lock(&frames_mutex);
    frame_free_unlocked(first, order, account);
    pthread_mutex_unlock(&frames_mutex);
}

void irq_send_nmi(uint32_t cpu)
{
    (void)cpu;
    abort(); // nobody is in a guest here
}

static void run_threads(unsigned n, void *(*function)(void *))
{
    pthread_t threads[4];
    for (uintptr_t i = 0; i < n; i++)
        assert_int_equal(pthread_create(&threads[i], NULL, function, (void *)i), 0);
    for (unsigned i = 0; i < n; i++)
        assert_int_equal(pthread_join(threads[i], NULL), 0);
}

// All threads prepare the same places at the same time.
#define PLACES 150u

static atomic_uint turn;

static void *prepare_all(void *argument)
{
    (void)argument;
    for (unsigned i = 0; i < PLACES; i++) {
        // Side by side, so that they meet in the same entry.
        atomic_fetch_add(&turn, 1);
        while (atomic_load(&turn) < 2 * i)
            sched_yield();
        if (ept_prepare(&ept, gfn(i * UINT64_C(0x1a2b3c7))) != 0)
            abort();
    }
    return NULL;
}

static void test_prepare_at_once(void **state)
{
    (void)state;
    world_start(1);
    assert_int_equal(ept_init(&ept, 1), 0);
    atomic_store(&turn, 0);
    run_threads(2, prepare_all);
    assert_int_equal(ept.table_frames, frames_live);
    for (unsigned i = 0; i < PLACES; i++)
        assert_int_equal(ept_map(&ept, gfn(i * UINT64_C(0x1a2b3c7)), hfn(i + 1), EPT_4K, EPT_RWX,
                                 EPT_KIND_PRIVATE),
                         0);
    world_end_ept(&ept);
    assert_int_equal(frames_live, 0);
}

// The walker sets dirty in a leaf that another CPU protects, splits and collapses.
static atomic_bool stop;
static atomic_ulong set_count;   // dirty flags that the walker set
static atomic_ulong found_count; // and that were found

static bool set_dirty_once(gfn_t at)
{
    struct ept_slot slot = ept_find(&ept, at);
    if (!ept_slot_is_leaf(&slot))
        return false;
    struct arch_ept_leaf leaf = arch_ept_leaf(slot.value, slot.level);
    return (leaf.permissions & EPT_WRITE) != 0 && !leaf.dirty &&
           ept_slot_change(&slot, arch_ept_set_accessed_dirty(slot.value, slot.level, true, true));
}

static void *walker(void *argument)
{
    (void)argument;
    while (!atomic_load(&stop)) {
        for (unsigned i = 0; i < 8; i++)
            if (set_dirty_once(gfn(i * 64)))
                atomic_fetch_add(&set_count, 1);
    }
    return NULL;
}

static void *protector(void *argument)
{
    (void)argument;
    // On a busy machine the walker may get its turn late: it goes on until the two have met.
    for (unsigned i = 0; i < 40000 || atomic_load(&set_count) <= 10; i++) {
        if (i >= 40000)
            sched_yield();
        gfn_t at = gfn(i % 8 * 64);
        bool dirty = false;
        struct ept_leaf old;
        int error = ept_protect(&ept, at, EPT_READ, EPT_KIND_CANDIDATE);
        if (error == 0)
            error = ept_protect(&ept, at, EPT_READ | EPT_WRITE, EPT_KIND_PRIVATE);
        if (error == 0)
            error =
                ept_replace(&ept, at, hfn(1000 + at.raw), EPT_4K, EPT_RWX, EPT_KIND_PRIVATE, &old);
        if (error == 0)
            error = ept_test_clear_dirty(&ept, at, &dirty);
        if (error != 0)
            abort();
        found_count += dirty;
    }
    atomic_store(&stop, true);
    return NULL;
}

static void *walk_or_protect(void *argument)
{
    return argument == NULL ? walker(NULL) : protector(NULL);
}

static void test_no_dirty_flag_is_lost(void **state)
{
    (void)state;
    world_start(1);
    assert_int_equal(ept_init(&ept, 1), 0);
    assert_int_equal(ept_prepare(&ept, gfn(0)), 0);
    for (unsigned i = 0; i < 8; i++)
        assert_int_equal(
            ept_map(&ept, gfn(i * 64), hfn(1000 + i * 64), EPT_4K, EPT_RWX, EPT_KIND_PRIVATE), 0);
    atomic_store(&stop, false);
    atomic_store(&set_count, 0);
    atomic_store(&found_count, 0);
    run_threads(2, walk_or_protect);
    for (unsigned i = 0; i < 8; i++)
        found_count += ept_lookup(&ept, gfn(i * 64)).dirty;
    assert_true(set_count > 10);
    assert_int_equal(found_count, set_count);
    world_end_ept(&ept);
}

// Two CPUs hold the locks of two ranges of one 1 GiB leaf and both want them in 4 KiB, while the
// walker writes to the leaf.
#define LEAF_RANGES 512u

static pthread_barrier_t all_there;

static void *splitter(void *argument)
{
    unsigned range = (unsigned)(uintptr_t)argument;
    pthread_barrier_wait(&all_there);
    if (range == 2) {
        while (!atomic_load(&stop))
            if (set_dirty_once(gfn(0)))
                atomic_fetch_add(&set_count, 1);
        return NULL;
    }
    gfn_t at = gfn(range * 512 + 7);
    while (ept_lookup(&ept, at).level != EPT_4K) {
        hfn_t table;
        if (ept_table_alloc(&table) != 0)
            abort();
        int error = ept_split_large(&ept, at, table);
        if (error != 0)
            ept_table_free(table);
        if (error != 0 && error != E_AGAIN)
            abort();
    }
    if (atomic_fetch_add(&turn, 1) == 1)
        atomic_store(&stop, true);
    return NULL;
}

static void test_two_split_one_leaf(void **state)
{
    (void)state;
    unsigned long dirty_rounds = 0;
    pthread_barrier_init(&all_there, NULL, 3);
    // On a busy machine the walker may get its turn late: it goes on until they have met.
    for (unsigned round = 0; round < 200 || dirty_rounds == 0; round++) {
        world_start(1);
        assert_int_equal(ept_init(&ept, 1), 0);
        assert_int_equal(ept_prepare_level(&ept, gfn(0), EPT_1G), 0);
        assert_int_equal(ept_map(&ept, gfn(0), hfn(1u << 18), EPT_1G, EPT_RWX, EPT_KIND_PRIVATE),
                         0);
        atomic_store(&stop, false);
        atomic_store(&turn, 0);
        atomic_store(&set_count, 0);
        run_threads(3, splitter);
        assert_int_equal(ept_lookup(&ept, gfn(0)).dirty, set_count != 0);
        dirty_rounds += set_count != 0;
        assert_int_equal(ept.large_splits, 3);
        assert_int_equal(ept.large_leaves, LEAF_RANGES - 2);
        assert_int_equal(ept.table_frames, 5);
        assert_int_equal(frames_live, 5);
        for (unsigned i = 0; i < 1024; i += 31) {
            struct ept_leaf leaf = ept_lookup(&ept, gfn(i));
            assert_int_equal(leaf.level, EPT_4K);
            assert_int_equal(leaf.frame.raw, (1u << 18) + i);
        }
        world_end_ept(&ept);
        assert_int_equal(frames_live, 0);
    }
    pthread_barrier_destroy(&all_there);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_prepare_at_once),
        cmocka_unit_test(test_no_dirty_flag_is_lost),
        cmocka_unit_test(test_two_split_one_leaf),
    };
    return cmocka_run_group_tests_name("ept races", tests, NULL, NULL);
}
