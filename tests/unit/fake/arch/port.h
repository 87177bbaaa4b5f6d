// SPDX-License-Identifier: BSD-2-Clause
// Host tests: the test that links a driver defines these two, with its pretended device behind
// them.
#pragma once

#include <stdint.h>

uint8_t port_in8(uint16_t port);
void port_out8(uint16_t port, uint8_t value);
