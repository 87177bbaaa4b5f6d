// SPDX-License-Identifier: BSD-2-Clause
// fault: exceptions arrive with the right vector, error code and address.
#include "bare.h"

#define VECTOR_DE 0u
#define VECTOR_UD 6u
#define VECTOR_NP 11u
#define VECTOR_SS 12u
#define VECTOR_GP 13u
#define VECTOR_PF 14u

#define NON_CANONICAL UINT64_C(0x8000000000000000)
#define MSR_EFER      0xc0000080u
#define EFER_NXE      (UINT64_C(1) << 11)
#define CR4_OSXSAVE   (UINT64_C(1) << 18)

static void expect(const char *what, uint64_t vector, uint64_t error)
{
    if (caught.vector == vector && caught.error == error)
        return;
    errors++;
    report("error: %s: vector=%ld error=0x%lx instead of vector=%lu error=0x%lx", what,
           (int64_t)caught.vector, caught.error, vector, error);
}

static void test_segments(void)
{
    catch_fault("xor %%edx, %%edx; xor %%ecx, %%ecx; mov $1, %%eax; div %%ecx", "c"(0), "d"(0));
    expect("division by zero", VECTOR_DE, 0);
    catch_fault("ud2", "c"(0));
    expect("ud2", VECTOR_UD, 0);
    catch_fault("mov %[s], %%ds", [s] "r"(0x1234u));
    expect("selector outside the GDT", VECTOR_GP, 0x1234);
    catch_fault("mov %[s], %%ds", [s] "r"(SELECTOR_ABSENT));
    expect("segment not present", VECTOR_NP, SELECTOR_ABSENT);
    catch_fault("mov (%[a]), %%rax", [a] "r"(NON_CANONICAL));
    expect("non-canonical address", VECTOR_GP, 0);
}

// With RBP as its base the access goes through SS.
static void test_stack_fault(void)
{
    register uint64_t address __asm__("rdx") = NON_CANONICAL;
    caught.vector = NO_FAULT;
    __asm__ volatile("push %%rbp; mov %%rdx, %%rbp\n\t"
                     "movq $99f, %[resume]; mov (%%rbp), %%rax\n99:\n\t"
                     "movq $0, %[resume]; pop %%rbp"
                     : [resume] "+m"(caught.resume)
                     : "r"(address)
                     : "rax", "memory");
    expect("non-canonical stack address", VECTOR_SS, 0);
}

static void test_page_faults(void)
{
    volatile uint64_t *at = window_set(3, 0);
    uint64_t efer;
    uint64_t page = memory[0].from;
    invlpg(at);
    catch_fault("mov (%[a]), %%rax", [a] "r"(at));
    expect("read of a page that is not present", VECTOR_PF, 0);
    check(caught.cr2 == (uint64_t)(uintptr_t)at, caught.cr2);
    catch_fault("movb $1, 5(%[a])", [a] "r"(at));
    expect("write to a page that is not present", VECTOR_PF, 2);
    check(caught.cr2 == (uint64_t)(uintptr_t)at + 5, caught.cr2);
    window_set(3, page | PTE_PRESENT);
    invlpg(at);
    catch_fault("movb $1, (%[a])", [a] "r"(at));
    expect("write to a read-only page", VECTOR_PF, 3);
    window_set(3, page | PTE_PRESENT | UINT64_C(1) << 51);
    invlpg(at);
    catch_fault("mov (%[a]), %%rax", [a] "r"(at));
    expect("reserved bit in a page table", VECTOR_PF, 9);

    if (!try_rdmsr(MSR_EFER, &efer) || (cpuid(0x80000001, 0).d & 1u << 20) == 0) {
        report("nx=unsupported");
        return;
    }
    check(try_wrmsr(MSR_EFER, efer | EFER_NXE), efer);
    window_set(3, page | PTE_PRESENT | PTE_NX);
    invlpg(at);
    catch_fault("jmp *%[a]", [a] "r"(at));
    expect("fetch from a no-execute page", VECTOR_PF, 0x11);
    check(caught.rip == (uint64_t)(uintptr_t)at, caught.rip);
    window_set(3, 0);
    invlpg(at);
}

