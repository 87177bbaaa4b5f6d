// SPDX-License-Identifier: BSD-2-Clause
// sources: fusion/census.c fusion/census_list.c fusion/index.c fusion/index_table.c
// sources: ept/walk.c ept/map.c ept/large.c ept/destroy.c ept/shootdown.c
// sources: kernel/frames.c kernel/frame_buddy.c kernel/frame_cache.c kernel/frame_zero.c
// sources: kernel/frame_poison.c kernel/frame_account.c kernel/heap.c kernel/lock.c
// libs: -Wl,--wrap=frame_alloc
// The census over small VMs with a real EPT: pages appear, change, vanish and are fused while it
// sleeps; the figures are compared with a count of every page against every other.
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "fake.h"
#include "fusion/census_list.h"
#include "fusion/engine.h"
#include "fusion/page_ops.h"
#include "kernel/error.h"
#include "kernel/heap.h"
#include "kernel/irq.h"
#include "kernel/memory.h"
#include "kernel/sched.h"
#include "kernel/time.h"
#include "vm/layout.h"

#define RANGE_PAGES 512u

struct fusion_vm fusion_vms[INDEX_SLOTS];
static struct vm vms[INDEX_SLOTS];
static struct frame *table;
static unsigned fail_at; // the n-th allocation from now fails; 0: none
static bool failed;
static unsigned yields, sleeps, hashed_in_batch;
static bool in_batch;
static void (*sleep_hook)(void);
static void (*yield_hook)(void);
static uint64_t slept_from;

int __real_frame_alloc(enum frame_state state, unsigned order, unsigned flags,
                       struct frame_account *account, hfn_t *out);

int __wrap_frame_alloc(enum frame_state state, unsigned order, unsigned flags,
                       struct frame_account *account, hfn_t *out)
{
    if (fail_at != 0 && --fail_at == 0) {
        failed = true;
        return E_NOMEM;
    }
    return __real_frame_alloc(state, order, flags, account, out);
}

// --- The rooms around the census ---

struct fusion_vm *fusion_pin(uint8_t slot)
{
    struct fusion_vm *f = &fusion_vms[slot];
    if (!f->active)
        return NULL;
    f->users++;
    return f;
}

void fusion_unpin(struct fusion_vm *f)
{
    assert_true(f->users != 0);
    f->users--;
}

int fusion_group_find(const char *name)
{
    if (strcmp(name, "web") == 0)
        return 1;
    if (strcmp(name, "db") == 0)
        return 2;
    return -1;
}

static uint64_t weak_mask = UINT64_MAX;

static uint64_t hash_page(const void *page)
{
    assert_true(in_batch);
    assert_true(++hashed_in_batch <= 64);
    const uint64_t *w = page;
    uint64_t h = 0x1234567;
    for (unsigned i = 0; i < PAGE_SIZE / 8; i++)
        h = (h ^ w[i]) * 0x100000001b3 + i;
    return h & weak_mask;
}

static const struct page_ops ops = {.hash = hash_page, .name = "test"};

const struct page_ops *page_ops_begin(void)
{
    assert_false(in_batch);
    in_batch = true;
    hashed_in_batch = 0;
    return &ops;
}

void page_ops_end(void)
{
    assert_true(in_batch);
    in_batch = false;
}

static void nothing_held(void)
{
    assert_true(spin_none_held());
    assert_false(in_batch);
    for (unsigned i = 0; i < INDEX_SLOTS; i++)
        assert_int_equal(fusion_vms[i].users, 0);
}

void fiber_yield(void)
{
    nothing_held();
    yields++;
    if (yield_hook != NULL)
        yield_hook();
}

void fiber_give_way(void)
{
    fiber_yield();
}

void fiber_give_way_if_due(void)
{
    fiber_yield();
}

// Wakes too early twice, then in time.
void fiber_sleep_until(uint64_t deadline)
{
    nothing_held();
    if (sleeps++ == 0) {
        slept_from = fake_tsc;
        if (sleep_hook != NULL)
            sleep_hook();
    }
    assert_in_range(deadline - slept_from, 10 * tsc_hz - 10, 10 * tsc_hz);
    fake_tsc = sleeps <= 2 ? fake_tsc + tsc_hz : deadline;
}

