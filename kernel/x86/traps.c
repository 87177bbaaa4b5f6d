// SPDX-License-Identifier: BSD-2-Clause
// Exceptions, NMIs and interrupts that arrive in root mode.
#include <arch/host_state.h>

#include "kernel/format.h"
#include "kernel/irq.h"
#include "kernel/watchdog.h"
#include "kernel/x86/machine.h"

#define VECTOR_NMI           2u
#define VECTOR_MACHINE_CHECK 18u
#define EXCEPTIONS           32u

// arch/safe.h: an instruction that may fault, and where to go on.
struct fixup {
    uint64_t at, resume;
};
extern const struct fixup fixups_start[], fixups_end[];

static void (*_Atomic nmi_hook)(void);

void arch_set_nmi_hook(void (*hook)(void))
{
    nmi_hook = hook;
}

static const char *exception_name(uint64_t vector)
{
    static const char *const names[] = {
        [0] = "divide error",        [1] = "debug exception",
        [3] = "breakpoint",          [4] = "overflow",
        [5] = "bound range",         [6] = "invalid opcode",
        [7] = "no coprocessor",      [8] = "double fault",
        [10] = "invalid TSS",        [11] = "segment not present",
        [12] = "stack fault",        [13] = "general protection",
        [14] = "page fault",         [16] = "x87 error",
        [17] = "alignment check",    [18] = "machine check",
        [19] = "SIMD error",         [20] = "virtualization exception",
        [21] = "control protection",
    };
    return vector < ARRAY_SIZE(names) && names[vector] != NULL ? names[vector] : "exception";
}

static bool apply_fixup(struct trap_frame *frame)
{
    size_t count = ((uintptr_t)fixups_end - (uintptr_t)fixups_start) / sizeof(struct fixup);
    for (size_t i = 0; i < count; i++) {
        if (fixups_start[i].at == frame->rip) {
            frame->rip = fixups_start[i].resume;
            return true;
        }
    }
    return false;
}

static void serve_nmi(uintptr_t pc, uintptr_t frame_pointer, bool in_guest)
{
    machine_serve_stop();
    watchdog_nmi(pc, frame_pointer);
    if (in_guest)
        return;
    this_cpu()->kicked = 1;
    void (*hook)(void) = nmi_hook;
    if (hook != NULL)
        hook();
}

void irq_handle_nmi(bool in_guest)
{
    serve_nmi((uintptr_t)__builtin_return_address(0), (uintptr_t)__builtin_frame_address(0),
              in_guest);
}

void trap_handle(struct trap_frame *frame)
{
    if (frame->vector >= EXCEPTIONS) {
        irq_dispatch((unsigned)frame->vector);
        return;
    }
    if (frame->vector == VECTOR_NMI) {
        serve_nmi(frame->rip, frame->rbp, false);
        return;
    }
    if (frame->vector == VECTOR_MACHINE_CHECK) {
        char report[160];
        machine_check_report(report, sizeof(report));
        panic_trap(frame, report);
    }
    if (apply_fixup(frame))
        return;

    char what[80];
    format_text(what, sizeof(what), "%s (vector %lu, error 0x%lx)", exception_name(frame->vector),
                (unsigned long)frame->vector, (unsigned long)frame->error);
    panic_trap(frame, what);
}
