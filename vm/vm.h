// SPDX-License-Identifier: BSD-2-Clause
// The VM as an object: table of VMs, lifecycle, facts for the console.
//
// The lifecycle calls are for fibers (the console's): they may wait for vCPUs to leave other CPUs
// and yield while long work (loading, freeing) goes on. They return 0 or a negative error; *why,
// where present, receives one line for the operator.
#pragma once

#include "kernel/frames.h"
#include "kernel/types.h"
#include "vm/config.h"

#define VM_MAX        32u
#define VM_WHY_MAX    200u
#define VM_EXIT_KINDS 80u

enum vm_state { VM_STOPPED, VM_RUNNING, VM_PAUSED, VM_WAITING_MEMORY, VM_CRASHED };

struct vm; // vm/vm_object.h has the inside

// What the guest's driver says of its own memory, in frames.
struct vm_report {
    bool present; // a driver has reported since the last reset
    uint64_t total, free, available, cache;
    uint64_t balloon; // what Fusor had of it then
};

// A copy of what the console shows of one VM. Sizes in frames unless said otherwise.
struct vm_info {
    uint64_t id;
    struct vm_config config;
    enum vm_state state;
    uint64_t configured, private_frames, shared, balloon, untouched;
    uint64_t balloon_target, balloon_returned;
    uint64_t held_back; // of what left the balloon unasked, may not be touched yet
    bool balloon_driver;
    uint64_t table_frames;
    uint64_t run_ticks, wait_ticks, steal_ticks; // on a CPU, halted, runnable without a CPU
    uint64_t shootdowns, large_splits, large_collapses, large_leaves, promotions;
    uint64_t unknown_msrs, unclaimed_io, rom_writes;
    struct vm_report report;
    char crash[VM_WHY_MAX]; // why it crashed, empty else
};

const char *vm_state_name(enum vm_state state);

int vm_create(const struct vm_config *config, char *why);
int vm_destroy(const char *name, char *why);
// Changes the config of an existing VM; values that need a restart take effect at the next start.
int vm_set(const struct vm_config *config, char *why);
int vm_start(const char *name, char *why);
int vm_pause(const char *name, char *why);
int vm_resume(const char *name, char *why);
// 0 also when there is too little memory to begin anew: the VM is waiting-memory then (or paused,
// if it was) and begins when there is enough. A missing file is an error without effect.
int vm_reset(const char *name, char *why);
// How much is wanted in the VM's balloon, from now on; its driver is told.
int vm_balloon(const char *name, uint64_t bytes, char *why);
int vm_shutdown(const char *name, char *why); // presses the power button and returns
int vm_stop(const char *name, char *why);

// overcommit = off: a VM starts only if all its memory fits beside what the others may still touch.
void vm_set_overcommit(bool on);
bool vm_overcommits(void);
// What overcommit = off counts, in frames: the memory of all VMs that have any, without what is in
// their balloons, has to fit beside Fusor's own frames and the reserve. Half of the reserve serves
// page tables (vm/reserve.h); those of large VMs that may need more are counted with the VMs.
struct vm_commitment {
    uint64_t total, fusor, reserve, guests;
    uint64_t tables; // page tables that the VMs may need at most
    uint64_t left;   // UINT64_MAX when overcommit is on
};
void vm_commitment(struct vm_commitment *out);
// What a VM with `memory` bytes would add to c->guests.
uint64_t vm_commitment_of(const struct vm_commitment *c, uint64_t memory);

// Copies of all VMs in order of creation with one consistent snapshot of all frames. Returns the
// count. `infos` has room for VM_MAX.
unsigned vm_snapshot(struct vm_info *infos, struct frames_snapshot *frames);
// One VM; E_NOENT.
int vm_get(const char *name, struct vm_info *info);

struct vm_exit_count {
    const char *reason;
    uint64_t count;
};
// Fills counts with the exit reasons that occurred; returns how many, or E_NOENT.
int vm_exits(const char *name, struct vm_exit_count *counts, unsigned room);

// The VM's serial port. vm_console_read copies output from *cursor on (0: everything still kept)
// and advances it; returns the bytes copied, or E_NOENT when the VM is gone. vm_console_write
// offers input and returns the bytes taken.
int vm_console_read(const char *name, uint64_t *cursor, char *buffer, size_t size);
int vm_console_write(const char *name, const char *data, size_t size);

// Events ("VM alpha crashed: ...", "VM alpha powered off") for the console's `* ` lines: called
// from any context, takes no lock above RANK_LOG.
void vm_set_event_sink(void (*sink)(const char *line));
