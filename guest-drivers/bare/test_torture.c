// SPDX-License-Identifier: BSD-2-Clause
// torture: a guest that fills memory, shares all of it, and then writes all of it anew.
//
// `pages=` (1024) pages that are the same in all guests with the same `seed=` (1); `id=` makes what
// they write later differ. `spare=SIZE` more is touched, and given to the balloon when the doorbell
// rings: in the interrupt handler, so also while the CPU waits for memory in the middle of a write.
// The power button is answered in the same way. Then commands come (commands.h):
//   h  hint all pages
//   r  rewrite all pages
//   v  verify every byte
//   b  NUMBER: spoil one byte of this page, or mend it
//   R  CPU 1 rewrites while the other CPUs run; NUMBER 1: with its interrupts off
//   p  how far they are
//   j  until they are done
//   q  quit
#include "commands.h"
#include "fuse.h"
#include "torture.h"

#define EXTENT      (2 * MIB)
#define IRQ_DOOR    10u
#define VECTOR_DOOR 0x64u
#define PM1_STATUS  0x600u
#define PM1_ENABLE  0x602u
#define PM1_BUTTON  0x100u
#define LEVEL       0x8000u // in an IOAPIC entry; active high is 0
#define STRIDE      UINT64_C(0x9e3779b97f4a7c15)

struct torture torture;

static uint64_t hints[FUSOR_LIST_MAX] __attribute__((aligned(4096)));
static uint64_t spare, spare_extents, held;

// --- Pages ---

static uint64_t base_of(uint64_t page, unsigned generation)
{
    return generation == 0 ? fuse_mix(torture.seed << 40 ^ page)
                           : fuse_mix(torture.id << 48 ^ (uint64_t)generation << 40 ^ page);
}

uint64_t torture_value(uint64_t page, uint64_t n, unsigned generation)
{
    return base_of(page, generation) + n * STRIDE;
}

static void write_words(volatile uint64_t *to, uint64_t value)
{
    for (uint64_t n = 0; n < PAGE / 8; n++, value += STRIDE)
        to[n] = value;
}

void torture_rewrite(uint64_t page)
{
    static uint64_t source[PAGE / 8] __attribute__((aligned(4096)));
    unsigned next = torture.generation[page] + 1u;
    if (page % 8 == 5) { // the first move waits, or one in the middle
        write_words(source, base_of(page, next));
        const uint64_t *from = source;
        volatile uint64_t *to = torture_word(page, 0);
        uint64_t count = PAGE / 8;
        __asm__ volatile("rep movsq" : "+D"(to), "+S"(from), "+c"(count) : : "memory");
    } else {
        write_words(torture_word(page, 0), base_of(page, next));
    }
    torture.generation[page] = (uint8_t)next;
}

static void fill(void)
{
    uint64_t began = rdtsc();
    for (uint64_t page = 0; page < torture.pages; page++)
        write_words(torture_word(page, 0), base_of(page, 0));
    report("op=f filled=%lu ticks=%lu", torture.pages, rdtsc() - began);
}

// Bytes that differ from what the page has to hold.
static uint64_t wrong_bytes(uint64_t page)
{
    uint64_t wrong = 0, value = base_of(page, torture.generation[page]);
    for (uint64_t n = 0; n < PAGE / 8; n++, value += STRIDE)
        for (uint64_t differ = *torture_word(page, n) ^ value; differ != 0; differ >>= 8)
            wrong += (differ & 0xff) != 0;
    return wrong;
}

static void verify(void)
{
    uint64_t wrong = 0, own = 0;
    for (uint64_t page = 0; page < torture.pages; page++) {
        wrong += wrong_bytes(page);
        own += torture.generation[page] != 0;
    }
    for (uint64_t at = held * EXTENT; at < spare_extents * EXTENT; at += PAGE)
        wrong += *(volatile uint64_t *)(spare + at) != (at | 1); // NOLINT: RAM
    report("op=v verified=%lu own=%lu held=%lu wrong=%lu", torture.pages, own, held, wrong);
}

// What the verifier has to find.
static void spoil(uint64_t page)
{
    volatile uint8_t *byte = (volatile uint8_t *)torture_word(page % torture.pages, page % 512) + 3;
    *byte = (uint8_t)(*byte ^ 0x40);
    report("op=b page=%lu", page % torture.pages);
}

