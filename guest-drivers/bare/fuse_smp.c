// SPDX-License-Identifier: BSD-2-Clause
// Several CPUs on the same fused pages.
//
// The stress: each page holds two counters, each written by one CPU in rounds over all pages, in
// order, so that pages of the same round are equal, are fused with each other and with another
// VM's, and are split by the next round's write. What a reader must never see, through whichever of
// the two mappings and with whatever its TLB remembers: a counter that goes back; page p of a round
// that page p - 1 is not in yet; a round not written that was said to be complete.
#include "fuse.h"
#include "smp.h"

#define CHUNK       16u // pages that the CPUs write between two barriers
#define FILLER      UINT64_C(0x5afe5afe5afe5afe)
#define STRESS_MAX  2048u
#define TABLES      (STRESS_MAX / 512)
#define ALIAS_SLOT  16u // in the window's page directory
#define ADDRESS     UINT64_C(0x000ffffffffff000)
#define WRITERS     2u
#define BETWEEN     8u // pages read for every page that a writer writes
#define LIST_LENGTH 128u
#define STRESS_CPUS 4u
#define LAG         32u    // pages that the second writer stays behind the first
#define TOGGLED     4u     // and up: a word of each page that a CPU toggles
#define TOGGLES     40u    // even
#define AGAIN_TICKS 50000u // until the VM has some budget again

static const uint64_t counter_at[WRITERS] = {3, 400};

static void pause(void)
{
    __asm__ volatile("pause" : : : "memory");
}

static uint64_t get(const uint64_t *p)
{
    return __atomic_load_n(p, __ATOMIC_ACQUIRE);
}

static void set(uint64_t *p, uint64_t value)
{
    __atomic_store_n(p, value, __ATOMIC_RELEASE);
}

// --- All write the same pages ---

static struct together {
    uint64_t pages, arrived;
    unsigned cpus;
} together;

static void barrier(uint64_t n)
{
    __atomic_fetch_add(&together.arrived, 1, __ATOMIC_ACQ_REL);
    while (get(&together.arrived) < n * together.cpus)
        pause();
}

static void write_words(void *unused)
{
    (void)unused;
    unsigned cpu = smp_self();
    for (uint64_t page = 0; page < together.pages; page++) {
        if (page % CHUNK == 0)
            barrier(page / CHUNK + 1);
        *fuse_word(page, fuse_place(page, cpu)) = fuse_value(page, cpu);
    }
}

// Runs it on every CPU, this one included, and waits for all.
static void on_all(unsigned cpus, void (*function)(void *))
{
    for (unsigned cpu = 1; cpu < cpus; cpu++)
        smp_run(cpu, function, NULL);
    function(NULL);
    for (unsigned cpu = 1; cpu < cpus; cpu++)
        while (!smp_wait_ticks(cpu, tsc_hz()))
            continue; // also when the VM is paused for long
}

void fuse_write_together(uint64_t pages)
{
    struct fusor_statistics before = fuse_statistics();
    together = (struct together){.pages = pages, .cpus = smp_start()};
    on_all(together.cpus, write_words);
    for (uint64_t page = 0; page < pages; page++)
        fuse.state[page] = (uint8_t)((fuse.state[page] & ~FUSE_WORDS) | together.cpus);
    report("op=c cpus=%lu pages=%lu splits=%lu", (uint64_t)together.cpus, pages,
           fuse_statistics().splits - before.splits);
}

static uint64_t spinning, stop;

static void spin(void *unused)
{
    (void)unused;
    __atomic_fetch_add(&spinning, 1, __ATOMIC_ACQ_REL);
    while (get(&stop) == 0)
        fuse_mix(1);
}

void fuse_write_beside(uint64_t pages)
{
    unsigned cpus = smp_start();
    set(&spinning, 0);
    set(&stop, 0);
    for (unsigned cpu = 1; cpu < cpus; cpu++)
        smp_run(cpu, spin, NULL);
    while (get(&spinning) < cpus - 1)
        pause();
    fuse_write('W', pages, false);
    set(&stop, 1);
    for (unsigned cpu = 1; cpu < cpus; cpu++)
        smp_wait(cpu);
}

// --- The stress ---

static struct stress {
    unsigned cpus;
    uint64_t pages, rounds;
    uint64_t complete[WRITERS]; // rounds of each writer
    uint64_t at[WRITERS];       // the page that it is about to write
    uint64_t begun;             // the round that may be written
    uint64_t hinted;            // passes over all pages
    uint64_t hinting;           // the page with which the list begins that is worked on
    uint64_t over;
    uint64_t back, order, early, filler, lost; // what went wrong
    uint64_t reads;
} stress;

