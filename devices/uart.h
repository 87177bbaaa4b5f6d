// SPDX-License-Identifier: BSD-2-Clause
// A 16550A serial port whose other end is a ring: `vm console` reads the output (with replay of the
// recent past) and writes the input. Caller holds the VM's device lock.
#pragma once

#include "kernel/types.h"
#include "vm/bus.h"

#define UART_OUTPUT_BYTES 16384u // kept for replay
#define UART_INPUT_BYTES  1024u

struct uart {
    uint8_t ier, iir_fifo, lcr, mcr, lsr, scr, dll, dlm;
    uint8_t msr;
    bool thre_pending, fifo_on;
    bool line;      // level last given to set_irq
    uint8_t rx[16]; // the FIFO the guest sees
    uint8_t rx_count, rx_trigger;
    char output[UART_OUTPUT_BYTES];
    uint64_t output_total; // bytes ever written; output[output_total % size] is next
    char input[UART_INPUT_BYTES];
    uint32_t input_head, input_tail;            // count up for ever; position is modulo the size
    void (*set_irq)(void *context, bool level); // IRQ 4
    void *context;
};

void uart_init(struct uart *u, void (*set_irq)(void *, bool), void *context);
// Machine reset: registers to power-on state; the kept output stays.
void uart_reset(struct uart *u);
int uart_register(struct uart *u, struct bus *bus, uint16_t port);
// Copies output from *cursor on and advances it; returns the bytes copied. A cursor that points
// before what is kept, or after what was ever written, jumps to the oldest byte kept.
size_t uart_read_output(const struct uart *u, uint64_t *cursor, char *buffer, size_t size);
// Offers input; returns the bytes taken. Input that waited is dropped by a reset.
size_t uart_write_input(struct uart *u, const char *data, size_t size);
