// SPDX-License-Identifier: BSD-2-Clause
// The accounting of all RAM: each CPU counts its own changes, the sum over the CPUs is the truth.
//
// A reader accepts what it summed up when no CPU was inside a section at the beginning and none has
// been in one since: then it saw a moment at which all accounts agreed with each other.
#include "kernel/frames_internal.h"

#define PATIENCE 64u // attempts before sections have to wait for the reader

static bool sequences_stable(const uint32_t *before)
{
    for (uint32_t i = 0; i < cpu_count; i++) {
        if (atomic_load_explicit(&frame_cpus[i].sequence, memory_order_relaxed) != before[i])
            return false;
    }
    return true;
}

static void read_sequences(uint32_t *out)
{
    for (uint32_t i = 0; i < cpu_count; i++) {
        while (out[i] = atomic_load_explicit(&frame_cpus[i].sequence, memory_order_acquire),
               (out[i] & 1) != 0)
            cpu_relax();
    }
}

static void sum_up(struct frames_snapshot *out, struct frame_account *const *accounts, size_t n,
                   uint64_t *private_out, uint64_t *shared_out, uint64_t *ballooned_out)
{
    int64_t sum[FRAME_STATES] = {0};
    int64_t saved = 0;
    for (uint32_t i = 0; i < cpu_count; i++) {
        for (unsigned s = 0; s < FRAME_STATES; s++)
            sum[s] += atomic_load_explicit(&frame_cpus[i].delta[s], memory_order_relaxed);
        saved += atomic_load_explicit(&frame_cpus[i].saved, memory_order_relaxed);
    }
    for (unsigned s = 0; s < FRAME_STATES; s++)
        out->count[s] = (uint64_t)sum[s];
    out->saved = (uint64_t)saved;
    for (size_t i = 0; i < n; i++) {
        private_out[i] = atomic_load_explicit(&accounts[i]->private_frames, memory_order_relaxed);
        shared_out[i] = atomic_load_explicit(&accounts[i]->shared_gfns, memory_order_relaxed);
        if (ballooned_out != NULL)
            ballooned_out[i] = atomic_load_explicit(&accounts[i]->ballooned, memory_order_relaxed);
    }
}

void frames_snapshot_ballooned(struct frames_snapshot *out, struct frame_account *const *accounts,
                               size_t n, uint64_t *private_out, uint64_t *shared_out,
                               uint64_t *ballooned_out)
{
    uint32_t before[MAX_CPUS] = {0};
    bool barred = false;
    for (unsigned attempt = 1;; attempt++) {
        // Many busy CPUs could keep a reader out for ever; then they let it pass.
        if (attempt == PATIENCE) {
            atomic_fetch_add(&frames.snapshot_waiting, 1);
            barred = true;
        }
        read_sequences(before);
        sum_up(out, accounts, n, private_out, shared_out, ballooned_out);
        atomic_thread_fence(memory_order_acquire);
        if (sequences_stable(before))
            break;
        cpu_relax();
    }
    if (barred)
        atomic_fetch_sub(&frames.snapshot_waiting, 1);
    out->total = atomic_load_explicit(&frames.total, memory_order_relaxed);
    out->file_frames = atomic_load_explicit(&frames.file_frames, memory_order_relaxed);
}

void frames_snapshot(struct frames_snapshot *out, struct frame_account *const *accounts, size_t n,
                     uint64_t *private_out, uint64_t *shared_out)
{
    frames_snapshot_ballooned(out, accounts, n, private_out, shared_out, NULL);
}

void frame_balloon(struct frame_account *account, int64_t gfns)
{
    struct frame_cpu *c = frame_this_cpu();
    uint32_t begun = frame_section_begin(c);
    atomic_fetch_add_explicit(&account->ballooned, (uint64_t)gfns, memory_order_relaxed);
    frame_section_end(c, begun);
}

uint64_t frames_free(void)
{
    int64_t sum = 0;
    for (uint32_t i = 0; i < cpu_count; i++)
        sum += atomic_load_explicit(&frame_cpus[i].delta[FRAME_FREE], memory_order_relaxed);
    return sum > 0 ? (uint64_t)sum : 0; // the CPUs are not looked at in one moment
}

bool frames_reserve_low(void)
{
    uint64_t quarter = frames.reserve / 4;
    return atomic_load_explicit(&frames.buddy_free, memory_order_relaxed) <= quarter &&
           quarter != 0 && frames_free() <= quarter;
}

uint64_t frames_floor(void)
{
    return frame_floor();
}

uint64_t frames_beyond_reserve(void)
{
    uint64_t n = frames_free();
    return n > frame_floor() ? n - frame_floor() : 0;
}
