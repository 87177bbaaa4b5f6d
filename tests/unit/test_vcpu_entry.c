// SPDX-License-Identifier: BSD-2-Clause
// sources: vmx/exits.c vmx/events.c vmx/control_registers.c vmx/registers.c vmx/port_io.c
// sources: vmx/msr.c vmx/startup.c vmx/cpuid.c kernel/format.c
// A guest that does at random what changes its state (control registers, EFER, far jumps, LTR,
// debug exceptions, interrupted deliveries, INIT), with the CPU's part of it pretended. Before
// every entry the state has to pass the checks of SDM vol. 3, 27.2.1.3 and 27.3.1: a guest must not
// be able to bring about a VM entry that fails.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "ept/ept.h"
#include "fake.h"
#include "kernel/error.h"
#include "kernel/frames.h"
#include "kernel/irq.h"
#include "kernel/log.h"
#include "vmx/apicv.h"
#include "vmx/capability.h"
#include "vmx/cpuid.h"
#include "vmx/events.h"
#include "vmx/exits.h"
#include "vmx/instructions.h"
#include "vmx/msr.h"
#include "vmx/msrs.h"
#include "vmx/startup.h"

#define ROUNDS 200u
#define STEPS  3000u

#define CR0_PE   UINT64_C(0x1)
#define CR0_ET   UINT64_C(0x10)
#define CR0_NE   UINT64_C(0x20)
#define CR0_PG   UINT64_C(0x80000000)
#define CR4_PAE  UINT64_C(0x20)
#define CR4_MCE  UINT64_C(0x40)
#define CR4_VMXE UINT64_C(0x2000)
#define CR4_PCID UINT64_C(0x20000)

#define RFLAGS_TF UINT64_C(0x100)
#define RFLAGS_IF UINT64_C(0x200)
#define RFLAGS_VM UINT64_C(0x20000)
#define SHADOWS   (BLOCKING_STI | BLOCKING_MOV_SS)

#define PHYSICAL_BITS 39u

static uint8_t memory[8 * PAGE_SIZE];
static struct cpuid_policy policy;
static struct vcpu vcpu;
static int irq;
static bool nmi;
static unsigned crashes;

// --- The rooms around ---

struct vmx_capability vmx_capability;

void vmx_unblock_nmi(void);
void vmx_unblock_nmi(void)
{
}

// No LAPIC here is the CPU's (vmx/apicv.c).
void vcpu_sync_apic(struct vcpu *v, bool *for_nmi, bool *for_interrupt)
{
    (void)v;
    (void)for_nmi;
    (void)for_interrupt;
    abort();
}

enum vcpu_result vcpu_exit_virtualized_eoi(struct vcpu *v)
{
    (void)v;
    abort();
}

enum vcpu_result vcpu_exit_apic_write(struct vcpu *v)
{
    (void)v;
    abort();
}

void irq_handle_nmi(bool in_guest)
{
    (void)in_guest;
}

void irq_dispatch(unsigned vector)
{
    (void)vector;
}

void log_write(enum log_level level, const char *format, ...)
{
    (void)level;
    (void)format;
}

bool sched_must_yield(uint32_t cpu)
{
    (void)cpu;
    return false;
}

bool sched_yield_to_group(struct sched_entity *e, uint64_t until)
{
    (void)e;
    (void)until;
    return false;
}

struct ept_leaf ept_lookup(struct ept *ept, gfn_t gfn)
{
    (void)ept;
    (void)gfn;
    return (struct ept_leaf){0};
}

enum ept_fault_result ept_run_fault_hooks(void *vm, const struct ept_fault *fault)
{
    (void)vm;
    (void)fault;
    return rand() % 2 == 0 ? EPT_FAULT_RETRY : EPT_FAULT_WAIT;
}

int frame_alloc(enum frame_state state, unsigned order, unsigned flags,
                struct frame_account *account, hfn_t *out)
{
    (void)state;
    (void)order;
    (void)flags;
    (void)account;
    (void)out;
    return E_NOMEM;
}

static void crashed(struct vcpu *v, const char *why)
{
    (void)v;
    (void)why;
    crashes++;
}

static int read_memory(struct vcpu *v, gpa_t from, void *to, size_t size)
{
    (void)v;
    if (from.raw > sizeof(memory) || size > sizeof(memory) - from.raw)
        return E_RANGE;
    memcpy(to, memory + from.raw, size);
    return 0;
}

