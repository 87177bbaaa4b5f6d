// SPDX-License-Identifier: BSD-2-Clause
// Who resolves EPT violations: higher rooms register here. Filled before any VM runs and constant
// from then on, so it is read without a lock.
#include "ept/ept.h"

#include "kernel/error.h"

static struct {
    unsigned priority;
    ept_fault_hook hook;
} hooks[EPT_FAULT_HOOKS];
static unsigned hook_count;

int ept_register_fault_hook(unsigned priority, ept_fault_hook hook)
{
    if (hook == NULL)
        return E_INVAL;
    if (hook_count == ARRAY_SIZE(hooks))
        return E_NOMEM;
    unsigned place = hook_count++;
    for (; place > 0 && hooks[place - 1].priority > priority; place--)
        hooks[place] = hooks[place - 1];
    hooks[place].priority = priority;
    hooks[place].hook = hook;
    return 0;
}

enum ept_fault_result ept_run_fault_hooks(void *vm, const struct ept_fault *fault)
{
    for (unsigned i = 0; i < hook_count; i++) {
        enum ept_fault_result result = hooks[i].hook(vm, fault);
        if (result != EPT_FAULT_UNHANDLED)
            return result;
    }
    return EPT_FAULT_UNHANDLED;
}
