// SPDX-License-Identifier: BSD-2-Clause
// The CPUID policy: the machine's safe features, a consistent one-package topology, the TSC's
// frequency. Features are listed by what is allowed; a bit not named here is not shown.
#include "vmx/cpuid.h"

#include "hypercall/fusor_abi.h" // the public contract; no code of a higher room
#include "kernel/string.h"

#define BIT(n) (1u << (n))

// Leaf 1 ECX: SSE3 PCLMULQDQ SSSE3 FMA CX16 PCID SSE4.1 SSE4.2 MOVBE POPCNT AES XSAVE AVX F16C
// RDRAND. PCID is harmless: VPID separates VMs. No MONITOR: a guest must not hold a CPU in MWAIT.
#define LEAF1_ECX                                                                                  \
    (BIT(0) | BIT(1) | BIT(9) | BIT(12) | BIT(13) | BIT(17) | BIT(19) | BIT(20) | BIT(22) |        \
     BIT(23) | BIT(25) | BIT(26) | BIT(28) | BIT(29) | BIT(30))
// Emulated by Fusor, so shown always: x2APIC, TSC deadline; and the hypervisor bit.
#define LEAF1_ECX_SET     (BIT(21) | BIT(24) | BIT(31))
#define LEAF1_ECX_OSXSAVE BIT(27)
// Leaf 1 EDX: everything but DS(21), ACPI thermal(22), HT(28), TM(29), IA64(30), PBE(31) and
// reserved.
#define LEAF1_EDX                                                                                  \
    (BIT(0) | BIT(1) | BIT(2) | BIT(3) | BIT(4) | BIT(5) | BIT(6) | BIT(7) | BIT(8) | BIT(9) |     \
     BIT(11) | BIT(12) | BIT(13) | BIT(14) | BIT(15) | BIT(16) | BIT(17) | BIT(19) | BIT(23) |     \
     BIT(24) | BIT(25) | BIT(26) | BIT(27))
// Leaf 7 EBX: FSGSBASE BMI1 AVX2 FDP SMEP BMI2 ERMS INVPCID ZERO-FCS AVX512F DQ RDSEED ADX SMAP
// IFMA CLFLUSHOPT CLWB AVX512CD SHA BW VL; TSC_ADJUST is emulated. No HLE/RTM, MPX, SGX, PT, RDT.
#define LEAF7_EBX                                                                                  \
    (BIT(0) | BIT(3) | BIT(5) | BIT(6) | BIT(7) | BIT(8) | BIT(9) | BIT(10) | BIT(13) | BIT(16) |  \
     BIT(17) | BIT(18) | BIT(19) | BIT(20) | BIT(21) | BIT(23) | BIT(24) | BIT(28) | BIT(29) |     \
     BIT(30) | BIT(31))
#define LEAF7_EBX_TSC_ADJUST BIT(1)
#define LEAF7_EBX_AVX512     (BIT(16) | BIT(17) | BIT(21) | BIT(28) | BIT(30) | BIT(31))
// Leaf 7 ECX: VBMI UMIP VBMI2 GFNI VAES VPCLMULQDQ VNNI BITALG VPOPCNTDQ. No PKU, LA57, WAITPKG;
// RDPID only together with RDTSCP.
#define LEAF7_ECX                                                                                  \
    (BIT(1) | BIT(2) | BIT(6) | BIT(8) | BIT(9) | BIT(10) | BIT(11) | BIT(12) | BIT(14) | BIT(22))
#define LEAF7_ECX_AVX512 (BIT(1) | BIT(6) | BIT(11) | BIT(12) | BIT(14))
// Leaf 7 EDX: FSRM, MD_CLEAR (VERW acts on the real CPU), ARCH_CAPABILITIES (filtered).
#define LEAF7_EDX (BIT(4) | BIT(10) | BIT(29))
#define EXT1_ECX  (BIT(0) | BIT(5) | BIT(8))
#define EXT1_EDX  (BIT(11) | BIT(20) | BIT(26) | BIT(27) | BIT(29))
// XCR0: x87 SSE AVX, and the three AVX-512 parts.
#define XCR0_AVX    UINT64_C(0x7)
#define XCR0_AVX512 UINT64_C(0xe0)

