// SPDX-License-Identifier: BSD-2-Clause
// sources: kernel/fbcon.c build/font.c
// The framebuffer console, painted into a buffer and read back against the font.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "fake.h"
#include "kernel/boot_info.h"
#include "kernel/font.h"
#include "kernel/paging.h"
#include "kernel/serial.h"

#define COLUMNS 20u
#define ROWS    6u
#define STRIDE  171u // wider than the screen, which has a margin, too
#define HEIGHT  (ROWS * FONT_HEIGHT + 5)

static uint32_t *screen;
static bool mapping_fails;
static unsigned mapped_flags;

void *paging_map_device(hpa_t base, uint64_t size, unsigned flags)
{
    assert_int_equal(base.raw, 0xe0000000);
    assert_int_equal(size, STRIDE * HEIGHT * 4);
    mapped_flags = flags;
    return mapping_fails ? NULL : screen;
}

static struct boot_framebuffer description(void)
{
    return (struct boot_framebuffer){.base = 0xe0000000,
                                     .size = STRIDE * HEIGHT * 4,
                                     .width = COLUMNS * FONT_WIDTH + 3,
                                     .height = HEIGHT,
                                     .stride = STRIDE,
                                     .format = BOOT_FB_BGRX};
}

static int setup(void **state)
{
    (void)state;
    fake_machine(0, 1);
    free(screen);
    screen = malloc(STRIDE * HEIGHT * 4); // exactly, so that ASan sees a pixel beyond
    memset(screen, 0x55, STRIDE * HEIGHT * 4);
    mapping_fails = false;
    struct boot_framebuffer fb = description();
    fbcon_init(&fb);
    return 0;
}

// The character whose glyph stands in a cell.
static char read_cell(unsigned row, unsigned column)
{
    for (unsigned g = 0; g < FONT_GLYPHS; g++) {
        bool same = true;
        for (unsigned y = 0; y < FONT_HEIGHT && same; y++) {
            for (unsigned x = 0; x < FONT_WIDTH && same; x++) {
                uint32_t pixel = screen[(row * FONT_HEIGHT + y) * STRIDE + column * FONT_WIDTH + x];
                bool lit = (font_glyphs[g][y] & (0x80u >> x)) != 0;
                same = pixel == (lit ? 0xaaaaaau : 0u);
            }
        }
        if (same)
            return (char)(FONT_FIRST + g);
    }
    return '\0';
}

static void expect(const char *const lines[ROWS])
{
    for (unsigned r = 0; r < ROWS; r++) {
        char got[COLUMNS + 1] = {0}, want[COLUMNS + 1];
        for (unsigned c = 0; c < COLUMNS; c++)
            got[c] = read_cell(r, c);
        snprintf(want, sizeof(want), "%-20s", lines[r]);
        assert_string_equal(got, want);
    }
    // Nothing outside the cells.
    for (unsigned y = 0; y < HEIGHT; y++) {
        for (unsigned x = y < ROWS * FONT_HEIGHT ? COLUMNS * FONT_WIDTH : 0; x < STRIDE; x++)
            assert_int_equal(screen[y * STRIDE + x], 0);
    }
}

static void write_text(const char *text)
{
    fbcon_write(text, strlen(text));
}

static void test_glyphs(void **state)
{
    (void)state;
    // The font is the right one: an 'L' is a stem, a foot, and nothing above.
    const uint8_t *l = font_glyphs['L' - FONT_FIRST];
    assert_int_equal(l[0], 0);
    assert_true((l[11] & (l[5] | 0x0e)) != 0 && l[11] != l[5] && l[15] == 0);
    assert_int_equal(mapped_flags, PAGING_WRITE | PAGING_WRITE_COMBINING);
    expect((const char *const[]){"", "", "", "", "", ""}); // the logo is gone
    write_text("Hello, world!\r\nfusor> ");
    write_text("help");
    expect((const char *const[]){"Hello, world!", "fusor> help", "", "", "", ""});
}

static void test_control(void **state)
{
    (void)state;
    write_text("abc\b\b \rX\n\tt\a\x7f\r\n12345678901234567890\r\nend\r\n\b\xc3\xa9\xe2\x82\xac!");
    expect((const char *const[]){"X c", "        t", "12345678901234567890", "end", "?\?!", ""});
    setup(state);
    write_text("\x1b[2J\x1b[1;31mred\x1b[0m\x1b"
               "c.");
    write_text("\x1b");
    write_text("[");
    write_text("12");
    write_text("mok");
    expect((const char *const[]){"red.ok", "", "", "", "", ""});
}

static void test_wrap_and_scroll(void **state)
{
    (void)state;
    write_text("0123456789012345678901234\r\n");
    expect((const char *const[]){"01234567890123456789", "01234", "", "", "", ""});
    write_text("2\r\n3\r\n4\r\n5");
    expect((const char *const[]){"01234567890123456789", "01234", "2", "3", "4", "5"});
    write_text("\r\n6\r\n");
    expect((const char *const[]){"2", "3", "4", "5", "6", ""});
    char text[20];
    for (unsigned i = 0; i < 500; i++) {
        snprintf(text, sizeof(text), "line %u\r\n", i);
        write_text(text);
    }
    expect((const char *const[]){"line 495", "line 496", "line 497", "line 498", "line 499", ""});
    // More than a screen at once.
    write_text("a\r\nb\r\nc\r\nd\r\ne\r\nf\r\ng\r\nh\r\ni");
    expect((const char *const[]){"d", "e", "f", "g", "h", "i"});
}

// Painting touches what changed and nothing else; the screen is never read.
static void test_paints_changes_only(void **state)
{
    (void)state;
    write_text("same\r\nsame\r\n");
    screen[0] = 0x123456; // in the 's' of the first line
    write_text("more");
    assert_int_equal(screen[0], 0x123456);
    write_text("\rMORE");
    assert_int_equal(screen[0], 0x123456);
    screen[0] = 0;
    expect((const char *const[]){"same", "same", "MORE", "", "", ""});
}

static void test_unusable(void **state)
{
    (void)state;
    for (unsigned i = 0; i < 7; i++) {
        memset(screen, 0x55, STRIDE * HEIGHT * 4);
        struct boot_framebuffer fb = description();
        switch (i) {
        case 0:
            fb.format = BOOT_FB_NONE;
            break;
        case 1:
            fb.format = 77;
            break;
        case 2:
            fb.stride = fb.width - 1;
            break;
        case 3:
            fb.size--;
            break;
        case 4:
            fb.width = 7;
            break;
        case 5:
            fb.height = 15;
            break;
        default:
            mapping_fails = true;
            break;
        }
        fbcon_init(&fb);
        write_text("text");
        assert_int_equal(screen[0], 0x55555555);
        assert_int_equal(screen[STRIDE * HEIGHT - 1], 0x55555555);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup(test_glyphs, setup),
        cmocka_unit_test_setup(test_control, setup),
        cmocka_unit_test_setup(test_wrap_and_scroll, setup),
        cmocka_unit_test_setup(test_paints_changes_only, setup),
        cmocka_unit_test_setup(test_unusable, setup),
    };
    return cmocka_run_group_tests_name("fbcon", tests, NULL, NULL);
}
