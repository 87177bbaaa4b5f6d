// SPDX-License-Identifier: BSD-2-Clause
// Finds CPUs that are stuck in root mode.
//
// Every CPU's scheduler loop and VM entry write struct cpu.last_alive (TSC; UINT64_MAX while the
// CPU idles). A CPU that did not for WATCHDOG_SECONDS is sent an NMI by another one; its NMI
// handler records where it is, and the finder logs the stack trace, once per incident.
#pragma once

#include "kernel/types.h"

#define WATCHDOG_SECONDS 10u
#define WATCHDOG_DEPTH   12u // return addresses recorded

// Looks at all other CPUs; at most once per 100 ms machine-wide, otherwise returns at once. Called
// from the scheduler loop without a lock held.
void watchdog_check(void);

// NMI handler's part: when this CPU is asked where it is, records `pc` and the return addresses
// found from frame pointer `frame`. Takes no lock, writes only the record.
void watchdog_nmi(uintptr_t pc, uintptr_t frame);

// Incidents since boot.
uint64_t watchdog_incidents(void);
