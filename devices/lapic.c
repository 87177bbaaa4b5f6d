// SPDX-License-Identifier: BSD-2-Clause
// The LAPIC's registers, as xAPIC page and as x2APIC MSRs, and IA32_APIC_BASE (SDM vol. 3, 11.4,
// 11.5 and 11.12).
#include "devices/lapic_inside.h"

#include "kernel/error.h"
#include "kernel/string.h"
#include "vm/layout.h"

#define MSR_APIC_BASE    0x1bu
#define MSR_TSC_DEADLINE 0x6e0u
#define MSR_X2APIC       0x800u
#define MSR_X2APIC_LAST  0x8ffu

// Register numbers: xAPIC offset / 16, which is also the x2APIC MSR less 0x800.
enum lapic_register {
    REG_ID = 0x02,
    REG_VERSION = 0x03,
    REG_TPR = 0x08,
    REG_APR = 0x09,
    REG_PPR = 0x0a,
    REG_EOI = 0x0b,
    REG_RRD = 0x0c,
    REG_LDR = 0x0d,
    REG_DFR = 0x0e,
    REG_SVR = 0x0f,
    REG_ISR = 0x10, // 8 registers each
    REG_TMR = 0x18,
    REG_IRR = 0x20,
    REG_ESR = 0x28,
    REG_ICR = 0x30,
    REG_ICR_HIGH = 0x31,
    REG_LVT_TIMER = 0x32, // timer, thermal, perf, LINT0, LINT1, error
    REG_LVT_ERROR = 0x37,
    REG_TIMER_INITIAL = 0x38,
    REG_TIMER_CURRENT = 0x39,
    REG_TIMER_DIVIDE = 0x3e,
    REG_SELF_IPI = 0x3f, // x2APIC only
};

// Integrated APIC (bits 0-7 are 0x14: Linux takes 0x10..0x15 as such, and from 0x14 on as a modern
// one without the old errata), highest LVT entry 5: timer, thermal, perf, LINT0, LINT1, error.
// Linux touches the CMCI entry only if this says 6. Bit 24 clear: no suppression of EOI broadcasts.
#define VERSION UINT32_C(0x00050014)

#define DFR_FIXED UINT32_C(0x0fffffff)
#define SVR_MASK  0x3ffu
#define ICR_MASK  UINT32_C(0x000ccfff) // bit 12, delivery status, always reads as idle
// x2APIC: 13, 16, 17 and 20-31 are reserved. Bit 12 is ignored, as by CPUs that virtualize the ICR.
#define ICR_X2APIC_RESERVED UINT32_C(0xfff32000)

static const struct {
    uint32_t writable;
    uint32_t read_only; // a write may set them without effect
} lvt_bits[] = {
    [LVT_CMCI] = {0, 0},
    [LVT_TIMER] = {0x000700ff, 1u << 12},
    [LVT_THERMAL] = {0x000107ff, 1u << 12},
    [LVT_PERF] = {0x000107ff, 1u << 12},
    [LVT_LINT0] = {0x0001a7ff, 1u << 12 | 1u << 14},
    [LVT_LINT1] = {0x0001a7ff, 1u << 12 | 1u << 14},
    [LVT_ERROR] = {0x000100ff, 1u << 12},
};

bool lapic_enabled(const struct lapic *l)
{
    return (l->base_msr & BASE_ENABLE) != 0;
}

bool lapic_x2apic(const struct lapic *l)
{
    return (l->base_msr & BASE_X2APIC) != 0;
}

// 11.12.10.2: cluster = id / 16, one bit per LAPIC of the cluster.
static uint32_t x2apic_ldr(uint32_t id)
{
    return (id >> 4) << 16 | 1u << (id & 0xf);
}

// Everything that power-on, INIT and the switch-off by IA32_APIC_BASE reset (SDM 11.4.7.1).
static void reset_registers(struct lapic *l)
{
    lapic_clear_interrupts(l);
    l->tpr = 0;
    l->ldr = lapic_x2apic(l) ? x2apic_ldr(l->id) : 0;
    l->dfr = UINT32_MAX;
    l->svr = 0xff;
    l->esr = 0;
    l->esr_pending = 0;
    l->icr = 0;
    for (unsigned i = LVT_TIMER; i <= LVT_ERROR; i++)
        l->lvt[i] = LVT_MASKED;
    l->timer_divide = 0;
    lapic_timer_stop(l);
}

