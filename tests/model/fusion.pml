// SPDX-License-Identifier: BSD-2-Clause
// Model of fusion (design section 3): intake, split, last sharer, guest_write, unmap and first touch
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
#define VMS 2
#ifdef LONG_THREE_FRAMES
#define FRAMES 3
#else
#define FRAMES 2
#endif
#define NO_FRAME FRAMES
#define NO_VM    VMS

// Leaf kinds, as in ept/ept.h.
#define ABSENT    0
#define PRIVATE   1
#define SHARED    2
#define CANDIDATE 3

// What a CPU does next.
#define RUN    0
#define WRITE  1 // a write fault, the first touch or guest_write
#define UNMAP  2
#define INTAKE 3

// What a write to a shared frame led to.
#define NO_SPLIT 0
#define COPIED   1
#define LAST     2

// The EPT leaf of each VM's gfn.
byte frame[VMS];
byte kind[VMS] = PRIVATE;
bool writable[VMS] = true;
bool locked[VMS]; // gfn lock

bool content[FRAMES];
bool is_free[FRAMES];
byte count[FRAMES];   // sharers, 0: not shared
bool indexed[FRAMES]; // the index has an entry for this shared frame

// True while the version that CPU c noted of VM v's frame has not ended: [c * VMS + v].
bool same_version[CPUS * VMS];

byte in_guest[CPUS] = NO_VM; // which VM's translations the CPU may use
bool running[CPUS];          // guest code runs
bool behind[CPUS];           // in the guest with an older epoch than the EPT's
bool kick[CPUS];             // makes the guest exit
byte shooting[CPUS] = NO_VM; // ghost: shootdown under way

// Cached translations [c * VMS + v]: 0 none, 1 + frame read-only, 1 + FRAMES + frame writable.
byte tlb[CPUS * VMS];

bool last_written[VMS]; // ghost
byte discarding[VMS];   // ghost: unmaps that have not returned; contents undefined meanwhile

#define REACHES(c, v, f)                                                                           \
    (tlb[(c) * VMS + (v)] == 1 + (f) || tlb[(c) * VMS + (v)] == 1 + FRAMES + (f))

#if CPUS > 2
#define ACKNOWLEDGED(w)                                                                            \
    (!(in_guest[0] == w && behind[0]) && !(in_guest[1] == w && behind[1]) &&                       \
     !(in_guest[2] == w && behind[2]))
#define ANY_REACHES(f)                                                                             \
    (REACHES(0, 0, f) || REACHES(0, 1, f) || REACHES(1, 0, f) || REACHES(1, 1, f) ||               \
     REACHES(2, 0, f) || REACHES(2, 1, f))
#else
#define ACKNOWLEDGED(w) (!(in_guest[0] == w && behind[0]) && !(in_guest[1] == w && behind[1]))
#define ANY_REACHES(f)                                                                             \
    (REACHES(0, 0, f) || REACHES(0, 1, f) || REACHES(1, 0, f) || REACHES(1, 1, f))
#endif

inline end_version(w)
{
    same_version[w] = false;
    same_version[VMS + w] = false
}

inline allocate(f)
{
    f = 0;
    do
    :: f < FRAMES && !is_free[f] -> f++
    :: else -> break
    od;
    if
    :: f < FRAMES -> is_free[f] = false
    :: else -> skip
    fi
}

inline release(f)
{
    assert(!is_free[f] && count[f] == 0 && !indexed[f]);
    assert(!(kind[0] != ABSENT && frame[0] == f) && !(kind[1] != ABSENT && frame[1] == f));
    assert(!ANY_REACHES(f));
    is_free[f] = true;
    content[f] = 0 // whatever it holds is of no interest: fewer states
}

// One sharer less; the last one out removes the index entry (bucket lock) and frees.
inline drop(f)
{
    assert(count[f] > 0);
    count[f]--;
    if
    :: count[f] == 0 -> indexed[f] = false; release(f)
    :: else -> skip
    fi
}

