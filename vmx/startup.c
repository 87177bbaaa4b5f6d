// SPDX-License-Identifier: BSD-2-Clause
// INIT and STARTUP IPIs as the vCPU takes them (SDM vol. 3, 9.4.4 and table 10-1).
//
// The VMCS has an activity state for the wait, but what ends it are the machine's own STARTUPs, not
// the guest's. So a vCPU that waits is one that does not run: v->parked.
#include "vmx/startup.h"

#include <arch/cpu.h>

#include "kernel/string.h"
#include "vmx/cpuid.h"
#include "vmx/instructions.h"
#include "vmx/msr.h"

#define CR0_ET (UINT64_C(1) << 4)
#define CR0_NE (UINT64_C(1) << 5)
#define CR0_NW (UINT64_C(1) << 29)
#define CR0_CD (UINT64_C(1) << 30)

// Present, DPL 0, accessed: what VM entry wants to see in real mode, too (27.3.1.2).
#define CODE     0x9bu
#define DATA     0x93u
#define LDT      0x82u
#define BUSY_TSS 0x8bu

// The fields of all segments stand in the same order.
static void write_segment(enum vmcs_field selector_field, uint16_t selector, uint64_t base,
                          uint32_t access)
{
    unsigned i = selector_field - VMCS_GUEST_ES_SELECTOR;
    vmcs_write(selector_field, selector);
    vmcs_write((enum vmcs_field)(VMCS_GUEST_ES_BASE + i), base);
    vmcs_write((enum vmcs_field)(VMCS_GUEST_ES_LIMIT + i), 0xffff);
    vmcs_write((enum vmcs_field)(VMCS_GUEST_ES_ACCESS + i), access);
}

static void write_segments(void)
{
    static const enum vmcs_field data[] = {VMCS_GUEST_ES_SELECTOR, VMCS_GUEST_SS_SELECTOR,
                                           VMCS_GUEST_DS_SELECTOR, VMCS_GUEST_FS_SELECTOR,
                                           VMCS_GUEST_GS_SELECTOR};
    write_segment(VMCS_GUEST_CS_SELECTOR, 0xf000, 0xffff0000, CODE);
    for (unsigned i = 0; i < ARRAY_SIZE(data); i++)
        write_segment(data[i], 0, 0, DATA);
    write_segment(VMCS_GUEST_LDTR_SELECTOR, 0, 0, LDT);
    write_segment(VMCS_GUEST_TR_SELECTOR, 0, 0, BUSY_TSS);
    vmcs_write(VMCS_GUEST_GDTR_BASE, 0);
    vmcs_write(VMCS_GUEST_GDTR_LIMIT, 0xffff);
    vmcs_write(VMCS_GUEST_IDTR_BASE, 0);
    vmcs_write(VMCS_GUEST_IDTR_LIMIT, 0xffff);
}

static void write_control_registers(struct vcpu *v)
{
    // CD and NW stay as they are (table 10-1, note 2); they exist in the shadow only.
    uint64_t cache = vmcs_read(VMCS_CR0_SHADOW) & (CR0_CD | CR0_NW);
    vmcs_write(VMCS_GUEST_CR0, CR0_ET | CR0_NE);
    vmcs_write(VMCS_CR0_SHADOW, CR0_ET | cache);
    vmcs_write(VMCS_GUEST_CR3, 0);
    vmcs_write(VMCS_GUEST_CR4, vcpu_cr4_forced());
    vmcs_write(VMCS_CR4_SHADOW, 0);
    // EFER is 0 after INIT although the table does not name it: without paging there is no LMA, and
    // every start-up code sets LME itself.
    vmcs_write(VMCS_GUEST_EFER, 0);
    v->entry_controls &= ~ENTRYC_IA32E_GUEST;
    vmcs_write(VMCS_ENTRY_CONTROLS, v->entry_controls);
    vmcs_write(VMCS_GUEST_DEBUGCTL, 0);
    vmcs_write(VMCS_GUEST_DR7, 0x400);
}

// What was on its way to the guest is gone.
static void drop_events(struct vcpu *v)
{
    v->requeue_info = 0;
    v->event_loaded = false;
    v->nmi_delivered = false;
    v->halted = false;
    v->primary &= ~(CPU_INTERRUPT_WINDOW | CPU_NMI_WINDOW);
    vmcs_write(VMCS_PRIMARY_CONTROLS, v->primary);
    vmcs_write(VMCS_ENTRY_INTERRUPTION_INFO, 0);
    vmcs_write(VMCS_GUEST_INTERRUPTIBILITY, 0);
    vmcs_write(VMCS_GUEST_PENDING_DEBUG, 0);
    vmcs_write(VMCS_GUEST_ACTIVITY, 0);
}

void vcpu_write_init_state(struct vcpu *v)
{
    drop_events(v);
    write_segments();
    write_control_registers(v);
    vmcs_write(VMCS_GUEST_RIP, 0xfff0);
    vmcs_write(VMCS_GUEST_RSP, 0);
    vmcs_write(VMCS_GUEST_RFLAGS, 2);
    memset(v->gpr, 0, sizeof(v->gpr));
    v->gpr[REG_RDX] = v->cpuid->basic[1].eax; // the CPU's signature
}

// Registers that are the guest's in the CPU while the vCPU is loaded.
static void clear_loaded_registers(void)
{
    cpu_write_cr2(0);
    __asm__ volatile("mov %0, %%db0; mov %0, %%db1; mov %0, %%db2; mov %0, %%db3" ::"r"(0ul));
    __asm__ volatile("mov %0, %%db6" ::"r"(0xffff0ff0ul));
}

void vcpu_take_startup(struct vcpu *v)
{
    // Cleared before the look: whoever sends the next one says so anew.
    v->startup = 0;
    uint8_t vector = 0;
    unsigned got = v->ops->take_startup(v, &vector);
    if ((got & VCPU_GOT_INIT) != 0) {
        vcpu_write_init_state(v);
        clear_loaded_registers();
        vmx_invvpid(v->vpid); // paging is off now (4.10.4.1)
    }
    if ((got & VCPU_GOT_STARTUP) != 0) {
        write_segment(VMCS_GUEST_CS_SELECTOR, (uint16_t)(vector << 8), (uint64_t)vector << 12,
                      CODE);
        vmcs_write(VMCS_GUEST_RIP, 0);
        vmcs_write(VMCS_TSC_OFFSET, v->tsc_offset);
    }
}