void irq_send_nmi(uint32_t cpu)
{
    (void)cpu;
    fail();
}

// --- VMs ---

static uint64_t free_frames(void)
{
    struct frames_snapshot s;
    frames_snapshot(&s, NULL, 0, NULL, NULL);
    return s.count[FRAME_FREE];
}

static void create(unsigned slot, uint64_t id, uint8_t group, uint64_t ranges)
{
    struct vm *vm = &vms[slot];
    memset(vm, 0, sizeof(*vm));
    vm->id = id;
    vm->ranges = ranges;
    assert_int_equal(ept_init(&vm->ept, id), 0);
    fusion_vms[slot] =
        (struct fusion_vm){.vm = vm, .slot = (uint8_t)slot, .group = group, .active = true};
}

static void release_page(void *context, gfn_t gfn, struct ept_leaf leaf)
{
    struct vm *vm = context;
    if (leaf.kind != EPT_KIND_SHARED)
        frame_free(leaf.frame, leaf.level == EPT_4K ? 0 : 9, &vm->account);
    (void)gfn;
}

static void destroy(unsigned slot)
{
    struct vm *vm = &vms[slot];
    gfn_t next = {0};
    fusion_vms[slot].active = false;
    while (ept_for_each(&vm->ept, &next, 100, release_page, vm) == E_AGAIN)
        ;
    while (ept_destroy(&vm->ept, 100) == E_AGAIN)
        ;
}

static void machine_of(uint64_t frames)
{
    fake_machine(frames * PAGE_SIZE, 1);
    free(table);
    table = calloc(1, frames_table_bytes(hpa(frames * PAGE_SIZE)));
    assert_non_null(table);
    frames_init(table, hpa(frames * PAGE_SIZE));
    frames_add(hfn(1), frames - 1, FRAME_FREE);
    heap_init();
    memset(ept_cpus, 0, sizeof(ept_cpus));
    ept_features = (struct ept_features){
        .page_2m = true, .execute_only = true, .invept_single = true, .invept_all = true};
    memset(fusion_vms, 0, sizeof(fusion_vms));
    fail_at = 0;
    yields = sleeps = 0;
    sleep_hook = yield_hook = NULL;
    weak_mask = UINT64_MAX;
}

static void machine(void)
{
    machine_of(512);
}

static void finish(void)
{
    nothing_held();
    for (unsigned i = 0; i < INDEX_SLOTS; i++)
        if (fusion_vms[i].active)
            destroy(i);
    free(table);
    table = NULL;
}

// Contents by number: 0 is the zero page; others differ in the last byte only.
static void fill_page(hfn_t f, unsigned content)
{
    uint8_t *p = hfn_to_pointer(f);
    memset(p, content == 0 ? 0 : 0x5a, PAGE_SIZE);
    p[PAGE_SIZE - 1] = (uint8_t)content;
}

static void map(unsigned slot, gfn_t gfn, hfn_t frame, enum ept_kind kind)
{
    struct ept *ept = &vms[slot].ept;
    assert_int_equal(ept_prepare(ept, gfn), 0);
    ept_lock_gfn(ept, gfn);
    assert_int_equal(ept_map(ept, gfn, frame, EPT_4K,
                             kind == EPT_KIND_PRIVATE ? EPT_RWX : EPT_READ | EPT_EXECUTE, kind),
                     0);
    ept_unlock_gfn(ept, gfn);
}

static hfn_t add_page(unsigned slot, uint64_t gfn_number, unsigned content)
{
    hfn_t f;
    assert_int_equal(frame_alloc(FRAME_PRIVATE, 0, 0, &vms[slot].account, &f), 0);
    fill_page(f, content);
    map(slot, gfn(gfn_number), f, EPT_KIND_PRIVATE);
    return f;
}

static void remove_page(unsigned slot, uint64_t gfn_number)
{
    struct ept_leaf old;
    ept_lock_gfn(&vms[slot].ept, gfn(gfn_number));
    assert_int_equal(ept_unmap(&vms[slot].ept, gfn(gfn_number), &old), 0);
    ept_unlock_gfn(&vms[slot].ept, gfn(gfn_number));
    if (old.kind != EPT_KIND_SHARED)
        frame_free(old.frame, 0, &vms[slot].account);
}

