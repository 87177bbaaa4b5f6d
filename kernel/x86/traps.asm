; SPDX-License-Identifier: BSD-2-Clause
; The 256 interrupt entries (SDM vol. 3, 6.14). Each makes the same frame, struct trap_frame of machine.h. There is
; no user mode, so GS always holds struct cpu and no SWAPGS is needed.
bits 64
default rel

extern trap_handle

section .text
%assign vector 0
%rep 256
trap_%+vector:
    ; Vectors for which the CPU itself pushes an error code.
    %if !(vector == 8 || (vector >= 10 && vector <= 14) || vector == 17 || vector == 21 || vector == 29 || vector == 30)
        push    qword 0
    %endif
        push    qword vector
        jmp     trap_common
    %assign vector vector + 1
%endrep

global trap_common
trap_common:
        push    rax
        push    rcx
        push    rdx
        push    rbx
        push    rbp
        push    rsi
        push    rdi
        push    r8
        push    r9
        push    r10
        push    r11
        push    r12
        push    r13
        push    r14
        push    r15
        cld
        mov     rdi, rsp
        call    trap_handle             ; RSP is 16-byte aligned: 22 words lie on an aligned start
        pop     r15
        pop     r14
        pop     r13
        pop     r12
        pop     r11
        pop     r10
        pop     r9
        pop     r8
        pop     rdi
        pop     rsi
        pop     rbp
        pop     rbx
        pop     rdx
        pop     rcx
        pop     rax
        add     rsp, 16
        iretq

section .rodata
align 8
global trap_stubs
trap_stubs:
%assign vector 0
%rep 256
        dq      trap_%+vector
    %assign vector vector + 1
%endrep
