// SPDX-License-Identifier: BSD-2-Clause
// The LAPIC's registers, priorities, errors, IPIs and mode switches (SDM vol. 3, chapter 11).

// sources: vm/clock.c
// sources: devices/lapic.c devices/lapic_interrupt.c devices/lapic_virtual.c devices/lapic_timer.c
// vm/clock.c

// sources: tests/fuzz/fuzz_lapic.c

#include "lapic_machine.h"

#include <stdio.h>
#include <stdlib.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void reset_values(void **state)
{
    (void)state;
    start_with_id(5);
    assert_true(lapic_enabled(&lapic) && !lapic_x2apic(&lapic));
    assert_int_equal(rd(0x20), 5u << 24);
    assert_int_equal(rd(0x30), 0x00050014);
    assert_int_equal(rd(0x80), 0);
    assert_int_equal(rd(0xa0), 0);
    assert_int_equal(rd(0xd0), 0);
    assert_int_equal(rd(0xe0), 0xffffffff);
    assert_int_equal(rd(0xf0), 0xff);
    for (uint32_t lvt = 0x320; lvt <= 0x370; lvt += 0x10)
        assert_int_equal(rd(lvt), 0x10000);
    for (uint32_t set = 0x100; set < 0x280; set += 0x10)
        assert_int_equal(rd(set), 0);
    assert_int_equal(rd(0x280), 0);
    assert_int_equal(rd(0x300), 0);
    assert_int_equal(rd(0x310), 0);
    assert_int_equal(rd(0x380), 0);
    assert_int_equal(rd(0x390), 0);
    assert_int_equal(rd(0x3e0), 0);
    assert_int_equal(lapic_pending(&lapic), -1);
    assert_false(lapic_passes_extint(&lapic));
    uint64_t base;
    assert_int_equal(lapic_read_msr(&lapic, BASE, &base), 0);
    assert_int_equal(base, 0xfee00800); // not the bootstrap processor
    start_with_id(0);
    assert_int_equal(lapic_read_msr(&lapic, BASE, &base), 0);
    assert_int_equal(base, 0xfee00900);
}

static void priorities(void **state)
{
    (void)state;
    start(false);
    deliver(APIC_FIXED, 0x31, false);
    assert_int_equal(lapic_pending(&lapic), 0x31);
    assert_int_equal(changed_count, 1);
    deliver(APIC_FIXED, 0x31, false); // coalesced
    deliver(APIC_FIXED, 0x30, false);
    assert_int_equal(changed_count, 1);
    deliver(APIC_FIXED, 0xfe, false);
    assert_int_equal(changed_count, 2);
    assert_int_equal(lapic_pending(&lapic), 0xfe);
    lapic_accept(&lapic, 0xfe);
    assert_int_equal(rd(0xa0), 0xf0);
    assert_int_equal(rd(0x170), 1u << 30);
    assert_int_equal(lapic_pending(&lapic), -1);
    deliver(APIC_FIXED, 0xff, false); // the same class does not interrupt
    assert_int_equal(lapic_pending(&lapic), -1);
    wr(0xb0, 0);
    assert_int_equal(lapic_pending(&lapic), 0xff);
    lapic_accept(&lapic, 0xff);
    wr(0xb0, 0);
    assert_int_equal(lapic_pending(&lapic), 0x31);
    // TPR holds back its own class and below
    wr(0x80, 0x30);
    assert_int_equal(lapic_pending(&lapic), -1);
    assert_int_equal(rd(0xa0), 0x30);
    wr(0x80, 0x2f);
    assert_int_equal(lapic_pending(&lapic), 0x31);
    assert_int_equal(lapic_get_cr8(&lapic), 2);
    lapic_set_cr8(&lapic, 4);
    assert_int_equal(lapic_pending(&lapic), -1);
    assert_int_equal(rd(0x80), 0x40);
    lapic_set_cr8(&lapic, 0);
    // PPR: equal classes of TPR and ISR give TPR
    lapic_accept(&lapic, 0x31);
    wr(0x80, 0x35);
    assert_int_equal(rd(0xa0), 0x35);
    wr(0x80, 0x25);
    assert_int_equal(rd(0xa0), 0x30);
    // Nested
    deliver(APIC_LOWEST, 0x42, false);
    lapic_accept(&lapic, 0x42);
    assert_int_equal(rd(0xa0), 0x40);
    wr(0xb0, 0);
    assert_int_equal(rd(0xa0), 0x30);
    wr(0xb0, 0);
    wr(0xb0, 0); // one too many
    assert_int_equal(eoi_count, 0);
    wr(0x80, 0);
    assert_int_equal(lapic_pending(&lapic), 0x30);
}