static int interrupt(struct vcpu *v, bool accept)
{
    int vector = irq;
    (void)v;
    if (accept)
        irq = rand() % 4 == 0 ? 0x20 + rand() % 0xe0 : -1;
    return vector;
}

static bool take_nmi(struct vcpu *v, bool accept)
{
    bool pending = nmi;
    (void)v;
    if (accept)
        nmi = false;
    return pending;
}

static uint64_t hypercall(struct vcpu *v)
{
    (void)v;
    return 0;
}

static uint32_t pio_in(struct vcpu *v, uint16_t port, unsigned size)
{
    (void)v;
    (void)port;
    (void)size;
    return 0;
}

static const struct vcpu_ops ops = {
    .crashed = crashed,
    .read_memory = read_memory,
    .interrupt = interrupt,
    .take_nmi = take_nmi,
    .hypercall = hypercall,
    .pio_in = pio_in,
};

static struct cpuid_leaf machine_cpuid(uint32_t leaf, uint32_t subleaf)
{
    (void)subleaf;
    switch (leaf) {
    case 0:
        return (struct cpuid_leaf){.eax = 7};
    case 1:
        return (struct cpuid_leaf){.ecx = 1u << 17, .edx = ~0u}; // PCID
    case 7:
        return (struct cpuid_leaf){.ebx = ~0u, .ecx = ~0u};
    case 0x80000000u:
        return (struct cpuid_leaf){.eax = 0x80000008u};
    case 0x80000001u:
        return (struct cpuid_leaf){.edx = ~0u};
    case 0x80000008u:
        return (struct cpuid_leaf){.eax = 0x3000 | PHYSICAL_BITS};
    default:
        return (struct cpuid_leaf){0};
    }
}

// --- The checks of a VM entry ---

static bool long_code(void)
{
    return (vcpu.entry_controls & ENTRYC_IA32E_GUEST) != 0 &&
           (vmcs_read(VMCS_GUEST_CS_ACCESS) >> 13 & 1) != 0;
}

#define REQUIRE(condition)                                                                         \
    do {                                                                                           \
        if (!(condition))                                                                          \
            return #condition;                                                                     \
    } while (0)

static const char *check_registers(void)
{
    uint64_t cr0 = vmcs_read(VMCS_GUEST_CR0), cr4 = vmcs_read(VMCS_GUEST_CR4);
    uint64_t cr3 = vmcs_read(VMCS_GUEST_CR3), efer = vmcs_read(VMCS_GUEST_EFER);
    uint64_t rip = vmcs_read(VMCS_GUEST_RIP), rflags = vmcs_read(VMCS_GUEST_RFLAGS);
    bool long_mode = (vcpu.entry_controls & ENTRYC_IA32E_GUEST) != 0;
    bool paging = (cr0 & CR0_PG) != 0;
    REQUIRE(vmcs_read(VMCS_ENTRY_CONTROLS) == vcpu.entry_controls);
    REQUIRE((cr0 & CR0_NE) != 0 && (cr0 & ~UINT64_C(0x8005003f)) == 0);
    REQUIRE(!paging || (cr0 & CR0_PE) != 0);
    REQUIRE((cr4 & CR4_VMXE) != 0 && (cr4 & CR4_MCE) != 0);
    REQUIRE((cr4 & ~(policy.cr4_allowed | CR4_VMXE)) == 0);
    REQUIRE((efer & ~UINT64_C(0xd01)) == 0);
    REQUIRE(((efer & EFER_LMA) != 0) == long_mode);
    REQUIRE(!paging || ((efer & EFER_LME) != 0) == long_mode);
    REQUIRE(!long_mode || (paging && (cr4 & CR4_PAE) != 0));
    REQUIRE(long_mode || (cr4 & CR4_PCID) == 0);
    REQUIRE(cr3 >> PHYSICAL_BITS == 0);
    if (paging && (cr4 & CR4_PAE) != 0 && !long_mode)
        for (unsigned i = 0; i < 4; i++) {
            uint64_t pdpte = vmcs_read((enum vmcs_field)(VMCS_GUEST_PDPTE0 + 2 * i));
            REQUIRE((pdpte & 1) == 0 || ((pdpte & 0x1e6) == 0 && pdpte >> PHYSICAL_BITS == 0));
        }
    uint32_t tr = vmcs_read32(VMCS_GUEST_TR_ACCESS) & 0xf;
    REQUIRE(tr == 11 || (tr == 3 && !long_mode));
    uint64_t cs = vmcs_read(VMCS_GUEST_CS_ACCESS);
    REQUIRE(!long_mode || (cs >> 13 & 1) == 0 || (cs >> 14 & 1) == 0);
    REQUIRE(long_code() ? rip >> 48 == 0 || rip >> 48 == 0xffff : rip >> 32 == 0);
    REQUIRE((rflags & 2) != 0 && (rflags & ~UINT64_C(0x3f7fd7)) == 0);
    REQUIRE((rflags & RFLAGS_VM) == 0 || (!long_mode && (cr0 & CR0_PE) != 0));
    return NULL;
}

