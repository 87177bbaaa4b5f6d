// SPDX-License-Identifier: BSD-2-Clause
// Two cascaded 8259As as PC chipsets have them (Intel 8259A datasheet; ELCR as in the PIIX). The
// bits that choose 8080 mode, buffered mode and level triggering for all inputs have no effect, as
// in the chipsets.
#include "devices/pic.h"

#include "kernel/string.h"

#define CASCADE 2u // the master's input that the slave drives

enum icw1 { ICW1_ICW4 = 1u << 0, ICW1_SINGLE = 1u << 1, ICW1 = 1u << 4 };
enum icw4 { ICW4_AUTO_EOI = 1u << 1, ICW4_SFNM = 1u << 4 };
enum ocw3 {
    OCW3_READ_ISR = 1u << 0,
    OCW3_READ = 1u << 1,
    OCW3_POLL = 1u << 2,
    OCW3 = 1u << 3,
    OCW3_SPECIAL_MASK = 1u << 5,
    OCW3_SET_SPECIAL_MASK = 1u << 6
};
// What the next write to the data port is.
enum step { STEP_MASK, STEP_ICW2, STEP_ICW3, STEP_ICW4 };

// Inputs 0, 1, 2, 8 and 13 are always edge-triggered.
static const uint8_t elcr_writable[2] = {0xf8, 0xde};

// Rank of the most urgent of `bits` (0 is the highest priority), 8 when there is none.
static unsigned chip_rank(const struct pic_chip *chip, unsigned bits)
{
    unsigned rank = 0;
    while (rank < 8 && (bits >> ((rank + chip->priority) & 7) & 1) == 0)
        rank++;
    return rank;
}

// The input that the chip asks the CPU (or its master) to serve, or -1.
static int chip_pending(const struct pic_chip *chip, bool master)
{
    unsigned wanted = chip->irr & ~(unsigned)chip->imr;
    if (wanted == 0)
        return -1;
    unsigned in_service = chip->isr;
    if (chip->special_mask)
        in_service &= ~(unsigned)chip->imr;
    if (chip->special_fully_nested && master)
        in_service &= ~(1u << CASCADE);
    unsigned rank = chip_rank(chip, wanted);
    if (rank >= chip_rank(chip, in_service))
        return -1;
    return (int)((rank + chip->priority) & 7);
}

static void chip_set_line(struct pic_chip *chip, unsigned input, bool level)
{
    uint8_t bit = (uint8_t)(1u << input);
    bool was = (chip->lines & bit) != 0;
    if (level) {
        chip->lines |= bit;
        if (!was || (chip->level_mask & bit) != 0)
            chip->irr |= bit;
    } else {
        // A request by edge stays latched although the line fell (the 8259A would answer with
        // spurious IRQ 7): device models pulse their line, and the pulse must not be lost.
        chip->lines = (uint8_t)(chip->lines & ~bit);
        if ((chip->level_mask & bit) != 0)
            chip->irr = (uint8_t)(chip->irr & ~bit);
    }
}

// The slave's INT pin follows its state, so a withdrawn request leaves no trace in the master.
static void update_cascade(struct pic *pic)
{
    struct pic_chip *master = &pic->chip[0];
    uint8_t bit = 1u << CASCADE;
    if (chip_pending(&pic->chip[1], false) >= 0) {
        master->irr |= bit;
        master->lines |= bit;
    } else {
        master->irr = (uint8_t)(master->irr & ~bit);
        master->lines = (uint8_t)(master->lines & ~bit);
    }
}

static void chip_acknowledge(struct pic_chip *chip, unsigned input)
{
    uint8_t bit = (uint8_t)(1u << input);
    if (!chip->auto_eoi)
        chip->isr |= bit;
    else if (chip->rotate_on_auto_eoi)
        chip->priority = (uint8_t)((input + 1) & 7);
    if ((chip->level_mask & bit) == 0)
        chip->irr = (uint8_t)(chip->irr & ~bit);
}

static void chip_end_of_interrupt(struct pic_chip *chip, unsigned command, unsigned input)
{
    bool specific = (command & 2) != 0;
    bool rotate = (command & 4) != 0;
    if (!specific) {
        unsigned bits = chip->isr;
        if (chip->special_mask) // a masked level stays in service until named
            bits &= ~(unsigned)chip->imr;
        unsigned rank = chip_rank(chip, bits);
        if (rank == 8)
            return;
        input = (rank + chip->priority) & 7;
    }
    chip->isr = (uint8_t)(chip->isr & ~(1u << input));
    if (rotate)
        chip->priority = (uint8_t)((input + 1) & 7);
}

static void write_ocw2(struct pic_chip *chip, uint32_t value)
{
    unsigned input = value & 7;
    switch (value >> 5 & 7) {
    case 0:
        chip->rotate_on_auto_eoi = false;
        break;
    case 4:
        chip->rotate_on_auto_eoi = true;
        break;
    case 6:
        chip->priority = (uint8_t)((input + 1) & 7);
        break;
    case 1:
    case 3:
    case 5:
    case 7:
        chip_end_of_interrupt(chip, value >> 5, input);
        break;
    default: // 2: no operation
        break;
    }
}

static void write_icw1(struct pic_chip *chip, uint32_t value)
{
    // The edge detectors are reset: a line that is high now must fall and rise again.
    chip->irr = chip->lines & chip->level_mask;
    chip->isr = 0;
    chip->imr = 0;
    chip->priority = 0;
    chip->special_mask = false;
    chip->read_isr = false;
    chip->poll = false;
    chip->rotate_on_auto_eoi = false;
    chip->auto_eoi = false;
    chip->special_fully_nested = false;
    chip->icw4 = 0;
    chip->single = (value & ICW1_SINGLE) != 0;
    chip->needs_icw4 = (value & ICW1_ICW4) != 0;
    chip->init_step = STEP_ICW2;
}

