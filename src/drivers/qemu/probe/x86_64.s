# The guest of the accelerator probe for x86-64: a boot sector and the sectors behind it.
#
# It does what kernels do while they boot, and writes one letter to the first serial port for each stage that passed. The list
# of the stages is in probe/guest.rs. "!" means that a stage saw a wrong result, "?" and two hexadecimal digits that an
# exception came that no stage expects; both end the guest. After the last stage it does a fixed piece of work ROUNDS times:
# "<" when a round begins, ">" when it has ended. Then it writes the marker and ends through the device isa-debug-exit.
#
# x86_64.bin is what these commands make of it (a test compares):
#     as --64 -o guest.o x86_64.s
#     ld -m elf_x86_64 -Ttext 0x7c00 -o guest.elf guest.o
#     objcopy -O binary -j .text guest.elf x86_64.bin

.intel_syntax noprefix

.set SERIAL,   0x3f8
.set EXIT,     0xf4                     # isa-debug-exit; the status of QEMU is 2 * value + 1
.set PASSED,   0x10
.set FAILED,   0x11
.set ROUNDS,   5
.set CHECKSUM, 0xc75ed4b63cab68de
.set SECTORS,  (image_end - sector_1) / 512

# Physical memory. The image is at 0x7c00.
.set PML4,     0x10000
.set PDPT_LOW, 0x11000                  # 0 to 4 GiB, and the user page
.set PD_LOW,   0x12000                  # the first 64 MiB, where they are
.set PD_APIC,  0x13000                  # the local APIC, where it is
.set PDPT_TOP, 0x14000                  # the last two GiB of the address space, where kernels run
.set PD_TOP,   0x15000                  # the first 64 MiB again, and the test window
.set PT_TEST,  0x16000                  # the test window's page table
.set PD_USER,  0x17000
.set PT_USER,  0x18000
.set PT_SPARE, 0x19000                  # a page table for a moment, then ordinary memory
.set TABLES_END, 0x1a000
.set USER_PAGE, 0x1b000
.set STACK,    0x2f000                  # grows down
.set STACK_0,  0x30000                  # for interrupts out of ring 3
.set IDT,      0x31000
.set FRAMES,   0x400000                 # 512 pages that are mapped into the test window
.set ARENA,    0x800000                 # 4 MiB that the work fills
.set ARENA_WORDS, 0x80000

# Virtual memory.
.set TOP,      0xffffffff80000000
.set WINDOW,   0xffffffffa0000000       # entry 256 of PD_TOP
.set SPARE,    0xffffffffa0200000       # entry 257 of PD_TOP
.set APIC,     0xfee00000
.set USER,     0x40000000               # entry 1 of PDPT_LOW

.set CODE64,   0x08
.set DATA,     0x10
.set CODE32,   0x18
.set USER_DATA, 0x20 + 3
.set USER_CODE, 0x28 + 3
.set TSS_SELECTOR, 0x30

.text
# ---------------------------------------------------------------------------------------------------- real mode
.code16
.globl _start
_start:
    cli
    ljmp 0, offset real_mode
real_mode:
    xor ax, ax
    mov ds, ax
    mov es, ax
    mov ss, ax
    mov sp, 0x7c00
    cld
    mov al, 'A'
    call put16
    # The BIOS reads the other sectors.
    sti
    mov si, offset disk_address
    mov ah, 0x42
    int 0x13
    jc failed16
    cmp dword ptr [magic], 0x4c46594d
    jne failed16
    cli
    mov al, 'B'
    call put16
    in al, 0x92                         # address line 20
    or al, 2
    out 0x92, al
    lgdt [gdt_pointer_32]
    mov eax, cr0
    or al, 1
    mov cr0, eax
    ljmp CODE32, offset protected_mode

failed16:
    mov al, '!'
    call put16
    mov al, FAILED
    out EXIT, al
1:  hlt
    jmp 1b

put16:
    push dx
    push ax
    mov dx, SERIAL + 5
1:  in al, dx
    test al, 0x20
    jz 1b
    pop ax
    mov dx, SERIAL
    out dx, al
    pop dx
    ret

.balign 4, 0
disk_address:
    .byte 16, 0
    .word SECTORS
    .word sector_1, 0
    .quad 1

    .org 510
    .byte 0x55, 0xaa
sector_1:

# ---------------------------------------------------------------------------------------------------- protected mode
.code32
protected_mode:
    mov ax, DATA
    mov ds, ax
    mov es, ax
    mov ss, ax
    mov esp, STACK
    mov al, 'C'
    call put

    mov edi, PML4
    mov ecx, (TABLES_END - PML4) / 4
    xor eax, eax
    rep stosd
    mov dword ptr [PML4], PDPT_LOW + 7
    mov dword ptr [PML4 + 511 * 8], PDPT_TOP + 3
    mov dword ptr [PDPT_LOW], PD_LOW + 3
    mov dword ptr [PDPT_LOW + 1 * 8], PD_USER + 7
    mov dword ptr [PDPT_LOW + 3 * 8], PD_APIC + 3
    mov dword ptr [PDPT_TOP + 510 * 8], PD_TOP + 3
    mov dword ptr [PD_APIC + 503 * 8], APIC + 0x9b      # present, writable, not cached, 2 MiB
    mov dword ptr [PD_TOP + 256 * 8], PT_TEST + 3
    mov dword ptr [PD_USER], PT_USER + 7
    mov dword ptr [PT_USER], USER_PAGE + 7
    xor ecx, ecx
    mov eax, 0x83                                       # present, writable, 2 MiB
1:  mov [PD_LOW + ecx * 8], eax
    mov [PD_TOP + ecx * 8], eax
    add eax, 0x200000
    inc ecx
    cmp ecx, 32
    jb 1b

    mov eax, cr4
    or eax, 0x20                                        # PAE
    mov cr4, eax
    mov eax, PML4
    mov cr3, eax
    mov ecx, 0xc0000080                                 # EFER
    rdmsr
    or eax, 0x101                                       # LME, SCE
    wrmsr
    mov eax, cr0
    or eax, 0x80010000                                  # PG, WP
    mov cr0, eax
    ljmp CODE64, offset long_mode

# ---------------------------------------------------------------------------------------------------- long mode
.code64
long_mode:
    movabs rax, offset TOP + top
    jmp rax
top:
    # From here on everything is addressed in the last two GiB, as in a kernel.
    lgdt [rip + gdt_pointer_64]
    mov ax, DATA
    mov ds, ax
    mov es, ax
    mov ss, ax
    mov rsp, TOP + STACK
    mov al, 'D'
    call put

# Control registers, model-specific registers, identification.
    mov eax, 1
    xor ecx, ecx
    cpuid
    mov [rip + features_c], ecx
    mov [rip + features_d], edx
    mov ecx, 0xc0000080                                 # EFER: long mode is active
    rdmsr
    test eax, 0x400
    jz failed
    mov eax, 0x80000001
    cpuid
    bt edx, 20                                          # NX
    jnc 1f
    mov ecx, 0xc0000080
    rdmsr
    or eax, 0x800
    wrmsr
    rdmsr
    test eax, 0x800
    jz failed
1:  mov rax, cr4
    or rax, 0x600                                       # OSFXSR, OSXMMEXCPT
    mov cr4, rax
    mov ecx, [rip + features_d]
    bt ecx, 13                                          # PGE
    jnc 1f
    or rax, 0x80
    mov cr4, rax
    mov rdx, cr4
    cmp rax, rdx
    jne failed
    and rax, ~0x80                                      # a write that flushes everything
    mov cr4, rax
    or rax, 0x80
    mov cr4, rax
1:  mov rax, cr0
    and rax, ~0xc                                       # not EM, not TS
    or rax, 0x22                                        # MP, NE
    mov cr0, rax
    mov rdx, cr0
    cmp rax, rdx
    jne failed
    mov ecx, 0xc0000081                                 # STAR
    xor eax, eax
    mov edx, ((CODE32 + 3) << 16) | CODE64
    wrmsr
    mov ecx, 0xc0000082                                 # LSTAR
    lea rax, [rip + system_call]
    mov rdx, rax
    shr rdx, 32
    wrmsr
    xor eax, eax
    xor edx, edx
    rdmsr
    shl rdx, 32
    or rax, rdx
    lea rdx, [rip + system_call]
    cmp rax, rdx
    jne failed
    mov ecx, 0xc0000084                                 # FMASK: interrupts off, direction forward
    mov eax, 0x600
    xor edx, edx
    wrmsr
    mov ecx, 0xc0000101                                 # GS base
    lea rax, [rip + per_cpu]
    mov rdx, rax
    shr rdx, 32
    wrmsr
    mov rax, gs:[0]
    mov rdx, TOP + STACK_0
    cmp rax, rdx
    jne failed
    xor eax, eax
    xor edx, edx
    mov ecx, 0xc0000102                                 # the GS base of ring 3
    wrmsr
    mov al, 'E'
    call put

