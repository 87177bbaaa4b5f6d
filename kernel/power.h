// SPDX-License-Identifier: BSD-2-Clause
// Ending and restarting the machine, and telling an emulator why.
#pragma once

// EFI ResetSystem, else FADT reset register, port 0xCF9, triple fault.
_Noreturn void power_off(void);
_Noreturn void power_reboot(void);

// Where port 0xE9 answers 0xE9 (QEMU isa-debugcon, Bochs port_e9_hack), tells tools/emulate the
// state: writes "fusor-status: WORD\n". Words: ready, poweroff, reboot, refused, panic.
void power_tell_emulator(const char *word);
