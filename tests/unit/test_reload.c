// SPDX-License-Identifier: BSD-2-Clause
// sources: vm/access.c vm/memory_large.c
// sources: vm/load.c vm/loader_linux.c vm/memory.c vm/ballooned.c vm/reserve.c ept/walk.c ept/map.c
// sources: ept/large.c ept/destroy.c ept/shootdown.c ept/fault.c kernel/frames.c
// sources: kernel/frame_buddy.c kernel/frame_cache.c kernel/frame_hold.c kernel/frame_zero.c
// sources: kernel/frame_poison.c kernel/frame_share.c kernel/frame_account.c kernel/heap.c
// sources: kernel/lock.c kernel/format.c
// libs: -Wl,--wrap=frame_alloc,--wrap=frame_alloc_held,--wrap=heap_alloc
// VMs that give their memory back and are loaded anew on a full machine, over the real loader,
// memory, EPT and frames: two at once with a third one that takes whatever it can get, and at
// random with allocations that fail. What a VM begins with is always what it would be with plenty
// of memory.
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include <arch/ept.h>

#include "fake.h"
#include "kernel/error.h"
#include "kernel/files.h"
#include "kernel/frames.h"
#include "kernel/heap.h"
#include "kernel/irq.h"
#include "kernel/memory.h"
#include "vm/acpi.h"
#include "vm/memory.h"
#include "vm/vm_object.h"

#define MACHINE_FRAMES 1024u
#define RESERVE        64u
#define VMS            3u
#define MEMORY         (24 * MIB)
#define SETUP          1024u
#define CODE_MAX       (64 * PAGE_SIZE)

// --- The world around ---

static struct frame *table;
static struct vm vms[VMS];
static struct frame_account hog;
static hfn_t hog_frames[MACHINE_FRAMES];
static unsigned hog_count;
static uint8_t kernel[SETUP + CODE_MAX];
static uint8_t initrd[40 * PAGE_SIZE];
static uint64_t kernel_pages, initrd_pages;
static unsigned fail_in; // one of so many allocations fails; 0: none
static void (*way_hook)(void);

static bool fails(void)
{
    return fail_in != 0 && (unsigned)rand() % fail_in == 0;
}

int __real_frame_alloc(enum frame_state state, unsigned order, unsigned flags,
                       struct frame_account *account, hfn_t *out);
int __wrap_frame_alloc(enum frame_state state, unsigned order, unsigned flags,
                       struct frame_account *account, hfn_t *out)
{
    return fails() ? E_NOMEM : __real_frame_alloc(state, order, flags, account, out);
}

int __real_frame_alloc_held(unsigned flags, struct frame_account *account, hfn_t *out);
int __wrap_frame_alloc_held(unsigned flags, struct frame_account *account, hfn_t *out)
{
    return fails() ? E_NOMEM : __real_frame_alloc_held(flags, account, out);
}

void *__real_heap_alloc(size_t size);
void *__wrap_heap_alloc(size_t size)
{
    return fails() ? NULL : __real_heap_alloc(size);
}

void fiber_give_way(void)
{
    assert_true(spin_none_held());
    if (way_hook != NULL)
        way_hook();
}

void fiber_yield(void)
{
    fiber_give_way();
}

void irq_send_nmi(uint32_t cpu)
{
    (void)cpu;
    fail();
}

const char *error_text(int error)
{
    (void)error;
    return "";
}

void vm_hold_back(struct vm *vm)
{
    (void)vm;
}

bool vm_overcommits(void)
{
    return true;
}

bool vm_may_grow(struct vm *vm)
{
    (void)vm;
    return true;
}

int vm_vcpus_prepare(struct vm *vm)
{
    if (fails())
        return E_NOMEM;
    vm->vcpu_count = 0;
    return 0;
}

int vcpu_reset(struct vcpu *v, const struct vcpu_start *start)
{
    (void)v;
    (void)start;
    return 0;
}

