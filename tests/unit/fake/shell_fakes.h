// SPDX-License-Identifier: BSD-2-Clause
// The rooms below the console, pretended: a serial line with a small transmit ring, a scheduler
// that polls whenever the console waits, VMs that are records. For one translation unit per program
// (unit tests, fuzzing).
#pragma once

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "ept/ept.h"
#include "fake.h"
#include "fusion/fusion.h"
#include "kernel/error.h"
#include "kernel/files.h"
#include "kernel/frames.h"
#include "kernel/heap.h"
#include "kernel/log.h"
#include "kernel/paging.h"
#include "kernel/percpu.h"
#include "kernel/power.h"
#include "kernel/sched.h"
#include "kernel/serial.h"
#include "kernel/time.h"
#include "kernel/trace.h"
#include "shell/console.h"
#include "shell/console_internal.h"
#include "shell/terminal.h"
#include "vm/vm.h"
#include "vmx/run.h"

// --- serial line ---

#define TX_RING 300u // far less than an answer: output has to wait

static const char *line_in; // what the operator still has to send
static size_t line_in_left;
static char line_out[4 * 1024 * 1024];
static size_t line_out_used;
static size_t tx_used;

int serial_getc(void)
{
    if (line_in_left == 0)
        return -1;
    line_in_left--;
    return (uint8_t)*line_in++;
}

size_t serial_space(void)
{
    return TX_RING - tx_used;
}

size_t serial_write(const char *data, size_t size)
{
    size = MIN(size, serial_space());
    tx_used += size;
    if (line_out_used + size >= sizeof(line_out))
        line_out_used = 0; // only fuzzing comes here
    memcpy(line_out + line_out_used, data, size);
    line_out_used += size;
    line_out[line_out_used] = '\0';
    return size;
}

void serial_drain(void)
{
    tx_used = 0;
}

uint64_t serial_lost_bytes(void)
{
    return 0;
}

static size_t fb_bytes;

void fbcon_write(const char *data, size_t size)
{
    (void)data;
    fb_bytes += size;
}

// --- time and fibers ---

static jmp_buf console_idle;
static bool booting;
static void (*console_function)(void *);
static void (*console_poll_function)(void);
static struct fiber *const some_fiber = (struct fiber *)&console_function;
static void (*on_sleep)(void); // lets a test act while a command waits

uint64_t time_tsc_to_us(uint64_t ticks)
{
    return ticks / 1000;
}

uint64_t time_us_to_tsc(uint64_t us)
{
    return us * 1000;
}

uint64_t time_since_boot(void)
{
    return fake_tsc;
}

struct fiber *fiber_create(const char *name, void (*function)(void *), void *argument)
{
    (void)argument;
    if (strcmp(name, "console") == 0)
        console_function = function;
    return some_fiber;
}

void sched_set_console_poll(void (*poll)(void))
{
    console_poll_function = poll;
}

static bool at_first_prompt(void)
{
    size_t length = strlen(CONSOLE_PROMPT);
    return booting && line_out_used >= length &&
           strcmp(line_out + line_out_used - length, CONSOLE_PROMPT) == 0;
}

// While the console waits, CPU 0's loop polls and the UART sends.
void fiber_sleep_until(uint64_t deadline)
{
    tx_used = 0;
    if (at_first_prompt())
        longjmp(console_idle, 1);
    console_poll_function();
    if (on_sleep != NULL)
        on_sleep();
    fake_tsc = MAX(fake_tsc, deadline);
}

void fiber_yield(void)
{
    fiber_sleep_until(0);
}

void fiber_give_way_if_due(void)
{
    fiber_yield();
}

void fiber_give_way(void)
{
    fiber_yield();
}

void fiber_wake(struct fiber *f)
{
    (void)f;
}

// --- machine ---

static char power_said[32];
static bool log_early = true;

void power_tell_emulator(const char *word)
{
    snprintf(power_said, sizeof(power_said), "%s", word);
}

_Noreturn void power_off(void)
{
    power_tell_emulator("poweroff");
    longjmp(console_idle, 1);
}

