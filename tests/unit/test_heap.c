// SPDX-License-Identifier: BSD-2-Clause
// sources: kernel/heap.c kernel/frames.c kernel/frame_buddy.c kernel/frame_cache.c
// sources: kernel/frame_zero.c kernel/frame_poison.c kernel/frame_account.c kernel/lock.c
// sources: kernel/frame_hold.c
// The heap: alignment, zeroed memory, no overlap, every frame back, exhaustion, broken use.
#include "frames_machine.h"
#include "kernel/heap.h"

#define FRAMES 2048u

static int setup(void **state)
{
    (void)state;
    frames_machine(FRAMES, 2);
    heap_init();
    return 0;
}

static uint64_t used(void)
{
    return snapshot().count[FRAME_FUSOR];
}

static bool is_byte(const void *p, size_t size, uint8_t byte)
{
    for (size_t i = 0; i < size; i++) {
        if (((const uint8_t *)p)[i] != byte)
            return false;
    }
    return true;
}

static void test_every_size(void **state)
{
    (void)state;
    for (size_t size = 0; size <= 20000; size += size < 5000 ? 1 : 997) {
        void *p = heap_alloc(size);
        assert_non_null(p);
        assert_int_equal((uintptr_t)p % 16, 0);
        if (size >= 4096)
            assert_int_equal(pointer_to_hpa(p).raw % PAGE_SIZE, 0);
        assert_true(is_byte(p, size, 0));
        memset(p, 0xee, size);
        // No more frames than pages: what the buddy's power of two is too much went back.
        assert_int_equal(used(), size <= 4096 ? 1 : (size + 4095) / 4096);
        heap_free(p);
        assert_int_equal(used(), 0);
    }
    heap_free(NULL);
}

static void test_slabs_are_shared(void **state)
{
    (void)state;
    void *p[256];
    for (unsigned i = 0; i < 256; i++)
        p[i] = heap_alloc(16);
    assert_int_equal(used(), 1);
    void *more = heap_alloc(16);
    assert_int_equal(used(), 2);
    heap_free(more);
    assert_int_equal(used(), 1);
    heap_free(p[17]);
    assert_ptr_equal(heap_alloc(9), p[17]);
    for (unsigned i = 0; i < 256; i++)
        heap_free(p[i]);
    assert_int_equal(used(), 0);
    void *a = heap_alloc(2048), *b = heap_alloc(2000);
    assert_int_equal(used(), 1); // two fit, as there is no header
    heap_free(a);
    heap_free(b);
    assert_int_equal(used(), 0);
}

struct piece {
    uint8_t *p;
    size_t size;
    uint8_t content;
};

static void test_random(void **state)
{
    (void)state;
    srand(7);
    static struct piece held[2000];
    size_t count = 0;
    for (unsigned step = 0; step < 60000; step++) {
        fake_set_cpu((unsigned)rand() % 2);
        bool grow = step / 4000 % 2 == 0;
        if (rand() % 10 < (grow ? 7 : 3) && count < ARRAY_SIZE(held)) {
            size_t size = rand() % 50 == 0 ? (size_t)rand() % 60000 : (size_t)rand() % 3000;
            struct piece piece = {heap_alloc(size), size, (uint8_t)rand()};
            if (piece.p == NULL)
                continue;
            assert_true(is_byte(piece.p, size, 0));
            memset(piece.p, piece.content, size);
            held[count++] = piece;
        } else if (count != 0) {
            size_t i = (size_t)rand() % count;
            assert_true(is_byte(held[i].p, held[i].size, held[i].content));
            heap_free(held[i].p);
            held[i] = held[--count];
        }
    }
    while (count != 0) {
        count--;
        assert_true(is_byte(held[count].p, held[count].size, held[count].content));
        heap_free(held[count].p);
    }
    assert_int_equal(used(), 0);
}

static void test_exhaustion(void **state)
{
    (void)state;
    assert_null(heap_alloc(FRAMES * PAGE_SIZE));
    assert_null(heap_alloc(SIZE_MAX));
    assert_null(heap_alloc(SIZE_MAX - 4096));
    assert_int_equal(used(), 0);
    void *last = NULL;
    unsigned count = 0;
    for (void *p; (p = heap_alloc(1024)) != NULL; count++) {
        *(void **)p = last;
        last = p;
    }
    assert_int_equal(count, (FRAMES - 1) * 4);
    assert_null(heap_alloc(5000));
    assert_null(heap_alloc(16));
    heap_free(last == NULL ? NULL : *(void **)last); // leaks the rest on purpose
    assert_non_null(heap_alloc(1024));
}

static void test_broken_use_panics(void **state)
{
    (void)state;
    char *p = heap_alloc(100), *q = heap_alloc(100), *run = heap_alloc(10000);
    assert_true(fake_expect_panic(heap_free(run + 4096)));
    assert_true(fake_expect_panic(heap_free(run + 16)));
    heap_free(run);
    assert_true(fake_expect_panic(heap_free(run)));
    assert_true(fake_expect_panic(heap_free(hpa_to_pointer(hpa(0)))));
    assert_true(fake_expect_panic(heap_free(p + 16))); // with the heap's lock held: start afresh
    setup(state);
    p = heap_alloc(100), q = heap_alloc(100);
    heap_free(p);
    assert_true(fake_expect_panic(heap_free(p)));
    setup(state);
    p = heap_alloc(100), q = heap_alloc(100);
    heap_free(q);
    q[50] = 1;
    assert_true(fake_expect_panic((void)heap_alloc(100)));
    assert_non_null(p);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup(test_every_size, setup),
        cmocka_unit_test_setup(test_slabs_are_shared, setup),
        cmocka_unit_test_setup(test_random, setup),
        cmocka_unit_test_setup(test_exhaustion, setup),
        cmocka_unit_test_setup(test_broken_use_panics, setup),
    };
    return cmocka_run_group_tests_name("heap", tests, NULL, NULL);
}
