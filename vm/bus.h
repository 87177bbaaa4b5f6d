// SPDX-License-Identifier: BSD-2-Clause
// A VM's I/O ports and device memory: who answers where. Filled while the VM is built, read-only
// while it runs, so look-ups need no lock.
#pragma once

#include "kernel/types.h"

#define BUS_PIO_RANGES  48u
#define BUS_MMIO_RANGES 16u
#define BUS_LOW_PORTS   0x800u // looked up by index: all that a guest uses often lies here

// size is 1, 2 or 4. offset counts from the range's first port.
typedef uint32_t (*bus_pio_read)(void *device, uint16_t offset, unsigned size);
typedef void (*bus_pio_write)(void *device, uint16_t offset, unsigned size, uint32_t value);
// size is 1, 2, 4 or 8.
typedef uint64_t (*bus_mmio_read)(void *device, uint64_t offset, unsigned size);
typedef void (*bus_mmio_write)(void *device, uint64_t offset, unsigned size, uint64_t value);

struct bus_pio_range {
    uint16_t first;
    uint16_t count;
    bus_pio_read read;
    bus_pio_write write;
    void *device;
    bool bytes; // the device knows single bytes only
};

struct bus_mmio_range {
    uint64_t first;
    uint64_t size;
    bus_mmio_read read;
    bus_mmio_write write;
    void *device;
};

struct bus {
    struct bus_pio_range pio[BUS_PIO_RANGES];    // sorted by `first`
    struct bus_mmio_range mmio[BUS_MMIO_RANGES]; // sorted by `first`
    uint32_t pio_count;
    uint32_t mmio_count;
    _Atomic uint64_t unclaimed; // accesses nobody answered
    uint8_t low[BUS_LOW_PORTS]; // index into pio + 1, 0: nobody
};

void bus_init(struct bus *bus);
// E_NOMEM when full, E_EXIST when it overlaps, E_INVAL for an empty or wrapping range or a missing
// handler.
int bus_add_pio(struct bus *bus, uint16_t first, uint16_t count, bus_pio_read read,
                bus_pio_write write, void *device);
// The same for a device on an 8-bit bus: accesses of 2 and 4 bytes reach it as bytes, lowest first.
int bus_add_pio_bytes(struct bus *bus, uint16_t first, uint16_t count, bus_pio_read read,
                      bus_pio_write write, void *device);
int bus_add_mmio(struct bus *bus, gpa_t first, uint64_t size, bus_mmio_read read,
                 bus_mmio_write write, void *device);
// Unclaimed reads give all ones; unclaimed writes vanish. A port access that crosses the end of a
// range is split into bytes; ports above 0xffff do not exist. An access counts as unclaimed when no
// byte of it was answered.
uint32_t bus_pio_in(struct bus *bus, uint16_t port, unsigned size);
void bus_pio_out(struct bus *bus, uint16_t port, unsigned size, uint32_t value);
// True when some device claims the address.
bool bus_mmio_claimed(const struct bus *bus, gpa_t address);
uint64_t bus_mmio_load(struct bus *bus, gpa_t address, unsigned size);
void bus_mmio_store(struct bus *bus, gpa_t address, unsigned size, uint64_t value);