static void level_triggered(void **state)
{
    (void)state;
    start(false);
    deliver(APIC_FIXED, 0x51, true);
    assert_int_equal(rd(0x1a0), 1u << 17);
    lapic_accept(&lapic, 0x51);
    wr(0xb0, 0);
    assert_int_equal(eoi_count, 1);
    assert_int_equal(eoi_vector, 0x51);
    deliver(APIC_FIXED, 0x51, false); // the next one is an edge
    assert_int_equal(rd(0x1a0), 0);
    lapic_accept(&lapic, 0x51);
    wr(0xb0, 0);
    assert_int_equal(eoi_count, 1);
}

static void errors(void **state)
{
    (void)state;
    start(false);
    wr(0x370, 0xfe);
    assert_int_equal(rd(0x2f0), 0); // CMCI is not offered
    assert_true(irr(0xfe));
    assert_int_equal(rd(0x280), 0); // only a write shows errors
    wr(0x280, 0);
    assert_int_equal(rd(0x280), 0x80);
    wr(0x280, 0xffffffff);
    assert_int_equal(rd(0x280), 0);
    lapic_accept(&lapic, 0xfe);
    wr(0xb0, 0);
    // Received illegal vector; a second error before the ESR is written raises nothing more.
    deliver(APIC_FIXED, 0x0f, false);
    assert_true(irr(0xfe));
    assert_false(irr(0x0f));
    lapic_accept(&lapic, 0xfe);
    wr(0xb0, 0);
    wr(0x300, 0x00004005); // send illegal vector
    assert_int_equal(sent_count, 0);
    assert_false(irr(0xfe));
    wr(0x280, 0);
    assert_int_equal(rd(0x280), 0x60);
    // Armed again. An illegal vector in the error entry itself ends here.
    wr(0x370, 0x03);
    wr(0x400, 0);
    wr(0x280, 0);
    assert_int_equal(rd(0x280), 0xc0);
    assert_int_equal(lapic_pending(&lapic), -1);
    wr(0x370, 0x10000);
    // Registers that are not errors: read-only, write-only, retired.
    static const uint32_t silent[] = {0x20, 0x30,  0x90,  0xa0,  0xb0,
                                      0xc0, 0x100, 0x180, 0x270, 0x390};
    for (size_t i = 0; i < ARRAY_SIZE(silent); i++) {
        (void)rd(silent[i]);
        wr(silent[i], 0);
    }
    wr(0x280, 0);
    assert_int_equal(rd(0x280), 0);
    // Every other one is.
    static const uint32_t reserved[] = {0x0,   0x10,  0x40,  0x70,  0x290, 0x2e0,
                                        0x2f0, 0x3a0, 0x3f0, 0x400, 0xff0};
    for (size_t i = 0; i < ARRAY_SIZE(reserved); i++) {
        assert_int_equal(rd(reserved[i]), 0);
        wr(0x280, 0);
        assert_int_equal(rd(0x280), 0x80);
        wr(reserved[i], 1);
        wr(0x280, 0);
        assert_int_equal(rd(0x280), 0x80);
    }
    // Bytes of a register, and the gap behind it.
    assert_int_equal(rd(0x31), 0x000500);
    assert_int_equal(rd(0x32), 0x05);
    assert_int_equal(rd(0x34), 0);
    wr(0x82, 0x55);
    assert_int_equal(rd(0x80), 0);
}

