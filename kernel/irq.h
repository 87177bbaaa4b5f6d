// SPDX-License-Identifier: BSD-2-Clause
// Interrupts of the machine. Handlers run with interrupts off, take no locks, and only move bytes
// or set flags.
#pragma once

#include "kernel/types.h"

#define VECTOR_TIMER    0x40u // this CPU's one-shot timer: ends halts, calls nobody
#define VECTOR_WAKE     0x41u // another CPU wants this one to look at its run queue
#define VECTOR_SERIAL   0x42u // console UART
#define VECTOR_POSTED   0x43u // posted-interrupt notification: calls nobody
#define VECTOR_SPURIOUS 0xffu

typedef void (*irq_handler)(void *context);

// Routes ISA interrupt `irq` (through IOAPIC or PIC, whichever the machine has) to `vector` on CPU
// 0.
int irq_route_isa(unsigned irq, unsigned vector, irq_handler handler, void *context);

// Called with interrupts off for an external interrupt that arrived as a VM exit with
// acknowledge-on-exit: runs the handler and signals end of interrupt.
void irq_dispatch(unsigned vector);

// Sends VECTOR_WAKE / VECTOR_POSTED / an NMI to `cpu` (index). The NMI handler in root mode sets
// cpu->kicked.
void irq_send_wake(uint32_t cpu);
void irq_send_posted(uint32_t cpu);
void irq_send_nmi(uint32_t cpu);

// For the NMI exit path: what the NMI handler does in root mode (kick flag, watchdog, panic stop).
// in_guest says that it arrived in a guest, so no forced exit is needed.
void irq_handle_nmi(bool in_guest);
