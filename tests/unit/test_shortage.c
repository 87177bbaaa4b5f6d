// SPDX-License-Identifier: BSD-2-Clause
// sources: vm/shortage.c balloon/policy.c kernel/format.c kernel/lock.c
// Too little memory: what was promised, who waits and what is said about it, doorbells; and the
// decisions of auto-balloon.
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "balloon/policy.h"
#include "fake.h"
#include "kernel/time.h"
#include "vm/vm_object.h"

// --- The rooms around ---

#define VMS 3u

static struct vm vms[VMS];
static struct vcpu vcpus[VMS];
static uint64_t free_frames, reserve_frames, fusor_frames, total_frames;
static char said[1024];
static void (*between)(void); // what happens before the second look at all promises
static unsigned snapshots;
static unsigned hooks, rings[VMS];
static bool level[VMS];

void frames_snapshot(struct frames_snapshot *out, struct frame_account *const *accounts, size_t n,
                     uint64_t *private_out, uint64_t *shared_out)
{
    (void)accounts;
    (void)n;
    (void)private_out;
    (void)shared_out;
    memset(out, 0, sizeof(*out));
    out->total = total_frames;
    void (*then)(void) = between;
    between = NULL;
    if (snapshots++ == 1 && then != NULL)
        then();
    else
        between = then;
    out->count[FRAME_FUSOR] = fusor_frames;
}

uint64_t frames_reserve(void)
{
    return reserve_frames;
}

uint64_t frames_free(void)
{
    return free_frames;
}

void vm_for_each(void (*visit)(struct vm *vm, void *context), void *context)
{
    for (unsigned i = 0; i < VMS; i++)
        visit(&vms[i], context);
}

bool vm_waits_for_memory(const struct vm *vm)
{
    return vm->vcpus[0]->waiting_memory;
}

void vm_event(const char *format, ...)
{
    size_t n = strlen(said);
    va_list args;
    va_start(args, format);
    vsnprintf(said + n, sizeof(said) - n - 2, format, args);
    va_end(args);
    strcat(said, "\n");
}

static void set_doorbell(struct vm *vm, bool ringing)
{
    assert_false(spin_none_held());
    rings[vm - vms] += ringing && !level[vm - vms];
    level[vm - vms] = ringing;
}

static const struct vm_platform_ops ops = {.set_doorbell = set_doorbell};
const struct vm_platform_ops *vm_platform = &ops;

static void hook(void)
{
    hooks++;
}

static int start(void **state)
{
    (void)state;
    fake_machine(0, 1);
    fake_tsc = 1000 * tsc_hz;
    memset(vms, 0, sizeof(vms));
    memset(vcpus, 0, sizeof(vcpus));
    memset(rings, 0, sizeof(rings));
    memset(level, 0, sizeof(level));
    said[0] = 0;
    hooks = 0;
    between = NULL;
    for (unsigned i = 0; i < VMS; i++) {
        vms[i].id = i + 1;
        vms[i].config.name[0] = (char)('a' + i);
        vms[i].config.memory = 100 * MIB;
        vms[i].state = VM_RUNNING;
        vms[i].vcpu_count = 1;
        vms[i].vcpus[0] = &vcpus[i];
        spin_init(&vms[i].device_lock, "device", RANK_DEVICE);
    }
    free_frames = reserve_frames = fusor_frames = 0;
    total_frames = 100000;
    vm_set_overcommit(true);
    vm_set_shortage_hook(hook);
    return 0;
}

// --- Promises ---

