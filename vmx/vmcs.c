// SPDX-License-Identifier: BSD-2-Clause
// One vCPU's VMCS: allocation, power-on state, loading onto a CPU and off it again.
//
// FPU, the SYSCALL MSRs and the debug registers are swapped here and not at every exit: Fusor is
// built for general registers only and uses none of them, so between load and unload they stay the
// guest's. Only simd_begin/simd_end borrow the vector registers meanwhile; they are told whose
// state is there.
#include "vmx/vmcs.h"

#include <arch/host_state.h>

#include "kernel/error.h"
#include "kernel/frames.h"
#include "kernel/heap.h"
#include "kernel/memory.h"
#include "kernel/simd.h"
#include "kernel/string.h"
#include "vmx/apicv.h"
#include "vmx/capability.h"
#include "vmx/cpuid.h"
#include "vmx/instructions.h"
#include "vmx/msr.h"
#include "vmx/msrs.h"
#include "vmx/startup.h"

extern void vmx_exit(void); // vmx/entry.asm

static const uint32_t lazy_numbers[LAZY_MSRS] = {
    [LAZY_STAR] = MSR_STAR,
    [LAZY_LSTAR] = MSR_LSTAR,
    [LAZY_CSTAR] = MSR_CSTAR,
    [LAZY_SFMASK] = MSR_SFMASK,
    [LAZY_KERNEL_GS] = MSR_KERNEL_GS_BASE,
    [LAZY_TSC_AUX] = MSR_TSC_AUX,
};

// VPIDs are unique machine-wide; 0 is Fusor's own.
static uint64_t vpid_used[1024];
static struct spinlock vpid_lock = SPINLOCK_INIT("vpid", RANK_HEAP);

static int vpid_alloc(uint16_t *out)
{
    int status = E_NOMEM;
    spin_lock(&vpid_lock);
    vpid_used[0] |= 1;
    for (unsigned i = 0; i < ARRAY_SIZE(vpid_used); i++) {
        if (~vpid_used[i] == 0)
            continue;
        unsigned bit = (unsigned)__builtin_ctzll(~vpid_used[i]);
        vpid_used[i] |= UINT64_C(1) << bit;
        *out = (uint16_t)(i * 64 + bit);
        status = 0;
        break;
    }
    spin_unlock(&vpid_lock);
    return status;
}

static void vpid_free(uint16_t vpid)
{
    spin_lock(&vpid_lock);
    vpid_used[vpid / 64] &= ~(UINT64_C(1) << vpid % 64);
    spin_unlock(&vpid_lock);
}

int vcpu_init(struct vcpu *v, uint32_t id, void *vm, struct ept *ept, const struct vcpu_ops *ops,
              const struct cpuid_policy *cpuid)
{
    memset(v, 0, sizeof(*v));
    if (!vmx_available())
        return E_NOSYS;
    v->id = id;
    v->vm = vm;
    v->ept = ept;
    v->ops = ops;
    v->cpuid = cpuid;
    v->vmcs_cpu = -1;
    v->stop = 1;
    v->fpu = heap_alloc(MAX(vmx_capability.xsave_bytes, 4096u)); // from 4 KiB up page-aligned
    if (v->fpu == NULL)
        return E_NOMEM;
    hfn_t frame;
    if (frame_alloc(FRAME_FUSOR, 0, FRAME_ZEROED, NULL, &frame) != 0) {
        heap_free(v->fpu);
        return E_NOMEM;
    }
    v->vmcs = hfn_to_hpa(frame);
    if (vpid_alloc(&v->vpid) != 0 || vcpu_make_vapic(v) != 0) {
        if (v->vpid != 0)
            vpid_free(v->vpid);
        frame_free(frame, 0, NULL);
        heap_free(v->fpu);
        return E_NOMEM;
    }
    sched_entity_init(&v->entity, v->name, vcpu_run);
    v->entity.off = true;
    sched_add(&v->entity);
    return 0;
}

