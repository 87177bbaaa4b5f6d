// SPDX-License-Identifier: BSD-2-Clause
// The I/O APIC, after Intel's 82093AA data sheet (May 1996).
#include "devices/ioapic.h"

#include "kernel/string.h"
#include "vm/layout.h"

#define WINDOW_SELECT 0x00u
#define WINDOW_DATA   0x10u

#define REG_ID          0x00u
#define REG_VERSION     0x01u
#define REG_ARBITRATION 0x02u
#define REG_REDIRECTION 0x10u // two per pin

// Version 0x11: the EOI comes as the LAPICs' broadcast. 0x20 would promise an EOI register; Linux
// then uses it only together with EOI suppression in the LAPIC, which is not offered.
#define VERSION ((IOAPIC_PINS - 1) << 16 | 0x11u)

#define RTE_LOGICAL    (UINT64_C(1) << 11)
#define RTE_STATUS     (UINT64_C(1) << 12)
#define RTE_REMOTE_IRR (UINT64_C(1) << 14)
#define RTE_LEVEL      (UINT64_C(1) << 15)
#define RTE_MASKED     (UINT64_C(1) << 16)
#define RTE_WRITABLE   UINT64_C(0xff0000000001afff)

void ioapic_init(struct ioapic *io, void (*deliver)(void *, const struct apic_message *),
                 void *context)
{
    memset(io, 0, sizeof(*io));
    io->deliver = deliver;
    io->context = context;
    for (unsigned pin = 0; pin < IOAPIC_PINS; pin++)
        io->redirection[pin] = RTE_MASKED;
}

static void send(struct ioapic *io, unsigned pin)
{
    uint64_t entry = io->redirection[pin];
    uint32_t destination = (uint32_t)(entry >> 56);
    struct apic_message message = {
        .destination = destination == 0xff ? APIC_BROADCAST : destination,
        .logical = (entry & RTE_LOGICAL) != 0,
        .level = (entry & RTE_LEVEL) != 0,
        .assert_level = true,
        .vector = (uint8_t)entry,
        .delivery = (enum apic_delivery)(entry >> 8 & 7),
    };
    switch (message.delivery) {
    case APIC_FIXED:
    case APIC_LOWEST:
        if (message.level)
            io->redirection[pin] |= RTE_REMOTE_IRR;
        break;
    case APIC_NMI:
    case APIC_INIT:
        message.level = false; // these are edges whatever the entry says
        break;
    default: // the PIC has its own way to LINT0; SMI and the reserved modes do nothing
        return;
    }
    io->deliver(io->context, &message);
}

static bool is_fixed(uint64_t entry)
{
    return (entry >> 8 & 7) <= APIC_LOWEST;
}

// Sends a level-triggered interrupt whose line is up, unless the last one is still in service.
static void service_level(struct ioapic *io, unsigned pin)
{
    uint64_t entry = io->redirection[pin];
    if ((io->lines >> pin & 1) != 0 && is_fixed(entry) &&
        (entry & (RTE_LEVEL | RTE_MASKED | RTE_REMOTE_IRR)) == RTE_LEVEL)
        send(io, pin);
}

// Lines are logical levels: true means asserted. The polarity bit is kept for the guest but the
// devices behind the pins have no voltage.
void ioapic_set_irq(struct ioapic *io, unsigned pin, bool level)
{
    if (pin >= IOAPIC_PINS)
        return;
    uint32_t bit = 1u << pin;
    bool was = (io->lines & bit) != 0;
    if (level == was)
        return;
    io->lines ^= bit;
    if (!level)
        return;
    uint64_t entry = io->redirection[pin];
    if ((entry & RTE_LEVEL) != 0 && is_fixed(entry))
        service_level(io, pin);
    else if ((entry & RTE_MASKED) == 0)
        send(io, pin); // an edge at a masked pin is lost
}

void ioapic_eoi(struct ioapic *io, uint8_t vector)
{
    for (unsigned pin = 0; pin < IOAPIC_PINS; pin++) {
        uint64_t entry = io->redirection[pin];
        if ((entry & RTE_REMOTE_IRR) == 0 || (uint8_t)entry != vector)
            continue;
        io->redirection[pin] = entry & ~RTE_REMOTE_IRR;
        service_level(io, pin); // still asserted: again
    }
}

static uint32_t read_register(const struct ioapic *io)
{
    switch (io->select) {
    case REG_ID:
    case REG_ARBITRATION:
        return io->id << 24;
    case REG_VERSION:
        return VERSION;
    default:
        break;
    }
    uint32_t index = io->select - REG_REDIRECTION;
    if (index >= 2 * IOAPIC_PINS)
        return 0;
    return (uint32_t)(io->redirection[index / 2] >> (32 * (index & 1)));
}

static void write_register(struct ioapic *io, uint32_t value)
{
    if (io->select == REG_ID) {
        io->id = value >> 24 & 0xf;
        return;
    }
    uint32_t index = io->select - REG_REDIRECTION;
    if (index >= 2 * IOAPIC_PINS)
        return;
    unsigned pin = index / 2;
    uint64_t old = io->redirection[pin];
    unsigned shift = 32 * (index & 1);
    uint64_t entry = (old & ~((uint64_t)UINT32_MAX << shift)) | (uint64_t)value << shift;
    entry = (entry & RTE_WRITABLE & ~(RTE_STATUS | RTE_REMOTE_IRR)) | (old & RTE_REMOTE_IRR);
    // Without an EOI register the switch to edge is how an OS frees a pin whose EOI got lost:
    // Linux'
    // __eoi_ioapic_pin() does so for versions below 0x20.
    if ((entry & RTE_LEVEL) == 0)
        entry &= ~RTE_REMOTE_IRR;
    io->redirection[pin] = entry;
    service_level(io, pin);
}

static uint64_t mmio_read(void *device, uint64_t offset, unsigned size)
{
    struct ioapic *io = device;
    (void)size; // the bus cuts the value to the size
    uint32_t lane = 8 * (uint32_t)(offset & 3);
    switch (offset & ~UINT64_C(3)) {
    case WINDOW_SELECT:
        return io->select >> lane;
    case WINDOW_DATA:
        return read_register(io) >> lane;
    default:
        return 0;
    }
}

static void mmio_write(void *device, uint64_t offset, unsigned size, uint64_t value)
{
    struct ioapic *io = device;
    if (offset == WINDOW_SELECT) {
        io->select = (uint32_t)(value & 0xff);
    } else if ((offset & ~UINT64_C(3)) == WINDOW_DATA) {
        // A narrow write changes the bytes it names.
        uint32_t lane = 8 * (uint32_t)(offset & 3);
        uint32_t mask = size >= 4 ? UINT32_MAX : (1u << (8 * size)) - 1;
        write_register(io, (read_register(io) & ~(mask << lane)) | ((uint32_t)value & mask)
                                                                       << lane);
    }
}

int ioapic_register(struct ioapic *io, struct bus *bus)
{
    return bus_add_mmio(bus, gpa(LAYOUT_IOAPIC), PAGE_SIZE, mmio_read, mmio_write, io);
}
