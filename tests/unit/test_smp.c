// SPDX-License-Identifier: BSD-2-Clause
// sources: devices/lapic.c devices/lapic_interrupt.c devices/lapic_virtual.c devices/lapic_timer.c
// sources: devices/ioapic.c devices/pic.c devices/pit.c devices/rtc.c devices/calendar.c
// sources: devices/uart.c devices/power_control.c devices/mmio.c devices/decode.c
// sources: devices/emulate.c vm/bus.c vm/clock.c vm/vcpu_ops.c vm/kvm_guest.c
// sources: kernel/format.c kernel/lock.c
// The PC with several vCPUs: who gets which interrupt, whose page the LAPIC's is, INIT and STARTUP,
// whose timer wakes whom, when guest time stands still, KVM's PV EOI. The vCPUs are pretended: what
// they are told is written down.
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "devices/platform.c" // its registration is static
#include "fake.h"
#include "kernel/error.h"

#define CPUS  4u
#define ALL   ((1u << CPUS) - 1)
#define SELF  UINT32_C(0x40000)
#define EVERY UINT32_C(0x80000)
#define REST  UINT32_C(0xc0000)

#define MSR_BASE UINT32_C(0x1b)
#define MSR_ICR  UINT32_C(0x830)
#define MSR_SVR  UINT32_C(0x80f)

// --- What the platform needs of the rooms below ---

const struct vm_platform_ops *vm_platform;
static struct vm *vm;
static struct vcpu vcpu[VM_CPUS_MAX];
static unsigned notified[VM_CPUS_MAX], timer_told[VM_CPUS_MAX], startup_told[VM_CPUS_MAX];
static unsigned posted_told[VM_CPUS_MAX];
static enum vm_request asked;

void vm_set_platform(const struct vm_platform_ops *platform)
{
    vm_platform = platform;
}

static unsigned waits_noted;

void vm_note_wait(struct vm *of)
{
    assert_ptr_equal(of, vm);
    assert_true(spin_none_held());
    waits_noted++;
}

void vm_ask(struct vm *of, enum vm_request request)
{
    assert_ptr_equal(of, vm);
    if (vm->request == VM_REQUEST_NONE)
        vm->request = request;
    asked = vm->request;
}

void vcpu_notify(struct vcpu *v)
{
    notified[v->id]++;
    v->recheck = 1;
}

void vcpu_notify_timer(struct vcpu *v)
{
    timer_told[v->id]++;
    v->retime = 1;
}

void vcpu_notify_posted(struct vcpu *v)
{
    posted_told[v->id]++;
}

static bool posts;

bool vmx_posts_interrupts(void)
{
    return posts;
}

void vcpu_notify_startup(struct vcpu *v)
{
    startup_told[v->id]++;
    v->startup = 1;
}

uint64_t time_wall_seconds(void)
{
    return 1700000000;
}

void *heap_alloc(size_t size)
{
    return calloc(1, size);
}

void heap_free(void *p)
{
    free(p);
}

// The guest's instruction and registers, for devices/mmio.c.
static uint8_t instruction[16];

uint64_t vcpu_linear_rip(const struct vcpu *v)
{
    (void)v;
    return 0x1000;
}

unsigned vcpu_code_size(const struct vcpu *v)
{
    (void)v;
    return 8;
}

// Only the MOVS of test_mmio.c needs these two.
uint64_t vcpu_segment_base(const struct vcpu *v, unsigned segment)
{
    (void)v;
    fail_msg("base of segment %u", segment);
    return 0;
}

int vcpu_write_linear(struct vcpu *v, uint64_t linear, const void *from, size_t size,
                      uint32_t *fault_code, uint64_t *fault_address)
{
    (void)v;
    (void)from;
    (void)size;
    (void)fault_code;
    (void)fault_address;
    fail_msg("write to %#lx", linear);
    return E_FAULT;
}

uint64_t vcpu_rip(const struct vcpu *v)
{
    (void)v;
    return 0x1000;
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
    (void)length;
}

void vcpu_inject_page_fault(struct vcpu *v, uint64_t linear, uint32_t error)
{
    (void)v;
    fail_msg("page fault at %#lx, %#x", linear, error);
}

int vcpu_read_linear(struct vcpu *v, uint64_t linear, void *to, size_t size, bool fetch,
                     uint32_t *fault_code, uint64_t *fault_address)
{
    (void)v;
    (void)linear;
    (void)fault_code;
    (void)fault_address;
    assert_true(fetch);
    assert_true(size <= sizeof(instruction));
    memcpy(to, instruction, size);
    return 0;
}

int guest_read(struct vm *of, gpa_t from, void *to, size_t size)
{
    (void)of;
    (void)from;
    memset(to, 0, size);
    return 0;
}

int guest_write(struct vm *of, gpa_t to, const void *from, size_t size)
{
    (void)of;
    (void)to;
    (void)from;
    (void)size;
    return 0;
}

// One page of the guest's that it may name (vm/kvm_guest.c).
static _Alignas(64) uint8_t named_page[PAGE_SIZE];
static unsigned pins;

int guest_pin(struct vm *of, gfn_t gfn, void **page)
{
    assert_ptr_equal(of, vm);
    assert_true(spin_none_held());
    if (gfn.raw != 5)
        return E_RANGE;
    pins++;
    *page = named_page;
    return 0;
}

