// SPDX-License-Identifier: BSD-2-Clause
// Model of the balloon and of the reset of a VM, beside all that fusion.pml has: VM 0 gives its page,
// reads it, writes to it or takes it back, and is reset at any moment, by either CPU, while fusion
// goes on for both VMs and VM 1 runs.
//
// Checked, beside what fusion.pml checks:
//   1  contents, also of what is in the balloon (zero) and of what came back or was reset (7);
//   2  a frame given is freed, or left, only after the shootdown; at a reset no CPU has a
//      translation left when the tables and the page of zeros go;
//   5  a version that was noted of a frame given since, or of a VM reset since, is never acted on;
//   6  what VM 0 does never changes what VM 1 reads from a frame that both had;
//   8  a reset VM's account is zero, and sharers are what the counts of frames say.
// A gfn in the balloon maps nothing, or the page of zeros, which no other gfn maps. A reset meets no
// lock and no candidate, and ends.
#define CPUS   2
#define FRAMES 2
#define RESETS

#ifdef LONG_BOTH_VMS
#define SUBJECT(w) true
#else
#define SUBJECT(w) (w == 0)
#endif

// Mutations of fusion.inc that show only here.
#ifdef POPULATE_NO_RECHECK
#define POPULATES_BLINDLY
#endif
#ifdef PIN_LOOKS_FIRST
#define PINS_LATE
#endif

#include "fusion.inc"
#include "balloon.inc"

init
{
    d_step {
        frame[1] = 1;
        private_frames[0] = 1;
        private_frames[1] = 1
    }
    atomic {
        run cpu(0);
        run cpu(1)
    }
}

proctype cpu(byte c)
{
    byte v, o, f, t, old, with, split, work;
    bool evict, write, fault, host, was_shared, populating, mine, theirs, going, pinned, by_pin;
end_scheduler:
    do
    :: atomic {
           if
           :: v = 0
           :: v = 1
           fi;
           if // a vCPU of v, in the guest or in root mode; the fiber that resets; a pin
           :: !stopping[v] -> enter_guest(); work = RUN
           :: !stopping[v] && !ballooned[v] -> work = WRITE
           :: !stopping[v] && SUBJECT(v) && kind[v] != ABSENT && kind[v] != ZERO -> work = GIVE
           :: !stopping[v] && SUBJECT(v) -> host = true; work = GIVE
           :: !stopping[v] && ballooned[v] -> work = RETURN
           :: !stopping[v] && ballooned[v] && kind[v] == ABSENT -> work = READ
           :: !stopping[v] && SUBJECT(v) -> begin_reset(); work = RESET
           :: !inactive[v] && kind[v] == SHARED -> by_pin = true; work = WRITE
           // Steps 1 and 2: the hash is any hash, and the index may hold a candidate of any age.
           :: !inactive[v] && kind[v] == PRIVATE -> by_pin = true; with = NO_FRAME; work = INTAKE
           :: !inactive[v] && kind[v] == PRIVATE &&
              (kind[1 - v] == PRIVATE || kind[1 - v] == CANDIDATE) ->
               noted[c * VMS + 1 - v] = 1 + frame[1 - v];
               by_pin = true; with = NO_FRAME; work = INTAKE
           :: !inactive[v] && kind[v] == PRIVATE && indexed[0] ->
               by_pin = true; with = 0; work = INTAKE
           :: !inactive[v] && kind[v] == PRIVATE && indexed[1] ->
               by_pin = true; with = 1; work = INTAKE
           :: else -> v = 0; goto end_scheduler
           fi;
           if
           :: work != RUN && work != RESET ->
               users[v] = users[v] + by_pin;
               inside[v] = inside[v] + !by_pin
           :: else -> skip
           fi
       };
       if
       :: work == RUN -> run_guest()
       :: work == WRITE -> resolve()
       :: work == GIVE -> give()
       :: work == INTAKE -> intake()
       :: work == RETURN -> take_back()
       :: work == READ -> read_ballooned()
       :: work == RESET -> reset()
       fi
    od
}
