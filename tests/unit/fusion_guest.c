// SPDX-License-Identifier: BSD-2-Clause
// The CPUs of the tests of fusion: translations as hardware caches them, faults, and guests whose
// every write is noted and every read compared.
#include "fusion_world.h"

#include "ept/entry.h"

struct ept_leaf __real_ept_lookup(struct ept *ept, gfn_t gfn);

// --- CPUs ---

static void drop_tlb(struct world_cpu *c, uint64_t eptp)
{
    for (unsigned i = 0; i < WORLD_TLB; i++)
        if (eptp == 0 || c->tlb[i].eptp == eptp)
            c->tlb[i].eptp = 0;
}

void world_invept(void)
{
    struct world_cpu *c = &world.cpu[cpu_index()];
    bool all = c->alls != fake_invept_alls[cpu_index()];
    c->alls = fake_invept_alls[cpu_index()];
    drop_tlb(c, all ? 0 : fake_invept_last[cpu_index()]);
}

void world_leave(unsigned cpu)
{
    if (world.cpu[cpu].vm == NOBODY)
        return;
    world.cpu[cpu].vm = NOBODY;
    ept_guest_end(cpu);
}

unsigned world_use(unsigned cpu)
{
    unsigned before = cpu_index();
    world_leave(cpu);
    fake_set_cpu(cpu);
    return before;
}

static void enter(unsigned cpu, unsigned n)
{
    struct world_cpu *c = &world.cpu[cpu];
    if (c->vm == n)
        return;
    world_leave(cpu);
    unsigned before = cpu_index();
    fake_set_cpu(cpu);
    ept_guest_begin(&world.vm[n].ept, cpu);
    fake_set_cpu(before);
    c->vm = n;
}

static struct world_tlb *tlb_place(struct world_cpu *c, uint64_t eptp, uint64_t gfn)
{
    return &c->tlb[(gfn ^ eptp >> 12) * 0x9e3779b1 >> 16 & (WORLD_TLB - 1)];
}

// The CPU's page walker; NULL after filling in *leaf: an EPT violation.
static struct world_tlb *walk(struct world_cpu *c, struct vm *vm, uint64_t n, unsigned needed,
                              struct ept_leaf *leaf)
{
    for (;;) {
        *leaf = __real_ept_lookup(&vm->ept, (gfn_t){n});
        if (!leaf->present || (needed & ~leaf->permissions) != 0)
            return NULL;
        struct ept_slot slot = ept_find(&vm->ept, (gfn_t){n});
        uint64_t value =
            arch_ept_set_accessed_dirty(slot.value, slot.level, true, (needed & EPT_WRITE) != 0);
        if (ept_slot_change(&slot, value))
            break;
    }
    uint64_t base = n & ~(ept_span((int)leaf->level) - 1);
    struct world_tlb *e = tlb_place(c, vm->ept.eptp, base);
    *e = (struct world_tlb){vm->ept.eptp,
                            base,
                            leaf->frame.raw - (n - base),
                            leaf->permissions,
                            (int)leaf->level,
                            (needed & EPT_WRITE) != 0};
    return e;
}

static struct world_tlb *cached(struct world_cpu *c, uint64_t eptp, uint64_t n)
{
    for (int level = EPT_4K; level <= EPT_2M; level++) {
        uint64_t base = n & ~(ept_span(level) - 1);
        struct world_tlb *e = tlb_place(c, eptp, base);
        if (e->eptp == eptp && e->gfn == base && e->level == level)
            return e;
    }
    return NULL;
}

const uint8_t *world_cached(unsigned cpu, uint64_t gfn)
{
    struct world_cpu *c = &world.cpu[cpu];
    if (c->vm == NOBODY)
        return NULL;
    const struct world_tlb *e = cached(c, world.vm[c->vm].ept.eptp, gfn);
    return e == NULL ? NULL : hfn_to_pointer(hfn(e->frame + (gfn - e->gfn)));
}

uint8_t *world_access(unsigned cpu, unsigned n, uint64_t gfn, unsigned access)
{
    struct world_cpu *c = &world.cpu[cpu];
    struct vm *vm = &world.vm[n];
    unsigned needed = access & (READ | WRITE | FETCH); // as enum ept_permissions
    struct ept_leaf leaf;
    for (unsigned turn = 0; turn < 1000; turn++) {
        enter(cpu, n);
        struct world_tlb *e = cached(c, vm->ept.eptp, gfn);
        // The dirty flag is set by a walk.
        if (e != NULL &&
            ((needed & ~e->permissions) != 0 || ((needed & WRITE) != 0 && !e->dirty))) {
            e->eptp = 0;
            e = NULL;
        }
        if (e == NULL)
            e = walk(c, vm, gfn, needed, &leaf);
        if (e != NULL)
            return hfn_to_pointer(hfn(e->frame + (gfn - e->gfn)));
        struct ept_fault fault = {
            .address = gfn_to_gpa((gfn_t){gfn}),
            .read = (access & READ) != 0,
            .write = (access & WRITE) != 0,
            .fetch = (access & FETCH) != 0,
            .page_walk = (access & WALK) != 0,
            .leaf = leaf,
        };
        unsigned before = world_use(cpu);
        enum ept_fault_result result = ept_run_fault_hooks(vm, &fault);
        fake_set_cpu(before);
        if (result == EPT_FAULT_WAIT && world.may_wait)
            return NULL;
        if (result != EPT_FAULT_RETRY)
            fail_msg("VM %u gfn %#lx access %u: fault answered with %u", n, gfn, access, result);
    }
    fail_msg("VM %u gfn %#lx: faults for ever", n, gfn);
    return NULL;
}

// --- Guests and their model ---

uint8_t *world_model(unsigned n, uint64_t gfn)
{
    assert_true(gfn < WORLD_GFNS);
    if (world.model[n][gfn] == NULL)
        world.model[n][gfn] = calloc(1, PAGE_SIZE);
    return world.model[n][gfn];
}

static void compare(const uint8_t *page, unsigned cpu, unsigned n, uint64_t gfn)
{
    static const uint8_t zeros[PAGE_SIZE];
    const uint8_t *m = world.model[n][gfn] != NULL ? world.model[n][gfn] : zeros;
    if (memcmp(page, m, PAGE_SIZE) != 0) {
        world.stale++;
        if (world.coroutines)
            print_error("CPU %u VM %u gfn %#lx: read %#lx, written was %#lx\n", cpu, n, gfn,
                        *(const uint64_t *)(const void *)page, *(const uint64_t *)(const void *)m);
    }
}

bool store(unsigned cpu, unsigned n, uint64_t gfn, unsigned offset, uint64_t value)
{
    uint8_t *page = world_access(cpu, n, gfn, READ | WRITE);
    if (page == NULL)
        return false;
    memcpy(page + offset, &value, sizeof(value));
    memcpy(world_model(n, gfn) + offset, &value, sizeof(value));
    return true;
}

void fill(unsigned cpu, unsigned n, uint64_t gfn, uint64_t pattern)
{
    uint8_t *page = world_access(cpu, n, gfn, READ | WRITE);
    uint64_t *m = (uint64_t *)(void *)world_model(n, gfn);
    assert_non_null(page);
    for (unsigned i = 0; i < PAGE_SIZE / sizeof(*m); i++)
        m[i] = pattern == 0 ? 0 : pattern + i;
    memcpy(page, m, PAGE_SIZE);
}

void load(unsigned cpu, unsigned n, uint64_t gfn)
{
    const uint8_t *page = world_access(cpu, n, gfn, READ);
    if (page != NULL)
        compare(page, cpu, n, gfn);
}

int fusor_write(unsigned n, uint64_t address, const void *data, size_t size)
{
    world_leave(cpu_index());
    int status = guest_write(&world.vm[n], gpa(address), data, size);
    for (size_t i = 0; status == 0 && i < size; i++)
        world_model(n, (address + i) >> PAGE_SHIFT)[(address + i) & PAGE_MASK] =
            ((const uint8_t *)data)[i];
    return status;
}

void fusor_read(unsigned n, uint64_t gfn)
{
    static uint8_t page[WORLD_CPUS][PAGE_SIZE];
    uint8_t *to = page[cpu_index()];
    world_leave(cpu_index());
    assert_int_equal(guest_read(&world.vm[n], gpa(gfn << PAGE_SHIFT), to, PAGE_SIZE), 0);
    compare(to, cpu_index(), n, gfn);
}
