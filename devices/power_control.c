// SPDX-License-Identifier: BSD-2-Clause
// ACPI fixed hardware (ACPI 6.4, section 4.8.3) and the ways by which PC software resets or leaves
// its machine. There is no SMM: the FADT's SMI_CMD is 0 and ACPI mode is always on (SCI_EN reads
// 1).
//
// Of the fixed events only the power button ever occurs; the enable bits of the others are kept,
// because ACPICA reads them back. A guest that enables TMR_STS waits in vain: nobody does, the PM
// timer is read, and 32 bits of it need no carry event.
//
// Keyboard controller: there is none. Its status reads FFh, "data waiting" for ever, upon which
// Linux's i8042 driver gives up after 16 reads ("No controller found"). Its command FEh, pulse the
// reset line, works, since many systems reset by it.
#include "devices/power_control.h"

#include "kernel/error.h"
#include "kernel/string.h"
#include "vm/layout.h"

enum pm1_event {
    PM1_TIMER = 1u << 0,
    PM1_GLOBAL = 1u << 5,
    PM1_POWER_BUTTON = 1u << 8,
    PM1_RTC = 1u << 10,
    PM1_ENABLES = PM1_TIMER | PM1_GLOBAL | PM1_POWER_BUTTON | PM1_RTC
};
enum pm1_control {
    PM1_SCI_EN = 1u << 0,
    PM1_BM_RLD = 1u << 1,
    PM1_SLP_TYP_SHIFT = 10,
    PM1_SLP_TYP = 7u << PM1_SLP_TYP_SHIFT,
    PM1_SLP_EN = 1u << 13
};

#define KEYBOARD_DATA    0x60u
#define KEYBOARD_COMMAND 0x64u
#define KEYBOARD_RESET   0xfeu // pulse output bit 0
#define SYSTEM_CONTROL_A 0x92u
#define PORT92_RESET     0x01u
#define PORT92_A20       0x02u
#define RESET_CPU        0x04u // bit 2 of port 0xcf9; its rising edge resets
#define RESET_WRITABLE   0x0eu
#define CONFIG_ADDRESS   0xcf8u
#define DEBUG_EXIT       0xf4u
#define DEBUG_EXIT_PORTS 4u

static void update_sci(struct power_control *p)
{
    bool level = (p->pm1_status & p->pm1_enable & PM1_ENABLES) != 0;
    if (level == p->sci)
        return;
    p->sci = level;
    p->set_sci(p->context, level);
}

// Bytes 0-1 are the status, 2-3 the enable register.
static uint32_t event_read(void *device, uint16_t offset, unsigned size)
{
    (void)size;
    const struct power_control *p = device;
    uint16_t value = offset < 2 ? p->pm1_status : p->pm1_enable;
    return (uint32_t)value >> (8 * (offset & 1)) & 0xff;
}

static void event_write(void *device, uint16_t offset, unsigned size, uint32_t value)
{
    (void)size;
    struct power_control *p = device;
    unsigned shift = 8 * (offset & 1u);
    unsigned bits = (value & 0xff) << shift;
    if (offset < 2) // a 1 clears
        p->pm1_status = (uint16_t)(p->pm1_status & ~bits);
    else
        p->pm1_enable = (uint16_t)(((p->pm1_enable & ~(0xffu << shift)) | bits) & PM1_ENABLES);
    update_sci(p);
}

static uint32_t control_read(void *device, uint16_t offset, unsigned size)
{
    (void)size;
    const struct power_control *p = device;
    return (uint32_t)p->pm1_control >> (8 * (offset & 1)) & 0xff;
}

static void control_write(void *device, uint16_t offset, unsigned size, uint32_t value)
{
    (void)size;
    struct power_control *p = device;
    unsigned shift = 8 * (offset & 1u);
    unsigned word = (p->pm1_control & ~(0xffu << shift)) | (value & 0xff) << shift;
    p->pm1_control = (uint16_t)((word & (PM1_BM_RLD | PM1_SLP_TYP)) | PM1_SCI_EN);
    // SLP_EN is write-only. Sleep states other than S5 do not exist here.
    if ((word & PM1_SLP_EN) != 0 && (word & PM1_SLP_TYP) >> PM1_SLP_TYP_SHIFT == POWER_S5_TYPE)
        p->request(p->context, POWER_OFF);
}

static uint32_t pm_timer_read(void *device, uint16_t offset, unsigned size)
{
    (void)size;
    const struct power_control *p = device;
    uint64_t ticks = vclock_scale(vclock_now(p->clock), p->clock->hz, POWER_PM_TIMER_HZ);
    return (uint32_t)ticks >> (8 * (offset & 3));
}

static void pm_timer_write(void *device, uint16_t offset, unsigned size, uint32_t value)
{
    (void)device; // read-only
    (void)offset;
    (void)size;
    (void)value;
}

