// SPDX-License-Identifier: BSD-2-Clause
// The pair of 8259A interrupt controllers. Caller holds the VM's device lock for every call.
#pragma once

#include "kernel/types.h"
#include "vm/bus.h"

struct pic_chip {
    uint8_t irr, isr, imr, level_mask, lines; // level_mask: ELCR
    uint8_t vector_base, init_step, icw4;
    uint8_t priority; // lowest-priority IRQ + 1
    bool read_isr, auto_eoi, rotate_on_auto_eoi, special_mask, poll;
    bool special_fully_nested;
    bool single, needs_icw4; // what ICW1 announced
};

struct pic {
    struct pic_chip chip[2]; // master, slave
};

// Power-on state, all inputs masked; also for a reset of the machine.
void pic_init(struct pic *pic);
// Ports 0x20/0x21, 0xa0/0xa1, ELCR 0x4d0/0x4d1.
int pic_register(struct pic *pic, struct bus *bus);
// irq 0..15; others and 2, the cascade, are ignored. Edge-triggered requests stay latched when the
// line falls, so a device may pulse it.
void pic_set_irq(struct pic *pic, unsigned irq, bool level);
// True when INTR to the CPU is raised.
bool pic_pending(const struct pic *pic);
// INTA cycle: returns the vector (spurious IRQ 7/15 included).
uint8_t pic_acknowledge(struct pic *pic);
