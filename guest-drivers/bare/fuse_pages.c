// SPDX-License-Identifier: BSD-2-Clause
// What the pages of test=fuse hold, and the ways to write them.
#include "fuse.h"

// `rep movsb` writes these bytes of the first, second and third page of four; the copy begins and
// ends in the middle of a word.
#define MOVED_FROM 2403u
#define MOVED_TO   805u

struct fuse fuse;

uint64_t fuse_mix(uint64_t x)
{
    x ^= x >> 30;
    x *= UINT64_C(0xbf58476d1ce4e5b9);
    x ^= x >> 27;
    x *= UINT64_C(0x94d049bb133111eb);
    return x ^ x >> 31;
}

uint64_t fuse_random(void)
{
    static uint64_t state;
    state += UINT64_C(0x9e3779b97f4a7c15);
    return fuse_mix(state ^ fuse.id << 56);
}

uint64_t fuse_original(uint64_t page, uint64_t n)
{
    return fuse.seed == 0 ? 0 : fuse_mix(fuse.seed << 40 ^ page << 12 ^ n);
}

uint64_t fuse_place(uint64_t page, unsigned i)
{
    return (fuse_mix(page + 77) + i) % 512;
}

uint64_t fuse_value(uint64_t page, unsigned i)
{
    return fuse_mix(fuse.id << 40 ^ (uint64_t)i << 32 ^ page);
}

// The bytes of a word that fuse_move() inverts.
static uint64_t moved_mask(uint64_t page, uint64_t n)
{
    uint64_t from = page % 4 == 0 ? MOVED_FROM : 0;
    uint64_t to = page % 4 == 2 ? MOVED_TO : PAGE;
    uint64_t mask = 0;
    for (uint64_t byte = 8 * n; page % 4 != 3 && byte < 8 * n + 8; byte++)
        if (byte >= from && byte < to)
            mask |= UINT64_C(0xff) << byte % 8 * 8;
    return mask;
}

// As long as nobody wrote single words.
static uint64_t unwritten(uint64_t page, uint64_t n)
{
    uint64_t value = fuse_original(page, n);
    return (fuse.state[page] & FUSE_MOVED) != 0 ? value ^ moved_mask(page, n) : value;
}

uint64_t fuse_expected(uint64_t page, uint64_t n)
{
    uint8_t state = fuse.state[page];
    if (state & FUSE_TABLE)
        return fuse_table_entry(page, n);
    if (state & FUSE_LIST)
        return fuse_entry(n, 0);
    for (unsigned i = 0; i < (state & FUSE_WORDS); i++)
        if (n == fuse_place(page, i))
            return fuse_value(page, i);
    return unwritten(page, n);
}

void fuse_fill(void)
{
    uint64_t begin = rdtsc();
    for (uint64_t page = 0; page < fuse.pages; page++) {
        fuse.state[page] = 0;
        for (uint64_t n = 0; n < 512; n++)
            *fuse_word(page, n) = fuse_original(page, n);
    }
    report("op=f filled=%lu first=%lx ticks=%lu", fuse.pages, fuse.first, rdtsc() - begin);
}

void fuse_verify(uint64_t pages)
{
    uint64_t wrong = 0;
    for (uint64_t page = 0; page < pages; page++) {
        // The walks of a page table set the flags of its entries.
        uint64_t care = (fuse.state[page] & FUSE_TABLE) != 0 ? ~UINT64_C(0x60) : ~UINT64_C(0);
        for (uint64_t n = 0; n < 512; n++)
            wrong += (*fuse_word(page, n) & care) != fuse_expected(page, n);
    }
    check(wrong == 0, wrong);
    report("op=v verified=%lu wrong=%lu", pages, wrong);
}

void fuse_write(char op, uint64_t pages, bool original)
{
    uint64_t sum = 0, min = UINT64_MAX, max = 0, writes = 0;
    for (uint64_t page = 0; page < pages; page++) {
        unsigned words = original ? fuse.state[page] & FUSE_WORDS : 1;
        for (unsigned i = 0; i < words; i++) {
            volatile uint64_t *w = fuse_word(page, fuse_place(page, i));
            uint64_t value = original ? unwritten(page, fuse_place(page, i)) : fuse_value(page, i);
            uint64_t begin = rdtsc();
            *w = value;
            uint64_t ticks = rdtsc() - begin;
            sum += ticks;
            min = ticks < min ? ticks : min;
            max = ticks > max ? ticks : max;
            writes++;
        }
        unsigned kept = original ? 0 : fuse.state[page] & FUSE_WORDS;
        fuse.state[page] = (uint8_t)((fuse.state[page] & ~FUSE_WORDS) | (original    ? 0
                                                                         : kept != 0 ? kept
                                                                                     : 1));
    }
    report("op=%s pages=%lu writes=%lu avg=%lu min=%lu max=%lu", (char[]){op, 0}, pages, writes,
           writes != 0 ? sum / writes : 0, writes != 0 ? min : 0, max);
}

void fuse_move(uint64_t pages)
{
    static uint64_t source[3 * 512] __attribute__((aligned(4096)));
    uint64_t moved = 0;
    for (uint64_t page = 0; page + 3 < pages; page += 4) {
        for (uint64_t n = 0; n < ARRAY_SIZE(source); n++)
            source[n] = ~fuse_original(page + n / 512, n % 512);
        for (unsigned i = 0; i < 3; i++) {
            check((fuse.state[page + i] & FUSE_WORDS) == 0, page + i);
            fuse.state[page + i] |= FUSE_MOVED;
        }
        const uint8_t *from = (const uint8_t *)source + MOVED_FROM;
        volatile uint8_t *to = (volatile uint8_t *)fuse_word(page, 0) + MOVED_FROM;
        uint64_t count = 2 * PAGE + MOVED_TO - MOVED_FROM;
        __asm__ volatile("rep movsb" : "+D"(to), "+S"(from), "+c"(count) : : "memory");
        moved += 3;
    }
    report("op=m moved=%lu", moved);
}
