// SPDX-License-Identifier: BSD-2-Clause
#include "devices/emulate.h"

#include "kernel/error.h"

#define FLAG_CF UINT64_C(0x001)
#define FLAG_PF UINT64_C(0x004)
#define FLAG_AF UINT64_C(0x010)
#define FLAG_ZF UINT64_C(0x040)
#define FLAG_SF UINT64_C(0x080)
#define FLAG_DF UINT64_C(0x400)
#define FLAG_OF UINT64_C(0x800)

#define ARITHMETIC (FLAG_CF | FLAG_PF | FLAG_AF | FLAG_ZF | FLAG_SF | FLAG_OF)

enum { RAX = 0, RCX = 1, RSI = 6, RDI = 7 };

static uint64_t cut(uint64_t value, unsigned size)
{
    return size >= 8 ? value : value & ((UINT64_C(1) << (8 * size)) - 1);
}

static uint64_t sign_extend(uint64_t value, unsigned size)
{
    unsigned unused = 64 - 8 * size;
    return (uint64_t)((int64_t)(value << unused) >> unused);
}

// SDM vol. 1, 3.4.1.1: 8- and 16-bit results keep the rest of the register, 32-bit ones clear the
// upper half.
static void write_register(uint64_t *reg, unsigned size, bool high_byte, uint64_t value)
{
    switch (size) {
    case 1:
        if (high_byte)
            *reg = (*reg & ~UINT64_C(0xff00)) | (value & 0xff) << 8;
        else
            *reg = (*reg & ~UINT64_C(0xff)) | (value & 0xff);
        break;
    case 2:
        *reg = (*reg & ~UINT64_C(0xffff)) | (value & 0xffff);
        break;
    case 4:
        *reg = value & UINT32_MAX;
        break;
    default:
        *reg = value;
        break;
    }
}

static uint64_t read_register(const struct decoded *d, const struct emulate_registers *r)
{
    uint64_t value = r->gpr[d->reg & 15];
    return d->reg_high_byte ? value >> 8 & 0xff : value;
}

static uint64_t source(const struct decoded *d, const struct emulate_registers *r)
{
    return cut(d->has_immediate ? d->immediate : read_register(d, r), d->memory_size);
}

// Computes a OP b in `size` bytes and sets the arithmetic flags.
static uint64_t compute(enum decode_alu alu, uint64_t a, uint64_t b, unsigned size,
                        uint64_t *rflags)
{
    uint64_t sign = UINT64_C(1) << (8 * size - 1);
    uint64_t flags = 0;
    uint64_t result;
    switch (alu) {
    case DECODE_ALU_OR:
        result = a | b;
        break;
    case DECODE_ALU_AND:
        result = a & b;
        break;
    case DECODE_ALU_XOR:
        result = a ^ b;
        break;
    case DECODE_ALU_ADD:
        result = cut(a + b, size);
        if (result < a)
            flags |= FLAG_CF;
        if ((~(a ^ b) & (a ^ result) & sign) != 0)
            flags |= FLAG_OF;
        flags |= (a ^ b ^ result) & FLAG_AF;
        break;
    case DECODE_ALU_SUB:
    default:
        result = cut(a - b, size);
        if (a < b)
            flags |= FLAG_CF;
        if (((a ^ b) & (a ^ result) & sign) != 0)
            flags |= FLAG_OF;
        flags |= (a ^ b ^ result) & FLAG_AF;
        break;
    }
    if (result == 0)
        flags |= FLAG_ZF;
    if ((result & sign) != 0)
        flags |= FLAG_SF;
    if (__builtin_parity((unsigned)(result & 0xff)) == 0)
        flags |= FLAG_PF;
    *rflags = (*rflags & ~ARITHMETIC) | flags;
    return result;
}

// One iteration of STOS or MOVS.
static int store_string(const struct decoded *d, struct emulate_registers *r, void *context,
                        uint64_t (*load)(void *, unsigned),
                        void (*store)(void *, unsigned, uint64_t))
{
    unsigned width = d->address_size;
    if (d->repeat && cut(r->gpr[RCX], width) == 0)
        return 0;
    uint64_t value = d->move ? load(context, d->memory_size) : r->gpr[RAX];
    store(context, d->memory_size, cut(value, d->memory_size));
    uint64_t step = d->memory_size;
    if ((r->rflags & FLAG_DF) != 0)
        step = 0 - step;
    write_register(&r->gpr[RDI], width, false, r->gpr[RDI] + step);
    if (d->move)
        write_register(&r->gpr[RSI], width, false, r->gpr[RSI] + step);
    if (!d->repeat)
        return 0;
    write_register(&r->gpr[RCX], width, false, r->gpr[RCX] - 1);
    return cut(r->gpr[RCX], width) != 0 ? E_AGAIN : 0;
}

int emulate_mmio(const struct decoded *d, struct emulate_registers *r, void *context,
                 uint64_t (*load)(void *, unsigned), void (*store)(void *, unsigned, uint64_t))
{
    unsigned size = d->memory_size;
    if (d->string)
        return store_string(d, r, context, load, store);
    if (d->operation == DECODE_STORE) {
        store(context, size, source(d, r));
        return 0;
    }
    uint64_t memory = cut(load(context, size), size);
    uint64_t *reg = &r->gpr[d->reg & 15];
    switch (d->operation) {
    case DECODE_LOAD:
        write_register(reg, d->register_size, d->reg_high_byte,
                       d->sign_extend ? sign_extend(memory, size) : memory);
        break;
    case DECODE_TEST:
        compute(DECODE_ALU_AND, memory, source(d, r), size, &r->rflags);
        break;
    case DECODE_COMPARE:
        if (d->memory_is_source)
            compute(DECODE_ALU_SUB, source(d, r), memory, size, &r->rflags);
        else
            compute(DECODE_ALU_SUB, memory, source(d, r), size, &r->rflags);
        break;
    case DECODE_READ_WRITE:
        store(context, size, compute(d->alu, memory, source(d, r), size, &r->rflags));
        break;
    case DECODE_ACCUMULATE:
        write_register(reg, size, d->reg_high_byte,
                       compute(d->alu, source(d, r), memory, size, &r->rflags));
        break;
    case DECODE_STORE:
        break; // above
    }
    return 0;
}
