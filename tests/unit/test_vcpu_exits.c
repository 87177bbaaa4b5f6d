// SPDX-License-Identifier: BSD-2-Clause
// sources: vmx/exits.c vmx/events.c vmx/control_registers.c vmx/registers.c vmx/port_io.c
// sources: vmx/cpuid.c kernel/format.c
// Exit handlers on a pretended VMCS: where RIP goes, what a control register may become, and
// whether the next VM entry would find a guest state that the CPU accepts (SDM vol. 3, 27.3.1).
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <stdlib.h>
#include <string.h>

#include "ept/ept.h"
#include "fake.h"
#include "kernel/error.h"
#include "kernel/irq.h"
#include "kernel/log.h"
#include "kernel/string.h"
#include "vmx/apicv.h"
#include "vmx/capability.h"
#include "vmx/cpuid.h"
#include "vmx/events.h"
#include "vmx/exits.h"
#include "vmx/instructions.h"
#include "vmx/msr.h"
#include "vmx/msrs.h"

#define CR0_PE   UINT64_C(0x1)
#define CR0_NE   UINT64_C(0x20)
#define CR0_PG   UINT64_C(0x80000000)
#define CR4_PAE  UINT64_C(0x20)
#define CR4_MCE  UINT64_C(0x40)
#define CR4_VMXE UINT64_C(0x2000)

#define RFLAGS_TF  UINT64_C(0x100)
#define RFLAGS_IF  UINT64_C(0x200)
#define PENDING_BS UINT64_C(0x4000)

#define CODE64 0xa09bu
#define CODE32 0xc09bu
#define TSS16  0x83u
#define TSS32  0x8bu

// --- The rooms around ---

struct vmx_capability vmx_capability;
static bool yield_wanted;
static unsigned crashes;
static uint8_t memory[4 * PAGE_SIZE];
static struct cpuid_policy policy;
static struct vcpu vcpu;

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
    assert_true(in_guest);
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
    assert_int_equal(cpu, 0);
    return yield_wanted;
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
    return EPT_FAULT_RETRY;
}

enum vcpu_result vcpu_exit_rdmsr(struct vcpu *v)
{
    (void)v;
    return VCPU_RESUME;
}

