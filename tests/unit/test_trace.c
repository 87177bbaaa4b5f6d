// SPDX-License-Identifier: BSD-2-Clause
// sources: kernel/trace.c kernel/format.c
// The trace: records of several CPUs in order of time, rings that wrap, a reader beside writers.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "fake.h"
#include "kernel/error.h"
#include "kernel/heap.h"
#include "kernel/trace.h"

static bool heap_empty;
static void *allocated[MAX_CPUS];
static unsigned allocations;

void *heap_alloc(size_t size)
{
    if (heap_empty)
        return NULL;
    allocated[allocations] = calloc(1, size);
    return allocated[allocations++];
}

static struct trace_reader reader;
static char line[TRACE_LINE_MAX];

// How many records there are to read, at most `most`.
static unsigned read_all(unsigned most)
{
    unsigned n = 0;
    unsigned promised = trace_read_begin(&reader, most);
    while (trace_next(&reader, line, sizeof(line)))
        n++;
    trace_read_end();
    assert_int_equal(n, promised);
    return n;
}

static int setup(void **state)
{
    (void)state;
    fake_machine(0, 4);
    return 0;
}

static void test_without_memory(void **state)
{
    (void)state;
    heap_empty = true;
    assert_int_equal(trace_start(), E_NOMEM);
    trace(TRACE_RUN, "a", NULL, 1, 0, 0); // nowhere to go, and does not try
    assert_int_equal(read_all(100), 0);
    heap_empty = false;
}

static void test_in_order_of_time(void **state)
{
    (void)state;
    assert_int_equal(trace_start(), 0);
    for (unsigned i = 0; i < 40; i++) {
        fake_set_cpu(i * 7 % 4);
        trace(TRACE_RUN, "vm", NULL, i, 0, 0);
    }
    fake_set_cpu(0);
    assert_int_equal(trace_read_begin(&reader, 100), 40);
    for (unsigned i = 0; i < 40; i++) {
        char expected[64];
        assert_true(trace_next(&reader, line, sizeof(line)));
        snprintf(expected, sizeof(expected), " cpu%u vm run until=%#x", i * 7 % 4, i);
        assert_string_equal(strchr(line, ' '), expected);
    }
    assert_false(trace_next(&reader, line, sizeof(line)));
    trace(TRACE_RUN, "vm", NULL, 0, 0, 0); // recording rests while somebody reads
    trace_read_end();
    assert_int_equal(read_all(100), 40);
}

static void test_newest_are_kept(void **state)
{
    (void)state;
    assert_int_equal(trace_start(), 0);
    assert_int_equal(read_all(100), 0);
    for (unsigned i = 0; i < 5 * TRACE_RECORDS / 2; i++)
        trace(TRACE_RUN, "vm", NULL, i, 0, 0);
    assert_int_equal(read_all(MAX_CPUS * TRACE_RECORDS), TRACE_RECORDS);
    assert_int_equal(trace_read_begin(&reader, 1), 1);
    assert_true(trace_next(&reader, line, sizeof(line)));
    trace_read_end();
    char expected[64];
    snprintf(expected, sizeof(expected), " cpu0 vm run until=%#x", 5 * TRACE_RECORDS / 2 - 1);
    assert_string_equal(strchr(line, ' '), expected);
    trace_stop();
    trace(TRACE_LEAVE, "vm", "halted", 0, 0, 0);
    assert_int_equal(read_all(MAX_CPUS * TRACE_RECORDS), TRACE_RECORDS);
    assert_false(trace_enabled);
}

static void test_long_names_and_lines(void **state)
{
    (void)state;
    assert_int_equal(trace_start(), 0);
    char who[2 * TRACE_WHO];
    memset(who, 'w', sizeof(who));
    trace(TRACE_EXIT, who, "EPT_MISCONFIGURATION", UINT64_MAX, UINT64_MAX, UINT64_MAX);
    assert_int_equal(trace_read_begin(&reader, 1), 1);
    assert_true(trace_next(&reader, line, sizeof(line)));
    assert_non_null(strstr(line, "w exit EPT_MISCONFIGURATION rip=0xffffffffffffffff"));
    assert_non_null(strstr(line, " address=0xffffffffffffffff"));
    // Cut, not overrun.
    char small[20];
    reader.next[0]--;
    assert_true(trace_next(&reader, small, sizeof(small)));
    assert_int_equal(strlen(small), sizeof(small) - 1);
    trace_read_end();
}

static _Atomic bool stop;

// The only writer of its ring; every record's values belong together.
static void *write_on(void *unused)
{
    (void)unused;
    for (uint64_t i = 1; !stop; i++)
        trace_record(TRACE_EXIT, "vm", "HLT", i, i, i);
    return NULL;
}

static void test_no_torn_record(void **state)
{
    (void)state;
    pthread_t writer;
    unsigned seen = 0;
    assert_int_equal(trace_start(), 0);
    stop = false;
    assert_int_equal(pthread_create(&writer, NULL, write_on, NULL), 0);
    while (seen < 20000) {
        trace_read_begin(&reader, TRACE_RECORDS);
        while (trace_next(&reader, line, sizeof(line))) {
            unsigned long long a, b, c;
            assert_int_equal(
                sscanf(strstr(line, "rip="), "rip=%llx info=%llx address=%llx", &a, &b, &c), 3);
            assert_true(a == b && b == c);
            seen++;
        }
        trace_read_end();
    }
    stop = true;
    pthread_join(writer, NULL);
}

static int free_rings(void **state)
{
    (void)state;
    while (allocations > 0)
        free(allocated[--allocations]);
    return 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup(test_without_memory, setup),
        cmocka_unit_test_setup(test_in_order_of_time, setup),
        cmocka_unit_test_setup(test_newest_are_kept, setup),
        cmocka_unit_test_setup(test_long_names_and_lines, setup),
        cmocka_unit_test_setup(test_no_torn_record, setup),
    };
    return cmocka_run_group_tests(tests, NULL, free_rings);
}
