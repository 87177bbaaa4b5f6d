; SPDX-License-Identifier: BSD-2-Clause
; Where a CPU begins after STARTUP: copied below 1 MiB and filled in by smp.c. Real mode, then straight
; into long mode, onto the CPU's own stack and into smp_main(LAPIC id).

extern smp_main, smp_stacks, smp_idt_pointer
global trampoline_begin, trampoline_end, trampoline_gdt, trampoline_cr0, trampoline_cr3

%define CODE64 0x10
%define DATA   0x18
%define STACK_SHIFT 13          ; smp.c has the same
%define CPUS_MAX 16

section .rodata
align 16
bits 16
trampoline_begin:
        cli
        cld
        mov ax, cs
        mov ds, ax
        o32 lgdt [trampoline_gdt - trampoline_begin]
        mov eax, 0x20           ; PAE
        mov cr4, eax
        mov eax, [trampoline_cr3 - trampoline_begin]
        mov cr3, eax
        mov ecx, 0xc0000080     ; EFER.LME
        rdmsr
        or eax, 0x100
        wrmsr
        mov eax, [trampoline_cr0 - trampoline_begin]
        mov cr0, eax            ; PE and PG at once
        jmp dword CODE64:start64
align 4
trampoline_gdt:
        dw 0
        dd 0
trampoline_cr0:
        dd 0
trampoline_cr3:
        dd 0
trampoline_end:

section .text
bits 64
start64:
        mov eax, DATA
        mov ds, eax
        mov es, eax
        mov ss, eax
        xor eax, eax
        mov fs, eax
        mov gs, eax
        lidt [smp_idt_pointer]
        mov eax, 1
        cpuid
        shr ebx, 24             ; LAPIC id
        cmp ebx, CPUS_MAX
        jae .stop
        lea eax, [rbx + 1]
        shl rax, STACK_SHIFT
        add rax, smp_stacks
        mov rsp, rax
        mov edi, ebx
        call smp_main
.stop:  cli
        hlt
        jmp .stop