static void hint_all(void)
{
    uint64_t refused = 0, began = rdtsc();
    for (uint64_t page = 0; page < torture.pages;) {
        unsigned count = 0;
        for (; page < torture.pages && count < FUSOR_LIST_MAX; page++)
            hints[count++] = FUSOR_ENTRY(torture.first / PAGE + page, FUSOR_CLASS_OTHER, 0);
        refused += fuse_send(FUSOR_HINT, hints, count).refused;
    }
    report("op=h refused=%lu ticks=%lu", refused, rdtsc() - began);
}

// Interrupts are on: the doorbell and the button are answered while it waits. The longest time
// that one page took, as the guest sees it, shows whether its clock stood still meanwhile.
static void rewrite_all(void)
{
    uint64_t began = rdtsc(), longest = 0;
    sti();
    for (uint64_t page = 0; page < torture.pages; page++) {
        uint64_t one = rdtsc();
        torture_rewrite(page);
        one = rdtsc() - one;
        longest = one > longest ? one : longest;
    }
    cli();
    report("op=r rewritten=%lu ticks=%lu longest=%lu", torture.pages, rdtsc() - began, longest);
}

// --- The doorbell and the button ---

static void on_doorbell(struct frame *f)
{
    static uint64_t entry __attribute__((aligned(8)));
    (void)f;
    uint64_t target = (uint64_t)hypercall(FUSOR_BALLOON_TARGET, 0, 0, 0, 0) * PAGE / EXTENT;
    for (; held < target && held < spare_extents; held++) {
        entry = FUSOR_ENTRY((spare + held * EXTENT) / PAGE, 0, 9);
        if (hypercall(FUSOR_BALLOON_INFLATE, (uint64_t)(uintptr_t)&entry, 1, 0, 0) != 1)
            break;
    }
    lapic_write(LAPIC_EOI, 0);
}

static void on_sci(struct frame *f)
{
    (void)f;
    uint16_t status = inw(PM1_STATUS);
    outw(PM1_STATUS, status); // write one to clear
    lapic_write(LAPIC_EOI, 0);
    if ((status & PM1_BUTTON) != 0)
        power_off();
}

static void route(unsigned irq, unsigned vector, void (*handler)(struct frame *))
{
    set_handler(vector, handler);
    ioapic_write((uint8_t)(0x10 + 2 * irq + 1), lapic_read(LAPIC_ID) & 0xff000000);
    ioapic_write((uint8_t)(0x10 + 2 * irq), LEVEL | vector);
}

// --- Commands ---

static void run(const struct command *c)
{
    switch (c->letter) {
    case 'h':
        hint_all();
        break;
    case 'r':
        rewrite_all();
        break;
    case 'v':
        verify();
        break;
    case 'b':
        spoil(c->number);
        break;
    case 'R':
        torture_begin(c->number != 0);
        break;
    case 'p':
        torture_progress();
        break;
    case 'j':
        torture_join();
        break;
    default:
        check(false, (uint8_t)c->letter);
        break;
    }
}

void test_torture(void)
{
    torture.pages = option("pages", 1024);
    torture.seed = option("seed", 1);
    torture.id = option("id", 1);
    spare_extents = option("spare", 0) / EXTENT;
    const struct region *top = &memory[memory_count - 1];
    uint64_t size = (torture.pages * PAGE + EXTENT - 1) & ~(EXTENT - 1);
    check(torture.pages > 0 && torture.pages <= TORTURE_PAGES_MAX, torture.pages);
    check(top->to - top->from >= size + spare_extents * EXTENT, top->to - top->from);
    if (errors != 0)
        return;
    torture.first = top->to - size;
    spare = torture.first - spare_extents * EXTENT;
    for (uint64_t at = 0; at < spare_extents * EXTENT; at += PAGE)
        *(volatile uint64_t *)(spare + at) = at | 1; // NOLINT: RAM
    route(IRQ_SCI, VECTOR_SCI, on_sci);
    outw(PM1_STATUS, PM1_BUTTON);
    outw(PM1_ENABLE, PM1_BUTTON);
    if (spare_extents != 0) {
        route(IRQ_DOOR, VECTOR_DOOR, on_doorbell);
        on_doorbell(NULL); // what is wanted already; from now on it rings
    }
    commands_init();
    fill();
    commands_serve(run);
}
