; SPDX-License-Identifier: BSD-2-Clause
; void fiber_switch(void **from, void *to)
;   Saves the callee-saved registers on the current stack and the stack pointer in *from; continues on
;   the stack `to`, which an earlier call (or fiber_create) prepared the same way. Interrupts are off.

bits 64
section .text

global fiber_switch
fiber_switch:
    push rbp
    push rbx
    push r12
    push r13
    push r14
    push r15
    mov [rdi], rsp
    mov rsp, rsi
    pop r15
    pop r14
    pop r13
    pop r12
    pop rbx
    pop rbp
    ret

section .note.GNU-stack noalloc noexec nowrite progbits
