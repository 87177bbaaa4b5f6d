// SPDX-License-Identifier: BSD-2-Clause
// The end of everything. Nothing here takes a lock or allocates: the CPU that panics may hold any
// lock, and memory may be what is broken.
#include <stdatomic.h>

#include "kernel/panic.h"

#include <arch/safe.h>

#include "kernel/format.h"
#include "kernel/power.h"
#include "kernel/serial.h"
#include "kernel/string.h"
#include "kernel/symbols.h"
#include "kernel/time.h"
#include "kernel/x86/machine.h"
#include "kernel/x86/msr.h"

#define TRACE_DEPTH 24u

static _Atomic uint32_t stop_wanted; // enum stop_kind
static _Atomic uint32_t stopped;     // CPUs that obeyed
static _Atomic uint32_t panicking;   // index + 1 of the CPU that writes the report

_Noreturn void machine_halt(void)
{
    for (;;)
        __asm__ volatile("cli; hlt");
}

void machine_serve_stop(void)
{
    uint32_t kind = stop_wanted;
    if (kind == STOP_NONE)
        return;
    // A reset by INIT would hang on CPUs in VMX operation.
    if (kind == STOP_POWER)
        cpu_try_vmxoff();
    stopped++;
    machine_halt();
}

void machine_stop_others(enum stop_kind kind)
{
    stop_wanted = kind;
    if (!apic_ready())
        return;
    apic_send_nmi_others();
    uint32_t others = 0;
    for (uint32_t i = 0; i < cpu_count; i++)
        others += i != cpu_index() && cpus[i].online ? 1 : 0;
    // One that does not answer within 100 ms is beyond reach.
    uint64_t start = cpu_tsc(), limit = tsc_hz / 10;
    while (stopped < others && cpu_tsc() - start < limit)
        cpu_relax();
}

static void put(const char *format, ...) __attribute__((format(printf, 1, 2)));

static void put(const char *format, ...)
{
    char line[192];
    va_list args;
    va_start(args, format);
    int length = format_text_v(line, sizeof(line) - 2, format, args);
    va_end(args);
    size_t size = (size_t)MAX(length, 0);
    size = MIN(size, sizeof(line) - 3);
    line[size++] = '\r';
    line[size++] = '\n';
    serial_panic_write(line, size);
    fbcon_write(line, size);
}

static void put_trace(uintptr_t pc, uintptr_t frame, uintptr_t stack)
{
    char name[96];
    uintptr_t low, high, callers[TRACE_DEPTH];
    // After a stack overflow the stack pointer is in the guard page, the frame still above it.
    paging_stack_bounds(paging_readable(stack) ? stack : frame, &low, &high);
    symbol_name(pc, name, sizeof(name));
    put("  at %s", name);
    unsigned count = stack_walk(frame, low, high, callers, TRACE_DEPTH);
    for (unsigned i = 0; i < count; i++) {
        symbol_name(callers[i], name, sizeof(name));
        put("  by %s", name);
    }
}

// Becomes the one CPU that reports; all others halt here.
static void claim(void)
{
    uint32_t nobody = 0, self = cpu_index() + 1;
    cpu_irq_disable();
    if (!atomic_compare_exchange_strong(&panicking, &nobody, self)) {
        // A panic inside the report: nothing more can be said.
        if (nobody == self)
            power_tell_emulator("panic");
        stopped++;
        machine_halt();
    }
    machine_stop_others(STOP_PANIC);
}

static _Noreturn void finish(void)
{
    put("Fusor has stopped. Reset the machine.");
    power_tell_emulator("panic");
    machine_halt();
}

static void put_head(void)
{
    uint64_t us = time_tsc_to_us(time_since_boot());
    put(" ");
    put("*** PANIC on CPU %u, %lu.%06lu s after boot", cpu_index(), (unsigned long)(us / 1000000),
        (unsigned long)(us % 1000000));
}

static void put_control_registers(void)
{
    put("cr0 %016lx cr2 %016lx cr3 %016lx cr4 %016lx", (unsigned long)cpu_read_cr0(),
        (unsigned long)cpu_read_cr2(), (unsigned long)cpu_read_cr3(),
        (unsigned long)cpu_read_cr4());
}

_Noreturn void panic(const char *format, ...)
{
    claim();
    put_head();
    char text[192];
    va_list args;
    va_start(args, format);
    format_text_v(text, sizeof(text), format, args);
    va_end(args);
    put("%s", text);
    put_control_registers();
    uintptr_t frame = (uintptr_t)__builtin_frame_address(0);
    put_trace((uintptr_t)__builtin_return_address(0), *(uintptr_t *)frame, frame);
    finish();
}

_Noreturn void panic_trap(const struct trap_frame *frame, const char *what)
{
    claim();
    put_head();
    put("%s", what);
#define REGISTER(name) (unsigned long)frame->name
    put("rip %016lx rsp %016lx flags %08lx cs %lx ss %lx", REGISTER(rip), REGISTER(rsp),
        REGISTER(rflags), REGISTER(cs), REGISTER(ss));
    put("rax %016lx rbx %016lx rcx %016lx rdx %016lx", REGISTER(rax), REGISTER(rbx), REGISTER(rcx),
        REGISTER(rdx));
    put("rsi %016lx rdi %016lx rbp %016lx r8  %016lx", REGISTER(rsi), REGISTER(rdi), REGISTER(rbp),
        REGISTER(r8));
    put("r9  %016lx r10 %016lx r11 %016lx r12 %016lx", REGISTER(r9), REGISTER(r10), REGISTER(r11),
        REGISTER(r12));
    put("r13 %016lx r14 %016lx r15 %016lx", REGISTER(r13), REGISTER(r14), REGISTER(r15));
#undef REGISTER
    put_control_registers();
    put_trace(frame->rip, frame->rbp, frame->rsp);
    finish();
}

void machine_check_report(char *buffer, size_t size)
{
    unsigned banks = (unsigned)(cpu_read_msr(MSR_MCG_CAP) & 0xff);
    uint64_t global = cpu_read_msr(MSR_MCG_STATUS);
    for (unsigned i = 0; i < banks; i++) {
        uint64_t status = cpu_read_msr(MSR_MC0_STATUS + 4 * i);
        if ((status >> 63) == 0) // VAL
            continue;
        uint64_t address =
            (status & UINT64_C(1) << 58) != 0 ? cpu_read_msr(MSR_MC0_STATUS + 4 * i + 1) : 0;
        format_text(buffer, size,
                    "machine check: bank %u status 0x%lx address 0x%lx, MCG status 0x%lx", i,
                    (unsigned long)status, (unsigned long)address, (unsigned long)global);
        return;
    }
    format_text(buffer, size, "machine check without a bank, MCG status 0x%lx",
                (unsigned long)global);
}
