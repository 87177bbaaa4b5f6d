// SPDX-License-Identifier: BSD-2-Clause
// `vm console NAME`.
#pragma once

#include "shell/command.h"

// Joins the console to the serial port of a VM, beginning with the output that is still kept, until
// Ctrl-] or until the VM is gone. E_NOENT, with nothing printed, when there is no such VM.
int attach(struct command_context *c, const char *name);
