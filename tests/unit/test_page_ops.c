// SPDX-License-Identifier: BSD-2-Clause
// sources: fusion/page_ops.c fusion/page_general.c fusion/simd_avx2.c
// Hash, compare and copy of pages, with vector registers (where the machine has AVX2) and without.
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "fake.h"
#include "fake/random.h"
#include "fusion/page_key.h"
#include "fusion/page_ops.h"
#include "simd.h"

#define SPARSE (1u << 20)

// Three pages in a row; the middle one's neighbours show stray writes.
static uint64_t pages[3][PAGE_WORDS] __attribute__((aligned(4096)));
static uint64_t other[PAGE_WORDS] __attribute__((aligned(4096)));
static uint64_t *const page = pages[1];

static void draw_key(uint64_t seed)
{
    random_state = seed;
    page_ops_init(random64);
}

static void fill_random(uint64_t *p)
{
    for (unsigned i = 0; i < PAGE_WORDS; i++)
        p[i] = random64();
}

// The state of each test is the way it goes; a machine without AVX2 skips.
static const struct page_ops *way(void **state)
{
    const struct page_ops *ops = *state;
    if (ops == &page_ops_avx2 && !fake_simd_host_has_avx2()) {
        print_message("this machine has no AVX2\n");
        skip();
    }
    fake_simd_level = ops == &page_ops_avx2 ? SIMD_AVX2 : SIMD_NONE;
    draw_key(1);
    return ops;
}

static void test_equal(void **state)
{
    const struct page_ops *ops = way(state);
    for (unsigned kind = 0; kind < 3; kind++) {
        if (kind == 0)
            fill_random(page);
        else
            memset(page, kind == 1 ? 0 : 0xff, PAGE_SIZE);
        memcpy(other, page, PAGE_SIZE);
        assert_true(ops->equal(page, other));
        assert_true(ops->equal(page, page));
        for (unsigned bit = 0; bit < PAGE_WORDS * 64; bit++) {
            other[bit / 64] ^= UINT64_C(1) << bit % 64;
            assert_false(ops->equal(page, other));
            assert_false(ops->equal(other, page));
            other[bit / 64] ^= UINT64_C(1) << bit % 64;
        }
        // Two differences that cancel in a sum or an exclusive or.
        for (unsigned i = 1; i < PAGE_WORDS; i++) {
            other[0] ^= 5;
            other[i] ^= 5;
            assert_false(ops->equal(page, other));
            other[0] ^= 5;
            other[i] ^= 5;
        }
        assert_true(ops->equal(page, other));
    }
}

static void test_copy(void **state)
{
    const struct page_ops *ops = way(state);
    fill_random(other);
    memset(pages, 0x5a, sizeof(pages));
    uint64_t before[PAGE_WORDS], guard[PAGE_WORDS];
    memcpy(before, other, PAGE_SIZE);
    memset(guard, 0x5a, PAGE_SIZE);
    ops->copy(page, other);
    assert_memory_equal(page, before, PAGE_SIZE);
    assert_memory_equal(other, before, PAGE_SIZE);
    assert_memory_equal(pages[0], guard, PAGE_SIZE);
    assert_memory_equal(pages[2], guard, PAGE_SIZE);
}

static uint64_t fold(uint64_t a, uint64_t b, const uint64_t *key)
{
    page_u128 product = (page_u128)(a + key[0]) * (b + key[1]);
    return (uint64_t)product ^ (uint64_t)(product >> 64);
}

// What page_key.h describes, word by word.
static uint64_t reference(const struct page_ops *ops, const uint64_t *m)
{
    const uint64_t *final = page_key + PAGE_WORDS;
    if (ops == &page_ops_general) {
        page_u128 sum = 0;
        for (unsigned i = 0; i < PAGE_WORDS; i += 2)
            sum += (page_u128)(m[i] + page_key[i]) * (m[i + 1] + page_key[i + 1]);
        return fold((uint64_t)sum, (uint64_t)(sum >> 64), final);
    }
    uint64_t sums[4] = {0};
    for (unsigned i = 0; i < PAGE_WORDS; i++) {
        uint32_t low = (uint32_t)m[i] + (uint32_t)page_key[i];
        uint32_t high = (uint32_t)(m[i] >> 32) + (uint32_t)(page_key[i] >> 32);
        sums[i % 4] += (uint64_t)low * high;
    }
    return fold(sums[0], sums[1], final) ^ fold(sums[2], sums[3], final + 2);
}

static void test_hash_is_nh(void **state)
{
    const struct page_ops *ops = way(state);
    for (unsigned i = 0; i < 1000; i++) {
        draw_key(i);
        fill_random(page);
        if (i % 3 == 0) // carries everywhere
            memset(page, 0xff, PAGE_SIZE);
        assert_true(ops->hash(page) == reference(ops, page));
    }
}

static int compare_hashes(const void *a, const void *b)
{
    uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
    return (x > y) - (x < y);
}

static void assert_all_different(uint64_t *hashes, size_t n)
{
    qsort(hashes, n, sizeof(*hashes), compare_hashes);
    for (size_t i = 1; i < n; i++)
        assert_true(hashes[i - 1] != hashes[i]);
}

