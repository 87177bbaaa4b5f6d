// SPDX-License-Identifier: BSD-2-Clause
// IN, OUT, INS and OUTS (SDM vol. 3, table 28-5). A string instruction does one element per exit:
// the repeat count stays bounded, and an interrupt can come in between as on hardware.
#include "vmx/port_io.h"

#include "kernel/error.h"
#include "kernel/string.h"
#include "vmx/advance.h"
#include "vmx/instructions.h"

#define RFLAGS_DF (1u << 10)

static void advance(struct vcpu *v)
{
    vcpu_advance_fast(v, vmcs_read32(VMCS_EXIT_INSTRUCTION_LENGTH));
}

// Interrupts and traps come in between iterations, too (SDM vol. 2, REP).
static void iterate(struct vcpu *v)
{
    vcpu_advance_fast(v, 0);
}

static uint64_t address_mask(unsigned size_code)
{
    return size_code == 0 ? 0xffff : size_code == 1 ? 0xffffffffu : UINT64_MAX;
}

// Changes the part of a register that the address size covers; a 32-bit write clears the upper
// half.
static void step(struct vcpu *v, unsigned reg, uint64_t delta, uint64_t mask)
{
    uint64_t old = v->gpr[reg];
    uint64_t value = (old + delta) & mask;
    v->gpr[reg] = mask == 0xffff ? (old & ~mask) | value : value;
}

static enum vcpu_result string_io(struct vcpu *v, uint64_t q)
{
    unsigned size = (unsigned)(q & 7) + 1;
    uint16_t port = (uint16_t)(q >> 16);
    bool in = (q >> 3 & 1) != 0;
    bool repeat = (q >> 5 & 1) != 0;
    uint64_t mask = address_mask(vmcs_read32(VMCS_EXIT_INSTRUCTION_INFO) >> 7 & 7);
    if (repeat && (v->gpr[REG_RCX] & mask) == 0) {
        advance(v);
        return VCPU_RESUME;
    }
    uint64_t linear = vmcs_read(VMCS_GUEST_LINEAR_ADDRESS);
    uint32_t value = 0, code = 0;
    uint64_t fault = 0;
    int status;
    if (in) {
        // The destination is probed first, by writing back what is there, so that neither a fault
        // nor a lack of memory swallows what the port gives.
        status = vcpu_read_linear(v, linear, &value, size, false, &code, &fault);
        if (status == 0)
            status = vcpu_write_linear(v, linear, &value, size, &code, &fault);
        if (status == 0) {
            value = v->ops->pio_in(v, port, size);
            status = vcpu_write_linear(v, linear, &value, size, &code, &fault);
        }
    } else {
        status = vcpu_read_linear(v, linear, &value, size, false, &code, &fault);
        if (status == 0)
            v->ops->pio_out(v, port, size, value);
    }
    if (status == E_FAULT) {
        vcpu_inject_page_fault(v, fault, code | (in ? 2u : 0u));
        return VCPU_RESUME;
    }
    if (status == E_NOMEM)
        return VCPU_WAIT;
    if (status != 0) {
        v->ops->crashed(v, "string I/O to device memory");
        return VCPU_STOP;
    }
    uint64_t delta = (vcpu_rflags(v) & RFLAGS_DF) != 0 ? 0 - (uint64_t)size : size;
    step(v, in ? REG_RDI : REG_RSI, delta, mask);
    if (repeat)
        step(v, REG_RCX, UINT64_MAX, mask);
    if (!repeat || (v->gpr[REG_RCX] & mask) == 0)
        advance(v);
    else
        iterate(v);
    return VCPU_RESUME;
}

enum vcpu_result vcpu_exit_io(struct vcpu *v)
{
    uint64_t q = vmcs_read(VMCS_EXIT_QUALIFICATION);
    if (__builtin_expect((q >> 4 & 1) != 0, 0))
        return string_io(v, q);
    unsigned size = (unsigned)(q & 7) + 1;
    uint16_t port = (uint16_t)(q >> 16);
    if ((q >> 3 & 1) != 0) {
        uint32_t value = v->ops->pio_in(v, port, size);
        if (size == 4)
            v->gpr[REG_RAX] = value;
        else if (size == 2)
            v->gpr[REG_RAX] = (v->gpr[REG_RAX] & ~UINT64_C(0xffff)) | (uint16_t)value;
        else
            v->gpr[REG_RAX] = (v->gpr[REG_RAX] & ~UINT64_C(0xff)) | (uint8_t)value;
    } else {
        uint32_t value = (uint32_t)v->gpr[REG_RAX];
        v->ops->pio_out(v, port, size, size == 4 ? value : value & ((1u << 8 * size) - 1));
    }
    advance(v);
    return VCPU_RESUME;
}