# Interrupt descriptors and the task state segment; an undefined instruction is taken and returned from.
    mov rdi, TOP + IDT
    lea rax, [rip + stubs]
    xor ecx, ecx
1:  call set_gate
    add rax, STUB_SIZE
    inc ecx
    cmp ecx, 64
    jb 1b
    lea rax, [rip + on_breakpoint]
    mov ecx, 3
    call set_gate
    or byte ptr [rdi + 3 * 16 + 5], 0x60                # ring 3 may
    lea rax, [rip + on_undefined]
    mov ecx, 6
    call set_gate
    lea rax, [rip + on_page_fault]
    mov ecx, 14
    call set_gate
    lea rax, [rip + on_pit]
    mov ecx, 0x20
    call set_gate
    lea rax, [rip + on_apic]
    mov ecx, 0x30
    call set_gate
    lea rax, [rip + on_spurious]
    mov ecx, 0x27
    call set_gate
    mov ecx, 0x2f
    call set_gate
    mov ecx, 0x3f
    call set_gate
    lidt [rip + idt_pointer]
    lea rax, [rip + tss]
    mov [rip + gdt_tss + 2], ax
    shr rax, 16
    mov [rip + gdt_tss + 4], al
    mov [rip + gdt_tss + 7], ah
    shr rax, 16
    mov [rip + gdt_tss + 8], eax
    mov ax, TSS_SELECTOR
    ltr ax
    ud2
    cmp dword ptr [rip + undefined], 1
    jne failed
    mov al, 'F'
    call put

# Page tables that change while they are used.
    mov rbx, WINDOW
    mov rsi, TOP + PT_TEST
    mov rax, 0x1111111111111111
    mov rdx, 0x2222222222222222
    mov [TOP + FRAMES], rax
    mov [TOP + FRAMES + 0x1000], rdx
    mov qword ptr [rsi], FRAMES + 3                     # a new page
    cmp [rbx], rax
    jne failed
    mov qword ptr [rsi], FRAMES + 0x1000 + 3            # another frame behind it
    invlpg [rbx]
    cmp [rbx], rdx
    jne failed
    mov qword ptr [rsi], FRAMES + 3
    mov rcx, cr3
    mov cr3, rcx
    cmp [rbx], rax
    jne failed
    mov qword ptr [rsi], FRAMES + 1                     # for reading only: a write is a fault, and goes through after it
    invlpg [rbx]
    mov qword ptr [rbx], 7
    cmp qword ptr [TOP + FRAMES], 7
    jne failed
    cmp dword ptr [rip + faults_protection], 1
    jne failed
    mov qword ptr [rbx + 0x3000], 9                     # not there: a fault maps it
    cmp qword ptr [TOP + FRAMES + 0x3000], 9
    jne failed
    cmp dword ptr [rip + faults_missing], 1
    jne failed
    mov rax, [rsi]                                      # accessed, dirty
    and eax, 0x60
    cmp eax, 0x60
    jne failed
    # A page of ordinary memory becomes a page table, and ordinary memory again.
    mov rdi, TOP + PT_SPARE
    mov qword ptr [rdi], FRAMES + 0x1000 + 3
    mov qword ptr [TOP + PD_TOP + 257 * 8], PT_SPARE + 3
    mov rax, SPARE
    cmp [rax], rdx
    jne failed
    mov qword ptr [TOP + PD_TOP + 257 * 8], 0
    mov rcx, cr3
    mov cr3, rcx
    mov al, 'G'
    call put

# Atomic instructions, in ordinary memory and in what was a page table: kernels reuse such pages for their structures.
    lea rdi, [rip + scratch]
    call atomics
    mov rdi, TOP + PT_SPARE
    mov qword ptr [rdi], 0
    mov qword ptr [rdi + 8], 0
    call atomics
    mov al, 'H'
    call put

