// SPDX-License-Identifier: BSD-2-Clause
// The console UART: a 16550, interrupt driven, with a receive and a transmit ring.
#pragma once

#include "kernel/types.h"

#define SERIAL_RX_BYTES 4096u
#define SERIAL_TX_BYTES 65536u

// port: I/O base; baud: 50..115200. Works polled until serial_use_irq. E_IO when no UART answers
// there; a UART that was in use before stays in use. Without any UART all functions are harmless:
// what is written is dropped.
int serial_init(uint16_t port, uint32_t baud);
int serial_use_irq(unsigned isa_irq);

// Next received byte, or -1. One reader.
int serial_getc(void);
// Queues for transmission and returns the number of bytes taken (all, or what fits). Never waits.
size_t serial_write(const char *data, size_t size);
// Bytes that fit now without loss.
size_t serial_space(void);
// Moves bytes between rings and UART; called by the interrupt handler, and as a fallback by the
// scheduler loop of CPU 0, so that a lost interrupt never wedges the console.
void serial_poll(void);
// Waits until everything is on the wire, polling (power-off, panic).
void serial_drain(void);
// Writes directly to the UART, polled, ignoring the ring and its lock: panic only.
void serial_panic_write(const char *data, size_t size);
uint64_t serial_lost_bytes(void); // received but dropped for lack of room

// Text is mirrored to the framebuffer where there is one; fbcon_write is called by the console, not
// by serial_write.
struct boot_framebuffer;
void fbcon_init(const struct boot_framebuffer *fb);
void fbcon_write(const char *data, size_t size);
