// SPDX-License-Identifier: BSD-2-Clause
// All devices of one VM. Under the VM's device lock.
#pragma once

#include "devices/ioapic.h"
#include "devices/lapic.h"
#include "devices/pic.h"
#include "devices/pit.h"
#include "devices/power_control.h"
#include "devices/rtc.h"
#include "devices/uart.h"
#include "vm/vm_object.h"

struct platform {
    struct vm *vm;
    struct pic pic;
    struct ioapic ioapic;
    struct lapic lapic[VM_CPUS_MAX]; // those below vm->vcpu_count exist
    uint32_t last_lowest;            // who got the last lowest-priority interrupt
    struct pit pit;
    struct rtc rtc;
    uint64_t wall_at_zero; // the machine's wall clock when the guest's TSC was 0
    struct uart uart;
    struct power_control power;
};
