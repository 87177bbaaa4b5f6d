// SPDX-License-Identifier: BSD-2-Clause
// sources: devices/uart.c vm/bus.c
// The 16550A, above all by the sequences with which Linux's 8250 driver examines it.
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "devices/uart.h"

enum { RBR, IER, IIR, LCR, MCR, LSR, MSR, SCR, THR = RBR, FCR = IIR };

static struct bus bus;
static struct uart uart;
static bool line;
static unsigned edges;

static void set_irq(void *context, bool level)
{
    assert_ptr_equal(context, &uart);
    assert_true(level != line);
    line = level;
    edges += level ? 1 : 0;
}

static void out(unsigned reg, uint8_t value)
{
    bus_pio_out(&bus, (uint16_t)(0x3f8 + reg), 1, value);
}

static uint8_t in(unsigned reg)
{
    return (uint8_t)bus_pio_in(&bus, (uint16_t)(0x3f8 + reg), 1);
}

static int fresh(void **state)
{
    (void)state;
    line = false;
    edges = 0;
    bus_init(&bus);
    uart_init(&uart, set_irq, &uart);
    return uart_register(&uart, &bus, 0x3f8);
}

// drivers/tty/serial/8250/8250_port.c, autoconfig() and autoconfig_16550a()
static void test_linux_autoconfig(void **state)
{
    (void)state;
    uint8_t scratch = in(IER);
    out(IER, 0);
    assert_int_equal(in(IER)&0x0f, 0);
    out(IER, 0x0f);
    assert_int_equal(in(IER)&0x0f, 0x0f);
    out(IER, scratch);
    out(MCR, 0x10 | 0x08 | 0x02);
    assert_int_equal(in(MSR)&0xf0, 0x90); // the loopback test
    out(MCR, 0);
    out(LCR, 0xbf);
    out(2, 0); // EFR, on UARTs that have one
    out(LCR, 0);
    out(FCR, 1);
    assert_int_equal(in(IIR) >> 6, 3); // FIFOs work: 16550A
    out(LCR, 0x80);
    assert_int_not_equal(in(2), 0); // no EFR
    out(LCR, 0xbf);
    assert_int_not_equal(in(2), 0);
    out(LCR, 0);
    out(FCR, 0x21); // a 16750 would set bit 5
    assert_int_equal(in(IIR) >> 5, 6);
    out(IER, 0x40); // an XScale would keep it
    assert_int_equal(in(IER), 0);
}

// serial8250_do_startup(): UART_BUG_THRE and UART_BUG_TXEN must not be found.
static void test_linux_startup(void **state)
{
    (void)state;
    out(IER, 2);
    uint8_t first = in(IIR);
    out(IER, 0);
    out(IER, 2);
    uint8_t second = in(IIR);
    out(IER, 0);
    assert_int_equal(first & 0x0f, 2);
    assert_int_equal(second & 0x0f, 2);
    out(MCR, 8);
    out(IER, 2);
    assert_true(line);
    assert_int_equal(in(LSR)&0x60, 0x60);
    assert_int_equal(in(IIR)&0x0f, 2);
    assert_false(line); // reading IIR cleared it
    assert_int_equal(in(IIR)&0x0f, 1);
    out(THR, 'x'); // at once empty again
    assert_true(line);
    assert_int_equal(in(LSR)&0x60, 0x60);
    out(IER, 0);
    assert_false(line);
}

static void test_out2_gates(void **state)
{
    (void)state;
    out(IER, 2);
    assert_false(line);
    out(MCR, 0x08);
    assert_true(line);
    out(MCR, 0x18); // loopback makes OUT2 inactive
    assert_false(line);
    out(MCR, 0x00);
    assert_false(line);
}

