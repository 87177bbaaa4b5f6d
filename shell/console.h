// SPDX-License-Identifier: BSD-2-Clause
// The console: line editing, prompt, commands, attachment to a VM's serial port, events.
#pragma once

#include "kernel/types.h"

// Starts the console fiber; prints the first prompt after the autostarted VMs were started.
int console_start(void);
// Prints `* line` on a line of its own as soon as the console may; any context but NMI.
void console_event(const char *line);
