// SPDX-License-Identifier: BSD-2-Clause
// Host tests: one pretended VMCS, which is always the current one. Fields that were never written
// read as zero.
#pragma once

#include "kernel/types.h"
#include "vmx/vmcs_fields.h"

__attribute__((weak)) uint64_t fake_vmcs[0x7000];
__attribute__((weak)) unsigned fake_invvpids;

static inline uint64_t vmcs_read(enum vmcs_field field)
{
    return fake_vmcs[field];
}

static inline uint32_t vmcs_read32(enum vmcs_field field)
{
    return (uint32_t)fake_vmcs[field];
}

static inline void vmcs_write(enum vmcs_field field, uint64_t value)
{
    // Bits 14:13 of the encoding: 16, 64, 32 bits or natural width (SDM vol. 3, appendix B).
    unsigned width = (unsigned)field >> 13 & 3;
    fake_vmcs[field] = width == 0 ? (uint16_t)value : width == 2 ? (uint32_t)value : value;
}

static inline void vmx_invvpid(uint16_t vpid)
{
    (void)vpid;
    fake_invvpids++;
}