static bool pushes_error(uint32_t vector)
{
    return vector == 8 || (vector >= 10 && vector <= 14) || vector == 17;
}

static const char *check_event(void)
{
    uint32_t info = vmcs_read32(VMCS_ENTRY_INTERRUPTION_INFO);
    uint32_t blocking = vmcs_read32(VMCS_GUEST_INTERRUPTIBILITY);
    uint64_t pending = vmcs_read(VMCS_GUEST_PENDING_DEBUG);
    uint64_t rflags = vmcs_read(VMCS_GUEST_RFLAGS);
    uint32_t type = INFO_TYPE(info), vector = INFO_VECTOR(info);
    REQUIRE(vmcs_read(VMCS_GUEST_ACTIVITY) == 0);
    REQUIRE((blocking & ~(SHADOWS | BLOCKING_NMI)) == 0 && (blocking & SHADOWS) != SHADOWS);
    REQUIRE((blocking & BLOCKING_STI) == 0 || (rflags & RFLAGS_IF) != 0);
    REQUIRE((pending & ~UINT64_C(0x500f)) == 0);
    REQUIRE((blocking & SHADOWS) == 0 || ((pending & 0x4000) != 0) == ((rflags & RFLAGS_TF) != 0));
    REQUIRE((vcpu.primary & CPU_NMI_WINDOW) == 0 || (vcpu.primary & 1) == 0);
    if ((info & INFO_VALID) == 0)
        return NULL;
    REQUIRE((info & 0x7ffff000u) == 0 && type != 1 && type != 7);
    REQUIRE(type != 2 || vector == 2);
    REQUIRE(type != 3 || vector < 32);
    bool error = type == 3 && pushes_error(vector) && (vmcs_read(VMCS_GUEST_CR0) & CR0_PE) != 0;
    REQUIRE(((info & INFO_ERROR_CODE) != 0) == error);
    uint32_t length = vmcs_read32(VMCS_ENTRY_INSTRUCTION_LENGTH);
    REQUIRE(type < 4 || (length >= 1 && length <= 15));
    REQUIRE((type != 0 && type != 2) || (blocking & SHADOWS) == 0);
    REQUIRE(type != 0 || (rflags & RFLAGS_IF) != 0);
    REQUIRE(type != 2 || (blocking & BLOCKING_NMI) == 0);
    return NULL;
}

// --- The CPU: what a guest does without an exit ---

static uint64_t any(void)
{
    return (uint64_t)rand() << 62 ^ (uint64_t)rand() << 31 ^ (uint64_t)rand();
}

static unsigned below(unsigned n)
{
    return (unsigned)rand() % n;
}

static void leave(unsigned reason, uint64_t qualification, unsigned length, uint32_t vectoring)
{
    vmcs_write(VMCS_EXIT_REASON, reason);
    vmcs_write(VMCS_EXIT_QUALIFICATION, qualification);
    vmcs_write(VMCS_EXIT_INSTRUCTION_LENGTH, length);
    if ((vectoring & INFO_VALID) != 0)
        vcpu_save_interrupted_event(&vcpu, vectoring);
    (void)vcpu_exit_handlers[reason].handle(&vcpu);
}

static void mov_to_cr(unsigned cr, uint64_t value)
{
    vcpu.gpr[REG_RDI] = value;
    leave(EXIT_CR_ACCESS, cr | (unsigned)REG_RDI << 8, 3, 0);
}

static void mov_cr0(void)
{
    uint64_t owned = vcpu_cr0_owned(), cr0 = vmcs_read(VMCS_GUEST_CR0);
    uint64_t value = (cr0 & owned & ~CR0_NE) | (vmcs_read(VMCS_CR0_SHADOW) & CR0_NE);
    value |= cr0 & ~owned;
    for (unsigned flips = 1 + below(3); flips > 0; flips--) {
        static const uint64_t bits[] = {CR0_PE, CR0_PG, CR0_PG, 0x8, 0x10000, 0x60000000, CR0_NE};
        value ^= bits[below(ARRAY_SIZE(bits))];
    }
    if (below(20) == 0)
        value = any();
    if (((value ^ vmcs_read(VMCS_CR0_SHADOW)) & owned) != 0)
        mov_to_cr(0, value);
    else if ((cr0 & CR0_PG) == 0 || (value & CR0_PE) != 0) // else #GP
        vmcs_write(VMCS_GUEST_CR0, (cr0 & owned) | (value & ~owned) | CR0_ET);
}

