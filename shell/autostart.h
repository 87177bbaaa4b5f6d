// SPDX-License-Identifier: BSD-2-Clause
// From fusor.conf to VMs: what happens between the start of the console fiber and its first prompt.
#pragma once

#include "kernel/types.h"

// Remembers the text of fusor.conf (NULL: there is none), which must stay.
void autostart_set_config(const char *text, size_t size);
// Creates the VMs of fusor.conf and starts those with autostart = on, in order. What is wrong is
// logged with file and line, and the others start. Console fiber.
void autostart_run(void);
