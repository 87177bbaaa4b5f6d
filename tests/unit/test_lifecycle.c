// SPDX-License-Identifier: BSD-2-Clause
// sources: vm/load.c vm/shortage.c vm/table.c vm/clock.c vm/bus.c kernel/format.c kernel/lock.c
// Lifecycle of a VM with several vCPUs, which are pretended: in which order they are stopped, reset
// and let go; what a changed number of them does; what is left behind.
#include "lifecycle_fakes.h"

// --- The pretended rooms ---

static int vcpu_room;      // vcpu_init() calls that succeed
static unsigned stubborn;  // looks at vcpu_is_out() until it says so
static unsigned forgotten; // VMs whose memory is no more
static uint64_t had;       // frames of the VM whose memory ended last
static char events[256];   // s: asked to stop, w: waited, r: reset, a: let go, M: memory, m: gone
static jmp_buf idle;
// The service sleeps so often until memory comes, or, if none does, until the test goes on.
static unsigned memory_comes_after;
static uint64_t frames_to_come;
static void (*service_function)(void *);

static void note(char what, uint32_t id)
{
    size_t n = strlen(events);
    assert_true(n + 3 < sizeof(events));
    events[n] = what;
    events[n + 1] = (char)('0' + id);
    events[n + 2] = 0;
}

int vcpu_init(struct vcpu *v, uint32_t id, void *vm, struct ept *ept, const struct vcpu_ops *ops,
              const struct cpuid_policy *cpuid)
{
    if (vcpu_room == 0)
        return E_NOMEM;
    vcpu_room--;
    set_up_vcpu(v, id, vm, ept, ops, cpuid);
    return 0;
}

void vcpu_free(struct vcpu *v)
{
    assert_true(v->entity.dead && v->stop != 0);
    objects--;
}

int vcpu_reset(struct vcpu *v, const struct vcpu_start *start)
{
    assert_int_not_equal(v->stop, 0);
    note('r', v->id);
    assert_int_equal(start != NULL, v->id == 0);
    v->parked = start == NULL;
    v->waiting_memory = false;
    v->tsc_adjust = 0;
    return 0;
}

void vcpu_request_stop(struct vcpu *v)
{
    if (v->stop == 0)
        note('s', v->id);
    v->stop = 1;
}

bool vcpu_is_out(const struct vcpu *v)
{
    assert_int_not_equal(v->stop, 0);
    if (stubborn != 0) {
        stubborn--;
        return false;
    }
    return true;
}

void vcpu_allow_run(struct vcpu *v)
{
    note('a', v->id);
    assert_false(((struct vm *)v->vm)->clock.frozen);
    v->stop = 0;
    v->entity.off = false;
    v->tells_guest = true;
}

// What overcommit = off has left for others while a VM has no memory for a moment.
static uint64_t left_meanwhile;

// Switched off before the memory goes (vm_memory_destroy), while no vCPU runs.
void kvm_guest_reset(struct vcpu *v)
{
    assert_int_not_equal(v->stop, 0);
    v->tells_guest = false;
}

int vm_memory_create(struct vm *vm)
{
    struct vm_commitment c;
    vm_commitment(&c);
    left_meanwhile = c.left;
    note('M', 0);
    // What a VM had is held for it while it is loaded anew, and for no other reason.
    assert_int_equal(vm->account.held, vm->restarting ? had : 0);
    return make_memory(vm);
}

void vm_memory_destroy(struct vm *vm)
{
    had = vm->account.held + vm->account.private_frames;
    for (unsigned i = 0; i < vm->vcpus_made; i++) {
        assert_int_not_equal(vm->vcpus[i]->stop, 0);
        assert_false(vm->vcpus[i]->tells_guest);
    }
    if (!vm->memory_present)
        return;
    note('m', 0);
    drop_memory(vm);
}

void vm_memory_forget(struct vm *vm)
{
    assert_false(vm->memory_present);
    for (unsigned i = 0; i < vm->vcpus_made; i++)
        assert_int_not_equal(vm->vcpus[i]->stop, 0);
    forgotten++;
}

struct fiber *fiber_create(const char *name, void (*function)(void *), void *argument)
{
    (void)name;
    (void)argument;
    service_function = function;
    return (struct fiber *)&service_function;
}

void fiber_wake(struct fiber *f)
{
    (void)f;
}

void fiber_give_way(void)
{
}

