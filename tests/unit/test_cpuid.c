// SPDX-License-Identifier: BSD-2-Clause
// sources: vmx/cpuid.c
// What CPUID shows to a guest, on pretended machines: one with everything (all feature bits set),
// one like Haswell, one with AVX-512, and poor ones.
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "kernel/types.h"
#include "vmx/cpuid.h"

#define BIT(n) (1u << (n))

#define GHZ UINT64_C(1000000000)

// --- The machine ---

static struct {
    uint32_t max_basic, max_extended;
    struct cpuid_leaf one, seven, d1, ext1, ext8;
    uint64_t xcr0;
    bool clean; // leaves that are not described are zero; else all ones, so that a leak shows
} machine;

// Offsets and sizes as every CPU of Intel's has them; 9 is PKRU.
static struct cpuid_leaf xsave_parts[16] = {
    [2] = {256, 576, 0, 0}, [3] = {64, 960, 0, 0},   [4] = {64, 1024, 0, 0},
    [5] = {64, 1088, 0, 0}, [6] = {512, 1152, 0, 0}, [7] = {1024, 1664, 0, 0},
    [9] = {8, 2688, 0, 0},
};

static struct cpuid_leaf host(uint32_t leaf, uint32_t subleaf)
{
    const struct cpuid_leaf none = {0, 0, 0, 0};
    const struct cpuid_leaf junk = {~0u, ~0u, ~0u, ~0u};
    if (leaf < 0x80000000u && leaf > machine.max_basic)
        fail_msg("leaf %#x read beyond the machine's last", leaf);
    if (leaf > 0x80000000u && leaf > machine.max_extended)
        fail_msg("leaf %#x read beyond the machine's last", leaf);
    switch (leaf) {
    case 0:
        return (struct cpuid_leaf){machine.max_basic, 0x756e6547, 0x6c65746e, 0x49656e69};
    case 1:
        return machine.one;
    case 2:
        return (struct cpuid_leaf){0x76036301, 0x00f0b5ff, 0, 0x00c10000};
    case 4: // L1 shared by 2 threads, package of 8 cores
        if (subleaf < 3)
            return (struct cpuid_leaf){0x1c004121 + subleaf * 0x20, 0x01c0003f, 0x3f, 0};
        return none;
    case 7:
        return subleaf == 0 ? machine.seven : junk;
    case 0xd:
        if (subleaf == 0)
            return (struct cpuid_leaf){(uint32_t)machine.xcr0, 4096, 4096,
                                       (uint32_t)(machine.xcr0 >> 32)};
        if (subleaf == 1)
            return machine.d1;
        return subleaf < 16 ? xsave_parts[subleaf] : none;
    case 0x80000000u:
        return (struct cpuid_leaf){machine.max_extended, 0, 0, 0};
    case 0x80000001u:
        return machine.ext1;
    case 0x80000002u:
    case 0x80000003u:
    case 0x80000004u:
        return (struct cpuid_leaf){leaf, 0x20202020, 0x20202020, 0x20202020};
    case 0x80000008u:
        return machine.ext8;
    default:
        return machine.clean ? none : junk;
    }
}

static void everything(void)
{
    memset(&machine, 0xff, sizeof(machine));
    machine.max_basic = 0x20;
    machine.max_extended = 0x80000008u;
    machine.clean = false;
    machine.xcr0 = 0x602ff; // x87 SSE AVX MPX AVX-512 PKRU AMX
}

static void haswell(void)
{
    memset(&machine, 0, sizeof(machine));
    machine.max_basic = 0xd;
    machine.max_extended = 0x80000008u;
    machine.clean = true;
    machine.one = (struct cpuid_leaf){0x000306c3, 0x05100800, 0x7ffafbff, 0xbfebfbff};
    machine.seven = (struct cpuid_leaf){0, 0x000027ab, 0, 0x9c000000};
    machine.d1.eax = 1;
    machine.xcr0 = 7;
    machine.ext1 = (struct cpuid_leaf){0, 0, 0x21, 0x2c100800};
    machine.ext8.eax = 0x3027;
}

