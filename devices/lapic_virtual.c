// SPDX-License-Identifier: BSD-2-Clause
// The LAPIC while the CPU virtualizes it (SDM vol. 3, chapter 30; vmx/apicv.c). TPR, ISR and IRR
// are then in the virtual-APIC page; struct lapic keeps everything else, and in its own IRR what
// has arrived and is not in the page yet. A sender on another CPU cannot write the page, which is
// in use, so it leaves the interrupt there, or in the posted-interrupt descriptor.
//
// Level-triggered vectors are never posted unless their EOI exits already: the CPU takes posted
// requests at any moment, but the EOI-exit bitmap is loaded at an entry.
#include "devices/lapic_inside.h"

#include "kernel/string.h"

static int highest_in(const struct vapic *page, unsigned first)
{
    for (unsigned n = 8; n-- > 0;) {
        uint32_t word = __atomic_load_n(&page->reg[first + n].value, __ATOMIC_RELAXED);
        if (word != 0)
            return (int)(n * 32 + 31 - (unsigned)__builtin_clz(word));
    }
    return 0; // vectors below 16 do not exist
}

uint8_t lapic_virtual_requested(const struct lapic *l)
{
    return (uint8_t)highest_in(l->vapic, VAPIC_IRR);
}

uint8_t lapic_virtual_in_service(const struct lapic *l)
{
    return (uint8_t)highest_in(l->vapic, VAPIC_ISR);
}

bool lapic_virtual_wakes(const struct lapic *l)
{
    return (lapic_virtual_requested(l) & 0xf0) > (lapic_ppr(l) & 0xf0);
}

void lapic_virtual_begin(struct lapic *l, struct vapic *page, bool posted)
{
    lapic_disarm_eoi(l);
    memset(page, 0, sizeof(*page));
    page->reg[VAPIC_TPR].value = l->tpr;
    for (unsigned i = 0; i < 8; i++) {
        page->reg[VAPIC_ISR + i].value = l->isr[i];
        l->isr[i] = 0;
    }
    l->tpr = 0;
    l->isr_words = 0;
    l->vapic = page;
    l->posts = posted;
    l->vapic_reload = true;
    lapic_update_pending(l);
}

// The way out of x2APIC mode resets the LAPIC (SDM vol. 3, 11.12.5), so there is nothing to move.
void lapic_virtual_end(struct lapic *l)
{
    l->vapic = NULL;
}

void lapic_virtual_clear(struct lapic *l)
{
    memset(l->vapic, 0, sizeof(*l->vapic));
    l->vapic_reload = true;
}

void lapic_virtual_post(struct lapic *l, uint8_t vector)
{
    __atomic_fetch_or(&l->vapic->posted.requests[vector / 32], 1u << (vector % 32),
                      __ATOMIC_SEQ_CST);
    // If somebody has posted before, he has told the vCPU, and it has not looked yet.
    if ((__atomic_fetch_or(&l->vapic->posted.outstanding, 1, __ATOMIC_SEQ_CST) & 1) == 0)
        l->ops->posted(l->context, l->id);
}

bool lapic_virtual_merge(struct lapic *l)
{
    struct vapic *page = l->vapic;
    bool some = l->irr_words != 0;
    for (unsigned i = 0; some && i < 8; i++) {
        page->reg[VAPIC_IRR + i].value |= l->irr[i];
        l->irr[i] = 0;
    }
    l->irr_words = 0;
    l->pending = -1;
    // As the CPU does it (30.6): first the flag, then the requests.
    if (__atomic_exchange_n(&page->posted.outstanding, 0, __ATOMIC_SEQ_CST) == 0)
        return some;
    for (unsigned i = 0; i < 8; i++)
        if (__atomic_load_n(&page->posted.requests[i], __ATOMIC_RELAXED) != 0)
            page->reg[VAPIC_IRR + i].value |=
                __atomic_exchange_n(&page->posted.requests[i], 0, __ATOMIC_SEQ_CST);
    return true;
}
