// SPDX-License-Identifier: BSD-2-Clause
// Several CPUs in the bare guest: starts all, gives them work, sends interrupts between them.
//
//     unsigned n = smp_start();
//     for (unsigned i = 1; i < n; i++)
//         smp_run(i, work, &argument[i]); // begins; work() runs with interrupts off
//     work(&argument[0]);                 // CPU 0 works, too
//     for (unsigned i = 1; i < n; i++)
//         smp_wait(i);                    // work() has returned there
//
// A CPU is named by its LAPIC id. Those without work halt with interrupts on, so they take IPIs.
// All share page tables, GDT, IDT and handlers; print, report and check take no lock: only one CPU
// at a time may use them, and catch_fault() as well.
#pragma once

#include "bare.h"

#define SMP_CPUS_MAX 16u
#define VECTOR_SMP   0x62u // wakes a CPU: there is work, or the work is done

#define ICR_INIT         0x500u
#define ICR_STARTUP      0x600u
#define ICR_LOWEST       0x100u
#define ICR_LOGICAL      0x800u
#define ICR_ASSERT       0x4000u
#define ICR_ALL          0x80000u
#define ICR_ALL_BUT_SELF 0xc0000u

// Starts every CPU (a second call does nothing) and returns how many run, this one included.
unsigned smp_start(void);
unsigned smp_expected(void); // how many CPUID announces
unsigned smp_self(void);
// Gives an idle CPU (not the own one) work.
void smp_run(unsigned cpu, void (*function)(void *), void *argument);
// Waits until it is done, halted with interrupts on; uses the own LAPIC's timer. smp_wait() ends
// the guest after ten seconds.
bool smp_wait_ticks(unsigned cpu, uint64_t ticks);
void smp_wait(unsigned cpu);
// Both in one; on the own CPU a plain call.
void smp_call(unsigned cpu, void (*function)(void *), void *argument);

// Writes the ICR: physical destination `cpu`, or any destination. Waits for nothing.
void smp_send(unsigned cpu, uint32_t icr);
void smp_send_to(uint32_t destination, uint32_t icr);
// The own LAPIC's registers (LAPIC_...), whatever its mode.
uint32_t smp_lapic_read(uint32_t reg);
void smp_lapic_write(uint32_t reg, uint32_t value);
void smp_eoi(void);
// Switches the own LAPIC's mode; back to xAPIC it goes through disabled, which resets it.
void smp_set_x2apic(bool on);

// INIT, then a STARTUP, to another CPU, whatever it does; its work is forgotten. False when it did
// not come up again.
bool smp_restart(unsigned cpu);
void smp_startup_ipi(unsigned cpu);   // the STARTUP alone
unsigned smp_starts(unsigned cpu);    // how often it came up
uint32_t smp_first_svr(unsigned cpu); // what its LAPIC's SVR was when it came up
