// SPDX-License-Identifier: BSD-2-Clause
// Epochs and shootdown. First each case with its calls of INVEPT and NMI counted; then several CPUs
// as coroutines with a translation cache each, scheduled at random between all the steps of entry
// and shootdown: no CPU may use a translation older than the last shootdown that returned.

// sources: ept/walk.c ept/map.c ept/large.c ept/destroy.c ept/shootdown.c

#include <ucontext.h>

#include "ept_world.h"

#include "kernel/irq.h"

static struct ept ept, other_ept;
static unsigned nmis[MAX_CPUS];
static void (*nmi_hook)(uint32_t cpu);

void irq_send_nmi(uint32_t cpu)
{
    nmis[cpu]++;
    if (nmi_hook != NULL)
        nmi_hook(cpu);
}

static void start(unsigned cpu_number)
{
    world_start(cpu_number);
    memset(nmis, 0, sizeof(nmis));
    nmi_hook = NULL;
    assert_int_equal(ept_init(&ept, 1), 0);
    assert_int_equal(ept_init(&other_ept, 2), 0);
}

static void end(void)
{
    nmi_hook = NULL;
    fake_relax_hook = NULL;
    fake_set_cpu(0);
    world_end_ept(&ept);
    world_end_ept(&other_ept);
    assert_int_equal(frames_live, 0);
}

static bool begin_on(unsigned cpu, struct ept *e)
{
    fake_set_cpu(cpu);
    bool invalidated = ept_guest_begin(e, cpu);
    fake_set_cpu(0);
    return invalidated;
}

static unsigned sum(const unsigned *counts)
{
    unsigned total = 0;
    for (unsigned i = 0; i < MAX_CPUS; i++)
        total += counts[i];
    return total;
}

static void test_entry_without_shootdown(void **state)
{
    (void)state;
    start(2);
    assert_true(begin_on(0, &ept)); // the first entry of a CPU always invalidates
    assert_int_equal(fake_invept_singles[0], 1);
    assert_int_equal(fake_invept_last[0], ept.eptp);
    for (unsigned i = 0; i < 100; i++) {
        ept_guest_end(0);
        assert_false(begin_on(0, &ept));
    }
    ept_guest_end(0);
    assert_int_equal(fake_invept_singles[0], 1);
    // Changing between EPTs costs nothing either.
    assert_true(begin_on(0, &other_ept));
    ept_guest_end(0);
    assert_false(begin_on(0, &ept));
    ept_guest_end(0);
    assert_false(begin_on(0, &other_ept));
    ept_guest_end(0);
    assert_int_equal(sum(fake_invept_singles), 2);
    assert_int_equal(sum(fake_invept_alls), 0);
    assert_int_equal(sum(nmis), 0);
    end();
}

static void test_same_cpu(void **state)
{
    (void)state;
    start(2);
    begin_on(0, &ept);
    ept_guest_end(0);
    ept_shootdown(&ept);
    ept_shootdown(&ept);
    assert_int_equal(ept.shootdowns, 2);
    assert_int_equal(sum(nmis), 0);
    assert_int_equal(fake_invept_singles[0], 1);
    assert_true(begin_on(0, &ept)); // once for both
    ept_guest_end(0);
    assert_int_equal(fake_invept_singles[0], 2);
    assert_false(begin_on(0, &ept));
    ept_guest_end(0);
    // With in_guest set, a shootdown on this CPU would wait for itself.
    begin_on(0, &ept);
    assert_true(fake_expect_panic(ept_shootdown(&ept)));
    ept_guest_end(0);
    end();
}

static void exit_on_nmi(uint32_t cpu)
{
    ept_guest_end(cpu);
}

static void test_other_cpu_in_guest(void **state)
{
    (void)state;
    start(4);
    begin_on(1, &ept);
    begin_on(3, &ept);
    nmi_hook = exit_on_nmi;
    ept_shootdown(&ept);
    assert_int_equal(nmis[1], 1);
    assert_int_equal(nmis[3], 1);
    assert_int_equal(sum(nmis), 2);
    assert_true(begin_on(1, &ept));
    assert_int_equal(fake_invept_singles[1], 2);
    assert_int_equal(fake_invept_singles[0], 0);
    ept_guest_end(1);
    end();
}

