// SPDX-License-Identifier: BSD-2-Clause
// Instruction format: SDM vol. 2, chapter 2 and appendix A.
#include "devices/decode.h"

#include "kernel/error.h"

#define MAX_LENGTH 15u // a longer instruction is #GP (SDM vol. 2, 2.3.11)

#define REX_W 8u
#define REX_R 4u

struct cursor {
    const uint8_t *bytes;
    size_t size; // at most MAX_LENGTH
    size_t at;
    bool truncated; // size is what the caller had, not the limit of the architecture
};

struct prefixes {
    bool operand, address, lock;
    uint8_t rep; // 0, or the last of 0xf2 and 0xf3
    uint8_t segment;
    bool has_rex;
    uint8_t rex;
};

// Opcode properties.
enum form {
    FORM_NONE,
    FORM_STORE,          // r/m <- reg
    FORM_LOAD,           // reg <- r/m
    FORM_STORE_IMM,      // r/m <- imm, group 11 (/0 only)
    FORM_MOFFS_LOAD,     // al/eax <- moffs
    FORM_MOFFS_STORE,    // moffs <- al/eax
    FORM_STOS,           //
    FORM_MOVS,           //
    FORM_ALU_MEMORY,     // r/m <- r/m OP reg
    FORM_ALU_REG,        // reg <- reg OP r/m
    FORM_COMPARE_MEMORY, // r/m - reg
    FORM_COMPARE_REG,    // reg - r/m
    FORM_TEST,           // r/m & reg
    FORM_GROUP1,         // 80 81 83: r/m OP imm by ModRM.reg
    FORM_GROUP3,         // f6 f7: TEST r/m, imm for /0 and /1
    FORM_MOVSXD,
};

#define WIDE 0x80u // operand size by prefixes; else one byte

// One-byte opcodes; the ALU opcodes come in pairs (byte, wide).
#define PAIR(opcode, form) [(opcode)] = (form), [(opcode) + 1] = (uint8_t)((unsigned)(form) | WIDE)
#define ALU(base)          PAIR((base), FORM_ALU_MEMORY), PAIR((base) + 2, FORM_ALU_REG)

static const uint8_t forms[256] = {
    ALU(0x00), // ADD
    ALU(0x08), // OR
    ALU(0x20), // AND
    ALU(0x28), // SUB
    ALU(0x30), // XOR
    PAIR(0x38, FORM_COMPARE_MEMORY),
    PAIR(0x3a, FORM_COMPARE_REG),
    [0x63] = FORM_MOVSXD | WIDE,
    PAIR(0x80, FORM_GROUP1),
    [0x83] = FORM_GROUP1 | WIDE,
    PAIR(0x84, FORM_TEST),
    PAIR(0x88, FORM_STORE),
    PAIR(0x8a, FORM_LOAD),
    PAIR(0xa0, FORM_MOFFS_LOAD),
    PAIR(0xa2, FORM_MOFFS_STORE),
    PAIR(0xa4, FORM_MOVS),
    PAIR(0xaa, FORM_STOS),
    PAIR(0xc6, FORM_STORE_IMM),
    PAIR(0xf6, FORM_GROUP3),
};

#define NO_ALU  0xffu
#define COMPARE 0xfeu

// By bits 3-5 of the opcode, or by ModRM.reg of group 1.
static const uint8_t alu_of[8] = {DECODE_ALU_ADD, DECODE_ALU_OR,  NO_ALU,         NO_ALU,
                                  DECODE_ALU_AND, DECODE_ALU_SUB, DECODE_ALU_XOR, COMPARE};

// The buffer ended: at the caller's end more bytes may help, at the limit of 15 nothing does.
static int out_of_bytes(const struct cursor *c)
{
    return c->truncated ? E_AGAIN : E_NOSYS;
}

static inline bool next(struct cursor *c, uint8_t *byte)
{
    if (c->at >= c->size)
        return false;
    *byte = c->bytes[c->at++];
    return true;
}

static bool skip(struct cursor *c, size_t count)
{
    if (c->size - c->at < count)
        return false;
    c->at += count;
    return true;
}

// Returns the opcode, or a negative error; 0x0f 0xNN becomes 0x1NN.
static int read_prefixes(struct cursor *c, unsigned mode, struct prefixes *p)
{
    uint8_t byte;
    while (next(c, &byte)) {
        // REX counts only directly before the opcode (SDM vol. 2, 2.2.1).
        switch (byte) {
        case 0x66:
            p->operand = true;
            break;
        case 0x67:
            p->address = true;
            break;
        case 0xf0:
            p->lock = true;
            break;
        case 0xf2:
        case 0xf3:
            p->rep = byte;
            break;
        // The segment is in the address that the CPU computed; but MOVS has another operand.
        case 0x26:
        case 0x2e:
        case 0x36:
        case 0x3e:
            if (mode != 8) // there they are ignored (SDM vol. 2, 2.2.1 and vol. 1, 3.3.7.1)
                p->segment = byte >> 3 & 3;
            break;
        case 0x64:
        case 0x65:
            p->segment = byte & 7;
            break;
        case 0x40 ... 0x4f:
            if (mode != 8)
                return E_NOSYS; // INC, DEC
            p->has_rex = true;
            p->rex = byte & 0xf;
            continue;
        case 0x0f:
            if (!next(c, &byte))
                return out_of_bytes(c);
            return 0x100 | byte;
        default:
            return byte;
        }
        p->has_rex = false;
        p->rex = 0;
    }
    return out_of_bytes(c);
}

// Passes ModRM, SIB and displacement of a memory operand and returns ModRM.reg, or an error.
static int read_modrm(struct cursor *c, unsigned address_size)
{
    uint8_t modrm;
    if (!next(c, &modrm))
        return out_of_bytes(c);
    unsigned mod = modrm >> 6;
    unsigned rm = modrm & 7;
    if (mod == 3)
        return E_NOSYS; // a register operand never touches device memory
    size_t displacement = mod == 1 ? 1 : 0;
    if (address_size == 2) {
        if (mod == 2 || (mod == 0 && rm == 6))
            displacement = 2;
    } else {
        if (mod == 2 || (mod == 0 && rm == 5))
            displacement = 4;
        if (rm == 4) {
            uint8_t sib;
            if (!next(c, &sib))
                return out_of_bytes(c);
            if (mod == 0 && (sib & 7) == 5)
                displacement = 4;
        }
    }
    if (!skip(c, displacement))
        return out_of_bytes(c);
    return modrm >> 3 & 7;
}

// `size` bytes (1, 2, 4), sign-extended.
static int read_immediate(struct cursor *c, unsigned size, struct decoded *out)
{
    if (c->size - c->at < size)
        return out_of_bytes(c);
    uint32_t raw = 0;
    for (unsigned i = 0; i < size; i++)
        raw |= (uint32_t)c->bytes[c->at + i] << (8 * i);
    c->at += size;
    unsigned unused = 32 - 8 * size;
    out->immediate = (uint64_t)(int64_t)((int32_t)(raw << unused) >> unused);
    out->has_immediate = true;
    return 0;
}

// Fills in the register named by ModRM.reg.
static void set_register(struct decoded *out, const struct prefixes *p, unsigned reg, unsigned size)
{
    if (size == 1 && !p->has_rex && reg >= 4) {
        out->reg = (uint8_t)(reg - 4); // ah ch dh bh
        out->reg_high_byte = true;
    } else {
        out->reg = (uint8_t)(reg | ((p->rex & REX_R) != 0 ? 8 : 0));
    }
}

static unsigned operand_size(const struct prefixes *p, unsigned mode)
{
    if ((p->rex & REX_W) != 0)
        return 8;
    return (mode == 2) != p->operand ? 2 : 4;
}

static unsigned address_size(const struct prefixes *p, unsigned mode)
{
    if (!p->address)
        return mode;
    return mode == 4 ? 2 : 4;
}

// MOVZX and MOVSX, 0f b6 b7 be bf.
static int decode_extend(struct cursor *c, const struct prefixes *p, unsigned opcode, unsigned size,
                         struct decoded *out)
{
    if ((opcode & ~9u) != 0x1b6)
        return E_NOSYS;
    int reg = read_modrm(c, out->address_size);
    if (reg < 0)
        return reg;
    out->operation = DECODE_LOAD;
    out->memory_size = (opcode & 1) != 0 ? 2 : 1;
    out->register_size = (uint8_t)size;
    out->sign_extend = (opcode & 8) != 0;
    set_register(out, p, (unsigned)reg, size); // size is 2 or more
    return 0;
}

static int decode_group1(struct cursor *c, unsigned opcode, unsigned reg, struct decoded *out)
{
    unsigned alu = alu_of[reg];
    if (alu == NO_ALU)
        return E_NOSYS;
    if (alu == COMPARE) {
        out->operation = DECODE_COMPARE;
    } else {
        out->operation = DECODE_READ_WRITE;
        out->alu = (enum decode_alu)alu;
    }
    unsigned size = out->memory_size;
    return read_immediate(c, opcode == 0x83 ? 1 : MIN(size, 4u), out);
}

