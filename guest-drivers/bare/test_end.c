// SPDX-License-Identifier: BSD-2-Clause
// triple, void, badinsn, button, reset: how a VM ends.
#include "bare.h"

#define PM1_STATUS 0x600u
#define PM1_ENABLE 0x602u
#define PM1_BUTTON 0x100u
#define LEVEL      0x8000u // in an IOAPIC entry; active high is 0
#define CMOS_MARK  0x40u

void test_triple(void)
{
    static const struct __attribute__((packed)) {
        uint16_t limit;
        uint64_t base;
    } none = {0, 0};
    report("now");
    __asm__ volatile("lidt %0; ud2" : : "m"(none));
}

// Far above any RAM, but inside what the CPU can address.
void test_void(void)
{
    uint32_t width = cpuid(0x80000008, 0).a & 0xff;
    uint64_t address = UINT64_C(1) << ((width < 39 ? width : 39) - 1);
    volatile uint64_t *at = window_set(8, address | PTE_PRESENT | PTE_WRITE);
    invlpg(at);
    report("gpa=0x%lx", address);
    __asm__ volatile("jmp *%0" : : "r"(at));
}

void test_badinsn(void)
{
    enable_sse();
    report("now");
    __asm__ volatile("xorps %%xmm0, %%xmm0; movaps %%xmm0, (%0)"
                     :
                     : "r"(lapic_register(LAPIC_TPR))
                     : "memory");
    report("survived");
}

static volatile bool pressed;

static void on_sci(struct frame *f)
{
    (void)f;
    uint16_t status = inw(PM1_STATUS);
    outw(PM1_STATUS, status); // write one to clear; the line falls
    if ((status & PM1_BUTTON) != 0)
        pressed = true;
    lapic_write(LAPIC_EOI, 0);
}

// Waits for the ACPI power button.
void test_button(void)
{
    set_handler(VECTOR_SCI, on_sci);
    ioapic_write(0x10 + 2 * IRQ_SCI + 1, lapic_read(LAPIC_ID) & 0xff000000);
    ioapic_write(0x10 + 2 * IRQ_SCI, LEVEL | VECTOR_SCI);
    outw(PM1_STATUS, PM1_BUTTON);
    outw(PM1_ENABLE, PM1_BUTTON);
    report("armed");
    while (!pressed)
        wait_interrupt();
    report("pressed");
    check((inw(PM1_STATUS) & PM1_BUTTON) == 0, inw(PM1_STATUS));
    check((ioapic_read(0x10 + 2 * IRQ_SCI) & 0x4000) == 0, ioapic_read(0x10 + 2 * IRQ_SCI)); // IRR
    outw(PM1_ENABLE, 0);
}

// Resets the machine once; the CMOS, which a battery keeps, remembers it.
void test_reset(void)
{
    outb(0x70, CMOS_MARK);
    uint8_t boots = inb(0x71);
    report("boots=%lu", (uint64_t)boots);
    outb(0x70, CMOS_MARK);
    if (boots == 0) {
        outb(0x71, 1);
        outb(0xcf9, 2);
        outb(0xcf9, 6);
        for (;;)
            __asm__ volatile("hlt");
    }
    outb(0x71, 0);
}