static void test_control_registers(void)
{
    uint64_t cr0 = read_cr0(), cr4 = read_cr4();
    catch_fault("mov %[v], %%cr4", [v] "r"(cr4 | UINT64_C(1) << 63));
    expect("CR4 bit 63", VECTOR_GP, 0);
    catch_fault("mov %[v], %%cr4", [v] "r"(cr4 | UINT64_C(1) << 31));
    expect("CR4 bit 31", VECTOR_GP, 0);
    catch_fault("mov %[v], %%cr4", [v] "r"(cr4 & ~UINT64_C(0x20)));
    expect("CR4.PAE cleared in long mode", VECTOR_GP, 0);
    if ((cpuid(1, 0).c & 1u << 5) == 0) {
        catch_fault("mov %[v], %%cr4", [v] "r"(cr4 | UINT64_C(1) << 13));
        expect("CR4.VMXE without VMX", VECTOR_GP, 0);
    }
    catch_fault("mov %[v], %%cr0", [v] "r"(cr0 | UINT64_C(1) << 40));
    expect("CR0 bit 40", VECTOR_GP, 0);
    catch_fault("mov %[v], %%cr0", [v] "r"(cr0 & ~UINT64_C(1)));
    expect("CR0.PG without PE", VECTOR_GP, 0);
    catch_fault("mov %[v], %%cr0", [v] "r"((cr0 | UINT64_C(1) << 29) & ~(UINT64_C(1) << 30)));
    expect("CR0.NW without CD", VECTOR_GP, 0);
    catch_fault("mov %[v], %%cr8", [v] "r"(UINT64_C(16)));
    expect("CR8 = 16", VECTOR_GP, 0);
    check(read_cr0() == cr0, read_cr0());
    check(read_cr4() == cr4, read_cr4());
}

static void test_xsetbv(void)
{
    if ((cpuid(1, 0).c & 1u << 26) == 0) {
        report("xsave=unsupported");
        return;
    }
    uint64_t cr4 = read_cr4();
    write_cr4(cr4 & ~CR4_OSXSAVE);
    catch_fault("mov $1, %%eax; xsetbv", "c"(0), "d"(0));
    expect("XSETBV without OSXSAVE", VECTOR_UD, 0);
    write_cr4(cr4 | CR4_OSXSAVE);
    check((cpuid(1, 0).c & 1u << 27) != 0, cpuid(1, 0).c); // CPUID shows OSXSAVE
    static const struct {
        const char *what;
        uint32_t index, low, high;
    } bad[] = {
        {"XCR0 without x87", 0, 0, 0},
        {"XCR0 with AVX but no SSE", 0, 5, 0},
        {"XCR0 with part of AVX-512", 0, 0x27, 0},
        {"XCR0 with part of MPX", 0, 0x0b, 0},
        {"XCR0 reserved bit", 0, 7, 0x80000000},
        {"XCR 1", 1, 1, 0},
    };
    for (unsigned i = 0; i < ARRAY_SIZE(bad); i++) {
        catch_fault("mov %[low], %%eax; xsetbv", [low] "r"(bad[i].low), "c"(bad[i].index),
                    "d"(bad[i].high));
        expect(bad[i].what, VECTOR_GP, 0);
    }
    catch_fault("mov $3, %%eax; xsetbv", "c"(0), "d"(0));
    check(caught.vector == NO_FAULT, caught.vector);
    write_cr4(cr4);
}

static void test_msrs(void)
{
    uint64_t value;
    check(!try_rdmsr(0x5fffffff, &value) && caught.vector == VECTOR_GP, caught.vector);
    check(caught.error == 0, caught.error);
    check(!try_wrmsr(0x5fffffff, 0) && caught.vector == VECTOR_GP, caught.vector);
    check(!try_wrmsr(0xc0000082, NON_CANONICAL), caught.vector);           // LSTAR
    check(!try_wrmsr(0xc0000100, NON_CANONICAL), caught.vector);           // FS base
    check(!try_wrmsr(0x277, UINT64_C(0x0202020202020202)), caught.vector); // PAT: no type 2
    check(try_rdmsr(MSR_EFER, &value), caught.vector);
    check(!try_wrmsr(MSR_EFER, value | UINT64_C(1) << 40), caught.vector);
    check(!try_wrmsr(MSR_EFER, value & ~UINT64_C(0x100)), caught.vector); // LME while paging
}

void test_fault(void)
{
    test_segments();
    test_stack_fault();
    test_page_faults();
    test_control_registers();
    test_xsetbv();
    test_msrs();
    report("errors=%lu", (uint64_t)errors);
}
