// SPDX-License-Identifier: BSD-2-Clause
// sources: boot/config_lex.c
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "boot/config_lex.h"

static struct config_lexer lexer;
static struct config_item item;

static void start(const char *text)
{
    config_lex_init(&lexer, text, strlen(text));
}

static void expect_section(enum config_section section, const char *name, unsigned int line)
{
    assert_int_equal(config_lex_next(&lexer, &item), CONFIG_SECTION);
    assert_int_equal(item.section, section);
    assert_string_equal(item.name, name);
    assert_int_equal(item.line, line);
    assert_null(item.expected);
}

static void expect_pair(const char *key, const char *value, unsigned int line)
{
    assert_int_equal(config_lex_next(&lexer, &item), CONFIG_PAIR);
    assert_string_equal(item.key, key);
    assert_string_equal(item.value, value);
    assert_int_equal(item.line, line);
    assert_null(item.expected);
}

static void expect_bad(const char *part, unsigned int line)
{
    assert_int_equal(config_lex_next(&lexer, &item), CONFIG_BAD);
    assert_non_null(item.expected);
    if (strstr(item.expected, part) == NULL) {
        fail_msg("\"%s\" does not speak of \"%s\"", item.expected, part);
    }
    assert_int_equal(item.line, line);
}

static void expect_end(void)
{
    assert_int_equal(config_lex_next(&lexer, &item), CONFIG_END);
    assert_int_equal(config_lex_next(&lexer, &item), CONFIG_END);
}

static void test_the_example_of_the_manual(void **state)
{
    (void)state;
    start("[host]\n"
          "console    = com1:115200     ; or an I/O port\n"
          "reserve    = 16M\n"
          "files      = \\guests\\extra   ; loaded beside those that VMs name\n"
          "\n"
          "[vm alpha]\n"
          "memory   = 256M\n"
          "kernel   = \\guests\\vmlinuz\n"
          "cmdline  = \"console=ttyS0 nokaslr\"\n"
          "fusion-group = web\n"
          "[group web]\n");
    expect_section(CONFIG_HOST, "", 1);
    expect_pair("console", "com1:115200", 2);
    assert_int_equal(item.section, CONFIG_HOST);
    expect_pair("reserve", "16M", 3);
    expect_pair("files", "\\guests\\extra", 4);
    expect_section(CONFIG_VM, "alpha", 6);
    expect_pair("memory", "256M", 7);
    assert_int_equal(item.section, CONFIG_VM);
    assert_string_equal(item.name, "alpha");
    expect_pair("kernel", "\\guests\\vmlinuz", 8);
    expect_pair("cmdline", "console=ttyS0 nokaslr", 9);
    expect_pair("fusion-group", "web", 10);
    expect_section(CONFIG_GROUP, "web", 11);
    expect_end();
}

static void test_line_ends(void **state)
{
    (void)state;
    start("[host]\r\nreserve = 1M\r\n\r\n[vm a]\r\nmemory=2M");
    expect_section(CONFIG_HOST, "", 1);
    expect_pair("reserve", "1M", 2);
    expect_section(CONFIG_VM, "a", 4);
    expect_pair("memory", "2M", 5);
    expect_end();

    start("");
    expect_end();
    config_lex_init(&lexer, NULL, 0);
    expect_end();
    start("\n\n\r\n \t \n");
    expect_end();
    start("\xef\xbb\xbf[host]\n");
    expect_section(CONFIG_HOST, "", 1);
    expect_end();
}

// The text is not terminated: what stands behind `size` must not be read (ASan sees it) nor matter.
static void test_stops_at_the_size(void **state)
{
    static const char text[] = "[vm a]\ncmdline = \"b\"";

    (void)state;
    for (size_t size = 0; size < sizeof(text); size++) {
        char *copy = malloc(size + 1);

        memcpy(copy, text, size);
        copy = realloc(copy, size > 0 ? size : 1);
        config_lex_init(&lexer, copy, size);
        while (config_lex_next(&lexer, &item) != CONFIG_END) {
        }
        assert_int_equal(lexer.position, size);
        free(copy);
    }
    config_lex_init(&lexer, "[host]\nreserve = 16M", 18);
    expect_section(CONFIG_HOST, "", 1);
    expect_pair("reserve", "1", 2);
    expect_end();
}

