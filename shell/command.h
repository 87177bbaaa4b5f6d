// SPDX-License-Identifier: BSD-2-Clause
// The command table of the console.
#pragma once

#include "kernel/types.h"

// The console a command answers on.
struct command_context {
    bool answered; // something was printed, so `ok` is not
};

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
// Prints `warning: ...`; does not count as an answer, so `ok` still follows.
void command_warn(struct command_context *c, const char *format, ...)
    __attribute__((format(printf, 2, 3)));

// Runs one line, which it takes apart, and prints the answer (none for an empty line).
void command_run(char *line);

// The tables, in the order of `help`. Each ends with an entry without a name.
extern const struct command host_commands[];
extern const struct command vm_commands[];
extern const struct command fusion_commands[];
extern const struct command trace_commands[];
