# What people type: run, test, lint, bench. Each installs what it needs first.

GUEST := $(BUILD)/guest

.PHONY: run test test-full lint bench stress setup-run setup-test format
setup-run:
	@tools/setup run
setup-test:
	@tools/setup test

# Two Debian guests on the best engine this machine has; leaves you at the console.
run: setup-run
	@$(MAKE) --no-print-directory $(BUILD)/BOOTX64.EFI
	@tools/debian-guest $(GUEST)
	@tools/mkimage --config tools/run.conf --add guests/vmlinuz=$(GUEST)/vmlinuz \
		--add guests/initrd.img=$(GUEST)/initrd.img $(BUILD)/run.img
	@echo 'run: starting Fusor; Ctrl-A x ends the emulator'
	@tools/emulate --memory 1024 --cpus 2 $(BUILD)/run.img

# tests/run installs what is missing itself: whatever happens there, it says how many passed and failed.
test:
	@tests/run
test-full:
	@tests/run --full

bench: setup-test
	@$(MAKE) --no-print-directory $(BUILD)/BOOTX64.EFI $(GUEST)/bare.bin
	@$(PYTHON) tools/bench

# make stress SECONDS=N [CPUS=n] [SEED=s] [GUESTS=bare|debian|both]
stress: setup-test
	@$(MAKE) --no-print-directory $(BUILD)/BOOTX64.EFI $(GUEST)/bare.bin
	@tools/debian-guest $(GUEST)
	@$(PYTHON) tools/stress $(if $(SECONDS),--seconds $(SECONDS)) $(if $(CPUS),--cpus $(CPUS)) \
		$(if $(SEED),--seed $(SEED)) $(if $(GUESTS),--guests $(GUESTS))

C_FILES   := $(foreach r,boot $(ROOMS) guest-drivers/bare tests/unit tests/unit/fake tests/fuzz,$(wildcard $(r)/*.[ch])) \
	$(wildcard kernel/x86/arch/*.h tests/unit/fake/arch/*.h tools/kvm_balloon/*.c)
SH_FILES  := tools/setup guest-drivers/linux/make-deb tests/run tests/system-file tests/tidy .ci/run $(wildcard tools/kvm_balloon/*.sh) $(shell grep -lE '^\#!/bin/(ba)?sh|^\#!/usr/bin/env bash' tools/* tests/model/* 2>/dev/null)
PY_FILES  := $(shell grep -lE '^\#!.*python' tools/* 2>/dev/null) $(wildcard tests/system/*.py tools/kvm_balloon/*.py)
TIDY_C    := $(filter-out kernel/x86/%,$(KERNEL_C))

# clang's set of flags: what only gcc knows, and what concerns code generation, is left out.
TIDY_FLAGS := -std=gnu17 -ffreestanding -mgeneral-regs-only -I. -Ikernel/x86 -I$(BUILD)

format:
	clang-format -i $(C_FILES)

# Warnings are errors in every build; here the rest: format, clang-tidy, cppcheck, shellcheck, Python syntax.
lint: $(BUILD)/dsdt.hex
	clang-format --dry-run --Werror $(C_FILES)
	printf '%s\n' $(TIDY_C) | xargs -P 2 -n 6 tests/tidy $(TIDY_FLAGS)
	cppcheck --quiet -j 2 --std=c11 --enable=warning,portability --inline-suppr --error-exitcode=1 \
		--suppressions-list=tests/cppcheck.txt -I. -Ikernel/x86 -I$(BUILD) $(KERNEL_C)
	shellcheck $(sort $(SH_FILES))
	$(PYTHON) -m py_compile $(PY_FILES)