// 0xcf8-0xcfb is one range: a wide access is a PCI configuration address, of which there is no bus,
// and its second byte must not be taken for a reset. Only the byte port 0xcf9 is ours.
static uint32_t reset_read(void *device, uint16_t offset, unsigned size)
{
    const struct power_control *p = device;
    if (size == 1 && offset == LAYOUT_RESET - CONFIG_ADDRESS)
        return p->reset_control;
    return UINT32_MAX;
}

static void reset_write(void *device, uint16_t offset, unsigned size, uint32_t value)
{
    struct power_control *p = device;
    if (size != 1 || offset != LAYOUT_RESET - CONFIG_ADDRESS)
        return;
    bool rising = (p->reset_control & RESET_CPU) == 0 && (value & RESET_CPU) != 0;
    p->reset_control = value & RESET_WRITABLE;
    if (rising)
        p->request(p->context, POWER_RESET);
}

static uint32_t keyboard_read(void *device, uint16_t offset, unsigned size)
{
    (void)device;
    (void)offset;
    (void)size;
    return 0xff;
}

static void keyboard_data_write(void *device, uint16_t offset, unsigned size, uint32_t value)
{
    (void)device; // no controller, nobody listens
    (void)offset;
    (void)size;
    (void)value;
}

static void keyboard_command_write(void *device, uint16_t offset, unsigned size, uint32_t value)
{
    (void)offset;
    (void)size;
    struct power_control *p = device;
    if (value == KEYBOARD_RESET)
        p->request(p->context, POWER_RESET);
}

static uint32_t port92_read(void *device, uint16_t offset, unsigned size)
{
    (void)offset;
    (void)size;
    const struct power_control *p = device;
    return p->port92 | PORT92_A20; // address line 20 is always on
}

static void port92_write(void *device, uint16_t offset, unsigned size, uint32_t value)
{
    (void)offset;
    (void)size;
    struct power_control *p = device;
    bool rising = (p->port92 & PORT92_RESET) == 0 && (value & PORT92_RESET) != 0;
    p->port92 = value & PORT92_RESET;
    if (rising)
        p->request(p->context, POWER_RESET);
}

static uint32_t debug_read(void *device, uint16_t offset, unsigned size)
{
    (void)device;
    (void)offset;
    (void)size;
    return UINT32_MAX;
}

// Four ports, as QEMU's isa-debug-exit has; the code is the byte at the first.
static void debug_write(void *device, uint16_t offset, unsigned size, uint32_t value)
{
    (void)size;
    struct power_control *p = device;
    if (offset != 0)
        return;
    p->debug_code = (uint8_t)value;
    p->request(p->context, POWER_DEBUG_EXIT);
}

void power_control_reset(struct power_control *p)
{
    p->pm1_status = 0;
    p->pm1_enable = 0;
    p->pm1_control = PM1_SCI_EN;
    p->reset_control = 0;
    p->debug_code = 0;
    p->port92 = 0;
    update_sci(p);
}

void power_control_init(struct power_control *p, struct vclock *clock,
                        void (*set_sci)(void *, bool), void (*request)(void *, enum power_request),
                        void *context)
{
    memset(p, 0, sizeof(*p));
    p->clock = clock;
    p->set_sci = set_sci;
    p->request = request;
    p->context = context;
    power_control_reset(p);
}

int power_control_register(struct power_control *p, struct bus *bus)
{
    int error = bus_add_pio_bytes(bus, LAYOUT_PM1_EVENT, 4, event_read, event_write, p);
    if (error == 0)
        error = bus_add_pio_bytes(bus, LAYOUT_PM1_CONTROL, 2, control_read, control_write, p);
    if (error == 0)
        error = bus_add_pio(bus, LAYOUT_PM_TIMER, 4, pm_timer_read, pm_timer_write, p);
    if (error == 0)
        error = bus_add_pio(bus, CONFIG_ADDRESS, 4, reset_read, reset_write, p);
    if (error == 0)
        error = bus_add_pio_bytes(bus, KEYBOARD_DATA, 1, keyboard_read, keyboard_data_write, p);
    if (error == 0)
        error =
            bus_add_pio_bytes(bus, KEYBOARD_COMMAND, 1, keyboard_read, keyboard_command_write, p);
    if (error == 0)
        error = bus_add_pio_bytes(bus, SYSTEM_CONTROL_A, 1, port92_read, port92_write, p);
    if (error == 0)
        error = bus_add_pio(bus, DEBUG_EXIT, DEBUG_EXIT_PORTS, debug_read, debug_write, p);
    return error;
}

void power_control_press_button(struct power_control *p)
{
    p->pm1_status |= PM1_POWER_BUTTON;
    update_sci(p);
}
