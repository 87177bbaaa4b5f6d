// SPDX-License-Identifier: BSD-2-Clause
// sources: devices/lapic.c devices/lapic_interrupt.c devices/lapic_virtual.c devices/lapic_timer.c
// sources: vm/clock.c
// The LAPIC that the CPU virtualizes, with a model of that CPU (SDM vol. 3, 30.2 and 30.6), beside
// one that it does not: whatever arrives and whatever the guest does, both take the same interrupts
// in the same order, show the guest the same registers, and tell the IOAPIC of the same EOIs.
#include "lapic_machine.h"

#include <stdlib.h>

#define REG_MSR(n) (0x800u + (n))

// One machine: a LAPIC and, when it is virtualized, the CPU's side of it.
struct side {
    struct vclock clock;
    struct vtimer_queue timers;
    struct lapic lapic;
    struct vapic page;
    bool virtual, posts;
    bool kicked, notified; // told, and not looked yet
    bool in_guest;
    // the VMCS
    uint32_t exit_bitmap[8];
    uint8_t rvi, svi;
    // what is compared
    unsigned eois;
    uint8_t eoi_vectors[64];
    unsigned exits;
};

static void side_send(void *context, unsigned from, const struct apic_message *m)
{
    struct side *s = context;
    assert_int_equal(from, 0);
    if (lapic_receives(&s->lapic, from, m))
        lapic_deliver(&s->lapic, m);
}

static void side_eoi(void *context, uint8_t vector)
{
    struct side *s = context;
    assert_true(s->eois < 64);
    s->eoi_vectors[s->eois++] = vector;
}

static void side_changed(void *context, unsigned id)
{
    assert_int_equal(id, 0);
    ((struct side *)context)->kicked = true;
}

static void side_posted(void *context, unsigned id)
{
    struct side *s = context;
    assert_int_equal(id, 0);
    assert_true(s->virtual && s->posts);
    s->notified = true;
}

static const struct lapic_ops side_ops = {side_send, side_eoi, side_changed, side_posted};

static void side_init(struct side *s, bool virtual, bool posts)
{
    memset(s, 0, sizeof(*s));
    s->virtual = virtual;
    s->posts = posts;
    vclock_init(&s->clock, HZ);
    s->clock.frozen_at = 1000;
    vtimer_queue_init(&s->timers);
    lapic_init(&s->lapic, 0, &s->clock, &s->timers, &side_ops, s);
}

// --- The CPU ---

static bool test_bit(const uint32_t *set, unsigned n)
{
    return (set[n / 32] >> (n % 32) & 1) != 0;
}

static uint8_t highest_of(const struct side *s, unsigned first)
{
    for (unsigned v = 255; v > 0; v--)
        if ((s->page.reg[first + v / 32].value >> (v % 32) & 1) != 0)
            return (uint8_t)v;
    return 0;
}

static void change(struct side *s, unsigned first, unsigned vector, bool set)
{
    uint32_t *word = &s->page.reg[first + vector / 32].value;
    *word = set ? *word | 1u << (vector % 32) : *word & ~(1u << (vector % 32));
}

static void virtualize_ppr(struct side *s)
{
    uint32_t tpr = s->page.reg[VAPIC_TPR].value;
    s->page.reg[VAPIC_PPR].value = tpr >> 4 >= s->svi >> 4 ? tpr : s->svi & 0xf0u;
}

// What vmx/apicv.c and the platform do before an entry; then the entry.
static void enter(struct side *s)
{
    struct lapic *l = &s->lapic;
    assert_false(s->in_guest);
    s->kicked = s->notified = false;
    if (s->virtual && lapic_x2apic(l) && l->vapic == NULL)
        lapic_virtual_begin(l, &s->page, s->posts);
    else if (!lapic_x2apic(l) && l->vapic != NULL)
        lapic_virtual_end(l);
    if (l->vapic != NULL) {
        bool changed = lapic_virtual_merge(l);
        if (l->vapic_reload) {
            memcpy(s->exit_bitmap, l->tmr, sizeof(s->exit_bitmap));
            s->svi = lapic_virtual_in_service(l);
            changed = true;
        }
        l->vapic_reload = false;
        if (changed)
            s->rvi = lapic_virtual_requested(l);
        virtualize_ppr(s);
        // What is not told to the CPU is lost: RVI must be the highest of IRR at every entry.
        assert_int_equal(s->rvi, highest_of(s, VAPIC_IRR));
        assert_int_equal(s->svi, highest_of(s, VAPIC_ISR));
    }
    s->in_guest = true;
}