static void test_commitment(void **state)
{
    (void)state;
    struct vm_commitment c;
    vm_commitment(&c);
    assert_true(c.left == UINT64_MAX);
    vm_set_overcommit(false);
    fusor_frames = 1000;
    reserve_frames = 4096;
    vm_commitment(&c);
    assert_int_equal(c.left, 100000 - 1000 - 4096);
    vms[0].memory_present = vms[2].memory_present = true;
    vms[2].account.ballooned = 600;
    vm_commitment(&c);
    assert_int_equal(c.guests, 2 * 25600 - 600);
    assert_int_equal(c.left, 100000 - 1000 - 4096 - c.guests);
    assert_int_equal(c.total, 100000);
    total_frames = 50000; // more was promised than there is
    vm_commitment(&c);
    assert_int_equal(c.left, 0);
}

// Half of the reserve serves page tables; those of large VMs are counted as far as they go beyond.
static void test_commitment_of_tables(void **state)
{
    (void)state;
    struct vm_commitment c;
    vm_set_overcommit(false);
    total_frames = 16 * GIB / PAGE_SIZE;
    reserve_frames = 4096;
    vms[0].memory_present = vms[1].memory_present = true;
    vms[0].config.memory = 4 * GIB - 100 * MIB;
    vm_commitment(&c);
    assert_in_range(c.tables, 2048, 2048 + 32);
    uint64_t beyond = c.tables - 2048;
    assert_int_equal(c.guests, 4 * GIB / PAGE_SIZE + beyond);
    assert_int_equal(c.left, total_frames - 4096 - c.guests);
    assert_in_range(vm_commitment_of(&c, 2 * GIB), 2 * GIB / PAGE_SIZE + 1024 + 2,
                    2 * GIB / PAGE_SIZE + 1024 + 16);
    uint64_t before = c.guests, more = vm_commitment_of(&c, 2 * GIB);
    vms[2].memory_present = true;
    vms[2].config.memory = 2 * GIB;
    vm_commitment(&c);
    assert_int_equal(c.guests, before + more);
    reserve_frames = 16384;
    vm_commitment(&c);
    assert_int_equal(c.guests, 6 * GIB / PAGE_SIZE);
    assert_int_equal(vm_commitment_of(&c, 100 * MIB), 25600);
}

static void another_takes_the_rest(void)
{
    vms[1].held_back -= 512;
}

static void another_writes_to_the_balloon(void)
{
    another_takes_the_rest();
    vms[0].account.ballooned = 700;
    vm_hold_back(&vms[0]);
    assert_int_equal(vms[0].held_back, 700);
}

// Pages that left the balloon unasked come back as far as nobody was promised them, once.
static void test_held_back(void **state)
{
    (void)state;
    uint64_t pages = vms[0].config.memory / PAGE_SIZE;
    vm_hold_back(&vms[0]);
    assert_int_equal(vms[0].held_back, 0); // overcommit is on
    vm_set_overcommit(false);
    for (unsigned i = 0; i < 2; i++) {
        vms[i].memory_present = true;
        vms[i].account.ballooned = 1000;
        vm_hold_back(&vms[i]);
        assert_int_equal(vms[i].held_back, 1000);
        vms[i].account.ballooned = 0;
        vms[i].account.private_frames = pages - 1000;
    }
    struct vm_commitment c;
    reserve_frames = 400; // for their page tables
    total_frames = 2 * (pages - 1000) + reserve_frames;
    assert_true(vm_is_held_back(&vms[0]));
    assert_false(vm_may_grow(&vms[0]));
    assert_int_equal(vms[0].held_back, 1000);
    // Both see the same 512 frames.
    total_frames += 512;
    snapshots = 0;
    between = another_takes_the_rest;
    assert_false(vm_may_grow(&vms[0]));
    assert_null(between);
    assert_int_equal(vms[0].held_back, 1000);
    vm_commitment(&c);
    assert_int_equal(c.left, 0);
    // Nor is more held back than was promised when another vCPU writes to the balloon meanwhile.
    snapshots = 0;
    vms[1].held_back += 512;
    between = another_writes_to_the_balloon;
    assert_false(vm_may_grow(&vms[0]));
    assert_null(between);
    assert_int_equal(vms[0].held_back, 1000);
    vms[0].account.ballooned = 0;
    // It is in two steps that it gets 600.
    total_frames += 600;
    vms[0].account.private_frames += 500;
    assert_true(vm_may_grow(&vms[0]));
    assert_int_equal(vms[0].held_back, 1000 - 600);
    vm_commitment(&c);
    assert_int_equal(c.left, 0);
    assert_int_equal(c.guests + reserve_frames, total_frames);
    // What was agreed to is the VM's again; what never was held back stays out of it.
    vms[0].account.ballooned = 90;
    vm_hold_less(&vms[0], 10);
    assert_int_equal(vms[0].held_back, 390);
    vms[0].account.ballooned = 500;
    vm_hold_less(&vms[0], 10);
    assert_int_equal(vms[0].held_back, 390);
    vms[0].account.ballooned = 385;
    vm_hold_less(&vms[0], 10);
    assert_int_equal(vms[0].held_back, 385);
    assert_false(vm_is_held_back(&vms[0]));
    // While it has no memory for a moment, too.
    vm_commitment(&c);
    uint64_t guests = c.guests;
    vms[0].memory_present = false;
    vms[0].restarting = true;
    vm_commitment(&c);
    assert_int_equal(c.guests, guests);
}

