// SPDX-License-Identifier: BSD-2-Clause
#include "vm/bus.h"

#include <stdatomic.h>

#include "kernel/error.h"
#include "kernel/string.h"

_Static_assert(BUS_PIO_RANGES < 256, "the index of the low ports holds bytes");

void bus_init(struct bus *bus)
{
    memset(bus, 0, sizeof(*bus));
}

// First range that starts above `port`, in the sorted array.
static uint32_t pio_upper(const struct bus *bus, uint32_t port)
{
    uint32_t low = 0;
    uint32_t high = bus->pio_count;
    while (low < high) {
        uint32_t middle = (low + high) / 2;
        if (bus->pio[middle].first <= port)
            low = middle + 1;
        else
            high = middle;
    }
    return low;
}

// The hot path (UART, PIC, PIT, PM timer) is one load from the index; binary search serves the few
// ranges above it.
static inline const struct bus_pio_range *pio_find(const struct bus *bus, uint32_t port)
{
    if (port < BUS_LOW_PORTS) {
        uint32_t index = bus->low[port];
        return index != 0 ? &bus->pio[index - 1] : NULL;
    }
    uint32_t index = pio_upper(bus, port);
    if (index == 0)
        return NULL;
    const struct bus_pio_range *r = &bus->pio[index - 1];
    return port - r->first < r->count ? r : NULL;
}

static void index_low_ports(struct bus *bus)
{
    memset(bus->low, 0, sizeof(bus->low));
    for (uint32_t i = 0; i < bus->pio_count; i++) {
        uint32_t end = (uint32_t)bus->pio[i].first + bus->pio[i].count;
        for (uint32_t port = bus->pio[i].first; port < MIN(end, BUS_LOW_PORTS); port++)
            bus->low[port] = (uint8_t)(i + 1);
    }
}

static int add_pio(struct bus *bus, const struct bus_pio_range *range)
{
    uint32_t end = (uint32_t)range->first + range->count;
    if (range->count == 0 || end > 0x10000 || range->read == NULL || range->write == NULL)
        return E_INVAL;
    uint32_t at = pio_upper(bus, range->first);
    if (at > 0 && (uint32_t)bus->pio[at - 1].first + bus->pio[at - 1].count > range->first)
        return E_EXIST;
    if (at < bus->pio_count && bus->pio[at].first < end)
        return E_EXIST;
    if (bus->pio_count == BUS_PIO_RANGES)
        return E_NOMEM;
    memmove(&bus->pio[at + 1], &bus->pio[at], (bus->pio_count - at) * sizeof(bus->pio[0]));
    bus->pio[at] = *range;
    bus->pio_count++;
    index_low_ports(bus);
    return 0;
}

int bus_add_pio(struct bus *bus, uint16_t first, uint16_t count, bus_pio_read read,
                bus_pio_write write, void *device)
{
    return add_pio(
        bus, &(struct bus_pio_range){
                 .first = first, .count = count, .read = read, .write = write, .device = device});
}

int bus_add_pio_bytes(struct bus *bus, uint16_t first, uint16_t count, bus_pio_read read,
                      bus_pio_write write, void *device)
{
    return add_pio(bus, &(struct bus_pio_range){.first = first,
                                                .count = count,
                                                .read = read,
                                                .write = write,
                                                .device = device,
                                                .bytes = true});
}

static void count_unclaimed(struct bus *bus)
{
    atomic_fetch_add_explicit(&bus->unclaimed, 1, memory_order_relaxed);
}

// As on ISA, where the bridge turns a wide cycle into byte cycles of one device after the other.
static __attribute__((noinline)) uint32_t pio_in_bytes(struct bus *bus, uint32_t port,
                                                       unsigned size)
{
    uint32_t value = 0;
    bool answered = false;
    for (unsigned i = 0; i < MIN(size, 4u); i++) {
        const struct bus_pio_range *r = port + i <= 0xffff ? pio_find(bus, port + i) : NULL;
        uint32_t byte = 0xff;
        if (r != NULL) {
            byte = r->read(r->device, (uint16_t)(port + i - r->first), 1) & 0xff;
            answered = true;
        }
        value |= byte << (8 * i);
    }
    if (!answered)
        count_unclaimed(bus);
    return value;
}

static __attribute__((noinline)) void pio_out_bytes(struct bus *bus, uint32_t port, unsigned size,
                                                    uint32_t value)
{
    bool answered = false;
    for (unsigned i = 0; i < MIN(size, 4u); i++) {
        const struct bus_pio_range *r = port + i <= 0xffff ? pio_find(bus, port + i) : NULL;
        if (r != NULL) {
            r->write(r->device, (uint16_t)(port + i - r->first), 1, (value >> (8 * i)) & 0xff);
            answered = true;
        }
    }
    if (!answered)
        count_unclaimed(bus);
}