static void leave(struct side *s)
{
    if (s->in_guest)
        s->exits++;
    s->in_guest = false;
}

// What reaches a vCPU in the guest.
static void react(struct side *s)
{
    if (s->in_guest && s->kicked) {
        leave(s);
        enter(s);
    }
    if (s->in_guest && s->notified) { // 30.6
        s->notified = false;
        s->page.posted.outstanding = 0;
        uint8_t most = 0;
        for (unsigned i = 0; i < 8; i++) {
            uint32_t word = s->page.posted.requests[i];
            s->page.posted.requests[i] = 0;
            s->page.reg[VAPIC_IRR + i].value |= word;
            if (word != 0)
                most = (uint8_t)(i * 32 + 31 - (unsigned)__builtin_clz(word));
        }
        s->rvi = MAX(s->rvi, most);
    }
}

// The interrupt that the guest takes now, or -1.
static int take(struct side *s)
{
    struct lapic *l = &s->lapic;
    if (!s->in_guest)
        enter(s);
    react(s);
    if (l->vapic == NULL) {
        int vector = lapic_pending(l);
        if (vector >= 0)
            lapic_accept(l, (uint8_t)vector);
        return vector;
    }
    if (s->rvi >> 4 <= s->page.reg[VAPIC_PPR].value >> 4)
        return -1;
    uint8_t vector = s->rvi; // 30.2.2
    change(s, VAPIC_ISR, vector, true);
    change(s, VAPIC_IRR, vector, false);
    s->svi = vector;
    s->page.reg[VAPIC_PPR].value = vector & 0xf0u;
    s->rvi = highest_of(s, VAPIC_IRR);
    return vector;
}

static void guest_eoi(struct side *s)
{
    struct lapic *l = &s->lapic;
    if (!s->in_guest)
        enter(s);
    react(s);
    if (l->vapic == NULL) {
        leave(s);
        if (lapic_x2apic(l))
            assert_int_equal(lapic_write_msr(l, REG_MSR(0x0b), 0), 0);
        else
            lapic_mmio_write(l, 0xb0, 0);
        return;
    }
    uint8_t vector = s->svi; // 30.1.4
    change(s, VAPIC_ISR, vector, false);
    s->svi = highest_of(s, VAPIC_ISR);
    virtualize_ppr(s);
    if (test_bit(s->exit_bitmap, vector)) {
        leave(s);
        side_eoi(s, vector);
    }
}

static void guest_tpr(struct side *s, uint8_t tpr)
{
    struct lapic *l = &s->lapic;
    if (!s->in_guest)
        enter(s);
    react(s);
    if (l->vapic == NULL) {
        leave(s);
        if (lapic_x2apic(l))
            assert_int_equal(lapic_write_msr(l, REG_MSR(0x08), tpr), 0);
        else
            lapic_mmio_write(l, 0x80, tpr);
        return;
    }
    s->page.reg[VAPIC_TPR].value = tpr;
    virtualize_ppr(s);
}

static void guest_writes(struct side *s, uint32_t msr, uint64_t value, int status)
{
    leave(s);
    assert_int_equal(lapic_write_msr(&s->lapic, msr, value), status);
}

