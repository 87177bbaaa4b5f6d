// SPDX-License-Identifier: BSD-2-Clause
// Formatted text, the subset of printf that kernel/format.h lists.
#include "kernel/format.h"

#include <stdbool.h>
#include <stdint.h>

#define INT_MAX __INT_MAX__ // <limits.h> would need a C library's

struct output {
    char *buffer;
    size_t size;
    size_t length; // of the whole text, whether it fits or not
};

// A va_list that functions can hand on.
struct arguments {
    va_list list;
};

struct conversion {
    bool left;
    bool zeros;
    bool alternative; // '#': 0x before a hexadecimal number
    size_t width;
    bool has_precision;
    size_t precision;
    int longs; // -2 hh, -1 h, 0, 1 l, 2 ll or z
};

static void put(struct output *o, char c)
{
    if (o->length < o->size)
        o->buffer[o->length] = c;
    o->length++;
}

static void put_many(struct output *o, char c, size_t count)
{
    // Beyond the buffer only the length matters, so a huge width costs nothing.
    while (count != 0 && o->length < o->size) {
        put(o, c);
        count--;
    }
    o->length += count;
}

static void put_padded(struct output *o, const struct conversion *c, const char *text,
                       size_t length)
{
    size_t padding = c->width > length ? c->width - length : 0;
    if (!c->left)
        put_many(o, ' ', padding);
    for (size_t i = 0; i < length; i++)
        put(o, text[i]);
    if (c->left)
        put_many(o, ' ', padding);
}

static void put_string(struct output *o, const struct conversion *c, const char *s)
{
    if (s == NULL)
        s = "(null)";
    size_t length = 0;
    while ((!c->has_precision || length < c->precision) && s[length] != '\0')
        length++;
    put_padded(o, c, s, length);
}

// `prefix` is a sign or "0x" and stands before the zeros.
static void put_number(struct output *o, const struct conversion *c, uint64_t value, unsigned base,
                       bool capitals, const char *prefix)
{
    const char *digits = capitals ? "0123456789ABCDEF" : "0123456789abcdef";
    char text[20]; // 2^64 has 20 decimal digits
    size_t at = sizeof(text);
    while (value != 0) {
        text[--at] = digits[value % base];
        value /= base;
    }
    size_t length = sizeof(text) - at;
    size_t prefix_length = 0;
    while (prefix[prefix_length] != '\0')
        prefix_length++;
    size_t wanted = c->has_precision ? c->precision : 1;
    if (c->zeros && !c->left && !c->has_precision && c->width > prefix_length)
        wanted = c->width - prefix_length > wanted ? c->width - prefix_length : wanted;
    size_t zeros = wanted > length ? wanted - length : 0;
    size_t whole = prefix_length + zeros + length;
    size_t padding = c->width > whole ? c->width - whole : 0;
    if (!c->left)
        put_many(o, ' ', padding);
    for (size_t i = 0; i < prefix_length; i++)
        put(o, prefix[i]);
    put_many(o, '0', zeros);
    for (; at < sizeof(text); at++)
        put(o, text[at]);
    if (c->left)
        put_many(o, ' ', padding);
}

static int64_t to_signed(uint64_t raw, int longs)
{
    switch (longs) {
    case -2:
        return (int8_t)raw;
    case -1:
        return (int16_t)raw;
    case 0:
        return (int32_t)raw;
    default:
        return (int64_t)raw;
    }
}

static uint64_t to_unsigned(uint64_t raw, int longs)
{
    switch (longs) {
    case -2:
        return (uint8_t)raw;
    case -1:
        return (uint16_t)raw;
    case 0:
        return (uint32_t)raw;
    default:
        return raw;
    }
}

// Reads a decimal number at *f, cut at INT_MAX.
static size_t parse_number(const char **f)
{
    size_t n = 0;
    for (; **f >= '0' && **f <= '9'; (*f)++) {
        n = n * 10 + (size_t)(**f - '0');
        if (n > INT_MAX)
            n = INT_MAX;
    }
    return n;
}

