// SPDX-License-Identifier: BSD-2-Clause
// The LAPIC's interrupts: acceptance, priorities, EOI, errors, IPIs (SDM vol. 3, 11.6 and 11.8).
#include "devices/lapic_inside.h"

#define ICR_SHORTHAND_SHIFT 18u

static inline unsigned highest_bit(uint32_t word)
{
    return 31u - (unsigned)__builtin_clz(word);
}

// Highest vector of a 256-bit register whose summary is `words`, or -1.
static inline int highest(const uint32_t *set, uint32_t words)
{
    if (words == 0)
        return -1;
    unsigned word = highest_bit(words);
    return (int)(word * 32 + highest_bit(set[word]));
}

static inline bool test_vector(const uint32_t *set, uint32_t vector)
{
    return (set[vector / 32] >> (vector % 32) & 1) != 0;
}

static inline void set_vector(uint32_t *set, uint8_t *words, uint32_t vector)
{
    set[vector / 32] |= 1u << (vector % 32);
    *words = (uint8_t)(*words | 1u << (vector / 32));
}

static inline void clear_vector(uint32_t *set, uint8_t *words, uint32_t vector)
{
    uint32_t word = set[vector / 32] & ~(1u << (vector % 32));
    set[vector / 32] = word;
    if (word == 0)
        *words = (uint8_t)(*words & ~(1u << (vector / 32)));
}

static inline uint32_t priority(uint32_t tpr, uint32_t in_service)
{
    return tpr >> 4 >= in_service >> 4 ? tpr : in_service & 0xf0;
}

static inline uint32_t own_ppr(const struct lapic *l)
{
    int in_service = highest(l->isr, l->isr_words);
    return priority(l->tpr, in_service < 0 ? 0 : (uint32_t)in_service);
}

uint32_t lapic_ppr(const struct lapic *l)
{
    return l->vapic == NULL ? own_ppr(l) : priority(lapic_tpr(l), lapic_virtual_in_service(l));
}

// While the CPU virtualizes the LAPIC TPR and ISR are zero here, so that everything new is pending.
// Must follow every change of IRR, ISR, TPR and the enable bit of IA32_APIC_BASE.
void lapic_update_pending(struct lapic *l)
{
    int vector = highest(l->irr, l->irr_words);
    if (vector >= 0 && (((uint32_t)vector & 0xf0) <= (own_ppr(l) & 0xf0) || !lapic_enabled(l)))
        vector = -1;
    l->pending = (int16_t)vector;
}

void lapic_clear_interrupts(struct lapic *l)
{
    for (unsigned i = 0; i < 8; i++) {
        l->irr[i] = 0;
        l->isr[i] = 0;
        l->tmr[i] = 0;
    }
    l->irr_words = 0;
    l->isr_words = 0;
    l->pending = -1;
    l->eoi_armed = false;
    if (l->vapic != NULL)
        lapic_virtual_clear(l);
}

int lapic_pending(const struct lapic *l)
{
    return l->pending;
}

void lapic_accept(struct lapic *l, uint8_t vector)
{
    clear_vector(l->irr, &l->irr_words, vector);
    set_vector(l->isr, &l->isr_words, vector);
    lapic_update_pending(l);
}

void lapic_eoi(struct lapic *l)
{
    if (l->eoi_armed) { // by register although it need not
        l->eoi_armed = false;
        __atomic_store_n(l->eoi_byte, 0, __ATOMIC_RELAXED);
    }
    int vector = highest(l->isr, l->isr_words);
    if (vector < 0)
        return; // Linux writes EOI while it clears a LAPIC it inherited
    clear_vector(l->isr, &l->isr_words, (uint32_t)vector);
    lapic_update_pending(l);
    // Broadcast suppression is not offered (bit 24 of the version register), so every
    // level-triggered one is told to the IOAPIC.
    if (test_vector(l->tmr, (uint32_t)vector))
        l->ops->eoi(l->context, (uint8_t)vector);
}

