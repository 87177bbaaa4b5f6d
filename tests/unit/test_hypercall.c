// SPDX-License-Identifier: BSD-2-Clause
// sources: hypercall/dispatch.c kernel/lock.c

// The dispatcher behind VMCALL over a pretended guest: every argument that is not acceptable, lists
// that change while they are read, partial work, errors of the rooms below. What fusion was given
// and which bytes of the guest were read or written is recorded by the fakes.
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "fake.h"
#include "fusion/fusion.h"
#include "hypercall/hypercall.h"
#include "kernel/error.h"
#include "kernel/init.h"
#include "vm/memory.h"
#include "vm/vm_object.h"

// --- The guest: four pages of RAM, one of ROM, one of nothing, and RAM again at the very top ---

#define PAGES     7u
#define ROM_PAGE  4u
#define NO_PAGE   5u
#define RAM_END   (ROM_PAGE * PAGE_SIZE)
#define TOP_PAGE  (UINT64_MAX >> PAGE_SHIFT) // backed by page 6
#define LIST      (PAGE_SIZE + 0x100)
#define R10       10u
#define UNTOUCHED UINT64_C(0xc3c3c3c3c3c3c3c3)

static struct {
    struct vm vm;
    struct vcpu vcpu;
    uint8_t memory[PAGES * PAGE_SIZE];
    uint32_t reads[PAGES * PAGE_SIZE / 8]; // of each 8 bytes
    unsigned read_calls, write_calls, written_bytes;
    int read_error, write_error;
    unsigned read_fails_at; // the call of this number (from 1) returns read_error
    void (*after_read)(void);
    uint64_t gpr[16];
    unsigned cpl;
    int wanted_after; // vcpu_wanted() says true after so many chunks; -1: never
    unsigned wanted_asked;

    unsigned hint_calls, unhint_calls, statistics_calls;
    uint64_t seen[FUSOR_LIST_MAX];
    unsigned seen_count, largest_chunk;
    // fusion does `accept` entries in all, then returns `answer`, or fewer when that is 1.
    unsigned accept;
    int64_t answer;
    struct fusor_statistics statistics;
} guest;

static uint8_t *byte_at(uint64_t address)
{
    uint64_t page = address >> PAGE_SHIFT;
    return guest.memory + (page == TOP_PAGE ? 6 : page) * PAGE_SIZE + (address & PAGE_MASK);
}

enum vm_area vm_area_of(const struct vm *vm, gfn_t gfn)
{
    assert_ptr_equal(vm, &guest.vm);
    if (gfn.raw < ROM_PAGE || gfn.raw == TOP_PAGE)
        return VM_AREA_RAM;
    return gfn.raw == ROM_PAGE ? VM_AREA_ROM : VM_AREA_NONE;
}

// The rooms below answer for themselves; here a call that should not have come that far fails.
static void assert_is_ram(uint64_t address, size_t size)
{
    assert_true(size > 0 && address + size - 1 >= address);
    assert_int_equal(vm_area_of(&guest.vm, gpa_to_gfn(gpa(address))), VM_AREA_RAM);
    assert_int_equal(vm_area_of(&guest.vm, gpa_to_gfn(gpa(address + size - 1))), VM_AREA_RAM);
}

int guest_read(struct vm *vm, gpa_t from, void *to, size_t size)
{
    assert_ptr_equal(vm, &guest.vm);
    assert_true(spin_none_held());
    assert_is_ram(from.raw, size);
    if (++guest.read_calls == guest.read_fails_at)
        return guest.read_error;
    for (size_t i = 0; i < size; i++)
        ((uint8_t *)to)[i] = *byte_at(from.raw + i);
    for (size_t i = 0; i < size; i += 8)
        guest.reads[(size_t)(byte_at(from.raw + i) - guest.memory) / 8]++;
    if (guest.after_read != NULL)
        guest.after_read();
    return 0;
}