static void software_disable(void **state)
{
    (void)state;
    start(false);
    wr(0x320, 0x40);
    wr(0x350, 0x700);
    assert_true(lapic_passes_extint(&lapic));
    deliver(APIC_FIXED, 0x33, false);
    wr(0xf0, 0xff);
    assert_int_equal(rd(0x320), 0x10040);
    assert_int_equal(rd(0x350), 0x10700);
    assert_false(lapic_passes_extint(&lapic));
    wr(0x320, 0x41); // cannot be unmasked
    assert_int_equal(rd(0x320), 0x10041);
    assert_int_equal(lapic_pending(&lapic), 0x33); // held, not lost
    deliver(APIC_FIXED, 0x34, false);
    assert_false(irr(0x34));
    deliver(APIC_NMI, 0, false);
    assert_true(lapic.nmi_pending);
    wr(0x300, 0xc4041); // it still sends
    assert_int_equal(sent_count, 1);
    wr(0xf0, 0x1ff);
    assert_int_equal(rd(0x320), 0x10041); // stays masked until written
    wr(0xf0, 0xfffff1ff);
    assert_int_equal(rd(0xf0), 0x1ff);
}

static void pic(void **state)
{
    (void)state;
    start_with_id(0);
    lapic_virtual_wire(&lapic);
    assert_true(lapic_passes_extint(&lapic));
    assert_int_equal(rd(0x350), 0x700);
    assert_int_equal(rd(0x360), 0x400);
    assert_int_equal(rd(0xf0), 0x10f);
    wr(0x350, 0x10700);
    assert_false(lapic_passes_extint(&lapic));
    wr(0x350, 0x31); // fixed: not the PIC's way
    assert_false(lapic_passes_extint(&lapic));
    assert_int_equal(lapic_write_msr(&lapic, BASE, LAYOUT_LAPIC), 0);
    assert_true(lapic_passes_extint(&lapic));
}

static void lvt_masks(void **state)
{
    (void)state;
    start(false);
    static const uint32_t kept[6] = {0x700ff, 0x107ff, 0x107ff, 0x1a7ff, 0x1a7ff, 0x100ff};
    for (uint32_t i = 0; i < 6; i++) {
        wr(0x320 + 0x10 * i, 0xffffffff);
        assert_int_equal(rd(0x320 + 0x10 * i), kept[i]);
    }
    wr(0x370, 0x10000);
    wr(0xd0, 0xffffffff);
    assert_int_equal(rd(0xd0), 0xff000000);
    wr(0xe0, 0);
    assert_int_equal(rd(0xe0), 0x0fffffff);
    wr(0x3e0, 0xffffffff);
    assert_int_equal(rd(0x3e0), 0xb);
    wr(0x310, 0xffffffff);
    assert_int_equal(rd(0x310), 0xff000000);
    wr(0x80, 0xffffffff);
    assert_int_equal(rd(0x80), 0xff);
    wr(0x80, 0);
    // The delivery mode NMI is LINT1's; fixed vectors of LINT0 come from nowhere, but thermal,
    // perf and the like are never raised.
    assert_int_equal(lapic_pending(&lapic), -1);
}

static void interprocessor(void **state)
{
    (void)state;
    start(false);
    wr(0x310, 3u << 24);
    wr(0x300, 0x1000 | 0x40fd); // delivery status is read only
    assert_int_equal(sent_count, 1);
    assert_int_equal(rd(0x300), 0x40fd);
    assert_int_equal(sent.destination, 3);
    assert_int_equal(sent.vector, 0xfd);
    assert_int_equal(sent.delivery, APIC_FIXED);
    assert_false(sent.logical || sent.level);
    assert_int_equal(sent.shorthand, 0);
    wr(0x310, 0xff000000);
    wr(0x300, 0xc8ff | 0x100);
    assert_int_equal(sent.destination, APIC_BROADCAST);
    assert_true(sent.logical);
    assert_false(sent.level); // the trigger mode is INIT's only
    assert_int_equal(sent.delivery, APIC_LOWEST);
    for (unsigned s = 0; s < 4; s++) {
        wr(0x300, 0x40f0 | s << 18);
        assert_int_equal(sent.shorthand, s);
    }
    wr(0x300, 0x4400);
    assert_int_equal(sent.delivery, APIC_NMI);
    wr(0x300, 0xc500);
    assert_int_equal(sent.delivery, APIC_INIT);
    assert_true(sent.level && sent.assert_level);
    wr(0x300, 0x8500);
    assert_true(sent.level && !sent.assert_level);
    wr(0x300, 0x4699);
    assert_int_equal(sent.delivery, APIC_STARTUP);
    assert_int_equal(sent.vector, 0x99);
    unsigned before = sent_count;
    wr(0x300, 0x4200); // SMI
    wr(0x300, 0x4340); // reserved
    wr(0x300, 0x4740); // ExtINT
    assert_int_equal(sent_count, before);

    start(true);
    assert_int_equal(lapic_write_msr(&lapic, 0x830, 0x12345678000040fdu), 0);
    assert_int_equal(sent.destination, 0x12345678);
    uint64_t icr;
    assert_int_equal(lapic_read_msr(&lapic, 0x830, &icr), 0);
    assert_true(icr == 0x12345678000040fdu);
    assert_int_equal(lapic_write_msr(&lapic, 0x83f, 0x55), 0);
    assert_int_equal(lapic_pending(&lapic), 0x55);
    assert_int_equal(lapic_write_msr(&lapic, 0x83f, 0x05), 0);
    assert_int_equal(lapic_write_msr(&lapic, 0x828, 0), 0);
    uint64_t esr;
    assert_int_equal(lapic_read_msr(&lapic, 0x828, &esr), 0);
    assert_int_equal(esr, 0x20);
}

