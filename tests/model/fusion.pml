// SPDX-License-Identifier: BSD-2-Clause
// Model of fusion (design section 3): intake, split, last sharer, guest_write, free-page report and first touch
// on two CPUs, each of which may at any time run a vCPU of either VM or do any of these for either
// VM. One gfn per VM, contents of one bit, FRAMES frames.
//
// Checked (assertions, and no invalid end state):
//   1  a guest's read finds what the VM last wrote, on every CPU, at once;
//   2  no guest access uses a translation older than a shootdown that has returned, and no CPU can
//      still reach a frame when it is freed;
//   3  of concurrent splits of one gfn one wins: counts never underflow, a frame is freed once;
//   5  an index entry is never acted on after its version has ended: nothing is fused by a candidate
//      that is not what was noted, and a shared entry always names a frame that is shared.
// Every operation returns, though guests may spin with interrupts off.
//
// What is abstracted and why that is sound: README.md. Each mutation, -DNAME, takes one link out,
// and tests/model/run demands that it is caught.

// On two CPUs a frame that becomes writable too early does no harm, because the CPU that splits is not
// in the guest: one to write and one to read with the old translation are needed beside it.
#if defined(VARIANT_GUEST_CPUS) || defined(SPLIT_WRITABLE_EARLY)
#define CPUS 3 // CPU 0 does everything, the others only run VM 0
#else
#define CPUS 2
#endif
#ifdef LONG_THREE_FRAMES
#define FRAMES 3
#else
#define FRAMES 2
#endif
#include "fusion.inc"
#include "balloon.inc"

init
{
    d_step {
        frame[1] = 1;
#if FRAMES > 2
        is_free[2] = true;
#endif
    }
    atomic {
        run cpu(0);
        run cpu(1);
#if CPUS > 2
        run cpu(2)
#endif
    }
}

#define WORKS(c) (CPUS == 2 || c == 0)

proctype cpu(byte c)
{
    byte v, o, f, t, old, with, split, work;
    bool evict, write, fault, host, was_shared, populating, mine, theirs, going;
end_scheduler:
    do
    :: atomic {
           if
           :: v = 0
           :: WORKS(c) -> v = 1
           fi;
           if
           :: enter_guest(); work = RUN
           :: WORKS(c) -> work = WRITE
           :: WORKS(c) && kind[v] != ABSENT -> work = GIVE
           // Steps 1 and 2: the hash is any hash, and the index may hold a candidate of any age.
           :: WORKS(c) && kind[v] == PRIVATE -> with = NO_FRAME; work = INTAKE
           :: WORKS(c) && kind[v] == PRIVATE && (kind[1 - v] == PRIVATE || kind[1 - v] == CANDIDATE) ->
               noted[c * VMS + 1 - v] = 1 + frame[1 - v];
               with = NO_FRAME;
               work = INTAKE
           :: WORKS(c) && kind[v] == PRIVATE && indexed[0] -> with = 0; work = INTAKE
           :: WORKS(c) && kind[v] == PRIVATE && indexed[1] -> with = 1; work = INTAKE
#if FRAMES > 2
           :: WORKS(c) && kind[v] == PRIVATE && indexed[2] -> with = 2; work = INTAKE
#endif
           fi
       };
       if
       :: work == RUN -> run_guest()
       :: work == WRITE -> resolve()
       :: work == GIVE -> give()
       :: work == INTAKE -> intake()
       fi
    od
}
