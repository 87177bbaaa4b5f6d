// SPDX-License-Identifier: BSD-2-Clause
// sources: tests/unit/fusion_world.c tests/unit/fusion_guest.c tests/unit/fusion_check.c
// sources: vm/access.c vm/memory_large.c
// sources: vm/memory.c vm/ballooned.c vm/reserve.c vm/shortage.c vm/kvm_guest.c
// sources: balloon/pages.c
// sources: fusion/backoff.c fusion/budget.c fusion/control.c fusion/fuse.c fusion/index.c
// sources: fusion/index_table.c fusion/intake.c fusion/members.c fusion/page_general.c
// sources: fusion/page_ops.c fusion/range.c fusion/service.c fusion/split.c
// sources: ept/walk.c ept/map.c ept/large.c ept/destroy.c ept/shootdown.c ept/fault.c
// sources: kernel/frames.c kernel/frame_buddy.c kernel/frame_cache.c kernel/frame_zero.c
// sources: kernel/frame_poison.c kernel/frame_account.c kernel/frame_share.c kernel/heap.c
// sources: kernel/lock.c kernel/format.c kernel/frame_hold.c
// libs: -Wl,--wrap=ept_shootdown,--wrap=ept_lookup,--wrap=spin_lock,--wrap=spin_lock_nested
// libs: -Wl,--wrap=frame_alloc,--wrap=heap_alloc,--wrap=page_ops_begin,--wrap=page_ops_end
// KVM's interface over the real memory, fusion and balloon: addresses a guest should not name,
// pages that are fused, ballooned or hinted before and after it names them, no memory, a guest that
// scribbles over what Fusor writes, switching off by itself and by reset, and IPIs to all kinds of
// receivers.
#include "fusion_world.h"

#include "balloon/balloon.h"
#include "vm/kvm_guest.h"

#define A 0
#define B 1
#define P UINT64_C(600) // in a range that is all RAM

#define STEAL KVM_MSR_STEAL_TIME
#define EOI   KVM_MSR_PV_EOI

static struct vcpu vcpu[VM_CPUS_MAX];

// --- The rooms around ---

static uint8_t *eoi_byte[VM_CPUS_MAX];
static unsigned eoi_byte_calls;
static struct {
    unsigned calls;
    uint32_t receivers;
    uint8_t vector;
    bool nmi;
} ipi;

void vm_arm_timers(struct vm *vm, struct vcpu *v)
{
    (void)vm;
    (void)v;
    fail();
}

uint64_t vcpu_gpr(const struct vcpu *v, unsigned reg)
{
    return v->gpr[reg];
}

static unsigned code_size = 8;

unsigned vcpu_code_size(const struct vcpu *v)
{
    (void)v;
    return code_size;
}

static void set_eoi_byte(struct vm *vm, struct vcpu *v, uint8_t *byte)
{
    assert_ptr_equal(vm, v->vm);
    assert_false(spin_none_held()); // the device lock
    eoi_byte[v->id] = byte;
    eoi_byte_calls++;
}

static void send_ipi(struct vm *vm, uint32_t receivers, uint8_t vector, bool nmi)
{
    (void)vm;
    assert_false(spin_none_held());
    ipi.calls++;
    ipi.receivers = receivers;
    ipi.vector = vector;
    ipi.nmi = nmi;
}

static const struct vm_platform_ops platform = {.set_eoi_byte = set_eoi_byte, .send_ipi = send_ipi};

// --- Helpers ---

static void start(unsigned vms)
{
    world_start(0);
    world_vms(vms);
    vm_platform = &platform;
    memset(vcpu, 0, sizeof(vcpu));
    memset(eoi_byte, 0, sizeof(eoi_byte));
    eoi_byte_calls = 0;
    code_size = 8;
    for (unsigned i = 0; i < VM_CPUS_MAX; i++) {
        vcpu[i].id = i;
        vcpu[i].vm = &world.vm[A];
    }
    world.vm[A].vcpu_count = VM_CPUS_MAX;
    spin_init(&world.vm[A].device_lock, "device", RANK_DEVICE);
}

