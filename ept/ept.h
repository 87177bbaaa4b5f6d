// SPDX-License-Identifier: BSD-2-Clause
// Extended page tables of one VM: walk, map, unmap, permission changes, split and collapse of large
// entries, epochs and shootdown (design section 3).
//
// Lock order: a gfn lock covers one 2 MiB range of one EPT (ept_lock_gfn). Tables above level 2
// only grow until ept_destroy, and are installed with compare-exchange, so walks need no lock;
// whoever changes or trusts a leaf below 2 MiB holds the gfn lock. 1 GiB leaves are split before a
// lock is taken. Two gfn locks: through ept_lock_pair, in the order (VM id, index of the lock). Not
// the index of the range: ranges hash onto locks, so ordering by range could deadlock.
//
// A level-1 table is taken away only by ept_collapse and ept_replace_table, and freed after a
// shootdown. ept_lookup without the lock notices that; its result is still only a hint.
#pragma once

#include <stdatomic.h>

#include "kernel/lock.h"
#include "kernel/percpu.h"
#include "kernel/types.h"

#define EPT_LOCKS     64u                 // gfn locks per EPT; ranges hash onto them
#define EPT_GFN_LIMIT (UINT64_C(1) << 36) // 4 levels translate 48 bits

enum ept_level { EPT_4K = 1, EPT_2M = 2, EPT_1G = 3 };

enum ept_permissions { EPT_READ = 1, EPT_WRITE = 2, EPT_EXECUTE = 4, EPT_RWX = 7 };

// Software meaning of a leaf, in bits the CPU ignores (SDM vol. 3, 29.3.2).
enum ept_kind {
    EPT_KIND_NONE = 0,      // not present: first touch populates, if a memory slot covers it
    EPT_KIND_PRIVATE = 1,   // RAM of this VM
    EPT_KIND_SHARED = 2,    // guest-shared frame, read-only
    EPT_KIND_CANDIDATE = 3, // private, write-protected while fusion compares
    // Of a present leaf, 0 means this: a gfn of the balloon that was read; it maps a read-only page
    // of zeros that belongs to no guest.
    EPT_KIND_ZERO = EPT_KIND_NONE
};

struct ept_leaf {
    hfn_t frame; // of the 4 KiB page asked for, also inside a large leaf
    enum ept_level level;
    unsigned permissions; // enum ept_permissions
    enum ept_kind kind;
    bool present;
    bool accessed; // both true where the machine's EPT has no A/D flags: unknown counts as used
    bool dirty;
    // A large leaf that would be executable but for the ITLB multihit rule, see
    // ept_fetch_needs_split.
    bool execute_withheld;
};

struct ept {
    hpa_t root;
    uint64_t vm_id;
    uint64_t eptp; // for the VMCS: root, walk length 4, write-back, A/D flags
    _Atomic uint64_t epoch;
    _Atomic uint64_t seen[MAX_CPUS]; // epoch each CPU last entered with
    struct spinlock locks[EPT_LOCKS];
    // Counters for metrics.
    _Atomic uint64_t table_frames; // tables that hang in this EPT, the root included
    _Atomic uint64_t shootdowns;
    _Atomic uint64_t large_splits;
    _Atomic uint64_t large_collapses;
    _Atomic uint64_t large_leaves;
    bool dying; // ept_destroy has begun
};

// What the machine's EPT can do; filled from IA32_VMX_EPT_VPID_CAP by vmx before the first
// ept_init.
struct ept_features {
    bool page_2m, page_1g, accessed_dirty, execute_only;
    bool invept_single, invept_all;
    bool large_executable_safe; // IF_PSCHANGE_MC_NO, or the CPU is not affected (ITLB multihit)
};
extern struct ept_features ept_features;

// Sets up an EPT that maps nothing. E_NOMEM without effect.
int ept_init(struct ept *ept, uint64_t vm_id);

// Frees up to `budget` table frames after every CPU has left this EPT; no vCPU may enter it again.
// The caller has released the frames that the leaves map (ept_for_each) and shot down before it
// freed them. Returns 0 when all is gone (also when called again), E_AGAIN when there is more. At
// the end every CPU that ever entered this EPT is told to INVEPT before it enters any other,
// because the root frame may become another EPT's root.
int ept_destroy(struct ept *ept, unsigned budget);

// The lock of the 2 MiB range that holds gfn. _nested is for a second one; use ept_lock_pair, which
// knows the order and the case that both hash to one lock.
void ept_lock_gfn(struct ept *ept, gfn_t gfn);
void ept_lock_gfn_nested(struct ept *ept, gfn_t gfn);
void ept_unlock_gfn(struct ept *ept, gfn_t gfn);
void ept_lock_pair(struct ept *a, gfn_t a_gfn, struct ept *b, gfn_t b_gfn);
void ept_unlock_pair(struct ept *a, gfn_t a_gfn, struct ept *b, gfn_t b_gfn);
// True when one lock covers both gfns, so that it must be taken once only.
bool ept_same_lock(const struct ept *ept, gfn_t a, gfn_t b);

