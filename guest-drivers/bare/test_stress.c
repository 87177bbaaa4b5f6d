// SPDX-License-Identifier: BSD-2-Clause
// stress: all CPUs write, read, hint, balloon at random until they are told to stop.
//
// `busy=`, `large=` and `target=` ranges of 2 MiB: pages that change all the time, ranges that are
// also hinted and given as a whole and are left alone for a while so that large pages come back,
// and what meets the balloon's target. `id=` tells VMs apart, `seed=` begins the random numbers.
// Commands come through the UART, TAG LETTER and a carriage return each:
//   v  all CPUs stop, every word is checked, `report tag=TAG` with the counts, they go on
//   q  the same, and the balloon is emptied, and the guest ends
// Whatever is wrong ends the guest with lines that say what.
#include "stress.h"

#define COM1      0x3f8u
#define TELL_TIME 10u // seconds between two reports that nobody asked for
#define LOOK_EACH 16u // rounds of CPU 0 between two looks at the UART and the target

static uint64_t order_to_stop, arrived;
static bool ending;

static void barrier(uint64_t n)
{
    __atomic_fetch_add(&arrived, 1, __ATOMIC_ACQ_REL);
    while (__atomic_load_n(&arrived, __ATOMIC_ACQUIRE) < n * stress.cpus)
        __asm__ volatile("pause" : : : "memory");
}

// All CPUs have stopped between the two barriers of each order.
static void obey(uint64_t *obeyed)
{
    barrier(++*obeyed * 2 - 1);
    stress_verify();
    barrier(*obeyed * 2);
}

static void live(void *unused)
{
    (void)unused;
    uint64_t obeyed = 0;
    for (bool over = false; !over;) {
        stress_round();
        if (__atomic_load_n(&order_to_stop, __ATOMIC_ACQUIRE) == obeyed)
            continue;
        over = __atomic_load_n(&ending, __ATOMIC_ACQUIRE);
        obey(&obeyed);
    }
}

// --- CPU 0 ---

static struct stress_cpu sum(void)
{
    struct stress_cpu all = {0};
    for (unsigned i = 0; i < stress.cpus; i++) {
        const struct stress_cpu *c = &stress.cpu[i];
        all.reads += c->reads;
        all.unsure += c->unsure;
        all.writes += c->writes;
        all.toggles += c->toggles;
        all.hints += c->hints;
        all.inflated += c->inflated;
        all.deflated += c->deflated;
        all.reported += c->reported;
        all.refused += c->refused;
    }
    return all;
}

static void tell(uint64_t tag)
{
    struct stress_cpu all = sum();
    report("report tag=%lu cpus=%lu reads=%lu unsure=%lu writes=%lu toggles=%lu hints=%lu "
           "inflated=%lu deflated=%lu reported=%lu refused=%lu",
           tag, (uint64_t)stress.cpus, all.reads, all.unsure, all.writes, all.toggles, all.hints,
           all.inflated, all.deflated, all.reported, all.refused);
}

// A command's letter when one is complete, else 0.
static char command(uint64_t *tag)
{
    static uint64_t number;
    static char letter;
    while ((inb(COM1 + 5) & 1) != 0) {
        char byte = (char)inb(COM1);
        if (byte == '\r') {
            char whole = letter;
            *tag = number;
            letter = 0;
            number = 0;
            return whole;
        }
        if (byte >= '0' && byte <= '9')
            number = number * 10 + (uint64_t)(byte - '0');
        else
            letter = byte;
    }
    return 0;
}

static void lead(void)
{
    uint64_t obeyed = 0, tag = 0, next = 0;
    for (uint64_t n = 0; !ending && !stress_failed(); n++) {
        stress_round();
        if (n % LOOK_EACH != 0)
            continue;
        stress_follow_target();
        char letter = command(&tag);
        if (letter == 'q' || letter == 'v') {
            __atomic_store_n(&ending, letter == 'q', __ATOMIC_RELEASE);
            __atomic_fetch_add(&order_to_stop, 1, __ATOMIC_ACQ_REL);
            obey(&obeyed);
            if (stress_failed())
                break;
            if (ending)
                stress_empty_balloon();
            tell(tag);
        } else if (rdtsc() >= next) {
            tell(0);
            next = rdtsc() + TELL_TIME * tsc_hz();
        }
    }
}

void test_stress(void)
{
    uint64_t large = option("large", 2), target = option("target", 1);
    stress.busy = option("busy", 1) * RANGE;
    stress.ballooned = stress.busy + large * RANGE;
    stress.pages = stress.ballooned + target * RANGE;
    stress.vm = (uint8_t)option("id", 1);
    stress.boot = (uint8_t)(rdtsc() >> 20);
    const struct region *top = &memory[memory_count - 1];
    check(stress.busy != 0 && stress.pages <= STRESS_PAGES_MAX, stress.pages);
    check(top->to - top->from >= stress.pages * PAGE, top->to - top->from);
    stress.cpus = smp_start();
    check(stress.cpus <= STRESS_CPUS, stress.cpus);
    if (errors != 0)
        return;
    stress.first = top->to - stress.pages * PAGE;
    for (unsigned i = 0; i < stress.cpus; i++)
        stress.cpu[i].random =
            (option("seed", 1) << 8 | (uint64_t)stress.vm << 3 | i) * 0x9e3779b97f4a7c15 + 1;
    stress_map();
    stress_verify_fresh();
    for (uint64_t first = 0; first < stress.pages; first += RANGE)
        stress_fill_range(first, COMMON, 0);
    report("begin cpus=%lu pages=%lu", (uint64_t)stress.cpus, stress.pages);
    for (unsigned i = 1; i < stress.cpus; i++)
        smp_run(i, live, NULL);
    lead();
}
