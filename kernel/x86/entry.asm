; SPDX-License-Identifier: BSD-2-Clause
; Where the kernel begins. The boot stage's contract is in kernel/boot_info.h: long mode, IF = 0, RDI = physical
; address of struct boot_info, the kernel mapped at its link address.
bits 64
default rel

extern kernel_main, boot_stack_top

section .text.entry progbits alloc exec nowrite align=16
global kernel_entry
kernel_entry:
        cli
        cld
        mov     rsp, boot_stack_top
        xor     ebp, ebp                ; the end of every stack trace
        push    rbp                     ; a return address of 0 and alignment
        push    rbp
        call    kernel_main
.halt:  hlt
        jmp     .halt