static void skylake_server(void)
{
    haswell();
    machine.max_basic = 0x16;
    machine.one.eax = 0x00050654;
    machine.seven = (struct cpuid_leaf){0, 0xd39ffffb, 0x00000018, 0xbc000400};
    machine.d1 = (struct cpuid_leaf){0xf, 2696, 0x100, 0};
    machine.xcr0 = 0x2ff;
    machine.ext1.ecx = 0x121;
    machine.ext8.eax = 0x302e;
}

// A 64-bit machine of the first days: no XSAVE, AVX, RDTSCP, INVPCID; no leaf 7.
static void poor(void)
{
    haswell();
    machine.max_basic = 5;
    machine.max_extended = 0x80000004u;
    machine.one.ecx = 0x0000e3fd | BIT(23);
    machine.xcr0 = 0;
    machine.ext1.edx &= ~BIT(27);
    machine.ext1.ecx = 1;
}

static struct cpuid_policy policy;

static void init(void (*make)(void), unsigned vcpus)
{
    make();
    memset(&policy, 0xee, sizeof(policy));
    cpuid_policy_init(&policy, vcpus, 3 * GHZ, host);
}

static struct cpuid_leaf get(uint32_t leaf, uint32_t subleaf)
{
    return cpuid_policy_get(&policy, leaf, subleaf, 0, 0, 7);
}

static void assert_zero(uint32_t leaf, uint32_t subleaf)
{
    struct cpuid_leaf r = get(leaf, subleaf);
    if ((r.eax | r.ebx | r.ecx | r.edx) != 0)
        fail_msg("leaf %#x.%u: %#x %#x %#x %#x", leaf, subleaf, r.eax, r.ebx, r.ecx, r.edx);
}

static void (*const machines[])(void) = {everything, haswell, skylake_server, poor};

// --- Features ---

struct expected {
    uint32_t one_ecx, one_edx, seven_ebx, seven_ecx, seven_edx, ext1_ecx, ext1_edx, cr4;
};

static void check_features(const struct expected *e)
{
    assert_int_equal(get(1, 0).ecx, e->one_ecx);
    assert_int_equal(get(1, 0).edx, e->one_edx);
    assert_int_equal(get(7, 0).eax, 0);
    assert_int_equal(get(7, 0).ebx, e->seven_ebx);
    assert_int_equal(get(7, 0).ecx, e->seven_ecx);
    assert_int_equal(get(7, 0).edx, e->seven_edx);
    assert_int_equal(get(0x80000001u, 0).ecx, e->ext1_ecx);
    assert_int_equal(get(0x80000001u, 0).edx, e->ext1_edx);
    assert_int_equal(policy.cr4_allowed, e->cr4);
    assert_int_equal(policy.rdtscp, (e->ext1_edx & BIT(27)) != 0);
    assert_int_equal(policy.invpcid, (e->seven_ebx & BIT(10)) != 0);
}

// The values are written out here, bit for bit from the SDM's tables, not derived from the policy.
static void test_features(void **state)
{
    (void)state;
    init(everything, 1);
    check_features(&(struct expected){
        .one_ecx = 0xf7fa3203,
        .one_edx = 0x0f8bfbff,
        .seven_ebx = 0xf1bf27eb,
        .seven_ecx = 0x00405f46,
        .seven_edx = 0x20000410,
        .ext1_ecx = 0x121,
        .ext1_edx = 0x2c100800,
        .cr4 = 0x3707ff | BIT(11),
    });
    init(haswell, 1);
    check_features(&(struct expected){
        .one_ecx = 0xf7fa3203,
        .one_edx = 0x0f8bfbff,
        .seven_ebx = 0x000027ab,
        .seven_ecx = 0,
        .seven_edx = 0,
        .ext1_ecx = 0x21,
        .ext1_edx = 0x2c100800,
        .cr4 = 0x1707ff,
    });
    init(skylake_server, 1);
    check_features(&(struct expected){
        .one_ecx = 0xf7fa3203,
        .one_edx = 0x0f8bfbff,
        .seven_ebx = 0xd19f27eb,
        .seven_ecx = 0,
        .seven_edx = 0x20000400,
        .ext1_ecx = 0x121,
        .ext1_edx = 0x2c100800,
        .cr4 = 0x3707ff,
    });
    // Emulated ones stand even here: x2APIC, TSC deadline, hypervisor, TSC_ADJUST.
    init(poor, 1);
    check_features(&(struct expected){
        .one_ecx = 0x81a02201,
        .one_edx = 0x0f8bfbff,
        .seven_ebx = BIT(1),
        .seven_ecx = 0,
        .seven_edx = 0,
        .ext1_ecx = 1,
        .ext1_edx = 0x24100800,
        .cr4 = 0x7ff,
    });
}