static void guest_self_ipi(struct side *s, uint8_t vector)
{
    struct lapic *l = &s->lapic;
    if (!s->in_guest)
        enter(s);
    react(s);
    if (l->vapic == NULL || vector < 16) { // an APIC-write exit
        guest_writes(s, REG_MSR(0x3f), vector, lapic_x2apic(l) ? 0 : E_INVAL);
        return;
    }
    change(s, VAPIC_IRR, vector, true);
    s->rvi = MAX(s->rvi, vector);
}

// --- Both ---

static struct side plain, other;

static void both_deliver(uint8_t vector, bool level)
{
    const struct apic_message m = {
        .delivery = APIC_FIXED, .vector = vector, .level = level, .assert_level = true};
    lapic_deliver(&plain.lapic, &m);
    lapic_deliver(&other.lapic, &m);
}

// Both guests take what they can. A vector in service twice (one at work, one requested) is as on
// hardware.
static void both_take(void)
{
    for (;;) {
        int a = take(&plain), b = take(&other);
        assert_int_equal(a, b);
        if (a < 0)
            return;
    }
}

static void compare(void)
{
    assert_int_equal(plain.eois, other.eois);
    assert_memory_equal(plain.eoi_vectors, other.eoi_vectors, plain.eois);
    plain.eois = other.eois = 0;
    assert_int_equal(lapic_ppr(&plain.lapic), lapic_ppr(&other.lapic));
    assert_int_equal(lapic_get_cr8(&plain.lapic), lapic_get_cr8(&other.lapic));
    for (unsigned reg = 0; reg < 0x40; reg++) {
        if (reg == 0x39) // the timer's count
            continue;
        uint64_t a = 0, b = 0;
        assert_int_equal(lapic_read_msr(&plain.lapic, REG_MSR(reg), &a),
                         lapic_read_msr(&other.lapic, REG_MSR(reg), &b));
        assert_int_equal(a, b);
    }
}

static void both_base(uint64_t mode, int status)
{
    guest_writes(&plain, BASE, LAYOUT_LAPIC | 0x100 | mode, status);
    guest_writes(&other, BASE, LAYOUT_LAPIC | 0x100 | mode, status);
}

static void both_begin(bool posts)
{
    side_init(&plain, false, false);
    side_init(&other, true, posts);
    both_base(X2APIC, 0);
    guest_writes(&plain, REG_MSR(0x0f), 0x1ff, 0);
    guest_writes(&other, REG_MSR(0x0f), 0x1ff, 0);
}