int guest_write(struct vm *vm, gpa_t to, const void *from, size_t size)
{
    assert_ptr_equal(vm, &guest.vm);
    assert_true(spin_none_held());
    assert_is_ram(to.raw, size);
    guest.write_calls++;
    if (guest.write_error != 0)
        return guest.write_error;
    for (size_t i = 0; i < size; i++)
        *byte_at(to.raw + i) = ((const uint8_t *)from)[i];
    guest.written_bytes += (unsigned)size;
    return 0;
}

uint64_t vcpu_gpr(const struct vcpu *v, unsigned reg)
{
    assert_ptr_equal(v, &guest.vcpu);
    assert_true(reg < 16);
    return guest.gpr[reg];
}

unsigned vcpu_cpl(const struct vcpu *v)
{
    assert_ptr_equal(v, &guest.vcpu);
    return guest.cpl;
}

bool vcpu_wanted(const struct vcpu *v)
{
    assert_ptr_equal(v, &guest.vcpu);
    guest.wanted_asked++;
    return guest.wanted_after >= 0 && guest.wanted_asked >= (unsigned)guest.wanted_after;
}

static int64_t work(const uint64_t *entries, unsigned count)
{
    assert_true(spin_none_held());
    assert_in_range(count, 1, FUSION_CHUNK);
    guest.largest_chunk = MAX(guest.largest_chunk, count);
    unsigned n = MIN(count, guest.accept - guest.seen_count);
    assert_true(guest.seen_count + count <= FUSOR_LIST_MAX);
    memcpy(guest.seen + guest.seen_count, entries, n * sizeof(*entries));
    guest.seen_count += n;
    return n > 0 ? n : guest.answer;
}

int64_t fusion_hint(struct vm *vm, const uint64_t *entries, unsigned count)
{
    assert_ptr_equal(vm, &guest.vm);
    guest.hint_calls++;
    return work(entries, count);
}

int64_t fusion_unhint(struct vm *vm, const uint64_t *entries, unsigned count)
{
    assert_ptr_equal(vm, &guest.vm);
    guest.unhint_calls++;
    return work(entries, count);
}

void fusion_statistics(struct vm *vm, struct fusor_statistics *out)
{
    assert_ptr_equal(vm, &guest.vm);
    guest.statistics_calls++;
    memcpy(out, &guest.statistics, offsetof(struct fusor_statistics, balloon));
}

#define LIST_CALL(name, called)                                                                    \
    int64_t name(struct vm *vm, const uint64_t *entries, unsigned count)                           \
    {                                                                                              \
        assert_ptr_equal(vm, &guest.vm);                                                           \
        assert_int_equal(guest.gpr[REG_RAX], called);                                              \
        guest.hint_calls++;                                                                        \
        return work(entries, count);                                                               \
    }
LIST_CALL(balloon_inflate, FUSOR_BALLOON_INFLATE)
LIST_CALL(balloon_deflate, FUSOR_BALLOON_DEFLATE)
LIST_CALL(balloon_free_pages, FUSOR_FREE_PAGES)

static unsigned target_calls;

int64_t balloon_target(struct vm *vm)
{
    assert_ptr_equal(vm, &guest.vm);
    target_calls++;
    return 4711;
}

static unsigned kvm_calls;

int64_t kvm_guest_send_ipi(struct vm *vm, struct vcpu *v)
{
    assert_ptr_equal(vm, &guest.vm);
    assert_ptr_equal(v, &guest.vcpu);
    assert_true(spin_none_held());
    kvm_calls++;
    return 3;
}

void balloon_statistics(struct vm *vm, struct fusor_statistics *out)
{
    assert_ptr_equal(vm, &guest.vm);
    out->balloon = guest.statistics.balloon;
    out->balloon_target = guest.statistics.balloon_target;
}

static uint64_t (*registered)(struct vm *vm, struct vcpu *v);

void vm_set_hypercall(uint64_t (*handler)(struct vm *vm, struct vcpu *v))
{
    registered = handler;
}

// --- Helpers ---

static int start(void **state)
{
    (void)state;
    fake_machine(0, 1);
    memset(&guest, 0, sizeof(guest));
    memset(guest.memory, 0xc3, sizeof(guest.memory));
    spin_init(&guest.vm.device_lock, "device", RANK_DEVICE);
    guest.wanted_after = -1;
    guest.accept = UINT32_MAX;
    guest.read_error = guest.write_error = 0;
    return 0;
}

