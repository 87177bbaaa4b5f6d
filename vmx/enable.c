// SPDX-License-Identifier: BSD-2-Clause
// Turns VT-x on, on every CPU (SDM vol. 3, 24.7).
#include <arch/ept.h>
#include <arch/host_state.h>

#include "ept/ept.h"
#include "kernel/frames.h"
#include "kernel/init.h"
#include "kernel/log.h"
#include "kernel/memory.h"
#include "kernel/percpu.h"
#include "vmx/capability.h"
#include "vmx/instructions.h"
#include "vmx/msrs.h"
#include "vmx/run.h"
#include "vmx/vcpu.h"

#define CR4_VMXE     (1u << 13)
#define CR4_OSXSAVE  (1u << 18)
#define FEATURE_LOCK 1u
#define FEATURE_VMX  (1u << 2)

static const char *unavailable = "VT-x was not started";
static _Atomic bool failed;

bool vmx_available(void)
{
    return unavailable == NULL;
}

const char *vmx_unavailable_reason(void)
{
    return unavailable == NULL ? "" : unavailable;
}

// FEATURE_CONTROL is per CPU, and firmware without its own idea leaves it 0 (unlocked): set and
// lock.
static const char *unlock(void)
{
    if ((cpu_cpuid(1, 0).ecx >> 5 & 1) == 0)
        return "this CPU has no VT-x";
    uint64_t control = cpu_read_msr(MSR_FEATURE_CONTROL);
    if ((control & FEATURE_LOCK) == 0) {
        cpu_write_msr(MSR_FEATURE_CONTROL, control | FEATURE_LOCK | FEATURE_VMX);
        control = cpu_read_msr(MSR_FEATURE_CONTROL);
    }
    return (control & FEATURE_VMX) == 0 ? "the firmware has locked VT-x off" : NULL;
}

// A vCPU runs on any CPU with one set of controls.
static bool same(const struct vmx_capability *a, const struct vmx_capability *b)
{
    return a->revision == b->revision && a->pin == b->pin && a->primary == b->primary &&
           a->secondary == b->secondary && a->exit == b->exit && a->entry == b->entry &&
           a->cr0_fixed0 == b->cr0_fixed0 && a->cr0_fixed1 == b->cr0_fixed1 &&
           a->cr4_fixed0 == b->cr4_fixed0 && a->cr4_fixed1 == b->cr4_fixed1 &&
           a->preemption_shift == b->preemption_shift && a->xcr0 == b->xcr0 &&
           a->xsave_bytes == b->xsave_bytes && a->arch_capabilities == b->arch_capabilities &&
           a->apicv == b->apicv && a->posted == b->posted;
}

static const char *turn_on(void)
{
    const char *why = unlock();
    if (why != NULL)
        return why;
    struct vmx_capability capability;
    why = vmx_read_capability(&capability);
    if (why != NULL)
        return why;
    if (cpu_index() == 0)
        vmx_capability = capability;
    else if (!same(&capability, &vmx_capability))
        return "the CPUs differ in VT-x";
    hfn_t region;
    if (frame_alloc(FRAME_FUSOR, 0, FRAME_ZEROED, NULL, &region) != 0)
        return "no frame for the VMXON region";
    *(uint32_t *)hfn_to_pointer(region) = capability.revision;
    uint64_t cr4 = cpu_read_cr4() | CR4_VMXE | (capability.xsave ? CR4_OSXSAVE : 0);
    cpu_write_cr4(cr4);
    uint64_t cr0 = (cpu_read_cr0() | capability.cr0_fixed0) & capability.cr0_fixed1;
    cpu_write_cr0(cr0);
    if (!vmx_on(hfn_to_hpa(region)))
        return "VMXON failed";
    arch_invept_all();
    arch_set_nmi_hook(vmx_nmi_before_entry);
    return NULL;
}

// Runs on every CPU as it comes up, the boot CPU first.
static int enable_cpu(void)
{
    const struct boot_info *info = boot_info_get();
    if ((info->flags & BOOT_CONSOLE_ONLY) != 0 && (cpu_cpuid(1, 0).ecx >> 5 & 1) == 0) {
        unavailable = "started in console-only mode on a machine without VT-x";
        return 0;
    }
    const char *why = turn_on();
    if (why != NULL) {
        log_error("cpu%u: no VT-x: %s", cpu_index(), why);
        unavailable = why;
        failed = true; // one CPU without is enough: a vCPU runs on any
        return 0;
    }
    if (!failed)
        unavailable = NULL;
    return 0;
}
CPU_INIT_HOOK(INIT_VMX, enable_cpu);
