// SPDX-License-Identifier: BSD-2-Clause
// The rooms of test=fuse. `fuse.pages` pages stand at the end of RAM; what each must hold is known
// from its number, the seed and its state, so that every byte can be verified at any time.
#pragma once

#include "hypercall.h"

#define FUSE_PAGES_MAX 16384u

// A page's state: how many of its words were written, and what else happened to it.
#define FUSE_WORDS 0x0fu
#define FUSE_MOVED 0x10u // part of it was copied over by `rep movsb`
#define FUSE_TABLE 0x40u // it is a page table (fuse_bad.c)
#define FUSE_LIST  0x80u // it is a list of hints (fuse_bad.c)

struct fuse {
    uint64_t first; // address of the first page
    uint64_t pages, seed, id;
    uint8_t state[FUSE_PAGES_MAX];
};
extern struct fuse fuse;

// --- test_fuse.c ---

// A hint of one of the pages, for a list.
uint64_t fuse_entry(uint64_t page, unsigned order);
struct fuse_sent {
    uint64_t done, refused;
};
// Sends a list again and again until all of it is done or refused.
struct fuse_sent fuse_send(uint64_t call, const uint64_t *list, unsigned count);
// Hints the pages from..to-1, one by one.
struct fuse_sent fuse_hint(uint64_t from, uint64_t to);
struct fusor_statistics fuse_statistics(void);

// --- fuse_pages.c ---

uint64_t fuse_mix(uint64_t x); // splitmix64's last steps
uint64_t fuse_random(void);
static inline volatile uint64_t *fuse_word(uint64_t page, uint64_t n)
{
    return (volatile uint64_t *)(fuse.first + page * PAGE + n * 8); // NOLINT: RAM, mapped to itself
}
// What the guests with the same seed have there at first.
uint64_t fuse_original(uint64_t page, uint64_t n);
// Word `i` of those that are written in a page, and the value that this guest writes to it.
uint64_t fuse_place(uint64_t page, unsigned i);
uint64_t fuse_value(uint64_t page, unsigned i);
uint64_t fuse_expected(uint64_t page, uint64_t n);
void fuse_fill(void);
void fuse_verify(uint64_t pages);
// Writes a word of each page, or the original back to all that were written; says what a write
// costs.
void fuse_write(char op, uint64_t pages, bool original);
void fuse_move(uint64_t pages);

// --- fuse_bad.c: what a driver would not do ---

uint64_t fuse_table_entry(uint64_t page, uint64_t n);
void fuse_garbage(uint64_t calls);
void fuse_make_tables(void);
void fuse_walk_tables(void);
void fuse_make_list(void);
void fuse_send_own_list(void);
void fuse_write_by_fusor(uint64_t pages);
void fuse_back_off(uint64_t rounds);

// --- fuse_smp.c ---

// Every CPU writes a word of its own to each page, all at the same time.
void fuse_write_together(uint64_t pages);
// As fuse_write while the other CPUs run.
void fuse_write_beside(uint64_t pages);
// Pages are written, read, hinted at the same time, for some rounds; they hold something else
// after.
void fuse_stress(uint64_t rounds);
