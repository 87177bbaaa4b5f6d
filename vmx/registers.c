// SPDX-License-Identifier: BSD-2-Clause
// Access to a loaded vCPU's registers, and to guest memory by linear address.
#include <arch/cpu.h>

#include "kernel/error.h"
#include "kernel/string.h"
#include "vmx/instructions.h"
#include "vmx/msrs.h"
#include "vmx/advance.h"
#include "vmx/vcpu.h"

uint64_t vcpu_rip(const struct vcpu *v)
{
    (void)v;
    return vmcs_read(VMCS_GUEST_RIP);
}

uint64_t vcpu_linear_rip(const struct vcpu *v)
{
    uint64_t rip = vmcs_read(VMCS_GUEST_RIP);
    // 64-bit code takes its base for 0, whatever the descriptor said (SDM vol. 3, 3.2.4).
    if (vcpu_code_size(v) == 8)
        return rip;
    return (vmcs_read(VMCS_GUEST_CS_BASE) + rip) & 0xffffffffu;
}

uint64_t vcpu_segment_base(const struct vcpu *v, unsigned segment)
{
    if (segment < 4 && vcpu_code_size(v) == 8)
        return 0;
    // The fields of the six stand in encoding order.
    return vmcs_read((enum vmcs_field)(VMCS_GUEST_ES_BASE + 2 * segment));
}

uint64_t vcpu_rflags(const struct vcpu *v)
{
    (void)v;
    return vmcs_read(VMCS_GUEST_RFLAGS);
}

void vcpu_set_rflags(struct vcpu *v, uint64_t rflags)
{
    (void)v;
    vmcs_write(VMCS_GUEST_RFLAGS, rflags);
}

uint64_t vcpu_gpr(const struct vcpu *v, unsigned reg)
{
    return reg == REG_RSP ? vmcs_read(VMCS_GUEST_RSP) : v->gpr[reg & 15];
}

void vcpu_set_gpr(struct vcpu *v, unsigned reg, uint64_t value)
{
    if (reg == REG_RSP)
        vmcs_write(VMCS_GUEST_RSP, value);
    else
        v->gpr[reg & 15] = value;
}

void vcpu_advance(struct vcpu *v, unsigned length)
{
    vcpu_advance_fast(v, length);
}

unsigned vcpu_cpl(const struct vcpu *v)
{
    (void)v;
    return vmcs_read(VMCS_GUEST_SS_ACCESS) >> 5 & 3; // SS.DPL is the CPL (25.4.1)
}

unsigned vcpu_code_size(const struct vcpu *v)
{
    uint64_t access = vmcs_read(VMCS_GUEST_CS_ACCESS);
    if ((v->entry_controls & ENTRYC_IA32E_GUEST) != 0 && (access >> 13 & 1) != 0)
        return 8;
    return (access >> 14 & 1) != 0 ? 4 : 2;
}

#define PTE_PRESENT UINT64_C(1)
#define PTE_WRITE   UINT64_C(2)
#define PTE_USER    UINT64_C(4)
#define PTE_LARGE   UINT64_C(0x80)
#define PTE_NX      (UINT64_C(1) << 63)
#define PTE_FRAME   UINT64_C(0x000ffffffffff000)
#define PF_PRESENT  1u
#define PF_WRITE    2u
#define PF_USER     4u
#define PF_FETCH    16u