static void test_comments_and_quotes(void **state)
{
    (void)state;
    start("; one\n# two\n  \t; three\n[vm a] ; four\n"
          "a = b;c#d\n"
          "b = b ;c\n"
          "c = b\t#c\n"
          "d = \"a ; b # c\"\n"
          "e = \"  spaces \t\"  # end\n"
          "f = x dyndbg=\"file a ; +p\" y ; end\n"
          "g =\n"
          "h = ; nothing\n"
          "i =;x\n"
          "j = \"\"\n"
          "k = \\a\\\"b\\\" c\n"
          "l = a   b \t \n"
          "m = x=y=z\n"
          "n = caf\xc3\xa9\n");
    expect_section(CONFIG_VM, "a", 4);
    expect_pair("a", "b;c#d", 5);
    expect_pair("b", "b", 6);
    expect_pair("c", "b", 7);
    expect_pair("d", "a ; b # c", 8);
    expect_pair("e", "  spaces \t", 9);
    expect_pair("f", "x dyndbg=\"file a ; +p\" y", 10);
    expect_pair("g", "", 11);
    expect_pair("h", "", 12);
    expect_pair("i", ";x", 13);
    expect_pair("j", "", 14);
    expect_pair("k", "\\a\\\"b\\\" c", 15);
    expect_pair("l", "a   b", 16);
    expect_pair("m", "x=y=z", 17);
    expect_pair("n", "caf\xc3\xa9", 18);
    expect_end();
}

static void test_bad_pairs(void **state)
{
    (void)state;
    start("early = 1\n[host]\nnonsense\n= 5\na b = 5\na = \"open\na = b \"open\na = \"b\" c\n"
          "a = \"b\"c\na = \"b\";c\nreserve = 16M\n");
    expect_bad("section header", 1);
    expect_section(CONFIG_HOST, "", 2);
    expect_bad("KEY = VALUE", 3);
    expect_bad("KEY = VALUE", 4);
    expect_bad("KEY = VALUE", 5);
    expect_bad("closing quote", 6);
    expect_bad("closing quote", 7);
    expect_bad("after the closing quote", 8);
    expect_bad("after the closing quote", 9);
    expect_bad("after the closing quote", 10);
    expect_pair("reserve", "16M", 11);
    assert_int_equal(item.section, CONFIG_HOST);
    expect_end();
}

static void test_bad_sections(void **state)
{
    static const struct {
        const char *text;
        const char *part;
    } cases[] = {
        {"[vm]", "name"},        {"[group ]", "name"},    {"[host x]", "without a name"},
        {"[guest a]", "[host]"}, {"[]", "[host]"},        {"[vm a", "]"},
        {"[vm a b]", "]"},       {"[vm a] x", "comment"}, {"[vm a];x", "comment"},
        {"[VM a]", "[host]"},    {"[host", "]"},          {"[", "]"},
    };

    (void)state;
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        char text[128];

        // A key behind a spoilt header must not count for the section before it.
        strcpy(text, "[vm good]\n");
        strcat(text, cases[i].text);
        strcat(text, "\nmemory = 1M\n[vm next]\n");
        start(text);
        expect_section(CONFIG_VM, "good", 1);
        expect_bad(cases[i].part, 2);
        expect_pair("memory", "1M", 3);
        assert_int_equal(item.section, CONFIG_LOST);
        assert_string_equal(item.name, "");
        expect_section(CONFIG_VM, "next", 4);
        expect_end();
    }
    start("  [ vm   a\t]  # fine\n");
    expect_section(CONFIG_VM, "a", 1);
    expect_end();
}

static void test_control_characters(void **state)
{
    static const char text[] = "[vm a]\nmem\0ory = 1M\nmemory = 1\0M\nmemory = 1\x7fM\na = b\rc\n"
                               "; a comment may hold \0 anything\n[vm \0b]\nk = v\n";

    (void)state;
    config_lex_init(&lexer, text, sizeof(text) - 1);
    expect_section(CONFIG_VM, "a", 1);
    expect_bad("NUL", 2);
    expect_bad("NUL", 3);
    expect_bad("control", 4);
    expect_bad("control", 5);
    expect_bad("NUL", 7);
    expect_pair("k", "v", 8);
    assert_int_equal(item.section, CONFIG_LOST);
    expect_end();
}

