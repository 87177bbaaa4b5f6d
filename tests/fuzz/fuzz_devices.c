// SPDX-License-Identifier: BSD-2-Clause
// sources: devices/pic.c devices/pit.c devices/rtc.c devices/calendar.c devices/uart.c

// sources: devices/power_control.c vm/bus.c vm/clock.c

// libFuzzer: all port devices of a VM behind their bus, driven by tests/unit/device_script.h. The
// first byte chooses the TSC frequency.
#include "device_script.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static const uint64_t frequencies[] = {3500000000, 100000000, 1, UINT64_C(1) << 34};
    static struct device_machine m;
    if (size == 0)
        return 0;
    SCRIPT_CHECK(machine_init(&m, frequencies[data[0] % ARRAY_SIZE(frequencies)], data[0]) == 0);
    script_play(&m, data + 1, size - 1);
    return 0;
}
