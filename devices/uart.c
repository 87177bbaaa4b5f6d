// SPDX-License-Identifier: BSD-2-Clause
// The 16550A (National Semiconductor PC16550D datasheet). Transmission takes no time: what the
// guest writes to THR is in the output ring when the write returns, so THR and the transmitter are
// always empty. Input waits in a ring until the FIFO has room, so nothing overruns except in
// loopback mode.
#include "devices/uart.h"

#include "kernel/error.h"
#include "kernel/string.h"

#define FIFO_SIZE 16u

_Static_assert((UART_OUTPUT_BYTES & (UART_OUTPUT_BYTES - 1)) == 0, "ring indices wrap by masking");
_Static_assert((UART_INPUT_BYTES & (UART_INPUT_BYTES - 1)) == 0, "ring indices wrap by masking");

enum uart_register { REG_DATA, REG_IER, REG_IIR, REG_LCR, REG_MCR, REG_LSR, REG_MSR, REG_SCR };

enum ier { IER_RX = 1, IER_THRE = 2, IER_LINE = 4, IER_MODEM = 8, IER_ALL = 15 };
enum iir {
    IIR_NONE = 0x01,
    IIR_MODEM = 0x00,
    IIR_THRE = 0x02,
    IIR_RX = 0x04,
    IIR_LINE = 0x06,
    IIR_TIMEOUT = 0x0c,
    IIR_FIFO = 0xc0
};
enum fcr { FCR_ENABLE = 1, FCR_CLEAR_RX = 2 };
enum { LCR_DLAB = 0x80 };
enum mcr { MCR_DTR = 1, MCR_RTS = 2, MCR_OUT1 = 4, MCR_OUT2 = 8, MCR_LOOP = 16, MCR_ALL = 31 };
enum lsr { LSR_DATA = 1, LSR_OVERRUN = 2, LSR_THRE = 0x20, LSR_IDLE = 0x40, LSR_ERRORS = 0x1e };
enum msr {
    MSR_CTS_CHANGED = 1,
    MSR_DSR_CHANGED = 2,
    MSR_RING_ENDED = 4,
    MSR_DCD_CHANGED = 8,
    MSR_CHANGES = 15,
    MSR_CTS = 0x10,
    MSR_DSR = 0x20,
    MSR_RING = 0x40,
    MSR_DCD = 0x80
};

// What IIR shows: the most urgent enabled condition (datasheet, table 5).
static uint8_t interrupt_id(const struct uart *u)
{
    if ((u->ier & IER_LINE) != 0 && (u->lsr & LSR_ERRORS) != 0)
        return IIR_LINE;
    if ((u->ier & IER_RX) != 0 && u->rx_count > 0) {
        // Input comes in bursts with nothing after it: data below the trigger level is reported as
        // timed out at once, instead of four character times later.
        return u->rx_count >= u->rx_trigger ? IIR_RX : IIR_TIMEOUT;
    }
    if ((u->ier & IER_THRE) != 0 && u->thre_pending)
        return IIR_THRE;
    if ((u->ier & IER_MODEM) != 0 && (u->msr & MSR_CHANGES) != 0)
        return IIR_MODEM;
    return IIR_NONE;
}

// On a PC the pin OUT2 connects the interrupt to the controller, and loopback makes it inactive.
static void update_irq(struct uart *u)
{
    bool connected = (u->mcr & (MCR_OUT2 | MCR_LOOP)) == MCR_OUT2;
    bool level = connected && interrupt_id(u) != IIR_NONE;
    if (level == u->line)
        return;
    u->line = level;
    u->set_irq(u->context, level);
}

static void receive(struct uart *u, uint8_t byte)
{
    unsigned room = u->fifo_on ? FIFO_SIZE : 1;
    if (u->rx_count >= room) {
        u->lsr |= LSR_OVERRUN;
        if (!u->fifo_on) // the holding register is overwritten, a full FIFO keeps what it has
            u->rx[0] = byte;
    } else {
        u->rx[u->rx_count++] = byte;
    }
    u->lsr |= LSR_DATA;
}