// A CPU outside the guest will compare epochs and flush before it runs guest code: done at once here.
// A CPU inside is kicked, and leaving is its acknowledgement.
inline shootdown(w)
{
    d_step {
        shooting[c] = w;
        t = 0;
        do
        :: t < CPUS && (t == c || in_guest[t] != w) -> tlb[t * VMS + w] = 0; t++
        :: t < CPUS && t != c && in_guest[t] == w ->
            behind[t] = true;
#ifdef NO_WINDOW_GUARD
            kick[t] = running[t];
#else
            kick[t] = true;
#endif
            t++
        :: else -> break
        od;
        t = 0
    };
    d_step {
        ACKNOWLEDGED(w) ->
        shooting[c] = NO_VM
    }
}

// The walk that a guest access begins with; an entry may have been evicted.
inline translate()
{
    t = c * VMS + v;
    if
    :: tlb[t] == 0 || evict ->
        if
        :: kind[v] == ABSENT -> tlb[t] = 0
        :: kind[v] != ABSENT && writable[v] -> tlb[t] = 1 + FRAMES + frame[v]
        :: else -> tlb[t] = 1 + frame[v]
        fi
    :: else -> skip
    fi;
    f = (tlb[t] == 0 -> NO_FRAME : (tlb[t] - 1) % FRAMES);
    if
    :: f != NO_FRAME ->
        assert(!behind[c] || shooting[0] == v || shooting[1] == v);                  // invariant 2
        assert(!is_free[f]);                                         // invariant 2
        assert(discarding[v] > 0 || content[f] == last_written[v]) // invariant 1
    :: else -> skip
    fi
}

inline store(g)
{
    content[g] = !content[g];
    last_written[v] = (discarding[v] > 0 -> 0 : content[g])
}

// Entry, guest code, exit. What a fault asks for is done by whatever CPU does WRITE next, so it need
// not be remembered.
inline run_guest()
{
    d_step { kick[c] = false; in_guest[c] = v };
    running[c] = true; // until here an NMI arrives in root mode
    do
    :: kick[c] -> break
    :: !kick[c] -> break // leaves by itself
    :: !kick[c] ->
end_spin: // interrupts off: only the NMI ends it
        kick[c] -> break
    :: atomic {
           !kick[c] ->
           if
           :: evict = false
           :: evict = true
           fi;
           if
           :: write = false
           :: write = true
           fi;
           d_step {
               translate();
               if
               :: f == NO_FRAME -> fault = true
               :: f != NO_FRAME && write && tlb[t] > FRAMES ->
                   assert(count[f] == 0);
                   store(f)
               :: f != NO_FRAME && write && tlb[t] <= FRAMES ->
                   tlb[t] = 0; // an EPT violation drops what was cached for the address
                   fault = true
               :: else -> skip // a read
               fi;
               f = 0; t = 0; evict = false; write = false
           };
           if
           :: fault -> break
           :: else -> skip
           fi
       }
    od;
    atomic {
        running[c] = false;
        in_guest[c] = NO_VM;
        kick[c] = false;
        if
        :: behind[c] -> behind[c] = false; tlb[c * VMS + v] = 0 // flushed at the next entry
        :: else -> skip
        fi;
        fault = false;
        v = 0
    }
}

