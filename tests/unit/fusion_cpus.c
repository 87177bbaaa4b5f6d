// SPDX-License-Identifier: BSD-2-Clause
#include "fusion_cpus.h"

#include <ucontext.h>

#define STACK_SIZE (256 * 1024)

bool cpu_finished[WORLD_CPUS];
static ucontext_t main_context, context[WORLD_CPUS];
static char stacks[WORLD_CPUS][STACK_SIZE];
static void (*functions[WORLD_CPUS])(void);

static void run(void)
{
    unsigned cpu = cpu_index();
    functions[cpu]();
    cpu_finished[cpu] = true;
    for (;;)
        cpus_yield();
}

void cpus_make(unsigned cpu, void (*function)(void))
{
    getcontext(&context[cpu]);
    context[cpu].uc_stack.ss_sp = stacks[cpu];
    context[cpu].uc_stack.ss_size = STACK_SIZE;
    context[cpu].uc_link = NULL;
    makecontext(&context[cpu], run, 0);
    functions[cpu] = function;
    cpu_finished[cpu] = false;
}

void cpus_resume(unsigned cpu)
{
    fake_set_cpu(cpu);
    swapcontext(&main_context, &context[cpu]);
    fake_set_cpu(0);
}

void cpus_take_nmi(unsigned cpu)
{
    if (!world.cpu[cpu].nmi)
        return;
    world.cpu[cpu].nmi = false;
    world_leave(cpu); // in root mode: nothing to leave
}

void cpus_yield(void)
{
    unsigned self = cpu_index();
    swapcontext(&context[self], &main_context);
    cpus_take_nmi(self);
}