void vcpu_free(struct vcpu *v)
{
    vpid_free(v->vpid);
    vcpu_free_vapic(v);
    frame_free(hpa_to_hfn(v->vmcs), 0, NULL);
    heap_free(v->fpu);
    v->fpu = NULL;
}

static void write_segment(enum vmcs_field selector_field, uint16_t selector, uint32_t access)
{
    // The six user segments, LDTR and TR have their fields in the same order in each group.
    unsigned i = selector_field - VMCS_GUEST_ES_SELECTOR;
    vmcs_write(selector_field, selector);
    vmcs_write((enum vmcs_field)(VMCS_GUEST_ES_BASE + i), 0);
    vmcs_write((enum vmcs_field)(VMCS_GUEST_ES_LIMIT + i), access & 0x8000 ? 0xffffffffu : 0xffffu);
    vmcs_write((enum vmcs_field)(VMCS_GUEST_ES_ACCESS + i), access);
}

static void write_guest_state(struct vcpu *v, const struct vcpu_start *start)
{
    // 64-bit code; writable data; busy 64-bit TSS; LDTR unusable (SDM vol. 3, 27.3.1.2).
    write_segment(VMCS_GUEST_CS_SELECTOR, start->code_selector, 0xa09b);
    static const enum vmcs_field data[] = {VMCS_GUEST_DS_SELECTOR, VMCS_GUEST_ES_SELECTOR,
                                           VMCS_GUEST_SS_SELECTOR, VMCS_GUEST_FS_SELECTOR,
                                           VMCS_GUEST_GS_SELECTOR};
    for (unsigned i = 0; i < ARRAY_SIZE(data); i++)
        write_segment(data[i], start->data_selector, 0xc093);
    write_segment(VMCS_GUEST_TR_SELECTOR, 0, 0x008b);
    write_segment(VMCS_GUEST_LDTR_SELECTOR, 0, 0x10000);
    vmcs_write(VMCS_GUEST_GDTR_BASE, start->gdt_base);
    vmcs_write(VMCS_GUEST_GDTR_LIMIT, start->gdt_limit);
    vmcs_write(VMCS_GUEST_IDTR_BASE, 0);
    vmcs_write(VMCS_GUEST_IDTR_LIMIT, 0);
    uint64_t cr0 = 0x80000031; // PG NE ET PE
    vmcs_write(VMCS_GUEST_CR0, cr0);
    vmcs_write(VMCS_CR0_SHADOW, cr0);
    vmcs_write(VMCS_CR0_MASK, vcpu_cr0_owned());
    uint64_t cr4 = 0x20; // PAE
    vmcs_write(VMCS_GUEST_CR4, cr4 | vcpu_cr4_forced());
    vmcs_write(VMCS_CR4_SHADOW, cr4);
    vmcs_write(VMCS_CR4_MASK, vcpu_cr4_owned(v));
    vmcs_write(VMCS_GUEST_CR3, start->cr3);
    vmcs_write(VMCS_GUEST_EFER, EFER_LME | EFER_LMA);
    vmcs_write(VMCS_GUEST_PAT, UINT64_C(0x0007040600070406)); // power-on value
    vmcs_write(VMCS_GUEST_DEBUGCTL, 0);
    vmcs_write(VMCS_GUEST_DR7, 0x400);
    vmcs_write(VMCS_GUEST_RIP, start->rip);
    vmcs_write(VMCS_GUEST_RSP, start->rsp);
    vmcs_write(VMCS_GUEST_RFLAGS, 2);
    vmcs_write(VMCS_GUEST_INTERRUPTIBILITY, 0);
    vmcs_write(VMCS_GUEST_ACTIVITY, 0);
    vmcs_write(VMCS_GUEST_PENDING_DEBUG, 0);
    vmcs_write(VMCS_GUEST_SYSENTER_CS, 0);
    vmcs_write(VMCS_GUEST_SYSENTER_ESP, 0);
    vmcs_write(VMCS_GUEST_SYSENTER_EIP, 0);
    vmcs_write(VMCS_LINK_POINTER, UINT64_MAX);
}

