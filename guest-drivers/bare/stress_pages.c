// SPDX-License-Identifier: BSD-2-Clause
// What the pages of test=stress hold, and how that is written, read and checked.
#include "stress.h"

#define ALIAS_SLOT 16u // in the window's page directory
#define ADDRESS    UINT64_C(0x000ffffffffff000)
#define CLOSED     0x80000000u // of a gate; else the number of CPUs that write slots
#define PATIENCE   2000u
#define SLOT_FIRST 100u
#define SLOT_STEP  97u
#define SLOT_KIND  15u // the variant of what a slot holds when nobody uses it

struct stress stress;

static uint64_t done[STRESS_PAGES_MAX], begun[STRESS_PAGES_MAX];
static uint32_t gate[STRESS_PAGES_MAX];
static uint64_t alias_table[STRESS_RANGES][WORDS] __attribute__((aligned(4096)));

// The first wrong word.
static struct {
    uint32_t taken, ready;
    const char *what;
    uint64_t page, word, got, old, new, later, tsc;
    unsigned cpu, mapping;
} wrong;

static uint64_t to_word(struct record r)
{
    return (uint64_t)r.generation << 32 | (uint64_t)r.content << 24 | (uint64_t)r.variant << 16 |
           r.word;
}

static struct record from_word(uint64_t w)
{
    return (struct record){(uint32_t)(w >> 32), (uint8_t)(w >> 24), (uint8_t)(w >> 16),
                           (uint16_t)w};
}

static uint64_t get(const uint64_t *p)
{
    return __atomic_load_n(p, __ATOMIC_ACQUIRE);
}

struct record stress_record(uint64_t page)
{
    return from_word(get(&done[page]));
}

uint64_t stress_random(void)
{
    // xorshift64
    uint64_t *x = &stress.cpu[smp_self()].random;
    *x ^= *x << 13;
    *x ^= *x >> 7;
    *x ^= *x << 17;
    return *x >> 8;
}

unsigned stress_owner(uint64_t page)
{
    if (page >= stress.ballooned)
        return 0;
    return (unsigned)((page < stress.busy ? page : page / RANGE) % stress.cpus);
}

static uint16_t slot_of(unsigned cpu)
{
    return (uint16_t)(SLOT_FIRST + SLOT_STEP * cpu);
}

static bool is_slot(uint64_t n)
{
    return n >= SLOT_FIRST && (n - SLOT_FIRST) % SLOT_STEP == 0 &&
           n < SLOT_FIRST + SLOT_STEP * STRESS_CPUS;
}

// --- Words ---

static uint64_t common_word(uint64_t page, unsigned variant, uint64_t n)
{
    // Among the busy pages some are equal within a VM, too.
    uint64_t class = page < stress.busy ? 0x800 + page % 64 : page % RANGE;
    return UINT64_C(0xc5) << 56 | class << 32 | (uint64_t)variant << 24 | n;
}

static uint64_t own_word(unsigned tag, uint64_t page, uint32_t generation, uint64_t n)
{
    return (uint64_t)tag << 56 | (uint64_t)stress.vm << 48 | page << 32 |
           (uint64_t)(stress.boot & 0x7f) << 25 | (uint64_t)(generation & 0xffff) << 9 | n;
}

static uint64_t expected(struct record r, uint64_t page, uint64_t n)
{
    if (r.content == ALL_ZERO)
        return 0;
    if (is_slot(n))
        return common_word(page, SLOT_KIND, n);
    if (r.content == OWN || (r.content == TOUCHED && r.word == n))
        return own_word(0xa5, page, r.generation, n);
    return common_word(page, r.variant, n);
}

// Word n of a page, through one of the two mappings: 2 MiB pages, 4 KiB pages.
static volatile uint64_t *word_by(unsigned mapping, uint64_t page, uint64_t n)
{
    uint64_t at = (mapping & 1) == 0 ? stress.first : WINDOW + ALIAS_SLOT * 2 * MIB;
    return (volatile uint64_t *)(at + page * PAGE + n * 8); // NOLINT: an address by design
}

