// SPDX-License-Identifier: BSD-2-Clause
// hypercall: discovery, every bad input and its error, partial work, statistics, ring 3. With
// `off=1` the VM has page-fusion = off: hints are refused, everything else works.
#include "bare.h"
#include "hypercall.h"

#define TRIES 8u // pages hinted for good

static _Alignas(PAGE) uint64_t list[FUSOR_LIST_MAX + 8];
static _Alignas(PAGE) uint8_t pages[TRIES][PAGE];
static bool off;

static uint64_t address(const volatile void *p)
{
    return (uint64_t)(uintptr_t)p; // RAM is mapped to itself
}

static uint64_t gfn_of(const void *p)
{
    return address(p) / PAGE;
}

static void expect(const char *what, int64_t got, int64_t wanted)
{
    if (got == wanted)
        return;
    errors++;
    report("error: %s: %ld instead of %ld", what, got, wanted);
}

static struct fusor_statistics statistics(void)
{
    static _Alignas(8) struct fusor_statistics s;
    int64_t got = hypercall(FUSOR_STATISTICS, address(&s), sizeof(s), 0, 0);
    expect("statistics", got, (int64_t)sizeof(s));
    return s;
}

static void test_discovery(void)
{
    struct hypercall_facts facts = {0};
    check(hypercall_discover(&facts), 0);
    check(cpuid(FUSOR_CPUID_SIGNATURE, 0).a == FUSOR_CPUID_FEATURES, 0);
    check(facts.version == FUSOR_ABI_VERSION, facts.version);
    check((facts.features & FUSOR_FEATURE_HINTS) != 0, facts.features);
    check((facts.features & FUSOR_FEATURE_STATS) != 0, facts.features);
    check(facts.list_max == FUSOR_LIST_MAX, facts.list_max);
    struct cpuid next = cpuid(FUSOR_CPUID_FEATURES + 1, 0);
    check((next.a | next.b | next.c | next.d) == 0, next.a);
    report("version=%lu features=0x%lx list_max=%lu", (uint64_t)facts.version,
           (uint64_t)facts.features, (uint64_t)facts.list_max);

    // What CPUID does not announce does not exist.
    if ((facts.features & FUSOR_FEATURE_BALLOON) == 0)
        for (uint64_t n = FUSOR_BALLOON_TARGET; n <= FUSOR_BALLOON_DEFLATE; n++)
            expect("balloon", hypercall(n, address(list), 1, 0, 0), -FUSOR_ENOSYS);
    if ((facts.features & FUSOR_FEATURE_FREE) == 0)
        expect("free pages", hypercall(FUSOR_FREE_PAGES, address(list), 1, 0, 0), -FUSOR_ENOSYS);
    static const uint64_t numbers[] = {0, 9, 0x7fffffff, UINT64_C(1) << 32 | FUSOR_HINT,
                                       UINT64_MAX};
    for (unsigned i = 0; i < ARRAY_SIZE(numbers); i++)
        expect("unknown call", hypercall(numbers[i], address(list), 1, 0, 0), -FUSOR_ENOSYS);
}