_Noreturn void power_reboot(void)
{
    power_tell_emulator("reboot");
    longjmp(console_idle, 1);
}

void paging_audit(struct paging_audit *out)
{
    out->mappings = 1234;
    out->writable_executable = 0;
}

struct ept_features ept_features = {.page_2m = true, .page_1g = true, .invept_all = true};

static bool exits_traced;

void vmx_trace_exits(bool on)
{
    exits_traced = on;
}

const char *vmx_apicv_state(void)
{
    return "on";
}

void *heap_alloc(size_t size)
{
    return calloc(1, size);
}

void heap_free(void *p)
{
    free(p);
}

static struct boot_file boot_files[] = {
    {.path = "\\guests\\vmlinuz", .size = 100, .status = BOOT_FILE_LOADED},
    {.path = "\\guests\\initrd.img", .size = 200, .status = BOOT_FILE_LOADED},
    {.path = "\\gone", .status = BOOT_FILE_MISSING},
};

#include "fake/boot_files.h"

// --- log ---

static char log_lines[64][256];
static unsigned log_count;

void log_set_early_console(bool on)
{
    log_early = on;
}

const char *log_level_name(enum log_level level)
{
    static const char *const names[] = {"error", "warning", "info", "debug"};
    return names[level];
}

void log_write(enum log_level level, const char *format, ...)
{
    char text[201];
    va_list args;
    va_start(args, format);
    vsnprintf(text, sizeof(text), format, args);
    va_end(args);
    if (log_count < ARRAY_SIZE(log_lines))
        snprintf(log_lines[log_count++], sizeof(log_lines[0]), "%s: %s", log_level_name(level),
                 text);
}

bool log_read(uint64_t *sequence, enum log_level max_level, char *buffer, size_t size)
{
    for (uint64_t n = *sequence; n < log_count; n++)
        for (unsigned level = 0; level <= (unsigned)max_level; level++) {
            const char *name = log_level_name((enum log_level)level);
            if (strncmp(log_lines[n], name, strlen(name)) == 0) {
                snprintf(buffer, size, "%s", log_lines[n]);
                *sequence = n + 1;
                return true;
            }
        }
    return false;
}

// --- VMs ---

static struct vm_info vms[VM_MAX];
static struct fusion_info fusions[VM_MAX]; // of the VM with the same index
static unsigned vm_count;
static uint64_t next_vm_id = 1;
static char guest_out[1024]; // every VM says the same
static size_t guest_out_used;
static bool guest_never_silent; // says more whenever it is asked
static char guest_in[4096];     // and hears into one place
static size_t guest_in_used;
static size_t guest_in_room = sizeof(guest_in) - 1;
static const uint64_t machine_frames = GIB / PAGE_SIZE;

static struct vm_info *find_vm(const char *name)
{
    for (unsigned i = 0; i < vm_count; i++)
        if (strcmp(vms[i].config.name, name) == 0)
            return &vms[i];
    return NULL;
}

const char *vm_state_name(enum vm_state state)
{
    static const char *const names[] = {"stopped", "running", "paused", "waiting-memory",
                                        "crashed"};
    return names[state];
}

int vm_create(const struct vm_config *config, char *why)
{
    if (find_vm(config->name) != NULL || vm_count == VM_MAX) {
        snprintf(why, VM_WHY_MAX, "there is no room for another VM");
        return E_NOMEM;
    }
    struct vm_info *vm = &vms[vm_count++];
    memset(vm, 0, sizeof(*vm));
    vm->id = next_vm_id++;
    vm->config = *config;
    vm->configured = config->memory / PAGE_SIZE;
    vm->untouched = vm->configured;
    fusions[vm - vms] = (struct fusion_info){.mode = config->page_fusion ? FUSION_ON : FUSION_OFF};
    return 0;
}

int vm_destroy(const char *name, char *why)
{
    struct vm_info *vm = find_vm(name);
    (void)why;
    if (vm == NULL)
        return E_NOENT;
    struct fusion_info *fusion = &fusions[vm - vms];
    size_t behind = (size_t)(&vms[--vm_count] - vm);
    memmove(vm, vm + 1, behind * sizeof(*vm));
    memmove(fusion, fusion + 1, behind * sizeof(*fusion));
    return 0;
}

