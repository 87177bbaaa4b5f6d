// SPDX-License-Identifier: BSD-2-Clause
// What a driver of good will would not hint: garbage, page tables, the list itself, pages that
// Fusor writes to, pages that are written again and again.
#include "fuse.h"

#define TABLES         2u // pages 0 and 1 become page tables
#define LIST_PAGE      8u // and this one a list
#define TABLE_SLOT     8u // in the window's page directory; memory.c uses slot 0
#define MMIO_FIRST     0xc0000u
#define MMIO_PAGES     0x40000u
#define ADDRESS        UINT64_C(0x000ffffffffff000)
#define WAIT_MAX       30u // seconds until a back-off must be over
#define GARBAGE_LENGTH 40u // refused entries cost the budget what stands behind them, too
#define ROUNDS_SAID    8u

static uint64_t list[FUSOR_LIST_MAX] __attribute__((aligned(4096)));

// --- Garbage ---

static uint64_t random_gfn(void)
{
    return fuse_random() % (memory_top / PAGE);
}

static uint64_t some_entry(void)
{
    uint64_t r = fuse_random();
    switch (r % 64) {
    case 0:
        return fuse_random();
    case 6:
    case 7:
    case 1: // anywhere
        return fuse_random() & FUSOR_ENTRY_GFN_MASK;
    case 2: // any class, and any order but whole ranges, which are dear
        return FUSOR_ENTRY(random_gfn(), fuse_random() % 16, r >> 8 & 7);
    case 8:
    case 9:
    case 3: // devices
        return FUSOR_ENTRY(MMIO_FIRST + fuse_random() % MMIO_PAGES, 0, 0);
    case 10:
    case 11:
    case 4: // ROM and the hole below 1 MiB
        return FUSOR_ENTRY(0x90 + fuse_random() % 0x70, 0, 0);
    case 5: // a range that begins anywhere, or whole ones now and then
        return FUSOR_ENTRY(random_gfn() & ~UINT64_C(511), 0, r >> 8 & 63 ? 8 : 9);
    default: // a page like any other: image, stacks, page tables, this list
        return FUSOR_ENTRY(random_gfn(), fuse_random() % FUSOR_CLASSES, 0);
    }
}

// Few of them with an order: Fusor counts those as whole ranges in the budget.
static uint64_t garbage(void)
{
    uint64_t entry = some_entry();
    return fuse_random() % 4 == 0 ? entry : entry & ~(UINT64_C(0xf) << FUSOR_ENTRY_ORDER_SHIFT);
}

void fuse_garbage(uint64_t calls)
{
    uint64_t done = 0, invalid = 0, range = 0, twice = 0, again = 0;
    struct fusor_statistics before = fuse_statistics();
    uint64_t begin = rdtsc();
    for (uint64_t call = 0; call < calls; call++) {
        unsigned count = (unsigned)(fuse_random() % GARBAGE_LENGTH) + 1;
        for (unsigned i = 0; i < count; i++)
            list[i] = i > 0 && fuse_random() % 8 == 0 ? list[i - 1] : garbage();
        for (unsigned at = 0; at < count;) {
            int64_t result =
                hypercall(FUSOR_HINT, (uint64_t)(uintptr_t)&list[at], count - at, 0, 0);
            check(result > 0 ? result <= (int64_t)(count - at)
                             : result == -FUSOR_EINVAL || result == -FUSOR_ERANGE ||
                                   result == -FUSOR_EEXIST || result == -FUSOR_EAGAIN,
                  result);
            at += result > 0 ? (unsigned)result : 1;
            done += result > 0 ? (uint64_t)result : 0;
            invalid += result == -FUSOR_EINVAL;
            range += result == -FUSOR_ERANGE;
            twice += result == -FUSOR_EEXIST;
            again += result == -FUSOR_EAGAIN;
        }
    }
    uint64_t ticks = rdtsc() - begin;
    struct fusor_statistics after = fuse_statistics();
    report("op=x calls=%lu done=%lu invalid=%lu range=%lu twice=%lu again=%lu ticks=%lu "
           "received=%lu "
           "fused=%lu unmatched=%lu rejected=%lu",
           calls, done, invalid, range, twice, again, ticks,
           after.hints_received - before.hints_received, after.hints_fused - before.hints_fused,
           after.hints_unmatched - before.hints_unmatched,
           after.hints_rejected - before.hints_rejected);
}

// --- Page tables ---

// All tables together map the pages one behind the other, and again from the first.
uint64_t fuse_table_entry(uint64_t page, uint64_t n)
{
    return (fuse.first + (page * 512 + n) % fuse.pages * PAGE) | PTE_PRESENT | PTE_WRITE;
}

static uint64_t *table_at(uint64_t entry)
{
    return (uint64_t *)(entry & ADDRESS); // NOLINT: RAM is mapped to itself
}

static uint64_t *window_directory(void)
{
    const uint64_t *pointers = table_at(table_at(read_cr3())[WINDOW >> 39]);
    return table_at(pointers[0]);
}

void fuse_make_tables(void)
{
    for (uint64_t page = 0; page < TABLES; page++) {
        fuse.state[page] = FUSE_TABLE;
        for (uint64_t n = 0; n < 512; n++)
            *fuse_word(page, n) = fuse_table_entry(page, n);
    }
    struct fusor_statistics before = fuse_statistics();
    fuse_hint(0, TABLES);
    report("op=t tables=%lu fused=%lu", (uint64_t)TABLES,
           fuse_statistics().hints_fused - before.hints_fused);
}

