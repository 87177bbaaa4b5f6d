// SPDX-License-Identifier: BSD-2-Clause
// Allocations of frames that fail when a test says so. The test is linked with
// -Wl,--wrap=frame_alloc.
#pragma once

#include <stdbool.h>

#include "kernel/error.h"
#include "kernel/frames.h"

static unsigned fail_at; // the n-th allocation from now fails; 0: none
static bool failed;      // it did

int __real_frame_alloc(enum frame_state state, unsigned order, unsigned flags,
                       struct frame_account *account, hfn_t *out);

int __wrap_frame_alloc(enum frame_state state, unsigned order, unsigned flags,
                       struct frame_account *account, hfn_t *out)
{
    if (fail_at != 0 && --fail_at == 0) {
        failed = true;
        return E_NOMEM;
    }
    return __real_frame_alloc(state, order, flags, account, out);
}
