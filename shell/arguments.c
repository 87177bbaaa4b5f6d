// SPDX-License-Identifier: BSD-2-Clause
#include "shell/arguments.h"

#include "kernel/error.h"

static bool is_space(char c)
{
    return c == ' ' || c == '\t';
}

int arguments_split(char *line, char *argv[ARGUMENTS_MAX])
{
    int argc = 0;
    char *from = line;
    char *to = line; // never overtakes `from`: quotes only go away
    for (;;) {
        while (is_space(*from))
            from++;
        if (*from == '\0')
            return argc;
        if (argc == ARGUMENTS_MAX)
            return E_RANGE;
        argv[argc++] = to;
        bool quoted = false;
        for (; *from != '\0' && (quoted || !is_space(*from)); from++) {
            if (*from == '"')
                quoted = !quoted;
            else
                *to++ = *from;
        }
        if (quoted)
            return E_FORMAT;
        // The terminator may fall on the blank that ends the argument: step over it first.
        if (*from != '\0')
            from++;
        *to++ = '\0';
    }
}

bool glob_matches(const char *pattern, const char *text)
{
    // On a mismatch the last * takes one more character; earlier ones need no second try.
    const char *after_star = NULL;
    const char *retry = NULL;
    while (*text != '\0') {
        if (*pattern == '*') {
            after_star = ++pattern;
            retry = text;
        } else if (*pattern == '?' || *pattern == *text) {
            pattern++;
            text++;
        } else if (after_star != NULL) {
            pattern = after_star;
            text = ++retry;
        } else {
            return false;
        }
    }
    while (*pattern == '*')
        pattern++;
    return *pattern == '\0';
}