// RAX is the only register that changes, RFLAGS does not either.
static void test_registers(void)
{
    uint64_t in[14], out[14], flags[2];
    for (unsigned i = 0; i < ARRAY_SIZE(in); i++)
        in[i] = UINT64_C(0x0123456789abcdef) * (2 * i + 1);
    // RBX RCX RDX RSI RDI RBP R8 R9 R10 R11 R12 R13 R14 R15, an unknown call.
    static uint64_t *from, *to;
    from = in;
    to = out;
    __asm__ volatile("push %%rbp\n\t"
                     "stc; std; pushfq; cld\n\t"
                     "mov %[from], %%rax\n\t"
                     "mov 0(%%rax), %%rbx; mov 8(%%rax), %%rcx; mov 16(%%rax), %%rdx\n\t"
                     "mov 24(%%rax), %%rsi; mov 32(%%rax), %%rdi; mov 40(%%rax), %%rbp\n\t"
                     "mov 48(%%rax), %%r8; mov 56(%%rax), %%r9; mov 64(%%rax), %%r10\n\t"
                     "mov 72(%%rax), %%r11; mov 80(%%rax), %%r12; mov 88(%%rax), %%r13\n\t"
                     "mov 96(%%rax), %%r14; mov 104(%%rax), %%r15\n\t"
                     "mov $-1, %%rax; stc; std\n\t"
                     "vmcall\n\t"
                     "pushfq; cld\n\t"
                     "mov %[to], %%rax\n\t"
                     "mov %%rbx, 0(%%rax); mov %%rcx, 8(%%rax); mov %%rdx, 16(%%rax)\n\t"
                     "mov %%rsi, 24(%%rax); mov %%rdi, 32(%%rax); mov %%rbp, 40(%%rax)\n\t"
                     "mov %%r8, 48(%%rax); mov %%r9, 56(%%rax); mov %%r10, 64(%%rax)\n\t"
                     "mov %%r11, 72(%%rax); mov %%r12, 80(%%rax); mov %%r13, 88(%%rax)\n\t"
                     "mov %%r14, 96(%%rax); mov %%r15, 104(%%rax)\n\t"
                     "pop %%rsi; pop %%rdi; pop %%rbp"
                     : "=S"(flags[1]), "=D"(flags[0])
                     : [from] "m"(from), [to] "m"(to)
                     : "rax", "rbx", "rcx", "rdx", "r8", "r9", "r10", "r11", "r12", "r13", "r14",
                       "r15", "cc", "memory");
    for (unsigned i = 0; i < ARRAY_SIZE(in); i++)
        check(out[i] == in[i], i);
    const uint64_t carry_direction = 0x401;
    check((flags[0] & carry_direction) == carry_direction, flags[0]);
    check((flags[1] & carry_direction) == carry_direction, flags[1]);
}

// Lists and structures that are not where they are said to be, and sizes that cannot be.
static void test_buffers(void)
{
    static const struct {
        uint64_t call, size;
    } calls[] = {{FUSOR_HINT, 1}, {FUSOR_UNHINT, 1}, {FUSOR_STATISTICS, 32}, {FUSOR_REPORT, 32}};
    list[0] = FUSOR_ENTRY(gfn_of(pages[0]), 0, 0);
    for (unsigned i = 0; i < ARRAY_SIZE(calls); i++) {
        uint64_t c = calls[i].call, size = calls[i].size;
        uint64_t bytes = c <= FUSOR_UNHINT ? 8 : size - 8;
        expect("RDX", hypercall(c, address(list), size, 1, 0), -FUSOR_EINVAL);
        expect("R10", hypercall(c, address(list), size, 0, UINT64_C(1) << 63), -FUSOR_EINVAL);
        expect("not aligned", hypercall(c, address(list) + 4, size, 0, 0), -FUSOR_EINVAL);
        expect("size 0", hypercall(c, address(list), 0, 0, 0), -FUSOR_EINVAL);
        expect("size beyond", hypercall(c, address(list), PAGE + 8, 0, 0), -FUSOR_EINVAL);
        expect("size overflows", hypercall(c, address(list), UINT64_C(1) << 61, 0, 0),
               -FUSOR_EINVAL);
        expect("size all ones", hypercall(c, address(list), UINT64_MAX, 0, 0), -FUSOR_EINVAL);
        expect("beyond RAM", hypercall(c, memory_top, size, 0, 0), -FUSOR_EFAULT);
        uint64_t over = c <= FUSOR_UNHINT ? 2 : size; // the last word lies behind
        expect("across the end of RAM", hypercall(c, memory_top - bytes, over, 0, 0),
               -FUSOR_EFAULT);
        expect("LAPIC", hypercall(c, 0xfee00000, size, 0, 0), -FUSOR_EFAULT);
        expect("hole below 1 MiB", hypercall(c, 0xa0000, size, 0, 0), -FUSOR_EFAULT);
        expect("bit 52", hypercall(c, UINT64_C(1) << 52 | address(list), size, 0, 0),
               -FUSOR_EFAULT);
        expect("address wraps", hypercall(c, UINT64_MAX - 7, 32, 0, 0), -FUSOR_EFAULT);
    }
}