void fiber_yield(void)
{
    assert_true(false); // nobody is in the way
}

void fiber_sleep_until(uint64_t tsc)
{
    if (tsc == UINT64_MAX)
        longjmp(idle, 1); // the service has nothing more to do
    fake_tsc = MAX(fake_tsc, tsc);
    if (memory_comes_after == 0) {
        note('w', 0);
        return;
    }
    if (--memory_comes_after != 0)
        return;
    if (frames_to_come == 0)
        longjmp(idle, 1);
    frames_there += frames_to_come;
    frames_to_come = 0;
    memory_comes_after = 2; // and looks once more
}

static void sink(const char *line)
{
    strncpy(said, line, sizeof(said) - 1);
}

static struct vm_config config;
static char why[VM_WHY_MAX];
static struct vm *vm; // the one called alpha

static int set_up(void **state)
{
    (void)state;
    fake_machine(0, 1);
    objects = 0;
    vcpu_room = 100;
    stubborn = 0;
    load_fails = file_missing = false;
    image_pages = 8;
    frames_there = PLENTY;
    memory_comes_after = 0;
    events[0] = said[0] = 0;
    vm_set_platform(&platform);
    vm_set_event_sink(sink);
    start_service(NULL);
    memset(&config, 0, sizeof(config));
    strcpy(config.name, "alpha");
    strcpy(config.kernel, "k");
    config.memory = 16 * MIB;
    config.cpus = 4;
    config.weight = 100;
    config.affinity = UINT64_MAX;
    assert_int_equal(vm_create(&config, why), 0);
    vm = vm_acquire("alpha");
    assert_non_null(vm);
    vm_release(vm);
    return 0;
}

static int tear_down(void **state)
{
    (void)state;
    forgotten = 0;
    assert_int_equal(vm_destroy("alpha", why), 0);
    assert_int_equal(frames_there, PLENTY);
    assert_int_equal(forgotten, 1);
    assert_int_equal(objects, 0);
    return 0;
}

static void expect_events(const char *expected)
{
    assert_string_equal(events, expected);
    events[0] = 0;
}

static void serve_requests(void)
{
    if (setjmp(idle) == 0)
        service_function(NULL);
}

// --- Tests ---

static void names_and_weights(void **state)
{
    (void)state;
    assert_int_equal(vm->vcpu_count, 4);
    assert_int_equal(policy_for, 4);
    for (unsigned i = 0; i < 4; i++) {
        char name[] = "alpha/0";
        name[6] = (char)('0' + i);
        assert_string_equal(vm->vcpus[i]->name, name);
        assert_int_equal(vm->vcpus[i]->id, i);
        assert_ptr_equal(vm->vcpus[i]->entity.group, &vm->group);
    }
    assert_int_equal(vm->group.weight, 100);
    assert_int_equal(vm->group.cap, 0);
    config.weight = 2;
    config.cap = 150;
    config.affinity = 5;
    assert_int_equal(vm_set(&config, why), 0);
    for (unsigned i = 0; i < 4; i++) {
        assert_int_equal(vm->vcpus[i]->entity.cpu_mask, 5);
    }
    assert_int_equal(vm->group.weight, 2);
    assert_int_equal(vm->group.cap, 150);
}

static void from_start_to_stop(void **state)
{
    (void)state;
    assert_int_equal(vm_start("alpha", why), 0);
    expect_events("M0r0r1r2r3a0a1a2a3");
    assert_int_equal(madt_cpus, 4);
    for (unsigned i = 0; i < 4; i++) {
        assert_int_equal(vm->vcpus[i]->parked, i != 0);
        assert_int_equal(vm->vcpus[i]->tsc_offset, vm->clock.offset);
    }
    // All are asked before one is waited for.
    stubborn = 2;
    assert_int_equal(vm_pause("alpha", why), 0);
    expect_events("s0s1s2s3w0w0");
    assert_true(vm->clock.frozen);
    uint64_t stood = vclock_now(&vm->clock);
    fake_tsc += 1000000;
    vm->vcpus[2]->tsc_adjust = 77;
    assert_int_equal(vm_resume("alpha", why), 0);
    expect_events("a0a1a2a3");
    assert_true(vclock_now(&vm->clock) - stood < 100);
    for (unsigned i = 0; i < 4; i++)
        assert_int_equal(vm->vcpus[i]->tsc_offset, vm->clock.offset + (i == 2 ? 77 : 0));
    assert_int_equal(vm_reset("alpha", why), 0);
    expect_events("s0s1s2s3m0M0r0r1r2r3a0a1a2a3");
    assert_int_equal(vm->vcpus[2]->tsc_offset, vm->clock.offset);
    vm->vcpus[3]->waiting_memory = true;
    assert_int_equal(vm_stop("alpha", why), 0);
    expect_events("s0s1s2s3m0");
    assert_false(vm->vcpus[3]->waiting_memory);
    assert_int_equal(vm_start("alpha", why), 0);
    events[0] = 0; // destroyed while it runs
}

static void a_request_stops_all(void **state)
{
    (void)state;
    static const struct {
        enum vm_request request;
        enum vm_state after;
    } cases[] = {{VM_REQUEST_OFF, VM_STOPPED},
                 {VM_REQUEST_CRASH, VM_CRASHED},
                 {VM_REQUEST_EXIT, VM_STOPPED},
                 {VM_REQUEST_RESET, VM_RUNNING}};
    for (unsigned i = 0; i < ARRAY_SIZE(cases); i++) {
        assert_int_equal(vm_start("alpha", why), 0);
        events[0] = 0;
        vm_ask(vm, cases[i].request);
        expect_events("s0s1s2s3");
        vm_ask(vm, VM_REQUEST_OFF); // of another vCPU: the first counts
        serve_requests();
        assert_int_equal(vm->state, cases[i].after);
        assert_int_equal(vm->request, VM_REQUEST_NONE);
        assert_true(said[0] != 0);
        for (unsigned k = 0; k < 4; k++)
            assert_int_equal(vm->vcpus[k]->stop == 0, vm->state == VM_RUNNING);
    }
}

static void the_number_changes_with_the_next_start(void **state)
{
    (void)state;
    assert_int_equal(vm_start("alpha", why), 0);
    config.cpus = 6;
    assert_int_equal(vm_set(&config, why), 0);
    assert_int_equal(vm->vcpu_count, 4);
    events[0] = 0;
    assert_int_equal(vm_reset("alpha", why), 0);
    expect_events("s0s1s2s3m0M0r0r1r2r3r4r5a0a1a2a3a4a5");
    assert_int_equal(vm->vcpu_count, 6);
    assert_int_equal(policy_for, 6);
    assert_int_equal(madt_cpus, 6);
    assert_string_equal(vm->vcpus[5]->name, "alpha/5");
    assert_ptr_equal(vm->vcpus[5]->entity.group, &vm->group);
    config.cpus = 1;
    assert_int_equal(vm_set(&config, why), 0);
    assert_int_equal(vm_reset("alpha", why), 0);
    expect_events("s0s1s2s3s4s5m0M0r0a0");
    assert_int_equal(vm->vcpu_count, 1);
    assert_string_equal(vm->vcpus[0]->name, "alpha");
    assert_int_equal(vm->group.weight, 100);
    config.cpus = 3;
    assert_int_equal(vm_set(&config, why), 0);
    assert_int_equal(vm_stop("alpha", why), 0);
    events[0] = 0;
    assert_int_equal(vm_start("alpha", why), 0);
    expect_events("M0r0r1r2a0a1a2"); // those that exist are used again
    assert_int_equal(vcpu_room, 94);
}

static void without_memory_for_vcpus(void **state)
{
    (void)state;
    int before = objects;
    strcpy(config.name, "beta");
    for (int room = 0; room < 4; room++) {
        vcpu_room = room;
        assert_int_equal(vm_create(&config, why), E_NOMEM);
        assert_int_equal(objects, before);
    }
    strcpy(config.name, "alpha");
    config.cpus = 8;
    assert_int_equal(vm_set(&config, why), 0);
    vcpu_room = 2;
    events[0] = 0;
    assert_int_equal(vm_start("alpha", why), E_NOMEM);
    assert_true(strstr(why, "8 vCPUs") != NULL);
    expect_events("");
    assert_int_equal(vm->state, VM_STOPPED);
    assert_int_equal(vm->vcpu_count, 4);
    vcpu_room = 2; // two were made already
    assert_int_equal(vm_start("alpha", why), 0);
    assert_int_equal(vm->vcpu_count, 8);
    load_fails = true;
    assert_int_equal(vm_reset("alpha", why), E_INVAL);
    assert_int_equal(vm->state, VM_STOPPED);
    assert_false(vm->memory_present);
}

static void sums(void **state)
{
    (void)state;
    assert_int_equal(vm_start("alpha", why), 0);
    for (unsigned i = 0; i < 4; i++) {
        struct vcpu *v = vm->vcpus[i];
        v->entity.run_ticks = 1 << i;
        v->entity.sleep_ticks = 0x10 << i;
        v->entity.wait_ticks = 0x100 << i;
        v->unknown_msrs = 1;
        v->exits[EXIT_CPUID] = i;
    }
    vm->vcpus[2]->exits[EXIT_HLT] = 5;
    vm->report = (struct vm_report){true, 1, 2, 3, 4, 5};
    struct vm_info info;
    assert_int_equal(vm_get("alpha", &info), 0);
    assert_int_equal(info.run_ticks, 0xf);
    assert_int_equal(info.wait_ticks, 0xf0);
    assert_int_equal(info.steal_ticks, 0xf00);
    assert_int_equal(info.unknown_msrs, 4);
    assert_int_equal(info.state, VM_RUNNING);
    assert_true(info.report.present);
    assert_int_equal(info.report.cache, 4);
    struct vm_exit_count counts[VM_EXIT_KINDS];
    assert_int_equal(vm_exits("alpha", counts, VM_EXIT_KINDS), 2);
    assert_int_equal(counts[0].count, 6);
    assert_int_equal(counts[1].count, 5);
    vm->vcpus[3]->waiting_memory = true;
    assert_int_equal(vm_get("alpha", &info), 0);
    assert_int_equal(info.state, VM_WAITING_MEMORY);
    // What auto-balloon wants of it follows memory-min down, and nothing else moves it.
    vm->balloon_target = 3000;
    assert_int_equal(vm_set(&config, why), 0);
    assert_int_equal(vm->balloon_target, 3000);
    config.memory_min = config.memory - 1000 * PAGE_SIZE;
    assert_int_equal(vm_set(&config, why), 0);
    assert_int_equal(vm->balloon_target, 1000);
    // With fewer vCPUs no count goes back.
    config.cpus = 1;
    assert_int_equal(vm_set(&config, why), 0);
    assert_int_equal(vm_reset("alpha", why), 0);
    assert_int_equal(vm_get("alpha", &info), 0);
    assert_int_equal(info.run_ticks, 0xf);
    assert_int_equal(info.state, VM_RUNNING);
    assert_false(info.report.present);
}

static uint64_t left_to_promise(void)
{
    struct vm_commitment c;
    vm_commitment(&c);
    return c.left;
}

// overcommit = off: what is in the balloon may have been promised to others, so a VM that is reset,
// by the operator or by its guest, goes on without it; one that is stopped and started has to fit.
static void resets_keep_promises(void **state)
{
    (void)state;
    uint64_t all = 1000000 - 1000, pages = config.memory / PAGE_SIZE;
    vm_set_overcommit(false);
    assert_int_equal(vm_start("alpha", why), 0);
    assert_int_equal(left_to_promise(), all - pages);
    vm->account.ballooned = 300;
    for (unsigned turn = 0; turn < 2; turn++) {
        if (turn == 0) {
            assert_int_equal(vm_reset("alpha", why), 0);
        } else {
            vm_ask(vm, VM_REQUEST_RESET);
            serve_requests();
        }
        assert_int_equal(vm->state, VM_RUNNING);
        assert_int_equal(vm->account.ballooned, 0);
        assert_int_equal(vm->held_back, 300);
        assert_int_equal(left_meanwhile, all - pages + 300);
        assert_int_equal(left_to_promise(), all - pages + 300);
        assert_false(vm->restarting);
    }
    struct vm_info info;
    assert_int_equal(vm_get("alpha", &info), 0);
    assert_int_equal(info.held_back, 300);
    vm->account.ballooned = 400; // its driver has given more than before
    assert_int_equal(vm_get("alpha", &info), 0);
    assert_int_equal(info.held_back, 0);
    assert_int_equal(vm_reset("alpha", why), 0);
    assert_int_equal(vm->held_back, 400);
    // With a kernel that cannot be loaded it has no memory, and promises nothing.
    load_fails = true;
    vm_ask(vm, VM_REQUEST_RESET);
    serve_requests();
    assert_int_equal(vm->state, VM_CRASHED);
    assert_int_equal(vm->held_back, 0);
    assert_int_equal(left_to_promise(), all);
    load_fails = false;
    // So a reset of it has to fit as a start has to.
    events[0] = 0;
    fusor_frames = all + 1 - pages;
    assert_int_equal(vm_reset("alpha", why), E_NOMEM);
    assert_int_equal(vm->state, VM_CRASHED);
    assert_false(vm->memory_present);
    fusor_frames = 0;
    assert_int_equal(vm_reset("alpha", why), 0);
    assert_int_equal(vm->state, VM_RUNNING);
    assert_int_equal(vm_stop("alpha", why), 0);
    assert_int_equal(vm_start("alpha", why), 0);
    vm->account.ballooned = 300;
    assert_int_equal(vm_reset("alpha", why), 0);
    assert_int_equal(vm_stop("alpha", why), 0);
    assert_int_equal(vm->held_back, 0);
    assert_int_equal(left_to_promise(), all);
    vm_set_overcommit(true);
    assert_int_equal(vm_start("alpha", why), 0);
    vm->account.ballooned = 300;
    assert_int_equal(vm_reset("alpha", why), 0);
    assert_int_equal(vm->held_back, 0);
}

// --- A reset that finds too little memory ---

// alpha runs, nothing is free, and what it is to begin anew with is larger than what it had.
static void fill_up(uint64_t pages)
{
    assert_int_equal(vm_start("alpha", why), 0);
    frames_there = 0;
    image_pages = pages;
    events[0] = said[0] = 0;
}

// The service has looked `looks` times more, in vain.
static void look_in_vain(unsigned looks)
{
    uint64_t begin = fake_tsc;
    memory_comes_after = looks;
    frames_to_come = 0;
    serve_requests();
    assert_in_range(fake_tsc - begin, (looks - 1) * tsc_hz / 100,
                    looks * (tsc_hz / 100) + tsc_hz / 1000);
}

// It finds something to do that needs no memory, or nothing.
static void let_it_look(void)
{
    fake_tsc += tsc_hz / 100;
    serve_requests();
}

static enum vm_state state_shown(void)
{
    struct vm_info info;
    assert_int_equal(vm_get("alpha", &info), 0);
    return info.state;
}

// So many frames are freed after a while; the service goes on until it has nothing to do, or looks
// in vain.
static void give_frames(uint64_t frames)
{
    memory_comes_after = 3;
    frames_to_come = frames;
    serve_requests();
}

static void check_goes_on(void)
{
    assert_int_equal(vm->state, VM_RUNNING);
    assert_false(vm->load.waits || vm->restarting || vm->busy);
    assert_int_equal(vm->account.held, 0);
    assert_int_equal(vm->account.private_frames, 2 + image_pages);
    for (unsigned i = 0; i < vm->vcpu_count; i++)
        assert_int_equal(vm->vcpus[i]->stop, 0);
}

// It is reset, waits, and goes on when memory is there; by the operator or by the guest.
static void a_reset_waits(void **state)
{
    (void)state;
    for (unsigned by_guest = 0; by_guest < 2; by_guest++) {
        fill_up(30);
        if (by_guest) {
            vm_ask(vm, VM_REQUEST_RESET);
            events[0] = 0;
            look_in_vain(1);
            expect_events("m0M0");
            assert_string_equal(said, "VM alpha reset by the guest");
        } else {
            assert_int_equal(vm_reset("alpha", why), 0);
            expect_events("s0s1s2s3m0M0");
            // 22 pages, and what is missing of the reserve.
            assert_string_equal(said, "VM alpha waits for memory: 2088 kB short");
        }
        assert_int_equal(state_shown(), VM_WAITING_MEMORY);
        assert_int_equal(vm->account.private_frames, 10);
        assert_true(vm->clock.frozen);
        look_in_vain(5);
        expect_events("");
        // What the config says by now is for the next reset.
        strcpy(config.cmdline, "other");
        assert_int_equal(vm_set(&config, why), 0);
        assert_string_equal(vm->load.cmdline, "");
        give_frames(7); // of 22
        assert_int_equal(state_shown(), VM_WAITING_MEMORY);
        assert_int_equal(vm->account.private_frames, 17);
        give_frames(16);
        check_goes_on();
        assert_int_equal(frames_there, 1);
        expect_events("r0r1r2r3a0a1a2a3");
        // Its time begins with its run.
        assert_true(vclock_now(&vm->clock) < tsc_hz / 10);
        // The episode ends as any other.
        assert_true(vm->waits_said);
        fake_tsc += tsc_hz * 2;
        assert_false(vm_end_waits());
        assert_memory_equal(said, "VM alpha goes on after", 22);
        config.cmdline[0] = 0;
        assert_int_equal(vm_set(&config, why), 0);
        frames_there = PLENTY - vm->account.private_frames;
        image_pages = 8;
        assert_int_equal(vm_stop("alpha", why), 0);
    }
}

// Wherever the memory ends, and however little comes at a time.
static void a_reset_waits_at_every_step(void **state)
{
    (void)state;
    for (uint64_t drop = 1; drop < 12; drop++) {
        fill_up(30);
        // Others have taken even of what it had: all of it comes from what is freed.
        vm->account.private_frames = 0;
        frames_there = 0;
        assert_int_equal(vm_reset("alpha", why), 0);
        uint64_t given = 0;
        while (vm->load.waits) {
            assert_int_equal(state_shown(), VM_WAITING_MEMORY);
            assert_true(given < 32);
            give_frames(drop);
            given += drop;
        }
        check_goes_on();
        assert_int_equal(frames_there, given - 32);
        frames_there = PLENTY - 32;
        image_pages = 8;
        assert_int_equal(vm_stop("alpha", why), 0);
    }
    events[0] = 0;
}

// What an operator may say meanwhile.
static void commands_while_a_reset_waits(void **state)
{
    (void)state;
    fill_up(30);
    assert_int_equal(vm_reset("alpha", why), 0);
    assert_int_equal(vm_start("alpha", why), E_BUSY);
    assert_int_equal(vm_resume("alpha", why), E_BUSY);
    assert_int_equal(vm_shutdown("alpha", why), E_BUSY);
    assert_non_null(strstr(why, "is being reset and waits for memory"));
    config.memory *= 2;
    assert_int_equal(vm_set(&config, why), E_BUSY);
    config.memory /= 2;
    // Paused, it is loaded all the same, and stays paused.
    assert_int_equal(vm_pause("alpha", why), 0);
    assert_int_equal(state_shown(), VM_PAUSED);
    assert_int_equal(vm_resume("alpha", why), 0);
    assert_int_equal(state_shown(), VM_WAITING_MEMORY);
    assert_int_equal(vm_pause("alpha", why), 0);
    events[0] = 0;
    give_frames(22);
    assert_int_equal(state_shown(), VM_PAUSED);
    assert_false(vm->load.waits);
    expect_events("r0r1r2r3");
    assert_int_equal(vm_resume("alpha", why), 0);
    check_goes_on();
    // Again, from paused; a file that is missing changes nothing.
    image_pages = 31;
    assert_int_equal(vm_pause("alpha", why), 0);
    assert_int_equal(vm_reset("alpha", why), 0);
    assert_true(vm->load.waits);
    assert_int_equal(state_shown(), VM_PAUSED);
    file_missing = true;
    assert_int_equal(vm_reset("alpha", why), E_NOENT);
    file_missing = false;
    assert_true(vm->load.waits);
    // Another reset begins with what the config says now, and what it had.
    image_pages = 30;
    assert_int_equal(vm_reset("alpha", why), 0);
    assert_int_equal(state_shown(), VM_PAUSED);
    assert_false(vm->load.waits);
    assert_int_equal(vm_resume("alpha", why), 0);
    check_goes_on();
    // Stopped meanwhile: all of it is free.
    image_pages = 40;
    assert_int_equal(vm_reset("alpha", why), 0);
    assert_true(vm->load.waits);
    assert_int_equal(vm_stop("alpha", why), 0);
    assert_int_equal(frames_there, 32);
    assert_false(vm->load.waits || vm->restarting);
    let_it_look();
    frames_there = PLENTY;
    fill_up(50);
    frames_there = 0;
    image_pages = 60;
    assert_int_equal(vm_reset("alpha", why), 0);
    assert_true(vm->load.waits);
    frames_there = PLENTY - vm->account.private_frames - vm->account.held;
    // Destroyed meanwhile, by the end of the test.
}

