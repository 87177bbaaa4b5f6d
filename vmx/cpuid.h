// SPDX-License-Identifier: BSD-2-Clause
// What CPUID shows to a guest.
#pragma once

#include "kernel/types.h"

#define CPUID_BASIC_LEAVES    0x17u
#define CPUID_EXTENDED_LEAVES 0x9u
#define CPUID_SUBLEAVES       16u

struct cpuid_leaf {
    uint32_t eax, ebx, ecx, edx;
};

// Filled once per VM from the machine's CPUID; look-ups are two array accesses.
struct cpuid_policy {
    struct cpuid_leaf basic[CPUID_BASIC_LEAVES];
    struct cpuid_leaf extended[CPUID_EXTENDED_LEAVES];
    struct cpuid_leaf hypervisor[2]; // 0x40000000
    struct cpuid_leaf kvm[2];        // 0x40000100: what unmodified Linux looks for
    // Leaves with subleaves.
    struct cpuid_leaf cache[CPUID_SUBLEAVES]; // 4
    struct cpuid_leaf features[2];            // 7
    struct cpuid_leaf topology[3];            // 0xb
    struct cpuid_leaf xsave[CPUID_SUBLEAVES]; // 0xd
    uint32_t cr4_allowed;
    uint64_t xcr0_allowed;
    bool rdtscp, invpcid;
};

// `host` reads the machine's CPUID (a fake in host tests).
void cpuid_policy_init(struct cpuid_policy *p, unsigned vcpus, uint64_t tsc_hz,
                       struct cpuid_leaf (*host)(uint32_t leaf, uint32_t subleaf));

// The answer for one vCPU. cr4 and xcr0 are the guest's present ones (OSXSAVE, sizes
// of the XSAVE area).
struct cpuid_leaf cpuid_policy_get(const struct cpuid_policy *p, uint32_t leaf, uint32_t subleaf,
                                   uint32_t apic_id, uint64_t cr4, uint64_t xcr0);
// True for a leaf whose answer is basic[leaf], whoever asks and whatever the subleaf.
static inline bool cpuid_policy_is_constant(uint32_t leaf)
{
    const uint32_t others = 1u << 1 | 1u << 4 | 1u << 7 | 1u << 0xb | 1u << 0xd;
    return leaf < CPUID_BASIC_LEAVES && (others >> leaf & 1) == 0;
}
// How many vCPUs it was made for.
static inline unsigned cpuid_policy_vcpus(const struct cpuid_policy *p)
{
    return p->basic[1].ebx >> 16 & 0xff;
}
// Size of the standard-format XSAVE area for `xcr0`.
uint32_t cpuid_policy_xsave_size(const struct cpuid_policy *p, uint64_t xcr0);
// Whether XSETBV may set `xcr0` (SDM vol. 1, 13.3).
bool cpuid_policy_xcr0_valid(const struct cpuid_policy *p, uint64_t xcr0);