// KVM's leaf as Linux knows it (Documentation/virt/kvm/x86/cpuid.rst). A guest that finds it uses
// x2APIC without interrupt remapping. docs/architecture.md says which features pay and which not.
#define KVM_CPUID_SIGNATURE      0x40000100u
#define KVM_CPUID_FEATURES       0x40000101u
#define KVM_SIGNATURE_EBX        0x4b4d564bu // "KVMK"
#define KVM_SIGNATURE_ECX        0x564b4d56u // "VMKV"
#define KVM_SIGNATURE_EDX        0x0000004du // "M\0\0\0"
#define KVM_FEATURE_NOP_IO_DELAY BIT(1)
#define KVM_FEATURE_STEAL_TIME   BIT(5)
#define KVM_FEATURE_PV_EOI       BIT(6)
#define KVM_FEATURE_PV_TLB_FLUSH BIT(9)
#define KVM_FEATURE_PV_SEND_IPI  BIT(11)
// Flushes are asked for in the area of steal time.
#define KVM_FEATURES                                                                               \
    (KVM_FEATURE_NOP_IO_DELAY | KVM_FEATURE_STEAL_TIME | KVM_FEATURE_PV_EOI |                      \
     KVM_FEATURE_PV_TLB_FLUSH | KVM_FEATURE_PV_SEND_IPI)

#define CR4_BASE UINT32_C(0x7ff) // VME..OSXMMEXCPT

static void init_xsave(struct cpuid_policy *p,
                       struct cpuid_leaf (*host)(uint32_t leaf, uint32_t subleaf))
{
    p->xcr0_allowed = 0;
    if ((p->basic[1].ecx & BIT(26)) == 0)
        return;
    struct cpuid_leaf main = host(0xd, 0);
    uint64_t machine = main.eax | (uint64_t)main.edx << 32;
    p->xcr0_allowed = machine & XCR0_AVX;
    if ((p->xcr0_allowed & 4) != 0 && (machine & XCR0_AVX512) == XCR0_AVX512 &&
        (p->features[0].ebx & BIT(16)) != 0)
        p->xcr0_allowed |= XCR0_AVX512;
    for (unsigned i = 2; i < CPUID_SUBLEAVES; i++)
        if ((p->xcr0_allowed & UINT64_C(1) << i) != 0)
            p->xsave[i] = host(0xd, i);
    // XSAVEOPT, XSAVEC, XGETBV(1). XSAVES would need IA32_XSS and its own control.
    p->xsave[1].eax = host(0xd, 1).eax & 7u;
    p->xsave[0].eax = (uint32_t)p->xcr0_allowed;
    p->xsave[0].ecx = cpuid_policy_xsave_size(p, p->xcr0_allowed);
}

static void init_features(struct cpuid_policy *p, uint32_t host_max,
                          struct cpuid_leaf (*host)(uint32_t leaf, uint32_t subleaf))
{
    if (host_max >= 7) {
        struct cpuid_leaf h = host(7, 0);
        p->features[0].ebx = h.ebx & LEAF7_EBX;
        p->features[0].ecx = h.ecx & LEAF7_ECX;
        p->features[0].edx = h.edx & LEAF7_EDX;
    }
    p->features[0].ebx |= LEAF7_EBX_TSC_ADJUST;
    if (host_max >= 0xd)
        init_xsave(p, host);
    if (p->xcr0_allowed == 0)
        p->basic[1].ecx &= ~BIT(26);
    // Vector features whose registers XCR0 cannot enable must not be shown.
    if ((p->xcr0_allowed & 4) == 0) {
        p->basic[1].ecx &= ~(BIT(12) | BIT(28) | BIT(29));
        p->features[0].ebx &= ~BIT(5);
        p->features[0].ecx &= ~(BIT(9) | BIT(10));
    }
    if ((p->xcr0_allowed & XCR0_AVX512) == 0) {
        p->features[0].ebx &= ~LEAF7_EBX_AVX512;
        p->features[0].ecx &= ~LEAF7_ECX_AVX512;
    }
}