static uint64_t alias_table[TABLES][512] __attribute__((aligned(4096)));
static uint64_t hints[LIST_LENGTH] __attribute__((aligned(4096)));
static uint32_t seen[STRESS_CPUS][WRITERS][STRESS_MAX];

static void map_alias(void)
{
    uint64_t *p = (uint64_t *)(read_cr3() & ADDRESS); // NOLINT: RAM is mapped to itself
    p = (uint64_t *)(p[WINDOW >> 39] & ADDRESS);      // NOLINT
    p = (uint64_t *)(p[0] & ADDRESS);                 // NOLINT
    for (unsigned t = 0; t < TABLES; t++) {
        for (uint64_t n = 0; n < 512; n++) {
            uint64_t page = t * UINT64_C(512) + n;
            alias_table[t][n] =
                page < stress.pages ? (fuse.first + page * PAGE) | PTE_PRESENT | PTE_WRITE : 0;
        }
        p[ALIAS_SLOT + t] = (uint64_t)(uintptr_t)alias_table[t] | PTE_PRESENT | PTE_WRITE;
    }
}

// Word n of a page, through one of the two mappings.
static volatile uint64_t *word_by(unsigned mapping, uint64_t page, uint64_t n)
{
    uint64_t at = mapping == 0 ? fuse.first : WINDOW + ALIAS_SLOT * 2 * MIB;
    return (volatile uint64_t *)(at + page * PAGE + n * 8); // NOLINT: an address by design
}

static void wrong(uint64_t *count, bool is_wrong)
{
    if (is_wrong)
        __atomic_fetch_add(count, 1, __ATOMIC_RELAXED);
}

static void read_page(uint64_t page, unsigned mapping)
{
    unsigned cpu = smp_self();
    for (unsigned w = 0; w < WRITERS; w++) {
        uint32_t *last = &seen[cpu][w][page];
        uint64_t complete = get(&stress.complete[w]);
        uint64_t n = counter_at[w];
        uint64_t here = *word_by(mapping, page, n);
        uint64_t before = *word_by(mapping ^ 1, page > 0 ? page - 1 : stress.pages - 1, n);
        uint64_t again = *word_by(mapping ^ 1, page, n);
        wrong(&stress.back, here < *last || again < here);
        wrong(&stress.order, before + (page == 0) < here);
        wrong(&stress.early, here < complete || here > stress.rounds);
        *last = (uint32_t)again;
    }
    wrong(&stress.filler, *word_by(mapping, page, 8 + page % 256) != FILLER);
}

// Some reading, as long as there is nothing else to do.
static void read_some(uint64_t count)
{
    static uint64_t turn[STRESS_CPUS];
    unsigned cpu = smp_self();
    for (uint64_t i = 0; i < count; i++) {
        uint64_t t = turn[cpu]++;
        read_page(t * 61 % stress.pages, (unsigned)t & 1);
    }
    __atomic_fetch_add(&stress.reads, count, __ATOMIC_RELAXED);
}

// Writes to a page that is being hinted, again and again, and what it was at last: a write that
// goes to a frame that the page has no more is lost.
static void toggle(void)
{
    uint64_t page = (get(&stress.hinting) + fuse_random() % LIST_LENGTH) % stress.pages;
    uint64_t n = TOGGLED + smp_self();
    for (uint64_t i = 1; i <= TOGGLES; i++) {
        uint64_t value = i % 2 != 0 ? i : FILLER;
        *word_by(0, page, n) = value;
        wrong(&stress.lost, *word_by(1, page, n) != value);
    }
}

// Hints pages from..from+count-1; somebody may write to the list meanwhile.
static void hint_pages(uint64_t from, unsigned count)
{
    set(&stress.hinting, from);
    for (unsigned i = 0; i < count; i++)
        *(volatile uint64_t *)&hints[i] = fuse_entry((from + i) % stress.pages, 0);
    for (unsigned at = 0; at < count;) {
        int64_t result = hypercall(FUSOR_HINT, (uint64_t)(uintptr_t)&hints[at], count - at, 0, 0);
        if (result == -FUSOR_EAGAIN)
            wait_ticks(AGAIN_TICKS);
        else
            at += result > 0 ? (unsigned)result : 1;
    }
}