static int64_t call(uint64_t number, uint64_t rdi, uint64_t rsi)
{
    guest.gpr[REG_RAX] = number;
    guest.gpr[REG_RDI] = rdi;
    guest.gpr[REG_RSI] = rsi;
    guest.read_calls = guest.write_calls = 0;
    guest.wanted_asked = 0;
    guest.seen_count = 0;
    int64_t result = (int64_t)hypercall_dispatch(&guest.vm, &guest.vcpu);
    assert_true(spin_none_held());
    return result;
}

// The call returns -code, is counted once under that code, and nothing was done.
static void refused_(uint64_t number, uint64_t rdi, uint64_t rsi, unsigned code, int line)
{
    static uint8_t before[sizeof(guest.memory)];
    memcpy(before, guest.memory, sizeof(before));
    unsigned hints = guest.hint_calls + guest.unhint_calls + guest.statistics_calls;
    uint64_t counted = hypercall_refused(code);
    int64_t result = call(number, rdi, rsi);
    if (result != -(int64_t)code)
        fail_msg("line %d: returned %ld, not -%u", line, (long)result, code);
    assert_int_equal(hypercall_refused(code), counted + 1);
    assert_int_equal(guest.hint_calls + guest.unhint_calls + guest.statistics_calls, hints);
    assert_int_equal(guest.read_calls, 0);
    assert_int_equal(guest.write_calls, 0);
    assert_memory_equal(before, guest.memory, sizeof(before));
    assert_false(guest.vm.report.present);
}
#define assert_refused(number, rdi, rsi, code) refused_(number, rdi, rsi, code, __LINE__)

static uint64_t entry_of(unsigned i)
{
    return FUSOR_ENTRY(0x1000 + i, FUSOR_CLASS_OTHER, 0);
}

static void put_list(uint64_t at, unsigned count)
{
    for (unsigned i = 0; i < count; i++) {
        uint64_t e = entry_of(i);
        memcpy(byte_at(at + 8 * i), &e, sizeof(e));
    }
}

static void assert_seen(unsigned count)
{
    assert_int_equal(guest.seen_count, count);
    for (unsigned i = 0; i < count; i++)
        assert_int_equal(guest.seen[i], entry_of(i));
}

static const uint64_t list_calls[] = {FUSOR_HINT, FUSOR_UNHINT, FUSOR_BALLOON_INFLATE,
                                      FUSOR_BALLOON_DEFLATE, FUSOR_FREE_PAGES};
static const uint64_t known_calls[] = {
    FUSOR_HINT,      FUSOR_UNHINT,          FUSOR_STATISTICS,
    FUSOR_REPORT,    FUSOR_BALLOON_INFLATE, FUSOR_BALLOON_DEFLATE,
    FUSOR_FREE_PAGES};

// A size that `number` accepts.
static uint64_t good_size(uint64_t number)
{
    return number == FUSOR_REPORT ? sizeof(struct fusor_report) : 8;
}

// --- Number and caller ---

static const struct init_hook hooks_start __attribute__((used, section(".init_hooks"))) = {0};

static void test_registered(void **state)
{
    (void)state;
    const struct init_hook *hook = &hooks_start;
    __asm__("" : "+r"(hook)); // the compiler need not know that the dispatcher's follows
    hook++;
    assert_int_equal(hook->level, INIT_DEVICES);
    assert_int_equal(hook->function(NULL), 0);
    assert_ptr_equal(registered, hypercall_dispatch);
}

static void test_unknown(void **state)
{
    (void)state;
    put_list(LIST, 1);
    static const uint64_t numbers[] = {0,
                                       9,
                                       0x7fffffff,
                                       UINT64_C(1) << 32 | FUSOR_HINT,
                                       UINT64_C(1) << 63 | FUSOR_STATISTICS,
                                       UINT64_MAX};
    for (unsigned i = 0; i < ARRAY_SIZE(numbers); i++)
        assert_refused(numbers[i], LIST, 1, FUSOR_ENOSYS);
}

