// SPDX-License-Identifier: BSD-2-Clause
// The I/O APIC: 24 inputs. Caller holds the VM's device lock for every call.
#pragma once

#include "devices/lapic.h"

#define IOAPIC_PINS 24u

struct ioapic {
    uint32_t id;
    uint32_t select;
    uint64_t redirection[IOAPIC_PINS];
    uint32_t lines; // levels of the inputs
    void (*deliver)(void *context, const struct apic_message *message);
    void *context;
};

void ioapic_init(struct ioapic *io, void (*deliver)(void *, const struct apic_message *),
                 void *context);
int ioapic_register(struct ioapic *io, struct bus *bus); // at LAYOUT_IOAPIC, 4 KiB
void ioapic_set_irq(struct ioapic *io, unsigned pin, bool level);
void ioapic_eoi(struct ioapic *io, uint8_t vector);