// A zeroed table frame for ept_split_large (may use the reserve; no lock held), and its way back:
// if it was not consumed, or, when it came out of ept_collapse or ept_replace_table, after a
// shootdown.
int ept_table_alloc(hfn_t *table);
void ept_table_free(hfn_t table);

// Makes sure that the page table for `gfn` (level 1) exists. Also returns 0 when a large leaf
// covers gfn: splitting it is NOT done here, and the caller looks again under the lock anyway. To
// be called before the lock is taken. May use the reserve. E_NOMEM without effect; E_RANGE.
int ept_prepare(struct ept *ept, gfn_t gfn);
// The same for the table that holds leaves of `level`.
int ept_prepare_level(struct ept *ept, gfn_t gfn, enum ept_level level);

// Reads the leaf that translates `gfn`. Lock for a result that must stay true.
struct ept_leaf ept_lookup(struct ept *ept, gfn_t gfn);

// Installs a leaf where none is present (lock held; needs ept_prepare_level). No shootdown is
// needed. Errors: E_EXIST when a leaf is present already, or when an EPT_2M or EPT_1G leaf would
// stand where a table hangs, even an empty one (that is ept_replace_table's work); E_AGAIN when the
// table is missing (prepare again: a promotion may have taken it since); E_INVAL for a misaligned
// gfn or frame, for permissions that the CPU would call a misconfiguration, and for a shared or
// candidate leaf with EPT_WRITE; E_NOSYS for a size the machine lacks; E_RANGE.
// Where large executable leaves are not safe (ept_features) a large leaf is installed without
// EPT_EXECUTE and remembers it; so in ept_replace, ept_protect and ept_collapse.
int ept_map(struct ept *ept, gfn_t gfn, hfn_t frame, enum ept_level level, unsigned permissions,
            enum ept_kind kind);

// Replaces the present leaf of `level` at gfn (lock held) and returns the old one in *old. The
// caller shoots down before it relies on the change, except when only permissions were added.
// A/D flags start anew with another frame and stay with the same one. E_NOENT when nothing is
// present, E_INVAL when the leaf has another level; else as ept_map.
int ept_replace(struct ept *ept, gfn_t gfn, hfn_t frame, enum ept_level level, unsigned permissions,
                enum ept_kind kind, struct ept_leaf *old);

// The short way of ept_replace for what expects to know the leaf: changes the 4 KiB leaf at gfn
// (lock held) if it maps `frame` with `kind`, else E_AGAIN without effect. `to`, `permissions` and
// `to_kind` are what ept_replace would accept. A/D flags as there.
int ept_change(struct ept *ept, gfn_t gfn, hfn_t frame, enum ept_kind kind, hfn_t to,
               unsigned permissions, enum ept_kind to_kind);

// Removes the leaf that covers gfn, of whatever level (lock held); returns the old one with its
// last dirty flag. The caller shoots down, then frees. E_NOENT when nothing is present.
int ept_unmap(struct ept *ept, gfn_t gfn, struct ept_leaf *old);

// Changes permissions and kind of the present leaf that covers gfn, of whatever level (lock held);
// A/D flags stay. Shootdown as for ept_replace. Errors as ept_replace.
int ept_protect(struct ept *ept, gfn_t gfn, unsigned permissions, enum ept_kind kind);

// Splits the large leaf that covers gfn into the next smaller level, same frames and permissions
// (lock held). The table frame is allocated by the caller beforehand: *table is consumed on
// success. No shootdown is needed for correctness of contents, but the old translation lives until
// one. A/D flags are inherited; withheld EPT_EXECUTE returns in 4 KiB leaves. E_NOENT when nothing
// is present, E_INVAL when the leaf is 4 KiB already, E_AGAIN when another CPU split the 1 GiB leaf
// meanwhile (look again).
int ept_split_large(struct ept *ept, gfn_t gfn, hfn_t table);

// Makes 512 present, private, physically contiguous and aligned 4 KiB leaves with equal permissions
// one 2 MiB leaf (lock held). Returns the table frame to free AFTER a shootdown in *table, or
// E_INVAL. A writable leaf counts as dirty afterwards: until the shootdown CPUs may still set the
// flags in the old table. Do not collapse a range that was split because of a fetch
// (ept_fetch_needs_split): it would be split again.
int ept_collapse(struct ept *ept, gfn_t gfn, hfn_t *table);