static void random_step(unsigned *seed)
{
    unsigned what = (unsigned)rand_r(seed) % 32;
    uint8_t vector =
        (uint8_t)(rand_r(seed) % 4 == 0 ? rand_r(seed) % 256 : 0x30 + 0x11 * (rand_r(seed) % 6));
    switch (what) {
    case 0 ... 9:
        both_deliver(vector, rand_r(seed) % 3 == 0);
        break;
    case 10 ... 17:
        guest_eoi(&plain);
        guest_eoi(&other);
        break;
    case 18 ... 19: {
        uint8_t tpr = (uint8_t)(rand_r(seed) % 3 == 0 ? rand_r(seed) % 256 : 0);
        guest_tpr(&plain, tpr);
        guest_tpr(&other, tpr);
        break;
    }
    case 20 ... 22: // another exit
        leave(&plain);
        leave(&other);
        break;
    case 23:
        if (lapic_x2apic(&plain.lapic) && (plain.lapic.svr & 0x100) != 0 &&
            !test_bit(plain.lapic.tmr, vector)) {
            guest_self_ipi(&plain, vector);
            guest_self_ipi(&other, vector);
        }
        break;
    case 24: // IPI to all and itself
        guest_writes(&plain, REG_MSR(0x30), 0x80000 | vector,
                     lapic_x2apic(&plain.lapic) ? 0 : E_INVAL);
        guest_writes(&other, REG_MSR(0x30), 0x80000 | vector,
                     lapic_x2apic(&other.lapic) ? 0 : E_INVAL);
        break;
    case 25: // the error interrupt
        guest_writes(&plain, REG_MSR(0x37), vector, lapic_x2apic(&plain.lapic) ? 0 : E_INVAL);
        guest_writes(&other, REG_MSR(0x37), vector, lapic_x2apic(&other.lapic) ? 0 : E_INVAL);
        break;
    case 26:
        if (rand_r(seed) % 4 == 0) { // INIT, then a kernel that wants x2APIC and interrupts
            leave(&plain);
            leave(&other);
            lapic_reset_by_init(&plain.lapic);
            lapic_reset_by_init(&other.lapic);
            both_base(X2APIC, lapic_enabled(&plain.lapic) ? 0 : E_INVAL);
            if (lapic_x2apic(&plain.lapic)) {
                guest_writes(&plain, REG_MSR(0x0f), 0x1ff, 0);
                guest_writes(&other, REG_MSR(0x0f), 0x1ff, 0);
            }
        }
        break;
    case 27:
        if (rand_r(seed) % 4 == 0) { // off and on again, through xAPIC mode
            both_base(0, 0);
            both_take();
            both_base(ENABLE, 0);
            lapic_mmio_write(&plain.lapic, 0xf0, 0x1ff);
            lapic_mmio_write(&other.lapic, 0xf0, 0x1ff);
            both_deliver(vector, rand_r(seed) % 3 == 0);
            if (rand_r(seed) % 2 == 0)
                both_take();
            uint8_t tpr = (uint8_t)(rand_r(seed) % 2 == 0 ? rand_r(seed) % 256 : 0);
            guest_tpr(&plain, tpr);
            guest_tpr(&other, tpr);
            both_base(X2APIC, 0);
        }
        break;
    case 28:
        if (lapic_x2apic(&plain.lapic)) { // off by software, and on
            guest_writes(&plain, REG_MSR(0x0f), 0xff, 0);
            guest_writes(&other, REG_MSR(0x0f), 0xff, 0);
            both_deliver(vector, false);
            guest_writes(&plain, REG_MSR(0x0f), 0x1ff, 0);
            guest_writes(&other, REG_MSR(0x0f), 0x1ff, 0);
        }
        break;
    default:
        both_take();
        break;
    }
    if (rand_r(seed) % 4 == 0) {
        both_take();
        compare();
    }
}

static void same_as_without(void **state)
{
    (void)state;
    for (unsigned run = 0; run < 600; run++) {
        unsigned seed = run;
        both_begin(run % 2 == 0);
        for (unsigned i = 0; i < 400; i++)
            random_step(&seed);
        both_take();
        compare();
    }
}

// --- One after the other ---

static void posted_needs_no_exit(void **state)
{
    (void)state;
    both_begin(true);
    both_take();
    unsigned exits = other.exits;
    for (unsigned i = 0; i < 100; i++) {
        both_deliver((uint8_t)(0x40 + i), false);
        both_take();
        guest_eoi(&plain);
        guest_eoi(&other);
    }
    assert_int_equal(other.exits, exits);
    compare();
}

static void delivery_alone_exits_to_be_told(void **state)
{
    (void)state;
    both_begin(false);
    both_take();
    unsigned exits = other.exits;
    both_deliver(0x40, false);
    both_take();
    guest_eoi(&other);
    assert_int_equal(other.exits, exits + 1);
}

// Not while the CPU might still end it without an exit.
static void level_waits_for_the_bitmap(void **state)
{
    (void)state;
    both_begin(true);
    both_take();
    both_deliver(0x50, true);
    assert_true(other.kicked);
    assert_false(other.notified);
    assert_int_equal(other.page.posted.requests[0x50 / 32], 0);
    // Nor when it comes again before the vCPU has looked.
    both_deliver(0x50, true);
    assert_false(other.notified);
    assert_int_equal(other.page.posted.requests[0x50 / 32], 0);
    // An edge arrives and takes the posted way meanwhile.
    both_deliver(0x60, false);
    assert_true(other.notified);
    other.kicked = false;
    react(&other);
    assert_false((other.page.reg[VAPIC_IRR + 0x50 / 32].value >> (0x50 % 32) & 1) != 0);
    other.kicked = true;
    both_take();
    for (unsigned i = 0; i < 2; i++) {
        guest_eoi(&plain);
        guest_eoi(&other);
        both_take();
    }
    assert_int_equal(other.eois, 1);
    assert_int_equal(other.eoi_vectors[0], 0x50);
    compare();
    // From now on its EOI exits, and it may be posted.
    both_deliver(0x50, true);
    assert_true(other.notified);
    assert_false(other.kicked);
    both_take();
    guest_eoi(&plain);
    guest_eoi(&other);
    compare();
}