// The one of KVM's calls that is offered has KVM's number.
static void test_kvm(void **state)
{
    (void)state;
    kvm_calls = 0;
    guest.cpl = 3;
    assert_refused(10, 1, 0, FUSOR_EPERM);
    guest.cpl = 0;
    assert_int_equal(kvm_calls, 0);
    assert_int_equal(call(10, 1, 0), 3);
    assert_int_equal(kvm_calls, 1);
    for (uint64_t number = 11; number < 20; number++)
        assert_refused(number, 1, 0, FUSOR_ENOSYS);
    assert_int_equal(kvm_calls, 1);
}

static void test_target(void **state)
{
    (void)state;
    static const unsigned arguments[] = {REG_RDI, REG_RSI, REG_RDX, 10};
    assert_int_equal(call(FUSOR_BALLOON_TARGET, 0, 0), 4711);
    assert_int_equal(target_calls, 1);
    for (unsigned i = 0; i < ARRAY_SIZE(arguments); i++) {
        for (unsigned r = 0; r < ARRAY_SIZE(arguments); r++)
            guest.gpr[arguments[r]] = 0;
        guest.gpr[REG_RAX] = FUSOR_BALLOON_TARGET;
        guest.gpr[arguments[i]] = UINT64_C(1) << (i * 20);
        assert_int_equal((int64_t)hypercall_dispatch(&guest.vm, &guest.vcpu), -FUSOR_EINVAL);
    }
    assert_int_equal(target_calls, 1);
}

static void test_rings(void **state)
{
    (void)state;
    put_list(LIST, 1);
    for (guest.cpl = 1; guest.cpl <= 3; guest.cpl++) {
        for (unsigned i = 0; i < ARRAY_SIZE(known_calls); i++)
            assert_refused(known_calls[i], LIST, good_size(known_calls[i]), FUSOR_EPERM);
        assert_refused(12345, 0, 0, FUSOR_EPERM); // also says nothing about what exists
    }
}

// --- Arguments that all calls check alike ---

static void test_reserved_arguments(void **state)
{
    (void)state;
    put_list(LIST, 8);
    static const unsigned reserved[] = {REG_RDX, R10};
    static const uint64_t values[] = {1, UINT64_C(1) << 32, UINT64_C(1) << 63, UINT64_MAX};
    for (unsigned i = 0; i < ARRAY_SIZE(known_calls); i++)
        for (unsigned r = 0; r < ARRAY_SIZE(reserved); r++)
            for (unsigned n = 0; n < ARRAY_SIZE(values); n++) {
                guest.gpr[reserved[r]] = values[n];
                assert_refused(known_calls[i], LIST, good_size(known_calls[i]), FUSOR_EINVAL);
                guest.gpr[reserved[r]] = 0;
            }
    // Every other register may hold anything.
    for (unsigned i = 0; i < 16; i++)
        if (i != REG_RDX && i != R10)
            guest.gpr[i] = UINT64_MAX;
    assert_int_equal(call(FUSOR_HINT, LIST, 8), 8);
}

static void test_addresses(void **state)
{
    (void)state;
    for (unsigned i = 0; i < ARRAY_SIZE(known_calls); i++) {
        uint64_t number = known_calls[i], size = good_size(number);
        uint64_t bytes = number <= FUSOR_UNHINT ? size * 8 : size;
        for (uint64_t off = 1; off < 8; off++)
            assert_refused(number, LIST + off, size, FUSOR_EINVAL);
        assert_refused(number, UINT64_MAX, size, FUSOR_EINVAL);
        assert_refused(number, ROM_PAGE * PAGE_SIZE, size, FUSOR_EFAULT);
        assert_refused(number, NO_PAGE * PAGE_SIZE, size, FUSOR_EFAULT);
        assert_refused(number, UINT64_C(1) << 52, size, FUSOR_EFAULT);
        assert_refused(number, UINT64_C(1) << 63, size, FUSOR_EFAULT);
        // Crosses the end of RAM; begins before RAM and ends in it.
        assert_refused(number, RAM_END - bytes + 8, size, FUSOR_EFAULT);
        assert_refused(number, (TOP_PAGE << PAGE_SHIFT) - 8, 512,
                       size == 8 ? FUSOR_EFAULT : FUSOR_EINVAL);
        // Wraps around to RAM at 0.
        if (size == 8)
            assert_refused(number, UINT64_MAX - 7, 16, FUSOR_EFAULT);
        else
            assert_refused(number, UINT64_MAX - 7, size, FUSOR_EFAULT);
    }
}

