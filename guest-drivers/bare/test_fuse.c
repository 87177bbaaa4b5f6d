// SPDX-License-Identifier: BSD-2-Clause
// fuse: pages that another VM has too, hinted and written at the console's command.
//
// `pages=` (1024) pages of a pattern that depends on `seed=` (1) and the page's number only, so that
// two guests with the same seed have the same pages; `id=` makes what they write differ. Then one
// letter per step comes through the UART:
//   h  hint all pages         H  hint whole 2 MiB ranges     u  unhint all
//   w  write a word of each   o  write the original back     v  verify every byte
//   s  statistics             q  quit
#include "bare.h"

#include "hypercall.h"

#define COM1 0x3f8u

static uint64_t first; // address of the first page
static uint64_t pages, seed, id;
static bool written;
static uint64_t list[FUSOR_LIST_MAX] __attribute__((aligned(4096)));

static volatile uint64_t *word(uint64_t page, uint64_t n)
{
    return (volatile uint64_t *)(first + page * PAGE + n * 8); // NOLINT: RAM is mapped to itself
}

static uint64_t mix(uint64_t x)
{
    x ^= x >> 30;
    x *= UINT64_C(0xbf58476d1ce4e5b9);
    x ^= x >> 27;
    x *= UINT64_C(0x94d049bb133111eb);
    return x ^ x >> 31;
}

static uint64_t original(uint64_t page, uint64_t n)
{
    return mix(seed << 48 ^ page << 12 ^ n);
}

// The word of each page that is written.
static uint64_t place(uint64_t page)
{
    return mix(page + 77) % 512;
}

static void fill(void)
{
    for (uint64_t page = 0; page < pages; page++)
        for (uint64_t n = 0; n < 512; n++)
            *word(page, n) = original(page, n);
}

static void verify(void)
{
    uint64_t wrong = 0;
    for (uint64_t page = 0; page < pages; page++)
        for (uint64_t n = 0; n < 512; n++) {
            uint64_t wanted = original(page, n);
            if (written && n == place(page))
                wanted = mix(id ^ page);
            wrong += *word(page, n) != wanted;
        }
    check(wrong == 0, wrong);
    report("op=v verified=%lu wrong=%lu", pages, wrong);
}

// Sends the list again and again until all of it is done or refused.
static void send(uint64_t call, unsigned count, uint64_t *done, uint64_t *refused)
{
    unsigned at = 0;
    while (at < count) {
        int64_t result = hypercall(call, (uint64_t)&list[at], count - at, 0, 0);
        if (result < 0) {
            ++*refused;
            at++;
            continue;
        }
        *done += (uint64_t)result;
        at += (unsigned)result;
    }
}

static void hint(char op, uint64_t call, unsigned order)
{
    uint64_t done = 0, refused = 0, step = UINT64_C(1) << order;
    uint64_t begin = rdtsc();
    for (uint64_t page = 0; page < pages;) {
        unsigned count = 0;
        for (; page < pages && count < FUSOR_LIST_MAX; page += step)
            list[count++] = FUSOR_ENTRY(first / PAGE + page, 0, order);
        send(call, count, &done, &refused);
    }
    uint64_t ticks = rdtsc() - begin;
    report("op=%s done=%lu refused=%lu ticks=%lu per_page=%lu", (char[]){op, 0}, done, refused,
           ticks, ticks / pages);
}

static void write_all(bool new)
{
    uint64_t sum = 0, min = UINT64_MAX, max = 0;
    for (uint64_t page = 0; page < pages; page++) {
        uint64_t n = place(page);
        volatile uint64_t *w = word(page, n);
        uint64_t value = new ? mix(id ^ page) : original(page, n);
        uint64_t begin = rdtsc();
        *w = value;
        uint64_t ticks = rdtsc() - begin;
        sum += ticks;
        min = ticks < min ? ticks : min;
        max = ticks > max ? ticks : max;
    }
    written = new;
    report("op=%s pages=%lu avg=%lu min=%lu max=%lu", new ? "w" : "o", pages, sum / pages, min,
           max);
}

static void statistics(void)
{
    static struct fusor_statistics s __attribute__((aligned(64)));
    int64_t result = hypercall(FUSOR_STATISTICS, (uint64_t)&s, sizeof(s), 0, 0);
    check(result == (int64_t)sizeof(s), result);
    report("op=s received=%lu fused=%lu unmatched=%lu rejected=%lu splits=%lu shared=%lu",
           s.hints_received, s.hints_fused, s.hints_unmatched, s.hints_rejected, s.splits,
           s.shared);
}

static char next_command(void)
{
    while ((inb(COM1 + 5) & 1) == 0)
        __asm__ volatile("pause");
    return (char)inb(COM1);
}

void test_fuse(void)
{
    pages = option("pages", 1024);
    seed = option("seed", 1);
    id = option("id", 1);
    struct region *top = &memory[memory_count - 1];
    uint64_t size = (pages * PAGE + 2 * MIB - 1) & ~(2 * MIB - 1);
    check(top->to - top->from >= size, top->to - top->from);
    if (errors != 0)
        return;
    first = top->to - size;
    uint64_t begin = rdtsc();
    fill();
    report("filled=%lu first=%lx ticks=%lu", pages, first, rdtsc() - begin);
    for (;;) {
        switch (next_command()) {
        case 'h':
            hint('h', FUSOR_HINT, 0);
            break;
        case 'H':
            hint('H', FUSOR_HINT, 9);
            break;
        case 'u':
            hint('u', FUSOR_UNHINT, 0);
            break;
        case 'w':
            write_all(true);
            break;
        case 'o':
            write_all(false);
            break;
        case 'v':
            verify();
            break;
        case 's':
            statistics();
            break;
        case 'q':
            return;
        default:
            break;
        }
    }
}
