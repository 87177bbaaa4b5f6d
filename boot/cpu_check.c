// SPDX-License-Identifier: BSD-2-Clause
// Whether this CPU can run Fusor. The kernel checks every CPU again when it switches VMX on; here
// the point is a clear answer while the firmware is still there to return to.
//
// Numbers are those of the Intel SDM: section 24.6 to 24.8 (controls) and appendix A
// (capabilities).
#include "boot/boot.h"

#include "kernel/format.h"
#include "kernel/string.h"

#define MSR_FEATURE_CONTROL  0x3au
#define MSR_VMX_BASIC        0x480u
#define MSR_VMX_PIN          0x481u
#define MSR_VMX_PRIMARY      0x482u
#define MSR_VMX_EXIT         0x483u
#define MSR_VMX_ENTRY        0x484u
#define MSR_VMX_SECONDARY    0x48bu
#define MSR_VMX_EPT_VPID     0x48cu
#define MSR_VMX_TRUE_PIN     0x48du
#define MSR_VMX_TRUE_PRIMARY 0x48eu
#define MSR_VMX_TRUE_EXIT    0x48fu
#define MSR_VMX_TRUE_ENTRY   0x490u

#define FEATURE_CONTROL_LOCKED          (1u << 0)
#define FEATURE_CONTROL_VMX_OUTSIDE_SMX (1u << 2)

#define PRIMARY_SECONDARY_CONTROLS (1u << 31)
#define PRIMARY_IO_EXITING         (1u << 24)
#define PRIMARY_IO_BITMAPS         (1u << 25)
#define SECONDARY_EPT              (1u << 1)
#define SECONDARY_UNRESTRICTED     (1u << 7)

#define CR4_LA57 (UINT64_C(1) << 12)

struct requirement {
    uint32_t bits; // any of them will do
    const char *name;
};

static const struct requirement pin_controls[] = {
    {1u << 0, "external-interrupt exiting"},
    {1u << 3, "NMI exiting"},
    {0, NULL},
};

static const struct requirement primary_controls[] = {
    {1u << 3, "TSC offsetting"},
    {1u << 7, "HLT exiting"},
    {PRIMARY_IO_EXITING | PRIMARY_IO_BITMAPS, "I/O exiting"},
    {1u << 28, "MSR bitmaps"},
    {0, NULL},
};

static const struct requirement exit_controls[] = {
    {1u << 9, "host address-space size on exit"},
    {1u << 15, "acknowledge interrupt on exit"},
    {1u << 18, "save IA32_PAT on exit"},
    {1u << 19, "load IA32_PAT on exit"},
    {1u << 20, "save IA32_EFER on exit"},
    {1u << 21, "load IA32_EFER on exit"},
    {0, NULL},
};

static const struct requirement entry_controls[] = {
    {1u << 9, "IA-32e mode guest on entry"},
    {1u << 14, "load IA32_PAT on entry"},
    {1u << 15, "load IA32_EFER on entry"},
    {0, NULL},
};

static const struct requirement ept_capabilities[] = {
    {1u << 6, "4-level EPT"},
    {1u << 14, "write-back EPT tables"},
    {1u << 20, "INVEPT"},
    {0, NULL},
};

// Appends to the list "a, b, c" in `text` the name of every requirement that `allowed` lacks.
static void list_missing(const struct requirement *r, uint32_t allowed, char text[REASON_SIZE])
{
    for (; r->name != NULL; r++) {
        size_t used = strlen(text);

        if ((allowed & r->bits) == 0) {
            format_text(text + used, REASON_SIZE - used, "%s%s", used > 0 ? ", " : "", r->name);
        }
    }
}

// The bits of a control that may be 1: the upper half of its capability MSR.
static uint32_t allowed_ones(uint32_t msr)
{
    return (uint32_t)(rdmsr(msr) >> 32);
}

static void read_vendor(char vendor[13])
{
    struct cpuid r = cpuid(0, 0);

    memcpy(vendor, &r.ebx, 4);
    memcpy(vendor + 4, &r.edx, 4);
    memcpy(vendor + 8, &r.ecx, 4);
    vendor[12] = '\0';
}

