// SPDX-License-Identifier: BSD-2-Clause
// Which controls Fusor wants, which it must have, and what the CPU allows (SDM vol. 3, appendix A).
#include "vmx/capability.h"

#include "ept/ept.h"
#include "kernel/string.h"
#include "kernel/x86/arch/cpu.h"
#include "vmx/cpuid.h"
#include "vmx/msrs.h"
#include "vmx/vcpu.h"
#include "vmx/vmcs_fields.h"

struct vmx_capability vmx_capability;

struct control {
    uint32_t bit;
    const char *name;
};

static const struct control pin_required[] = {
    {PIN_EXTERNAL_INTERRUPT, "external-interrupt exiting"},
    {PIN_NMI, "NMI exiting"},
    {PIN_VIRTUAL_NMI, "virtual NMIs"},
    {PIN_PREEMPTION_TIMER, "VMX-preemption timer"},
};
static const struct control primary_required[] = {
    {CPU_INTERRUPT_WINDOW, "interrupt-window exiting"},
    {CPU_NMI_WINDOW, "NMI-window exiting"},
    {CPU_TSC_OFFSETTING, "TSC offsetting"},
    {CPU_HLT, "HLT exiting"},
    {CPU_MWAIT, "MWAIT exiting"},
    {CPU_MONITOR, "MONITOR exiting"},
    {CPU_RDPMC, "RDPMC exiting"},
    {CPU_CR8_LOAD, "CR8-load exiting"},
    {CPU_CR8_STORE, "CR8-store exiting"},
    {CPU_UNCONDITIONAL_IO, "unconditional I/O exiting"},
    {CPU_MSR_BITMAPS, "MSR bitmaps"},
    {CPU_SECONDARY, "secondary controls"},
};
static const struct control secondary_required[] = {
    {CPU2_EPT, "EPT"},
    {CPU2_UNRESTRICTED_GUEST, "unrestricted guest"},
    {CPU2_VPID, "VPID"},
};
static const struct control exit_required[] = {
    {EXITC_HOST_64BIT, "host address-space size"},
    {EXITC_ACK_INTERRUPT, "acknowledge interrupt on exit"},
    {EXITC_SAVE_PAT, "save IA32_PAT"},
    {EXITC_LOAD_PAT, "load IA32_PAT on exit"},
    {EXITC_SAVE_EFER, "save IA32_EFER"},
    {EXITC_LOAD_EFER, "load IA32_EFER on exit"},
    {EXITC_SAVE_DEBUG, "save debug controls"},
};
static const struct control entry_required[] = {
    {ENTRYC_LOAD_PAT, "load IA32_PAT on entry"},
    {ENTRYC_LOAD_EFER, "load IA32_EFER on entry"},
    {ENTRYC_IA32E_GUEST, "IA-32e mode guest"},
    {ENTRYC_LOAD_DEBUG, "load debug controls"},
};

// Merges what is wanted with what `msr` allows: low half = must be 1, high half = may be 1. A bit
// of `required` that may not be set is named in *missing.
static uint32_t adjust(uint32_t msr, uint32_t optional, const struct control *required, size_t n,
                       const char **missing)
{
    uint64_t allowed = cpu_read_msr(msr);
    uint32_t wanted = optional;
    for (size_t i = 0; i < n; i++) {
        wanted |= required[i].bit;
        if ((allowed >> 32 & required[i].bit) == 0 && *missing == NULL)
            *missing = required[i].name;
    }
    return (wanted | (uint32_t)allowed) & (uint32_t)(allowed >> 32);
}

// Whether a control MSR lets all of `bits` be set.
static bool allows(uint32_t msr, uint32_t bits)
{
    return (cpu_read_msr(msr) >> 32 & bits) == bits;
}

static void read_apicv(struct vmx_capability *c, bool true_msrs)
{
    c->apicv = allows(true_msrs ? MSR_VMX_TRUE_CPU : MSR_VMX_CPU, CPU_TPR_SHADOW) &&
               allows(MSR_VMX_CPU2, CPU2_VIRTUALIZE_X2APIC | CPU2_VIRTUAL_INTERRUPTS);
    c->posted =
        c->apicv && allows(true_msrs ? MSR_VMX_TRUE_PIN : MSR_VMX_PIN, PIN_POSTED_INTERRUPTS);
}

void vmx_disable_apicv(void)
{
    vmx_capability.apicv = false;
    vmx_capability.posted = false;
}

bool vmx_posts_interrupts(void)
{
    return vmx_capability.posted;
}

const char *vmx_apicv_state(void)
{
    if (!vmx_capability.apicv)
        return "off";
    return vmx_capability.posted ? "on, posted interrupts" : "on";
}