static void test_receive_fifo(void **state)
{
    (void)state;
    out(MCR, 8);
    out(FCR, 0x81); // trigger at 8
    out(IER, 1);
    assert_int_equal(uart_write_input(&uart, "abc", 3), 3);
    assert_true(line);
    assert_int_equal(in(IIR), 0xcc); // below the trigger: timed out
    assert_int_equal(in(IIR), 0xcc);
    assert_int_equal(uart_write_input(&uart, "defgh", 5), 5);
    assert_int_equal(in(IIR), 0xc4);
    for (char c = 'a'; c <= 'h'; c++) {
        assert_int_equal(in(LSR)&1, 1);
        assert_int_equal(in(RBR), c);
    }
    assert_int_equal(in(LSR), 0x60);
    assert_int_equal(in(IIR), 0xc1);
    assert_false(line);
    assert_int_equal(in(RBR), 0); // nothing there
}

static void test_input_waits(void **state)
{
    (void)state;
    char text[3000];
    for (size_t i = 0; i < sizeof(text); i++)
        text[i] = (char)(i * 7);
    out(FCR, 1);
    size_t taken = uart_write_input(&uart, text, sizeof(text));
    assert_int_equal(taken, UART_INPUT_BYTES + 16);
    assert_int_equal(uart_write_input(&uart, text, 1), 0);
    for (size_t i = 0; i < taken; i++) {
        assert_int_equal(in(LSR), 0x61); // no overrun
        assert_int_equal(in(RBR), (uint8_t)text[i]);
    }
    assert_int_equal(in(LSR), 0x60);
    out(FCR, 0); // without FIFO one byte at a time, never lost
    assert_int_equal(uart_write_input(&uart, "xyz", 3), 3);
    assert_int_equal(in(RBR), 'x');
    assert_int_equal(in(RBR), 'y');
    assert_int_equal(in(RBR), 'z');
    assert_int_equal(in(LSR), 0x60);
}

static void test_fifo_clear(void **state)
{
    (void)state;
    out(FCR, 1);
    uart_write_input(&uart, "abc", 3);
    out(FCR, 3);
    assert_int_equal(in(LSR), 0x60);
    uart_write_input(&uart, "abc", 3);
    out(FCR, 2); // switching it off clears too
    assert_int_equal(in(LSR), 0x60);
    assert_int_equal(in(IIR), 1);
    uart_write_input(&uart, "q", 1);
    out(FCR, 2); // the clear bit counts with the FIFO on only
    assert_int_equal(in(RBR), 'q');
}

static void test_loopback(void **state)
{
    (void)state;
    out(MCR, 0x10);
    out(THR, 'a');
    out(THR, 'b'); // no FIFO: overruns
    assert_int_equal(in(LSR), 0x63);
    assert_int_equal(in(LSR), 0x61); // the error was read
    assert_int_equal(in(RBR), 'b');
    out(FCR, 1);
    for (unsigned i = 0; i < 17; i++)
        out(THR, (uint8_t)i);
    assert_int_equal(in(LSR)&2, 2);
    uart_write_input(&uart, "Z", 1); // cut off from outside
    for (unsigned i = 0; i < 16; i++)
        assert_int_equal(in(RBR), i);
    assert_int_equal(in(LSR), 0x60);
    uint64_t cursor = 0;
    char buffer[4];
    assert_int_equal(uart_read_output(&uart, &cursor, buffer, 4), 0);
    out(MCR, 0);
    assert_int_equal(in(RBR), 'Z');
}

static void test_modem_status(void **state)
{
    (void)state;
    assert_int_equal(in(MSR), 0xb0);
    out(MCR, 0x18);
    out(IER, 8);
    // CTS and DSR fell, DCD stays through OUT2
    assert_int_equal(in(IIR), 0);
    assert_int_equal(in(MSR), 0x83);
    assert_int_equal(in(MSR), 0x80);
    assert_int_equal(in(IIR), 1);
    out(MCR, 0x1c);
    assert_int_equal(in(MSR), 0xc0); // a ring that begins is no change
    out(MCR, 0x18);
    assert_int_equal(in(MSR), 0x84); // its end is
    out(MCR, 0x08);
    assert_true(line);
    assert_int_equal(in(MSR), 0xb3);
    assert_false(line);
}