void guest_unpin(struct vm *of, gfn_t gfn)
{
    assert_ptr_equal(of, vm);
    assert_int_equal(gfn.raw, 5);
    pins--;
}

// --- The machine ---

static void forget(void)
{
    memset(notified, 0, sizeof(notified));
    memset(timer_told, 0, sizeof(timer_told));
    memset(startup_told, 0, sizeof(startup_told));
    memset(posted_told, 0, sizeof(posted_told));
    asked = VM_REQUEST_NONE;
}

static struct lapic *lapic(unsigned i)
{
    struct platform *p = vm->platform;
    return &p->lapic[i];
}

static int set_up_cpus(unsigned count)
{
    fake_machine(0, 1);
    vm = calloc(1, sizeof(*vm));
    assert_non_null(vm);
    spin_init(&vm->device_lock, "device", RANK_DEVICE);
    bus_init(&vm->bus);
    vclock_init(&vm->clock, tsc_hz);
    for (unsigned i = 0; i < VM_CPUS_MAX; i++) {
        vtimer_queue_init(&vm->timers[i].queue);
        vm->timers[i].queue.moved = &vm->timers_moved;
    }
    memset(vcpu, 0, sizeof(vcpu));
    for (unsigned i = 0; i < count; i++) {
        vcpu[i].id = i;
        vcpu[i].vm = vm;
        vcpu[i].ops = &vm_vcpu_ops;
        vcpu[i].parked = i != 0;
        vcpu[i].until = UINT64_MAX;
        vm->vcpus[i] = &vcpu[i];
    }
    vm->vcpu_count = vm->vcpus_made = count;
    register_platform(NULL);
    assert_int_equal(vm_platform->create(vm), 0);
    vclock_init(&vm->clock, tsc_hz);
    vm_platform->reset(vm);
    vclock_thaw(&vm->clock);
    for (unsigned i = 0; i < count; i++)
        vcpu[i].ops->run_timers(&vcpu[i], fake_tsc); // as every run does first
    forget();
    return 0;
}

static int set_up(void **state)
{
    (void)state;
    return set_up_cpus(CPUS);
}

static int tear_down(void **state)
{
    (void)state;
    vm_platform->destroy(vm);
    free(vm);
    return 0;
}

// An access of vCPU `i` to the xAPIC page: mov [rdi], eax and mov eax, [rdi].
static void wr(unsigned i, uint32_t reg, uint32_t value)
{
    memcpy(instruction, (const uint8_t[]){0x89, 0x07}, 2);
    vcpu[i].gpr[REG_RAX] = value;
    assert_int_equal(vcpu[i].ops->mmio(&vcpu[i], gpa(LAYOUT_LAPIC + reg), true), VCPU_RESUME);
}

static uint32_t rd(unsigned i, uint32_t reg)
{
    memcpy(instruction, (const uint8_t[]){0x8b, 0x07}, 2);
    vcpu[i].gpr[REG_RAX] = UINT64_MAX;
    assert_int_equal(vcpu[i].ops->mmio(&vcpu[i], gpa(LAYOUT_LAPIC + reg), false), VCPU_RESUME);
    return (uint32_t)vcpu[i].gpr[REG_RAX];
}

static void ioapic_entry(unsigned pin, uint64_t entry)
{
    struct platform *p = vm->platform;
    spin_lock(&vm->device_lock);
    for (unsigned half = 0; half < 2; half++) {
        bus_mmio_store(&vm->bus, gpa(LAYOUT_IOAPIC), 4, 0x11 + 2 * pin - half);
        bus_mmio_store(&vm->bus, gpa(LAYOUT_IOAPIC + 0x10), 4,
                       (uint32_t)(entry >> (32 - 32 * half)));
    }
    spin_unlock(&vm->device_lock);
    assert_int_equal(p->ioapic.redirection[pin], entry);
}

static void raise_irq(unsigned irq)
{
    struct platform *p = vm->platform;
    spin_lock(&vm->device_lock);
    set_irq(p, irq, true);
    set_irq(p, irq, false);
    spin_unlock(&vm->device_lock);
}

// Bit i: vCPU i has an interrupt to take; it is taken and ended. All of one vector.
static uint32_t take(int vector)
{
    uint32_t got = 0;
    for (unsigned i = 0; i < vm->vcpu_count; i++) {
        int found = vcpu[i].ops->interrupt(&vcpu[i], false);
        if (found < 0)
            continue;
        assert_int_equal(vcpu[i].ops->interrupt(&vcpu[i], true), vector);
        assert_int_equal(vcpu[i].ops->interrupt(&vcpu[i], false), -1);
        assert_true(notified[i] > 0); // it was told
        got |= 1u << i;
        if (lapic_x2apic(lapic(i)))
            assert_int_equal(vcpu[i].ops->write_msr(&vcpu[i], 0x80b, 0), 0);
        else
            wr(i, 0xb0, 0);
    }
    forget();
    return got;
}

static uint32_t take_nmis(void)
{
    uint32_t got = 0;
    for (unsigned i = 0; i < vm->vcpu_count; i++) {
        if (!vcpu[i].ops->take_nmi(&vcpu[i], true))
            continue;
        assert_true(notified[i] > 0);
        got |= 1u << i;
    }
    forget();
    return got;
}

static void send_x(unsigned from, uint32_t destination, uint32_t icr)
{
    wr(from, 0x310, destination << 24);
    wr(from, 0x300, icr);
}

