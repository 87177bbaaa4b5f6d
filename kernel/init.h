// SPDX-License-Identifier: BSD-2-Clause
// How higher rooms take part in bring-up without kernel/ knowing them: they register functions in
// a linker section (the idea is Jailhouse's).
//
// Levels run in rising order. At each level CPU 0 first runs the INIT_HOOKs of that level, then
// every online CPU (CPU 0 too) runs the CPU_INIT_HOOKs of that level, and CPU 0 goes on only when
// all are through. Within a level the order is undefined.
#pragma once

#include "kernel/boot_info.h"
#include "kernel/types.h"

enum init_level {
    INIT_VMX = 10,     // VT-x checked, VMXON on every CPU
    INIT_EPT = 20,     // EPT tables and fault hooks
    INIT_VM = 30,      // VM table, memory
    INIT_DEVICES = 40, // device models
    INIT_SHELL = 90,   // console, configuration, autostart
};

// The section is read as an array: size and alignment must agree whatever the compiler adds.
struct init_hook {
    int level;
    int (*function)(const struct boot_info *info); // or
    int (*cpu_function)(void);
    const char *name;
} __attribute__((aligned(32)));
_Static_assert(sizeof(struct init_hook) == 32, "stride of .init_hooks");

#define INIT_CONCAT2(a, b) a##b
#define INIT_CONCAT(a, b)  INIT_CONCAT2(a, b)

// `hook` is `int hook(const struct boot_info *)`, run once, on CPU 0, interrupts off. A negative
// result means that Fusor cannot run: it says so and stops (status "refused").
#define INIT_HOOK(hook_level, hook)                                                                \
    static const struct init_hook INIT_CONCAT(init_hook_, hook)                                    \
        __attribute__((used, aligned(8), section(".init_hooks"))) = {.level = (hook_level),        \
                                                                     .function = (hook)}

// `hook` is `int hook(void)`, run on every CPU. Where it fails, that CPU is left out, or, on CPU 0,
// Fusor stops as above.
#define CPU_INIT_HOOK(hook_level, hook)                                                            \
    static const struct init_hook INIT_CONCAT(cpu_init_hook_, hook)                                \
        __attribute__((used, aligned(8), section(".init_hooks"))) = {                              \
            .level = (hook_level), .cpu_function = (hook), .name = #hook}

// Runs all hooks; on CPU 0, when the others wait in init_join().
void init_run(const struct boot_info *info);
// What every other CPU does meanwhile; returns when all levels are through.
void init_join(void);

// The boot stage's record, readable for ever.
const struct boot_info *boot_info_get(void);
// Text of \fusor\fusor.conf (not terminated), or NULL without one. Sets *size.
const char *boot_config_text(size_t *size);
