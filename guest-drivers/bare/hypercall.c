// SPDX-License-Identifier: BSD-2-Clause
// Discovery, as docs/hypercalls.md has it.
#include "hypercall.h"

bool hypercall_discover(struct hypercall_facts *facts)
{
    if ((cpuid(1, 0).c & 1u << 31) == 0) // no hypervisor: the leaves mean nothing
        return false;
    struct cpuid s = cpuid(FUSOR_CPUID_SIGNATURE, 0);
    if (s.b != FUSOR_SIGNATURE_EBX || s.c != FUSOR_SIGNATURE_ECX || s.d != FUSOR_SIGNATURE_EDX)
        return false;
    if (s.a < FUSOR_CPUID_FEATURES)
        return false;
    struct cpuid f = cpuid(FUSOR_CPUID_FEATURES, 0);
    *facts = (struct hypercall_facts){f.a, f.b, f.c};
    return f.a >= 1;
}
