// SPDX-License-Identifier: BSD-2-Clause
// Guest MSRs: a list of what is allowed. Everything else is #GP for the guest, counted, and logged
// once per MSR. (On Bochs unknown MSRs read 0 instead of faulting, so the list must deny by
// itself.)
#include "vmx/msr.h"

#include "kernel/error.h"
#include "kernel/init.h"
#include "kernel/frames.h"
#include "kernel/log.h"
#include "kernel/memory.h"
#include "kernel/string.h"
#include "kernel/time.h"
#include "vmx/capability.h"
#include "vmx/cpuid.h"
#include "vmx/advance.h"
#include "vmx/instructions.h"
#include "vmx/msrs.h"

// MSRs the guest uses without an exit: kept in the VMCS, or swapped when the vCPU is loaded.
static const uint32_t passed[] = {
    MSR_SYSENTER_CS, MSR_SYSENTER_ESP, MSR_SYSENTER_EIP, MSR_PAT,     MSR_STAR,           MSR_LSTAR,
    MSR_CSTAR,       MSR_SFMASK,       MSR_FS_BASE,      MSR_GS_BASE, MSR_KERNEL_GS_BASE,
};

// With virtual-interrupt delivery in x2APIC mode the CPU itself answers these (SDM vol. 3, 30.5);
// without it they would reach the machine's own APIC.
#define X2APIC_TPR      (MSR_X2APIC_FIRST + 0x08u)
#define X2APIC_EOI      (MSR_X2APIC_FIRST + 0x0bu)
#define X2APIC_SELF_IPI (MSR_X2APIC_FIRST + 0x3fu)

static hpa_t bitmaps[2][2]; // with TSC_AUX, with APIC virtualization

// The page: read bits of MSRs 0..0x1fff, of 0xc0000000.., then the write bits (SDM vol. 3, 25.6.9).
static void pass(uint8_t *page, uint32_t msr, bool read, bool write)
{
    uint32_t index = msr & 0x1fffu;
    uint32_t base = msr >= 0xc0000000u ? 1024 : 0;
    if (read)
        page[base + index / 8] &= (uint8_t) ~(1u << index % 8);
    if (write)
        page[2048 + base + index / 8] &= (uint8_t) ~(1u << index % 8);
}

static int make_bitmaps(const struct boot_info *info)
{
    (void)info;
    for (unsigned i = 0; i < 4; i++) {
        bool rdtscp = (i & 1) != 0, apicv = (i & 2) != 0;
        hfn_t frame;
        if (frame_alloc(FRAME_FUSOR, 0, 0, NULL, &frame) != 0)
            return E_NOMEM;
        uint8_t *page = hfn_to_pointer(frame);
        memset(page, 0xff, PAGE_SIZE);
        for (unsigned k = 0; k < ARRAY_SIZE(passed); k++)
            pass(page, passed[k], true, true);
        pass(page, MSR_TSC, true, false);
        pass(page, MSR_EFER, true, false);
        if (rdtscp)
            pass(page, MSR_TSC_AUX, true, true);
        if (apicv) {
            pass(page, X2APIC_TPR, true, true);
            pass(page, X2APIC_EOI, false, true);
            pass(page, X2APIC_SELF_IPI, false, true);
        }
        bitmaps[rdtscp][apicv] = hfn_to_hpa(frame);
    }
    return 0;
}
INIT_HOOK(INIT_VMX, make_bitmaps);

hpa_t vcpu_msr_bitmap(bool rdtscp, bool apicv)
{
    return bitmaps[rdtscp][apicv];
}

// The rooms above answer for these.
static bool is_device_msr(uint32_t msr)
{
    return msr == MSR_APIC_BASE || msr == MSR_TSC_DEADLINE ||
           (msr >= MSR_X2APIC_FIRST && msr <= MSR_X2APIC_LAST) ||
           (msr >= MSR_KVM_FIRST && msr <= MSR_KVM_LAST);
}