// Moves input from the ring into the FIFO. In loopback the receiver is cut off from outside.
static void feed(struct uart *u)
{
    unsigned room = u->fifo_on ? FIFO_SIZE : 1;
    if ((u->mcr & MCR_LOOP) != 0)
        return;
    while (u->rx_count < room && u->input_tail != u->input_head)
        receive(u, (uint8_t)u->input[u->input_tail++ % UART_INPUT_BYTES]);
}

static void clear_rx(struct uart *u)
{
    u->rx_count = 0;
    u->lsr = (uint8_t)(u->lsr & ~LSR_DATA);
}

static uint8_t read_data(struct uart *u)
{
    if (u->rx_count == 0)
        return 0;
    uint8_t byte = u->rx[0];
    u->rx_count--;
    memmove(u->rx, u->rx + 1, u->rx_count);
    if (u->rx_count == 0)
        u->lsr = (uint8_t)(u->lsr & ~LSR_DATA);
    feed(u);
    return byte;
}

static void write_data(struct uart *u, uint8_t byte)
{
    if ((u->mcr & MCR_LOOP) != 0)
        receive(u, byte);
    else
        u->output[u->output_total++ % UART_OUTPUT_BYTES] = (char)byte;
    u->thre_pending = true; // full and at once empty again
}

static void write_ier(struct uart *u, uint8_t value)
{
    // Enabling the interrupt while THR is empty raises it, each time: Linux starts transmission
    // by it and counts a UART without as broken (UART_BUG_TXEN, UART_BUG_THRE).
    if ((value & IER_THRE) != 0 && (u->ier & IER_THRE) == 0)
        u->thre_pending = true;
    u->ier = value & IER_ALL; // the other bits read 0, or Linux takes it for an XScale UART
}

static void write_fcr(struct uart *u, uint8_t value)
{
    static const uint8_t triggers[4] = {1, 4, 8, 14};
    bool on = (value & FCR_ENABLE) != 0;
    if (on != u->fifo_on || (on && (value & FCR_CLEAR_RX) != 0))
        clear_rx(u);
    u->fifo_on = on;
    u->iir_fifo = on ? IIR_FIFO : 0;
    u->rx_trigger = on ? triggers[value >> 6] : 1;
    feed(u);
}

static void update_modem(struct uart *u)
{
    // Nothing is attached that could drop a line: ready to receive, ready, carrier.
    unsigned now = MSR_CTS | MSR_DSR | MSR_DCD;
    if ((u->mcr & MCR_LOOP) != 0) {
        now = ((u->mcr & MCR_RTS) != 0 ? MSR_CTS : 0u) | ((u->mcr & MCR_DTR) != 0 ? MSR_DSR : 0u) |
              ((u->mcr & MCR_OUT1) != 0 ? MSR_RING : 0u) |
              ((u->mcr & MCR_OUT2) != 0 ? MSR_DCD : 0u);
    }
    unsigned changed = u->msr ^ now;
    unsigned changes = u->msr & MSR_CHANGES;
    if ((changed & MSR_CTS) != 0)
        changes |= MSR_CTS_CHANGED;
    if ((changed & MSR_DSR) != 0)
        changes |= MSR_DSR_CHANGED;
    if ((changed & MSR_RING) != 0 && (now & MSR_RING) == 0)
        changes |= MSR_RING_ENDED;
    if ((changed & MSR_DCD) != 0)
        changes |= MSR_DCD_CHANGED;
    u->msr = (uint8_t)(now | changes);
}

static uint8_t read_iir(struct uart *u)
{
    uint8_t id = interrupt_id(u);
    if (id == IIR_THRE)
        u->thre_pending = false;
    return id | u->iir_fifo;
}