static void mov_cr4(void)
{
    uint64_t owned = vcpu_cr4_owned(&vcpu), cr4 = vmcs_read(VMCS_GUEST_CR4);
    uint64_t shadow = vmcs_read(VMCS_CR4_SHADOW);
    uint64_t value = (cr4 & ~owned) | (shadow & owned);
    static const uint64_t bits[] = {CR4_PAE, CR4_PAE, CR4_PCID, 0x10, 0x80, CR4_MCE, CR4_VMXE};
    value ^= below(20) == 0 ? any() : bits[below(ARRAY_SIZE(bits))];
    if (((value ^ shadow) & owned) != 0)
        mov_to_cr(4, value);
    else
        vmcs_write(VMCS_GUEST_CR4, (cr4 & owned) | (value & ~owned));
}

static void mov_cr3(void)
{
    uint64_t value = (below(8) * PAGE_SIZE) | (below(4) == 0 ? 0x20u : 0u);
    bool long_mode = (vcpu.entry_controls & ENTRYC_IA32E_GUEST) != 0;
    if ((vmcs_read(VMCS_GUEST_CR0) & CR0_PG) != 0 && !long_mode &&
        (vmcs_read(VMCS_GUEST_CR4) & CR4_PAE) != 0) {
        uint64_t pdpte[4];
        memcpy(pdpte, memory + value, sizeof(pdpte));
        for (unsigned i = 0; i < 4; i++)
            if ((pdpte[i] & 1) != 0 && ((pdpte[i] & 0x1e6) != 0 || pdpte[i] >> PHYSICAL_BITS != 0))
                return; // #GP
        for (unsigned i = 0; i < 4; i++)
            vmcs_write((enum vmcs_field)(VMCS_GUEST_PDPTE0 + 2 * i), pdpte[i]);
    }
    vmcs_write(VMCS_GUEST_CR3, value);
}

static void wrmsr_efer(void)
{
    uint64_t value = vmcs_read(VMCS_GUEST_EFER) ^ (below(2) == 0 ? EFER_LME : EFER_NXE);
    value ^= below(4) == 0 ? EFER_LMA : 0;
    if (below(20) == 0)
        value = any();
    vcpu.gpr[REG_RCX] = MSR_EFER;
    vcpu.gpr[REG_RAX] = (uint32_t)value;
    vcpu.gpr[REG_RDX] = value >> 32;
    leave(EXIT_WRMSR, 0, 2, 0);
}

// 16-, 32- and 64-bit code. L in legacy mode is nothing to a CPU, but it keeps it.
static void far_jump(void)
{
    static const uint32_t codes[] = {0x809b, 0xc09b, 0xa09b};
    if ((vmcs_read(VMCS_GUEST_CR0) & CR0_PE) != 0)
        vmcs_write(VMCS_GUEST_CS_ACCESS, codes[below(ARRAY_SIZE(codes))]);
    vmcs_write(VMCS_GUEST_RIP, 0x1000);
}

static void ltr(void)
{
    bool long_mode = (vcpu.entry_controls & ENTRYC_IA32E_GUEST) != 0;
    if ((vmcs_read(VMCS_GUEST_CR0) & CR0_PE) != 0)
        vmcs_write(VMCS_GUEST_TR_ACCESS, long_mode || below(2) == 0 ? 0x8b : 0x83);
}

// Jumps to where RIP wraps, or does not.
static void near_jump(void)
{
    static const uint64_t ends[] = {0x1000, 0xffff, 0xffffffff, 0x7fffffffffff, UINT64_MAX};
    uint64_t to = ends[below(ARRAY_SIZE(ends))] - below(3);
    vmcs_write(VMCS_GUEST_RIP, long_code() ? to : (uint32_t)to);
}