static void write_ocw3(struct pic_chip *chip, uint32_t value)
{
    if ((value & OCW3_POLL) != 0)
        chip->poll = true;
    if ((value & OCW3_READ) != 0)
        chip->read_isr = (value & OCW3_READ_ISR) != 0;
    if ((value & OCW3_SET_SPECIAL_MASK) != 0)
        chip->special_mask = (value & OCW3_SPECIAL_MASK) != 0;
}

static void write_data(struct pic_chip *chip, uint32_t value)
{
    switch (chip->init_step) {
    case STEP_ICW2:
        chip->vector_base = value & 0xf8;
        if (!chip->single)
            chip->init_step = STEP_ICW3;
        else
            chip->init_step = chip->needs_icw4 ? STEP_ICW4 : STEP_MASK;
        break;
    case STEP_ICW3: // the wiring of the cascade is fixed
        chip->init_step = chip->needs_icw4 ? STEP_ICW4 : STEP_MASK;
        break;
    case STEP_ICW4:
        chip->icw4 = (uint8_t)value;
        chip->auto_eoi = (value & ICW4_AUTO_EOI) != 0;
        chip->special_fully_nested = (value & ICW4_SFNM) != 0;
        chip->init_step = STEP_MASK;
        break;
    default:
        chip->imr = (uint8_t)value;
        break;
    }
}

static void pic_write(struct pic *pic, unsigned which, uint16_t offset, uint32_t value)
{
    struct pic_chip *chip = &pic->chip[which];
    if (offset == 1)
        write_data(chip, value);
    else if ((value & ICW1) != 0)
        write_icw1(chip, value);
    else if ((value & OCW3) != 0)
        write_ocw3(chip, value);
    else
        write_ocw2(chip, value);
    update_cascade(pic);
}

static uint32_t pic_read(struct pic *pic, unsigned which, uint16_t offset)
{
    struct pic_chip *chip = &pic->chip[which];
    if (chip->poll) { // the read stands for the INTA cycle
        chip->poll = false;
        int input = chip_pending(chip, which == 0);
        if (input < 0)
            return 0;
        chip_acknowledge(chip, (unsigned)input);
        update_cascade(pic);
        return 0x80 | (uint32_t)input;
    }
    if (offset == 1)
        return chip->imr;
    return chip->read_isr ? chip->isr : chip->irr;
}

static void master_write(void *device, uint16_t offset, unsigned size, uint32_t value)
{
    (void)size;
    pic_write(device, 0, offset, value);
}

static uint32_t master_read(void *device, uint16_t offset, unsigned size)
{
    (void)size;
    return pic_read(device, 0, offset);
}

static void slave_write(void *device, uint16_t offset, unsigned size, uint32_t value)
{
    (void)size;
    pic_write(device, 1, offset, value);
}

static uint32_t slave_read(void *device, uint16_t offset, unsigned size)
{
    (void)size;
    return pic_read(device, 1, offset);
}

static void elcr_write(void *device, uint16_t offset, unsigned size, uint32_t value)
{
    (void)size;
    struct pic *pic = device;
    struct pic_chip *chip = &pic->chip[offset & 1];
    chip->level_mask = (uint8_t)(value & elcr_writable[offset & 1]);
    // Inputs that are level-triggered now show their line, whatever was latched before.
    chip->irr = (uint8_t)((chip->irr & ~chip->level_mask) | (chip->lines & chip->level_mask));
    update_cascade(pic);
}

static uint32_t elcr_read(void *device, uint16_t offset, unsigned size)
{
    (void)size;
    const struct pic *pic = device;
    return pic->chip[offset & 1].level_mask;
}

void pic_init(struct pic *pic)
{
    memset(pic, 0, sizeof(*pic));
    // As firmware leaves it: nothing gets through before the guest has chosen its vectors.
    pic->chip[0].imr = 0xff;
    pic->chip[1].imr = 0xff;
}

int pic_register(struct pic *pic, struct bus *bus)
{
    int error = bus_add_pio_bytes(bus, 0x20, 2, master_read, master_write, pic);
    if (error == 0)
        error = bus_add_pio_bytes(bus, 0xa0, 2, slave_read, slave_write, pic);
    if (error == 0)
        error = bus_add_pio_bytes(bus, 0x4d0, 2, elcr_read, elcr_write, pic);
    return error;
}

void pic_set_irq(struct pic *pic, unsigned irq, bool level)
{
    if (irq == CASCADE || irq > 15) // no such pins
        return;
    chip_set_line(&pic->chip[irq >> 3], irq & 7, level);
    update_cascade(pic);
}

bool pic_pending(const struct pic *pic)
{
    return chip_pending(&pic->chip[0], true) >= 0;
}

uint8_t pic_acknowledge(struct pic *pic)
{
    struct pic_chip *master = &pic->chip[0];
    struct pic_chip *slave = &pic->chip[1];
    int input = chip_pending(master, true);
    if (input < 0) // the request went away: spurious, without an in-service bit
        return (uint8_t)(master->vector_base | 7);
    chip_acknowledge(master, (unsigned)input);
    if (input != CASCADE)
        return (uint8_t)(master->vector_base | (unsigned)input);
    // update_cascade keeps the master's input equal to the slave's INT, so there is a request.
    int slave_input = chip_pending(slave, false);
    if (slave_input < 0)
        return (uint8_t)(slave->vector_base | 7);
    chip_acknowledge(slave, (unsigned)slave_input);
    update_cascade(pic);
    return (uint8_t)(slave->vector_base | (unsigned)slave_input);
}