static uint32_t uart_read(void *device, uint16_t offset, unsigned size)
{
    (void)size;
    struct uart *u = device;
    bool divisor = (u->lcr & LCR_DLAB) != 0;
    uint8_t value;
    switch (offset) {
    case REG_DATA:
        value = divisor ? u->dll : read_data(u);
        break;
    case REG_IER:
        value = divisor ? u->dlm : u->ier;
        break;
    case REG_IIR:
        value = read_iir(u);
        break;
    case REG_LCR:
        value = u->lcr;
        break;
    case REG_MCR:
        value = u->mcr;
        break;
    case REG_LSR:
        value = u->lsr;
        u->lsr = (uint8_t)(u->lsr & ~LSR_ERRORS);
        break;
    case REG_MSR:
        value = u->msr;
        u->msr = (uint8_t)(u->msr & ~MSR_CHANGES);
        break;
    default:
        value = u->scr;
        break;
    }
    update_irq(u);
    return value;
}

static void uart_write(void *device, uint16_t offset, unsigned size, uint32_t data)
{
    (void)size;
    struct uart *u = device;
    bool divisor = (u->lcr & LCR_DLAB) != 0;
    uint8_t value = (uint8_t)data;
    switch (offset) {
    case REG_DATA:
        if (divisor)
            u->dll = value;
        else
            write_data(u, value);
        break;
    case REG_IER:
        if (divisor)
            u->dlm = value;
        else
            write_ier(u, value);
        break;
    case REG_IIR:
        write_fcr(u, value);
        break;
    case REG_LCR:
        u->lcr = value;
        break;
    case REG_MCR:
        u->mcr = value & MCR_ALL;
        update_modem(u);
        feed(u);
        break;
    case REG_SCR:
        u->scr = value;
        break;
    default: // LSR and MSR are read-only
        break;
    }
    update_irq(u);
}

void uart_reset(struct uart *u)
{
    u->ier = 0;
    u->iir_fifo = 0;
    u->lcr = 0;
    u->mcr = 0;
    u->lsr = LSR_THRE | LSR_IDLE;
    u->msr = MSR_CTS | MSR_DSR | MSR_DCD;
    u->scr = 0;
    u->dll = 12; // 9600 baud
    u->dlm = 0;
    u->thre_pending = false;
    u->fifo_on = false;
    u->rx_count = 0;
    u->rx_trigger = 1;
    // Input typed to the machine before the reset was meant for that machine.
    u->input_tail = u->input_head;
    update_irq(u);
}

void uart_init(struct uart *u, void (*set_irq)(void *, bool), void *context)
{
    memset(u, 0, sizeof(*u));
    u->set_irq = set_irq;
    u->context = context;
    uart_reset(u);
}

int uart_register(struct uart *u, struct bus *bus, uint16_t port)
{
    return bus_add_pio_bytes(bus, port, 8, uart_read, uart_write, u);
}

size_t uart_read_output(const struct uart *u, uint64_t *cursor, char *buffer, size_t size)
{
    uint64_t kept = MIN(u->output_total, (uint64_t)UART_OUTPUT_BYTES);
    uint64_t oldest = u->output_total - kept;
    // A cursor from beyond the end was left over from a VM that is gone.
    if (*cursor < oldest || *cursor > u->output_total)
        *cursor = oldest;
    size_t count = (size_t)MIN(u->output_total - *cursor, (uint64_t)size);
    size_t at = (size_t)(*cursor % UART_OUTPUT_BYTES);
    size_t first = MIN(count, UART_OUTPUT_BYTES - at);
    memcpy(buffer, u->output + at, first);
    memcpy(buffer + first, u->output, count - first);
    *cursor += count;
    return count;
}

size_t uart_write_input(struct uart *u, const char *data, size_t size)
{
    size_t taken = 0;
    while (taken < size) {
        feed(u); // makes room
        if (u->input_head - u->input_tail == UART_INPUT_BYTES)
            break;
        u->input[u->input_head++ % UART_INPUT_BYTES] = data[taken++];
    }
    feed(u);
    update_irq(u);
    return taken;
}
