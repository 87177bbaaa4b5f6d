// SPDX-License-Identifier: BSD-2-Clause
// The shell's part of bring-up: what [host] asks for, then the console fiber. VMs are created there
// and not here, because their lifecycle calls belong on a fiber.
#include "balloon/balloon.h"
#include "kernel/error.h"
#include "kernel/frames.h"
#include "kernel/init.h"
#include "kernel/log.h"
#include "kernel/serial.h"
#include "shell/autostart.h"
#include "shell/config.h"
#include "shell/console.h"
#include "shell/facts.h"
#include "vm/vm.h"
#include "vmx/vcpu.h"

#define DEFAULT_PORT 0x3f8
#define DEFAULT_BAUD 115200

static void ignore_vm(void *unused, const struct vm_config *vm, unsigned line)
{
    (void)unused;
    (void)vm;
    (void)line;
}

static void ignore_complaint(void *unused, bool is_error, const char *message)
{
    (void)unused;
    (void)is_error;
    (void)message;
}

// ISA interrupt of a PC's four serial ports, or -1: any other is polled by the scheduler's loop.
static int serial_irq(uint16_t port)
{
    switch (port) {
    case 0x3f8:
    case 0x3e8:
        return 4;
    case 0x2f8:
    case 0x2e8:
        return 3;
    default:
        return -1;
    }
}

static int open_serial(uint16_t port, uint32_t baud)
{
    int error = serial_init(port, baud);
    if (error < 0)
        return error;
    int irq = serial_irq(port);
    shell_facts.polled = irq < 0 || serial_use_irq((unsigned)irq) < 0;
    if (shell_facts.polled)
        log_warning("console: port 0x%x has no interrupt, it is polled", port);
    return 0;
}

static void use_console(const struct host_config *host)
{
    if (host->console_port == DEFAULT_PORT && host->console_baud == DEFAULT_BAUD)
        return;
    log_info("the console moves to port 0x%x, %u baud", host->console_port, host->console_baud);
    serial_drain(); // what was said so far goes out where it was said
    if (open_serial(host->console_port, host->console_baud) == 0)
        return;
    // A UART that was in use stays in use (kernel/serial.h).
    log_error("console: no UART answers at port 0x%x, expected a 16550; port 0x%x is used",
              host->console_port, DEFAULT_PORT);
    shell_facts.host.console_port = DEFAULT_PORT;
    shell_facts.host.console_baud = DEFAULT_BAUD;
}

static int shell_init(const struct boot_info *info)
{
    static const struct config_sink quiet = {ignore_vm, ignore_complaint, NULL};
    size_t size = 0;
    const char *text = boot_config_text(&size);

    shell_facts.entry_tsc = info->entry_tsc;
    shell_facts.console_only = (info->flags & BOOT_CONSOLE_ONLY) != 0;
    shell_facts.config_read = text != NULL;
    config_host_defaults(&shell_facts.host);
    if (text != NULL)
        config_parse(text, size, &shell_facts.host, &quiet);
    use_console(&shell_facts.host);
    frames_set_reserve(shell_facts.host.reserve / PAGE_SIZE);
    vm_set_overcommit(shell_facts.host.overcommit);
    balloon_set_auto(shell_facts.host.auto_balloon);
    if (!shell_facts.host.apicv)
        vmx_disable_apicv();

    autostart_set_config(text, size);
    vm_set_event_sink(console_event);
    return console_start();
}
INIT_HOOK(INIT_SHELL, shell_init);