// A fault on v's gfn or guest_write, with or without the write itself: populate, cancel, split, last sharer, spurious.
inline resolve()
{
    d_step { // before the lock
        f = NO_FRAME;
        if
        :: kind[v] == ABSENT || kind[v] == SHARED -> allocate(f)
        :: else -> skip
        fi;
        was_shared = (kind[v] == SHARED)
    };
    d_step {
        !locked[v] -> locked[v] = true;
        if
        :: kind[v] == ABSENT && f != NO_FRAME ->
            frame[v] = f; content[f] = 0; kind[v] = PRIVATE; writable[v] = true;
            f = NO_FRAME
        :: kind[v] == CANDIDATE ->
            writable[v] = true;
#ifndef NO_CANCEL
            kind[v] = PRIVATE;
            end_version(v)
#endif
#ifdef SPLIT_NO_RECHECK
        :: kind[v] == PRIVATE && !(was_shared && f != NO_FRAME) -> skip
        :: f != NO_FRAME && (kind[v] == SHARED && count[frame[v]] > 1 || kind[v] == PRIVATE && was_shared) ->
#else
        :: kind[v] == PRIVATE -> assert(writable[v]) // spurious by now
        :: kind[v] == SHARED && count[frame[v]] > 1 && f != NO_FRAME ->
#endif
            old = frame[v];
            content[f] = content[old];
            frame[v] = f;
            kind[v] = PRIVATE; // read-only, and the lock is held
#ifdef SPLIT_WRITABLE_EARLY
            writable[v] = true;
#endif
            f = NO_FRAME;
            split = COPIED
        :: kind[v] == SHARED && count[frame[v]] == 1 ->
#ifndef LAST_SHARER_KEEPS_ENTRY
            indexed[frame[v]] = false; // under the bucket lock, with the count still 1
#endif
            count[frame[v]] = 0;
            kind[v] = PRIVATE;
            split = LAST
        :: else -> skip // no frame: the vCPU waits, guest_write returns NOMEM
        fi
    };
#ifndef SPLIT_NO_FLUSH
    if
    :: split == COPIED -> shootdown(v)
    :: else -> skip
    fi;
#endif
#ifndef LAST_SHARER_NO_FLUSH
    if // a fusion may still owe the shootdown for v's former frame
    :: split == LAST -> shootdown(v)
    :: else -> skip
    fi;
#endif
    atomic {
        if
        :: host = false
        :: host = true
        fi;
        d_step {
            if
            :: split != NO_SPLIT ->
                writable[v] = true;
                end_version(v)
            :: else -> skip
            fi;
            if
            :: split == COPIED -> drop(old)
            :: else -> skip
            fi;
            if
            :: host && kind[v] != ABSENT && writable[v] -> store(frame[v])
            :: else -> skip
            fi;
            if
            :: f != NO_FRAME -> release(f) // it was not needed
            :: else -> skip
            fi;
            locked[v] = false;
            f = 0; old = 0; was_shared = false; host = false; split = NO_SPLIT; work = 0; v = 0
        }
    }
}

inline unmap()
{
    d_step {
        !locked[v] ->
        if
        :: kind[v] != ABSENT ->
            old = frame[v];
            was_shared = (kind[v] == SHARED);
            kind[v] = ABSENT; frame[v] = 0; writable[v] = false;
            end_version(v);
            discarding[v]++;
            last_written[v] = 0;
            going = true
        :: else -> skip
        fi
    };
    if
    :: going ->
        shootdown(v);
        d_step {
            if
            :: was_shared -> drop(old)
            :: else -> release(old)
            fi;
            discarding[v]--;
            if // what the guest finds from now on; ABSENT reads as zero
            :: discarding[v] == 0 && kind[v] == ABSENT -> last_written[v] = 0
            :: discarding[v] == 0 && kind[v] != ABSENT -> last_written[v] = content[frame[v]]
            :: else -> skip
            fi;
            old = 0; was_shared = false; going = false; work = 0; v = 0
        }
    :: else -> d_step { work = 0; v = 0 }
    fi
}

#ifdef NO_VERSION_CHECK
#define SAME(w) true
#else
#define SAME(w) same_version[c * VMS + (w)]
#endif

// Gives w its write permission back if it is still the candidate that this intake protected.
inline unprotect(w)
{
    if
    :: kind[w] == CANDIDATE && SAME(w) -> kind[w] = PRIVATE; writable[w] = true
    :: else -> skip
    fi
}