void lapic_init(struct lapic *l, uint32_t id, struct vclock *clock, struct vtimer_queue *timers,
                const struct lapic_ops *ops, void *context)
{
    memset(l, 0, sizeof(*l));
    l->id = id;
    l->clock = clock;
    l->timers = timers;
    l->ops = ops;
    l->context = context;
    vtimer_add(timers, &l->timer, lapic_timer_fire, l);
    lapic_reset(l);
}

void lapic_reset(struct lapic *l)
{
    l->eoi_byte = NULL;
    l->vapic = NULL;
    l->base_msr = LAYOUT_LAPIC | BASE_ENABLE | (l->id == 0 ? BASE_BSP : 0);
    l->nmi_pending = false;
    l->init_pending = false;
    l->startup_pending = false;
    l->startup_vector = 0;
    reset_registers(l);
}

void lapic_reset_by_init(struct lapic *l)
{
    l->nmi_pending = false;
    l->init_pending = false;
    reset_registers(l);
}

void lapic_virtual_wire(struct lapic *l)
{
    l->svr = SVR_ENABLE | 0x0f;
    l->lvt[LVT_LINT0] = APIC_EXTINT << 8;
    l->lvt[LVT_LINT1] = APIC_NMI << 8;
}

// --- Registers of both modes ---

static void write_svr(struct lapic *l, uint32_t value)
{
    l->svr = value & SVR_MASK;
    if (lapic_software_enabled(l))
        return;
    lapic_timer_catch_up(l);
    for (unsigned i = LVT_TIMER; i <= LVT_ERROR; i++) {
        uint32_t old = l->lvt[i];
        l->lvt[i] |= LVT_MASKED;
        if (i == LVT_TIMER && old != l->lvt[i])
            lapic_timer_lvt_changed(l, old);
    }
}

static void write_lvt(struct lapic *l, unsigned entry, uint32_t value)
{
    if (entry == LVT_TIMER)
        lapic_timer_catch_up(l);
    uint32_t old = l->lvt[entry];
    value &= lvt_bits[entry].writable;
    if (!lapic_software_enabled(l))
        value |= LVT_MASKED; // SDM 11.4.7.2
    l->lvt[entry] = value;
    if (entry == LVT_TIMER && value != old)
        lapic_timer_lvt_changed(l, old);
}

static void write_esr(struct lapic *l)
{
    l->esr = l->esr_pending;
    l->esr_pending = 0;
}

static void write_tpr(struct lapic *l, uint32_t value)
{
    if (l->vapic != NULL)
        l->vapic->reg[VAPIC_TPR].value = value & 0xff;
    else
        l->tpr = value & 0xff;
    lapic_update_pending(l);
}

uint32_t lapic_tpr(const struct lapic *l)
{
    return l->vapic != NULL ? l->vapic->reg[VAPIC_TPR].value & 0xff : l->tpr;
}

static uint32_t isr_word(const struct lapic *l, uint32_t n)
{
    return l->vapic != NULL ? l->vapic->reg[VAPIC_ISR + n].value : l->isr[n];
}

static uint32_t irr_word(const struct lapic *l, uint32_t n)
{
    uint32_t word = l->irr[n];
    if (l->vapic != NULL)
        word |= l->vapic->reg[VAPIC_IRR + n].value | l->vapic->posted.requests[n];
    return word;
}

// Reads what both modes have. False for a register that is reserved (or differs between the modes).
static bool read_common(const struct lapic *l, uint32_t reg, uint32_t *value)
{
    switch (reg) {
    case REG_VERSION:
        *value = VERSION;
        return true;
    case REG_TPR:
        *value = lapic_tpr(l);
        return true;
    case REG_PPR:
        *value = lapic_ppr(l);
        return true;
    case REG_LDR:
        *value = l->ldr;
        return true;
    case REG_SVR:
        *value = l->svr;
        return true;
    case REG_ISR ... REG_ISR + 7:
        *value = isr_word(l, reg - REG_ISR);
        return true;
    case REG_TMR ... REG_TMR + 7:
        *value = l->tmr[reg - REG_TMR];
        return true;
    case REG_IRR ... REG_IRR + 7:
        *value = irr_word(l, reg - REG_IRR);
        return true;
    case REG_ESR:
        *value = l->esr;
        return true;
    case REG_LVT_TIMER ... REG_LVT_ERROR:
        *value = l->lvt[LVT_TIMER + reg - REG_LVT_TIMER];
        return true;
    case REG_TIMER_INITIAL:
        *value = l->timer_initial;
        return true;
    case REG_TIMER_CURRENT:
        *value = lapic_timer_current(l);
        return true;
    case REG_TIMER_DIVIDE:
        *value = l->timer_divide;
        return true;
    default:
        return false;
    }
}

