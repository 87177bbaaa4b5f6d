// SPDX-License-Identifier: BSD-2-Clause
// Extended page tables of one VM: walk, map, unmap, permission changes, split and collapse of large
// entries, epochs and shootdown (design section 3).
//
// Lock order: a gfn lock covers one 2 MiB range of one EPT (ept_lock_gfn). Tables above level 2
// only grow until ept_destroy, and are installed with compare-exchange, so walks need no lock;
// whoever changes or trusts a leaf below 2 MiB holds the gfn lock. 1 GiB leaves are split before a
// lock is taken. Two gfn locks: in the order (VM id, range index).
#pragma once

#include "kernel/lock.h"
#include "kernel/percpu.h"
#include "kernel/types.h"

#define EPT_LOCKS 64u // gfn locks per EPT; ranges hash onto them

enum ept_level { EPT_4K = 1, EPT_2M = 2, EPT_1G = 3 };

enum ept_permissions { EPT_READ = 1, EPT_WRITE = 2, EPT_EXECUTE = 4, EPT_RWX = 7 };

// Software meaning of a leaf, in bits the CPU ignores (SDM vol. 3, 29.3.2).
enum ept_kind {
    EPT_KIND_NONE = 0,     // not present: first touch populates, if a memory slot covers it
    EPT_KIND_PRIVATE = 1,  // RAM of this VM
    EPT_KIND_SHARED = 2,   // guest-shared frame, read-only
    EPT_KIND_CANDIDATE = 3 // private, write-protected while fusion compares
};

struct ept_leaf {
    hfn_t frame; // of the 4 KiB page asked for, also inside a large leaf
    enum ept_level level;
    unsigned permissions; // enum ept_permissions
    enum ept_kind kind;
    bool present;
    bool accessed;
    bool dirty;
};

struct ept {
    hpa_t root;
    uint64_t vm_id;
    uint64_t eptp; // for the VMCS: root, walk length 4, write-back, A/D flags
    _Atomic uint64_t epoch;
    _Atomic uint64_t seen[MAX_CPUS]; // epoch each CPU last entered with
    struct spinlock locks[EPT_LOCKS];
    // Counters for metrics.
    _Atomic uint64_t table_frames;
    _Atomic uint64_t shootdowns;
    _Atomic uint64_t large_splits;
    _Atomic uint64_t large_collapses;
    _Atomic uint64_t large_leaves;
};

// What the machine's EPT can do; filled from IA32_VMX_EPT_VPID_CAP by vmx before the first
// ept_init.
struct ept_features {
    bool page_2m, page_1g, accessed_dirty, execute_only;
    bool invept_single, invept_all;
    bool large_executable_safe; // IF_PSCHANGE_MC_NO, or the CPU is not affected (ITLB multihit)
};
extern struct ept_features ept_features;

int ept_init(struct ept *ept, uint64_t vm_id);

// Frees up to `budget` table frames after every CPU has left this EPT; the caller has already
// released the leaves (ept_release_leaves). Returns 0 when all is gone, E_AGAIN when there is more.
int ept_destroy(struct ept *ept, unsigned budget);

void ept_lock_gfn(struct ept *ept, gfn_t gfn);
void ept_lock_gfn_nested(struct ept *ept, gfn_t gfn);
void ept_unlock_gfn(struct ept *ept, gfn_t gfn);

// Makes sure that the page table for `gfn` (level 1) exists, splitting a large leaf in place is NOT
// done here. To be called before the lock is taken. May use the reserve. E_NOMEM without effect.
int ept_prepare(struct ept *ept, gfn_t gfn);

// Reads the leaf that translates `gfn`. Lock for a result that must stay true.
struct ept_leaf ept_lookup(struct ept *ept, gfn_t gfn);

// Installs a leaf where none is present (lock held; level 1 needs ept_prepare). No shootdown is
// needed. E_EXIST when something is present already.
int ept_map(struct ept *ept, gfn_t gfn, hfn_t frame, enum ept_level level, unsigned permissions,
            enum ept_kind kind);

