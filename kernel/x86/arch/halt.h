// SPDX-License-Identifier: BSD-2-Clause
#pragma once

// Stops this CPU for ever. An NMI is served and leads back here.
static inline _Noreturn void arch_halt(void)
{
    for (;;)
        __asm__ volatile("cli; hlt");
}
