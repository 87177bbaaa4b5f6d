// SPDX-License-Identifier: BSD-2-Clause
// What `vm show` says.
#pragma once

#include "fusion/fusion.h"
#include "shell/command.h"
#include "vm/vm.h"

// Prints everything that is known of a VM, lines `key: value`.
void vm_show(struct command_context *c, const struct vm_info *info,
             const struct fusion_info *fusion);