static void finish(void)
{
    for (unsigned i = 0; i < VM_CPUS_MAX; i++)
        kvm_guest_reset(&vcpu[i]);
    // Not one of the frames that A has is pinned any more.
    for (uint64_t gfn = 0; gfn < WORLD_GFNS / 4; gfn++) {
        struct ept_leaf leaf = leaf_of(A, gfn);
        if (leaf.present && leaf.kind == EPT_KIND_PRIVATE)
            assert_int_equal(frame_of(leaf.frame)->count, 0);
    }
    world.vm[A].vcpu_count = 0;
    world_check();
    world_finish();
}

static int wr(unsigned i, uint32_t msr, uint64_t value)
{
    assert_true(spin_none_held());
    int status = kvm_guest_write_msr(&vcpu[i], msr, value);
    assert_true(spin_none_held());
    return status;
}

static uint64_t rd(unsigned i, uint32_t msr)
{
    uint64_t value = 0x5555;
    assert_int_equal(kvm_guest_read_msr(&vcpu[i], msr, &value), 0);
    return value;
}

static uint64_t at(uint64_t gfn)
{
    return gfn << PAGE_SHIFT;
}

static uint32_t pins(uint64_t gfn)
{
    struct ept_leaf leaf = leaf_of(A, gfn);
    return leaf.present && leaf.kind == EPT_KIND_PRIVATE ? frame_of(leaf.frame)->count : 0;
}

static struct kvm_steal_time *area(uint64_t address)
{
    struct ept_leaf leaf = leaf_of(A, address >> PAGE_SHIFT);
    assert_true(leaf.present);
    return (void *)((uint8_t *)hfn_to_pointer(leaf.frame) + (address & PAGE_MASK));
}

// Fusor writes there behind the model's back: it shall know of the page what is there now.
static void remember(uint64_t gfn)
{
    memcpy(world_model(A, gfn), area(at(gfn)), PAGE_SIZE);
}

// --- Tests ---

static void bad_addresses(void **state)
{
    (void)state;
    start(1);
    uint64_t end = world.vm[A].config.memory;
    const uint64_t outside[] = {0xa0000,
                                0xdf000,
                                0xe0000,
                                0xff000, // a hole, ROM
                                end,
                                end + 64,
                                3 * GIB,
                                4 * GIB,
                                0xfee00000,
                                UINT64_C(1) << 52,
                                INT64_MAX & ~PAGE_MASK,
                                UINT64_MAX & ~PAGE_MASK,
                                UINT64_MAX & ~UINT64_C(63)};
    for (unsigned i = 0; i < ARRAY_SIZE(outside); i++) {
        assert_int_equal(wr(0, STEAL, outside[i] | 1), E_INVAL);
        assert_int_equal(wr(0, EOI, outside[i] | 1), E_INVAL);
    }
    for (unsigned bit = 1; bit < 6; bit++)
        assert_int_equal(wr(0, STEAL, at(P) | 1 | UINT64_C(1) << bit), E_INVAL);
    assert_int_equal(wr(0, EOI, at(P) | 3), E_INVAL);
    // Others of KVM's are not offered.
    for (uint32_t msr = KVM_MSR_FIRST; msr <= KVM_MSR_LAST; msr++) {
        uint64_t value;
        if (msr == STEAL || msr == EOI)
            continue;
        assert_int_equal(wr(0, msr, at(P) | 1), E_INVAL);
        assert_int_equal(kvm_guest_read_msr(&vcpu[0], msr, &value), E_INVAL);
    }
    assert_int_equal(rd(0, STEAL), 0);
    assert_int_equal(rd(0, EOI), 0);
    assert_false(vcpu[0].tells_guest);
    assert_int_equal(eoi_byte_calls, 0);
    assert_int_equal(world_snapshot().count[FRAME_PRIVATE], 0);
    // An address without the enable bit is "off", whatever it is.
    assert_int_equal(wr(0, STEAL, 0xfee00000), 0);
    assert_int_equal(rd(0, STEAL), 0);
    // The last bytes of memory.
    assert_int_equal(wr(0, STEAL, (end - 64) | 1), 0);
    assert_int_equal(wr(0, EOI, (end - 4) | 1), 0);
    remember((end - 1) >> PAGE_SHIFT);
    finish();
}