// Flags as they are at an instruction that exits, and what the CPU saves of them.
static void set_flags(void)
{
    uint64_t rflags = 2 | (below(2) != 0 ? RFLAGS_IF : 0) | (below(3) == 0 ? RFLAGS_TF : 0);
    uint32_t blocking = vmcs_read32(VMCS_GUEST_INTERRUPTIBILITY) & BLOCKING_NMI;
    uint64_t pending = 0;
    if (below(4) == 0) {
        blocking |= BLOCKING_MOV_SS;
        pending = (rflags & RFLAGS_TF) != 0 ? 0x4000 : 0;
        pending |= below(4) == 0 ? 0x1001 : 0;
    } else if ((rflags & (RFLAGS_IF | RFLAGS_TF)) == RFLAGS_IF && below(4) == 0) {
        blocking |= BLOCKING_STI; // with TF the trap comes before the next instruction
    }
    vmcs_write(VMCS_GUEST_RFLAGS, rflags);
    vmcs_write(VMCS_GUEST_INTERRUPTIBILITY, blocking);
    vmcs_write(VMCS_GUEST_PENDING_DEBUG, pending);
}

static void no_shadow(void)
{
    vmcs_write(VMCS_GUEST_INTERRUPTIBILITY,
               vmcs_read32(VMCS_GUEST_INTERRUPTIBILITY) & BLOCKING_NMI);
    vmcs_write(VMCS_GUEST_PENDING_DEBUG, 0);
}

static void exception(uint32_t type, uint32_t vector, uint64_t qualification, unsigned length)
{
    vmcs_write(
        VMCS_EXIT_INTERRUPTION_INFO,
        INFO_VALID | type << 8 | vector |
            (vector == 17 && (vmcs_read(VMCS_GUEST_CR0) & CR0_PE) != 0 ? INFO_ERROR_CODE : 0));
    vmcs_write(VMCS_EXIT_ERROR_CODE, 0);
    leave(EXIT_EXCEPTION_OR_NMI, qualification, length, 0);
}

static void instruction(void)
{
    set_flags();
    switch (below(9)) {
    case 0:
        leave(EXIT_CPUID, 0, 2, 0);
        break;
    case 1:
        leave(EXIT_HLT, 0, 1, 0);
        vcpu.halted = false;
        break;
    case 2:
        leave(EXIT_VMCALL, 0, 3, 0);
        break;
    case 3:
        leave(EXIT_IO, 0x80u << 16 | 1u << 3, 2, 0);
        break;
    case 4: // not allowed: #GP
        vcpu.gpr[REG_RCX] = 0x5fffffff;
        leave(EXIT_RDMSR, 0, 2, 0);
        break;
    case 5:                                      // INT1
        vmcs_write(VMCS_GUEST_PENDING_DEBUG, 0); // a #DB exit saves none (28.3.4)
        exception(5, 1, 0, 1);
        break;
    case 6: { // single step, also behind STI and MOV SS
        uint32_t blocking = vmcs_read32(VMCS_GUEST_INTERRUPTIBILITY);
        if ((blocking & BLOCKING_MOV_SS) == 0 && below(2) == 0) {
            vmcs_write(VMCS_GUEST_RFLAGS, 2 | RFLAGS_IF | RFLAGS_TF);
            vmcs_write(VMCS_GUEST_INTERRUPTIBILITY, blocking | BLOCKING_STI);
        }
        vmcs_write(VMCS_GUEST_PENDING_DEBUG, 0);
        exception(3, 1, 0x4000, 0);
        break;
    }
    case 7:
        exception(3, 17, 0, 0);
        break;
    default:
        leave(EXIT_PREEMPTION_TIMER, 0, 0, 0);
        break;
    }
}

// An EPT violation while an event is delivered.
static void interrupted_delivery(void)
{
    static const uint8_t exceptions[] = {0, 3, 6, 8, 11, 13, 14, 17};
    uint32_t blocking = vmcs_read32(VMCS_GUEST_INTERRUPTIBILITY) & BLOCKING_NMI;
    uint32_t info = INFO_VALID | 1u << 12; // that bit is undefined
    unsigned length = 0;
    no_shadow();
    vmcs_write(VMCS_GUEST_RFLAGS, 2 | RFLAGS_IF);
    switch (below(4)) {
    case 0:
        info |= INFO_EXTERNAL | (0x20 + below(0xe0));
        break;
    case 1: // delivered by us: tracked and, by now, blocking
        if (blocking != 0 || vcpu.nmi_delivered)
            return;
        vcpu.nmi_delivered = true;
        vmcs_write(VMCS_GUEST_INTERRUPTIBILITY, BLOCKING_NMI);
        info |= INFO_NMI | 2;
        break;
    case 2:
        info |= INFO_SOFTWARE_INTERRUPT | 0x80;
        length = 2;
        break;
    default: {
        uint32_t vector = exceptions[below(ARRAY_SIZE(exceptions))];
        bool error = pushes_error(vector) && (vmcs_read(VMCS_GUEST_CR0) & CR0_PE) != 0;
        info |= INFO_HARDWARE_EXCEPTION | vector | (error ? INFO_ERROR_CODE : 0);
        break;
    }
    }
    leave(EXIT_EPT_VIOLATION, below(2) != 0 ? 0x1182 : 0x182, length, info);
}

