// SPDX-License-Identifier: BSD-2-Clause
// Runs a vCPU: the loop of entries and exits. This is the hottest code of Fusor; the bare round
// trip is measured by `make bench`.
//
// Shootdown protocol (design section 3, ept/shootdown.c): interrupts off, in_guest = 1, full fence,
// compare epochs, enter. An NMI that arrives in between marks the CPU as kicked and sets the
// preemption timer of the loaded VMCS to 0 (nmi_before_entry), so the entry exits at once.
#include <arch/cpu.h>

#include "kernel/init.h"
#include "kernel/irq.h"
#include "kernel/log.h"
#include "kernel/percpu.h"
#include "kernel/time.h"
#include "vmx/capability.h"
#include "vmx/events.h"
#include "vmx/exits.h"
#include "vmx/instructions.h"
#include "vmx/run.h"
#include "vmx/vmcs.h"

extern int vmx_enter(uint64_t gpr[16], int launched); // vmx/entry.asm

#define ENTRY_FAILURE (1u << 31)

// Called by the NMI handler in root mode.
void vmx_nmi_before_entry(void)
{
    if (ept_cpus[cpu_index()].in_guest != 0)
        vmcs_write(VMCS_PREEMPTION_TIMER, 0);
}

static void set_preemption_timer(uint64_t now, uint64_t deadline)
{
    uint64_t ticks = deadline > now ? ((deadline - now) >> vmx_capability.preemption_shift) + 1 : 1;
    vmcs_write(VMCS_PREEMPTION_TIMER, MIN(ticks, 0xffffffffu));
}

// Returns whether the guest ran. Interrupts are off.
static bool enter(struct vcpu *v, struct cpu *cpu)
{
    ept_guest_begin(v->ept, cpu->index);
    if (__builtin_expect(cpu->kicked != 0, 0)) {
        ept_guest_end(cpu->index);
        cpu->kicked = 0;
        return false;
    }
    int failed = vmx_enter(v->gpr, v->launched);
    ept_guest_end(cpu->index);
    if (__builtin_expect(failed != 0, 0)) {
        vcpu_crash(v, "VM entry failed (VM-instruction error %u)",
                   vmcs_read32(VMCS_INSTRUCTION_ERROR));
        return false;
    }
    v->launched = true;
    v->event_loaded = false;
    return true;
}

// One entry and its exit.
static enum vcpu_result step(struct vcpu *v, struct cpu *cpu)
{
    if (!enter(v, cpu))
        return VCPU_RESUME;
    uint32_t reason = vmcs_read32(VMCS_EXIT_REASON);
    uint32_t vectoring = vmcs_read32(VMCS_IDT_VECTORING_INFO);
    unsigned index = reason & 0xffffu;
    if (index < EXIT_REASONS) {
        // Only this CPU writes; readers see whole values.
        uint64_t count = atomic_load_explicit(&v->exits[index], memory_order_relaxed);
        atomic_store_explicit(&v->exits[index], count + 1, memory_order_relaxed);
    }
    if (__builtin_expect((vectoring & INFO_VALID) != 0 && (reason & ENTRY_FAILURE) == 0, 0))
        vcpu_save_interrupted_event(v, vectoring);
    return vcpu_handle_exit(v, reason);
}

static enum sched_next run_loop(struct vcpu *v, uint64_t until)
{
    struct cpu *cpu = this_cpu();
    for (;;) {
        uint64_t now = time_tsc();
        cpu->last_alive = now;
        if (__builtin_expect(now >= v->next_timer, 0))
            v->next_timer = v->ops->run_timers(v, now);
        if (__builtin_expect(v->stop != 0, 0)) {
            v->entity.wake_deadline = UINT64_MAX;
            return SCHED_SLEEP;
        }
        if (__builtin_expect(now >= until || sched_must_yield(cpu->index), 0))
            return SCHED_AGAIN;
        if (v->recheck != 0 || v->requeue_info != 0)
            vcpu_prepare_events(v);
        if (__builtin_expect(v->halted, 0)) {
            v->entity.wake_deadline = v->next_timer;
            return SCHED_SLEEP;
        }
        set_preemption_timer(now, MIN(until, v->next_timer));
        switch (step(v, cpu)) {
        case VCPU_RESUME:
            break;
        case VCPU_BLOCK: // the loop looks for events once more before it sleeps
        case VCPU_STOP:
            break;
        case VCPU_WAIT:
            v->waiting_memory = true;
            v->ops->wait_memory(v, true);
            v->entity.wake_deadline = now + tsc_hz / 100;
            return SCHED_SLEEP;
        }
    }
}

enum sched_next vcpu_run(struct sched_entity *e, uint64_t until)
{
    struct vcpu *v = container_of(e, struct vcpu, entity);
    if (v->stop != 0) {
        e->wake_deadline = UINT64_MAX;
        return SCHED_SLEEP;
    }
    if (v->waiting_memory) {
        v->waiting_memory = false;
        v->ops->wait_memory(v, false);
    }
    vcpu_load(v);
    if (!v->entered) {
        v->entered = true;
        log_info("%s: first instruction %lu ticks after EFI entry", e->name,
                 time_tsc() - boot_info_get()->entry_tsc);
    }
    enum sched_next next = run_loop(v, until);
    // An event in the VMCS that no entry consumed yet must survive the unload: it does, the VMCS
    // keeps it.
    vcpu_unload(v);
    return next;
}

// Ends a run in the guest on another CPU, so that it looks at the flags again.
static void kick(struct vcpu *v)
{
    int cpu = __atomic_load_n(&v->entity.cpu, __ATOMIC_ACQUIRE);
    // Also when it is in root mode: it may have looked at the flags already; the entry then
    // bounces.
    if (cpu >= 0 && (uint32_t)cpu != cpu_index())
        irq_send_nmi((uint32_t)cpu);
}

void vcpu_notify(struct vcpu *v)
{
    atomic_store_explicit(&v->recheck, 1, memory_order_seq_cst);
    if (__atomic_load_n(&v->entity.cpu, __ATOMIC_ACQUIRE) == (int)cpu_index())
        return; // it is this CPU's, in an exit: the loop looks before it enters
    sched_wake(&v->entity);
    kick(v);
}

void vcpu_request_stop(struct vcpu *v)
{
    atomic_store_explicit(&v->stop, 1, memory_order_seq_cst);
    kick(v);
}

bool vcpu_is_out(const struct vcpu *v)
{
    return v->stop != 0 && __atomic_load_n(&v->entity.cpu, __ATOMIC_ACQUIRE) < 0;
}

void vcpu_allow_run(struct vcpu *v)
{
    v->next_timer = 0; // deadlines may have moved
    atomic_store_explicit(&v->stop, 0, memory_order_seq_cst);
    sched_wake(&v->entity);
}
