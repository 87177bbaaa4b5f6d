// SPDX-License-Identifier: BSD-2-Clause
// What the shell learnt at start, for `host`.
#pragma once

#include "kernel/types.h"
#include "shell/config.h"

struct shell_facts {
    struct host_config host;
    bool config_read;     // \fusor\fusor.conf was there
    bool console_only;    // \fusor\console-only was there: VT-x was left alone
    bool polled;          // the console's UART has no interrupt
    unsigned errors;      // in fusor.conf
    unsigned warnings;    // in fusor.conf
    uint64_t entry_tsc;   // EFI entry
    uint64_t console_tsc; // first prompt, 0 before
};

extern struct shell_facts shell_facts;

// Room for one snapshot of all VMs, too large for a stack and there before memory is short. The
// console fiber's, for the duration of one command.
struct vm_info *shell_infos(void);
