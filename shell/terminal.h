// SPDX-License-Identifier: BSD-2-Clause
// Bytes between the console and the operator: the input queue behind the serial ring, and output
// that waits instead of losing anything. For the console fiber, except terminal_pump().
#pragma once

#include "kernel/types.h"

#define TERMINAL_QUEUE_BYTES 16384u

enum terminal_mode {
    TERMINAL_LINES, // CR, LF and CRLF each arrive as one '\n'
    TERMINAL_RAW,   // bytes as they are; only the LF of the CRLF that ended a line is left out
};

// Moves what the serial line has received into the queue, as far as it fits, and returns the number
// of bytes moved. One caller (CPU 0's scheduler loop), also while commands run and wait.
size_t terminal_pump(void);

// Next byte of input, or -1.
int terminal_getc(enum terminal_mode mode);
// A CR that was read raw ended something: its LF, if one comes, is left out.
void terminal_swallow_lf(void);
// True when terminal_getc may have something. (It may still be the LF that is left out.)
bool terminal_has_input(void);
// When `byte` is in the queue: drops everything up to and including it and returns true.
bool terminal_discard_through(uint8_t byte);

// Text of Fusor: '\n' becomes CRLF, anything else that is not printable ASCII becomes '?'.
void terminal_write_text(const char *text, size_t size);
void terminal_puts(const char *text);
// Bytes as they are.
void terminal_write_raw(const char *data, size_t size);

// Whether escape sequences may be sent (`term ansi`).
void terminal_set_ansi(bool on);
bool terminal_ansi(void);
