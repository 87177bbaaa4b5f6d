// SPDX-License-Identifier: BSD-2-Clause
// Start, command line, and the list of tests.
#include "bare.h"

#define SLP_TYP_S5   5u
#define SLP_EN       (1u << 13)
#define PM1_CONTROL  0x604u
#define CMDLINE_ROOM 2048u

static char cmdline[CMDLINE_ROOM];

static const struct {
    const char *name;
    void (*run)(void);
} tests[] = {
    {"hello", test_hello},
    {"bench", test_bench},
    {"touch", test_touch},
    {"pattern", test_pattern},
    {"tlb", test_tlb},
    {"spin", test_spin},
    {"spincli", test_spincli},
    {"halt", test_halt},
    {"timer", test_timer},
    {"rtc", test_rtc},
    {"irq", test_irq},
    {"sti", test_sti},
    {"movss", test_movss},
    {"nmi", test_nmi},
    {"fault", test_fault},
    {"fpu", test_fpu},
    {"msr", test_msr},
    {"ports", test_ports},
    {"mmio", test_mmio},
    {"triple", test_triple},
    {"void", test_void},
    {"badinsn", test_badinsn},
    {"button", test_button},
    {"reset", test_reset},
    {"fuse", test_fuse},
    {"smp", test_smp},
    {"smpspin", test_smpspin},
    {"smptriple", test_smptriple},
    {"smpreset", test_smpreset},
    {"smpoff", test_smpoff},
    {"hypercall", test_hypercall},
    {"balloon", test_balloon},
    {"driver", test_driver},
    {"lock", test_lock},
    {"latency", test_latency},
    {"shootdown", test_shootdown},
    {"storm", test_storm},
    {"torture", test_torture},
    {"gaps", test_gaps},
    {"fill", test_fill},
    {"fire", test_fire},
    {"stress", test_stress},
};

// The compiler emits calls to these two.
void *memset(void *destination, int byte, size_t size);
void *memcpy(void *restrict destination, const void *restrict source, size_t size);

void *memset(void *destination, int byte, size_t size)
{
    void *d = destination;
    __asm__ volatile("rep stosb" : "+D"(d), "+c"(size) : "a"(byte) : "memory");
    return destination;
}

void *memcpy(void *restrict destination, const void *restrict source, size_t size)
{
    void *d = destination;
    __asm__ volatile("rep movsb" : "+D"(d), "+S"(source), "+c"(size) : : "memory");
    return destination;
}

// The value behind `key=`, or NULL.
static const char *find_option(const char *key)
{
    for (const char *p = cmdline; *p != 0;) {
        const char *k = key;
        while (*k != 0 && *p == *k) {
            p++;
            k++;
        }
        if (*k == 0 && *p == '=')
            return p + 1;
        while (*p != 0 && *p != ' ')
            p++;
        while (*p == ' ')
            p++;
    }
    return NULL;
}

uint64_t option(const char *key, uint64_t otherwise)
{
    const char *p = find_option(key);
    if (p == NULL)
        return otherwise;
    uint64_t value = 0;
    for (; *p >= '0' && *p <= '9'; p++)
        value = value * 10 + (uint64_t)(*p - '0');
    if (*p == 'K')
        value <<= 10;
    if (*p == 'M')
        value <<= 20;
    if (*p == 'G')
        value <<= 30;
    return value;
}

bool under_fusor(void)
{
    struct cpuid c = cpuid(0x40000000, 0);
    return c.b == 0x6f737546 && c.c == 0x73754672 && c.d == 0x0000726f; // "FusorFusor\0\0"
}

_Noreturn void power_off(void)
{
    outw(PM1_CONTROL, (uint16_t)(SLP_TYP_S5 << 10 | SLP_EN));
    outw(PM1_CONTROL, SLP_EN); // QEMU's chipset calls S5 type 0
    for (;;)
        __asm__ volatile("cli; hlt");
}

void test_hello(void)
{
    report("cmdline=\"%s\"", cmdline);
    report("memory_top=%lu fusor=%lu tsc_hz=%lu", memory_top, (uint64_t)under_fusor(), tsc_hz());
}

static bool is_name(const char *name, const char *list, size_t length)
{
    for (size_t i = 0; i < length; i++) {
        if (name[i] != list[i])
            return false; // also at the name's end
    }
    return name[length] == 0;
}

static void run_test(const char *list, size_t length)
{
    for (unsigned i = 0; i < ARRAY_SIZE(tests); i++) {
        if (!is_name(tests[i].name, list, length))
            continue;
        test_name = tests[i].name;
        errors = 0;
        tests[i].run();
        cli();
        if (errors == 0)
            report("done");
        else
            report("failed errors=%lu", (uint64_t)errors);
        return;
    }
    test_name = "start";
    report("error: unknown test in \"%s\"", list);
}

int main(const uint8_t *boot_params);

int main(const uint8_t *boot_params)
{
    const char *line = (const char *)(uintptr_t) * (const uint32_t *)(boot_params + 0x228);
    for (unsigned i = 0; line != NULL && i < CMDLINE_ROOM - 1 && line[i] != 0; i++)
        cmdline[i] = line[i];

    if (option("resetloop", 0) != 0)
        reset_now(); // the first thing it does
    uart_init();
    memory_init(boot_params);
    interrupts_init();
    paging_init();
    pic_init();
    lapic_init();

    const char *list = find_option("test");
    if (list == NULL)
        list = "hello";
    while (*list != 0 && *list != ' ') {
        size_t length = 0;
        while (list[length] != 0 && list[length] != ' ' && list[length] != ',')
            length++;
        run_test(list, length);
        list += length;
        if (*list == ',')
            list++;
    }
    power_off();
}
