// SPDX-License-Identifier: BSD-2-Clause
// Whose vector state is in a CPU, and that a batch leaves no trace in it.
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "fake.h"

#include "kernel/x86/simd.c" // the look at each CPU is an init hook, without a name outside

#define SSE_AVX  UINT64_C(0x7)
#define WITH_512 UINT64_C(0xe7)
#define PKRU     (UINT64_C(1) << 9)

struct guest {
    uint64_t area[8];
    uint64_t xcr0;
};

// A machine of `cpu_number` CPUs, all with the same XCR0 bits, brought up.
static void machine(unsigned cpu_number, uint64_t bits)
{
    fake_machine(0, cpu_number);
    memset(fake_vector, 0, sizeof(fake_vector));
    memset(holders, 0, sizeof(holders));
    supported = UINT64_MAX;
    asked = without = 0;
    assert_int_equal(simd_level(), SIMD_NONE); // nobody knows yet
    for (unsigned i = 0; i < cpu_number; i++) {
        fake_set_cpu(i);
        fake_vector[i].supported = bits;
        fake_vector[i].xcr0 = 1;
        assert_int_equal(look_at_cpu(), 0);
    }
    assert_int_equal(conclude(NULL), 0);
    fake_set_cpu(0);
}

// As vmx does when it loads a vCPU.
static void load(struct guest *g, uint64_t xcr0, uint64_t registers)
{
    struct fake_vector_cpu *c = &fake_vector[cpu_index()];
    memset(g, 0, sizeof(*g));
    g->xcr0 = c->xcr0 = xcr0;
    c->registers = registers;
    c->saves = c->restores = c->xcr0_writes = 0;
    simd_set_owner(g->area, &g->xcr0);
}

static void test_guest_state_survives(void **state)
{
    (void)state;
    const uint64_t machines[] = {SSE_AVX, WITH_512, WITH_512 | PKRU};
    const uint64_t xcr0s[] = {1, 3, SSE_AVX, WITH_512};
    for (size_t m = 0; m < ARRAY_SIZE(machines); m++)
        for (size_t x = 0; x < ARRAY_SIZE(xcr0s); x++) {
            if ((xcr0s[x] & ~machines[m]) != 0)
                continue;
            machine(1, machines[m]);
            struct guest g;
            load(&g, xcr0s[x], 0x1234);
            struct fake_vector_cpu *c = &fake_vector[0];
            simd_begin();
            assert_int_equal(c->xcr0 & SSE_AVX, SSE_AVX);
            // SSE and AVX, and the upper halves that VEX instructions clear; nothing else.
            assert_int_equal(c->mask, machines[m] == SSE_AVX ? 6 : 6 | XCR0_ZMM_HI256);
            c->registers = 0xdead;
            simd_end();
            assert_int_equal(c->registers, 0x1234);
            assert_int_equal(c->xcr0, xcr0s[x]);
            assert_int_equal(c->saves, 1);
            assert_int_equal(c->restores, 1);
            // XSETBV only where the guest's XCR0 does not reach.
            bool enough = xcr0s[x] == (machines[m] & WITH_512);
            assert_int_equal(c->xcr0_writes, enough ? 0 : 2);
        }
}

static void test_xcr0_changes_while_loaded(void **state)
{
    (void)state;
    machine(1, SSE_AVX);
    struct guest g;
    load(&g, SSE_AVX, 1);
    simd_begin();
    simd_end();
    g.xcr0 = fake_vector[0].xcr0 = 1; // the guest's XSETBV
    fake_vector[0].registers = 2;
    simd_begin();
    fake_vector[0].registers = 0;
    simd_end();
    assert_int_equal(fake_vector[0].registers, 2); // hidden, but still the guest's
    assert_int_equal(fake_vector[0].xcr0, 1);
}

static void test_nobody_loaded(void **state)
{
    (void)state;
    machine(1, WITH_512);
    struct fake_vector_cpu *c = &fake_vector[0];
    for (unsigned i = 0; i < 3; i++) {
        simd_begin();
        assert_int_equal(c->xcr0 & SSE_AVX, SSE_AVX);
        simd_end();
    }
    assert_int_equal(c->saves + c->restores, 0);
    assert_int_equal(c->xcr0_writes, 1);
    // A guest came and went.
    struct guest g;
    load(&g, 1, 5);
    simd_set_owner(NULL, NULL);
    simd_begin();
    simd_end();
    assert_int_equal(c->saves + c->restores, 0);
}

static void test_cpus_have_their_own(void **state)
{
    (void)state;
    machine(2, SSE_AVX);
    struct guest g[2];
    for (unsigned i = 0; i < 2; i++) {
        fake_set_cpu(i);
        load(&g[i], SSE_AVX, 10 + i);
    }
    for (unsigned i = 0; i < 2; i++) { // both at once
        fake_set_cpu(i);
        simd_begin();
        fake_vector[i].registers = 0;
    }
    for (unsigned i = 0; i < 2; i++) {
        fake_set_cpu(i);
        simd_end();
        assert_int_equal(fake_vector[i].registers, 10 + i);
        assert_int_equal(g[i].area[0], 10 + i);
    }
}

static void test_one_cpu_without_is_enough(void **state)
{
    (void)state;
    machine(2, SSE_AVX);
    assert_int_equal(simd_level(), SIMD_AVX2);
    machine(1, 0);
    assert_int_equal(simd_level(), SIMD_NONE);
    fake_machine(0, 2);
    fake_set_cpu(1);
    fake_vector[1].supported = SSE_AVX;
    look_at_cpu();
    assert_int_equal(simd_level(), SIMD_NONE);
    assert_true(fake_expect_panic(simd_begin()));
}

static void test_misuse_stops(void **state)
{
    (void)state;
    machine(1, SSE_AVX);
    assert_true(fake_expect_panic(simd_end()));
    simd_begin();
    assert_true(fake_expect_panic(simd_begin()));
    assert_true(fake_expect_panic(simd_set_owner(NULL, NULL))); // unloaded inside a batch
    simd_end();
    assert_true(fake_expect_panic(simd_end()));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_guest_state_survives),
        cmocka_unit_test(test_xcr0_changes_while_loaded),
        cmocka_unit_test(test_nobody_loaded),
        cmocka_unit_test(test_cpus_have_their_own),
        cmocka_unit_test(test_one_cpu_without_is_enough),
        cmocka_unit_test(test_misuse_stops),
    };
    return cmocka_run_group_tests_name("simd", tests, NULL, NULL);
}