int vm_set(const struct vm_config *config, char *why)
{
    struct vm_info *vm = find_vm(config->name);
    (void)why;
    if (vm == NULL)
        return E_NOENT;
    vm->config = *config;
    return 0;
}

int vm_balloon(const char *name, uint64_t bytes, char *why)
{
    struct vm_info *vm = find_vm(name);
    if (bytes > vm->config.memory) {
        snprintf(why, VM_WHY_MAX, "too much");
        return E_RANGE;
    }
    vm->config.balloon = bytes;
    vm->balloon_target = bytes / PAGE_SIZE;
    return 0;
}

static int change_state(const char *name, char *why, unsigned from, enum vm_state to)
{
    struct vm_info *vm = find_vm(name);
    if (vm == NULL)
        return E_NOENT;
    if ((from & 1u << vm->state) == 0) {
        snprintf(why, VM_WHY_MAX, "is %s", vm_state_name(vm->state));
        return E_BUSY;
    }
    vm->state = to;
    fiber_yield(); // loading takes its time
    return 0;
}

int vm_start(const char *name, char *why)
{
    int error = change_state(name, why, 1u << VM_STOPPED, VM_RUNNING);
    if (error == 0) {
        find_vm(name)->private_frames = 100;
        find_vm(name)->untouched -= 100;
    }
    return error;
}

int vm_pause(const char *name, char *why)
{
    return change_state(name, why, 1u << VM_RUNNING, VM_PAUSED);
}

int vm_resume(const char *name, char *why)
{
    return change_state(name, why, 1u << VM_PAUSED, VM_RUNNING);
}

int vm_reset(const char *name, char *why)
{
    return change_state(name, why, 1u << VM_RUNNING | 1u << VM_PAUSED, VM_RUNNING);
}

int vm_shutdown(const char *name, char *why)
{
    return change_state(name, why, 1u << VM_RUNNING, VM_RUNNING);
}

int vm_stop(const char *name, char *why)
{
    int error = change_state(name, why, 1u << VM_RUNNING | 1u << VM_PAUSED, VM_STOPPED);
    if (error == 0) {
        find_vm(name)->private_frames = 0;
        find_vm(name)->untouched = find_vm(name)->configured;
    }
    return error;
}

void frames_snapshot(struct frames_snapshot *out, struct frame_account *const *accounts, size_t n,
                     uint64_t *private_out, uint64_t *shared_out)
{
    (void)accounts;
    (void)n;
    (void)private_out;
    (void)shared_out;
    memset(out, 0, sizeof(*out));
    out->total = machine_frames;
    out->count[FRAME_FUSOR] = 1000;
    out->count[FRAME_TABLE] = 10 * vm_count;
    // What is shared is shared by all: one frame each, as many as the VM that shares most has.
    uint64_t shared_gfns = 0;
    for (unsigned i = 0; i < vm_count; i++) {
        out->count[FRAME_PRIVATE] += vms[i].private_frames;
        out->count[FRAME_SHARED] = MAX(out->count[FRAME_SHARED], vms[i].shared);
        shared_gfns += vms[i].shared;
    }
    out->saved = shared_gfns - out->count[FRAME_SHARED];
    out->count[FRAME_FREE] = machine_frames - 1000 - 10 * vm_count - out->count[FRAME_PRIVATE] -
                             out->count[FRAME_SHARED];
    out->file_frames = 42;
}

uint64_t frames_reserve(void)
{
    return 4096;
}

unsigned vm_snapshot(struct vm_info *infos, struct frames_snapshot *frames)
{
    memcpy(infos, vms, vm_count * sizeof(*infos));
    frames_snapshot(frames, NULL, 0, NULL, NULL);
    return vm_count;
}

int vm_get(const char *name, struct vm_info *info)
{
    struct vm_info *vm = find_vm(name);
    if (vm == NULL)
        return E_NOENT;
    *info = *vm;
    return 0;
}

