// SPDX-License-Identifier: BSD-2-Clause
// stress: all CPUs write, read, hint, balloon at random until they are told to stop.
//
// `busy=`, `large=` and `target=` ranges of 2 MiB: pages that change all the time, ranges that are
// also hinted and given as a whole and are left alone for a while so that large pages come back,
// and what meets the balloon's target. `id=` tells VMs apart, `seed=` begins the random numbers.
// Commands come through the UART, TAG LETTER and a carriage return each:
//   v  all CPUs stop, every word is checked, `report tag=TAG` with the counts, they go on
//   q  the same, and the balloon is emptied, and the guest ends
// Whatever is wrong ends the guest with lines that say what.
#include "stress.h"

#define COM1          0x3f8u
#define AT_ONCE       64u // pages of a list, mostly
#define AHEAD         8u  // pages that a CPU announces before it changes them
#define AHEAD_TICKS   4000u
#define WATCHES       200u
#define READ_PAGES    24u
#define RANGE_VARIANT 4u
#define QUIET_TIME    8u // seconds
#define TOGGLES       40u
#define TELL_TIME     10u // seconds between two reports that nobody asked for
#define LOOK_EACH     16u // rounds of CPU 0 between two looks at the UART and the target

static uint64_t order_to_stop, arrived;
static bool ending;

static struct stress_cpu *self(void)
{
    return &stress.cpu[smp_self()];
}

static bool chance(unsigned percent)
{
    return stress_random() % 100 < percent;
}

static bool is_quiet(uint64_t page)
{
    return page >= stress.busy &&
           rdtsc() < __atomic_load_n(&stress.quiet[page / RANGE], __ATOMIC_ACQUIRE);
}

static uint64_t any_page(void)
{
    // The busy ones more often than their number says.
    return stress_random() % (chance(60) ? stress.busy : stress.pages);
}

// One of the pages that are being hinted; any one when there are none.
static uint64_t hinted_page(void)
{
    uint64_t hinting = __atomic_load_n(&stress.hinting, __ATOMIC_RELAXED);
    if (hinting == 0)
        return any_page();
    return ((uint32_t)hinting + stress_random() % (hinting >> 32)) % stress.pages;
}

// The own busy page nearest to this one.
static uint64_t own_near(uint64_t page)
{
    page = page % stress.busy / stress.cpus * stress.cpus + smp_self();
    return page >= stress.busy ? smp_self() : page;
}

static uint64_t own_page(void)
{
    return own_near(stress_random());
}

static uint64_t entry(uint64_t page, unsigned order)
{
    return FUSOR_ENTRY(stress.first / PAGE + page, FUSOR_CLASS_OTHER, order);
}

// Sends entries from..to-1 of a list. Returns how many were done before one was refused, and why.
static unsigned send(uint64_t call, const uint64_t *list, unsigned count, int64_t *error)
{
    unsigned at = 0;
    *error = 0;
    while (at < count && *error == 0) {
        int64_t result = hypercall(call, (uint64_t)(uintptr_t)&list[at], count - at, 0, 0);
        if (result <= 0) {
            self()->refused++;
            *error = result == 0 ? -FUSOR_EAGAIN : result;
        } else {
            at += (unsigned)result;
        }
    }
    return at;
}

// --- Writing ---

static void change(uint64_t page)
{
    struct record old = stress_record(page);
    enum content content = COMMON;
    unsigned variant = (unsigned)stress_random() % VARIANTS;
    unsigned word = 0;
    if (old.content == COMMON && chance(70)) {
        content = TOUCHED;
        variant = old.variant;
        do
            word = (unsigned)stress_random() % WORDS;
        while (word % 97 == 3); // no slot
    } else if (old.content == TOUCHED && chance(70)) {
        variant = old.variant;
    } else if (chance(20)) {
        content = chance(30) ? ALL_ZERO : OWN;
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
static uint64_t announce(void)
{
    uint64_t page = own_page();
    __atomic_store_n(&stress.changing[smp_self()], (uint32_t)page, __ATOMIC_RELEASE);
    wait_ticks(stress_random() % AHEAD_TICKS);
    return page;
}

static void change_some(void)
{
    uint64_t page = announce();
    for (unsigned i = 0; i < AHEAD && page < stress.busy; i++, page += stress.cpus)
        change(page);
}

// Reads what another CPU is about to change, while it does, or what is being hinted, without an
// exit of the own, which would hide that a translation has not been forgotten.
static void watch(void)
{
    unsigned other = (smp_self() + 1 + (unsigned)stress_random() % STRESS_CPUS) % stress.cpus;
    bool hinted = chance(50);
    uint64_t first = hinted_page();
    for (unsigned n = 0; n < WATCHES; n++) {
        uint64_t page = hinted ? first : __atomic_load_n(&stress.changing[other], __ATOMIC_ACQUIRE);
        uint64_t step = hinted ? 1 : stress.cpus;
        for (unsigned i = 0; i < AHEAD && page < stress.pages; i++, page += step)
            stress_read(page, 1);
    }
}

// --- Hints ---

static void send_hints(unsigned count)
{
    int64_t error;
    self()->hints += send(chance(5) ? FUSOR_UNHINT : FUSOR_HINT, self()->hint, count, &error);
}

static void hint(void)
{
    volatile uint64_t *list = self()->hint;
    uint64_t from = any_page();
    unsigned count = 1 + (unsigned)stress_random() % (chance(10) ? FUSOR_LIST_MAX : AT_ONCE);
    if (from >= stress.busy && from < stress.ballooned && !chance(3))
        from %= stress.busy; // ranges shall be large for a while
    uint64_t room = from < stress.busy ? stress.busy : stress.pages;
    for (unsigned i = 0; i < count; i++)
        list[i] = entry((from + i) % room, 0);
    if (chance(2)) // whatever lies there: code, stacks, page tables, these lists
        for (unsigned i = 0; i < 4; i++)
            list[i] = FUSOR_ENTRY(stress_random() % (memory_top / PAGE), 0, 0);
    if (chance(3))
        list[count / 2] = stress_random();
    __atomic_store_n(&stress.hinting, (uint64_t)count << 32 | from, __ATOMIC_RELAXED);
    send_hints(count);
    __atomic_store_n(&stress.hinting, 0, __ATOMIC_RELAXED);
    // Written at once: copies go to the frames that were given up.
    if (from < stress.busy && chance(50))
        for (uint64_t page = from; page < from + AHEAD * stress.cpus && page < stress.busy; page++)
            if (stress_owner(page) == smp_self())
                change(page);
}

// A hint may change while Fusor reads it.
static void spoil(void)
{
    unsigned other = (unsigned)stress_random() % stress.cpus;
    *(volatile uint64_t *)&stress.cpu[other].hint[stress_random() % AT_ONCE] =
        entry(chance(5) ? any_page() : stress_random() % stress.busy, 0);
}

// --- Giving and taking back ---

// Gives the pages of the list, 1 << order each, to the balloon or, with FUSOR_FREE_PAGES, only
// their content. All of `pages` were entered by stress_enter().
static void give(uint64_t call, const uint64_t *pages, unsigned count, unsigned order)
{
    struct stress_cpu *me = self();
    uint64_t size = UINT64_C(1) << order;
    for (unsigned i = 0; i < count; i++) {
        me->list[i] = entry(pages[i], order);
        for (uint64_t j = 0; j < size; j++)
            stress_begin(pages[i] + j, ALL_ZERO, 0, 0);
    }
    int64_t error;
    unsigned good = send(call, me->list, count, &error);
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
    struct stress_cpu *me = self();
    for (unsigned i = 0; i < count; i++) {
        int64_t error;
        me->list[0] = entry(pages[i], order);
        bool taken = send(FUSOR_BALLOON_DEFLATE, me->list, 1, &error) == 1;
        // Those that came back by a write are not there any more.
        if (!taken && error != -FUSOR_ENOENT)
            continue;
        for (uint64_t page = pages[i]; page < pages[i] + (UINT64_C(1) << order); page++) {
            me->deflated += taken && stress.held[page] != 0;
            stress.held[page] = 0;
        }
    }
}

static void give_some(void)
{
    uint64_t pages[16];
    unsigned count = 0, wanted = 1 + (unsigned)stress_random() % 16;
    uint64_t call = chance(50) ? FUSOR_FREE_PAGES : FUSOR_BALLOON_INFLATE;
    uint64_t page = chance(50) ? announce() : own_near(hinted_page());
    for (; count < wanted && page < stress.busy; page += stress.cpus)
        if (stress.held[page] == 0 && stress_enter(page))
            pages[count++] = page;
    if (count != 0)
        give(call, pages, count, 0);
}

static void take_some(void)
{
    uint64_t pages[16];
    unsigned count = 0;
    for (uint64_t page = own_page(); count < 16 && page < stress.busy; page += stress.cpus)
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

static void fill_range(uint64_t first, enum content content, unsigned variant)
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
    self()->hint[0] = entry(first, 9);
    send_hints(1);
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
    fill_range(first, COMMON, RANGE_VARIANT + (unsigned)stress_random() % 4);
    hint_range(first);
}

static void change_range(uint64_t first)
{
    unsigned what = (unsigned)stress_random() % 100;
    if (is_quiet(first)) {
        if (what < 10)
            hint_range(first);
    } else if (what < 30) {
        renew_range(first);
    } else if (what < 45) {
        hint_range(first);
    } else if (what < 53) {
        fill_range(first, chance(70) ? OWN : COMMON, 1);
        // Nobody writes: it may become large again.
        __atomic_store_n(&stress.quiet[first / RANGE], rdtsc() + QUIET_TIME * tsc_hz(),
                         __ATOMIC_RELEASE);
    } else if (what < 85) {
        for (unsigned i = 0; i < 16; i++)
            change(first + stress_random() % RANGE);
    } else if (held_in(first) != 0) {
        take_back(&first, 1, 9);
    } else if (enter_range(first)) {
        give(FUSOR_BALLOON_INFLATE, &first, 1, 9);
    }
}

// One of the own ranges, if there is one.
static void some_range(void)
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

static void follow_target(void)
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
static void use_rest(void)
{
    uint64_t size = stress.pages - stress.ballooned;
    if (size != 0)
        for (unsigned i = 0; i < 16; i++) {
            uint64_t page = stress.ballooned + stress_random() % size;
            if (stress.held[page] == 0 || chance(1))
                change(page);
        }
}

// --- A CPU's life ---

// Writes to pages that are being hinted, again and again without an exit where it can be: a write
// through a translation that should be gone is lost.
static void toggle_some(void)
{
    uint64_t first = chance(20) ? any_page() : hinted_page();
    for (unsigned n = 0; n < TOGGLES; n++)
        for (unsigned i = 0; i < 3; i++) {
            uint64_t page = (first + i) % stress.pages;
            if (!is_quiet(page) && (stress.held[page] == 0 || n == 0))
                stress_toggle(page, 3);
        }
}

static void one_round(void)
{
    unsigned what = (unsigned)stress_random() % 100;
    if (what < 8) {
        for (unsigned i = 0; i < READ_PAGES; i++)
            stress_read(any_page(), 4);
    } else if (what < 28) {
        watch();
    } else if (what < 48) {
        change_some();
    } else if (what < 68) {
        toggle_some();
    } else if (what < 84) {
        hint();
    } else if (what < 86) {
        spoil();
    } else if (what < 90) {
        give_some();
    } else if (what < 93) {
        take_some();
    } else if (what < 99) {
        some_range();
    } else if (smp_self() == 0) {
        use_rest();
    }
}

static void barrier(uint64_t n)
{
    __atomic_fetch_add(&arrived, 1, __ATOMIC_ACQ_REL);
    while (__atomic_load_n(&arrived, __ATOMIC_ACQUIRE) < n * stress.cpus)
        __asm__ volatile("pause" : : : "memory");
}

// All CPUs have stopped between the two barriers of each order.
static void obey(uint64_t *obeyed)
{
    barrier(++*obeyed * 2 - 1);
    stress_verify();
    barrier(*obeyed * 2);
}

static void live(void *unused)
{
    (void)unused;
    uint64_t obeyed = 0;
    for (bool over = false; !over;) {
        one_round();
        if (__atomic_load_n(&order_to_stop, __ATOMIC_ACQUIRE) == obeyed)
            continue;
        over = __atomic_load_n(&ending, __ATOMIC_ACQUIRE);
        obey(&obeyed);
    }
}

// --- CPU 0 ---

static struct stress_cpu sum(void)
{
    struct stress_cpu all = {0};
    for (unsigned i = 0; i < stress.cpus; i++) {
        const struct stress_cpu *c = &stress.cpu[i];
        all.reads += c->reads;
        all.unsure += c->unsure;
        all.writes += c->writes;
        all.toggles += c->toggles;
        all.hints += c->hints;
        all.inflated += c->inflated;
        all.deflated += c->deflated;
        all.reported += c->reported;
        all.refused += c->refused;
    }
    return all;
}

static void tell(uint64_t tag)
{
    struct stress_cpu all = sum();
    report("report tag=%lu cpus=%lu reads=%lu unsure=%lu writes=%lu toggles=%lu hints=%lu "
           "inflated=%lu deflated=%lu reported=%lu refused=%lu",
           tag, (uint64_t)stress.cpus, all.reads, all.unsure, all.writes, all.toggles, all.hints,
           all.inflated, all.deflated, all.reported, all.refused);
}

static void empty_balloon(void)
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

// A command's letter when one is complete, else 0.
static char command(uint64_t *tag)
{
    static uint64_t number;
    static char letter;
    while ((inb(COM1 + 5) & 1) != 0) {
        char byte = (char)inb(COM1);
        if (byte == '\r') {
            char whole = letter;
            *tag = number;
            letter = 0;
            number = 0;
            return whole;
        }
        if (byte >= '0' && byte <= '9')
            number = number * 10 + (uint64_t)(byte - '0');
        else
            letter = byte;
    }
    return 0;
}

static void lead(void)
{
    uint64_t obeyed = 0, tag = 0, next = 0;
    for (uint64_t n = 0; !ending && !stress_failed(); n++) {
        one_round();
        if (n % LOOK_EACH != 0)
            continue;
        follow_target();
        char letter = command(&tag);
        if (letter == 'q' || letter == 'v') {
            __atomic_store_n(&ending, letter == 'q', __ATOMIC_RELEASE);
            __atomic_fetch_add(&order_to_stop, 1, __ATOMIC_ACQ_REL);
            obey(&obeyed);
            if (stress_failed())
                break;
            if (ending)
                empty_balloon();
            tell(tag);
        } else if (rdtsc() >= next) {
            tell(0);
            next = rdtsc() + TELL_TIME * tsc_hz();
        }
    }
}

void test_stress(void)
{
    uint64_t large = option("large", 2), target = option("target", 1);
    stress.busy = option("busy", 1) * RANGE;
    stress.ballooned = stress.busy + large * RANGE;
    stress.pages = stress.ballooned + target * RANGE;
    stress.vm = (uint8_t)option("id", 1);
    stress.boot = (uint8_t)(rdtsc() >> 20);
    const struct region *top = &memory[memory_count - 1];
    check(stress.busy != 0 && stress.pages <= STRESS_PAGES_MAX, stress.pages);
    check(top->to - top->from >= stress.pages * PAGE, top->to - top->from);
    stress.cpus = smp_start();
    check(stress.cpus <= STRESS_CPUS, stress.cpus);
    if (errors != 0)
        return;
    stress.first = top->to - stress.pages * PAGE;
    for (unsigned i = 0; i < stress.cpus; i++)
        stress.cpu[i].random =
            (option("seed", 1) << 8 | (uint64_t)stress.vm << 3 | i) * 0x9e3779b97f4a7c15 + 1;
    stress_map();
    stress_verify_fresh();
    for (uint64_t first = 0; first < stress.pages; first += RANGE)
        fill_range(first, COMMON, 0);
    report("begin cpus=%lu pages=%lu", (uint64_t)stress.cpus, stress.pages);
    for (unsigned i = 1; i < stress.cpus; i++)
        smp_run(i, live, NULL);
    lead();
}
