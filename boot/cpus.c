// SPDX-License-Identifier: BSD-2-Clause
// The list of CPUs: from the ACPI MADT, or from the firmware's MP Services where there is no ACPI.
#include "boot/boot.h"

#include "kernel/string.h"

#define APIC_ENABLED         1u
#define MADT_LOCAL_APIC      0u
#define MADT_LOCAL_X2APIC    9u
#define MP_PROCESSOR_ENABLED 2u

// ACPI 6.5, section 5.2.5.3.
struct rsdp {
    char signature[8];
    uint8_t checksum;
    char oem[6];
    uint8_t revision;
    uint32_t rsdt;
    uint32_t length;
    uint64_t xsdt;
} __attribute__((packed));

// ACPI 6.5, section 5.2.6.
struct acpi_header {
    char signature[4];
    uint32_t length;
    uint8_t rest[28];
} __attribute__((packed));

_Static_assert(sizeof(struct acpi_header) == 36, "ACPI table header");

// PI specification, volume 2, section 13.4. Only what is called has its type.
struct mp_processor_information {
    uint64_t processor_id; // APIC id
    uint32_t status;
    uint32_t package, core, thread;
    uint32_t extended[6]; // newer firmware writes here only when asked to; room all the same
};

struct mp_services {
    EFI_STATUS(EFIAPI *get_number)(struct mp_services *self, UINTN *all, UINTN *enabled);
    EFI_STATUS(EFIAPI *get_information)
    (struct mp_services *self, UINTN number, struct mp_processor_information *information);
};

static EFI_GUID mp_services_guid = {
    0x3fdda605, 0xa76e, 0x4f46, {0xad, 0x29, 0x12, 0xf4, 0x53, 0x1b, 0x3d, 0x08}};

struct cpu_list {
    struct boot_info *info;
    uint32_t found; // also those there is no room for
};

static uint32_t own_apic_id(void)
{
    // Leaf 0Bh has the 32-bit id (SDM volume 2A, CPUID).
    if (cpuid(0, 0).eax >= 0x0b && cpuid(0x0b, 0).ebx != 0) {
        return cpuid(0x0b, 0).edx;
    }
    return cpuid(1, 0).ebx >> 24;
}

static void add_cpu(struct cpu_list *list, uint32_t apic_id)
{
    struct boot_info *info = list->info;

    for (uint32_t i = 0; i < info->cpu_count; i++) {
        // The bootstrap processor is there already, and firmware may list a CPU under both types.
        if (info->cpus[i].apic_id == apic_id) {
            return;
        }
    }
    list->found++;
    if (info->cpu_count < BOOT_MAX_CPUS) {
        info->cpus[info->cpu_count++].apic_id = apic_id;
    }
}

static uint32_t read32(const uint8_t *at)
{
    uint32_t value;

    memcpy(&value, at, sizeof(value));
    return value;
}

static const uint8_t *find_madt(const struct rsdp *rsdp)
{
    bool wide = rsdp->revision >= 2 && rsdp->xsdt != 0;
    uint64_t root_address = wide ? rsdp->xsdt : rsdp->rsdt;
    const struct acpi_header *root = (const struct acpi_header *)(uintptr_t)root_address;
    const uint8_t *entries = (const uint8_t *)(root + 1);
    uint32_t size = wide ? 8 : 4;

    if (root == NULL || root->length < sizeof(*root) ||
        memcmp(root->signature, wide ? "XSDT" : "RSDT", 4) != 0) {
        return NULL;
    }
    for (uint32_t i = 0; i < (root->length - sizeof(*root)) / size; i++) {
        uint64_t address = 0;
        const struct acpi_header *table;

        memcpy(&address, entries + (size_t)i * size, size);
        table = (const struct acpi_header *)(uintptr_t)address;
        if (table != NULL && memcmp(table->signature, "APIC", 4) == 0) {
            return (const uint8_t *)table;
        }
    }
    return NULL;
}

// ACPI 6.5, section 5.2.12.
static bool add_from_madt(struct cpu_list *list)
{
    const struct rsdp *rsdp = (const struct rsdp *)(uintptr_t)list->info->rsdp;
    const uint8_t *madt, *entry, *end;

    if (rsdp == NULL || memcmp(rsdp->signature, "RSD PTR ", 8) != 0) {
        return false;
    }
    madt = find_madt(rsdp);
    if (madt == NULL) {
        return false;
    }
    end = madt + read32(madt + 4);
    for (entry = madt + sizeof(struct acpi_header) + 8; entry + 2 <= end; entry += entry[1]) {
        if (entry[1] < 2 || entry + entry[1] > end) {
            break;
        }
        if (entry[0] == MADT_LOCAL_APIC && entry[1] >= 8 && entry[3] != 0xff &&
            (read32(entry + 4) & APIC_ENABLED) != 0) {
            add_cpu(list, entry[3]);
        } else if (entry[0] == MADT_LOCAL_X2APIC && entry[1] >= 16 &&
                   (read32(entry + 8) & APIC_ENABLED) != 0 && read32(entry + 4) != UINT32_MAX) {
            add_cpu(list, read32(entry + 4));
        }
    }
    return true;
}

static void add_from_mp_services(struct cpu_list *list)
{
    struct mp_services *mp = NULL;
    UINTN all = 0, enabled = 0;

    if (EFI_ERROR(efi->LocateProtocol(&mp_services_guid, NULL, (void **)&mp)) ||
        EFI_ERROR(mp->get_number(mp, &all, &enabled))) {
        return;
    }
    for (UINTN i = 0; i < all; i++) {
        struct mp_processor_information p;

        memset(&p, 0, sizeof(p));
        if (!EFI_ERROR(mp->get_information(mp, i, &p)) && (p.status & MP_PROCESSOR_ENABLED) != 0) {
            add_cpu(list, (uint32_t)p.processor_id);
        }
    }
}

uint32_t machine_find_cpus(struct boot_info *info)
{
    struct cpu_list list = {info, 0};

    add_cpu(&list, own_apic_id());
    if (!add_from_madt(&list)) {
        add_from_mp_services(&list);
    }
    return list.found;
}