int vm_exits(const char *name, struct vm_exit_count *counts, unsigned room)
{
    static const struct vm_exit_count some[] = {{"cpuid", 10}, {"EPT violation", 5}, {"io", 700}};
    if (find_vm(name) == NULL)
        return E_NOENT;
    unsigned n = MIN(room, (unsigned)ARRAY_SIZE(some));
    memcpy(counts, some, n * sizeof(some[0]));
    return (int)n;
}

int vm_console_read(const char *name, uint64_t *cursor, char *buffer, size_t size)
{
    if (find_vm(name) == NULL)
        return E_NOENT;
    if (guest_never_silent) {
        memset(buffer, 'z', size);
        *cursor += size;
        return (int)size;
    }
    size_t n = MIN(size, guest_out_used - *cursor);
    memcpy(buffer, guest_out + *cursor, n);
    *cursor += n;
    return (int)n;
}

int vm_console_write(const char *name, const char *data, size_t size)
{
    if (find_vm(name) == NULL)
        return E_NOENT;
    size_t n = MIN(MIN(size, (size_t)7), guest_in_room - guest_in_used); // in small pieces
    memcpy(guest_in + guest_in_used, data, n);
    guest_in_used += n;
    return (int)n;
}

// --- fusion ---

static const char *fusion_lost;    // this VM vanishes after every snapshot
static const char *fusion_refuses; // why the switch cannot be thrown, NULL: it can
static unsigned fusion_switched;   // how often it was
static struct fusion_census census_says;
static int census_result;
static char census_group[64]; // what the census was asked for, "(all)" for NULL

const char *const fusion_reject_names[FUSION_REJECTS] = {
    "range",  "reserved", "duplicate", "budget", "off",      "absent",
    "shared", "pinned",   "backoff",   "busy",   "mismatch", "nomem"};

int fusion_get(const char *vm_name, struct fusion_info *out)
{
    struct vm_info *vm = find_vm(vm_name);
    if (vm == NULL || (fusion_lost != NULL && strcmp(fusion_lost, vm_name) == 0))
        return E_NOENT;
    *out = fusions[vm - vms];
    return 0;
}

// Those that share something are split later.
int fusion_switch(const char *vm_name, bool on, char *why)
{
    struct vm_info *vm = find_vm(vm_name);
    if (vm == NULL)
        return E_NOENT;
    if (fusion_refuses != NULL) {
        snprintf(why, VM_WHY_MAX, "%s", fusion_refuses);
        return E_NOMEM;
    }
    vm->config.page_fusion = on;
    fusions[vm - vms].mode = on ? FUSION_ON : vm->shared > 0 ? FUSION_SPLITTING : FUSION_OFF;
    fusion_switched++;
    return 0;
}

const char *fusion_engine(void)
{
    return "general";
}

uint64_t hypercall_refused(unsigned code)
{
    return code == 22 ? 3 : code == 1 ? 4 : 0;
}

int fusion_census(const char *group, struct fusion_census *out)
{
    snprintf(census_group, sizeof(census_group), "%s", group != NULL ? group : "(all)");
    fiber_yield(); // counting takes its time
    *out = census_says;
    return census_result;
}

static void (*event_sink)(const char *line);

void vm_set_event_sink(void (*sink)(const char *line))
{
    event_sink = sink;
}

// --- driving the console ---

// Starts the console and runs it until it waits at its first prompt.
static void console_boot(void)
{
    console_start();
    booting = true;
    if (setjmp(console_idle) == 0)
        console_function(NULL);
    booting = false;
}

// Sends `size` bytes and runs the console until it waits for more; returns all it wrote meanwhile.
static const char *send_bytes(const char *data, size_t size)
{
    size_t start = line_out_used;
    line_in = data;
    line_in_left = size;
    if (setjmp(console_idle) == 0)
        while (console_step() || line_in_left > 0 || terminal_has_input()) {
            tx_used = 0;
            console_poll_function();
        }
    return line_out + (start <= line_out_used ? start : 0);
}
