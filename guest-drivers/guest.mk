# The bare guest: build/guest/bare.bin, a bzImage (guest-drivers/bare/start.asm).

BARE      := guest-drivers/bare
BARE_OBJ  := $(patsubst $(BARE)/%.c,$(BUILD)/guest/bare/%.o,$(wildcard $(BARE)/*.c)) \
	$(patsubst $(BARE)/%.asm,$(BUILD)/guest/bare/%.asm.o,$(wildcard $(BARE)/*.asm))
BARE_CFLAGS := -std=gnu17 -O2 -g -ffreestanding -fno-pic -mno-red-zone -mgeneral-regs-only -fno-stack-protector \
	-fcf-protection=none -fno-asynchronous-unwind-tables $(WARNINGS) -MMD -MP

.PHONY: guest debian-guest
guest: $(BUILD)/guest/bare.bin

$(BUILD)/guest/bare/%.o: $(BARE)/%.c
	@mkdir -p $(@D)
	$(CC) $(BARE_CFLAGS) -c $< -o $@

$(BUILD)/guest/bare/%.asm.o: $(BARE)/%.asm
	@mkdir -p $(@D)
	$(NASM) -f elf64 -MD $(@:.o=.d) -o $@ $<

$(BUILD)/guest/bare.bin: $(BARE_OBJ) $(BARE)/bare.ld
	ld -nostdlib -static -z noexecstack --no-warn-rwx-segments -T $(BARE)/bare.ld -o $(BUILD)/guest/bare.elf $(BARE_OBJ)
	objcopy -O binary $(BUILD)/guest/bare.elf $@

# Debian's cloud kernel and a busybox initrd.
debian-guest: $(BUILD)/guest/vmlinuz
$(BUILD)/guest/vmlinuz $(BUILD)/guest/initrd.img &: tools/debian-guest
	tools/debian-guest $(BUILD)/guest

-include $(wildcard $(BUILD)/guest/bare/*.d)
