// SPDX-License-Identifier: BSD-2-Clause
// Control over the pretended machine of the host tests.
#pragma once

#include <setjmp.h>
#include <stdbool.h>
#include <stdint.h>

// A fresh machine: RAM [0, ram_bytes) filled with 0xa5, `cpu_number` CPUs; CPU 0 runs.
void fake_machine(uint64_t ram_bytes, unsigned cpu_number);
void fake_set_cpu(unsigned index);

extern uint64_t fake_ram_size;
extern jmp_buf fake_panic_jump;
extern bool fake_panic_expected;

// True when `statement` panicked.
#define fake_expect_panic(statement)                                                               \
    __extension__({                                                                                \
        fake_panic_expected = true;                                                                \
        bool panicked_ = setjmp(fake_panic_jump) != 0;                                             \
        if (!panicked_) {                                                                          \
            statement;                                                                             \
        }                                                                                          \
        fake_panic_expected = false;                                                               \
        panicked_;                                                                                 \
    })
