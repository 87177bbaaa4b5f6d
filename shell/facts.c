// SPDX-License-Identifier: BSD-2-Clause
#include "shell/facts.h"

#include "vm/vm.h"

struct shell_facts shell_facts;

static struct vm_info infos[VM_MAX];

struct vm_info *shell_infos(void)
{
    return infos;
}