static struct fusion_census census_of(const char *group)
{
    struct fusion_census out;
    uint64_t before = free_frames();
    sleeps = 0;
    memset(&out, 0xee, sizeof(out));
    assert_int_equal(fusion_census(group, &out), 0);
    assert_int_equal(sleeps, 3);
    if (sleep_hook == NULL && yield_hook == NULL)
        assert_int_equal(free_frames(), before);
    nothing_held();
    return out;
}

// --- The tests ---

static void test_empty(void **state)
{
    (void)state;
    struct fusion_census out;
    machine();
    assert_int_equal(fusion_census(NULL, &out), E_NOENT);
    create(0, 1, 1, 1);
    assert_int_equal(fusion_census("nobody", &out), E_NOENT);
    assert_int_equal(fusion_census("db", &out), E_NOENT);
    assert_int_equal(sleeps, 0);
    out = census_of("web");
    assert_int_equal(out.vms, 1);
    out.vms = 0;
    const struct fusion_census nothing = {0};
    assert_memory_equal(&out, &nothing, sizeof(out));
    finish();
}

static hfn_t changing[8];

static void change_some(void)
{
    fill_page(changing[0], 7); // to what others have
    fill_page(changing[1], 0);
    remove_page(1, 300);
    add_page(1, 301, 5);
}

static void test_small(void **state)
{
    (void)state;
    machine();
    create(3, 11, 1, 2);
    create(5, 12, 1, 1);
    create(1, 13, 2, 1);
    // web: 7 three times, 5 twice, 8 once, zero three times; 9 and 10 once each for now.
    add_page(3, 0, 7);
    add_page(3, 1023, 7);
    add_page(5, 511, 7);
    add_page(5, 64, 5);
    add_page(3, 63, 5);
    add_page(5, 65, 8);
    add_page(5, 66, 0);
    add_page(5, 67, 0);
    add_page(3, 512, 0);
    changing[0] = add_page(3, 100, 9);
    changing[1] = add_page(3, 101, 10);
    // db: what web has too, and zero pages.
    add_page(1, 5, 7);
    add_page(1, 6, 8);
    add_page(1, 7, 8);
    add_page(1, 8, 0);
    add_page(1, 300, 5);
    struct fusion_census out = census_of("web");
    struct fusion_census expected = {
        .vms = 2,
        .resident = 11,
        .zero = 3,
        .shareable = 2 + 1 + 2,
        .shareable_zero = 2,
        .unchanged = 11,
        .unchanged_shareable = 5,
        .unchanged_shareable_zero = 2,
    };
    assert_memory_equal(&out, &expected, sizeof(out));
    out = census_of(NULL); // groups stay apart
    expected = (struct fusion_census){
        .vms = 3,
        .resident = 16,
        .zero = 4,
        .shareable = 6,
        .shareable_zero = 2,
        .unchanged = 16,
        .unchanged_shareable = 6,
        .unchanged_shareable_zero = 2,
    };
    assert_memory_equal(&out, &expected, sizeof(out));
    sleep_hook = change_some;
    out = census_of(NULL);
    expected = (struct fusion_census){
        .vms = 3,
        .resident = 16,
        .zero = 5,
        .shareable = (3 + 1 + 3) + 1,
        .shareable_zero = 3,
        .unchanged = 13,
        .unchanged_shareable = 6,
        .unchanged_shareable_zero = 2,
    };
    assert_memory_equal(&out, &expected, sizeof(out));
    finish();
}

