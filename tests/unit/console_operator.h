// SPDX-License-Identifier: BSD-2-Clause
// The operator on the console's serial line: what is typed, and what the answer must be.
#pragma once

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "shell_fakes.h"

#define PROMPT "fusor> "

static inline const char *type(const char *text)
{
    return send_bytes(text, strlen(text));
}

// Sends a line and expects its echo, exactly this answer, and a prompt.
static inline void expect(const char *line, const char *answer)
{
    char sent[2048], wanted[8192];
    snprintf(sent, sizeof(sent), "%s\r", line);
    snprintf(wanted, sizeof(wanted), "%s\r\n%s" PROMPT, line, answer);
    const char *got = type(sent);
    if (strcmp(got, wanted) != 0)
        fail_msg("wanted <<%s>>\ngot <<%s>>", wanted, got);
}

static inline void expect_error(const char *line, const char *error)
{
    char answer[512];
    snprintf(answer, sizeof(answer), "error: %s\r\n", error);
    expect(line, answer);
}

static inline size_t occurrences(const char *text, const char *word)
{
    size_t n = 0;
    for (; (text = strstr(text, word)) != NULL; text += strlen(word))
        n++;
    return n;
}

// Every CR is followed by LF and every LF preceded by CR, and there is no control character else.
static inline void check_clean(const char *text)
{
    for (size_t i = 0; text[i] != '\0'; i++) {
        if (text[i] == '\r')
            assert_int_equal(text[i + 1], '\n');
        else if (text[i] == '\n')
            assert_int_equal(text[i - 1], '\r');
        else
            assert_true(text[i] >= ' ' && text[i] <= '~');
    }
}

static inline void no_vms(void)
{
    vm_count = 0;
    fusion_refuses = NULL;
    fusion_switched = 0;
    guest_in_used = 0;
    guest_out_used = 0;
    guest_in_room = sizeof(guest_in) - 1;
    on_sleep = NULL;
}

static inline void create(const char *name)
{
    char line[128];
    snprintf(line, sizeof(line), "vm create %s memory=64M kernel=\\guests\\vmlinuz", name);
    expect(line, "ok\r\n");
}

// Expects each of the lines in the answer, whole, and in this order.
static inline void expect_lines(const char *command, const char *const *lines, size_t count)
{
    char sent[64];
    snprintf(sent, sizeof(sent), "%s\r", command);
    const char *got = type(sent);
    check_clean(got);
    const char *at = got;
    for (size_t i = 0; i < count; i++) {
        char line[96];
        snprintf(line, sizeof(line), "\r\n%s\r\n", lines[i]);
        at = strstr(at, line);
        if (at == NULL)
            fail_msg("no line %s, or out of order, in %s", lines[i], got);
        assert_int_equal(occurrences(got, line), 1);
    }
}

// For main(): the console at its first prompt, without VMs.
static inline int at_prompt(void **state)
{
    (void)state;
    fake_machine(0, 4);
    console_boot();
    return 0;
}