// The forms with ModRM.
static int decode_modrm(struct cursor *c, const struct prefixes *p, unsigned opcode, unsigned form,
                        struct decoded *out)
{
    int found = read_modrm(c, out->address_size);
    if (found < 0)
        return found;
    unsigned reg = (unsigned)found;
    unsigned size = out->memory_size;
    switch (form) {
    case FORM_STORE_IMM:
        if (reg != 0)
            return E_NOSYS;
        out->operation = DECODE_STORE;
        return read_immediate(c, MIN(size, 4u), out);
    case FORM_GROUP1:
        return decode_group1(c, opcode, reg, out);
    case FORM_GROUP3:
        if (reg > 1)
            return E_NOSYS;
        out->operation = DECODE_TEST;
        return read_immediate(c, MIN(size, 4u), out);
    case FORM_MOVSXD:
        if ((p->rex & REX_W) == 0)
            return E_NOSYS;
        out->operation = DECODE_LOAD;
        out->memory_size = 4;
        out->sign_extend = true;
        break;
    case FORM_STORE:
        out->operation = DECODE_STORE;
        break;
    case FORM_LOAD:
        out->operation = DECODE_LOAD;
        break;
    case FORM_TEST:
        out->operation = DECODE_TEST;
        break;
    case FORM_COMPARE_REG:
        out->memory_is_source = true;
        out->operation = DECODE_COMPARE;
        break;
    case FORM_COMPARE_MEMORY:
        out->operation = DECODE_COMPARE;
        break;
    case FORM_ALU_MEMORY:
    case FORM_ALU_REG:
        out->operation = form == FORM_ALU_REG ? DECODE_ACCUMULATE : DECODE_READ_WRITE;
        out->alu = (enum decode_alu)alu_of[opcode >> 3 & 7];
        break;
    default:
        return E_NOSYS;
    }
    set_register(out, p, reg, size);
    return 0;
}

static int decode_one_byte(struct cursor *c, const struct prefixes *p, unsigned opcode,
                           unsigned mode, struct decoded *out)
{
    unsigned form = forms[opcode] & ~WIDE;
    unsigned size = (forms[opcode] & WIDE) != 0 ? operand_size(p, mode) : 1;
    out->memory_size = (uint8_t)size;
    out->register_size = (uint8_t)size;
    switch (form) {
    case FORM_NONE:
        return E_NOSYS;
    case FORM_MOVSXD:
        if (mode != 8)
            return E_NOSYS; // ARPL
        return decode_modrm(c, p, opcode, form, out);
    case FORM_MOFFS_LOAD:
    case FORM_MOFFS_STORE:
        out->operation = form == FORM_MOFFS_LOAD ? DECODE_LOAD : DECODE_STORE;
        return skip(c, out->address_size) ? 0 : out_of_bytes(c);
    case FORM_STOS:
    case FORM_MOVS:
        if (p->rep == 0xf2)
            return E_NOSYS; // REPNE is not defined for these
        out->operation = DECODE_STORE;
        out->string = true;
        out->move = form == FORM_MOVS;
        out->segment = out->move ? p->segment : 0;
        out->repeat = p->rep == 0xf3;
        return 0;
    default:
        return decode_modrm(c, p, opcode, form, out);
    }
}

int decode_instruction(const uint8_t *bytes, size_t size, unsigned mode, struct decoded *out)
{
    struct cursor c = {
        .bytes = bytes, .size = MIN(size, (size_t)MAX_LENGTH), .truncated = size < MAX_LENGTH};
    struct prefixes p = {.segment = DECODE_DS};
    int opcode = read_prefixes(&c, mode, &p);
    if (opcode < 0)
        return opcode;
    *out = (struct decoded){.address_size = (uint8_t)address_size(&p, mode)};
    int result;
    if (opcode > 0xff)
        result = decode_extend(&c, &p, (unsigned)opcode, operand_size(&p, mode), out);
    else
        result = decode_one_byte(&c, &p, (unsigned)opcode, mode, out);
    if (result < 0)
        return result;
    // LOCK is #UD but for a memory destination that is read and written (SDM vol. 2, LOCK).
    if (p.lock && out->operation != DECODE_READ_WRITE)
        return E_NOSYS;
    out->length = (uint8_t)c.at;
    return 0;
}
