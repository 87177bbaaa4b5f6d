// SPDX-License-Identifier: BSD-2-Clause
// Any bytes on the serial line: the console answers with clean text, and it is there afterwards.
// sources: shell/config_host_keys.c shell/config_value.c
// sources: tests/unit/fake/fake.c shell/config.c shell/config_keys.c boot/config_lex.c
// sources: kernel/format.c kernel/error.c kernel/lock.c shell/terminal.c shell/console.c
// sources: shell/line_editor.c shell/arguments.c shell/command.c shell/cmd_host.c shell/cmd_vm.c
// sources: shell/attach.c shell/events.c shell/facts.c shell/autostart.c shell/metrics.c
// sources: shell/metrics_print.c shell/cmd_fusion.c shell/cmd_trace.c shell/vm_show.c
// sources: kernel/trace.c
#include "fake.h"
#include "shell_fakes.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static unsigned sleeps;

static void require(bool condition)
{
    if (!condition)
        abort();
}

// Brings commands that wait for the operator to their end, and lets events happen meanwhile.
static void while_a_command_waits(void)
{
    sleeps++;
    if (sleeps % 16 == 0)
        console_event("something happened");
    if (line_in_left == 0 && !terminal_has_input()) {
        line_in = "\035";
        line_in_left = 1;
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static bool booted;
    if (!booted) {
        fake_machine(0, 4);
        console_boot();
        booted = true;
    }
    vm_count = 0;
    guest_in_used = 0;
    line_out_used = 0;
    sleeps = 0;
    log_count = 0;
    power_said[0] = '\0';
    on_sleep = while_a_command_waits;
    terminal_set_ansi(false);

    const char *said = send_bytes((const char *)data, size);
    for (; *said != '\0'; said++)
        require((*said >= ' ' && *said <= '~') || *said == '\r' || *said == '\n' || *said == '\b' ||
                (*said == '\033' && said[1] == '['));
    // After `poweroff` there is no machine; the pretended one is brought back to a prompt.
    while (power_said[0] != '\0') {
        power_said[0] = '\0';
        send_bytes("\003", 1);
    }
    // Whatever came before, a new line of input is answered. The Ctrl-] ends an attachment.
    line_out_used = 0;
    said = send_bytes("\035\003term plain\r", 13);
    said = strstr(said, "fusor> term plain\r\nok\r\n");
    require(said != NULL);
    require(strcmp(said + strlen(said) - 7, CONSOLE_PROMPT) == 0);
    return 0;
}
