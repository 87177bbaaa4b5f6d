// SPDX-License-Identifier: BSD-2-Clause
// sources: kernel/serial.c kernel/lock.c
// The serial driver against a pretended 16550 that has FIFOs, interrupt identification and an
// edge-triggered interrupt line, as on a PC.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <stdlib.h>
#include <string.h>

#include <arch/port.h>

#include "fake.h"
#include "kernel/error.h"
#include "kernel/irq.h"
#include "kernel/lock.h"
#include "kernel/serial.h"
#include "kernel/time.h"

#define PORT 0x3f8u

// --- The pretended UART ---

static struct {
    bool absent, no_fifo, stuck;
    uint8_t ier, lcr, mcr, scratch, divisor_low, divisor_high, fcr;
    uint8_t rx[16], tx[16];
    unsigned rx_count, tx_count;
    bool overrun, break_next;
    bool thre_pending; // "transmitter empty" not yet acknowledged
    bool line;         // level of the interrupt output
    bool edge;         // latched by the interrupt controller
    bool irq_works;
    bool in_handler;
    unsigned interrupts;
} uart;

static char *wire; // all that was ever sent
static size_t wire_length, wire_size;
static irq_handler handler;
static void *handler_context;
static int route_result;
// Called after each register access: what another CPU or the wire does in between.
static void (*between)(void);

static uint8_t iir(void)
{
    uint8_t fifo = uart.no_fifo ? 0 : 0xc0;
    if ((uart.ier & 4) != 0 && uart.overrun)
        return fifo | 6;
    if ((uart.ier & 1) != 0 && uart.rx_count != 0)
        return fifo | 4;
    if ((uart.ier & 2) != 0 && uart.thre_pending)
        return fifo | 2;
    return fifo | 1;
}

static void update_line(void)
{
    bool level = (iir() & 1) == 0 && (uart.mcr & 8) != 0;
    if (level && !uart.line)
        uart.edge = true;
    uart.line = level;
}

static void deliver(void)
{
    if (!uart.edge || !uart.irq_works || handler == NULL || uart.in_handler)
        return;
    uart.edge = false;
    uart.in_handler = true;
    uart.interrupts++;
    handler(handler_context);
    uart.in_handler = false;
}

static void wire_put(uint8_t byte)
{
    if (wire_length == wire_size)
        wire = realloc(wire, wire_size = wire_size * 2 + 1024);
    wire[wire_length++] = (char)byte;
}

// The shift register takes a byte away.
static void send_one(void)
{
    if (uart.tx_count == 0 || uart.stuck)
        return;
    wire_put(uart.tx[0]);
    memmove(uart.tx, uart.tx + 1, --uart.tx_count);
    if (uart.tx_count == 0)
        uart.thre_pending = true;
    update_line();
}

static void send_all(void)
{
    while (uart.tx_count != 0 && !uart.stuck)
        send_one();
}

static void receive(const char *data, size_t size)
{
    for (size_t i = 0; i < size; i++) {
        if (uart.rx_count == (uart.no_fifo ? 1 : 16))
            uart.overrun = true;
        else
            uart.rx[uart.rx_count++] = (uint8_t)data[i];
        update_line();
    }
}

uint8_t port_in8(uint16_t port)
{
    assert_in_range(port, PORT, PORT + 7);
    if (uart.absent)
        return 0xff;
    uint8_t value = 0;
    switch (port - PORT) {
    case 0:
        assert_true((uart.lcr & 0x80) == 0);
        if (uart.rx_count != 0) {
            value = uart.rx[0];
            memmove(uart.rx, uart.rx + 1, --uart.rx_count);
            uart.break_next = false;
        }
        break;
    case 2:
        value = iir();
        if ((value & 0x0f) == 2)
            uart.thre_pending = false;
        break;
    case 5:
        value = (uint8_t)((uart.rx_count != 0 ? 1 : 0) | (uart.overrun ? 2 : 0) |
                          (uart.break_next ? 0x10 : 0) | (uart.tx_count == 0 ? 0x60 : 0));
        uart.overrun = false;
        break;
    case 7:
        value = uart.scratch;
        break;
    default:
        fail_msg("register %u read", port - PORT);
    }
    update_line();
    if (between != NULL)
        between();
    return value;
}

void port_out8(uint16_t port, uint8_t value)
{
    assert_in_range(port, PORT, PORT + 7);
    if (uart.absent)
        return;
    bool dlab = (uart.lcr & 0x80) != 0;
    switch (port - PORT) {
    case 0:
        if (dlab) {
            uart.divisor_low = value;
            break;
        }
        assert_true(uart.tx_count < (uart.no_fifo ? 1 : 16)); // else a byte is lost
        uart.tx[uart.tx_count++] = value;
        uart.thre_pending = false;
        break;
    case 1:
        if (dlab) {
            uart.divisor_high = value;
            break;
        }
        if ((value & 2) != 0 && (uart.ier & 2) == 0 && uart.tx_count == 0)
            uart.thre_pending = true;
        uart.ier = value;
        break;
    case 2:
        uart.fcr = value;
        if ((value & 2) != 0)
            uart.rx_count = 0;
        if ((value & 4) != 0)
            uart.tx_count = 0;
        break;
    case 3:
        uart.lcr = value;
        break;
    case 4:
        uart.mcr = value;
        break;
    case 7:
        uart.scratch = value;
        break;
    default:
        fail_msg("register %u written", port - PORT);
    }
    update_line();
    if (between != NULL)
        between();
}

int irq_route_isa(unsigned irq, unsigned vector, irq_handler h, void *context)
{
    assert_int_equal(irq, 4);
    assert_int_equal(vector, VECTOR_SERIAL);
    if (route_result != 0)
        return route_result;
    handler = h;
    handler_context = context;
    return 0;
}

uint64_t time_us_to_tsc(uint64_t us)
{
    return us / 100; // each look at the pretended clock is 100 us
}

static int setup(void **state)
{
    (void)state;
    fake_machine(0, 2);
    memset(&uart, 0, sizeof(uart));
    uart.irq_works = true;
    between = NULL;
    handler = NULL;
    route_result = 0;
    assert_int_equal(serial_init(PORT, 115200), 0);
    send_all();
    while (serial_getc() >= 0)
        ;
    // What an earlier test left in the ring.
    for (unsigned i = 0; i < 100000 && serial_space() != SERIAL_TX_BYTES; i++) {
        serial_poll();
        send_all();
    }
    send_all();
    assert_int_equal(serial_space(), SERIAL_TX_BYTES);
    wire_length = 0;
    return 0;
}

static void test_init(void **state)
{
    (void)state;
    assert_int_equal(serial_init(PORT, 49), E_INVAL);
    assert_int_equal(serial_init(PORT, 115201), E_INVAL);
    assert_int_equal(serial_init(0, 9600), E_INVAL);
    assert_int_equal(serial_init(0xfffc, 9600), E_INVAL);
    static const struct {
        uint32_t baud;
        unsigned divisor;
    } speeds[] = {{115200, 1}, {57600, 2}, {9600, 12}, {50, 2304}, {38400, 3}};
    for (size_t i = 0; i < 5; i++) {
        assert_int_equal(serial_init(PORT, speeds[i].baud), 0);
        assert_int_equal(uart.divisor_high << 8 | uart.divisor_low, speeds[i].divisor);
        assert_int_equal(uart.lcr, 3);
        assert_int_equal(uart.mcr & 0x1b, 0x0b); // not in loopback, OUT2 set
        assert_int_equal(uart.ier, 0);
        assert_int_equal(uart.fcr & 1, 1);
    }
}

static void test_polled(void **state)
{
    (void)state;
    assert_int_equal(serial_write("hello", 5), 5);
    assert_int_equal(uart.tx_count, 5); // under way at once
    send_all();
    receive("abc", 3);
    assert_int_equal(serial_getc(), -1);
    serial_poll();
    assert_int_equal(serial_getc(), 'a');
    assert_int_equal(serial_getc(), 'b');
    assert_int_equal(serial_getc(), 'c');
    assert_int_equal(serial_getc(), -1);
    assert_int_equal(wire_length, 5);
    assert_memory_equal(wire, "hello", 5);
    assert_int_equal(uart.interrupts, 0);
}