// Shared frames count as resident at every gfn, and as saved.
static void test_saved(void **state)
{
    (void)state;
    machine();
    create(0, 1, 1, 1);
    create(1, 2, 1, 1);
    create(2, 3, 2, 1);
    hfn_t shared[4];
    for (unsigned i = 0; i < 4; i++) {
        assert_int_equal(frame_alloc(FRAME_FUSOR, 0, 0, NULL, &shared[i]), 0);
        fill_page(shared[i], i == 3 ? 1 : i);
        table[shared[i].raw].state = FRAME_SHARED;
    }
    for (unsigned i = 0; i < 5; i++)
        map(i % 2, gfn(10 + i), shared[0], EPT_KIND_SHARED); // zero, five sharers
    map(0, gfn(20), shared[1], EPT_KIND_SHARED);
    map(1, gfn(20), shared[1], EPT_KIND_SHARED);
    map(1, gfn(21), shared[2], EPT_KIND_SHARED); // the last sharer
    map(1, gfn(22), shared[3], EPT_KIND_SHARED); // a duplicate of shared[1], not saved
    map(2, gfn(9), shared[2], EPT_KIND_CANDIDATE);
    map(2, gfn(8), shared[3], EPT_KIND_SHARED);
    map(2, gfn(7), shared[3], EPT_KIND_SHARED);
    struct fusion_census out = census_of("web");
    assert_int_equal(out.resident, 9);
    assert_int_equal(out.saved, 4 + 1);
    assert_int_equal(out.shareable, 4 + 2);
    assert_int_equal(out.shareable_zero, 4);
    out = census_of("db");
    assert_int_equal(out.resident, 3);
    assert_int_equal(out.saved, 1);
    for (unsigned i = 0; i < 4; i++)
        table[shared[i].raw].state = FRAME_FUSOR;
    for (unsigned s = 0; s < 3; s++) // so that destroy() frees none of these
        fusion_vms[s].active = false;
    finish();
}

// RAM above 4 GiB, a large page, and leaves that are no RAM.
static void test_layout(void **state)
{
    (void)state;
    machine_of(4096);
    uint64_t low = LAYOUT_HOLE / PAGE_SIZE, high = LAYOUT_ABOVE_4G / PAGE_SIZE;
    create(0, 1, 1, low / RANGE_PAGES + 2);
    add_page(0, 0, 3);
    add_page(0, low - 1, 3);
    add_page(0, low, 3); // the hole's first page is no RAM; nobody looks there
    add_page(0, high, 3);
    add_page(0, high + 2 * RANGE_PAGES - 1, 3);
    add_page(0, high + 2 * RANGE_PAGES, 3); // beyond the end
    hfn_t large;
    assert_int_equal(frame_alloc(FRAME_PRIVATE, 9, FRAME_ZEROED, &vms[0].account, &large), 0);
    assert_int_equal(ept_prepare_level(&vms[0].ept, gfn(1024), EPT_2M), 0);
    ept_lock_gfn(&vms[0].ept, gfn(1024));
    assert_int_equal(ept_map(&vms[0].ept, gfn(1024), large, EPT_2M, EPT_RWX, EPT_KIND_PRIVATE), 0);
    ept_unlock_gfn(&vms[0].ept, gfn(1024));
    fill_page(hfn(large.raw + 17), 3);
    struct fusion_census out = census_of(NULL);
    assert_int_equal(out.resident, 4 + 512);
    assert_int_equal(out.zero, 511);
    assert_int_equal(out.shareable, 4 + 510);
    assert_int_equal(out.shareable_zero, 510);
    assert_int_equal(out.unchanged_shareable, 4 + 510);
    finish();
}

// --- VMs that go meanwhile ---

static unsigned go_at; // the yield at which it happens
static unsigned how;

static void go(void)
{
    if (yields != go_at)
        return;
    destroy(1);
    if (how == 1) { // another VM in the slot
        create(1, 99, 1, 3);
        add_page(1, 3, 2);
    } else if (how == 2) { // the same VM was reset
        create(1, 2, 1, 3);
        add_page(1, 3, 2);
    } else if (how == 3) { // the same VM, now in another group
        create(1, 2, 2, 3);
        add_page(1, 3, 2);
    }
}