// Entries that cannot be: each alone, then behind a good one, whose work stands.
static void test_entries(void)
{
    static const struct {
        const char *what;
        uint64_t entry;
        int64_t error;
    } bad[] = {
        {"reserved bit 48", UINT64_C(1) << 48, -FUSOR_EINVAL},
        {"reserved bit 63", UINT64_C(1) << 63, -FUSOR_EINVAL},
        {"class 6", FUSOR_ENTRY(0x300, FUSOR_CLASSES, 0), -FUSOR_EINVAL},
        {"class 15", FUSOR_ENTRY(0x300, 15, 0), -FUSOR_EINVAL},
        {"order 1", FUSOR_ENTRY(0x300, 0, 1), -FUSOR_EINVAL},
        {"order 15", FUSOR_ENTRY(0x300, 0, 15), -FUSOR_EINVAL},
        {"range not aligned", FUSOR_ENTRY(0x301, 0, 9), -FUSOR_EINVAL},
        {"LAPIC page", FUSOR_ENTRY(0xfee00, 0, 0), -FUSOR_ERANGE},
        {"hole below 1 MiB", FUSOR_ENTRY(0xa0, 0, 0), -FUSOR_ERANGE},
        {"highest gfn", FUSOR_ENTRY_GFN_MASK, -FUSOR_ERANGE},
    };
    static const uint64_t calls[] = {FUSOR_HINT, FUSOR_UNHINT};
    for (unsigned c = off ? 1 : 0; c < ARRAY_SIZE(calls); c++) {
        for (unsigned i = 0; i < ARRAY_SIZE(bad); i++) {
            struct fusor_statistics before = statistics();
            list[0] = bad[i].entry;
            list[1] = FUSOR_ENTRY(gfn_of(pages[0]), 0, 0);
            expect(bad[i].what, hypercall(calls[c], address(list), 2, 0, 0), bad[i].error);
            struct fusor_statistics after = statistics();
            // One counted for each hint refused, and nothing behind it was looked at.
            uint64_t hinted = calls[c] == FUSOR_HINT;
            check(after.hints_received - before.hints_received == hinted, i);
            check(after.hints_rejected - before.hints_rejected == hinted, i);
            list[0] = FUSOR_ENTRY(gfn_of(pages[0]), 0, 0);
            list[1] = bad[i].entry;
            list[2] = list[0];
            expect("one good one", hypercall(calls[c], address(list), 3, 0, 0), 1);
        }
        list[0] = FUSOR_ENTRY(memory_top / PAGE, 0, 0);
        expect("gfn behind RAM", hypercall(calls[c], address(list), 1, 0, 0), -FUSOR_ERANGE);
        list[0] = FUSOR_ENTRY(memory_top / PAGE - 1, 0, 0);
        expect("last gfn of RAM", hypercall(calls[c], address(list), 1, 0, 0), 1);
    }
    list[0] = FUSOR_ENTRY(gfn_of(pages[0]), FUSOR_CLASS_CACHE, 0);
    expect("unhint with a class", hypercall(FUSOR_UNHINT, address(list), 1, 0, 0), -FUSOR_EINVAL);
}

static int64_t in_one_call(uint64_t call, unsigned count)
{
    return hypercall(call, address(list), count, 0, 0);
}

// Sends the whole list, going on where a call stopped, and returns how many were done.
static uint64_t in_any_calls(uint64_t call, unsigned count)
{
    uint64_t done = 0;
    while (done < count) {
        int64_t n = hypercall(call, address(&list[done]), count - done, 0, 0);
        check(n > 0 && (uint64_t)n <= count - done, n);
        if (n <= 0)
            break;
        done += (uint64_t)n;
    }
    return done;
}

// No two pages alike.
static uint8_t content(unsigned page, unsigned n)
{
    return (uint8_t)(n * 7 + page * 3 + (n >> 8) * page);
}

