// SPDX-License-Identifier: BSD-2-Clause
// Loads for a Linux guest with several vCPUs; each prints one line with the TSC ticks it took:
//
//     load WHAT THREADS ROUNDS
//
// Built by tests/system/guest_load.py and put into the guest's initrd. What was measured with it is
// in docs/architecture.md.
#define _GNU_SOURCE
#include <linux/membarrier.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>
#include <x86intrin.h>

static unsigned threads, rounds;
static pthread_barrier_t barrier;
static _Atomic int stop;
static _Atomic uint64_t work;

static void pin(unsigned cpu)
{
    cpu_set_t set;
    CPU_ZERO(&set);
    CPU_SET(cpu, &set);
    sched_setaffinity(0, sizeof(set), &set);
}

static void *spinner(void *arg)
{
    pin((unsigned)(uintptr_t)arg);
    pthread_barrier_wait(&barrier);
    uint64_t n = 0;
    while (!stop)
        n++;
    work += n;
    return NULL;
}

// One thread changes the rights of a page, the others of the process compute: a TLB shootdown each.
static void tlb(int membar)
{
    pthread_t t[64];
    char *page = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (membar)
        syscall(SYS_membarrier, MEMBARRIER_CMD_REGISTER_PRIVATE_EXPEDITED, 0, 0);
    pthread_barrier_init(&barrier, NULL, threads);
    pin(0);
    for (unsigned i = 1; i < threads; i++)
        pthread_create(&t[i], NULL, spinner, (void *)(uintptr_t)i);
    pthread_barrier_wait(&barrier);
    uint64_t begin = __rdtsc();
    for (unsigned i = 0; i < rounds; i++) {
        if (membar) {
            syscall(SYS_membarrier, MEMBARRIER_CMD_PRIVATE_EXPEDITED, 0, 0);
        } else {
            page[0] = 1;
            mprotect(page, 4096, PROT_READ);
            mprotect(page, 4096, PROT_READ | PROT_WRITE);
        }
    }
    uint64_t ticks = __rdtsc() - begin;
    stop = 1;
    for (unsigned i = 1; i < threads; i++)
        pthread_join(t[i], NULL);
    printf("load %s threads=%u rounds=%u ticks=%lu each=%lu work=%lu\n",
           membar ? "membarrier" : "tlb", threads, rounds, ticks, ticks / rounds, work);
}

static void *contender(void *arg)
{
    (void)arg;
    pthread_barrier_wait(&barrier);
    for (unsigned i = 0; i < rounds; i++)
        close(dup(1)); // the spinlock of the table of files
    return NULL;
}