// A pass over all pages; on the way those that the slower writer is just about to reach, which the
// other one has split already.
static void hint_pass(void)
{
    for (uint64_t page = 0; page < stress.pages; page += LIST_LENGTH) {
        hint_pages(page, LIST_LENGTH);
        uint64_t at = get(&stress.at[1]);
        if (at != 0 && at < stress.pages)
            hint_pages(at, LAG);
    }
    __atomic_fetch_add(&stress.hinted, 1, __ATOMIC_ACQ_REL);
}

// A hint may change while Fusor reads it: other pages, or what is no hint at all.
static void spoil_list(void)
{
    uint64_t r = fuse_random();
    *(volatile uint64_t *)&hints[r % LIST_LENGTH] =
        (r >> 8 & 3) == 0 ? fuse_random() : FUSOR_ENTRY((r >> 16) % (memory_top / PAGE), 0, 0);
}

static void write_round(unsigned w, uint64_t round, bool read_too)
{
    for (uint64_t page = 0; page < stress.pages; page++) {
        set(&stress.at[w], page);
        while (w == 1 && get(&stress.at[0]) < page + LAG && get(&stress.complete[0]) < round)
            read_some(1);
        *word_by((unsigned)page & 1, page, counter_at[w]) = round;
        wrong(&stress.lost, *word_by(~(unsigned)page & 1, page, counter_at[w]) != round);
        if (read_too)
            read_some(BETWEEN);
    }
    set(&stress.complete[w], round);
    set(&stress.at[w], 0);
}

// Writer 0 says when the next round begins: after the pages of this one were hinted.
static void first_writer(void)
{
    bool hints_itself = stress.cpus == 2;
    for (uint64_t round = 1; round <= stress.rounds; round++) {
        set(&stress.begun, round);
        write_round(0, round, false);
        while (get(&stress.complete[1]) < round)
            hints_itself ? hint_pass() : pause();
        uint64_t until = get(&stress.hinted) + 2;
        while (get(&stress.hinted) < until)
            hints_itself ? hint_pass() : read_some(BETWEEN);
    }
    set(&stress.over, 1);
}

static void second_writer(void)
{
    for (uint64_t round = 1; round <= stress.rounds; round++) {
        while (get(&stress.begun) < round) {
            read_some(BETWEEN);
            toggle();
        }
        write_round(1, round, stress.cpus == 2);
    }
    while (get(&stress.over) == 0)
        read_some(BETWEEN);
}

static void stress_role(void *unused)
{
    (void)unused;
    unsigned cpu = smp_self();
    if (cpu == 0) {
        first_writer();
    } else if (cpu == 1) {
        second_writer();
    } else if (cpu == stress.cpus - 1) {
        while (get(&stress.over) == 0)
            hint_pass();
    } else {
        while (get(&stress.over) == 0) {
            read_some(BETWEEN * 8);
            toggle();
            spoil_list();
        }
    }
}

void fuse_stress(uint64_t rounds)
{
    struct fusor_statistics before = fuse_statistics();
    stress = (struct stress){.cpus = smp_start(), .rounds = rounds};
    stress.pages = fuse.pages < STRESS_MAX ? fuse.pages & ~(uint64_t)(LIST_LENGTH - 1) : STRESS_MAX;
    check(stress.cpus >= 2 && stress.cpus <= STRESS_CPUS && stress.pages > 0, stress.cpus);
    if (errors != 0)
        return;
    for (uint64_t page = 0; page < stress.pages; page++)
        for (uint64_t n = 0; n < 512; n++)
            *fuse_word(page, n) = n == counter_at[0] || n == counter_at[1] ? 0 : FILLER;
    __builtin_memset(seen, 0, sizeof(seen));
    map_alias();
    on_all(stress.cpus, stress_role);
    for (uint64_t page = 0; page < stress.pages; page++)
        for (uint64_t n = 0; n < 512; n++)
            wrong(&stress.lost, *fuse_word(page, n) !=
                                    (n == counter_at[0] || n == counter_at[1] ? rounds : FILLER));
    check(stress.back == 0, stress.back);
    check(stress.order == 0, stress.order);
    check(stress.early == 0, stress.early);
    check(stress.filler == 0, stress.filler);
    check(stress.lost == 0, stress.lost);
    struct fusor_statistics after = fuse_statistics();
    report("op=S cpus=%lu pages=%lu rounds=%lu reads=%lu passes=%lu splits=%lu "
           "fused=%lu "
           "cancelled=%lu",
           (uint64_t)stress.cpus, stress.pages, rounds, stress.reads, stress.hinted,
           after.splits - before.splits, after.hints_fused - before.hints_fused,
           after.cancelled - before.cancelled);
}
