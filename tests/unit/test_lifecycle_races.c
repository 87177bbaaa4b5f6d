// SPDX-License-Identifier: BSD-2-Clause
// sources: vm/load.c vm/shortage.c vm/table.c vm/clock.c vm/bus.c kernel/format.c kernel/lock.c
// The states of a VM: what every command and every event does in each of them, and all orders in
// which commands, what vCPUs ask for, and the service fiber can meet.
//
// Fibers are coroutines, vCPUs are steps: one that was told to stop leaves the guest in a step of
// its own; one that may run can ask for something. Who steps next is a choice; explore() goes
// through all sequences of choices up to a length, afterwards everybody takes turns until nothing
// moves. (The first choices matter most: a command waits at few places.) Where memory is short a
// frame that becomes free is a step, too.
#include <stdio.h>
#include <ucontext.h>

#include "lifecycle_fakes.h"

#define VCPUS      2u
#define STACK      (128 * 1024u)
#define TURNS_MAX  4000u // of everybody, until a command must have ended
#define EVENTS_MAX 2u    // what vCPUs ask for in one history
#define VMS        2u

// --- The pretended rooms ---

enum role { OPERATOR, OTHER, SERVICE, FIBERS };

static struct coroutine {
    ucontext_t context;
    char stack[STACK];
    bool alive, asleep; // asleep: until somebody wakes it
} coroutines[FIBERS];
static ucontext_t explorer;
static enum role current = FIBERS; // FIBERS: none
static void (*service_function)(void *);

static bool inside[VMS][VM_CPUS_MAX]; // the vCPU is in the guest, or on its way out
static struct vm *vms[VMS];
static char names[VMS][8] = {"alpha", "beta"};

static unsigned number_of(const struct vm *vm)
{
    return vm->config.name[0] == 'b';
}

static bool *inside_of(const struct vcpu *v)
{
    return &inside[number_of(v->vm)][v->id];
}

int vcpu_init(struct vcpu *v, uint32_t id, void *vm, struct ept *ept, const struct vcpu_ops *ops,
              const struct cpuid_policy *cpuid)
{
    set_up_vcpu(v, id, vm, ept, ops, cpuid);
    *inside_of(v) = false;
    return 0;
}

void vcpu_free(struct vcpu *v)
{
    assert_true(v->entity.dead && v->stop != 0 && !*inside_of(v));
    objects--;
}

int vcpu_reset(struct vcpu *v, const struct vcpu_start *start)
{
    (void)start;
    assert_true(v->stop != 0 && !*inside_of(v));
    v->waiting_memory = false;
    return 0;
}

void vcpu_request_stop(struct vcpu *v)
{
    v->stop = 1;
}

bool vcpu_is_out(const struct vcpu *v)
{
    assert_true(v->stop != 0);
    return !*inside_of(v);
}

void vcpu_allow_run(struct vcpu *v)
{
    const struct vm *vm = v->vm;
    assert_false(vm->clock.frozen);
    assert_true(vm->memory_present && vm->busy);
    // All of it is there.
    assert_int_equal(vm->account.private_frames, 2 + vm->load.input.kernel_size / PAGE_SIZE);
    assert_false(vm->load.waits || vm->restarting);
    v->stop = 0;
    *inside_of(v) = true;
}

static void check_out(const struct vm *vm)
{
    for (unsigned i = 0; i < vm->vcpus_made; i++)
        assert_true(vm->vcpus[i]->stop != 0 && !*inside_of(vm->vcpus[i]));
}

int vm_memory_create(struct vm *vm)
{
    check_out(vm);
    return make_memory(vm);
}

// As the real one: in steps.
void vm_memory_destroy(struct vm *vm)
{
    check_out(vm);
    if (!vm->memory_present)
        return;
    // It is shown only when this is over, but for a start that failed.
    bool loaded = vm->account.private_frames == 2 + vm->load.input.kernel_size / PAGE_SIZE;
    assert_true(vm->state != VM_STOPPED || load_fails || !loaded);
    fiber_yield();
    check_out(vm);
    drop_memory(vm);
}

void vm_memory_forget(struct vm *vm)
{
    assert_false(vm->memory_present);
    check_out(vm);
}

// Its pins end before the memory does, while no vCPU runs.
void kvm_guest_reset(struct vcpu *v)
{
    check_out(v->vm);
}

struct fiber *fiber_create(const char *name, void (*function)(void *), void *argument)
{
    (void)name;
    (void)argument;
    service_function = function;
    return (struct fiber *)&coroutines[SERVICE];
}

void fiber_wake(struct fiber *f)
{
    assert_ptr_equal(f, &coroutines[SERVICE]);
    coroutines[SERVICE].asleep = false;
}

static void switch_away(void)
{
    assert_true(spin_none_held());
    assert_int_not_equal(current, FIBERS);
    swapcontext(&coroutines[current].context, &explorer);
}

void fiber_yield(void)
{
    switch_away();
}

void fiber_give_way(void)
{
    switch_away();
}

void fiber_sleep_until(uint64_t tsc)
{
    coroutines[current].asleep = tsc == UINT64_MAX;
    switch_away();
}

// Set: while the service says what it did, the first vCPU, on another CPU, asks for the next reset.
static bool asks_at_once;
static unsigned resets_said;
static bool ask(unsigned vm, unsigned i, enum vm_request request);

static void sink(const char *line)
{
    strncpy(said, line, sizeof(said) - 1);
    if (asks_at_once && strstr(line, "reset") != NULL)
        ask(0, 0, VM_REQUEST_RESET);
    resets_said += strstr(line, "reset by the guest") != NULL;
}

// --- Commands and histories ---

enum command { START, PAUSE, RESUME, RESET, SHUTDOWN, STOP, DESTROY, COMMANDS };

static int (*const functions[COMMANDS])(const char *name, char *why) = {
    vm_start, vm_pause, vm_resume, vm_reset, vm_shutdown, vm_stop, vm_destroy};

static bool is_short; // nothing is free but what the VM has

static struct script {
    enum command commands[2];
    unsigned count, done;
    int status[2];
    unsigned vm;
} scripts[2]; // of OPERATOR and OTHER

static void run_script(struct script *s)
{
    for (s->done = 0; s->done < s->count; s->done++) {
        char why[VM_WHY_MAX] = "";
        int status = functions[s->commands[s->done]](names[s->vm], why);
        s->status[s->done] = status;
        // Defined answers: done, or no with a reason.
        assert_true(status == 0 || status == E_BUSY || status == E_NOENT || status == E_INVAL ||
                    (is_short && s->commands[s->done] == START && status == E_NOMEM));
        assert_true((status == 0) == (why[0] == 0));
        if (s->commands[s->done] == DESTROY && status == 0)
            vms[s->vm] = NULL;
    }
}

static void operator_main(void)
{
    run_script(&scripts[OPERATOR]);
    coroutines[OPERATOR].alive = false;
}

static void other_main(void)
{
    run_script(&scripts[OTHER]);
    coroutines[OTHER].alive = false;
}

static void service_main(void)
{
    service_function(NULL);
}

static void begin_fiber(enum role role, void (*function)(void))
{
    struct coroutine *c = &coroutines[role];
    getcontext(&c->context);
    c->context.uc_stack.ss_sp = c->stack;
    c->context.uc_stack.ss_size = STACK;
    c->context.uc_link = &explorer;
    c->alive = true;
    c->asleep = false;
    makecontext(&c->context, function, 0);
}

static void step_fiber(enum role role)
{
    current = role;
    swapcontext(&explorer, &coroutines[role].context);
    current = FIBERS;
    fake_tsc += 1000;
}

static bool can_step(enum role role)
{
    return coroutines[role].alive && !coroutines[role].asleep;
}

// A vCPU that was told to stop leaves.
static bool step_vcpu(unsigned vm, unsigned i)
{
    if (vms[vm] == NULL || i >= vms[vm]->vcpu_count || !inside[vm][i] ||
        vms[vm]->vcpus[i]->stop == 0)
        return false;
    inside[vm][i] = false;
    return true;
}

// One that runs asks for something, as from an exit. It does not enter the guest again before it
// has looked at `stop`, so it asks for nothing more.
static bool ask(unsigned vm, unsigned i, enum vm_request request)
{
    struct vm *v = vms[vm];
    if (v == NULL || i >= v->vcpu_count || !inside[vm][i])
        return false;
    spin_lock(&v->device_lock);
    if (request == VM_REQUEST_CRASH && v->request == VM_REQUEST_NONE)
        format_text(v->crash, sizeof(v->crash), "crash of vCPU %u", i);
    vm_ask(v, request);
    spin_unlock(&v->device_lock);
    return true;
}

// Everybody takes turns until nothing moves.
static void finish(void)
{
    for (unsigned turn = 0; turn < TURNS_MAX; turn++) {
        bool moved = false;
        for (unsigned vm = 0; vm < VMS; vm++)
            for (unsigned i = 0; i < VCPUS; i++)
                moved |= step_vcpu(vm, i);
        for (unsigned role = 0; role < FIBERS; role++)
            if (can_step(role)) {
                step_fiber(role);
                moved = true;
            }
        if (!moved)
            return;
        fake_tsc += tsc_hz / 1000;
    }
    assert_true(false); // somebody waits for ever
}

// What must hold when nothing moves any more.
static void check_quiet(unsigned n)
{
    struct vm *vm = vms[n];
    assert_true(coroutines[SERVICE].asleep);
    if (vm == NULL)
        return;
    assert_false(vm->busy || vm->load.waits || vm->restarting);
    assert_int_equal(vm->account.held, 0);
    assert_int_equal(vm->request, VM_REQUEST_NONE); // none is forgotten
    bool runs = vm->state == VM_RUNNING;
    for (unsigned i = 0; i < vm->vcpu_count; i++) {
        assert_int_equal(vm->vcpus[i]->stop == 0, runs);
        assert_int_equal(inside[n][i], runs);
    }
    assert_int_equal(vm->clock.frozen, !runs);
    if (vm->state != VM_CRASHED) // which may have failed to begin anew
        assert_int_equal(vm->memory_present, vm->state != VM_STOPPED);
    assert_true(vm->state != VM_CRASHED || vm->crash[0] != 0);
}

static void create(unsigned n)
{
    char why[VM_WHY_MAX];
    struct vm_config config = {
        .memory = 16 * MIB, .cpus = VCPUS, .weight = 100, .affinity = UINT64_MAX, .kernel = "k"};
    strcpy(config.name, names[n]);
    assert_int_equal(vm_create(&config, why), 0);
    vms[n] = vm_acquire(config.name);
    vm_release(vms[n]);
}

static void do_now(unsigned n, enum command command)
{
    scripts[OPERATOR] = (struct script){.commands = {command}, .count = 1, .vm = n};
    begin_fiber(OPERATOR, operator_main);
    finish();
    assert_int_equal(scripts[OPERATOR].status[0], 0);
}

static void bring_to(unsigned n, enum vm_state state)
{
    if (state == VM_STOPPED)
        return;
    do_now(n, START);
    if (state == VM_PAUSED)
        do_now(n, PAUSE);
    if (state == VM_CRASHED) {
        assert_true(ask(n, 1, VM_REQUEST_CRASH));
        finish();
    }
    assert_int_equal(vms[n]->state, state);
}

static void begin_world(void)
{
    fake_machine(0, 1);
    vm_set_platform(&platform);
    vm_set_event_sink(sink);
    start_service(NULL);
    begin_fiber(SERVICE, service_main);
    coroutines[OPERATOR].alive = coroutines[OTHER].alive = false;
    memset(inside, 0, sizeof(inside));
    memset(scripts, 0, sizeof(scripts));
    load_fails = is_short = false;
    image_pages = 1;
    frames_there = PLENTY;
    said[0] = 0;
    objects = 0;
    create(0);
    finish();
}

static void end_world(void)
{
    load_fails = false;
    for (unsigned n = 0; n < VMS; n++)
        if (vms[n] != NULL)
            do_now(n, DESTROY);
    assert_int_equal(objects, 0);
    assert_int_equal(frames_there, PLENTY);
}

// --- Tests ---

// Every command in every state: answer and the state afterwards.
static void every_command_in_every_state(void **state)
{
    (void)state;
    enum { NONE = 99 };
    static const enum vm_state states[] = {VM_STOPPED, VM_RUNNING, VM_PAUSED, VM_CRASHED};
    static const struct {
        int status;
        unsigned after;
    } expected[ARRAY_SIZE(states)][COMMANDS] = {
        [0] = {{0, VM_RUNNING},
               {E_BUSY, VM_STOPPED},
               {E_BUSY, VM_STOPPED},
               {E_BUSY, VM_STOPPED},
               {E_BUSY, VM_STOPPED},
               {E_BUSY, VM_STOPPED},
               {0, NONE}},
        [1] = {{E_BUSY, VM_RUNNING},
               {0, VM_PAUSED},
               {E_BUSY, VM_RUNNING},
               {0, VM_RUNNING},
               {0, VM_RUNNING},
               {0, VM_STOPPED},
               {0, NONE}},
        [2] = {{E_BUSY, VM_PAUSED},
               {E_BUSY, VM_PAUSED},
               {0, VM_RUNNING},
               {0, VM_PAUSED},
               {E_BUSY, VM_PAUSED},
               {0, VM_STOPPED},
               {0, NONE}},
        [3] = {{0, VM_RUNNING},
               {E_BUSY, VM_CRASHED},
               {E_BUSY, VM_CRASHED},
               {0, VM_RUNNING},
               {E_BUSY, VM_CRASHED},
               {0, VM_STOPPED},
               {0, NONE}},
    };
    for (unsigned i = 0; i < ARRAY_SIZE(states); i++)
        for (unsigned c = 0; c < COMMANDS; c++) {
            begin_world();
            bring_to(0, states[i]);
            scripts[OPERATOR] = (struct script){.commands = {(enum command)c}, .count = 1};
            begin_fiber(OPERATOR, operator_main);
            finish();
            assert_int_equal(scripts[OPERATOR].status[0], expected[i][c].status);
            if (expected[i][c].after == NONE)
                assert_null(vms[0]);
            else
                assert_int_equal(vms[0]->state, expected[i][c].after);
            check_quiet(0);
            end_world();
        }
}

// What a guest asks for, while it runs and just before it is paused; also where it cannot be done.
static void every_event(void **state)
{
    (void)state;
    static const enum vm_state after[] = {[VM_REQUEST_RESET] = VM_RUNNING,
                                          [VM_REQUEST_OFF] = VM_STOPPED,
                                          [VM_REQUEST_CRASH] = VM_CRASHED,
                                          [VM_REQUEST_EXIT] = VM_STOPPED};
    for (enum vm_request r = VM_REQUEST_RESET; r <= VM_REQUEST_EXIT; r++)
        for (unsigned paused = 0; paused < 2; paused++)
            for (unsigned fails = 0; fails < 2; fails++) {
                begin_world();
                bring_to(0, VM_RUNNING);
                load_fails = fails != 0;
                if (paused != 0) {
                    // Asked for, but the operator is faster than the service.
                    assert_true(ask(0, 1, r));
                    scripts[OPERATOR] = (struct script){.commands = {PAUSE}, .count = 1};
                    begin_fiber(OPERATOR, operator_main);
                    while (coroutines[OPERATOR].alive) {
                        step_fiber(OPERATOR);
                        for (unsigned i = 0; i < VCPUS; i++)
                            step_vcpu(0, i);
                    }
                    assert_int_equal(vms[0]->state, VM_PAUSED);
                } else {
                    assert_true(ask(0, 1, r));
                }
                finish();
                enum vm_state expected = after[r];
                if (r == VM_REQUEST_RESET)
                    expected = fails != 0 ? VM_CRASHED : paused != 0 ? VM_PAUSED : VM_RUNNING;
                assert_int_equal(vms[0]->state, expected);
                assert_true(said[0] != 0);
                check_quiet(0);
                end_world();
            }
}

// --- All orders ---

#define CHOICES_MAX 16u
static unsigned choices = 4; // explored: each more takes five times as long
static unsigned path[CHOICES_MAX], room[CHOICES_MAX], depth, events_left, frames_left;
static uint64_t histories, waits_seen;

// The next choice among `n`, along the path of this history.
static unsigned choose(unsigned n)
{
    if (depth == choices)
        return UINT32_MAX;
    room[depth] = n;
    return path[depth++];
}

// The next history; false after the last one.
static bool advance(void)
{
    while (depth > 0 && path[depth - 1] + 1 == room[depth - 1])
        depth--;
    if (depth == 0)
        return false;
    path[depth - 1]++;
    for (unsigned i = depth; i < ARRAY_SIZE(path); i++)
        path[i] = 0;
    depth = 0;
    return true;
}

static const enum vm_request requests[] = {VM_REQUEST_RESET, VM_REQUEST_OFF, VM_REQUEST_CRASH};

// One step of one choice; false when the choices are used up, or nothing can move.
static bool choose_step(void)
{
    struct {
        enum { FIBER, LEAVE, ASK, FRAME } kind;
        unsigned who, what;
    } can[32];
    unsigned n = 0;
    for (unsigned role = 0; role < FIBERS; role++)
        if (can_step(role)) {
            can[n].kind = FIBER;
            can[n++].who = role;
        }
    for (unsigned i = 0; i < VCPUS; i++) {
        if (vms[0] == NULL || i >= vms[0]->vcpu_count || !inside[0][i])
            continue;
        if (vms[0]->vcpus[i]->stop != 0) {
            can[n].kind = LEAVE;
            can[n++].who = i;
        }
        for (unsigned r = 0; r < ARRAY_SIZE(requests) && events_left != 0; r++) {
            can[n].kind = ASK;
            can[n].who = i;
            can[n++].what = requests[r];
        }
    }
    if (frames_left != 0)
        can[n++].kind = FRAME;
    unsigned chosen = n == 0 ? UINT32_MAX : choose(n);
    if (chosen == UINT32_MAX)
        return false;
    if (can[chosen].kind == FIBER) {
        step_fiber((enum role)can[chosen].who);
    } else if (can[chosen].kind == LEAVE) {
        step_vcpu(0, can[chosen].who);
    } else if (can[chosen].kind == FRAME) {
        frames_left--;
        frames_there++;
    } else {
        events_left--;
        ask(0, can[chosen].who, (enum vm_request)can[chosen].what);
    }
    return true;
}

// Nothing becomes free for a while: every command ends all the same, and a VM that is to begin anew
// is not lost.
static void check_short(void)
{
    for (unsigned turn = 0; turn < 100; turn++) {
        for (unsigned i = 0; i < VCPUS; i++)
            step_vcpu(0, i);
        for (unsigned role = 0; role < FIBERS; role++)
            if (can_step((enum role)role))
                step_fiber((enum role)role);
        fake_tsc += tsc_hz / 1000;
    }
    assert_false(coroutines[OPERATOR].alive || coroutines[OTHER].alive);
    struct vm *vm = vms[0];
    if (vm == NULL)
        return;
    assert_int_equal(vm->load.waits, vm->restarting);
    assert_int_equal(vm->account.held, 0); // it has taken what it had
    assert_true(!vm->load.waits || vm->state == VM_RUNNING || vm->state == VM_PAUSED);
    waits_seen += vm->load.waits;
    struct vm_info info;
    assert_int_equal(vm_get(names[0], &info), 0);
    if (vm->state == VM_RUNNING)
        assert_int_equal(info.state, vm->load.waits ? VM_WAITING_MEMORY : VM_RUNNING);
    if (vm->load.waits)
        check_out(vm);
}

// All orders of two commands, by one fiber one after the other or by two at once, with events of
// two vCPUs, from every state. If memory is short the VM has what it was loaded into and its new
// kernel is larger; one frame becomes free at some time, and the others in the end.
static void explore(enum vm_state from, enum command a, enum command b, bool at_once, bool little)
{
    memset(path, 0, sizeof(path));
    do {
        begin_world();
        bring_to(0, from);
        depth = 0;
        events_left = little ? 1 : EVENTS_MAX;
        is_short = little;
        frames_left = little;
        uint64_t taken = PLENTY - frames_there;
        if (little) {
            image_pages = 3;
            frames_there = 0;
        }
        scripts[OPERATOR] = (struct script){.commands = {a, b}, .count = at_once ? 1 : 2};
        scripts[OTHER] = (struct script){.commands = {b}, .count = at_once};
        begin_fiber(OPERATOR, operator_main);
        if (at_once)
            begin_fiber(OTHER, other_main);
        while (choose_step())
            ;
        unsigned used = depth;
        if (little) {
            check_short();
            frames_there += PLENTY - taken - 1 + frames_left;
        }
        finish();
        assert_int_equal(scripts[OPERATOR].done, scripts[OPERATOR].count);
        assert_int_equal(scripts[OTHER].done, scripts[OTHER].count);
        check_quiet(0);
        end_world();
        depth = used;
        histories++;
    } while (advance());
}

static void explore_all(bool little)
{
    histories = 0;
    const char *longer = getenv("LIFECYCLE_CHOICES");
    if (longer != NULL)
        choices = (unsigned)MIN(strtoul(longer, NULL, 10), CHOICES_MAX);
    for (enum vm_state from = VM_STOPPED; from <= VM_CRASHED; from++)
        for (unsigned a = 0; a < COMMANDS && from != VM_WAITING_MEMORY; a++)
            for (unsigned b = 0; b < COMMANDS; b++) {
                explore(from, (enum command)a, (enum command)b, false, little);
                if (a <= b)
                    explore(from, (enum command)a, (enum command)b, true, little);
            }
    print_message("%lu histories\n", (unsigned long)histories);
    assert_true(histories > 30000);
}

static void all_orders(void **state)
{
    (void)state;
    explore_all(false);
}

static void all_orders_with_little_memory(void **state)
{
    (void)state;
    waits_seen = 0;
    explore_all(true);
    print_message("%lu of them end with a reset that waits\n", (unsigned long)waits_seen);
    assert_true(waits_seen > 1000);
}

// A guest whose first instruction resets it, always before the operator's fiber looks again: the
// operator gets the VM all the same.
static void a_reset_loop_does_not_keep_the_operator_out(void **state)
{
    (void)state;
    begin_world();
    bring_to(0, VM_RUNNING);
    assert_true(ask(0, 0, VM_REQUEST_RESET));
    step_fiber(SERVICE); // has it
    assert_true(vms[0]->busy);
    scripts[OPERATOR] = (struct script){.commands = {STOP}, .count = 1};
    begin_fiber(OPERATOR, operator_main);
    unsigned rounds = 0;
    while (coroutines[OPERATOR].alive && rounds++ < 1000) {
        // The operator's fiber sleeps for a while between its looks; these are the worst moments:
        // whenever the service has the VM.
        if (can_step(SERVICE))
            step_fiber(SERVICE);
        for (unsigned i = 0; i < VCPUS; i++) {
            if (vms[0] != NULL && inside[0][i] && vms[0]->vcpus[i]->stop == 0)
                ask(0, i, VM_REQUEST_RESET);
            step_vcpu(0, i);
        }
        if (vms[0]->busy || !can_step(SERVICE))
            step_fiber(OPERATOR);
        fake_tsc += tsc_hz / RESETS_PER_SECOND;
    }
    assert_true(rounds < 100);
    finish();
    assert_int_equal(vms[0]->state, VM_STOPPED);
    end_world();
}

// Two VMs: one resets itself over and over, so fast that it asks again before the service looks;
// the other's power-off is done.
static void a_reset_loop_does_not_keep_the_service_from_others(void **state)
{
    (void)state;
    begin_world();
    create(1);
    bring_to(0, VM_RUNNING);
    bring_to(1, VM_RUNNING);
    ask(0, 0, VM_REQUEST_RESET);
    ask(1, 0, VM_REQUEST_OFF);
    asks_at_once = true;
    for (unsigned rounds = 0; rounds < 1000 && vms[1]->state != VM_STOPPED; rounds++) {
        for (unsigned vm = 0; vm < VMS; vm++)
            for (unsigned i = 0; i < VCPUS; i++)
                step_vcpu(vm, i);
        if (can_step(SERVICE))
            step_fiber(SERVICE);
        fake_tsc += tsc_hz / RESETS_PER_SECOND;
    }
    asks_at_once = false;
    assert_int_equal(vms[1]->state, VM_STOPPED);
    finish();
    end_world();
}

// However fast a guest asks, it is reset ten times a second; the operator's resets take no notice.
static void a_guest_is_reset_ten_times_a_second(void **state)
{
    (void)state;
    begin_world();
    bring_to(0, VM_RUNNING);
    uint64_t begin = fake_tsc;
    resets_said = 0;
    asks_at_once = true;
    ask(0, 0, VM_REQUEST_RESET);
    while (fake_tsc - begin < 2 * tsc_hz) {
        for (unsigned i = 0; i < VCPUS; i++)
            step_vcpu(0, i);
        step_fiber(SERVICE);
        fake_tsc += tsc_hz / 1000;
    }
    assert_in_range(resets_said, 18, 21);
    asks_at_once = false;
    begin = fake_tsc;
    for (unsigned i = 0; i < 5; i++)
        do_now(0, RESET);
    assert_true(fake_tsc - begin < tsc_hz / RESETS_PER_SECOND);
    check_quiet(0);
    end_world();
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_command_in_every_state),
        cmocka_unit_test(every_event),
        cmocka_unit_test(all_orders),
        cmocka_unit_test(all_orders_with_little_memory),
        cmocka_unit_test(a_reset_loop_does_not_keep_the_operator_out),
        cmocka_unit_test(a_reset_loop_does_not_keep_the_service_from_others),
        cmocka_unit_test(a_guest_is_reset_ten_times_a_second),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
