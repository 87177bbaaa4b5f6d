// SPDX-License-Identifier: BSD-2-Clause
// `vm console NAME`: the operator's terminal becomes that of the VM's serial port.
#include "shell/attach.h"

#include "devices/uart.h"
#include "kernel/error.h"
#include "kernel/sched.h"
#include "kernel/string.h"
#include "shell/console_internal.h"
#include "shell/events.h"
#include "shell/terminal.h"
#include "vm/vm.h"

#define DETACH   0x1d // Ctrl-]
#define CHUNK    256u
#define QUIET_US 2000u // between looks at the VM's output while nothing moves

struct attachment {
    const char *name;
    uint64_t cursor;
    bool detach; // Ctrl-] was pressed
    bool at_line_start;
    size_t replay;  // bytes at most until what was kept has been shown
    size_t pending; // bytes of input the VM has not taken yet
    char input[CHUNK];
};

// Fills the pending input up to Ctrl-].
static void read_keys(struct attachment *a)
{
    while (!a->detach && a->pending < sizeof(a->input)) {
        int byte = terminal_getc(TERMINAL_RAW);
        if (byte < 0)
            return;
        if (byte == DETACH)
            a->detach = true;
        else
            a->input[a->pending++] = (char)byte;
    }
}

// Offers input to the VM. Returns false when the VM is gone, else sets *moved if it took some.
static bool send_keys(struct attachment *a, bool *moved)
{
    read_keys(a);
    if (a->pending == 0)
        return true;
    int taken = vm_console_write(a->name, a->input, a->pending);
    if (taken < 0)
        return false;
    if (taken > 0) {
        a->pending -= (size_t)taken;
        memmove(a->input, a->input + taken, a->pending);
        *moved = true;
    } else if (a->pending == sizeof(a->input) && terminal_discard_through(DETACH)) {
        // A guest that reads nothing must not hold the operator: what he typed before Ctrl-] goes.
        a->detach = true;
    }
    return true;
}

// Shows what the VM has said. Returns false when it is gone.
static bool show_output(struct attachment *a, bool *moved)
{
    char output[CHUNK];
    int got = vm_console_read(a->name, &a->cursor, output, sizeof(output));
    if (got < 0)
        return false;
    if (got > 0) {
        terminal_write_raw(output, (size_t)got);
        a->at_line_start = output[got - 1] == '\n';
        *moved = true;
    }
    // A guest that says more than the line takes does not prolong the replay.
    a->replay = (size_t)got < sizeof(output) ? 0 : a->replay - MIN(a->replay, (size_t)got);
    return true;
}

int attach(struct command_context *c, const char *name)
{
    struct attachment a = {.name = name, .at_line_start = true, .replay = UART_OUTPUT_BYTES};
    // Asked first, so that a name that is wrong gives an error and nothing else.
    char none;
    if (vm_console_read(name, &a.cursor, &none, 0) < 0)
        return E_NOENT;
    a.cursor = 0;
    command_print(c, "attached to %s, Ctrl-] detaches\n", name);
    bool alive = true;
    // A Ctrl-] that was typed ahead waits for the replay: what a script gets does not depend on how
    // fast it types.
    while (alive && (!a.detach || a.replay > 0)) {
        bool moved = false;
        alive = show_output(&a, &moved) && send_keys(&a, &moved);
        if (events_pending()) {
            if (!a.at_line_start)
                terminal_puts("\n");
            console_print_events();
            a.at_line_start = true;
        }
        if (moved)
            fiber_give_way(); // a UART without a line's speed must not keep the CPU here
        else if (!a.detach)
            console_sleep_us(QUIET_US);
    }
    if (!a.at_line_start)
        terminal_puts("\n");
    command_print(c, alive ? "detached from %s\n" : "detached: VM %s is gone\n", name);
    return 0;
}
