// SPDX-License-Identifier: BSD-2-Clause
// APIC virtualization (SDM vol. 3, chapter 30), for LAPICs in x2APIC mode; docs/architecture.md
// says why for these only.
//
// The CPU keeps TPR, PPR, ISR and IRR in the virtual-APIC page, delivers the highest vector of IRR
// (RVI) when TPR, ISR and the guest's RFLAGS.IF let it, and does what an EOI asks for, without an
// exit. With posted interrupts it also moves what others post into IRR without one. Exits that are
// left: an EOI of a level-triggered vector, for which the IOAPIC waits, and writes of the ICR. The
// page is devices/lapic_virtual.c's; the VMCS is this file's.
#include "vmx/apicv.h"

#include "kernel/error.h"
#include "kernel/frames.h"
#include "kernel/irq.h"
#include "kernel/memory.h"
#include "vmx/capability.h"
#include "vmx/cpuid.h"
#include "vmx/exits.h"
#include "vmx/instructions.h"
#include "vmx/msr.h"
#include "vmx/msrs.h"

#define RFLAGS_IF      (1u << 9)
#define APIC_SELF_IPI  0x3f0u
#define CPU_CR8_EXITS  (CPU_CR8_LOAD | CPU_CR8_STORE)
#define CPU2_APIC_BITS (CPU2_VIRTUALIZE_X2APIC | CPU2_VIRTUAL_INTERRUPTS)

int vcpu_make_vapic(struct vcpu *v)
{
    v->vapic = NULL;
    if (!vmx_capability.apicv)
        return 0;
    hfn_t frame;
    if (frame_alloc(FRAME_FUSOR, 0, FRAME_ZEROED, NULL, &frame) != 0)
        return E_NOMEM;
    v->vapic = hfn_to_pointer(frame);
    return 0;
}

void vcpu_free_vapic(struct vcpu *v)
{
    if (v->vapic != NULL)
        frame_free(hpa_to_hfn(pointer_to_hpa(v->vapic)), 0, NULL);
    v->vapic = NULL;
}

// All of it together: the MSR bitmap lets the guest through to registers that must be virtual then.
static void turn(struct vcpu *v, bool on)
{
    bool posted = on && vmx_capability.posted;
    v->apicv = on;
    v->primary &= ~(CPU_TPR_SHADOW | CPU_CR8_EXITS);
    v->primary |= on ? CPU_TPR_SHADOW : CPU_CR8_EXITS;
    vmcs_write(VMCS_PRIMARY_CONTROLS, v->primary);
    vmcs_write(VMCS_SECONDARY_CONTROLS, v->secondary | (on ? CPU2_APIC_BITS : 0));
    vmcs_write(VMCS_PIN_CONTROLS, vmx_capability.pin | (posted ? PIN_POSTED_INTERRUPTS : 0));
    vmcs_write(VMCS_MSR_BITMAP, vcpu_msr_bitmap(v->cpuid->rdtscp, on).raw);
    if (!on)
        return;
    uint64_t page = pointer_to_hpa(v->vapic).raw;
    vmcs_write(VMCS_VIRTUAL_APIC_ADDRESS, page);
    vmcs_write(VMCS_TPR_THRESHOLD, 0);
    if (posted) {
        vmcs_write(VMCS_POSTED_VECTOR, VECTOR_POSTED);
        vmcs_write(VMCS_POSTED_DESCRIPTOR, page + offsetof(struct vapic, posted));
    }
}

void vcpu_sync_apic(struct vcpu *v, bool *nmi, bool *interrupt)
{
    struct vcpu_apic a = {0};
    v->ops->sync_apic(v, &a);
    if (a.on != v->apicv) {
        turn(v, a.on);
        a.reload = true;
    }
    v->apic_mode_written = false;
    if (!a.on)
        return;
    *nmi = a.nmi;
    *interrupt = a.extint;
    if (a.reload) {
        for (unsigned i = 0; i < 4; i++)
            vmcs_write((enum vmcs_field)(VMCS_EOI_EXIT_BITMAP0 + 2 * i),
                       a.levels[2 * i] | (uint64_t)a.levels[2 * i + 1] << 32);
        vmcs_write(VMCS_GUEST_INTERRUPT_STATUS, (uint64_t)a.in_service << 8 | a.requested);
    } else if (a.changed) {
        uint64_t status = vmcs_read(VMCS_GUEST_INTERRUPT_STATUS);
        vmcs_write(VMCS_GUEST_INTERRUPT_STATUS, (status & 0xff00) | a.requested);
    }
    if (a.changed)
        v->retry_quiet = false;
    // STI;HLT has its shadow gone by the time it halts.
    if (v->halted && a.wakes && (vmcs_read(VMCS_GUEST_RFLAGS) & RFLAGS_IF) != 0)
        v->halted = false;
}

enum vcpu_result vcpu_exit_virtualized_eoi(struct vcpu *v)
{
    v->ops->virtual_eoi(v, (uint8_t)vmcs_read(VMCS_EXIT_QUALIFICATION));
    return VCPU_RESUME;
}

// Trap-like: the instruction is finished. Without APIC-register virtualization only an illegal
// self-IPI comes here (30.5).
enum vcpu_result vcpu_exit_apic_write(struct vcpu *v)
{
    uint64_t offset = vmcs_read(VMCS_EXIT_QUALIFICATION) & PAGE_MASK;
    if (offset != APIC_SELF_IPI)
        return vcpu_crash(v, "write to the virtual APIC at %#lx", offset);
    uint64_t vector = v->vapic->reg[APIC_SELF_IPI / 16].value & 0xff;
    (void)v->ops->write_msr(v, MSR_X2APIC_FIRST + APIC_SELF_IPI / 16, vector);
    return VCPU_RESUME;
}