static void send_x2(unsigned from, uint32_t destination, uint32_t icr)
{
    uint64_t value = (uint64_t)destination << 32 | icr;
    assert_int_equal(vcpu[from].ops->write_msr(&vcpu[from], MSR_ICR, value), 0);
}

// All are up and enabled.
static void start_all(void)
{
    for (unsigned i = 0; i < vm->vcpu_count; i++) {
        vcpu[i].parked = false;
        wr(i, 0xf0, 0x1ff);
        wr(i, 0xe0, UINT32_MAX);
        wr(i, 0xd0, 1u << (24 + i % 8));
    }
    forget();
}

static void to_x2apic(unsigned i)
{
    uint64_t base;
    assert_int_equal(vcpu[i].ops->read_msr(&vcpu[i], MSR_BASE, &base), 0);
    assert_int_equal(vcpu[i].ops->write_msr(&vcpu[i], MSR_BASE, base | 0x400), 0);
}

// --- Tests ---

static void every_vcpu_has_its_lapic(void **state)
{
    (void)state;
    for (unsigned i = 0; i < CPUS; i++) {
        assert_int_equal(rd(i, 0x20), i << 24);
        uint64_t base;
        assert_int_equal(vcpu[i].ops->read_msr(&vcpu[i], MSR_BASE, &base), 0);
        assert_int_equal(base, LAYOUT_LAPIC | 0x800 | (i == 0 ? 0x100 : 0));
        wr(i, 0x80, 0x10 * i);
    }
    for (unsigned i = 0; i < CPUS; i++) {
        assert_int_equal(rd(i, 0x80), 0x10 * i);
        assert_int_equal(vcpu[i].ops->get_cr8(&vcpu[i]), i);
    }
    vcpu[2].ops->set_cr8(&vcpu[2], 9);
    assert_int_equal(rd(2, 0x80), 0x90);
    assert_int_equal(rd(1, 0x80), 0x10);
    // Only the bootstrap processor's is as firmware leaves it.
    assert_int_equal(rd(0, 0x350), 0x700);
    for (unsigned i = 1; i < CPUS; i++)
        assert_int_equal(rd(i, 0x350), 0x10000);
}

static void fixed_ipis_by_xapic(void **state)
{
    (void)state;
    start_all();
    for (unsigned from = 0; from < CPUS; from++) {
        for (unsigned to = 0; to < CPUS; to++) {
            send_x(from, to, 0x40 + to);
            assert_int_equal(take(0x40 + (int)to), 1u << to);
        }
        send_x(from, 9, 0x50); // nobody
        assert_int_equal(take(0x50), 0);
        send_x(from, 0xff, 0x50);
        assert_int_equal(take(0x50), ALL);
        send_x(from, 0, SELF | 0x50);
        assert_int_equal(take(0x50), 1u << from);
        send_x(from, 0, EVERY | 0x50);
        assert_int_equal(take(0x50), ALL);
        send_x(from, 0, REST | 0x50);
        assert_int_equal(take(0x50), ALL & ~(1u << from));
        // Logical, flat
        send_x(from, 0x5, 0x850);
        assert_int_equal(take(0x50), 0x5);
        send_x(from, 0xff, 0x850);
        assert_int_equal(take(0x50), ALL);
    }
    // Clusters of two
    for (unsigned i = 0; i < CPUS; i++) {
        wr(i, 0xe0, 0x0fffffff);
        wr(i, 0xd0, (i / 2 << 4 | 1u << i % 2) << 24);
    }
    send_x(0, 0x13, 0x850);
    assert_int_equal(take(0x50), 0xc);
    send_x(3, 0x02, 0x850);
    assert_int_equal(take(0x50), 0x2);
    send_x(3, 0x23, 0x850);
    assert_int_equal(take(0x50), 0);
    // Who is disabled by software takes none.
    wr(1, 0xf0, 0xff);
    send_x(0, 0, EVERY | 0x50);
    assert_int_equal(take(0x50), ALL & ~2u);
}

static void fixed_ipis_by_x2apic(void **state)
{
    (void)state;
    start_all();
    to_x2apic(1); // mixed modes
    send_x(0, 1, 0x44);
    assert_int_equal(take(0x44), 2);
    send_x2(1, 0, 0x45);
    assert_int_equal(take(0x45), 1);
    for (unsigned i = 0; i < CPUS; i++)
        if (i != 1)
            to_x2apic(i);
    for (unsigned from = 0; from < CPUS; from++) {
        for (unsigned to = 0; to < CPUS; to++) {
            send_x2(from, to, 0x40);
            assert_int_equal(take(0x40), 1u << to);
        }
        send_x2(from, 0xff, 0x40); // an id like others
        assert_int_equal(take(0x40), 0);
        send_x2(from, UINT32_MAX, 0x40);
        assert_int_equal(take(0x40), ALL);
        send_x2(from, 0x6, 0x840); // cluster 0
        assert_int_equal(take(0x40), 0x6);
        send_x2(from, 0x10006, 0x840);
        assert_int_equal(take(0x40), 0);
        send_x2(from, 0, REST | 0x40);
        assert_int_equal(take(0x40), ALL & ~(1u << from));
        assert_int_equal(vcpu[from].ops->write_msr(&vcpu[from], 0x83f, 0x77), 0); // self IPI
        assert_int_equal(take(0x77), 1u << from);
    }
    assert_int_equal(rd(2, 0x20), UINT32_MAX); // no page any more
}

