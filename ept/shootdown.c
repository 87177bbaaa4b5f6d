// SPDX-License-Identifier: BSD-2-Clause
// Epochs and shootdown (design section 3). tests/model/shootdown.pml is the model of this file.
//
// Entry (ept_guest_begin):  in_guest = 1; full fence; read the epoch; INVEPT if behind; seen =
// epoch. Initiator (after it changed entries):  epoch += 1; full fence; look at in_guest of every
// CPU.
//
// Of the two fences one comes second, so either the entering CPU reads the new epoch and
// invalidates, or the initiator sees in_guest and waits. The epoch is read before the INVEPT, so
// that an epoch that comes in between is not counted as seen. (In root mode no translation of the
// guest can be cached anew, SDM vol. 3, 29.4.2, so the other order would do as well; this one needs
// no such argument.)
//
// Nobody deadlocks: who waits here is in root mode with its own in_guest = 0, so two initiators
// never wait for each other; and a CPU whose in_guest is 1 takes no lock and waits for nobody until
// it has cleared it, so the initiator may hold locks.
//
// The NMI is only a means to make a CPU leave the guest. If it arrives after in_guest = 1 but still
// in root mode, the NMI handler's kick flag makes the entry exit at once. Should one get lost all
// the same (NMIs do not queue: one that arrives while another is handled may merge with it), it is
// sent again.
#include "ept/ept.h"

#include "kernel/irq.h"
#include "kernel/panic.h"
#include "kernel/time.h"
#include "kernel/trace.h"
#include <arch/ept.h>

#define KICK_AGAIN_TICKS UINT64_C(100000)

struct ept_cpu ept_cpus[MAX_CPUS];

void ept_enter_behind(struct ept *ept, uint32_t cpu)
{
    uint64_t epoch = atomic_load_explicit(&ept->epoch, memory_order_acquire);
    bool all = atomic_exchange_explicit(&ept_cpus[cpu].flush_all, 0, memory_order_acquire) != 0;
    // Without the all-context type the single one does: a new EPT starts with nothing seen, so its
    // root is invalidated at this CPU's first entry in any case.
    if ((all || !ept_features.invept_single) && ept_features.invept_all)
        arch_invept_all();
    else
        arch_invept_single(ept->eptp);
    atomic_store_explicit(&ept->seen[cpu], epoch, memory_order_release);
}

// True while `cpu` may use translations of this EPT that are older than `epoch`. in_guest is 1 only
// on CPUs that are online.
static bool runs_older(struct ept *ept, uint32_t cpu, uint64_t epoch)
{
    return atomic_load_explicit(&ept_cpus[cpu].in_guest, memory_order_acquire) != 0 &&
           atomic_load_explicit(&ept_cpus[cpu].current, memory_order_acquire) == ept &&
           atomic_load_explicit(&ept->seen[cpu], memory_order_acquire) < epoch;
}

static void wait_for(struct ept *ept, uint32_t cpu, uint64_t epoch, uint64_t kicked_at)
{
    while (runs_older(ept, cpu, epoch)) {
        cpu_relax();
        uint64_t now = time_tsc();
        if (now - kicked_at > KICK_AGAIN_TICKS) {
            irq_send_nmi(cpu);
            kicked_at = now;
        }
    }
}

void ept_shootdown(struct ept *ept)
{
    uint32_t self = cpu_index();
    CHECK(atomic_load_explicit(&ept_cpus[self].in_guest, memory_order_relaxed) == 0);

    uint64_t epoch = atomic_fetch_add_explicit(&ept->epoch, 1, memory_order_seq_cst) + 1;
    atomic_thread_fence(memory_order_seq_cst);
    atomic_fetch_add_explicit(&ept->shootdowns, 1, memory_order_relaxed);

    // All are kicked before the first is waited for.
    uint64_t waiting = 0;
    _Static_assert(MAX_CPUS <= 64, "one bit per CPU");
    for (uint32_t cpu = 0; cpu < cpu_count; cpu++) {
        if (cpu != self && runs_older(ept, cpu, epoch)) {
            irq_send_nmi(cpu);
            waiting |= UINT64_C(1) << cpu;
        }
    }
    if (waiting == 0)
        return;
    uint64_t kicked_at = time_tsc();
    uint64_t kicked = waiting;
    for (uint32_t cpu = 0; waiting != 0; cpu++, waiting >>= 1) {
        if ((waiting & 1) != 0)
            wait_for(ept, cpu, epoch, kicked_at);
    }
    trace(TRACE_KICK, "ept", NULL, epoch, kicked, time_tsc() - kicked_at);
}
