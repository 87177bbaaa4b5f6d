// SPDX-License-Identifier: BSD-2-Clause
// Fusor's hypercalls from the bare guest.
#pragma once

#include "../../hypercall/fusor_abi.h"
#include "bare.h"

// Only under Fusor: elsewhere VMCALL is #UD, or another hypervisor's business.
static inline int64_t hypercall(uint64_t number, uint64_t a, uint64_t b, uint64_t c, uint64_t d)
{
    register uint64_t r10 __asm__("r10") = d;
    int64_t result;
    __asm__ volatile("vmcall"
                     : "=a"(result)
                     : "a"(number), "D"(a), "S"(b), "d"(c), "r"(r10)
                     : "memory");
    return result;
}

struct hypercall_facts {
    uint32_t version, features, list_max;
};
// False where Fusor is not, or offers no hypercalls.
bool hypercall_discover(struct hypercall_facts *facts);