static void lowest_priority_goes_to_one(void **state)
{
    (void)state;
    start_all();
    uint32_t seen = 0;
    for (unsigned k = 0; k < CPUS; k++) {
        send_x(0, 0xff, 0x950);
        uint32_t got = take(0x50);
        assert_int_equal(__builtin_popcount(got), 1);
        seen |= got;
    }
    assert_int_equal(seen, ALL); // in turn
    // The busy ones are left out.
    for (unsigned i = 0; i < CPUS; i++)
        wr(i, 0x80, i == 2 ? 0x20 : 0x40);
    for (unsigned k = 0; k < 3; k++) {
        send_x(0, 0xff, 0x950);
        assert_int_equal(take(0x50), 1u << 2);
    }
    // Only among the addressed, and never to one that takes none.
    send_x(0, 0x3, 0x950);
    assert_int_equal(take(0x50) & ~3u, 0);
    wr(2, 0xf0, 0xff);
    send_x(0, 0x4, 0x950);
    assert_int_equal(take(0x50), 0);
    // From the IOAPIC, too.
    ioapic_entry(5, UINT64_C(0x0b00000000000960)); // logical 0 1 3, lowest, vector 0x60
    raise_irq(5);
    assert_int_equal(__builtin_popcount(take(0x60)), 1);
}

static void nmis(void **state)
{
    (void)state;
    start_all();
    send_x(0, 3, 0x400);
    assert_int_equal(take_nmis(), 8);
    send_x(2, 0, REST | 0x400);
    assert_int_equal(take_nmis(), ALL & ~4u);
    send_x(2, 0, EVERY | 0x400); // not allowed
    send_x(2, 0, SELF | 0x400);
    assert_int_equal(take_nmis(), 0);
    send_x(2, 2, 0x400);
    assert_int_equal(take_nmis(), 4);
}

static void device_interrupts(void **state)
{
    (void)state;
    start_all();
    for (unsigned i = 0; i < CPUS; i++) {
        ioapic_entry(4, (uint64_t)i << 56 | 0x61);
        raise_irq(4);
        assert_int_equal(take(0x61), 1u << i);
    }
    // Level-triggered: the EOI of whoever took it counts.
    ioapic_entry(LAYOUT_SCI, UINT64_C(3) << 56 | 0x8062);
    struct platform *p = vm->platform;
    spin_lock(&vm->device_lock);
    set_irq(p, LAYOUT_SCI, true);
    spin_unlock(&vm->device_lock);
    assert_int_equal(take(0x62), 8); // with its EOI, upon which it comes again
    assert_int_equal(vcpu[3].ops->interrupt(&vcpu[3], false), 0x62);
    // The PIC's interrupts are vCPU 0's alone, whatever the others' LINT0 says.
    ioapic_entry(4, 0x10000);
    spin_lock(&vm->device_lock);
    set_irq(p, LAYOUT_SCI, false);
    for (unsigned i = 0; i < 4; i++)
        bus_pio_out(&vm->bus, (uint16_t)(i == 0 ? 0x20 : 0x21), 1,
                    (const uint8_t[]){0x11, 0x20, 4, 1}[i]);
    spin_unlock(&vm->device_lock);
    vcpu[3].ops->interrupt(&vcpu[3], true);
    wr(3, 0xb0, 0);
    for (unsigned i = 1; i < CPUS; i++)
        wr(i, 0x350, 0x700);
    forget();
    raise_irq(4);
    assert_true(notified[0] > 0);
    assert_int_equal(notified[1] + notified[2] + notified[3], 0);
    for (unsigned i = 1; i < CPUS; i++)
        assert_int_equal(vcpu[i].ops->interrupt(&vcpu[i], false), -1);
    assert_true(vcpu[0].ops->interrupt(&vcpu[0], false) >= 0);
    // Whoever changes the PIC's mask, it is vCPU 0 that must look.
    forget();
    vcpu[2].ops->pio_out(&vcpu[2], 0x21, 1, 0xff);
    assert_int_equal(vcpu[0].ops->interrupt(&vcpu[0], false), -1);
    vcpu[2].ops->pio_out(&vcpu[2], 0x21, 1, 0);
    assert_true(notified[0] > 0);
    assert_int_equal(vcpu[0].ops->interrupt(&vcpu[0], true), 0x24);
}

