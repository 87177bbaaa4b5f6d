// SPDX-License-Identifier: BSD-2-Clause
// Decoder for the instructions that guests use on device memory: the MOV forms (88 89 8a 8b a0-a3
// c6 c7, 0f b6/b7/be/bf, MOVSXD, with prefixes, REX, all addressing modes), STOS, MOVS, and
// OR/AND/XOR/ADD/SUB/TEST/CMP with a memory operand. Pure; checked on the host against Zydis.
// It computes no address: the EPT violation gives the guest-physical one.
#pragma once

#include "kernel/types.h"

enum decode_operation {
    DECODE_LOAD,       // register <- memory (zero- or sign-extended to register_size)
    DECODE_STORE,      // memory <- register or immediate
    DECODE_TEST,       // flags only: memory & source
    DECODE_COMPARE,    // flags only: memory - source, or source - memory when memory_is_source
    DECODE_READ_WRITE, // memory <- memory OP source (alu)
    DECODE_ACCUMULATE, // register <- register OP memory (alu)
};

enum decode_alu { DECODE_ALU_OR, DECODE_ALU_AND, DECODE_ALU_XOR, DECODE_ALU_ADD, DECODE_ALU_SUB };

enum { DECODE_ES, DECODE_DS = 3 }; // segments, in encoding order

struct decoded {
    enum decode_operation operation;
    enum decode_alu alu;
    uint8_t length;        // bytes of the instruction
    uint8_t memory_size;   // 1, 2, 4, 8
    uint8_t register_size; // of the destination of a load; 4 zeroes the upper half
    bool sign_extend;
    bool memory_is_source; // compare reg, mem
    bool has_immediate;
    uint64_t immediate; // sign-extended to 64 bits
    uint8_t reg;        // 0..15 in encoding order (rax rcx rdx rbx rsp rbp rsi rdi r8..)
    bool reg_high_byte; // ah ch dh bh: reg is 0..3
    // STOS: a DECODE_STORE of rax that also moves rdi and, with a REP prefix, counts rcx.
    // MOVS, with `move`: the same of what is at rsi in `segment`; rsi moves, too.
    bool string;
    bool move;
    bool repeat;
    uint8_t segment;      // of MOVS' source, in encoding order (es cs ss ds fs gs)
    uint8_t address_size; // 2, 4, 8
};

// cpu mode: 2 = 16-bit, 4 = 32-bit, 8 = 64-bit default code size.
// Returns 0, E_AGAIN when `size` bytes are too few, E_NOSYS for an instruction outside the list.
int decode_instruction(const uint8_t *bytes, size_t size, unsigned mode, struct decoded *out);