// Named one by one, on the machine that has all of them and on the real ones.
static void test_forbidden(void **state)
{
    (void)state;
    static const struct {
        const char *name;
        uint32_t leaf;
        unsigned reg, bit; // 0 EAX .. 3 EDX
    } forbidden[] = {
        {"DTES64", 1, 2, 2},    {"MONITOR", 1, 2, 3}, {"DS-CPL", 1, 2, 4},   {"VMX", 1, 2, 5},
        {"SMX", 1, 2, 6},       {"EIST", 1, 2, 7},    {"TM2", 1, 2, 8},      {"SDBG", 1, 2, 11},
        {"xTPR", 1, 2, 14},     {"PDCM", 1, 2, 15},   {"DCA", 1, 2, 18},     {"DS", 1, 3, 21},
        {"ACPI", 1, 3, 22},     {"TM", 1, 3, 29},     {"PBE", 1, 3, 31},     {"SGX", 7, 1, 2},
        {"HLE", 7, 1, 4},       {"RTM", 7, 1, 11},    {"RDT-M", 7, 1, 12},   {"MPX", 7, 1, 14},
        {"RDT-A", 7, 1, 15},    {"PT", 7, 1, 25},     {"PKU", 7, 2, 3},      {"OSPKE", 7, 2, 4},
        {"WAITPKG", 7, 2, 5},   {"CET-SS", 7, 2, 7},  {"TME", 7, 2, 13},     {"LA57", 7, 2, 16},
        {"KL", 7, 2, 23},       {"ENQCMD", 7, 2, 29}, {"SGX-LC", 7, 2, 30},  {"PKS", 7, 2, 31},
        {"UINTR", 7, 3, 5},     {"HYBRID", 7, 3, 15}, {"PCONFIG", 7, 3, 18}, {"ARCH-LBR", 7, 3, 19},
        {"CET-IBT", 7, 3, 20},  {"AMX", 7, 3, 24},    {"IBRS", 7, 3, 26},    {"STIBP", 7, 3, 27},
        {"CORE-CAP", 7, 3, 30}, {"SSBD", 7, 3, 31},   {"XSAVES", 0xd, 0, 3}, {"XFD", 0xd, 0, 4},
        {"MWAIT", 5, 2, 0},     {"turbo", 6, 0, 1},   {"HWP", 6, 0, 7},      {"APERF", 6, 2, 0},
    };
    for (unsigned m = 0; m < ARRAY_SIZE(machines); m++)
        for (unsigned vcpus = 1; vcpus <= 2; vcpus++) {
            init(machines[m], vcpus);
            for (unsigned i = 0; i < ARRAY_SIZE(forbidden); i++) {
                struct cpuid_leaf l = get(forbidden[i].leaf, forbidden[i].leaf == 0xd ? 1 : 0);
                const uint32_t regs[] = {l.eax, l.ebx, l.ecx, l.edx};
                if ((regs[forbidden[i].reg] & BIT(forbidden[i].bit)) != 0)
                    fail_msg("%s shown on machine %u", forbidden[i].name, m);
            }
            assert_zero(3, 0);
            assert_zero(5, 0);    // MONITOR
            assert_zero(7, 1);    // second page of features
            assert_zero(7, 2);    // and what is to come
            assert_zero(9, 0);    // DCA
            assert_zero(0xa, 0);  // PMU
            assert_zero(0xf, 0);  // RDT
            assert_zero(0x10, 0); //
            assert_zero(0x12, 0); // SGX
            assert_zero(0x14, 0); // PT
            assert_zero(0x80000009u, 0);
            assert_int_equal(get(6, 0).eax, BIT(2)); // the LAPIC timer never stops
            // CR4 has nothing that goes with a forbidden feature: LA57 VMXE SMXE PKE CET PKS UINTR.
            assert_int_equal(policy.cr4_allowed & (BIT(12) | BIT(13) | BIT(14) | BIT(19) | BIT(22) |
                                                   BIT(23) | BIT(24) | BIT(25)),
                             0);
        }
}

