// SPDX-License-Identifier: BSD-2-Clause
// VMCALL: number in RAX, arguments in RDI, RSI, RDX, R10, result in RAX.
//
// Nothing is done before every argument was checked. What a guest passes in memory is copied
// before it is looked at, each byte once, so that it cannot change between a check and its use. A
// call never waits and is never restarted by Fusor: RIP moves on, and where there is more to do the
// result says how much was done and the guest calls again.
#include "hypercall/hypercall.h"

#include <stdatomic.h>

#include "balloon/balloon.h"
#include "fusion/fusion.h"
#include "hypercall/fusor_abi.h"
#include "kernel/error.h"
#include "kernel/init.h"
#include "kernel/panic.h"
#include "kernel/string.h"
#include "vm/memory.h"
#include "vm/vm_object.h"
#include "vmx/vcpu.h"

#define REG_R10 10u

// The largest buffer of any call: a page, so that it lies in two pages at most.
#define BUFFER_MAX PAGE_SIZE

// Keeps the large stack frames of the calls out of the dispatcher, whose way shall be short.
#define NOINLINE __attribute__((noinline))

#define ENTRY_CLASS_MASK (UINT64_C(0xf) << FUSOR_ENTRY_CLASS_SHIFT)

// What a driver says of its memory is for show; more than any machine has is not worth showing.
#define REPORT_MAX (UINT64_C(1) << 40)

_Static_assert(FUSOR_LIST_MAX * sizeof(uint64_t) <= BUFFER_MAX, "a list lies in two pages at most");
_Static_assert(sizeof(struct fusor_statistics) <= BUFFER_MAX, "and so does every structure");

static _Atomic uint64_t refused[FUSOR_ENOSYS + 1];

uint64_t hypercall_refused(unsigned code)
{
    return code < ARRAY_SIZE(refused) ? refused[code] : 0;
}

int hypercall_error(int error)
{
    static const uint8_t codes[] = {
        [-E_INVAL] = FUSOR_EINVAL, [-E_NOMEM] = FUSOR_ENOMEM, [-E_NOENT] = FUSOR_ENOENT,
        [-E_EXIST] = FUSOR_EEXIST, [-E_BUSY] = FUSOR_EBUSY,
        [-E_RANGE] = FUSOR_EFAULT, // memory.h: outside the VM's memory
        [-E_NOSYS] = FUSOR_ENOSYS, [-E_PERM] = FUSOR_EPERM,   [-E_AGAIN] = FUSOR_EAGAIN,
        [-E_FAULT] = FUSOR_EFAULT,
    };
    if (error >= 0 || error <= -(int)ARRAY_SIZE(codes))
        return FUSOR_EINVAL;
    return codes[-error];
}

// True when the guest has RAM at [address, address + size). ROM is not RAM: guest_write would write
// to it. `size` is 1..BUFFER_MAX, so only the first and the last page need a look.
static bool is_ram(const struct vm *vm, uint64_t address, uint64_t size)
{
    uint64_t last = address + size - 1;
    return last >= address && vm_area_of(vm, gpa_to_gfn(gpa(address))) == VM_AREA_RAM &&
           vm_area_of(vm, gpa_to_gfn(gpa(last))) == VM_AREA_RAM;
}

// What all calls with a buffer have in common: RDI is its address, `bytes` its size, the arguments
// behind are reserved. Returns 0 or the negative error.
static int64_t check_buffer(const struct vm *vm, const struct vcpu *v, uint64_t bytes)
{
    uint64_t address = vcpu_gpr(v, REG_RDI);
    if (vcpu_gpr(v, REG_RDX) != 0 || vcpu_gpr(v, REG_R10) != 0)
        return -FUSOR_EINVAL;
    if (address % sizeof(uint64_t) != 0)
        return -FUSOR_EINVAL;
    return is_ram(vm, address, bytes) ? 0 : -FUSOR_EFAULT;
}

// A list that hints nothing has no classes. Ends before the first entry that has one.
static int64_t unhint(struct vm *vm, const uint64_t *entries, unsigned count)
{
    unsigned good = 0;
    while (good < count && (entries[good] & ENTRY_CLASS_MASK) == 0)
        good++;
    return good > 0 ? fusion_unhint(vm, entries, good) : -FUSOR_EINVAL;
}

