// SPDX-License-Identifier: BSD-2-Clause
// The string functions against the C library's, at all alignments and around every threshold. The
// file is compiled in under other names, so that the program keeps its own.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <stdlib.h>
#include <string.h>

#define memcpy  fusor_memcpy
#define memmove fusor_memmove
#define memset  fusor_memset
#define memcmp  fusor_memcmp
#define memchr  fusor_memchr
#define strlen  fusor_strlen
#define strnlen fusor_strnlen
#define strcmp  fusor_strcmp
#define strncmp fusor_strncmp
#define strchr  fusor_strchr
#include "../../kernel/string.c"
#undef memcpy
#undef memmove
#undef memset
#undef memcmp
#undef memchr
#undef strlen
#undef strnlen
#undef strcmp
#undef strncmp
#undef strchr

#define AREA 1024u

static uint8_t a[AREA], b[AREA], source[AREA];

static void fill_random(uint8_t *p, size_t size)
{
    for (size_t i = 0; i < size; i++)
        p[i] = (uint8_t)rand();
}

static int sign(int n)
{
    return (n > 0) - (n < 0);
}

static size_t some_size(void)
{
    return (size_t)rand() % (rand() % 2 == 0 ? 24 : 400);
}

static void test_copy_and_set(void **state)
{
    (void)state;
    fill_random(source, AREA);
    for (unsigned i = 0; i < 40000; i++) {
        size_t size = some_size(), from = (size_t)rand() % 64, to = (size_t)rand() % 64;
        fill_random(a, 520);
        memcpy(b, a, AREA);
        assert_ptr_equal(fusor_memcpy(a + to, source + from, size), a + to);
        memcpy(b + to, source + from, size);
        assert_memory_equal(a, b, AREA);
        int byte = rand();
        assert_ptr_equal(fusor_memset(a + from, byte, size), a + from);
        memset(b + from, byte, size);
        assert_memory_equal(a, b, AREA);
    }
}

static void test_move(void **state)
{
    (void)state;
    fill_random(a, AREA);
    for (unsigned i = 0; i < 60000; i++) {
        size_t size = some_size(), from = (size_t)rand() % 64, to = (size_t)rand() % 64;
        if (i % 3 == 0)
            to = (size_t)rand() % 600;
        memcpy(b, a, AREA);
        assert_ptr_equal(fusor_memmove(a + to, a + from, size), a + to);
        memmove(b + to, b + from, size);
        assert_memory_equal(a, b, AREA);
    }
}

static void test_compare(void **state)
{
    (void)state;
    for (unsigned i = 0; i < 40000; i++) {
        size_t size = some_size(), x = (size_t)rand() % 16, y = (size_t)rand() % 16;
        fill_random(a + x, size);
        memcpy(b + y, a + x, size);
        assert_int_equal(fusor_memcmp(a + x, b + y, size), 0);
        if (size == 0)
            continue;
        // Two differences: the first decides.
        b[y + (size_t)rand() % size] ^= (uint8_t)(1 + rand() % 255);
        b[y + (size_t)rand() % size] ^= (uint8_t)(1 + rand() % 255);
        assert_int_equal(fusor_memcmp(a + x, b + y, size), sign(memcmp(a + x, b + y, size)));
        int byte = rand() % 256;
        assert_ptr_equal(fusor_memchr(a + x, byte, size), memchr(a + x, byte, size));
    }
}

static void test_strings(void **state)
{
    (void)state;
    for (unsigned i = 0; i < 60000; i++) {
        char s[24], t[24];
        size_t n = (size_t)rand() % sizeof(s), m = (size_t)rand() % sizeof(t);
        for (size_t k = 0; k < n; k++)
            s[k] = "ab\xff"[rand() % 3];
        s[n] = '\0';
        memcpy(t, s, sizeof(s));
        t[m] = '\0';
        if (m != 0 && rand() % 2 == 0)
            t[(size_t)rand() % m] = 'b';
        size_t max = (size_t)rand() % 30;
        assert_int_equal(fusor_strlen(s), strlen(s));
        assert_int_equal(fusor_strnlen(s, max), strnlen(s, max));
        assert_int_equal(sign(fusor_strcmp(s, t)), sign(strcmp(s, t)));
        assert_int_equal(sign(fusor_strncmp(s, t, max)), sign(strncmp(s, t, max)));
        int c = "ab\xff"
                "c"[rand() % 5]; // the terminator too
        assert_ptr_equal(fusor_strchr(s, c), strchr(s, c));
    }
}

int main(void)
{
    srand(3);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_copy_and_set),
        cmocka_unit_test(test_move),
        cmocka_unit_test(test_compare),
        cmocka_unit_test(test_strings),
    };
    return cmocka_run_group_tests_name("string", tests, NULL, NULL);
}