// In two pieces, as the real tables are in more.
int acpi_write_tables(struct vm *vm, unsigned number, gpa_t *rsdp)
{
    static const uint8_t pattern[3] = {1, 2, 3};
    (void)number;
    *rsdp = gpa(ACPI_RSDP);
    int status = guest_write(vm, gpa(LAYOUT_ROM + PAGE_SIZE - 1), pattern, sizeof(pattern));
    return status != 0 ? status : guest_write(vm, gpa(ACPI_EBDA), pattern, sizeof(pattern));
}

int files_find(const char *path, const uint8_t **data, uint64_t *size)
{
    bool is_kernel = path[0] == 'k';
    *data = is_kernel ? kernel : initrd;
    *size = is_kernel ? SETUP + kernel_pages * PAGE_SIZE : initrd_pages * PAGE_SIZE;
    return 0;
}

static void put32(uint8_t *at, uint64_t value)
{
    for (unsigned i = 0; i < 4; i++)
        at[i] = (uint8_t)(value >> (8 * i));
}

// A bzImage and an initrd of so many pages.
static void files(uint64_t of_kernel, uint64_t of_initrd)
{
    kernel_pages = of_kernel;
    initrd_pages = of_initrd;
    for (unsigned i = 0; i < sizeof(kernel); i++)
        kernel[i] = (uint8_t)(i * 7 + (i >> 8));
    for (unsigned i = 0; i < sizeof(initrd); i++)
        initrd[i] = (uint8_t)(i * 13 + (i >> 9));
    memset(kernel + 0x1f1, 0, 0x290 - 0x1f1);
    kernel[0x1f1] = SETUP / 512 - 1;
    put32(kernel + 0x1f4, of_kernel * PAGE_SIZE / 16);
    put32(kernel + 0x1fe, 0xaa55);
    memcpy(kernel + 0x200, "\xeb\x6aHdrS\x0f\x02", 8);
    kernel[0x211] = 0x81;
    put32(kernel + 0x22c, 0x7fffffff);
    kernel[0x236] = 1;
    put32(kernel + 0x238, 2047);
    put32(kernel + 0x258, 16 * MIB);
    put32(kernel + 0x260, 4 * MIB);
}

static uint64_t free_frames(void)
{
    struct frames_snapshot s;
    frames_snapshot(&s, NULL, 0, NULL, NULL);
    return s.count[FRAME_FREE];
}

// The hungry neighbour takes all that anybody may have.
static void eat(void)
{
    while (__real_frame_alloc(FRAME_PRIVATE, 0, 0, &hog, &hog_frames[hog_count]) == 0)
        hog_count++;
}

static void spit(uint64_t count)
{
    for (; count != 0 && hog_count != 0; count--)
        frame_free(hog_frames[--hog_count], 0, &hog);
}

static uint64_t free_at_start;

static void world(void)
{
    fake_machine(MACHINE_FRAMES * PAGE_SIZE, 2);
    hpa_t end = hpa(MACHINE_FRAMES * PAGE_SIZE);
    free(table);
    table = calloc(1, frames_table_bytes(end));
    frames_init(table, end);
    frames_add(hfn(1), MACHINE_FRAMES - 1, FRAME_FREE);
    frames_set_reserve(RESERVE);
    heap_init();
    memset(ept_cpus, 0, sizeof(ept_cpus));
    ept_features = (struct ept_features){
        .page_2m = true, .accessed_dirty = true, .invept_single = true, .invept_all = true};
    memset(vms, 0, sizeof(vms));
    memset(&hog, 0, sizeof(hog));
    hog_count = fail_in = 0;
    way_hook = NULL;
    for (unsigned i = 0; i < VMS; i++) {
        vms[i].id = i + 1;
        vms[i].config.memory = MEMORY;
        strcpy(vms[i].config.kernel, "k");
        strcpy(vms[i].config.initrd, "i");
        strcpy(vms[i].config.cmdline, "quiet");
    }
    free_at_start = free_frames();
}