// 250h, 258h, 259h, 268h..26fh: index into mtrr_fixed, or -1.
static int fixed_mtrr(uint32_t msr)
{
    if (msr == MSR_MTRR_FIX_64K)
        return 0;
    if (msr == 0x258 || msr == 0x259)
        return (int)(msr - 0x258 + 1);
    if (msr >= 0x268 && msr <= MSR_MTRR_FIX_LAST)
        return (int)(msr - 0x268 + 3);
    return -1;
}

// Pointer to the storage of an MTRR; they have no effect: guest RAM is write-back with ignore-PAT.
static uint64_t *mtrr(struct vcpu *v, uint32_t msr)
{
    if (msr < MSR_MTRR_PHYS_BASE0 || msr > MSR_MTRR_DEF_TYPE)
        return NULL;
    if (msr == MSR_MTRR_DEF_TYPE)
        return &v->mtrr_def_type;
    if (msr >= MSR_MTRR_PHYS_BASE0 && msr < MSR_MTRR_PHYS_BASE0 + 2 * VCPU_MTRR_VARIABLE)
        return &v->mtrr_variable[msr - MSR_MTRR_PHYS_BASE0];
    int fixed = fixed_mtrr(msr);
    return fixed >= 0 ? &v->mtrr_fixed[fixed] : NULL;
}

static int read_msr(struct vcpu *v, uint32_t msr, uint64_t *value)
{
    if (is_device_msr(msr)) {
        int status = v->ops->read_msr(v, msr, value);
        if (status == 0 && msr == MSR_TSC_DEADLINE && *value != 0)
            *value += v->tsc_adjust; // the LAPIC counts in the VM's clock
        return status;
    }
    uint64_t *storage = mtrr(v, msr);
    if (storage != NULL) {
        *value = *storage;
        return 0;
    }
    switch (msr) {
    case MSR_FEATURE_CONTROL:
        *value = 1; // locked, no VMX
        return 0;
    case MSR_TSC_ADJUST:
        *value = v->tsc_adjust;
        return 0;
    case MSR_BIOS_SIGN_ID:
        *value = UINT64_C(1) << 32;
        return 0;
    case MSR_MTRR_CAP:
        *value = 0x500 | VCPU_MTRR_VARIABLE; // fixed range and write-combining
        return 0;
    case MSR_MISC_ENABLE:
        *value = v->misc_enable | 3u << 11; // no BTS, no PEBS
        return 0;
    case MSR_ARCH_CAPABILITIES:
        if ((v->cpuid->features[0].edx >> 29 & 1) == 0)
            return E_INVAL;
        // RDCL_NO, SKIP_L1DFL, SSB_NO, MDS_NO, PSCHANGE_NO, TAA_NO: facts about the CPU, no
        // switches.
        *value = vmx_capability.arch_capabilities &
                 (1u << 0 | 1u << 3 | 1u << 4 | 1u << 5 | 1u << 6 | 1u << 8);
        return 0;
    case 0x34: // SMI count
    case MSR_PLATFORM_ID:
    case 0xce: // PLATFORM_INFO
    case MSR_MISC_FEATURES:
    case MSR_MCG_CAP: // no banks
    case MSR_MCG_STATUS:
    case 0x1d9: // DEBUGCTL
        *value = 0;
        return 0;
    case MSR_TSC_AUX:
    default:
        return E_INVAL;
    }
}

// SDM vol. 3, 2.2.1 and 4.1.1. LMA follows CR0.PG and LME.
static int write_efer(uint64_t value)
{
    uint64_t old = vmcs_read(VMCS_GUEST_EFER);
    uint64_t allowed = EFER_SCE | EFER_LME | EFER_LMA | EFER_NXE;
    if ((value & ~allowed) != 0)
        return E_INVAL;
    if (((value ^ old) & EFER_LME) != 0 && (vmcs_read(VMCS_GUEST_CR0) >> 31 & 1) != 0)
        return E_INVAL;
    vmcs_write(VMCS_GUEST_EFER, (value & ~(uint64_t)EFER_LMA) | (old & EFER_LMA));
    return 0;
}

static bool valid_memory_type(uint64_t type)
{
    return type == 0 || type == 1 || type == 4 || type == 5 || type == 6;
}

