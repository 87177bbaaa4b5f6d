// SPDX-License-Identifier: BSD-2-Clause
// Page fusion as the rooms above see it: hints in, switches, figures.
#pragma once

#include "hypercall/fusor_abi.h"
#include "kernel/types.h"
#include "vm/config.h"

struct vm;

#define FUSION_CHUNK 64u // hints worked on at once (design section 3)

// Why a hint came to nothing; Fusion/Hints/Rejected/NAME.
enum fusion_reject {
    FUSION_REJECT_RANGE,     // not RAM of this VM
    FUSION_REJECT_RESERVED,  // reserved bits, unknown class or order, misaligned range
    FUSION_REJECT_DUPLICATE, // twice in one chunk
    FUSION_REJECT_BUDGET,    // the VM's budget is used up
    FUSION_REJECT_OFF,       // page-fusion = off
    FUSION_REJECT_ABSENT,    // the guest never touched the page
    FUSION_REJECT_SHARED,    // fused already
    FUSION_REJECT_PINNED,
    FUSION_REJECT_BACKOFF,  // split too often lately
    FUSION_REJECT_BUSY,     // written or worked on by somebody else meanwhile
    FUSION_REJECT_MISMATCH, // the hash was equal, the content was not
    FUSION_REJECT_NOMEM,    // no frame for a page table, or no place in the index
    FUSION_REJECTS
};
extern const char *const fusion_reject_names[FUSION_REJECTS]; // "range", "reserved", ...

// One VM's figures. received = fused + unmatched + the sum of rejected, at every moment that no
// batch is under way.
struct fusion_figures {
    uint64_t received, fused, unmatched, rejected[FUSION_REJECTS];
    uint64_t fused_by_class[FUSOR_CLASSES];
    uint64_t splits;        // copies made because a guest wrote to a shared frame
    uint64_t futile_splits; // of these, of gfns that had been split before and fused again
    uint64_t last_sharers;  // shared frames that became their last sharer's without a copy
    uint64_t cancelled;     // candidates written to while they were compared
    uint64_t backoff;       // gfns whose hints are ignored for a while, counted when that begins
    uint64_t ticks;         // TSC ticks spent in fusion for this VM, splits included
    uint64_t large_fused;   // 2 MiB ranges fused as a whole
    uint64_t scanned;       // pages looked at by the background scanner
};

enum fusion_mode {
    FUSION_ON,
    FUSION_SPLITTING, // switched off; pages are being split as frames allow
    FUSION_OFF,
};

struct fusion_info {
    enum fusion_mode mode;
    uint64_t shared_left; // gfns still shared, while SPLITTING
    struct fusion_figures figures;
};

// Works on up to `count` hints of `vm` that its vCPU passed, in order, FUSION_CHUNK at most in one
// call. `entries` are Fusor's copy. Returns how many were done (then the rest is for another call),
// or a negative fusor_error_code for the first one. Called from the exit handler of one of its
// vCPUs or from a fiber; no lock held; lets interrupts in.
int64_t fusion_hint(struct vm *vm, const uint64_t *entries, unsigned count);
int64_t fusion_unhint(struct vm *vm, const uint64_t *entries, unsigned count);

// By name, for the console: E_NOENT, or a fusion_info. `why` (VM_WHY_MAX) gets one line.
int fusion_get(const char *vm_name, struct fusion_info *out);
// vm fusion NAME on|off: takes effect at once; splitting goes on in the background.
int fusion_switch(const char *vm_name, bool on, char *why);
// What the hypercall FUSOR_STATISTICS answers, without the balloon's part.
void fusion_statistics(struct vm *vm, struct fusor_statistics *out);

// The engine in words, for `host`: "avx2" or "general".
const char *fusion_engine(void);

// fusion census: brute force over all resident pages of the VMs that share with each other under
// `group` (or of every group, NULL). Takes over 10 s; fiber only. In 4 KiB pages.
struct fusion_census {
    uint64_t vms, resident, zero;
    uint64_t shareable;           // sum over equal contents of (n - 1), zero pages included
    uint64_t shareable_zero;      // the zero pages' part of it
    uint64_t unchanged;           // resident pages that did not change for 10 s
    uint64_t unchanged_shareable; // as above over these
    uint64_t unchanged_shareable_zero;
    uint64_t
        saved; // what is saved in these groups at the end: sum over shared frames of (sharers - 1)
};
// 0, E_NOENT (no VM in such a group), E_NOMEM (not enough free frames for the lists), E_BUSY
// (another census runs). `group` NULL: all.
int fusion_census(const char *group, struct fusion_census *out);
