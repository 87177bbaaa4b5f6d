; SPDX-License-Identifier: BSD-2-Clause
; 256 interrupt entries, which all make a struct frame (bare.h) and call interrupt().
bits 64
default rel
extern interrupt

section .text
%assign i 0
%rep 256
align 16
vector_%+i:
%if i = 8 || (i >= 10 && i <= 14) || i = 17 || i = 21 || i = 29 || i = 30
        nop                     ; the CPU pushed an error code
%else
        push 0
%endif
        push i
        jmp save_and_call
%assign i i+1
%endrep

save_and_call:
        push rax
        push rcx
        push rdx
        push rbx
        push rbp
        push rsi
        push rdi
        push r8
        push r9
        push r10
        push r11
        push r12
        push r13
        push r14
        push r15
        cld
        mov rdi, rsp
        call interrupt
        pop r15
        pop r14
        pop r13
        pop r12
        pop r11
        pop r10
        pop r9
        pop r8
        pop rdi
        pop rsi
        pop rbp
        pop rbx
        pop rdx
        pop rcx
        pop rax
        add rsp, 16
        iretq

section .rodata
global vectors
align 8
vectors:
%assign i 0
%rep 256
        dq vector_%+i
%assign i i+1
%endrep