static void a_bad_value_leaves_what_was(void **state)
{
    (void)state;
    start(1);
    assert_int_equal(wr(0, STEAL, at(P) | 1), 0);
    assert_int_equal(wr(0, EOI, at(P) | 65), 0);
    assert_int_equal(pins(P), 2);
    assert_int_equal(wr(0, STEAL, at(0xa0) | 1), E_INVAL);
    assert_int_equal(wr(0, EOI, at(0xa0) | 1), E_INVAL);
    assert_int_equal(rd(0, STEAL), at(P) | 1);
    assert_int_equal(rd(0, EOI), at(P) | 65);
    assert_int_equal(pins(P), 2);
    // The same again, elsewhere, off.
    assert_int_equal(wr(0, STEAL, at(P) | 1), 0);
    assert_int_equal(pins(P), 2);
    assert_int_equal(wr(0, STEAL, at(P + 1) | 1), 0);
    assert_int_equal(pins(P), 1);
    assert_int_equal(pins(P + 1), 1);
    assert_int_equal(wr(0, EOI, 0), 0);
    assert_null(eoi_byte[0]);
    assert_int_equal(pins(P), 0);
    // Every vCPU may name one page, even the same.
    for (unsigned i = 0; i < VM_CPUS_MAX; i++)
        assert_int_equal(wr(i, STEAL, (at(P + 1) + 64 * i) | 1), 0);
    assert_int_equal(pins(P + 1), VM_CPUS_MAX);
    remember(P);
    remember(P + 1);
    finish();
}

static void time_is_told(void **state)
{
    (void)state;
    start(1);
    struct vcpu *v = &vcpu[3];
    uint64_t address = at(P) + 128;
    v->entity.wait_ticks = 77 * tsc_hz; // from before: not this kernel's
    assert_int_equal(wr(3, STEAL, address | 1), 0);
    assert_true(v->tells_guest);
    struct kvm_steal_time *t = area(address);
    assert_int_equal(t->steal, 0);
    assert_int_equal(t->version, 2);
    v->entity.wait_ticks += tsc_hz / 2;
    kvm_guest_unloaded(v);
    assert_int_equal(t->preempted, KVM_PREEMPTED);
    assert_false(kvm_guest_loaded(v));
    assert_int_equal(t->preempted, 0);
    assert_int_equal(t->steal, 500000000);
    assert_int_equal(t->version, 4);
    // Years of it are no overflow.
    v->entity.wait_ticks += 3 * 365 * 86400 * tsc_hz;
    assert_false(kvm_guest_loaded(v));
    assert_int_equal(t->steal, 500000000 + UINT64_C(3) * 365 * 86400 * 1000000000);
    // Linux takes the CPU off and on: it does not run backwards.
    uint64_t before = t->steal;
    assert_int_equal(wr(3, STEAL, 0), 0);
    assert_false(v->tells_guest);
    v->entity.wait_ticks += tsc_hz;
    assert_int_equal(wr(3, STEAL, address | 1), 0);
    assert_int_equal(t->steal, before);
    // Another kernel comes with a clean area.
    memset(t, 0, sizeof(*t));
    assert_int_equal(wr(3, STEAL, address | 1), 0);
    v->entity.wait_ticks += tsc_hz / 1000;
    assert_false(kvm_guest_loaded(v));
    assert_int_equal(t->steal, 1000000);
    // Nothing else of the page was written.
    uint8_t *page = (uint8_t *)t - 128;
    for (unsigned i = 0; i < PAGE_SIZE; i++)
        if (i < 128 || i >= 128 + 17)
            assert_int_equal(page[i], 0);
    remember(P);
    finish();
}