static void init_and_startup(void **state)
{
    (void)state;
    uint8_t vector = 0;
    wr(0, 0xf0, 0x1ff);
    // As every system does it: INIT, STARTUP, STARTUP.
    send_x(0, 2, 0x4500);
    assert_int_equal(startup_told[2], 1);
    assert_int_equal(startup_told[1] + startup_told[3], 0);
    assert_int_equal(vcpu[2].ops->take_startup(&vcpu[2], &vector), VCPU_GOT_INIT);
    assert_true(vcpu[2].parked);
    send_x(0, 2, 0x4699);
    assert_int_equal(startup_told[2], 2);
    vcpu[2].tsc_adjust = 5; // INIT leaves it
    assert_int_equal(vcpu[2].ops->take_startup(&vcpu[2], &vector), VCPU_GOT_STARTUP);
    assert_int_equal(vector, 0x99);
    assert_false(vcpu[2].parked);
    assert_int_equal(vcpu[2].tsc_offset, vm->clock.offset + 5);
    send_x(0, 2, 0x4677); // it does not wait any more
    assert_int_equal(vcpu[2].ops->take_startup(&vcpu[2], &vector), 0);
    assert_int_equal(vector, 0x99);
    assert_false(vcpu[2].parked);
    assert_int_equal(vcpu[2].ops->take_startup(&vcpu[2], &vector), 0); // and nothing is left
    // Both before it looks; with everything that INIT resets.
    wr(2, 0xf0, 0x1ff);
    wr(2, 0x80, 0x30);
    wr(2, 0x320, 0x40);
    wr(2, 0x380, 1000);
    send_x(0, 2, 0x41);
    send_x(0, 2, 0x400);
    send_x(0, 2, 0x4500);
    send_x(0, 2, 0x4612);
    assert_int_equal(vcpu[2].ops->take_startup(&vcpu[2], &vector),
                     VCPU_GOT_INIT | VCPU_GOT_STARTUP);
    assert_int_equal(vector, 0x12);
    assert_false(vcpu[2].parked);
    assert_int_equal(rd(2, 0xf0), 0xff);
    assert_int_equal(rd(2, 0x80), 0);
    assert_int_equal(rd(2, 0x320), 0x10000);
    assert_int_equal(rd(2, 0x380), 0);
    assert_int_equal(rd(2, 0x20), 2u << 24);
    assert_int_equal(vm->timers[2].queue.earliest, UINT64_MAX);
    assert_int_equal(vcpu[2].ops->interrupt(&vcpu[2], false), -1);
    assert_false(vcpu[2].ops->take_nmi(&vcpu[2], false));
    // A STARTUP from before the INIT does not count.
    send_x(0, 2, 0x4613);
    send_x(0, 2, 0x4500);
    assert_int_equal(vcpu[2].ops->take_startup(&vcpu[2], &vector), VCPU_GOT_INIT);
    assert_true(vcpu[2].parked);
    // INIT level de-assert is nothing.
    send_x(0, 3, 0x8500);
    assert_int_equal(startup_told[3], 0);
    // INIT keeps x2APIC mode.
    vcpu[1].parked = false;
    to_x2apic(1);
    send_x(0, 1, 0x4500);
    assert_int_equal(vcpu[1].ops->take_startup(&vcpu[1], &vector), VCPU_GOT_INIT);
    assert_true(lapic_x2apic(lapic(1)));
    // All at once, but not the sender.
    forget();
    send_x(0, 0, REST | 0x4500);
    for (unsigned i = 0; i < CPUS; i++)
        assert_int_equal(startup_told[i], i != 0);
    assert_int_equal(asked, VM_REQUEST_NONE);
    // An INIT to the bootstrap processor restarts the machine.
    send_x(0, 0, 0x4500);
    assert_int_equal(asked, VM_REQUEST_RESET);
    assert_int_equal(startup_told[0], 0);
}

static void timers_wake_their_vcpu(void **state)
{
    (void)state;
    start_all();
    for (unsigned i = 0; i < CPUS; i++) {
        wr(i, 0x3e0, 0xb);
        wr(i, 0x320, 0x40 + i);
        wr(i, 0x380, 100000 * (i + 1));
        assert_true(vcpu[i].next_timer != UINT64_MAX); // armed at once: it runs here
        assert_int_equal(timer_told[i], 0);
    }
    for (unsigned i = 1; i < CPUS; i++)
        assert_true(vcpu[i].next_timer > vcpu[i - 1].next_timer);
    uint64_t later = vcpu[CPUS - 1].next_timer + 1000;
    forget();
    assert_true(vcpu[2].ops->run_timers(&vcpu[2], later) == UINT64_MAX);
    assert_int_equal(take(0x42), 1u << 2); // the others have not looked yet
    for (unsigned i = 0; i < CPUS; i++)
        if (i != 2) {
            vcpu[i].next_timer = vcpu[i].ops->run_timers(&vcpu[i], later);
            assert_int_equal(take(0x40 + (int)i), 1u << i);
        }
    // Another vCPU arms the PIT: vCPU 0 is told once, and knows.
    uint64_t before = vcpu[3].next_timer;
    vcpu[3].ops->pio_out(&vcpu[3], 0x43, 1, 0x30);
    vcpu[3].ops->pio_out(&vcpu[3], 0x40, 1, 0);
    vcpu[3].ops->pio_out(&vcpu[3], 0x40, 1, 0x10);
    assert_int_equal(timer_told[0], 1);
    assert_int_equal(timer_told[3], 0);
    assert_int_equal(vcpu[3].next_timer, before);
    vcpu[3].ops->pio_in(&vcpu[3], 0x71, 1);
    assert_int_equal(timer_told[0], 1);
    uint64_t due = vcpu[0].ops->run_timers(&vcpu[0], fake_tsc);
    assert_true(due != UINT64_MAX && due > fake_tsc);
    // A nearer one is told anew, a further one is not.
    vcpu[3].ops->pio_out(&vcpu[3], 0x40, 1, 0);
    vcpu[3].ops->pio_out(&vcpu[3], 0x40, 1, 0x08);
    assert_int_equal(timer_told[0], 2);
    vcpu[3].ops->pio_out(&vcpu[3], 0x40, 1, 0);
    vcpu[3].ops->pio_out(&vcpu[3], 0x40, 1, 0x20);
    assert_int_equal(timer_told[0], 2);
    // vCPU 0 does it by itself.
    vcpu[0].next_timer = UINT64_MAX;
    vcpu[0].ops->pio_out(&vcpu[0], 0x40, 1, 0);
    vcpu[0].ops->pio_out(&vcpu[0], 0x40, 1, 0x04);
    assert_int_equal(timer_told[0], 2);
    assert_true(vcpu[0].next_timer < due);
}