# Floating point and SSE registers.
    lea rdi, [rip + scratch]
    fninit
    mov rax, 0x0102030405060708
    mov [rdi], rax
    mov [rdi + 8], rax
    movdqa xmm3, [rdi]
    paddq xmm3, xmm3
    fxsave [rip + fx_area]
    pxor xmm3, xmm3
    fxrstor [rip + fx_area]
    movdqa [rdi], xmm3
    add rax, rax
    cmp [rdi + 8], rax
    jne failed
    mov al, 'I'
    call put

# The time stamp counter.
    call time_stamp
    mov rbx, rax
    mov ecx, 1000
1:  pause
    dec ecx
    jnz 1b
    call time_stamp
    cmp rax, rbx
    jbe failed
    mov al, 'J'
    call put

# Ring 3 and back.
    lea rsi, [rip + user_code]
    mov rdi, TOP + USER_PAGE
    mov ecx, user_code_end - user_code
    rep movsb
    mov edi, 3
    call ring_3
    cmp dword ptr [rip + system_calls], 4
    jne failed
    cmp dword ptr [rip + breakpoints], 1
    jne failed
    mov al, 'K'
    call put

# Interrupts of the old timer, through the old interrupt controllers.
    mov al, 0x11
    out 0x20, al
    out 0xa0, al
    mov al, 0x20
    out 0x21, al
    mov al, 0x28
    out 0xa1, al
    mov al, 4
    out 0x21, al
    mov al, 2
    out 0xa1, al
    mov al, 1
    out 0x21, al
    out 0xa1, al
    mov al, 0xff
    out 0xa1, al
    mov al, 0xfe                                        # only the timer
    out 0x21, al
    mov al, 0x34                                        # channel 0, low and high byte, rate generator
    out 0x43, al
    mov al, 1193 & 0xff                                 # 1 kHz
    out 0x40, al
    mov al, 1193 >> 8
    out 0x40, al
1:  cli
    cmp dword ptr [rip + pit_ticks], 5
    jae 2f
    sti
    hlt
    jmp 1b
2:  mov al, 0xff
    out 0x21, al
    mov al, 'L'
    call put

# Interrupts of the local APIC's timer.
    mov ecx, 0x1b                                       # APIC base
    rdmsr
    bt eax, 11
    jnc failed
    mov ebx, APIC
    mov dword ptr [rbx + 0xf0], 0x13f                   # on; spurious interrupts are vector 0x3f
    mov dword ptr [rbx + 0x3e0], 3                      # divided by 16
    mov dword ptr [rbx + 0x320], 0x20030                # periodic, vector 0x30
    mov dword ptr [rbx + 0x380], 50000
1:  cli
    cmp dword ptr [rip + apic_ticks], 5
    jae 2f
    sti
    hlt
    jmp 1b
2:  mov dword ptr [rbx + 0x320], 0x10030
    mov dword ptr [rbx + 0x380], 0
    mov al, 'M'
    call put

# The work.
    mov ebp, ROUNDS
1:  mov al, '<'
    call put
    call work
    mov al, '>'
    call put
    dec ebp
    jnz 1b

    lea rsi, [rip + marker]
1:  lodsb
    test al, al
    jz 2f
    call put
    jmp 1b
2:  mov al, PASSED
    out EXIT, al
3:  cli
    hlt
    jmp 3b

failed:
    mov al, '!'
    call put
end_failed:
    mov al, FAILED
    out EXIT, al
1:  cli
    hlt
    jmp 1b

# One round: arithmetic, floating point, calls, memory, page tables, page faults, system calls. Its checksum is known.
# Most of it goes to what emulators are slow at and what programs and kernels do all day: memory behind page tables, faults,
# changes between the rings.
work:
    mov rax, 0x9e3779b97f4a7c15
    mov ecx, 0x40000
1:  mov rdx, rax
    shl rdx, 13
    xor rax, rdx
    mov rdx, rax
    shr rdx, 7
    xor rax, rdx
    mov rdx, rax
    shl rdx, 17
    xor rax, rdx
    dec ecx
    jnz 1b
    mov r8, rax

    movsd xmm0, [rip + float_start]
    movsd xmm1, [rip + float_factor]
    movsd xmm2, [rip + float_term]
    mov ecx, 0x10000
