; SPDX-License-Identifier: BSD-2-Clause
; void power_call_firmware(uint64_t root, uint64_t system_table, uint64_t type)
;   Switches to the page table `root`, which maps memory one to one beside the kernel, finds ResetSystem and calls it
;   with Microsoft's calling convention (UEFI 2.10, 2.3.4): RCX = type, RDX = status, R8 = size, R9 = data.
;   Returns, with the old table, when there is no ResetSystem or it came back.
bits 64
default rel
extern power_find_reset
section .text
global power_call_firmware
power_call_firmware:
        push    rbp
        mov     rbp, rsp
        push    rbx
        push    r12
        push    r13
        push    r14
        mov     r12, cr3
        mov     r13, cr4
        mov     rbx, rdx
        mov     rax, r13
        and     eax, ~(1 << 21 | 1 << 20 | 1 << 7)      ; SMAP, SMEP; PGE drops the global entries
        or      eax, 1 << 9                             ; OSFXSR: firmware may use SSE
        mov     cr4, rax
        mov     cr3, rdi
        mov     rdi, rsi
        call    power_find_reset
        test    rax, rax
        jz      .back
        mov     rcx, rbx
        xor     edx, edx
        xor     r8d, r8d
        xor     r9d, r9d
        sub     rsp, 32                                 ; home space of the four arguments
        call    rax
        add     rsp, 32
.back:  cli
        mov     cr3, r12
        mov     cr4, r13
        pop     r14
        pop     r13
        pop     r12
        pop     rbx
        pop     rbp
        ret