static void wait(unsigned i, bool begin)
{
    unsigned before = waits_noted;
    vcpu[i].waiting_memory = begin;
    vcpu[i].ops->wait_memory(&vcpu[i], begin);
    assert_int_equal(waits_noted, before + begin);
}

static void time_stands_still_when_nobody_can_run(void **state)
{
    (void)state;
    uint8_t vector;
    vcpu[1].parked = false; // 2 and 3 wait for their STARTUP
    wait(0, true);
    assert_false(vm->clock.frozen); // vCPU 1 reads its TSC
    wait(1, true);
    assert_true(vm->clock.frozen);
    uint64_t stood = vclock_now(&vm->clock);
    fake_tsc += 1000000;
    assert_int_equal(vclock_now(&vm->clock), stood);
    wait(1, false);
    assert_false(vm->clock.frozen);
    assert_true(vclock_now(&vm->clock) - stood < 1000);
    assert_int_equal(vcpu[1].tsc_offset, vm->clock.offset);
    wait(1, true);
    assert_true(vm->clock.frozen);
    fake_tsc += 1000000;
    wait(0, false); // the other one first
    wait(1, false);
    assert_false(vm->clock.frozen);
    assert_int_equal(vcpu[0].tsc_offset, vm->clock.offset);
    assert_int_equal(vcpu[1].tsc_offset, vcpu[0].tsc_offset);
    // The last one that could run is parked, and comes back.
    wait(0, true);
    lapic(1)->init_pending = true;
    assert_int_equal(vcpu[1].ops->take_startup(&vcpu[1], &vector), VCPU_GOT_INIT);
    assert_true(vm->clock.frozen);
    fake_tsc += 1000000;
    lapic(1)->startup_pending = true;
    assert_int_equal(vcpu[1].ops->take_startup(&vcpu[1], &vector), VCPU_GOT_STARTUP);
    assert_false(vm->clock.frozen);
    assert_int_equal(vcpu[1].tsc_offset, vm->clock.offset);
    wait(0, false);
    assert_int_equal(vcpu[0].tsc_offset, vm->clock.offset);
}

// A vCPU that tries a hundred times a second and executes nothing sees no time pass.
static void time_stands_still_over_retries(void **state)
{
    (void)state;
    tear_down(NULL);
    set_up_cpus(1);
    start_all();
    wait(0, true);
    uint64_t stood = vclock_now(&vm->clock);
    for (unsigned i = 0; i < 1000; i++) {
        fake_tsc += 1000000;
        wait(0, false);
        fake_tsc += 1000;
        vcpu[0].nothing_ran = true;
        wait(0, true);
        assert_int_equal(vclock_now(&vm->clock), stood);
    }
    // It has executed something, and may have looked at the time.
    wait(0, false);
    fake_tsc += 1000;
    uint64_t seen = vclock_now(&vm->clock);
    vcpu[0].nothing_ran = false;
    wait(0, true);
    assert_true(vclock_now(&vm->clock) >= seen);
    // Of several vCPUs another one may have.
    tear_down(NULL);
    set_up_cpus(2);
    start_all();
    vcpu[1].parked = false;
    wait(0, true);
    wait(1, true);
    wait(0, false);
    fake_tsc += 1000;
    seen = vclock_now(&vm->clock);
    vcpu[0].nothing_ran = true;
    wait(0, true);
    assert_true(vclock_now(&vm->clock) >= seen);
}

static void the_first_end_counts(void **state)
{
    (void)state;
    vcpu[1].ops->crashed(&vcpu[1], "first");
    assert_int_equal(asked, VM_REQUEST_CRASH);
    assert_string_equal(vm->crash, "first at rip 0x1000 on vCPU 1");
    vcpu[2].ops->crashed(&vcpu[2], "second");
    vcpu[3].ops->pio_out(&vcpu[3], 0xf4, 1, 7);
    assert_int_equal(asked, VM_REQUEST_CRASH);
    assert_string_equal(vm->crash, "first at rip 0x1000 on vCPU 1");
    assert_int_equal(vm->exit_code, 0);
}

static void one_vcpu(void **state)
{
    (void)state;
    tear_down(NULL);
    set_up_cpus(1);
    start_all();
    send_x(0, 0, 0x40);
    assert_int_equal(take(0x40), 1);
    send_x(0, 1, 0x40); // an id that does not exist, although there is room for its LAPIC
    send_x(0, 0, REST | 0x40);
    send_x(0, 0, REST | 0x4500);
    assert_int_equal(take(0x40), 0);
    assert_int_equal(startup_told[1], 0);
    vcpu[0].ops->crashed(&vcpu[0], "alone");
    assert_string_equal(vm->crash, "alone at rip 0x1000");
}