static void flushes_are_asked_for(void **state)
{
    (void)state;
    start(1);
    struct vcpu *v = &vcpu[0];
    assert_int_equal(wr(0, STEAL, at(P) | 1), 0);
    struct kvm_steal_time *t = area(at(P));
    for (unsigned i = 0; i < 3; i++) {
        kvm_guest_unloaded(v);
        t->preempted |= KVM_FLUSH_TLB;
        assert_true(kvm_guest_loaded(v));
        assert_int_equal(t->preempted, 0);
        kvm_guest_unloaded(v);
        assert_false(kvm_guest_loaded(v)); // once
    }
    // A guest that scribbles: nothing but a flush comes of it, and the version stays even.
    for (unsigned i = 0; i < 256; i++) {
        memset(t, (int)i, sizeof(*t));
        assert_int_equal(kvm_guest_loaded(v), (i & KVM_FLUSH_TLB) != 0);
        assert_int_equal(t->version & 1, 0);
        assert_int_equal(t->preempted, 0);
        kvm_guest_unloaded(v);
    }
    remember(P);
    finish();
}

static int64_t balloon(uint64_t gfn)
{
    uint64_t entry = gfn;
    return balloon_inflate(&world.vm[A], &entry, 1);
}

// While it is named the page stays what and where it is.
static void a_named_page_stays(void **state)
{
    (void)state;
    start(2);
    fill(0, A, P, 1);
    fill(0, B, P, 1);
    world_leave(0);
    assert_int_equal(wr(0, STEAL, at(P) | 1), 0);
    hfn_t frame = leaf_of(A, P).frame;
    remember(P);
    memcpy(world_model(B, P), world_model(A, P), PAGE_SIZE);
    for (unsigned i = 0; i < PAGE_SIZE; i += 8)
        store(0, B, P, i, *(uint64_t *)(world_model(A, P) + i));
    world_leave(0);
    hint(B, P);
    hint(A, P);
    assert_false(is_shared(A, P));
    assert_int_equal(rejected(A, FUSION_REJECT_PINNED), 1);
    world_leave(0);
    assert_true(balloon(P) <= 0);
    assert_int_equal(leaf_of(A, P).frame.raw, frame.raw);
    // Then it is a page like any other.
    assert_int_equal(wr(0, STEAL, 0), 0);
    hint(A, P);
    assert_true(is_shared(A, P));
    finish();
}

static void let_go(void)
{
    assert_int_equal(wr(0, STEAL, 0), 0);
}

static void take_again(void)
{
    assert_int_equal(wr(0, STEAL, at(P) | 1), 0);
}

static void move_on(void)
{
    assert_int_equal(wr(0, STEAL, at(P + 1) | 1), 0);
}

// A large page with a named one in it is no candidate; nor does it become one while a hint of it,
// or of its equal in another VM, is under way and the guest names pages of it and lets go of them.
static void named_in_a_large_page(void **state)
{
    (void)state;
    static void (*const actions[])(void) = {let_go, take_again, move_on};
    static const enum world_point points[] = {POINT_SHOOTDOWN, POINT_SHOT, POINT_GFN_LOCK,
                                              POINT_HASH};
    unsigned happened = 0;
    for (unsigned i = 0; i < ARRAY_SIZE(actions) * ARRAY_SIZE(points) * 3 * 4; i++) {
        void (*action)(void) = actions[i % 3];
        enum world_point point = points[i / 3 % 4];
        unsigned n = 1 + i / 12 % 3;
        bool named = i / 36 % 2 != 0, by_other = i / 72 != 0;
        start(2);
        for (unsigned k = 0; k < 2; k++) {
            world.vm[k].config.large_pages = VM_LARGE_EAGER;
            for (unsigned g = 0; g < 512; g++)
                fill(1, k, 512 + g, 1 + g * 1000);
            world_leave(1);
            assert_int_equal(leaf_of(k, P).level, EPT_2M);
        }
        // Fusor writes zeros into the area, and the version: B has it, too.
        if (named) {
            take_again();
            remember(P);
            for (unsigned o = 0; o < PAGE_SIZE; o += 8)
                store(0, B, P, o, *(uint64_t *)(world_model(A, P) + o));
            world_leave(0);
        }
        hint_range(by_other ? A : B, 512);
        world_at(point, n, 3, action);
        uint64_t entry = FUSOR_ENTRY(512, 1, 9);
        world_use(0);
        assert_int_equal(fusion_hint(&world.vm[by_other ? B : A], &entry, 1), 1);
        happened += world_pending() == 0;
        assert_int_equal(pins(P), rd(0, STEAL) == (at(P) | 1));
        assert_int_equal(pins(P + 1), rd(0, STEAL) == (at(P + 1) | 1));
        remember(P);
        remember(P + 1);
        world_check_contents();
        finish();
    }
    assert_in_range(happened, 80, UINT32_MAX);
}

