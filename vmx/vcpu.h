// SPDX-License-Identifier: BSD-2-Clause
// A vCPU as VT-x runs it, and what the rooms above answer for it.
//
// A vCPU belongs to one scheduler entity. While it runs, its VMCS, FPU and MSR state are loaded on
// that CPU; they are unloaded before run() returns to the scheduler, so that any CPU may run it
// next. Fields without a comment about others belong to the CPU that runs the vCPU.
#pragma once

#include <stdatomic.h>

#include "ept/ept.h"
#include "kernel/sched.h"
#include "kernel/types.h"
#include "vmx/vapic.h"
#include "vmx/vmcs_fields.h"

struct vcpu;
struct cpuid_policy;

// Register numbers in encoding order (SDM vol. 2, table 2-2).
enum vcpu_register { REG_RAX, REG_RCX, REG_RDX, REG_RBX, REG_RSP, REG_RBP, REG_RSI, REG_RDI };

enum vcpu_result {
    VCPU_RESUME, // go on in the guest
    VCPU_STOP,   // v->stop was set: crashed
    VCPU_WAIT,   // no memory: try again later, the instruction was not executed
};

// What the LAPIC wants of virtual-interrupt delivery, see vmx/apicv.c.
struct vcpu_apic {
    bool on;      // the LAPIC is in a mode that the CPU virtualizes: its state is in v->vapic
    bool changed; // interrupts were added to IRR
    bool reload;  // IRR, ISR or the level-triggered vectors changed otherwise
    bool nmi;     // an NMI is pending
    bool extint;  // so is an interrupt of the PIC, which has to be injected
    bool wakes;   // with v->halted: one of them would interrupt the guest if it let itself be
    uint8_t requested, in_service; // the highest in IRR and ISR, 0: none
    const uint32_t *levels;        // 256 bits: vectors whose EOI somebody waits for
};

// What the rooms above provide. All are called on the CPU that runs the vCPU, interrupts off.
struct vcpu_ops {
    uint32_t (*pio_in)(struct vcpu *v, uint16_t port, unsigned size);
    void (*pio_out)(struct vcpu *v, uint16_t port, unsigned size, uint32_t value);
    // MSRs of the APIC and of KVM's interface; E_INVAL gives the guest #GP, E_NOMEM makes it wait
    // for memory.
    int (*read_msr)(struct vcpu *v, uint32_t msr, uint64_t *value);
    int (*write_msr)(struct vcpu *v, uint32_t msr, uint64_t value);
    uint64_t (*get_cr8)(struct vcpu *v);
    void (*set_cr8)(struct vcpu *v, uint64_t value);
    // Access to device memory: decodes and executes the instruction at RIP. VCPU_STOP after a
    // crash.
    enum vcpu_result (*mmio)(struct vcpu *v, gpa_t address, bool write);
    // Looks whether an interrupt is deliverable; takes it when `accept`. Returns the vector or -1.
    int (*interrupt)(struct vcpu *v, bool accept);
    // With v->apicv or v->apic_mode_written: settles which way the LAPIC goes, and moves what has
    // arrived into v->vapic.
    void (*sync_apic)(struct vcpu *v, struct vcpu_apic *apic);
    // The CPU has done what the guest's EOI asks for, and `vector` is level-triggered.
    void (*virtual_eoi)(struct vcpu *v, uint8_t vector);
    // With v->eoi_armed, after an exit and before another event: looks whether the guest has ended
    // the interrupt that was accepted last; v->eoi_armed says whether this goes on.
    void (*settle_eoi)(struct vcpu *v);
    // With v->tells_guest: the guest sees that the vCPU is put on a CPU and taken off. True: it
    // wants its TLB flushed.
    bool (*loaded)(struct vcpu *v);
    void (*unloaded)(struct vcpu *v);
    bool (*take_nmi)(struct vcpu *v, bool accept); // is an NMI pending? consumed when accept
    // Runs due timers; returns the next deadline in host TSC.
    uint64_t (*run_timers)(struct vcpu *v, uint64_t host_now);
    // The vCPU begins or ends a wait for memory (v->waiting_memory says which): guest time stands
    // still while no vCPU can run.
    void (*wait_memory)(struct vcpu *v, bool begin);
    // Takes what v->startup announced: decides on v->parked and v->tsc_offset. Returns VCPU_GOT_*.
    unsigned (*take_startup)(struct vcpu *v, uint8_t *vector);
    uint64_t (*hypercall)(struct vcpu *v); // returns RAX
    int (*read_memory)(struct vcpu *v, gpa_t from, void *to, size_t size);
    int (*write_memory)(struct vcpu *v, gpa_t to, const void *from, size_t size);
    // The guest did something it does not survive; `why` is one line.
    void (*crashed)(struct vcpu *v, const char *why);
};