// --- Waiting ---

static void test_one_episode(void **state)
{
    (void)state;
    reserve_frames = 1000;
    free_frames = 990;
    assert_false(vm_end_waits());
    vcpus[0].waiting_memory = true;
    vm_note_wait(&vms[0]);
    assert_string_equal(said, "VM a waits for memory: 44 kB short\n");
    assert_int_equal(hooks, 1);
    assert_true(vm_end_waits());
    // It gets on page by page: the same episode.
    for (unsigned i = 0; i < 100; i++) {
        vcpus[0].waiting_memory = false;
        fake_tsc += tsc_hz / 100;
        assert_true(vm_end_waits());
        vcpus[0].waiting_memory = true;
        vm_note_wait(&vms[0]);
    }
    assert_int_equal(hooks, 1);
    vcpus[0].waiting_memory = false;
    fake_tsc += tsc_hz / 10 * 9;
    assert_true(vm_end_waits());
    fake_tsc += tsc_hz / 5;
    free_frames = 2000;
    assert_false(vm_end_waits());
    assert_string_equal(
        said, "VM a waits for memory: 44 kB short\nVM a goes on after 1000 ms: 8000 kB are free\n");
    assert_false(vm_end_waits());
    said[0] = 0;
    vcpus[0].waiting_memory = true;
    vm_note_wait(&vms[0]);
    assert_string_equal(said, "VM a waits for memory: 4 kB short\n");
    // One that was stopped does not go on.
    vcpus[0].waiting_memory = false;
    vms[0].state = VM_STOPPED;
    fake_tsc += 2 * tsc_hz;
    assert_false(vm_end_waits());
    assert_string_equal(said, "VM a waits for memory: 4 kB short\n");
}

static void test_doorbell(void **state)
{
    (void)state;
    vm_set_balloon_target(&vms[1], 100);
    assert_int_equal(vms[1].balloon_target, 100);
    assert_int_equal(rings[1], 0); // nobody listens
    vms[1].balloon_driver = true;
    vm_set_balloon_target(&vms[1], 100);
    assert_int_equal(rings[1], 0); // no other one
    vm_set_balloon_target(&vms[1], 50);
    assert_int_equal(rings[1], 1);
    vm_ring_doorbell(&vms[1]);
    assert_int_equal(rings[1], 1); // not answered yet
    level[1] = false;
    vm_ring_doorbell(&vms[1]);
    assert_int_equal(rings[1], 2);
    assert_int_equal(rings[0] + rings[2], 0);
}

// --- Decisions ---

#define MEMORY 16000u

static struct policy_vm guest(uint64_t available)
{
    return (struct policy_vm){
        .takes_part = true, .memory = MEMORY, .minimum = MEMORY / 2, .available = available};
}

