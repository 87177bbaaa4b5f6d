// SPDX-License-Identifier: BSD-2-Clause
// touch, pattern, tlb: RAM behind EPT.
#include "bare.h"

static volatile uint64_t *word(uint64_t address)
{
    return (volatile uint64_t *)address; // NOLINT: RAM is mapped to itself
}

static uint64_t mix(uint64_t x)
{
    x ^= x >> 30;
    x *= UINT64_C(0xbf58476d1ce4e5b9);
    x ^= x >> 27;
    x *= UINT64_C(0x94d049bb133111eb);
    return x ^ x >> 31;
}

// The n-th whole 2 MiB range from the top of memory down, 0 when there are fewer.
static uint64_t range_from_top(unsigned n)
{
    for (unsigned i = memory_count; i-- > 0;) {
        uint64_t ranges = (memory[i].to - memory[i].from) / (2 * MIB);
        if (n < ranges)
            return memory[i].to - (n + 1) * 2 * MIB;
        n -= (unsigned)ranges;
    }
    return 0;
}

struct touched {
    uint64_t min, max, sum, max_page;
};

static void touch_pages(uint64_t range, unsigned from, unsigned to, struct touched *t)
{
    for (unsigned page = from; page < to; page++) {
        uint64_t address = range + (uint64_t)page * PAGE;
        uint64_t begin = rdtsc();
        *word(address) = mix(address);
        uint64_t ticks = rdtsc() - begin;
        t->sum += ticks;
        if (ticks < t->min)
            t->min = ticks;
        if (ticks > t->max) {
            t->max = ticks;
            t->max_page = page;
        }
    }
}

static void verify_range(uint64_t range)
{
    for (uint64_t a = range; a < range + 2 * MIB; a += 8) {
        uint64_t expected = a % PAGE == 0 ? mix(a) : 0;
        uint64_t got = *word(a);
        check(got == expected, a);
    }
}

// `pages=` (64) single touches, then `ranges=` (4) whole ranges of 2 MiB.
void test_touch(void)
{
    unsigned pages = (unsigned)option("pages", 64);
    unsigned ranges = (unsigned)option("ranges", 4);
    if (pages == 0 || pages > 512)
        pages = 512;
    uint64_t first = range_from_top(0);
    check(first != 0, memory_top);
    if (first == 0)
        return;

    // The CPU's walk of the guest's own tables must not be part of it: touch the range's last page.
    *word(first + 511 * PAGE) = mix(first + 511 * PAGE);
    struct touched single = {UINT64_MAX, 0, 0, 0};
    touch_pages(first, 0, pages, &single);
    report("pages=%lu avg=%lu min=%lu max=%lu", (uint64_t)pages, single.sum / pages, single.min,
           single.max);
    struct touched rest = {UINT64_MAX, 0, 0, 0};
    touch_pages(first, pages, 512, &rest);

    unsigned done = 1;
    for (; done <= ranges && range_from_top(done) != 0; done++) {
        struct touched t = {UINT64_MAX, 0, 0, 0};
        touch_pages(range_from_top(done), 0, 512, &t);
        report("range=%lu avg=%lu min=%lu max=%lu max_page=%lu", (uint64_t)done, t.sum / 512, t.min,
               t.max, t.max_page);
    }
    for (unsigned i = 0; i < done; i++)
        verify_range(range_from_top(i));
    report("verified=%lu errors=%lu", done * 2 * MIB, (uint64_t)errors);
}

// Fills `mb=` (half of what is there) MiB with a pattern of `seed=` (1) and verifies it for ever,
// or `passes=` times. `same=1` makes the pattern the same for every page.
void test_pattern(void)
{
    uint64_t seed = option("seed", 1);
    uint64_t passes = option("passes", UINT64_MAX);
    uint64_t mask = option("same", 0) != 0 ? PAGE - 1 : UINT64_MAX;
    uint64_t total = 0;
    for (unsigned i = 0; i < memory_count; i++)
        total += memory[i].to - memory[i].from;
    uint64_t want = option("mb", total / 2 / MIB) * MIB;
    if (want > total)
        want = total;
    for (uint64_t pass = 0; pass <= passes; pass++) {
        uint64_t left = want;
        for (unsigned i = 0; i < memory_count && left != 0; i++) {
            uint64_t size = memory[i].to - memory[i].from;
            uint64_t end = memory[i].from + (size < left ? size : left);
            for (uint64_t a = memory[i].from; a < end; a += 8) {
                uint64_t value = mix((a & mask) + seed);
                if (pass == 0)
                    *word(a) = value;
                else
                    check(*word(a) == value, a);
            }
            left -= end - memory[i].from;
        }
        if (pass == 0)
            report("filled=%lu seed=%lu", want, seed);
        else
            report("pass=%lu errors=%lu", pass, (uint64_t)errors);
    }
}

static void map_page(uint64_t page, uint64_t flags)
{
    volatile uint64_t *at = window_set(0, page | PTE_PRESENT | flags);
    invlpg(at);
}

static void test_permissions(uint64_t page)
{
    volatile uint64_t *at = window_set(0, page | PTE_PRESENT);
    invlpg(at);
    catch_fault("movq $1, (%[at])", [at] "r"(at));
    check(caught.vector == 14, caught.vector);
    check(caught.error == 3, caught.error);
    check(caught.cr2 == WINDOW, caught.cr2);
    map_page(page, PTE_WRITE);
    catch_fault("movq $1, (%[at])", [at] "r"(at));
    check(caught.vector == NO_FAULT, caught.vector);
    window_set(0, 0);
    invlpg(at);
    catch_fault("movq $1, (%[at])", [at] "r"(at));
    check(caught.vector == 14 && caught.error == 2, caught.error);
}

static void test_global_pages(uint64_t a, uint64_t b)
{
    volatile uint64_t *at = window_set(1, a | PTE_PRESENT | PTE_GLOBAL);
    uint64_t cr4 = read_cr4();
    write_cr4(cr4 | 0x80); // PGE
    invlpg(at);
    check(*at == *word(a), *at);
    window_set(1, b | PTE_PRESENT | PTE_GLOBAL);
    write_cr4(cr4 & ~UINT64_C(0x80)); // flushes global entries, too
    uint64_t got = *at, wanted = *word(b);
    check(got == wanted, got);
    if (got != wanted)
        report("global got=%lx wanted=%lx again=%lx direct=%lx pte=%lx a=%lx b=%lx", got, wanted,
               *at, *word(b), window_get(1), a, b);
    write_cr4(cr4);
}

// Remaps a page in different ways; `loops=` (1000).
void test_tlb(void)
{
    uint64_t loops = option("loops", 1000);
    uint64_t pages[2] = {range_from_top(0), range_from_top(1)};
    check(pages[1] != 0, memory_top);
    if (pages[1] == 0)
        return;
    *word(pages[0]) = 0xaaaa;
    *word(pages[1]) = 0xbbbb;
    for (uint64_t i = 0; i < loops; i++) {
        volatile uint64_t *at = window_set(0, pages[i & 1] | PTE_PRESENT | PTE_WRITE);
        if ((i & 2) != 0)
            write_cr3(read_cr3());
        else
            invlpg(at);
        check(*at == *word(pages[i & 1]), *at);
        cpuid(0, 0); // what an exit leaves behind in the TLB must be right, too
        *at = i;
        check(*word(pages[i & 1]) == i, *word(pages[i & 1]));
    }
    test_permissions(pages[0]);
    *word(pages[0]) = 0xaaaa;
    *word(pages[1]) = 0xbbbb;
    test_global_pages(pages[0], pages[1]);
    report("loops=%lu", loops);
}
