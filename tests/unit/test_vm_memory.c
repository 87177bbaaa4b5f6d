// SPDX-License-Identifier: BSD-2-Clause
// A VM's memory over the real EPT, frame allocator and heap of a small machine: first touch, access
// by Fusor, promotion, large pages, the end; and what happens when any single allocation fails.

// sources: vm/memory.c vm/ballooned.c vm/reserve.c ept/walk.c ept/map.c ept/large.c ept/destroy.c
// sources: ept/shootdown.c ept/fault.c kernel/frames.c kernel/frame_buddy.c kernel/frame_cache.c
// sources: kernel/frame_zero.c kernel/frame_poison.c kernel/frame_share.c kernel/frame_account.c
// sources: kernel/heap.c kernel/lock.c kernel/frame_hold.c
// libs: -Wl,--wrap=frame_alloc
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include <arch/ept.h>

#include "fake.h"
#include "kernel/error.h"
#include "kernel/frames.h"
#include "kernel/heap.h"
#include "kernel/init.h"
#include "kernel/irq.h"
#include "kernel/memory.h"
#include "kernel/sched.h"
#include "vm/layout.h"
#include "vm/memory.h"
#include "vm/vm_object.h"

#define MACHINE_FRAMES 8192u // 32 MiB
#define RANGE          (2 * MIB)

// --- The world around vm/memory.c ---

// Init hooks stand in one section in link order, and this file is linked first: the hook behind
// this mark is that of vm/memory.c.
static const struct init_hook hooks_start __attribute__((used, section(".init_hooks"))) = {0};

static struct frame *table;
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

static struct frames_snapshot snapshot(void)
{
    struct frames_snapshot s;
    frames_snapshot(&s, NULL, 0, NULL, NULL);
    return s;
}

static uint64_t free_frames(void)
{
    return snapshot().count[FRAME_FREE];
}

static uint64_t free_at_start;

static void create(struct vm *v, uint64_t id, uint64_t memory, enum vm_large_pages large)
{
    memset(v, 0, sizeof(*v));
    v->id = id;
    v->config.memory = memory;
    v->config.large_pages = large;
    assert_int_equal(vm_memory_create(v), 0);
    assert_true(v->memory_present);
}

static void machine(void)
{
    fake_machine(MACHINE_FRAMES * PAGE_SIZE, 2);
    hpa_t end = hpa(MACHINE_FRAMES * PAGE_SIZE);
    free(table);
    table = calloc(1, frames_table_bytes(end));
    assert_non_null(table);
    frames_init(table, end);
    frames_add(hfn(1), MACHINE_FRAMES - 1, FRAME_FREE);
    heap_init();
    memset(ept_cpus, 0, sizeof(ept_cpus));
    ept_features = (struct ept_features){
        .page_2m = true,
        .page_1g = true,
        .accessed_dirty = true,
        .execute_only = true,
        .invept_single = true,
        .invept_all = true,
        .large_executable_safe = true,
    };
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

static void start(uint64_t memory, enum vm_large_pages large)
{
    machine();
    create(&vm, 7, memory, large);
}

struct tally {
    struct vm *vm;
    uint64_t pages;
    uint64_t large;
};

static void tally_leaf(void *context, gfn_t gfn, struct ept_leaf leaf)
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

static struct tally count_leaves(struct vm *v)
{
    struct tally t = {.vm = v};
    gfn_t next = {0};
    while (ept_for_each(&v->ept, &next, 1000, tally_leaf, &t) == E_AGAIN)
        ;
    return t;
}

// The identities of design section 7, between the frame table, the accounts and the EPTs.
static void check(void)
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

static void finish(void)
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

static struct ept_leaf leaf_at(uint64_t address)
{
    return ept_lookup(&vm.ept, gpa_to_gfn(gpa(address)));
}

static enum ept_fault_result fault_with(uint64_t address, enum access access, struct ept_leaf leaf)
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

static enum ept_fault_result fault(uint64_t address, enum access access)
{
    return fault_with(address, access, leaf_at(address));
}

static void touch(uint64_t address)
{
    assert_int_equal(fault(address, WRITE), EPT_FAULT_RETRY);
}

static bool is_all(const void *p, uint8_t byte, size_t size)
{
    const uint8_t *b = p;
    for (size_t i = 0; i < size; i++)
        if (b[i] != byte)
            return false;
    return true;
}

// The page as the guest sees it.
static uint8_t *page(uint64_t address)
{
    struct ept_leaf leaf = leaf_at(address);
    assert_true(leaf.present);
    return hfn_to_pointer(leaf.frame);
}

// --- Layout ---

static void test_areas(void **state)
{
    (void)state;
    static const struct {
        uint64_t memory, address;
        enum vm_area area;
    } cases[] = {
        {8 * MIB, 0, VM_AREA_RAM},
        {8 * MIB, 0x9f000, VM_AREA_RAM},
        {8 * MIB, 0xa0000, VM_AREA_NONE},
        {8 * MIB, 0xdf000, VM_AREA_NONE},
        {8 * MIB, 0xe0000, VM_AREA_ROM},
        {8 * MIB, 0xff000, VM_AREA_ROM},
        {8 * MIB, 0x100000, VM_AREA_RAM},
        {8 * MIB, 8 * MIB - PAGE_SIZE, VM_AREA_RAM},
        {8 * MIB, 8 * MIB, VM_AREA_NONE},
        {8 * MIB, 3 * GIB, VM_AREA_NONE},
        {8 * MIB, 4 * GIB, VM_AREA_NONE},
        {512 * KIB, 512 * KIB - PAGE_SIZE, VM_AREA_RAM},
        {512 * KIB, 512 * KIB, VM_AREA_NONE},
        {512 * KIB, 0xe0000, VM_AREA_ROM},
        {512 * KIB, 0x100000, VM_AREA_NONE},
        {3 * GIB, 3 * GIB - PAGE_SIZE, VM_AREA_RAM},
        {3 * GIB, 3 * GIB, VM_AREA_NONE},
        {3 * GIB, 4 * GIB, VM_AREA_NONE},
        {5 * GIB, 3 * GIB - PAGE_SIZE, VM_AREA_RAM},
        {5 * GIB, 3 * GIB, VM_AREA_NONE},
        {5 * GIB, 0xfec00000, VM_AREA_NONE},
        {5 * GIB, 0xfee00000, VM_AREA_NONE},
        {5 * GIB, 4 * GIB - PAGE_SIZE, VM_AREA_NONE},
        {5 * GIB, 4 * GIB, VM_AREA_RAM},
        {5 * GIB, 6 * GIB - PAGE_SIZE, VM_AREA_RAM},
        {5 * GIB, 6 * GIB, VM_AREA_NONE},
        {3 * GIB + PAGE_SIZE, 4 * GIB, VM_AREA_RAM},
        {3 * GIB + PAGE_SIZE, 4 * GIB + PAGE_SIZE, VM_AREA_NONE},
        {5 * GIB, UINT64_MAX & ~PAGE_MASK, VM_AREA_NONE},
    };
    for (unsigned i = 0; i < ARRAY_SIZE(cases); i++) {
        vm.config.memory = cases[i].memory;
        enum vm_area area = vm_area_of(&vm, gpa_to_gfn(gpa(cases[i].address)));
        if (area != cases[i].area)
            fail_msg("case %u: area %d", i, (int)area);
    }
}

// Every page of RAM is exactly memory's worth, less the hole below 1 MiB.
static void test_ram_adds_up(void **state)
{
    (void)state;
    static const uint64_t sizes[] = {8 * MIB, 3 * GIB, 3 * GIB + 12 * KIB, 4 * GIB, 5 * GIB};
    for (unsigned i = 0; i < ARRAY_SIZE(sizes); i++) {
        vm.config.memory = sizes[i];
        uint64_t ram = 0;
        for (uint64_t n = 0; n < 8 * GIB / PAGE_SIZE; n++)
            ram += vm_area_of(&vm, (gfn_t){n}) == VM_AREA_RAM;
        assert_int_equal(ram, (sizes[i] - (LAYOUT_HIGH - LAYOUT_LOW_END)) / PAGE_SIZE);
    }
}

// --- First touch ---

static void test_first_touch(void **state)
{
    (void)state;
    static const enum access kinds[] = {READ, WRITE, FETCH};
    start(5 * GIB, VM_LARGE_AUTO);
    static const uint64_t addresses[] = {0,           0x9ffff,     0x100000,       5 * MIB + 123,
                                         3 * GIB - 1, 4 * GIB + 1, 6 * GIB - 4096, 2 * GIB};
    uint64_t populated = 0;
    for (unsigned i = 0; i < ARRAY_SIZE(addresses); i++) {
        assert_false(leaf_at(addresses[i]).present);
        assert_int_equal(fault(addresses[i], kinds[i % 3]), EPT_FAULT_RETRY);
        struct ept_leaf leaf = leaf_at(addresses[i]);
        assert_true(leaf.present);
        assert_int_equal(leaf.level, EPT_4K);
        assert_int_equal(leaf.permissions, EPT_RWX);
        assert_true(is_all(hfn_to_pointer(leaf.frame), 0, PAGE_SIZE));
        assert_int_equal(vm.account.private_frames, ++populated);
        check();
        // Faults that come late (another CPU was faster) find it done and change nothing.
        for (unsigned k = 0; k < 3; k++)
            assert_int_equal(fault(addresses[i], kinds[k]), EPT_FAULT_RETRY);
        assert_int_equal(fault_with(addresses[i], WRITE, (struct ept_leaf){.level = EPT_4K}),
                         EPT_FAULT_RETRY);
        assert_true(leaf_at(addresses[i]).frame.raw == leaf.frame.raw);
        assert_int_equal(vm.account.private_frames, populated);
    }
    finish();
}

static void test_holes(void **state)
{
    (void)state;
    start(5 * GIB, VM_LARGE_EAGER);
    static const uint64_t addresses[] = {0xa0000, 0xb8000,           0xdffff,
                                         3 * GIB, LAYOUT_IOAPIC,     LAYOUT_LAPIC,
                                         6 * GIB, UINT64_C(1) << 47, UINT64_C(1) << 51};
    struct frames_snapshot before = snapshot(), after;
    for (unsigned i = 0; i < ARRAY_SIZE(addresses); i++) {
        assert_int_equal(fault(addresses[i], READ), EPT_FAULT_EMULATE);
        assert_int_equal(fault(addresses[i], WRITE), EPT_FAULT_EMULATE);
    }
    after = snapshot();
    assert_memory_equal(&before, &after, sizeof(before));
    assert_int_equal(vm.rom_writes, 0);
    finish();
}

static void test_rom(void **state)
{
    (void)state;
    start(8 * MIB, VM_LARGE_EAGER);
    // A write before the first touch populates nothing.
    assert_int_equal(fault(LAYOUT_ROM, WRITE), EPT_FAULT_EMULATE);
    assert_int_equal(vm.rom_writes, 1);
    assert_false(leaf_at(LAYOUT_ROM).present);
    assert_int_equal(fault(LAYOUT_ROM, READ), EPT_FAULT_RETRY);
    assert_int_equal(leaf_at(LAYOUT_ROM).permissions, EPT_READ | EPT_EXECUTE);
    assert_int_equal(leaf_at(LAYOUT_ROM).level, EPT_4K);
    assert_int_equal(fault(LAYOUT_ROM, WRITE), EPT_FAULT_EMULATE);
    assert_int_equal(vm.rom_writes, 2);
    assert_int_equal(fault(LAYOUT_ROM, FETCH), EPT_FAULT_RETRY);
    assert_int_equal(leaf_at(LAYOUT_ROM).permissions, EPT_READ | EPT_EXECUTE);
    // Fusor itself may write it, and the guest still may not.
    static const char text[] = "RSD PTR ";
    char back[sizeof(text)];
    uint64_t last = LAYOUT_ROM_END - PAGE_SIZE;
    assert_int_equal(guest_write(&vm, gpa(LAYOUT_ROM + 100), text, sizeof(text)), 0);
    assert_int_equal(guest_write(&vm, gpa(last), text, sizeof(text)), 0);
    assert_int_equal(leaf_at(last).permissions, EPT_READ | EPT_EXECUTE);
    assert_int_equal(guest_read(&vm, gpa(LAYOUT_ROM + 100), back, sizeof(back)), 0);
    assert_string_equal(back, text);
    assert_string_equal((char *)page(last), text);
    assert_int_equal(vm.account.private_frames, 2);
    finish();
}

static void test_permission_that_nobody_gives(void **state)
{
    (void)state;
    start(8 * MIB, VM_LARGE_AUTO);
    touch(MIB);
    ept_lock_gfn(&vm.ept, gfn(256));
    assert_int_equal(ept_protect(&vm.ept, gfn(256), EPT_READ, EPT_KIND_PRIVATE), 0);
    ept_unlock_gfn(&vm.ept, gfn(256));
    assert_int_equal(fault(MIB, READ), EPT_FAULT_RETRY);
    assert_int_equal(fault(MIB, WRITE), EPT_FAULT_UNHANDLED);
    assert_int_equal(fault(MIB, FETCH), EPT_FAULT_UNHANDLED);
    assert_int_equal(leaf_at(MIB).permissions, EPT_READ);
    finish();
}

// Each allocation of a first touch: three tables and the page.
static void test_first_touch_without_frames(void **state)
{
    (void)state;
    for (unsigned n = 1; n <= 5; n++) {
        start(8 * MIB, VM_LARGE_AUTO);
        fail_at = n;
        enum ept_fault_result result = fault(5 * MIB, WRITE);
        assert_int_equal(failed, n <= 4);
        assert_int_equal(result, failed ? EPT_FAULT_WAIT : EPT_FAULT_RETRY);
        assert_int_equal(leaf_at(5 * MIB).present, !failed);
        assert_int_equal(vm.account.private_frames, failed ? 0 : 1);
        check();
        fail_at = 0;
        touch(5 * MIB); // the same access again, when there is memory
        assert_true(is_all(page(5 * MIB), 0, PAGE_SIZE));
        assert_int_equal(vm.account.private_frames, 1);
        finish();
    }
}

static void test_machine_is_full(void **state)
{
    (void)state;
    start(8 * MIB, VM_LARGE_EAGER);
    touch(0);
    static hfn_t taken[MACHINE_FRAMES];
    unsigned count = 0;
    while (frame_alloc(FRAME_FUSOR, 0, 0, NULL, &taken[count]) == 0)
        count++;
    assert_int_equal(free_frames(), 0);
    struct frames_snapshot before = snapshot(), after;
    for (unsigned i = 0; i < 10; i++) {
        assert_int_equal(fault(0x1000, WRITE), EPT_FAULT_WAIT);
        assert_int_equal(fault(5 * MIB, WRITE), EPT_FAULT_WAIT);
        uint32_t word = i;
        assert_int_equal(guest_write(&vm, gpa(0x1000), &word, 4), E_NOMEM);
        assert_int_equal(guest_read(&vm, gpa(0x1000), &word, 4), 0);
        assert_int_equal(word, 0);
    }
    after = snapshot();
    assert_memory_equal(&before, &after, sizeof(before));
    check();
    frame_free(taken[--count], 0, NULL);
    touch(0x1000);
    assert_int_equal(fault(0x2000, WRITE), EPT_FAULT_WAIT);
    while (count > 0)
        frame_free(taken[--count], 0, NULL);
    touch(0x2000);
    touch(5 * MIB);
    finish();
}

// A VM that is loaded anew may have what is held for it, which stands behind the reserve's line.
static void test_restart_without_frames(void **state)
{
    (void)state;
    start(8 * MIB, VM_LARGE_OFF);
    touch(0);
    frames_set_reserve(free_frames());
    uint32_t word = 1;
    assert_int_equal(guest_write(&vm, gpa(0x1000), &word, 4), E_NOMEM);
    vm.restarting = true;
    assert_int_equal(guest_write(&vm, gpa(0x1000), &word, 4), 0);
    // But not all of the reserve: others need it for their page tables.
    frames_set_reserve(4 * (free_frames() - 1));
    assert_int_equal(guest_write(&vm, gpa(0x2000), &word, 4), 0);
    assert_int_equal(guest_write(&vm, gpa(0x3000), &word, 4), E_NOMEM);
    vm.restarting = false;
    assert_int_equal(guest_write(&vm, gpa(0x3000), &word, 4), E_NOMEM);
    frames_set_reserve(0);
    assert_int_equal(guest_write(&vm, gpa(0x3000), &word, 4), 0);
    check();
    finish();
}

// Two CPUs touch at once: who comes second gives its frame back and counts nothing.
static uint64_t rival_address;

static void rival_touches(void)
{
    touch(rival_address);
    page(rival_address)[0] = 77;
}

static void test_second_toucher(void **state)
{
    (void)state;
    start(8 * MIB, VM_LARGE_AUTO);
    rival_address = 5 * MIB;
    private_hook = rival_touches;
    touch(5 * MIB);
    assert_null(private_hook);
    assert_int_equal(page(5 * MIB)[0], 77);
    assert_int_equal(vm.account.private_frames, 1);
    assert_int_equal(vm.touched[2], 1);
    check();
    // The rival's touch promotes the range.
    for (unsigned i = 0; i < VM_PROMOTE_TOUCHES - 2; i++)
        touch(4 * MIB + i % 256 * PAGE_SIZE + (i < 256 ? 0 : MIB + PAGE_SIZE));
    rival_address = 6 * MIB - PAGE_SIZE;
    private_hook = rival_touches;
    touch(6 * MIB - 2 * PAGE_SIZE);
    assert_int_equal(vm.promotions, 1);
    assert_int_equal(leaf_at(6 * MIB - 2 * PAGE_SIZE).level, EPT_2M);
    assert_int_equal(vm.account.private_frames, 512);
    assert_int_equal(page(5 * MIB)[0], 77);
    finish();

    start(8 * MIB, VM_LARGE_EAGER);
    rival_address = 5 * MIB;
    private_hook = rival_touches;
    touch(4 * MIB);
    assert_int_equal(vm.account.private_frames, 512);
    assert_int_equal(page(5 * MIB)[0], 77);
    finish();

    // And Fusor's own write meets the guest's.
    start(8 * MIB, VM_LARGE_AUTO);
    rival_address = 5 * MIB;
    private_hook = rival_touches;
    assert_int_equal(guest_write(&vm, gpa(5 * MIB + 1), "x", 1), 0);
    assert_int_equal(page(5 * MIB)[0], 77);
    assert_int_equal(page(5 * MIB)[1], 'x');
    finish();
}

// --- Access by Fusor ---

static void test_read_populates_nothing(void **state)
{
    (void)state;
    start(5 * GIB, VM_LARGE_EAGER);
    static const uint64_t addresses[] = {0,
                                         0xe0000,
                                         0x100000 - 10,
                                         7 * MIB + 5,
                                         4 * GIB - 0,
                                         6 * GIB - 3 * PAGE_SIZE,
                                         3 * GIB - 3 * PAGE_SIZE};
    static uint8_t buffer[3 * PAGE_SIZE];
    struct frames_snapshot before = snapshot(), after;
    for (unsigned i = 0; i < ARRAY_SIZE(addresses); i++) {
        memset(buffer, 0x77, sizeof(buffer));
        assert_int_equal(guest_read(&vm, gpa(addresses[i]), buffer, sizeof(buffer)), 0);
        assert_true(is_all(buffer, 0, sizeof(buffer)));
    }
    after = snapshot();
    assert_memory_equal(&before, &after, sizeof(before));
    assert_int_equal(vm.ept.table_frames, 1);
    finish();
}

static void test_out_of_range(void **state)
{
    (void)state;
    start(5 * GIB, VM_LARGE_AUTO);
    static const struct {
        uint64_t address;
        size_t size;
    } cases[] = {
        {0xa0000, 1},
        {0x9ffff, 2},
        {0x9f000, 0x42000},
        {0xdffff, 2},
        {3 * GIB - 1, 2},
        {3 * GIB - PAGE_SIZE, 2 * PAGE_SIZE},
        {4 * GIB - 1, 2},
        {6 * GIB - 1, 2},
        {6 * GIB, 1},
        {LAYOUT_LAPIC, 4},
        {UINT64_MAX, 1},
        {UINT64_MAX, 2},
        {UINT64_MAX - 4095, 4097},
        {UINT64_C(1) << 48, 8},
        {0, SIZE_MAX},
        {4096, SIZE_MAX - 4095},
    };
    static uint8_t buffer[0x42000];
    struct frames_snapshot before = snapshot(), after;
    memset(buffer, 0x5a, sizeof(buffer));
    for (unsigned i = 0; i < ARRAY_SIZE(cases); i++) {
        assert_int_equal(guest_read(&vm, gpa(cases[i].address), buffer, cases[i].size), E_RANGE);
        assert_int_equal(guest_write(&vm, gpa(cases[i].address), buffer, cases[i].size), E_RANGE);
    }
    assert_true(is_all(buffer, 0x5a, sizeof(buffer))); // nothing was copied
    after = snapshot();
    assert_memory_equal(&before, &after, sizeof(before)); // not even the pages in range
    // Nothing is always in range; the last byte of each area is too.
    assert_int_equal(guest_write(&vm, gpa(UINT64_MAX), buffer, 0), 0);
    assert_int_equal(guest_read(&vm, gpa(0xa0000), buffer, 0), 0);
    static const uint64_t last[] = {0x9ffff, 0xfffff, 3 * GIB - 1, 6 * GIB - 1};
    for (unsigned i = 0; i < ARRAY_SIZE(last); i++) {
        uint8_t byte = 0;
        assert_int_equal(guest_write(&vm, gpa(last[i]), buffer, 1), 0);
        assert_int_equal(guest_read(&vm, gpa(last[i]), &byte, 1), 0);
        assert_int_equal(byte, 0x5a);
        assert_int_equal(page(last[i])[PAGE_MASK], 0x5a);
    }
    assert_int_equal(vm.account.private_frames, ARRAY_SIZE(last));
    finish();
}

// Random writes and reads of any size and alignment against a model, over promotions too. The VM's
// end is not on a 2 MiB boundary.
static void check_against_model(enum vm_large_pages large, bool executable_safe)
{
    static uint8_t model[7 * MIB], buffer[40000];
    start(sizeof(model), large);
    ept_features.large_executable_safe = executable_safe;
    memset(model, 0, sizeof(model));
    srand(11);
    for (unsigned i = 0; i < 2500; i++) {
        size_t size = (size_t)rand() % (i % 3 == 0 ? sizeof(buffer) : 64);
        uint64_t from = LAYOUT_ROM + (uint64_t)rand() % (sizeof(model) - LAYOUT_ROM - size + 1);
        if (i % 4 == 0) {
            assert_int_equal(guest_read(&vm, gpa(from), buffer, size), 0);
            assert_memory_equal(buffer, model + from, size);
        } else {
            for (size_t b = 0; b < size; b++)
                buffer[b] = (uint8_t)rand();
            memcpy(model + from, buffer, size);
            assert_int_equal(guest_write(&vm, gpa(from), buffer, size), 0);
        }
        if (i % 100 == 0)
            check();
        if (i % 50 == 0)
            fault(from, FETCH); // may split what was promoted
    }
    for (uint64_t a = LAYOUT_ROM; a < sizeof(model); a += 8192) {
        assert_int_equal(guest_read(&vm, gpa(a), buffer, 8192), 0);
        assert_memory_equal(buffer, model + a, 8192);
    }
    finish();
}

static void test_model(void **state)
{
    (void)state;
    check_against_model(VM_LARGE_AUTO, true);
    assert_int_equal(vm.promotions, 2); // [2, 4) and [4, 6) MiB
    check_against_model(VM_LARGE_AUTO, false);
    assert_int_equal(vm.promotions, 2);
    check_against_model(VM_LARGE_EAGER, true);
    assert_int_equal(vm.promotions, 0);
    check_against_model(VM_LARGE_EAGER, false);
    check_against_model(VM_LARGE_OFF, true);
    assert_int_equal(vm.promotions, 0);
}

// A write that runs out in the middle can be repeated and is then complete.
static void test_write_without_frames(void **state)
{
    (void)state;
    static uint8_t data[5 * PAGE_SIZE], back[sizeof(data)];
    for (size_t i = 0; i < sizeof(data); i++)
        data[i] = (uint8_t)(i * 7 + 1);
    unsigned n = 1;
    for (;; n++) {
        start(8 * MIB, VM_LARGE_AUTO);
        failed = false;
        fail_at = n;
        // Six pages, over the boundary of two tables.
        int status = guest_write(&vm, gpa(4 * MIB - 2 * PAGE_SIZE - 100), data, sizeof(data));
        fail_at = 0;
        assert_int_equal(status, failed ? E_NOMEM : 0);
        check();
        assert_int_equal(guest_write(&vm, gpa(4 * MIB - 2 * PAGE_SIZE - 100), data, sizeof(data)),
                         0);
        assert_int_equal(guest_read(&vm, gpa(4 * MIB - 2 * PAGE_SIZE - 100), back, sizeof(back)),
                         0);
        assert_memory_equal(back, data, sizeof(data));
        assert_int_equal(vm.account.private_frames, 6);
        finish();
        if (!failed)
            break;
    }
    assert_int_equal(n, 3 + 6 + 1 + 1); // each of the tables and pages failed once
}

// --- Promotion ---

// Touches `count` pages of the range at `base` in a scattered order, each with its own contents.
static uint64_t scattered(uint64_t base, unsigned i)
{
    return base + i * 37 % 512 * PAGE_SIZE;
}

static void fill(uint64_t base, unsigned from, unsigned to)
{
    for (unsigned i = from; i < to; i++) {
        uint64_t address = scattered(base, i);
        touch(address);
        uint64_t word = ~address;
        memcpy(page(address) + i % 500 * 8, &word, 8);
    }
}

static void check_filled(uint64_t base, unsigned count)
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

static void check_promotion(uint64_t memory, uint64_t base, bool irq_on)
{
    start(memory, VM_LARGE_AUTO);
    fake_irq_on = irq_on;
    fill(base, 0, VM_PROMOTE_TOUCHES - 1);
    assert_int_equal(vm.ept.large_leaves, 0);
    assert_int_equal(vm.account.private_frames, VM_PROMOTE_TOUCHES - 1);
    check();
    hfn_t old[512];
    uint64_t versions[512];
    for (unsigned i = 0; i < VM_PROMOTE_TOUCHES - 1; i++) {
        old[i] = leaf_at(scattered(base, i)).frame;
        versions[i] = frame_of(old[i])->version;
    }
    struct frames_snapshot before = snapshot();
    uint64_t tables = vm.ept.table_frames;
    fill(base, VM_PROMOTE_TOUCHES - 1, VM_PROMOTE_TOUCHES);
    assert_int_equal(fake_irq_on, irq_on);

    assert_int_equal(vm.promotions, 1);
    assert_int_equal(vm.ept.large_leaves, 1);
    assert_int_equal(vm.account.private_frames, 512);
    assert_int_equal(vm.ept.table_frames, tables - 1);
    struct frames_snapshot after = snapshot();
    assert_int_equal(after.count[FRAME_FUSOR], before.count[FRAME_FUSOR]);
    assert_int_equal(after.count[FRAME_TABLE], before.count[FRAME_TABLE] - 1);
    assert_int_equal(after.count[FRAME_PRIVATE],
                     before.count[FRAME_PRIVATE] + 512 - (VM_PROMOTE_TOUCHES - 1));
    struct ept_leaf leaf = leaf_at(base);
    assert_int_equal(leaf.level, EPT_2M);
    assert_int_equal(leaf.permissions, EPT_RWX);
    for (unsigned i = 0; i < VM_PROMOTE_TOUCHES - 1; i++) {
        assert_int_equal(frame_of(old[i])->state, FRAME_FREE);
        assert_true(frame_of(old[i])->version == versions[i] + 1);
    }
    check();
    // The word of the last page was written after the promotion, through the large leaf.
    check_filled(base, VM_PROMOTE_TOUCHES);
    fill(base, VM_PROMOTE_TOUCHES, 512); // all there: not one frame more
    check_filled(base, 512);
    assert_int_equal(vm.account.private_frames, 512);
    assert_int_equal(vm.promotions, 1);
    finish();
}

static void test_promotion(void **state)
{
    (void)state;
    check_promotion(8 * MIB, 4 * MIB, false);
    check_promotion(8 * MIB, 6 * MIB, true);
    check_promotion(5 * GIB, 3 * GIB - RANGE, false);
    check_promotion(5 * GIB, 4 * GIB, false);
    check_promotion(5 * GIB, 6 * GIB - RANGE, false);
}

// Ranges on both sides of the hole count apart.
static void test_ranges_count_apart(void **state)
{
    (void)state;
    start(5 * GIB, VM_LARGE_AUTO);
    static const uint64_t bases[] = {2 * MIB, 3 * GIB - RANGE, 4 * GIB, 4 * GIB + RANGE,
                                     6 * GIB - RANGE};
    for (unsigned i = 0; i < ARRAY_SIZE(bases); i++)
        fill(bases[i], 0, VM_PROMOTE_TOUCHES - 1);
    assert_int_equal(vm.promotions, 0);
    for (unsigned i = 0; i < ARRAY_SIZE(bases); i++) {
        fill(bases[i], VM_PROMOTE_TOUCHES - 1, VM_PROMOTE_TOUCHES);
        assert_int_equal(vm.promotions, i + 1);
        assert_int_equal(leaf_at(bases[i]).level, EPT_2M);
        check_filled(bases[i], VM_PROMOTE_TOUCHES);
    }
    check();
    finish();
}

// CPU 1 is in the guest while CPU 0 promotes: what must be true when it is made to leave.
static hfn_t before_promotion[512];

static void check_order(void)
{
    struct ept_leaf leaf = leaf_at(4 * MIB);
    if (nmi_count == 1) {
        // First shootdown: nobody can write to what will be copied.
        for (unsigned i = 0; i < 512; i++) {
            leaf = leaf_at(4 * MIB + i * PAGE_SIZE);
            if (leaf.present) {
                assert_int_equal(leaf.level, EPT_4K);
                assert_int_equal(leaf.permissions, EPT_READ | EPT_EXECUTE);
            }
        }
        // CPU 1 still wrote through its old translation until now: that must not be lost.
        memset(hfn_to_pointer(before_promotion[3]), 0x3c, PAGE_SIZE);
    } else {
        // Second: the large leaf stands, and the old frames are nobody else's yet.
        assert_int_equal(leaf.level, EPT_2M);
        for (unsigned i = 0; i < VM_PROMOTE_TOUCHES - 1; i++)
            assert_int_equal(frame_of(before_promotion[i])->state, FRAME_PRIVATE);
    }
    if (nmi_count == 1)
        ept_guest_begin(&vm.ept, 1); // it comes back at once, with the present epoch
}

static void test_promotion_order(void **state)
{
    (void)state;
    start(8 * MIB, VM_LARGE_AUTO);
    fill(4 * MIB, 0, VM_PROMOTE_TOUCHES - 1);
    for (unsigned i = 0; i < VM_PROMOTE_TOUCHES - 1; i++)
        before_promotion[i] = leaf_at(scattered(4 * MIB, i)).frame;
    ept_guest_begin(&vm.ept, 1);
    nmi_hook = check_order;
    uint64_t shootdowns = vm.ept.shootdowns;
    touch(scattered(4 * MIB, 500));
    assert_int_equal(vm.promotions, 1);
    assert_int_equal(vm.ept.shootdowns, shootdowns + 2);
    assert_int_equal(nmi_count, 2);
    assert_true(is_all(page(scattered(4 * MIB, 3)), 0x3c, PAGE_SIZE));
    nmi_hook = NULL;
    finish();
}

static void check_not_promoted(uint64_t base)
{
    assert_int_equal(vm.promotions, 0);
    assert_int_equal(vm.ept.large_leaves, 0);
    fill(base, VM_PROMOTE_TOUCHES, 512);
    assert_int_equal(vm.promotions, 0);
    assert_int_equal(vm.account.private_frames, 512);
    check_filled(base, 512);
    for (unsigned i = 0; i < 512; i++)
        assert_int_equal(leaf_at(base + i * PAGE_SIZE).permissions, EPT_RWX);
    finish();
}

static void test_no_promotion(void **state)
{
    (void)state;
    // Switched off.
    start(8 * MIB, VM_LARGE_OFF);
    fill(4 * MIB, 0, VM_PROMOTE_TOUCHES);
    check_not_promoted(4 * MIB);
    // Not known to the CPU.
    start(8 * MIB, VM_LARGE_AUTO);
    ept_features.page_2m = false;
    fill(4 * MIB, 0, VM_PROMOTE_TOUCHES);
    check_not_promoted(4 * MIB);
    // A pinned frame must stay where it is.
    start(8 * MIB, VM_LARGE_AUTO);
    fill(4 * MIB, 0, 100);
    struct ept_leaf pinned = leaf_at(scattered(4 * MIB, 50));
    frame_of(pinned.frame)->count = 1;
    fill(4 * MIB, 100, VM_PROMOTE_TOUCHES);
    assert_true(leaf_at(scattered(4 * MIB, 50)).frame.raw == pinned.frame.raw);
    check_not_promoted(4 * MIB);
    // A candidate of fusion's must not be copied either; what it may do stays as it was.
    start(8 * MIB, VM_LARGE_AUTO);
    fill(4 * MIB, 0, 100);
    gfn_t candidate = gpa_to_gfn(gpa(scattered(4 * MIB, 60)));
    ept_lock_gfn(&vm.ept, candidate);
    ept_protect(&vm.ept, candidate, EPT_READ | EPT_EXECUTE, EPT_KIND_CANDIDATE);
    ept_unlock_gfn(&vm.ept, candidate);
    fill(4 * MIB, 100, VM_PROMOTE_TOUCHES);
    struct ept_leaf leaf = ept_lookup(&vm.ept, candidate);
    assert_int_equal(leaf.kind, EPT_KIND_CANDIDATE);
    assert_int_equal(leaf.permissions, EPT_READ | EPT_EXECUTE);
    ept_lock_gfn(&vm.ept, candidate);
    ept_protect(&vm.ept, candidate, EPT_RWX, EPT_KIND_PRIVATE);
    ept_unlock_gfn(&vm.ept, candidate);
    check_not_promoted(4 * MIB);
}

static void test_no_promotion_of_ranges_in_parts(void **state)
{
    (void)state;
    // The first range has a hole and the ROM in it; the last one ends early.
    start(8 * MIB - PAGE_SIZE, VM_LARGE_AUTO);
    uint64_t pages = 0;
    for (uint64_t a = 0; a < RANGE; a += PAGE_SIZE)
        if (vm_area_of(&vm, gpa_to_gfn(gpa(a))) == VM_AREA_RAM) {
            touch(a);
            pages++;
        }
    assert_in_range(pages, VM_PROMOTE_TOUCHES - 32, 511);
    for (uint64_t a = 6 * MIB; a < 8 * MIB - PAGE_SIZE; a += PAGE_SIZE) {
        touch(a);
        pages++;
    }
    assert_int_equal(vm.promotions, 0);
    assert_int_equal(vm.account.private_frames, pages);
    finish();
}

// The touch that promotes allocates the page, the list of old frames and the block.
static void test_promotion_without_frames(void **state)
{
    (void)state;
    for (unsigned n = 1; n <= 4; n++) {
        start(8 * MIB, VM_LARGE_AUTO);
        fill(4 * MIB, 0, VM_PROMOTE_TOUCHES - 1);
        uint64_t fusor = snapshot().count[FRAME_FUSOR];
        fail_at = n;
        enum ept_fault_result result = fault(scattered(4 * MIB, VM_PROMOTE_TOUCHES - 1), WRITE);
        fail_at = 0;
        assert_int_equal(failed, n <= 3);
        assert_int_equal(result, n == 1 ? EPT_FAULT_WAIT : EPT_FAULT_RETRY);
        assert_int_equal(vm.promotions, n == 4);
        assert_int_equal(vm.account.private_frames, n == 1   ? VM_PROMOTE_TOUCHES - 1
                                                    : n == 4 ? 512
                                                             : VM_PROMOTE_TOUCHES);
        assert_int_equal(snapshot().count[FRAME_FUSOR], fusor);
        check();
        check_filled(4 * MIB, VM_PROMOTE_TOUCHES - 1);
        fill(4 * MIB, VM_PROMOTE_TOUCHES - 1, 512);
        assert_int_equal(vm.promotions, n == 1 || n == 4); // after a wait it is done after all
        check_filled(4 * MIB, 512);
        assert_int_equal(vm.account.private_frames, 512);
        finish();
    }
}

// --- Eager large pages ---

static void test_eager(void **state)
{
    (void)state;
    static const uint64_t bases[] = {2 * MIB, 3 * GIB - RANGE, 4 * GIB, 6 * GIB - RANGE};
    static const enum access kinds[] = {READ, WRITE, FETCH, WRITE};
    start(5 * GIB, VM_LARGE_EAGER);
    for (unsigned i = 0; i < ARRAY_SIZE(bases); i++) {
        fake_irq_on = i % 2 == 0;
        assert_int_equal(fault(bases[i] + i * 0x12345, kinds[i]), EPT_FAULT_RETRY);
        assert_int_equal(fake_irq_on, i % 2 == 0);
        struct ept_leaf leaf = leaf_at(bases[i]);
        assert_true(leaf.present);
        assert_int_equal(leaf.level, EPT_2M);
        assert_int_equal(leaf.permissions, EPT_RWX);
        assert_true(is_all(hfn_to_pointer(leaf.frame), 0, RANGE));
        assert_int_equal(vm.ept.large_leaves, i + 1);
        assert_int_equal(vm.account.private_frames, (i + 1) * 512);
        assert_false(leaf_at(bases[i] - 1).present);
        assert_int_equal(fault(bases[i] + RANGE - 1, WRITE), EPT_FAULT_RETRY);
        assert_int_equal(vm.account.private_frames, (i + 1) * 512);
    }
    check();
    // Where a hole is, by single pages.
    touch(0x9f000);
    touch(0x100000);
    assert_int_equal(leaf_at(0x100000).level, EPT_4K);
    assert_int_equal(vm.account.private_frames, ARRAY_SIZE(bases) * 512 + 2);
    finish();

    start(8 * MIB - PAGE_SIZE, VM_LARGE_EAGER);
    touch(7 * MIB);
    assert_int_equal(leaf_at(7 * MIB).level, EPT_4K);
    assert_int_equal(vm.account.private_frames, 1);
    finish();

    start(8 * MIB, VM_LARGE_EAGER);
    ept_features.page_2m = false;
    touch(4 * MIB);
    assert_int_equal(leaf_at(4 * MIB).level, EPT_4K);
    finish();
}

// Without a block, by single pages; and later it is promoted like any other.
static void test_eager_without_block(void **state)
{
    (void)state;
    start(8 * MIB, VM_LARGE_EAGER);
    fail_large = true;
    fill(4 * MIB, 0, VM_PROMOTE_TOUCHES - 1);
    assert_int_equal(vm.ept.large_leaves, 0);
    assert_int_equal(vm.account.private_frames, VM_PROMOTE_TOUCHES - 1);
    check();
    fail_large = false;
    fill(4 * MIB, VM_PROMOTE_TOUCHES - 1, 512);
    assert_int_equal(vm.promotions, 1);
    check_filled(4 * MIB, 512);
    finish();
}

// A table hangs there already, though it maps nothing: the block goes back.
static void test_eager_over_table(void **state)
{
    (void)state;
    start(8 * MIB, VM_LARGE_EAGER);
    assert_int_equal(ept_prepare(&vm.ept, gfn(1024)), 0);
    touch(4 * MIB);
    assert_int_equal(leaf_at(4 * MIB).level, EPT_4K);
    assert_int_equal(vm.account.private_frames, 1);
    finish();
}

// Tables above (2), block; when that fails: tables (again), page.
static void test_eager_without_frames(void **state)
{
    (void)state;
    unsigned n = 1;
    for (;; n++) {
        start(8 * MIB, VM_LARGE_EAGER);
        fail_at = n;
        enum ept_fault_result result = fault(4 * MIB, WRITE);
        fail_at = 0;
        assert_int_equal(result, EPT_FAULT_RETRY); // one failure is no reason to wait
        assert_int_equal(leaf_at(4 * MIB).level, failed ? EPT_4K : EPT_2M);
        assert_int_equal(vm.account.private_frames, failed ? 1 : 512);
        finish();
        if (!failed)
            break;
    }
    assert_int_equal(n, 4);
    // No block, and then each of the others: the last table and the page.
    for (n = 1; n <= 6; n++) {
        start(8 * MIB, VM_LARGE_EAGER);
        fail_large = true;
        fail_at = 0;
        touch(0); // tables that are common to all
        failed = false;
        uint64_t private_frames = vm.account.private_frames;
        fail_at = n;
        enum ept_fault_result result = fault(4 * MIB, WRITE);
        unsigned left = fail_at;
        fail_at = 0;
        assert_int_equal(result, left == 0 ? EPT_FAULT_WAIT : EPT_FAULT_RETRY);
        assert_int_equal(left == 0, n <= 2);
        assert_int_equal(vm.account.private_frames, private_frames + (left == 0 ? 0 : 1));
        check();
        touch(4 * MIB);
        finish();
    }
}

// --- ITLB multihit ---

static void test_split_on_fetch(void **state)
{
    (void)state;
    for (unsigned eager = 0; eager < 2; eager++) {
        start(8 * MIB, eager ? VM_LARGE_EAGER : VM_LARGE_AUTO);
        ept_features.large_executable_safe = false;
        fill(4 * MIB, 0, VM_PROMOTE_TOUCHES);
        struct ept_leaf large = leaf_at(4 * MIB);
        assert_int_equal(large.level, EPT_2M);
        assert_int_equal(large.permissions, EPT_READ | EPT_WRITE);
        uint64_t tables = vm.ept.table_frames, shootdowns = vm.ept.shootdowns;
        // Reads and writes do not split it.
        assert_int_equal(fault(4 * MIB, READ), EPT_FAULT_RETRY);
        assert_int_equal(fault(4 * MIB, WRITE), EPT_FAULT_RETRY);
        assert_int_equal(leaf_at(4 * MIB).level, EPT_2M);
        assert_int_equal(vm.ept.large_splits, 0);
        fail_at = 1;
        assert_int_equal(fault(5 * MIB, FETCH), EPT_FAULT_WAIT);
        fail_at = 0;
        assert_int_equal(leaf_at(4 * MIB).level, EPT_2M);
        check();

        assert_int_equal(fault(5 * MIB, FETCH), EPT_FAULT_RETRY);
        assert_int_equal(vm.ept.large_splits, 1);
        assert_int_equal(vm.ept.large_leaves, 0);
        assert_int_equal(vm.ept.table_frames, tables + 1);
        assert_true(vm.ept.shootdowns > shootdowns);
        for (unsigned i = 0; i < 512; i++) {
            struct ept_leaf leaf = leaf_at(4 * MIB + i * PAGE_SIZE);
            assert_int_equal(leaf.level, EPT_4K);
            assert_int_equal(leaf.permissions, EPT_RWX);
            assert_true(leaf.frame.raw == large.frame.raw + i);
        }
        check();
        check_filled(4 * MIB, VM_PROMOTE_TOUCHES);
        // The fault of another CPU that still saw the large leaf.
        assert_int_equal(fault_with(6 * MIB - 1, FETCH, large), EPT_FAULT_RETRY);
        assert_int_equal(vm.ept.large_splits, 1);
        assert_int_equal(vm.ept.table_frames, tables + 1);
        fill(4 * MIB, VM_PROMOTE_TOUCHES, 512); // and it does not become large again
        assert_int_equal(vm.ept.large_leaves, 0);
        check_filled(4 * MIB, 512);
        finish();
    }
}

// Where it is safe, a large page stays whole under fetches.
static void test_no_split_when_safe(void **state)
{
    (void)state;
    start(8 * MIB, VM_LARGE_EAGER);
    touch(4 * MIB);
    assert_int_equal(fault(4 * MIB + 5, FETCH), EPT_FAULT_RETRY);
    assert_int_equal(leaf_at(4 * MIB).level, EPT_2M);
    assert_int_equal(vm.ept.large_splits, 0);
    finish();
}

// --- Begin and end ---

static void test_create_without_frames(void **state)
{
    (void)state;
    machine();
    unsigned n = 1;
    for (;; n++) {
        memset(&vm, 0, sizeof(vm));
        vm.id = 7;
        vm.config.memory = 8 * MIB;
        failed = false;
        fail_at = n;
        int status = vm_memory_create(&vm);
        fail_at = 0;
        assert_int_equal(status, failed ? E_NOMEM : 0);
        if (!failed)
            break;
        assert_null(vm.touched);
        assert_false(vm.memory_present);
        vm_memory_destroy(&vm); // harmless
        assert_int_equal(free_frames(), free_at_start);
    }
    assert_int_equal(n, 5);
    finish();
}

static void test_destroy(void **state)
{
    (void)state;
    machine();
    create(&vm, 7, 5 * GIB, VM_LARGE_AUTO);
    create(&other, 8, 16 * MIB, VM_LARGE_EAGER);
    static const char text[] = "mine";
    char back[sizeof(text)];
    assert_int_equal(guest_write(&other, gpa(2 * MIB + 4094), text, sizeof(text)), 0);
    assert_int_equal(guest_write(&other, gpa(0x500), text, sizeof(text)), 0);
    uint64_t others = other.account.private_frames;
    assert_int_equal(others, 512 + 1);

    fill(4 * GIB, 0, 512); // a large page
    fill(2 * MIB, 0, 400); // single ones
    assert_int_equal(fault(LAYOUT_ROM, READ), EPT_FAULT_RETRY);
    touch(0);
    touch(2 * GIB);
    for (uint64_t a = 0; a < 100 * GIB; a += GIB / 2)
        fault(a, READ);
    assert_int_equal(vm.ept.large_leaves, 1);
    check();
    uint64_t shootdowns = vm.ept.shootdowns;
    vm_memory_destroy(&vm);
    assert_true(vm.ept.shootdowns > shootdowns);
    assert_true(yields > 0); // in steps
    assert_null(vm.touched);
    assert_int_equal(vm.account.private_frames, 0);
    check();
    vm_memory_destroy(&vm); // again: nothing
    check();
    // The other one did not notice.
    assert_int_equal(other.account.private_frames, others);
    assert_int_equal(guest_read(&other, gpa(2 * MIB + 4094), back, sizeof(back)), 0);
    assert_string_equal(back, text);

    // Again: what it had before is not seen by whoever gets the frames now.
    create(&vm, 9, 8 * MIB, VM_LARGE_AUTO);
    for (uint64_t a = MIB; a < 8 * MIB; a += PAGE_SIZE) {
        touch(a);
        assert_true(is_all(page(a), 0, PAGE_SIZE));
    }
    finish();
}

// The CPU that runs it does not keep translations of the root that is freed.
static void test_destroy_flushes(void **state)
{
    (void)state;
    start(8 * MIB, VM_LARGE_AUTO);
    touch(MIB);
    ept_guest_begin(&vm.ept, 1);
    ept_guest_end(1);
    assert_int_equal(ept_cpus[1].flush_all, 0);
    finish();
    assert_int_equal(ept_cpus[1].flush_all, 1);
    assert_int_equal(ept_cpus[0].flush_all, 0); // it never entered
}

static int register_hook(void **state)
{
    (void)state;
    const struct init_hook *hook = &hooks_start;
    __asm__("" : "+r"(hook)); // the compiler need not know that more follows
    hook++;
    return hook->level == INIT_VM && hook->function != NULL ? hook->function(NULL) : -1;
}

static int release(void **state)
{
    (void)state;
    free(table);
    fake_machine(0, 1);
    return 0;
}

// Between two yields of a teardown no more than so many pages, or one large one, are given back.
#define PAGES_PER_STEP 64u

static uint64_t resident_before, tables_before;
static unsigned longest, large_steps;

static void measure_step(void)
{
    uint64_t pages = resident_before - vm.account.private_frames;
    uint64_t tables = tables_before - vm.ept.table_frames;
    large_steps += pages >= 512;
    assert_true(pages <= PAGES_PER_STEP || (pages >= 512 && pages <= 512 + PAGES_PER_STEP));
    assert_true(tables <= PAGES_PER_STEP + 1);
    longest = (unsigned)MAX(longest, pages + tables);
    resident_before = vm.account.private_frames;
    tables_before = vm.ept.table_frames;
}

static void test_destroy_in_steps(void **state)
{
    (void)state;
    machine();
    create(&vm, 7, 64 * MIB, VM_LARGE_AUTO);
    fill(4 * MIB, 0, 512); // two large pages
    fill(6 * MIB, 0, 512);
    for (unsigned range = 4; range < 14; range++) // many single ones
        fill(range * RANGE, 0, 400);
    for (unsigned range = 24; range < 32; range++) // few
        touch(range * RANGE);
    assert_int_equal(vm.ept.large_leaves, 2);
    resident_before = vm.account.private_frames;
    tables_before = vm.ept.table_frames;
    assert_int_equal(resident_before, 2 * 512 + 10 * 400 + 8);
    longest = large_steps = yields = 0;
    yield_hook = measure_step;
    vm_memory_destroy(&vm);
    yield_hook = NULL;
    assert_in_range(longest, PAGES_PER_STEP, 512 + PAGES_PER_STEP);
    assert_int_equal(large_steps, 2); // each by itself
    assert_in_range(yields, 10 * 400 / PAGES_PER_STEP, 4 * 10 * 400 / PAGES_PER_STEP);
    check();
    // Tables that map nothing any more are looked through in steps as well: 30 of them.
    create(&vm, 8, 64 * MIB, VM_LARGE_OFF);
    for (unsigned range = 1; range < 31; range++)
        assert_int_equal(ept_prepare(&vm.ept, (gfn_t){range * (RANGE / PAGE_SIZE)}), 0);
    yields = 0;
    vm_memory_destroy(&vm);
    assert_true(yields >= 30 * ARCH_EPT_ENTRIES / EPT_EMPTY_PER_LEAF / PAGES_PER_STEP);
    finish();
}

int main(void)
{
    static const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_areas),
        cmocka_unit_test(test_ram_adds_up),
        cmocka_unit_test(test_first_touch),
        cmocka_unit_test(test_holes),
        cmocka_unit_test(test_rom),
        cmocka_unit_test(test_permission_that_nobody_gives),
        cmocka_unit_test(test_first_touch_without_frames),
        cmocka_unit_test(test_machine_is_full),
        cmocka_unit_test(test_restart_without_frames),
        cmocka_unit_test(test_second_toucher),
        cmocka_unit_test(test_read_populates_nothing),
        cmocka_unit_test(test_out_of_range),
        cmocka_unit_test(test_model),
        cmocka_unit_test(test_write_without_frames),
        cmocka_unit_test(test_promotion),
        cmocka_unit_test(test_ranges_count_apart),
        cmocka_unit_test(test_promotion_order),
        cmocka_unit_test(test_no_promotion),
        cmocka_unit_test(test_no_promotion_of_ranges_in_parts),
        cmocka_unit_test(test_promotion_without_frames),
        cmocka_unit_test(test_eager),
        cmocka_unit_test(test_eager_without_block),
        cmocka_unit_test(test_eager_over_table),
        cmocka_unit_test(test_eager_without_frames),
        cmocka_unit_test(test_split_on_fetch),
        cmocka_unit_test(test_no_split_when_safe),
        cmocka_unit_test(test_create_without_frames),
        cmocka_unit_test(test_destroy),
        cmocka_unit_test(test_destroy_flushes),
        cmocka_unit_test(test_destroy_in_steps),
    };
    return cmocka_run_group_tests(tests, register_hook, release);
}