static void init_extended(struct cpuid_policy *p,
                          struct cpuid_leaf (*host)(uint32_t leaf, uint32_t subleaf))
{
    uint32_t max = host(0x80000000u, 0).eax;
    p->extended[0].eax = 0x80000008u;
    if (max >= 0x80000001u) {
        struct cpuid_leaf h = host(0x80000001u, 0);
        p->extended[1] = (struct cpuid_leaf){h.eax, 0, h.ecx & EXT1_ECX, h.edx & EXT1_EDX};
    }
    for (uint32_t i = 2; i <= 6; i++)
        if (max >= 0x80000000u + i)
            p->extended[i] = host(0x80000000u + i, 0);
    if (max >= 0x80000007u)
        p->extended[7].edx = host(0x80000007u, 0).edx & BIT(8); // invariant TSC
    uint32_t sizes = max >= 0x80000008u ? host(0x80000008u, 0).eax : 0x3024;
    p->extended[8].eax = sizes & 0xffffu;
    if ((p->extended[8].eax & 0xff) > 48) // EPT with four levels reaches that far
        p->extended[8].eax = (p->extended[8].eax & ~0xffu) | 48;
    if ((p->extended[8].eax >> 8 & 0xff) > 48) // no LA57
        p->extended[8].eax = (p->extended[8].eax & 0xffu) | 48u << 8;
    p->rdtscp = (p->extended[1].edx & BIT(27)) != 0;
    if (!p->rdtscp)
        p->features[0].ecx &= ~BIT(22);
}

void cpuid_policy_init(struct cpuid_policy *p, unsigned vcpus, uint64_t tsc_hz,
                       struct cpuid_leaf (*host)(uint32_t leaf, uint32_t subleaf))
{
    memset(p, 0, sizeof(*p));
    struct cpuid_leaf zero = host(0, 0);
    p->basic[0] = zero;
    p->basic[0].eax = 0x16;
    struct cpuid_leaf one = host(1, 0);
    p->basic[1].eax = one.eax;
    p->basic[1].ebx = (one.ebx & 0xff00u) | vcpus << 16; // CLFLUSH size; APIC id comes per vCPU
    p->basic[1].ecx = (one.ecx & LEAF1_ECX) | LEAF1_ECX_SET;
    p->basic[1].edx = one.edx & LEAF1_EDX;
    if (vcpus > 1)
        p->basic[1].edx |= BIT(28);
    if (zero.eax >= 2)
        p->basic[2] = host(2, 0);
    if (zero.eax >= 4)
        for (unsigned i = 0; i < CPUID_SUBLEAVES; i++) {
            p->cache[i] = host(4, i);
            if ((p->cache[i].eax & 0x1f) == 0)
                break;
            // Each vCPU is a core of its own with all caches to itself, as far as scheduling
            // matters.
            p->cache[i].eax = (p->cache[i].eax & 0x3fffu) | (vcpus - 1) << 26;
        }
    p->basic[6].eax = BIT(2); // ARAT: the timer never stops
    init_features(p, zero.eax, host);
    init_extended(p, host);
    p->invpcid = (p->features[0].ebx & BIT(10)) != 0;

    unsigned shift = 0;
    while ((1u << shift) < vcpus)
        shift++;
    p->topology[0] = (struct cpuid_leaf){0, 1, 0 | 1u << 8, 0};         // threads: one per core
    p->topology[1] = (struct cpuid_leaf){shift, vcpus, 1 | 2u << 8, 0}; // cores
    p->topology[2] = (struct cpuid_leaf){0, 0, 2, 0};

    // The "crystal" is the TSC itself, so the LAPIC timer's frequency is the TSC's, too.
    // (A TSC beyond 32 bits of Hertz has no place there; leaf 16h then says it in MHz.)
    if (tsc_hz <= UINT32_MAX)
        p->basic[0x15] = (struct cpuid_leaf){1, 1, (uint32_t)tsc_hz, 0};
    uint32_t mhz = (uint32_t)(tsc_hz / 1000000u);
    p->basic[0x16] = (struct cpuid_leaf){mhz, mhz, 100, 0};

    p->hypervisor[0] = (struct cpuid_leaf){FUSOR_CPUID_FEATURES, FUSOR_SIGNATURE_EBX,
                                           FUSOR_SIGNATURE_ECX, FUSOR_SIGNATURE_EDX};
    p->hypervisor[1] = (struct cpuid_leaf){FUSOR_ABI_VERSION,
                                           FUSOR_FEATURE_HINTS | FUSOR_FEATURE_STATS |
                                               FUSOR_FEATURE_BALLOON | FUSOR_FEATURE_FREE,
                                           FUSOR_LIST_MAX, 0};

    p->kvm[0] = (struct cpuid_leaf){KVM_CPUID_FEATURES, KVM_SIGNATURE_EBX, KVM_SIGNATURE_ECX,
                                    KVM_SIGNATURE_EDX};
    p->kvm[1].eax = KVM_FEATURES;