// The last bytes that can be had, at the end of RAM and at the end of all addresses.
static void test_last_bytes(void **state)
{
    (void)state;
    put_list(RAM_END - 16, 2);
    for (unsigned i = 0; i < ARRAY_SIZE(list_calls); i++) {
        assert_int_equal(call(list_calls[i], RAM_END - 16, 2), 2);
        assert_seen(2);
        assert_refused(list_calls[i], RAM_END - 16, 3, FUSOR_EFAULT);
    }
    put_list(UINT64_MAX - 15, 2);
    assert_int_equal(call(FUSOR_HINT, UINT64_MAX - 15, 2), 2);
    assert_seen(2);
    assert_int_equal(call(FUSOR_STATISTICS, RAM_END - 120, 120), 120);
    assert_int_equal(call(FUSOR_STATISTICS, UINT64_MAX - 7, 8), 8);
    assert_int_equal(call(FUSOR_REPORT, RAM_END - 32, 32), 0);
    assert_int_equal(call(FUSOR_HINT, 0, 1), 1); // address 0 is RAM like any other
}

// --- Lists ---

static void test_counts(void **state)
{
    (void)state;
    static const uint64_t counts[] = {
        0,
        FUSOR_LIST_MAX + 1,
        UINT32_MAX,
        UINT64_C(1) << 32 | 1,
        UINT64_C(1) << 61,       // * 8 is 0
        (UINT64_C(1) << 61) + 1, // * 8 is 8
        UINT64_C(1) << 63,
        UINT64_MAX,
    };
    for (unsigned i = 0; i < ARRAY_SIZE(list_calls); i++)
        for (unsigned n = 0; n < ARRAY_SIZE(counts); n++)
            assert_refused(list_calls[i], LIST, counts[n], FUSOR_EINVAL);
}

// Every length: all entries arrive, in order, each read once and nothing beside them.
static void test_each_entry_once(void **state)
{
    (void)state;
    put_list(LIST, FUSOR_LIST_MAX);
    for (unsigned i = 0; i < ARRAY_SIZE(list_calls); i++)
        for (unsigned count = 1; count <= FUSOR_LIST_MAX; count++) {
            memset(guest.reads, 0, sizeof(guest.reads));
            assert_int_equal(call(list_calls[i], LIST, count), count);
            assert_seen(count);
            for (unsigned at = 0; at < ARRAY_SIZE(guest.reads); at++)
                assert_int_equal(guest.reads[at], at >= LIST / 8 && at < LIST / 8 + count);
        }
    assert_int_equal(guest.largest_chunk, FUSION_CHUNK);
    assert_true(guest.hint_calls > 0 && guest.unhint_calls > 0);
    assert_int_equal(guest.written_bytes, 0);
}

static void poison_list(void)
{
    memset(byte_at(LIST), 0xff, FUSOR_LIST_MAX * 8);
}

// Another vCPU writes to the list as soon as a part of it was copied: what fusion sees is the copy,
// and later parts as they are when their turn comes.
static void test_list_changes(void **state)
{
    (void)state;
    put_list(LIST, FUSOR_LIST_MAX);
    guest.after_read = poison_list;
    assert_int_equal(call(FUSOR_HINT, LIST, FUSION_CHUNK), FUSION_CHUNK);
    assert_seen(FUSION_CHUNK);

    put_list(LIST, FUSOR_LIST_MAX);
    memset(guest.reads, 0, sizeof(guest.reads));
    assert_int_equal(call(FUSOR_HINT, LIST, FUSOR_LIST_MAX), FUSOR_LIST_MAX);
    for (unsigned i = 0; i < FUSOR_LIST_MAX; i++) {
        assert_int_equal(guest.seen[i], i < FUSION_CHUNK ? entry_of(i) : UINT64_MAX);
        assert_int_equal(guest.reads[LIST / 8 + i], 1);
    }

    // Classes are looked for in the copy too.
    put_list(LIST, 2);
    assert_int_equal(call(FUSOR_UNHINT, LIST, 2), 2);
    assert_seen(2);
}

