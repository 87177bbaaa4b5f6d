// SPDX-License-Identifier: BSD-2-Clause
// test=stress: what a CPU does in a round. Several CPUs meet on the same pages where they can: they
// watch what others announce, write to what is being hinted, and all go to the same few pages, the
// arena.
#include "stress.h"

#define AT_ONCE     64u // pages of a list, mostly
#define AHEAD       8u  // pages that a CPU announces before it changes them
#define AHEAD_TICKS 4000u
#define ARENA_SHIFT 21u // of the TSC
#define WATCHES     200u
#define READ_PAGES  24u
#define TOGGLES     40u
#define TOGGLED     3u // pages

static uint64_t any_page(void)
{
    // The busy ones more often than their number says.
    return stress_random() % (stress_chance(60) ? stress.busy : stress.pages);
}

// One of the pages that are being hinted; any one when there are none.
static uint64_t hinted_page(void)
{
    uint64_t hinting = __atomic_load_n(&stress.hinting, __ATOMIC_RELAXED);
    if (hinting == 0)
        return any_page();
    return ((uint32_t)hinting + stress_random() % (hinting >> 32)) % stress.pages;
}

// --- Writing ---

void stress_change(uint64_t page)
{
    struct record old = stress_record(page);
    enum content content = COMMON;
    unsigned variant = (unsigned)stress_random() % VARIANTS;
    unsigned word = 0;
    if (old.content == COMMON && stress_chance(70)) {
        content = TOUCHED;
        variant = old.variant;
        do
            word = (unsigned)stress_random() % WORDS;
        while (word % 97 == 3); // no slot
    } else if (old.content == TOUCHED && stress_chance(70)) {
        variant = old.variant;
    } else if (stress_chance(20)) {
        content = stress_chance(30) ? ALL_ZERO : OWN;
    }
    bool closing = old.content == ALL_ZERO || content == ALL_ZERO;
    if (closing && !stress_enter(page))
        return;
    struct record new = stress_begin(page, content, variant, word);
    stress_write(page, new, closing);
    stress_end(page, new);
    if (closing)
        stress_leave(page);
}

// Says which of the own pages change next, so that others have them in their TLBs by then. Returns
// the first; those after it are stress.cpus apart.
uint64_t stress_announce(void)
{
    uint64_t page = stress_own_page();
    __atomic_store_n(&stress.changing[smp_self()], (uint32_t)page, __ATOMIC_RELEASE);
    wait_ticks(stress_random() % AHEAD_TICKS);
    return page;
}

static void change_some(void)
{
    uint64_t page = stress_announce();
    for (unsigned i = 0; i < AHEAD && page < stress.busy; i++, page += stress.cpus)
        stress_change(page);
}

// Reads what another CPU is about to change, while it does, or what is being hinted, without an
// exit of the own, which would hide that a translation has not been forgotten.
static void watch_from(uint64_t first)
{
    for (unsigned n = 0; n < WATCHES; n++)
        for (uint64_t page = first; page < first + AHEAD && page < stress.pages; page++)
            stress_read(page, 1);
}

static void watch_changes(void)
{
    unsigned other = (smp_self() + 1 + (unsigned)stress_random() % STRESS_CPUS) % stress.cpus;
    for (unsigned n = 0; n < WATCHES; n++) {
        uint64_t page = __atomic_load_n(&stress.changing[other], __ATOMIC_ACQUIRE);
        for (unsigned i = 0; i < AHEAD && page < stress.busy; i++, page += stress.cpus)
            stress_read(page, 1);
    }
}

// --- Hints ---

void stress_hint(const uint64_t *list, unsigned count)
{
    int64_t error;
    stress_self()->hints +=
        stress_send(stress_chance(5) ? FUSOR_UNHINT : FUSOR_HINT, list, count, &error);
}