// One translation as the guest's paging does it (SDM vol. 3, chapter 4), without setting A and D
// bits. 4-level, PAE and 32-bit paging.
static int translate(struct vcpu *v, uint64_t linear, unsigned access, gpa_t *out, uint32_t *code)
{
    uint64_t cr0 = vmcs_read(VMCS_GUEST_CR0);
    if ((cr0 >> 31 & 1) == 0) {
        *out = gpa(linear & 0xffffffffu);
        return 0;
    }
    uint64_t cr4 = vmcs_read(VMCS_GUEST_CR4);
    uint64_t efer = vmcs_read(VMCS_GUEST_EFER);
    bool wide = (cr4 >> 5 & 1) != 0;
    unsigned index_bits = wide ? 9 : 10;
    unsigned levels = (efer & EFER_LMA) != 0 ? 4 : wide ? 3 : 2;
    uint64_t table = vmcs_read(VMCS_GUEST_CR3) & (wide && levels == 3 ? 0xffffffe0u : PTE_FRAME);
    uint64_t rights = PTE_WRITE | PTE_USER;
    bool nx = false;
    for (unsigned level = levels; level > 0; level--) {
        unsigned shift = PAGE_SHIFT + (level - 1) * index_bits;
        uint64_t index =
            linear >> shift & ((1u << (level == 3 && levels == 3 ? 2 : index_bits)) - 1);
        uint64_t entry = 0;
        int status =
            v->ops->read_memory(v, gpa(table + index * (wide ? 8 : 4)), &entry, wide ? 8 : 4);
        if (status != 0)
            return status;
        if ((entry & PTE_PRESENT) == 0) {
            *code = access & ~PF_PRESENT;
            return E_FAULT;
        }
        if (!(levels == 3 && level == 3)) // PDPTEs of PAE carry no rights
            rights &= entry;
        nx |= wide && (efer & EFER_NXE) != 0 && (entry & PTE_NX) != 0;
        bool large = level > 1 && (entry & PTE_LARGE) != 0 &&
                     (level == 2 ? wide || (cr4 >> 4 & 1) : level == 3 && levels == 4);
        if (level == 1 || large) {
            uint64_t offset = (UINT64_C(1) << shift) - 1;
            uint64_t frame = entry & PTE_FRAME & ~offset;
            if (!wide && large) // PSE-36
                frame = (entry & 0xffc00000u) | (entry >> 13 & 0xff) << 32;
            bool user = (access & PF_USER) != 0;
            bool denied = (user && (rights & PTE_USER) == 0) ||
                          ((access & PF_WRITE) != 0 && (rights & PTE_WRITE) == 0 &&
                           (user || (cr0 >> 16 & 1) != 0)) ||
                          ((access & PF_FETCH) != 0 && nx);
            if (denied) {
                *code = access | PF_PRESENT;
                return E_FAULT;
            }
            *out = gpa(frame | (linear & offset));
            return 0;
        }
        table = entry & PTE_FRAME;
    }
    return E_FAULT;
}

static int access_linear(struct vcpu *v, uint64_t linear, void *buffer, size_t size,
                         unsigned access, uint32_t *fault_code, uint64_t *fault_address)
{
    uint8_t *p = buffer;
    if (vcpu_cpl(v) == 3)
        access |= PF_USER;
    while (size > 0) {
        size_t piece = MIN(size, (size_t)(PAGE_SIZE - (linear & PAGE_MASK)));
        gpa_t address;
        int status = translate(v, linear, access, &address, fault_code);
        if (status == E_FAULT)
            *fault_address = linear;
        if (status == 0)
            status = (access & PF_WRITE) != 0 ? v->ops->write_memory(v, address, p, piece)
                                              : v->ops->read_memory(v, address, p, piece);
        if (status != 0)
            return status;
        p += piece;
        linear += piece;
        size -= piece;
    }
    return 0;
}

int vcpu_read_linear(struct vcpu *v, uint64_t linear, void *to, size_t size, bool fetch,
                     uint32_t *fault_code, uint64_t *fault_address)
{
    return access_linear(v, linear, to, size, fetch ? PF_FETCH : 0, fault_code, fault_address);
}

int vcpu_write_linear(struct vcpu *v, uint64_t linear, const void *from, size_t size,
                      uint32_t *fault_code, uint64_t *fault_address)
{
    uint8_t copy[16]; // callers write single operands
    if (size > sizeof(copy))
        return E_RANGE;
    memcpy(copy, from, size);
    return access_linear(v, linear, copy, size, PF_WRITE, fault_code, fault_address);
}
