// SPDX-License-Identifier: BSD-2-Clause
// sources: hypercall/dispatch.c kernel/lock.c tests/unit/fake/fake.c

// libFuzzer: calls with registers and memory of the input's choice, to a pretended guest and a
// pretended fusion that does as many entries as the input says.
//
// Invariants: nothing outside the guest's RAM is read or written, an entry is read once at most and
// reaches fusion as it was read and in order, never more is done than was asked for, the result is
// the count done or one of the ABI's errors, an error means that nothing was done, and a caller
// outside ring 0 gets nothing.
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "fake.h"
#include "fusion/fusion.h"
#include "hypercall/hypercall.h"
#include "kernel/error.h"
#include "vm/memory.h"
#include "vm/vm_object.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

#define REQUIRE(condition)                                                                         \
    do {                                                                                           \
        if (!(condition)) {                                                                        \
            fprintf(stderr, "%s:%d: %s\n", __FILE__, __LINE__, #condition);                        \
            abort();                                                                               \
        }                                                                                          \
    } while (0)

// RAM [0, 3 pages), ROM in page 3, RAM again in page 5 and in the last page of all.
#define ROM_PAGE 3u
#define TOP_PAGE (UINT64_MAX >> PAGE_SHIFT)

static struct {
    const uint8_t *data; // the input; zero after its end
    size_t size;
    struct vm vm;
    struct vcpu vcpu;
    uint64_t gpr[16];
    unsigned cpl;
    uint8_t memory[5 * PAGE_SIZE];
    uint64_t read[FUSOR_LIST_MAX + 4]; // what guest_read gave out, in order
    uint64_t read_at;                  // where the next read has to go on
    unsigned read_words, given, done, written;
    bool failed; // a room below said no
} guest;

static uint64_t take(size_t bytes)
{
    uint64_t value = 0;
    size_t n = MIN(bytes, guest.size);
    memcpy(&value, guest.data, n);
    guest.data += n;
    guest.size -= n;
    return value;
}

static uint8_t *page_at(uint64_t page)
{
    uint64_t slot = page == TOP_PAGE ? 4 : page == 5 ? 3 : page;
    return guest.memory + slot * PAGE_SIZE;
}

enum vm_area vm_area_of(const struct vm *vm, gfn_t gfn)
{
    REQUIRE(vm == &guest.vm);
    if (gfn.raw == ROM_PAGE)
        return VM_AREA_ROM;
    return gfn.raw < ROM_PAGE || gfn.raw == 5 || gfn.raw == TOP_PAGE ? VM_AREA_RAM : VM_AREA_NONE;
}

static void require_ram(uint64_t address, size_t size)
{
    REQUIRE(size > 0 && size <= PAGE_SIZE && address + size - 1 >= address);
    for (size_t i = 0; i < size; i++)
        REQUIRE(vm_area_of(&guest.vm, gpa_to_gfn(gpa(address + i))) == VM_AREA_RAM);
}

int64_t kvm_guest_send_ipi(struct vm *vm, struct vcpu *v)
{
    REQUIRE(vm == &guest.vm && v == &guest.vcpu && guest.cpl == 0 && spin_none_held());
    return -KVM_EINVAL;
}

int guest_read(struct vm *vm, gpa_t from, void *to, size_t size)
{
    REQUIRE(vm == &guest.vm && size % 8 == 0 && spin_none_held());
    require_ram(from.raw, size);
    REQUIRE(from.raw == guest.read_at); // forward only: nothing is read twice
    if (take(1) == 0xfe) {
        guest.failed = true;
        return take(1) % 2 == 0 ? E_NOMEM : E_RANGE;
    }
    guest.read_at += size;
    for (size_t i = 0; i < size; i += 8) {
        uint64_t a = from.raw + i;
        uint8_t *p = page_at(a >> PAGE_SHIFT) + (a & PAGE_MASK);
        REQUIRE(guest.read_words < ARRAY_SIZE(guest.read));
        memcpy(&guest.read[guest.read_words], p, 8);
        memcpy((uint8_t *)to + i, p, 8);
        guest.read_words++;
        memset(p, 0xff, 8); // another vCPU writes to it at once
    }
    return 0;
}

int guest_write(struct vm *vm, gpa_t to, const void *from, size_t size)
{
    REQUIRE(vm == &guest.vm && spin_none_held());
    require_ram(to.raw, size);
    REQUIRE(to.raw == guest.gpr[REG_RDI] && size <= guest.gpr[REG_RSI]);
    REQUIRE(guest.written == 0);
    if (take(1) == 0xfe) {
        guest.failed = true;
        return E_NOMEM;
    }
    struct fusor_statistics s;
    REQUIRE(size <= sizeof(s));
    memset(&s, 0x11, sizeof(s));
    s.balloon = s.balloon_target = 0x2222;
    REQUIRE(memcmp(&s, from, size) == 0);
    guest.written += (unsigned)size;
    return 0;
}

uint64_t vcpu_gpr(const struct vcpu *v, unsigned reg)
{
    REQUIRE(v == &guest.vcpu && reg < 16);
    return guest.gpr[reg];
}

unsigned vcpu_cpl(const struct vcpu *v)
{
    REQUIRE(v == &guest.vcpu);
    return guest.cpl;
}

bool vcpu_wanted(const struct vcpu *v)
{
    REQUIRE(v == &guest.vcpu);
    return take(1) % 4 == 1;
}

static int64_t work(struct vm *vm, const uint64_t *entries, unsigned count)
{
    REQUIRE(vm == &guest.vm && guest.cpl == 0 && spin_none_held());
    REQUIRE(count >= 1 && count <= FUSION_CHUNK);
    REQUIRE(!guest.failed); // nothing goes on behind an error or an entry left undone
    REQUIRE(guest.given == guest.done && guest.given + count <= guest.read_words);
    REQUIRE(memcmp(entries, guest.read + guest.given, count * sizeof(*entries)) == 0);
    uint64_t how = take(1);
    guest.given += count;
    if (how < 0xc0) {
        guest.done += count;
        return count;
    }
    guest.failed = true;
    unsigned n = (unsigned)(take(1) % count);
    guest.done += n;
    static const int codes[] = {FUSOR_EAGAIN, FUSOR_ENOMEM, FUSOR_EEXIST, FUSOR_ERANGE};
    return n > 0 ? (int64_t)n : -codes[how % ARRAY_SIZE(codes)];
}

int64_t fusion_hint(struct vm *vm, const uint64_t *entries, unsigned count)
{
    REQUIRE(guest.gpr[REG_RAX] == FUSOR_HINT);
    return work(vm, entries, count);
}

int64_t fusion_unhint(struct vm *vm, const uint64_t *entries, unsigned count)
{
    REQUIRE(guest.gpr[REG_RAX] == FUSOR_UNHINT);
    for (unsigned i = 0; i < count; i++)
        REQUIRE((entries[i] >> FUSOR_ENTRY_CLASS_SHIFT & 15) == 0);
    return work(vm, entries, count);
}

void fusion_statistics(struct vm *vm, struct fusor_statistics *out)
{
    REQUIRE(vm == &guest.vm && guest.cpl == 0);
    memset(out, 0x11, offsetof(struct fusor_statistics, balloon));
}

int64_t balloon_inflate(struct vm *vm, const uint64_t *entries, unsigned count)
{
    REQUIRE(guest.gpr[REG_RAX] == FUSOR_BALLOON_INFLATE);
    return work(vm, entries, count);
}

int64_t balloon_deflate(struct vm *vm, const uint64_t *entries, unsigned count)
{
    REQUIRE(guest.gpr[REG_RAX] == FUSOR_BALLOON_DEFLATE);
    return work(vm, entries, count);
}

int64_t balloon_free_pages(struct vm *vm, const uint64_t *entries, unsigned count)
{
    REQUIRE(guest.gpr[REG_RAX] == FUSOR_FREE_PAGES);
    return work(vm, entries, count);
}

int64_t balloon_target(struct vm *vm)
{
    REQUIRE(vm == &guest.vm && guest.cpl == 0 && guest.gpr[REG_RSI] == 0);
    return 0x3333;
}

void balloon_statistics(struct vm *vm, struct fusor_statistics *out)
{
    REQUIRE(vm == &guest.vm && guest.cpl == 0);
    out->balloon = out->balloon_target = 0x2222;
}

void vm_set_hypercall(uint64_t (*handler)(struct vm *vm, struct vcpu *v))
{
    (void)handler;
}

// Registers near what could be right are worth more tries.
static uint64_t address_of(void)
{
    uint64_t kind = take(1);
    uint64_t offset = take(2);
    switch (kind % 8) {
    case 0:
        return take(8);
    case 1:
        return 0 - offset;
    case 2:
        return ROM_PAGE * PAGE_SIZE - offset;
    case 3:
        return (TOP_PAGE << PAGE_SHIFT) - offset;
    case 4:
        return 5 * PAGE_SIZE + offset % 64;
    case 5:
        return offset;
    default:
        return offset % (ROM_PAGE * PAGE_SIZE) & ~UINT64_C(7);
    }
}

static uint64_t size_of(void)
{
    uint64_t kind = take(1);
    switch (kind % 8) {
    case 0:
        return take(8);
    case 1:
        return UINT64_C(1) << (kind / 8 + 32) | take(1);
    case 2:
        return sizeof(struct fusor_report);
    case 3:
        return 8 * (take(2) % 513);
    default:
        return take(2) % 1024;
    }
}

static void require_error(int64_t result)
{
    static const int codes[] = {FUSOR_EPERM,  FUSOR_EAGAIN, FUSOR_ENOMEM, FUSOR_EFAULT,
                                FUSOR_EEXIST, FUSOR_EINVAL, FUSOR_ERANGE, FUSOR_ENOSYS};
    for (unsigned i = 0; i < ARRAY_SIZE(codes); i++)
        if (result == -codes[i])
            return;
    REQUIRE(!"an error of the ABI");
}

static void one_call(void)
{
    static const uint64_t numbers[] = {1, 2, 3, 4, 5, 6, 7, 8};
    uint64_t how = take(1);
    for (unsigned i = 0; i < 16; i++)
        guest.gpr[i] = 0x0123456789abcdef + i;
    guest.gpr[REG_RAX] = (how & 0x70) != 0x70 ? numbers[how & 7] : take(8);
    guest.gpr[REG_RDI] = address_of();
    guest.gpr[REG_RSI] = size_of();
    guest.gpr[REG_RDX] = (how & 0x88) == 0x88 ? take(8) : 0;
    guest.gpr[10] = (how & 0x98) == 0x98 ? take(8) : 0;
    guest.cpl = how == 0xff ? 3 : 0;
    guest.read_at = guest.gpr[REG_RDI];
    guest.read_words = guest.given = guest.done = guest.written = 0;
    guest.failed = false;
    guest.vm.report = (struct vm_report){.present = false};
    uint64_t before[16];
    memcpy(before, guest.gpr, sizeof(before));

    int64_t result = (int64_t)hypercall_dispatch(&guest.vm, &guest.vcpu);

    REQUIRE(spin_none_held() && memcmp(before, guest.gpr, sizeof(before)) == 0);
    const struct vm_report *r = &guest.vm.report;
    if (result < 0) {
        require_error(result);
        REQUIRE(guest.done == 0 && guest.written == 0 && !r->present);
        return;
    }
    REQUIRE(guest.cpl == 0 && guest.gpr[REG_RDX] == 0 && guest.gpr[10] == 0);
    REQUIRE(guest.gpr[REG_RDI] % 8 == 0);
    switch (guest.gpr[REG_RAX]) {
    case FUSOR_HINT:
    case FUSOR_UNHINT:
    case FUSOR_BALLOON_INFLATE:
    case FUSOR_BALLOON_DEFLATE:
    case FUSOR_FREE_PAGES:
        REQUIRE(result > 0 && (uint64_t)result == guest.done);
        REQUIRE(guest.done <= guest.gpr[REG_RSI] && guest.read_words <= guest.gpr[REG_RSI]);
        REQUIRE(guest.gpr[REG_RSI] <= FUSOR_LIST_MAX && guest.written == 0 && !r->present);
        break;
    case FUSOR_STATISTICS:
        REQUIRE((uint64_t)result == guest.written && guest.read_words == 0 && !r->present);
        REQUIRE(guest.gpr[REG_RSI] % 8 == 0 && guest.gpr[REG_RSI] <= PAGE_SIZE);
        REQUIRE(guest.written == MIN(guest.gpr[REG_RSI], sizeof(struct fusor_statistics)));
        break;
    case FUSOR_REPORT:
        REQUIRE(result == 0 && r->present && guest.read_words == 4 && guest.written == 0);
        REQUIRE(r->total == MIN(guest.read[0], UINT64_C(1) << 40));
        REQUIRE(r->free == MIN(guest.read[1], UINT64_C(1) << 40));
        REQUIRE(r->available == MIN(guest.read[2], UINT64_C(1) << 40));
        REQUIRE(r->cache == MIN(guest.read[3], UINT64_C(1) << 40));
        break;
    case FUSOR_BALLOON_TARGET:
        REQUIRE(result == 0x3333 && guest.gpr[REG_RDI] == 0);
        REQUIRE(guest.read_words == 0 && guest.written == 0 && !r->present);
        break;
    default:
        REQUIRE(!"a call that exists");
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    memset(&guest, 0, sizeof(guest));
    fake_machine(0, 1);
    spin_init(&guest.vm.device_lock, "device", RANK_DEVICE);
    guest.data = data;
    guest.size = size;
    uint64_t pattern = take(8);
    for (size_t i = 0; i < sizeof(guest.memory); i += 8) {
        uint64_t e = (i / 8) ^ (i % 512 == 0 ? take(8) : pattern);
        memcpy(guest.memory + i, &e, 8);
    }
    for (unsigned calls = 0; guest.size > 0 && calls < 64; calls++)
        one_call();
    return 0;
}
