// SPDX-License-Identifier: BSD-2-Clause
// sources: kernel/log.c kernel/format.c kernel/lock.c
// The log: lines in and out, levels, wrap-around, cutting, the early console.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <stdio.h>
#include <string.h>

#include "fake.h"
#include "kernel/lock.h"
#include "kernel/log.h"
#include "kernel/serial.h"
#include "kernel/time.h"

static uint64_t now_us;
static char serial_text[1000], screen_text[1000];
static size_t serial_length, screen_length;

uint64_t time_since_boot(void)
{
    return now_us * 100;
}

uint64_t time_tsc_to_us(uint64_t ticks)
{
    return ticks / 100;
}

size_t serial_write(const char *data, size_t size)
{
    assert_true(spin_none_held()); // it takes a lock of the same rank itself
    assert_true(serial_length + size < sizeof(serial_text));
    memcpy(serial_text + serial_length, data, size);
    serial_text[serial_length += size] = '\0';
    return size;
}

void fbcon_write(const char *data, size_t size)
{
    memcpy(screen_text + screen_length, data, size);
    screen_text[screen_length += size] = '\0';
}

static int setup(void **state)
{
    (void)state;
    fake_machine(0, 4);
    log_set_early_console(false);
    serial_length = 0;
    screen_length = 0;
    return 0;
}

// The number after the newest line.
static uint64_t end_of_log(void)
{
    uint64_t sequence = 0;
    char text[8];
    while (log_read(&sequence, LOG_DEBUG, text, sizeof(text)))
        ;
    return sequence;
}

static void test_lines(void **state)
{
    (void)state;
    uint64_t sequence = end_of_log();
    char text[300];
    assert_false(log_read(&sequence, LOG_DEBUG, text, sizeof(text)));
    now_us = 12345678;
    fake_set_cpu(3);
    log_warning("frames: %u of %s", 7, "eight");
    now_us = 60;
    fake_set_cpu(0);
    log_debug("fine");
    log_error("bad");
    uint64_t start = sequence;
    assert_true(log_read(&sequence, LOG_DEBUG, text, sizeof(text)));
    assert_string_equal(text, "[12.345678] cpu3 warning: frames: 7 of eight");
    assert_int_equal(sequence, start + 1);
    assert_true(log_read(&sequence, LOG_DEBUG, text, sizeof(text)));
    assert_string_equal(text, "[0.000060] cpu0 debug: fine");
    // The level filter skips, and the number goes behind the line that was found.
    sequence = start + 1;
    assert_true(log_read(&sequence, LOG_WARNING, text, sizeof(text)));
    assert_string_equal(text, "[0.000060] cpu0 error: bad");
    assert_int_equal(sequence, start + 3);
    assert_false(log_read(&sequence, LOG_DEBUG, text, sizeof(text)));
    assert_int_equal(sequence, start + 3);
    sequence = UINT64_MAX;
    assert_false(log_read(&sequence, LOG_DEBUG, text, sizeof(text)));
    assert_int_equal(serial_length, 0);
}

static void test_cut_and_cleaned(void **state)
{
    (void)state;
    uint64_t sequence = end_of_log(), start = sequence;
    char text[300], tiny[10], long_text[401];
    now_us = 0;
    memset(long_text, 'x', 400);
    long_text[400] = '\0';
    log_info("%s", long_text);
    log_info("a\r\n[0.0] cpu0 error: forged\x1b[2J\x7f");
    assert_true(log_read(&sequence, LOG_INFO, text, sizeof(text)));
    assert_int_equal(strlen(text), strlen("[0.000000] cpu0 info: ") + 200);
    assert_true(log_read(&sequence, LOG_INFO, text, sizeof(text)));
    assert_string_equal(text, "[0.000000] cpu0 info: a??[0.0] cpu0 error: forged?[2J?");
    memset(tiny, '~', sizeof(tiny));
    assert_true(log_read(&start, LOG_INFO, tiny, 8));
    assert_string_equal(tiny, "[0.0000");
    assert_int_equal(tiny[8], '~');
}

static void test_wraps(void **state)
{
    (void)state;
    uint64_t sequence = end_of_log(), start = sequence;
    char text[300], want[64];
    for (unsigned i = 0; i < 1300; i++)
        log_info("line %u", i);
    // The oldest are gone; a reader who was behind continues with the oldest there is.
    unsigned first = 0, count = 0;
    while (log_read(&sequence, LOG_INFO, text, sizeof(text))) {
        if (count == 0)
            first = (unsigned)(sequence - 1 - start);
        snprintf(want, sizeof(want), "info: line %u", first + count);
        assert_non_null(strstr(text, want));
        count++;
    }
    assert_int_equal(count, 512);
    assert_int_equal(first + count, 1300);
}

static void test_early_console(void **state)
{
    (void)state;
    now_us = 1000001;
    log_info("not shown");
    log_set_early_console(true);
    log_info("shown");
    char long_text[401];
    memset(long_text, 'y', 400);
    long_text[400] = '\0';
    log_write(LOG_ERROR, "%s", long_text);
    log_set_early_console(false);
    log_info("not shown either");
    const char *first = "[1.000001] cpu0 info: shown\r\n[1.000001] cpu0 error: yyy";
    assert_memory_equal(serial_text, first, strlen(first));
    assert_int_equal(serial_length, strlen(first) + 197 + 2);
    assert_string_equal(serial_text + serial_length - 3, "y\r\n");
    assert_string_equal(screen_text, serial_text);
}

static void test_level_names(void **state)
{
    (void)state;
    assert_string_equal(log_level_name(LOG_ERROR), "error");
    assert_string_equal(log_level_name(LOG_DEBUG), "debug");
    assert_string_equal(log_level_name(LOG_LEVELS), "unknown");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup(test_lines, setup),
        cmocka_unit_test_setup(test_cut_and_cleaned, setup),
        cmocka_unit_test_setup(test_wraps, setup),
        cmocka_unit_test_setup(test_early_console, setup),
        cmocka_unit_test_setup(test_level_names, setup),
    };
    return cmocka_run_group_tests_name("log", tests, NULL, NULL);
}
