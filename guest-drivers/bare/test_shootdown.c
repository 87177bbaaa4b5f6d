// SPDX-License-Identifier: BSD-2-Clause
// shootdown: pages fused with each other and split by a write, while more and more CPUs run.
//
// A tick is no instruction where several CPUs run: emulators advance one clock for all. Bochs built
// without its debugger advances it by the mean of what the CPUs have executed; so with a machine of
// as many CPUs as run here, ticks times CPUs are the instructions of all of them. Each CPU but the
// first counts what it does for itself; the rest is what the splits cost, the first CPU's part and
// what those that are kicked out of the guest pay. What else goes on (slices that end) is measured
// for as long and taken off. In other machines only the ticks mean something.
#include "hypercall.h"
#include "smp.h"

#define PAIRS 64u
#define LOOP  4u // instructions of one round of spin()

static uint64_t list[FUSOR_LIST_MAX] __attribute__((aligned(4096)));
static struct {
    uint64_t rounds;
    uint64_t padding[7];
} spinner[SMP_CPUS_MAX] __attribute__((aligned(64)));
static volatile bool stop;

static volatile uint64_t *page_word(uint64_t first, uint64_t page)
{
    return (volatile uint64_t *)(first + page * PAGE); // NOLINT: RAM is mapped to itself
}

// Makes PAIRS pages, each of which exists twice, and hints them. Returns how many were fused.
static uint64_t fuse_pairs(uint64_t first, uint64_t round)
{
    static struct fusor_statistics before __attribute__((aligned(64)));
    static struct fusor_statistics after __attribute__((aligned(64)));
    for (unsigned i = 0; i < 2 * PAIRS; i++) {
        for (unsigned n = 0; n < 512; n++)
            page_word(first, i)[n] = round << 32 | (i % PAIRS) << 16 | n;
        list[i] = FUSOR_ENTRY(first / PAGE + i, 0, 0);
    }
    hypercall(FUSOR_STATISTICS, (uint64_t)&before, sizeof(before), 0, 0);
    unsigned done = 0;
    for (unsigned calls = 0; done < 2 * PAIRS && calls < 100; calls++) {
        int64_t result = hypercall(FUSOR_HINT, (uint64_t)&list[done], 2 * PAIRS - done, 0, 0);
        if (result > 0)
            done += (unsigned)result;
        else
            wait_ticks(tsc_hz() / 100); // the budget
    }
    hypercall(FUSOR_STATISTICS, (uint64_t)&after, sizeof(after), 0, 0);
    return after.hints_fused - before.hints_fused;
}

// Counts until it is told to end.
static void spin(void *rounds)
{
    __asm__ volatile("1: incq (%0)\n\tcmpb $0, (%1)\n\tnop\n\tje 1b"
                     :
                     : "r"(rounds), "r"(&stop)
                     : "memory", "cc");
}

static uint64_t spun(unsigned running)
{
    uint64_t sum = 0;
    for (unsigned i = 1; i < running; i++)
        sum += __atomic_load_n(&spinner[i].rounds, __ATOMIC_RELAXED);
    return LOOP * sum;
}

// Instructions of all CPUs less those that the others count, since `begin` and `before`.
static uint64_t rest_since(unsigned running, uint64_t begin, uint64_t before)
{
    uint64_t ticks = rdtsc() - begin;
    return ticks * running - (spun(running) - before);
}

// The same for `ticks` in which the first CPU does nothing but spin, too; less its rounds.
static int64_t measure_background(unsigned running, uint64_t ticks)
{
    uint64_t rounds = 0;
    uint64_t before = spun(running), begin = rdtsc();
    do {
        // Long enough that the look at the clock does not count.
        __asm__ volatile("mov $1000, %%ecx\n1: dec %%ecx\n\tjnz 1b" : : : "ecx", "cc");
        rounds++;
    } while (rdtsc() - begin < ticks);
    return (int64_t)(rest_since(running, begin, before) - rounds * 2007);
}

static void measure(uint64_t at, unsigned running)
{
    stop = false;
    for (unsigned i = 1; i < running; i++)
        smp_run(i, spin, &spinner[i].rounds);
    uint64_t fused = fuse_pairs(at, running);
    check(fused != 0, fused);
    wait_ticks(tsc_hz() / 100); // all of them run
    uint64_t before = spun(running), begin = rdtsc();
    for (unsigned i = 0; i < PAIRS; i++)
        *page_word(at, i) = i;
    uint64_t ticks = rdtsc() - begin;
    int64_t all = (int64_t)rest_since(running, begin, before);
    int64_t background = measure_background(running, ticks);
    stop = true;
    for (unsigned i = 1; i < running; i++)
        smp_wait(i);
    report("running=%lu fused=%lu split ticks=%lu instructions=%ld background=%ld",
           (uint64_t)running, fused, ticks / PAIRS, (all - background) / PAIRS, background);
}

void test_shootdown(void)
{
    struct hypercall_facts facts;
    unsigned cpus = smp_start();
    check(hypercall_discover(&facts), 0);
    if (errors != 0)
        return;
    uint64_t first = memory[memory_count - 1].to - 2 * MIB;
    // New places each round: what is split again and again is not fused any more.
    for (unsigned running = 1; running <= cpus && running <= 8; running *= 2)
        measure(first + (uint64_t)__builtin_ctz(running) * 2 * PAIRS * PAGE, running);
}