1:  mulsd xmm0, xmm1
    addsd xmm0, xmm2
    dec ecx
    jnz 1b
    movq rdx, xmm0
    add r8, rdx

    lea rsi, [rip + leaf_0]
    lea rdi, [rip + leaf_1]
    mov ecx, 0x20000
1:  bt eax, ecx
    mov rdx, rsi
    cmovc rdx, rdi
    call rdx
    dec ecx
    jnz 1b

    mov r9d, 4
2:  mov rdi, TOP + ARENA
    mov ecx, ARENA_WORDS
    rep stosq
    mov rsi, TOP + ARENA
    mov ecx, ARENA_WORDS
    xor edx, edx
1:  add rdx, [rsi]
    rol rdx, 1
    mov [rsi], rdx
    add rsi, 8
    dec ecx
    jnz 1b
    add r8, rdx
    dec r9d
    jnz 2b

    # Every page of the window is mapped by hand, written, read and unmapped, 8 times.
    mov r9d, 8
2:  mov rbx, WINDOW
    mov rsi, TOP + PT_TEST
    mov eax, FRAMES + 3
3:  mov [rsi], rax
    mov [rbx], rax
    add r8, [rbx]
    mov qword ptr [rsi], 0
    invlpg [rbx]
    add rsi, 8
    add rbx, 0x1000
    add eax, 0x1000
    cmp eax, FRAMES + 0x200003
    jb 3b
    mov rax, cr3
    mov cr3, rax
    dec r9d
    jnz 2b

    # Every page of the window is mapped by its fault, 4 times.
    mov r9d, 4
2:  mov rbx, WINDOW
    mov ecx, 512
1:  mov [rbx], rcx
    add r8, [rbx]
    add rbx, 0x1000
    dec ecx
    jnz 1b
    mov rdi, TOP + PT_TEST
    mov ecx, 512
    xor eax, eax
    rep stosq
    mov rax, cr3
    mov cr3, rax
    dec r9d
    jnz 2b

    mov edi, 4096
    call ring_3
    movabs rax, CHECKSUM
    cmp r8, rax
    jne failed
    ret

leaf_0:
    add r8, rcx
    ret
leaf_1:
    xor r8, rcx
    ret

# Locked instructions on the 16 zero bytes at rdi.
atomics:
    mov eax, [rip + features_c]
    bt eax, 13                                          # CMPXCHG16B
    jnc 1f
    xor eax, eax
    xor edx, edx
    mov ebx, 5
    mov ecx, 6
    lock cmpxchg16b [rdi]
    jnz failed
    cmp qword ptr [rdi], 5
    jne failed
    cmp qword ptr [rdi + 8], 6
    jne failed
    lock cmpxchg16b [rdi]                               # this one must not
    jz failed
    cmp rax, 5
    jne failed
    cmp rdx, 6
    jne failed
1:  mov eax, 1
    lock xadd [rdi + 8], rax
    lock bts qword ptr [rdi + 8], 40
    mov rax, [rdi]
    mov ecx, 77
    lock cmpxchg [rdi], rcx
    jnz failed
    mov eax, 3
    xchg [rdi], rax
    cmp rax, 77
    jne failed
    mov eax, [rdi]
    mov edx, [rdi + 4]
    xor ebx, ebx
    xor ecx, ecx
    lock cmpxchg8b [rdi]
    jnz failed
    ret

time_stamp:
    lfence
    rdtsc
    shl rdx, 32
    or rax, rdx
    ret

# Runs the user page's code with edi, and comes back when it calls with 0.
ring_3:
    mov [rip + kernel_rsp], rsp
    push USER_DATA
    push USER + 0x1000
    push 0x2
    push USER_CODE
    push USER
    swapgs
    iretq

user_code:
1:  syscall
    dec edi
    jnz 1b
    int3
    syscall
user_code_end:

system_call:
    swapgs
    mov gs:[8], rsp
    mov rsp, gs:[0]
    push r11
    push rcx
    inc dword ptr [rip + system_calls]
    test edi, edi
    jz 1f
    pop rcx
    pop r11
    mov rsp, gs:[8]
    swapgs
    sysretq
1:  mov rsp, [rip + kernel_rsp]
    ret

on_breakpoint:
    inc dword ptr [rip + breakpoints]
    iretq

on_undefined:
    inc dword ptr [rip + undefined]
    add qword ptr [rsp], 2
    iretq