static void test_no_fifo(void **state)
{
    (void)state;
    uart.no_fifo = true;
    assert_int_equal(serial_init(PORT, 9600), 0);
    assert_int_equal(serial_write("slow", 4), 4);
    for (unsigned i = 0; i < 4; i++) {
        assert_int_equal(uart.tx_count, 1);
        send_all();
        serial_poll();
    }
    assert_int_equal(wire_length, 4);
    assert_memory_equal(wire, "slow", 4);
}

static void test_interrupts_alone(void **state)
{
    (void)state;
    assert_int_equal(serial_use_irq(4), 0);
    assert_int_equal(uart.ier & 3, 3);
    static char text[5000];
    for (size_t i = 0; i < sizeof(text); i++)
        text[i] = (char)(i * 7);
    assert_int_equal(serial_write(text, sizeof(text)), sizeof(text));
    // Nobody polls: the interrupt must keep it going, also after pauses.
    while (uart.tx_count != 0) {
        send_one();
        deliver();
    }
    assert_int_equal(wire_length, sizeof(text));
    assert_memory_equal(wire, text, sizeof(text));
    assert_true(uart.interrupts >= sizeof(text) / 16);
    for (unsigned i = 0; i < 300; i++) {
        char c = (char)i;
        assert_int_equal(serial_write(&c, 1), 1);
        if (i % 3 != 0)
            send_one();
        deliver();
        receive(&c, 1);
        deliver();
        assert_int_equal(serial_getc(), i & 0xff);
    }
    while (uart.tx_count != 0) {
        send_one();
        deliver();
    }
    assert_int_equal(wire_length, sizeof(text) + 300);
    assert_false(uart.line); // no cause is left over, so the next edge will come
}

// The wire and the interrupt move on at every register access, in whatever state the driver is.
static size_t fed;
static void anything(void)
{
    static bool inside;
    if (inside)
        return;
    inside = true;
    switch (rand() % 6) {
    case 0:
    case 1:
        send_one();
        break;
    case 2:
        if (uart.rx_count < 12) {
            char c = (char)fed++;
            receive(&c, 1);
        }
        break;
    case 3:
        inside = false;
        deliver();
        break;
    default:
        break;
    }
    inside = false;
}

static void test_interrupt_at_any_moment(void **state)
{
    (void)state;
    srand(5);
    assert_int_equal(serial_use_irq(4), 0);
    between = anything;
    fed = 0;
    size_t sent = 0, read = 0;
    for (unsigned i = 0; i < 20000; i++) {
        char c[20];
        size_t n = (size_t)rand() % sizeof(c);
        if (rand() % 4 != 0)
            n = 0;
        for (size_t k = 0; k < n; k++)
            c[k] = (char)(sent + k);
        sent += serial_write(c, n);
        deliver();
        for (int byte; (byte = serial_getc()) >= 0; read++)
            assert_int_equal(byte, read & 0xff);
        send_one();
        deliver();
    }
    between = NULL;
    // Interrupts alone bring the rest out.
    for (unsigned i = 0; i < 2 * SERIAL_TX_BYTES; i++) {
        send_one();
        deliver();
    }
    assert_int_equal(wire_length, sent);
    for (size_t i = 0; i < sent; i++)
        assert_int_equal((uint8_t)wire[i], i & 0xff);
    for (int byte; (byte = serial_getc()) >= 0; read++)
        assert_int_equal(byte, read & 0xff);
    assert_int_equal(read, fed);
}

// An interrupt that got lost does not wedge the line when somebody polls.
static void test_lost_interrupt(void **state)
{
    (void)state;
    assert_int_equal(serial_use_irq(4), 0);
    uart.irq_works = false;
    assert_int_equal(serial_write("0123456789abcdefghijklmnop", 26), 26);
    send_all();
    assert_int_equal(wire_length, 16);
    receive("x", 1);
    serial_poll();
    send_all();
    assert_int_equal(wire_length, 26);
    assert_int_equal(serial_getc(), 'x');
}

