// SPDX-License-Identifier: BSD-2-Clause
#include "shell/line_editor.h"

#define CTRL_C    0x03
#define BACKSPACE 0x08
#define CTRL_U    0x15
#define DELETE    0x7f

void line_editor_reset(struct line_editor *e)
{
    e->length = 0;
    e->text[0] = '\0';
    e->too_long = false;
    e->noise = false;
}

static enum line_result end_of_line(const struct line_editor *e)
{
    if (e->noise)
        return LINE_NOISE;
    return e->too_long ? LINE_TOO_LONG : LINE_DONE;
}

static void show(struct line_echo *echo, char a, char b, char c)
{
    echo->text[0] = a;
    echo->text[1] = b;
    echo->text[2] = c;
    echo->text[3] = '\0';
}

enum line_result line_editor_feed(struct line_editor *e, uint8_t byte, struct line_echo *echo)
{
    echo->erase = 0;
    show(echo, '\0', '\0', '\0');
    switch (byte) {
    case '\n':
        show(echo, '\n', '\0', '\0');
        return end_of_line(e);
    case CTRL_C:
        show(echo, '^', 'C', '\n');
        return LINE_CANCELLED;
    case CTRL_U:
        // What was noise stays refused to its end: a stray byte must not make a command of the
        // rest.
        echo->erase = e->length;
        e->length = 0;
        return LINE_MORE;
    case BACKSPACE:
    case DELETE:
        if (e->length > 0) {
            echo->erase = 1;
            e->text[--e->length] = '\0';
        }
        return LINE_MORE;
    case '\t':
        byte = ' ';
        break;
    default:
        break;
    }
    if (byte < ' ' || byte > '~') {
        e->noise = true;
        return LINE_MORE;
    }
    if (e->length >= CONSOLE_LINE_MAX) {
        e->too_long = true;
        return LINE_MORE;
    }
    e->text[e->length++] = (char)byte;
    e->text[e->length] = '\0';
    show(echo, (char)byte, '\0', '\0');
    return LINE_MORE;
}
