// SPDX-License-Identifier: BSD-2-Clause
// Fusion begins: the boot's key, the index, the hooks in lower rooms.
#include <arch/cpu.h>

#include "fusion/engine.h"
#include "fusion/page_ops.h"
#include "kernel/init.h"
#include "kernel/time.h"

// Draws what guests must not know: from RDRAND where there is one, stirred with the time.
static uint64_t random64(void)
{
    static uint64_t state;
    uint64_t drawn = 0;
    if ((cpu_cpuid(1, 0).ecx >> 30 & 1) != 0)
        cpu_random(&drawn);
    // splitmix64 (Steele, Lea, Flood 2014) spreads what little there may be.
    state += UINT64_C(0x9e3779b97f4a7c15) ^ drawn ^ time_tsc();
    uint64_t z = state;
    z = (z ^ z >> 30) * UINT64_C(0xbf58476d1ce4e5b9);
    z = (z ^ z >> 27) * UINT64_C(0x94d049bb133111eb);
    return z ^ z >> 31 ^ drawn;
}

static int init(const struct boot_info *info)
{
    (void)info;
    struct frames_snapshot snapshot;
    frames_snapshot(&snapshot, NULL, 0, NULL, NULL);
    page_ops_init(random64);
    int status = index_init(snapshot.total);
    if (status != 0)
        return status;
    vm_set_memory_ops(&fusion_memory_ops);
    status = split_init();
    return status != 0 ? status : service_init();
}
INIT_HOOK(INIT_DEVICES, init);
