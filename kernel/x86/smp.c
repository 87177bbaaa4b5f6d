// SPDX-License-Identifier: BSD-2-Clause
// Starting the other CPUs with INIT and start-up IPIs (SDM vol. 3, 9.4.4), one after the other.
#include <stdatomic.h>

#include "kernel/error.h"
#include "kernel/frames.h"
#include "kernel/heap.h"
#include "kernel/init.h"
#include "kernel/log.h"
#include "kernel/memory.h"
#include "kernel/paging.h"
#include "kernel/sched.h"
#include "kernel/string.h"
#include "kernel/time.h"
#include "kernel/x86/machine.h"
#include "kernel/x86/msr.h"

#define NOBODY          UINT64_MAX
#define TABLES          4u
#define LOW_FRAMES      (MIB >> PAGE_SHIFT)
#define FOUR_GIB_FRAMES (4 * GIB >> PAGE_SHIFT)
#define ANSWER_US       1000000u

// Who decides whether a CPU is in: it and CPU 0 both try to leave PENDING, one wins.
enum start_state { START_PENDING, START_UP, START_LEFT_OUT };

struct cpu cpus[MAX_CPUS];
uint32_t cpu_count = 1;
static struct machine_cpu boot_machine;

extern const uint8_t trampoline_start[], trampoline_end[];
extern const uint32_t trampoline_cr3, trampoline_efer;
extern _Atomic uint64_t ap_wanted; // APIC id that may start now
extern uint64_t ap_stack, ap_cpu;
extern char boot_stack_top[];

static uint64_t trampoline; // frame numbers
static uint64_t tables;
static bool reserved;

void smp_init_boot_cpu(void)
{
    struct cpu *cpu = &cpus[0];
    descriptors_init_idt();
    descriptors_init_cpu(cpu, &boot_machine);
    cpu->kernel_stack = (uint64_t)boot_stack_top;
    cpu->last_alive = UINT64_MAX;
    cpu->online = 1;
    ap_wanted = NOBODY;
}

void smp_reserve(struct boot_memory *memory)
{
    reserved = boot_memory_take(memory, 1, LOW_FRAMES, &trampoline) == 0 &&
               boot_memory_take(memory, TABLES, FOUR_GIB_FRAMES, &tables) == 0;
}

static void write_word(const uint32_t *label, uint32_t value)
{
    uint8_t *page = hfn_to_pointer(hfn(trampoline));
    memcpy(page + ((const uint8_t *)label - trampoline_start), &value, sizeof(value));
}

static void build_trampoline(void)
{
    memcpy(hfn_to_pointer(hfn(trampoline)), trampoline_start,
           (size_t)(trampoline_end - trampoline_start));
    paging_make_trampoline_tables(hfn(tables), trampoline << PAGE_SHIFT);
    write_word(&trampoline_cr3, (uint32_t)(tables << PAGE_SHIFT));
    write_word(&trampoline_efer, paging_uses_nx() ? EFER_NXE : 0);
}

static bool wait_up(struct machine_cpu *machine, uint64_t us)
{
    uint64_t start = time_tsc(), limit = time_us_to_tsc(us);
    while (machine->start == START_PENDING && time_tsc() - start <= limit)
        cpu_relax();
    return machine->start == START_UP;
}

static bool decide(struct machine_cpu *machine, enum start_state state)
{
    uint32_t pending = START_PENDING;
    return atomic_compare_exchange_strong(&machine->start, &pending, (uint32_t)state);
}

// Sends the IPIs. True when the CPU came up within its time.
static bool call_cpu(const struct cpu *cpu, struct machine_cpu *machine)
{
    apic_send_init(cpu->apic_id);
    time_busy_wait_us(10000);
    apic_send_startup(cpu->apic_id, (uint8_t)trampoline);
    if (wait_up(machine, 10000))
        return true;
    apic_send_startup(cpu->apic_id, (uint8_t)trampoline); // the first may be lost
    return wait_up(machine, ANSWER_US) || !decide(machine, START_LEFT_OUT);
}

