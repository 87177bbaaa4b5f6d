// SPDX-License-Identifier: BSD-2-Clause
// The end: for broken invariants of Fusor only, never for input.
#pragma once

// Prints registers and a symbolised stack trace on serial line and framebuffer, stops all CPUs,
// tells the emulator (status panic). Does not return.
_Noreturn void panic(const char *format, ...) __attribute__((format(printf, 1, 2)));

#define CHECK(condition)                                                                           \
    do {                                                                                           \
        if (__builtin_expect(!(condition), 0))                                                     \
            panic("%s:%d: broken invariant: %s", __FILE__, __LINE__, #condition);                  \
    } while (0)