    p->cr4_allowed = CR4_BASE;
    if ((p->features[0].ecx & BIT(2)) != 0)
        p->cr4_allowed |= BIT(11); // UMIP
    if ((p->features[0].ebx & BIT(0)) != 0)
        p->cr4_allowed |= BIT(16); // FSGSBASE
    if ((p->basic[1].ecx & BIT(17)) != 0)
        p->cr4_allowed |= BIT(17); // PCIDE
    if ((p->basic[1].ecx & BIT(26)) != 0)
        p->cr4_allowed |= BIT(18); // OSXSAVE
    if ((p->features[0].ebx & BIT(7)) != 0)
        p->cr4_allowed |= BIT(20); // SMEP
    if ((p->features[0].ebx & BIT(20)) != 0)
        p->cr4_allowed |= BIT(21); // SMAP
}

// The same for the compacted format of XSAVEC, which packs the components (SDM vol. 1, 13.4.3).
static uint32_t compacted_size(const struct cpuid_policy *p, uint64_t xcr0)
{
    uint32_t size = 512 + 64;
    for (unsigned i = 2; i < CPUID_SUBLEAVES; i++) {
        if ((xcr0 & UINT64_C(1) << i) == 0)
            continue;
        if ((p->xsave[i].ecx & 2) != 0)
            size = (size + 63) & ~63u;
        size += p->xsave[i].eax;
    }
    return size;
}

struct cpuid_leaf cpuid_policy_get(const struct cpuid_policy *p, uint32_t leaf, uint32_t subleaf,
                                   uint32_t apic_id, uint64_t cr4, uint64_t xcr0)
{
    struct cpuid_leaf r = {0, 0, 0, 0};
    if (leaf >= 0x80000000u) {
        if (leaf - 0x80000000u < CPUID_EXTENDED_LEAVES)
            return p->extended[leaf - 0x80000000u];
    } else if (leaf >= FUSOR_CPUID_SIGNATURE && leaf <= 0x4fffffffu) {
        if (leaf - KVM_CPUID_SIGNATURE < ARRAY_SIZE(p->kvm))
            return p->kvm[leaf - KVM_CPUID_SIGNATURE];
        return leaf <= FUSOR_CPUID_FEATURES ? p->hypervisor[leaf - FUSOR_CPUID_SIGNATURE] : r;
    }
    // Beyond the last basic leaf the CPU answers with that of the last one (SDM vol. 2, CPUID).
    if (leaf >= CPUID_BASIC_LEAVES)
        return leaf >= 0x80000000u ? r : p->basic[CPUID_BASIC_LEAVES - 1];
    switch (leaf) {
    case 1:
        r = p->basic[1];
        r.ebx |= apic_id << 24;
        if ((cr4 & BIT(18)) != 0)
            r.ecx |= LEAF1_ECX_OSXSAVE;
        return r;
    case 4:
        return subleaf < CPUID_SUBLEAVES ? p->cache[subleaf] : r;
    case 7:
        return subleaf < 1 ? p->features[subleaf] : r;
    case 0xb:
        if (subleaf < 3)
            r = p->topology[subleaf];
        else
            r.ecx = subleaf & 0xffu;
        r.edx = apic_id;
        return r;
    case 0xd:
        if (subleaf < CPUID_SUBLEAVES)
            r = p->xsave[subleaf];
        if (subleaf == 0 && p->xcr0_allowed != 0)
            r.ebx = cpuid_policy_xsave_size(p, xcr0);
        if (subleaf == 1 && (r.eax & 2) != 0)
            r.ebx = compacted_size(p, xcr0);
        return r;
    default:
        return p->basic[leaf];
    }
}

uint32_t cpuid_policy_xsave_size(const struct cpuid_policy *p, uint64_t xcr0)
{
    uint32_t size = 512 + 64; // legacy region and header (SDM vol. 1, 13.4)
    for (unsigned i = 2; i < CPUID_SUBLEAVES; i++)
        if ((xcr0 & UINT64_C(1) << i) != 0 && p->xsave[i].ebx + p->xsave[i].eax > size)
            size = p->xsave[i].ebx + p->xsave[i].eax;
    return size;
}

bool cpuid_policy_xcr0_valid(const struct cpuid_policy *p, uint64_t xcr0)
{
    if ((xcr0 & ~p->xcr0_allowed) != 0 || (xcr0 & 1) == 0)
        return false;
    if ((xcr0 & 4) != 0 && (xcr0 & 2) == 0)
        return false;
    uint64_t avx512 = xcr0 & XCR0_AVX512;
    return avx512 == 0 || (avx512 == XCR0_AVX512 && (xcr0 & 4) != 0);
}