static void test_nobody_to_wait_for(void **state)
{
    (void)state;
    start(4);
    // CPU 1 in root, CPU 2 in a guest with another EPT, CPU 3 in a guest with a newer epoch.
    begin_on(1, &ept);
    ept_guest_end(1);
    begin_on(2, &ept);
    ept_guest_end(2);
    begin_on(2, &other_ept);
    begin_on(3, &ept);
    ept.seen[3] = ept.epoch + 1; // entered after the epoch was bumped, before we looked
    ept_shootdown(&ept);
    assert_int_equal(sum(nmis), 0);
    // They pay at their next entry only.
    assert_true(begin_on(1, &ept));
    ept_guest_end(2);
    assert_true(begin_on(2, &ept));
    ept_guest_end(3);
    assert_false(begin_on(3, &ept));
    for (unsigned i = 1; i < 4; i++)
        ept_guest_end(i);
    end();
}

static unsigned relaxed;
static void (*after_relaxing)(void);

static void count_relax(void)
{
    fake_tsc += 1000;
    if (++relaxed % 450 == 0)
        after_relaxing();
}

static void exit_cpu_1(void)
{
    ept_guest_end(1);
}

static void test_lost_nmi_is_sent_again(void **state)
{
    (void)state;
    start(2);
    begin_on(1, &ept);
    relaxed = 0;
    fake_relax_hook = count_relax;
    after_relaxing = exit_cpu_1;
    ept_shootdown(&ept); // 450,000 ticks
    assert_in_range(nmis[1], 4, 5);
    end();
}

static void reenter_cpu_1(void)
{
    ept_guest_end(1);
    begin_on(1, &ept);
}

static void change_to_other(void)
{
    ept_guest_end(1);
    begin_on(1, &other_ept);
}

// The wait ends although the CPU never is seen in root mode.
static void test_cpu_is_back_in_a_guest_at_once(void **state)
{
    (void)state;
    static void (*const ways[])(void) = {reenter_cpu_1, change_to_other};
    for (unsigned i = 0; i < ARRAY_SIZE(ways); i++) {
        start(2);
        begin_on(1, &ept);
        relaxed = 0;
        fake_relax_hook = count_relax;
        after_relaxing = ways[i];
        ept_shootdown(&ept);
        assert_int_equal(ept_cpus[1].in_guest, 1);
        assert_int_equal(relaxed, 450);
        ept_guest_end(1);
        end();
    }
}

static void bump_during_invept(void)
{
    ept.epoch++;
}

// An epoch that comes while the INVEPT runs must not count as seen.
static void test_epoch_during_invept(void **state)
{
    (void)state;
    start(2);
    fake_invept_hook = bump_during_invept;
    assert_true(begin_on(1, &ept));
    assert_true(ept.seen[1] < ept.epoch);
    fake_invept_hook = NULL;
    ept_guest_end(1);
    assert_true(begin_on(1, &ept));
    assert_false(ept.seen[1] < ept.epoch);
    ept_guest_end(1);
    end();
}

static void test_reuse_of_a_root(void **state)
{
    (void)state;
    start(4);
    for (unsigned cpu = 1; cpu <= 2; cpu++) {
        begin_on(cpu, &ept);
        ept_guest_end(cpu);
        begin_on(cpu, &other_ept);
        ept_guest_end(cpu);
    }
    begin_on(3, &other_ept);
    ept_guest_end(3);
    assert_int_equal(ept_destroy(&ept, 0), E_AGAIN);
    assert_int_equal(ept_cpus[1].flush_all, 0); // the root is not free yet
    world_end_ept(&ept);
    for (unsigned cpu = 0; cpu < 4; cpu++) {
        bool owes = cpu == 1 || cpu == 2;
        assert_int_equal(ept_cpus[cpu].flush_all, owes);
        bool invalidated = begin_on(cpu, &other_ept); // any EPT, also one it is not behind in
        assert_int_equal(invalidated, owes || cpu == 0);
        assert_int_equal(fake_invept_alls[cpu], owes);
        ept_guest_end(cpu);
        assert_false(begin_on(cpu, &other_ept));
        ept_guest_end(cpu);
    }
    assert_int_equal(ept_init(&ept, 3), 0);
    end();
}

