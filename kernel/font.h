// SPDX-License-Identifier: BSD-2-Clause
// The font of the framebuffer console; build/font.c is made from a Debian console font.
#pragma once

#include <stdint.h>

#define FONT_WIDTH  8u
#define FONT_HEIGHT 16u
#define FONT_FIRST  0x20u // ' '
#define FONT_GLYPHS 95u   // up to '~'

// One byte per pixel row; the most significant bit is the leftmost pixel.
extern const uint8_t font_glyphs[FONT_GLYPHS][FONT_HEIGHT];
