// SPDX-License-Identifier: BSD-2-Clause
// A small machine with the real frame allocator over it.
#pragma once

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "fake.h"
#include "kernel/frames.h"
#include "kernel/memory.h"

static struct frame *frame_table;

// A fresh machine with frames [1, frames), all free.
static inline void frames_machine(uint64_t frames, unsigned cpu_number)
{
    hpa_t end = hpa(frames * PAGE_SIZE);
    fake_machine(end.raw, cpu_number);
    free(frame_table);
    frame_table = calloc(1, frames_table_bytes(end));
    assert_non_null(frame_table);
    frames_init(frame_table, end);
    frames_add(hfn(1), frames - 1, FRAME_FREE);
}

static inline void frames_machine_end(void)
{
    free(frame_table);
    frame_table = NULL;
}

static inline struct frames_snapshot snapshot(void)
{
    struct frames_snapshot s;
    frames_snapshot(&s, NULL, 0, NULL, NULL);
    return s;
}

static inline uint64_t free_frames(void)
{
    return snapshot().count[FRAME_FREE];
}