static void test_partial(void **state)
{
    (void)state;
    put_list(LIST, FUSOR_LIST_MAX);
    for (unsigned i = 0; i < ARRAY_SIZE(list_calls); i++)
        for (guest.accept = 0; guest.accept <= FUSOR_LIST_MAX; guest.accept++) {
            // The entry behind the last good one: the count, and no error while something was done.
            guest.answer = -FUSOR_ERANGE;
            uint64_t counted = hypercall_refused(FUSOR_ERANGE);
            int64_t expected = guest.accept > 0 ? (int64_t)guest.accept : -FUSOR_ERANGE;
            assert_int_equal(call(list_calls[i], LIST, FUSOR_LIST_MAX), expected);
            assert_seen(guest.accept);
            assert_int_equal(hypercall_refused(FUSOR_ERANGE), counted + (guest.accept == 0));
            guest.answer = 0; // the same when fusion says so without an error
            assert_int_equal(call(list_calls[i], LIST, FUSOR_LIST_MAX), guest.accept);
        }
}

// The errors of fusion are the guest's already.
static void test_fusion_errors(void **state)
{
    (void)state;
    static const unsigned codes[] = {FUSOR_ENOENT, FUSOR_EAGAIN, FUSOR_ENOMEM, FUSOR_EBUSY,
                                     FUSOR_EEXIST, FUSOR_EINVAL, FUSOR_ERANGE};
    put_list(LIST, 1);
    guest.accept = 0;
    for (unsigned i = 0; i < ARRAY_SIZE(codes); i++) {
        uint64_t counted = hypercall_refused(codes[i]);
        guest.answer = -(int64_t)codes[i];
        assert_int_equal(call(FUSOR_HINT, LIST, 1), -(int64_t)codes[i]);
        assert_int_equal(call(FUSOR_UNHINT, LIST, 1), -(int64_t)codes[i]);
        assert_int_equal(hypercall_refused(codes[i]), counted + 2);
    }
    guest.answer = -1000; // not counted anywhere, and nothing is hit
    assert_int_equal(call(FUSOR_HINT, LIST, 1), -1000);
    assert_int_equal(hypercall_refused(FUSOR_ENOSYS + 1), 0);
    assert_int_equal(hypercall_refused(UINT32_MAX), 0);
}

// More done than asked for would be Fusor's own fault.
static void test_fusion_broken(void **state)
{
    (void)state;
    put_list(LIST, 1);
    guest.accept = 0;
    guest.answer = 2;
    assert_true(fake_expect_panic(call(FUSOR_HINT, LIST, 1)));
}

// The vCPU is wanted: the call ends between two chunks, never without progress.
static void test_wanted(void **state)
{
    (void)state;
    put_list(LIST, FUSOR_LIST_MAX);
    for (int chunks = 0; chunks <= 8; chunks++) {
        guest.wanted_after = chunks;
        unsigned expected = (unsigned)MAX(chunks, 1) * FUSION_CHUNK;
        assert_int_equal(call(FUSOR_HINT, LIST, FUSOR_LIST_MAX), expected);
        assert_seen(expected);
        assert_int_equal(guest.read_calls, expected / FUSION_CHUNK);
    }
    // The guest goes on with the rest until all is done.
    guest.wanted_after = 0;
    unsigned done = 0;
    while (done < 200) {
        int64_t n = call(FUSOR_HINT, LIST + done * 8, 200 - done);
        assert_in_range(n, 1, FUSION_CHUNK);
        for (unsigned i = 0; i < n; i++)
            assert_int_equal(guest.seen[i], entry_of(done + i));
        done += (unsigned)n;
    }
    assert_int_equal(done, 200);
}