static void test_hints(void)
{
    for (unsigned i = 0; i < TRIES; i++)
        for (unsigned n = 0; n < PAGE; n++)
            pages[i][n] = content(i, n);
    struct fusor_statistics before = statistics();
    for (unsigned i = 0; i < TRIES; i++)
        list[i] = FUSOR_ENTRY(gfn_of(pages[i]), FUSOR_CLASS_PROCESS, 0);
    if (off) {
        expect("hint, switched off", in_one_call(FUSOR_HINT, TRIES), -FUSOR_EBUSY);
        return;
    }
    expect("hints", in_one_call(FUSOR_HINT, TRIES), TRIES);
    struct fusor_statistics after = statistics();
    check(after.hints_received - before.hints_received == TRIES, after.hints_received);
    // The list's own page, and the same page again and again: bounded, and nobody is hurt.
    for (unsigned i = 0; i < FUSOR_LIST_MAX; i++)
        list[i] = FUSOR_ENTRY(gfn_of(list), FUSOR_CLASS_OTHER, 0);
    before = statistics();
    unsigned done = 0, refused = 0;
    while (done + refused < FUSOR_LIST_MAX) {
        unsigned at = done + refused;
        int64_t n = hypercall(FUSOR_HINT, address(&list[at]), FUSOR_LIST_MAX - at, 0, 0);
        check(n == 1 || n == -FUSOR_EEXIST, n);
        if (n == 1)
            done++;
        else
            refused++;
    }
    check(done == refused, refused);
    after = statistics();
    check(after.hints_received - before.hints_received == FUSOR_LIST_MAX, after.hints_received);
    check(after.hints_rejected > before.hints_rejected, after.hints_rejected);
    check(list[0] == list[FUSOR_LIST_MAX - 1], list[0]);
    for (unsigned i = 0; i < TRIES; i++)
        list[i] = FUSOR_ENTRY(gfn_of(pages[i]), 0, 0);
    check(in_any_calls(FUSOR_UNHINT, TRIES) == TRIES, 0);
    uint64_t wrong = 0;
    for (unsigned i = 0; i < TRIES; i++)
        for (unsigned n = 0; n < PAGE; n++)
            wrong += pages[i][n] != content(i, n);
    check(wrong == 0, wrong);
}

static void test_statistics(void)
{
    static const uint64_t bad[] = {1, 4, 12, 119, 121};
    for (unsigned i = 0; i < ARRAY_SIZE(bad); i++)
        expect("size", hypercall(FUSOR_STATISTICS, address(list), bad[i], 0, 0), -FUSOR_EINVAL);
    const uint64_t mark = UINT64_C(0x5aa5c33c0ff01221);
    for (uint64_t size = 8; size <= PAGE; size += 8) {
        uint64_t written =
            size < sizeof(struct fusor_statistics) ? size : sizeof(struct fusor_statistics);
        for (unsigned i = 0; i < 24; i++)
            list[i] = mark;
        expect("statistics", hypercall(FUSOR_STATISTICS, address(list), size, 0, 0),
               (int64_t)written);
        for (unsigned i = 0; i < 24; i++)
            check((list[i] == mark) == (i >= written / 8), i);
    }
    struct fusor_statistics s = statistics();
    check(s.hints_received == s.hints_fused + s.hints_unmatched + s.hints_rejected,
          s.hints_received);
    report("received=%lu fused=%lu unmatched=%lu rejected=%lu", s.hints_received, s.hints_fused,
           s.hints_unmatched, s.hints_rejected);
}

// The last one that was accepted is what the console shows.
static void test_report(void)
{
    static _Alignas(8) struct fusor_report r = {UINT64_MAX, UINT64_MAX, UINT64_MAX, UINT64_MAX};
    expect("wild report", hypercall(FUSOR_REPORT, address(&r), sizeof(r), 0, 0), 0);
    r = (struct fusor_report){4096, 1000, 3000, 500};
    expect("report", hypercall(FUSOR_REPORT, address(&r), sizeof(r), 0, 0), 0);
    r = (struct fusor_report){1, 2, 3, 4};
    expect("short report", hypercall(FUSOR_REPORT, address(&r), 24, 0, 0), -FUSOR_EINVAL);
    expect("long report", hypercall(FUSOR_REPORT, address(&r), 40, 0, 0), -FUSOR_EINVAL);
}

// --- Ring 3 ---

#define USER_DATA  0x28u // behind the selectors of bare.h
#define USER_CODE  0x30u
#define PTE_USER   UINT64_C(4)
#define PTE_FRAME  UINT64_C(0x000ffffffffff000)
#define MSR_EFER   0xc0000080u
#define MSR_STAR   0xc0000081u
#define MSR_LSTAR  0xc0000082u
#define MSR_SFMASK 0xc0000084u
#define EFER_SCE   UINT64_C(1)

struct __attribute__((packed)) table_pointer {
    uint16_t limit;
    uint64_t base;
};

extern const uint8_t ring3_return[];

