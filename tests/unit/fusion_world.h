// SPDX-License-Identifier: BSD-2-Clause
// A small machine for the tests of fusion: the real EPTs, frame allocator, heap, guest memory,
// index and fusion engine of several VMs; and CPUs that cache translations like hardware does: what
// a CPU has in its TLB is used until an INVEPT drops it. So a shootdown that is missing shows as a
// guest that does not read what it last wrote.
//
// Every write of a guest also goes to a model, and every read is compared with it.
//
// "Other CPUs" act at points: world_at() orders an action before the n-th passage of one, by any
// code. A test whose CPUs are coroutines sets world.step instead.
#pragma once

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "fake.h"
#include "fusion/engine.h"
#include "fusion/fusion.h"
#include "fusion/page_ops.h"
#include "kernel/error.h"
#include "kernel/frames.h"
#include "kernel/lock.h"
#include "kernel/memory.h"
#include "kernel/percpu.h"
#include "kernel/time.h"
#include "vm/memory.h"
#include "vm/vm_object.h"

#define WORLD_CPUS 4u
#define WORLD_VMS  5u
#define WORLD_GFNS 4096u // of one VM at most
#define WORLD_TLB  256u
#define NOBODY     WORLD_VMS // no VM

#define SECOND tsc_hz

// Where somebody else may act.
enum world_point {
    POINT_SHOOTDOWN, // before one begins
    POINT_SHOT,      // after it
    POINT_GFN_LOCK,
    POINT_BUCKET_LOCK,
    POINT_LOOKUP, // before a leaf is read, also under locks
    POINT_LOOKED, // and after it
    POINT_ALLOC,
    POINT_HASH,
    POINT_EQUAL,
    POINT_YIELD,
    POINT_RELAX, // in a loop that waits
    POINTS
};

enum world_access { READ = 1, WRITE = 2, FETCH = 4, WALK = 8 };

struct world_tlb {
    uint64_t eptp; // 0: empty
    uint64_t gfn;
    uint64_t frame;
    unsigned permissions;
    int level;
    bool dirty;
};

struct world_cpu {
    unsigned vm;    // in whose guest it is, or NOBODY
    bool nmi;       // pending: taken at its next step
    unsigned alls;  // INVEPTs of all contexts that the TLB knows of
    unsigned round; // of evictions
    struct world_tlb tlb[WORLD_TLB];
};

struct world {
    struct vm vm[WORLD_VMS];
    uint8_t *model[WORLD_VMS][WORLD_GFNS]; // NULL: zero
    struct world_cpu cpu[WORLD_CPUS];
    uint64_t hash_mask;  // what is left of hashes; 0: all collide
    uint64_t next_id;    // of VMs
    unsigned stale;      // reads that did not find what was written last
    unsigned skip;       // the n-th shootdown from now is left out; 0: none
    uint64_t skipped;    // how many were
    unsigned fail_at;    // the n-th allocation from now fails; 0: none
    bool failed;         // it did
    unsigned shootdowns; // all that were asked for
    unsigned compares;   // of pages
    unsigned yields;
    bool doorbell[WORLD_VMS];
    bool coroutines;         // CPUs are; an NMI is taken at the next step
    uint64_t fusor_at_start; // frames
    uint64_t free_at_start;
    // Called at every point instead of the actions of world_at().
    void (*step)(enum world_point point);
    void (*serve)(void *); // the service fiber's function
    void (*sleep)(void);   // instead of the end of service_round()
    bool may_wait;         // guests may meet a lack of memory
};
extern struct world world;

// Set before world_start(): so many more frames behind the others, which the test adds itself.
extern uint64_t world_late_frames;

// A machine of `frames` frames (0: 4096) without VMs; ends what was before.
void world_start(uint64_t frames);
// Destroys all VMs and looks whether everything is back.
void world_finish(void);
// VM `n` with memory; group "" is private. world_config may be changed between the two steps.
void world_configure(unsigned n, uint64_t memory, const char *group);
int world_create(unsigned n);
void world_vm(unsigned n, uint64_t memory, const char *group);
// Two to five VMs of 4 MiB in one group.
void world_vms(unsigned count);
void world_reset(unsigned n); // memory is destroyed and made anew
void world_end_vm(unsigned n, bool forget);
static inline struct fusion_vm *world_fusion(unsigned n)
{
    return fusion_of(&world.vm[n]);
}

// From the next `n`-th passage of `point` on: `action` is called once, before it, on CPU `cpu`.
void world_at(enum world_point point, unsigned n, unsigned cpu, void (*action)(void));
// How many orders have not come to pass; they are forgotten.
unsigned world_pending(void);

// Makes `cpu` the one that runs, in root mode. Returns the one before.
unsigned world_use(unsigned cpu);
void world_leave(unsigned cpu);
void world_invept(void); // what an INVEPT of this CPU does to its TLB
// The page behind gfn as CPU `cpu`, running the guest, reaches it; NULL: it has to wait for memory.
// A write must be done, and noted in the model, before anything else happens.
uint8_t *world_access(unsigned cpu, unsigned n, uint64_t gfn, unsigned access);
// What `cpu` sees at gfn of the guest it is in, without a walk: NULL when it has no translation.
const uint8_t *world_cached(unsigned cpu, uint64_t gfn);
uint8_t *world_model(unsigned n, uint64_t gfn); // to be written to

// A guest on `cpu` writes; false: no memory.
bool store(unsigned cpu, unsigned n, uint64_t gfn, unsigned offset, uint64_t value);
void fill(unsigned cpu, unsigned n, uint64_t gfn, uint64_t pattern); // the whole page
// Reads the whole page and compares it with the model.
void load(unsigned cpu, unsigned n, uint64_t gfn);
// Fusor writes for the guest, or reads.
int fusor_write(unsigned n, uint64_t address, const void *data, size_t size);
void fusor_read(unsigned n, uint64_t gfn);

// Hints of CPU 0 for VM n. Each looks at everything afterwards (world_check).
int64_t hint(unsigned n, uint64_t gfn);
int64_t hint_many(unsigned n, const uint64_t *gfns, unsigned count);
int64_t hint_entry(unsigned n, uint64_t entry);
int64_t hint_range(unsigned n, uint64_t gfn);
// One round of the service fiber, a second after the last one.
void service_round(void);
void fusion_off(unsigned n);
void fusion_on(unsigned n);

struct ept_leaf leaf_of(unsigned n, uint64_t gfn);
bool is_shared(unsigned n, uint64_t gfn);
unsigned sharers_of(unsigned n, uint64_t gfn);
bool same_frame(unsigned a, uint64_t a_gfn, unsigned b, uint64_t b_gfn);
struct frames_snapshot world_snapshot(void);
uint64_t rejected(unsigned n, enum fusion_reject why);
// Takes all free frames but `left`; world_feed gives them back.
void world_starve(uint64_t left);
void world_feed(void);

// Every identity: frames, accounts, counts of sharers, index, figures; nobody waits, no lock is
// held, no candidate is left protected.
void world_check(void);
// Everything that guests wrote is what Fusor reads.
void world_check_contents(void);

static inline uint64_t figure(_Atomic uint64_t *counter)
{
    return atomic_load(counter);
}
#define FIGURE(n, name) figure(&world_fusion(n)->count.name)
