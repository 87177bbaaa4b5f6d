// SPDX-License-Identifier: BSD-2-Clause
// The heap: slabs of one frame with objects of one size class, and runs of whole frames.
//
// A slab has no header: what the heap must know about a frame stands in its struct frame, which is
// the owner's to use while the state is FRAME_FUSOR. So objects of 2048 bytes fit twice, and every
// class that is a multiple of 16 is aligned to 16.
//
//   order  size class of a slab               count  objects in use, or pages of a run
//   flags  HEAP_SLAB or HEAP_RUN              gfn    offset of the first free object, or NO_OBJECT
//   free   links in the class's list of slabs with a free object
//
// A free object holds the offset of the next one in its first two bytes.
#include "kernel/heap.h"

#include "kernel/frames.h"
#include "kernel/lock.h"
#include "kernel/memory.h"
#include "kernel/panic.h"
#include "kernel/string.h"

#ifndef FUSOR_DEBUG
#define FUSOR_DEBUG 0
#endif

#define HEAP_SLAB   (1u << 8) // struct frame.flags: the high byte is the owner's
#define HEAP_RUN    (1u << 9)
#define NO_OBJECT   0xffffu
#define NO_SLAB     UINT32_MAX
#define POISON      0xdf
#define BIGGEST     2048u
#define CLASS_COUNT ARRAY_SIZE(class_size)

// The odd ones divide a frame with little waste: 12 x 336, 6 x 672, 3 x 1360.
static const uint16_t class_size[] = {16,  32,  48,  64,  96,   128,  192,
                                      256, 336, 512, 672, 1024, 1360, 2048};

static struct spinlock lock = SPINLOCK_INIT("heap", RANK_HEAP);
// First slab of each class that has a free object, plus one: zero is none.
static uint32_t partial[CLASS_COUNT];

static unsigned class_of(size_t size)
{
    unsigned c = 0;
    while (class_size[c] < size)
        c++;
    return c;
}

static uint8_t *page_of(uint32_t n)
{
    return hfn_to_pointer(hfn(n));
}

static void list_add(unsigned c, uint32_t n)
{
    struct frame *f = frame_of(hfn(n));
    f->free.prev = NO_SLAB;
    f->free.next = partial[c] - 1;
    if (f->free.next != NO_SLAB)
        frame_of(hfn(f->free.next))->free.prev = n;
    partial[c] = n + 1;
}

static void list_drop(unsigned c, uint32_t n)
{
    struct frame *f = frame_of(hfn(n));
    if (f->free.next != NO_SLAB)
        frame_of(hfn(f->free.next))->free.prev = f->free.prev;
    if (f->free.prev != NO_SLAB)
        frame_of(hfn(f->free.prev))->free.next = f->free.next;
    else
        partial[c] = f->free.next + 1;
}

typedef uint16_t __attribute__((may_alias)) object_link;

static uint16_t next_free(const uint8_t *object)
{
    return *(const object_link *)object;
}

static void set_next_free(uint8_t *object, uint16_t next)
{
    *(object_link *)object = next;
}

void heap_init(void)
{
    spin_init(&lock, "heap", RANK_HEAP);
    memset(partial, 0, sizeof(partial));
}

// Makes a slab of class `c` and puts it into the list. Returns false without a frame.
static bool add_slab(unsigned c)
{
    hfn_t n;
    if (frame_alloc(FRAME_FUSOR, 0, FRAME_RESERVE, NULL, &n) != 0)
        return false;
    struct frame *f = frame_of(n);
    f->flags = HEAP_SLAB;
    f->order = (uint8_t)c;
    f->count = 0;
    f->gfn = 0;
    uint8_t *page = page_of((uint32_t)n.raw);
    if (FUSOR_DEBUG)
        memset(page, POISON, PAGE_SIZE);
    unsigned size = class_size[c];
    unsigned last = ((unsigned)PAGE_SIZE / size - 1) * size;
    for (unsigned offset = 0; offset < last; offset += size)
        set_next_free(page + offset, (uint16_t)(offset + size));
    set_next_free(page + last, NO_OBJECT);
    list_add(c, (uint32_t)n.raw);
    return true;
}

