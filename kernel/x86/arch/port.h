// SPDX-License-Identifier: BSD-2-Clause
// I/O ports for drivers that host tests run against a pretended device.
#pragma once

#include <arch/cpu.h>

static inline uint8_t port_in8(uint16_t port)
{
    return cpu_in8(port);
}

static inline void port_out8(uint16_t port, uint8_t value)
{
    cpu_out8(port, value);
}
