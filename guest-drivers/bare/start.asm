; SPDX-License-Identifier: BSD-2-Clause
; The image's header by the Linux x86 boot protocol 2.15 and its three ways in: real mode (QEMU's -kernel
; and boot loaders), 32 bits, 64 bits (what Fusor uses). All end in entry64.

extern code_paragraphs, init_size, bss_start, bss_end, main

%define EARLY_TABLES 0x40000 ; six pages that the 32-bit way uses, below everything else
%define CODE64 0x10
%define DATA   0x18
%define CODE32 0x20

section .setup progbits alloc exec nowrite align=16
bits 16
setup:
        times 0x1f1 - ($ - setup) db 0
        db 8                    ; 1f1 setup_sects, as in bare.ld
        dw 0                    ; root_flags
        dd code_paragraphs      ; 1f4 syssize
        dw 0, 0xffff, 0         ; ram_size, vid_mode, root_dev
        dw 0xaa55               ; 1fe
        db 0xeb, header_end - header
header: db "HdrS"               ; 202
        dw 0x20f                ; 206 version
        dd 0                    ; realmode_swtch
        dw 0x1000, 0            ; start_sys_seg, kernel_version
        db 0                    ; 210 type_of_loader
        db 1                    ; 211 LOADED_HIGH
        dw 0                    ; setup_move_size
        dd 0x100000             ; 214 code32_start
        dd 0, 0                 ; 218 ramdisk
        dd 0                    ; bootsect_kludge
        dw 0                    ; 224 heap_end_ptr
        db 0, 0
        dd 0                    ; 228 cmd_line_ptr
        dd 0x7fffffff           ; 22c initrd_addr_max
        dd 0x200000             ; 230 kernel_alignment
        db 0, 12                ; 234 not relocatable, min_alignment
        dw 1                    ; 236 XLF_KERNEL_64
        dd 2047                 ; 238 cmdline_size
        dd 0                    ; hardware_subarch
        dq 0
        dd 0, 0                 ; 248 payload
        dq 0                    ; 250 setup_data
        dq 0x100000             ; 258 pref_address
        dd init_size            ; 260
        dd 0                    ; handover_offset
        dd 0                    ; 268 kernel_info_offset
header_end:
        jmp near real_mode

        ; boot_params keeps its e820 table at 0x2d0; the code starts behind it.
        times 0xd00 - ($ - setup) db 0
real_mode:
        cli
        cld
        mov ax, cs              ; the loader enters at segment + 0x20
        sub ax, 0x20
        mov ds, ax
        mov es, ax
        mov ss, ax
        mov sp, 0xfff0
        xor ebx, ebx            ; the memory map (int 15h, E820)
        mov di, 0x2d0
.e820:  mov eax, 0xe820
        mov edx, 0x534d4150
        mov ecx, 20
        int 0x15
        jc .map_done
        inc byte [0x1e8]
        add di, 20
        cmp byte [0x1e8], 100
        jae .map_done
        test ebx, ebx
        jnz .e820
.map_done:
        xor esi, esi
        mov si, ds
        shl esi, 4              ; boot_params is this segment
        lea eax, [esi + gdt - setup]
        mov [gdt_pointer - setup + 2], eax
        lgdt [gdt_pointer - setup]
        mov eax, cr0
        or al, 1
        mov cr0, eax
        jmp dword CODE32:0x100000

align 8
gdt:    dq 0, 0, 0x00af9b000000ffff, 0x00cf93000000ffff, 0x00cf9b000000ffff
gdt_pointer:
        dw $ - gdt - 1
        dd 0

section .text.start progbits alloc exec nowrite align=4096
bits 32
global start32
start32:
        mov eax, DATA
        mov ds, eax
        mov es, eax
        mov ss, eax
        mov edi, EARLY_TABLES   ; identity, 4 GiB
        mov ecx, 6 * 1024
        xor eax, eax
        rep stosd
        mov dword [EARLY_TABLES], EARLY_TABLES + 0x1003
        mov edi, EARLY_TABLES + 0x1000
        mov eax, EARLY_TABLES + 0x2003
.pdpt:  mov [edi], eax
        add edi, 8
        add eax, 0x1000
        cmp edi, EARLY_TABLES + 0x1020
        jne .pdpt
        mov edi, EARLY_TABLES + 0x2000
        mov eax, 0x83
.pd:    mov [edi], eax
        add edi, 8
        add eax, 0x200000
        jnc .pd
        mov eax, EARLY_TABLES
        mov cr3, eax
        mov eax, cr4
        or eax, 0x20            ; PAE
        mov cr4, eax
        mov ecx, 0xc0000080
        rdmsr
        or eax, 0x100           ; LME
        wrmsr
        mov eax, cr0
        or eax, 0x80000000
        mov cr0, eax
        jmp CODE64:entry64

        times 0x200 - ($ - start32) db 0
bits 64
entry64:                        ; RSI: boot_params
        cli
        cld
        mov rdi, bss_start
        mov rcx, bss_end
        sub rcx, rdi
        xor eax, eax
        rep stosb
        mov rsp, stack_top
        mov rdi, rsi
        call main
.stop:  cli
        hlt
        jmp .stop

section .bss nobits alloc write align=4096
        resb 32768
stack_top:
