// SPDX-License-Identifier: BSD-2-Clause
// The frame allocator: set-up, and the way in and out of a frame's state.
#include "kernel/frames_internal.h"

#include "kernel/error.h"
#include "kernel/memory.h"
#include "kernel/panic.h"
#include "kernel/string.h"

struct frames frames;
struct frame *frame_records;
struct frame_cpu frame_cpus[MAX_CPUS];

static uint64_t frames_below(hpa_t end)
{
    return ALIGN_UP(end.raw, PAGE_SIZE) >> PAGE_SHIFT;
}

size_t frames_table_bytes(hpa_t end)
{
    return ALIGN_UP(frames_below(end) * sizeof(struct frame), PAGE_SIZE);
}

void frames_init(struct frame *table, hpa_t end)
{
    CHECK(frames_below(end) < FRAME_NIL);
    memset(&frames, 0, sizeof(frames));
    memset(frame_cpus, 0, sizeof(frame_cpus));
    frames.table = table;
    frame_records = table;
    frames.limit = frames_below(end);
    spin_init(&frames.lock, "frames", RANK_FRAMES);
    frame_buddy_init();
    frame_zero_init();
}

void frames_add(hfn_t first, uint64_t count, enum frame_state state)
{
    CHECK(state == FRAME_FREE || state == FRAME_FUSOR);
    CHECK(first.raw <= frames.limit && count <= frames.limit - first.raw);
    uint32_t n = (uint32_t)first.raw;
    uint32_t end = n + (uint32_t)count;
    for (uint32_t i = n; i < end; i++) {
        CHECK(frame_record(i)->state == FRAME_NONE);
        frame_record(i)->state = (uint8_t)state;
    }
    atomic_fetch_add(&frames.total, count);
    struct frame_cpu *c = frame_this_cpu();
    uint32_t begun = frame_section_begin(c);
    frame_section_add(c, state, (int64_t)count);
    frame_section_end(c, begun);
    if (state != FRAME_FREE)
        return;

    spin_lock(&frames.lock);
    while (n < end) {
        // The largest aligned block that starts here and fits.
        unsigned order = n == 0 ? FRAME_MAX_ORDER : (unsigned)__builtin_ctz(n);
        order = MIN(order, FRAME_MAX_ORDER);
        while ((1u << order) > end - n)
            order--;
        frame_buddy_give(n, order);
        n += 1u << order;
    }
    frame_buddy_note_reserve();
    spin_unlock(&frames.lock);
}

void frames_count_files(uint64_t count)
{
    atomic_fetch_add(&frames.file_frames, count);
}

void frames_set_reserve(uint64_t count)
{
    spin_lock(&frames.lock);
    frames.reserve = count;
    frame_buddy_note_reserve();
    spin_unlock(&frames.lock);
}

uint64_t frames_reserve(void)
{
    return frames.reserve;
}

uint64_t frames_reserve_epoch(void)
{
    return atomic_load_explicit(&frames.reserve_epoch, memory_order_relaxed);
}

struct frame *frame_of(hfn_t n)
{
    if (n.raw >= frames.limit || frames.table[n.raw].state == FRAME_NONE)
        return NULL;
    return &frames.table[n.raw];
}

// The first eight bytes of a record are written at once: state, and order, flags and count zero.
typedef uint64_t __attribute__((may_alias)) record_head;
_Static_assert(offsetof(struct frame, state) == 0 && offsetof(struct frame, count) == 4,
               "state is the lowest byte of the record");

// Takes over frame `n`, which no list holds any more.
static inline void assign(uint32_t n, enum frame_state state)
{
    struct frame *f = frame_record(n);
    *(record_head *)f = state;
    f->owner = 0;
    f->gfn = 0;
}