static void test_destroyed(void **state)
{
    (void)state;
    for (how = 0; how < 4; how++) {
        bool happened = true, dropped = false;
        for (go_at = 1; happened; go_at++) {
            machine();
            create(0, 1, 1, 1);
            create(1, 2, 1, 3);
            create(2, 3, 1, 1);
            add_page(0, 1, 1);
            add_page(0, 2, 2);
            add_page(1, 1, 1);
            add_page(1, 2, 1);
            add_page(1, 3, 0);
            add_page(2, 1, 1);
            add_page(2, 2, 0);
            yield_hook = go;
            struct fusion_census out = census_of("web");
            happened = yields >= go_at;
            // With VM 1 or without; after a reset its pages count as what they are then.
            if (out.vms == 2) {
                assert_int_equal(out.resident, 4);
                assert_int_equal(out.shareable, 1);
                assert_int_equal(out.zero, 1);
                assert_int_equal(out.shareable_zero, 0);
                assert_int_equal(out.unchanged, 4);
                assert_int_not_equal(how, 2);
                dropped = true;
            } else {
                assert_int_equal(out.vms, 3);
                assert_in_range(out.resident, how == 2 ? 5 : 7, 7);
                assert_in_range(out.unchanged, 4, 7);
                assert_true(out.shareable <= 4);
            }
            finish();
        }
        assert_int_equal(dropped, how != 2);
        assert_true(go_at > 30);
    }
}

// --- Failures ---

static void try_again(void)
{
    struct fusion_census out;
    assert_int_equal(fusion_census(NULL, &out), E_BUSY);
}

static void test_failures(void **state)
{
    (void)state;
    struct fusion_census out;
    unsigned n = 0;
    do {
        machine();
        create(0, 1, 1, 3);
        add_page(0, 1, 1);
        add_page(0, 2, 1);
        uint64_t before = free_frames();
        failed = false;
        fail_at = ++n;
        int status = fusion_census(NULL, &out);
        fail_at = 0;
        assert_int_equal(status, failed ? E_NOMEM : 0);
        assert_int_equal(free_frames(), before);
        sleep_hook = try_again; // the failed one does not count as running, this one does
        assert_int_equal(census_of(NULL).shareable, 1);
        assert_int_equal(free_frames(), before);
        finish();
    } while (failed);
    assert_int_equal(n,
                     1 + 1 + 1 + 3 + 1); // zero page, heap, middle, leaves; and the one that works
    // Not enough beyond the reserve: nothing is taken, not even for a moment.
    machine();
    create(0, 1, 1, 40); // a list of 42 frames
    add_page(0, 1, 1);
    frames_set_reserve(free_frames() - 41);
    uint64_t before = free_frames();
    unsigned yields_before = yields;
    assert_int_equal(fusion_census(NULL, &out), E_NOMEM);
    assert_int_equal(yields, yields_before);
    assert_int_equal(free_frames(), before);
    frames_set_reserve(free_frames() - 42);
    assert_int_equal(fusion_census(NULL, &out), 0);
    assert_int_equal(out.resident, 1);
    finish();
}

// A hash of zero is a page like others.
static void test_hash_zero(void **state)
{
    (void)state;
    machine();
    weak_mask = 0; // so all pages look the same, and like the zero page
    create(0, 1, 1, 1);
    for (unsigned i = 0; i < 100; i++)
        add_page(0, i, i);
    struct fusion_census out = census_of(NULL);
    assert_int_equal(out.resident, 100);
    assert_int_equal(out.zero, 100);
    assert_int_equal(out.shareable, 99);
    finish();
}

// --- The list ---

static uint64_t random_state;

static uint64_t random64(void)
{
    random_state += 0x9e3779b97f4a7c15;
    uint64_t z = random_state;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9;
    z = (z ^ z >> 27) * 0x94d049bb133111eb;
    return z ^ z >> 31;
}

static int by_value(const void *a, const void *b)
{
    uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
    return (x > y) - (x < y);
}

static void test_sort(void **state)
{
    (void)state;
    static const uint64_t counts[] = {0,    1,    2,    3,     4,      511,    512,   513,
                                      1000, 4095, 5000, 65536, 262144, 262145, 300000};
    static const uint64_t masks[] = {UINT64_MAX, 0xff, 0, 1};
    static uint64_t naive[300000];
    machine_of(1024);
    for (unsigned i = 0; i < ARRAY_SIZE(counts); i++) {
        for (unsigned m = 0; m < ARRAY_SIZE(masks) + 2; m++) {
            uint64_t n = counts[i], before = free_frames();
            struct census_list list;
            assert_int_equal(census_list_create(&list, n), 0);
            for (uint64_t j = 0; j < n; j++) {
                assert_int_equal(*census_list_at(&list, j), 0);
                naive[j] = m < ARRAY_SIZE(masks)    ? random64() & masks[m]
                           : m == ARRAY_SIZE(masks) ? j
                                                    : n - j;
                *census_list_at(&list, j) = naive[j];
            }
            uint64_t sorted = n - n / 7; // a part of it
            census_list_sort(&list, sorted);
            qsort(naive, sorted, sizeof(*naive), by_value);
            for (uint64_t j = 0; j < n; j++)
                if (*census_list_at(&list, j) != naive[j])
                    fail();
            census_list_destroy(&list);
            assert_int_equal(free_frames(), before);
        }
    }
    finish();
}