static void test_hash_sees_every_bit(void **state)
{
    const struct page_ops *ops = way(state);
    static uint64_t hashes[PAGE_WORDS * 64 + 1];
    for (unsigned kind = 0; kind < 3; kind++) {
        if (kind == 0)
            fill_random(page);
        else
            memset(page, kind == 1 ? 0 : 0xff, PAGE_SIZE);
        for (unsigned bit = 0; bit < PAGE_WORDS * 64; bit++) {
            page[bit / 64] ^= UINT64_C(1) << bit % 64;
            hashes[bit] = ops->hash(page);
            page[bit / 64] ^= UINT64_C(1) << bit % 64;
        }
        hashes[PAGE_WORDS * 64] = ops->hash(page);
        assert_all_different(hashes, ARRAY_SIZE(hashes));
    }
}

// Pages of the same words in another order: exchanged words, blocks and halves of words.
static void test_hash_sees_places(void **state)
{
    const struct page_ops *ops = way(state);
    static uint64_t hashes[PAGE_WORDS * 3];
    size_t n = 0;
    fill_random(page);
    hashes[n++] = ops->hash(page);
    for (unsigned i = 1; i < PAGE_WORDS; i++) {
        memcpy(other, page, PAGE_SIZE);
        other[0] = page[i];
        other[i] = page[0];
        hashes[n++] = ops->hash(other);
    }
    for (unsigned words = 4; words < PAGE_WORDS; words *= 2) // rotated
        for (unsigned i = words; i < PAGE_WORDS; i += words * 2) {
            memcpy(other, page + i, (PAGE_WORDS - i) * 8);
            memcpy(other + PAGE_WORDS - i, page, i * 8);
            hashes[n++] = ops->hash(other);
        }
    for (unsigned i = 0; i < PAGE_WORDS; i++) {
        memcpy(other, page, PAGE_SIZE);
        other[i] = page[i] << 32 | page[i] >> 32;
        hashes[n++] = ops->hash(other);
    }
    assert_all_different(hashes, n);
}

static void test_hash_is_keyed(void **state)
{
    const struct page_ops *ops = way(state);
    static uint64_t hashes[4][4096];
    fill_random(other);
    for (unsigned i = 0; i < ARRAY_SIZE(hashes[0]); i++) {
        draw_key(1000 + i);
        memset(page, 0, PAGE_SIZE);
        hashes[0][i] = ops->hash(page); // zero: not special under any key
        page[i % PAGE_WORDS] = 1;
        hashes[1][i] = ops->hash(page);
        memset(page, 0xff, PAGE_SIZE);
        hashes[2][i] = ops->hash(page);
        hashes[3][i] = ops->hash(other);
        assert_true(hashes[0][i] != hashes[1][i]);
    }
    for (unsigned kind = 0; kind < ARRAY_SIZE(hashes); kind++) {
        assert_all_different(hashes[kind], ARRAY_SIZE(hashes[kind]));
        assert_true(hashes[kind][0] != 0); // sorted
    }
}

// How often each value of a byte of the hash occurs among many: within six standard deviations of
// the same for all.
static void assert_even(const uint64_t *hashes, unsigned shift)
{
    unsigned counts[256] = {0};
    for (size_t i = 0; i < SPARSE; i++)
        counts[hashes[i] >> shift & 0xff]++;
    for (unsigned i = 0; i < 256; i++)
        assert_in_range(counts[i], SPARSE / 256 - 6 * 64, SPARSE / 256 + 6 * 64);
}

// 2^20 pages with one or two small numbers in them, as guests have many.
static void test_sparse_pages_do_not_collide(void **state)
{
    const struct page_ops *ops = way(state);
    uint64_t *hashes = malloc(SPARSE * sizeof(*hashes));
    assert_non_null(hashes);
    for (unsigned family = 0; family < 2; family++) {
        memset(page, 0, PAGE_SIZE);
        for (unsigned i = 0; i < SPARSE; i++) {
            // A counter at one place; small numbers at every place.
            unsigned place = family == 0 ? 7 : i % PAGE_WORDS;
            page[place] = family == 0 ? i : i / PAGE_WORDS + 1;
            hashes[i] = ops->hash(page);
            page[place] = 0;
        }
        for (unsigned shift = 0; shift < 64; shift += 8)
            assert_even(hashes, shift);
        assert_all_different(hashes, SPARSE);
    }
    free(hashes);
}

static void test_batches(void **state)
{
    const struct page_ops *ops = way(state);
    bool vector = ops == &page_ops_avx2;
    unsigned before = fake_simd_batches;
    assert_ptr_equal(page_ops_begin(), ops);
    assert_string_equal(ops->name, vector ? "avx2" : "general");
    assert_int_equal(fake_simd_lent, vector);
    page_ops_end();
    assert_false(fake_simd_lent);
    assert_int_equal(fake_simd_batches - before, vector ? 1 : 0);
    if (!vector)
        return;
    page_ops_begin();
    assert_true(fake_expect_panic(page_ops_begin())); // does not nest
    page_ops_end();
    assert_true(fake_expect_panic(page_ops_end()));
}

#define WAYS(test)                                                                                 \
    {#test " (general)", test, NULL, NULL, (void *)(uintptr_t)&page_ops_general},                  \
    {                                                                                              \
#test " (avx2)", test, NULL, NULL, (void *)(uintptr_t)&page_ops_avx2                       \
    }

int main(void)
{
    const struct CMUnitTest tests[] = {
        WAYS(test_equal),
        WAYS(test_copy),
        WAYS(test_hash_is_nh),
        WAYS(test_hash_sees_every_bit),
        WAYS(test_hash_sees_places),
        WAYS(test_hash_is_keyed),
        WAYS(test_sparse_pages_do_not_collide),
        WAYS(test_batches),
    };
    return cmocka_run_group_tests_name("page_ops", tests, NULL, NULL);
}
