// SPDX-License-Identifier: BSD-2-Clause
// Splits a command line into arguments.
#pragma once

#include "kernel/types.h"

#define ARGUMENTS_MAX 48

// Splits `line` in place at white space; "..." keeps white space, also inside KEY="...", and is
// itself removed; a backslash is literal. Returns the number of arguments, E_FORMAT when a quote is
// not closed, E_RANGE when there are more than ARGUMENTS_MAX.
int arguments_split(char *line, char *argv[ARGUMENTS_MAX]);

// Matches `text` against `pattern`, in which * stands for any characters (also '/') and ? for one.
bool glob_matches(const char *pattern, const char *text);
