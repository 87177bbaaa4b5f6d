// SPDX-License-Identifier: BSD-2-Clause
// Exit handlers. An exit nobody expects stops that VM only, with a report.
#include "vmx/exits.h"

#include <arch/cpu.h>

#include "kernel/format.h"
#include "kernel/irq.h"
#include "kernel/log.h"
#include "vmx/apicv.h"
#include "vmx/cpuid.h"
#include "vmx/events.h"
#include "vmx/advance.h"
#include "vmx/instructions.h"
#include "vmx/msr.h"
#include "vmx/msrs.h"
#include "vmx/port_io.h"

extern void vmx_unblock_nmi(void); // vmx/entry.asm

#define UD 6u
#define GP 13u

enum vcpu_result vcpu_crash(struct vcpu *v, const char *format, ...)
{
    char why[160];
    va_list args;
    va_start(args, format);
    format_text_v(why, sizeof(why), format, args);
    va_end(args);
    log_error("%s: crashed: %s", v->entity.name, why);
    log_error("%s: rip %#lx rsp %#lx rflags %#lx cr0 %#lx cr3 %#lx cr4 %#lx", v->entity.name,
              vmcs_read(VMCS_GUEST_RIP), vmcs_read(VMCS_GUEST_RSP), vmcs_read(VMCS_GUEST_RFLAGS),
              vmcs_read(VMCS_GUEST_CR0), vmcs_read(VMCS_GUEST_CR3), vmcs_read(VMCS_GUEST_CR4));
    log_error("%s: rax %#lx rbx %#lx rcx %#lx rdx %#lx rsi %#lx rdi %#lx", v->entity.name,
              v->gpr[REG_RAX], v->gpr[REG_RBX], v->gpr[REG_RCX], v->gpr[REG_RDX], v->gpr[REG_RSI],
              v->gpr[REG_RDI]);
    v->ops->crashed(v, why);
    return VCPU_STOP;
}

// A machine check while the guest ran: that VM ends with a report. The banks and MCIP are cleared,
// for with MCIP set the next machine check would shut the CPU down (SDM vol. 3, 16.8).
static enum vcpu_result exit_machine_check(struct vcpu *v)
{
    uint64_t status = 0, address = 0;
    unsigned bank = 0;
    unsigned banks = cpu_read_msr(MSR_MCG_CAP) & 0xff;
    for (unsigned i = 0; i < banks; i++) {
        uint64_t s = cpu_read_msr(MSR_MC0_STATUS + 4 * i);
        if ((s >> 63) == 0)
            continue;
        status = s;
        bank = i;
        address = (s >> 58 & 1) != 0 ? cpu_read_msr(MSR_MC0_ADDR + 4 * i) : 0;
        cpu_write_msr(MSR_MC0_STATUS + 4 * i, 0);
    }
    cpu_write_msr(MSR_MCG_STATUS, 0);
    return vcpu_crash(v, "machine check, bank %u status %#lx address %#lx", bank, status, address);
}

// A #DB exit comes before DR6 and DR7.GD are updated, INT1's before RIP is advanced (SDM vol.
// 3, 28.1 and 28.2.2); and with TF set in a STI or MOV-SS shadow VM entry wants to see BS pending
// (27.3.1.5).
static void before_debug_exception(struct vcpu *v, uint32_t info)
{
    uint64_t q = vmcs_read(VMCS_EXIT_QUALIFICATION);
    cpu_write_dr6((cpu_read_dr6() & ~UINT64_C(0xf)) | (q & 0x600f));
    vmcs_write(VMCS_GUEST_DR7, vmcs_read(VMCS_GUEST_DR7) & ~(UINT64_C(1) << 13));
    uint32_t blocking = vmcs_read32(VMCS_GUEST_INTERRUPTIBILITY);
    bool shadow = (blocking & (BLOCKING_STI | BLOCKING_MOV_SS)) != 0;
    if (INFO_TYPE(info) == 5) {
        vcpu_step_rip(v, vmcs_read32(VMCS_EXIT_INSTRUCTION_LENGTH));
        vmcs_write(VMCS_GUEST_INTERRUPTIBILITY, blocking & ~(BLOCKING_STI | BLOCKING_MOV_SS));
    } else if (shadow && (vmcs_read(VMCS_GUEST_RFLAGS) & (1u << 8)) != 0) {
        vmcs_write(VMCS_GUEST_PENDING_DEBUG, vmcs_read(VMCS_GUEST_PENDING_DEBUG) | UINT64_C(1)
                                                                                       << 14);
    }
}