// Looks until something is decided, at most `looks` times; returns how many it took, 0: nothing.
static unsigned decide(struct policy_host *host, struct policy_vm *v, unsigned n, unsigned looks)
{
    for (unsigned i = 1; i <= looks; i++) {
        policy_decide(host, v, n);
        for (unsigned k = 0; k < n; k++) {
            assert_true((v[k].reason == POLICY_STAYS) == (v[k].new_target == v[k].target));
            if (v[k].reason != POLICY_STAYS)
                return i;
        }
    }
    return 0;
}

static void test_nothing_to_do(void **state)
{
    (void)state;
    struct policy_host host = {.total = 64000, .spare = 30000};
    struct policy_vm v[2] = {guest(12000), guest(3000)};
    assert_int_equal(decide(&host, v, 2, 10), 0);
    host.spare = 2000; // low water, not below it
    assert_int_equal(decide(&host, v, 2, 10), 0);
    v[0].takes_part = v[1].takes_part = false; // no drivers
    host.spare = 0;
    assert_int_equal(decide(&host, v, 2, 10), 0);
    assert_int_equal(decide(&host, v, 0, 10), 0);
}

static void test_machine_is_short(void **state)
{
    (void)state;
    struct policy_host host = {.total = 64000, .spare = 1999};
    struct policy_vm v[3] = {guest(3900), guest(9000), guest(5000)};
    assert_int_equal(decide(&host, v, 3, 10), 2); // seen twice
    assert_int_equal(host.wanted, 4000 - 1999);
    assert_int_equal(v[1].reason, POLICY_GIVES);
    assert_int_equal(v[1].new_target, MEMORY / 8); // a step
    assert_int_equal(v[2].new_target, 1);          // the rest
    assert_int_equal(v[0].reason, POLICY_STAYS);
    // On its way: nothing more is asked for.
    v[1].target = v[1].new_target;
    v[2].target = v[2].new_target;
    assert_int_equal(decide(&host, v, 3, 10), 0);
    // Arrived.
    host.spare = 4000;
    for (unsigned i = 0; i < 3; i++) {
        v[i].available -= v[i].target - v[i].balloon;
        v[i].balloon = v[i].reported_balloon = v[i].target;
    }
    assert_int_equal(decide(&host, v, 3, 10), 0);
}

// Reports are seldom, looks are not: what a guest said before its balloon changed is taken for
// that.
static void test_old_report(void **state)
{
    (void)state;
    struct policy_host host = {.total = 64000, .spare = 10000};
    struct policy_vm v = guest(500);
    v.target = v.balloon = v.reported_balloon = 8000;
    assert_int_equal(decide(&host, &v, 1, 10), 2);
    assert_int_equal(v.new_target, 8000 - 1500);
    v.target = v.balloon = v.new_target; // it has it, and has not said so
    assert_int_equal(decide(&host, &v, 1, 10), 0);
    v.available = 600; // it says: used at once
    v.reported_balloon = v.balloon;
    assert_int_equal(decide(&host, &v, 1, 10), 2);
    assert_int_equal(v.new_target, 6500 - 1400);
    // And one that has given.
    v = guest(4500);
    host.spare = 0;
    assert_int_equal(decide(&host, &v, 1, 10), 2);
    assert_int_equal(v.new_target, 1500); // 3/16 are left
    v.target = v.balloon = v.new_target;
    assert_int_equal(decide(&host, &v, 1, 10), 0);
}

static void test_memory_min(void **state)
{
    (void)state;
    struct policy_host host = {.total = 64000, .spare = 0};
    struct policy_vm v = guest(MEMORY);
    for (unsigned i = 0; i < 100; i++) {
        policy_decide(&host, &v, 1);
        v.balloon = v.reported_balloon = v.target =
            v.new_target; // it lies: always all is available
        assert_true(v.target <= v.memory - v.minimum);
    }
    assert_int_equal(v.target, v.memory - v.minimum);
    v = guest(UINT64_MAX); // nonsense
    v.minimum = v.memory;
    assert_int_equal(decide(&host, &v, 1, 10), 0);
    v.minimum = UINT64_MAX;
    v.balloon = UINT64_MAX;
    v.target = UINT64_MAX;
    assert_int_equal(decide(&host, &v, 1, 10), 0);
}

