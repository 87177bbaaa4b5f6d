// SPDX-License-Identifier: BSD-2-Clause
// Fibers: functions with a stack of their own that give the CPU back by themselves.
//
// A fiber runs with interrupts on; handlers take no locks, so that is safe everywhere. Switching
// happens with interrupts off. A fiber that slept may continue on another CPU.
#include <stdatomic.h>

#include "kernel/heap.h"
#include "kernel/lock.h"
#include "kernel/paging.h"
#include "kernel/panic.h"
#include "kernel/percpu.h"
#include "kernel/sched.h"
#include "kernel/time.h"
#include "kernel/trace.h"

#define FIBER_STACK_PAGES 6u

struct fiber {
    struct sched_entity entity;
    void *stack_top;
    void *stack; // saved stack pointer while it does not run
    void (*function)(void *);
    void *argument;
    enum sched_next next;
    struct fiber *next_ended;
};

// What the scheduler's side saved, and who runs, per CPU.
static void *scheduler_stack[MAX_CPUS];
static struct fiber *running[MAX_CPUS];

// kernel/x86/switch.asm: saves the callee-saved registers and the stack pointer in *from, continues
// at to.
extern void fiber_switch(void **from, void *to);

struct fiber *fiber_current(void)
{
    return running[cpu_index()];
}

static void back_to_scheduler(enum sched_next next)
{
    CHECK(spin_none_held());
    cpu_irq_disable();
    struct fiber *self = fiber_current();
    CHECK(self != NULL);
    self->next = next;
    fiber_switch(&self->stack, scheduler_stack[cpu_index()]);
    cpu_irq_enable();
}

static void fiber_start(void)
{
    cpu_irq_enable();
    struct fiber *self = fiber_current();
    self->function(self->argument);
    back_to_scheduler(SCHED_EXIT);
    panic("a fiber that ended runs again");
}

// Fibers that ended; the next fiber_create frees those that the scheduler has let go of.
static struct fiber *_Atomic ended;

static void note_ended(struct fiber *f)
{
    f->next_ended = atomic_load(&ended);
    while (!atomic_compare_exchange_weak(&ended, &f->next_ended, f))
        ;
}

static void free_ended(void)
{
    struct fiber *f = atomic_exchange(&ended, NULL);
    while (f != NULL) {
        struct fiber *next = f->next_ended;
        if (sched_remove(&f->entity) == 0) {
            paging_free_stack(f->stack_top, FIBER_STACK_PAGES);
            heap_free(f);
        } else {
            note_ended(f);
        }
        f = next;
    }
}

static enum sched_next fiber_run(struct sched_entity *e, uint64_t until)
{
    (void)until;
    static const char *const leave_reasons[] = {
        [SCHED_AGAIN] = "yields", [SCHED_SLEEP] = "sleeps", [SCHED_EXIT] = "ends"};
    struct fiber *f = container_of(e, struct fiber, entity);
    uint32_t cpu = cpu_index();
    running[cpu] = f;
    fiber_switch(&scheduler_stack[cpu], f->stack);
    running[cpu] = NULL;
    enum sched_next next = f->next;
    if (trace_enabled && time_tsc() - e->since >= FIBER_HOLD_TICKS)
        trace_record(TRACE_FIBER, e->name, leave_reasons[next], time_tsc() - e->since, 0, 0);
    if (next == SCHED_EXIT)
        note_ended(f);
    return next;
}

struct fiber *fiber_create(const char *name, void (*function)(void *), void *argument)
{
    free_ended();
    struct fiber *f = heap_alloc(sizeof(*f));
    if (f == NULL)
        return NULL;
    f->stack_top = paging_alloc_stack(FIBER_STACK_PAGES);
    if (f->stack_top == NULL) {
        heap_free(f);
        return NULL;
    }
    f->function = function;
    f->argument = argument;
    // The frame fiber_switch pops: six registers, the return address; and the alignment that a
    // function expects at its start (RSP + 8 a multiple of 16).
    uint64_t *stack = f->stack_top;
    *--stack = 0;
    *--stack = (uintptr_t)fiber_start;
    for (unsigned i = 0; i < 6; i++)
        *--stack = 0;
    f->stack = stack;
    sched_entity_init(&f->entity, name, fiber_run);
    sched_add(&f->entity);
    sched_wake(&f->entity);
    return f;
}

void fiber_yield(void)
{
    back_to_scheduler(SCHED_AGAIN);
}

void fiber_give_way(void)
{
    fiber_current()->entity.gives_way = true;
    back_to_scheduler(SCHED_AGAIN);
}

void fiber_give_way_if_due(void)
{
    if (time_tsc() - fiber_current()->entity.since >= FIBER_HOLD_TICKS)
        fiber_give_way();
}

void fiber_sleep_until(uint64_t deadline)
{
    fiber_current()->entity.wake_deadline = deadline;
    back_to_scheduler(SCHED_SLEEP);
}

void fiber_wake(struct fiber *f)
{
    sched_wake(&f->entity);
}