static void write_controls(struct vcpu *v)
{
    const struct vmx_capability *c = &vmx_capability;
    uint32_t secondary = c->secondary;
    // Exactly when CPUID shows them, else the guest gets #UD.
    if (!v->cpuid->rdtscp)
        secondary &= ~CPU2_RDTSCP;
    if (!v->cpuid->invpcid)
        secondary &= ~CPU2_INVPCID;
    // A vCPU alone waits for nobody.
    if (cpuid_policy_vcpus(v->cpuid) == 1)
        secondary &= ~CPU2_PAUSE_LOOP;
    v->ple_window = 0;
    if ((secondary & CPU2_PAUSE_LOOP) != 0) {
        v->ple_window = PLE_WINDOW_LEAST;
        vmcs_write(VMCS_PLE_GAP, PLE_GAP);
        vmcs_write(VMCS_PLE_WINDOW, v->ple_window);
    }
    v->primary = c->primary;
    v->secondary = secondary;
    v->apicv = false; // the LAPIC begins in xAPIC mode
    v->apic_mode_written = false;
    v->entry_controls = c->entry | ENTRYC_IA32E_GUEST;
    vmcs_write(VMCS_PIN_CONTROLS, c->pin);
    vmcs_write(VMCS_PRIMARY_CONTROLS, v->primary);
    vmcs_write(VMCS_SECONDARY_CONTROLS, secondary);
    vmcs_write(VMCS_EXIT_CONTROLS, c->exit);
    vmcs_write(VMCS_ENTRY_CONTROLS, v->entry_controls);
    // #DB and #AC exit because their delivery can loop in microcode for ever (CVE-2015-5307,
    // CVE-2015-8104); #MC because it may be about any memory.
    vmcs_write(VMCS_EXCEPTION_BITMAP, 1u << 1 | 1u << 17 | 1u << 18);
    vmcs_write(VMCS_PAGE_FAULT_MASK, 0);
    vmcs_write(VMCS_PAGE_FAULT_MATCH, 0);
    vmcs_write(VMCS_CR3_TARGET_COUNT, 0);
    vmcs_write(VMCS_EXIT_MSR_STORE_COUNT, 0);
    vmcs_write(VMCS_EXIT_MSR_LOAD_COUNT, 0);
    vmcs_write(VMCS_ENTRY_MSR_LOAD_COUNT, 0);
    vmcs_write(VMCS_ENTRY_INTERRUPTION_INFO, 0);
    vmcs_write(VMCS_MSR_BITMAP, vcpu_msr_bitmap(v->cpuid->rdtscp, false).raw);
    vmcs_write(VMCS_VPID, v->vpid);
    vmcs_write(VMCS_EPT_POINTER, v->ept->eptp);
}

// What is the same on every CPU. The rest follows in write_host_cpu.
static void write_host_state(void)
{
    vmcs_write(VMCS_HOST_CR3, cpu_read_cr3());
    vmcs_write(VMCS_HOST_PAT, cpu_read_msr(MSR_PAT));
    vmcs_write(VMCS_HOST_EFER, cpu_read_msr(MSR_EFER));
    vmcs_write(VMCS_HOST_SYSENTER_CS, 0);
    vmcs_write(VMCS_HOST_SYSENTER_ESP, 0);
    vmcs_write(VMCS_HOST_SYSENTER_EIP, 0);
    vmcs_write(VMCS_HOST_CS_SELECTOR, HOST_CS);
    vmcs_write(VMCS_HOST_SS_SELECTOR, HOST_SS);
    vmcs_write(VMCS_HOST_DS_SELECTOR, 0);
    vmcs_write(VMCS_HOST_ES_SELECTOR, 0);
    vmcs_write(VMCS_HOST_FS_SELECTOR, 0);
    vmcs_write(VMCS_HOST_GS_SELECTOR, 0);
    vmcs_write(VMCS_HOST_FS_BASE, 0);
    vmcs_write(VMCS_HOST_RIP, (uintptr_t)vmx_exit);
}

