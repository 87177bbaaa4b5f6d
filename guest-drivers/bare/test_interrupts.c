// SPDX-License-Identifier: BSD-2-Clause
// irq, sti, movss, nmi: delivery, priority and shadows.
#include "bare.h"

#define LOW_VECTOR  0x40u
#define SAME_VECTOR 0x48u
#define HIGH_VECTOR 0x80u

static volatile unsigned order[8];
static volatile unsigned seen;
static volatile uint64_t seen_rip;
static volatile bool nest;

static void note(struct frame *f)
{
    if (seen < ARRAY_SIZE(order))
        order[seen] = (unsigned)f->vector;
    seen++;
    seen_rip = f->rip;
}

static void on_ipi(struct frame *f)
{
    note(f);
    unsigned vector = (unsigned)f->vector;
    check(lapic_bit(LAPIC_ISR, vector), vector);
    check(!lapic_bit(LAPIC_IRR, vector), vector);
    if (nest && vector == LOW_VECTOR) {
        nest = false;
        // Of the same class: waits for the EOI. Of a higher one: comes at once.
        self_ipi(SAME_VECTOR);
        sti();
        __asm__ volatile("nop; nop" : : : "memory");
        cli();
        check(seen == 1, seen);
        check((lapic_read(LAPIC_PPR) & 0xf0) == (LOW_VECTOR & 0xf0), lapic_read(LAPIC_PPR));
        self_ipi(HIGH_VECTOR);
        sti();
        __asm__ volatile("nop; nop" : : : "memory");
        cli();
        check(seen == 2 && order[1] == HIGH_VECTOR, order[1]);
    }
    lapic_write(LAPIC_EOI, 0);
    check(!lapic_bit(LAPIC_ISR, vector), vector);
}

static void let_in(void)
{
    sti();
    __asm__ volatile("nop; nop; nop" : : : "memory");
    cli();
}

static void test_priorities(void)
{
    seen = 0;
    self_ipi(LOW_VECTOR);
    self_ipi(HIGH_VECTOR);
    check(lapic_bit(LAPIC_IRR, LOW_VECTOR), 0);
    check(lapic_bit(LAPIC_IRR, HIGH_VECTOR), 0);
    check(seen == 0, seen);
    let_in();
    check(seen == 2, seen);
    check(order[0] == HIGH_VECTOR, order[0]);
    check(order[1] == LOW_VECTOR, order[1]);

    // Two of the same vector before it is taken are one.
    seen = 0;
    self_ipi(LOW_VECTOR);
    self_ipi(LOW_VECTOR);
    let_in();
    check(seen == 1, seen);

    seen = 0;
    nest = true;
    self_ipi(LOW_VECTOR);
    let_in();
    check(seen == 3, seen);
    check(order[2] == SAME_VECTOR, order[2]);
}

static void test_tpr(void)
{
    seen = 0;
    lapic_write(LAPIC_TPR, 0x50);
    check(read_cr8() == 5, read_cr8());
    self_ipi(LOW_VECTOR);
    self_ipi(HIGH_VECTOR);
    let_in();
    check(seen == 1 && order[0] == HIGH_VECTOR, order[0]);
    check(lapic_bit(LAPIC_IRR, LOW_VECTOR), 0);
    check((lapic_read(LAPIC_PPR) & 0xff) == 0x50, lapic_read(LAPIC_PPR));
    sti();
    write_cr8(3); // lets it in by itself
    __asm__ volatile("nop; nop" : : : "memory");
    cli();
    check(seen == 2 && order[1] == LOW_VECTOR, seen);
    check((lapic_read(LAPIC_TPR) & 0xff) == 0x30, lapic_read(LAPIC_TPR));
    write_cr8(0);
}

static void on_pic(struct frame *f)
{
    note(f);
    outb(0x20, 0x0b); // read the ISR
    check((inb(0x20) & 1) != 0, inb(0x20));
    outb(0x20, 0x20);
    check((inb(0x20) & 1) == 0, inb(0x20));
}

static void test_pic(void)
{
    set_handler(VECTOR_PIC, on_pic);
    lapic_write(LAPIC_LINT0, LINT_EXTINT);
    seen = 0;
    pit_start(0, PIT_HZ / 1000);
    sti();
    wait_ticks(tsc_hz() / 200);
    cli();
    check(seen == 0, seen); // masked in the PIC
    outb(0x20, 0x0a);       // read the IRR
    check((inb(0x20) & 1) != 0, inb(0x20));
    pic_mask(0xfffe);
    let_in();
    check(seen == 1 && order[0] == VECTOR_PIC, seen);
    pic_mask(0xffff);
    lapic_write(LAPIC_LINT0, LVT_MASKED);
}

static void set_ipi_handlers(void)
{
    set_handler(LOW_VECTOR, on_ipi);
    set_handler(SAME_VECTOR, on_ipi);
    set_handler(HIGH_VECTOR, on_ipi);
}

// A vector below 16 is an error of the sender (SDM vol. 3, 11.5.3). QEMU's model delivers it.
static void test_illegal_vector(void)
{
    lapic_write(LAPIC_ESR, 0);
    self_ipi(5);
    lapic_write(LAPIC_ESR, 0); // latches what was found
    check((lapic_read(LAPIC_ESR) & 0x60) != 0, lapic_read(LAPIC_ESR));
}

