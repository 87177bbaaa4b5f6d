// SPDX-License-Identifier: BSD-2-Clause
// What the four files of the LAPIC (registers, interrupts, timer, virtualization) share; nobody
// else includes it.
#pragma once

#include "devices/lapic.h"

// Index into lapic.lvt. Register 0x2f0 (CMCI) is not offered: the version register promises six
// entries.
enum lapic_lvt { LVT_CMCI, LVT_TIMER, LVT_THERMAL, LVT_PERF, LVT_LINT0, LVT_LINT1, LVT_ERROR };

#define LVT_VECTOR     0xffu
#define LVT_MASKED     (1u << 16)
#define LVT_TIMER_MODE (3u << 17)

enum lapic_timer_mode { TIMER_ONE_SHOT, TIMER_PERIODIC, TIMER_DEADLINE, TIMER_RESERVED };

#define SVR_ENABLE (1u << 8)

// ESR (SDM vol. 3, 11.5.3)
#define ESR_SEND_ILLEGAL     (1u << 5)
#define ESR_RECEIVED_ILLEGAL (1u << 6)
#define ESR_REGISTER         (1u << 7)

#define BASE_BSP    (UINT64_C(1) << 8)
#define BASE_X2APIC (UINT64_C(1) << 10)
#define BASE_ENABLE (UINT64_C(1) << 11)

// --- lapic_interrupt.c ---
void lapic_update_pending(struct lapic *l);
void lapic_clear_interrupts(struct lapic *l);
void lapic_eoi(struct lapic *l);
// Logs an error for the next write of ESR and raises the error interrupt.
void lapic_error(struct lapic *l, uint32_t bit);
// An interrupt of the local vector table.
void lapic_local(struct lapic *l, enum lapic_lvt entry);
// ICR was written: checks it and hands the message to the VM.
void lapic_send(struct lapic *l);
void lapic_self_ipi(struct lapic *l, uint8_t vector);

// --- lapic_virtual.c ---
void lapic_virtual_clear(struct lapic *l);
// An edge-triggered request from any CPU.
void lapic_virtual_post(struct lapic *l, uint8_t vector);

static inline bool lapic_software_enabled(const struct lapic *l)
{
    return (l->svr & SVR_ENABLE) != 0;
}

// --- lapic_timer.c ---
static inline enum lapic_timer_mode lapic_timer_mode(uint32_t lvt)
{
    return (enum lapic_timer_mode)((lvt & LVT_TIMER_MODE) >> 17);
}

void lapic_timer_fire(void *lapic, uint64_t now);
void lapic_timer_stop(struct lapic *l);
// Must come before a write to the LVT entry: what is due happens first.
void lapic_timer_catch_up(struct lapic *l);
// The LVT entry changed from `old`.
void lapic_timer_lvt_changed(struct lapic *l, uint32_t old);
void lapic_timer_set_initial(struct lapic *l, uint32_t count);
void lapic_timer_set_divide(struct lapic *l, uint32_t divide);
uint32_t lapic_timer_current(const struct lapic *l);
void lapic_timer_set_deadline(struct lapic *l, uint64_t deadline);
uint64_t lapic_timer_deadline(const struct lapic *l);