void stress_map(void)
{
    uint64_t *p = (uint64_t *)(read_cr3() & ADDRESS); // NOLINT: RAM is mapped to itself
    p = (uint64_t *)(p[WINDOW >> 39] & ADDRESS);      // NOLINT
    p = (uint64_t *)(p[0] & ADDRESS);                 // NOLINT
    for (unsigned t = 0; t < STRESS_RANGES; t++) {
        for (uint64_t n = 0; n < RANGE; n++) {
            uint64_t page = t * UINT64_C(512) + n;
            alias_table[t][n] =
                page < stress.pages ? (stress.first + page * PAGE) | PTE_PRESENT | PTE_WRITE : 0;
        }
        p[ALIAS_SLOT + t] = (uint64_t)(uintptr_t)alias_table[t] | PTE_PRESENT | PTE_WRITE;
    }
}

// --- What is wrong ---

static void note(const char *what, uint64_t page, uint64_t n, unsigned mapping, uint64_t got,
                 uint64_t old, uint64_t new)
{
    if (__atomic_exchange_n(&wrong.taken, 1, __ATOMIC_ACQ_REL) != 0)
        return;
    wrong.what = what;
    wrong.page = page;
    wrong.word = n;
    wrong.got = got;
    wrong.old = old;
    wrong.new = new;
    wrong.cpu = smp_self();
    wrong.mapping = mapping & 1;
    wrong.tsc = rdtsc();
    wait_ticks(100000); // was it a stale translation, or is the byte lost?
    wrong.later = *word_by(mapping, page, n);
    __atomic_store_n(&wrong.ready, 1, __ATOMIC_RELEASE);
}

bool stress_failed(void)
{
    if (__atomic_load_n(&wrong.ready, __ATOMIC_ACQUIRE) == 0)
        return false;
    struct record r = stress_record(wrong.page);
    report("error: %s cpu=%lu page=%lu word=%lu mapping=%lu got=0x%lx old=0x%lx new=0x%lx "
           "later=0x%lx tsc=%lu",
           wrong.what, (uint64_t)wrong.cpu, wrong.page, wrong.word, (uint64_t)wrong.mapping,
           wrong.got, wrong.old, wrong.new, wrong.later, wrong.tsc);
    report("error: page has generation=%lu content=%lu variant=%lu held=%lu",
           (uint64_t)r.generation, (uint64_t)r.content, (uint64_t)r.variant,
           (uint64_t)stress.held[wrong.page]);
    check(wrong.ready == 0, wrong.page);
    return true;
}

// --- Changes ---

bool stress_enter(uint64_t page)
{
    for (unsigned i = 0; i < PATIENCE; i++) {
        uint32_t open = 0;
        if (__atomic_compare_exchange_n(&gate[page], &open, CLOSED, false, __ATOMIC_ACQ_REL,
                                        __ATOMIC_RELAXED))
            return true;
        __asm__ volatile("pause" : : : "memory");
    }
    return false;
}

void stress_leave(uint64_t page)
{
    __atomic_fetch_and(&gate[page], ~CLOSED, __ATOMIC_ACQ_REL);
}

struct record stress_begin(uint64_t page, enum content content, unsigned variant, unsigned word)
{
    struct record r = {stress_record(page).generation + 1, (uint8_t)content, (uint8_t)variant,
                       (uint16_t)word};
    __atomic_store_n(&begun[page], to_word(r), __ATOMIC_RELEASE);
    return r;
}

void stress_end(uint64_t page, struct record new)
{
    __atomic_store_n(&done[page], to_word(new), __ATOMIC_RELEASE);
}

void stress_cancel(uint64_t page)
{
    __atomic_store_n(&begun[page], get(&done[page]), __ATOMIC_RELEASE);
}

static void write_one(uint64_t page, struct record new, unsigned mapping, uint64_t n)
{
    uint64_t value = expected(new, page, n);
    *word_by(mapping, page, n) = value;
    uint64_t got = *word_by(mapping ^ 1, page, n);
    if (got != value)
        note("written and not there", page, n, mapping ^ 1, got, value, value);
}

