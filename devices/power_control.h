// SPDX-License-Identifier: BSD-2-Clause
// ACPI fixed hardware (PM1 event and control, PM timer), reset ports (0xcf9, keyboard controller
// 0x64, port 0x92) and the debug-exit port 0xf4. Caller holds the VM's device lock.
#pragma once

#include "kernel/types.h"
#include "vm/bus.h"
#include "vm/clock.h"

enum power_request { POWER_RESET, POWER_OFF, POWER_DEBUG_EXIT };

struct power_control {
    uint16_t pm1_status, pm1_enable, pm1_control;
    uint8_t reset_control, debug_code;
    struct vclock *clock;
    void (*set_sci)(void *context, bool level);
    // The guest asked; the handler must not wait. debug_code is valid for POWER_DEBUG_EXIT.
    void (*request)(void *context, enum power_request request);
    void *context;
};

void power_control_init(struct power_control *p, struct vclock *clock,
                        void (*set_sci)(void *, bool), void (*request)(void *, enum power_request),
                        void *context);
void power_control_reset(struct power_control *p);
int power_control_register(struct power_control *p, struct bus *bus);
void power_control_press_button(struct power_control *p);
