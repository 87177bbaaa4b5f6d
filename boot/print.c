// SPDX-License-Identifier: BSD-2-Clause
// Text for whoever watches the machine start: each line exactly once on the screen and exactly once
// on the serial line. Firmware with serial console redirection repeats its console there by itself;
// where it does not, we write to COM1, because that is where Fusor's console will be.
#include "boot/boot.h"

#include "kernel/format.h"

#include <stdarg.h>

#define COM1            0x3f8u
#define UART_DATA       0u
#define UART_IER        1u
#define UART_DIVISOR_HI 1u
#define UART_FCR        2u
#define UART_LCR        3u
#define UART_MCR        4u
#define UART_LSR        5u
#define UART_SCRATCH    7u
#define LSR_THRE        0x20u
#define LCR_8N1         0x03u
#define LCR_DLAB        0x80u

#define DEBUGCON 0xe9u

static bool use_com1;

// gEfiConsoleOutDeviceGuid: marks the handles behind the console (EDK II, Guid/ConsoleOutDevice.h).
static EFI_GUID console_out_guid = {
    0xd3b36f2c, 0xd551, 0x11d4, {0x9a, 0x46, 0x00, 0x90, 0x27, 0x3f, 0xc1, 0x4d}};
static EFI_GUID device_path_guid = {
    0x09576e91, 0x6d3f, 0x11d2, {0x8e, 0x39, 0x00, 0xa0, 0xc9, 0x69, 0x72, 0x3b}};

// Whether a device path leads over a UART (UEFI 2.10, section 10.3.4.8).
static bool path_has_uart(const EFI_DEVICE_PATH_PROTOCOL *node)
{
    for (unsigned int i = 0; i < 64 && node->Type != 0x7f; i++) {
        UINTN length = (UINTN)node->Length[0] | (UINTN)node->Length[1] << 8;

        if (node->Type == 3 && node->SubType == 14) {
            return true;
        }
        if (length < sizeof(*node)) {
            break;
        }
        node = (const EFI_DEVICE_PATH_PROTOCOL *)((const uint8_t *)node + length);
    }
    return false;
}

static bool firmware_console_is_serial(void)
{
    EFI_HANDLE *handles = NULL;
    UINTN count = 0;
    bool found = false;

    if (EFI_ERROR(efi->LocateHandleBuffer(ByProtocol, &console_out_guid, NULL, &count, &handles))) {
        return false;
    }
    for (UINTN i = 0; i < count && !found; i++) {
        void *path = NULL;

        if (!EFI_ERROR(efi->HandleProtocol(handles[i], &device_path_guid, &path)) && path != NULL) {
            found = path_has_uart(path);
        }
    }
    efi->FreePool(handles);
    return found;
}

// The scratch register tells a 16550 from an empty port.
static bool com1_exists(void)
{
    outb(COM1 + UART_SCRATCH, 0x5a);
    if (inb(COM1 + UART_SCRATCH) != 0x5a) {
        return false;
    }
    outb(COM1 + UART_SCRATCH, 0xa5);
    return inb(COM1 + UART_SCRATCH) == 0xa5;
}

// 115200 8N1, no interrupts, FIFOs on.
static void com1_init(void)
{
    outb(COM1 + UART_IER, 0);
    outb(COM1 + UART_LCR, LCR_DLAB);
    outb(COM1 + UART_DATA, 1);
    outb(COM1 + UART_DIVISOR_HI, 0);
    outb(COM1 + UART_LCR, LCR_8N1);
    outb(COM1 + UART_FCR, 0x07);
    outb(COM1 + UART_MCR, 0x03);
}

static void com1_put(char c)
{
    // At 115200 baud a character takes 87 us; a line that never gets ready must not stop the boot.
    for (unsigned int i = 0; i < 100000 && (inb(COM1 + UART_LSR) & LSR_THRE) == 0; i++) {
    }
    outb(COM1 + UART_DATA, (uint8_t)c);
}

void print_init(void)
{
    use_com1 = !firmware_console_is_serial() && com1_exists();
    if (use_com1) {
        com1_init();
    }
}

static void put_text(const char *text)
{
    CHAR16 wide[128];
    UINTN used = 0;

    for (; *text != '\0'; text++) {
        if (*text == '\n') {
            wide[used++] = L'\r';
        }
        wide[used++] = (CHAR16)(unsigned char)*text;
        if (used >= 124 || text[1] == '\0') {
            wide[used] = 0;
            efi_table->ConOut->OutputString(efi_table->ConOut, wide);
            for (UINTN i = 0; use_com1 && i < used; i++) {
                com1_put((char)wide[i]);
            }
            used = 0;
        }
    }
}

void say(const char *format, ...)
{
    char text[768];
    va_list args;

    va_start(args, format);
    format_text_v(text, sizeof(text), format, args);
    va_end(args);
    put_text(text);
}

void say_refused(const char *reason)
{
    say("fusor: refused: %s\n", reason);
    print_status("refused");
}

void print_status(const char *word)
{
    // QEMU's isa-debugcon and Bochs' port_e9_hack both read back E9h; a real machine reads FFh.
    if (inb(DEBUGCON) != DEBUGCON) {
        return;
    }
    for (const char *p = "fusor-status: "; *p != '\0'; p++) {
        outb(DEBUGCON, (uint8_t)*p);
    }
    for (; *word != '\0'; word++) {
        outb(DEBUGCON, (uint8_t)*word);
    }
    outb(DEBUGCON, '\n');
}