static void test_read_errors(void **state)
{
    (void)state;
    put_list(LIST, 200);
    static const struct {
        int error;
        unsigned code;
    } errors[] = {{E_RANGE, FUSOR_EFAULT}, {E_NOMEM, FUSOR_ENOMEM}, {E_FAULT, FUSOR_EFAULT}};
    for (unsigned i = 0; i < ARRAY_SIZE(errors); i++) {
        guest.read_error = errors[i].error;
        guest.read_fails_at = 1;
        assert_int_equal(call(FUSOR_HINT, LIST, 200), -(int64_t)errors[i].code);
        assert_int_equal(guest.seen_count, 0);
        assert_int_equal(call(FUSOR_REPORT, LIST, 32), -(int64_t)errors[i].code);
        assert_false(guest.vm.report.present);
        guest.read_fails_at = 3; // what was done before stands
        assert_int_equal(call(FUSOR_HINT, LIST, 200), 2 * FUSION_CHUNK);
        assert_seen(2 * FUSION_CHUNK);
    }
}

static void test_unhint_classes(void **state)
{
    (void)state;
    for (unsigned class = 1; class < 16; class ++)
        for (unsigned at = 0; at < 130; at++) {
            put_list(LIST, 130);
            uint64_t bad = entry_of(at) | FUSOR_ENTRY(0, class, 0);
            memcpy(byte_at(LIST + 8 * at), &bad, sizeof(bad));
            unsigned calls = guest.unhint_calls;
            assert_int_equal(call(FUSOR_UNHINT, LIST, 130), at > 0 ? (int64_t)at : -FUSOR_EINVAL);
            assert_seen(at);
            assert_int_equal(guest.unhint_calls - calls, (at + FUSION_CHUNK - 1) / FUSION_CHUNK);
            assert_int_equal(call(FUSOR_HINT, LIST, 130), 130); // hints have classes
            assert_int_equal(guest.seen[at], bad);
        }
    // Reserved bits and orders are fusion's to judge.
    uint64_t other = FUSOR_ENTRY(0, 0, 15) | FUSOR_ENTRY_RESERVED;
    memcpy(byte_at(LIST), &other, sizeof(other));
    assert_int_equal(call(FUSOR_UNHINT, LIST, 1), 1);
    assert_int_equal(guest.seen[0], other);
}

// --- Statistics ---

static void test_statistics(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof(guest.statistics); i++)
        ((uint8_t *)&guest.statistics)[i] = (uint8_t)(i + 1);
    for (uint64_t at = LIST; at < 2 * PAGE_SIZE + LIST; at += PAGE_SIZE - 8) // also across pages
        for (uint64_t size = 8; size <= PAGE_SIZE; size += 8) {
            memset(guest.memory, 0xc3, sizeof(guest.memory));
            guest.written_bytes = 0;
            if (at + size > RAM_END)
                break;
            uint64_t expected = MIN(size, sizeof(guest.statistics));
            assert_int_equal(call(FUSOR_STATISTICS, at, size), expected);
            assert_int_equal(guest.written_bytes, expected);
            assert_memory_equal(byte_at(at), &guest.statistics, expected);
            uint64_t before, behind;
            memcpy(&before, byte_at(at - 8), 8);
            memcpy(&behind, byte_at(at + expected), 8);
            assert_true(before == UNTOUCHED && behind == UNTOUCHED);
        }
    static const uint64_t sizes[] = {0,
                                     1,
                                     4,
                                     7,
                                     9,
                                     12,
                                     119,
                                     121,
                                     PAGE_SIZE - 4,
                                     PAGE_SIZE + 8,
                                     UINT64_C(1) << 32 | 8,
                                     UINT64_C(1) << 63,
                                     UINT64_MAX - 7,
                                     UINT64_MAX};
    for (unsigned i = 0; i < ARRAY_SIZE(sizes); i++)
        assert_refused(FUSOR_STATISTICS, LIST, sizes[i], FUSOR_EINVAL);
    // The whole buffer must be RAM, also the part that this version does not fill.
    assert_refused(FUSOR_STATISTICS, RAM_END - 128, 136, FUSOR_EFAULT);
}

