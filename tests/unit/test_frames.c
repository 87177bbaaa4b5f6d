// SPDX-License-Identifier: BSD-2-Clause
// sources: kernel/frames.c kernel/frame_buddy.c kernel/frame_cache.c kernel/frame_zero.c
// sources: kernel/frame_poison.c kernel/frame_account.c kernel/lock.c kernel/frame_share.c
// sources: kernel/frame_hold.c
// The frame allocator: identities after every operation, exhaustion, reserve, orders, zeroing,
// caches of other CPUs, broken use.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <stdlib.h>
#include <string.h>

#include "fake.h"
#include "kernel/error.h"
#include "kernel/frames_internal.h"
#include "kernel/memory.h"

static struct frame *table;

// A machine whose frames [8, total) are free and [0, 8) are Fusor's, but for page 0.
#define USED 8u
static void setup(uint64_t total, unsigned cpu_number)
{
    fake_machine(total * PAGE_SIZE, cpu_number);
    hpa_t end = hpa(total * PAGE_SIZE);
    free(table);
    table = calloc(1, frames_table_bytes(end));
    frames_init(table, end);
    frames_add(hfn(1), USED - 1, FRAME_FUSOR);
    frames_add(hfn(USED), total - USED, FRAME_FREE);
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

// What the allocator says must agree with the frame table, and every free frame must be in exactly
// one place.
static void check_everything(struct frame_account *const *accounts, size_t account_count)
{
    uint64_t private_frames[8] = {0}, shared[8] = {0};
    struct frames_snapshot s;
    assert_true(account_count <= 8);
    frames_snapshot(&s, accounts, account_count, private_frames, shared);
    uint64_t states[FRAME_STATES] = {0}, sum = 0, sum_private = 0;
    for (uint64_t n = 0; n < frames.limit; n++)
        states[table[n].state]++;
    for (unsigned i = FRAME_FREE; i < FRAME_STATES; i++) {
        assert_int_equal(s.count[i], states[i]);
        sum += s.count[i];
    }
    assert_int_equal(sum, s.total);
    for (size_t i = 0; i < account_count; i++)
        sum_private += private_frames[i];
    if (account_count != 0)
        assert_int_equal(sum_private, s.count[FRAME_PRIVATE]);

    uint8_t *seen = calloc(1, frames.limit);
    uint64_t found = 0;
    for (unsigned order = 0; order <= FRAME_MAX_ORDER; order++) {
        uint32_t previous = FRAME_NIL;
        for (uint32_t n = frames.heads[order]; n != FRAME_NIL; n = table[n].free.next) {
            assert_int_equal(table[n].free.prev, previous);
            assert_int_equal(table[n].order, order);
            assert_true((table[n].flags & FRAME_F_HEAD) != 0);
            assert_int_equal(n & ((1u << order) - 1), 0);
            for (uint32_t i = n; i < n + (1u << order); i++) {
                assert_int_equal(table[i].state, FRAME_FREE);
                assert_int_equal(seen[i]++, 0);
            }
            found += 1u << order;
            previous = n;
        }
        assert_int_equal((frames.nonempty >> order) & 1, frames.heads[order] != FRAME_NIL);
    }
    assert_int_equal(found, frames.buddy_free);
    for (uint32_t c = 0; c < MAX_CPUS; c++) {
        for (unsigned kind = 0; kind < CACHE_KINDS; kind++) {
            assert_true(frame_cpus[c].stack[kind].count <= FRAME_CACHE_MAX);
            for (uint32_t i = 0; i < frame_cpus[c].stack[kind].count; i++, found++) {
                uint32_t n = frame_cpus[c].stack[kind].frame[i];
                assert_int_equal(table[n].state, FRAME_FREE);
                assert_int_equal(seen[n]++, 0);
            }
        }
    }
    for (uint32_t n = frames.zero_head; n != FRAME_NIL; n = table[n].free.next, found++) {
        assert_int_equal(table[n].state, FRAME_FREE);
        assert_int_equal(seen[n]++, 0);
    }
    assert_int_equal(found, s.count[FRAME_FREE]);
    assert_int_equal(frames.reserve_short, frames.buddy_free < frames.reserve + frames.held);
    assert_true(spin_none_held());
    free(seen);
}

static bool is_zero(hfn_t n, uint64_t pages)
{
    const uint8_t *p = hfn_to_pointer(n);
    for (uint64_t i = 0; i < pages * PAGE_SIZE; i++) {
        if (p[i] != 0)
            return false;
    }
    return true;
}

static void test_table(void **state)
{
    (void)state;
    assert_int_equal(sizeof(struct frame), 32);
    assert_int_equal(frames_table_bytes(hpa(GIB)), 262144 * 32);
    assert_int_equal(frames_table_bytes(hpa(1)), PAGE_SIZE);
    setup(64, 1);
    assert_null(frame_of(hfn(0)));
    assert_non_null(frame_of(hfn(1)));
    assert_ptr_equal(frame_of(hfn(63)), &table[63]);
    assert_null(frame_of(hfn(64)));
    assert_null(frame_of(hfn(UINT64_MAX)));
    frames_count_files(3);
    struct frames_snapshot s = snapshot();
    assert_int_equal(s.total, 63);
    assert_int_equal(s.count[FRAME_FUSOR], USED - 1);
    assert_int_equal(s.count[FRAME_FREE], 64 - USED);
    assert_int_equal(s.file_frames, 3);
    assert_int_equal(s.saved, 0);
    check_everything(NULL, 0);
}

// Neighbouring ranges that are added one after the other become one block.
static void test_ranges_merge(void **state)
{
    (void)state;
    fake_machine(2048 * PAGE_SIZE, 1);
    hpa_t end = hpa(2048 * PAGE_SIZE);
    free(table);
    table = calloc(1, frames_table_bytes(end));
    frames_init(table, end);
    frames_add(hfn(512), 100, FRAME_FREE);
    frames_add(hfn(612), 412, FRAME_FREE);
    check_everything(NULL, 0);
    assert_int_equal(frames.heads[9], 512);
    frames_add(hfn(1024), 1024, FRAME_FREE);
    frames_add(hfn(1), 511, FRAME_FREE);
    assert_int_equal(frames.heads[10], 1024);
    assert_true(fake_expect_panic(frames_add(hfn(600), 1, FRAME_FREE)));
    check_everything(NULL, 0);
}

static void test_orders(void **state)
{
    (void)state;
    setup(4096, 1);
    for (unsigned order = 0; order <= 11; order++) {
        hfn_t n;
        assert_int_equal(frame_alloc(FRAME_TABLE, order, 0, NULL, &n), 0);
        assert_int_equal(n.raw & ((1u << order) - 1), 0);
        assert_int_equal(snapshot().count[FRAME_TABLE], 1u << order);
        check_everything(NULL, 0);
        frame_free(n, order, NULL);
        check_everything(NULL, 0);
    }
    hfn_t n = hfn(77);
    assert_int_equal(frame_alloc(FRAME_TABLE, 12, 0, NULL, &n), E_NOMEM);
    assert_int_equal(frame_alloc(FRAME_TABLE, FRAME_MAX_ORDER, 0, NULL, &n), E_NOMEM);
    assert_int_equal(n.raw, 77);
}

// A block freed frame by frame merges again.
static void test_block_freed_singly(void **state)
{
    (void)state;
    setup(1024, 2);
    struct frame_account account = {0};
    hfn_t n, m;
    assert_int_equal(frame_alloc(FRAME_PRIVATE, 9, FRAME_ZEROED, &account, &n), 0);
    assert_true(is_zero(n, 512));
    assert_int_equal(account.private_frames, 512);
    assert_int_equal(frame_alloc(FRAME_PRIVATE, 9, 0, &account, &m), E_NOMEM);
    for (uint64_t i = 0; i < 512; i++) {
        uint64_t version = frame_of(hfn(n.raw + i))->version;
        fake_set_cpu(i % 2);
        frame_free(hfn(n.raw + i), 0, &account);
        assert_int_equal(frame_of(hfn(n.raw + i))->version, version + 1);
    }
    assert_int_equal(account.private_frames, 0);
    check_everything(NULL, 0);
    // The first failure above used up one attempt to collect; the caches still hold frames now.
    int error = E_NOMEM;
    for (unsigned i = 0; i < FRAME_LARGE_BACKOFF && error != 0; i++)
        error = frame_alloc(FRAME_PRIVATE, 9, 0, &account, &m);
    assert_int_equal(error, 0);
    frame_free(m, 9, &account);
    check_everything(NULL, 0);
}

static void test_exhaustion(void **state)
{
    (void)state;
    setup(1000, 4);
    hfn_t all[1000];
    unsigned count = 0;
    while (fake_set_cpu(count % 4),
           frame_alloc(FRAME_FUSOR, 0, count % 3 == 0 ? FRAME_ZEROED : 0, NULL, &all[count]) == 0) {
        memset(hfn_to_pointer(all[count]), 0x77, PAGE_SIZE);
        count++;
        if (count % 100 == 0)
            while (frames_zero_some())
                ;
    }
    assert_int_equal(count, 1000 - USED); // to the last frame, wherever it lay
    assert_int_equal(free_frames(), 0);
    check_everything(NULL, 0);
    assert_false(frames_zero_some());
    for (unsigned i = 0; i < count; i++) {
        fake_set_cpu(i / 100 % 4);
        frame_free(all[i], 0, NULL);
    }
    assert_int_equal(free_frames(), 1000 - USED);
    check_everything(NULL, 0);
    // All of it again, from another CPU than those that have it in their caches.
    fake_set_cpu(3);
    for (unsigned i = 0; i < 1000 - USED; i++)
        assert_int_equal(frame_alloc(FRAME_FUSOR, 0, 0, NULL, &all[i]), 0);
    assert_int_equal(frame_alloc(FRAME_FUSOR, 0, FRAME_RESERVE, NULL, &all[0]), E_NOMEM);
    check_everything(NULL, 0);
}

// Frames that lie in other CPUs' caches must serve a block, too.
static void test_caches_are_collected(void **state)
{
    (void)state;
    setup(64, 2);
    hfn_t all[64], n;
    for (unsigned i = 0; i < 64 - USED; i++)
        assert_int_equal(frame_alloc(FRAME_FUSOR, 0, 0, NULL, &all[i]), 0);
    for (unsigned i = 0; i < 64 - USED; i++)
        frame_free(all[i], 0, NULL);
    assert_true(frame_cpus[0].stack[CACHE_PLAIN].count != 0);
    assert_int_equal(frames.heads[5], FRAME_NIL);
    fake_set_cpu(1);
    assert_int_equal(frame_alloc(FRAME_FUSOR, 5, 0, NULL, &n), 0);
    assert_int_equal(n.raw, 32);
    check_everything(NULL, 0);
}

static void test_reserve(void **state)
{
    (void)state;
    setup(500, 3);
    while (frames_zero_some())
        ;
    frames_set_reserve(100);
    assert_int_equal(frames_reserve(), 100);
    hfn_t all[500], n;
    unsigned count = 0;
    struct frame_account account = {0};
    while (fake_set_cpu(count % 3),
           frame_alloc(FRAME_PRIVATE, 0, FRAME_ZEROED, &account, &all[count]) == 0) {
        count++;
        assert_true(free_frames() >= 100);
    }
    assert_int_equal(free_frames(), 100); // neither more nor less stays
    check_everything(NULL, 0);
    assert_int_equal(frame_alloc(FRAME_FUSOR, 3, 0, NULL, &n), E_NOMEM);

    // The reserve serves those that may, down to nothing.
    for (unsigned i = 0; i < 60; i++) {
        fake_set_cpu(i % 3);
        assert_int_equal(frame_alloc(FRAME_TABLE, 0, FRAME_RESERVE, NULL, &n), 0);
    }
    assert_int_equal(free_frames(), 40);
    check_everything(NULL, 0);
    // What is freed fills it up first.
    for (unsigned i = 0; i < 60; i++) {
        fake_set_cpu(i % 3);
        frame_free(all[--count], 0, &account);
        fake_set_cpu((i + 1) % 3);
        assert_int_equal(frame_alloc(FRAME_PRIVATE, 0, 0, &account, &n), E_NOMEM);
        check_everything(NULL, 0);
    }
    assert_int_equal(free_frames(), 100);
    frame_free(all[--count], 0, &account);
    fake_set_cpu(0);
    assert_int_equal(frame_alloc(FRAME_PRIVATE, 0, 0, &account, &n), 0);
    assert_int_equal(free_frames(), 100);
    // A reserve that is lifted gives way at once; one beyond all memory stops everything.
    frames_set_reserve(0);
    assert_int_equal(frame_alloc(FRAME_PRIVATE, 0, 0, &account, &n), 0);
    frames_set_reserve(1000000);
    assert_int_equal(frame_alloc(FRAME_PRIVATE, 0, 0, &account, &n), E_NOMEM);
    assert_int_equal(frame_alloc(FRAME_TABLE, 2, FRAME_RESERVE, NULL, &n), 0);
    check_everything(NULL, 0);
}

// Takes until nothing is left for those who may not have the reserve.
static unsigned take_all(struct frame_account *account, hfn_t *all)
{
    unsigned count = 0;
    while (frame_alloc(FRAME_PRIVATE, 0, 0, account, &all[count]) == 0)
        count++;
    return count;
}

// What is held for somebody is as if the reserve were larger, from when it is there on.
static void test_hold(void **state)
{
    (void)state;
    setup(500, 2);
    frames_set_reserve(100);
    struct frame_account a = {0}, b = {0};
    hfn_t all[500], n;
    unsigned count = take_all(&a, all);
    uint64_t epoch = frames_reserve_epoch();
    for (unsigned i = 0; i < 60; i++) {
        fake_set_cpu(i % 2);
        frame_free_held(all[--count], 0, &a);
        assert_int_equal(frame_alloc(FRAME_PRIVATE, 0, 0, &b, &n), E_NOMEM);
        assert_int_equal(frame_alloc(FRAME_PRIVATE, 0, 0, &a, &n), E_NOMEM);
        assert_int_equal(frames_beyond_reserve(), 0);
        check_everything(NULL, 0);
    }
    assert_int_equal(a.held, 60);
    // What others free is theirs: beside what is held the reserve is full.
    frame_free(all[--count], 0, &a);
    assert_int_equal(frame_alloc(FRAME_PRIVATE, 0, FRAME_ZEROED, &b, &n), 0);
    frame_free(n, 0, &b);
    assert_int_equal(frame_alloc(FRAME_PRIVATE, 0, 0, &a, &all[count++]), 0);
    // The reserve is as full as it was, whatever is held.
    assert_int_equal(frames_reserve_epoch(), epoch);
    for (unsigned i = 0; i < 10; i++)
        assert_int_equal(frame_alloc(FRAME_TABLE, 0, FRAME_RESERVE, NULL, &n), 0);
    for (unsigned i = 0; i < 5; i++) {
        assert_int_equal(frame_alloc_held(FRAME_ZEROED, &a, &all[count]), 0);
        assert_true(is_zero(all[count], 1));
        frame_free_held(all[count], 0, &a);
        assert_int_equal(frames_reserve_epoch(), epoch);
    }
    for (unsigned i = 0; i < 10; i++) {
        assert_int_equal(frames_reserve_epoch(), epoch);
        assert_int_equal(frame_alloc(FRAME_PRIVATE, 0, 0, &b, &n), E_NOMEM);
        frame_free(all[--count], 0, &a);
    }
    assert_int_equal(frames_reserve_epoch(), epoch + 1);
    // All of it comes back, and so much of the reserve as nobody else may have.
    for (unsigned i = 0; i < 60; i++) {
        assert_int_equal(a.held, 60 - i);
        assert_int_equal(frame_alloc_held(0, &a, &all[count++]), 0);
    }
    for (unsigned i = 0; i < 75; i++)
        assert_int_equal(frame_alloc_held(0, &a, &all[count++]), 0);
    assert_int_equal(frame_alloc_held(0, &a, &n), E_NOMEM);
    assert_int_equal(free_frames(), 25);
    check_everything(NULL, 0);
    // A block is held as its frames; what is not taken is for all when it is held no more.
    hfn_t block;
    for (unsigned i = 0; i < 90; i++)
        frame_free(all[--count], 0, &a);
    assert_int_equal(frame_alloc(FRAME_PRIVATE, 2, FRAME_RESERVE, &a, &block), 0);
    frame_free_held(block, 2, &a);
    assert_int_equal(a.held, 4);
    assert_int_equal(frames_beyond_reserve(), 11);
    frames_hold_end(&a);
    assert_int_equal(a.held, 0);
    assert_int_equal(frames_beyond_reserve(), 15);
    frames_hold_end(&a);
    check_everything(NULL, 0);
}

// Two whose frames are held at the same time take nothing of each other's, whoever comes first and
// however much he wants.
static void test_two_hold(void **state)
{
    (void)state;
    for (unsigned turn = 0; turn < 2; turn++) {
        setup(500, 2);
        frames_set_reserve(100);
        struct frame_account a = {0}, b = {0}, *first = turn == 0 ? &a : &b;
        struct frame_account *second = turn == 0 ? &b : &a;
        hfn_t all[500], n;
        take_all(&a, all);
        frame_disown(all[0], &a); // some of them are b's
        for (unsigned i = 0; i < 40; i++) {
            if (i != 0)
                frame_disown(all[i], &a);
            frame_adopt(all[i], 0, &b);
        }
        for (unsigned i = 0; i < 40; i++) {
            frame_free_held(all[i], 0, &b);
            frame_free_held(all[40 + i], 0, &a);
        }
        // The first wants more than it had: what the other one holds stays.
        unsigned got = 0;
        while (frame_alloc_held(0, first, &n) == 0)
            got++;
        assert_int_equal(got, 40 + 75);
        assert_int_equal(second->held, 40);
        for (unsigned i = 0; i < 40; i++)
            assert_int_equal(frame_alloc_held(0, second, &n), 0);
        assert_int_equal(frame_alloc_held(0, second, &n), E_NOMEM);
        assert_int_equal(free_frames(), 25);
        frames_hold_end(&a);
        frames_hold_end(&b);
        check_everything(NULL, 0);
    }
}

// Page tables may take what is held when there is nothing else. Who has held longest has what is
// left, so that two do not wait for each other.
static void test_reserve_eats_held(void **state)
{
    (void)state;
    setup(500, 2);
    frames_set_reserve(100);
    struct frame_account account[3] = {{0}};
    hfn_t all[500], n;
    unsigned count = take_all(&account[0], all);
    for (unsigned i = 0; i < 90; i++) {
        frame_disown(all[i], &account[0]);
        frame_adopt(all[i], 0, &account[i % 3]);
    }
    for (unsigned i = 0; i < 90; i++)
        frame_free_held(all[89 - i], 0, &account[(89 - i) % 3]); // 2 is the first, 0 the last
    for (unsigned i = 0; i < 140; i++)
        assert_int_equal(frame_alloc(FRAME_TABLE, 0, FRAME_RESERVE, NULL, &n), 0);
    assert_int_equal(free_frames(), 50);
    assert_int_equal(frame_alloc_held(0, &account[0], &n), E_NOMEM);
    for (unsigned i = 0; i < 20; i++)
        assert_int_equal(frame_alloc_held(0, &account[1], &n), 0);
    assert_int_equal(frame_alloc_held(0, &account[1], &n), E_NOMEM);
    for (unsigned i = 0; i < 30; i++)
        assert_int_equal(frame_alloc_held(0, &account[2], &n), 0);
    assert_int_equal(frame_alloc_held(0, &account[2], &n), E_NOMEM);
    frames_hold_end(&account[2]); // it never freed the rest of what it wants
    frame_free(all[--count], 0, &account[0]);
    assert_int_equal(frame_alloc_held(0, &account[0], &n), E_NOMEM);
    assert_int_equal(frame_alloc_held(0, &account[1], &n), 0);
    frames_hold_end(&account[1]);
    frame_free(all[--count], 0, &account[0]);
    assert_int_equal(frame_alloc_held(0, &account[0], &n), 0);
    frames_hold_end(&account[0]);
    check_everything(NULL, 0);
}

// Everybody takes and frees at random, on all CPUs. A model of the numbers says what must be had.
static void test_hold_at_random(void **state)
{
    (void)state;
    enum { VMS = 4, MOST = 600 };
    for (unsigned seed = 0; seed < 40; seed++) {
        srand(seed);
        setup(MOST, 3);
        const uint64_t reserve = 64;
        frames_set_reserve(reserve);
        bool tables = seed % 2 != 0; // FRAME_RESERVE may take what is held
        struct frame_account account[VMS] = {{0}};
        hfn_t own[VMS][MOST], table_frames[MOST];
        uint64_t count[VMS] = {0}, holds[VMS] = {0}, tables_count = 0, sum = 0;
        for (unsigned step = 0; step < 4000; step++) {
            fake_set_cpu((unsigned)rand() % 3);
            unsigned vm = (unsigned)rand() % VMS;
            uint64_t n = free_frames();
            switch (rand() % 8) {
            case 0:
            case 1:
                if (frame_alloc(FRAME_PRIVATE, 0, (unsigned)rand() % 2, &account[vm],
                                &own[vm][count[vm]]) == 0) {
                    count[vm]++;
                    assert_true(n > reserve + sum);
                } else {
                    assert_true(n <= reserve + sum);
                }
                break;
            case 2:
            case 3:
            case 4: {
                int status =
                    frame_alloc_held((unsigned)rand() % 2, &account[vm], &own[vm][count[vm]]);
                count[vm] += status == 0;
                if (holds[vm] != 0) {
                    if (n >= sum) // no page table has taken of it
                        assert_int_equal(status, 0);
                    holds[vm] -= status == 0;
                    sum -= status == 0;
                } else {
                    assert_int_equal(status == 0, n > reserve / 4 + sum);
                }
                break;
            }
            case 5:
                if (count[vm] != 0)
                    frame_free(own[vm][--count[vm]], 0, &account[vm]);
                break;
            case 6:
                for (unsigned i = 0; i < 20 && count[vm] != 0; i++) {
                    frame_free_held(own[vm][--count[vm]], 0, &account[vm]);
                    holds[vm]++;
                    sum++;
                }
                if (rand() % 8 == 0) {
                    frames_hold_end(&account[vm]);
                    sum -= holds[vm];
                    holds[vm] = 0;
                }
                break;
            default:
                if (rand() % 2 == 0 && tables_count != 0)
                    frame_free(table_frames[--tables_count], 0, NULL);
                else if ((tables ? n : n - MIN(n, sum)) != 0 &&
                         frame_alloc(FRAME_TABLE, 0, FRAME_RESERVE, NULL,
                                     &table_frames[tables_count]) == 0)
                    tables_count++;
                break;
            }
            uint64_t held = 0;
            bool stuck = sum != 0 && free_frames() != 0;
            for (unsigned i = 0; i < VMS; i++) {
                assert_int_equal(account[i].held, holds[i]);
                held += account[i].held;
                if (stuck && holds[i] != 0 &&
                    frame_alloc_held(0, &account[i], &own[i][count[i]]) == 0) {
                    frame_free_held(own[i][count[i]], 0, &account[i]);
                    stuck = false;
                }
            }
            assert_int_equal(frames.held, held);
            assert_false(stuck); // one of those who wait gets on
            if (step % 256 == 0) {
                struct frame_account *accounts[VMS] = {&account[0], &account[1], &account[2],
                                                       &account[3]};
                check_everything(accounts, VMS);
            }
        }
        for (unsigned i = 0; i < VMS; i++)
            frames_hold_end(&account[i]);
        assert_int_equal(frames.held, 0);
        assert_null(frames.holders);
    }
}

static void test_zero_pool(void **state)
{
    (void)state;
    setup(8192, 2);
    unsigned calls = 1;
    uint64_t before = frames.zero_count;
    while (frames_zero_some()) {
        assert_true(frames.zero_count - before <= FRAME_ZERO_BATCH);
        before = frames.zero_count;
        calls++;
    }
    assert_int_equal(frames.zero_count, (8192 - USED) / 16);
    assert_true(calls >= (8192 - USED) / 16 / FRAME_ZERO_BATCH);
    assert_false(frames_zero_some());
    assert_int_equal(free_frames(), 8192 - USED);
    check_everything(NULL, 0);

    // Taken from the pool in batches, zero, and the pool is filled again.
    struct frame_account account = {0};
    hfn_t n;
    for (unsigned i = 0; i < 2000; i++) {
        fake_set_cpu(i % 2);
        assert_int_equal(frame_alloc(FRAME_PRIVATE, 0, FRAME_ZEROED, &account, &n), 0);
        assert_true(is_zero(n, 1));
        memset(hfn_to_pointer(n), 0x5a, PAGE_SIZE);
        if (i % 7 == 0)
            frame_free(n, 0, &account);
        if (i % 50 == 0)
            frames_zero_some();
    }
    check_everything(NULL, 0);
    setup(40000, 1);
    while (frames_zero_some())
        ;
    assert_int_equal(frames.zero_count, FRAME_ZERO_MAX);
}

// Zeroed frames are not a way round the reserve, and the pool is not filled from it.
static void test_reserve_and_pool(void **state)
{
    (void)state;
    setup(1000, 1);
    struct frame_account account = {0};
    hfn_t n;
    while (frames_zero_some())
        ;
    uint64_t pool = frames.zero_count;
    assert_true(pool != 0);
    frames_set_reserve(free_frames());
    assert_int_equal(frame_alloc(FRAME_PRIVATE, 0, FRAME_ZEROED, &account, &n), E_NOMEM);
    assert_int_equal(frame_alloc(FRAME_PRIVATE, 0, 0, &account, &n), E_NOMEM);
    assert_int_equal(frames.zero_count, 0); // it went back, to be counted with the rest
    assert_false(frames_zero_some());
    assert_int_equal(frames.zero_count, 0);
    assert_int_equal(frame_alloc(FRAME_TABLE, 0, FRAME_ZEROED | FRAME_RESERVE, NULL, &n), 0);
    assert_false(frames_zero_some()); // now below it
    assert_true(is_zero(n, 1));
    check_everything(NULL, 0);
    frames_set_reserve(900);
    while (frames_zero_some())
        ;
    assert_true(frames.zero_count != 0 && frames.buddy_free >= 900);
    check_everything(NULL, 0);
}

static void test_fields_after_alloc(void **state)
{
    (void)state;
    setup(64, 1);
    struct frame_account account = {0};
    hfn_t n;
    assert_int_equal(frame_alloc(FRAME_PRIVATE, 0, 0, &account, &n), 0);
    struct frame *f = frame_of(n);
    f->count = 3;
    f->flags = 0xff00;
    f->owner = UINT64_MAX;
    f->gfn = 12345;
    uint64_t version = f->version;
    frame_free(n, 0, &account);
    hfn_t again;
    assert_int_equal(frame_alloc(FRAME_TABLE, 0, 0, NULL, &again), 0);
    assert_int_equal(again.raw, n.raw); // freed last, taken first
    assert_int_equal(f->state, FRAME_TABLE);
    assert_int_equal(f->count, 0);
    assert_int_equal(f->flags, 0);
    assert_int_equal(f->owner, 0);
    assert_int_equal(f->gfn, 0);
    assert_int_equal(f->version, version + 1);
    frame_free(n, 0, NULL);
    assert_int_equal(f->version, version + 1); // only a private binding that ends counts
}

static void test_broken_use_panics(void **state)
{
    (void)state;
    struct frame_account account = {0};
    hfn_t n;
    setup(64, 1);
    assert_int_equal(frame_alloc(FRAME_FUSOR, 2, 0, NULL, &n), 0);
    assert_true(fake_expect_panic(frame_free(n, 2, &account)));
    setup(64, 1);
    assert_int_equal(frame_alloc(FRAME_PRIVATE, 2, 0, &account, &n), 0);
    assert_true(fake_expect_panic(frame_free(n, 2, NULL)));
    setup(64, 1);
    assert_int_equal(frame_alloc(FRAME_FUSOR, 2, 0, NULL, &n), 0);
    assert_true(fake_expect_panic(frame_free(hfn(n.raw + 1), 2, NULL))); // not aligned
    frame_free(n, 2, NULL);
    assert_true(fake_expect_panic(frame_free(n, 2, NULL)));
    assert_true(fake_expect_panic(frame_free(hfn(0), 0, NULL)));
    assert_true(fake_expect_panic(frame_free(hfn(64), 0, NULL)));
    assert_true(fake_expect_panic(frame_free(hfn(0), FRAME_MAX_ORDER + 1, NULL)));
    setup(64, 1);
    assert_int_equal(frame_alloc(FRAME_FUSOR, 0, 0, NULL, &n), 0);
    frame_free(n, 0, NULL);
    assert_true(fake_expect_panic(frame_free(n, 0, NULL))); // lies in the cache
    assert_true(fake_expect_panic(frame_alloc(FRAME_PRIVATE, 0, 0, NULL, &n)));
    assert_true(fake_expect_panic(frame_alloc(FRAME_FREE, 0, 0, NULL, &n)));

    // A write after the free is found when the frame is taken again.
    setup(64, 1);
    assert_int_equal(frame_alloc(FRAME_FUSOR, 0, 0, NULL, &n), 0);
    frame_free(n, 0, NULL);
    ((uint8_t *)hfn_to_pointer(n))[4000] = 1;
    assert_true(fake_expect_panic(frame_alloc(FRAME_FUSOR, 0, 0, NULL, &n)));
    setup(1024, 1);
    while (frames_zero_some())
        ;
    assert_int_equal(frame_alloc(FRAME_FUSOR, 0, FRAME_ZEROED, NULL, &n), 0);
    const struct frame_stack *stack = &frame_cpus[0].stack[CACHE_ZEROED];
    assert_true(stack->count != 0);
    n = hfn(stack->frame[stack->count - 1]);
    ((uint8_t *)hfn_to_pointer(n))[99] = 1;
    assert_true(fake_expect_panic(frame_alloc(FRAME_FUSOR, 0, FRAME_ZEROED, NULL, &n)));
}

struct holding {
    hfn_t n;
    unsigned order;
    struct frame_account *account;
    uint8_t content;
};

// Random work of up to four CPUs and three VMs; every identity after every step.
static void random_work(unsigned seed, unsigned cpu_number, uint64_t total, unsigned steps)
{
    srand(seed);
    setup(total, cpu_number);
    struct frame_account accounts[3] = {0};
    struct frame_account *const list[] = {&accounts[0], &accounts[1], &accounts[2]};
    struct holding *held = calloc(total, sizeof(*held));
    size_t count = 0;
    uint64_t in_use = 0;
    frames_set_reserve((uint64_t)rand() % (total / 4));
    for (unsigned step = 0; step < steps; step++) {
        fake_set_cpu((unsigned)rand() % cpu_number);
        int choice = rand() % 100;
        // Swings between filling up and emptying.
        int alloc_share = step / 500 % 2 == 0 ? 60 : 25;
        if (choice < alloc_share) {
            struct holding h = {.order = rand() % 10 == 0 ? (unsigned)rand() % 7 : 0};
            enum frame_state s = FRAME_FUSOR + (enum frame_state)(rand() % 4);
            h.account = s == FRAME_PRIVATE ? &accounts[rand() % 3] : NULL;
            unsigned flags = (unsigned)rand() % 4;
            uint64_t was = free_frames();
            int error = frame_alloc(s, h.order, flags, h.account, &h.n);
            uint64_t size = UINT64_C(1) << h.order;
            if (error == 0) {
                if ((flags & FRAME_RESERVE) == 0)
                    assert_true(was >= frames_reserve() + size);
                if ((flags & FRAME_ZEROED) != 0)
                    assert_true(is_zero(h.n, size));
                h.content = (uint8_t)rand();
                memset(hfn_to_pointer(h.n), h.content, size * PAGE_SIZE);
                held[count++] = h;
                in_use += size;
            } else {
                assert_int_equal(error, E_NOMEM);
                uint64_t need = (flags & FRAME_RESERVE) != 0 ? 1 : frames_reserve() + 1;
                if (h.order == 0) // a single frame fails only when there is none
                    assert_true(was < need);
            }
        } else if (choice < 90 && count != 0) {
            size_t i = (size_t)rand() % count;
            struct holding h = held[i];
            held[i] = held[--count];
            uint64_t size = UINT64_C(1) << h.order;
            const uint8_t *p = hfn_to_pointer(h.n);
            for (uint64_t b = 0; b < size * PAGE_SIZE; b += 511)
                assert_int_equal(p[b], h.content); // nobody else got it
            if (rand() % 2 == 0) {
                frame_free(h.n, h.order, h.account);
            } else {
                for (uint64_t k = 0; k < size; k++)
                    frame_free(hfn(h.n.raw + k), 0, h.account);
            }
            in_use -= size;
        } else {
            frames_zero_some();
        }
        assert_int_equal(free_frames(), total - USED - in_use);
        check_everything(list, 3);
    }
    while (count != 0) {
        count--;
        frame_free(held[count].n, held[count].order, held[count].account);
    }
    check_everything(list, 3);
    assert_int_equal(free_frames(), total - USED);
    free(held);
}

static void test_random(void **state)
{
    (void)state;
    for (unsigned seed = 1; seed <= 4; seed++)
        random_work(seed, seed, 300 + 500 * seed, 3000);
}

// Another CPU moves a frame while the reader looks: the reader sees before or after, never between.
static struct frame_account moving;
static unsigned turns;
static uint32_t begun;

static void close_section(void)
{
    if (++turns != 3)
        return;
    frame_section_add(&frame_cpus[1], FRAME_PRIVATE, 1);
    moving.private_frames++;
    frame_section_end(&frame_cpus[1], begun);
}

static void test_snapshot_waits_for_sections(void **state)
{
    (void)state;
    setup(256, 2);
    memset(&moving, 0, sizeof(moving));
    struct frame_account *const list[] = {&moving};
    uint64_t private_frames, shared;
    struct frames_snapshot s;
    turns = 0;
    begun = frame_section_begin(&frame_cpus[1]);
    frame_section_add(&frame_cpus[1], FRAME_FREE, -1);
    fake_relax_hook = close_section;
    frames_snapshot(&s, list, 1, &private_frames, &shared);
    fake_relax_hook = NULL;
    assert_int_equal(turns, 3);
    assert_int_equal(private_frames, 1);
    assert_int_equal(shared, 0);
    assert_int_equal(s.count[FRAME_PRIVATE], 1);
    assert_int_equal(s.count[FRAME_FREE], 256 - USED - 1);
    assert_int_equal(frames.snapshot_waiting, 0);
}

// The counters are signed: one CPU allocates, the other frees.
static void test_counters_are_summed(void **state)
{
    (void)state;
    setup(256, 2);
    struct frame_account account = {0};
    hfn_t n;
    fake_set_cpu(1);
    assert_int_equal(frame_alloc(FRAME_PRIVATE, 0, 0, &account, &n), 0);
    assert_int_equal(frame_cpus[1].sequence, 2);
    fake_set_cpu(0);
    frame_free(n, 0, &account);
    assert_int_equal(frame_cpus[1].delta[FRAME_PRIVATE], 1);
    assert_int_equal(frame_cpus[0].delta[FRAME_PRIVATE], -1);
    assert_int_equal(snapshot().count[FRAME_PRIVATE], 0);
}

// Frames that another CPU is zeroing are waited for before E_NOMEM.
static uint32_t zeroing[64 - USED];
static unsigned zeroing_count;

static void finish_zeroing(void)
{
    assert_true(spin_none_held());
    while (zeroing_count != 0)
        frame_zero_push(zeroing[--zeroing_count]);
    frames.zero_finished = frames.zero_started;
}

static void test_frames_being_zeroed(void **state)
{
    (void)state;
    setup(64, 2);
    for (zeroing_count = 0; zeroing_count < 64 - USED; zeroing_count++)
        zeroing[zeroing_count] = frame_buddy_take(0);
    frames.zero_started++;
    hfn_t n;
    fake_relax_hook = finish_zeroing;
    assert_int_equal(frame_alloc(FRAME_FUSOR, 5, 0, NULL, &n), 0);
    fake_relax_hook = NULL;
    assert_int_equal(zeroing_count, 0);
    check_everything(NULL, 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_table),
        cmocka_unit_test(test_ranges_merge),
        cmocka_unit_test(test_orders),
        cmocka_unit_test(test_block_freed_singly),
        cmocka_unit_test(test_exhaustion),
        cmocka_unit_test(test_caches_are_collected),
        cmocka_unit_test(test_reserve),
        cmocka_unit_test(test_hold),
        cmocka_unit_test(test_two_hold),
        cmocka_unit_test(test_reserve_eats_held),
        cmocka_unit_test(test_hold_at_random),
        cmocka_unit_test(test_zero_pool),
        cmocka_unit_test(test_reserve_and_pool),
        cmocka_unit_test(test_fields_after_alloc),
        cmocka_unit_test(test_broken_use_panics),
        cmocka_unit_test(test_random),
        cmocka_unit_test(test_snapshot_waits_for_sections),
        cmocka_unit_test(test_counters_are_summed),
        cmocka_unit_test(test_frames_being_zeroed),
    };
    return cmocka_run_group_tests_name("frames", tests, NULL, NULL);
}
