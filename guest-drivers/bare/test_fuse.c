// SPDX-License-Identifier: BSD-2-Clause
// fuse: pages that another VM has too, hinted and written at the console's command.
//
// `pages=` (1024) pages of a pattern that depends on `seed=` (1) and the page's number only, so
// that two guests with the same seed have the same pages; `id=` makes what they write differ. Then
// commands come (commands.h). NUMBER bounds the pages (0: all) but where it says:
//   h  hint
//   H  hint whole 2 MiB ranges
//   u  unhint
//   w  write a word of each
//   o  write the original back
//   v  verify every byte
//   m  `rep movsb` over pages
//   f  fill anew, NUMBER: seed
//   s  statistics
//   x  NUMBER calls of garbage
//   k  back-off, NUMBER rounds
//   F  Fusor writes to each page
//   t  page tables, hinted
//   T  walk through them
//   l  a list, hinted
//   L  use it as the list
//   c  every CPU writes to each page
//   W  w while the other CPUs run
//   S  stress of all CPUs, NUMBER rounds
//   q  quit
#include "commands.h"
#include "fuse.h"

static uint64_t hints[FUSOR_LIST_MAX] __attribute__((aligned(4096)));

uint64_t fuse_entry(uint64_t page, unsigned order)
{
    return FUSOR_ENTRY(fuse.first / PAGE + page, FUSOR_CLASS_OTHER, order);
}

struct fuse_sent fuse_send(uint64_t call, const uint64_t *list, unsigned count)
{
    struct fuse_sent sent = {0, 0};
    unsigned at = 0;
    while (at < count) {
        int64_t result = hypercall(call, (uint64_t)(uintptr_t)&list[at], count - at, 0, 0);
        if (result > 0) {
            sent.done += (uint64_t)result;
            at += (unsigned)result;
        } else {
            sent.refused++;
            at++;
        }
    }
    return sent;
}

static struct fuse_sent send_pages(uint64_t call, uint64_t from, uint64_t to, unsigned order)
{
    struct fuse_sent sent = {0, 0};
    for (uint64_t page = from; page < to;) {
        unsigned count = 0;
        for (; page < to && count < FUSOR_LIST_MAX; page += UINT64_C(1) << order)
            hints[count++] = fuse_entry(page, order);
        struct fuse_sent one = fuse_send(call, hints, count);
        sent.done += one.done;
        sent.refused += one.refused;
    }
    return sent;
}

struct fuse_sent fuse_hint(uint64_t from, uint64_t to)
{
    return send_pages(FUSOR_HINT, from, to, 0);
}

struct fusor_statistics fuse_statistics(void)
{
    static struct fusor_statistics s __attribute__((aligned(128))); // within one page
    int64_t result = hypercall(FUSOR_STATISTICS, (uint64_t)(uintptr_t)&s, sizeof(s), 0, 0);
    check(result == (int64_t)sizeof(s), result);
    return s;
}

static void send_command(char op, uint64_t call, uint64_t pages, unsigned order)
{
    struct fusor_statistics before = fuse_statistics();
    uint64_t begin = rdtsc();
    struct fuse_sent sent = send_pages(call, 0, pages, order);
    uint64_t ticks = rdtsc() - begin;
    struct fusor_statistics after = fuse_statistics();
    report("op=%s done=%lu refused=%lu ticks=%lu per_page=%lu fused=%lu "
           "unmatched=%lu rejected=%lu",
           (char[]){op, 0}, sent.done, sent.refused, ticks, ticks / pages,
           after.hints_fused - before.hints_fused, after.hints_unmatched - before.hints_unmatched,
           after.hints_rejected - before.hints_rejected);
}

static void show_statistics(void)
{
    struct fusor_statistics s = fuse_statistics();
    check(s.hints_received == s.hints_fused + s.hints_unmatched + s.hints_rejected,
          s.hints_received);
    report("op=s received=%lu fused=%lu unmatched=%lu rejected=%lu splits=%lu "
           "cancelled=%lu "
           "shared=%lu",
           s.hints_received, s.hints_fused, s.hints_unmatched, s.hints_rejected, s.splits,
           s.cancelled, s.shared);
}

// --- Commands ---

static void run(const struct command *c)
{
    uint64_t pages = c->number == 0 || c->number > fuse.pages ? fuse.pages : c->number;
    switch (c->letter) {
    case 'h':
        send_command('h', FUSOR_HINT, pages, 0);
        break;
    case 'H':
        send_command('H', FUSOR_HINT, pages, 9);
        break;
    case 'u':
        send_command('u', FUSOR_UNHINT, pages, 0);
        break;
    case 'w':
        fuse_write('w', pages, false);
        break;
    case 'o':
        fuse_write('o', pages, true);
        break;
    case 'v':
        fuse_verify(pages);
        break;
    case 'm':
        fuse_move(pages);
        break;
    case 'f':
        fuse.seed = c->number;
        fuse_fill();
        break;
    case 's':
        show_statistics();
        break;
    case 'x':
        fuse_garbage(c->number);
        break;
    case 'k':
        fuse_back_off(c->number);
        break;
    case 'F':
        fuse_write_by_fusor(pages);
        break;
    case 't':
        fuse_make_tables();
        break;
    case 'T':
        fuse_walk_tables();
        break;
    case 'l':
        fuse_make_list();
        break;
    case 'L':
        fuse_send_own_list();
        break;
    case 'c':
        fuse_write_together(pages);
        break;
    case 'W':
        fuse_write_beside(pages);
        break;
    case 'S':
        fuse_stress(c->number);
        break;
    default:
        check(false, (uint8_t)c->letter);
        break;
    }
}

void test_fuse(void)
{
    fuse.pages = option("pages", 1024);
    fuse.seed = option("seed", 1);
    fuse.id = option("id", 1);
    const struct region *top = &memory[memory_count - 1];
    uint64_t size = (fuse.pages * PAGE + 2 * MIB - 1) & ~(2 * MIB - 1);
    check(fuse.pages > 0 && fuse.pages <= FUSE_PAGES_MAX, fuse.pages);
    check(top->to - top->from >= size, top->to - top->from);
    if (errors != 0)
        return;
    fuse.first = top->to - size;
    commands_init();
    fuse_fill();
    commands_serve(run);
}
