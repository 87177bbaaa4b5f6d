// SPDX-License-Identifier: BSD-2-Clause
// External interrupts: through the IOAPIC where ACPI describes one (the PIC is then masked), else
// through the PIC in virtual-wire mode, which CPU 0's LINT0 accepts as ExtINT.
//
// The PIC can only deliver base + irq, so its vectors are VECTOR_PIC.. and are looked up in the
// same table of handlers as the vector the caller asked for.
#include "kernel/acpi.h"
#include "kernel/error.h"
#include "kernel/irq.h"
#include "kernel/log.h"
#include "kernel/paging.h"
#include "kernel/x86/machine.h"

#define ISA_IRQS 16u

#define PIC1_COMMAND 0x20u
#define PIC1_DATA    0x21u
#define PIC2_COMMAND 0xa0u
#define PIC2_DATA    0xa1u
#define PIC_EOI      0x20u
#define PIC_READ_ISR 0x0bu
#define PIC_CASCADE  2u

#define IOAPIC_VERSION     1u
#define IOAPIC_REDIRECTION 0x10u
#define REDIRECT_LOW       (1u << 13)
#define REDIRECT_LEVEL     (1u << 15)
#define REDIRECT_MASKED    (1u << 16)

struct route {
    irq_handler handler;
    void *context;
};

static struct route routes[256]; // by vector
static struct route pic_routes[ISA_IRQS];
static uint16_t pic_mask = 0xffff;
static _Atomic uint64_t unexpected;

static struct {
    volatile uint32_t *registers; // select at 0, window at 10h
    uint32_t gsi_base, entries;
} ioapics[ACPI_MAX_IOAPICS];
static unsigned ioapic_count;

static uint32_t ioapic_read(unsigned which, uint32_t index)
{
    ioapics[which].registers[0] = index;
    return ioapics[which].registers[4];
}

static void ioapic_write(unsigned which, uint32_t index, uint32_t value)
{
    ioapics[which].registers[0] = index;
    ioapics[which].registers[4] = value;
}

static void pic_write_mask(void)
{
    cpu_out8(PIC1_DATA, (uint8_t)pic_mask);
    cpu_out8(PIC2_DATA, (uint8_t)(pic_mask >> 8));
}

// Initialisation words 1 to 4 of the 8259A, then everything masked.
static void pic_init(void)
{
    const uint8_t words[4][2] = {
        {0x11, 0x11}, {VECTOR_PIC, VECTOR_PIC + 8}, {1u << PIC_CASCADE, PIC_CASCADE}, {1, 1}};
    for (unsigned i = 0; i < 4; i++) {
        cpu_out8(i == 0 ? PIC1_COMMAND : PIC1_DATA, words[i][0]);
        cpu_out8(i == 0 ? PIC2_COMMAND : PIC2_DATA, words[i][1]);
    }
    pic_write_mask();
}

static void ioapic_init(const struct acpi_ioapic *found)
{
    volatile uint32_t *registers = paging_map_device(hpa(found->base), PAGE_SIZE, PAGING_UNCACHED);
    if (registers == NULL)
        return;
    unsigned which = ioapic_count++;
    ioapics[which].registers = registers;
    ioapics[which].gsi_base = found->gsi_base;
    ioapics[which].entries = (ioapic_read(which, IOAPIC_VERSION) >> 16 & 0xff) + 1;
    for (uint32_t i = 0; i < ioapics[which].entries; i++) {
        ioapic_write(which, IOAPIC_REDIRECTION + 2 * i, REDIRECT_MASKED);
        ioapic_write(which, IOAPIC_REDIRECTION + 2 * i + 1, 0);
    }
}

void interrupts_init(void)
{
    pic_init();
    for (unsigned i = 0; i < acpi_machine.ioapic_count; i++)
        ioapic_init(&acpi_machine.ioapics[i]);
    if (ioapic_count == 0)
        apic_accept_pic();
    log_info("interrupts: %s, ISA through the %s", apic_is_x2apic() ? "x2APIC" : "xAPIC",
             ioapic_count > 0 ? "IOAPIC" : "PIC");
}

static int route_ioapic(unsigned irq, unsigned vector)
{
    const struct acpi_isa_irq *source = &acpi_machine.isa[irq];
    for (unsigned which = 0; which < ioapic_count; which++) {
        if (source->gsi < ioapics[which].gsi_base ||
            source->gsi - ioapics[which].gsi_base >= ioapics[which].entries)
            continue;
        uint32_t entry = IOAPIC_REDIRECTION + 2 * (source->gsi - ioapics[which].gsi_base);
        ioapic_write(which, entry + 1, cpus[0].apic_id << 24);
        ioapic_write(which, entry,
                     vector | (source->active_low ? REDIRECT_LOW : 0) |
                         (source->level ? REDIRECT_LEVEL : 0));
        return 0;
    }
    return E_NOENT;
}

int irq_route_isa(unsigned irq, unsigned vector, irq_handler handler, void *context)
{
    if (irq >= ISA_IRQS || irq == PIC_CASCADE || vector < VECTOR_PIC + ISA_IRQS ||
        vector >= VECTOR_SPURIOUS || handler == NULL)
        return E_INVAL;
    // The handler must stand before the first interrupt; on CPU 0, where it arrives, IF is 0 now.
    routes[vector] = (struct route){handler, context};
    if (ioapic_count > 0)
        return route_ioapic(irq, vector);
    pic_routes[irq] = routes[vector];
    pic_mask &= (uint16_t) ~(1u << irq);
    if (irq >= 8)
        pic_mask &= (uint16_t) ~(1u << PIC_CASCADE);
    pic_write_mask();
    return 0;
}

static void dispatch_pic(unsigned irq)
{
    // Lines 7 and 15 also report requests that vanished; those are not in service and get no EOI
    // (the slave's still needs the master's).
    uint16_t command = irq >= 8 ? PIC2_COMMAND : PIC1_COMMAND;
    bool spurious = false;
    if (irq == 7 || irq == 15) {
        cpu_out8(command, PIC_READ_ISR);
        spurious = (cpu_in8(command) & 0x80) == 0;
    }
    if (!spurious) {
        if (pic_routes[irq].handler != NULL)
            pic_routes[irq].handler(pic_routes[irq].context);
        else
            unexpected++;
        if (irq >= 8)
            cpu_out8(PIC2_COMMAND, PIC_EOI);
    }
    if (!spurious || irq >= 8)
        cpu_out8(PIC1_COMMAND, PIC_EOI);
}

void irq_dispatch(unsigned vector)
{
    if (vector >= VECTOR_PIC && vector < VECTOR_PIC + ISA_IRQS) {
        dispatch_pic(vector - VECTOR_PIC); // ExtINT: the local APIC wants no EOI
        return;
    }
    if (vector == VECTOR_SPURIOUS)
        return; // never in service
    if (routes[vector & 0xff].handler != NULL)
        routes[vector & 0xff].handler(routes[vector & 0xff].context);
    else if (vector != VECTOR_TIMER && vector != VECTOR_WAKE && vector != VECTOR_POSTED)
        unexpected++;
    apic_end_of_interrupt();
}

uint64_t interrupts_unexpected(void)
{
    return unexpected;
}
