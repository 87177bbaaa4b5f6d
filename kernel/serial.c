// SPDX-License-Identifier: BSD-2-Clause
// The console UART: a 16550 (National Semiconductor PC16550D data sheet).
//
// Who touches what: serial_write produces into the transmit ring under a lock; serial_getc consumes
// from the receive ring. pump() does the other half of both and all work on the UART's registers.
// Only one CPU is ever inside pump(): serial_poll() counts requests, and who finds another one
// inside leaves its request to be served by it. So the interrupt handler takes no lock and never
// waits, and a byte queued while the UART falls idle is seen either by the pump that runs or by the
// one the writer starts itself.
#include "kernel/serial.h"

#include <stdatomic.h>
#include <arch/port.h>

#include "kernel/error.h"
#include "kernel/irq.h"
#include "kernel/lock.h"
#include "kernel/ring.h"
#include "kernel/time.h"

enum uart_register {
    UART_DATA = 0, // receive buffer, transmit holding; divisor low with DLAB
    UART_IER = 1,  // interrupt enable; divisor high with DLAB
    UART_IIR = 2,  // interrupt identification; writing: FIFO control
    UART_LCR = 3,
    UART_MCR = 4,
    UART_LSR = 5,
    UART_SCRATCH = 7,
};

#define IER_ALL         0x07u // data, transmitter empty, line status
#define IIR_NONE        0x01u // no interrupt pending
#define IIR_FIFO        0xc0u // both bits: the FIFOs work
#define FCR_ON_8        0x87u // FIFOs on and cleared, receive interrupt at 8 bytes or a pause
#define LCR_8N1         0x03u
#define LCR_DLAB        0x80u
#define MCR_ON          0x0bu // DTR, RTS, and OUT2, which gates the interrupt line on a PC
#define LSR_DATA        0x01u
#define LSR_OVERRUN     0x02u
#define LSR_BREAK       0x10u
#define LSR_THR_EMPTY   0x20u
#define LSR_IDLE        0x40u // shift register empty too
#define LSR_ABSENT      0xffu // an empty bus; bit 7 with all others never happens
#define UART_FIFO_BYTES 16u
#define UART_CLOCK      115200u

#define PUMP_ROUNDS 16u // per request; the next interrupt or poll goes on
#define POLL_ROUNDS 4u

static uint8_t tx_bytes[SERIAL_TX_BYTES];
static uint8_t rx_bytes[SERIAL_RX_BYTES];
static struct ring tx = {.bytes = tx_bytes, .size = SERIAL_TX_BYTES};
static struct ring rx = {.bytes = rx_bytes, .size = SERIAL_RX_BYTES};
static struct spinlock tx_lock = SPINLOCK_INIT("serial", RANK_LOG);

static uint16_t uart_port; // 0: there is none
static uint32_t uart_baud;
static uint32_t uart_fifo; // bytes the transmitter takes when it is empty
static _Atomic uint32_t poll_requests;
static _Atomic uint64_t lost_bytes;

static uint8_t uart_in(enum uart_register r)
{
    return port_in8((uint16_t)(uart_port + r));
}

static void uart_out(enum uart_register r, unsigned value)
{
    port_out8((uint16_t)(uart_port + r), (uint8_t)value);
}

// An empty bus reads as all ones; the scratch register is memory that a 16550 has and nothing else
// at this address is likely to have.
static bool answers(uint16_t port)
{
    if (port_in8((uint16_t)(port + UART_LSR)) == LSR_ABSENT)
        return false;
    uint16_t scratch = (uint16_t)(port + UART_SCRATCH);
    port_out8(scratch, 0x5a);
    if (port_in8(scratch) != 0x5a)
        return false;
    port_out8(scratch, 0xa5);
    return port_in8(scratch) == 0xa5;
}

int serial_init(uint16_t port, uint32_t baud)
{
    if (baud < 50 || baud > UART_CLOCK || port == 0 || port > UINT16_MAX - UART_SCRATCH)
        return E_INVAL;
    if (!answers(port))
        return E_IO;
    uart_port = port;
    uart_baud = baud;
    unsigned divisor = (UART_CLOCK + baud / 2) / baud;
    uart_out(UART_IER, 0);
    uart_out(UART_LCR, LCR_DLAB | LCR_8N1);
    uart_out(UART_DATA, divisor & 0xff);
    uart_out(UART_IER, divisor >> 8);
    uart_out(UART_LCR, LCR_8N1);
    uart_out(UART_IIR, FCR_ON_8);
    uart_out(UART_MCR, MCR_ON);
    uart_fifo = (uart_in(UART_IIR) & IIR_FIFO) == IIR_FIFO ? UART_FIFO_BYTES : 1;
    return 0;
}

