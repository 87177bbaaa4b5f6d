// SPDX-License-Identifier: BSD-2-Clause
// ACPI fixed hardware (PM1 event and control, PM timer), reset ports (0xcf9, keyboard controller
// 0x64, port 0x92) and the debug-exit port 0xf4. Caller holds the VM's device lock.
#pragma once

#include "kernel/types.h"
#include "vm/bus.h"
#include "vm/clock.h"

// SLP_TYP of the soft-off state: the DSDT's \_S5 package holds it.
#define POWER_S5_TYPE 5u
// What the FADT's RESET_VALUE says, to be written to LAYOUT_RESET.
#define POWER_RESET_VALUE 0x06u
#define POWER_PM_TIMER_HZ 3579545u

enum power_request { POWER_RESET, POWER_OFF, POWER_DEBUG_EXIT };

struct power_control {
    uint16_t pm1_status, pm1_enable, pm1_control;
    uint8_t reset_control, debug_code;
    uint8_t port92;
    bool sci; // level last given to set_sci
    struct vclock *clock;
    void (*set_sci)(void *context, bool level);
    // The guest asked; the handler must not wait. debug_code is valid for POWER_DEBUG_EXIT.
    void (*request)(void *context, enum power_request request);
    void *context;
};

void power_control_init(struct power_control *p, struct vclock *clock,
                        void (*set_sci)(void *, bool), void (*request)(void *, enum power_request),
                        void *context);
// Machine reset: power-on state, SCI low.
void power_control_reset(struct power_control *p);
int power_control_register(struct power_control *p, struct bus *bus);
// Latches PWRBTN_STS; raises the SCI when the guest has enabled the button.
void power_control_press_button(struct power_control *p);