bool lapic_arm_eoi(struct lapic *l, uint8_t vector)
{
    // Who waits for this EOI must see it: the IOAPIC that of a level-triggered interrupt, and what
    // is in IRR already. A second one in service would not, but Linux does not nest them.
    if (l->eoi_byte == NULL || l->irr_words != 0 || (l->isr_words & (l->isr_words - 1)) != 0 ||
        l->isr[vector / 32] != 1u << (vector % 32) || test_vector(l->tmr, vector))
        return false;
    __atomic_store_n(l->eoi_byte, 1, __ATOMIC_RELAXED);
    l->eoi_armed = true;
    return true;
}

void lapic_disarm_eoi(struct lapic *l)
{
    if (!l->eoi_armed)
        return;
    l->eoi_armed = false;
    if ((__atomic_exchange_n(l->eoi_byte, 0, __ATOMIC_RELAXED) & 1) == 0)
        lapic_eoi(l);
}

void lapic_settle_eoi(struct lapic *l)
{
    // The handler has not got that far, and nothing waits for it yet.
    if (l->eoi_armed && l->irr_words == 0 &&
        (__atomic_load_n(l->eoi_byte, __ATOMIC_RELAXED) & 1) != 0)
        return;
    lapic_disarm_eoi(l);
}

void lapic_error(struct lapic *l, uint32_t bit)
{
    // The error interrupt is armed again by a write of ESR only, which takes esr_pending away (SDM
    // 11.5.3). This also ends the recursion when the error entry's own vector is illegal.
    bool armed = l->esr_pending == 0;
    l->esr_pending |= bit;
    if (armed)
        lapic_local(l, LVT_ERROR);
}

// A fixed interrupt arrived, by message or from the local vector table.
static void accept_fixed(struct lapic *l, uint8_t vector, bool level)
{
    if (vector < 16) {
        lapic_error(l, ESR_RECEIVED_ILLEGAL);
        return;
    }
    int before = l->pending;
    uint8_t unused = 0;
    bool was_level = test_vector(l->tmr, vector);
    if (level)
        set_vector(l->tmr, &unused, vector);
    else
        clear_vector(l->tmr, &unused, vector);
    if (l->vapic != NULL) {
        if (level != was_level) {
            l->vapic_reload = true;
        } else if (l->posts && (!level || !l->vapic_reload)) {
            lapic_virtual_post(l, vector);
            return;
        }
    }
    set_vector(l->irr, &l->irr_words, vector);
    lapic_update_pending(l);
    // What TPR or ISR hold back cannot be taken before the vCPU itself changes them; and a vector
    // below one that is pending already has nothing to wake.
    // With the EOI armed ISR may be behind, and the guest must make its EOI an exit from now on.
    if (l->pending > before || l->eoi_armed)
        l->ops->changed(l->context, l->id);
}

static void accept_nmi(struct lapic *l)
{
    l->nmi_pending = true;
    l->ops->changed(l->context, l->id);
}

void lapic_local(struct lapic *l, enum lapic_lvt entry)
{
    uint32_t lvt = l->lvt[entry];
    if ((lvt & LVT_MASKED) != 0 || !lapic_enabled(l))
        return;
    // The timer and error entries have no delivery mode: these bits read as 0, fixed.
    switch ((enum apic_delivery)(lvt >> 8 & 7)) {
    case APIC_FIXED:
        accept_fixed(l, (uint8_t)(lvt & LVT_VECTOR), false);
        break;
    case APIC_NMI:
        accept_nmi(l);
        break;
    default: // SMM is not offered; the PIC asks by lapic_passes_extint(); the rest is not supported
        break;
    }
}

bool lapic_passes_extint(const struct lapic *l)
{
    if (!lapic_enabled(l))
        return true; // the pins are then INTR and NMI of the CPU (SDM 11.4.3)
    uint32_t lint0 = l->lvt[LVT_LINT0];
    return (lint0 & LVT_MASKED) == 0 && (lint0 >> 8 & 7) == APIC_EXTINT;
}

