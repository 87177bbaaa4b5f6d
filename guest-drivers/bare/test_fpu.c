// SPDX-License-Identifier: BSD-2-Clause
// fpu: x87, SSE and AVX registers keep their values over exits and preemption. The compiler uses
// general registers only, so what is loaded once stays until this file changes it.
#include "bare.h"

#define FXSAVE_USED 416u // header, ST0-7, XMM0-15; the rest is reserved
#define YMM_BYTES   512u

static _Alignas(64) uint8_t fx_before[512], fx_now[512];
static _Alignas(64) uint8_t ymm_before[YMM_BYTES], ymm_now[YMM_BYTES];

#define EACH_YMM(op)                                                                               \
    op(0) op(1) op(2) op(3) op(4) op(5) op(6) op(7) op(8) op(9) op(10) op(11) op(12) op(13) op(14) \
        op(15)
#define LOAD_YMM(n)  "vmovdqu 32*" #n "(%0), %%ymm" #n "\n\t"
#define STORE_YMM(n) "vmovdqu %%ymm" #n ", 32*" #n "(%0)\n\t"
#define LOAD_XMM(n)  "movdqu 32*" #n "(%0), %%xmm" #n "\n\t"

void enable_sse(void)
{
    write_cr0((read_cr0() & ~UINT64_C(0xc)) | 2); // EM, TS off; MP on
    write_cr4(read_cr4() | 0x600);                // OSFXSR, OSXMMEXCPT
}

static bool enable_avx(void)
{
    const uint32_t need = 1u << 28 | 1u << 26; // AVX, XSAVE
    if ((cpuid(1, 0).c & need) != need)
        return false;
    write_cr4(read_cr4() | 1u << 18);
    __asm__ volatile("xsetbv" : : "a"(7), "d"(0), "c"(0));
    return true;
}

static void load(uint64_t seed, bool avx)
{
    for (unsigned i = 0; i < YMM_BYTES; i++) {
        seed = seed * UINT64_C(6364136223846793005) + 1442695040888963407;
        ymm_before[i] = (uint8_t)(seed >> 56);
    }
    uint32_t mxcsr = 0x1f80 | (uint32_t)(seed & 3) << 13; // a rounding mode of this guest
    __asm__ volatile("fninit; fld1; fldpi; fldl2e; ldmxcsr %0" : : "m"(mxcsr));
    if (avx)
        __asm__ volatile(EACH_YMM(LOAD_YMM) : : "r"(ymm_before) : "memory");
    else
        __asm__ volatile(EACH_YMM(LOAD_XMM) : : "r"(ymm_before) : "memory");
    __asm__ volatile("fxsave64 %0" : "=m"(fx_before));
}

static void compare(bool avx)
{
    __asm__ volatile("fxsave64 %0" : "=m"(fx_now));
    for (unsigned i = 0; i < FXSAVE_USED; i++)
        check(fx_now[i] == fx_before[i], i);
    if (!avx)
        return;
    __asm__ volatile(EACH_YMM(STORE_YMM) : : "r"(ymm_now) : "memory");
    for (unsigned i = 0; i < YMM_BYTES; i++)
        check(ymm_now[i] == ymm_before[i], i);
}

// `seconds=` (2) long; `seed=` (1) makes guests differ.
void test_fpu(void)
{
    uint64_t end = rdtsc() + option("seconds", 2) * tsc_hz();
    uint64_t seed = option("seed", 1), rounds = 0;
    enable_sse();
    bool avx = enable_avx();
    do {
        load(seed + rounds, avx);
        for (unsigned i = 0; i < 20; i++) {
            cpuid(0, 0);
            outb(0x80, 0);
            (void)lapic_read(LAPIC_TPR);
        }
        wait_ticks(tsc_hz() / 200); // long enough to be preempted now and then
        compare(avx);
        rounds++;
    } while (rdtsc() < end);
    report("rounds=%lu avx=%lu errors=%lu", rounds, (uint64_t)avx, (uint64_t)errors);
}