// A feature that needs another one is not shown without it.
static void test_dependencies(void **state)
{
    (void)state;
    // XCR0 without AVX.
    everything();
    machine.xcr0 = 3;
    cpuid_policy_init(&policy, 1, GHZ, host);
    assert_int_equal(policy.xcr0_allowed, 3);
    assert_int_equal(get(1, 0).ecx & (BIT(12) | BIT(28) | BIT(29)), 0);         // FMA AVX F16C
    assert_int_equal(get(7, 0).ebx & (BIT(5) | BIT(16) | BIT(30)), 0);          // AVX2 AVX-512
    assert_int_equal(get(7, 0).ecx & (BIT(1) | BIT(9) | BIT(10) | BIT(11)), 0); // VBMI VAES ...
    assert_int_not_equal(get(1, 0).ecx & BIT(26), 0);
    // AVX-512 without one of its parts in XCR0, or without the feature.
    static const uint64_t parts[] = {0x27, 0x47, 0x87, 0xc7, 0xa7, 0x67, 0xe3};
    for (unsigned i = 0; i < ARRAY_SIZE(parts); i++) {
        everything();
        machine.xcr0 = parts[i];
        cpuid_policy_init(&policy, 1, GHZ, host);
        assert_int_equal(policy.xcr0_allowed, parts[i] & 7);
        assert_int_equal(get(7, 0).ebx & 0xd0230000, 0);
        assert_int_equal(get(7, 0).ecx & 0x5842, 0);
    }
    everything();
    machine.seven.ebx &= ~BIT(16);
    cpuid_policy_init(&policy, 1, GHZ, host);
    assert_int_equal(policy.xcr0_allowed, 7);
    assert_int_equal(get(7, 0).ebx & 0xd0230000, 0);
    // RDPID is enabled together with RDTSCP.
    everything();
    machine.ext1.edx &= ~BIT(27);
    cpuid_policy_init(&policy, 1, GHZ, host);
    assert_false(policy.rdtscp);
    assert_int_equal(get(7, 0).ecx & BIT(22), 0);
    assert_int_equal(get(0x80000001u, 0).edx & BIT(27), 0);
    everything();
    machine.seven.ebx &= ~BIT(10);
    cpuid_policy_init(&policy, 1, GHZ, host);
    assert_false(policy.invpcid);
    assert_true(policy.rdtscp);
    // Each bit of CR4 with its feature, and only with it.
    static const struct {
        uint32_t *reg;
        unsigned bit, cr4;
    } cr4[] = {
        {&machine.seven.ecx, 2, 11}, {&machine.seven.ebx, 0, 16}, {&machine.one.ecx, 17, 17},
        {&machine.one.ecx, 26, 18},  {&machine.seven.ebx, 7, 20}, {&machine.seven.ebx, 20, 21},
    };
    init(everything, 1);
    uint32_t all = policy.cr4_allowed;
    for (unsigned i = 0; i < ARRAY_SIZE(cr4); i++) {
        everything();
        *cr4[i].reg &= ~BIT(cr4[i].bit);
        cpuid_policy_init(&policy, 1, GHZ, host);
        assert_int_equal(policy.cr4_allowed, all & ~BIT(cr4[i].cr4));
    }
}

// OSXSAVE is what the guest's CR4 says, not the machine's.
static void test_osxsave(void **state)
{
    (void)state;
    for (unsigned m = 0; m < ARRAY_SIZE(machines); m++) {
        init(machines[m], 1);
        assert_int_equal(cpuid_policy_get(&policy, 1, 0, 0, 0, 0).ecx & BIT(27), 0);
        assert_int_equal(cpuid_policy_get(&policy, 1, 0, 0, ~(UINT64_C(1) << 18), 0).ecx & BIT(27),
                         0);
        assert_int_equal(cpuid_policy_get(&policy, 1, 0, 0, BIT(18), 0).ecx & BIT(27), BIT(27));
        // It is the only difference, and nothing else looks at CR4.
        for (uint32_t leaf = 0; leaf < 0x20; leaf++) {
            struct cpuid_leaf a = cpuid_policy_get(&policy, leaf, 0, 0, 0, 0);
            struct cpuid_leaf b = cpuid_policy_get(&policy, leaf, 0, 0, BIT(18), 0);
            if (leaf == 1)
                b.ecx &= ~BIT(27);
            assert_memory_equal(&a, &b, sizeof(a));
        }
    }
}