static enum vcpu_result exit_exception_or_nmi(struct vcpu *v)
{
    uint32_t info = vmcs_read32(VMCS_EXIT_INTERRUPTION_INFO);
    if (INFO_TYPE(info) == 2) {
        irq_handle_nmi(true);
        vmx_unblock_nmi();
        // Other kicks have said so already; a shootdown's is over with the exit.
        if (sched_must_yield(cpu_index()))
            v->recheck = 1;
        if (!v->nmi_delivered) { // see vmx/events.c
            uint32_t blocking = vmcs_read32(VMCS_GUEST_INTERRUPTIBILITY);
            if ((blocking & BLOCKING_NMI) != 0)
                vmcs_write(VMCS_GUEST_INTERRUPTIBILITY, blocking & ~BLOCKING_NMI);
        }
        return VCPU_RESUME;
    }
    uint8_t vector = (uint8_t)INFO_VECTOR(info);
    if (vector == 18)
        return exit_machine_check(v);
    uint32_t error = (info & INFO_ERROR_CODE) != 0 ? vmcs_read32(VMCS_EXIT_ERROR_CODE) : 0;
    if (vector == 1)
        before_debug_exception(v, info);
    vcpu_inject_exception(v, vector, error);
    return VCPU_RESUME;
}

static enum vcpu_result exit_external_interrupt(struct vcpu *v)
{
    (void)v;
    irq_dispatch(INFO_VECTOR(vmcs_read32(VMCS_EXIT_INTERRUPTION_INFO)));
    return VCPU_RESUME;
}

static enum vcpu_result exit_triple_fault(struct vcpu *v)
{
    return vcpu_crash(v, "triple fault");
}

static enum vcpu_result exit_interrupt_window(struct vcpu *v)
{
    vcpu_close_interrupt_window(v);
    return VCPU_RESUME;
}

static enum vcpu_result exit_nmi_window(struct vcpu *v)
{
    vcpu_nmi_window(v);
    return VCPU_RESUME;
}

static enum vcpu_result exit_cpuid(struct vcpu *v)
{
    uint32_t leaf = (uint32_t)v->gpr[REG_RAX];
    const struct cpuid_leaf *r;
    struct cpuid_leaf made;
    if (cpuid_policy_is_constant(leaf)) {
        r = &v->cpuid->basic[leaf];
    } else {
        made = cpuid_policy_get(v->cpuid, leaf, (uint32_t)v->gpr[REG_RCX], v->id,
                                vmcs_read(VMCS_GUEST_CR4), v->xcr0);
        r = &made;
    }
    v->gpr[REG_RAX] = r->eax;
    v->gpr[REG_RBX] = r->ebx;
    v->gpr[REG_RCX] = r->ecx;
    v->gpr[REG_RDX] = r->edx;
    vcpu_advance_fast(v, 2);
    return VCPU_RESUME;
}

static enum vcpu_result exit_hlt(struct vcpu *v)
{
    vcpu_advance_fast(v, 1);
    // A debug exception ends HLT, and one that comes right behind it does so at once.
    v->halted = (vmcs_read(VMCS_GUEST_PENDING_DEBUG) & (PENDING_BREAKPOINT | PENDING_BS)) == 0;
    v->recheck = 1;
    return VCPU_RESUME;
}

static enum vcpu_result exit_vmcall(struct vcpu *v)
{
    v->gpr[REG_RAX] = v->ops->hypercall(v);
    vcpu_advance_fast(v, 3);
    return VCPU_RESUME;
}

// WBINVD and INVD: guest RAM is write-back and Fusor's mapping of it coherent, so nothing has to be
// done.
static enum vcpu_result exit_skip(struct vcpu *v)
{
    vcpu_advance_fast(v, vmcs_read32(VMCS_EXIT_INSTRUCTION_LENGTH));
    return VCPU_RESUME;
}

