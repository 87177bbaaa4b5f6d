; SPDX-License-Identifier: BSD-2-Clause
; The kernel inside the UEFI application. KERNEL_ELF is given by boot.mk.

section .rodata
global kernel_image:data hidden
global kernel_image_end:data hidden
align 4096
kernel_image:
    incbin KERNEL_ELF
kernel_image_end:

section .note.GNU-stack noalloc noexec nowrite progbits