// --- Leaves out of range ---

static void test_range(void **state)
{
    (void)state;
    for (unsigned m = 0; m < ARRAY_SIZE(machines); m++) {
        init(machines[m], 3);
        struct cpuid_leaf zero = get(0, 0);
        assert_int_equal(zero.eax, 0x16);
        assert_int_equal(zero.ebx, 0x756e6547);
        assert_int_equal(zero.ecx, 0x6c65746e);
        assert_int_equal(zero.edx, 0x49656e69);
        // Beyond the last basic leaf: the last one's answer (SDM vol. 2, CPUID).
        struct cpuid_leaf last = get(0x16, 0);
        static const uint32_t beyond[] = {0x17,   0x18,       0x19,       0x20,
                                          0x1000, 0x3fffffff, 0x50000000, 0x7fffffff};
        for (unsigned i = 0; i < ARRAY_SIZE(beyond); i++) {
            struct cpuid_leaf r = get(beyond[i], i);
            assert_memory_equal(&r, &last, sizeof(r));
        }
        // The hypervisor's range: its own two leaves, KVM's two, and nothing else.
        struct cpuid_leaf h = get(0x40000000u, 0);
        char signature[13] = {0};
        memcpy(signature, &h.ebx, 12);
        assert_memory_equal(signature, "FusorFusor\0\0", 13);
        assert_int_equal(h.eax, 0x40000001u);
        // Version 1, hints, statistics, balloon and free pages, lists of 512; whatever the machine
        // and the subleaf.
        for (uint32_t subleaf = 0; subleaf < 3; subleaf++) {
            struct cpuid_leaf f = get(0x40000001u, subleaf), s = get(0x40000000u, subleaf);
            assert_int_equal(f.eax, 1);
            assert_int_equal(f.ebx, BIT(0) | BIT(1) | BIT(2) | BIT(3));
            assert_int_equal(f.ecx, 512);
            assert_int_equal(f.edx, 0);
            assert_memory_equal(&s, &h, sizeof(s));
        }
        assert_false(cpuid_policy_is_constant(0x40000001u));
        assert_zero(0x40000002u, 0);
        struct cpuid_leaf kvm = get(0x40000100u, 0);
        assert_memory_equal(&kvm.ebx, "KVMKVMKVM\0\0\0", 12);
        assert_int_equal(kvm.eax, 0x40000101u);
        // No I/O delay, steal time, PV EOI, PV TLB flush, PV IPI.
        assert_int_equal(get(0x40000101u, 0).eax, 1u << 1 | 1u << 5 | 1u << 6 | 1u << 9 | 1u << 11);
        assert_int_equal(get(0x40000101u, 0).edx, 0);
        assert_zero(0x40000102u, 0);
        assert_zero(0x4fffffffu, 0);
        // Extended leaves end at 0x80000008.
        assert_int_equal(get(0x80000000u, 0).eax, 0x80000008u);
        assert_zero(0x80000009u, 0);
        assert_zero(0x8000000au, 0); // SVM
        assert_zero(0x8000001du, 0);
        assert_zero(0xc0000000u, 0);
        assert_zero(0xffffffffu, 0xffffffffu);
        // Subleaves.
        assert_zero(4, CPUID_SUBLEAVES);
        assert_zero(4, 0xffffffffu);
        assert_zero(7, 0xffffffffu);
        assert_zero(0xd, CPUID_SUBLEAVES);
        assert_zero(0xd, 0xffffffffu);
        // Leaves without subleaves do not care.
        struct cpuid_leaf a = get(1, 0), b = get(1, 7);
        assert_memory_equal(&a, &b, sizeof(a));
    }
}