static void *mapper(void *arg)
{
    (void)arg;
    pthread_barrier_wait(&barrier);
    for (unsigned i = 0; i < rounds; i++) {
        char *p = mmap(NULL, 8 * 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        for (unsigned k = 0; k < 8; k++)
            p[k * 4096] = 1;
        munmap(p, 8 * 4096);
    }
    return NULL;
}

static void together(const char *name, void *(*f)(void *))
{
    pthread_t t[64];
    pthread_barrier_init(&barrier, NULL, threads + 1);
    for (unsigned i = 0; i < threads; i++)
        pthread_create(&t[i], NULL, f, NULL);
    pthread_barrier_wait(&barrier);
    uint64_t begin = __rdtsc();
    for (unsigned i = 0; i < threads; i++)
        pthread_join(t[i], NULL);
    uint64_t ticks = __rdtsc() - begin;
    printf("load %s threads=%u rounds=%u ticks=%lu each=%lu\n", name, threads, rounds, ticks,
           ticks / rounds / threads);
}

// As hackbench: groups of 4 senders and 4 receivers, messages of 100 bytes through pipes.
static void hack(void)
{
    char message[100] = "";
    uint64_t begin = __rdtsc();
    for (unsigned g = 0; g < threads; g++) {
        int p[2];
        if (pipe(p) != 0)
            exit(1);
        for (unsigned i = 0; i < 4; i++)
            if (fork() == 0) {
                close(p[0]);
                for (unsigned k = 0; k < rounds; k++)
                    if (write(p[1], message, sizeof(message)) != sizeof(message))
                        exit(1);
                exit(0);
            }
        for (unsigned i = 0; i < 4; i++)
            if (fork() == 0) {
                close(p[1]);
                while (read(p[0], message, sizeof(message)) > 0)
                    ;
                exit(0);
            }
        close(p[0]);
        close(p[1]);
    }
    while (wait(NULL) > 0)
        ;
    uint64_t ticks = __rdtsc() - begin;
    printf("load hack groups=%u rounds=%u ticks=%lu each=%lu\n", threads, rounds, ticks,
           ticks / rounds / threads / 4);
}

// Two processes on two vCPUs that wake each other in turns.
static void pingpong(int other)
{
    int a[2], b[2];
    char c = 0;
    if (pipe(a) != 0 || pipe(b) != 0)
        exit(1);
    if (fork() == 0) {
        pin((unsigned)other);
        while (read(a[0], &c, 1) == 1 && c == 0)
            if (write(b[1], &c, 1) != 1)
                exit(1);
        exit(0);
    }
    pin(0);
    uint64_t begin = __rdtsc();
    for (unsigned i = 0; i < rounds; i++)
        if (write(a[1], &c, 1) != 1 || read(b[0], &c, 1) != 1)
            exit(1);
    uint64_t ticks = __rdtsc() - begin;
    c = 1;
    if (write(a[1], &c, 1) != 1)
        exit(1);
    wait(NULL);
    printf("load pingpong cpus=0,%d rounds=%u ticks=%lu each=%lu\n", other, rounds, ticks,
           ticks / rounds);
}

// --- stale: nobody writes to a page once mprotect() has returned ---

static volatile uint64_t *target;
static _Atomic int is_protected;

static void on_fault(int number)
{
    (void)number;
    while (is_protected && !stop)
        sched_yield();
}

static void *writer(void *arg)
{
    (void)arg;
    pthread_barrier_wait(&barrier);
    uint64_t n = 0;
    while (!stop)
        *target = ++n;
    work += n;
    return NULL;
}

static void stale(void)
{
    pthread_t t[64];
    uint64_t bad = 0, begin = __rdtsc();
    target = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    signal(SIGSEGV, on_fault);
    pthread_barrier_init(&barrier, NULL, threads);
    for (unsigned i = 1; i < threads; i++)
        pthread_create(&t[i], NULL, writer, NULL);
    pthread_barrier_wait(&barrier);
    for (unsigned i = 0; i < rounds; i++) {
        is_protected = 1;
        mprotect((void *)target, 4096, PROT_READ);
        uint64_t value = *target;
        for (unsigned k = 0; k < 4; k++) {
            sched_yield();
            for (volatile unsigned w = 0; w < 5000; w++)
                ;
            bad += *target != value;
        }
        mprotect((void *)target, 4096, PROT_READ | PROT_WRITE);
        is_protected = 0;
        for (volatile unsigned w = 0; w < 20000; w++)
            ;
    }
    stop = 1;
    for (unsigned i = 1; i < threads; i++)
        pthread_join(t[i], NULL);
    printf("load stale threads=%u rounds=%u ticks=%lu bad=%lu work=%lu\n", threads, rounds,
           (uint64_t)__rdtsc() - begin, bad, work);
}

static void clocks(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    uint64_t begin = __rdtsc();
    for (unsigned i = 0; i < rounds; i++)
        clock_gettime(CLOCK_MONOTONIC, &t);
    uint64_t ticks = __rdtsc() - begin;
    printf("load clock rounds=%u ticks=%lu each=%lu\n", rounds, ticks, ticks / rounds);
}

static void sleeps(void)
{
    uint64_t begin = __rdtsc();
    for (unsigned i = 0; i < rounds; i++)
        usleep(1000);
    uint64_t ticks = __rdtsc() - begin;
    printf("load sleep rounds=%u ticks=%lu each=%lu\n", rounds, ticks, ticks / rounds);
}

static void *counter(void *arg)
{
    (void)arg;
    pthread_barrier_wait(&barrier);
    for (volatile unsigned i = 0; i < rounds; i++)
        ;
    return NULL;
}

int main(int argc, char **argv)
{
    const char *what = argc > 3 ? argv[1] : "";
    if (argc > 3) {
        threads = (unsigned)atoi(argv[2]);
        rounds = (unsigned)atoi(argv[3]);
    }
    if (!strcmp(what, "tlb"))
        tlb(0);
    else if (!strcmp(what, "membarrier"))
        tlb(1);
    else if (!strcmp(what, "lock"))
        together("lock", contender);
    else if (!strcmp(what, "map"))
        together("map", mapper);
    else if (!strcmp(what, "count"))
        together("count", counter);
    else if (!strcmp(what, "hack"))
        hack();
    else if (!strcmp(what, "pingpong"))
        pingpong((int)threads);
    else if (!strcmp(what, "stale"))
        stale();
    else if (!strcmp(what, "clock"))
        clocks();
    else if (!strcmp(what, "sleep"))
        sleeps();
    else
        return 1;
    return 0;
}