static void sixteen_vcpus(void **state)
{
    (void)state;
    tear_down(NULL);
    set_up_cpus(VM_CPUS_MAX);
    start_all();
    for (unsigned i = 0; i < VM_CPUS_MAX; i++)
        to_x2apic(i);
    send_x2(15, UINT32_MAX, 0x40);
    assert_int_equal(take(0x40), 0xffff);
    send_x2(0, 0x8001, 0x840);
    assert_int_equal(take(0x40), 0x8001);
    uint32_t seen = 0;
    for (unsigned k = 0; k < VM_CPUS_MAX; k++) {
        send_x2(3, 0xffff, 0x940);
        seen |= take(0x40);
    }
    assert_int_equal(seen, 0xffff);
}

// What vmx/ does at every exit.
static void exit_of(unsigned i)
{
    if (vcpu[i].eoi_armed)
        vcpu[i].ops->settle_eoi(&vcpu[i]);
}

static int64_t send_pv(unsigned from, uint64_t bitmap, uint64_t icr)
{
    vcpu[from].gpr[REG_RBX] = bitmap;
    vcpu[from].gpr[REG_RCX] = vcpu[from].gpr[REG_RDX] = 0;
    vcpu[from].gpr[REG_RSI] = icr;
    return kvm_guest_send_ipi(vm, &vcpu[from]);
}

static void kvm_ipis_and_eoi(void **state)
{
    (void)state;
    start_all();
    memset(named_page, 0, sizeof(named_page));
    pins = 0;
    for (unsigned i = 0; i < CPUS; i++) {
        assert_int_equal(vcpu[i].ops->write_msr(&vcpu[i], KVM_MSR_PV_EOI, 0x6001), E_INVAL);
        assert_int_equal(vcpu[i].ops->write_msr(&vcpu[i], KVM_MSR_PV_EOI, 0x5001 + 4 * i), 0);
        assert_int_equal(vcpu[i].ops->write_msr(&vcpu[i], KVM_MSR_STEAL_TIME, 0x5041 + 64 * i), 0);
    }
    assert_int_equal(pins, 2 * CPUS);
    assert_int_equal(send_pv(0, 0xe, 0x50), 3);
    for (unsigned i = 1; i < CPUS; i++) {
        struct vcpu *v = &vcpu[i];
        assert_int_equal(v->ops->interrupt(v, true), 0x50);
        assert_true(v->eoi_armed);
        assert_int_equal(named_page[4 * i], 1);
        named_page[4 * i] = 0; // its EOI
    }
    // Another one comes before they had an exit: they are told, and take it.
    forget();
    assert_int_equal(send_pv(0, 0x2, 0x50), 1);
    assert_int_equal(send_pv(0, 0x4, 0x40), 1); // of a lower class than the one before
    assert_int_equal(notified[1], 1);
    assert_int_equal(notified[2], 1);
    exit_of(1);
    exit_of(2);
    exit_of(3);
    assert_false(vcpu[3].eoi_armed);
    assert_int_equal(vcpu[3].ops->interrupt(&vcpu[3], false), -1);
    assert_int_equal(vcpu[1].ops->interrupt(&vcpu[1], true), 0x50);
    assert_int_equal(vcpu[2].ops->interrupt(&vcpu[2], true), 0x40);
    // Taken, but not ended: a second one makes its EOI an exit.
    assert_true(vcpu[1].eoi_armed);
    exit_of(1);
    assert_true(vcpu[1].eoi_armed);
    assert_int_equal(send_pv(0, 0x2, 0x50), 1);
    exit_of(1);
    assert_false(vcpu[1].eoi_armed);
    assert_int_equal(named_page[4], 0);
    assert_int_equal(vcpu[1].ops->interrupt(&vcpu[1], false), -1);
    wr(1, 0xb0, 0);
    assert_int_equal(vcpu[1].ops->interrupt(&vcpu[1], true), 0x50);
    wr(1, 0xb0, 0);
    // One that arrives between the look at the EOI and the next acceptance nests: both are ended by
    // register.
    assert_int_equal(send_pv(0, 0x2, 0x50), 1);
    assert_int_equal(vcpu[1].ops->interrupt(&vcpu[1], true), 0x50);
    assert_true(vcpu[1].eoi_armed);
    exit_of(1);
    assert_int_equal(send_pv(0, 0x2, 0x60), 1);
    assert_int_equal(vcpu[1].ops->interrupt(&vcpu[1], true), 0x60);
    assert_false(vcpu[1].eoi_armed);
    assert_int_equal(named_page[4], 0);
    wr(1, 0xb0, 0);
    wr(1, 0xb0, 0);
    assert_int_equal(lapic(1)->isr_words, 0);
    // The first was ended in memory before that.
    assert_int_equal(send_pv(0, 0x2, 0x50), 1);
    assert_int_equal(vcpu[1].ops->interrupt(&vcpu[1], true), 0x50);
    named_page[4] = 0;
    assert_int_equal(send_pv(0, 0x2, 0x40), 1);
    assert_int_equal(vcpu[1].ops->interrupt(&vcpu[1], true), 0x40);
    assert_true(vcpu[1].eoi_armed);
    // NMIs.
    forget();
    assert_int_equal(send_pv(3, 0x7, 0x400), 3);
    assert_int_equal(take_nmis(), 0x7);
    // An INIT switches off, also with an EOI under way.
    assert_true(vcpu[2].eoi_armed);
    send_x(0, 2, 0x4500);
    uint8_t vector;
    assert_int_equal(vcpu[2].ops->take_startup(&vcpu[2], &vector), VCPU_GOT_INIT);
    assert_false(vcpu[2].eoi_armed);
    assert_false(vcpu[2].tells_guest);
    assert_int_equal(pins, 2 * CPUS - 2);
    assert_null(lapic(2)->eoi_byte);
    for (unsigned i = 0; i < CPUS; i++)
        kvm_guest_reset(&vcpu[i]);
    assert_int_equal(pins, 0);
}