static void test_extended(void **state)
{
    (void)state;
    init(skylake_server, 1);
    for (uint32_t leaf = 0x80000002u; leaf <= 0x80000004u; leaf++)
        assert_int_equal(get(leaf, 0).eax, leaf); // the brand string
    assert_int_equal(get(0x80000008u, 0).eax, 0x302e);
    assert_int_equal(get(0x80000008u, 0).ebx, 0);
    init(everything, 1);
    assert_int_equal(get(0x80000007u, 0).edx, BIT(8)); // invariant TSC alone
    assert_int_equal(get(0x80000007u, 0).eax | get(0x80000007u, 0).ebx | get(0x80000007u, 0).ecx,
                     0);
    // EPT of four levels translates 48 bits; without LA57 the linear width is 48, too.
    static const uint32_t sizes[][2] = {{0x3034, 0x3030},     {0x3934, 0x3030},
                                        {0x3930, 0x3030},     {0x3027, 0x3027},
                                        {0x00303934, 0x3030}, {0x00303027, 0x3027}};
    for (unsigned i = 0; i < ARRAY_SIZE(sizes); i++) {
        everything();
        machine.ext8 = (struct cpuid_leaf){sizes[i][0], ~0u, ~0u, ~0u};
        cpuid_policy_init(&policy, 1, GHZ, host);
        assert_int_equal(get(0x80000008u, 0).eax, sizes[i][1]);
        assert_int_equal(
            get(0x80000008u, 0).ebx | get(0x80000008u, 0).ecx | get(0x80000008u, 0).edx, 0);
    }
    // A machine whose leaves end before gets the least that 64-bit CPUs have.
    init(poor, 1);
    assert_int_equal(get(0x80000008u, 0).eax, 0x3024);
    assert_zero(0x80000007u, 0);
}

// --- XSAVE ---

static void test_xsave(void **state)
{
    (void)state;
    init(haswell, 1);
    assert_int_equal(policy.xcr0_allowed, 7);
    struct cpuid_leaf d = get(0xd, 0);
    assert_int_equal(d.eax, 7);
    assert_int_equal(d.ebx, 832); // of the present XCR0
    assert_int_equal(cpuid_policy_get(&policy, 0xd, 0, 0, 0, 3).ebx, 576);
    assert_int_equal(get(0xd, 1).ebx, 0); // no XSAVEC
    assert_int_equal(d.ecx, 832);
    assert_int_equal(d.edx, 0);
    assert_int_equal(get(0xd, 1).eax, 1);
    assert_int_equal(get(0xd, 2).eax, 256);
    assert_int_equal(get(0xd, 2).ebx, 576);
    for (uint32_t i = 3; i < 64; i++)
        assert_zero(0xd, i);
    assert_int_equal(cpuid_policy_xsave_size(&policy, 1), 576);
    assert_int_equal(cpuid_policy_xsave_size(&policy, 3), 576);
    assert_int_equal(cpuid_policy_xsave_size(&policy, 7), 832);

    init(skylake_server, 1);
    assert_int_equal(policy.xcr0_allowed, 0xe7); // neither MPX nor PKRU
    assert_int_equal(get(0xd, 0).eax, 0xe7);
    assert_int_equal(get(0xd, 0).ecx, 2688);
    assert_int_equal(cpuid_policy_xsave_size(&policy, 3), 576);
    assert_int_equal(cpuid_policy_xsave_size(&policy, 7), 832);
    assert_int_equal(cpuid_policy_xsave_size(&policy, 0xe7), 2688);
    assert_zero(0xd, 3);
    assert_zero(0xd, 4);
    assert_int_equal(get(0xd, 5).ebx, 1088);
    assert_int_equal(get(0xd, 7).ebx + get(0xd, 7).eax, 2688);
    assert_zero(0xd, 9);
    assert_int_equal(get(0xd, 1).ecx | get(0xd, 1).edx, 0); // IA32_XSS allows nothing

    init(poor, 1);
    assert_int_equal(policy.xcr0_allowed, 0);
    for (uint32_t i = 0; i < 20; i++)
        assert_zero(0xd, i);
    assert_int_equal(get(1, 0).ecx & (BIT(26) | BIT(27)), 0);
}

static uint32_t compacted(uint64_t xcr0)
{
    return cpuid_policy_get(&policy, 0xd, 1, 0, 0, xcr0).ebx;
}