static void init_and_startup(void **state)
{
    (void)state;
    start_with_id(2);
    wr(0xf0, 0x1ff);
    struct apic_message init = {.delivery = APIC_INIT, .level = true, .assert_level = true};
    deliver(APIC_STARTUP, 0x11, false);
    assert_true(lapic.startup_pending && lapic.startup_vector == 0x11);
    lapic_deliver(&lapic, &init);
    assert_true(lapic.init_pending && !lapic.startup_pending); // one before the INIT is void
    assert_int_equal(changed_count, 2);
    init.assert_level = false;
    lapic.init_pending = false;
    lapic_deliver(&lapic, &init);
    assert_false(lapic.init_pending);
    init.assert_level = true;
    lapic_deliver(&lapic, &init);
    deliver(APIC_STARTUP, 0x9a, false);
    deliver(APIC_FIXED, 0x77, false);
    lapic_write_msr(&lapic, BASE, LAYOUT_LAPIC | X2APIC);
    lapic_reset_by_init(&lapic);
    assert_false(lapic.init_pending);
    assert_true(lapic.startup_pending && lapic.startup_vector == 0x9a);
    assert_true(lapic_x2apic(&lapic));
    assert_int_equal(lapic.ldr, 4);
    assert_int_equal(lapic_pending(&lapic), -1);
    assert_int_equal(lapic.svr, 0xff);
    lapic_reset(&lapic);
    assert_false(lapic.startup_pending || lapic_x2apic(&lapic));
}

static bool matches(uint32_t destination, bool logical)
{
    return lapic_matches(&lapic,
                         &(struct apic_message){.destination = destination, .logical = logical});
}

static void destinations(void **state)
{
    (void)state;
    start_with_id(0x13);
    assert_true(matches(0x13, false));
    assert_false(matches(0x14, false));
    assert_true(matches(0xff, false));
    assert_true(matches(APIC_BROADCAST, false));
    wr(0xd0, 0x24000000);
    assert_true(matches(0x04, true)); // flat: any common bit
    assert_true(matches(0x20, true));
    assert_false(matches(0xdb, true));
    assert_false(matches(0, true));
    assert_false(matches(0x2400, true));
    wr(0xe0, 0x0fffffff); // cluster 2, member bit 2
    assert_true(matches(0x24, true));
    assert_true(matches(0x2f, true));
    assert_false(matches(0x2b, true));
    assert_false(matches(0x14, true));
    assert_true(matches(0xff, true));
    wr(0xe0, 0x1fffffff); // a reserved model
    assert_false(matches(0x24, true));

    assert_int_equal(lapic_write_msr(&lapic, BASE, LAYOUT_LAPIC | X2APIC), 0);
    assert_int_equal(lapic.ldr, 0x00010008);
    assert_true(matches(0x00010008, true));
    assert_true(matches(0x0001ffff, true));
    assert_false(matches(0x0001fff7, true));
    assert_false(matches(0x0002ffff, true));
    assert_true(matches(0x13, false));
    assert_false(matches(0xff, false)); // an id like any other
    assert_true(matches(APIC_BROADCAST, true));

    struct apic_message m = {.destination = 0x99};
    assert_false(lapic_receives(&lapic, 0, &m));
    m.shorthand = 1;
    assert_false(lapic_receives(&lapic, 0, &m));
    assert_true(lapic_receives(&lapic, 0x13, &m));
    m.shorthand = 2;
    assert_true(lapic_receives(&lapic, 0, &m));
    assert_true(lapic_receives(&lapic, 0x13, &m));
    m.shorthand = 3;
    assert_true(lapic_receives(&lapic, 0, &m));
    assert_false(lapic_receives(&lapic, 0x13, &m));

    assert_int_equal(lapic_write_msr(&lapic, BASE, LAYOUT_LAPIC), 0);
    assert_false(matches(0x13, false));
    assert_false(matches(APIC_BROADCAST, false));
    deliver(APIC_NMI, 0, false);
    deliver(APIC_FIXED, 0x40, false);
    assert_false(lapic.nmi_pending);
    assert_int_equal(lapic_pending(&lapic), -1);
}