static void *alloc_object(unsigned c)
{
    spin_lock(&lock);
    if (partial[c] == 0 && !add_slab(c)) {
        spin_unlock(&lock);
        return NULL;
    }
    uint32_t n = partial[c] - 1;
    struct frame *f = frame_of(hfn(n));
    unsigned offset = (unsigned)f->gfn;
    CHECK(offset % class_size[c] == 0 && offset + class_size[c] <= PAGE_SIZE);
    uint8_t *object = page_of(n) + offset;
    f->gfn = next_free(object);
    f->count++;
    if (f->gfn == NO_OBJECT)
        list_drop(c, n);
    spin_unlock(&lock);
    for (unsigned i = sizeof(uint16_t); FUSOR_DEBUG && i < class_size[c]; i++)
        CHECK(object[i] == POISON); // nobody wrote to it while it was free
    memset(object, 0, class_size[c]);
    return object;
}

// Frees the frames [n, n + pages) in the largest aligned blocks.
static void free_frames(uint64_t n, uint64_t pages)
{
    while (pages != 0) {
        unsigned order = 0;
        while (order < FRAME_MAX_ORDER && (n & (UINT64_C(1) << order)) == 0 &&
               UINT64_C(2) << order <= pages)
            order++;
        frame_free(hfn(n), order, NULL);
        n += UINT64_C(1) << order;
        pages -= UINT64_C(1) << order;
    }
}

static void *alloc_run(size_t size)
{
    uint64_t pages = size / PAGE_SIZE + (size % PAGE_SIZE != 0);
    unsigned order = 0;
    while (order < FRAME_MAX_ORDER && UINT64_C(1) << order < pages)
        order++;
    hfn_t n;
    if (UINT64_C(1) << order < pages ||
        frame_alloc(FRAME_FUSOR, order, FRAME_RESERVE, NULL, &n) != 0)
        return NULL;
    // What the power of two is too much goes back at once.
    free_frames(n.raw + pages, (UINT64_C(1) << order) - pages);
    struct frame *f = frame_of(n);
    f->flags = HEAP_RUN;
    f->count = (uint32_t)pages;
    void *p = hfn_to_pointer(n);
    memset(p, 0, pages << PAGE_SHIFT);
    return p;
}

void *heap_alloc(size_t size)
{
    if (size > BIGGEST)
        return alloc_run(size);
    return alloc_object(class_of(size));
}

static void free_object(struct frame *f, uint32_t n, unsigned offset)
{
    spin_lock(&lock);
    unsigned c = f->order;
    CHECK(c < CLASS_COUNT && f->count != 0);
    CHECK(offset % class_size[c] == 0 && offset + class_size[c] <= PAGE_SIZE);
    uint8_t *page = page_of(n);
    if (FUSOR_DEBUG) {
        for (unsigned o = (unsigned)f->gfn; o != NO_OBJECT; o = next_free(page + o))
            CHECK(o != offset); // a double free
        memset(page + offset, POISON, class_size[c]);
    }
    if (f->gfn == NO_OBJECT)
        list_add(c, n);
    set_next_free(page + offset, (uint16_t)f->gfn);
    f->gfn = offset;
    f->count--;
    bool empty = f->count == 0;
    if (empty) {
        list_drop(c, n);
        f->flags = 0;
    }
    spin_unlock(&lock);
    if (empty)
        frame_free(hfn(n), 0, NULL);
}

void heap_free(void *p)
{
    if (p == NULL)
        return;
    hpa_t a = pointer_to_hpa(p);
    hfn_t n = hpa_to_hfn(a);
    struct frame *f = frame_of(n);
    unsigned offset = (unsigned)(a.raw & PAGE_MASK);
    CHECK(f != NULL && f->state == FRAME_FUSOR);
    if ((f->flags & HEAP_SLAB) != 0) {
        free_object(f, (uint32_t)n.raw, offset);
        return;
    }
    CHECK((f->flags & HEAP_RUN) != 0 && offset == 0);
    uint32_t pages = f->count;
    f->flags = 0;
    free_frames(n.raw, pages);
}