static void test_statistics_errors(void **state)
{
    (void)state;
    static const struct {
        int error;
        unsigned code;
    } errors[] = {{E_NOMEM, FUSOR_ENOMEM}, {E_RANGE, FUSOR_EFAULT}};
    for (unsigned i = 0; i < ARRAY_SIZE(errors); i++) {
        guest.write_error = errors[i].error;
        assert_int_equal(call(FUSOR_STATISTICS, LIST, 120), -(int64_t)errors[i].code);
        assert_int_equal(guest.written_bytes, 0);
    }
    guest.write_error = 0; // called again, it works
    assert_int_equal(call(FUSOR_STATISTICS, LIST, 120), 120);
}

// --- Reports ---

static void put_report(uint64_t at, struct fusor_report r)
{
    memcpy(byte_at(at), &r, sizeof(r));
}

static void test_report(void **state)
{
    (void)state;
    static const uint64_t sizes[] = {
        0, 8, 24, 31, 33, 40, PAGE_SIZE, UINT64_C(1) << 32 | 32, UINT64_MAX};
    for (unsigned i = 0; i < ARRAY_SIZE(sizes); i++)
        assert_refused(FUSOR_REPORT, LIST, sizes[i], FUSOR_EINVAL);
    put_report(LIST, (struct fusor_report){65536, 100, 30000, 20000});
    assert_int_equal(call(FUSOR_REPORT, LIST, 32), 0);
    assert_int_equal(guest.read_calls, 1);
    assert_true(guest.vm.report.present);
    assert_int_equal(guest.vm.report.total, 65536);
    assert_int_equal(guest.vm.report.free, 100);
    assert_int_equal(guest.vm.report.available, 30000);
    assert_int_equal(guest.vm.report.cache, 20000);
    // Nonsense is shown as nonsense, but bounded.
    uint64_t most = UINT64_C(1) << 40;
    put_report(LIST, (struct fusor_report){UINT64_MAX, most + 1, most - 1, UINT64_MAX});
    assert_int_equal(call(FUSOR_REPORT, LIST, 32), 0);
    assert_int_equal(guest.vm.report.total, most);
    assert_int_equal(guest.vm.report.free, most);
    assert_int_equal(guest.vm.report.available, most - 1);
    assert_int_equal(guest.vm.report.cache, most);
    assert_int_equal(guest.written_bytes, 0);
}

// --- Errors ---

static void test_error_table(void **state)
{
    (void)state;
    static const struct {
        int error, code;
    } table[] = {
        {E_INVAL, 22}, {E_NOMEM, 12},   {E_NOENT, 2},    {E_EXIST, 17}, {E_BUSY, 16},
        {E_RANGE, 14}, {E_NOSYS, 38},   {E_PERM, 1},     {E_AGAIN, 11}, {E_FAULT, 14},
        {E_IO, 22},    {E_FORMAT, 22},  {E_TIMEOUT, 22}, {0, 22},       {1, 22},
        {-1000, 22},   {INT32_MIN, 22}, {INT32_MAX, 22},
    };
    for (unsigned i = 0; i < ARRAY_SIZE(table); i++)
        assert_int_equal(hypercall_error(table[i].error), table[i].code);
}

int main(void)
{
#define TEST(name) cmocka_unit_test_setup(name, start)
    const struct CMUnitTest tests[] = {
        TEST(test_registered),
        TEST(test_unknown),
        TEST(test_kvm),
        TEST(test_target),
        TEST(test_rings),
        TEST(test_reserved_arguments),
        TEST(test_addresses),
        TEST(test_last_bytes),
        TEST(test_counts),
        TEST(test_each_entry_once),
        TEST(test_list_changes),
        TEST(test_partial),
        TEST(test_fusion_errors),
        TEST(test_fusion_broken),
        TEST(test_wanted),
        TEST(test_read_errors),
        TEST(test_unhint_classes),
        TEST(test_statistics),
        TEST(test_statistics_errors),
        TEST(test_report),
        TEST(test_error_table),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
