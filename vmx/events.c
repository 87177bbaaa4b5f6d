// SPDX-License-Identifier: BSD-2-Clause
// Event injection (SDM vol. 3, 27.6) with the interrupted event of an exit put back first (28.2.4),
// and the windows for what cannot be delivered yet.
//
// NMIs: with virtual NMIs the CPU tracks blocking by NMI for the guest. On an NMI exit Bochs 2.7
// leaves that bit set although no guest NMI is in service, which would block every later NMI exit;
// so Fusor tracks the guest's NMI handler itself (nmi_delivered, ended by an NMI-window exit) and
// clears the bit.
#include "vmx/events.h"

#include <arch/cpu.h>

#include "vmx/apicv.h"
#include "vmx/instructions.h"

#define RFLAGS_IF (1u << 9)

static void set_primary(struct vcpu *v, uint32_t primary)
{
    if (v->primary == primary)
        return;
    v->primary = primary;
    vmcs_write(VMCS_PRIMARY_CONTROLS, primary);
}

void vcpu_close_interrupt_window(struct vcpu *v)
{
    set_primary(v, v->primary & ~CPU_INTERRUPT_WINDOW);
    v->recheck = 1;
}

void vcpu_nmi_window(struct vcpu *v)
{
    set_primary(v, v->primary & ~CPU_NMI_WINDOW);
    v->nmi_delivered = false;
    v->recheck = 1;
}

static void inject(struct vcpu *v, uint32_t info, uint32_t error, uint32_t length)
{
    v->event_loaded = true;
    if ((info & INFO_ERROR_CODE) != 0)
        vmcs_write(VMCS_ENTRY_ERROR_CODE, error);
    if (INFO_TYPE(info) >= 4) // software interrupts and exceptions
        vmcs_write(VMCS_ENTRY_INSTRUCTION_LENGTH, length);
    vmcs_write(VMCS_ENTRY_INTERRUPTION_INFO, info);
}

// Returns true when an NMI was injected. The window exit tells when the guest's handler has
// returned.
static bool try_nmi(struct vcpu *v, uint32_t blocking)
{
    if (v->nmi_delivered)
        return false;
    if ((blocking & (BLOCKING_STI | BLOCKING_MOV_SS)) != 0) {
        // The shadow lasts one instruction. A CPU may open the NMI window in that of STI already,
        // and would never leave it (26.2); the interrupt window opens behind it, for IF is set.
        // (Should the next instruction be CLI, the NMI comes at the end of the slice at the
        // latest.)
        if (v->ops->take_nmi(v, false))
            set_primary(v, v->primary | ((blocking & BLOCKING_STI) != 0 ? CPU_INTERRUPT_WINDOW
                                                                        : CPU_NMI_WINDOW));
        return false;
    }
    if (!v->ops->take_nmi(v, true))
        return false;
    v->halted = false;
    v->nmi_delivered = true;
    inject(v, INFO_VALID | INFO_NMI | 2, 0, 0);
    set_primary(v, v->primary | CPU_NMI_WINDOW);
    return true;
}

