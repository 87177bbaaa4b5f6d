# Fusor. The two commands of a user are `make run` and `make test`; both install what they need (tools/setup).
#
#   make            build/BOOTX64.EFI
#   make unit       host unit tests (ASan + UBSan)
#   make lint       warnings, formatting, static analysis
#   make test       set-up, lint, unit, system tests          make test-full   and the slow matrices
#   make bench      figures, counted in Bochs                 make stress SECONDS=N   everything at once, at random
#   make fuzz SECONDS=N   parsers, decoder, devices and calls with random input, N seconds each
#   make clean

BUILD   := build
CC      := gcc
NASM    := nasm
PYTHON  := /usr/bin/python3
ROOMS   := kernel kernel/x86 ept vmx vm devices fusion balloon hypercall shell

WARNINGS := -Wall -Wextra -Wconversion -Wshadow -Werror -Wstrict-prototypes -Wmissing-prototypes
INCLUDES := -I.
# General registers only: the guest's vector state stays in the CPU while Fusor handles an exit.
KERNEL_CFLAGS := -std=gnu17 -O2 -g -ffreestanding -fno-pic -mcmodel=kernel -mno-red-zone \
	-mgeneral-regs-only -fno-stack-protector -fno-omit-frame-pointer -fno-strict-aliasing \
	-fcf-protection=none -fno-asynchronous-unwind-tables $(WARNINGS) $(INCLUDES) -Ikernel/x86 -MMD -MP

.DEFAULT_GOAL := all

KERNEL_C   := $(foreach r,$(ROOMS),$(wildcard $(r)/*.c)) boot/config_lex.c
KERNEL_ASM := $(foreach r,$(ROOMS),$(wildcard $(r)/*.asm))
KERNEL_OBJ := $(KERNEL_C:%.c=$(BUILD)/obj/%.o) $(KERNEL_ASM:%.asm=$(BUILD)/obj/%.asm.o)

.PHONY: all kernel clean
all: $(BUILD)/BOOTX64.EFI
kernel: $(BUILD)/kernel.elf

$(BUILD)/obj/%.o: %.c
	@mkdir -p $(@D)
	$(CC) $(KERNEL_CFLAGS) -c $< -o $@

# Files of this name hold what runs between simd_begin and simd_end, and nothing else.
$(BUILD)/obj/%/simd_avx2.o: KERNEL_CFLAGS := $(filter-out -mgeneral-regs-only,$(KERNEL_CFLAGS)) -mavx2

$(BUILD)/obj/%.asm.o: %.asm
	@mkdir -p $(@D)
	$(NASM) -f elf64 -g -F dwarf -I$(BUILD)/ -I./ -MD $(@:.o=.d) -o $@ $<

# Linked twice: the symbol table for stack traces is made from the first link and stands last among the
# read-only data, so that no address moves.
KERNEL_LD := ld -nostdlib -static -z max-page-size=4096 -z noexecstack --no-warn-rwx-segments -T kernel/linker.ld
$(BUILD)/kernel.elf: $(KERNEL_OBJ) kernel/linker.ld tools/make-symbols
	@mkdir -p $(BUILD)
	$(PYTHON) tools/make-symbols --empty > $(BUILD)/symbols0.asm
	$(NASM) -f elf64 -o $(BUILD)/symbols0.o $(BUILD)/symbols0.asm
	$(KERNEL_LD) -o $(BUILD)/kernel0.elf $(KERNEL_OBJ) $(BUILD)/symbols0.o
	$(PYTHON) tools/make-symbols $(BUILD)/kernel0.elf > $(BUILD)/symbols.asm
	$(NASM) -f elf64 -o $(BUILD)/symbols.o $(BUILD)/symbols.asm
	$(KERNEL_LD) -Map $(BUILD)/kernel.map -o $@ $(KERNEL_OBJ) $(BUILD)/symbols.o

include kernel/kernel.mk vm/vm.mk boot/boot.mk guest-drivers/guest.mk tests/tests.mk tests/fuzz/fuzz.mk
include guest-drivers/linux/linux.mk
-include tools/run.mk
-include $(KERNEL_OBJ:.o=.d)

clean:
	rm -rf $(BUILD)
