// SPDX-License-Identifier: BSD-2-Clause
// CR0, CR4, CR8 and XCR0 of the guest (SDM vol. 3, 2.5 and 2.6; vol. 1, 13.3).
//
// With unrestricted guest PE and PG are free, but Fusor owns PG so that EFER.LMA, the entry control
// and the PDPTEs change together with it; NE and VMXE are fixed by VMX operation; CD and NW would
// slow down the real CPU's caches, so they exist in the shadow only.
#include "kernel/string.h"
#include "vmx/capability.h"
#include "vmx/cpuid.h"
#include "vmx/instructions.h"
#include "vmx/msr.h"
#include "vmx/msrs.h"

#define CR0_PE   (UINT64_C(1) << 0)
#define CR0_ET   (UINT64_C(1) << 4)
#define CR0_NE   (UINT64_C(1) << 5)
#define CR0_NW   (UINT64_C(1) << 29)
#define CR0_CD   (UINT64_C(1) << 30)
#define CR0_PG   (UINT64_C(1) << 31)
#define CR0_FREE UINT64_C(0x5001f) /* PE MP EM TS ET, WP, AM */
#define CR0_ALL  (CR0_FREE | CR0_NE | CR0_NW | CR0_CD | CR0_PG)
#define CR4_PSE  (UINT64_C(1) << 4)
#define CR4_PAE  (UINT64_C(1) << 5)
#define CR4_MCE  (UINT64_C(1) << 6)
#define CR4_PGE  (UINT64_C(1) << 7)
#define CR4_PCID (UINT64_C(1) << 17)
#define CR4_SMEP (UINT64_C(1) << 20)

#define BUSY_TSS_16 3u // type of a segment

#define GP 13u

uint64_t vcpu_cr0_owned(void)
{
    return ~CR0_FREE;
}

// VMXE by VMX operation; MCE because a machine check while it is clear shuts the physical CPU down.
uint64_t vcpu_cr4_forced(void)
{
    return vmx_capability.cr4_fixed0 | CR4_MCE;
}

uint64_t vcpu_cr4_owned(const struct vcpu *v)
{
    return ~(uint64_t)v->cpuid->cr4_allowed | CR4_PAE | CR4_PCID | CR4_MCE;
}

// PAE paging keeps four PDPTEs inside the CPU; with EPT, VM entry takes them from the VMCS (SDM
// vol. 3, 27.3.2.4). Returns false when one has reserved bits set: the guest gets #GP.
static bool load_pdptes(struct vcpu *v, uint64_t cr3)
{
    uint64_t pdpte[4];
    if (v->ops->read_memory(v, gpa(cr3 & 0xffffffe0u), pdpte, sizeof(pdpte)) != 0)
        return false;
    // From the physical address width on all bits are reserved (4.4.1); VM entry looks, too.
    uint64_t reserved = (~UINT64_C(0) << (v->cpuid->extended[8].eax & 0xff)) | 0x1e6;
    for (unsigned i = 0; i < 4; i++)
        if ((pdpte[i] & 1) != 0 && (pdpte[i] & reserved) != 0)
            return false;
    for (unsigned i = 0; i < 4; i++)
        vmcs_write((enum vmcs_field)(VMCS_GUEST_PDPTE0 + 2 * i), pdpte[i]);
    return true;
}

static void set_long_mode(struct vcpu *v, uint64_t efer, bool on)
{
    efer = on ? efer | EFER_LMA : efer & ~(uint64_t)EFER_LMA;
    v->entry_controls =
        on ? v->entry_controls | ENTRYC_IA32E_GUEST : v->entry_controls & ~ENTRYC_IA32E_GUEST;
    vmcs_write(VMCS_GUEST_EFER, efer);
    vmcs_write(VMCS_ENTRY_CONTROLS, v->entry_controls);
}

static bool write_cr0(struct vcpu *v, uint64_t value)
{
    uint64_t old = vmcs_read(VMCS_CR0_SHADOW) & ~CR0_FREE;
    old |= vmcs_read(VMCS_GUEST_CR0) & CR0_FREE;
    if (value >> 32 != 0)
        return false;
    value = (value & CR0_ALL) | CR0_ET;
    if (((value & CR0_PG) != 0 && (value & CR0_PE) == 0) ||
        ((value & CR0_NW) != 0 && (value & CR0_CD) == 0))
        return false;
    uint64_t efer = vmcs_read(VMCS_GUEST_EFER);
    uint64_t cr4 = vmcs_read(VMCS_GUEST_CR4);
    bool paging_on = (value & CR0_PG) != 0 && (old & CR0_PG) == 0;
    bool paging_off = (value & CR0_PG) == 0 && (old & CR0_PG) != 0;
    if (paging_on && (efer & EFER_LME) != 0) {
        bool cs_long = vmcs_read(VMCS_GUEST_CS_ACCESS) >> 13 & 1;
        bool tss_16_bit = (vmcs_read(VMCS_GUEST_TR_ACCESS) & 0xf) == BUSY_TSS_16;
        if ((cr4 & CR4_PAE) == 0 || cs_long || tss_16_bit)
            return false;
        set_long_mode(v, efer, true);
    } else if (paging_on && (cr4 & CR4_PAE) != 0) {
        if (!load_pdptes(v, vmcs_read(VMCS_GUEST_CR3)))
            return false;
    }
    if (paging_off) {
        if ((cr4 & CR4_PCID) != 0 || ((efer & EFER_LMA) != 0 && vcpu_code_size(v) == 8))
            return false;
        set_long_mode(v, efer, false);
    }
    vmcs_write(VMCS_CR0_SHADOW, value);
    vmcs_write(VMCS_GUEST_CR0, (value & ~(CR0_CD | CR0_NW)) | CR0_NE);
    if (paging_on || paging_off)
        vmx_invvpid(v->vpid); // hardware flushes when PG changes (4.10.4.1)
    return true;
}