static int parse_length(const char **f)
{
    int longs = 0;
    if (**f == 'z') {
        (*f)++;
        return 2;
    }
    while (**f == 'l' && longs < 2) {
        longs++;
        (*f)++;
    }
    while (**f == 'h' && longs <= 0 && longs > -2) {
        longs--;
        (*f)++;
    }
    return longs;
}

// Reads what stands between '%' and the conversion character; *f then points at the latter.
static struct conversion parse_conversion(const char **f, struct arguments *args)
{
    struct conversion c = {0};
    for (; **f == '-' || **f == '0' || **f == '#'; (*f)++) {
        c.alternative = c.alternative || **f == '#';
        c.left = c.left || **f == '-';
        c.zeros = c.zeros || **f == '0';
    }
    if (**f == '*') {
        int64_t width = va_arg(args->list, int);
        c.left = c.left || width < 0;
        c.width = (size_t)(width < 0 ? -width : width);
        (*f)++;
    } else {
        c.width = parse_number(f);
    }
    if (**f == '.') {
        (*f)++;
        if (**f == '*') {
            int precision = va_arg(args->list, int);
            c.has_precision = precision >= 0; // a negative one counts as none
            c.precision = precision >= 0 ? (size_t)precision : 0;
            (*f)++;
        } else {
            c.has_precision = true;
            c.precision = parse_number(f);
        }
    }
    c.longs = parse_length(f);
    return c;
}

static uint64_t next_integer(struct arguments *args, int longs)
{
    return longs > 0 ? va_arg(args->list, uint64_t) : va_arg(args->list, unsigned);
}

// Returns false when `type` is none of ours.
static bool convert(struct output *o, const struct conversion *c, char type, struct arguments *args)
{
    switch (type) {
    case 'd':
    case 'i': {
        int64_t value = to_signed(next_integer(args, c->longs), c->longs);
        uint64_t magnitude = value < 0 ? 0 - (uint64_t)value : (uint64_t)value;
        put_number(o, c, magnitude, 10, false, value < 0 ? "-" : "");
        return true;
    }
    case 'u':
    case 'x':
    case 'X': {
        uint64_t value = to_unsigned(next_integer(args, c->longs), c->longs);
        bool prefix = c->alternative && type != 'u' && value != 0; // as C has it: none before 0
        put_number(o, c, value, type == 'u' ? 10 : 16, type == 'X',
                   !prefix       ? ""
                   : type == 'X' ? "0X"
                                 : "0x");
        return true;
    }
    case 'p':
        put_number(o, c, (uintptr_t)va_arg(args->list, void *), 16, false, "0x");
        return true;
    case 'c': {
        char character = (char)va_arg(args->list, int);
        put_padded(o, c, &character, 1);
        return true;
    }
    case 's':
        put_string(o, c, va_arg(args->list, const char *));
        return true;
    case '%':
        put(o, '%');
        return true;
    default:
        return false;
    }
}

static void write_text(struct output *o, const char *f, struct arguments *args)
{
    while (*f != '\0') {
        if (*f != '%') {
            put(o, *f++);
            continue;
        }
        const char *start = f++;
        struct conversion c = parse_conversion(&f, args);
        if (*f != '\0' && convert(o, &c, *f, args)) {
            f++;
            continue;
        }
        // Not one of ours: shown as it is.
        while (start < f)
            put(o, *start++);
    }
}

int format_text_v(char *buffer, size_t size, const char *format, va_list args)
{
    struct output o = {.buffer = buffer, .size = size};
    struct arguments copy;
    va_copy(copy.list, args);
    write_text(&o, format, &copy);
    va_end(copy.list);
    if (size != 0)
        buffer[o.length < size ? o.length : size - 1] = '\0';
    return o.length > INT_MAX ? INT_MAX : (int)o.length;
}

int format_text(char *buffer, size_t size, const char *format, ...)
{
    va_list args;
    va_start(args, format);
    int length = format_text_v(buffer, size, format, args);
    va_end(args);
    return length;
}