static void test_needy(void **state)
{
    (void)state;
    struct policy_host host = {.total = 64000, .spare = 10000};
    struct policy_vm v[2] = {guest(500), guest(10000)};
    v[0].target = v[0].balloon = v[0].reported_balloon = 4000;
    assert_int_equal(decide(&host, v, 2, 10), 2);
    assert_int_equal(v[0].reason, POLICY_GETS);
    assert_int_equal(v[0].new_target, 4000 - 1500); // up to 1/8
    assert_int_equal(v[1].reason, POLICY_STAYS);
    v[0].target = v[0].new_target;
    assert_int_equal(decide(&host, v, 2, 10), 0);
    // Without frames in the machine another one has to give.
    v[0].target = v[0].balloon;
    host.spare = 2500;
    assert_int_equal(decide(&host, v, 2, 10), 2);
    assert_int_equal(v[0].new_target, 4000 - 500);
    assert_int_equal(host.wanted, 1000);
    assert_int_equal(v[1].new_target, 1000);
    // One that has no balloon gets nothing and takes nothing.
    v[0].target = v[0].balloon = v[0].reported_balloon = 0;
    v[1].looks_spare = 0;
    host.spare = 3000;
    assert_int_equal(decide(&host, v, 2, 10), 0);
}

static void test_waiting_guest(void **state)
{
    (void)state;
    struct policy_host host = {.total = 64000, .spare = 3000};
    struct policy_vm v[2] = {guest(8000), guest(8000)};
    v[0].waits = true; // what it says was before
    assert_int_equal(decide(&host, v, 2, 10), 2);
    assert_int_equal(v[0].reason, POLICY_STAYS);
    assert_int_equal(v[1].new_target, 1000);
}

// An idle and a hungry guest, played out: it settles, and goes nowhere from there.
static void test_settles(void **state)
{
    (void)state;
    struct policy_host host = {.total = 32000, .spare = 500};
    struct policy_vm v[2] = {guest(12000), guest(14000)};
    uint64_t used[2] = {4000, 2000};
    unsigned moves = 0, last = 0;
    for (unsigned look = 0; look < 200; look++) {
        used[0] = MIN(used[0] + 100, UINT64_C(13000)); // hungry
        uint64_t resident = used[0] + used[1];
        host.spare = resident < 20000 ? 20000 - resident : 0;
        for (unsigned i = 0; i < 2; i++) {
            uint64_t free_pages = v[i].memory - v[i].balloon;
            v[i].available = free_pages > used[i] ? free_pages - used[i] : 0;
        }
        policy_decide(&host, v, 2);
        for (unsigned i = 0; i < 2; i++)
            if (v[i].reason != POLICY_STAYS) {
                moves++;
                last = look;
                v[i].target = v[i].balloon = v[i].reported_balloon = v[i].new_target;
            }
    }
    assert_true(last < 150);
    assert_true(moves < 20);
    assert_true(v[0].balloon < 3000);
}

int main(void)
{
#define TEST(name) cmocka_unit_test_setup(name, start)
    const struct CMUnitTest tests[] = {
        TEST(test_commitment),
        TEST(test_commitment_of_tables),
        TEST(test_held_back),
        TEST(test_one_episode),
        TEST(test_doorbell),
        TEST(test_nothing_to_do),
        TEST(test_machine_is_short),
        TEST(test_memory_min),
        TEST(test_needy),
        TEST(test_waiting_guest),
        TEST(test_settles),
        TEST(test_old_report),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
