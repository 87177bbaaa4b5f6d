// SPDX-License-Identifier: BSD-2-Clause
// sources: vm/reserve.c
// What a VM may have of the reserve, when other vCPUs and the reserve itself change in between.
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "fake.h"
#include "kernel/error.h"
#include "vm/reserve.h"
#include "vm/vm_object.h"

#define RESERVE 60u

_Atomic unsigned vm_memories;
static uint64_t epoch, reserve;
static unsigned room; // frames that there are
static struct vm vm;
static void (*meanwhile)(void); // happens while a frame is looked for

uint64_t frames_reserve(void)
{
    return reserve;
}

uint64_t frames_reserve_epoch(void)
{
    return epoch;
}

bool vm_overcommits(void)
{
    return true;
}

void frames_snapshot(struct frames_snapshot *out, struct frame_account *const *accounts, size_t n,
                     uint64_t *private_out, uint64_t *shared_out)
{
    (void)out;
    (void)accounts;
    (void)n;
    (void)private_out;
    (void)shared_out;
    fail_msg("overcommit is on");
}

bool frames_reserve_low(void)
{
    return false;
}

struct ept_leaf ept_lookup(struct ept *ept, gfn_t gfn)
{
    (void)ept;
    (void)gfn;
    fail_msg("there is enough for tables");
    return (struct ept_leaf){0};
}

uint64_t frames_floor(void)
{
    return reserve;
}

int frame_alloc(enum frame_state state, unsigned order, unsigned flags,
                struct frame_account *account, hfn_t *out)
{
    assert_int_equal(state, FRAME_FUSOR);
    assert_int_equal(order, 0);
    assert_int_equal(flags, FRAME_RESERVE);
    assert_null(account);
    void (*then)(void) = meanwhile;
    meanwhile = NULL;
    if (then != NULL)
        then();
    if (room == 0)
        return E_NOMEM;
    *out = hfn(room--);
    return 0;
}

static int set_up(void **state)
{
    (void)state;
    memset(&vm, 0, sizeof(vm));
    reserve = RESERVE;
    room = 1000;
    vm_memories = 3;
    epoch = 1;
    return 0;
}

static unsigned split_all(enum reserve_share wanted)
{
    hfn_t n;
    enum reserve_share share;
    unsigned count = 0;
    while (reserve_for_split(&vm, &n, &share) == 0) {
        assert_int_equal(share, wanted);
        count++;
    }
    assert_int_equal(share, RESERVE_NONE);
    return count;
}

static void parts_come_back_when_it_is_full(void **state)
{
    (void)state;
    for (unsigned i = 0; i < 3; i++, epoch++)
        assert_int_equal(split_all(RESERVE_PART), RESERVE / 2 / 3);
    vm_memories = 0; // the VM that asks is about to be counted
    assert_int_equal(split_all(RESERVE_PART), RESERVE / 2);
    epoch++;
    reserve = 0;
    assert_int_equal(split_all(RESERVE_PART), 0);
}

// Frames that were not needed after all, because another vCPU was faster, use nothing up.
static void what_was_not_needed(void **state)
{
    (void)state;
    hfn_t n;
    enum reserve_share share;
    for (unsigned i = 0; i < 100; i++) {
        assert_int_equal(reserve_for_split(&vm, &n, &share), 0);
        reserve_return(&vm, share);
    }
    assert_int_equal(split_all(RESERVE_PART), RESERVE / 2 / 3);
    vm.balloon_driver = true;
    vm.balloon_target = 1;
    for (unsigned i = 0; i < 2 * BALLOON_RESERVE; i++) {
        assert_int_equal(reserve_for_split(&vm, &n, &share), 0);
        assert_int_equal(share, RESERVE_CREDIT);
        reserve_return(&vm, share);
    }
    assert_int_equal(split_all(RESERVE_CREDIT), BALLOON_RESERVE);
    reserve_return(&vm, RESERVE_NONE);
    assert_int_equal(split_all(RESERVE_CREDIT), 0);
    reserve_repay(&vm, 10);
    assert_int_equal(split_all(RESERVE_CREDIT), 10);
    reserve_repay(&vm, 1000000);
    assert_int_equal(vm.reserve_taken, 0);
    room = 0;
    assert_int_equal(split_all(RESERVE_CREDIT), 0);
    assert_int_equal(vm.reserve_taken, 0);
}

static void full_again_and_used(void)
{
    hfn_t n;
    enum reserve_share share;
    epoch++;
    room = 1;
    assert_int_equal(reserve_for_split(&vm, &n, &share), 0);
    reserve_return(&vm, share);
}

// The reserve is full again while a vCPU finds no frame: what that one gives back is of a part that
// is no more.
static void a_failure_over_the_end_of_an_epoch(void **state)
{
    (void)state;
    for (unsigned i = 0; i < 50; i++) {
        hfn_t n;
        enum reserve_share share;
        room = 0;
        meanwhile = full_again_and_used;
        assert_int_equal(reserve_for_split(&vm, &n, &share), E_NOMEM);
    }
    room = 1000;
    assert_int_equal(split_all(RESERVE_PART), RESERVE / 2 / 3);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup(parts_come_back_when_it_is_full, set_up),
        cmocka_unit_test_setup(what_was_not_needed, set_up),
        cmocka_unit_test_setup(a_failure_over_the_end_of_an_epoch, set_up),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
