# The console font: 8x16 pixels, from Debian's console-setup-linux.
FONT := /usr/share/consolefonts/Lat15-VGA16.psf.gz

$(BUILD)/font.c: tools/make-font $(FONT)
	@mkdir -p $(@D)
	$(PYTHON) tools/make-font $(FONT) > $@.new
	mv $@.new $@

$(BUILD)/obj/font.o: $(BUILD)/font.c
	@mkdir -p $(@D)
	$(CC) $(KERNEL_CFLAGS) -c $< -o $@

KERNEL_OBJ += $(BUILD)/obj/font.o
# The Makefile has read KERNEL_OBJ as prerequisites before this line; its recipes see the whole.
$(BUILD)/kernel.elf: $(BUILD)/obj/font.o

# These tests include the source that they test; the object makes them follow changes.
$(BUILD)/unit/test_string: $(BUILD)/obj/kernel/string.o
$(BUILD)/unit/test_simd: $(BUILD)/obj/kernel/x86/simd.o