static void wakes_if_deliverable(void **state)
{
    (void)state;
    both_begin(true);
    enter(&other);
    leave(&other);
    other.page.reg[VAPIC_TPR].value = 0x50;
    both_deliver(0x42, false);
    lapic_virtual_merge(&other.lapic);
    assert_int_equal(lapic_virtual_requested(&other.lapic), 0x42);
    assert_false(lapic_virtual_wakes(&other.lapic));
    both_deliver(0x62, false);
    assert_true(lapic_virtual_merge(&other.lapic));
    assert_true(lapic_virtual_wakes(&other.lapic));
    assert_false(lapic_virtual_merge(&other.lapic));
}

// Only the first one has to tell; who looks, looks at all.
static void posts_once(void **state)
{
    (void)state;
    both_begin(true);
    enter(&other);
    leave(&other);
    both_deliver(0x41, false);
    assert_true(other.notified);
    other.notified = false;
    both_deliver(0x99, false);
    assert_false(other.notified);
    uint64_t requests = 0; // the guest may see them before the CPU does
    assert_int_equal(lapic_read_msr(&other.lapic, REG_MSR(0x22), &requests), 0);
    assert_int_equal(requests, 2);
    enter(&other);
    assert_int_equal(other.rvi, 0x99);
    assert_true((other.page.reg[VAPIC_IRR + 2].value & 2) != 0);
}

static void a_reset_forgets_the_page(void **state)
{
    (void)state;
    both_begin(true);
    both_deliver(0x41, false);
    enter(&other);
    leave(&other);
    lapic_reset(&other.lapic);
    assert_null(other.lapic.vapic);
    assert_int_equal(lapic_pending(&other.lapic), -1);
    assert_false(lapic_x2apic(&other.lapic));
    // The page is what it was; the next one to use it does not see that.
    assert_true((other.page.reg[VAPIC_IRR + 2].value & 2) != 0);
    guest_writes(&other, BASE, LAYOUT_LAPIC | 0x100 | X2APIC, 0);
    enter(&other);
    assert_int_equal(other.rvi, 0);
    assert_int_equal(other.page.reg[VAPIC_IRR + 2].value, 0);
}

static void the_eoi_in_memory_is_settled_first(void **state)
{
    (void)state;
    uint8_t byte = 0;
    side_init(&other, true, true);
    lapic_mmio_write(&other.lapic, 0xf0, 0x1ff);
    other.lapic.eoi_byte = &byte;
    const struct apic_message m = {.delivery = APIC_FIXED, .vector = 0x40, .assert_level = true};
    lapic_deliver(&other.lapic, &m);
    assert_int_equal(take(&other), 0x40);
    assert_true(lapic_arm_eoi(&other.lapic, 0x40));
    byte = 0; // the guest has ended it
    guest_writes(&other, BASE, LAYOUT_LAPIC | 0x100 | X2APIC, 0);
    enter(&other);
    assert_false(other.lapic.eoi_armed);
    assert_int_equal(other.svi, 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(same_as_without),
        cmocka_unit_test(posted_needs_no_exit),
        cmocka_unit_test(delivery_alone_exits_to_be_told),
        cmocka_unit_test(level_waits_for_the_bitmap),
        cmocka_unit_test(wakes_if_deliverable),
        cmocka_unit_test(posts_once),
        cmocka_unit_test(a_reset_forgets_the_page),
        cmocka_unit_test(the_eoi_in_memory_is_settled_first),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
