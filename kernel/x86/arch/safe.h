// SPDX-License-Identifier: BSD-2-Clause
// Instructions that may fault, with the fault caught: the trap handler finds their address in the
// section .fixups and continues behind them.
#pragma once

#include "kernel/types.h"

// The instruction; where it faults, 1 goes to [failed] and it has had no effect.
#define CAUGHT(instruction)                                                                        \
    "1: " instruction "\n"                                                                         \
    "2:\n"                                                                                         \
    ".pushsection .text.fixup, \"ax\"\n"                                                           \
    "3: movl $1, %[failed]\n"                                                                      \
    "   jmp 2b\n"                                                                                  \
    ".popsection\n"                                                                                \
    ".pushsection .fixups, \"a\"\n"                                                                \
    "   .quad 1b, 3b\n"                                                                            \
    ".popsection\n"

// Both return false when the CPU answers #GP.
static inline bool cpu_try_read_msr(uint32_t msr, uint64_t *value)
{
    uint32_t low = 0, high = 0, failed = 0;
    __asm__ volatile(CAUGHT("rdmsr")
                     : [failed] "+r"(failed), "+a"(low), "+d"(high)
                     : "c"(msr)
                     : "memory");
    *value = (uint64_t)high << 32 | low;
    return failed == 0;
}

static inline bool cpu_try_write_msr(uint32_t msr, uint64_t value)
{
    uint32_t failed = 0;
    __asm__ volatile(CAUGHT("wrmsr")
                     : [failed] "+r"(failed)
                     : "c"(msr), "a"((uint32_t)value), "d"((uint32_t)(value >> 32))
                     : "memory");
    return failed == 0;
}

// Leaves VMX operation; nothing happens when the CPU is not in it (#UD).
static inline void cpu_try_vmxoff(void)
{
    __asm__ volatile("1: vmxoff\n"
                     "2:\n"
                     ".pushsection .fixups, \"a\"\n"
                     "   .quad 1b, 2b\n"
                     ".popsection\n" ::
                         : "cc", "memory");
}