// Replaces the present leaf of `level` at gfn (lock held) and returns the old one in *old. The
// caller shoots down before it relies on the change, except when only permissions were added.
int ept_replace(struct ept *ept, gfn_t gfn, hfn_t frame, enum ept_level level, unsigned permissions,
                enum ept_kind kind, struct ept_leaf *old);

// Removes the leaf (lock held); returns the old one. The caller shoots down, then frees.
int ept_unmap(struct ept *ept, gfn_t gfn, struct ept_leaf *old);

// Changes the permissions of the present leaf (lock held). Shootdown as for ept_replace.
int ept_protect(struct ept *ept, gfn_t gfn, unsigned permissions, enum ept_kind kind);

// Splits the large leaf that covers gfn into the next smaller level, same frames and permissions
// (lock held). The table frame is allocated by the caller beforehand: *table is consumed on
// success. No shootdown is needed for correctness of contents, but the old translation lives until
// one.
int ept_split_large(struct ept *ept, gfn_t gfn, hfn_t table);

// Makes 512 present, private, physically contiguous and aligned 4 KiB leaves with equal permissions
// one 2 MiB leaf (lock held). Returns the table frame to free AFTER a shootdown in *table, or
// E_INVAL.
int ept_collapse(struct ept *ept, gfn_t gfn, hfn_t *table);

// Clears and returns accessed/dirty of the leaf (lock held).
int ept_test_clear_dirty(struct ept *ept, gfn_t gfn, bool *dirty);

// Calls visit for every present leaf from *next on, at most `budget` of them; updates *next.
// Returns 0 at the end, E_AGAIN when the budget is spent. No lock is taken: the VM must not run.
int ept_for_each(struct ept *ept, gfn_t *next, unsigned budget,
                 void (*visit)(void *context, gfn_t gfn, struct ept_leaf leaf), void *context);

// --- Epochs (design section 3, Shootdown) ---

// Bumps the epoch and waits until no CPU runs a guest with an older one. No lock may be held that a
// CPU on its way out of the guest spins on; other locks are the caller's business.
void ept_shootdown(struct ept *ept);

// VM entry, interrupts off, after in_guest was set and a full fence: true when this CPU is behind
// and must INVEPT; records the epoch seen.
bool ept_enter(struct ept *ept, uint32_t cpu);

// Per-CPU word: 1 while the CPU may use guest translations. Set by vmx before ept_enter, cleared
// after each exit. Exported so that entry code can reach it.
struct ept_cpu {
    _Atomic uint32_t in_guest;
    _Atomic(struct ept *) current; // the EPT it entered with
} __attribute__((aligned(64)));
extern struct ept_cpu ept_cpus[MAX_CPUS];

// --- Fault hooks: the table is here so that higher rooms can register (arrows point downward) ---

struct ept_fault {
    gpa_t address;
    uint64_t linear;
    bool linear_valid;
    bool read, write, fetch;
    bool
        page_walk; // the access was the CPU's walk of guest page tables (qualification bit 8 clear)
    struct ept_leaf leaf;
};

enum ept_fault_result {
    EPT_FAULT_UNHANDLED, // the next hook is asked
    EPT_FAULT_RETRY,     // resolved: resume the guest, the instruction runs again
    EPT_FAULT_EMULATE,   // MMIO: the instruction must be emulated
    EPT_FAULT_WAIT,      // no memory now: the vCPU waits, the instruction runs again later
};

// `vm` is the owner's pointer as given by vmx. Hooks are asked in the order of `priority`, lowest
// first.
typedef enum ept_fault_result (*ept_fault_hook)(void *vm, const struct ept_fault *fault);
int ept_register_fault_hook(unsigned priority, ept_fault_hook hook);
enum ept_fault_result ept_run_fault_hooks(void *vm, const struct ept_fault *fault);
