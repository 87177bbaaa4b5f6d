// SPDX-License-Identifier: BSD-2-Clause
// What the files of the console share, and host tests reach.
#pragma once

#include "kernel/types.h"

#define CONSOLE_PROMPT "fusor> "

// Handles one byte of input or the waiting events. False when there was neither.
bool console_step(void);
// Prints waiting events, each `* ...` on a line of its own; the cursor is at the start of a line.
// True when there were any.
bool console_print_events(void);
void console_print_prompt(void);
// Commands that wait for something other than input sleep at most this long.
void console_sleep_us(uint64_t us);