static void fused_and_ballooned_pages(void **state)
{
    (void)state;
    start(2);
    fill(0, A, P, 7);
    fill(0, B, P, 7);
    hint(A, P);
    hint(B, P);
    assert_true(same_frame(A, P, B, P));
    world_leave(0);
    assert_int_equal(wr(0, STEAL, at(P) | 1), 0);
    assert_false(is_shared(A, P));
    assert_int_equal(pins(P), 1);
    kvm_guest_unloaded(&vcpu[0]);
    load(1, B, P); // nothing of it is seen there
    world_leave(1);
    remember(P);

    assert_int_equal(balloon(P + 1), 1);
    assert_int_equal(wr(0, EOI, at(P + 1) | 1), 0);
    assert_int_equal(pins(P + 1), 1);
    assert_non_null(eoi_byte[0]);
    assert_int_equal(*eoi_byte[0], 0);
    finish();
}

static void without_frames(void **state)
{
    (void)state;
    start(2);
    fill(0, A, P, 7);
    fill(0, B, P, 7);
    hint(A, P);
    hint(B, P);
    world_leave(0);
    assert_int_equal(wr(0, EOI, at(P + 8) | 1), 0);
    unsigned tried = 0;
    for (unsigned n = 1;; n++) {
        // Fused (a split) and never touched (the first touch).
        world.failed = false;
        world.fail_at = n;
        int status = wr(0, STEAL, at(P) | 1);
        bool failed = world.failed;
        world.fail_at = 0;
        if (!failed) {
            assert_int_equal(status, 0);
            break;
        }
        tried++;
        if (status == 0) { // there was another way
            assert_int_equal(wr(0, STEAL, 0), 0);
            hint(A, P);
            world_leave(0);
            continue;
        }
        assert_int_equal(status, E_NOMEM);
        assert_int_equal(rd(0, STEAL), 0);
        assert_false(vcpu[0].tells_guest);
    }
    assert_true(tried > 0);
    remember(P);
    world.failed = false;
    world.fail_at = 1;
    assert_int_equal(wr(0, EOI, at(P + 20) | 1), E_NOMEM);
    assert_true(world.failed);
    world.fail_at = 0;
    assert_int_equal(rd(0, EOI), at(P + 8) | 1); // as before
    assert_int_equal(wr(0, EOI, at(P + 20) | 1), 0);
    assert_int_equal(pins(P + 8), 0);
    finish();
}

static void reset_switches_off(void **state)
{
    (void)state;
    start(1);
    for (unsigned i = 0; i < VM_CPUS_MAX; i++) {
        assert_int_equal(wr(i, STEAL, (at(P) + 64 * i) | 1), 0);
        assert_int_equal(wr(i, EOI, (at(P + 1) + 4 * i) | 1), 0);
        assert_ptr_equal(eoi_byte[i], (uint8_t *)area(at(P + 1) + 4 * i));
    }
    for (unsigned i = 0; i < VM_CPUS_MAX; i++) {
        kvm_guest_reset(&vcpu[i]);
        kvm_guest_reset(&vcpu[i]);
        assert_int_equal(rd(i, STEAL), 0);
        assert_int_equal(rd(i, EOI), 0);
        assert_false(vcpu[i].tells_guest);
        assert_null(eoi_byte[i]);
        assert_int_equal(pins(P), VM_CPUS_MAX - 1 - i);
        assert_int_equal(pins(P + 1), VM_CPUS_MAX - 1 - i);
    }
    remember(P);
    finish();
}