// --- xAPIC page ---

uint32_t lapic_mmio_read(struct lapic *l, uint32_t offset)
{
    if (!lapic_enabled(l) || lapic_x2apic(l))
        return UINT32_MAX; // nobody answers there
    // Registers are 32 bits in each 16-byte slot. The other 12 bytes are undefined (SDM 11.4.1).
    if ((offset & 0xf) > 3 || offset >= PAGE_SIZE)
        return 0;
    uint32_t reg = offset >> 4;
    uint32_t value = 0;
    if (!read_common(l, reg, &value)) {
        switch (reg) {
        case REG_ID:
            value = l->id << 24;
            break;
        case REG_DFR:
            value = l->dfr;
            break;
        case REG_ICR:
            value = (uint32_t)l->icr;
            break;
        case REG_ICR_HIGH:
            value = (uint32_t)(l->icr >> 32);
            break;
        case REG_EOI: // write only
        case REG_APR: // gone since the Pentium 4, but not an error
        case REG_RRD:
            break;
        default:
            lapic_error(l, ESR_REGISTER);
            break;
        }
    }
    return value >> (8 * (offset & 3));
}

void lapic_mmio_write(struct lapic *l, uint32_t offset, uint32_t value)
{
    if (!lapic_enabled(l) || lapic_x2apic(l) || (offset & 0xf) != 0 || offset >= PAGE_SIZE)
        return;
    uint32_t reg = offset >> 4;
    switch (reg) {
    case REG_EOI:
        lapic_eoi(l);
        break;
    case REG_TPR:
        write_tpr(l, value);
        break;
    case REG_TIMER_INITIAL:
        lapic_timer_set_initial(l, value);
        break;
    case REG_ICR:
        l->icr = (l->icr & ~(uint64_t)UINT32_MAX) | (value & ICR_MASK);
        lapic_send(l);
        break;
    case REG_ICR_HIGH:
        l->icr = (uint64_t)(value & 0xff000000) << 32 | (uint32_t)l->icr;
        break;
    case REG_LVT_TIMER ... REG_LVT_ERROR:
        write_lvt(l, LVT_TIMER + reg - REG_LVT_TIMER, value);
        break;
    case REG_LDR:
        l->ldr = value & 0xff000000;
        break;
    case REG_DFR:
        l->dfr = value | DFR_FIXED;
        break;
    case REG_SVR:
        write_svr(l, value);
        break;
    case REG_ESR:
        write_esr(l);
        break;
    case REG_TIMER_DIVIDE:
        lapic_timer_set_divide(l, value);
        break;
    case REG_ID: // read only on every CPU of this age
    case REG_VERSION:
    case REG_APR:
    case REG_PPR:
    case REG_RRD:
    case REG_ISR ... REG_ISR + 7:
    case REG_TMR ... REG_TMR + 7:
    case REG_IRR ... REG_IRR + 7:
    case REG_TIMER_CURRENT:
        break;
    default:
        lapic_error(l, ESR_REGISTER);
        break;
    }
}

// --- MSRs ---

static int x2apic_read(const struct lapic *l, uint32_t reg, uint64_t *value)
{
    uint32_t low = 0;
    if (reg == REG_ID) {
        *value = l->id;
    } else if (reg == REG_ICR) {
        *value = l->icr;
    } else if (read_common(l, reg, &low)) {
        *value = low;
    } else {
        return E_INVAL; // reserved, or write only
    }
    return 0;
}