// Limits: exactly the maximum passes, one more is refused, and the lexer goes on behind it.
static void check_length(const char *before, size_t length, const char *after, bool fits)
{
    size_t size = strlen(before) + length + strlen(after);
    char *text = malloc(size + 1);

    strcpy(text, before);
    memset(text + strlen(before), 'x', length);
    strcpy(text + strlen(before) + length, after);
    start(text);
    assert_int_equal(config_lex_next(&lexer, &item), CONFIG_SECTION);
    if (fits) {
        assert_int_equal(config_lex_next(&lexer, &item),
                         *after == ']' ? CONFIG_SECTION : CONFIG_PAIR);
    } else {
        expect_bad("at most", 2);
    }
    assert_int_equal(config_lex_next(&lexer, &item), CONFIG_PAIR);
    assert_string_equal(item.key, "last");
    expect_end();
    free(text);
}

static void test_lengths(void **state)
{
    (void)state;
    check_length("[vm a]\nk = ", 2047, "\nlast = 1", true);
    assert_int_equal(sizeof(item.value), 2048);
    check_length("[vm a]\nk = ", 2048, "\nlast = 1", false);
    check_length("[vm a]\nk = ", 1000000, "\nlast = 1", false);
    check_length("[vm a]\nk = \"", 2047, "\"\nlast = 1", true);
    check_length("[vm a]\nk = \"", 2048, "\"\nlast = 1", false);
    check_length("[vm a]\n", 63, " = 1\nlast = 1", true);
    check_length("[vm a]\n", 64, " = 1\nlast = 1", false);
    check_length("[vm a]\n[vm ", 63, "]\nlast = 1", true);
    check_length("[vm a]\n[vm ", 64, "]\nlast = 1", false);
}

// Whatever the bytes: it ends, the line number never goes back, every text is terminated.
static void test_noise(void **state)
{
    static const char alphabet[] = "[]vm host\"\"=;#\\\n\n\r\tk \0\x80";
    char noise[600];
    uint32_t seed = 12345;

    (void)state;
    for (int round = 0; round < 3000; round++) {
        unsigned int line = 0;
        int tokens = 0;
        enum config_token token;

        for (size_t i = 0; i < sizeof(noise); i++) {
            seed = seed * 1664525u + 1013904223u;
            noise[i] = alphabet[(seed >> 16) % (sizeof(alphabet) - 1)];
        }
        config_lex_init(&lexer, noise, sizeof(noise));
        while ((token = config_lex_next(&lexer, &item)) != CONFIG_END) {
            assert_true(item.line > line);
            line = item.line;
            assert_true(memchr(item.value, 0, sizeof(item.value)) != NULL);
            assert_true(memchr(item.key, 0, sizeof(item.key)) != NULL);
            assert_true(memchr(item.name, 0, sizeof(item.name)) != NULL);
            assert_true((token == CONFIG_BAD) == (item.expected != NULL));
            assert_true(++tokens <= (int)sizeof(noise));
        }
    }
}

static void test_keys_that_name_files(void **state)
{
    (void)state;
    assert_true(config_key_names_file(CONFIG_VM, "kernel"));
    assert_true(config_key_names_file(CONFIG_VM, "initrd"));
    assert_true(config_key_names_file(CONFIG_VM, "module"));
    assert_true(config_key_names_file(CONFIG_HOST, "files"));
    assert_false(config_key_names_file(CONFIG_VM, "files"));
    assert_false(config_key_names_file(CONFIG_VM, "cmdline"));
    assert_false(config_key_names_file(CONFIG_VM, ""));
    assert_false(config_key_names_file(CONFIG_HOST, "kernel"));
    assert_false(config_key_names_file(CONFIG_GROUP, "kernel"));
    assert_false(config_key_names_file(CONFIG_LOST, "kernel"));
    assert_false(config_key_names_file(CONFIG_NONE, "files"));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_the_example_of_the_manual),
        cmocka_unit_test(test_line_ends),
        cmocka_unit_test(test_stops_at_the_size),
        cmocka_unit_test(test_comments_and_quotes),
        cmocka_unit_test(test_bad_pairs),
        cmocka_unit_test(test_bad_sections),
        cmocka_unit_test(test_control_characters),
        cmocka_unit_test(test_lengths),
        cmocka_unit_test(test_noise),
        cmocka_unit_test(test_keys_that_name_files),
    };

    return cmocka_run_group_tests_name("config_lex", tests, NULL, NULL);
}