// Instructions whose feature CPUID does not show.
static enum vcpu_result exit_undefined(struct vcpu *v)
{
    vcpu_inject_exception(v, UD, 0);
    return VCPU_RESUME;
}

static enum vcpu_result exit_rdpmc(struct vcpu *v)
{
    vcpu_inject_exception(v, GP, 0);
    return VCPU_RESUME;
}

static enum vcpu_result exit_nothing(struct vcpu *v)
{
    (void)v;
    return VCPU_RESUME;
}

// The guest spins. Whoever holds what it waits for may be a vCPU without a CPU (lock-holder
// preemption); that one gets the rest of the slice.
static enum vcpu_result exit_pause(struct vcpu *v)
{
    vcpu_advance_fast(v, vmcs_read32(VMCS_EXIT_INSTRUCTION_LENGTH));
    if (sched_yield_to_group(&v->entity, v->until)) {
        v->recheck = 1;
    } else if (v->ple_window < PLE_WINDOW_MOST) {
        v->ple_window *= 2;
        vmcs_write(VMCS_PLE_WINDOW, v->ple_window);
    }
    return VCPU_RESUME;
}

static enum vcpu_result exit_ept_violation(struct vcpu *v)
{
    uint64_t q = vmcs_read(VMCS_EXIT_QUALIFICATION);
    gpa_t address = gpa(vmcs_read(VMCS_GUEST_PHYSICAL_ADDRESS));
    // An IRET that faults has already unblocked NMIs: restore the blocking (SDM vol. 3, 28.2.3).
    if ((q >> 12 & 1) != 0 && v->nmi_delivered && v->requeue_info == 0)
        vmcs_write(VMCS_GUEST_INTERRUPTIBILITY,
                   vmcs_read(VMCS_GUEST_INTERRUPTIBILITY) | BLOCKING_NMI);
    struct ept_fault fault = {
        .address = address,
        .linear = (q >> 7 & 1) != 0 ? vmcs_read(VMCS_GUEST_LINEAR_ADDRESS) : 0,
        .linear_valid = (q >> 7 & 1) != 0,
        .read = (q & 1) != 0,
        .write = (q >> 1 & 1) != 0,
        .fetch = (q >> 2 & 1) != 0,
        .page_walk = (q >> 7 & 1) != 0 && (q >> 8 & 1) == 0,
    };
    if ((q >> 3 & 7) != 0) // present: the leaf tells why it was not enough
        fault.leaf = ept_lookup(v->ept, gpa_to_gfn(address));
    switch (ept_run_fault_hooks(v->vm, &fault)) {
    case EPT_FAULT_RETRY:
        return VCPU_RESUME;
    case EPT_FAULT_WAIT:
        return VCPU_WAIT;
    case EPT_FAULT_EMULATE:
        if (fault.fetch)
            return vcpu_crash(v, "instruction fetch from %#lx, where there is no memory",
                              address.raw);
        if (fault.page_walk)
            return vcpu_crash(v, "page table at %#lx, where there is no memory", address.raw);
        if (v->requeue_info != 0)
            return vcpu_crash(v, "event delivery touches %#lx, where there is no memory",
                              address.raw);
        return v->ops->mmio(v, address, fault.write);
    case EPT_FAULT_UNHANDLED:
    default:
        return vcpu_crash(v, "EPT violation at %#lx nobody handles (qualification %#lx)",
                          address.raw, q);
    }
}

static enum vcpu_result exit_ept_misconfiguration(struct vcpu *v)
{
    return vcpu_crash(v, "EPT misconfiguration at %#lx", vmcs_read(VMCS_GUEST_PHYSICAL_ADDRESS));
}

static enum vcpu_result exit_bad_entry(struct vcpu *v)
{
    return vcpu_crash(v, "VM entry refused: invalid guest state (qualification %#lx)",
                      vmcs_read(VMCS_EXIT_QUALIFICATION));
}

static enum vcpu_result exit_task_switch(struct vcpu *v)
{
    return vcpu_crash(v, "hardware task switch");
}

enum vcpu_result vcpu_exit_unknown(struct vcpu *v)
{
    return vcpu_crash(v, "unknown exit %u (qualification %#lx)", vmcs_read32(VMCS_EXIT_REASON),
                      vmcs_read(VMCS_EXIT_QUALIFICATION));
}

