// SPDX-License-Identifier: BSD-2-Clause
// The table of fault hooks: order, first answer wins, bounds.

// sources: ept/fault.c

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <string.h>

#include <cmocka.h>

#include "ept/ept.h"
#include "kernel/error.h"

static char order[EPT_FAULT_HOOKS + 1];
static unsigned asked;
static int vm_object;
static const struct ept_fault *the_fault;
static char answering; // the hook that does not pass it on
static enum ept_fault_result its_answer;

static enum ept_fault_result ask(char name, void *vm, const struct ept_fault *fault)
{
    assert_ptr_equal(vm, &vm_object);
    assert_ptr_equal(fault, the_fault);
    order[asked++] = name;
    return name == answering ? its_answer : EPT_FAULT_UNHANDLED;
}

#define HOOK(name)                                                                                 \
    static enum ept_fault_result hook_##name(void *vm, const struct ept_fault *fault)              \
    {                                                                                              \
        return ask(#name[0], vm, fault);                                                           \
    }
HOOK(a)
HOOK(b)
HOOK(c)
HOOK(d)
HOOK(e)
HOOK(f)
HOOK(g)
HOOK(h)

static enum ept_fault_result run(const char *expected)
{
    struct ept_fault fault = {.address = gpa(0x1234), .write = true};
    the_fault = &fault;
    memset(order, 0, sizeof(order));
    asked = 0;
    enum ept_fault_result result = ept_run_fault_hooks(&vm_object, &fault);
    assert_string_equal(order, expected);
    return result;
}

static void test_hooks(void **state)
{
    (void)state;
    assert_int_equal(run(""), EPT_FAULT_UNHANDLED);
    assert_int_equal(ept_register_fault_hook(5, NULL), E_INVAL);
    assert_int_equal(ept_register_fault_hook(20, hook_a), 0);
    assert_int_equal(ept_register_fault_hook(10, hook_b), 0);
    assert_int_equal(ept_register_fault_hook(30, hook_c), 0);
    assert_int_equal(run("bac"), EPT_FAULT_UNHANDLED);
    assert_int_equal(ept_register_fault_hook(10, hook_d), 0); // equal: in the order they came
    assert_int_equal(ept_register_fault_hook(0, hook_e), 0);
    assert_int_equal(ept_register_fault_hook(UINT32_MAX, hook_f), 0);
    assert_int_equal(ept_register_fault_hook(20, hook_g), 0);
    assert_int_equal(ept_register_fault_hook(1, hook_h), 0);
    assert_int_equal(run("ehbdagcf"), EPT_FAULT_UNHANDLED);
    assert_int_equal(ept_register_fault_hook(1, hook_h), E_NOMEM);
    assert_int_equal(run("ehbdagcf"), EPT_FAULT_UNHANDLED);

    answering = 'b';
    its_answer = EPT_FAULT_RETRY;
    assert_int_equal(run("ehb"), EPT_FAULT_RETRY);
    answering = 'f';
    its_answer = EPT_FAULT_WAIT;
    assert_int_equal(run("ehbdagcf"), EPT_FAULT_WAIT);
    answering = 'e';
    its_answer = EPT_FAULT_EMULATE;
    assert_int_equal(run("e"), EPT_FAULT_EMULATE);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_hooks)};
    return cmocka_run_group_tests_name("ept fault hooks", tests, NULL, NULL);
}
