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
#include "kernel/trace.h"
#include "vmx/capability.h"
#include "vmx/events.h"
#include "vmx/exits.h"
#include "vmx/instructions.h"
#include "vmx/run.h"
#include "vmx/startup.h"
#include "vmx/vmcs.h"

extern int vmx_enter(uint64_t gpr[16], int launched); // vmx/entry.asm

#define ENTRY_FAILURE (1u << 31)

// Called by the NMI handler in root mode.
void vmx_nmi_before_entry(void)
{
    if (ept_cpus[cpu_index()].in_guest != 0)
        vmcs_write(VMCS_PREEMPTION_TIMER, 0);
}

// Returns whether the guest ran. Interrupts are off.
static inline bool enter(struct vcpu *v, struct cpu *cpu, struct ept_cpu *e)
{
    atomic_store_explicit(&e->in_guest, 1, memory_order_release);
    atomic_thread_fence(memory_order_seq_cst);
    ept_enter(v->ept, cpu->index);
    if (__builtin_expect(cpu->kicked != 0, 0)) {
        atomic_store_explicit(&e->in_guest, 0, memory_order_release);
        cpu->kicked = 0;
        return false;
    }
    int failed = vmx_enter(v->gpr, v->launched);
    atomic_store_explicit(&e->in_guest, 0, memory_order_release);
    if (__builtin_expect(failed != 0, 0)) {
        vcpu_crash(v, "VM entry failed (VM-instruction error %u)",
                   vmcs_read32(VMCS_INSTRUCTION_ERROR));
        return false;
    }
    v->launched = true;
    v->event_loaded = false;
    return true;
}

// Exit reasons below this have a handler that is called at once: all of them, or none while the
// trace is on. So tracing costs nothing while it is off. Not _Atomic, for which GCC loads it into a
// register first; a word is read whole anyway, and every exit handler makes the compiler read anew.
static uint32_t direct_exits = EXIT_REASONS;

void vmx_trace_exits(bool on)
{
    direct_exits = on ? 0 : EXIT_REASONS;
}

// What an exit says of itself beyond its reason.
static uint64_t exit_info(const struct vcpu *v, unsigned reason)
{
    switch (reason) {
    case EXIT_EXCEPTION_OR_NMI:
    case EXIT_EXTERNAL_INTERRUPT:
        return vmcs_read32(VMCS_EXIT_INTERRUPTION_INFO);
    case EXIT_CPUID:
    case EXIT_VMCALL:
        return v->gpr[REG_RAX];
    case EXIT_RDMSR:
    case EXIT_WRMSR:
        return v->gpr[REG_RCX];
    default:
        return vmcs_read(VMCS_EXIT_QUALIFICATION);
    }
}

// The way of every exit while the trace is on. False: nobody expects this reason.
static __attribute__((noinline)) bool trace_exit(const struct vcpu *v, unsigned reason)
{
    const char *name = vmx_exit_name(reason);
    bool has_address = reason == EXIT_EPT_VIOLATION || reason == EXIT_EPT_MISCONFIGURATION;
    trace(TRACE_EXIT, v->name, name != NULL ? name : "unknown", vmcs_read(VMCS_GUEST_RIP),
          exit_info(v, reason), has_address ? vmcs_read(VMCS_GUEST_PHYSICAL_ADDRESS) : 0);
    return reason < EXIT_REASONS;
}

// What the exit says; the handler of its reason.
static inline enum vcpu_result leave(struct vcpu *v)
{
    uint32_t reason = vmcs_read32(VMCS_EXIT_REASON);
    uint32_t vectoring = vmcs_read32(VMCS_IDT_VECTORING_INFO);
    if (__builtin_expect((vectoring & INFO_VALID) != 0 && (reason & ENTRY_FAILURE) == 0, 0))
        vcpu_save_interrupted_event(v, vectoring);
    if (__builtin_expect(v->eoi_armed, 0))
        v->ops->settle_eoi(v);
    unsigned index = reason & 0xffffu;
    if (__builtin_expect(index >= direct_exits, 0) && !trace_exit(v, index))
        return vcpu_exit_unknown(v);
    // Only this CPU writes the count; readers see whole values.
    uint64_t count = atomic_load_explicit(&v->exits[index], memory_order_relaxed);
    atomic_store_explicit(&v->exits[index], count + 1, memory_order_relaxed);
    return vcpu_exit_handlers[index].handle(v);
}

