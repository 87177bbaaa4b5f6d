// SPDX-License-Identifier: BSD-2-Clause
// sources: devices/mmio.c devices/decode.c devices/emulate.c vm/bus.c kernel/lock.c kernel/format.c
// MOVS between device memory and memory, as memcpy() does it and `dd if=/dev/mem`: either way, with
// REP, with faults and lack of memory on the memory's side, which leave everything as it was.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <stdlib.h>
#include <string.h>

#include "devices/mmio.h"
#include "fake.h"
#include "kernel/error.h"
#include "vm/vm_object.h"

#define DEVICE  UINT64_C(0xfed00000)
#define CODE_AT UINT64_C(0x1000)
#define FS_BASE UINT64_C(0x40000)

static struct vm *vm;
static struct vcpu vcpu;
static uint8_t code[16];
static unsigned code_size, advanced;
static bool advanced_at_all;
static uint8_t memory[64]; // at linear MEMORY
#define MEMORY UINT64_C(0x8000)
static int memory_status;
static uint64_t last_linear;
static uint64_t fault_at;
static uint32_t fault_code;
static unsigned faults, crashes, loads;
static uint8_t device[64];

uint64_t vcpu_linear_rip(const struct vcpu *v)
{
    (void)v;
    return CODE_AT;
}

unsigned vcpu_code_size(const struct vcpu *v)
{
    (void)v;
    return code_size;
}

uint64_t vcpu_segment_base(const struct vcpu *v, unsigned segment)
{
    (void)v;
    return segment == 4 ? FS_BASE : code_size == 8 ? 0 : 0x10 * segment;
}

uint64_t vcpu_rflags(const struct vcpu *v)
{
    (void)v;
    return 2;
}

void vcpu_set_rflags(struct vcpu *v, uint64_t rflags)
{
    (void)v;
    (void)rflags;
    fail();
}

uint64_t vcpu_gpr(const struct vcpu *v, unsigned reg)
{
    return v->gpr[reg];
}

void vcpu_set_gpr(struct vcpu *v, unsigned reg, uint64_t value)
{
    v->gpr[reg] = value;
}

void vcpu_advance(struct vcpu *v, unsigned length)
{
    (void)v;
    advanced = length;
    advanced_at_all = true;
}

void vcpu_inject_page_fault(struct vcpu *v, uint64_t linear, uint32_t error)
{
    (void)v;
    faults++;
    fault_at = linear;
    fault_code = error;
}

static int access_memory(uint64_t linear, size_t size, uint32_t code_of, uint32_t *at_code,
                         uint64_t *at)
{
    last_linear = linear;
    *at_code = code_of;
    *at = linear;
    if (memory_status != 0)
        return memory_status;
    linear &= 0xffff;
    return linear >= MEMORY && linear + size <= MEMORY + sizeof(memory) ? 0 : E_RANGE;
}

int vcpu_read_linear(struct vcpu *v, uint64_t linear, void *to, size_t size, bool fetch,
                     uint32_t *at_code, uint64_t *at)
{
    (void)v;
    if (fetch) {
        assert_int_equal(linear, CODE_AT);
        memcpy(to, code, size);
        return 0;
    }
    int status = access_memory(linear, size, 0, at_code, at);
    if (status == 0)
        memcpy(to, memory + (linear & 0xffff) - MEMORY, size);
    return status;
}

int vcpu_write_linear(struct vcpu *v, uint64_t linear, const void *from, size_t size,
                      uint32_t *at_code, uint64_t *at)
{
    (void)v;
    int status = access_memory(linear, size, 2, at_code, at);
    if (status == 0)
        memcpy(memory + (linear & 0xffff) - MEMORY, from, size);
    return status;
}

static void crashed(struct vcpu *v, const char *why)
{
    (void)v;
    assert_non_null(strstr(why, "device"));
    crashes++;
}

static const struct vcpu_ops ops = {.crashed = crashed};

void vm_arm_timers(struct vm *of, struct vcpu *v)
{
    (void)of;
    (void)v;
}

static uint64_t device_read(void *unused, uint64_t offset, unsigned size)
{
    uint64_t value = 0;
    (void)unused;
    loads++;
    memcpy(&value, device + offset, size);
    return value;
}

static void device_write(void *unused, uint64_t offset, unsigned size, uint64_t value)
{
    (void)unused;
    memcpy(device + offset, &value, size);
}

static int setup(void **state)
{
    (void)state;
    fake_machine(0, 1);
    vm = calloc(1, sizeof(*vm));
    spin_init(&vm->device_lock, "device", RANK_DEVICE);
    bus_init(&vm->bus);
    assert_int_equal(
        bus_add_mmio(&vm->bus, gpa(DEVICE), sizeof(device), device_read, device_write, NULL), 0);
    memset(&vcpu, 0, sizeof(vcpu));
    vcpu.ops = &ops;
    code_size = 8;
    memory_status = 0;
    faults = crashes = loads = 0;
    for (unsigned i = 0; i < sizeof(memory); i++) {
        memory[i] = (uint8_t)(0x40 + i);
        device[i] = (uint8_t)(0x80 + i);
    }
    return 0;
}

static int teardown(void **state)
{
    (void)state;
    free(vm);
    return 0;
}

static enum vcpu_result run(const char *bytes, size_t size, uint64_t offset, bool write)
{
    memset(code, 0xcc, sizeof(code));
    memcpy(code, bytes, size);
    advanced_at_all = false;
    advanced = 99;
    return mmio_execute(vm, &vcpu, gpa(DEVICE + offset), write);
}