// --- Random VMs against a naive count ---

#define VMS   4u
#define PAGES 60u

static struct model_page {
    int before, after; // content, -1: not there
    hfn_t frame;
} model[VMS][PAGES];

static uint64_t gfn_of(unsigned page)
{
    return page * 17; // over two ranges
}

static void mutate(void)
{
    for (unsigned v = 0; v < VMS; v++) {
        for (unsigned i = 0; i < PAGES; i++) {
            struct model_page *p = &model[v][i];
            unsigned what = (unsigned)(random64() % 12);
            if (p->before < 0) {
                if (what < 3) {
                    p->after = (int)(random64() % 12);
                    p->frame = add_page(v, gfn_of(i), (unsigned)p->after);
                }
            } else if (what == 0) {
                remove_page(v, gfn_of(i));
                p->after = -1;
            } else if (what == 1) {
                p->after = (int)(random64() % 12);
                fill_page(p->frame, (unsigned)p->after);
            } else if (what == 2) { // moved, same content
                remove_page(v, gfn_of(i));
                p->frame = add_page(v, gfn_of(i), (unsigned)p->after);
            }
        }
    }
}

static struct fusion_census naive_count(int group)
{
    struct fusion_census out = {0};
    for (unsigned g = 0; g < INDEX_SLOTS; g++) {
        uint64_t all[12] = {0}, unchanged[12] = {0};
        for (unsigned v = 0; v < VMS; v++) {
            if (fusion_vms[v].group != g || (group >= 0 && (int)g != group))
                continue;
            out.vms++;
            for (unsigned i = 0; i < PAGES; i++) {
                const struct model_page *p = &model[v][i];
                if (p->after < 0)
                    continue;
                all[p->after]++;
                unchanged[p->after] += p->before == p->after;
                out.resident++;
                out.unchanged += p->before == p->after;
            }
        }
        out.zero += all[0];
        for (unsigned c = 0; c < 12; c++) {
            uint64_t beyond = all[c] != 0 ? all[c] - 1 : 0;
            uint64_t unchanged_beyond = unchanged[c] != 0 ? unchanged[c] - 1 : 0;
            out.shareable += beyond;
            out.unchanged_shareable += unchanged_beyond;
            if (c == 0) {
                out.shareable_zero += beyond;
                out.unchanged_shareable_zero += unchanged_beyond;
            }
        }
    }
    return out;
}

static void test_random(void **state)
{
    (void)state;
    for (uint64_t seed = 1; seed <= 200; seed++) {
        random_state = seed;
        machine();
        for (unsigned v = 0; v < VMS; v++) {
            create(v, v + 1, (uint8_t)(1 + random64() % 3), 2);
            for (unsigned i = 0; i < PAGES; i++) {
                struct model_page *p = &model[v][i];
                p->before = (int)(random64() % 13) - 1;
                p->after = p->before;
                if (p->before >= 0)
                    p->frame = add_page(v, gfn_of(i), (unsigned)p->before);
            }
        }
        fusion_vms[0].group = 1;
        sleep_hook = mutate;
        bool named = random64() % 2 == 0;
        struct fusion_census out = census_of(named ? "web" : NULL);
        struct fusion_census expected = naive_count(named ? 1 : -1);
        assert_memory_equal(&out, &expected, sizeof(out));
        finish();
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_empty),     cmocka_unit_test(test_small),
        cmocka_unit_test(test_saved),     cmocka_unit_test(test_layout),
        cmocka_unit_test(test_destroyed), cmocka_unit_test(test_failures),
        cmocka_unit_test(test_hash_zero), cmocka_unit_test(test_sort),
        cmocka_unit_test(test_random),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
