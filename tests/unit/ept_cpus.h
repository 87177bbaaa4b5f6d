// SPDX-License-Identifier: BSD-2-Clause
// CPUs as ept/ finds them at boot.
#pragma once

#include <string.h>

#include <arch/ept.h>

#include "ept/ept.h"

// They know everything that ept/ can use, and none has been in a guest.
static inline void ept_cpus_start(void)
{
    memset(ept_cpus, 0, sizeof(ept_cpus));
    memset(fake_invept_singles, 0, sizeof(fake_invept_singles));
    memset(fake_invept_alls, 0, sizeof(fake_invept_alls));
    ept_features = (struct ept_features){
        .page_2m = true,
        .page_1g = true,
        .accessed_dirty = true,
        .execute_only = true,
        .invept_single = true,
        .invept_all = true,
        .large_executable_safe = true,
    };
}