// The processor brand string without the blanks some CPUs begin it with; the vendor where there is
// none.
static void read_model(char model[49])
{
    char brand[49] = "";
    const char *start = brand;
    size_t length;

    read_vendor(model);
    if (cpuid(0x80000000u, 0).eax < 0x80000004u) {
        return;
    }
    for (uint32_t i = 0; i < 3; i++) {
        struct cpuid r = cpuid(0x80000002u + i, 0);

        memcpy(brand + 16 * i, &r, sizeof(r));
    }
    brand[48] = '\0';
    while (*start == ' ') {
        start++;
    }
    length = strlen(start);
    while (length > 0 && start[length - 1] == ' ') {
        length--;
    }
    if (length > 0) {
        memcpy(model, start, length);
        model[length] = '\0';
    }
}

bool cpu_check_base(char reason[REASON_SIZE])
{
    uint64_t cr4;

    if (cpuid(0x80000000u, 0).eax < 0x80000001u || (cpuid(0x80000001u, 0).edx & 1u << 20) == 0) {
        format_text(reason, REASON_SIZE,
                    "the CPU has no execute-disable bit (NX), or the firmware switched it off");
        return false;
    }
    __asm__ volatile("mov %%cr4, %0" : "=r"(cr4));
    if ((cr4 & CR4_LA57) != 0) {
        // The paging depth can only be changed outside long mode.
        format_text(reason, REASON_SIZE,
                    "the firmware runs with 5-level paging; switch it off in the firmware setup");
        return false;
    }
    return true;
}

static bool check_vmx(char reason[REASON_SIZE])
{
    char model[49];
    char vendor[13];
    uint64_t feature_control;

    read_vendor(vendor);
    read_model(model);
    if (memcmp(vendor, "AuthenticAMD", 12) == 0 || memcmp(vendor, "HygonGenuine", 12) == 0) {
        format_text(reason, REASON_SIZE,
                    "this is an AMD CPU (%s); Fusor needs Intel VT-x, AMD-V is not supported",
                    model);
        return false;
    }
    // Before any VMX MSR: on a CPU without VMX they do not exist.
    if ((cpuid(1, 0).ecx & 1u << 5) == 0) {
        format_text(reason, REASON_SIZE, "the CPU (%s) has no VT-x", model);
        return false;
    }
    feature_control = rdmsr(MSR_FEATURE_CONTROL);
    // Unlocked is fine: the kernel then sets and locks it on every CPU.
    if ((feature_control & FEATURE_CONTROL_LOCKED) != 0 &&
        (feature_control & FEATURE_CONTROL_VMX_OUTSIDE_SMX) == 0) {
        format_text(reason, REASON_SIZE,
                    "VT-x is locked off by the firmware; enable it in the firmware setup "
                    "(Intel Virtualization Technology)");
        return false;
    }
    return true;
}

bool cpu_check_virtualization(char reason[REASON_SIZE])
{
    char missing[REASON_SIZE] = "";
    uint32_t primary, secondary;
    bool has_true;

    if (!check_vmx(reason)) {
        return false;
    }
    has_true = (rdmsr(MSR_VMX_BASIC) & UINT64_C(1) << 55) != 0;
    primary = allowed_ones(has_true ? MSR_VMX_TRUE_PRIMARY : MSR_VMX_PRIMARY);
    // Without secondary controls their MSR does not exist, and nor does EPT.
    secondary = (primary & PRIMARY_SECONDARY_CONTROLS) != 0 ? allowed_ones(MSR_VMX_SECONDARY) : 0;
    if ((secondary & SECONDARY_EPT) == 0) {
        format_text(reason, REASON_SIZE, "the CPU's VT-x has no EPT (extended page tables)");
        return false;
    }
    if ((secondary & SECONDARY_UNRESTRICTED) == 0) {
        format_text(reason, REASON_SIZE, "the CPU's VT-x has no unrestricted guest mode");
        return false;
    }

    list_missing(pin_controls, allowed_ones(has_true ? MSR_VMX_TRUE_PIN : MSR_VMX_PIN), missing);
    list_missing(primary_controls, primary, missing);
    list_missing(exit_controls, allowed_ones(has_true ? MSR_VMX_TRUE_EXIT : MSR_VMX_EXIT), missing);
    list_missing(entry_controls, allowed_ones(has_true ? MSR_VMX_TRUE_ENTRY : MSR_VMX_ENTRY),
                 missing);
    list_missing(ept_capabilities, (uint32_t)rdmsr(MSR_VMX_EPT_VPID), missing);
    if (missing[0] != '\0') {
        format_text(reason, REASON_SIZE, "the CPU's VT-x lacks: %s", missing);
        return false;
    }
    return true;
}