// Returns 0 when the CPU is up.
static int start_cpu(struct cpu *cpu)
{
    struct machine_cpu *machine = heap_alloc(sizeof(*machine));
    void *stack = paging_alloc_stack(CPU_STACK_PAGES);
    if (machine == NULL || stack == NULL) {
        heap_free(machine);
        if (stack != NULL)
            paging_free_stack(stack, CPU_STACK_PAGES);
        return E_NOMEM;
    }
    cpu->arch = machine;
    cpu->kernel_stack = (uint64_t)stack;
    cpu->last_alive = UINT64_MAX;
    ap_stack = (uint64_t)stack;
    ap_cpu = (uint64_t)cpu;
    ap_wanted = cpu->apic_id;
    if (call_cpu(cpu, machine)) {
        cpu->online = 1;
        return 0;
    }

    // Take the permission back. If the CPU was faster, it runs towards its end on our stack: that
    // and its record stay its own.
    uint64_t wanted = cpu->apic_id;
    if (!atomic_compare_exchange_strong(&ap_wanted, &wanted, NOBODY))
        return E_BUSY;
    apic_send_init(cpu->apic_id); // parks it
    heap_free(machine);
    paging_free_stack(stack, CPU_STACK_PAGES);
    return E_TIMEOUT;
}

static uint32_t add_cpu(uint32_t apic_id)
{
    struct cpu *cpu = &cpus[cpu_count];
    memset(cpu, 0, sizeof(*cpu));
    cpu->self = cpu;
    cpu->index = cpu_count;
    cpu->apic_id = apic_id;
    return cpu_count++;
}

void smp_start(const struct boot_info *info)
{
    uint32_t found = MIN(info->cpu_count, MIN(BOOT_MAX_CPUS, MAX_CPUS));
    bool all = true;
    if (found > 1 && !reserved) {
        log_warning("CPUs: no free memory below 1 MiB to start the other %u from", found - 1);
        found = 1;
    }
    if (reserved)
        build_trampoline();
    for (uint32_t i = 0; i < found; i++) {
        uint32_t id = info->cpus[i].apic_id;
        if (id == cpus[0].apic_id)
            continue;
        if (cpu_count == MAX_CPUS)
            break;
        if (!apic_is_x2apic() && id >= 0xff) {
            log_warning("CPUs: APIC id %u cannot be reached without x2APIC; left out", id);
            continue;
        }
        struct cpu *cpu = &cpus[add_cpu(id)];
        int error = start_cpu(cpu);
        if (error != 0) {
            log_warning("CPUs: APIC id %u is left out: %s", id, error_text(error));
            all = false;
            if (error != E_BUSY) // else it may still look at its record
                cpu_count--;
        }
    }
    // A CPU that may wake up late needs the page for ever.
    if (reserved && all) {
        frame_free(hfn(trampoline), 0, NULL);
        for (unsigned i = 0; i < TABLES; i++)
            frame_free(hfn(tables + i), 0, NULL);
    }
    uint32_t online = 0;
    for (uint32_t i = 0; i < cpu_count; i++)
        online += cpus[i].online;
    log_info("CPUs: %u of %u online", online, info->cpu_count);
}

// First C code of another CPU, on its own stack, still on the trampoline's tables.
_Noreturn void ap_main(struct cpu *cpu)
{
    descriptors_init_cpu(cpu, cpu->arch);
    paging_init_cpu();
    apic_init_cpu();
    clock_init_cpu();
    if (descriptors_add_stacks(cpu->arch) != 0) {
        log_error("CPU %u: no memory for its stacks", cpu->index);
        machine_halt();
    }
    if (!decide(cpu->arch, START_UP))
        machine_halt();
    while (cpu->online == 0)
        cpu_relax();
    init_join();
    sched_loop();
}