// Round the cache, or a block. Not inlined, for the sake of frame_alloc's path.
__attribute__((noinline)) int frame_alloc_slowly(enum frame_state state, unsigned order,
                                                 unsigned flags, struct frame_account *account,
                                                 struct frame_account *holder, hfn_t *out)
{
    bool zeroed;
    uint32_t n = frame_take(order, flags, holder, &zeroed);
    if (n == FRAME_NIL)
        return E_NOMEM;
    uint32_t count = 1u << order;
    if (FUSOR_DEBUG && !zeroed)
        frame_poison_verify(n, count);
    if (FUSOR_DEBUG && zeroed)
        frame_poison_verify_zero(n);
    for (uint32_t i = n; i < n + count; i++)
        assign(i, state);
    frame_account_move(frame_this_cpu(), FRAME_FREE, state, count, account, count);
    if ((flags & FRAME_ZEROED) != 0 && !zeroed)
        memset(hfn_to_pointer(hfn(n)), 0, (size_t)count << PAGE_SHIFT);
    *out = hfn(n);
    return 0;
}

// A stack of this CPU's cache is empty.
__attribute__((noinline)) static int alloc_without_stack(enum frame_state state, unsigned flags,
                                                         struct frame_account *account, hfn_t *out)
{
    struct frame_cpu *c = frame_this_cpu();
    uint32_t n;
    // Without zeroed frames in the cache: fetch some from the pool, else zero a plain one.
    if ((flags & FRAME_ZEROED) == 0 ||
        atomic_load_explicit(&frames.zero_count, memory_order_relaxed) != 0 ||
        !frame_cache_pop(c, CACHE_PLAIN, &n))
        return frame_alloc_slowly(state, 0, flags, account, NULL, out);
    if (FUSOR_DEBUG)
        frame_poison_verify(n, 1);
    memset(hfn_to_pointer(hfn(n)), 0, PAGE_SIZE);
    assign(n, state);
    frame_account_move(c, FRAME_FREE, state, 1, account, 1);
    *out = hfn(n);
    return 0;
}

// The first touch of a guest page comes through here: from the zeroed stack of this CPU's cache it
// is some fifty instructions.
int frame_alloc(enum frame_state state, unsigned order, unsigned flags,
                struct frame_account *account, hfn_t *out)
{
    if (FUSOR_DEBUG) {
        CHECK(state > FRAME_FREE && state < FRAME_STATES);
        CHECK((state == FRAME_PRIVATE) == (account != NULL));
        CHECK(order <= FRAME_MAX_ORDER);
    }
    bool reserve_short = atomic_load_explicit(&frames.reserve_short, memory_order_relaxed);
    if (order != 0 || (reserve_short && (flags & FRAME_RESERVE) == 0))
        return frame_alloc_slowly(state, order, flags, account, NULL, out);

    struct frame_cpu *c = frame_this_cpu();
    unsigned kind = flags & FRAME_ZEROED;
    uint32_t n;
    if (!frame_cache_pop(c, kind, &n))
        return alloc_without_stack(state, flags, account, out);
    if (FUSOR_DEBUG) {
        if (kind == CACHE_ZEROED)
            frame_poison_verify_zero(n);
        else
            frame_poison_verify(n, 1);
    }
    assign(n, state);
    frame_account_move(c, FRAME_FREE, state, 1, account, 1);
    *out = hfn(n);
    return 0;
}

void frame_release(hfn_t first, unsigned order, struct frame_account *account)
{
    CHECK(order <= FRAME_MAX_ORDER && (first.raw & ((UINT64_C(1) << order) - 1)) == 0);
    CHECK(first.raw < frames.limit && UINT64_C(1) << order <= frames.limit - first.raw);
    uint32_t n = (uint32_t)first.raw;
    uint32_t count = 1u << order;
    enum frame_state state = (enum frame_state)frame_record(n)->state;
    CHECK(state != FRAME_FREE); // a double free
    CHECK(state != FRAME_NONE);
    CHECK((state == FRAME_PRIVATE) == (account != NULL));
    for (uint32_t i = n; i < n + count; i++) {
        struct frame *f = frame_record(i);
        CHECK(f->state == state);
        f->state = FRAME_FREE;
        f->order = 0;
        f->flags = 0;
        if (state == FRAME_PRIVATE)
            __atomic_store_n(&f->version, f->version + 1, __ATOMIC_RELEASE);
    }
    if (FUSOR_DEBUG)
        frame_poison_fill(n, count);
    frame_account_move(frame_this_cpu(), state, FRAME_FREE, count, account, -(int64_t)count);
}

void frame_free(hfn_t first, unsigned order, struct frame_account *account)
{
    frame_release(first, order, account);
    frame_give((uint32_t)first.raw, order);
}
