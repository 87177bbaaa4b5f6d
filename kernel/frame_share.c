// SPDX-License-Identifier: BSD-2-Clause
// Frames that several gfns share: their counts, and what a change of them means to the accounts.
//
// Identities (design section 7): the sum of all accounts' shared gfns is the number of shared
// frames plus `saved`; each function keeps them in one section.
#include "kernel/frames_internal.h"

#include "kernel/memory.h"
#include "kernel/panic.h"

static inline struct frame *record_in(hfn_t n, enum frame_state state)
{
    CHECK(n.raw < frames.limit);
    struct frame *f = frame_record((uint32_t)n.raw);
    CHECK(f->state == state);
    return f;
}

// Versions are read without a lock by whoever noted one.
static void end_version(struct frame *f)
{
    __atomic_fetch_add(&f->version, 1, __ATOMIC_RELEASE);
}

void frame_end_version(hfn_t n)
{
    CHECK(n.raw < frames.limit);
    end_version(frame_record((uint32_t)n.raw));
}

static void set_state(struct frame *f, enum frame_state state)
{
    __atomic_store_n(&f->state, (uint8_t)state, __ATOMIC_RELEASE);
}

static void add(_Atomic uint64_t *counter, int64_t n)
{
    atomic_fetch_add_explicit(counter, (uint64_t)n, memory_order_relaxed);
}

static void add_saved(struct frame_cpu *c, int64_t n)
{
    int64_t v = atomic_load_explicit(&c->saved, memory_order_relaxed);
    atomic_store_explicit(&c->saved, v + n, memory_order_relaxed);
}

// One sharer less, unless it is the last.
static bool count_down(struct frame *f)
{
    uint32_t count = __atomic_load_n(&f->count, __ATOMIC_RELAXED);
    do {
        CHECK(count != 0);
        if (count == 1)
            return false;
    } while (!__atomic_compare_exchange_n(&f->count, &count, count - 1, true, __ATOMIC_ACQ_REL,
                                          __ATOMIC_RELAXED));
    return true;
}

void frame_share(hfn_t n, struct frame_account *account)
{
    struct frame *f = record_in(n, FRAME_PRIVATE);
    CHECK(f->count == 0);
    end_version(f);
    f->flags = 0;
    struct frame_cpu *c = frame_this_cpu();
    uint32_t begun = frame_section_begin(c);
    __atomic_store_n(&f->count, 1, __ATOMIC_RELEASE);
    set_state(f, FRAME_SHARED);
    frame_section_add(c, FRAME_PRIVATE, -1);
    frame_section_add(c, FRAME_SHARED, 1);
    add(&account->private_frames, -1);
    add(&account->shared_gfns, 1);
    frame_section_end(c, begun);
}

bool frame_share_join(hfn_t shared, hfn_t duplicate, struct frame_account *account, uint32_t limit)
{
    struct frame *s = record_in(shared, FRAME_SHARED);
    struct frame *d = record_in(duplicate, FRAME_PRIVATE);
    CHECK(d->count == 0 && limit <= FRAME_COUNT_MAX);
    uint32_t count = __atomic_load_n(&s->count, __ATOMIC_RELAXED);
    do {
        CHECK(count != 0);
        if (count >= limit)
            return false;
    } while (!__atomic_compare_exchange_n(&s->count, &count, count + 1, true, __ATOMIC_ACQ_REL,
                                          __ATOMIC_RELAXED));
    end_version(d);
    d->flags = 0;
    struct frame_cpu *c = frame_this_cpu();
    uint32_t begun = frame_section_begin(c);
    set_state(d, FRAME_FUSOR);
    frame_section_add(c, FRAME_PRIVATE, -1);
    frame_section_add(c, FRAME_FUSOR, 1);
    add_saved(c, 1);
    add(&account->private_frames, -1);
    add(&account->shared_gfns, 1);
    frame_section_end(c, begun);
    return true;
}

bool frame_share_split(hfn_t shared, hfn_t fresh, struct frame_account *account)
{
    struct frame *s = record_in(shared, FRAME_SHARED);
    struct frame *f = record_in(fresh, FRAME_FUSOR);
    if (!count_down(s))
        return false;
    struct frame_cpu *c = frame_this_cpu();
    uint32_t begun = frame_section_begin(c);
    set_state(f, FRAME_PRIVATE);
    frame_section_add(c, FRAME_FUSOR, -1);
    frame_section_add(c, FRAME_PRIVATE, 1);
    add_saved(c, -1);
    add(&account->private_frames, 1);
    add(&account->shared_gfns, -1);
    frame_section_end(c, begun);
    return true;
}

bool frame_share_leave(hfn_t shared, struct frame_account *account)
{
    if (!count_down(record_in(shared, FRAME_SHARED)))
        return false;
    struct frame_cpu *c = frame_this_cpu();
    uint32_t begun = frame_section_begin(c);
    add_saved(c, -1);
    add(&account->shared_gfns, -1);
    frame_section_end(c, begun);
    return true;
}

// The last sharer's frame goes to `state`; `gained` private frames come to the account.
static void end_sharing(hfn_t shared, enum frame_state state, struct frame_account *account,
                        int64_t gained)
{
    struct frame *s = record_in(shared, FRAME_SHARED);
    CHECK(__atomic_load_n(&s->count, __ATOMIC_ACQUIRE) == 1);
    end_version(s);
    struct frame_cpu *c = frame_this_cpu();
    uint32_t begun = frame_section_begin(c);
    __atomic_store_n(&s->count, 0, __ATOMIC_RELEASE);
    set_state(s, state);
    frame_section_add(c, FRAME_SHARED, -1);
    frame_section_add(c, state, 1);
    add(&account->private_frames, gained);
    add(&account->shared_gfns, -1);
    frame_section_end(c, begun);
}

void frame_share_take_last(hfn_t shared, struct frame_account *account)
{
    end_sharing(shared, FRAME_PRIVATE, account, 1);
}

void frame_share_end(hfn_t shared, struct frame_account *account)
{
    end_sharing(shared, FRAME_FUSOR, account, 0);
}

void frame_adopt(hfn_t first, unsigned order, struct frame_account *account)
{
    int64_t count = INT64_C(1) << order;
    for (int64_t i = 0; i < count; i++)
        set_state(record_in(hfn(first.raw + (uint64_t)i), FRAME_FUSOR), FRAME_PRIVATE);
    struct frame_cpu *c = frame_this_cpu();
    uint32_t begun = frame_section_begin(c);
    frame_section_add(c, FRAME_FUSOR, -count);
    frame_section_add(c, FRAME_PRIVATE, count);
    add(&account->private_frames, count);
    frame_section_end(c, begun);
}

void frame_disown(hfn_t n, struct frame_account *account)
{
    struct frame *f = record_in(n, FRAME_PRIVATE);
    CHECK(f->count == 0);
    end_version(f);
    struct frame_cpu *c = frame_this_cpu();
    uint32_t begun = frame_section_begin(c);
    set_state(f, FRAME_FUSOR);
    frame_section_add(c, FRAME_PRIVATE, -1);
    frame_section_add(c, FRAME_FUSOR, 1);
    add(&account->private_frames, -1);
    frame_section_end(c, begun);
}