struct sum {
    uint64_t hash, pages;
};

static void add_leaf(void *context, gfn_t gfn, struct ept_leaf leaf)
{
    struct sum *sum = context;
    const uint8_t *bytes = hfn_to_pointer(leaf.frame);
    uint64_t hash = gfn.raw;
    assert_int_equal(leaf.level, EPT_4K);
    for (unsigned i = 0; i < PAGE_SIZE; i++)
        hash = hash * UINT64_C(0x100000001b3) + bytes[i];
    sum->hash += hash;
    sum->pages++;
}

static struct sum contents(struct vm *vm)
{
    struct sum sum = {0};
    gfn_t next = {0};
    while (ept_for_each(&vm->ept, &next, 1000, add_leaf, &sum) == E_AGAIN)
        ;
    assert_int_equal(sum.pages, vm->account.private_frames);
    return sum;
}

static char why[VM_WHY_MAX];

// As in vm/lifecycle.c.
static int try_load(struct vm *vm)
{
    int status = vm_load(vm, why);
    assert_true(status == 0 || status == E_NOMEM);
    if (status != 0)
        return status;
    vm->restarting = false;
    frames_hold_end(&vm->account);
    return 0;
}

static int reset(struct vm *vm)
{
    strcpy(vm->config.cmdline, "quiet");
    assert_int_equal(vm_load_begin(vm, why), 0);
    strcpy(vm->config.cmdline, "for the next reset");
    vm->restarting = true;
    vm_memory_destroy(vm);
    return try_load(vm);
}

static void stop(struct vm *vm)
{
    vm->restarting = false;
    vm_memory_destroy(vm);
    frames_hold_end(&vm->account);
    assert_int_equal(vm->account.held, 0);
}

static void end_world(void)
{
    fail_in = 0;
    for (unsigned i = 0; i < VMS; i++)
        stop(&vms[i]);
    spit(MACHINE_FRAMES);
    assert_int_equal(free_frames(), free_at_start);
}

static struct sum expected_contents(void)
{
    world();
    assert_int_equal(vm_load_begin(&vms[0], why), 0);
    assert_int_equal(vm_load(&vms[0], why), 0);
    struct sum sum = contents(&vms[0]);
    end_world();
    return sum;
}

// --- Tests ---

static unsigned way_count, way_at;
static bool met;

static void reset_the_other(void)
{
    eat();
    if (++way_count != way_at)
        return;
    met = true;
    way_hook = eat;
    assert_int_equal(reset(&vms[1]), 0);
    way_hook = reset_the_other;
}

// A full machine, two VMs, and a neighbour that takes all it can get whenever a reset gives way.
// The second is reset anywhere in the first one's reset: both get back what they had.
static void two_resets_at_once(void **state)
{
    (void)state;
    files(50, 30);
    struct sum expected = expected_contents();
    assert_true(expected.pages > 90);
    met = true;
    for (way_at = 1; met; way_at++) {
        met = false;
        way_count = 0;
        world();
        for (unsigned i = 0; i < 2; i++) {
            assert_int_equal(vm_load_begin(&vms[i], why), 0);
            assert_int_equal(vm_load(&vms[i], why), 0);
        }
        eat();
        assert_int_equal(free_frames(), RESERVE);
        way_hook = reset_the_other;
        assert_int_equal(reset(&vms[0]), 0);
        way_hook = NULL;
        for (unsigned i = 0; i < 2; i++)
            assert_int_equal(contents(&vms[i]).hash, expected.hash);
        // Page tables are not held: the neighbour may have got the old ones.
        assert_in_range(free_frames(), RESERVE - 16, RESERVE);
        end_world();
    }
    assert_true(way_at > 8);
}