// Puts one large leaf of ANOTHER, aligned frame in the place of the level-1 table of gfn's range,
// whatever that table maps, also nothing (lock held). Returns the table frame in *table. E_BUSY
// when a leaf of the table is still writable, E_NOENT when no table is there, E_EXIST when a large
// leaf is. The order of a promotion, under the gfn lock from the first step to the replacement:
//   note the 512 leaves and ept_protect each without EPT_WRITE; ept_shootdown; copy the contents
//   (zeros where nothing is mapped) into the large frame; ept_replace_table; ept_shootdown; only
//   then free the old frames and ept_table_free.
int ept_replace_table(struct ept *ept, gfn_t gfn, hfn_t large_frame, unsigned permissions,
                      enum ept_kind kind, hfn_t *table);

// ITLB multihit rule: the leaf is large and executable only in smaller pieces, so a fetch fault
// splits it (ept_split_large) down to 4 KiB.
static inline bool ept_fetch_needs_split(const struct ept_leaf *leaf)
{
    return leaf->present && leaf->execute_withheld;
}

// Clears accessed/dirty of the leaf that covers gfn (lock held); *dirty is what the dirty flag was,
// and always true where the machine has no A/D flags. CPUs that cached the translation set the flag
// again only after a shootdown. E_NOENT when nothing is present.
int ept_test_clear_dirty(struct ept *ept, gfn_t gfn, bool *dirty);

// Calls visit for every present leaf from *next on, at most `budget` of them; updates *next. gfn is
// the leaf's first, or *next when that lies inside a large leaf. EPT_EMPTY_PER_LEAF empty entries
// cost one of the budget, so the work is bounded too. Returns 0 at the end, E_AGAIN when the budget
// is spent. No lock is taken: the VM must not run, and nobody else may change its tables. visit may
// unmap the leaf, and let other fibers run.
#define EPT_EMPTY_PER_LEAF 32u
int ept_for_each(struct ept *ept, gfn_t *next, unsigned budget,
                 void (*visit)(void *context, gfn_t gfn, struct ept_leaf leaf), void *context);

// --- Epochs (design section 3, Shootdown) ---

// Bumps the epoch and waits until no CPU runs a guest with an older one. No lock may be held that a
// CPU on its way out of the guest spins on before it clears in_guest (vmx takes none); other locks,
// gfn locks too, are the caller's business.
void ept_shootdown(struct ept *ept);

// Per-CPU word: 1 while the CPU may use guest translations. Set by vmx before ept_enter, cleared
// after each exit. Exported so that entry code can reach it.
struct ept_cpu {
    _Atomic uint32_t in_guest;
    _Atomic uint32_t flush_all; // a root this CPU ran was freed: INVEPT all before the next entry
    _Atomic(struct ept *) current; // the EPT it entered with
} __attribute__((aligned(64)));
extern struct ept_cpu ept_cpus[MAX_CPUS];

// The rare part of ept_enter: INVEPT, and the epoch seen is recorded.
void ept_enter_behind(struct ept *ept, uint32_t cpu);

// VM entry, interrupts off, after `current` and then in_guest were set and a full fence: does the
// INVEPT this CPU owes and records the epoch seen. Returns true when one was done.
static inline bool ept_enter(struct ept *ept, uint32_t cpu)
{
    uint64_t epoch = atomic_load_explicit(&ept->epoch, memory_order_acquire);
    uint64_t seen = atomic_load_explicit(&ept->seen[cpu], memory_order_relaxed);
    uint32_t flush_all = atomic_load_explicit(&ept_cpus[cpu].flush_all, memory_order_relaxed);
    if (__builtin_expect(epoch == seen && flush_all == 0, 1))
        return false;
    ept_enter_behind(ept, cpu);
    return true;
}

// The whole entry in the order that ept/shootdown.c needs, and the exit: the first thing after it,
// before any lock is taken.
static inline bool ept_guest_begin(struct ept *ept, uint32_t cpu)
{
    atomic_store_explicit(&ept_cpus[cpu].current, ept, memory_order_relaxed);
    atomic_store_explicit(&ept_cpus[cpu].in_guest, 1, memory_order_release);
    atomic_thread_fence(memory_order_seq_cst);
    return ept_enter(ept, cpu);
}

static inline void ept_guest_end(uint32_t cpu)
{
    atomic_store_explicit(&ept_cpus[cpu].in_guest, 0, memory_order_release);
}

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
// first; the first answer but EPT_FAULT_UNHANDLED ends it. Registration is for the boot CPU before
// any VM runs: at most EPT_FAULT_HOOKS, else E_NOMEM.
#define EPT_FAULT_HOOKS 8u
typedef enum ept_fault_result (*ept_fault_hook)(void *vm, const struct ept_fault *fault);
int ept_register_fault_hook(unsigned priority, ept_fault_hook hook);
enum ept_fault_result ept_run_fault_hooks(void *vm, const struct ept_fault *fault);
