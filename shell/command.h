// SPDX-License-Identifier: BSD-2-Clause
// The command table of the console.
#pragma once

#include "kernel/types.h"

struct command_context; // the console a command answers on

// Arguments are split at white space; "..." keeps white space, also inside KEY="...". Returns 0 for
// success (the console prints `ok` when nothing was printed), negative after command_error().
typedef int (*command_function)(struct command_context *c, int argc, char **argv);

struct command {
    const char *name;       // "host", "vm list"
    const char *usage;      // "vm show NAME"
    const char *help;       // one line
    int min_args, max_args; // arguments after the name
    command_function run;
};

// Output of a command; waits (fiber_yield) while the serial ring is full, so nothing is lost.
void command_print(struct command_context *c, const char *format, ...)
    __attribute__((format(printf, 2, 3)));
// Prints `error: ...` and returns `code`, for "return command_error(...)".
int command_error(struct command_context *c, int code, const char *format, ...)
    __attribute__((format(printf, 3, 4)));
