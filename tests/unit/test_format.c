// SPDX-License-Identifier: BSD-2-Clause
// sources: kernel/format.c kernel/error.c
// Formatting against the C library's snprintf.
#pragma GCC diagnostic ignored "-Wformat-nonliteral"
#pragma GCC diagnostic ignored "-Wformat-security"
#pragma GCC diagnostic ignored "-Wformat-overflow"
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <limits.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "kernel/error.h"
#include "kernel/format.h"

// Compares text, length and the bytes behind the buffer's end, at several sizes.
#define SAME(...)                                                                                  \
    do {                                                                                           \
        static char want_[4096], got_[4096];                                                       \
        static const size_t sizes_[] = {0, 1, 2, 5, 17, sizeof(got_)};                             \
        for (size_t s_ = 0; s_ < sizeof(sizes_) / sizeof(sizes_[0]); s_++) {                       \
            memset(want_, '~', sizeof(want_));                                                     \
            memset(got_, '~', sizeof(got_));                                                       \
            int want_length_ = snprintf(want_, sizes_[s_], __VA_ARGS__);                           \
            int got_length_ = format_text(got_, sizes_[s_], __VA_ARGS__);                          \
            assert_int_equal(got_length_, want_length_);                                           \
            if (sizes_[s_] != 0)                                                                   \
                assert_string_equal(got_, want_);                                                  \
            for (size_t i_ = sizes_[s_]; i_ < sizeof(got_); i_++)                                  \
                assert_int_equal(got_[i_], '~');                                                   \
        }                                                                                          \
    } while (0)

static void test_plain(void **state)
{
    (void)state;
    // Through a pointer: the compiler must not fold or complain about what is tested here.
    const char *empty = "";
    SAME(empty, 0);
    SAME("%s", "text");
    SAME("100%%");
    SAME("%c%c", 'x', '\0');
    SAME("[%5c|%-5c]", 'a', 'b');
    SAME("[%10s|%-10s|%.2s|%*.*s|%-*s]", "ab", "cd", "efgh", 6, 2, "ijk", -7, "lm");
    SAME("%.0s%.*s", "x", -1, "whole");
    SAME("%p", (void *)(uintptr_t)0x1234abcd);
    SAME("[%20p|%-20p]", (void *)(uintptr_t)0x12, (void *)(uintptr_t)0xffffffff80000000);
    SAME("%d %u %x", INT_MIN, UINT_MAX, UINT_MAX);
    SAME("%lld %llu %llx", LLONG_MIN, ULLONG_MAX, ULLONG_MAX);
    SAME("%ld %lu %zu %zx", LONG_MIN, ULONG_MAX, SIZE_MAX, SIZE_MAX);
    SAME("%hhd %hhu %hd %hu", (signed char)-1, (unsigned char)255, (short)-1,
         (unsigned short)65535);
    SAME("%3000d|", 7);
    SAME("%.3000u|", 7u);
    SAME("%-3000d|", 7);
    char text[32];
    assert_int_equal(format_text(text, sizeof(text), "%s", (const char *)NULL), 6);
    assert_string_equal(text, "(null)");
    // A string that is not terminated is read no further than the precision says.
    char open[3] = {'a', 'b', 'c'};
    assert_int_equal(format_text(text, sizeof(text), "%.3s", open), 3);
    assert_string_equal(text, "abc");
}

static void test_alternative_form(void **state)
{
    (void)state;
    char text[64], expected[64];
    static const char *const formats[] = {"%#x", "%#10x|", "%-#10x|", "%#010x", "%#X"};
    static const unsigned values[] = {0, 1, 0xabc, 0xffffffffu};
    for (size_t i = 0; i < sizeof(formats) / sizeof(formats[0]); i++)
        for (size_t k = 0; k < sizeof(values) / sizeof(values[0]); k++) {
            const char *format = formats[i];
            snprintf(expected, sizeof(expected), format, values[k]);
            format_text(text, sizeof(text), format, values[k]);
            assert_string_equal(text, expected);
        }
}

static void test_unknown_is_shown(void **state)
{
    (void)state;
    char text[32];
    static const char *const odd[] = {"%y", "%5.2y tail", "%", "%-", "%ll", "a%", "%k"};
    for (size_t i = 0; i < sizeof(odd) / sizeof(odd[0]); i++) {
        const char *format = odd[i];
        assert_int_equal(format_text(text, sizeof(text), format, 1), strlen(format));
        assert_string_equal(text, format);
    }
    // A huge width is counted, not walked through.
    const char *huge = "%2147483647d%2147483647d%999999999999999999999d";
    assert_int_equal(format_text(text, sizeof(text), huge, 1, 2, 3), INT_MAX);
    assert_int_equal(strlen(text), sizeof(text) - 1);
}

static uint64_t some_value(void)
{
    uint64_t v = (uint64_t)rand() << 42 ^ (uint64_t)rand() << 21 ^ (uint64_t)rand();
    switch (rand() % 5) {
    case 0:
        return v >> (rand() % 64);
    case 1:
        return 0 - (v >> (rand() % 64));
    case 2:
        return (uint64_t)rand() % 12;
    case 3:
        return UINT64_C(1) << (rand() % 64);
    default:
        return (UINT64_C(1) << (rand() % 64)) - 1;
    }
}

static void test_random_numbers(void **state)
{
    (void)state;
    srand(11);
    for (unsigned n = 0; n < 20000; n++) {
        char format[64];
        size_t at = 0;
        uint64_t v = some_value();
        static const char *const lengths[] = {"hh", "h", "", "l", "ll", "z"};
        const char *length = lengths[rand() % 6];
        char type = "diuxX"[rand() % 5];
        bool wide = length[0] == 'l' || length[0] == 'z';
        format[at++] = '<';
        format[at++] = '%';
        if (rand() % 3 == 0)
            format[at++] = '-';
        if (rand() % 3 == 0)
            format[at++] = '0';
        if (rand() % 2 == 0)
            at += (size_t)sprintf(format + at, "%d", 1 + rand() % 30);
        if (rand() % 4 == 0)
            at += (size_t)sprintf(format + at, ".%d", rand() % 25);
        sprintf(format + at, "%s%c>", length, type);
        if (wide)
            SAME(format, v);
        else
            SAME(format, (unsigned)v);
    }
}

static void test_error_texts(void **state)
{
    (void)state;
    for (int e = E_TIMEOUT; e < 0; e++) {
        assert_string_not_equal(error_text(e), "unknown error");
        for (int f = E_TIMEOUT; f < e; f++)
            assert_string_not_equal(error_text(e), error_text(f));
    }
    assert_string_equal(error_text(E_TIMEOUT - 1), "unknown error");
    assert_string_equal(error_text(INT_MIN), "unknown error");
    assert_string_equal(error_text(0), "success");
    assert_string_equal(error_text(5), "success");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_plain),
        cmocka_unit_test(test_alternative_form),
        cmocka_unit_test(test_unknown_is_shown),
        cmocka_unit_test(test_random_numbers),
        cmocka_unit_test(test_error_texts),
    };
    return cmocka_run_group_tests_name("format", tests, NULL, NULL);
}
