// SPDX-License-Identifier: BSD-2-Clause
// Output on the 16550 at 0x3f8, polled.
#include <stdarg.h>

#include "bare.h"

#define COM1 0x3f8u

const char *test_name = "start";
unsigned errors;

void uart_init(void)
{
    outb(COM1 + 1, 0);    // no interrupts
    outb(COM1 + 3, 0x80); // divisor
    outb(COM1 + 0, 1);    // 115200
    outb(COM1 + 1, 0);
    outb(COM1 + 3, 3); // 8N1
    outb(COM1 + 2, 7); // FIFOs on and empty
    outb(COM1 + 4, 3); // DTR, RTS
}

static void put_char(char c)
{
    while ((inb(COM1 + 5) & 0x20) == 0)
        ;
    outb(COM1, (uint8_t)c);
}

static void put_string(const char *s)
{
    for (; *s != 0; s++)
        put_char(*s);
}

static void put_number(uint64_t value, unsigned base)
{
    char digits[21];
    unsigned n = sizeof(digits) - 1;
    digits[n] = 0;
    do {
        digits[--n] = "0123456789abcdef"[value % base];
        value /= base;
    } while (value != 0);
    put_string(digits + n);
}

static void print_v(const char *f, va_list args)
{
    for (; *f != 0; f++) {
        if (*f == '\n')
            put_char('\r');
        if (*f != '%') {
            put_char(*f);
            continue;
        }
        f++;
        if (*f == 'l')
            f++;
        if (*f == 's') {
            put_string(va_arg(args, const char *));
        } else if (*f == 'u') {
            put_number(va_arg(args, uint64_t), 10);
        } else if (*f == 'x') {
            put_number(va_arg(args, uint64_t), 16);
        } else if (*f == 'd') {
            int64_t value = va_arg(args, int64_t);
            if (value < 0)
                put_char('-');
            put_number(value < 0 ? 0 - (uint64_t)value : (uint64_t)value, 10);
        } else {
            put_char('%');
        }
    }
}

void print(const char *format, ...)
{
    va_list args;
    va_start(args, format);
    print_v(format, args);
    va_end(args);
}

void report(const char *format, ...)
{
    va_list args;
    va_start(args, format);
    print("bare: %s ", test_name);
    print_v(format, args);
    print("\n");
    va_end(args);
}

void check_that(bool good, const char *what, uint64_t got)
{
    if (good)
        return;
    errors++;
    // A test that fails in a loop must not flood the line.
    if (errors <= 20)
        report("error: %s (0x%lx)", what, got);
}