static void test_full_rings(void **state)
{
    (void)state;
    static char big[SERIAL_TX_BYTES + 1000];
    memset(big, 'z', sizeof(big));
    assert_int_equal(serial_write(big, sizeof(big)), SERIAL_TX_BYTES);
    assert_int_equal(serial_space(), 16); // what the FIFO took meanwhile
    assert_int_equal(serial_write(big, 100), 16);
    assert_int_equal(serial_write(big, 100), 0);

    uint64_t lost = serial_lost_bytes();
    for (unsigned i = 0; i < SERIAL_RX_BYTES + 10; i++) {
        char c = (char)i;
        receive(&c, 1);
        serial_poll();
    }
    assert_int_equal(serial_lost_bytes(), lost + 10);
    for (unsigned i = 0; i < SERIAL_RX_BYTES; i++)
        assert_int_equal(serial_getc(), i & 0xff); // the oldest stay
    assert_int_equal(serial_getc(), -1);

    // Overrun in the UART itself, and a break, which is no byte.
    receive("0123456789abcdefOVER", 20);
    serial_poll();
    assert_int_equal(serial_lost_bytes(), lost + 11);
    for (unsigned i = 0; i < 16; i++)
        assert_int_equal(serial_getc(), "0123456789abcdef"[i]);
    uart.break_next = true;
    receive("\0k", 2);
    serial_poll();
    assert_int_equal(serial_getc(), 'k');
    assert_int_equal(serial_getc(), -1);
}

static void test_drain_and_panic(void **state)
{
    (void)state;
    assert_int_equal(serial_write("0123456789abcdefghijklmnop", 26), 26);
    between = send_one;
    serial_drain();
    assert_int_equal(wire_length, 26);
    assert_int_equal(uart.tx_count, 0);
    serial_panic_write("panic!\r\n", 8);
    send_all();
    assert_int_equal(wire_length, 34);
    assert_memory_equal(wire + 26, "panic!\r\n", 8);
    // A UART that stopped does not hang the machine's end.
    between = NULL;
    uart.stuck = true;
    assert_int_equal(serial_write("more than the FIFO takes", 24), 24);
    serial_drain();
    serial_panic_write("panic!", 6);
    assert_true(spin_none_held());
    uart.stuck = false;
}

static void test_absent(void **state)
{
    (void)state;
    uart.absent = true;
    assert_int_equal(serial_init(PORT, 115200), E_IO);
    // One that was pulled out behaves, too.
    assert_int_equal(serial_write("x", 1), 1);
    serial_poll();
    serial_drain();
    serial_panic_write("y", 1);
    assert_int_equal(serial_getc(), -1);
    uart.absent = false;
    route_result = E_NOSYS;
    assert_int_equal(serial_use_irq(4), E_NOSYS);
    assert_int_equal(uart.ier, 0);
}

// Runs first, when no UART was ever set up.
static void test_none_at_all(void **state)
{
    (void)state;
    fake_machine(0, 1);
    memset(&uart, 0, sizeof(uart));
    uart.absent = true;
    assert_int_equal(serial_init(PORT, 115200), E_IO);
    assert_int_equal(serial_use_irq(4), E_IO);
    for (unsigned i = 0; i < 3 * SERIAL_TX_BYTES; i++)
        assert_int_equal(serial_write("x", 1), 1);
    assert_int_equal(serial_space(), SERIAL_TX_BYTES);
    assert_int_equal(serial_getc(), -1);
    serial_poll();
    serial_drain();
    serial_panic_write("x", 1);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_none_at_all),
        cmocka_unit_test_setup(test_init, setup),
        cmocka_unit_test_setup(test_polled, setup),
        cmocka_unit_test_setup(test_no_fifo, setup),
        cmocka_unit_test_setup(test_interrupts_alone, setup),
        cmocka_unit_test_setup(test_interrupt_at_any_moment, setup),
        cmocka_unit_test_setup(test_lost_interrupt, setup),
        cmocka_unit_test_setup(test_full_rings, setup),
        cmocka_unit_test_setup(test_drain_and_panic, setup),
        cmocka_unit_test_setup(test_absent, setup),
    };
    return cmocka_run_group_tests_name("serial", tests, NULL, NULL);
}
