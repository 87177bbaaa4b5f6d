// SPDX-License-Identifier: BSD-2-Clause
// Whose vector state is in each CPU, and lending the registers to Fusor's batches.
//
// AVX2 code changes XMM and YMM registers 0 to 15 and, as every VEX instruction clears the rest of
// its destination, with AVX-512 also the upper halves of ZMM 0 to 15. These are put away and
// brought back (MXCSR goes along); x87, opmask, ZMM 16 to 31 and what else there may be stay in the
// CPU. XSAVE and XRSTOR handle a component only while XCR0 enables it (SDM vol. 1, 13.3), and the
// guest chooses XCR0, also one that hides state it still has: XCR0 is raised first where the
// guest's is too small. That is rare; XSETBV is slow where Fusor is itself a guest.
#include <arch/vector.h>

#include "kernel/init.h"
#include "kernel/panic.h"
#include "kernel/percpu.h"
#include "kernel/simd.h"

#define AVX512 (XCR0_OPMASK | XCR0_ZMM_HI256 | XCR0_HI16_ZMM)

struct holder {
    void *area; // NULL: nobody's state is in the registers
    const uint64_t *xcr0;
    bool lent;                  // between simd_begin and simd_end
} __attribute__((aligned(64))); // one CPU's alone

static struct holder holders[MAX_CPUS];

// Over all CPUs that are online: what XCR0 may have, and how many cannot do AVX2.
static _Atomic uint64_t supported = UINT64_MAX;
static _Atomic uint32_t asked, without;

static int look_at_cpu(void)
{
    uint64_t xcr0 = arch_avx2_xcr0();
    asked++;
    if (xcr0 == 0)
        without++;
    supported &= xcr0;
    return 0;
}
CPU_INIT_HOOK(INIT_VMX, look_at_cpu);

enum simd_level simd_level(void)
{
    return asked != 0 && without == 0 ? SIMD_AVX2 : SIMD_NONE;
}

// What has to be enabled in XCR0; XSETBV takes AVX-512's three only together (SDM vol. 1, 13.3).
static uint64_t needed_xcr0;

// After all CPUs have been looked at.
static int conclude(const struct boot_info *info)
{
    (void)info;
    needed_xcr0 = 0; // no batch may begin
    if (simd_level() == SIMD_AVX2)
        needed_xcr0 = 1 | XCR0_SSE | XCR0_AVX | ((supported & AVX512) == AVX512 ? AVX512 : 0);
    return 0;
}
INIT_HOOK(INIT_EPT, conclude);

static uint64_t changed(uint64_t xcr0)
{
    return xcr0 & (XCR0_SSE | XCR0_AVX | XCR0_ZMM_HI256);
}

void simd_begin(void)
{
    struct holder *h = &holders[cpu_index()];
    CHECK(!h->lent && needed_xcr0 != 0);
    h->lent = true;
    uint64_t needed = needed_xcr0, present = h->area != NULL ? *h->xcr0 : arch_read_xcr0();
    if ((needed & ~present) != 0)
        arch_write_xcr0(needed | present);
    if (h->area != NULL)
        arch_xsave(h->area, changed(needed));
}

void simd_end(void)
{
    struct holder *h = &holders[cpu_index()];
    CHECK(h->lent);
    h->lent = false;
    if (h->area == NULL)
        return; // whoever is loaded next brings its own XCR0
    uint64_t needed = needed_xcr0;
    arch_xrstor(h->area, changed(needed));
    if ((needed & ~*h->xcr0) != 0)
        arch_write_xcr0(*h->xcr0);
}

void simd_set_owner(void *xsave_area, const uint64_t *xcr0)
{
    struct holder *h = &holders[cpu_index()];
    CHECK(!h->lent && (xsave_area == NULL || xcr0 != NULL));
    h->area = xsave_area;
    h->xcr0 = xcr0;
}
