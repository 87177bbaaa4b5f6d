// SPDX-License-Identifier: BSD-2-Clause
#include "commands.h"

#define COM1        0x3f8u
#define IRQ_COM1    4u
#define VECTOR_UART 0x63u

static void on_uart(struct frame *f)
{
    (void)f;
    lapic_write(LAPIC_EOI, 0); // the byte is fetched by who waits for it
}

void commands_init(void)
{
    set_handler(VECTOR_UART, on_uart);
    ioapic_write(0x10 + 2 * IRQ_COM1 + 1, 0);
    ioapic_write(0x10 + 2 * IRQ_COM1, VECTOR_UART);
    outb(COM1 + 4, 0xb); // OUT2 lets the interrupt through
    outb(COM1 + 1, 1);   // for bytes received
}

static char next_byte(void)
{
    cli();
    while ((inb(COM1 + 5) & 1) == 0)
        wait_interrupt();
    return (char)inb(COM1);
}

static struct command next_command(void)
{
    struct command c = {0, 0, 0};
    for (;;) {
        char byte = next_byte();
        if (byte == '\r' || byte == '\n')
            return c;
        if (byte < '0' || byte > '9')
            c.letter = byte;
        else if (c.letter == 0)
            c.tag = c.tag * 10 + (uint64_t)(byte - '0');
        else
            c.number = c.number * 10 + (uint64_t)(byte - '0');
    }
}

void commands_serve(void (*run)(const struct command *))
{
    for (;;) {
        struct command c = next_command();
        if (c.letter == 'q')
            return;
        if (c.letter != 0)
            run(&c);
        report("tag=%lu errors=%lu", c.tag, (uint64_t)errors);
    }
}