#define RUN(bytes, offset, write) run(bytes, sizeof(bytes) - 1, offset, write)

static void test_from_the_device(void **state)
{
    (void)state;
    vcpu.gpr[REG_RSI] = 0x70000;
    vcpu.gpr[REG_RDI] = MEMORY + 3;
    assert_int_equal(RUN("\xa5", 8, false), VCPU_RESUME); // movsl
    assert_memory_equal(memory + 3, device + 8, 4);
    assert_int_equal(memory[7], 0x47);
    assert_int_equal(vcpu.gpr[REG_RSI], 0x70004);
    assert_int_equal(vcpu.gpr[REG_RDI], MEMORY + 7);
    assert_int_equal(advanced, 1);
}

static void test_to_the_device(void **state)
{
    (void)state;
    vcpu.gpr[REG_RSI] = MEMORY + 5;
    vcpu.gpr[REG_RDI] = 0x70000;
    assert_int_equal(RUN("\x48\xa5", 16, true), VCPU_RESUME); // movsq
    assert_memory_equal(device + 16, memory + 5, 8);
    assert_int_equal(vcpu.gpr[REG_RSI], MEMORY + 13);
    assert_int_equal(vcpu.gpr[REG_RDI], 0x70008);
    assert_int_equal(loads, 0);
    assert_int_equal(advanced, 2);
}

static void test_repeated(void **state)
{
    (void)state;
    vcpu.gpr[REG_RDI] = MEMORY;
    vcpu.gpr[REG_RCX] = 3;
    for (unsigned i = 0; i < 3; i++) {
        assert_int_equal(RUN("\xf3\xa4", i, false), VCPU_RESUME); // rep movsb
        assert_int_equal(vcpu.gpr[REG_RCX], 2 - i);
        assert_int_equal(vcpu.gpr[REG_RSI], i + 1);
        assert_int_equal(advanced, i == 2 ? 2 : 0); // each iteration is a boundary
    }
    assert_memory_equal(memory, device, 3);
    assert_int_equal(memory[3], 0x43);
}

static void test_segments_and_wraps(void **state)
{
    (void)state;
    vcpu.gpr[REG_RSI] = MEMORY;
    RUN("\x64\xa4", 0, true); // FS has a base in 64-bit code, too
    assert_int_equal(last_linear, FS_BASE + MEMORY);
    vcpu.gpr[REG_RSI] = MEMORY;
    RUN("\x64\x26\xa4", 0, true); // ES is ignored there
    assert_int_equal(last_linear, FS_BASE + MEMORY);
    code_size = 4;
    vcpu.gpr[REG_RSI] = MEMORY - 0x30;
    RUN("\xa4", 0, true);
    assert_int_equal(last_linear, MEMORY); // DS
    vcpu.gpr[REG_RSI] = MEMORY - 0x20;
    RUN("\x36\xa4", 0, true);
    assert_int_equal(last_linear, MEMORY); // SS
    vcpu.gpr[REG_RDI] = MEMORY;
    RUN("\x64\xa4", 0, false); // ES:RDI whatever the prefix
    assert_int_equal(last_linear, MEMORY);
    vcpu.gpr[REG_RSI] = UINT64_C(0xabcd0000) + MEMORY - 0x30;
    RUN("\x67\xa4", 0, true); // SI alone counts
    assert_int_equal(last_linear, MEMORY);
    assert_int_equal(vcpu.gpr[REG_RSI], UINT64_C(0xabcd0000) + MEMORY - 0x30 + 1);
    vcpu.gpr[REG_RSI] = 0xffffffff;
    memory_status = E_FAULT;
    RUN("\xa4", 0, true); // beyond 4 GiB is the beginning
    assert_int_equal(last_linear, 0x2f);
}

static void test_what_fails_has_no_effect(void **state)
{
    (void)state;
    for (unsigned write = 0; write < 2; write++) {
        struct vcpu before;
        uint8_t device_before[sizeof(device)];
        vcpu.gpr[REG_RSI] = MEMORY;
        vcpu.gpr[REG_RDI] = MEMORY;
        vcpu.gpr[REG_RCX] = 5;
        memcpy(&before, &vcpu, sizeof(before));
        memcpy(device_before, device, sizeof(device));
        memory_status = E_FAULT;
        assert_int_equal(RUN("\xf3\xa4", 0, write != 0), VCPU_RESUME);
        assert_int_equal(faults, write + 1);
        assert_int_equal(fault_at, MEMORY);
        assert_int_equal(fault_code, write != 0 ? 0 : 2);
        assert_false(advanced_at_all);
        memory_status = E_NOMEM;
        assert_int_equal(RUN("\xf3\xa4", 0, write != 0), VCPU_WAIT);
        assert_false(advanced_at_all);
        assert_memory_equal(vcpu.gpr, before.gpr, sizeof(before.gpr));
        assert_memory_equal(device, device_before, sizeof(device));
        assert_int_equal(crashes, write);
        memory_status = E_RANGE; // device memory, too
        assert_int_equal(RUN("\xf3\xa4", 0, write != 0), VCPU_STOP);
        assert_int_equal(crashes, write + 1);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_from_the_device, setup, teardown),
        cmocka_unit_test_setup_teardown(test_to_the_device, setup, teardown),
        cmocka_unit_test_setup_teardown(test_repeated, setup, teardown),
        cmocka_unit_test_setup_teardown(test_segments_and_wraps, setup, teardown),
        cmocka_unit_test_setup_teardown(test_what_fails_has_no_effect, setup, teardown),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
