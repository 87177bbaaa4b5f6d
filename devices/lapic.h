// SPDX-License-Identifier: BSD-2-Clause
// The local APIC of one vCPU: xAPIC page and x2APIC MSRs, timer (one-shot, periodic, TSC deadline),
// IPIs (SDM vol. 3, chapter 11). Caller holds the VM's device lock for every call.
#pragma once

#include "kernel/types.h"
#include "vm/bus.h"
#include "vm/clock.h"
#include "vmx/vapic.h"

enum apic_delivery {
    APIC_FIXED = 0,
    APIC_LOWEST = 1,
    APIC_SMI = 2,
    APIC_NMI = 4,
    APIC_INIT = 5,
    APIC_STARTUP = 6,
    APIC_EXTINT = 7
};

struct apic_message {
    uint32_t destination;
    bool logical;
    bool level; // trigger mode
    bool assert_level;
    uint8_t vector;
    enum apic_delivery delivery;
    unsigned shorthand; // 0 none, 1 self, 2 all, 3 all but self
};

#define APIC_BROADCAST UINT32_C(0xffffffff) // destination: every LAPIC, whatever its mode

struct lapic_ops {
    // ICR was written. The VM finds the receivers with lapic_receives() and calls lapic_deliver()
    // for each; for APIC_LOWEST it picks one of them.
    void (*send)(void *context, unsigned from, const struct apic_message *message);
    void (*eoi)(void *context, uint8_t vector); // of a level-triggered interrupt, for the IOAPIC
    // Something became pending (or an NMI/INIT/STARTUP arrived) for this vCPU: wake or kick it.
    void (*changed)(void *context, unsigned id);
    // The same for a request that lies in l->vapic->posted now.
    void (*posted)(void *context, unsigned id);
};

struct lapic {
    uint32_t id;
    uint64_t base_msr; // IA32_APIC_BASE
    uint32_t irr[8], isr[8], tmr[8];
    uint32_t tpr, ldr, dfr, svr, esr, esr_pending;
    uint64_t icr;
    uint32_t lvt[7]; // CMCI (not offered), timer, thermal, perf, LINT0, LINT1, error
    uint32_t timer_initial, timer_divide;
    bool timer_counting;  // the count is not at zero
    uint64_t timer_start; // guest TSC when the count (of this period) began, modulo 2^64
    uint64_t tsc_deadline;
    // Summaries, so that the checks before every VM entry need no scan: bit n of the masks says
    // that word n is not zero; `pending` is what lapic_pending() returns.
    uint8_t irr_words, isr_words;
    int16_t pending;
    // KVM's PV EOI: a byte in the guest's memory, NULL: off. While armed, bit 0 there says that the
    // one interrupt in service needs no EOI by register; the guest clears it instead, and nobody
    // knows before lapic_settle_eoi(): ISR, and what follows from it, may be behind.
    uint8_t *eoi_byte;
    bool eoi_armed;
    // Set while the CPU virtualizes this LAPIC: devices/lapic_virtual.c. tpr, isr and irr above are
    // not the guest's then.
    struct vapic *vapic;
    bool posts;        // what is posted needs no exit
    bool vapic_reload; // what the CPU knows of the page and of tmr is out of date
    bool nmi_pending, init_pending, startup_pending;
    uint8_t startup_vector;
    struct vtimer timer;
    struct vclock *clock;
    struct vtimer_queue *timers;
    const struct lapic_ops *ops;
    void *context;
};

// The timer's input clock equals the TSC frequency (CPUID 15h says the crystal is the TSC).
void lapic_init(struct lapic *l, uint32_t id, struct vclock *clock, struct vtimer_queue *timers,
                const struct lapic_ops *ops, void *context);
void lapic_reset(struct lapic *l); // power-on state; INIT keeps the id and the base
// What INIT does when the vCPU takes it: power-on state, but the id, IA32_APIC_BASE (and so the
// mode) and a STARTUP that arrived after the INIT stay. Clears init_pending.
void lapic_reset_by_init(struct lapic *l);
// The state in which firmware leaves the bootstrap processor (virtual wire mode, MP specification
// 3.6.2.2): enabled, LINT0 passes the PIC's interrupts, LINT1 is NMI. To be called after the reset
// of vCPU 0 when no firmware runs in the guest.
void lapic_virtual_wire(struct lapic *l);
// The xAPIC page; offset in it. size 4 (others: low part as hardware allows).
uint32_t lapic_mmio_read(struct lapic *l, uint32_t offset);
void lapic_mmio_write(struct lapic *l, uint32_t offset, uint32_t value);
// IA32_APIC_BASE (0x1b), IA32_TSC_DEADLINE (0x6e0), x2APIC 0x800..0x8ff. Return E_INVAL for #GP.
int lapic_read_msr(struct lapic *l, uint32_t msr, uint64_t *value);
int lapic_write_msr(struct lapic *l, uint32_t msr, uint64_t value);
bool lapic_enabled(const struct lapic *l); // by IA32_APIC_BASE
bool lapic_x2apic(const struct lapic *l);
// Highest pending vector that TPR and ISR let through, or -1.
int lapic_pending(const struct lapic *l);
// Moves `vector` from IRR to ISR.
void lapic_accept(struct lapic *l, uint8_t vector);
// Lets the guest end `vector`, which was accepted just now, in eoi_byte, if nothing waits for that
// EOI. Returns true when it may: after every exit lapic_settle_eoi() must be called, as long as it
// leaves eoi_armed set.
bool lapic_arm_eoi(struct lapic *l, uint8_t vector);
void lapic_settle_eoi(struct lapic *l);
void lapic_disarm_eoi(struct lapic *l); // in any case; before eoi_byte changes
// True when interrupts of the PIC pass through LINT0 (or the LAPIC is disabled).
bool lapic_passes_extint(const struct lapic *l);
// A message for this LAPIC (already routed). Vectors < 16 set an error.
void lapic_deliver(struct lapic *l, const struct apic_message *message);
// True when the message's destination field names this LAPIC (the shorthand is not looked at).
bool lapic_matches(const struct lapic *l, const struct apic_message *message);
// The same with the shorthand; `from` is the index given to ops->send.
bool lapic_receives(const struct lapic *l, unsigned from, const struct apic_message *message);
// For the choice of a lowest-priority interrupt's receiver: whether it would take a fixed
// interrupt, and its processor priority.
bool lapic_takes_fixed(const struct lapic *l);
uint32_t lapic_ppr(const struct lapic *l);
uint32_t lapic_tpr(const struct lapic *l);
uint64_t lapic_get_cr8(const struct lapic *l);
void lapic_set_cr8(struct lapic *l, uint64_t value);

// --- Virtualized by the CPU (x2APIC mode) ---
// All on the CPU that runs the vCPU, which is out of the guest.

// In x2APIC mode: TPR, ISR and IRR move to `page`. `posted`: the CPU takes posted interrupts.
void lapic_virtual_begin(struct lapic *l, struct vapic *page, bool posted);
void lapic_virtual_end(struct lapic *l); // out of x2APIC mode
// Moves what has arrived into the page's IRR. True when there was something.
bool lapic_virtual_merge(struct lapic *l);
// Highest vector in the page's IRR and ISR, 0: none; whether the first would be delivered to a
// guest whose interrupts are on.
uint8_t lapic_virtual_requested(const struct lapic *l);
uint8_t lapic_virtual_in_service(const struct lapic *l);
bool lapic_virtual_wakes(const struct lapic *l);