void lapic_deliver(struct lapic *l, const struct apic_message *message)
{
    if (!lapic_enabled(l))
        return;
    switch (message->delivery) {
    case APIC_FIXED:
    case APIC_LOWEST:
        // While disabled by software it takes no new fixed interrupt; those in IRR and ISR stay
        // (SDM 11.4.7.2).
        if (lapic_software_enabled(l))
            accept_fixed(l, message->vector, message->level);
        break;
    case APIC_NMI:
        accept_nmi(l);
        break;
    case APIC_INIT:
        if (message->level && !message->assert_level)
            break; // INIT level de-assert: no effect since the Pentium 4 (SDM 11.6.1)
        l->init_pending = true;
        l->startup_pending = false; // it counts only after the INIT
        l->ops->changed(l->context, l->id);
        break;
    case APIC_STARTUP:
        l->startup_pending = true;
        l->startup_vector = message->vector;
        l->ops->changed(l->context, l->id);
        break;
    case APIC_SMI: // no SMM for guests
    case APIC_EXTINT:
    default:
        break;
    }
}

bool lapic_takes_fixed(const struct lapic *l)
{
    return lapic_enabled(l) && lapic_software_enabled(l);
}

// Logical destinations, SDM 11.6.2.2 (flat and cluster) and 11.12.10 (x2APIC).
static bool matches_logical(const struct lapic *l, uint32_t destination)
{
    if (lapic_x2apic(l))
        return destination >> 16 == l->ldr >> 16 && (destination & l->ldr & 0xffff) != 0;
    if (destination > 0xff)
        return false;
    uint32_t id = l->ldr >> 24;
    switch (l->dfr >> 28) {
    case 0xf:
        return (destination & id) != 0;
    case 0x0:
        return destination >> 4 == id >> 4 && (destination & id & 0xf) != 0;
    default:
        return false;
    }
}

bool lapic_matches(const struct lapic *l, const struct apic_message *message)
{
    if (!lapic_enabled(l))
        return false;
    uint32_t destination = message->destination;
    if (destination == APIC_BROADCAST)
        return true;
    // 8-bit destinations: 0xff is everybody, in both destination modes.
    if (destination == 0xff && !lapic_x2apic(l))
        return true;
    return message->logical ? matches_logical(l, destination) : destination == l->id;
}

bool lapic_receives(const struct lapic *l, unsigned from, const struct apic_message *message)
{
    switch (message->shorthand) {
    case 0:
        return lapic_matches(l, message);
    case 1:
        return l->id == from && lapic_enabled(l);
    case 2:
        return lapic_enabled(l);
    default:
        return l->id != from && lapic_enabled(l);
    }
}

void lapic_send(struct lapic *l)
{
    uint32_t low = (uint32_t)l->icr;
    uint32_t destination = (uint32_t)(l->icr >> 32);
    if (!lapic_x2apic(l)) {
        destination >>= 24;
        if (destination == 0xff)
            destination = APIC_BROADCAST;
    }
    struct apic_message message = {
        .destination = destination,
        .logical = (low >> 11 & 1) != 0,
        .assert_level = true,
        .vector = (uint8_t)low,
        .delivery = (enum apic_delivery)(low >> 8 & 7),
        .shorthand = low >> ICR_SHORTHAND_SHIFT & 3,
    };
    // "Self" and "all" are for fixed interrupts (table 11-3); a lowest-priority one to all is as
    // one with the destination "all" there, and Linux has sent such.
    bool to_self = message.shorthand == 1 || message.shorthand == 2;
    if (to_self && message.delivery != APIC_FIXED && message.delivery != APIC_LOWEST)
        return;
    switch (message.delivery) {
    case APIC_FIXED:
    case APIC_LOWEST:
        if (message.vector < 16) {
            lapic_error(l, ESR_SEND_ILLEGAL);
            return;
        }
        break;
    case APIC_INIT:
        // Level and trigger mode mean something for INIT only (SDM 11.6.1); IPIs are edges.
        message.level = (low >> 15 & 1) != 0;
        message.assert_level = (low >> 14 & 1) != 0;
        break;
    case APIC_NMI:
    case APIC_STARTUP:
        break;
    case APIC_SMI: // no SMM for guests
    case APIC_EXTINT:
    default: // not allowed in ICR
        return;
    }
    l->ops->send(l->context, l->id, &message);
}

void lapic_self_ipi(struct lapic *l, uint8_t vector)
{
    if (vector < 16)
        lapic_error(l, ESR_SEND_ILLEGAL);
    else if (lapic_software_enabled(l))
        accept_fixed(l, vector, false);
}
