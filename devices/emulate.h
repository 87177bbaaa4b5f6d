// SPDX-License-Identifier: BSD-2-Clause
// Executes a decoded instruction (devices/decode.h) on a register file; the memory operand is
// reached through two functions. Pure; checked on the host against the CPU.
#pragma once

#include "devices/decode.h"

struct emulate_registers {
    uint64_t gpr[16]; // rax rcx rdx rbx rsp rbp rsi rdi r8..r15
    uint64_t rflags;
};

// Does what the instruction does to registers, arithmetic flags and memory; the caller advances RIP
// by d->length. Flags that the architecture leaves undefined (AF of the logical operations) are
// cleared. MOVS loads from rsi's memory and stores to rdi's. Loads and stores move the low `size`
// bytes; a load may return more, the rest is ignored. Returns 0 when the instruction is complete;
// E_AGAIN when a REP has iterations left: RIP stays and the guest runs it again. (One iteration per
// call, since the next has another address.)
int emulate_mmio(const struct decoded *d, struct emulate_registers *r, void *context,
                 uint64_t (*load)(void *context, unsigned size),
                 void (*store)(void *context, unsigned size, uint64_t value));