// Meanwhile it turns out that it cannot be loaded at all.
static void a_reset_that_waits_fails(void **state)
{
    (void)state;
    fill_up(30);
    assert_int_equal(vm_reset("alpha", why), 0);
    load_fails = true;
    let_it_look();
    assert_int_equal(vm->state, VM_CRASHED);
    assert_string_equal(said, "VM alpha could not be reset: no kernel");
    assert_string_equal(vm->crash, "no kernel");
    assert_false(vm->load.waits || vm->restarting || vm->memory_present);
    assert_int_equal(frames_there, 10);
    load_fails = false;
    // It is no secret what it died of, until it begins anew.
    assert_int_equal(vm_reset("alpha", why), 0);
    assert_true(vm->load.waits);
    assert_int_equal(vm->crash[0], 0);
    give_frames(PLENTY - 10);
    check_goes_on();
}

// A file that is missing is found out before anything is lost, if the operator asks.
static void a_missing_file(void **state)
{
    (void)state;
    assert_int_equal(vm_start("alpha", why), 0);
    file_missing = true;
    assert_int_equal(vm_reset("alpha", why), E_NOENT);
    assert_string_equal(why, "k was not loaded at boot");
    check_goes_on();
    vm_ask(vm, VM_REQUEST_RESET);
    serve_requests();
    assert_int_equal(vm->state, VM_CRASHED);
    assert_false(vm->memory_present);
    assert_int_equal(frames_there, PLENTY);
}

// A start is refused, as before; it waits for nothing and leaves nothing.
static void a_start_does_not_wait(void **state)
{
    (void)state;
    for (frames_there = 0; frames_there < 10; frames_there++) {
        uint64_t before = frames_there;
        assert_int_equal(vm_start("alpha", why), E_NOMEM);
        assert_int_equal(vm->state, VM_STOPPED);
        assert_false(vm->load.waits || vm->memory_present);
        assert_int_equal(frames_there, before);
    }
    frames_there = PLENTY;
}

// overcommit = off: a VM that waits to be loaded has what was promised to it, with and without
// memory.
static void a_reset_that_waits_keeps_promises(void **state)
{
    (void)state;
    uint64_t all = 1000000 - 1000, pages = config.memory / PAGE_SIZE;
    vm_set_overcommit(false);
    assert_int_equal(vm_start("alpha", why), 0);
    vm->account.ballooned = 300;
    vm->account.private_frames = 0; // shared, all of it
    frames_there = 0;
    assert_int_equal(vm_reset("alpha", why), 0);
    assert_false(vm->memory_present);
    assert_true(vm->load.waits);
    assert_int_equal(left_to_promise(), all - pages + 300);
    assert_int_equal(vm_reset("alpha", why), 0);
    assert_int_equal(vm->held_back, 300);
    assert_int_equal(left_to_promise(), all - pages + 300);
    give_frames(5);
    assert_true(vm->load.waits && vm->memory_present);
    assert_int_equal(left_to_promise(), all - pages + 300);
    give_frames(5);
    check_goes_on();
    assert_int_equal(vm->held_back, 300);
    frames_there = PLENTY - 10;
    vm_set_overcommit(true);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(names_and_weights, set_up, tear_down),
        cmocka_unit_test_setup_teardown(from_start_to_stop, set_up, tear_down),
        cmocka_unit_test_setup_teardown(a_request_stops_all, set_up, tear_down),
        cmocka_unit_test_setup_teardown(the_number_changes_with_the_next_start, set_up, tear_down),
        cmocka_unit_test_setup_teardown(without_memory_for_vcpus, set_up, tear_down),
        cmocka_unit_test_setup_teardown(sums, set_up, tear_down),
        cmocka_unit_test_setup_teardown(resets_keep_promises, set_up, tear_down),
        cmocka_unit_test_setup_teardown(a_reset_waits, set_up, tear_down),
        cmocka_unit_test_setup_teardown(a_reset_waits_at_every_step, set_up, tear_down),
        cmocka_unit_test_setup_teardown(commands_while_a_reset_waits, set_up, tear_down),
        cmocka_unit_test_setup_teardown(a_reset_that_waits_fails, set_up, tear_down),
        cmocka_unit_test_setup_teardown(a_missing_file, set_up, tear_down),
        cmocka_unit_test_setup_teardown(a_start_does_not_wait, set_up, tear_down),
        cmocka_unit_test_setup_teardown(a_reset_that_waits_keeps_promises, set_up, tear_down),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
