// SPDX-License-Identifier: BSD-2-Clause
#include "shell/terminal.h"

#include <stdatomic.h>

#include "kernel/sched.h"
#include "kernel/serial.h"
#include "kernel/string.h"
#include "kernel/time.h"

#define OUTPUT_WAIT_US 1000u // a 16550 at 115200 baud sends 11 bytes meanwhile

// One producer (CPU 0's loop) and one consumer (console fiber), which may run on different CPUs.
// The positions only grow; the difference is the fill.
static uint8_t queue[TERMINAL_QUEUE_BYTES];
static _Atomic uint32_t queue_in;
static _Atomic uint32_t queue_out;
_Static_assert((TERMINAL_QUEUE_BYTES & (TERMINAL_QUEUE_BYTES - 1)) == 0, "positions wrap");

static bool line_ended_by_cr;
static bool ansi;

size_t terminal_pump(void)
{
    uint32_t in = atomic_load_explicit(&queue_in, memory_order_relaxed);
    size_t moved = 0;
    while (in - atomic_load_explicit(&queue_out, memory_order_acquire) < TERMINAL_QUEUE_BYTES) {
        int byte = serial_getc();
        if (byte < 0)
            break;
        queue[in % TERMINAL_QUEUE_BYTES] = (uint8_t)byte;
        in++;
        atomic_store_explicit(&queue_in, in, memory_order_release);
        moved++;
    }
    return moved;
}

static int queue_get(void)
{
    uint32_t out = atomic_load_explicit(&queue_out, memory_order_relaxed);
    if (out == atomic_load_explicit(&queue_in, memory_order_acquire))
        return -1;
    int byte = queue[out % TERMINAL_QUEUE_BYTES];
    atomic_store_explicit(&queue_out, out + 1, memory_order_release);
    return byte;
}

int terminal_getc(enum terminal_mode mode)
{
    int byte = queue_get();
    // The LF may come much later than its CR: it is dropped when it comes, whoever reads it.
    if (byte == '\n' && line_ended_by_cr) {
        line_ended_by_cr = false;
        byte = queue_get();
    }
    if (byte < 0)
        return -1;
    line_ended_by_cr = byte == '\r' && mode == TERMINAL_LINES;
    return line_ended_by_cr ? '\n' : byte;
}

void terminal_swallow_lf(void)
{
    line_ended_by_cr = true;
}

bool terminal_has_input(void)
{
    return atomic_load_explicit(&queue_in, memory_order_acquire) !=
           atomic_load_explicit(&queue_out, memory_order_relaxed);
}

bool terminal_discard_through(uint8_t byte)
{
    uint32_t in = atomic_load_explicit(&queue_in, memory_order_acquire);
    uint32_t out = atomic_load_explicit(&queue_out, memory_order_relaxed);
    for (; out != in; out++)
        if (queue[out % TERMINAL_QUEUE_BYTES] == byte) {
            atomic_store_explicit(&queue_out, out + 1, memory_order_release);
            line_ended_by_cr = false;
            return true;
        }
    return false;
}

void terminal_write_raw(const char *data, size_t size)
{
    while (size > 0) {
        size_t room = serial_space();
        size_t piece = MIN(size, room);
        size_t taken = piece == 0 ? 0 : serial_write(data, piece);
        fbcon_write(data, taken);
        data += taken;
        size -= taken;
        if (size > 0)
            fiber_sleep_until(time_tsc() + time_us_to_tsc(OUTPUT_WAIT_US));
    }
}

void terminal_write_text(const char *text, size_t size)
{
    char piece[128];
    size_t used = 0;
    for (size_t i = 0; i < size; i++) {
        if (used + 2 > sizeof(piece)) {
            terminal_write_raw(piece, used);
            used = 0;
        }
        if (text[i] == '\n') {
            piece[used++] = '\r';
            piece[used++] = '\n';
        } else {
            piece[used++] = text[i] >= ' ' && text[i] <= '~' ? text[i] : '?';
        }
    }
    terminal_write_raw(piece, used);
}

void terminal_puts(const char *text)
{
    terminal_write_text(text, strlen(text));
}

void terminal_set_ansi(bool on)
{
    ansi = on;
}

bool terminal_ansi(void)
{
    return ansi;
}