static void read_ept(const char **missing)
{
    uint64_t cap = cpu_read_msr(MSR_VMX_EPT_VPID_CAP);
    const struct {
        unsigned bit;
        const char *name;
    } required[] = {
        {6, "EPT with 4 levels"},       {14, "EPT in write-back memory"}, {20, "INVEPT"},
        {25, "single-context INVEPT"},  {26, "all-context INVEPT"},       {32, "INVVPID"},
        {41, "single-context INVVPID"},
    };
    for (size_t i = 0; i < ARRAY_SIZE(required); i++)
        if ((cap >> required[i].bit & 1) == 0 && *missing == NULL)
            *missing = required[i].name;
    ept_features.execute_only = cap & 1;
    ept_features.page_2m = cap >> 16 & 1;
    ept_features.page_1g = cap >> 17 & 1;
    ept_features.accessed_dirty = cap >> 21 & 1;
    ept_features.invept_single = cap >> 25 & 1;
    ept_features.invept_all = cap >> 26 & 1;
}

void vmx_limit_cpuid(struct cpuid_policy *p)
{
    if ((vmx_capability.secondary & CPU2_RDTSCP) == 0) {
        p->rdtscp = false;
        p->extended[1].edx &= ~(1u << 27);
        p->features[0].ecx &= ~(1u << 22); // RDPID reads TSC_AUX, too
    }
    if ((vmx_capability.secondary & CPU2_INVPCID) == 0) {
        p->invpcid = false;
        p->features[0].ebx &= ~(1u << 10);
    }
}

const char *vmx_read_capability(struct vmx_capability *c)
{
    const char *missing = NULL;
    memset(c, 0, sizeof(*c));
    uint64_t basic = cpu_read_msr(MSR_VMX_BASIC);
    c->revision = (uint32_t)basic & 0x7fffffffu;
    bool true_msrs = basic >> 55 & 1;
    c->pin = adjust(true_msrs ? MSR_VMX_TRUE_PIN : MSR_VMX_PIN, 0, pin_required,
                    ARRAY_SIZE(pin_required), &missing);
    c->primary = adjust(true_msrs ? MSR_VMX_TRUE_CPU : MSR_VMX_CPU, 0, primary_required,
                        ARRAY_SIZE(primary_required), &missing);
    // The windows are opened when needed; CR3 accesses and the rest run free where the CPU lets
    // them.
    c->primary &= ~(CPU_INTERRUPT_WINDOW | CPU_NMI_WINDOW);
    if (missing == NULL)
        c->secondary =
            adjust(MSR_VMX_CPU2, CPU2_RDTSCP | CPU2_INVPCID | CPU2_WBINVD | CPU2_PAUSE_LOOP,
                   secondary_required, ARRAY_SIZE(secondary_required), &missing);
    c->exit = adjust(true_msrs ? MSR_VMX_TRUE_EXIT : MSR_VMX_EXIT, 0, exit_required,
                     ARRAY_SIZE(exit_required), &missing);
    c->entry = adjust(true_msrs ? MSR_VMX_TRUE_ENTRY : MSR_VMX_ENTRY, 0, entry_required,
                      ARRAY_SIZE(entry_required), &missing);
    c->entry &= ~ENTRYC_IA32E_GUEST; // per vCPU
    if (missing != NULL)
        return missing;
    if ((c->primary & (CPU_CR3_LOAD | CPU_CR3_STORE)) != 0)
        return "CR3 accesses without exits (TRUE control MSRs)";
    read_ept(&missing);
    if (missing != NULL)
        return missing;
    read_apicv(c, true_msrs);
    c->preemption_shift = cpu_read_msr(MSR_VMX_MISC) & 0x1f;
    c->cr0_fixed0 = cpu_read_msr(MSR_VMX_CR0_FIXED0);
    c->cr0_fixed1 = cpu_read_msr(MSR_VMX_CR0_FIXED1);
    c->cr4_fixed0 = cpu_read_msr(MSR_VMX_CR4_FIXED0);
    c->cr4_fixed1 = cpu_read_msr(MSR_VMX_CR4_FIXED1);
    struct cpuid_regs one = cpu_cpuid(1, 0);
    c->xsave = one.ecx >> 26 & 1;
    if (c->xsave) {
        struct cpuid_regs x = cpu_cpuid(0xd, 0);
        c->xcr0 = x.eax | (uint64_t)x.edx << 32;
        c->xsave_bytes = x.ecx;
    } else {
        c->xsave_bytes = 512;
    }
    // Large executable entries are safe where the CPU says so (ITLB multihit, CVE-2018-12207).
    bool has_arch_cap = cpu_cpuid(0, 0).eax >= 7 && (cpu_cpuid(7, 0).edx >> 29 & 1) != 0;
    if (has_arch_cap)
        c->arch_capabilities = cpu_read_msr(MSR_ARCH_CAPABILITIES);
    // Between two VMs: indirect branch predictors, L1 data cache (L1TF ignores EPT) and CPU buffers
    // (MDS) are emptied where the CPU can and has to.
    uint32_t leaf7 = cpu_cpuid(0, 0).eax >= 7 ? cpu_cpuid(7, 0).edx : 0;
    c->ibpb = (leaf7 >> 26 & 1) != 0;
    c->verw = (leaf7 >> 10 & 1) != 0 && (c->arch_capabilities >> 5 & 1) == 0;
    c->flush_l1d = (leaf7 >> 28 & 1) != 0 && (c->arch_capabilities & (1u << 0 | 1u << 3)) == 0;
    ept_features.large_executable_safe = c->arch_capabilities >> 6 & 1;
    return NULL;
}
