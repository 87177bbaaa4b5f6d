// SPDX-License-Identifier: BSD-2-Clause
// Power-off and reboot: the firmware's ResetSystem first (UEFI 2.10, 8.5.1), then what the chipset
// offers, at last a triple fault. Firmware expects its memory at physical addresses, so for that
// one call there is a page table that maps everything one to one; its frames are kept ready from
// boot, because power-off must also work when no frame is free.
#include "kernel/power.h"

#include <arch/safe.h>

#include "kernel/acpi.h"
#include "kernel/frames.h"
#include "kernel/heap.h"
#include "kernel/log.h"
#include "kernel/paging.h"
#include "kernel/serial.h"
#include "kernel/string.h"
#include "kernel/time.h"
#include "kernel/x86/machine.h"
#include "kernel/x86/msr.h"

#define DEBUG_PORT 0xe9u
#define RESET_PORT 0xcf9u
#define KEYBOARD   0x64u
#define PM1_SLP_EN (1u << 13)
#define TYPE_SHIFT 10u
#define RETRY_US   100000u

// EFI_SYSTEM_TABLE and EFI_RUNTIME_SERVICES, 64-bit layout (UEFI 2.10, 4.3 and 4.5).
#define SYSTEM_TABLE_SIGNATURE  UINT64_C(0x5453595320494249) /* "IBI SYST" */
#define RUNTIME_TABLE_SIGNATURE UINT64_C(0x56524553544e5552) /* "RUNTSERV" */
#define SYSTEM_TABLE_RUNTIME    88u
#define RUNTIME_RESET_SYSTEM    104u

enum reset_type { EFI_RESET_COLD = 0, EFI_RESET_SHUTDOWN = 2 };

static uint64_t system_table;
static uint64_t identity_end;
static hfn_t *tables; // NULL: firmware cannot be called
static volatile uint8_t *reset_register;

void power_init(const struct boot_info *info, uint64_t runtime_end)
{
    system_table = info->system_table;
    identity_end = MAX(runtime_end, 4 * GIB);
    if (acpi_machine.reset.address != 0 && acpi_machine.reset.memory)
        reset_register = paging_map_device(hpa(acpi_machine.reset.address), 1, PAGING_UNCACHED);
    if (system_table == 0 || system_table >= identity_end)
        return;
    unsigned count = paging_identity_tables(identity_end, NULL);
    hfn_t *frames = heap_alloc(count * sizeof(*frames));
    for (unsigned i = 0; frames != NULL && i < count; i++) {
        if (frame_alloc(FRAME_FUSOR, 0, 0, NULL, &frames[i]) != 0) {
            while (i > 0)
                frame_free(frames[--i], 0, NULL);
            heap_free(frames);
            frames = NULL;
        }
    }
    tables = frames;
    if (tables == NULL)
        log_warning("power: no memory to call the firmware; its ResetSystem will not be used");
}

static void reset_by_firmware(enum reset_type type)
{
    if (tables == NULL)
        return;
    paging_identity_tables(identity_end, tables);
    cpu_irq_disable();
    power_call_firmware(hfn_to_hpa(tables[0]).raw, system_table, (uint64_t)type);
}

// What power_call_firmware runs on the identity map: finds ResetSystem. The tables lie in runtime
// memory, which stays as the firmware left it.
uint64_t power_find_reset(const uint8_t *table)
{
    uint64_t signature, runtime, function;
    memcpy(&signature, table, sizeof(signature));
    memcpy(&runtime, table + SYSTEM_TABLE_RUNTIME, sizeof(runtime));
    if (signature != SYSTEM_TABLE_SIGNATURE || runtime == 0 || runtime >= identity_end)
        return 0;
    memcpy(&signature, (const uint8_t *)runtime, sizeof(signature));
    memcpy(&function, (const uint8_t *)runtime + RUNTIME_RESET_SYSTEM, sizeof(function));
    return signature == RUNTIME_TABLE_SIGNATURE && function < identity_end ? function : 0;
}

static bool emulated(void)
{
    return cpu_in8(DEBUG_PORT) == DEBUG_PORT;
}

static void debug_text(uint16_t port, const char *text)
{
    for (; *text != '\0'; text++)
        cpu_out8(port, (uint8_t)*text);
}

void power_tell_emulator(const char *word)
{
    if (!emulated())
        return;
    debug_text(DEBUG_PORT, "fusor-status: ");
    debug_text(DEBUG_PORT, word);
    debug_text(DEBUG_PORT, "\n");
}

static void end_all_else(const char *word)
{
    cpu_irq_disable();
    serial_drain();
    power_tell_emulator(word);
    machine_stop_others(STOP_POWER);
    cpu_try_vmxoff();
}

// An empty interrupt table: the next exception is a triple fault, which resets.
static _Noreturn void triple_fault(void)
{
    struct {
        uint16_t limit;
        uint64_t base;
    } __attribute__((packed)) empty = {0, 0};
    __asm__ volatile("lidt %0; ud2" ::"m"(empty));
    __builtin_unreachable();
}

_Noreturn void power_reboot(void)
{
    end_all_else("reboot");
    reset_by_firmware(EFI_RESET_COLD);
    const struct acpi_register *reset = &acpi_machine.reset;
    if (reset_register != NULL)
        *reset_register = acpi_machine.reset_value;
    else if (reset->address != 0 && !reset->memory)
        cpu_out8((uint16_t)reset->address, acpi_machine.reset_value);
    time_busy_wait_us(RETRY_US);
    cpu_out8(RESET_PORT, 0x02); // system reset, then the same with the edge
    cpu_out8(RESET_PORT, 0x06);
    time_busy_wait_us(RETRY_US);
    triple_fault();
}

static void off_by_acpi(void)
{
    if (!acpi_machine.has_s5 || acpi_machine.pm1a_control == 0)
        return;
    uint16_t keep = (uint16_t)(cpu_in16(acpi_machine.pm1a_control) & ~(7u << TYPE_SHIFT));
    uint16_t a = (uint16_t)(keep | (unsigned)acpi_machine.s5_type_a << TYPE_SHIFT | PM1_SLP_EN);
    uint16_t b = (uint16_t)(keep | (unsigned)acpi_machine.s5_type_b << TYPE_SHIFT | PM1_SLP_EN);
    cpu_out16(acpi_machine.pm1a_control, a);
    if (acpi_machine.pm1b_control != 0)
        cpu_out16(acpi_machine.pm1b_control, b);
    time_busy_wait_us(RETRY_US);
}

_Noreturn void power_off(void)
{
    end_all_else("poweroff");
    // Firmware that cannot do it may return or, worse, reset; so the chipset is asked first where
    // ACPI described it completely.
    off_by_acpi();
    reset_by_firmware(EFI_RESET_SHUTDOWN);
    if (emulated()) {
        debug_text(0x8900, "Shutdown"); // Bochs
        cpu_out16(0x604, 0x2000);       // QEMU's chipsets
        cpu_out16(0xb004, 0x2000);
    }
    time_busy_wait_us(RETRY_US);
    triple_fault();
}
