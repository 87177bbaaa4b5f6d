// SPDX-License-Identifier: BSD-2-Clause
// The line editor of the console: bytes in, echo and finished lines out. Pure; knows no device.
#pragma once

#include "kernel/types.h"

#define CONSOLE_LINE_MAX 1023u // characters

enum line_result {
    LINE_MORE,      // not at the end of the line yet
    LINE_DONE,      // editor->text is the line
    LINE_TOO_LONG,  // the line ended and had more than CONSOLE_LINE_MAX characters
    LINE_NOISE,     // the line ended and had bytes that are not printable ASCII
    LINE_CANCELLED, // Ctrl-C
};

struct line_editor {
    char text[CONSOLE_LINE_MAX + 1]; // terminated
    size_t length;
    bool too_long;
    bool noise;
};

// What the operator shall see of one byte: first `erase` characters go, then `text` comes.
struct line_echo {
    size_t erase;
    char text[4]; // terminated
};

// Forgets everything; to be called after each finished line.
void line_editor_reset(struct line_editor *e);
// Takes one byte. A line ends with '\n' (whoever feeds turns CR and CRLF into it). Backspace and
// DEL take a character back, Ctrl-U the line, a tab counts as a space. A line that once had noise
// or was too long stays so until it ends or Ctrl-C gives it up.
enum line_result line_editor_feed(struct line_editor *e, uint8_t byte, struct line_echo *echo);
