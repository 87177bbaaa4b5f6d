// SPDX-License-Identifier: BSD-2-Clause
#include "fusion_gives.h"

#include "fusion_cpus.h"

#define LIST_MAX 8u

enum { FREE, OWNED, CLOSING };

struct gives_happened gives_happened;

static struct page {
    uint8_t owner; // FREE...
    uint8_t users; // or, when it is owned, who does wild things
    bool spoiled;  // its content is not known any more
} pages[WORLD_VMS][WORLD_GFNS];

typedef int64_t (*list_call)(struct vm *vm, const uint64_t *entries, unsigned count);
static const list_call calls[] = {balloon_inflate, balloon_free_pages, balloon_deflate};

void gives_start(unsigned n)
{
    memset(pages[n], 0, sizeof(pages[n]));
}

bool gives_use(unsigned n, uint64_t gfn)
{
    struct page *p = &pages[n][gfn];
    p->users = (uint8_t)(p->users + (p->owner == FREE));
    return p->owner == FREE;
}

void gives_used(unsigned n, uint64_t gfn)
{
    pages[n][gfn].users--;
}

static bool own(unsigned n, uint64_t gfn, unsigned count)
{
    for (unsigned i = 0; i < count; i++)
        if (pages[n][gfn + i].owner != FREE || pages[n][gfn + i].users != 0)
            return false;
    for (unsigned i = 0; i < count; i++)
        pages[n][gfn + i].owner = OWNED;
    return true;
}

static void learn(unsigned n, uint64_t gfn)
{
    if (guest_read(&world.vm[n], gpa(gfn << PAGE_SHIFT), world_model(n, gfn), PAGE_SIZE) != 0)
        abort();
}

static void let_go(unsigned n, uint64_t gfn, unsigned count)
{
    for (unsigned i = 0; i < count; i++)
        pages[n][gfn + i].owner = CLOSING;
    for (unsigned i = 0; i < count; i++) {
        struct page *p = &pages[n][gfn + i];
        while (p->users != 0)
            cpus_yield();
        if (p->spoiled)
            learn(n, gfn + i);
        p->spoiled = false;
        p->owner = FREE;
    }
}

static void is_zero(unsigned n, uint64_t gfn, unsigned count)
{
    for (unsigned i = 0; i < count; i++)
        if (world.model[n][gfn + i] != NULL)
            memset(world.model[n][gfn + i], 0, PAGE_SIZE);
}

// What the call answers for `count` entries of `size` pages; those that were given are zero.
static void note(unsigned n, list_call work, const uint64_t *gfns, int64_t done, unsigned size)
{
    gives_happened.refused += done <= 0;
    for (int64_t i = 0; i < done; i++) {
        if (work == balloon_deflate) {
            gives_happened.deflated += size;
            continue;
        }
        *(work == balloon_inflate ? &gives_happened.inflated : &gives_happened.reported) += size;
        is_zero(n, gfns[i], size);
    }
}

void gives_work(unsigned cpu, unsigned n, unsigned count, unsigned order, uint64_t (*pick)(void),
                unsigned (*below)(unsigned))
{
    uint64_t gfns[LIST_MAX], entries[LIST_MAX];
    unsigned owned = 0, size = 1u << order;
    for (unsigned i = 0; i < MIN(count, LIST_MAX); i++) {
        uint64_t gfn = pick() & ~(uint64_t)(size - 1);
        if (!own(n, gfn, size))
            continue;
        gfns[owned] = gfn;
        entries[owned++] = FUSOR_ENTRY(gfn, 0, order);
    }
    for (unsigned turns = 1 + below(4); turns > 0 && owned != 0; turns--) {
        list_call work = calls[below(ARRAY_SIZE(calls))];
        note(n, work, gfns, work(&world.vm[n], entries, owned), size);
        uint64_t look = gfns[below(owned)] + below(size);
        if (below(2) == 0 && !pages[n][look].spoiled) {
            const uint8_t *page = world_access(cpu, n, look, READ);
            if (page != NULL && !pages[n][look].spoiled &&
                memcmp(page, world_model(n, look), PAGE_SIZE) != 0)
                world.stale++;
            world_leave(cpu);
        }
        cpus_yield();
    }
    for (unsigned i = 0; i < owned; i++)
        let_go(n, gfns[i], size);
}

void gives_wild(unsigned cpu, unsigned n, uint64_t gfn, unsigned (*below)(unsigned))
{
    struct page *p = &pages[n][gfn];
    if (p->owner != OWNED)
        return;
    uint64_t junk = UINT64_C(0x1111111111111111) * below(16);
    unsigned what = below(6);
    uint8_t *page;
    p->users++;
    p->spoiled |= what != 0;
    gives_happened.wild++;
    world_leave(cpu);
    switch (what) {
    case 0:
        world_access(cpu, n, gfn, READ);
        break;
    case 1:
        page = world_access(cpu, n, gfn, READ | WRITE);
        if (page != NULL)
            memcpy(page + 8 * below(512), &junk, 8);
        break;
    case 2:
        guest_write(&world.vm[n], gpa((gfn << PAGE_SHIFT) + 8 * below(512)), &junk, 8);
        break;
    default: {
        uint64_t entry = FUSOR_ENTRY(gfn, 0, 0);
        calls[what - 3](&world.vm[n], &entry, 1);
        break;
    }
    }
    world_leave(cpu);
    p->users--;
}