static void base_msr(void **state)
{
    (void)state;
    // Allowed switches between disabled, (invalid), xAPIC, x2APIC: SDM figure 11-27.
    static const uint64_t modes[4] = {0, 0x400, 0x800, 0xc00};
    static const bool allowed[4][4] = {
        {true, false, true, false},
        {false, false, false, false},
        {true, false, true, true},
        {true, false, false, true},
    };
    for (unsigned from = 0; from < 4; from++) {
        if (from == 1)
            continue;
        for (unsigned to = 0; to < 4; to++) {
            start(from == 3);
            if (from == 0)
                assert_int_equal(lapic_write_msr(&lapic, BASE, LAYOUT_LAPIC), 0);
            uint64_t before = lapic.base_msr;
            int result = lapic_write_msr(&lapic, BASE, LAYOUT_LAPIC | modes[to]);
            assert_int_equal(result, allowed[from][to] ? 0 : E_INVAL);
            uint64_t want = result == 0 ? LAYOUT_LAPIC | modes[to] | 0x100 : before;
            assert_true(lapic.base_msr == want);
        }
    }
    start(false);
    assert_int_equal(lapic_write_msr(&lapic, BASE, 0xfed00800), E_INVAL);
    assert_int_equal(lapic_write_msr(&lapic, BASE, 0x10fee00800), E_INVAL);
    for (unsigned bit = 0; bit < 64; bit++) {
        bool fine = bit == 8 || bit == 10 || bit == 11 || (LAYOUT_LAPIC >> bit & 1) != 0;
        start(false);
        int result = lapic_write_msr(&lapic, BASE, LAYOUT_LAPIC | ENABLE | UINT64_C(1) << bit);
        assert_int_equal(result, fine ? 0 : E_INVAL);
    }
    // xAPIC to x2APIC keeps the registers; through disabled loses them.
    start(false);
    wr(0x80, 0x20);
    wr(0x310, 0x77000000);
    deliver(APIC_FIXED, 0x44, false);
    assert_int_equal(lapic_write_msr(&lapic, BASE, LAYOUT_LAPIC | X2APIC), 0);
    assert_int_equal(lapic_pending(&lapic), 0x44);
    uint64_t value;
    assert_int_equal(lapic_read_msr(&lapic, 0x808, &value), 0);
    assert_int_equal(value, 0x20);
    assert_int_equal(lapic_read_msr(&lapic, 0x830, &value), 0);
    assert_int_equal(value, 0);
    assert_int_equal(rd(0x30), 0xffffffff); // the page is gone
    wr(0x80, 0);
    assert_int_equal(lapic.tpr, 0x20);
    assert_int_equal(lapic_write_msr(&lapic, BASE, LAYOUT_LAPIC), 0);
    assert_int_equal(lapic_read_msr(&lapic, 0x808, &value), E_INVAL);
    assert_int_equal(lapic_pending(&lapic), -1);
    assert_int_equal(lapic_write_msr(&lapic, BASE, LAYOUT_LAPIC | ENABLE), 0);
    assert_int_equal(rd(0x80), 0);
    assert_int_equal(rd(0xf0), 0xff);
    // x2APIC MSRs need x2APIC mode; others are not ours.
    assert_int_equal(lapic_read_msr(&lapic, 0x802, &value), E_INVAL);
    assert_int_equal(lapic_write_msr(&lapic, 0x80b, 0), E_INVAL);
    assert_int_equal(lapic_read_msr(&lapic, 0x900, &value), E_INVAL);
    assert_int_equal(lapic_write_msr(&lapic, 0x7ff, 0), E_INVAL);
}

