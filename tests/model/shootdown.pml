// SPDX-License-Identifier: BSD-2-Clause
// Model of ept/shootdown.c, of the entry in vmx/run.c and of the NMI handler: CPUs that enter a guest
// and shoot down at any time. One EPT, one translation; its version grows with every change.
//
// Checked: no guest access uses a version older than the last change whose shootdown has returned
// (assert), and every shootdown returns, though guests may spin forever and each NMI is sent only
// once (no invalid end state; the real code sends again, but must not depend on it).
//
// in_guest = 1 goes through a store buffer (x86-TSO), which is what the full fence is for. Each
// mutation, -DNAME, takes one link out, and tests/model/run demands that it is caught.

#define CPUS  2
#define LIMIT 3 // changes in all

byte version = 1; // of the translation in the page table
byte settled = 1; // newest version whose shootdown has returned
byte changes = 0;
byte epoch = 1;
byte seen[CPUS];
byte tlb[CPUS];       // version cached, 0: none; survives exits
bool in_guest[CPUS];  // as others see it
bool buffered[CPUS];  // in_guest = 1 is still in the store buffer
bool running[CPUS];   // the CPU executes guest code
bool nmi[CPUS];       // sent, not yet delivered
bool kicked[CPUS];    // set by the NMI handler in root mode
bool timer_zero[CPUS]; // preemption timer set to 0 by the NMI handler
bool forced_out[CPUS]; // NMI exit from the guest

// The store buffer drains when it likes.
active [CPUS] proctype store_buffer()
{
    byte c = _pid % CPUS;
end_idle:
    do
    :: atomic { buffered[c] -> buffered[c] = false; in_guest[c] = true }
    od
}

// An NMI arrives when it likes.
active [CPUS] proctype nmi_delivery()
{
    byte c = _pid % CPUS;
end_idle:
    do
    :: atomic {
           nmi[c] ->
           nmi[c] = false;
           if
           :: running[c] -> forced_out[c] = true
           :: else ->
               kicked[c] = true;
#ifndef NO_WINDOW_GUARD
               timer_zero[c] = true;
#endif
               skip
           fi
       }
    od
}

inline shootdown(c)
{
    changes++;
#ifdef BUMP_BEFORE_CHANGE
    epoch++;
    target = epoch;
    version++;
    mine = version;
#else
    atomic { version++; mine = version } // the page-table write
    atomic { epoch++; target = epoch }   // lock xadd
#endif
    if
    :: in_guest[1 - c] && seen[1 - c] < target ->
#ifndef NO_NMI
        nmi[1 - c] = true;
#endif
        skip
    :: else -> skip
    fi;
#ifndef NO_WAIT
    !(in_guest[1 - c] && seen[1 - c] < target); // blocks until it is true
#endif
    atomic {
        if
        :: settled < mine -> settled = mine
        :: else -> skip
        fi
    }
}

inline invept(c)
{
#ifndef NO_INVEPT
    tlb[c] = 0
#else
    skip
#endif
}

inline enter_and_run(c)
{
    timer_zero[c] = false; // the slice's deadline is programmed
    buffered[c] = true;    // in_guest = 1
#ifndef NO_FENCE
    !buffered[c];
#endif
    now_epoch = epoch;
    if
    :: seen[c] != now_epoch ->
        invept(c);
        seen[c] = now_epoch
    :: else -> skip
    fi;
    if
    :: kicked[c] -> kicked[c] = false
    :: else ->
        running[c] = true;
        accesses = 0;
        do
        :: timer_zero[c] -> break
        :: forced_out[c] -> break
        :: accesses == 0 -> break // the guest left by itself
        :: accesses < 2 && !timer_zero[c] ->
            atomic {
                if
                :: tlb[c] == 0 -> tlb[c] = version
                :: else -> skip
                fi;
                assert(tlb[c] >= settled);
                accesses++
            }
        :: accesses == 2 ->
end_guest:  // it spins with interrupts off: only an NMI gets it out
            (forced_out[c] || timer_zero[c]) -> break
        od;
        atomic { running[c] = false; forced_out[c] = false }
    fi;
    !buffered[c]; // stores reach memory in order
    in_guest[c] = false
}

active [CPUS] proctype cpu()
{
    byte c = _pid % CPUS;
    byte target, mine, now_epoch, accesses;
end_scheduler:
    do
    :: atomic { changes < LIMIT -> skip } shootdown(c)
    :: enter_and_run(c)
    od
}
