// SPDX-License-Identifier: BSD-2-Clause
// Commands that a test takes from the UART while it runs: TAG LETTER [NUMBER] and a carriage return
// each. A line with `op=LETTER` answers, then one with `tag=TAG`, so that whoever typed knows what
// belongs to it.
#pragma once

#include "bare.h"

struct command {
    uint64_t tag, number; // number: 0 when there was none
    char letter;
};

// The UART's receive interrupt at this CPU's IOAPIC pin. Interrupts stay off.
void commands_init(void);
// Takes commands until the letter q and calls `run` for each with interrupts off; halted until one
// comes, so that a guest without work costs nothing.
void commands_serve(void (*run)(const struct command *));