// The way that is not taken at every entry: timers, the end of the slice, requests, events. Returns
// true when the run ends with *next.
static bool look_around(struct vcpu *v, uint64_t now, enum sched_next *next)
{
    atomic_store_explicit(&this_cpu()->last_alive, now, memory_order_relaxed);
    uint32_t recheck = atomic_exchange(&v->recheck, 0);
    if (now >= v->next_timer || v->retime != 0) {
        v->retry_quiet = false;
        v->retime = 0; // before the look at the timers: whoever arms one afterwards says so anew
        vcpu_set_timer(v, MAX(v->ops->run_timers(v, now), now + 1));
        recheck |= atomic_exchange(&v->recheck, 0);
    }
    if (v->stop != 0) {
        v->recheck = 1;
        v->entity.wake_deadline = UINT64_MAX;
        *next = SCHED_SLEEP;
        return true;
    }
    if (now >= v->until || sched_must_yield(cpu_index())) {
        v->recheck |= recheck;
        *next = SCHED_AGAIN;
        return true;
    }
    if (v->startup != 0)
        vcpu_take_startup(v);
    if (v->parked) {
        v->recheck = 1;
        v->entity.wake_deadline = UINT64_MAX;
        *next = SCHED_SLEEP;
        return true;
    }
    if (recheck != 0)
        vcpu_prepare_events(v);
    if (v->event_loaded)
        v->retry_quiet = false;
    if (v->halted) {
        v->recheck = 1; // when it wakes up
        v->entity.wake_deadline = v->next_timer;
        *next = SCHED_SLEEP;
        return true;
    }
    return false;
}

// Is the exit that cannot be finished the one of the last wait? Notes it for the next time.
static bool same_exit(struct vcpu *v)
{
    struct vcpu_wait now = {
        .rip = vmcs_read(VMCS_GUEST_RIP),
        .address = vmcs_read(VMCS_GUEST_PHYSICAL_ADDRESS),
        .reason = vmcs_read32(VMCS_EXIT_REASON),
    };
    bool same =
        now.rip == v->wait.rip && now.address == v->wait.address && now.reason == v->wait.reason;
    v->wait = now;
    return same;
}

static uint64_t count_exits(const struct vcpu *v)
{
    uint64_t sum = 0;
    for (unsigned i = 0; i < EXIT_REASONS; i++)
        sum += atomic_load_explicit(&v->exits[i], memory_order_relaxed);
    return sum;
}

// The last exit could not be finished: no frame.
//
// That there was one exit since the retry began does not say yet that the guest executed nothing:
// what it waited for may have been settled without it (`vm fusion off` makes pages its own), so
// that it went on, looked at the time, and needs another frame now.
static void begin_wait(struct vcpu *v)
{
    bool same = same_exit(v);
    v->nothing_ran =
        same && v->retries_memory && v->retry_quiet && count_exits(v) == v->retry_exits + 1;
    v->waiting_memory = true;
    v->ops->wait_memory(v, true);
}

// Tries what it waited for again.
static void end_wait(struct vcpu *v)
{
    v->retries_memory = true;
    v->retry_quiet = true;
    v->retry_exits = count_exits(v);
    v->waiting_memory = false;
    v->ops->wait_memory(v, false);
}

static enum sched_next run_loop(struct vcpu *v, uint64_t until)
{
    struct cpu *cpu = this_cpu();
    struct ept_cpu *e = &ept_cpus[cpu->index];
    enum sched_next next;
    atomic_store_explicit(&e->current, v->ept, memory_order_relaxed);
    v->recheck = 1; // so that the first pass looks around
    v->until = until;
    vcpu_set_timer(v, v->next_timer);
    for (;;) {
        uint64_t now = time_tsc();
        if (__builtin_expect(now >= v->deadline || v->recheck != 0, 0))
            if (look_around(v, now, &next))
                return next;
        // A slice is short: the count fits 32 bits.
        vmcs_write(VMCS_PREEMPTION_TIMER,
                   ((v->deadline - now) >> vmx_capability.preemption_shift) + 1);
        if (__builtin_expect(!enter(v, cpu, e), 0)) {
            v->recheck = 1; // a kick: somebody wants something
            continue;
        }
        if (__builtin_expect(leave(v) == VCPU_WAIT, 0)) {
            begin_wait(v);
            v->entity.wake_deadline = now + tsc_hz / 100;
            return SCHED_SLEEP;
        }
    }
}

