// SPDX-License-Identifier: BSD-2-Clause
// The rooms of test=torture. What a page holds depends on its number and its generation: 0 is what
// all guests with the same seed have, every later one is this guest's own.
#pragma once

#include "hypercall.h"

#define TORTURE_PAGES_MAX 32768u

struct torture {
    uint64_t first; // address of the first page
    uint64_t pages, seed, id;
    uint8_t generation[TORTURE_PAGES_MAX];
};
extern struct torture torture;

static inline volatile uint64_t *torture_word(uint64_t page, uint64_t n)
{
    return (volatile uint64_t *)(torture.first + page * PAGE +
                                 n * 8); // NOLINT: RAM, mapped to itself
}
// Word `n` of a page that holds `generation`.
uint64_t torture_value(uint64_t page, uint64_t n, unsigned generation);
// Writes the next generation to a page, every word of it; some pages by one string instruction.
void torture_rewrite(uint64_t page);

// --- torture_smp.c: 4 CPUs; CPU 0 goes on taking commands ---

// CPU 1 rewrites all pages, with its interrupts on or off; CPU 2 reads them; CPU 3 interrupts all
// others, waits until each has answered, and begins again.
void torture_begin(bool interrupts_off);
void torture_progress(void); // reports how far each is
void torture_join(void);     // until CPU 1 is done; then the others stop
