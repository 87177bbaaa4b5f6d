; SPDX-License-Identifier: BSD-2-Clause
; How the other CPUs come up (SDM vol. 3, 9.4): a start-up IPI makes them execute, in real mode, a copy of this page
; below 1 MiB. It goes straight to long mode on a page table of its own that maps this page and the kernel, and
; jumps into the kernel. CPUs come one at a time.
%define CR0_PE          1
%define CR0_PG          (1 << 31)
%define CR0_NE_ET_MP    (1 << 5 | 1 << 4 | 1 << 1)
%define CR4_PAE         (1 << 5)
%define MSR_EFER        0xc0000080
%define EFER_LME        (1 << 8)

section .rodata
global trampoline_start, trampoline_end, trampoline_cr3, trampoline_efer
align 16
trampoline_start:
bits 16
        cli
        cld
        mov     ax, cs
        mov     ds, ax
        ; The page's physical address is CS * 16; the far pointers and the GDT pointer need it.
        movzx   ebx, ax
        shl     ebx, 4
        lea     eax, [ebx + long_mode - trampoline_start]
        mov     [far_pointer - trampoline_start], eax
        lea     eax, [ebx + gdt - trampoline_start]
        mov     [gdt_pointer - trampoline_start + 2], eax
        o32 lgdt [gdt_pointer - trampoline_start]
        mov     eax, CR4_PAE
        mov     cr4, eax
        mov     eax, [trampoline_cr3 - trampoline_start]
        mov     cr3, eax
        mov     ecx, MSR_EFER
        mov     eax, [trampoline_efer - trampoline_start]
        or      eax, EFER_LME
        xor     edx, edx
        wrmsr
        mov     eax, CR0_PG | CR0_NE_ET_MP | CR0_PE
        mov     cr0, eax                ; protection and paging at once activate long mode
        jmp     far dword [far_pointer - trampoline_start]

align 16
gdt:    dq      0
        dq      0x00af9b000000ffff      ; 0x08: 64-bit code
        dq      0x00cf93000000ffff      ; 0x10: data
gdt_pointer:
        dw      $ - gdt - 1
        dd      0
align 4
far_pointer:
        dd      0
        dw      0x08
align 4
trampoline_cr3:  dd 0                   ; below 4 GiB: CR3 is loaded in 32-bit width
trampoline_efer: dd 0                   ; NXE, where the kernel's tables use it

bits 64
long_mode:
        mov     rax, ap_entry
        jmp     rax
trampoline_end:

; In the kernel now, without a stack. Two late CPUs must never take the same stack, so the CPU claims its start:
; only the one that ap_wanted names wins, once.
section .text
default rel
extern ap_main
global ap_entry
ap_entry:
        xor     eax, eax
        cpuid
        cmp     eax, 0x0b
        jb      .leaf1
        mov     eax, 0x0b
        xor     ecx, ecx
        cpuid
        test    ebx, ebx
        jz      .leaf1
        mov     eax, edx                ; x2APIC id
        jmp     .claim
.leaf1: mov     eax, 1
        cpuid
        shr     ebx, 24
        mov     eax, ebx
.claim: mov     eax, eax
        mov     rdx, -1
        lock cmpxchg [ap_wanted], rdx
        jne     .park
        mov     ax, 0x10
        mov     ds, ax
        mov     es, ax
        mov     ss, ax
        xor     eax, eax
        mov     fs, ax
        mov     gs, ax
        mov     rsp, [ap_stack]
        mov     rdi, [ap_cpu]
        xor     ebp, ebp
        push    rbp
        push    rbp
        call    ap_main
.park:  cli
        hlt
        jmp     .park

section .bss
global ap_wanted, ap_stack, ap_cpu
alignb 8
ap_wanted: resq 1                       ; APIC id; all ones: nobody
ap_stack:  resq 1
ap_cpu:    resq 1