// MSRs that are swapped when a vCPU is loaded, not at every exit: Fusor uses none of them.
enum vcpu_lazy_msr {
    LAZY_STAR,
    LAZY_LSTAR,
    LAZY_CSTAR,
    LAZY_SFMASK,
    LAZY_KERNEL_GS,
    LAZY_TSC_AUX,
    LAZY_MSRS
};

// What take_startup() found. Both: an INIT, then a STARTUP.
#define VCPU_GOT_INIT    1u
#define VCPU_GOT_STARTUP 2u // the vCPU waited for it and begins at `vector` << 12

// PAUSE loops (SDM vol. 3, 25.1.3): PAUSEs less than the gap apart are a loop, and one that lasts
// longer than the window exits. The figures are KVM's. A loop that waits for nobody who could be
// helped doubles the window, until the vCPU is loaded anew.
#define PLE_GAP          128u
#define PLE_WINDOW_LEAST 4096u
#define PLE_WINDOW_MOST  (64u * PLE_WINDOW_LEAST)

#define VCPU_NAME_SIZE     40u
#define VCPU_MTRR_VARIABLE 8u
#define VCPU_MTRR_FIXED    11u

struct vcpu {
    // Entry code knows these by offset (vmx/entry.asm).
    uint64_t gpr[16]; // the RSP slot is unused: it lives in the VMCS

    struct sched_entity entity;
    struct ept *ept;
    void *vm;    // for EPT fault hooks
    void *lapic; // for the device models
    const struct vcpu_ops *ops;
    const struct cpuid_policy *cpuid;
    uint32_t id; // number in the VM, LAPIC id
    uint16_t vpid;
    bool launched;
    int vmcs_cpu; // CPU whose TLB may hold entries of this VPID, -1: none yet
    hpa_t vmcs;
    void *fpu; // XSAVE area
    uint64_t xcr0;

    // Set by anyone, read before each entry.
    _Atomic uint32_t recheck; // look around: an event may be pending, stop was set, a HLT came
    _Atomic uint32_t stop;    // leave the guest and report VCPU_STOP
    _Atomic uint32_t retime;  // with recheck: another CPU armed a device timer of this vCPU's
    _Atomic uint32_t startup; // with recheck: an INIT or STARTUP arrived

    uint64_t next_timer; // host TSC of the next device timer
    uint64_t until;      // end of the slice
    uint64_t deadline;   // the earlier of the two
    uint64_t tsc_offset; // guest TSC - host TSC: the VM's clock plus TSC_ADJUST
    uint64_t tsc_adjust;
    uint32_t primary;       // primary controls as in the VMCS
    uint32_t secondary;     // the same, but for APIC virtualization
    struct vapic *vapic;    // NULL: the CPU does not virtualize APICs
    bool apicv;             // it does so for this vCPU now: the LAPIC is in x2APIC mode
    bool apic_mode_written; // that may be otherwise since the last look
    uint32_t entry_controls;
    uint32_t ple_window;   // as in the VMCS, 0: PAUSE loops do not exit
    uint32_t requeue_info; // event to deliver at the next entry, 0: none
    uint32_t requeue_error;
    uint32_t requeue_length;
    bool event_loaded;   // the VMCS holds an event that no entry has delivered yet
    bool entered;        // it has executed its first instruction since the reset
    bool eoi_armed;      // the guest may end its last interrupt without an exit (KVM's PV EOI)
    bool tells_guest;    // the guest wants to know when the vCPU has a CPU (KVM's steal time)
    bool nmi_delivered;  // a guest NMI handler runs
    bool waiting_memory; // the last exit could not be finished for lack of a frame
    // It tries again, for as long as this run lasts: seen from outside it waits still.
    _Atomic bool retries_memory;
    bool retry_quiet;     // so far this retry has brought the guest no event and no timer
    bool nothing_ran;     // with waiting_memory: the guest has executed nothing since it waited
    uint64_t retry_exits; // all exits before it
    struct vcpu_wait {    // the exit that could not be finished last
        uint64_t rip, address;
        uint32_t reason;
    } wait;
    bool halted;
    bool parked; // waits for a STARTUP IPI

    uint64_t lazy_msr[LAZY_MSRS];
    uint64_t debug[4];
    uint64_t dr6;
    uint64_t cr2;
    uint64_t mtrr_def_type;
    uint64_t mtrr_variable[2 * VCPU_MTRR_VARIABLE];
    uint64_t mtrr_fixed[VCPU_MTRR_FIXED];
    uint64_t misc_enable;

    _Atomic uint64_t exits[EXIT_REASONS];
    _Atomic uint64_t unknown_msrs;
    uint32_t logged_msrs[8]; // unknown MSRs already logged once
    uint32_t logged_msr_count;
    char name[VCPU_NAME_SIZE]; // "alpha", or "alpha/1" of several
};