static void test_priorities(void **state)
{
    (void)state;
    out(FCR, 1);
    out(MCR, 0x10);
    for (int i = 0; i < 17; i++)
        out(THR, 'x');
    out(IER, 0x0f);
    assert_int_equal(in(IIR), 0xc6);
    in(LSR);
    assert_int_equal(in(IIR), 0xc4);
    out(FCR, 3);
    assert_int_equal(in(IIR), 0xc2); // was not cleared by the reads of the others
    assert_int_equal(in(IIR), 0xc0);
    in(MSR);
    assert_int_equal(in(IIR), 0xc1);
}

static void test_divisor_and_scratch(void **state)
{
    (void)state;
    out(LCR, 0x83);
    out(0, 0x34);
    out(1, 0x12);
    assert_int_equal(in(0), 0x34);
    assert_int_equal(in(1), 0x12);
    assert_int_equal(in(LCR), 0x83);
    out(LCR, 3);
    assert_int_equal(in(IER), 0);
    out(SCR, 0xa5);
    assert_int_equal(in(SCR), 0xa5);
    out(LSR, 0);
    out(MSR, 0);
    assert_int_equal(in(LSR), 0x60);
    assert_int_equal(in(MSR), 0xb0);
    assert_int_equal(uart.output_total, 0);
}

static void test_output_replay(void **state)
{
    (void)state;
    static char buffer[UART_OUTPUT_BYTES * 2];
    uint64_t cursor = 0;
    out(THR, 'h');
    out(THR, 'i');
    assert_int_equal(uart_read_output(&uart, &cursor, buffer, 1), 1);
    assert_int_equal(uart_read_output(&uart, &cursor, buffer + 1, 10), 1);
    assert_memory_equal(buffer, "hi", 2);
    assert_int_equal(uart_read_output(&uart, &cursor, buffer, 10), 0);
    for (unsigned i = 2; i < 3 * UART_OUTPUT_BYTES + 5; i++)
        out(THR, (uint8_t)(i % 251));
    // older than what is kept: from the oldest on
    assert_int_equal(uart_read_output(&uart, &cursor, buffer, sizeof(buffer)), UART_OUTPUT_BYTES);
    for (unsigned i = 0; i < UART_OUTPUT_BYTES; i++)
        assert_int_equal((uint8_t)buffer[i], (i + 2 * UART_OUTPUT_BYTES + 5) % 251);
    assert_int_equal(cursor, uart.output_total);
    // a reset keeps it; a cursor of another life starts over
    uart_reset(&uart);
    cursor = UINT64_MAX;
    assert_int_equal(uart_read_output(&uart, &cursor, buffer, sizeof(buffer)), UART_OUTPUT_BYTES);
    assert_int_equal(uart_read_output(&uart, &cursor, buffer, 0), 0);
}

static void test_reset(void **state)
{
    (void)state;
    out(MCR, 8);
    out(IER, 3);
    out(FCR, 1);
    uart_write_input(&uart, "0123456789abcdefXYZ", 19);
    assert_true(line);
    uart_reset(&uart);
    assert_false(line);
    assert_int_equal(in(LSR), 0x60);
    assert_int_equal(in(IIR), 1);
    assert_int_equal(in(RBR), 0);
    assert_int_equal(in(LSR), 0x60);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup(test_linux_autoconfig, fresh),
        cmocka_unit_test_setup(test_linux_startup, fresh),
        cmocka_unit_test_setup(test_out2_gates, fresh),
        cmocka_unit_test_setup(test_receive_fifo, fresh),
        cmocka_unit_test_setup(test_input_waits, fresh),
        cmocka_unit_test_setup(test_fifo_clear, fresh),
        cmocka_unit_test_setup(test_loopback, fresh),
        cmocka_unit_test_setup(test_modem_status, fresh),
        cmocka_unit_test_setup(test_priorities, fresh),
        cmocka_unit_test_setup(test_divisor_and_scratch, fresh),
        cmocka_unit_test_setup(test_output_replay, fresh),
        cmocka_unit_test_setup(test_reset, fresh),
    };
    return cmocka_run_group_tests_name("uart", tests, NULL, NULL);
}
