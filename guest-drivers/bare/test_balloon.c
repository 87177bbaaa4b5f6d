// SPDX-License-Identifier: BSD-2-Clause
// balloon: what the balloon's calls do to memory, and what they cost. driver: a balloon driver that
// gives 2 MiB extents, after `touch=SIZE` of its memory, led by the doorbell or, with `poll=1`, by
// looking ten times a second; runs until it is stopped.
#include "bare.h"
#include "hypercall.h"

#define EXTENT     (2 * MIB)
#define EXTENTS    8u
#define IRQ_DOOR   10u
#define EXTENT_MAX 512u

static _Alignas(PAGE) uint64_t list[FUSOR_LIST_MAX];

static uint64_t address(const volatile void *p)
{
    return (uint64_t)(uintptr_t)p;
}

static volatile uint64_t *word(uint64_t at)
{
    return (volatile uint64_t *)at; // NOLINT: memory is mapped to itself
}

// Sends the list until all of it is done; returns 0 or the first error.
static int64_t send(uint64_t number, unsigned count)
{
    unsigned done = 0;
    while (done < count) {
        int64_t result = hypercall(number, address(&list[done]), count - done, 0, 0);
        if (result < 0)
            return result;
        done += (unsigned)result;
    }
    return 0;
}

static int64_t send_one(uint64_t number, uint64_t gfn, unsigned order)
{
    list[0] = FUSOR_ENTRY(gfn, 0, order);
    return send(number, 1);
}

static struct fusor_statistics statistics(void)
{
    static _Alignas(8) struct fusor_statistics s;
    check(hypercall(FUSOR_STATISTICS, address(&s), sizeof(s), 0, 0) == sizeof(s), 0);
    return s;
}

static void touch(uint64_t from, uint64_t size)
{
    for (uint64_t at = from; at < from + size; at += PAGE)
        *word(at) = at | 1;
}

static void check_zero(uint64_t from, uint64_t size)
{
    for (uint64_t at = from; at < from + size; at += PAGE)
        check(*word(at) == 0 && *word(at + PAGE - 8) == 0, at);
}

static void fill_list(uint64_t from, unsigned count, unsigned order)
{
    for (unsigned i = 0; i < count; i++)
        list[i] = FUSOR_ENTRY(from / PAGE + ((uint64_t)i << order), 0, order);
}

// Gives `count` units of `order` at `base` and takes them back; `what` is what the report calls it.
static void measure(const char *what, uint64_t base, unsigned count, unsigned order)
{
    uint64_t size = ((uint64_t)count << order) * PAGE;
    touch(base, size);
    fill_list(base, count, order);
    uint64_t began = rdtsc();
    check(send(FUSOR_BALLOON_INFLATE, count) == 0, count);
    uint64_t inflated = rdtsc();
    check(statistics().balloon == size / PAGE, statistics().balloon);
    uint64_t deflating = rdtsc();
    check(send(FUSOR_BALLOON_DEFLATE, count) == 0, count);
    uint64_t deflated = rdtsc();
    check(statistics().balloon == 0, statistics().balloon);
    report("%s: units=%lu inflate=%lu deflate=%lu ticks", what, (uint64_t)count,
           (inflated - began) / count, (deflated - deflating) / count);
    check_zero(base, size);
    touch(base, size);
    began = rdtsc();
    check(send(FUSOR_FREE_PAGES, count) == 0, count);
    report("%s: free=%lu ticks", what, (rdtsc() - began) / count);
    check_zero(base, size);
}

