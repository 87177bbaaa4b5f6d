; SPDX-License-Identifier: BSD-2-Clause
; VM entry and exit: the only code that runs with guest registers.
;
; int vmx_enter(uint64_t gpr[16], int launched)
;   Enters the guest with the registers in gpr (RSP lives in the VMCS); returns 0 after a VM exit with the
;   guest's registers back in gpr, 1 when VMLAUNCH/VMRESUME failed (no guest instruction ran).
; HOST_RIP is vmx_exit; HOST_RSP is written here because each CPU has its own stack. RFLAGS after an exit
; is 2: interrupts off (SDM vol. 3, 28.5.3). No vector state is touched.

bits 64
default rel
section .text

VMCS_HOST_RSP equ 0x6c14

global vmx_enter
global vmx_exit

vmx_enter:
    push rbp
    push rbx
    push r12
    push r13
    push r14
    push r15
    push rdi
    mov eax, VMCS_HOST_RSP
    vmwrite rax, rsp
    test esi, esi               ; MOV leaves the flags alone until the jump below
    mov rax, [rdi + 0 * 8]
    mov rcx, [rdi + 1 * 8]
    mov rdx, [rdi + 2 * 8]
    mov rbx, [rdi + 3 * 8]
    mov rbp, [rdi + 5 * 8]
    mov rsi, [rdi + 6 * 8]
    mov r8, [rdi + 8 * 8]
    mov r9, [rdi + 9 * 8]
    mov r10, [rdi + 10 * 8]
    mov r11, [rdi + 11 * 8]
    mov r12, [rdi + 12 * 8]
    mov r13, [rdi + 13 * 8]
    mov r14, [rdi + 14 * 8]
    mov r15, [rdi + 15 * 8]
    mov rdi, [rdi + 7 * 8]
    jz .launch
    vmresume
    jmp .failed
.launch:
    vmlaunch
.failed:
    mov eax, 1
    pop rdi
    jmp return

vmx_exit:
    xchg rdi, [rsp]             ; RDI = gpr, guest's RDI on the stack
    mov [rdi + 0 * 8], rax
    mov [rdi + 1 * 8], rcx
    mov [rdi + 2 * 8], rdx
    mov [rdi + 3 * 8], rbx
    mov [rdi + 5 * 8], rbp
    mov [rdi + 6 * 8], rsi
    pop qword [rdi + 7 * 8]
    mov [rdi + 8 * 8], r8
    mov [rdi + 9 * 8], r9
    mov [rdi + 10 * 8], r10
    mov [rdi + 11 * 8], r11
    mov [rdi + 12 * 8], r12
    mov [rdi + 13 * 8], r13
    mov [rdi + 14 * 8], r14
    mov [rdi + 15 * 8], r15
    xor eax, eax
return:
    pop r15
    pop r14
    pop r13
    pop r12
    pop rbx
    pop rbp
    ret

; After an NMI exit the CPU blocks NMIs until an IRET (SDM vol. 3, 28.2.3 and 6.7.1): do one.
global vmx_unblock_nmi
vmx_unblock_nmi:
    mov rax, rsp
    mov ecx, ss
    push rcx
    push rax
    pushfq
    mov ecx, cs
    push rcx
    lea rax, [.done]
    push rax
    iretq
.done:
    ret

section .note.GNU-stack noalloc noexec nowrite progbits