// Reads through every entry of a table; returns how many words differ.
static uint64_t walk(uint64_t table)
{
    const uint64_t size = 2 * MIB, at = WINDOW + (TABLE_SLOT + table) * size;
    uint64_t wrong = 0;
    for (uint64_t n = 0; n < 512; n++) {
        volatile uint64_t *p = (volatile uint64_t *)(at + n * PAGE + 8 * 100); // NOLINT: a mapping
        uint64_t page = (table * 512 + n) % fuse.pages;
        uint64_t care = (fuse.state[page] & FUSE_TABLE) != 0 ? ~UINT64_C(0x60) : ~UINT64_C(0);
        wrong += (*p & care) != fuse_expected(page, 100);
    }
    return wrong;
}

void fuse_walk_tables(void)
{
    uint64_t *directory = window_directory();
    struct fusor_statistics before = fuse_statistics();
    uint64_t wrong = 0, accessed = 0;
    for (uint64_t table = 0; table < TABLES; table++) {
        directory[TABLE_SLOT + table] = (fuse.first + table * PAGE) | PTE_PRESENT | PTE_WRITE;
        wrong += walk(table);
        directory[TABLE_SLOT + table] = 0;
        for (uint64_t n = 0; n < 512; n++)
            accessed += *fuse_word(table, n) >> 5 & 1;
    }
    write_cr3(read_cr3());
    check(wrong == 0, wrong);
    struct fusor_statistics walked = fuse_statistics();
    fuse_hint(0, TABLES);
    struct fusor_statistics after = fuse_statistics();
    report("op=T wrong=%lu accessed=%lu splits=%lu fused=%lu rejected=%lu", wrong, accessed,
           walked.splits - before.splits, after.hints_fused - walked.hints_fused,
           after.hints_rejected - walked.hints_rejected);
}

// --- Buffers in fused pages ---

void fuse_make_list(void)
{
    fuse.state[LIST_PAGE] = FUSE_LIST;
    for (uint64_t n = 0; n < 512; n++)
        *fuse_word(LIST_PAGE, n) = fuse_entry(n, 0);
    struct fusor_statistics before = fuse_statistics();
    fuse_hint(LIST_PAGE, LIST_PAGE + 1);
    report("op=l fused=%lu", fuse_statistics().hints_fused - before.hints_fused);
}

void fuse_send_own_list(void)
{
    struct fusor_statistics before = fuse_statistics();
    struct fuse_sent sent =
        fuse_send(FUSOR_HINT, (const uint64_t *)(uintptr_t)fuse_word(LIST_PAGE, 0), 512);
    struct fusor_statistics after = fuse_statistics();
    report("op=L done=%lu refused=%lu fused=%lu splits=%lu", sent.done, sent.refused,
           after.hints_fused - before.hints_fused, after.splits - before.splits);
}

// Statistics into the middle of each page, and the original back.
void fuse_write_by_fusor(uint64_t pages)
{
    const uint64_t at = 200, words = sizeof(struct fusor_statistics) / 8;
    struct fusor_statistics before = fuse_statistics();
    uint64_t wrong = 0;
    for (uint64_t page = 0; page < pages; page++) {
        volatile uint64_t *to = fuse_word(page, at);
        int64_t result = hypercall(FUSOR_STATISTICS, (uint64_t)(uintptr_t)to, words * 8, 0, 0);
        check(result == (int64_t)(words * 8), result);
        wrong += to[0] != before.hints_received; // nobody hinted since
        for (uint64_t n = at; n < at + words; n++)
            *fuse_word(page, n) = fuse_expected(page, n);
    }
    check(wrong == 0, wrong);
    report("op=F pages=%lu splits=%lu", pages, fuse_statistics().splits - before.splits);
}

// --- Back-off ---

static void on_timer(struct frame *f)
{
    (void)f;
    lapic_write(LAPIC_EOI, 0);
}

static void sleep_ticks(uint64_t ticks)
{
    uint64_t begin = rdtsc();
    set_handler(VECTOR_TIMER, on_timer);
    lapic_write(LAPIC_DIVIDE, 0xb); // by 1
    lapic_write(LAPIC_TIMER, TIMER_PERIODIC | VECTOR_TIMER);
    lapic_write(LAPIC_INITIAL, 500000);
    while (rdtsc() - begin < ticks)
        wait_interrupt();
    lapic_write(LAPIC_INITIAL, 0);
    lapic_write(LAPIC_TIMER, LVT_MASKED);
}

// Page 0 is split and hinted until it is fused again, `rounds` times; each wait in milliseconds.
// The page must be fused at the beginning, and some other VM must have it.
void fuse_back_off(uint64_t rounds)
{
    uint64_t waits[ROUNDS_SAID] = {0}, hz = tsc_hz();
    uint64_t shared = fuse_statistics().shared;
    for (uint64_t round = 0; round < rounds && errors == 0; round++) {
        *fuse_word(0, 5) = ~fuse_expected(0, 5);
        *fuse_word(0, 5) = fuse_expected(0, 5);
        check(fuse_statistics().shared == shared - 1, shared);
        uint64_t begin = rdtsc();
        for (;;) {
            fuse_hint(0, 1);
            if (fuse_statistics().shared == shared)
                break;
            check(rdtsc() - begin < WAIT_MAX * hz, round);
            if (errors != 0)
                break;
            sleep_ticks(hz / 20);
        }
        waits[round % ROUNDS_SAID] = (rdtsc() - begin) * 1000 / hz;
    }
    report("op=k rounds=%lu wait0=%lu wait1=%lu wait2=%lu wait3=%lu", rounds, waits[0], waits[1],
           waits[2], waits[3]);
}