static int x2apic_write(struct lapic *l, uint32_t reg, uint64_t value)
{
    uint32_t low = (uint32_t)value;
    if (reg == REG_ICR) {
        if ((low & ICR_X2APIC_RESERVED) != 0)
            return E_INVAL;
        l->icr = (value & ~(uint64_t)UINT32_MAX) | (low & ICR_MASK);
        lapic_send(l);
        return 0;
    }
    if (value > UINT32_MAX)
        return E_INVAL;
    switch (reg) {
    case REG_EOI:
        if (low != 0)
            return E_INVAL;
        lapic_eoi(l);
        return 0;
    case REG_TPR:
        if (low > 0xff)
            return E_INVAL;
        write_tpr(l, low);
        return 0;
    case REG_TIMER_INITIAL:
        lapic_timer_set_initial(l, low);
        return 0;
    case REG_SELF_IPI:
        if (low > 0xff)
            return E_INVAL;
        lapic_self_ipi(l, (uint8_t)low);
        return 0;
    case REG_LVT_TIMER ... REG_LVT_ERROR: {
        unsigned entry = LVT_TIMER + reg - REG_LVT_TIMER;
        if ((low & ~(lvt_bits[entry].writable | lvt_bits[entry].read_only)) != 0)
            return E_INVAL;
        if (entry == LVT_TIMER && lapic_timer_mode(low) == TIMER_RESERVED)
            return E_INVAL;
        write_lvt(l, entry, low);
        return 0;
    }
    case REG_SVR:
        if ((low & ~SVR_MASK) != 0)
            return E_INVAL;
        write_svr(l, low);
        return 0;
    case REG_ESR:
        if (low != 0)
            return E_INVAL;
        write_esr(l);
        return 0;
    case REG_TIMER_DIVIDE:
        if ((low & ~0xbu) != 0)
            return E_INVAL;
        lapic_timer_set_divide(l, low);
        return 0;
    default:
        return E_INVAL; // reserved, or read only
    }
}

// The mode switches that SDM 11.12.5 allows. Moving the page is not offered: no guest does it, and
// the VM's memory layout is fixed.
static int write_base(struct lapic *l, uint64_t value)
{
    const uint64_t mode = BASE_ENABLE | BASE_X2APIC;
    if ((value & ~(mode | BASE_BSP)) != LAYOUT_LAPIC)
        return E_INVAL;
    uint64_t before = l->base_msr & mode;
    uint64_t after = value & mode;
    if (before == after)
        return 0;
    if (after == BASE_X2APIC)
        return E_INVAL; // x2APIC without enable
    if (before == mode && after == BASE_ENABLE)
        return E_INVAL; // back to xAPIC only through disabled
    if (before == 0 && after == mode)
        return E_INVAL; // to x2APIC only from xAPIC
    // What is in service is forgotten: no word of it shall stay in the guest's memory, for it would
    // keep the EOI of a later interrupt from being given here.
    if (after != mode)
        lapic_disarm_eoi(l);
    // Bit 8 tells who the bootstrap processor is and stays.
    l->base_msr = (l->base_msr & ~mode) | after;
    if (after == mode) {
        // The registers stay (11.12.5.1), but the logical id is now a function of the id, and the
        // ICR's upper half has another layout.
        l->ldr = x2apic_ldr(l->id);
        l->icr &= UINT32_MAX;
    } else {
        reset_registers(l);
    }
    return 0;
}

int lapic_read_msr(struct lapic *l, uint32_t msr, uint64_t *value)
{
    if (msr - MSR_X2APIC <= MSR_X2APIC_LAST - MSR_X2APIC)
        return lapic_x2apic(l) ? x2apic_read(l, msr - MSR_X2APIC, value) : E_INVAL;
    if (msr == MSR_TSC_DEADLINE) {
        *value = lapic_timer_deadline(l);
        return 0;
    }
    if (msr == MSR_APIC_BASE) {
        *value = l->base_msr;
        return 0;
    }
    return E_INVAL;
}

int lapic_write_msr(struct lapic *l, uint32_t msr, uint64_t value)
{
    if (msr == MSR_TSC_DEADLINE) {
        lapic_timer_set_deadline(l, value);
        return 0;
    }
    if (msr - MSR_X2APIC <= MSR_X2APIC_LAST - MSR_X2APIC)
        return lapic_x2apic(l) ? x2apic_write(l, msr - MSR_X2APIC, value) : E_INVAL;
    if (msr == MSR_APIC_BASE)
        return write_base(l, value);
    return E_INVAL;
}

uint64_t lapic_get_cr8(const struct lapic *l)
{
    return lapic_tpr(l) >> 4;
}

// MOV to CR8 sets the class and clears the rest of TPR (SDM 11.8.6.1). The bits 4-63 are reserved;
// the caller raises #GP for them.
void lapic_set_cr8(struct lapic *l, uint64_t value)
{
    write_tpr(l, (uint32_t)(value & 0xf) << 4);
}