static int write_mtrr(uint32_t msr, uint64_t *storage, uint64_t value)
{
    if (msr == MSR_MTRR_DEF_TYPE) {
        if ((value & ~UINT64_C(0xcff)) != 0 || !valid_memory_type(value & 0xff))
            return E_INVAL;
    } else if (fixed_mtrr(msr) >= 0) {
        for (unsigned i = 0; i < 8; i++)
            if (!valid_memory_type(value >> 8 * i & 0xff))
                return E_INVAL;
    } else if ((msr & 1) == 0 && !valid_memory_type(value & 0xff)) {
        return E_INVAL;
    }
    *storage = value;
    return 0;
}

// "One TSC offset per VM": a guest that moves a TSC moves only what this vCPU reads.
static void set_tsc_adjust(struct vcpu *v, uint64_t adjust)
{
    v->tsc_offset += adjust - v->tsc_adjust;
    v->tsc_adjust = adjust;
    vmcs_write(VMCS_TSC_OFFSET, v->tsc_offset);
}

static int write_msr(struct vcpu *v, uint32_t msr, uint64_t value)
{
    if (is_device_msr(msr)) {
        if (msr == MSR_TSC_DEADLINE && value != 0)
            value = value > v->tsc_adjust || (int64_t)v->tsc_adjust < 0 ? value - v->tsc_adjust : 1;
        if (msr == MSR_APIC_BASE)
            v->apic_mode_written = v->vapic != NULL;
        return v->ops->write_msr(v, msr, value);
    }
    uint64_t *storage = mtrr(v, msr);
    if (storage != NULL)
        return write_mtrr(msr, storage, value);
    switch (msr) {
    case MSR_EFER:
        return write_efer(value);
    case MSR_TSC:
        set_tsc_adjust(v, v->tsc_adjust + value - (time_tsc() + v->tsc_offset));
        return 0;
    case MSR_TSC_ADJUST:
        set_tsc_adjust(v, value);
        return 0;
    case MSR_MISC_ENABLE:
        v->misc_enable = value & 1;
        return 0;
    case MSR_BIOS_SIGN_ID: // written 0 before it is read
    case MSR_MCG_STATUS:
        return 0;
    case MSR_MISC_FEATURES:
    case 0x1d9: // DEBUGCTL: no branch recording for guests
        return value == 0 ? 0 : E_INVAL;
    default:
        return E_INVAL;
    }
}

static void count_unknown(struct vcpu *v, uint32_t msr, bool write)
{
    v->unknown_msrs++;
    for (uint32_t i = 0; i < v->logged_msr_count; i++)
        if (v->logged_msrs[i] == msr)
            return;
    if (v->logged_msr_count == ARRAY_SIZE(v->logged_msrs))
        return;
    v->logged_msrs[v->logged_msr_count++] = msr;
    log_info("%s: %s of MSR %#x: not allowed, #GP", v->entity.name, write ? "write" : "read", msr);
}

enum vcpu_result vcpu_exit_rdmsr(struct vcpu *v)
{
    uint32_t msr = (uint32_t)v->gpr[REG_RCX];
    uint64_t value = 0;
    if (read_msr(v, msr, &value) != 0) {
        count_unknown(v, msr, false);
        vcpu_inject_exception(v, 13, 0);
        return VCPU_RESUME;
    }
    v->gpr[REG_RAX] = (uint32_t)value;
    v->gpr[REG_RDX] = value >> 32;
    vcpu_advance_fast(v, 2);
    return VCPU_RESUME;
}

enum vcpu_result vcpu_exit_wrmsr(struct vcpu *v)
{
    uint32_t msr = (uint32_t)v->gpr[REG_RCX];
    uint64_t value = (uint32_t)v->gpr[REG_RAX] | v->gpr[REG_RDX] << 32;
    int status = write_msr(v, msr, value);
    if (status == E_NOMEM)
        return VCPU_WAIT;
    if (status != 0) {
        count_unknown(v, msr, true);
        vcpu_inject_exception(v, 13, 0);
        return VCPU_RESUME;
    }
    vcpu_advance_fast(v, 2);
    return VCPU_RESUME;
}
