// SPDX-License-Identifier: BSD-2-Clause
// Model-specific registers Fusor and its guests' policy know (SDM vol. 4).
#pragma once

#define MSR_TSC               0x10u
#define MSR_PLATFORM_ID       0x17u
#define MSR_APIC_BASE         0x1bu
#define MSR_FEATURE_CONTROL   0x3au
#define MSR_TSC_ADJUST        0x3bu
#define MSR_BIOS_SIGN_ID      0x8bu
#define MSR_MTRR_CAP          0xfeu
#define MSR_PRED_CMD          0x49u
#define MSR_FLUSH_CMD         0x10bu
#define MSR_ARCH_CAPABILITIES 0x10au
#define MSR_MISC_FEATURES     0x140u
#define MSR_SYSENTER_CS       0x174u
#define MSR_SYSENTER_ESP      0x175u
#define MSR_SYSENTER_EIP      0x176u
#define MSR_MCG_CAP           0x179u
#define MSR_MCG_STATUS        0x17au
#define MSR_MISC_ENABLE       0x1a0u
#define MSR_MTRR_PHYS_BASE0   0x200u
#define MSR_MTRR_FIX_64K      0x250u
#define MSR_MTRR_FIX_LAST     0x26fu
#define MSR_PAT               0x277u
#define MSR_MTRR_DEF_TYPE     0x2ffu
#define MSR_MC0_STATUS        0x401u
#define MSR_MC0_ADDR          0x402u
#define MSR_VMX_BASIC         0x480u
#define MSR_VMX_PIN           0x481u
#define MSR_VMX_CPU           0x482u
#define MSR_VMX_EXIT          0x483u
#define MSR_VMX_ENTRY         0x484u
#define MSR_VMX_MISC          0x485u
#define MSR_VMX_CR0_FIXED0    0x486u
#define MSR_VMX_CR0_FIXED1    0x487u
#define MSR_VMX_CR4_FIXED0    0x488u
#define MSR_VMX_CR4_FIXED1    0x489u
#define MSR_VMX_CPU2          0x48bu
#define MSR_VMX_EPT_VPID_CAP  0x48cu
#define MSR_VMX_TRUE_PIN      0x48du
#define MSR_VMX_TRUE_CPU      0x48eu
#define MSR_VMX_TRUE_EXIT     0x48fu
#define MSR_VMX_TRUE_ENTRY    0x490u
#define MSR_TSC_DEADLINE      0x6e0u
#define MSR_X2APIC_FIRST      0x800u
#define MSR_X2APIC_LAST       0x8ffu
#define MSR_KVM_FIRST         0x4b564d00u
#define MSR_KVM_LAST          0x4b564dffu
#define MSR_EFER              0xc0000080u
#define MSR_STAR              0xc0000081u
#define MSR_LSTAR             0xc0000082u
#define MSR_CSTAR             0xc0000083u
#define MSR_SFMASK            0xc0000084u
#define MSR_FS_BASE           0xc0000100u
#define MSR_GS_BASE           0xc0000101u
#define MSR_KERNEL_GS_BASE    0xc0000102u
#define MSR_TSC_AUX           0xc0000103u

#define EFER_SCE (1u << 0)
#define EFER_LME (1u << 8)
#define EFER_LMA (1u << 10)
#define EFER_NXE (1u << 11)