enum vcpu_result vcpu_exit_wrmsr(struct vcpu *v)
{
    (void)v;
    return VCPU_RESUME;
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

static int write_memory(struct vcpu *v, gpa_t to, const void *from, size_t size)
{
    (void)v;
    if (to.raw > sizeof(memory) || size > sizeof(memory) - to.raw)
        return E_RANGE;
    memcpy(memory + to.raw, from, size);
    return 0;
}

static unsigned port_accesses;

static uint32_t pio_in(struct vcpu *v, uint16_t port, unsigned size)
{
    (void)v;
    (void)port;
    (void)size;
    port_accesses++;
    return 0x55;
}

static void pio_out(struct vcpu *v, uint16_t port, unsigned size, uint32_t value)
{
    (void)v;
    (void)port;
    (void)size;
    (void)value;
    port_accesses++;
}

static bool nmi_pending;

static bool take_nmi(struct vcpu *v, bool accept)
{
    (void)v;
    bool pending = nmi_pending;
    nmi_pending = pending && !accept;
    return pending;
}

static int interrupt(struct vcpu *v, bool accept)
{
    (void)v;
    (void)accept;
    return -1;
}

static const struct vcpu_ops ops = {
    .take_nmi = take_nmi,
    .interrupt = interrupt,
    .crashed = crashed,
    .read_memory = read_memory,
    .write_memory = write_memory,
    .pio_in = pio_in,
    .pio_out = pio_out,
};

static struct cpuid_leaf machine_cpuid(uint32_t leaf, uint32_t subleaf)
{
    (void)subleaf;
    switch (leaf) {
    case 0:
        return (struct cpuid_leaf){.eax = 1};
    case 1:
        return (struct cpuid_leaf){.ecx = 1u << 17, .edx = ~0u}; // PCID
    case 0x80000000u:
        return (struct cpuid_leaf){.eax = 0x80000008u};
    case 0x80000008u:
        return (struct cpuid_leaf){.eax = 0x3027}; // 39 bits physical, 48 linear
    default:
        return (struct cpuid_leaf){0};
    }
}

// 64-bit code in ring 0.
static int setup(void **state)
{
    (void)state;
    fake_machine(16 * MIB, 1);
    memset(fake_vmcs, 0, sizeof(fake_vmcs));
    memset(memory, 0, sizeof(memory));
    memset(&vcpu, 0, sizeof(vcpu));
    yield_wanted = false;
    crashes = port_accesses = 0;
    vmx_capability = (struct vmx_capability){.cr4_fixed0 = CR4_VMXE};
    cpuid_policy_init(&policy, 1, 1000000000, machine_cpuid);
    vcpu.ops = &ops;
    vcpu.cpuid = &policy;
    vcpu.entry_controls = ENTRYC_IA32E_GUEST;
    vmcs_write(VMCS_GUEST_CS_ACCESS, CODE64);
    vmcs_write(VMCS_GUEST_TR_ACCESS, TSS32);
    vmcs_write(VMCS_GUEST_CR0, CR0_PG | CR0_NE | CR0_PE);
    vmcs_write(VMCS_CR0_SHADOW, CR0_PG | CR0_NE | CR0_PE);
    vmcs_write(VMCS_GUEST_CR4, CR4_PAE | CR4_MCE | CR4_VMXE);
    vmcs_write(VMCS_CR4_SHADOW, CR4_PAE);
    vmcs_write(VMCS_GUEST_EFER, EFER_LME | EFER_LMA);
    vmcs_write(VMCS_GUEST_RFLAGS, 2);
    vmcs_write(VMCS_GUEST_RIP, 0x1000);
    return 0;
}

static enum vcpu_result leave(unsigned reason, uint64_t qualification, unsigned length)
{
    vmcs_write(VMCS_EXIT_REASON, reason);
    vmcs_write(VMCS_EXIT_QUALIFICATION, qualification);
    vmcs_write(VMCS_EXIT_INSTRUCTION_LENGTH, length);
    return vcpu_exit_handlers[reason].handle(&vcpu);
}

static uint32_t raised(uint8_t vector, bool has_error)
{
    return INFO_VALID | INFO_HARDWARE_EXCEPTION | vector | (has_error ? INFO_ERROR_CODE : 0);
}

// --- RIP ---

static void int1(uint64_t rip, uint32_t code_access)
{
    vcpu.requeue_info = 0;
    vmcs_write(VMCS_GUEST_RIP, rip);
    vmcs_write(VMCS_GUEST_CS_ACCESS, code_access);
    vmcs_write(VMCS_EXIT_INTERRUPTION_INFO, INFO_VALID | 5u << 8 | 1);
    assert_int_equal(leave(EXIT_EXCEPTION_OR_NMI, 0, 1), VCPU_RESUME);
    assert_int_equal(vcpu.requeue_info, raised(1, false));
}

// INT1 needs no privilege, and any 64-bit program can jump to 32-bit code. Were RIP left beyond 32
// bits there, VM entry would refuse the state (SDM vol. 3, 27.3.1.4).
static void test_int1_wraps_with_the_code_size(void **state)
{
    (void)state;
    int1(0xffffffff, CODE32);
    assert_int_equal(vmcs_read(VMCS_GUEST_RIP), 0);
    int1(0x2000, CODE32);
    assert_int_equal(vmcs_read(VMCS_GUEST_RIP), 0x2001);
    int1(0xffffffff, CODE64);
    assert_int_equal(vmcs_read(VMCS_GUEST_RIP), UINT64_C(0x100000000));
    assert_int_equal(vmcs_read(VMCS_GUEST_PENDING_DEBUG), 0);
}

static void test_int1_ends_a_shadow(void **state)
{
    (void)state;
    vmcs_write(VMCS_GUEST_RFLAGS, 2 | RFLAGS_TF);
    vmcs_write(VMCS_GUEST_INTERRUPTIBILITY, BLOCKING_MOV_SS);
    int1(0x1000, CODE64);
    assert_int_equal(vmcs_read(VMCS_GUEST_INTERRUPTIBILITY), 0);
    // The step was over with the delivery, which clears TF.
    assert_int_equal(vmcs_read(VMCS_GUEST_PENDING_DEBUG) & PENDING_BS, 0);
}

// At 0xffffffff of 32-bit code, and where 64-bit code must not read its base (SDM vol. 3, 3.2.4).
static void test_linear_rip(void **state)
{
    (void)state;
    vmcs_write(VMCS_GUEST_RIP, 0xfffffff0);
    vmcs_write(VMCS_GUEST_CS_BASE, 0x100);
    assert_int_equal(vcpu_linear_rip(&vcpu), 0xfffffff0);
    vmcs_write(VMCS_GUEST_CS_ACCESS, CODE32);
    assert_int_equal(vcpu_linear_rip(&vcpu), 0xf0);
}

// --- HLT, and the shadow of STI ---

static void halt(uint64_t rflags)
{
    vcpu.halted = false;
    vmcs_write(VMCS_GUEST_RFLAGS, rflags);
    vmcs_write(VMCS_GUEST_PENDING_DEBUG, 0);
    vmcs_write(VMCS_GUEST_INTERRUPTIBILITY, BLOCKING_STI);
    assert_int_equal(leave(EXIT_HLT, 0, 1), VCPU_RESUME);
    assert_int_equal(vmcs_read(VMCS_GUEST_INTERRUPTIBILITY), 0);
}

// A debug exception ends HLT (SDM vol. 2, HLT), and the trap of a single step comes right behind
// the instruction: a guest that is stepped over HLT does not sleep.
static void test_hlt(void **state)
{
    (void)state;
    halt(2 | RFLAGS_IF);
    assert_true(vcpu.halted);
    halt(2 | RFLAGS_IF | RFLAGS_TF);
    assert_false(vcpu.halted);
    assert_int_equal(vmcs_read(VMCS_GUEST_PENDING_DEBUG), PENDING_BS);
    // Seen in the shadow of MOV SS, and held back until now: breakpoint 0.
    vcpu.halted = false;
    vmcs_write(VMCS_GUEST_RFLAGS, 2);
    vmcs_write(VMCS_GUEST_PENDING_DEBUG, 0x1001);
    vmcs_write(VMCS_GUEST_INTERRUPTIBILITY, BLOCKING_MOV_SS);
    leave(EXIT_HLT, 0, 1);
    assert_false(vcpu.halted);
}

// OUTSB, INSB with REP, paging off: memory at RSI or RDI is read as it is.
static void string_io(bool in, uint64_t count)
{
    vmcs_write(VMCS_GUEST_CR0, CR0_NE | CR0_PE);
    vmcs_write(VMCS_GUEST_CS_ACCESS, CODE32);
    vcpu.entry_controls = 0;
    vmcs_write(VMCS_GUEST_RIP, 0x1000);
    vmcs_write(VMCS_GUEST_LINEAR_ADDRESS, 0x100);
    vmcs_write(VMCS_EXIT_INSTRUCTION_INFO, 1u << 7); // 32-bit addresses
    vcpu.gpr[REG_RCX] = count;
    assert_int_equal(leave(EXIT_IO, 0x80u << 16 | 1u << 5 | 1u << 4 | (in ? 1u << 3 : 0), 2),
                     VCPU_RESUME);
}

// Each iteration is a boundary at which interrupts and the single-step trap come in (SDM vol. 2,
// REP; vol. 3, 18.3.1.4); the shadow of the STI before is over after the first.
static void test_each_iteration_ends_a_shadow(void **state)
{
    (void)state;
    for (unsigned in = 0; in < 2; in++) {
        vmcs_write(VMCS_GUEST_INTERRUPTIBILITY, BLOCKING_STI);
        vmcs_write(VMCS_GUEST_RFLAGS, 2 | RFLAGS_IF);
        vmcs_write(VMCS_GUEST_PENDING_DEBUG, 0);
        string_io(in != 0, 3);
        assert_int_equal(vcpu.gpr[REG_RCX], 2);
        assert_int_equal(vmcs_read(VMCS_GUEST_RIP), 0x1000);
        assert_int_equal(vmcs_read(VMCS_GUEST_INTERRUPTIBILITY), 0);
        assert_int_equal(vmcs_read(VMCS_GUEST_PENDING_DEBUG), 0);
        vmcs_write(VMCS_GUEST_RFLAGS, 2 | RFLAGS_IF | RFLAGS_TF);
        string_io(in != 0, 2);
        assert_int_equal(vmcs_read(VMCS_GUEST_RIP), 0x1000);
        assert_int_equal(vmcs_read(VMCS_GUEST_PENDING_DEBUG), PENDING_BS);
        string_io(in != 0, 1);
        assert_int_equal(vmcs_read(VMCS_GUEST_RIP), 0x1002);
    }
    assert_int_equal(port_accesses, 6);
}

// --- NMIs ---

static void nmi_comes_in(uint32_t blocking)
{
    nmi_pending = true;
    vcpu.nmi_delivered = false;
    vcpu.event_loaded = false;
    vcpu.primary = 0;
    vmcs_write(VMCS_PRIMARY_CONTROLS, 0);
    vmcs_write(VMCS_ENTRY_INTERRUPTION_INFO, 0);
    vmcs_write(VMCS_GUEST_RFLAGS, 2 | RFLAGS_IF);
    vmcs_write(VMCS_GUEST_INTERRUPTIBILITY, blocking);
    vcpu_prepare_events(&vcpu);
}

// A CPU may take a NMI-window exit in the shadow of STI, where the NMI cannot be injected yet (SDM
// vol. 3, 26.2): the guest would never execute another instruction. The interrupt window opens
// behind the shadow, for IF is set there.
static void test_nmi_in_the_shadow_of_sti(void **state)
{
    (void)state;
    nmi_comes_in(BLOCKING_STI);
    assert_int_equal(vmcs_read(VMCS_ENTRY_INTERRUPTION_INFO), 0);
    assert_int_equal(vmcs_read(VMCS_PRIMARY_CONTROLS), CPU_INTERRUPT_WINDOW);
    vmcs_write(VMCS_GUEST_INTERRUPTIBILITY, 0);
    leave(EXIT_INTERRUPT_WINDOW, 0, 0);
    assert_int_equal(vcpu.recheck, 1);
    vcpu_prepare_events(&vcpu);
    assert_int_equal(vmcs_read(VMCS_ENTRY_INTERRUPTION_INFO), INFO_VALID | INFO_NMI | 2);
    assert_int_equal(vmcs_read(VMCS_PRIMARY_CONTROLS), CPU_NMI_WINDOW); // until its IRET
}

// MOV SS keeps the window shut, and IF says nothing.
static void test_nmi_in_the_shadow_of_mov_ss(void **state)
{
    (void)state;
    nmi_comes_in(BLOCKING_MOV_SS);
    assert_int_equal(vmcs_read(VMCS_ENTRY_INTERRUPTION_INFO), 0);
    assert_int_equal(vmcs_read(VMCS_PRIMARY_CONTROLS), CPU_NMI_WINDOW);
}

// --- Kicks ---

static void nmi_exit(void)
{
    vmcs_write(VMCS_EXIT_INTERRUPTION_INFO, INFO_VALID | INFO_NMI | 2);
    assert_int_equal(leave(EXIT_EXCEPTION_OR_NMI, 0, 0), VCPU_RESUME);
}

// The scheduler's NMI, too, finds the CPU in the guest: the vCPU must look around before it goes
// back, or whoever was woken up waits for the end of the slice.
static void test_nmi_for_the_scheduler_is_heard(void **state)
{
    (void)state;
    nmi_exit(); // a shootdown's: nothing to look at
    assert_int_equal(vcpu.recheck, 0);
    yield_wanted = true;
    nmi_exit();
    assert_int_equal(vcpu.recheck, 1);
}

// --- Control registers ---

static void write_cr(unsigned cr, uint64_t value)
{
    vcpu.requeue_info = 0;
    vcpu.gpr[REG_RDI] = value;
    assert_int_equal(leave(EXIT_CR_ACCESS, cr | (unsigned)REG_RDI << 8, 3), VCPU_RESUME);
}

static bool refused(void)
{
    return vcpu.requeue_info == raised(13, true);
}

// 32-bit code, no paging.
static void leave_long_mode(void)
{
    vcpu.entry_controls = 0;
    vmcs_write(VMCS_GUEST_CS_ACCESS, CODE32);
    vmcs_write(VMCS_GUEST_CR0, CR0_NE | CR0_PE);
    vmcs_write(VMCS_CR0_SHADOW, CR0_NE | CR0_PE);
    vmcs_write(VMCS_GUEST_EFER, 0);
}

// SDM vol. 2, MOV to CR0: #GP, for a 16-bit TSS cannot be in TR in long mode; VM entry would
// refuse it (vol. 3, 27.3.1.2).
static void test_long_mode_needs_a_32_bit_tss(void **state)
{
    (void)state;
    leave_long_mode();
    vmcs_write(VMCS_GUEST_EFER, EFER_LME);
    vmcs_write(VMCS_GUEST_TR_ACCESS, TSS16);
    write_cr(0, CR0_PG | CR0_NE | CR0_PE);
    assert_true(refused());
    assert_int_equal(vmcs_read(VMCS_GUEST_CR0), CR0_NE | CR0_PE);
    assert_int_equal(vmcs_read(VMCS_GUEST_EFER), EFER_LME);
    vmcs_write(VMCS_GUEST_TR_ACCESS, TSS32);
    write_cr(0, CR0_PG | CR0_NE | CR0_PE);
    assert_false(refused());
    assert_int_equal(vcpu.entry_controls, ENTRYC_IA32E_GUEST);
    assert_int_equal(vmcs_read(VMCS_GUEST_EFER), EFER_LME | EFER_LMA);
    // It does not matter where long mode does not begin.
    leave_long_mode();
    vmcs_write(VMCS_GUEST_TR_ACCESS, TSS16);
    vmcs_write(VMCS_GUEST_CR4, CR4_MCE | CR4_VMXE);
    write_cr(0, CR0_PG | CR0_NE | CR0_PE);
    assert_false(refused());
}

// Bits of PDPTEs from the physical address width on are reserved, too (SDM vol. 3, 4.4.1); the
// pretended machine has 39.
static void test_pdptes(void **state)
{
    static const struct {
        uint64_t entry;
        bool good;
    } cases[] = {
        {1, true},
        {0, true},
        {0x7ffffff001, true},
        {0x7ffffff019, true}, // PWT, PCD
        {0x3, false},
        {0x1e1, false},
        {UINT64_C(1) << 39 | 1, false},
        {UINT64_C(1) << 51 | 1, false},
        {UINT64_C(1) << 63 | 1, false},
        {UINT64_C(1) << 39, true}, // not present: ignored
    };
    (void)state;
    for (unsigned i = 0; i < ARRAY_SIZE(cases); i++) {
        leave_long_mode();
        memcpy(memory + 0x40 + 16, &cases[i].entry, sizeof(uint64_t));
        vmcs_write(VMCS_GUEST_CR3, 0x40);
        vmcs_write(VMCS_GUEST_PDPTE0 + 4, 0);
        write_cr(0, CR0_PG | CR0_NE | CR0_PE);
        assert_int_equal(refused(), !cases[i].good);
        assert_int_equal(vmcs_read(VMCS_GUEST_PDPTE0 + 4), cases[i].good ? cases[i].entry : 0);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup(test_int1_wraps_with_the_code_size, setup),
        cmocka_unit_test_setup(test_int1_ends_a_shadow, setup),
        cmocka_unit_test_setup(test_linear_rip, setup),
        cmocka_unit_test_setup(test_hlt, setup),
        cmocka_unit_test_setup(test_each_iteration_ends_a_shadow, setup),
        cmocka_unit_test_setup(test_nmi_in_the_shadow_of_sti, setup),
        cmocka_unit_test_setup(test_nmi_in_the_shadow_of_mov_ss, setup),
        cmocka_unit_test_setup(test_nmi_for_the_scheduler_is_heard, setup),
        cmocka_unit_test_setup(test_long_mode_needs_a_32_bit_tss, setup),
        cmocka_unit_test_setup(test_pdptes, setup),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