static inline uint32_t low_bytes(uint32_t value, unsigned size)
{
    return size == 1 ? value & 0xff : size == 2 ? value & 0xffff : value;
}

// True when the range can take the whole access in one call.
static inline bool pio_takes(const struct bus_pio_range *r, uint32_t offset, unsigned size)
{
    return size == 1 || (offset + size <= r->count && !r->bytes);
}

uint32_t bus_pio_in(struct bus *bus, uint16_t port, unsigned size)
{
    const struct bus_pio_range *r = pio_find(bus, port);
    if (r != NULL) {
        uint32_t offset = (uint32_t)port - r->first;
        if (pio_takes(r, offset, size))
            return low_bytes(r->read(r->device, (uint16_t)offset, size), size);
    }
    return pio_in_bytes(bus, port, size);
}

void bus_pio_out(struct bus *bus, uint16_t port, unsigned size, uint32_t value)
{
    const struct bus_pio_range *r = pio_find(bus, port);
    if (r != NULL) {
        uint32_t offset = (uint32_t)port - r->first;
        if (pio_takes(r, offset, size)) {
            r->write(r->device, (uint16_t)offset, size, low_bytes(value, size));
            return;
        }
    }
    pio_out_bytes(bus, port, size, value);
}

int bus_add_mmio(struct bus *bus, gpa_t first, uint64_t size, bus_mmio_read read,
                 bus_mmio_write write, void *device)
{
    if (size == 0 || first.raw > UINT64_MAX - size || read == NULL || write == NULL)
        return E_INVAL;
    uint32_t at = 0;
    while (at < bus->mmio_count && bus->mmio[at].first < first.raw)
        at++;
    if (at > 0 && bus->mmio[at - 1].first + bus->mmio[at - 1].size > first.raw)
        return E_EXIST;
    if (at < bus->mmio_count && bus->mmio[at].first < first.raw + size)
        return E_EXIST;
    if (bus->mmio_count == BUS_MMIO_RANGES)
        return E_NOMEM;
    memmove(&bus->mmio[at + 1], &bus->mmio[at], (bus->mmio_count - at) * sizeof(bus->mmio[0]));
    bus->mmio[at] = (struct bus_mmio_range){
        .first = first.raw, .size = size, .read = read, .write = write, .device = device};
    bus->mmio_count++;
    return 0;
}

// A VM has two or three such ranges: a linear search is the shortest.
static const struct bus_mmio_range *mmio_find(const struct bus *bus, uint64_t address)
{
    for (uint32_t i = 0; i < bus->mmio_count; i++) {
        if (address - bus->mmio[i].first < bus->mmio[i].size)
            return &bus->mmio[i];
    }
    return NULL;
}

static bool mmio_takes(const struct bus_mmio_range *r, uint64_t offset, unsigned size)
{
    return r->size - offset >= size && (size == 1 || size == 2 || size == 4 || size == 8);
}

bool bus_mmio_claimed(const struct bus *bus, gpa_t address)
{
    return mmio_find(bus, address.raw) != NULL;
}

uint64_t bus_mmio_load(struct bus *bus, gpa_t address, unsigned size)
{
    const struct bus_mmio_range *r = mmio_find(bus, address.raw);
    if (r != NULL && mmio_takes(r, address.raw - r->first, size)) {
        uint64_t value = r->read(r->device, address.raw - r->first, size);
        return size < 8 ? value & ((UINT64_C(1) << (8 * size)) - 1) : value;
    }
    // Across an end: bytes, as the CPU does at a page boundary.
    uint64_t value = 0;
    bool answered = false;
    for (unsigned i = 0; i < MIN(size, 8u); i++) {
        uint64_t byte = 0xff;
        r = mmio_find(bus, address.raw + i);
        if (r != NULL) {
            byte = r->read(r->device, address.raw + i - r->first, 1) & 0xff;
            answered = true;
        }
        value |= byte << (8 * i);
    }
    if (!answered)
        count_unclaimed(bus);
    return value;
}

void bus_mmio_store(struct bus *bus, gpa_t address, unsigned size, uint64_t value)
{
    const struct bus_mmio_range *r = mmio_find(bus, address.raw);
    if (r != NULL && mmio_takes(r, address.raw - r->first, size)) {
        if (size < 8)
            value &= (UINT64_C(1) << (8 * size)) - 1;
        r->write(r->device, address.raw - r->first, size, value);
        return;
    }
    bool answered = false;
    for (unsigned i = 0; i < MIN(size, 8u); i++) {
        r = mmio_find(bus, address.raw + i);
        if (r != NULL) {
            r->write(r->device, address.raw + i - r->first, 1, (value >> (8 * i)) & 0xff);
            answered = true;
        }
    }
    if (!answered)
        count_unclaimed(bus);
}