// Registers at power-on of the vCPU.
struct vcpu_start {
    uint64_t rip, rsp, rsi, cr3;
    uint64_t gdt_base;
    uint16_t gdt_limit, code_selector, data_selector;
};

// Allocates VMCS, XSAVE area and VPID. E_NOMEM; E_NOSYS when VT-x is not on. v->name is the
// caller's to fill.
int vcpu_init(struct vcpu *v, uint32_t id, void *vm, struct ept *ept, const struct vcpu_ops *ops,
              const struct cpuid_policy *cpuid);
void vcpu_free(struct vcpu *v); // it must not run any more
// Puts the vCPU into the power-on state given, or without one into that of an application
// processor: after INIT, waiting for a STARTUP. It must not run.
int vcpu_reset(struct vcpu *v, const struct vcpu_start *start);

// The scheduler entity's run function.
enum sched_next vcpu_run(struct sched_entity *e, uint64_t until);

// Something changed for this vCPU (interrupt, NMI): re-evaluate; ends a HLT or a run in the guest.
// Any CPU, any context that may take RANK_SCHED.
void vcpu_notify(struct vcpu *v);
// The same for interrupts that were posted in v->vapic->posted just now.
void vcpu_notify_posted(struct vcpu *v);
// The same for a device timer of this vCPU's that another CPU has armed.
void vcpu_notify_timer(struct vcpu *v);
// The same for an INIT or STARTUP.
void vcpu_notify_startup(struct vcpu *v);
// Does it wait for memory, as far as others can see?
static inline bool vcpu_waits_for_memory(const struct vcpu *v)
{
    return v->waiting_memory || v->retries_memory;
}
// Makes the vCPU leave the guest and stay out until vcpu_allow_run(); returns at once. It is out
// when vcpu_is_out().
void vcpu_request_stop(struct vcpu *v);
bool vcpu_is_out(const struct vcpu *v);
void vcpu_allow_run(struct vcpu *v);
// The next device timer is due at host TSC `deadline`.
static inline void vcpu_set_timer(struct vcpu *v, uint64_t deadline)
{
    v->next_timer = deadline;
    v->deadline = deadline < v->until ? deadline : v->until;
}

// --- For the rooms above, on the CPU that runs the vCPU ---

uint64_t vcpu_rip(const struct vcpu *v);
uint64_t vcpu_linear_rip(const struct vcpu *v); // CS.base + RIP
// What is added to an offset in segment 0..5 (es cs ss ds fs gs): 0 in 64-bit code but for fs, gs.
uint64_t vcpu_segment_base(const struct vcpu *v, unsigned segment);
uint64_t vcpu_rflags(const struct vcpu *v);
void vcpu_set_rflags(struct vcpu *v, uint64_t rflags);
uint64_t vcpu_gpr(const struct vcpu *v, unsigned reg); // RSP included
void vcpu_set_gpr(struct vcpu *v, unsigned reg, uint64_t value);
// RIP behind the instruction; ends STI shadows. Length 0: an iteration of REP is done, others
// follow.
void vcpu_advance(struct vcpu *v, unsigned length);
// True when long work for this vCPU should end soon: its slice is over, a timer is due, or somebody
// wants something of it. For work that the guest can ask to be continued.
bool vcpu_wanted(const struct vcpu *v);
unsigned vcpu_cpl(const struct vcpu *v);
unsigned vcpu_code_size(const struct vcpu *v); // 2, 4 or 8
// Queues an exception; vectors that push an error code get `error`.
void vcpu_inject_exception(struct vcpu *v, uint8_t vector, uint32_t error);
void vcpu_inject_page_fault(struct vcpu *v, uint64_t linear, uint32_t error);

// Reads guest memory at a linear address as the guest's CPU would (walking its page tables; A bits
// are not set). Returns 0; E_FAULT when the guest would fault (*fault_code, *fault_address for
// #PF); E_NOMEM, E_RANGE as read_memory.
int vcpu_read_linear(struct vcpu *v, uint64_t linear, void *to, size_t size, bool fetch,
                     uint32_t *fault_code, uint64_t *fault_address);
int vcpu_write_linear(struct vcpu *v, uint64_t linear, const void *from, size_t size,
                      uint32_t *fault_code, uint64_t *fault_address);

// Takes from a policy what the machine's VT-x controls cannot give a guest.
void vmx_limit_cpuid(struct cpuid_policy *p);
// APIC virtualization is used where the CPU has it, unless this is called before the first vCPU is
// made.
void vmx_disable_apicv(void);
bool vmx_posts_interrupts(void);
const char *vmx_apicv_state(void); // "off", "on", "on, posted interrupts"
// True when VT-x works on every CPU that is online.
bool vmx_available(void);
const char *vmx_unavailable_reason(void);
const char *vmx_exit_name(unsigned reason); // "EPT_VIOLATION"; NULL when unknown
