// SPDX-License-Identifier: BSD-2-Clause
// test=stress: pages and whole ranges go to the balloon and come back, ranges become large and are
// left alone, and the balloon's target is followed.
#include "stress.h"

#define AT_ONCE       64u // pages of a list
#define RANGE_VARIANT 4u
#define QUIET_TIME    8u // seconds

// Sends entries from..to-1 of a list. Returns how many were done before one was refused, and why.
unsigned stress_send(uint64_t call, const uint64_t *list, unsigned count, int64_t *error)
{
    unsigned at = 0;
    *error = 0;
    while (at < count && *error == 0) {
        int64_t result = hypercall(call, (uint64_t)(uintptr_t)&list[at], count - at, 0, 0);
        if (result <= 0) {
            stress_self()->refused++;
            *error = result == 0 ? -FUSOR_EAGAIN : result;
        } else {
            at += (unsigned)result;
        }
    }
    return at;
}

// --- Giving and taking back ---

// Gives the pages of the list, 1 << order each, to the balloon or, with FUSOR_FREE_PAGES, only
// their content. All of `pages` were entered by stress_enter().
static void give(uint64_t call, const uint64_t *pages, unsigned count, unsigned order)
{
    struct stress_cpu *me = stress_self();
    uint64_t size = UINT64_C(1) << order;
    for (unsigned i = 0; i < count; i++) {
        me->list[i] = stress_entry(pages[i], order);
        for (uint64_t j = 0; j < size; j++)
            stress_begin(pages[i] + j, ALL_ZERO, 0, 0);
    }
    int64_t error;
    unsigned good = stress_send(call, me->list, count, &error);
    for (unsigned i = 0; i < count; i++)
        for (uint64_t j = 0; j < size; j++) {
            uint64_t page = pages[i] + j;
            if (i < good)
                stress_end(page,
                           (struct record){stress_record(page).generation + 1, ALL_ZERO, 0, 0});
            else
                stress_cancel(page);
            if (i < good && call == FUSOR_BALLOON_INFLATE)
                stress.held[page] = 1;
            stress_leave(page);
        }
    *(call == FUSOR_BALLOON_INFLATE ? &me->inflated : &me->reported) += good * size;
}

static void take_back(const uint64_t *pages, unsigned count, unsigned order)
{
    struct stress_cpu *me = stress_self();
    for (unsigned i = 0; i < count; i++) {
        int64_t error;
        me->list[0] = stress_entry(pages[i], order);
        bool taken = stress_send(FUSOR_BALLOON_DEFLATE, me->list, 1, &error) == 1;
        // Those that came back by a write are not there any more.
        if (!taken && error != -FUSOR_ENOENT)
            continue;
        for (uint64_t page = pages[i]; page < pages[i] + (UINT64_C(1) << order); page++) {
            me->deflated += taken && stress.held[page] != 0;
            stress.held[page] = 0;
        }
    }
}

// Some of the own pages from this one on.
void stress_give_from(uint64_t page, unsigned wanted)
{
    uint64_t pages[STRESS_GIVE_MAX];
    unsigned count = 0;
    uint64_t call = stress_chance(50) ? FUSOR_FREE_PAGES : FUSOR_BALLOON_INFLATE;
    for (; count < wanted && count < STRESS_GIVE_MAX && page < stress.busy; page += stress.cpus)
        if (stress.held[page] == 0 && stress_enter(page))
            pages[count++] = page;
    if (count != 0)
        give(call, pages, count, 0);
}

void stress_take_some(void)
{
    uint64_t pages[STRESS_GIVE_MAX];
    unsigned count = 0;
    for (uint64_t page = stress_own_page(); count < STRESS_GIVE_MAX && page < stress.busy;
         page += stress.cpus)
        if (stress.held[page] != 0)
            pages[count++] = page;
    take_back(pages, count, 0);
}

// --- Whole ranges ---

static bool enter_range(uint64_t first)
{
    for (uint64_t i = 0; i < RANGE; i++)
        if (!stress_enter(first + i)) {
            while (i-- > 0)
                stress_leave(first + i);
            return false;
        }
    return true;
}

static unsigned held_in(uint64_t first)
{
    unsigned n = 0;
    for (uint64_t i = 0; i < RANGE; i++)
        n += stress.held[first + i];
    return n;
}

