// SPDX-License-Identifier: BSD-2-Clause
// Device memory: fetches, decodes and executes the guest's instruction.
#include "devices/mmio.h"

#include "devices/decode.h"
#include "devices/emulate.h"
#include "kernel/error.h"
#include "kernel/format.h"

#define MAX_INSTRUCTION 15u

struct access {
    struct vm *vm;
    struct vcpu *v;
    gpa_t address;
    // MOVS: the operand that is no device memory; `memory_store` says which one that is.
    bool memory_load, memory_store;
    uint64_t linear;
    int status; // of its access, and for E_FAULT code and address
    uint32_t code;
    uint64_t fault;
};

static uint64_t load(void *context, unsigned size)
{
    struct access *a = context;
    uint64_t value = 0;
    if (a->memory_load) {
        a->status = vcpu_read_linear(a->v, a->linear, &value, size, false, &a->code, &a->fault);
        return value;
    }
    spin_lock(&a->vm->device_lock);
    a->vm->accessor = a->v;
    value = bus_mmio_load(&a->vm->bus, a->address, size);
    vm_update_timer(a->vm, a->v);
    spin_unlock(&a->vm->device_lock);
    return value;
}

static void store(void *context, unsigned size, uint64_t value)
{
    struct access *a = context;
    if (a->memory_store)
        a->status = vcpu_write_linear(a->v, a->linear, &value, size, &a->code, &a->fault);
    if (a->memory_store || a->status != 0)
        return;
    spin_lock(&a->vm->device_lock);
    a->vm->accessor = a->v;
    bus_mmio_store(&a->vm->bus, a->address, size, value);
    vm_update_timer(a->vm, a->v);
    spin_unlock(&a->vm->device_lock);
}

static enum vcpu_result crash(struct vcpu *v, gpa_t address, const char *what, const uint8_t *bytes)
{
    char why[VM_WHY_MAX];
    format_text(why, sizeof(why), "%s on device memory at %#lx (%02x %02x %02x %02x)", what,
                address.raw, bytes[0], bytes[1], bytes[2], bytes[3]);
    v->ops->crashed(v, why);
    return VCPU_STOP;
}

// Reads the instruction; one near the end of its page is read only as far as it goes, so that the
// page behind it is touched only when the instruction reaches into it.
static int fetch(struct vcpu *v, uint8_t *bytes, struct decoded *d, uint32_t *code, uint64_t *where)
{
    uint64_t linear = vcpu_linear_rip(v);
    unsigned mode = vcpu_code_size(v);
    size_t first = MIN((size_t)MAX_INSTRUCTION, (size_t)(PAGE_SIZE - (linear & PAGE_MASK)));
    int status = vcpu_read_linear(v, linear, bytes, first, true, code, where);
    if (status != 0)
        return status;
    status = decode_instruction(bytes, first, mode, d);
    if (status != E_AGAIN || first == MAX_INSTRUCTION)
        return status == E_AGAIN ? E_NOSYS : status;
    status = vcpu_read_linear(v, linear + first, bytes + first, MAX_INSTRUCTION - first, true, code,
                              where);
    if (status != 0)
        return status;
    status = decode_instruction(bytes, MAX_INSTRUCTION, mode, d);
    return status == E_AGAIN ? E_NOSYS : status;
}

// Which operand of MOVS the device is said by the violation; the other one is memory.
static void find_memory_operand(struct access *a, const struct decoded *d,
                                const struct emulate_registers *r, bool write)
{
    uint64_t offset = r->gpr[write ? REG_RSI : REG_RDI];
    if (d->address_size < 8)
        offset &= (UINT64_C(1) << 8 * d->address_size) - 1;
    a->linear = vcpu_segment_base(a->v, write ? d->segment : DECODE_ES) + offset;
    if (vcpu_code_size(a->v) != 8)
        a->linear &= 0xffffffffu;
    a->memory_load = write;
    a->memory_store = !write;
}

enum vcpu_result mmio_execute(struct vm *vm, struct vcpu *v, gpa_t address, bool write)
{
    uint8_t bytes[MAX_INSTRUCTION] = {0};
    struct decoded d;
    uint32_t code = 0;
    uint64_t where = 0;
    int status = fetch(v, bytes, &d, &code, &where);
    if (status == E_FAULT) {
        // The guest changed the page tables since the CPU fetched it: the fetch faults now.
        vcpu_inject_page_fault(v, where, code);
        return VCPU_RESUME;
    }
    if (status == E_NOMEM)
        return VCPU_WAIT;
    if (status != 0)
        return crash(v, address, "unsupported instruction", bytes);
    if ((address.raw & PAGE_MASK) + d.memory_size > PAGE_SIZE)
        return crash(v, address, "access across a page", bytes);
    struct emulate_registers r;
    for (unsigned i = 0; i < 16; i++)
        r.gpr[i] = v->gpr[i];
    r.gpr[REG_RSP] = vcpu_gpr(v, REG_RSP);
    r.rflags = vcpu_rflags(v);
    uint64_t rflags = r.rflags;
    struct access a = {.vm = vm, .v = v, .address = address};
    if (d.move)
        find_memory_operand(&a, &d, &r, write);
    uint64_t rsp = r.gpr[REG_RSP];
    status = emulate_mmio(&d, &r, &a, load, store);
    if (a.status == E_FAULT) {
        vcpu_inject_page_fault(v, a.fault, a.code);
        return VCPU_RESUME;
    }
    if (a.status == E_NOMEM)
        return VCPU_WAIT;
    if (a.status != 0)
        return crash(v, address, "move between devices", bytes);
    for (unsigned i = 0; i < 16; i++)
        v->gpr[i] = r.gpr[i];
    if (r.gpr[REG_RSP] != rsp)
        vcpu_set_gpr(v, REG_RSP, r.gpr[REG_RSP]);
    if (r.rflags != rflags)
        vcpu_set_rflags(v, r.rflags);
    vcpu_advance(v, status == 0 ? d.length : 0); // a REP goes on: the instruction runs again
    return VCPU_RESUME;
}
