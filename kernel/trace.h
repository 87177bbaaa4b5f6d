// SPDX-License-Identifier: BSD-2-Clause
// The trace: the last things that every CPU did, for those who look for a fault. Off it costs the
// VM-exit path nothing (vmx/run.c), other places one comparison; on, some hundred instructions a
// record.
#pragma once

#include <stdatomic.h>

#include "kernel/percpu.h"
#include "kernel/types.h"

#define TRACE_RECORDS  512u // kept per CPU
#define TRACE_WHO      40u
#define TRACE_LINE_MAX 192u
#define TRACE_SHOWN    100u // records `trace show` prints unless told otherwise

enum trace_event {
    TRACE_EXIT,  // a VM exit: RIP, what the exit says of itself, guest-physical address
    TRACE_RUN,   // a vCPU gets this CPU: TSC at which its slice ends
    TRACE_LEAVE, // and leaves it
    TRACE_KICK,  // a shootdown that waited for other CPUs: epoch, the CPUs (a bit each), ticks
    TRACE_FIBER, // a fiber gave up this CPU after FIBER_HOLD_TICKS or more: ticks
    TRACE_EVENTS
};

extern _Atomic bool trace_enabled;

// Begins to record, with empty rings. E_NOMEM.
int trace_start(void);
// Ends recording; what was recorded stays for trace_next().
void trace_stop(void);

// `who` is copied; `what` stays where it is for ever (a literal) or is NULL. Any context but
// interrupt handlers; takes no lock.
void trace_record(enum trace_event event, const char *who, const char *what, uint64_t a, uint64_t b,
                  uint64_t c);
static inline void trace(enum trace_event event, const char *who, const char *what, uint64_t a,
                         uint64_t b, uint64_t c)
{
    if (__builtin_expect(atomic_load_explicit(&trace_enabled, memory_order_relaxed), 0))
        trace_record(event, who, what, a, b, c);
}

// Reading, oldest first, of all CPUs in order of time. Recording rests from trace_read_begin() to
// trace_read_end(), so one reader sees one state; one reader at a time (the console's).
struct trace_reader {
    uint64_t next[MAX_CPUS]; // number of the next record of each CPU
};
// Leaves out all but the newest `most` records. Returns how many there are to read.
unsigned trace_read_begin(struct trace_reader *r, unsigned most);
// The next record as a line of text. False: there is none.
bool trace_next(struct trace_reader *r, char *line, size_t size);
void trace_read_end(void);