// A hint for v whose partner was found: the other VM's candidate, or shared frame `with`.
inline intake()
{
    d_step { // step 3
        !locked[v] ->
        o = 1 - v;
        if
        :: kind[v] == PRIVATE ->
            kind[v] = CANDIDATE;
            writable[v] = false;
            same_version[c * VMS + v] = true;
            going = true
        :: else -> skip // shared, absent, or another intake's
        fi
    };
    if
    :: going && with == NO_FRAME -> d_step {
           !locked[o] ->
           if
           :: kind[o] == PRIVATE && SAME(o) -> kind[o] = CANDIDATE; writable[o] = false
           :: else -> going = false
           fi
       };
       if
       :: !going -> d_step { !locked[v] -> unprotect(v) }
       :: else -> skip
       fi
    :: else -> skip
    fi;
    if
    :: going ->
#ifdef COMPARE_BEFORE_FLUSH
        mine = content[frame[v]];
        theirs = content[(with == NO_FRAME -> frame[o] : with)];
#endif
#ifndef NO_FIRST_FLUSH
        shootdown(v);
        if
        :: with == NO_FRAME -> shootdown(o)
        :: else -> skip
        fi;
#endif
        // Step 4, both gfn locks. A shared partner is referenced under the bucket lock.
        d_step {
            !locked[v] && (with != NO_FRAME || !locked[o]) ->
            if
            :: with == NO_FRAME && kind[v] == CANDIDATE && SAME(v) && kind[o] == CANDIDATE && SAME(o) ->
                locked[v] = true;
                locked[o] = true
            :: with != NO_FRAME && kind[v] == CANDIDATE && SAME(v) && indexed[with] ->
                assert(count[with] > 0 && !is_free[with]); // invariant 5
                count[with]++;
                locked[v] = true
            :: else ->
                unprotect(v);
                if
                :: with == NO_FRAME -> unprotect(o)
                :: else -> skip
                fi;
                going = false
            fi
        };
        if
        :: going ->
#ifndef COMPARE_BEFORE_FLUSH
            mine = content[frame[v]]; // two steps: a write in between would be missed
            theirs = content[(with == NO_FRAME -> frame[o] : with)];
#endif
            d_step {
                if
                :: mine == theirs ->
                    old = frame[v];
                    if
                    :: with == NO_FRAME ->
                        assert(same_version[c * VMS + o]); // invariant 5
                        with = frame[o];
                        kind[o] = SHARED;
                        count[with] = 2;
                        indexed[with] = true;
                        end_version(o);
                        locked[o] = false
                    :: else -> skip
                    fi;
                    frame[v] = with;
                    kind[v] = SHARED;
                    end_version(v)
                :: else ->
                    unprotect(v);
                    if
                    :: with == NO_FRAME ->
                        unprotect(o);
                        locked[o] = false
                    :: else -> drop(with)
                    fi;
                    going = false
                fi;
                locked[v] = false;
                mine = false; theirs = false
            };
            if
            :: going ->
#ifdef FREE_BEFORE_SECOND_FLUSH
                d_step { release(old) };
                shootdown(v);
#else
                shootdown(v);
                d_step { release(old) };
#endif
            :: else -> skip
            fi
        :: else -> skip
        fi
    :: else -> skip
    fi;
    d_step {
        same_version[c * VMS] = false; same_version[c * VMS + 1] = false; // dead
        o = 0; with = 0; old = 0; going = false; work = 0; v = 0
    }
}

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
    bool evict, write, fault, host, was_shared, mine, theirs, going;
end_scheduler:
    do
    :: atomic {
           if
           :: v = 0
           :: WORKS(c) -> v = 1
           fi;
           if
           :: work = RUN
           :: WORKS(c) -> work = WRITE
           :: WORKS(c) && kind[v] != ABSENT -> work = UNMAP
           // Steps 1 and 2: the hash is any hash, and the index may hold a candidate of any age.
           :: WORKS(c) && kind[v] == PRIVATE -> with = NO_FRAME; work = INTAKE
           :: WORKS(c) && kind[v] == PRIVATE && (kind[1 - v] == PRIVATE || kind[1 - v] == CANDIDATE) ->
               same_version[c * VMS + 1 - v] = true;
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
       :: work == UNMAP -> unmap()
       :: work == INTAKE -> intake()
       fi
    od
}
