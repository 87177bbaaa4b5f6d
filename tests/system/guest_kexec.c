// SPDX-License-Identifier: BSD-2-Clause
// For the Debian test guests: starts the kernel that runs once more without a reset of the machine.
//
//   guest_kexec KERNEL INITRD COMMAND_LINE
//
// kexec_load(2) and not kexec_file_load(2), which makes checksums of the kernel's 54 MB twice:
// minutes in an emulator. So what kexec-tools would do is done here, as far as a kernel that starts
// itself needs it: the boot parameters are its own, with another initrd and command line; the entry
// is that of the 64-bit boot protocol (Linux, Documentation/x86/boot.rst).
#include <asm/bootparam.h>
#include <fcntl.h>
#include <linux/kexec.h>
#include <linux/reboot.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#define PAGE 4096UL

// Where things are put: all of it RAM of the test guests.
#define PARAMETERS   0x80000UL
#define COMMAND_LINE 0x81000UL
#define TRAMPOLINE   0x82000UL
#define INITRD       0x8000000UL

struct file {
    char *data;
    size_t size;
};

static void die(const char *what)
{
    perror(what);
    exit(1);
}

static struct file load(const char *path)
{
    struct stat s;
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0 || fstat(fd, &s) != 0)
        die(path);
    struct file f = {malloc((size_t)s.st_size), 0};
    if (f.data == NULL)
        die(path);
    while (f.size < (size_t)s.st_size) {
        ssize_t n = read(fd, f.data + f.size, (size_t)s.st_size - f.size);
        if (n <= 0)
            break; // sysfs says more than there is
        f.size += (size_t)n;
    }
    close(fd);
    return f;
}

static struct kexec_segment segment(const void *data, size_t size, unsigned long at, size_t space)
{
    return (struct kexec_segment){
        .buf = data, .bufsz = size, .mem = (void *)at, .memsz = (space + PAGE - 1) & ~(PAGE - 1)};
}

int main(int argc, char **argv)
{
    if (argc != 4) {
        fputs("usage: guest_kexec KERNEL INITRD COMMAND_LINE\n", stderr);
        return 2;
    }
    struct file kernel = load(argv[1]), initrd = load(argv[2]);
    struct file own = load("/sys/kernel/boot_params/data");
    if (own.size != sizeof(struct boot_params) || kernel.size < PAGE) {
        fputs("guest_kexec: no boot parameters, or no kernel\n", stderr);
        return 1;
    }
    struct boot_params *p = (struct boot_params *)own.data;
    p->hdr.ramdisk_image = INITRD;
    p->hdr.ramdisk_size = (uint32_t)initrd.size;
    p->hdr.cmd_line_ptr = COMMAND_LINE;
    size_t setup = (p->hdr.setup_sects + 1U) * 512U;
    unsigned long start = p->hdr.pref_address;

    // mov $PARAMETERS, %esi; mov $(start + 0x200), %eax; jmp *%rax
    unsigned char code[12] = {0xbe, 0, 0, 0, 0, 0xb8, 0, 0, 0, 0, 0xff, 0xe0};
    uint32_t parameters = PARAMETERS, entry = (uint32_t)start + 0x200;
    memcpy(code + 1, &parameters, sizeof(parameters));
    memcpy(code + 6, &entry, sizeof(entry));

    struct kexec_segment segments[] = {
        segment(p, sizeof(*p), PARAMETERS, sizeof(*p)),
        segment(argv[3], strlen(argv[3]) + 1, COMMAND_LINE, PAGE),
        segment(code, sizeof(code), TRAMPOLINE, PAGE),
        segment(kernel.data + setup, kernel.size - setup, start, p->hdr.init_size),
        segment(initrd.data, initrd.size, INITRD, initrd.size),
    };
    if (syscall(SYS_kexec_load, TRAMPOLINE, sizeof(segments) / sizeof(*segments), segments,
                (unsigned long)KEXEC_ARCH_DEFAULT) != 0)
        die("guest_kexec: kexec_load");
    syscall(SYS_reboot, LINUX_REBOOT_MAGIC1, LINUX_REBOOT_MAGIC2, LINUX_REBOOT_CMD_KEXEC, NULL);
    die("guest_kexec: reboot");
}