static void hint_from(uint64_t from, unsigned count)
{
    volatile uint64_t *list = stress_self()->hint;
    uint64_t room = from < stress.busy ? stress.busy : stress.pages;
    for (unsigned i = 0; i < count; i++)
        list[i] = stress_entry((from + i) % room, 0);
    if (stress_chance(2)) // whatever lies there: code, stacks, page tables, these lists
        for (unsigned i = 0; i < 4; i++)
            list[i] = FUSOR_ENTRY(stress_random() % (memory_top / PAGE), 0, 0);
    if (stress_chance(3))
        list[count / 2] = stress_random();
    __atomic_store_n(&stress.hinting, (uint64_t)count << 32 | from, __ATOMIC_RELAXED);
    stress_hint(stress_self()->hint, count);
    __atomic_store_n(&stress.hinting, 0, __ATOMIC_RELAXED);
    // Written at once: copies go to the frames that were given up.
    if (from < stress.busy && stress_chance(50))
        for (uint64_t page = stress_own_near(from); page < from + AHEAD && page < stress.busy;
             page += stress.cpus)
            stress_change(page);
}

static void hint(void)
{
    uint64_t from = any_page();
    if (from >= stress.busy && from < stress.ballooned && !stress_chance(3))
        from %= stress.busy; // ranges shall be large for a while
    hint_from(from, 1 + (unsigned)stress_random() % (stress_chance(10) ? FUSOR_LIST_MAX : AT_ONCE));
}

// A hint may change while Fusor reads it.
static void spoil(void)
{
    unsigned other = (unsigned)stress_random() % stress.cpus;
    *(volatile uint64_t *)&stress.cpu[other].hint[stress_random() % AT_ONCE] =
        stress_entry(stress_chance(5) ? any_page() : stress_random() % stress.busy, 0);
}

// --- Rounds ---

// Writes to pages that are being hinted, again and again without an exit where it can be: a write
// through a translation that should be gone is lost.
static void toggle_from(uint64_t first)
{
    __atomic_store_n(&stress.toggling, first + 1, __ATOMIC_RELAXED);
    for (unsigned n = 0; n < TOGGLES; n++)
        for (unsigned i = 0; i < TOGGLED; i++) {
            uint64_t page = (first + i) % stress.pages;
            if (!stress_is_quiet(page) && (stress.held[page] == 0 || n == 0))
                stress_toggle(page, 3);
        }
    __atomic_store_n(&stress.toggling, 0, __ATOMIC_RELAXED);
}

// A few pages that all CPUs of the VM work on at once; others after a while, for pages that are
// split again and again are not fused any more.
static uint64_t arena(void)
{
    return (rdtsc() >> ARENA_SHIFT) * 37 * AHEAD % stress.busy / AHEAD * AHEAD;
}

static void arena_round(void)
{
    uint64_t first = arena(), what = stress_random() % 100;
    if (what < 40) {
        for (unsigned i = 0; i < 4; i++) {
            uint64_t toggled = __atomic_load_n(&stress.toggling, __ATOMIC_RELAXED);
            if (toggled != 0)
                hint_from((toggled - 1) % stress.busy, TOGGLED);
            else
                hint_from(first, AHEAD);
        }
    } else if (what < 65) {
        toggle_from(first + stress_random() % AHEAD);
    } else if (what < 80) {
        watch_from(first);
    } else if (what < 95) {
        for (uint64_t page = stress_own_near(first); page < first + AHEAD; page += stress.cpus)
            stress_change(page);
    } else {
        stress_give_from(stress_own_near(first), AHEAD / stress.cpus);
    }
}

void stress_round(void)
{
    unsigned what = (unsigned)stress_random() % 100;
    if (stress_chance(50)) {
        arena_round();
        return;
    }
    if (what < 8) {
        for (unsigned i = 0; i < READ_PAGES; i++)
            stress_read(any_page(), 4);
    } else if (what < 28) {
        stress_chance(50) ? watch_from(hinted_page()) : watch_changes();
    } else if (what < 48) {
        change_some();
    } else if (what < 68) {
        toggle_from(stress_chance(20) ? any_page() : hinted_page());
    } else if (what < 84) {
        hint();
    } else if (what < 86) {
        spoil();
    } else if (what < 90) {
        stress_give_from(stress_chance(50) ? stress_announce() : stress_own_near(hinted_page()),
                         1 + (unsigned)stress_random() % STRESS_GIVE_MAX);
    } else if (what < 93) {
        stress_take_some();
    } else if (what < 99) {
        stress_some_range();
    } else if (smp_self() == 0) {
        stress_use_rest();
    }
}
