// SPDX-License-Identifier: BSD-2-Clause
// What the firmware knows about the machine: memory map, RSDP, framebuffer.
#include "boot/boot.h"

#include "kernel/string.h"

// Room for descriptors that appear while the boot stage and the firmware still allocate: between
// the last allocation and ExitBootServices the buffer cannot grow any more.
#define MAP_SLACK_DESCRIPTORS 256u

static EFI_GUID gop_guid = {
    0x9042a9de, 0x23dc, 0x4a38, {0x96, 0xfb, 0x7a, 0xde, 0xd0, 0x80, 0x51, 0x6a}};
static const EFI_GUID acpi_20_guid = ACPI_20_TABLE_GUID;
static const EFI_GUID acpi_10_guid = ACPI_TABLE_GUID;

static uint64_t find_configuration_table(const EFI_GUID *guid)
{
    for (UINTN i = 0; i < efi_table->NumberOfTableEntries; i++) {
        if (memcmp(&efi_table->ConfigurationTable[i].VendorGuid, guid, sizeof(*guid)) == 0) {
            return (uint64_t)(uintptr_t)efi_table->ConfigurationTable[i].VendorTable;
        }
    }
    return 0;
}

static void find_framebuffer(struct boot_framebuffer *fb)
{
    EFI_GRAPHICS_OUTPUT_PROTOCOL *gop = NULL;
    const EFI_GRAPHICS_OUTPUT_MODE_INFORMATION *mode;

    if (EFI_ERROR(efi->LocateProtocol(&gop_guid, NULL, (void **)&gop)) || gop->Mode == NULL ||
        gop->Mode->Info == NULL) {
        return;
    }
    mode = gop->Mode->Info;
    if (mode->PixelFormat == PixelRedGreenBlueReserved8BitPerColor) {
        fb->format = BOOT_FB_RGBX;
    } else if (mode->PixelFormat == PixelBlueGreenRedReserved8BitPerColor) {
        fb->format = BOOT_FB_BGRX;
    } else {
        return;
    }
    fb->base = gop->Mode->FrameBufferBase;
    fb->size = gop->Mode->FrameBufferSize;
    fb->width = mode->HorizontalResolution;
    fb->height = mode->VerticalResolution;
    fb->stride = mode->PixelsPerScanLine;
    if (fb->base == 0 || fb->stride < fb->width ||
        fb->size < (uint64_t)fb->stride * fb->height * 4) {
        memset(fb, 0, sizeof(*fb));
    }
}

void machine_find_tables(struct boot_info *info)
{
    info->rsdp = find_configuration_table(&acpi_20_guid);
    if (info->rsdp == 0) {
        info->rsdp = find_configuration_table(&acpi_10_guid);
    }
    find_framebuffer(&info->framebuffer);
}

EFI_STATUS machine_reread_map(struct memory_map *map)
{
    UINT32 version;

    map->size = map->capacity;
    return efi->GetMemoryMap(&map->size, map->buffer, &map->key, &map->descriptor_size, &version);
}

EFI_STATUS machine_read_map(struct memory_map *map)
{
    EFI_PHYSICAL_ADDRESS base;
    EFI_STATUS status;
    UINT32 version;
    UINTN pages;

    memset(map, 0, sizeof(*map));
    status = efi->GetMemoryMap(&map->size, NULL, &map->key, &map->descriptor_size, &version);
    if (status != EFI_BUFFER_TOO_SMALL) {
        return EFI_ERROR(status) ? status : EFI_LOAD_ERROR;
    }
    pages = (map->size + MAP_SLACK_DESCRIPTORS * map->descriptor_size) / BOOT_PAGE + 1;
    status = efi->AllocatePages(AllocateAnyPages, EfiLoaderData, pages, &base);
    if (EFI_ERROR(status)) {
        return status;
    }
    map->buffer = (void *)(uintptr_t)base;
    map->capacity = pages * BOOT_PAGE;
    return machine_reread_map(map);
}

static const EFI_MEMORY_DESCRIPTOR *descriptor(const struct memory_map *map, UINTN index)
{
    return (const EFI_MEMORY_DESCRIPTOR *)((const uint8_t *)map->buffer +
                                           index * map->descriptor_size);
}

uint64_t machine_usable_memory(const struct memory_map *map)
{
    uint64_t pages = 0;

    for (UINTN i = 0; i < map->size / map->descriptor_size; i++) {
        const EFI_MEMORY_DESCRIPTOR *d = descriptor(map, i);
        // Firmware sets this on memory that it wants kept for special purposes (EFI_MEMORY_SP).
        const uint64_t special_purpose = UINT64_C(0x40000);

        if ((d->Attribute & EFI_MEMORY_WB) == 0 || (d->Attribute & special_purpose) != 0) {
            continue;
        }
        switch (d->Type) {
        case EfiConventionalMemory:
        case EfiLoaderCode:
        case EfiLoaderData:
        case EfiBootServicesCode:
        case EfiBootServicesData:
            pages += d->NumberOfPages;
            break;
        default:
            break;
        }
    }
    return pages * BOOT_PAGE;
}

uint64_t machine_end_of_memory(const struct memory_map *map)
{
    uint64_t end = 0;

    for (UINTN i = 0; i < map->size / map->descriptor_size; i++) {
        const EFI_MEMORY_DESCRIPTOR *d = descriptor(map, i);
        uint64_t last = d->PhysicalStart + d->NumberOfPages * BOOT_PAGE;

        // Reserved ranges and devices may stand terabytes above the RAM.
        switch (d->Type) {
        case EfiReservedMemoryType:
        case EfiUnusableMemory:
        case EfiMemoryMappedIO:
        case EfiMemoryMappedIOPortSpace:
        case EfiPalCode:
            break;
        default:
            end = last > end ? last : end;
            break;
        }
    }
    return end;
}
