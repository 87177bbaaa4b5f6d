// SPDX-License-Identifier: BSD-2-Clause
// The console: prompt, lines, events. CPU 0's scheduler loop moves input into the terminal's queue,
// so that nothing is lost while a command runs and waits; a fiber does the rest.
#include "shell/console.h"

#include "kernel/error.h"
#include "kernel/log.h"
#include "kernel/power.h"
#include "kernel/sched.h"
#include "kernel/string.h"
#include "kernel/time.h"
#include "shell/autostart.h"
#include "shell/command.h"
#include "shell/console_internal.h"
#include "shell/events.h"
#include "shell/facts.h"
#include "shell/line_editor.h"
#include "shell/terminal.h"

// Input wakes the console at once. This is how late an event may be that another CPU posts while
// CPU 0 is halted; and a UART without an interrupt fills its FIFO of 16 bytes in 1.4 ms.
#define LOOK_US        100000u
#define LOOK_POLLED_US 1000u

static struct line_editor editor;
static struct fiber *console_fiber;

void console_print_prompt(void)
{
    terminal_puts(CONSOLE_PROMPT);
}

void console_sleep_us(uint64_t us)
{
    fiber_sleep_until(time_tsc() + time_us_to_tsc(us));
}

bool console_print_events(void)
{
    char line[EVENT_MAX];
    bool any = false;
    while (events_take(line)) {
        terminal_puts("* ");
        terminal_puts(line);
        terminal_puts("\n");
        any = true;
    }
    return any;
}

// An event while the operator is typing: the line is begun anew below it.
static void interrupt_line(void)
{
    static const char erase_line[] = "\r\033[K";
    if (terminal_ansi())
        terminal_write_raw(erase_line, sizeof(erase_line) - 1);
    else
        terminal_puts("\n");
    console_print_events();
    console_print_prompt();
    terminal_write_text(editor.text, editor.length);
}

static void finish_line(enum line_result result)
{
    switch (result) {
    case LINE_DONE:
        command_run(editor.text);
        break;
    case LINE_TOO_LONG:
        terminal_puts("error: the line was ignored, it has more than 1023 characters\n");
        break;
    case LINE_NOISE:
        terminal_puts("error: the line was ignored, it has bytes that are not printable ASCII\n");
        break;
    default: // cancelled
        break;
    }
    line_editor_reset(&editor);
    console_print_events();
    console_print_prompt();
}

bool console_step(void)
{
    if (events_pending()) {
        interrupt_line();
        return true;
    }
    int byte = terminal_getc(TERMINAL_LINES);
    if (byte < 0)
        return false;
    struct line_echo echo;
    enum line_result result = line_editor_feed(&editor, (uint8_t)byte, &echo);
    for (size_t i = 0; i < echo.erase; i++)
        terminal_write_raw("\b \b", 3);
    terminal_puts(echo.text);
    if (result != LINE_MORE)
        finish_line(result);
    return true;
}

static void console_main(void *unused)
{
    (void)unused;
    autostart_run();
    log_set_early_console(false);
    shell_facts.console_tsc = time_tsc();
    line_editor_reset(&editor);
    console_print_events();
    console_print_prompt();
    power_tell_emulator("ready");
    for (;;)
        if (!console_step())
            console_sleep_us(shell_facts.polled ? LOOK_POLLED_US : LOOK_US);
}

// Wakes the fiber for what is new only: what it leaves in the queue while a command waits must not
// cut that command's sleep short.
static void console_poll(void)
{
    static uint64_t events_seen;
    uint64_t events = events_posted();
    if (terminal_pump() == 0 && events == events_seen)
        return;
    events_seen = events;
    fiber_wake(console_fiber);
}

int console_start(void)
{
    console_fiber = fiber_create("console", console_main, NULL);
    if (console_fiber == NULL)
        return E_NOMEM;
    sched_set_console_poll(console_poll);
    return 0;
}