static void test_destroy_with_a_cpu_inside(void **state)
{
    (void)state;
    start(2);
    begin_on(1, &ept);
    nmi_hook = exit_on_nmi;
    assert_int_equal(ept_destroy(&ept, 0), E_AGAIN); // makes it leave first
    assert_int_equal(nmis[1], 1);
    begin_on(1, &ept); // forbidden by now
    assert_true(fake_expect_panic(ept_destroy(&ept, 10)));
    ept_guest_end(1);
    end();
}

static void test_machines_with_one_kind_of_invept(void **state)
{
    (void)state;
    start(2);
    ept_features.invept_single = false;
    begin_on(1, &ept);
    ept_guest_end(1);
    assert_int_equal(fake_invept_alls[1], 1);
    assert_int_equal(fake_invept_singles[1], 0);
    ept_features.invept_single = true;
    ept_features.invept_all = false;
    ept_cpus[1].flush_all = 1;
    assert_true(begin_on(1, &ept));
    ept_guest_end(1);
    assert_int_equal(fake_invept_alls[1], 1);
    assert_int_equal(fake_invept_singles[1], 1);
    end();
}

// --- CPUs as coroutines. ---

#define CPUS       3u
#define STACK_SIZE (128 * 1024)

static ucontext_t main_context, cpu_context[CPUS];
static char cpu_stack[CPUS][STACK_SIZE];
static uint64_t seed;

static struct {
    bool kicked; // by an NMI that arrived in root mode
    bool in_guest_mode;
    bool nmi;        // pending
    uint64_t tlb[2]; // per EPT: the version cached, 0: none
} machine[CPUS];
static uint64_t page_version[2]; // what the "page table" says
static bool violated;            // noted, for assertions cannot jump off a coroutine's stack
static uint64_t settled[2];      // the newest version whose shootdown has returned
static struct {
    unsigned accesses, cached, shootdowns, kicks, kicks_before_entry, lost;
} happened;

static unsigned random_below(unsigned n)
{
    seed ^= seed << 13;
    seed ^= seed >> 7;
    seed ^= seed << 17;
    return (unsigned)(seed * UINT64_C(2685821657736338717) >> 33) % n;
}

static struct ept *ept_number(unsigned n)
{
    return n == 0 ? &ept : &other_ept;
}

// Any other CPU may do any number of steps here.
static void step(void)
{
    unsigned self = cpu_index();
    swapcontext(&cpu_context[self], &main_context);
    // The NMI is taken wherever this CPU is.
    if (machine[self].nmi && !machine[self].in_guest_mode) {
        machine[self].nmi = false;
        machine[self].kicked = true;
        happened.kicks_before_entry += ept_cpus[self].in_guest;
    }
}

static void relax_step(void)
{
    fake_tsc += 7000;
    step();
}

static void nmi_step(uint32_t cpu)
{
    happened.kicks++;
    if (random_below(10) == 0)
        happened.lost++;
    else
        machine[cpu].nmi = true;
    step();
}

static void invept_step(void)
{
    unsigned self = cpu_index();
    machine[self].tlb[ept_cpus[self].current == &other_ept] = 0;
    step();
}

