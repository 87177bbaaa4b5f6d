// SPDX-License-Identifier: BSD-2-Clause
// The console's mirror on the framebuffer.
//
// The text lives in `cells`; what the screen shows lives in `shown`. Writing changes cells only,
// and at the end the cells that differ are painted: video memory is never read, and a screen that
// scrolls by forty lines in one write is painted once.
#include "kernel/serial.h"

#include <stdatomic.h>
#include <arch/cpu.h>

#include "kernel/boot_info.h"
#include "kernel/font.h"
#include "kernel/paging.h"
#include "kernel/string.h"

#define MAX_COLUMNS 240u
#define MAX_ROWS    128u
// Grey on black: the same bytes in RGBX and BGRX.
#define INK   UINT32_C(0x00aaaaaa)
#define PAPER UINT32_C(0x00000000)
#define TAB   8u
// Looks at the busy flag before writing in spite of it: the one who holds it was stopped by a
// panic. Some hundred milliseconds, far more than painting a screen takes.
#define PATIENCE (UINT32_C(1) << 21)

enum escape_state { ESCAPE_NONE, ESCAPE_STARTED, ESCAPE_SEQUENCE };

static uint32_t *pixels; // NULL: no framebuffer
static uint32_t pixel_stride;
static unsigned columns, rows;
static unsigned column, row;
static enum escape_state escape;
static unsigned dirty_first, dirty_end; // rows to look at
static char cells[MAX_ROWS][MAX_COLUMNS];
static char shown[MAX_ROWS][MAX_COLUMNS];
static _Atomic bool busy;

static void paint(unsigned r, unsigned c)
{
    unsigned glyph = (uint8_t)cells[r][c] - FONT_FIRST;
    const uint8_t *bits = font_glyphs[glyph < FONT_GLYPHS ? glyph : '?' - FONT_FIRST];
    uint32_t *line = pixels + (size_t)r * FONT_HEIGHT * pixel_stride + c * FONT_WIDTH;
    for (unsigned y = 0; y < FONT_HEIGHT; y++, line += pixel_stride) {
        for (unsigned x = 0; x < FONT_WIDTH; x++)
            line[x] = (bits[y] & (0x80u >> x)) != 0 ? INK : PAPER;
    }
    shown[r][c] = cells[r][c];
}

static void paint_changes(void)
{
    for (unsigned r = dirty_first; r < dirty_end && r < rows; r++) {
        for (unsigned c = 0; c < columns; c++) {
            if (cells[r][c] != shown[r][c])
                paint(r, c);
        }
    }
    dirty_first = rows;
    dirty_end = 0;
}

static void mark(unsigned first, unsigned end)
{
    if (first < dirty_first)
        dirty_first = first;
    if (end > dirty_end)
        dirty_end = end;
}

static void next_line(void)
{
    column = 0;
    if (row + 1 < rows) {
        row++;
        return;
    }
    memmove(cells[0], cells[1], sizeof(cells[0]) * (rows - 1));
    memset(cells[rows - 1], ' ', sizeof(cells[0]));
    mark(0, rows);
}

static void put_printable(char c)
{
    if (column >= columns)
        next_line();
    cells[row][column++] = c;
    mark(row, row + 1);
}

// Control sequences that `term ansi` writes for a terminal mean nothing here: ESC [ up to a letter
// is swallowed (ECMA-48, 5.4).
static bool in_escape(char c)
{
    switch (escape) {
    case ESCAPE_NONE:
        if (c == 0x1b)
            escape = ESCAPE_STARTED;
        return c == 0x1b;
    case ESCAPE_STARTED:
        escape = c == '[' ? ESCAPE_SEQUENCE : ESCAPE_NONE;
        return true;
    case ESCAPE_SEQUENCE:
        if (c >= 0x40 && c <= 0x7e)
            escape = ESCAPE_NONE;
        return true;
    }
    return false;
}

static void put(char c)
{
    if (in_escape(c))
        return;
    switch (c) {
    case '\n':
        next_line();
        break;
    case '\r':
        column = 0;
        break;
    case '\b':
        if (column > 0)
            column--;
        break;
    case '\t':
        do
            put_printable(' ');
        while (column % TAB != 0 && column < columns);
        break;
    default:
        // Bytes of UTF-8 sequences show as one '?' per character.
        if (((uint8_t)c & 0xc0) == 0x80)
            break;
        if ((uint8_t)c >= ' ' && c != 0x7f)
            put_printable((uint8_t)c < 0x80 ? c : '?');
        break;
    }
}

void fbcon_init(const struct boot_framebuffer *fb)
{
    pixels = NULL;
    if (fb->format != BOOT_FB_RGBX && fb->format != BOOT_FB_BGRX)
        return;
    uint64_t bytes = (uint64_t)fb->stride * fb->height * sizeof(uint32_t);
    if (fb->width < FONT_WIDTH || fb->height < FONT_HEIGHT || fb->stride < fb->width ||
        fb->size < bytes)
        return;
    uint32_t *map = paging_map_device(hpa(fb->base), bytes, PAGING_WRITE | PAGING_WRITE_COMBINING);
    if (map == NULL)
        return;
    pixel_stride = fb->stride;
    columns = MIN(fb->width / FONT_WIDTH, MAX_COLUMNS);
    rows = MIN(fb->height / FONT_HEIGHT, MAX_ROWS);
    column = 0;
    row = 0;
    escape = ESCAPE_NONE;
    dirty_first = rows;
    dirty_end = 0;
    memset(cells, ' ', sizeof(cells));
    memset(shown, ' ', sizeof(shown));
    // Blank, the firmware's logo included, and the margins that no cell covers.
    for (size_t i = 0; i < bytes / sizeof(uint32_t); i++)
        map[i] = PAPER;
    pixels = map;
}

void fbcon_write(const char *data, size_t size)
{
    if (pixels == NULL)
        return;
    // Not a ranked lock: a panic may come while any lock is held, this one included.
    for (uint32_t n = 0; atomic_exchange(&busy, true) && n < PATIENCE; n++)
        cpu_relax();
    for (size_t i = 0; i < size; i++)
        put(data[i]);
    paint_changes();
    atomic_store(&busy, false);
}