void stress_fill_range(uint64_t first, enum content content, unsigned variant)
{
    for (uint64_t page = first; page < first + RANGE; page++) {
        if (!stress_enter(page))
            continue;
        struct record new = stress_begin(page, content, variant, 0);
        stress_write(page, new, true);
        stress_end(page, new);
        stress_leave(page);
    }
}

static void hint_range(uint64_t first)
{
    stress_self()->hint[0] = stress_entry(first, 9);
    stress_hint(stress_self()->hint, 1);
}

// New memory for a whole range, which becomes large by being written, and is likely the same
// elsewhere.
static void renew_range(uint64_t first)
{
    if (!enter_range(first))
        return;
    give(FUSOR_FREE_PAGES, &first, 1, 9);
    // Variants of their own: frames of single pages, which do not lie side by side, shall not be
    // what the index finds.
    stress_fill_range(first, COMMON, RANGE_VARIANT + (unsigned)stress_random() % 4);
    hint_range(first);
}

static void change_range(uint64_t first)
{
    unsigned what = (unsigned)stress_random() % 100;
    if (stress_is_quiet(first)) {
        if (what < 10)
            hint_range(first);
    } else if (what < 30) {
        renew_range(first);
    } else if (what < 45) {
        hint_range(first);
    } else if (what < 53) {
        stress_fill_range(first, stress_chance(70) ? OWN : COMMON, 1);
        // Nobody writes: it may become large again.
        __atomic_store_n(&stress.quiet[first / RANGE], rdtsc() + QUIET_TIME * tsc_hz(),
                         __ATOMIC_RELEASE);
    } else if (what < 85) {
        for (unsigned i = 0; i < 16; i++)
            stress_change(first + stress_random() % RANGE);
    } else if (held_in(first) != 0) {
        take_back(&first, 1, 9);
    } else if (enter_range(first)) {
        give(FUSOR_BALLOON_INFLATE, &first, 1, 9);
    }
}

// One of the own ranges, if there is one.
void stress_some_range(void)
{
    uint64_t ranges = (stress.ballooned - stress.busy) / RANGE;
    for (uint64_t n = 0; n < ranges; n++) {
        uint64_t first = stress.busy + stress_random() % ranges * RANGE;
        if (stress_owner(first) == smp_self()) {
            change_range(first);
            return;
        }
    }
}

// --- The balloon's target ---

void stress_follow_target(void)
{
    static uint64_t pages[AT_ONCE];
    uint64_t target = (uint64_t)hypercall(FUSOR_BALLOON_TARGET, 0, 0, 0, 0), held = 0;
    for (uint64_t first = stress.ballooned; first < stress.pages; first += RANGE)
        held += held_in(first);
    for (uint64_t first = stress.ballooned; first < stress.pages; first += RANGE) {
        unsigned here = held_in(first), count = 0;
        bool more = target > held;
        if (more && here == 0 && target - held >= RANGE && enter_range(first)) {
            give(FUSOR_BALLOON_INFLATE, &first, 1, 9);
            return;
        }
        if (held > target && here == RANGE && held - target >= RANGE) {
            take_back(&first, 1, 9);
            return;
        }
        if (held == target || here == (more ? RANGE : 0))
            continue;
        uint64_t left = more ? target - held : held - target;
        for (uint64_t page = first; page < first + RANGE && count < AT_ONCE && count < left; page++)
            if (stress.held[page] == !more && (!more || stress_enter(page)))
                pages[count++] = page;
        if (more && count != 0)
            give(FUSOR_BALLOON_INFLATE, pages, count, 0);
        else
            take_back(pages, count, 0);
        return;
    }
}

// What was not given is memory in use.
void stress_use_rest(void)
{
    uint64_t size = stress.pages - stress.ballooned;
    if (size != 0)
        for (unsigned i = 0; i < 16; i++) {
            uint64_t page = stress.ballooned + stress_random() % size;
            if (stress.held[page] == 0 || stress_chance(1))
                stress_change(page);
        }
}

void stress_empty_balloon(void)
{
    static struct fusor_statistics s __attribute__((aligned(128))); // within one page
    for (uint64_t page = 0; page < stress.pages; page++)
        if (stress.held[page] != 0)
            take_back(&page, 1, 0);
    check(hypercall(FUSOR_STATISTICS, (uint64_t)(uintptr_t)&s, sizeof(s), 0, 0) == sizeof(s), 0);
    uint64_t held = 0; // refused for want of memory
    for (uint64_t page = 0; page < stress.pages; page++)
        held += stress.held[page];
    check(s.balloon <= held, s.balloon);
}
