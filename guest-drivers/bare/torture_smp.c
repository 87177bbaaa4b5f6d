// SPDX-License-Identifier: BSD-2-Clause
// Several CPUs, of which one waits for memory while the others run on.
#include "smp.h"
#include "torture.h"

#define WRITER       1u
#define READER       2u
#define SHOOTER      3u
#define CPUS         4u
#define VECTOR_FLUSH 0x65u

static struct {
    unsigned cpus;
    bool interrupts_off;
    uint64_t stop;
    uint64_t written; // pages, by the writer
    uint64_t reads;   // by the reader
    uint64_t rounds;  // of interrupts that all others have answered
    uint64_t answers;
    uint64_t wrong;  // words that are neither old nor new, or old after they were new
    uint64_t before; // generation of all pages when it began
} smp;

static uint64_t get(const uint64_t *p)
{
    return __atomic_load_n(p, __ATOMIC_ACQUIRE);
}

static void set(uint64_t *p, uint64_t value)
{
    __atomic_store_n(p, value, __ATOMIC_RELEASE);
}

// As a guest's kernel flushes the TLBs of other CPUs.
static void on_flush(struct frame *f)
{
    (void)f;
    write_cr3(read_cr3());
    smp_eoi();
    __atomic_fetch_add(&smp.answers, 1, __ATOMIC_ACQ_REL);
}

static void write_pages(void *unused)
{
    (void)unused;
    if (!smp.interrupts_off)
        sti();
    for (uint64_t page = 0; page < torture.pages; page++) {
        torture_rewrite(page);
        set(&smp.written, page + 1);
    }
    cli();
}

static void read_pages(void *unused)
{
    (void)unused;
    sti();
    for (uint64_t turn = 0; get(&smp.stop) == 0; turn++) {
        // Every other one is near the page that the writer is at.
        uint64_t written = get(&smp.written);
        uint64_t page = (turn % 2 == 0 ? turn * 61 : written + turn % 8) % torture.pages;
        uint64_t n = turn * 7 % (PAGE / 8);
        uint64_t is = *torture_word(page, n);
        bool new = is == torture_value(page, n, (unsigned)smp.before + 1);
        bool old = is == torture_value(page, n, (unsigned)smp.before);
        if (!new && !(old && page >= written))
            __atomic_fetch_add(&smp.wrong, 1, __ATOMIC_RELAXED);
        set(&smp.reads, turn + 1);
    }
    cli();
}

static void shoot(void *unused)
{
    (void)unused;
    while (get(&smp.stop) == 0) {
        set(&smp.answers, 0);
        smp_send_to(0, ICR_ALL_BUT_SELF | ICR_ASSERT | VECTOR_FLUSH);
        while (get(&smp.answers) < smp.cpus - 1)
            __asm__ volatile("pause" : : : "memory");
        set(&smp.rounds, smp.rounds + 1);
    }
}

void torture_begin(bool interrupts_off)
{
    unsigned cpus = smp_start();
    check(cpus == CPUS, cpus);
    if (cpus != CPUS)
        return;
    smp.cpus = cpus;
    smp.interrupts_off = interrupts_off;
    smp.stop = smp.written = smp.reads = smp.rounds = smp.wrong = 0;
    smp.before = torture.generation[0];
    set_handler(VECTOR_FLUSH, on_flush);
    smp_run(READER, read_pages, NULL);
    smp_run(SHOOTER, shoot, NULL);
    smp_run(WRITER, write_pages, NULL);
    report("op=R cpus=%lu interrupts_off=%lu", (uint64_t)cpus, (uint64_t)interrupts_off);
}

static void progress(const char *op)
{
    report("op=%s written=%lu reads=%lu rounds=%lu wrong=%lu", op, get(&smp.written),
           get(&smp.reads), get(&smp.rounds), get(&smp.wrong));
}

void torture_progress(void)
{
    progress("p");
}

void torture_join(void)
{
    while (!smp_wait_ticks(WRITER, tsc_hz()))
        continue; // it may wait for memory for long
    set(&smp.stop, 1);
    for (unsigned cpu = READER; cpu < smp.cpus; cpu++)
        while (!smp_wait_ticks(cpu, tsc_hz()))
            continue;
    progress("j");
}