// VMCALL in ring 3. There is no TSS: IRETQ goes there, SYSCALL comes back. Nothing but the code is
// touched meanwhile, so only its page must be the user's. IRETQ empties DS and ES.
static __attribute__((noinline, noclone)) int64_t ring3_hypercall(uint64_t number, uint64_t a,
                                                                  uint64_t b)
{
    static uint64_t stack;
    register uint64_t r10 __asm__("r10") = 0;
    int64_t result;
    __asm__ volatile(
        "mov %%rsp, %[stack]\n\t"
        "pushq %[ss]; pushq $0; pushq $2; pushq %[cs]; pushq $1f\n\t"
        "iretq\n"
        "1:\tvmcall\n\t"
        "syscall\n"
        "ring3_return:\n\t"
        "mov %[stack], %%rsp\n\t"
        "mov %[data], %%ecx; mov %%ecx, %%ds; mov %%ecx, %%es"
        : "=a"(result), [stack] "+m"(stack)
        : "a"(number), "D"(a), "S"(b), "d"(0),
          "r"(r10), [ss] "i"(USER_DATA | 3), [cs] "i"(USER_CODE | 3), [data] "i"(SELECTOR_DATA)
        : "rcx", "r11", "cc", "memory");
    return result;
}

// Makes the 2 MiB page of `at`, and the way to it, the user's or the kernel's alone.
static void set_user(uint64_t at, bool user)
{
    uint64_t table = read_cr3();
    for (unsigned shift = 39; shift >= 21; shift -= 9) {
        volatile uint64_t *entry = (volatile uint64_t *)(table & PTE_FRAME); // NOLINT: identity
        entry += at >> shift & 511;
        *entry = user ? *entry | PTE_USER : *entry & ~PTE_USER;
        table = *entry;
    }
    write_cr3(read_cr3());
}

static void test_ring3(void)
{
    static _Alignas(8) uint64_t gdt[7];
    struct table_pointer old, new = {sizeof(gdt) - 1, address(gdt)};
    __asm__ volatile("sgdt %0" : "=m"(old));
    for (unsigned i = 0; i < 5; i++)
        gdt[i] = ((const uint64_t *)(uintptr_t)old.base)[i];
    gdt[USER_DATA / 8] = UINT64_C(0x00cff3000000ffff);
    gdt[USER_CODE / 8] = UINT64_C(0x00affb000000ffff);
    __asm__ volatile("lgdt %0" : : "m"(new));
    uint64_t efer = rdmsr(MSR_EFER);
    wrmsr(MSR_EFER, efer | EFER_SCE);
    wrmsr(MSR_STAR, (uint64_t)SELECTOR_CODE << 32); // SYSCALL takes SS from the next: SELECTOR_DATA
    wrmsr(MSR_LSTAR, address(ring3_return));
    wrmsr(MSR_SFMASK, 0);
    uint64_t code = address(ring3_return);
    set_user(code, true);

    struct fusor_statistics before = statistics();
    list[0] = FUSOR_ENTRY(gfn_of(pages[0]), 0, 0);
    expect("hint from ring 3", ring3_hypercall(FUSOR_HINT, address(list), 1), -FUSOR_EPERM);
    expect("unhint from ring 3", ring3_hypercall(FUSOR_UNHINT, address(list), 1), -FUSOR_EPERM);
    uint64_t first = list[0];
    expect("statistics from ring 3", ring3_hypercall(FUSOR_STATISTICS, address(list), 8),
           -FUSOR_EPERM);
    check(list[0] == first, list[0]);
    expect("report from ring 3", ring3_hypercall(FUSOR_REPORT, address(list), 32), -FUSOR_EPERM);
    expect("unknown call from ring 3", ring3_hypercall(9999, 0, 0), -FUSOR_EPERM);
    struct fusor_statistics after = statistics();
    check(after.hints_received == before.hints_received, after.hints_received);

    set_user(code, false);
    wrmsr(MSR_EFER, efer);
    __asm__ volatile("lgdt %0" : : "m"(old));
    report("ring3=refused");
}

void test_hypercall(void)
{
    struct hypercall_facts facts;
    if (!hypercall_discover(&facts)) {
        check(false, 0); // VMCALL would be #UD
        return;
    }
    off = option("off", 0) != 0;
    test_discovery();
    test_registers();
    test_buffers();
    test_entries();
    test_hints();
    test_statistics();
    test_report();
    test_ring3();
    report("errors=%lu", (uint64_t)errors);
}
