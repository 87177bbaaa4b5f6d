// SPDX-License-Identifier: BSD-2-Clause
// The VMX instructions.
#pragma once

#include "kernel/panic.h"
#include "kernel/types.h"
#include "vmx/vmcs_fields.h"

static inline uint64_t vmcs_read(enum vmcs_field field)
{
    uint64_t value;
    __asm__ volatile("vmread %1, %0" : "=r"(value) : "r"((uint64_t)field) : "cc");
    return value;
}

static inline uint32_t vmcs_read32(enum vmcs_field field)
{
    return (uint32_t)vmcs_read(field);
}

// Writing a field that the CPU does not have is a bug of Fusor, found on the first run.
static inline void vmcs_write(enum vmcs_field field, uint64_t value)
{
    bool failed;
    __asm__ volatile("vmwrite %2, %1" : "=@ccna"(failed) : "r"((uint64_t)field), "r"(value));
    if (__builtin_expect(failed, 0))
        panic("VMWRITE of field %#x failed", (unsigned)field);
}

static inline bool vmx_on(hpa_t region)
{
    bool failed;
    __asm__ volatile("vmxon %1" : "=@ccna"(failed) : "m"(region.raw) : "memory");
    return !failed;
}

static inline bool vmx_clear(hpa_t vmcs)
{
    bool failed;
    __asm__ volatile("vmclear %1" : "=@ccna"(failed) : "m"(vmcs.raw) : "memory");
    return !failed;
}

static inline bool vmx_load(hpa_t vmcs)
{
    bool failed;
    __asm__ volatile("vmptrld %1" : "=@ccna"(failed) : "m"(vmcs.raw) : "memory");
    return !failed;
}

// Drops all linear and combined translations of `vpid` on this CPU (SDM vol. 3, 29.4.3).
static inline void vmx_invvpid(uint16_t vpid)
{
    struct {
        uint64_t vpid, linear;
    } descriptor = {vpid, 0};
    __asm__ volatile("invvpid %0, %1" ::"m"(descriptor), "r"(UINT64_C(1)) : "cc", "memory");
}
