// SPDX-License-Identifier: BSD-2-Clause
// The rooms of test=stress: pages whose every word is known at any time, whichever CPU looks.
//
// A page has one owner, a CPU, which alone changes what it holds. A change is published in two
// steps: `begun` says what the page is about to hold, then the words are written, then `done` says
// that it does. Whoever reads `done`, a word, `begun`, in this order, may see the old or the new
// content of a change that is under way, and nothing else: what `done` said must be seen, through
// whichever mapping, whatever a TLB remembers. Four words of each page, the slots, belong to one
// CPU each, which writes to them at any time, so that CPUs write to the same page at once.
//
// `gate` keeps CPUs out of the slots while the owner gives the page to Fusor, or makes all of it
// new.
#pragma once

#include "hypercall.h"
#include "smp.h"

#define STRESS_PAGES_MAX 8192u
#define STRESS_CPUS      4u
#define RANGE            512u // pages of 2 MiB
#define WORDS            512u
#define VARIANTS         3u
#define STRESS_RANGES    (STRESS_PAGES_MAX / RANGE)

enum content {
    ALL_ZERO,
    COMMON,  // what other VMs have, too
    TOUCHED, // common, but for one word
    OWN,     // this VM's, this page's, this generation's
};

// What a page holds, in one word so that it is read and written at once.
struct record {
    uint32_t generation;
    uint8_t content;
    uint8_t variant; // of common content
    uint16_t word;   // that was touched
};

struct stress_cpu {
    uint64_t random;
    uint64_t reads, unsure, writes, toggles, hints, inflated, deflated, reported, refused;
    // Another CPU may spoil the hints, not what is given.
    uint64_t hint[FUSOR_LIST_MAX] __attribute__((aligned(4096)));
    uint64_t list[FUSOR_LIST_MAX] __attribute__((aligned(4096)));
};

struct stress {
    uint64_t first; // address of the first page, at 2 MiB
    uint64_t pages;
    uint64_t busy;      // pages 0..busy-1 change all the time; then come ranges,
    uint64_t ballooned; // and from here on what the balloon's target is met with
    unsigned cpus;
    uint8_t vm, boot;
    uint64_t hinting;  // the page with which a list begins that is worked on, and above bit 32 its
                       // length, 0: nobody hints
    uint64_t toggling; // first of three pages that a CPU writes to again and again, + 1; or 0
    uint32_t changing[STRESS_CPUS]; // the page with which a CPU begins that it is about to change
    struct stress_cpu cpu[STRESS_CPUS];
    uint64_t quiet[STRESS_RANGES];  // nobody writes to this range until then
    uint8_t held[STRESS_PAGES_MAX]; // its owner gave it to the balloon
};
extern struct stress stress;

// --- stress_pages.c ---

void stress_map(void); // the second mapping
struct record stress_record(uint64_t page);
uint64_t stress_random(void);
unsigned stress_owner(uint64_t page);

// The owner's: may fail when a slot is being written. leave() ends it.
bool stress_enter(uint64_t page);
void stress_leave(uint64_t page);
// Two steps of a change; `new` has the generation that change() gave it. cancel(): it did not
// happen.
struct record stress_begin(uint64_t page, enum content content, unsigned variant, unsigned word);
void stress_end(uint64_t page, struct record new);
void stress_cancel(uint64_t page);
// Writes all that is new in `new`, between begin and end. Slots are written when the gate is
// closed.
void stress_write(uint64_t page, struct record new, bool closed);

void stress_read(uint64_t page, unsigned words);
void stress_toggle(uint64_t page, unsigned times);
// Every word of the pages that this CPU owns; nobody else is at work.
void stress_verify(void);
// Every word of the pages is zero: nobody has been there since the VM began.
void stress_verify_fresh(void);
// Prints the first wrong word, if there was one.
bool stress_failed(void);

// --- stress_give.c: pages, ranges and the balloon's target ---

// Sends a list. Returns how many entries were done before one was refused, and why.
unsigned stress_send(uint64_t call, const uint64_t *list, unsigned count, int64_t *error);
// Gives some of the own busy pages, from this one on, to the balloon, or only their content.
void stress_give_from(uint64_t page, unsigned wanted);
void stress_take_some(void);  // some of the own busy pages out of the balloon
void stress_some_range(void); // does something to one of the own ranges
void stress_fill_range(uint64_t first, enum content content, unsigned variant);
void stress_follow_target(void); // CPU 0
void stress_use_rest(void);      // CPU 0: what was not given to meet the target is memory in use
void stress_empty_balloon(void); // nobody else is at work

// --- stress_work.c ---

#define STRESS_GIVE_MAX 16u
void stress_change(uint64_t page); // an own page, to something else
// Says which of the own pages change next, so that others have them in their TLBs by then. Returns
// the first; those after it are stress.cpus apart.
uint64_t stress_announce(void);
void stress_hint(const uint64_t *list, unsigned count); // or unhint
void stress_round(void);                                // something, at random

static inline struct stress_cpu *stress_self(void)
{
    return &stress.cpu[smp_self()];
}

static inline bool stress_chance(unsigned percent)
{
    return stress_random() % 100 < percent;
}

static inline bool stress_is_quiet(uint64_t page)
{
    return page >= stress.busy &&
           rdtsc() < __atomic_load_n(&stress.quiet[page / RANGE], __ATOMIC_ACQUIRE);
}

static inline uint64_t stress_entry(uint64_t page, unsigned order)
{
    return FUSOR_ENTRY(stress.first / PAGE + page, FUSOR_CLASS_OTHER, order);
}

// The own busy page nearest to this one.
static inline uint64_t stress_own_near(uint64_t page)
{
    page = page % stress.busy / stress.cpus * stress.cpus + smp_self();
    return page >= stress.busy ? smp_self() : page;
}

static inline uint64_t stress_own_page(void)
{
    return stress_own_near(stress_random());
}