static const char *leave_reason(const struct vcpu *v, enum sched_next next)
{
    if (v->stop != 0)
        return "stopped";
    if (v->waiting_memory)
        return "waits-for-memory";
    if (next == SCHED_AGAIN)
        return "slice-over";
    return v->parked ? "waits-for-startup" : "halted";
}

enum sched_next vcpu_run(struct sched_entity *e, uint64_t until)
{
    struct vcpu *v = container_of(e, struct vcpu, entity);
    if (v->stop != 0 || (v->parked && v->startup == 0)) {
        e->wake_deadline = UINT64_MAX;
        return SCHED_SLEEP;
    }
    if (v->waiting_memory)
        end_wait(v);
    vcpu_load(v);
    if (v->tells_guest && v->ops->loaded(v))
        vmx_invvpid(v->vpid);
    if (!v->entered && v->id == 0) {
        v->entered = true;
        log_info("%s: first instruction %lu ticks after EFI entry", e->name,
                 time_tsc() - boot_info_get()->entry_tsc);
    }
    trace(TRACE_RUN, v->name, NULL, until, 0, 0);
    enum sched_next next = run_loop(v, until);
    trace(TRACE_LEAVE, v->name, leave_reason(v, next), 0, 0, 0);
    if (v->retries_memory)
        v->retries_memory = false;
    // An event in the VMCS that no entry consumed yet must survive the unload: it does, the VMCS
    // keeps it.
    vcpu_unload(v);
    if (v->tells_guest)
        v->ops->unloaded(v);
    return next;
}

bool vcpu_wanted(const struct vcpu *v)
{
    if (v->apicv && __atomic_load_n(&v->vapic->posted.outstanding, __ATOMIC_RELAXED) != 0)
        return true;
    return v->recheck != 0 || time_tsc() >= v->deadline || sched_must_yield(cpu_index());
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

// Who posts sets the request first and looks at the vCPU then; a vCPU that leaves the guest clears
// in_guest first and looks for requests then (look_around() before it sleeps, run_loop() when it
// begins), with locked instructions in between on both sides. So either the vCPU is seen out of the
// guest here, or it sees the request. in_guest is its CPU's, but if the vCPU is on that CPU before
// and after the look, and was all the time, it is this vCPU's; and if it was away meanwhile it
// began a run, and so looked, after the request was set.
//
// A notification that comes too late for this vCPU stays pending until the CPU's next entry, which
// processes that vCPU's own descriptor, or exits; nothing is lost.
void vcpu_notify_posted(struct vcpu *v)
{
    int cpu = __atomic_load_n(&v->entity.cpu, __ATOMIC_SEQ_CST);
    if (cpu == (int)cpu_index()) {
        v->recheck = 1;
        return;
    }
    // A retry wants to know of every event (begin_wait()).
    if (cpu >= 0 && v->apicv && !v->retries_memory &&
        atomic_load_explicit(&ept_cpus[cpu].in_guest, memory_order_seq_cst) != 0 &&
        __atomic_load_n(&v->entity.cpu, __ATOMIC_SEQ_CST) == cpu) {
        irq_send_posted((uint32_t)cpu);
        return;
    }
    vcpu_notify(v);
}

void vcpu_notify_timer(struct vcpu *v)
{
    atomic_store_explicit(&v->retime, 1, memory_order_seq_cst);
    vcpu_notify(v);
}

void vcpu_notify_startup(struct vcpu *v)
{
    atomic_store_explicit(&v->startup, 1, memory_order_seq_cst);
    vcpu_notify(v);
}

void vcpu_request_stop(struct vcpu *v)
{
    atomic_store_explicit(&v->stop, 1, memory_order_seq_cst);
    atomic_store_explicit(&v->recheck, 1, memory_order_seq_cst);
    kick(v);
}

bool vcpu_is_out(const struct vcpu *v)
{
    return v->stop != 0 && __atomic_load_n(&v->entity.cpu, __ATOMIC_ACQUIRE) < 0;
}

void vcpu_allow_run(struct vcpu *v)
{
    v->next_timer = 0; // deadlines may have moved
    sched_count_sleep(&v->entity, true);
    atomic_store_explicit(&v->stop, 0, memory_order_seq_cst);
    sched_wake(&v->entity);
}
