// SPDX-License-Identifier: BSD-2-Clause
// The pretended machine of the host tests: memory arena, CPUs, clock, panic.
#include "fake.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "kernel/log.h"
#include "kernel/panic.h"
#include "kernel/percpu.h"
#include "kernel/time.h"
#include "kernel/trace.h"

uint8_t *fake_ram;
uint64_t fake_ram_size;
uint64_t fake_tsc;
bool fake_irq_on;
struct cpu cpus[MAX_CPUS];
uint32_t cpu_count = 1;
struct cpu *fake_cpu = &cpus[0];
uint64_t tsc_hz = 1000000000;
jmp_buf fake_panic_jump;
bool fake_panic_expected;

void fake_machine(uint64_t ram_bytes, unsigned cpu_number)
{
    if (fake_ram_size !=
        ram_bytes) { // else what is there is used again: most tests' time went there
        free(fake_ram);
        fake_ram = ram_bytes != 0 ? aligned_alloc(4096, ram_bytes) : NULL;
        if (fake_ram == NULL && ram_bytes != 0)
            abort();
        fake_ram_size = ram_bytes;
    }
    if (ram_bytes != 0)
        memset(fake_ram, 0xa5, ram_bytes);
    memset(cpus, 0, sizeof(cpus));
    cpu_count = cpu_number;
    for (unsigned i = 0; i < cpu_number; i++) {
        cpus[i].self = &cpus[i];
        cpus[i].index = i;
        cpus[i].apic_id = i;
        cpus[i].online = 1;
    }
    fake_set_cpu(0);
}

void fake_set_cpu(unsigned index)
{
    fake_cpu = &cpus[index];
}

// A test that expects a panic uses the macro fake_expect_panic(); any other panic fails it.
_Noreturn void panic(const char *format, ...)
{
    if (fake_panic_expected)
        longjmp(fake_panic_jump, 1);
    va_list args;
    va_start(args, format);
    fputs("panic: ", stderr);
    vfprintf(stderr, format, args);
    fputc('\n', stderr);
    va_end(args);
    abort();
}

__attribute__((weak)) void log_write(enum log_level level, const char *format, ...)
{
    (void)level;
    (void)format;
}

__attribute__((weak)) _Atomic bool trace_enabled;

__attribute__((weak)) void trace_record(enum trace_event event, const char *who, const char *what,
                                        uint64_t a, uint64_t b, uint64_t c)
{
    (void)event;
    (void)who;
    (void)what;
    (void)a;
    (void)b;
    (void)c;
}