static int64_t send(uint64_t low, uint64_t high, uint64_t first, uint64_t icr)
{
    struct vcpu *v = &vcpu[0];
    memset(&ipi, 0, sizeof(ipi));
    v->gpr[REG_RBX] = low;
    v->gpr[REG_RCX] = high;
    v->gpr[REG_RDX] = first;
    v->gpr[REG_RSI] = icr;
    return kvm_guest_send_ipi(&world.vm[A], v);
}

static void ipis(void **state)
{
    (void)state;
    start(1);
    assert_int_equal(send(0xe, 0, 0, 0xfb), 3);
    assert_int_equal(ipi.receivers, 0xe);
    assert_int_equal(ipi.vector, 0xfb);
    assert_false(ipi.nmi);
    assert_int_equal(send(0x5, 0, 3, 0xfb), 2);
    assert_int_equal(ipi.receivers, 0x28);
    assert_int_equal(send(UINT64_MAX, UINT64_MAX, 0, 0x400), 16);
    assert_int_equal(ipi.receivers, 0xffff);
    assert_true(ipi.nmi);
    // LAPICs that there are not, on both sides.
    assert_int_equal(send(UINT64_MAX, UINT64_MAX, 14, 0xfb), 2);
    assert_int_equal(ipi.receivers, 0xc000);
    assert_int_equal(send(UINT64_MAX, UINT64_MAX, 16, 0xfb), 0);
    assert_int_equal(ipi.receivers, 0);
    assert_int_equal(send(UINT64_MAX, UINT64_MAX, UINT64_MAX, 0xfb), 0);
    assert_int_equal(send(UINT64_MAX, UINT64_MAX, (uint64_t)-8, 0xfb), 0);
    assert_int_equal(send(0, UINT64_MAX, 0, 0xfb), 0); // 64 and up
    world.vm[A].vcpu_count = 2;
    assert_int_equal(send(UINT64_MAX, UINT64_MAX, 0, 0xfb), 2);
    world.vm[A].vcpu_count = VM_CPUS_MAX;
    // A 32-bit kernel has 32 in each half, and rubbish above.
    code_size = 4;
    assert_int_equal(send(UINT64_C(0xdead00000001), UINT64_C(0xdead00000001), UINT64_C(1) << 32,
                          UINT64_C(0x1000000fb)),
                     1);
    assert_int_equal(ipi.receivers, 1);
    code_size = 8;
    // Fixed and NMI only; no shorthand, no logical mode, no level, no reserved vector.
    const uint64_t bad[] = {
        0,         15,    0x1fb,  0x2fb,  0x4fb,   0x500,   0x600,
        0x700,     0x8fb, 0x40fb, 0x80fb, 0x400fb, 0xc00fb, UINT64_C(1) << 32 | 0xfb,
        UINT64_MAX};
    for (unsigned i = 0; i < ARRAY_SIZE(bad); i++) {
        int64_t status = send(1, 0, 0, bad[i]);
        if (bad[i] == 0x4fb) // the vector of an NMI does not matter
            assert_int_equal(status, 1);
        else
            assert_int_equal(status, -KVM_EINVAL);
        assert_int_equal(ipi.calls, bad[i] == 0x4fb);
    }
    finish();
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(bad_addresses),
        cmocka_unit_test(a_bad_value_leaves_what_was),
        cmocka_unit_test(time_is_told),
        cmocka_unit_test(flushes_are_asked_for),
        cmocka_unit_test(a_named_page_stays),
        cmocka_unit_test(named_in_a_large_page),
        cmocka_unit_test(fused_and_ballooned_pages),
        cmocka_unit_test(without_frames),
        cmocka_unit_test(reset_switches_off),
        cmocka_unit_test(ipis),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
