// SPDX-License-Identifier: BSD-2-Clause
#include "kernel/init.h"

#include "kernel/error.h"
#include "kernel/log.h"
#include "kernel/percpu.h"
#include "kernel/power.h"
#include "kernel/serial.h"
#include <arch/halt.h>

extern const struct init_hook init_hooks_start[], init_hooks_end[];

#define ALL_THROUGH INT32_MAX

static size_t hook_count(void)
{
    return ((uintptr_t)init_hooks_end - (uintptr_t)init_hooks_start) / sizeof(struct init_hook);
}

static _Atomic int32_t cpu_level = INT32_MIN; // CPU hooks up to this level may run
static _Atomic uint32_t through;              // other CPUs that are through with cpu_level

// The lowest level above `level` that has a hook, or ALL_THROUGH.
static int next_level(int level)
{
    int next = ALL_THROUGH;
    for (size_t i = 0; i < hook_count(); i++)
        if (init_hooks_start[i].level > level)
            next = MIN(next, init_hooks_start[i].level);
    return next;
}

static void say_failed(const struct init_hook *hook, int error)
{
    log_error("start-up: %s (level %d) failed on CPU %u: %s", hook->name, hook->level, cpu_index(),
              error_text(error));
}

static _Noreturn void refuse(void)
{
    log_error("Fusor cannot run on this machine and has stopped.");
    serial_drain();
    power_tell_emulator("refused");
    arch_halt();
}

static bool run_cpu_hooks(int level)
{
    for (size_t i = 0; i < hook_count(); i++) {
        const struct init_hook *h = &init_hooks_start[i];
        if (h->level != level || h->cpu_function == NULL)
            continue;
        int error = h->cpu_function();
        if (error < 0) {
            say_failed(h, error);
            return false;
        }
    }
    return true;
}

static void let_others_run(int level)
{
    uint32_t others = 0;
    for (uint32_t i = 0; i < cpu_count; i++)
        others += i != cpu_index() && cpus[i].online ? 1 : 0;
    through = 0;
    cpu_level = level;
    while (through < others)
        cpu_relax();
}

void init_run(const struct boot_info *info)
{
    for (int level = next_level(INT32_MIN); level != ALL_THROUGH; level = next_level(level)) {
        for (size_t i = 0; i < hook_count(); i++) {
            const struct init_hook *h = &init_hooks_start[i];
            if (h->level != level || h->function == NULL)
                continue;
            int error = h->function(info);
            if (error < 0) {
                say_failed(h, error);
                refuse();
            }
        }
        if (!run_cpu_hooks(level))
            refuse();
        let_others_run(level);
    }
    cpu_level = ALL_THROUGH;
}

void init_join(void)
{
    for (int done = INT32_MIN;;) {
        while (cpu_level == done)
            cpu_relax();
        done = cpu_level;
        if (done == ALL_THROUGH)
            return;
        bool good = run_cpu_hooks(done);
        if (!good) {
            log_error("CPU %u is left out", cpu_index());
            this_cpu()->online = 0;
        }
        through++;
        if (!good)
            arch_halt();
    }
}