// The entry takes place: its event is delivered.
static void enter(void)
{
    uint32_t info = vmcs_read32(VMCS_ENTRY_INTERRUPTION_INFO);
    if ((info & INFO_VALID) != 0) {
        no_shadow();
        if (INFO_TYPE(info) == 2)
            vmcs_write(VMCS_GUEST_INTERRUPTIBILITY, BLOCKING_NMI);
        vmcs_write(VMCS_ENTRY_INTERRUPTION_INFO, 0); // the valid bit is cleared by the exit
    }
    vcpu.event_loaded = false;
    if (below(4) == 0) // IRET
        vmcs_write(VMCS_GUEST_INTERRUPTIBILITY,
                   vmcs_read32(VMCS_GUEST_INTERRUPTIBILITY) & ~BLOCKING_NMI);
    if ((vcpu.primary & CPU_NMI_WINDOW) != 0 &&
        (vmcs_read32(VMCS_GUEST_INTERRUPTIBILITY) & (BLOCKING_NMI | SHADOWS)) == 0)
        leave(EXIT_NMI_WINDOW, 0, 0, 0);
}

static void act(void)
{
    switch (below(12)) {
    case 0:
    case 1:
        mov_cr0();
        break;
    case 2:
        mov_cr4();
        break;
    case 3:
        mov_cr3();
        break;
    case 4:
        wrmsr_efer();
        break;
    case 5:
        far_jump();
        break;
    case 6:
        ltr();
        break;
    case 7:
        near_jump();
        break;
    case 8:
        interrupted_delivery();
        break;
    case 9:
        if (below(50) == 0)
            vcpu_write_init_state(&vcpu);
        break;
    default:
        instruction();
        break;
    }
    if (below(5) == 0)
        nmi = true;
    if (below(5) == 0)
        irq = 0x20 + (int)below(0xe0);
}

static void power_on(void)
{
    memset(fake_vmcs, 0, sizeof(fake_vmcs));
    memset(&vcpu, 0, sizeof(vcpu));
    vmx_capability = (struct vmx_capability){.cr4_fixed0 = CR4_VMXE};
    cpuid_policy_init(&policy, 1, 1000000000, machine_cpuid);
    vcpu.ops = &ops;
    vcpu.cpuid = &policy;
    vcpu_write_init_state(&vcpu);
    irq = -1;
    nmi = false;
    for (unsigned page = 0; page < 8; page++) // PDPTEs: good, and bad in one way or another
        for (unsigned i = 0; i < 8; i++) {
            uint64_t entry = below(3) != 0 ? 0x2001 : any() & any() & any();
            memcpy(memory + page * PAGE_SIZE + 8 * i, &entry, sizeof(entry));
        }
}

static void test_no_entry_fails(void **state)
{
    unsigned modes[3] = {0};
    (void)state;
    for (unsigned round = 0; round < ROUNDS; round++) {
        srand(round);
        fake_machine(16 * MIB, 1);
        power_on();
        bool bounced = false;
        for (unsigned step = 0; step < STEPS; step++) {
            if (!bounced)
                act();
            else if (below(10) == 0)
                vcpu_write_init_state(&vcpu);
            vcpu_prepare_events(&vcpu);
            const char *broken = check_registers();
            if (broken == NULL)
                broken = check_event();
            if (broken != NULL)
                fail_msg("round %u step %u: %s", round, step, broken);
            bool paging = (vmcs_read(VMCS_GUEST_CR0) & CR0_PG) != 0;
            bool long_mode = (vcpu.entry_controls & ENTRYC_IA32E_GUEST) != 0;
            modes[long_mode ? 2 : paging ? 1 : 0]++;
            bounced = below(8) == 0; // a kick came first
            if (!bounced)
                enter();
        }
    }
    // Did it get about?
    for (unsigned i = 0; i < ARRAY_SIZE(modes); i++)
        assert_true(modes[i] > ROUNDS * STEPS / 50);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_no_entry_fails)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
