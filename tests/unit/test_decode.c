// SPDX-License-Identifier: BSD-2-Clause
// devices/decode.c against Zydis: what the list contains must be decoded with the same meaning,
// what it does not contain must be refused, and no byte beyond the buffer may be read.

// sources: devices/decode.c
// libs: -lZydis

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include <cmocka.h>

#include <Zydis/Zydis.h>

#include "devices/decode.h"
#include "kernel/error.h"

static ZydisDecoder decoders[9]; // by mode
static uint8_t *page_end;        // the byte here faults
static uint64_t random_state = 0x9e3779b97f4a7c15;
static unsigned long accepted, refused;

static uint64_t random64(void)
{
    random_state ^= random_state << 13;
    random_state ^= random_state >> 7;
    random_state ^= random_state << 17;
    return random_state;
}

static int set_up(void **state)
{
    (void)state;
    ZydisDecoderInit(&decoders[2], ZYDIS_MACHINE_MODE_LEGACY_16, ZYDIS_STACK_WIDTH_16);
    ZydisDecoderInit(&decoders[4], ZYDIS_MACHINE_MODE_LEGACY_32, ZYDIS_STACK_WIDTH_32);
    ZydisDecoderInit(&decoders[8], ZYDIS_MACHINE_MODE_LONG_64, ZYDIS_STACK_WIDTH_64);
    uint8_t *pages = mmap(NULL, 8192, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (pages == MAP_FAILED || mprotect(pages + 4096, 4096, PROT_NONE) != 0)
        return -1;
    page_end = pages + 4096;
    return 0;
}

// --- What Zydis says, put into our words ---

static void name_register(struct decoded *d, ZydisRegister reg)
{
    if (reg >= ZYDIS_REGISTER_AH && reg <= ZYDIS_REGISTER_BH) {
        d->reg = (uint8_t)(reg - ZYDIS_REGISTER_AH);
        d->reg_high_byte = true;
    } else {
        d->reg = (uint8_t)ZydisRegisterGetId(reg);
        if (reg >= ZYDIS_REGISTER_SPL && reg <= ZYDIS_REGISTER_R15B)
            d->reg = (uint8_t)(reg - ZYDIS_REGISTER_SPL + 4);
        else if (reg >= ZYDIS_REGISTER_AL && reg <= ZYDIS_REGISTER_BL)
            d->reg = (uint8_t)(reg - ZYDIS_REGISTER_AL);
    }
}

static bool is_general(ZydisRegister reg)
{
    ZydisRegisterClass c = ZydisRegisterGetClass(reg);
    return c == ZYDIS_REGCLASS_GPR8 || c == ZYDIS_REGCLASS_GPR16 || c == ZYDIS_REGCLASS_GPR32 ||
           c == ZYDIS_REGCLASS_GPR64;
}

static bool alu_of_mnemonic(ZydisMnemonic m, enum decode_alu *alu)
{
    switch (m) {
    case ZYDIS_MNEMONIC_OR:
        *alu = DECODE_ALU_OR;
        return true;
    case ZYDIS_MNEMONIC_AND:
        *alu = DECODE_ALU_AND;
        return true;
    case ZYDIS_MNEMONIC_XOR:
        *alu = DECODE_ALU_XOR;
        return true;
    case ZYDIS_MNEMONIC_ADD:
        *alu = DECODE_ALU_ADD;
        return true;
    case ZYDIS_MNEMONIC_SUB:
        *alu = DECODE_ALU_SUB;
        return true;
    default:
        return false;
    }
}

// True when the list of decode.h contains the instruction; then *d is what decode must say.
static bool expected(const ZydisDecodedInstruction *i, const ZydisDecodedOperand *operands,
                     unsigned mode, struct decoded *d)
{
    memset(d, 0, sizeof(*d));
    d->length = i->length;
    d->address_size = (uint8_t)(i->address_width / 8);
    if (i->encoding != ZYDIS_INSTRUCTION_ENCODING_LEGACY)
        return false;
    switch (i->mnemonic) {
    case ZYDIS_MNEMONIC_MOVSD:
        if (i->opcode != 0xa5 || i->opcode_map != ZYDIS_OPCODE_MAP_DEFAULT)
            return false; // SSE2's
        // fall through
    case ZYDIS_MNEMONIC_MOVSB:
    case ZYDIS_MNEMONIC_MOVSW:
    case ZYDIS_MNEMONIC_MOVSQ:
        d->move = true;
        d->segment = (uint8_t)(operands[1].mem.segment - ZYDIS_REGISTER_ES);
        // fall through
    case ZYDIS_MNEMONIC_STOSB:
    case ZYDIS_MNEMONIC_STOSW:
    case ZYDIS_MNEMONIC_STOSD:
    case ZYDIS_MNEMONIC_STOSQ:
        d->operation = DECODE_STORE;
        d->string = true;
        // Both REP prefixes: Zydis and the CPU take the last one.
        for (unsigned p = 0; p < i->raw.prefix_count; p++) {
            if (i->raw.prefixes[p].value == 0xf2)
                d->repeat = false;
            if (i->raw.prefixes[p].value == 0xf3)
                d->repeat = true;
        }
        for (unsigned p = i->raw.prefix_count; p > 0; p--) {
            if (i->raw.prefixes[p - 1].value == 0xf3)
                break;
            if (i->raw.prefixes[p - 1].value == 0xf2)
                return false;
        }
        d->memory_size = (uint8_t)(operands[0].size / 8);
        d->register_size = d->memory_size;
        return true;
    default:
        break;
    }
    if (i->operand_count_visible != 2)
        return false;
    const ZydisDecodedOperand *memory, *other;
    bool memory_first = operands[0].type == ZYDIS_OPERAND_TYPE_MEMORY;
    if (memory_first) {
        memory = &operands[0];
        other = &operands[1];
    } else {
        memory = &operands[1];
        other = &operands[0];
    }
    if (memory->type != ZYDIS_OPERAND_TYPE_MEMORY)
        return false;
    if (other->type == ZYDIS_OPERAND_TYPE_REGISTER) {
        if (!is_general(other->reg.value))
            return false; // segment registers
        name_register(d, other->reg.value);
    } else if (other->type == ZYDIS_OPERAND_TYPE_IMMEDIATE) {
        d->has_immediate = true;
        // Zydis hands out some immediates zero-extended; the opcode says how many bytes there are.
        unsigned bytes = i->raw.imm[0].size / 8;
        if (bytes == 0)
            return false; // the 1 of a shift
        uint64_t raw = i->raw.imm[0].value.u;
        unsigned unused = 64 - 8 * bytes;
        d->immediate = (uint64_t)((int64_t)(raw << unused) >> unused);
    } else {
        return false;
    }
    d->memory_size = (uint8_t)(memory->size / 8);
    d->register_size = d->memory_size;
    switch (i->mnemonic) {
    case ZYDIS_MNEMONIC_MOV:
        d->operation = memory_first ? DECODE_STORE : DECODE_LOAD;
        return true;
    case ZYDIS_MNEMONIC_MOVSXD:
        if (other->size != 64)
            return false;
        d->operation = DECODE_LOAD;
        d->sign_extend = true;
        d->register_size = 8;
        return true;
    case ZYDIS_MNEMONIC_MOVSX:
    case ZYDIS_MNEMONIC_MOVZX:
        d->operation = DECODE_LOAD;
        d->sign_extend = i->mnemonic == ZYDIS_MNEMONIC_MOVSX;
        d->register_size = (uint8_t)(other->size / 8);
        return true;
    case ZYDIS_MNEMONIC_TEST:
        d->operation = DECODE_TEST;
        return true;
    case ZYDIS_MNEMONIC_CMP:
        d->operation = DECODE_COMPARE;
        d->memory_is_source = !memory_first;
        break;
    default:
        if (!alu_of_mnemonic(i->mnemonic, &d->alu))
            return false;
        d->operation = memory_first ? DECODE_READ_WRITE : DECODE_ACCUMULATE;
        break;
    }
    // 82 is another name of 80 outside 64-bit mode, which no assembler emits.
    return !(i->opcode == 0x82 && mode != 8);
}

static _Noreturn void complain(const char *what, const uint8_t *bytes, size_t size, unsigned mode,
                               const struct decoded *want, const struct decoded *got)
{
    fprintf(stderr, "%s, mode %u:", what, mode * 8);
    for (size_t i = 0; i < size; i++)
        fprintf(stderr, " %02x", bytes[i]);
    const struct decoded *both[2] = {want, got};
    for (unsigned i = 0; i < 2; i++) {
        const struct decoded *d = both[i];
        fprintf(stderr,
                "\n%s: op %d alu %d length %u memory %u register %u sx %d source %d imm %d %llx "
                "reg %u high %d string %d rep %d address %u move %d segment %u",
                i == 0 ? "want" : "got", (int)d->operation, (int)d->alu, d->length, d->memory_size,
                d->register_size, d->sign_extend, d->memory_is_source, d->has_immediate,
                (unsigned long long)d->immediate, d->reg, d->reg_high_byte, d->string, d->repeat,
                d->address_size, d->move, d->segment);
    }
    fputc('\n', stderr);
    fail();
    abort();
}

static bool same(const struct decoded *a, const struct decoded *b)
{
    return a->operation == b->operation && a->alu == b->alu && a->length == b->length &&
           a->memory_size == b->memory_size && a->register_size == b->register_size &&
           a->sign_extend == b->sign_extend && a->memory_is_source == b->memory_is_source &&
           a->has_immediate == b->has_immediate && a->immediate == b->immediate &&
           a->reg == b->reg && a->reg_high_byte == b->reg_high_byte && a->string == b->string &&
           a->repeat == b->repeat && a->address_size == b->address_size && a->move == b->move &&
           a->segment == b->segment;
}

// Decodes from a buffer that ends at a page that faults.
static int decode_exact(const uint8_t *bytes, size_t size, unsigned mode, struct decoded *out)
{
    uint8_t *at = page_end - size;
    memcpy(at, bytes, size);
    return decode_instruction(at, size, mode, out);
}

static void check(const uint8_t bytes[15], unsigned mode)
{
    struct decoded want, got = {0};
    ZydisDecodedInstruction instruction;
    ZydisDecodedOperand operands[ZYDIS_MAX_OPERAND_COUNT];
    bool valid =
        ZYAN_SUCCESS(ZydisDecoderDecodeFull(&decoders[mode], bytes, 15, &instruction, operands));
    memset(&want, 0, sizeof(want));
    bool listed = valid && expected(&instruction, operands, mode, &want);
    int result = decode_exact(bytes, 15, mode, &got);
    if (result != 0 && result != E_NOSYS)
        complain("15 bytes are never too few", bytes, 15, mode, &want, &got);
    if (listed != (result == 0))
        complain(listed ? "refused" : "accepted", bytes, 15, mode, &want, &got);
    if (!listed) {
        refused++;
        // Once refused, always refused: more bytes never help after E_NOSYS.
        bool refused_before = false;
        for (size_t size = 0; size < 15; size++) {
            result = decode_exact(bytes, size, mode, &got);
            if (result != E_AGAIN && result != E_NOSYS)
                complain("accepted when truncated", bytes, size, mode, &want, &got);
            if (refused_before && result == E_AGAIN)
                complain("asks for more after a refusal", bytes, size, mode, &want, &got);
            refused_before = result == E_NOSYS;
        }
        return;
    }
    accepted++;
    if (!same(&want, &got))
        complain("different meaning", bytes, 15, mode, &want, &got);
    for (size_t size = 0; size < want.length; size++) {
        struct decoded scratch;
        if (decode_exact(bytes, size, mode, &scratch) != E_AGAIN)
            complain("truncated, but not E_AGAIN", bytes, size, mode, &want, &scratch);
    }
    if (decode_exact(bytes, want.length, mode, &got) != 0 || !same(&want, &got))
        complain("exact size", bytes, want.length, mode, &want, &got);
}

// --- Systematic: opcodes x prefixes x REX x ModRM ---

static const uint8_t listed_opcodes[] = {
    0x00, 0x01, 0x02, 0x03, 0x08, 0x09, 0x0a, 0x0b, 0x20, 0x21, 0x22, 0x23, 0x28, 0x29, 0x2a, 0x2b,
    0x30, 0x31, 0x32, 0x33, 0x38, 0x39, 0x3a, 0x3b, 0x63, 0x80, 0x81, 0x82, 0x83, 0x84, 0x85, 0x88,
    0x89, 0x8a, 0x8b, 0xa0, 0xa1, 0xa2, 0xa3, 0xa4, 0xa5, 0xaa, 0xab, 0xc6, 0xc7, 0xf6, 0xf7,
};
static const uint8_t extended_opcodes[] = {0xb6, 0xb7, 0xbe, 0xbf};

static const char *const prefix_sets[] = {
    "",         "\x66", "\x67",     "\x66\x67",     "\x67\x66", "\x26",     "\x2e",
    "\x36",     "\x3e", "\x64",     "\x65",         "\xf0",     "\xf0\x66", "\x67\xf0",
    "\xf2",     "\xf3", "\xf3\x66", "\x64\x67\xf3", "\xf2\xf3", "\xf3\xf2", "\x66\x66\x66\x2e",
    "\x48\x66",
};
static const uint8_t rex_set[] = {0, 0x40, 0x41, 0x42, 0x44, 0x48, 0x4c, 0x4f};

static void systematic_opcode(const uint8_t *opcode, size_t opcode_size, unsigned mode)
{
    for (size_t s = 0; s < ARRAY_SIZE(prefix_sets); s++) {
        size_t prefix_size = strlen(prefix_sets[s]);
        for (size_t r = 0; r < (mode == 8 ? ARRAY_SIZE(rex_set) : 1); r++) {
            for (unsigned modrm = 0; modrm < 256; modrm++) {
                uint8_t bytes[32];
                size_t at = 0;
                memcpy(bytes, prefix_sets[s], prefix_size);
                at += prefix_size;
                if (rex_set[r] != 0)
                    bytes[at++] = rex_set[r];
                memcpy(bytes + at, opcode, opcode_size);
                at += opcode_size;
                bytes[at++] = (uint8_t)modrm;
                while (at < 24) { // SIB, displacement, immediate
                    uint64_t word = random64();
                    memcpy(bytes + at, &word, 8);
                    at += 8;
                }
                check(bytes, mode);
            }
        }
    }
}

static void systematic(void **state)
{
    (void)state;
    for (unsigned mode = 2; mode <= 8; mode *= 2) {
        accepted = refused = 0;
        for (size_t i = 0; i < ARRAY_SIZE(listed_opcodes); i++)
            systematic_opcode(&listed_opcodes[i], 1, mode);
        for (size_t i = 0; i < ARRAY_SIZE(extended_opcodes); i++)
            systematic_opcode((uint8_t[]){0x0f, extended_opcodes[i]}, 2, mode);
        print_message("mode %u: %lu accepted, %lu refused\n", mode * 8, accepted, refused);
        assert_true(accepted > 80000);
    }
}

// Every SIB byte under every ModRM that has one, with every REX.
static void every_sib(void **state)
{
    (void)state;
    for (unsigned rex = 0x3f; rex <= 0x4f; rex++) {
        for (unsigned mod = 0; mod < 3; mod++) {
            for (unsigned sib = 0; sib < 256; sib++) {
                uint8_t bytes[15] = {0};
                size_t at = 0;
                if (rex >= 0x40)
                    bytes[at++] = (uint8_t)rex;
                bytes[at++] = 0xc7;
                bytes[at++] = (uint8_t)(mod << 6 | 4);
                bytes[at++] = (uint8_t)sib;
                for (; at < 15; at++)
                    bytes[at] = (uint8_t)random64();
                check(bytes, 8);
                if (rex < 0x40)
                    check(bytes, 4);
            }
        }
    }
}

// --- Random ---

static void random_bytes(void **state)
{
    (void)state;
    accepted = refused = 0;
    for (unsigned long n = 0; n < 600000; n++) {
        uint8_t bytes[16];
        uint64_t a = random64(), b = random64();
        memcpy(bytes, &a, 8);
        memcpy(bytes + 8, &b, 8);
        check(bytes, 2u << random64() % 3);
    }
    // Random heads of prefixes, so that the limit of 15 bytes is met too.
    static const uint8_t heads[] = {0x66, 0x67, 0x2e, 0x36, 0x3e, 0x26, 0x64, 0x65, 0xf0, 0xf2,
                                    0xf3, 0x40, 0x48, 0x4d, 0x0f, 0x8b, 0x89, 0xc7, 0x81, 0xb6};
    for (unsigned long n = 0; n < 600000; n++) {
        uint8_t bytes[16];
        uint64_t a = random64(), b = random64();
        memcpy(bytes, &a, 8);
        memcpy(bytes + 8, &b, 8);
        size_t head = random64() % 14;
        for (size_t i = 0; i < head; i++)
            bytes[i] = heads[random64() % ARRAY_SIZE(heads)];
        check(bytes, 2u << random64() % 3);
    }
    print_message("random: %lu accepted, %lu refused\n", accepted, refused);
    assert_true(accepted > 50000);
}

// The same through ASan's eyes: a heap buffer of exactly the bytes.
static void heap_buffers(void **state)
{
    (void)state;
    for (unsigned long n = 0; n < 50000; n++) {
        size_t size = random64() % 16;
        uint8_t *bytes = malloc(size + (size == 0));
        assert_non_null(bytes);
        for (size_t i = 0; i < size; i++)
            bytes[i] = (uint8_t)random64();
        if (size > 2 && n % 2 == 0)
            bytes[n % 3 != 0 ? 0 : 1] = listed_opcodes[n % ARRAY_SIZE(listed_opcodes)];
        struct decoded d;
        int result = decode_instruction(bytes, size, 2u << n % 3, &d);
        assert_true(result == 0 || result == E_NOSYS || (result == E_AGAIN && size < 15));
        if (result == 0)
            assert_in_range(d.length, 1, size);
        free(bytes);
    }
}

// A few by hand, as Linux has them.
static void known(void **state)
{
    (void)state;
    struct decoded d;
    // movl $0, 0xffffffffff5fc0b0: EOI
    static const uint8_t eoi[] = {0xc7, 0x04, 0x25, 0xb0, 0xc0, 0x5f, 0xff, 0, 0, 0, 0};
    assert_int_equal(decode_instruction(eoi, sizeof(eoi), 8, &d), 0);
    assert_int_equal(d.operation, DECODE_STORE);
    assert_int_equal(d.length, sizeof(eoi));
    assert_int_equal(d.memory_size, 4);
    assert_true(d.has_immediate);
    assert_int_equal(d.immediate, 0);
    // mov %esi, (%rdi)
    static const uint8_t store[] = {0x89, 0x37};
    assert_int_equal(decode_instruction(store, sizeof(store), 8, &d), 0);
    assert_int_equal(d.reg, 6);
    // movq $-1, (%rax)
    static const uint8_t wide[] = {0x48, 0xc7, 0x00, 0xff, 0xff, 0xff, 0xff};
    assert_int_equal(decode_instruction(wide, sizeof(wide), 8, &d), 0);
    assert_true(d.immediate == UINT64_MAX);
    assert_int_equal(d.memory_size, 8);
    // mov %ah, (%rax) and mov %spl, (%rax)
    static const uint8_t high[] = {0x88, 0x20}, low[] = {0x40, 0x88, 0x20};
    assert_int_equal(decode_instruction(high, 2, 8, &d), 0);
    assert_true(d.reg_high_byte && d.reg == 0);
    assert_int_equal(decode_instruction(low, 3, 8, &d), 0);
    assert_true(!d.reg_high_byte && d.reg == 4);
    // 15 prefixes: not an instruction, whatever follows
    uint8_t prefixes[16];
    memset(prefixes, 0x66, sizeof(prefixes));
    assert_int_equal(decode_instruction(prefixes, 14, 8, &d), E_AGAIN);
    assert_int_equal(decode_instruction(prefixes, 15, 8, &d), E_NOSYS);
    assert_int_equal(decode_instruction(prefixes, 16, 8, &d), E_NOSYS);
    // 15 bytes are the longest, also in a buffer that has more
    uint8_t longest[32];
    memset(longest, 0x66, sizeof(longest));
    memcpy(longest + 13, store, sizeof(store));
    assert_int_equal(decode_instruction(longest, sizeof(longest), 8, &d), 0);
    assert_int_equal(d.length, 15);
    longest[13] = 0x66;
    memcpy(longest + 14, store, sizeof(store));
    assert_int_equal(decode_instruction(longest, sizeof(longest), 8, &d), E_NOSYS);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(known),        cmocka_unit_test(systematic),   cmocka_unit_test(every_sib),
        cmocka_unit_test(random_bytes), cmocka_unit_test(heap_buffers),
    };
    return cmocka_run_group_tests_name("decode", tests, set_up, NULL);
}