static void test_page(uint64_t at)
{
    uint64_t gfn = at / PAGE;
    *word(at) = 1;
    check(send_one(FUSOR_BALLOON_DEFLATE, gfn, 0) == -FUSOR_ENOENT, 0);
    check(send_one(FUSOR_BALLOON_INFLATE, gfn, 0) == 0, 0);
    check(send_one(FUSOR_BALLOON_INFLATE, gfn, 0) == -FUSOR_EEXIST, 0);
    check_zero(at, PAGE);
    check(statistics().balloon == 1, statistics().balloon);
    *word(at + 8) = 2; // comes back
    check(statistics().balloon == 0, statistics().balloon);
    check(*word(at) == 0 && *word(at + 8) == 2, *word(at + 8));
    // The list itself.
    uint64_t own = address(list) / PAGE;
    check(send_one(FUSOR_BALLOON_INFLATE, own, 0) == 0, 0);
    check(list[0] == 0, list[0]);
    check(send_one(FUSOR_BALLOON_INFLATE, 0xa0, 0) == -FUSOR_ERANGE, 0);
    check(send_one(FUSOR_BALLOON_INFLATE, memory_top / PAGE, 0) == -FUSOR_ERANGE, 0);
    check(send_one(FUSOR_BALLOON_INFLATE, gfn | 1, 9) == -FUSOR_EINVAL, 0);
}

void test_balloon(void)
{
    uint64_t base = memory[0].from;
    struct hypercall_facts facts = {0};
    check(hypercall_discover(&facts) && (facts.features & FUSOR_FEATURE_BALLOON) != 0, 0);
    check(memory[0].to - base >= EXTENTS * EXTENT, memory[0].to);
    test_page(base + 5 * PAGE);
    measure("2m", base, EXTENTS, 9);
    measure("2m", base, EXTENTS, 9);
    measure("4k", base, FUSOR_LIST_MAX / 2, 0); // in a range that is small
    touch(base + EXTENT, EXTENT);
    measure("4k", base + EXTENT, FUSOR_LIST_MAX, 0); // in one that is large
    report("balloon_target=%lu", (uint64_t)hypercall(FUSOR_BALLOON_TARGET, 0, 0, 0, 0));
}

// --- A driver ---

static volatile uint64_t rings;

static void on_doorbell(struct frame *frame)
{
    (void)frame;
    rings++;
    outb(0xa0, 0x20);
    outb(0x20, 0x20);
}

// What is neither held nor, with `idle=0`, touched counts as available.
static void report_memory(uint64_t room, uint64_t held)
{
    static _Alignas(8) struct fusor_report r;
    uint64_t touched = option("idle", 0) != 0 ? 0 : option("touch", 0) / EXTENT;
    uint64_t used = held > touched ? held : touched;
    r.total = room * (EXTENT / PAGE);
    r.free = r.available = (room - used) * (EXTENT / PAGE);
    check(hypercall(FUSOR_REPORT, address(&r), sizeof(r), 0, 0) == 0, 0);
}

void test_driver(void)
{
    uint64_t base = memory[0].from, room = (memory[0].to - base) / EXTENT, held = 0;
    bool poll = option("poll", 0) != 0;
    touch(base, option("touch", 0));
    set_handler(VECTOR_PIC + IRQ_DOOR, on_doorbell);
    pic_init();
    lapic_write(LAPIC_LINT0, LINT_EXTINT);
    pic_mask(poll ? 0xffff : (uint16_t) ~(1u << 2 | 1u << IRQ_DOOR));
    for (;;) {
        uint64_t seen = rings, began = rdtsc();
        uint64_t target = (uint64_t)hypercall(FUSOR_BALLOON_TARGET, 0, 0, 0, 0) / 512;
        uint64_t before = held;
        for (; held < target && held < room; held++)
            if (send_one(FUSOR_BALLOON_INFLATE, base / PAGE + 512 * held, 9) != 0)
                break;
        for (; held > target; held--)
            if (send_one(FUSOR_BALLOON_DEFLATE, base / PAGE + 512 * (held - 1), 9) != 0)
                break;
        if (held != before)
            report("held=%lu extents rings=%lu ticks=%lu", held, rings, rdtsc() - began);
        report_memory(room, held);
        __asm__ volatile("cli");
        if (poll)
            wait_ticks(tsc_hz() / 10);
        else if (seen == rings)
            __asm__ volatile("sti; hlt; cli");
    }
}
