// SPDX-License-Identifier: BSD-2-Clause
// Any bytes through the decoder and the emulation: the first byte chooses the mode and the length
// of the buffer, so that ASan sees a read beyond it.

// sources: devices/decode.c devices/emulate.c

#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <Zydis/Zydis.h>

#include "devices/emulate.h"
#include "kernel/error.h"

// libs: -lZydis

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void require(int condition)
{
    if (!condition)
        abort();
}

static uint64_t load(void *context, unsigned size)
{
    require(size == 1 || size == 2 || size == 4 || size == 8);
    return *(uint64_t *)context;
}

static void store(void *context, unsigned size, uint64_t value)
{
    require(size == 1 || size == 2 || size == 4 || size == 8);
    require(size == 8 || value >> (8 * size) == 0);
    *(uint64_t *)context = value;
}

static void compare_length(const uint8_t *bytes, size_t size, unsigned mode, unsigned length)
{
    ZydisDecoder decoder;
    ZydisDecodedInstruction instruction;
    ZydisDecodedOperand operands[ZYDIS_MAX_OPERAND_COUNT];
    if (mode == 8)
        ZydisDecoderInit(&decoder, ZYDIS_MACHINE_MODE_LONG_64, ZYDIS_STACK_WIDTH_64);
    else if (mode == 4)
        ZydisDecoderInit(&decoder, ZYDIS_MACHINE_MODE_LEGACY_32, ZYDIS_STACK_WIDTH_32);
    else
        ZydisDecoderInit(&decoder, ZYDIS_MACHINE_MODE_LEGACY_16, ZYDIS_STACK_WIDTH_16);
    require(ZYAN_SUCCESS(ZydisDecoderDecodeFull(&decoder, bytes, size, &instruction, operands)));
    require(instruction.length == length);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (size < 1)
        return 0;
    unsigned mode = 2u << data[0] % 3;
    size = MIN(size - 1, (size_t)(data[0] / 3 % 20));
    uint8_t *bytes = malloc(size + (size == 0));
    require(bytes != NULL);
    memcpy(bytes, data + 1, size);
    struct decoded d;
    int result = decode_instruction(bytes, size, mode, &d);
    require(result == 0 || result == E_NOSYS || (result == E_AGAIN && size < 15));
    if (result == 0) {
        require(d.length >= 1 && d.length <= MIN(size, (size_t)15));
        require(d.reg < 16 && (!d.reg_high_byte || d.reg < 4));
        compare_length(bytes, size, mode, d.length);
        uint64_t memory = 0x8899aabbccddeeff;
        struct emulate_registers r = {.gpr = {[1] = 2}, .rflags = 2};
        for (unsigned round = 0; emulate_mmio(&d, &r, &memory, load, store) == E_AGAIN; round++)
            require(round < 2);
        require((r.rflags & ~UINT64_C(0x8d5)) == 2);
    }
    free(bytes);
    return 0;
}