static void run_guest(unsigned self, unsigned n)
{
    struct ept *e = ept_number(n);
    // ept_guest_begin in its parts, with the others let in between.
    atomic_store(&ept_cpus[self].current, e);
    step();
    atomic_store(&ept_cpus[self].in_guest, 1);
    step();
    atomic_thread_fence(memory_order_seq_cst);
    ept_enter(e, self);
    step();
    if (machine[self].kicked) {
        machine[self].kicked = false;
    } else {
        machine[self].in_guest_mode = true;
        for (unsigned i = random_below(60); i > 0 && !machine[self].nmi; i--) {
            if (machine[self].tlb[n] == 0)
                machine[self].tlb[n] = page_version[n];
            else
                happened.cached++;
            happened.accesses++;
            // The invariant: nobody uses what a finished shootdown removed.
            violated |= machine[self].tlb[n] < settled[n];
            step();
        }
        machine[self].in_guest_mode = false;
        machine[self].nmi = false;
    }
    ept_guest_end(self);
}

static void cpu_main(void)
{
    unsigned self = cpu_index();
    for (;;) {
        step();
        unsigned n = random_below(2);
        if (random_below(4) != 0) {
            run_guest(self, n);
            continue;
        }
        // page_version and the epoch change apart, as they do in Fusor.
        uint64_t version = ++page_version[n];
        step();
        ept_shootdown(ept_number(n));
        happened.shootdowns++;
        settled[n] = MAX(settled[n], version);
        for (unsigned cpu = 0; cpu < CPUS; cpu++)
            violated |= machine[cpu].in_guest_mode && ept_cpus[cpu].current == ept_number(n) &&
                        machine[cpu].tlb[n] != 0 && machine[cpu].tlb[n] < version;
    }
}

static void make_cpu(unsigned cpu)
{
    getcontext(&cpu_context[cpu]);
    cpu_context[cpu].uc_stack.ss_sp = cpu_stack[cpu];
    cpu_context[cpu].uc_stack.ss_size = STACK_SIZE;
    cpu_context[cpu].uc_link = NULL;
    makecontext(&cpu_context[cpu], cpu_main, 0);
}

static void test_random_schedules(void **state)
{
    (void)state;
    memset(&happened, 0, sizeof(happened));
    for (unsigned round = 1; round <= 40; round++) {
        start(CPUS);
        seed = round * UINT64_C(0x9e3779b97f4a7c15);
        memset(machine, 0, sizeof(machine));
        page_version[0] = page_version[1] = settled[0] = settled[1] = 1;
        nmi_hook = nmi_step;
        fake_relax_hook = relax_step;
        fake_invept_hook = invept_step;
        for (unsigned cpu = 0; cpu < CPUS; cpu++)
            make_cpu(cpu);
        unsigned before = happened.shootdowns;
        for (unsigned i = 0; i < 5000; i++) {
            unsigned cpu = random_below(CPUS);
            // Now and then one CPU is slow for a while.
            unsigned slow = i / 250 % (CPUS + 1);
            if (cpu == slow && random_below(8) != 0)
                continue;
            fake_set_cpu(cpu);
            swapcontext(&main_context, &cpu_context[cpu]);
            assert_false(violated);
        }
        assert_true(happened.shootdowns > before + 10); // they do return
        for (unsigned cpu = 0; cpu < CPUS; cpu++)
            ept_guest_end(cpu);
        nmi_hook = NULL;
        fake_relax_hook = NULL;
        fake_invept_hook = NULL;
        end();
    }
    assert_true(happened.accesses > 1000 && happened.cached > 1000 && happened.kicks > 100 &&
                happened.kicks_before_entry > 10 && happened.lost > 10);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_entry_without_shootdown),
        cmocka_unit_test(test_same_cpu),
        cmocka_unit_test(test_other_cpu_in_guest),
        cmocka_unit_test(test_nobody_to_wait_for),
        cmocka_unit_test(test_lost_nmi_is_sent_again),
        cmocka_unit_test(test_cpu_is_back_in_a_guest_at_once),
        cmocka_unit_test(test_epoch_during_invept),
        cmocka_unit_test(test_reuse_of_a_root),
        cmocka_unit_test(test_destroy_with_a_cpu_inside),
        cmocka_unit_test(test_machines_with_one_kind_of_invept),
        cmocka_unit_test(test_random_schedules),
    };
    return cmocka_run_group_tests_name("ept shootdown", tests, NULL, NULL);
}