// The files have grown. The first one to be reset takes what nobody else may have and waits then;
// so does the second, which had what it needs but for that; both get on as memory comes.
static void two_that_wait(void **state)
{
    (void)state;
    files(50, 40);
    struct sum expected = expected_contents();
    for (unsigned drop = 1; drop < 60; drop += 7) {
        world();
        files(10, 5);
        for (unsigned i = 0; i < 2; i++) {
            assert_int_equal(vm_load_begin(&vms[i], why), 0);
            assert_int_equal(vm_load(&vms[i], why), 0);
        }
        eat();
        files(50, 40);
        way_hook = eat;
        for (unsigned i = 0; i < 2; i++)
            assert_int_equal(reset(&vms[i]), E_NOMEM);
        assert_int_equal(free_frames(), RESERVE / 4);
        unsigned rounds = 0;
        while (vms[0].restarting || vms[1].restarting) {
            for (unsigned i = 0; i < 2; i++) {
                uint64_t before = vms[i].account.private_frames;
                if (vms[i].restarting && try_load(&vms[i]) != 0)
                    assert_true(vms[i].account.private_frames >= before);
            }
            spit(drop);
            assert_true(rounds++ < 200);
        }
        way_hook = NULL;
        for (unsigned i = 0; i < 2; i++)
            assert_int_equal(contents(&vms[i]).hash, expected.hash);
        end_world();
    }
}

// Everything at random, with allocations that fail.
static void at_random(void **state)
{
    (void)state;
    unsigned loads = 0, waits = 0;
    struct sum expected[4];
    static const uint64_t sizes[4][2] = {{10, 0}, {50, 40}, {64, 3}, {1, 25}};
    for (unsigned i = 0; i < 4; i++) {
        files(sizes[i][0], sizes[i][1]);
        expected[i] = expected_contents();
    }
    for (unsigned seed = 0; seed < 60; seed++) {
        srand(seed);
        world();
        unsigned chosen = 0, size_of[VMS] = {0};
        for (unsigned step = 0; step < 150; step++) {
            unsigned i = (unsigned)rand() % VMS;
            struct vm *vm = &vms[i];
            fake_set_cpu((unsigned)rand() % 2);
            fail_in = rand() % 3 == 0 ? 1 + (unsigned)rand() % 100 : 0;
            way_hook = rand() % 2 ? eat : NULL;
            int status = E_BUSY;
            switch (rand() % 8) {
            case 0:
            case 1:
                // Others that wait read their files anew below: theirs must not change here.
                if (!vms[0].restarting && !vms[1].restarting && !vms[2].restarting) {
                    chosen = (unsigned)rand() % 4;
                    files(sizes[chosen][0], sizes[chosen][1]);
                }
                size_of[i] = chosen;
                status = reset(vm);
                break;
            case 2:
                stop(vm);
                break;
            case 3:
                eat();
                break;
            case 4:
                spit((unsigned)rand() % 40);
                break;
            default:
                if (vm->restarting)
                    status = try_load(vm);
                break;
            }
            if (status == 0)
                assert_int_equal(contents(vm).hash, expected[size_of[i]].hash);
            loads += status == 0;
            waits += status == E_NOMEM;
            // A guest that runs may write: only what was just loaded is compared.
            if (vm->memory_present && !vm->restarting && rand() % 2)
                guest_write(vm, gpa(8 * MIB + (unsigned)rand() % 64 * PAGE_SIZE), "x", 1);
            for (unsigned k = 0; k < VMS; k++)
                assert_true(vms[k].restarting || vms[k].account.held == 0);
        }
        // With memory all of them get on.
        fail_in = 0;
        way_hook = NULL;
        spit(MACHINE_FRAMES);
        for (unsigned i = 0; i < VMS; i++)
            if (vms[i].restarting) {
                assert_int_equal(try_load(&vms[i]), 0);
                assert_int_equal(contents(&vms[i]).hash, expected[size_of[i]].hash);
            }
        end_world();
    }
    print_message("%u loads, %u that found no memory\n", loads, waits);
    assert_true(loads > 400 && waits > 1000);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(two_resets_at_once),
        cmocka_unit_test(two_that_wait),
        cmocka_unit_test(at_random),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