// --- Virtual-interrupt delivery ---

static struct vapic vapics[CPUS];

static struct vcpu_apic sync(unsigned i)
{
    struct vcpu_apic apic = {0};
    vcpu[i].ops->sync_apic(&vcpu[i], &apic);
    vcpu[i].apicv = apic.on; // as vmx/apicv.c does
    return apic;
}

static void the_cpu_delivers(void **state)
{
    (void)state;
    posts = true;
    start_all();
    for (unsigned i = 0; i < CPUS; i++)
        vcpu[i].vapic = &vapics[i];
    assert_false(sync(1).on);
    // What waits in xAPIC mode goes along.
    send_x(0, 1, 0x4044);
    to_x2apic(0);
    to_x2apic(1);
    struct vcpu_apic apic = sync(1);
    assert_true(apic.on && apic.reload && apic.changed);
    assert_int_equal(apic.requested, 0x44);
    assert_int_equal(vcpu[1].ops->interrupt(&vcpu[1], false), -1); // nobody injects it
    apic = sync(1);
    assert_true(apic.on && !apic.reload && !apic.changed);
    // An IPI is posted.
    forget();
    send_x2(0, 1, 0x4045);
    assert_int_equal(posted_told[1], 1);
    assert_int_equal(notified[1], 0);
    // One that halts wakes only for what its TPR lets through.
    assert_false(sync(1).wakes);
    vcpu[1].halted = true;
    assert_true(sync(1).wakes);
    vcpu[1].ops->set_cr8(&vcpu[1], 4);
    assert_int_equal(vcpu[1].ops->get_cr8(&vcpu[1]), 4);
    assert_false(sync(1).wakes);
    vcpu[1].halted = false;
    // A level-triggered one asks for its EOI, upon which it comes again.
    struct platform *p = vm->platform;
    forget();
    ioapic_entry(LAYOUT_SCI, UINT64_C(1) << 56 | 0x8062);
    spin_lock(&vm->device_lock);
    set_irq(p, LAYOUT_SCI, true);
    spin_unlock(&vm->device_lock);
    assert_int_equal(notified[1], 1);
    assert_int_equal(posted_told[1], 0);
    apic = sync(1);
    assert_true(apic.reload && apic.requested == 0x62);
    assert_true((apic.levels[3] >> 2 & 1) != 0);
    vapics[1].reg[VAPIC_IRR + 3].value = 0; // the CPU delivers it, and the guest ends it
    forget();
    vcpu[1].ops->virtual_eoi(&vcpu[1], 0x62);
    assert_int_equal(posted_told[1], 1);
    assert_int_equal(sync(1).requested, 0x62);
    spin_lock(&vm->device_lock);
    set_irq(p, LAYOUT_SCI, false);
    spin_unlock(&vm->device_lock);
    // INIT clears it, and the CPU is told so.
    send_x2(0, 1, 0x4500);
    uint8_t vector;
    assert_int_equal(vcpu[1].ops->take_startup(&vcpu[1], &vector), VCPU_GOT_INIT);
    apic = sync(1);
    assert_true(apic.on && apic.reload);
    assert_int_equal(apic.requested, 0);
    assert_int_equal(apic.levels[3], 0);
    // Out of x2APIC mode nothing of it is left; and a reset leaves it.
    assert_int_equal(vcpu[1].ops->write_msr(&vcpu[1], MSR_BASE, LAYOUT_LAPIC), 0);
    assert_false(sync(1).on);
    assert_true(sync(0).on);
    vm_platform->reset(vm);
    assert_false(sync(0).on);
    posts = false;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(every_vcpu_has_its_lapic, set_up, tear_down),
        cmocka_unit_test_setup_teardown(fixed_ipis_by_xapic, set_up, tear_down),
        cmocka_unit_test_setup_teardown(fixed_ipis_by_x2apic, set_up, tear_down),
        cmocka_unit_test_setup_teardown(lowest_priority_goes_to_one, set_up, tear_down),
        cmocka_unit_test_setup_teardown(nmis, set_up, tear_down),
        cmocka_unit_test_setup_teardown(device_interrupts, set_up, tear_down),
        cmocka_unit_test_setup_teardown(init_and_startup, set_up, tear_down),
        cmocka_unit_test_setup_teardown(timers_wake_their_vcpu, set_up, tear_down),
        cmocka_unit_test_setup_teardown(time_stands_still_when_nobody_can_run, set_up, tear_down),
        cmocka_unit_test_setup_teardown(time_stands_still_over_retries, set_up, tear_down),
        cmocka_unit_test_setup_teardown(the_first_end_counts, set_up, tear_down),
        cmocka_unit_test_setup_teardown(one_vcpu, set_up, tear_down),
        cmocka_unit_test_setup_teardown(sixteen_vcpus, set_up, tear_down),
        cmocka_unit_test_setup_teardown(kvm_ipis_and_eoi, set_up, tear_down),
        cmocka_unit_test_setup_teardown(the_cpu_delivers, set_up, tear_down),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