// clang-format off
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Woverride-init" // a default for all, then those that are known
const struct vcpu_exit_handler vcpu_exit_handlers[EXIT_REASONS] = {
    [0 ... EXIT_REASONS - 1] = {vcpu_exit_unknown, NULL},
    [EXIT_EXCEPTION_OR_NMI] = {exit_exception_or_nmi, "EXCEPTION_OR_NMI"},
    [EXIT_EXTERNAL_INTERRUPT] = {exit_external_interrupt, "EXTERNAL_INTERRUPT"},
    [EXIT_TRIPLE_FAULT] = {exit_triple_fault, "TRIPLE_FAULT"},
    [EXIT_INTERRUPT_WINDOW] = {exit_interrupt_window, "INTERRUPT_WINDOW"},
    [EXIT_NMI_WINDOW] = {exit_nmi_window, "NMI_WINDOW"},
    [EXIT_TASK_SWITCH] = {exit_task_switch, "TASK_SWITCH"},
    [EXIT_CPUID] = {exit_cpuid, "CPUID"},
    [EXIT_GETSEC] = {exit_undefined, "GETSEC"},
    [EXIT_HLT] = {exit_hlt, "HLT"},
    [EXIT_INVD] = {exit_skip, "INVD"},
    [EXIT_RDPMC] = {exit_rdpmc, "RDPMC"},
    [EXIT_VMCALL] = {exit_vmcall, "VMCALL"},
    [19] = {exit_undefined, "VMCLEAR"},
    [20] = {exit_undefined, "VMLAUNCH"},
    [21] = {exit_undefined, "VMPTRLD"},
    [22] = {exit_undefined, "VMPTRST"},
    [23] = {exit_undefined, "VMREAD"},
    [24] = {exit_undefined, "VMRESUME"},
    [25] = {exit_undefined, "VMWRITE"},
    [26] = {exit_undefined, "VMXOFF"},
    [EXIT_VMXON] = {exit_undefined, "VMXON"},
    [EXIT_CR_ACCESS] = {vcpu_exit_cr, "CR_ACCESS"},
    [EXIT_IO] = {vcpu_exit_io, "IO"},
    [EXIT_RDMSR] = {vcpu_exit_rdmsr, "RDMSR"},
    [EXIT_WRMSR] = {vcpu_exit_wrmsr, "WRMSR"},
    [EXIT_ENTRY_GUEST_STATE] = {exit_bad_entry, "ENTRY_GUEST_STATE"},
    [EXIT_MWAIT] = {exit_undefined, "MWAIT"},
    [EXIT_MONITOR] = {exit_undefined, "MONITOR"},
    [EXIT_PAUSE] = {exit_pause, "PAUSE"},
    [EXIT_ENTRY_MACHINE_CHECK] = {exit_machine_check, "ENTRY_MACHINE_CHECK"},
    [EXIT_VIRTUALIZED_EOI] = {vcpu_exit_virtualized_eoi, "VIRTUALIZED_EOI"},
    [EXIT_EPT_VIOLATION] = {exit_ept_violation, "EPT_VIOLATION"},
    [EXIT_EPT_MISCONFIGURATION] = {exit_ept_misconfiguration, "EPT_MISCONFIGURATION"},
    [EXIT_INVEPT] = {exit_undefined, "INVEPT"},
    [EXIT_PREEMPTION_TIMER] = {exit_nothing, "PREEMPTION_TIMER"},
    [EXIT_INVVPID] = {exit_undefined, "INVVPID"},
    [EXIT_WBINVD] = {exit_skip, "WBINVD"},
    [EXIT_XSETBV] = {vcpu_exit_xsetbv, "XSETBV"},
    [EXIT_APIC_WRITE] = {vcpu_exit_apic_write, "APIC_WRITE"},
    [EXIT_VMFUNC] = {exit_undefined, "VMFUNC"},
};
#pragma GCC diagnostic pop
// clang-format on

const char *vmx_exit_name(unsigned reason)
{
    return reason < EXIT_REASONS ? vcpu_exit_handlers[reason].name : NULL;
}