void vcpu_prepare_events(struct vcpu *v)
{
    // What the CPU delivers by itself needs neither a free injection nor a window.
    bool nmi = true, interrupt = true;
    if (v->apicv || v->apic_mode_written)
        vcpu_sync_apic(v, &nmi, &interrupt);
    // A kick came before the entry: when another interrupt waits for the EOI of the one that is
    // loaded, that has to be an exit.
    if (v->eoi_armed)
        v->ops->settle_eoi(v);
    if (v->event_loaded) {
        // The last entry did not happen (a kick came first): its event goes first, the rest waits.
        v->recheck = 1;
        return;
    }
    if (v->requeue_info != 0) {
        inject(v, v->requeue_info, v->requeue_error, v->requeue_length);
        v->requeue_info = 0;
        v->recheck = 1; // others may wait behind it
        v->halted = false;
        if (interrupt && v->ops->interrupt(v, false) >= 0)
            set_primary(v, v->primary | CPU_INTERRUPT_WINDOW);
        return;
    }
    if (!nmi && !interrupt)
        return;
    uint32_t blocking = vmcs_read32(VMCS_GUEST_INTERRUPTIBILITY);
    if (nmi && try_nmi(v, blocking)) {
        if (interrupt && v->ops->interrupt(v, false) >= 0)
            set_primary(v, v->primary | CPU_INTERRUPT_WINDOW);
        return;
    }
    if (!interrupt)
        return;
    int vector = v->ops->interrupt(v, false);
    if (vector < 0)
        return;
    bool open = (vmcs_read(VMCS_GUEST_RFLAGS) & RFLAGS_IF) != 0 &&
                (blocking & (BLOCKING_STI | BLOCKING_MOV_SS)) == 0;
    if (!open) {
        set_primary(v, v->primary | CPU_INTERRUPT_WINDOW);
        // A halted CPU with IF clear stays halted; STI;HLT has its shadow gone by the time it
        // halts.
        return;
    }
    vector = v->ops->interrupt(v, true);
    if (vector < 0)
        return;
    v->halted = false;
    inject(v, INFO_VALID | INFO_EXTERNAL | (uint32_t)vector, 0, 0);
    if (v->ops->interrupt(v, false) >= 0)
        set_primary(v, v->primary | CPU_INTERRUPT_WINDOW);
}

void vcpu_save_interrupted_event(struct vcpu *v, uint32_t info)
{
    v->requeue_info = info & ~(1u << 12); // bit 12 is undefined here and reserved there
    if ((info & INFO_ERROR_CODE) != 0)
        v->requeue_error = vmcs_read32(VMCS_IDT_VECTORING_ERROR_CODE);
    v->requeue_length = vmcs_read32(VMCS_EXIT_INSTRUCTION_LENGTH);
    v->recheck = 1;
    if (INFO_TYPE(info) == 2) {
        // The NMI will be delivered again: it must not find itself blocked (27.6.1.2).
        uint32_t blocking = vmcs_read32(VMCS_GUEST_INTERRUPTIBILITY);
        vmcs_write(VMCS_GUEST_INTERRUPTIBILITY, blocking & ~BLOCKING_NMI);
    }
}

static bool has_error_code(uint8_t vector)
{
    return vector == 8 || (vector >= 10 && vector <= 14) || vector == 17;
}

// Contributory exceptions: #DE, #TS, #NP, #SS, #GP (SDM vol. 3, table 6-4).
static bool contributory(uint32_t vector)
{
    return vector == 0 || (vector >= 10 && vector <= 13);
}

void vcpu_inject_exception(struct vcpu *v, uint8_t vector, uint32_t error)
{
    if (v->requeue_info != 0 && INFO_TYPE(v->requeue_info) == 3) {
        uint32_t first = INFO_VECTOR(v->requeue_info);
        if (first == 8) {
            v->ops->crashed(v, "triple fault");
            return;
        }
        if ((contributory(first) && contributory(vector)) ||
            (first == 14 && (vector == 14 || contributory(vector)))) {
            vector = 8;
            error = 0;
        }
    }
    v->requeue_info = INFO_VALID | INFO_HARDWARE_EXCEPTION | vector |
                      (has_error_code(vector) ? INFO_ERROR_CODE : 0);
    // In real mode exceptions push no error code (27.6.1.1).
    if ((vmcs_read(VMCS_GUEST_CR0) & 1) == 0)
        v->requeue_info &= ~INFO_ERROR_CODE;
    v->requeue_error = error;
    v->requeue_length = 0;
    v->recheck = 1;
}

void vcpu_inject_page_fault(struct vcpu *v, uint64_t linear, uint32_t error)
{
    cpu_write_cr2(linear); // the guest's CR2 is loaded while it runs here
    vcpu_inject_exception(v, 14, error);
}