// Works through a list, a chunk at a time, so that the vCPU can look around in between.
static NOINLINE int64_t do_list(struct vm *vm, struct vcpu *v,
                                int64_t (*work)(struct vm *vm, const uint64_t *entries,
                                                unsigned count))
{
    uint64_t count = vcpu_gpr(v, REG_RSI);
    if (count == 0 || count > FUSOR_LIST_MAX)
        return -FUSOR_EINVAL;
    int64_t status = check_buffer(vm, v, count * sizeof(uint64_t));
    if (status != 0)
        return status;
    uint64_t list = vcpu_gpr(v, REG_RDI);
    uint64_t entries[FUSION_CHUNK];
    uint64_t done = 0;
    for (;;) {
        unsigned n = (unsigned)MIN(count - done, (uint64_t)FUSION_CHUNK);
        int error =
            guest_read(vm, gpa(list + done * sizeof(uint64_t)), entries, n * sizeof(uint64_t));
        int64_t result = error != 0 ? -hypercall_error(error) : work(vm, entries, n);
        if (result < 0)
            return done > 0 ? (int64_t)done : result;
        CHECK((uint64_t)result <= n);
        done += (uint64_t)result;
        if ((uint64_t)result < n || done == count || vcpu_wanted(v))
            return (int64_t)done;
    }
}

static NOINLINE int64_t do_statistics(struct vm *vm, struct vcpu *v)
{
    uint64_t size = vcpu_gpr(v, REG_RSI);
    if (size == 0 || size > BUFFER_MAX || size % sizeof(uint64_t) != 0)
        return -FUSOR_EINVAL;
    int64_t status = check_buffer(vm, v, size);
    if (status != 0)
        return status;
    struct fusor_statistics s;
    memset(&s, 0, sizeof(s));
    fusion_statistics(vm, &s);
    balloon_statistics(vm, &s);
    size = MIN(size, sizeof(s));
    int error = guest_write(vm, gpa(vcpu_gpr(v, REG_RDI)), &s, size);
    return error != 0 ? -hypercall_error(error) : (int64_t)size;
}

static NOINLINE int64_t do_report(struct vm *vm, struct vcpu *v)
{
    struct fusor_report r;
    if (vcpu_gpr(v, REG_RSI) != sizeof(r))
        return -FUSOR_EINVAL;
    int64_t status = check_buffer(vm, v, sizeof(r));
    if (status != 0)
        return status;
    int error = guest_read(vm, gpa(vcpu_gpr(v, REG_RDI)), &r, sizeof(r));
    if (error != 0)
        return -hypercall_error(error);
    spin_lock(&vm->device_lock);
    vm->report = (struct vm_report){
        .present = true,
        .total = MIN(r.total, REPORT_MAX),
        .free = MIN(r.free, REPORT_MAX),
        .available = MIN(r.available, REPORT_MAX),
        .cache = MIN(r.cache, REPORT_MAX),
        .balloon = vm->account.ballooned,
    };
    spin_unlock(&vm->device_lock);
    return 0;
}

static int64_t do_target(struct vm *vm, const struct vcpu *v)
{
    if (vcpu_gpr(v, REG_RDI) != 0 || vcpu_gpr(v, REG_RSI) != 0 || vcpu_gpr(v, REG_RDX) != 0 ||
        vcpu_gpr(v, REG_R10) != 0)
        return -FUSOR_EINVAL;
    return balloon_target(vm);
}

static int64_t do_call(struct vm *vm, struct vcpu *v, uint64_t number)
{
    switch (number) {
    case FUSOR_HINT:
        return do_list(vm, v, fusion_hint);
    case FUSOR_UNHINT:
        return do_list(vm, v, unhint);
    case FUSOR_STATISTICS:
        return do_statistics(vm, v);
    case FUSOR_REPORT:
        return do_report(vm, v);
    case FUSOR_BALLOON_TARGET:
        return do_target(vm, v);
    case FUSOR_BALLOON_INFLATE:
        return do_list(vm, v, balloon_inflate);
    case FUSOR_BALLOON_DEFLATE:
        return do_list(vm, v, balloon_deflate);
    case FUSOR_FREE_PAGES:
        return do_list(vm, v, balloon_free_pages);
    case KVM_CALL_SEND_IPI:
        return kvm_guest_send_ipi(vm, v);
    default:
        return -FUSOR_ENOSYS;
    }
}

uint64_t hypercall_dispatch(struct vm *vm, struct vcpu *v)
{
    int64_t result = -FUSOR_EPERM;
    if (vcpu_cpl(v) == 0)
        result = do_call(vm, v, vcpu_gpr(v, REG_RAX));
    uint64_t code = 0 - (uint64_t)result;
    if (result < 0 && code < ARRAY_SIZE(refused))
        atomic_fetch_add_explicit(&refused[code], 1, memory_order_relaxed);
    return (uint64_t)result;
}

static int register_dispatcher(const struct boot_info *info)
{
    (void)info;
    vm_set_hypercall(hypercall_dispatch);
    return 0;
}
INIT_HOOK(INIT_DEVICES, register_dispatcher);
