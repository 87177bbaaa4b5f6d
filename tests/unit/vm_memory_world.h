// SPDX-License-Identifier: BSD-2-Clause
// A VM's memory over the real EPT, frame allocator and heap of a small machine: the rooms round
// vm/memory.c, faults of the guest, and the identities that hold after every step.
#pragma once

#include "ept_cpus.h"
#include "frames_machine.h"
#include "kernel/error.h"
#include "kernel/heap.h"
#include "kernel/init.h"
#include "kernel/irq.h"
#include "kernel/sched.h"
#include "vm/layout.h"
#include "vm/memory.h"
#include "vm/vm_object.h"

#define MACHINE_FRAMES 8192u // 32 MiB
#define RANGE          (2 * MIB)

// --- The world around vm/memory.c ---

// Init hooks stand in one section in link order, and the test is linked first: the hook behind
// this mark is that of vm/memory.c.
static const struct init_hook hooks_start __attribute__((used, section(".init_hooks"))) = {0};

static struct vm vm, other;
static unsigned yields;
static unsigned fail_at; // the n-th allocation from now fails; 0: none
static bool failed;      // it did
static bool fail_large;  // every 2 MiB block is refused
static unsigned nmi_count;
static void (*nmi_hook)(void);
static void (*private_hook)(void); // once, before the next frame for a guest is allocated

// Nothing was promised here.
void vm_hold_back(struct vm *of)
{
    (void)of;
}

bool vm_overcommits(void)
{
    return true;
}

bool vm_may_grow(struct vm *of)
{
    (void)of;
    return true;
}

int __real_frame_alloc(enum frame_state state, unsigned order, unsigned flags,
                       struct frame_account *account, hfn_t *out);

int __wrap_frame_alloc(enum frame_state state, unsigned order, unsigned flags,
                       struct frame_account *account, hfn_t *out)
{
    if ((fail_large && order == 9) || (fail_at != 0 && --fail_at == 0)) {
        failed = true;
        return E_NOMEM;
    }
    void (*hook)(void) = private_hook;
    if ((state == FRAME_PRIVATE || order == 9) && hook != NULL) {
        private_hook = NULL;
        hook();
    }
    return __real_frame_alloc(state, order, flags, account, out);
}

static void (*yield_hook)(void);

void fiber_yield(void)
{
    assert_true(spin_none_held());
    yields++;
    if (yield_hook != NULL)
        yield_hook();
}

void fiber_give_way(void)
{
    fiber_yield();
}

// CPU 1, when it runs the guest, leaves it for an NMI.
void irq_send_nmi(uint32_t cpu)
{
    assert_int_equal(cpu, 1);
    nmi_count++;
    ept_guest_end(cpu);
    if (nmi_hook != NULL)
        nmi_hook();
}

static uint64_t free_at_start;

static inline void create(struct vm *v, uint64_t id, uint64_t memory, enum vm_large_pages large)
{
    memset(v, 0, sizeof(*v));
    v->id = id;
    v->config.memory = memory;
    v->config.large_pages = large;
    assert_int_equal(vm_memory_create(v), 0);
    assert_true(v->memory_present);
}

static inline void machine(void)
{
    frames_machine(MACHINE_FRAMES, 2);
    heap_init();
    ept_cpus_start();
    yields = 0;
    fail_at = 0;
    failed = false;
    fail_large = false;
    nmi_count = 0;
    nmi_hook = NULL;
    private_hook = NULL;
    fake_irq_on = false;
    memset(&other, 0, sizeof(other));
    free_at_start = free_frames();
}

static inline void start(uint64_t memory, enum vm_large_pages large)
{
    machine();
    create(&vm, 7, memory, large);
}

struct tally {
    struct vm *vm;
    uint64_t pages;
    uint64_t large;
};

static inline void tally_leaf(void *context, gfn_t gfn, struct ept_leaf leaf)
{
    struct tally *t = context;
    uint64_t pages = leaf.level == EPT_4K ? 1 : 512;
    assert_in_range(leaf.level, EPT_4K, EPT_2M);
    assert_int_equal(leaf.kind, EPT_KIND_PRIVATE);
    t->pages += pages;
    t->large += leaf.level == EPT_2M;
    for (uint64_t i = 0; i < pages; i++) {
        struct frame *f = frame_of(hfn(leaf.frame.raw + i));
        assert_non_null(f);
        assert_int_equal(f->state, FRAME_PRIVATE);
        assert_true(f->owner == t->vm->id);
        assert_true(f->gfn == gfn.raw + i);
        assert_int_not_equal(vm_area_of(t->vm, (gfn_t){gfn.raw + i}), VM_AREA_NONE);
    }
}

static inline struct tally count_leaves(struct vm *v)
{
    struct tally t = {.vm = v};
    gfn_t next = {0};
    while (ept_for_each(&v->ept, &next, 1000, tally_leaf, &t) == E_AGAIN)
        ;
    return t;
}

// The identities of design section 7, between the frame table, the accounts and the EPTs.
static inline void check(void)
{
    struct vm *const vms[] = {&vm, &other};
    struct frame_account *const accounts[] = {&vm.account, &other.account};
    uint64_t private_frames[2], shared[2], tables = 0, all_private = 0, sum = 0;
    struct frames_snapshot s;
    frames_snapshot(&s, accounts, 2, private_frames, shared);
    for (unsigned i = 0; i < 2; i++) {
        assert_int_equal(shared[i], 0);
        if (vms[i]->memory_present) {
            struct tally t = count_leaves(vms[i]);
            assert_int_equal(t.pages, private_frames[i]);
            assert_int_equal(t.large, vms[i]->ept.large_leaves);
            tables += vms[i]->ept.table_frames;
        } else {
            assert_int_equal(private_frames[i], 0);
        }
        all_private += private_frames[i];
    }
    assert_int_equal(all_private, s.count[FRAME_PRIVATE]);
    assert_int_equal(tables, s.count[FRAME_TABLE]);
    assert_int_equal(s.count[FRAME_SHARED], 0);
    for (unsigned i = FRAME_FREE; i < FRAME_STATES; i++)
        sum += s.count[i];
    assert_int_equal(sum, s.total);
    assert_int_equal(s.total, MACHINE_FRAMES - 1);
    assert_true(spin_none_held());
}

static inline void finish(void)
{
    check();
    vm_memory_destroy(&vm);
    vm_memory_destroy(&other);
    assert_null(vm.touched);
    assert_false(vm.memory_present);
    check();
    assert_int_equal(free_frames(), free_at_start);
}

enum access { READ = EPT_READ, WRITE = EPT_WRITE, FETCH = EPT_EXECUTE };

static inline struct ept_leaf leaf_at(uint64_t address)
{
    return ept_lookup(&vm.ept, gpa_to_gfn(gpa(address)));
}

static inline enum ept_fault_result fault_with(uint64_t address, enum access access,
                                               struct ept_leaf leaf)
{
    struct ept_fault fault = {
        .address = gpa(address),
        .read = access == READ,
        .write = access == WRITE,
        .fetch = access == FETCH,
        .leaf = leaf,
    };
    return ept_run_fault_hooks(&vm, &fault);
}

static inline enum ept_fault_result fault(uint64_t address, enum access access)
{
    return fault_with(address, access, leaf_at(address));
}

static inline void touch(uint64_t address)
{
    assert_int_equal(fault(address, WRITE), EPT_FAULT_RETRY);
}

static inline bool is_all(const void *p, uint8_t byte, size_t size)
{
    const uint8_t *b = p;
    for (size_t i = 0; i < size; i++)
        if (b[i] != byte)
            return false;
    return true;
}

// The page as the guest sees it.
static inline uint8_t *page(uint64_t address)
{
    struct ept_leaf leaf = leaf_at(address);
    assert_true(leaf.present);
    return hfn_to_pointer(leaf.frame);
}

// Touches `count` pages of the range at `base` in a scattered order, each with its own contents.
static inline uint64_t scattered(uint64_t base, unsigned i)
{
    return base + i * 37 % 512 * PAGE_SIZE;
}

static inline void fill(uint64_t base, unsigned from, unsigned to)
{
    for (unsigned i = from; i < to; i++) {
        uint64_t address = scattered(base, i);
        touch(address);
        uint64_t word = ~address;
        memcpy(page(address) + i % 500 * 8, &word, 8);
    }
}

static inline void check_filled(uint64_t base, unsigned count)
{
    for (unsigned i = 0; i < 512; i++) {
        uint64_t address = scattered(base, i);
        uint8_t contents[PAGE_SIZE], expected[PAGE_SIZE] = {0};
        if (i < count) {
            uint64_t word = ~address;
            memcpy(expected + i % 500 * 8, &word, 8);
        }
        assert_int_equal(guest_read(&vm, gpa(address), contents, PAGE_SIZE), 0);
        assert_memory_equal(contents, expected, PAGE_SIZE);
    }
}

// --- For main() ---

static inline int register_hook(void **state)
{
    (void)state;
    const struct init_hook *hook = &hooks_start;
    __asm__("" : "+r"(hook)); // the compiler need not know that more follows
    hook++;
    return hook->level == INIT_VM && hook->function != NULL ? hook->function(NULL) : -1;
}

static inline int release(void **state)
{
    (void)state;
    frames_machine_end();
    fake_machine(0, 1);
    return 0;
}
