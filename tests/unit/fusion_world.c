// SPDX-License-Identifier: BSD-2-Clause
#include "fusion_world.h"

#include <arch/ept.h>

#include "ept_cpus.h"
#include "fake/random.h"
#include "kernel/heap.h"
#include "kernel/init.h"
#include "kernel/irq.h"
#include "kernel/sched.h"
#include "vm/layout.h"

#define ORDERS 16u

// Init hooks stand in one section in link order, and this file is linked before vm/memory.c: the
// hook behind this mark is that of vm/memory.c.
static const struct init_hook hooks_start __attribute__((used, section(".init_hooks"))) = {0};

struct world world;
uint64_t world_late_frames;

static struct frame *table;
static jmp_buf served;
static bool hooks_are_set;
static bool in_action;

static struct {
    enum world_point point;
    unsigned left;
    unsigned cpu;
    void (*action)(void);
} orders[ORDERS];

// --- Points ---

static void pass(enum world_point point)
{
    if (world.step != NULL) {
        world.step(point);
        return;
    }
    if (in_action)
        return;
    for (unsigned i = 0; i < ORDERS; i++) {
        if (orders[i].action == NULL || orders[i].point != point || --orders[i].left != 0)
            continue;
        void (*action)(void) = orders[i].action;
        orders[i].action = NULL;
        in_action = true;
        unsigned before = cpu_index();
        assert_int_not_equal(before, orders[i].cpu);
        world_use(orders[i].cpu);
        action();
        fake_set_cpu(before);
        in_action = false;
    }
}

void world_at(enum world_point point, unsigned n, unsigned cpu, void (*action)(void))
{
    for (unsigned i = 0; i < ORDERS; i++) {
        if (orders[i].action == NULL) {
            orders[i].point = point;
            orders[i].left = n;
            orders[i].cpu = cpu;
            orders[i].action = action;
            return;
        }
    }
    fail_msg("too many orders");
}

unsigned world_pending(void)
{
    unsigned n = 0;
    for (unsigned i = 0; i < ORDERS; i++) {
        n += orders[i].action != NULL;
        orders[i].action = NULL;
    }
    return n;
}

// Waiting in vain: in a test with one thread, whoever holds the lock will never give it back.
static void relax(void)
{
    static unsigned turns;
    if (world.step != NULL) {
        world.step(POINT_RELAX);
        return;
    }
    if (++turns > 100000)
        fail_msg("this CPU waits for ever");
    fake_tsc += 10;
}

void __real_ept_shootdown(struct ept *ept);
void __wrap_ept_shootdown(struct ept *ept);
void __wrap_ept_shootdown(struct ept *ept)
{
    pass(POINT_SHOOTDOWN);
    world.shootdowns++;
    if (world.skip != 0 && --world.skip == 0)
        world.skipped++;
    else
        __real_ept_shootdown(ept);
    pass(POINT_SHOT);
}

static void pass_lock(const struct spinlock *lock)
{
    if (lock->rank == RANK_GFN)
        pass(POINT_GFN_LOCK);
    else if (lock->rank == RANK_BUCKET)
        pass(POINT_BUCKET_LOCK);
}

void __real_spin_lock(struct spinlock *lock);
void __wrap_spin_lock(struct spinlock *lock);
void __wrap_spin_lock(struct spinlock *lock)
{
    pass_lock(lock);
    __real_spin_lock(lock);
}

void __real_spin_lock_nested(struct spinlock *lock);
void __wrap_spin_lock_nested(struct spinlock *lock);
void __wrap_spin_lock_nested(struct spinlock *lock)
{
    if (world.step != NULL)
        pass_lock(lock);
    __real_spin_lock_nested(lock);
}

struct ept_leaf __real_ept_lookup(struct ept *ept, gfn_t gfn);
struct ept_leaf __wrap_ept_lookup(struct ept *ept, gfn_t gfn);
struct ept_leaf __wrap_ept_lookup(struct ept *ept, gfn_t gfn)
{
    pass(POINT_LOOKUP);
    struct ept_leaf leaf = __real_ept_lookup(ept, gfn);
    pass(POINT_LOOKED);
    return leaf;
}

static bool fails(void)
{
    if (world.fail_at == 0 || --world.fail_at != 0)
        return false;
    world.failed = true;
    return true;
}

int __real_frame_alloc(enum frame_state state, unsigned order, unsigned flags,
                       struct frame_account *account, hfn_t *out);
int __wrap_frame_alloc(enum frame_state state, unsigned order, unsigned flags,
                       struct frame_account *account, hfn_t *out);
int __wrap_frame_alloc(enum frame_state state, unsigned order, unsigned flags,
                       struct frame_account *account, hfn_t *out)
{
    pass(POINT_ALLOC);
    return fails() ? E_NOMEM : __real_frame_alloc(state, order, flags, account, out);
}

void *__real_heap_alloc(size_t size);
void *__wrap_heap_alloc(size_t size);
void *__wrap_heap_alloc(size_t size)
{
    return fails() ? NULL : __real_heap_alloc(size);
}

static uint64_t hash(const void *page)
{
    pass(POINT_HASH);
    return page_ops_general.hash(page) & world.hash_mask;
}

static bool equal(const void *a, const void *b)
{
    pass(POINT_EQUAL);
    world.compares++;
    return page_ops_general.equal(a, b);
}

static void copy(void *to, const void *from)
{
    page_ops_general.copy(to, from);
}

static bool in_batch[WORLD_CPUS];
static const struct page_ops ops = {hash, equal, copy, "test"};

const struct page_ops *__wrap_page_ops_begin(void);
const struct page_ops *__wrap_page_ops_begin(void)
{
    assert_false(in_batch[cpu_index()]);
    in_batch[cpu_index()] = true;
    return &ops;
}

void __wrap_page_ops_end(void);
void __wrap_page_ops_end(void)
{
    assert_true(in_batch[cpu_index()]);
    in_batch[cpu_index()] = false;
}

// --- What the lower rooms want ---

const struct page_ops page_ops_avx2;

void irq_send_nmi(uint32_t cpu)
{
    if (world.coroutines)
        world.cpu[cpu].nmi = true;
    else
        world_leave(cpu);
}

void fiber_yield(void)
{
    assert_true(spin_none_held());
    assert_false(in_batch[cpu_index()]);
    world.yields++;
    pass(POINT_YIELD);
}

void fiber_give_way_if_due(void)
{
    fiber_yield();
}

void fiber_give_way(void)
{
    fiber_yield();
}

struct fiber *fiber_create(const char *name, void (*function)(void *), void *argument)
{
    (void)name;
    assert_null(argument);
    if (fails())
        return NULL;
    world.serve = function;
    return (struct fiber *)&world;
}

void fiber_wake(struct fiber *f)
{
    assert_ptr_equal(f, &world);
}

void fiber_sleep_until(uint64_t deadline)
{
    assert_true(spin_none_held());
    assert_true(deadline > fake_tsc);
    if (world.sleep != NULL)
        world.sleep();
    else
        longjmp(served, 1);
}

void service_round(void)
{
    fake_tsc += SECOND;
    world_leave(cpu_index());
    if (setjmp(served) == 0)
        world.serve(NULL);
    world_check();
}

struct vm *vm_acquire(const char *name)
{
    for (unsigned i = 0; i < WORLD_VMS; i++)
        if (world.vm[i].id != 0 && strcmp(world.vm[i].config.name, name) == 0)
            return &world.vm[i];
    return NULL;
}

void vm_release(struct vm *vm)
{
    (void)vm;
}

void vm_for_each(void (*visit)(struct vm *vm, void *context), void *context)
{
    for (unsigned i = 0; i < WORLD_VMS; i++)
        if (world.vm[i].id != 0)
            visit(&world.vm[i], context);
}

bool vm_waits_for_memory(const struct vm *vm)
{
    (void)vm;
    return false;
}

void vm_event(const char *format, ...)
{
    fail_msg("an event: %s", format); // no vCPU waits here
}

static void set_doorbell(struct vm *vm, bool ringing)
{
    assert_false(spin_none_held());
    world.doorbell[vm - world.vm] = ringing;
}

static const struct vm_platform_ops platform = {.set_doorbell = set_doorbell};
const struct vm_platform_ops *vm_platform = &platform;

// --- The machine and its VMs ---

struct frames_snapshot world_snapshot(void)
{
    struct frames_snapshot s;
    frames_snapshot(&s, NULL, 0, NULL, NULL);
    return s;
}

static void drop_model(unsigned n)
{
    for (unsigned i = 0; i < WORLD_GFNS; i++) {
        free(world.model[n][i]);
        world.model[n][i] = NULL;
    }
}

void world_start(uint64_t frames)
{
    frames = frames == 0 ? 4096 : frames;
    hpa_t end = hpa((frames + world_late_frames) * PAGE_SIZE);
    fake_machine(end.raw, WORLD_CPUS);
    free(table);
    table = calloc(1, frames_table_bytes(end));
    assert_non_null(table);
    frames_init(table, end);
    frames_set_reserve(0);
    frames_add(hfn(1), frames - 1, FRAME_FREE);
    heap_init();
    ept_cpus_start();
    for (unsigned n = 0; n < WORLD_VMS; n++)
        drop_model(n);
    memset(&world, 0, sizeof(world));
    for (unsigned i = 0; i < WORLD_CPUS; i++)
        world.cpu[i].vm = NOBODY;
    world.hash_mask = UINT64_MAX;
    world.next_id = 100;
    memset(orders, 0, sizeof(orders));
    memset(in_batch, 0, sizeof(in_batch));
    in_action = false;
    fake_invept_hook = world_invept;
    fake_relax_hook = relax;
    fake_irq_on = false;
    fake_tsc = 1000 * SECOND;
    fusion_sharers_max = FRAME_COUNT_MAX;
    vm_set_overcommit(true);

    // As fusion/start.c does; hooks can be registered once only.
    page_ops_init(random64);
    memset(fusion_vms, 0, sizeof(fusion_vms));
    assert_int_equal(index_init(frames), 0);
    if (!hooks_are_set) {
        const struct init_hook *hook = &hooks_start;
        __asm__("" : "+r"(hook)); // the compiler need not know that more follows
        hook++;
        assert_int_equal(hook->level, INIT_VM);
        assert_int_equal(hook->function(NULL), 0);
        vm_set_memory_ops(&fusion_memory_ops);
        assert_int_equal(split_init(), 0);
        hooks_are_set = true;
    }
    assert_int_equal(service_init(), 0);
    // The heap keeps its first slabs.
    heap_free(__real_heap_alloc(64));
    world.fusor_at_start = world_snapshot().count[FRAME_FUSOR];
    world.free_at_start = world_snapshot().count[FRAME_FREE];
}

void world_configure(unsigned n, uint64_t memory, const char *group)
{
    struct vm *vm = &world.vm[n];
    memset(vm, 0, sizeof(*vm));
    vm->id = world.next_id++;
    vm->config.memory = memory;
    vm->config.page_fusion = true;
    vm->config.large_pages = VM_LARGE_AUTO;
    vm->config.cpus = 2;
    vm->vcpu_count = 2;
    strcpy(vm->config.fusion_group, group);
    vm->config.name[0] = (char)('a' + n);
    assert_true(memory / PAGE_SIZE <= WORLD_GFNS);
}

int world_create(unsigned n)
{
    return vm_memory_create(&world.vm[n]);
}

void world_vm(unsigned n, uint64_t memory, const char *group)
{
    world_configure(n, memory, group);
    assert_int_equal(world_create(n), 0);
    world_check();
}

void world_vms(unsigned count)
{
    for (unsigned n = 0; n < count; n++)
        world_vm(n, 4 * MIB, "all");
}

void world_end_vm(unsigned n, bool forget)
{
    struct vm *vm = &world.vm[n];
    for (unsigned cpu = 0; cpu < WORLD_CPUS; cpu++)
        if (world.cpu[cpu].vm == n)
            world_leave(cpu);
    world_leave(cpu_index());
    vm_memory_destroy(vm);
    drop_model(n);
    if (forget) {
        fusion_memory_ops.forget(vm);
        vm->id = 0;
    }
}

void world_reset(unsigned n)
{
    world_end_vm(n, false);
    world_check();
    assert_int_equal(world_create(n), 0);
    world_check();
}

void world_finish(void)
{
    assert_int_equal(world_pending(), 0);
    for (unsigned n = 0; n < WORLD_VMS; n++) {
        if (world.vm[n].id == 0)
            continue;
        world_end_vm(n, true);
        world_check();
    }
    struct frames_snapshot s = world_snapshot();
    assert_int_equal(s.count[FRAME_SHARED] + s.count[FRAME_PRIVATE] + s.count[FRAME_TABLE], 0);
    struct index_counts counts;
    index_count(&counts);
    assert_int_equal(counts.shared, 0);
    // An empty slab of each size stays with the heap.
    assert_in_range(s.count[FRAME_FUSOR], world.fusor_at_start, world.fusor_at_start + 12);
    index_exit();
    fusion_sharers_max = FRAME_COUNT_MAX;
}

static hfn_t *starved;
static uint64_t starved_count;

void world_starve(uint64_t left)
{
    hfn_t f;
    if (starved == NULL)
        starved = calloc(65536, sizeof(*starved));
    while (world_snapshot().count[FRAME_FREE] > left &&
           __real_frame_alloc(FRAME_FUSOR, 0, FRAME_RESERVE, NULL, &f) == 0)
        starved[starved_count++] = f;
}

void world_feed(void)
{
    while (starved_count != 0)
        frame_free(starved[--starved_count], 0, NULL);
    free(starved);
    starved = NULL;
}

// --- Hints and switches ---

int64_t hint_many(unsigned n, const uint64_t *gfns, unsigned count)
{
    uint64_t entries[FUSOR_LIST_MAX];
    for (unsigned i = 0; i < count; i++)
        entries[i] = FUSOR_ENTRY(gfns[i], FUSOR_CLASS_CACHE, 0);
    world_use(0);
    int64_t done = fusion_hint(&world.vm[n], entries, count);
    world_check();
    return done;
}

int64_t hint_entry(unsigned n, uint64_t entry)
{
    world_use(0);
    int64_t done = fusion_hint(&world.vm[n], &entry, 1);
    world_check();
    return done;
}

int64_t hint(unsigned n, uint64_t gfn)
{
    return hint_entry(n, FUSOR_ENTRY(gfn, FUSOR_CLASS_CACHE, 0));
}

int64_t hint_range(unsigned n, uint64_t gfn)
{
    return hint_entry(n, FUSOR_ENTRY(gfn, FUSOR_CLASS_KERNEL, 9));
}

static void switch_fusion(unsigned n, bool on)
{
    char why[VM_WHY_MAX];
    world_use(0);
    assert_int_equal(fusion_switch(world.vm[n].config.name, on, why), 0);
    world_check();
}

void fusion_off(unsigned n)
{
    switch_fusion(n, false);
}

void fusion_on(unsigned n)
{
    switch_fusion(n, true);
}

// --- Looking ---

struct ept_leaf leaf_of(unsigned n, uint64_t gfn)
{
    return __real_ept_lookup(&world.vm[n].ept, (gfn_t){gfn});
}

bool is_shared(unsigned n, uint64_t gfn)
{
    struct ept_leaf leaf = leaf_of(n, gfn);
    return leaf.present && leaf.kind == EPT_KIND_SHARED;
}

unsigned sharers_of(unsigned n, uint64_t gfn)
{
    return is_shared(n, gfn) ? frame_of(leaf_of(n, gfn).frame)->count : 0;
}

bool same_frame(unsigned a, uint64_t a_gfn, unsigned b, uint64_t b_gfn)
{
    struct ept_leaf x = leaf_of(a, a_gfn), y = leaf_of(b, b_gfn);
    return x.present && y.present && x.frame.raw == y.frame.raw;
}

uint64_t rejected(unsigned n, enum fusion_reject why)
{
    return figure(&world_fusion(n)->count.rejected[why]);
}