// With XSAVEC the guest asks 0xd.1:EBX for the size of the compacted area; Linux gives up XSAVE
// altogether when it is not what it computes itself.
static void test_xsavec(void **state)
{
    (void)state;
    init(skylake_server, 1);
    assert_int_equal(get(0xd, 1).eax, 7); // XSAVEOPT XSAVEC XGETBV(1); no XSAVES
    assert_int_equal(compacted(1), 576);
    assert_int_equal(compacted(3), 576);
    assert_int_equal(compacted(7), 832);
    assert_int_equal(compacted(0xe7), 576 + 256 + 64 + 512 + 1024);
    // A component that wants it is aligned to 64 bytes.
    struct cpuid_leaf masks = xsave_parts[5], zmm = xsave_parts[6];
    xsave_parts[5].eax = 8;
    init(skylake_server, 1);
    assert_int_equal(compacted(0xe7), 576 + 256 + 8 + 512 + 1024);
    xsave_parts[6].ecx = 2;
    init(skylake_server, 1);
    assert_int_equal(compacted(0xe7), 576 + 256 + 64 + 512 + 1024);
    xsave_parts[5] = masks;
    xsave_parts[6] = zmm;
}

// XSAVE without a word about its state: it cannot be used, so it is not shown.
static void test_xsave_without_leaf(void **state)
{
    (void)state;
    haswell();
    machine.max_basic = 7;
    cpuid_policy_init(&policy, 1, GHZ, host);
    assert_int_equal(policy.xcr0_allowed, 0);
    assert_int_equal(get(1, 0).ecx & (BIT(12) | BIT(26) | BIT(28) | BIT(29)), 0);
    assert_int_equal(policy.cr4_allowed & BIT(18), 0);
}

static void test_xcr0(void **state)
{
    (void)state;
    static const uint64_t good[] = {1, 3, 7, 0xe7};
    static const uint64_t bad[] = {0,         2,
                                   4,         5,
                                   6,         8,
                                   9,         0x0b,
                                   0x1f,      0x27,
                                   0x47,      0x87,
                                   0x67,      0xa7,
                                   0xc7,      0xe3,
                                   0xe1,      0xe5,
                                   0xe6,      0xef,
                                   0xff,      0x107,
                                   0x207,     0x2e7,
                                   0x60007,   UINT64_C(1) << 63 | 7,
                                   UINT64_MAX};
    init(skylake_server, 1);
    for (unsigned i = 0; i < ARRAY_SIZE(good); i++)
        assert_true(cpuid_policy_xcr0_valid(&policy, good[i]));
    for (unsigned i = 0; i < ARRAY_SIZE(bad); i++)
        assert_false(cpuid_policy_xcr0_valid(&policy, bad[i]));
    init(haswell, 1);
    for (unsigned i = 0; i < ARRAY_SIZE(good); i++)
        assert_int_equal(cpuid_policy_xcr0_valid(&policy, good[i]), good[i] != 0xe7);
    for (unsigned i = 0; i < ARRAY_SIZE(bad); i++)
        assert_false(cpuid_policy_xcr0_valid(&policy, bad[i]));
    // SDM vol. 1, 13.3, for all values of the low byte.
    init(everything, 1);
    for (uint64_t x = 0; x < 1024; x++) {
        bool valid = (x & 1) != 0 && (x & 0x318) == 0 && ((x & 4) == 0 || (x & 2) != 0) &&
                     ((x & 0xe0) == 0 || ((x & 0xe0) == 0xe0 && (x & 4) != 0));
        assert_int_equal(cpuid_policy_xcr0_valid(&policy, x), valid);
    }
    init(poor, 1);
    for (uint64_t x = 0; x < 16; x++)
        assert_false(cpuid_policy_xcr0_valid(&policy, x));
}

// --- Topology ---

