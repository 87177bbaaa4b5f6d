// SPDX-License-Identifier: BSD-2-Clause
// The watchdog asks a silent CPU once per incident, and stack traces never leave the stack.
// sources: kernel/watchdog.c kernel/symbols.c kernel/time.c kernel/format.c
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <cmocka.h>

#include "fake.h"
#include <arch/stack.h>
#include "kernel/irq.h"
#include "kernel/log.h"
#include "kernel/percpu.h"
#include "kernel/symbols.h"
#include "kernel/time.h"
#include "kernel/watchdog.h"

// A kernel of three functions; tools/make-symbols makes such tables.
const char kernel_start[0x300];
__asm__(".globl kernel_text_end\n.set kernel_text_end, kernel_start + 0x300");
const uint32_t symbol_count = 3;
const struct {
    uint32_t offset, name;
} symbol_table[3] = {{0x10, 0}, {0x80, 6}, {0x81, 11}};
const char symbol_names[] = "first\0tiny\0last";

static unsigned nmis, nmi_cpu;
static bool answers;
static char lines[64][200];
static unsigned line_count;
static uintptr_t stack[16];

void log_write(enum log_level level, const char *format, ...)
{
    (void)level;
    va_list args;
    va_start(args, format);
    vsnprintf(lines[line_count++ % 64], sizeof(lines[0]), format, args);
    va_end(args);
}

// The other CPU's NMI handler runs at once.
void irq_send_nmi(uint32_t cpu)
{
    nmis++;
    nmi_cpu = cpu;
    if (!answers)
        return;
    struct cpu *self = fake_cpu;
    fake_set_cpu(cpu);
    watchdog_nmi(0x1234, (uintptr_t)&stack[2]);
    fake_set_cpu(self->index);
}

static int set_up(void **state)
{
    (void)state;
    fake_machine(0, 3);
    tsc_hz = 1000000000;
    fake_tsc += 100 * tsc_hz; // the last check of an earlier test is long ago
    for (unsigned i = 0; i < 3; i++)
        cpus[i].last_alive = fake_tsc;
    nmis = line_count = 0;
    answers = true;
    memset(stack, 0, sizeof(stack));
    stack[2] = (uintptr_t)&stack[6];
    stack[3] = 0xaaaa;
    stack[6] = (uintptr_t)&stack[10];
    stack[7] = 0xbbbb;
    fake_stack_low = (uintptr_t)stack;
    fake_stack_high = (uintptr_t)(stack + 16);
    return 0;
}

static void later(uint64_t ms)
{
    fake_tsc += ms * 1000000;
    cpus[0].last_alive = fake_tsc;
    cpus[2].last_alive = UINT64_MAX; // idle
}

static void test_once_per_incident(void **state)
{
    (void)state;
    uint64_t before = watchdog_incidents();
    later(9900);
    watchdog_check();
    assert_int_equal(nmis, 0);
    later(200);
    watchdog_check();
    assert_int_equal(nmis, 1);
    assert_int_equal(nmi_cpu, 1);
    assert_int_equal(watchdog_incidents(), before + 1);
    assert_int_equal(line_count, 4);
    assert_non_null(strstr(lines[0], "CPU 1"));
    assert_non_null(strstr(lines[1], "at 0x1234"));
    assert_non_null(strstr(lines[2], "by 0xaaaa"));
    assert_non_null(strstr(lines[3], "by 0xbbbb"));
    later(5000);
    watchdog_check();
    assert_int_equal(nmis, 1);
    // It came back and hangs again.
    cpus[1].last_alive = fake_tsc;
    later(11000);
    watchdog_check();
    assert_int_equal(nmis, 2);
}

static void test_not_too_often(void **state)
{
    (void)state;
    later(9999);
    watchdog_check();
    later(50);
    watchdog_check();
    assert_int_equal(nmis, 0);
    later(60);
    watchdog_check();
    assert_int_equal(nmis, 1);
}

static void test_offline_and_deaf(void **state)
{
    (void)state;
    answers = false;
    later(11000);
    cpus[1].online = 0;
    watchdog_check();
    assert_int_equal(nmis, 0);
    cpus[1].online = 1;
    later(200);
    watchdog_check();
    assert_int_equal(nmis, 1);
    assert_non_null(strstr(lines[1], "does not answer"));
    // An NMI that comes too late, or for another reason, writes nothing.
    fake_set_cpu(1);
    watchdog_nmi(0x9999, (uintptr_t)&stack[2]);
    fake_set_cpu(0);
    assert_int_equal(line_count, 2);
}

static void test_stack_walk(void **state)
{
    (void)state;
    uintptr_t out[4], low = (uintptr_t)stack, high = (uintptr_t)(stack + 16);
    assert_int_equal(stack_walk((uintptr_t)&stack[2], low, high, out, 4), 2);
    assert_int_equal(stack_walk((uintptr_t)&stack[2], low, high, out, 1), 1);
    assert_int_equal(stack_walk((uintptr_t)&stack[2] + 1, low, high, out, 4), 0);
    assert_int_equal(stack_walk((uintptr_t)&stack[15], low, high, out, 4), 0);
    assert_int_equal(stack_walk(0, low, high, out, 4), 0);
    assert_int_equal(stack_walk(UINTPTR_MAX & ~(uintptr_t)7, low, high, out, 4), 0);
    assert_int_equal(stack_walk(low, low, low, out, 4), 0);
    stack[6] = (uintptr_t)&stack[2]; // a circle
    assert_int_equal(stack_walk((uintptr_t)&stack[2], low, high, out, 4), 2);
}

static void test_symbols(void **state)
{
    (void)state;
    char name[32];
    uintptr_t base = (uintptr_t)kernel_start;
    symbol_name(base + 5, name, sizeof(name));
    assert_non_null(strstr(name, "0x"));
    symbol_name(base + 0x10, name, sizeof(name));
    assert_string_equal(name, "first+0x0");
    symbol_name(base + 0x7f, name, sizeof(name));
    assert_string_equal(name, "first+0x6f");
    symbol_name(base + 0x80, name, sizeof(name));
    assert_string_equal(name, "tiny+0x0");
    symbol_name(base + 0x2ff, name, sizeof(name));
    assert_string_equal(name, "last+0x27e");
    symbol_name(base + 0x300, name, sizeof(name));
    assert_int_equal(strncmp(name, "0x", 2), 0);
    symbol_name(1, name, 4);
    assert_string_equal(name, "0x1");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup(test_once_per_incident, set_up),
        cmocka_unit_test_setup(test_not_too_often, set_up),
        cmocka_unit_test_setup(test_offline_and_deaf, set_up),
        cmocka_unit_test_setup(test_stack_walk, set_up),
        cmocka_unit_test_setup(test_symbols, set_up),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