void stress_write(uint64_t page, struct record new, bool closed)
{
    struct record old = stress_record(page);
    unsigned mapping = (unsigned)stress_random();
    stress.cpu[smp_self()].writes++;
    stress.held[page] = 0;
    if (new.content == TOUCHED) {
        write_one(page, new, mapping, new.word);
    } else if (old.content == TOUCHED && new.content == COMMON && old.variant == new.variant) {
        write_one(page, new, mapping, old.word);
    } else {
        for (uint64_t n = 0; n < WORDS; n++)
            if (closed || !is_slot(n))
                *word_by(mapping, page, n) = expected(new, page, n);
        write_one(page, new, mapping ^ 1, 1);
    }
}

// --- Checks ---

static void read_word(uint64_t page, uint64_t n)
{
    struct stress_cpu *self = &stress.cpu[smp_self()];
    unsigned mapping = (unsigned)stress_random();
    uint64_t d = get(&done[page]);
    uint64_t first = *word_by(mapping, page, n);
    uint64_t second = *word_by(mapping ^ 1, page, n);
    uint64_t b = get(&begun[page]);
    struct record was = from_word(d), is = from_word(b);
    self->reads++;
    if (is.generation - was.generation > 1) {
        self->unsure++;
        return;
    }
    uint64_t old = expected(was, page, n), new = expected(is, page, n);
    if (first != old && first != new)
        note("first read", page, n, mapping, first, old, new);
    else if (second != old && second != new)
        note("second read", page, n, mapping ^ 1, second, old, new);
    else if (second != first && second != new)
        note("went back", page, n, mapping ^ 1, second, old, new);
}

void stress_read(uint64_t page, unsigned words)
{
    for (unsigned i = 0; i < words; i++) {
        uint64_t n = stress_random() % WORDS;
        struct record r = stress_record(page);
        if (r.content == TOUCHED && (n & 1) != 0)
            n = r.word;
        if (!is_slot(n))
            read_word(page, n);
    }
}

void stress_toggle(uint64_t page, unsigned times)
{
    unsigned cpu = smp_self();
    uint64_t n = slot_of(cpu);
    if ((__atomic_fetch_add(&gate[page], 1, __ATOMIC_ACQ_REL) & CLOSED) == 0) {
        // Nobody makes a page of zeros, or of such a page another one, meanwhile.
        uint64_t base = expected(stress_record(page), page, n), last = base;
        for (unsigned i = 1; i <= times; i++) {
            unsigned mapping = (unsigned)stress_random();
            uint64_t got = *word_by(mapping, page, n);
            if (got != last)
                note("own slot", page, n, mapping, got, last, last);
            last = i == times ? base : own_word(0x5a, page, (cpu << 8 | i) & 0xffff, n);
            *word_by(mapping, page, n) = last;
            got = *word_by(mapping ^ 1, page, n);
            if (got != last)
                note("own slot, written", page, n, mapping ^ 1, got, last, last);
        }
        stress.cpu[cpu].toggles += times;
    }
    __atomic_fetch_sub(&gate[page], 1, __ATOMIC_ACQ_REL);
}

void stress_verify(void)
{
    unsigned cpu = smp_self();
    for (uint64_t page = 0; page < stress.pages; page++) {
        struct record r = stress_record(page);
        if (page % stress.cpus != cpu)
            continue; // all take part, whoever the owner is
        if (get(&begun[page]) != get(&done[page]))
            note("a change that never ended", page, 0, 0, get(&begun[page]), get(&done[page]), 0);
        for (uint64_t n = 0; n < WORDS; n++) {
            uint64_t got = *word_by((unsigned)page, page, n), right = expected(r, page, n);
            if (got != right)
                note("at rest", page, n, (unsigned)page, got, right, right);
        }
    }
}

void stress_verify_fresh(void)
{
    for (uint64_t page = 0; page < stress.pages; page++)
        for (uint64_t n = 0; n < WORDS; n++) {
            uint64_t got = *word_by((unsigned)page, page, n);
            if (got != 0)
                note("not zero at start", page, n, (unsigned)page, got, 0, 0);
        }
}