// As Linux reads it: leaf 0xb must give every vCPU a core of its own in one package.
static void test_topology(void **state)
{
    (void)state;
    for (unsigned vcpus = 1; vcpus <= 16; vcpus++) {
        init(skylake_server, vcpus);
        assert_int_equal(get(1, 0).ebx >> 16 & 0xff, vcpus);
        assert_int_equal(get(1, 0).ebx >> 8 & 0xff, 8); // CLFLUSH: 64 bytes
        assert_int_equal(get(1, 0).edx >> 28 & 1, vcpus > 1);
        struct cpuid_leaf thread = get(0xb, 0), core = get(0xb, 1), end = get(0xb, 2);
        assert_int_equal(thread.eax, 0);
        assert_int_equal(thread.ebx, 1);
        assert_int_equal(thread.ecx, 0x100);
        assert_int_equal(core.ebx, vcpus);
        assert_int_equal(core.ecx, 0x201);
        assert_int_equal(end.eax | end.ebx, 0);
        assert_int_equal(end.ecx, 2);
        assert_int_equal(get(0xb, 0x1234).ecx, 0x34);
        assert_int_equal(get(0xb, 0x1234).ebx, 0);
        // The shift is the least that brings all ids to package 0.
        assert_int_equal((vcpus - 1) >> core.eax, 0);
        if (core.eax != 0)
            assert_int_not_equal((vcpus - 1) >> (core.eax - 1), 0);
        for (uint32_t id = 0; id < vcpus; id++) {
            assert_int_equal(cpuid_policy_get(&policy, 1, 0, id, 0, 0).ebx >> 24, id);
            for (uint32_t subleaf = 0; subleaf < 4; subleaf++)
                assert_int_equal(cpuid_policy_get(&policy, 0xb, subleaf, id, 0, 0).edx, id);
        }
        // Caches: none shared; cores enough in the package; then the end.
        for (uint32_t i = 0; i < 3; i++) {
            struct cpuid_leaf c = get(4, i);
            assert_int_equal(c.eax & 0x3fff, 0x121 + i * 0x20);
            assert_int_equal(c.eax >> 14 & 0xfff, 0);
            assert_true((c.eax >> 26) + 1 >= vcpus);
            assert_int_equal(c.ebx, 0x01c0003f);
            assert_int_equal(c.ecx, 0x3f);
        }
        assert_int_equal(get(4, 3).eax & 0x1f, 0);
    }
    assert_int_equal(get(0, 0).eax, 0x16);
    init(poor, 2); // leaf 4 is there, 0xb is ours
    assert_int_equal(get(4, 0).eax & 0x1f, 1);
    assert_int_equal(get(0xb, 1).ebx, 2);
}

// --- Frequencies ---

static void test_frequency(void **state)
{
    (void)state;
    static const uint64_t hz[] = {1000000,       100000000,     1193182000,
                                  2100000000,    2893202000,    4294967295u,
                                  4294967296ull, 4300000000ull, 5000000000ull};
    for (unsigned i = 0; i < ARRAY_SIZE(hz); i++) {
        haswell();
        cpuid_policy_init(&policy, 1, hz[i], host);
        struct cpuid_leaf tsc = get(0x15, 0), cpu = get(0x16, 0);
        assert_int_equal(cpu.eax, hz[i] / 1000000);
        assert_int_equal(cpu.ebx, hz[i] / 1000000);
        assert_int_equal(cpu.ecx, 100);
        assert_int_equal(cpu.edx, 0);
        assert_int_equal(tsc.edx, 0);
        // TSC = ECX * EBX / EAX. Either right to the Hertz, or (ECX = 0) left to leaf 0x16; never
        // wrong.
        if (tsc.ecx != 0) {
            assert_int_not_equal(tsc.eax, 0);
            assert_int_equal((uint64_t)tsc.ecx * tsc.ebx / tsc.eax, hz[i]);
        } else {
            assert_true(hz[i] > UINT32_MAX);
        }
    }
}

int main(void)
{
    static const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_features),
        cmocka_unit_test(test_forbidden),
        cmocka_unit_test(test_dependencies),
        cmocka_unit_test(test_osxsave),
        cmocka_unit_test(test_range),
        cmocka_unit_test(test_extended),
        cmocka_unit_test(test_xsave),
        cmocka_unit_test(test_xsavec),
        cmocka_unit_test(test_xsave_without_leaf),
        cmocka_unit_test(test_xcr0),
        cmocka_unit_test(test_topology),
        cmocka_unit_test(test_frequency),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
