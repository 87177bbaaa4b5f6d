# The UEFI application build/BOOTX64.EFI, with the kernel inside: the one file that is deployed.

BOOT_KERNEL ?= $(BUILD)/kernel.elf

# kernel/string.c and format.c hold no state and call nobody: the boot stage has its own copy.
BOOT_C   := $(wildcard boot/*.c) kernel/string.c kernel/format.c
BOOT_OBJ := $(BOOT_C:%.c=$(BUILD)/efi/%.o) $(BUILD)/efi/boot/kernel_image.asm.o

# Position independent, because the firmware puts it where it likes; UEFI's calling convention is Microsoft's.
BOOT_CFLAGS := -std=gnu17 -O2 -g -ffreestanding -fpic -fshort-wchar -mno-red-zone -mgeneral-regs-only \
	-maccumulate-outgoing-args -fno-stack-protector -fno-strict-aliasing -fcf-protection=none \
	-fno-asynchronous-unwind-tables -fvisibility=hidden -DGNU_EFI_USE_MS_ABI $(WARNINGS) $(INCLUDES) \
	-isystem /usr/include/efi -isystem /usr/include/efi/x86_64 -MMD -MP
BOOT_LD     := ld -nostdlib -znocombreloc -shared -Bsymbolic --no-undefined -z noexecstack --no-warn-rwx-segments \
	-T /usr/lib/elf_x86_64_efi.lds
BOOT_COPIED := .text .sdata .data .dynamic .dynsym .rel .rela .rel.* .rela.* .rodata .reloc

$(BUILD)/efi/%.o: %.c
	@mkdir -p $(@D)
	$(CC) $(BOOT_CFLAGS) -c $< -o $@

$(BUILD)/efi/kernel.elf: $(BOOT_KERNEL)
	@mkdir -p $(@D)
	objcopy --strip-all $< $@

$(BUILD)/efi/boot/kernel_image.asm.o: boot/kernel_image.asm $(BUILD)/efi/kernel.elf
	@mkdir -p $(@D)
	$(NASM) -f elf64 -DKERNEL_ELF='"$(BUILD)/efi/kernel.elf"' -o $@ $<

$(BUILD)/efi/fusor.so: $(BOOT_OBJ)
	$(BOOT_LD) /usr/lib/crt0-efi-x86_64.o $(BOOT_OBJ) -L/usr/lib -lgnuefi -o $@

$(BUILD)/BOOTX64.EFI: $(BUILD)/efi/fusor.so
	objcopy $(BOOT_COPIED:%=-j %) --target=efi-app-x86_64 --subsystem=10 $< $@

-include $(BOOT_OBJ:.o=.d)
