// SPDX-License-Identifier: BSD-2-Clause
// Formatted text: the printf subset Fusor uses.
#pragma once

#include <stdarg.h>
#include <stddef.h>

// Formats into `buffer` of `size` bytes, always terminated when size > 0. Knows %d %i %u %x %X %c
// %s %p %% with flags '-', '0' and '#', width (also '*'), precision for %s (also '*'), and the
// lengths hh h l ll z. Returns the length the whole text has, which may be more than fits.
int format_text(char *buffer, size_t size, const char *format, ...)
    __attribute__((format(printf, 3, 4)));
int format_text_v(char *buffer, size_t size, const char *format, va_list args)
    __attribute__((format(printf, 3, 0)));