static void write_host_cpu(void)
{
    struct arch_host_state host;
    arch_host_state(&host);
    vmcs_write(VMCS_HOST_CR0, cpu_read_cr0());
    vmcs_write(VMCS_HOST_CR4, cpu_read_cr4());
    vmcs_write(VMCS_HOST_TR_SELECTOR, host.tr);
    vmcs_write(VMCS_HOST_TR_BASE, host.tr_base);
    vmcs_write(VMCS_HOST_GDTR_BASE, host.gdtr_base);
    vmcs_write(VMCS_HOST_IDTR_BASE, host.idtr_base);
    vmcs_write(VMCS_HOST_GS_BASE, (uintptr_t)this_cpu());
}

void vmcs_setup(struct vcpu *v, const struct vcpu_start *start)
{
    write_controls(v);
    write_host_state();
    if (start != NULL) {
        write_guest_state(v, start);
    } else {
        write_guest_state(v, &(struct vcpu_start){0}); // what INIT leaves alone
        vcpu_write_init_state(v);
    }
}

static void fpu_restore(const struct vcpu *v)
{
    uint64_t all = vmx_capability.xcr0;
    if (vmx_capability.xsave) {
        __asm__ volatile("xsetbv" ::"c"(0), "a"((uint32_t)all), "d"((uint32_t)(all >> 32)));
        __asm__ volatile("xrstor64 (%0)" ::"r"(v->fpu), "a"((uint32_t)all),
                         "d"((uint32_t)(all >> 32))
                         : "memory");
        __asm__ volatile("xsetbv" ::"c"(0), "a"((uint32_t)v->xcr0), "d"((uint32_t)(v->xcr0 >> 32)));
    } else {
        __asm__ volatile("fxrstor64 (%0)" ::"r"(v->fpu) : "memory");
    }
}

static void fpu_save(struct vcpu *v)
{
    uint64_t all = vmx_capability.xcr0;
    if (vmx_capability.xsave) {
        __asm__ volatile("xsetbv" ::"c"(0), "a"((uint32_t)all), "d"((uint32_t)(all >> 32)));
        __asm__ volatile("xsave64 (%0)" ::"r"(v->fpu), "a"((uint32_t)all),
                         "d"((uint32_t)(all >> 32))
                         : "memory");
    } else {
        __asm__ volatile("fxsave64 (%0)" ::"r"(v->fpu) : "memory");
    }
}

// Power-on FPU: XRSTOR takes components whose XSTATE_BV bit is clear from their initial state, but
// loads MXCSR from memory (SDM vol. 1, 13.8.1); FXRSTOR takes all.
static void fpu_reset(struct vcpu *v)
{
    memset(v->fpu, 0, MAX(vmx_capability.xsave_bytes, 576u));
    *(uint16_t *)v->fpu = 0x37f;
    *(uint32_t *)((uint8_t *)v->fpu + 24) = 0x1f80;
    v->xcr0 = 1;
}

static uint64_t last_vm[MAX_CPUS]; // id of the VM that ran on each CPU last

// What one VM left in predictors, caches and buffers is not the next one's to measure. (Siblings of
// a hyperthreaded core that run different VMs at once are not separated.)
static void separate(const struct vcpu *v, int cpu)
{
    if (last_vm[cpu] == v->ept->vm_id)
        return;
    last_vm[cpu] = v->ept->vm_id;
    if (vmx_capability.ibpb)
        cpu_write_msr(MSR_PRED_CMD, 1);
    if (vmx_capability.flush_l1d)
        cpu_write_msr(MSR_FLUSH_CMD, 1);
    if (vmx_capability.verw) {
        uint16_t selector = HOST_SS;
        __asm__ volatile("verw %0" ::"m"(selector) : "cc");
    }
}

void vcpu_load(struct vcpu *v)
{
    CHECK(vmx_load(v->vmcs));
    int cpu = (int)cpu_index();
    write_host_cpu();
    separate(v, cpu);
    // Another CPU may have run it since; stale entries of this VPID must not be met again here.
    if (v->vmcs_cpu != cpu) {
        vmx_invvpid(v->vpid);
        v->vmcs_cpu = cpu;
    }
    for (unsigned i = 0; i < LAZY_MSRS; i++)
        if (i != LAZY_TSC_AUX || v->cpuid->rdtscp)
            cpu_write_msr(lazy_numbers[i], v->lazy_msr[i]);
    __asm__ volatile(
        "mov %0, %%db0; mov %1, %%db1; mov %2, %%db2; mov %3, %%db3" ::"r"(v->debug[0]),
        "r"(v->debug[1]), "r"(v->debug[2]), "r"(v->debug[3]));
    __asm__ volatile("mov %0, %%db6" ::"r"(v->dr6));
    cpu_write_cr2(v->cr2);
    fpu_restore(v);
    simd_set_owner(v->fpu, &v->xcr0);
    vmcs_write(VMCS_TSC_OFFSET, v->tsc_offset);
    if (v->ple_window > PLE_WINDOW_LEAST) {
        v->ple_window = PLE_WINDOW_LEAST;
        vmcs_write(VMCS_PLE_WINDOW, v->ple_window);
    }
}

void vcpu_unload(struct vcpu *v)
{
    simd_set_owner(NULL, NULL);
    fpu_save(v);
    v->cr2 = cpu_read_cr2();
    __asm__ volatile("mov %%db0, %0; mov %%db1, %1; mov %%db2, %2; mov %%db3, %3"
                     : "=r"(v->debug[0]), "=r"(v->debug[1]), "=r"(v->debug[2]), "=r"(v->debug[3]));
    __asm__ volatile("mov %%db6, %0" : "=r"(v->dr6));
    for (unsigned i = 0; i < LAZY_MSRS; i++)
        if (i != LAZY_TSC_AUX || v->cpuid->rdtscp)
            v->lazy_msr[i] = cpu_read_msr(lazy_numbers[i]);
    CHECK(vmx_clear(v->vmcs));
    v->launched = false; // VMCLEAR makes the launch state clear
}

int vcpu_reset(struct vcpu *v, const struct vcpu_start *start)
{
    void *fpu = v->fpu;
    memset(v->gpr, 0, sizeof(v->gpr));
    memset(v->lazy_msr, 0, sizeof(v->lazy_msr));
    memset(v->debug, 0, sizeof(v->debug));
    memset(v->mtrr_variable, 0, sizeof(v->mtrr_variable));
    memset(v->mtrr_fixed, 0, sizeof(v->mtrr_fixed));
    v->fpu = fpu;
    v->dr6 = 0xffff0ff0;
    v->cr2 = 0;
    v->mtrr_def_type = 0xc06; // enabled, write-back
    v->misc_enable = 1;       // fast strings
    v->requeue_info = 0;
    v->nmi_delivered = false;
    v->event_loaded = false;
    v->eoi_armed = false;
    v->entered = false;
    v->halted = false;
    v->parked = start == NULL;
    v->startup = 0;
    v->waiting_memory = false;
    v->retries_memory = false;
    v->recheck = 1;
    v->next_timer = 0;
    v->tsc_adjust = 0;
    if (start != NULL)
        v->gpr[REG_RSI] = start->rsi;
    v->vmcs_cpu = -1;
    fpu_reset(v);
    *(uint32_t *)hpa_to_pointer(v->vmcs) = vmx_capability.revision;
    bool irq = cpu_irq_enabled();
    cpu_irq_disable();
    bool good = vmx_clear(v->vmcs) && vmx_load(v->vmcs);
    if (good) {
        vmcs_setup(v, start);
        good = vmx_clear(v->vmcs);
    }
    v->launched = false;
    if (irq)
        cpu_irq_enable();
    return good ? 0 : E_IO;
}