void test_irq(void)
{
    set_ipi_handlers();
    test_priorities();
    test_tpr();
    if (under_fusor())
        test_illegal_vector();
    test_pic();
}

// Runs `code` with a pending interrupt and IF = 0 before; the code has a label 1 where the
// interrupt has to arrive. Sets `where` to that label.
#define WITH_PENDING(code, where)                                                                  \
    do {                                                                                           \
        seen = 0;                                                                                  \
        seen_rip = 0;                                                                              \
        self_ipi(LOW_VECTOR);                                                                      \
        __asm__ volatile("lea 1f(%%rip), %%rdi\n\t" code "\n\tcli"                                 \
                         : "=D"(where)                                                             \
                         : "S"(lapic_register(LAPIC_TPR))                                          \
                         : "rax", "rbx", "rcx", "rdx", "memory", "cc");                            \
    } while (0)

// STI keeps interrupts off for one more instruction, also when that one exits (SDM vol. 2, STI).
void test_sti(void)
{
    uint64_t where;
    set_ipi_handlers();

    WITH_PENDING("sti; cli; nop; nop\n1:", where);
    check(seen == 0, seen);
    let_in();
    check(seen == 1, seen);

    WITH_PENDING("sti; nop\n1: nop; nop", where);
    check(seen == 1 && seen_rip == where, seen_rip - where);
    WITH_PENDING("xor %%eax, %%eax; xor %%ecx, %%ecx; sti; cpuid\n1: cli", where);
    check(seen == 1 && seen_rip == where, seen_rip - where);
    WITH_PENDING("sti; in $0x80, %%al\n1: cli", where);
    check(seen == 1 && seen_rip == where, seen_rip - where);
    WITH_PENDING("sti; mov (%%rsi), %%eax\n1: cli", where); // the LAPIC's page
    check(seen == 1 && seen_rip == where, seen_rip - where);
    WITH_PENDING("sti; hlt\n1: cli", where);
    check(seen == 1 && seen_rip == where, seen_rip - where);
    // POPF has no shadow.
    WITH_PENDING("pushf; orl $0x200, (%%rsp); popf\n1: nop; cli", where);
    check(seen == 1 && seen_rip == where, seen_rip - where);
    report("checks=7");
}

static void on_debug(struct frame *f)
{
    note(f);
    f->rflags &= ~UINT64_C(0x100); // TF
}

// A load of SS keeps interrupts and single-step traps off for one instruction.
void test_movss(void)
{
    uint64_t where;
    set_ipi_handlers();
    set_handler(1, on_debug);

    // The trap that MOV SS suppressed comes behind the next instruction.
    seen = 0;
    __asm__ volatile("lea 1f(%%rip), %%rdi; mov %%ss, %%ecx\n\t"
                     "pushf; orl $0x100, (%%rsp); popf; mov %%ecx, %%ss; nop\n1: nop"
                     : "=D"(where)
                     :
                     : "rcx", "memory", "cc");
    check(seen == 1 && seen_rip == where, seen_rip - where);
    // The same with an instruction that exits: the hypervisor has to inject the trap.
    seen = 0;
    __asm__ volatile("lea 1f(%%rip), %%rdi; xor %%eax, %%eax; xor %%ecx, %%ecx\n\t"
                     "pushf; orl $0x100, (%%rsp); popf; cpuid\n1: nop"
                     : "=D"(where)
                     :
                     : "rax", "rbx", "rcx", "rdx", "memory", "cc");
    check(seen == 1 && seen_rip == where, seen_rip - where);
    // An interrupt that becomes pending inside the shadow comes behind it.
    seen = 0;
    __asm__ volatile("lea 1f(%%rip), %%rdi; mov %%ss, %%ecx; sti; nop\n\t"
                     "mov %%ecx, %%ss; movl %[ipi], (%%rsi)\n1: cli"
                     : "=D"(where)
                     : "S"(lapic_register(LAPIC_ICR)), [ipi] "i"(ICR_SELF | LOW_VECTOR)
                     : "rcx", "memory", "cc");
    let_in();
    check(seen == 1, seen);
    check(seen_rip == where, seen_rip - where);
    report("checks=3");
}

static volatile bool send_second;
static volatile unsigned nmis, nmis_inside;

static void send_nmi(void)
{
    // The shorthand "self" is for fixed interrupts only.
    lapic_write(LAPIC_ICR_HIGH, lapic_read(LAPIC_ID) & 0xff000000);
    lapic_write(LAPIC_ICR, ICR_NMI);
}

static void on_nmi(struct frame *f)
{
    (void)f;
    nmis++;
    if (!send_second)
        return;
    send_second = false;
    send_nmi();
    for (unsigned i = 0; i < 10; i++)
        cpuid(0, 0); // exits; the NMI stays blocked until IRET
    nmis_inside = nmis;
}

static void expect_nmis(unsigned count)
{
    for (unsigned i = 0; i < 100000 && nmis < count; i++)
        __asm__ volatile("pause" : : : "memory");
    check(nmis == count, nmis);
}

void test_nmi(void)
{
    set_handler(2, on_nmi);
    cli(); // an NMI does not care
    nmis = 0;
    send_nmi();
    expect_nmis(1);
    send_second = true;
    send_nmi();
    expect_nmis(3);
    check(nmis_inside == 2, nmis_inside);
    for (unsigned i = 0; i < 1000; i++) {
        nmis = 0;
        send_nmi();
        expect_nmis(1);
    }
    report("nmis=1003");
}