static bool write_cr4(struct vcpu *v, uint64_t value)
{
    uint64_t old = vmcs_read(VMCS_GUEST_CR4);
    if ((value & ~(uint64_t)v->cpuid->cr4_allowed) != 0)
        return false;
    bool long_mode = (vmcs_read(VMCS_GUEST_EFER) & EFER_LMA) != 0;
    if (long_mode && (value & CR4_PAE) == 0)
        return false;
    if ((value & CR4_PCID) != 0 && (old & CR4_PCID) == 0 &&
        (!long_mode || (vmcs_read(VMCS_GUEST_CR3) & 0xfff) != 0))
        return false;
    bool paging = (vmcs_read(VMCS_GUEST_CR0) & CR0_PG) != 0;
    uint64_t flushing = (value ^ old) & (CR4_PSE | CR4_PAE | CR4_PGE | CR4_PCID | CR4_SMEP);
    if (paging && !long_mode && (value & CR4_PAE) != 0 && flushing != 0 &&
        !load_pdptes(v, vmcs_read(VMCS_GUEST_CR3)))
        return false;
    vmcs_write(VMCS_CR4_SHADOW, value);
    vmcs_write(VMCS_GUEST_CR4, value | vcpu_cr4_forced());
    if (flushing != 0)
        vmx_invvpid(v->vpid);
    return true;
}

static bool move_to_cr(struct vcpu *v, unsigned cr, uint64_t value)
{
    switch (cr) {
    case 0:
        return write_cr0(v, value);
    case 4:
        return write_cr4(v, value);
    case 8:
        if ((value & ~UINT64_C(0xf)) != 0)
            return false;
        v->ops->set_cr8(v, value);
        v->recheck = 1;
        return true;
    default:
        return false;
    }
}

enum vcpu_result vcpu_exit_cr(struct vcpu *v)
{
    uint64_t q = vmcs_read(VMCS_EXIT_QUALIFICATION);
    unsigned cr = q & 0xf;
    unsigned reg = q >> 8 & 0xf;
    uint64_t cr0;
    bool good = true;
    switch (q >> 4 & 3) {
    case 0: // MOV to CR
        good = move_to_cr(v, cr, vcpu_gpr(v, reg));
        break;
    case 1: // MOV from CR8; the others do not exit
        if (cr != 8) {
            v->ops->crashed(v, "unexpected exit for a read of a control register");
            return VCPU_STOP;
        }
        vcpu_set_gpr(v, reg, v->ops->get_cr8(v));
        break;
    case 2: // CLTS
        vmcs_write(VMCS_GUEST_CR0, vmcs_read(VMCS_GUEST_CR0) & ~UINT64_C(8));
        vmcs_write(VMCS_CR0_SHADOW, vmcs_read(VMCS_CR0_SHADOW) & ~UINT64_C(8));
        break;
    default: // LMSW sets PE, MP, EM, TS, and cannot clear PE
        cr0 = (vmcs_read(VMCS_CR0_SHADOW) & ~CR0_FREE) | (vmcs_read(VMCS_GUEST_CR0) & CR0_FREE);
        good = write_cr0(v, (cr0 & ~UINT64_C(0xe)) | (q >> 16 & 0xf));
        break;
    }
    if (good)
        vcpu_advance(v, vmcs_read32(VMCS_EXIT_INSTRUCTION_LENGTH));
    else
        vcpu_inject_exception(v, GP, 0);
    return VCPU_RESUME;
}

enum vcpu_result vcpu_exit_xsetbv(struct vcpu *v)
{
    uint64_t value = (uint32_t)v->gpr[REG_RAX] | v->gpr[REG_RDX] << 32;
    if ((uint32_t)v->gpr[REG_RCX] != 0 || vcpu_cpl(v) != 0 ||
        !cpuid_policy_xcr0_valid(v->cpuid, value)) {
        vcpu_inject_exception(v, GP, 0);
        return VCPU_RESUME;
    }
    v->xcr0 = value;
    __asm__ volatile("xsetbv" ::"c"(0), "a"((uint32_t)value), "d"((uint32_t)(value >> 32)));
    vcpu_advance(v, vmcs_read32(VMCS_EXIT_INSTRUCTION_LENGTH));
    return VCPU_RESUME;
}
