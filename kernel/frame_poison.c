// SPDX-License-Identifier: BSD-2-Clause
// Debug builds: free frames carry a pattern, so that a write to a freed frame is found when the
// frame is taken again (the way of xv6's kalloc). Frames that were free from boot on are not
// scrubbed and not checked.
#include "kernel/frames_internal.h"

#include "kernel/memory.h"
#include "kernel/panic.h"
#include "kernel/string.h"

static bool page_is(uint32_t n, uint8_t byte)
{
    const uint64_t *words = hfn_to_pointer(hfn(n));
    uint64_t pattern = byte * UINT64_C(0x0101010101010101);
    for (size_t i = 0; i < PAGE_SIZE / sizeof(uint64_t); i++) {
        if (words[i] != pattern)
            return false;
    }
    return true;
}

void frame_poison_fill(uint32_t n, uint64_t count)
{
    memset(hfn_to_pointer(hfn(n)), FRAME_POISON, count << PAGE_SHIFT);
    for (uint32_t i = n; i < n + count; i++)
        frame_record(i)->flags |= FRAME_F_POISON;
}

void frame_poison_verify(uint32_t n, uint64_t count)
{
    for (uint32_t i = n; i < n + count; i++) {
        struct frame *f = frame_record(i);
        CHECK(f->state == FRAME_FREE && (f->flags & FRAME_F_HEAD) == 0);
        CHECK((f->flags & FRAME_F_POISON) == 0 || page_is(i, FRAME_POISON));
        f->flags = 0;
    }
}

void frame_poison_verify_zero(uint32_t n)
{
    struct frame *f = frame_record(n);
    CHECK(f->state == FRAME_FREE && (f->flags & FRAME_F_HEAD) == 0);
    CHECK(page_is(n, 0));
}