// All 256 x2APIC MSRs: who may be read, which bits may be written (SDM table 11-6).
static void x2apic_registers(void **state)
{
    (void)state;
    struct {
        bool read, write;
        uint64_t bits;
    } want[256] = {0};
    static const uint8_t read_only[] = {0x02, 0x03, 0x0a, 0x0d, 0x39};
    for (size_t i = 0; i < ARRAY_SIZE(read_only); i++)
        want[read_only[i]].read = true;
    for (unsigned i = 0x10; i < 0x28; i++)
        want[i].read = true;
    static const struct {
        uint8_t reg;
        uint64_t bits;
    } both[] = {
        {0x08, 0xff},    {0x0f, 0x3ff},   {0x28, 0},          {0x30, 0xffffffff000cdfff},
        {0x32, 0x710ff}, {0x33, 0x117ff}, {0x34, 0x117ff},    {0x35, 0x1f7ff},
        {0x36, 0x1f7ff}, {0x37, 0x110ff}, {0x38, 0xffffffff}, {0x3e, 0xb},
    };
    for (size_t i = 0; i < ARRAY_SIZE(both); i++) {
        want[both[i].reg].read = want[both[i].reg].write = true;
        want[both[i].reg].bits = both[i].bits;
    }
    want[0x0b].write = true;
    want[0x3f].write = true;
    want[0x3f].bits = 0xff;
    for (unsigned reg = 0; reg < 256; reg++) {
        start(true);
        uint64_t value;
        assert_int_equal(lapic_read_msr(&lapic, 0x800 + reg, &value), want[reg].read ? 0 : E_INVAL);
        assert_int_equal(lapic_write_msr(&lapic, 0x800 + reg, 0), want[reg].write ? 0 : E_INVAL);
        for (unsigned bit = 0; bit < 64; bit++) {
            bool fine = want[reg].write && (want[reg].bits >> bit & 1) != 0;
            assert_int_equal(lapic_write_msr(&lapic, 0x800 + reg, UINT64_C(1) << bit),
                             fine ? 0 : E_INVAL);
        }
    }
    start(true);
    assert_int_equal(lapic_write_msr(&lapic, 0x832, 0x60030), E_INVAL); // reserved timer mode
    // 32-bit ids
    start_with_id(0x12345);
    assert_int_equal(lapic_write_msr(&lapic, BASE, LAYOUT_LAPIC | X2APIC), 0);
    uint64_t value;
    assert_int_equal(lapic_read_msr(&lapic, 0x802, &value), 0);
    assert_int_equal(value, 0x12345);
    assert_int_equal(lapic_read_msr(&lapic, 0x80d, &value), 0);
    assert_int_equal(value, 0x12340020);
    // EOI and TPR by MSR
    start(true);
    deliver(APIC_FIXED, 0x61, true);
    lapic_accept(&lapic, 0x61);
    assert_int_equal(lapic_write_msr(&lapic, 0x80b, 0), 0);
    assert_int_equal(eoi_vector, 0x61);
}

// Random machine (tests/fuzz/fuzz_lapic.c) with its invariants.
static void random_sequences(void **state)
{
    (void)state;
    uint64_t s = 88172645463325252u;
    for (unsigned run = 0; run < 1500; run++) {
        uint8_t data[1024];
        for (size_t i = 0; i < sizeof(data); i += 8) {
            s ^= s << 13;
            s ^= s >> 7;
            s ^= s << 17;
            memcpy(data + i, &s, 8);
        }
        LLVMFuzzerTestOneInput(data, sizeof(data));
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(reset_values),     cmocka_unit_test(priorities),
        cmocka_unit_test(level_triggered),  cmocka_unit_test(errors),
        cmocka_unit_test(software_disable), cmocka_unit_test(pic),
        cmocka_unit_test(lvt_masks),        cmocka_unit_test(interprocessor),
        cmocka_unit_test(init_and_startup), cmocka_unit_test(destinations),
        cmocka_unit_test(base_msr),         cmocka_unit_test(x2apic_registers),
        cmocka_unit_test(random_sequences),
    };
    return cmocka_run_group_tests_name("lapic", tests, NULL, NULL);
}