static void handle_interrupt(void *context)
{
    (void)context;
    serial_poll();
}

int serial_use_irq(unsigned isa_irq)
{
    if (uart_port == 0)
        return E_IO;
    int error = irq_route_isa(isa_irq, VECTOR_SERIAL, handle_interrupt, NULL);
    if (error != 0)
        return error;
    // From now on "transmitter empty" stays enabled: it comes once when the last byte has left, and
    // reading the identification register takes it away.
    uart_out(UART_IER, IER_ALL);
    serial_poll();
    return 0;
}

// Returns the line status after the last byte.
static uint8_t receive(void)
{
    uint8_t status = uart_in(UART_LSR);
    for (unsigned n = 0; status != LSR_ABSENT && (status & LSR_DATA) != 0; n++) {
        uint8_t byte = uart_in(UART_DATA);
        if ((status & LSR_OVERRUN) != 0)
            atomic_fetch_add_explicit(&lost_bytes, 1, memory_order_relaxed);
        // A break arrives as one zero byte that nobody typed.
        if ((status & LSR_BREAK) == 0 && !ring_put(&rx, byte))
            atomic_fetch_add_explicit(&lost_bytes, 1, memory_order_relaxed);
        if (n == 4 * UART_FIFO_BYTES)
            break;
        status = uart_in(UART_LSR);
    }
    return status;
}

static void pump(void)
{
    for (unsigned round = 0; round < PUMP_ROUNDS; round++) {
        uint8_t status = receive();
        if (status == LSR_ABSENT)
            return;
        if ((status & LSR_THR_EMPTY) != 0) {
            int byte = 0;
            for (unsigned n = 0; n < uart_fifo && (byte = ring_get(&tx)) >= 0; n++)
                uart_out(UART_DATA, (unsigned)byte);
        }
        // The ISA interrupt is an edge: it only comes again when no cause was left for a moment.
        if ((uart_in(UART_IIR) & IIR_NONE) != 0)
            return;
    }
}

void serial_poll(void)
{
    if (uart_port == 0)
        return;
    if (atomic_fetch_add(&poll_requests, 1) != 0)
        return; // whoever is inside sees the request
    for (unsigned round = 0; round < POLL_ROUNDS; round++) {
        uint32_t served = atomic_load(&poll_requests);
        pump();
        if (atomic_compare_exchange_strong(&poll_requests, &served, 0))
            return;
    }
    // Others keep asking; CPU 0's scheduler loop asks again in any case.
    atomic_store(&poll_requests, 0);
}

int serial_getc(void)
{
    return ring_get(&rx);
}

size_t serial_write(const char *data, size_t size)
{
    if (uart_port == 0)
        return size;
    size_t taken = 0;
    spin_lock(&tx_lock);
    while (taken < size && ring_put(&tx, (uint8_t)data[taken]))
        taken++;
    spin_unlock(&tx_lock);
    serial_poll();
    return taken;
}

size_t serial_space(void)
{
    return uart_port == 0 ? SERIAL_TX_BYTES : ring_space(&tx);
}

// Time after which a UART that sends nothing will not: two FIFOs full of ten-bit characters and a
// tenth of a second.
static uint64_t patience_us(void)
{
    return 100000 + UINT64_C(2) * UART_FIFO_BYTES * 10 * 1000000 / uart_baud;
}

void serial_drain(void)
{
    if (uart_port == 0)
        return;
    uint64_t limit = time_us_to_tsc(patience_us());
    uint64_t since = time_tsc();
    uint32_t left = ring_used(&tx);
    while (left != 0 || (uart_in(UART_LSR) & LSR_IDLE) == 0) {
        serial_poll();
        uint32_t now = ring_used(&tx);
        if (now != left)
            since = time_tsc();
        else if (time_tsc() - since > limit)
            return;
        left = now;
        cpu_relax();
    }
}

void serial_panic_write(const char *data, size_t size)
{
    if (uart_port == 0)
        return;
    // No clock here: it may be what broke. A port read takes about a microsecond on a PC.
    for (size_t i = 0; i < size; i++) {
        uint64_t patience = patience_us();
        while ((uart_in(UART_LSR) & LSR_THR_EMPTY) == 0) {
            if (patience-- == 0)
                return;
            cpu_relax();
        }
        uart_out(UART_DATA, (uint8_t)data[i]);
    }
}

uint64_t serial_lost_bytes(void)
{
    return atomic_load_explicit(&lost_bytes, memory_order_relaxed);
}