# Maps the page of the window behind the fault, or lets it be written.
on_page_fault:
    push rax
    push rcx
    mov rax, cr2
    mov rcx, WINDOW
    sub rax, rcx
    cmp rax, 0x200000
    jae 2f
    shr rax, 12
    mov ecx, eax
    shl eax, 12
    add eax, FRAMES + 3
    test byte ptr [rsp + 16], 1
    jz 1f
    inc dword ptr [rip + faults_protection]
    jmp 3f
1:  inc dword ptr [rip + faults_missing]
3:  mov [TOP + PT_TEST + rcx * 8], rax
    mov rax, cr2
    invlpg [rax]
    pop rcx
    pop rax
    add rsp, 8
    iretq
2:  mov al, 14
    jmp unexpected

on_pit:
    push rax
    inc dword ptr [rip + pit_ticks]
    mov al, 0x20
    out 0x20, al
    pop rax
    iretq

on_apic:
    push rax
    inc dword ptr [rip + apic_ticks]
    mov eax, APIC
    mov dword ptr [rax + 0xb0], 0
    pop rax
    iretq

# An interrupt that was withdrawn before it was taken: no end of interrupt is sent.
on_spurious:
    iretq

# For each vector that no stage uses: its number, then the end.
.set STUB_SIZE, 8
.balign 8, 0
stubs:
.set vector, 0
.rept 64
    .balign 8, 0x90
    mov al, vector
    .byte 0xe9                                          # jmp, in its long form, so that all are of one size
    .long unexpected - . - 4
    .set vector, vector + 1
.endr

unexpected:
    mov bl, al
    mov al, '?'
    call put
    mov al, bl
    shr al, 4
    call put_digit
    mov al, bl
    and al, 15
    call put_digit
    jmp end_failed

put_digit:
    add al, '0'
    cmp al, '9'
    jbe put
    add al, 'a' - '9' - 1
    # The same bytes do in 32-bit mode.
put:
    push rdx
    push rax
    mov dx, SERIAL + 5
1:  in al, dx
    test al, 0x20
    jz 1b
    pop rax
    mov dx, SERIAL
    out dx, al
    pop rdx
    ret

# Gate ecx of the table at rdi leads to rax.
set_gate:
    push rax
    push rcx
    shl ecx, 4
    add rcx, rdi
    mov [rcx], ax
    mov word ptr [rcx + 2], CODE64
    mov word ptr [rcx + 4], 0x8e00
    shr rax, 16
    mov [rcx + 6], ax
    shr rax, 16
    mov [rcx + 8], eax
    mov dword ptr [rcx + 12], 0
    pop rcx
    pop rax
    ret

# ---------------------------------------------------------------------------------------------------- data
.balign 8, 0
gdt:
    .quad 0
    .quad 0x00af9b000000ffff                            # code, 64 bits
    .quad 0x00cf93000000ffff                            # data
    .quad 0x00cf9b000000ffff                            # code, 32 bits
    .quad 0x00cff3000000ffff                            # data of ring 3
    .quad 0x00affb000000ffff                            # code of ring 3, 64 bits
gdt_tss:
    .word 0x67, 0
    .byte 0, 0x89, 0, 0
    .quad 0
gdt_end:
gdt_pointer_32:
    .word gdt_end - gdt - 1
    .long gdt
gdt_pointer_64:
    .word gdt_end - gdt - 1
    .quad TOP + gdt
idt_pointer:
    .word 64 * 16 - 1
    .quad TOP + IDT

.balign 16, 0
tss:
    .long 0
    .quad TOP + STACK_0
    .fill 92, 1, 0

per_cpu:
    .quad TOP + STACK_0, 0
kernel_rsp:
    .quad 0
features_c:
    .long 0
features_d:
    .long 0
undefined:
    .long 0
faults_missing:
    .long 0
faults_protection:
    .long 0
system_calls:
    .long 0
breakpoints:
    .long 0
pit_ticks:
    .long 0
apic_ticks:
    .long 0
.balign 8, 0
float_start:
    .double 1.5
float_factor:
    .double 0.99999
float_term:
    .double 0.001
.balign 16, 0
scratch:
    .quad 0, 0
fx_area:
    .fill 512, 1, 0
marker:
    .asciz "MAYFLY\n"
.balign 4, 0
magic:
    .ascii "MYFL"
.balign 512, 0
image_end:
