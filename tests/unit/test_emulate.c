// SPDX-License-Identifier: BSD-2-Clause
// devices/emulate.c against the CPU this test runs on: the same instruction bytes are executed on
// real memory and emulated, and registers, memory and the defined flags must agree.

// sources: devices/decode.c devices/emulate.c

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include <cmocka.h>

#include "devices/emulate.h"
#include "kernel/error.h"

#define CF_PF_AF_ZF_SF_OF 0x8d5u
#define AF                0x10u
#define DF                0x400u

// All below 2 GiB, so that absolute 32-bit addresses reach it without a register.
struct arena {
    uint8_t code[512];
    uint64_t in[16], in_flags;
    uint64_t out[16], out_flags;
    uint64_t saved_rsp;
    uint8_t guard_below[64];
    uint8_t cell[64];
    uint8_t guard_above[64];
};

static struct arena *arena;
static uint64_t random_state = 0x2545f4914f6cdd1d;

static uint64_t random64(void)
{
    random_state ^= random_state << 13;
    random_state ^= random_state >> 7;
    random_state ^= random_state << 17;
    return random_state;
}

// Values at which flags change, and random ones.
static uint64_t interesting(void)
{
    static const uint64_t values[] = {0,
                                      1,
                                      0x7f,
                                      0x80,
                                      0xff,
                                      0x7fff,
                                      0x8000,
                                      0xffff,
                                      0x7fffffff,
                                      0x80000000,
                                      0xffffffff,
                                      0x7fffffffffffffff,
                                      0x8000000000000000,
                                      0xffffffffffffffff};
    uint64_t r = random64();
    return (r & 3) != 0 ? random64() : values[(r >> 8) % ARRAY_SIZE(values)];
}

static int set_up(void **state)
{
    (void)state;
    arena = mmap(NULL, sizeof(*arena), PROT_READ | PROT_WRITE | PROT_EXEC,
                 MAP_PRIVATE | MAP_ANONYMOUS | MAP_32BIT, -1, 0);
    return arena == MAP_FAILED ? -1 : 0;
}

// --- The real thing ---

static uint8_t *emit_address(uint8_t *p, const void *address)
{
    uint32_t low = (uint32_t)(uintptr_t)address;
    memcpy(p, &low, 4);
    return p + 4;
}

// mov reg, [address] (opcode 8b) or mov [address], reg (89)
static uint8_t *emit_move(uint8_t *p, uint8_t opcode, unsigned reg, const void *address)
{
    *p++ = (uint8_t)(0x48 | (reg >= 8 ? 4 : 0));
    *p++ = opcode;
    *p++ = (uint8_t)((reg & 7) << 3 | 4);
    *p++ = 0x25;
    return emit_address(p, address);
}

static uint8_t *emit(uint8_t *p, const char *bytes, size_t size)
{
    memcpy(p, bytes, size);
    return p + size;
}

// Builds a function that loads all registers and flags, runs the instruction and stores them. The
// instruction sees a foreign stack pointer; nothing touches the stack until it is back. Returns
// where the instruction begins.
static uint8_t *build(uint8_t *(*instruction)(uint8_t *p, void *context), void *context)
{
    uint8_t *p = arena->code;
    p = emit(p, "\x53\x55\x41\x54\x41\x55\x41\x56\x41\x57", 10); // push rbx rbp r12-r15
    p = emit(p, "\xff\x34\x25", 3);                              // push in_flags
    p = emit_address(p, &arena->in_flags);
    p = emit_move(p, 0x8b, 0, &arena->in[0]);
    *p++ = 0x9d; // popfq
    p = emit_move(p, 0x89, 4, &arena->saved_rsp);
    for (unsigned i = 0; i < 16; i++)
        p = emit_move(p, 0x8b, i, &arena->in[i]);
    uint8_t *start = p;
    p = instruction(p, context);
    for (unsigned i = 0; i < 16; i++)
        p = emit_move(p, 0x89, i, &arena->out[i]);
    p = emit_move(p, 0x8b, 4, &arena->saved_rsp);
    p = emit(p, "\x9c\x8f\x04\x25", 4); // pushfq; pop out_flags
    p = emit_address(p, &arena->out_flags);
    p = emit(p, "\xfc\x41\x5f\x41\x5e\x41\x5d\x41\x5c\x5d\x5b\xc3", 12);
    assert_true(p <= arena->code + sizeof(arena->code));
    return start;
}

static void run(void)
{
    void (*function)(void);
    uint8_t *code = arena->code;
    memcpy(&function, &code, sizeof(function));
    // The buffer was just written: the compiler must not move those stores behind the call.
    __asm__ volatile("" ::: "memory");
    function();
    __asm__ volatile("" ::: "memory");
}

// --- The emulation's memory ---

struct memory {
    uint8_t *at;
    unsigned loads, stores;
    unsigned size; // expected
};

static uint64_t load(void *context, unsigned size)
{
    struct memory *m = context;
    m->loads++;
    assert_int_equal(size, m->size);
    uint64_t value = random64(); // a device may return garbage above
    memcpy(&value, m->at, size);
    return value;
}

static void store(void *context, unsigned size, uint64_t value)
{
    struct memory *m = context;
    m->stores++;
    assert_int_equal(size, m->size);
    memcpy(m->at, &value, size);
}

// --- Comparison ---

struct instruction {
    uint8_t prefix[4];
    unsigned prefix_size;
    uint8_t rex; // 0: none
    uint8_t opcode[2];
    unsigned opcode_size;
    int reg; // ModRM.reg, -1: no ModRM
    unsigned immediate_size;
    bool moffs;
};

static uint8_t *emit_instruction(uint8_t *p, void *context)
{
    const struct instruction *i = context;
    memcpy(p, i->prefix, i->prefix_size);
    p += i->prefix_size;
    if (i->rex != 0)
        *p++ = i->rex;
    memcpy(p, i->opcode, i->opcode_size);
    p += i->opcode_size;
    if (i->moffs) {
        uint64_t address = (uintptr_t)arena->cell;
        memcpy(p, &address, 8);
        p += 8;
    } else if (i->reg >= 0) {
        *p++ = (uint8_t)((unsigned)i->reg << 3 | 4);
        *p++ = 0x25;
        p = emit_address(p, arena->cell);
    }
    uint64_t immediate = interesting();
    memcpy(p, &immediate, i->immediate_size);
    return p + i->immediate_size;
}

static void show(const uint8_t *code, unsigned length)
{
    for (unsigned i = 0; i < length; i++)
        fprintf(stderr, "%02x ", code[i]);
    fputc('\n', stderr);
}

static bool logical(const struct decoded *d)
{
    return d->operation == DECODE_TEST ||
           ((d->operation == DECODE_READ_WRITE || d->operation == DECODE_ACCUMULATE) &&
            (d->alu == DECODE_ALU_AND || d->alu == DECODE_ALU_OR || d->alu == DECODE_ALU_XOR));
}

static void compare_once(const uint8_t *code, const struct decoded *d)
{
    for (unsigned i = 0; i < 16; i++)
        arena->in[i] = interesting();
    arena->in_flags = 0x202 | (random64() & CF_PF_AF_ZF_SF_OF);
    for (unsigned i = 0; i < sizeof(arena->cell); i++)
        arena->cell[i] = (uint8_t)random64();
    uint64_t value = interesting();
    memcpy(arena->cell, &value, 8);
    uint8_t *target = arena->cell;
    if (d->string) {
        if ((random64() & 1) != 0)
            arena->in_flags |= DF;
        target = arena->cell + 24;
        arena->in[7] = (uintptr_t)target;
        if (d->address_size == 4)
            arena->in[7] |= random64() << 32;
        if (d->repeat)
            arena->in[1] = (random64() & 3) | (d->address_size == 4 ? random64() << 32 : 0);
    }

    struct emulate_registers r;
    memcpy(r.gpr, arena->in, sizeof(r.gpr));
    r.rflags = arena->in_flags;
    uint8_t mine[sizeof(arena->cell)];
    memcpy(mine, arena->cell, sizeof(mine));
    struct memory m = {.at = mine + (target - arena->cell), .size = d->memory_size};
    unsigned rounds = 1;
    while (emulate_mmio(d, &r, &m, load, store) == E_AGAIN) {
        assert_true(d->repeat && ++rounds <= 3);
        uint32_t offset = (uint32_t)r.gpr[7] - (uint32_t)(uintptr_t)arena->cell;
        assert_true(offset < sizeof(mine));
        m.at = mine + offset;
    }
    if (!d->string) {
        assert_int_equal(m.loads, d->operation != DECODE_STORE);
        assert_int_equal(m.stores,
                         d->operation == DECODE_STORE || d->operation == DECODE_READ_WRITE);
    }

    run();
    uint64_t flags = CF_PF_AF_ZF_SF_OF | DF;
    if (logical(d))
        flags &= ~(uint64_t)AF; // undefined
    bool ok = memcmp(r.gpr, arena->out, sizeof(r.gpr)) == 0 &&
              memcmp(mine, arena->cell, sizeof(mine)) == 0 &&
              ((r.rflags ^ arena->out_flags) & flags) == 0 &&
              ((r.rflags ^ arena->in_flags) & ~(uint64_t)CF_PF_AF_ZF_SF_OF) == 0;
    if (ok)
        return;
    show(code, d->length);
    for (unsigned i = 0; i < 16; i++)
        fprintf(stderr, "r%u in %016llx cpu %016llx emulated %016llx\n", i,
                (unsigned long long)arena->in[i], (unsigned long long)arena->out[i],
                (unsigned long long)r.gpr[i]);
    fprintf(stderr, "flags in %llx cpu %llx emulated %llx\n", (unsigned long long)arena->in_flags,
            (unsigned long long)arena->out_flags, (unsigned long long)r.rflags);
    fail();
}

static unsigned instructions;

static void compare(struct instruction *i)
{
    const uint8_t *code = build(emit_instruction, i);
    struct decoded d;
    int result = decode_instruction(code, 15, 8, &d);
    if (result != 0) {
        show(code, 15);
        assert_int_equal(result, 0);
    }
    instructions++;
    for (unsigned n = 0; n < 24; n++)
        compare_once(code, &d);
}

static const uint8_t rex_set[] = {0, 0x40, 0x44, 0x48, 0x4c};

// One opcode with all operand sizes and registers.
static void compare_all(const struct instruction *pattern, bool lock)
{
    for (unsigned prefix = 0; prefix < (lock ? 4u : 2u); prefix++) {
        for (size_t rex = 0; rex < ARRAY_SIZE(rex_set); rex++) {
            struct instruction i = *pattern;
            if ((prefix & 1) != 0)
                i.prefix[i.prefix_size++] = 0x66;
            if ((prefix & 2) != 0)
                i.prefix[i.prefix_size++] = 0xf0;
            i.rex = rex_set[rex];
            bool wide = (i.opcode[0] & 1) != 0;
            bool operand16 = (prefix & 1) != 0 && (i.rex & 8) == 0;
            if (i.immediate_size == 4)
                i.immediate_size = !wide ? 1 : operand16 ? 2 : 4;
            if (i.reg == -2) {
                for (i.reg = 0; i.reg < 8; i.reg++)
                    compare(&i);
            } else {
                compare(&i);
            }
        }
    }
}

static void alu_with_register(void **state)
{
    (void)state;
    static const uint8_t bases[] = {0x00, 0x08, 0x20, 0x28, 0x30, 0x38};
    for (size_t b = 0; b < ARRAY_SIZE(bases); b++) {
        for (uint8_t form = 0; form < 4; form++)
            compare_all(&(struct instruction){.opcode = {(uint8_t)(bases[b] + form)},
                                              .opcode_size = 1,
                                              .reg = -2},
                        form < 2 && bases[b] != 0x38);
    }
    for (uint8_t form = 0; form < 2; form++)
        compare_all(
            &(struct instruction){.opcode = {(uint8_t)(0x84 + form)}, .opcode_size = 1, .reg = -2},
            false);
}

static void alu_with_immediate(void **state)
{
    (void)state;
    static const uint8_t opcodes[] = {0x80, 0x81, 0x83};
    static const int regs[] = {0, 1, 4, 5, 6, 7};
    for (size_t o = 0; o < ARRAY_SIZE(opcodes); o++) {
        for (size_t r = 0; r < ARRAY_SIZE(regs); r++)
            compare_all(&(struct instruction){.opcode = {opcodes[o]},
                                              .opcode_size = 1,
                                              .reg = regs[r],
                                              .immediate_size = opcodes[o] == 0x83 ? 1 : 4},
                        regs[r] != 7);
    }
    for (uint8_t form = 0; form < 2; form++) {
        for (int reg = 0; reg < 2; reg++)
            compare_all(&(struct instruction){.opcode = {(uint8_t)(0xf6 + form)},
                                              .opcode_size = 1,
                                              .reg = reg,
                                              .immediate_size = 4},
                        false);
    }
}

static void moves(void **state)
{
    (void)state;
    for (uint8_t opcode = 0x88; opcode <= 0x8b; opcode++)
        compare_all(&(struct instruction){.opcode = {opcode}, .opcode_size = 1, .reg = -2}, false);
    for (uint8_t opcode = 0xc6; opcode <= 0xc7; opcode++)
        compare_all(
            &(struct instruction){
                .opcode = {opcode}, .opcode_size = 1, .reg = 0, .immediate_size = 4},
            false);
    for (uint8_t opcode = 0xa0; opcode <= 0xa3; opcode++)
        compare_all(
            &(struct instruction){.opcode = {opcode}, .opcode_size = 1, .reg = -1, .moffs = true},
            false);
    static const uint8_t extend[] = {0xb6, 0xb7, 0xbe, 0xbf};
    for (size_t i = 0; i < ARRAY_SIZE(extend); i++)
        compare_all(&(struct instruction){.opcode = {0x0f, extend[i]}, .opcode_size = 2, .reg = -2},
                    false);
    for (int reg = 0; reg < 8; reg++) {
        for (uint8_t rex = 0x48; rex <= 0x4c; rex = (uint8_t)(rex + 4))
            compare(
                &(struct instruction){.rex = rex, .opcode = {0x63}, .opcode_size = 1, .reg = reg});
    }
}

static void strings(void **state)
{
    (void)state;
    for (uint8_t opcode = 0xaa; opcode <= 0xab; opcode++) {
        static const char *const prefixes[] = {"", "\x67", "\xf3", "\xf3\x67"};
        for (size_t i = 0; i < ARRAY_SIZE(prefixes); i++) {
            struct instruction pattern = {.opcode = {opcode}, .opcode_size = 1, .reg = -1};
            pattern.prefix_size = (unsigned)strlen(prefixes[i]);
            memcpy(pattern.prefix, prefixes[i], pattern.prefix_size);
            compare_all(&pattern, false);
        }
    }
}

// What this CPU's mode cannot run: 16-bit addresses.
static void string_with_16_bit_address(void **state)
{
    (void)state;
    static const uint8_t code[] = {0xf3, 0x67, 0xab}; // 32-bit code, so DI and CX count
    struct decoded d;
    assert_int_equal(decode_instruction(code, sizeof(code), 4, &d), 0);
    assert_int_equal(d.address_size, 2);
    struct emulate_registers r = {.gpr = {[0] = 0x11223344, [1] = 0xabcd0002, [7] = 0x1234fffe}};
    uint8_t bytes[8] = {0};
    struct memory m = {.at = bytes, .size = 4};
    assert_int_equal(emulate_mmio(&d, &r, &m, load, store), E_AGAIN);
    assert_int_equal(r.gpr[7], 0x12340002);
    assert_int_equal(r.gpr[1], 0xabcd0001);
    assert_int_equal(emulate_mmio(&d, &r, &m, load, store), 0);
    assert_int_equal(r.gpr[7], 0x12340006);
    assert_int_equal(r.gpr[1], 0xabcd0000);
    assert_int_equal(emulate_mmio(&d, &r, &m, load, store), 0);
    assert_int_equal(m.stores, 2);
}

static int tear_down(void **state)
{
    (void)state;
    print_message("%u instructions, 24 register sets each\n", instructions);
    return 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(moves),
        cmocka_unit_test(alu_with_register),
        cmocka_unit_test(alu_with_immediate),
        cmocka_unit_test(strings),
        cmocka_unit_test(string_with_16_bit_address),
    };
    return cmocka_run_group_tests_name("emulate", tests, set_up, tear_down);
}
