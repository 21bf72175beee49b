// The guest of the accelerator probe for aarch64: a flat image that QEMU starts as a kernel on its board `virt`.
//
// It does what kernels do while they boot, and writes one letter to the serial port for each stage that passed. The list of the
// stages is in probe/guest.rs. "!" means that a stage saw a wrong result, "?" and two hexadecimal digits that an exception of
// that class came which no stage expects; both end the guest. After the last stage it does a fixed piece of work ROUNDS times:
// "<" when a round begins, ">" when it has ended. Then it writes the marker and asks the firmware to power off.
//
// aarch64.bin is what these commands make of it (a test compares), with or without aarch64-linux-gnu- before their names:
//     as -march=armv8.1-a -o guest.o aarch64.s
//     ld -Ttext 0x40080000 -o guest.elf guest.o
//     objcopy -O binary -j .text guest.elf aarch64.bin

.set ROUNDS,   5
.set CHECKSUM, 0xc75ed8b63d1ba8de

.set UART,     0x09000000
.set GICD,     0x08000000
.set GICC,     0x08010000               // version 2
.set GICR,     0x080a0000               // version 3
.set TIMER,    27                       // the virtual timer's private interrupt

// Physical memory. It begins at 0x40000000, the image is at 0x40080000, and QEMU's device tree is above all that is used here.
.set TABLES,   0x40100000
.set L1_LOW,   0x40100000               // devices and memory, where they are
.set L1_TOP,   0x40101000               // the same in the upper half of the address space, where kernels run
.set L2_TEST,  0x40102000
.set L3_TEST,  0x40103000
.set L2_USER,  0x40104000
.set L3_USER,  0x40105000
.set TABLES_END, 0x40106000
.set USER_PAGE, 0x40107000
.set STACK,    0x40110000               // grows down
.set FRAMES,   0x40400000               // 512 pages that are mapped into the test window
.set ARENA,    0x40800000               // 4 MiB that the work fills
.set ARENA_WORDS, 0x80000

// Virtual memory: 39 bits, pages of 4 KiB.
.set TOP,      0xffffff8000000000
.set WINDOW,   0xffffff8080000000       // entry 2 of L1_TOP
.set USER,     0x100000000              // entry 4 of L1_LOW

// Descriptors: shareable, accessed; normal memory is attribute 1.
.set TABLE,       3
.set DEVICE_BLOCK, 0x0060000000000401   // never executed
.set MEMORY_BLOCK, 0x705
.set PAGE,        0x707
.set PAGE_READ_ONLY, 0x787
.set PAGE_USER,   0xf47

.macro constant register, value
    movz \register, #((\value) & 0xffff)
    movk \register, #(((\value) >> 16) & 0xffff), lsl #16
    movk \register, #(((\value) >> 32) & 0xffff), lsl #32
    movk \register, #(((\value) >> 48) & 0xffff), lsl #48
.endm

.macro passed letter
    mov w0, #\letter
    bl put
.endm

.macro count counter
    adr x16, \counter
    ldr w17, [x16]
    add w17, w17, #1
    str w17, [x16]
.endm

.macro expect counter, value
    adr x16, \counter
    ldr w17, [x16]
    cmp w17, #\value
    b.ne failed
.endm

.text
.globl _start
_start:
    msr daifset, #15
    constant x1, STACK
    mov sp, x1
    mov x28, x0                         // the device tree
    passed 'A'

// Exceptions are taken and returned from.
    adr x0, vectors
    msr vbar_el1, x0
    isb
    svc #0
    .inst 0                             // undefined
    expect supervisor_calls, 1
    expect undefined, 1
    passed 'B'

// The memory management unit.
    constant x0, TABLES
    constant x1, TABLES_END
1:  stp xzr, xzr, [x0], #16
    cmp x0, x1
    b.lo 1b
    constant x0, L1_LOW
    constant x1, L1_TOP
    constant x2, DEVICE_BLOCK
    str x2, [x0]
    str x2, [x1]
    constant x2, 0x40000000 + MEMORY_BLOCK
    str x2, [x0, #8]
    str x2, [x1, #8]
    constant x2, L2_TEST + TABLE
    str x2, [x1, #16]
    constant x2, L2_USER + TABLE
    str x2, [x0, #32]
    constant x0, L2_TEST
    constant x2, L3_TEST + TABLE
    str x2, [x0]
    constant x0, L2_USER
    constant x2, L3_USER + TABLE
    str x2, [x0]
    constant x0, L3_USER
    constant x2, USER_PAGE + PAGE_USER
    str x2, [x0]
    dsb sy
    // What was written past the caches must not be found in them as it was before.
    constant x0, TABLES
    constant x1, TABLES_END
    bl forget
    adr x0, counters
    adr x1, counters_end
    bl forget
    constant x0, STACK - 0x1000
    constant x1, STACK
    bl forget
    constant x0, 0xff00                 // attribute 0: device, 1: normal memory, written back
    msr mair_el1, x0
    mrs x0, id_aa64mmfr0_el1
    and x0, x0, #7                      // the size of physical addresses
    mov x1, #5
    cmp x0, x1
    csel x0, x0, x1, lo
    lsl x0, x0, #32
    constant x1, 0xb5193519             // 39 bits each, 4 KiB, shareable, written back
    orr x0, x0, x1
    msr tcr_el1, x0
    constant x0, L1_LOW
    msr ttbr0_el1, x0
    constant x0, L1_TOP
    msr ttbr1_el1, x0
    dsb sy
    tlbi vmalle1
    ic iallu
    dsb sy
    isb
    mrs x0, sctlr_el1
    mov x1, #0x1005                     // MMU, both caches
    orr x0, x0, x1
    bic x0, x0, #2                      // no alignment check
    bic x0, x0, #0x80000                // what may be written may be executed
    orr x0, x0, #0x800000               // access to user pages is not switched off by exceptions
    msr sctlr_el1, x0
    isb
    constant x1, TOP
    adr x0, top
    orr x0, x0, x1
    br x0
top:
    mov x0, sp
    orr x0, x0, x1
    mov sp, x0
    adr x0, vectors
    msr vbar_el1, x0
    isb
    svc #0
    expect supervisor_calls, 2
    passed 'C'

// Page tables that change while they are used.
    constant x21, WINDOW
    constant x22, TOP + L3_TEST
    constant x23, TOP + FRAMES
    mov x1, #0x1111
    mov x2, #0x2222
    str x1, [x23]
    mov x3, #0x1000
    str x2, [x23, x3]
    constant x4, FRAMES + PAGE
    str x4, [x22]                       // a new page
    dsb ishst
    isb
    ldr x5, [x21]
    cmp x5, x1
    b.ne failed
    str xzr, [x22]                      // another frame behind it
    mov x0, x21
    bl flush
    add x4, x4, x3
    str x4, [x22]
    dsb ishst
    isb
    ldr x5, [x21]
    cmp x5, x2
    b.ne failed
    str xzr, [x22]                      // for reading only: a write is a fault, and goes through after it
    mov x0, x21
    bl flush
    constant x4, FRAMES + PAGE_READ_ONLY
    str x4, [x22]
    dsb ishst
    isb
    mov x5, #7
    str x5, [x21]
    ldr x6, [x23]
    cmp x6, x5
    b.ne failed
    expect faults_protection, 1
    mov x3, #0x3000                     // not there: a fault maps it
    str x5, [x21, x3]
    ldr x6, [x23, x3]
    cmp x6, x5
    b.ne failed
    expect faults_missing, 1
    str xzr, [x22]
    str xzr, [x22, #24]
    dsb ishst
    tlbi vmalle1is
    dsb ish
    isb
    passed 'D'

// Atomic instructions: exclusive ones, and those of ARMv8.1 where they are offered.
    adr x0, scratch
1:  ldaxr x1, [x0]
    add x1, x1, #5
    stlxr w2, x1, [x0]
    cbnz w2, 1b
1:  ldaxp x1, x2, [x0]
    cmp x1, #5
    b.ne failed
    add x2, x2, #6
    stlxp w3, x1, x2, [x0]
    cbnz w3, 1b
    ldp x1, x2, [x0]
    cmp x1, #5
    ccmp x2, #6, #0, eq
    b.ne failed
    mrs x1, id_aa64isar0_el1
    ubfx x1, x1, #20, #4
    cbz x1, 2f
    mov x4, #5
    mov x5, #6
    mov x6, #8
    mov x7, #9
    caspal x4, x5, x6, x7, [x0]
    mov x1, #1
    ldaddal x1, x2, [x0]
    cmp x2, #8
    b.ne failed
    mov x1, #9
    mov x2, #10
    casal x1, x2, [x0]
    mov x1, #3
    swpal x1, x2, [x0]
    cmp x2, #10
    b.ne failed
    ldr x1, [x0, #8]
    cmp x1, #9
    b.ne failed
2:  passed 'E'

// Floating point and SIMD.
    mov x0, #0x300000
    msr cpacr_el1, x0
    isb
    fmov d0, #1.5
    fadd d0, d0, d0
    fcvtzs x0, d0
    cmp x0, #3
    b.ne failed
    mov x0, #21
    dup v1.2d, x0
    add v1.2d, v1.2d, v1.2d
    mov x0, v1.d[1]
    cmp x0, #42
    b.ne failed
    passed 'F'

// The counter.
    mrs x0, cntfrq_el0
    cbz x0, failed
    isb
    mrs x1, cntvct_el0
    constant x2, 10000000
1:  isb
    mrs x3, cntvct_el0
    cmp x3, x1
    b.hi 2f
    subs x2, x2, #1
    b.ne 1b
    b failed
2:  passed 'G'

// Exception level 0 and back.
    adr x0, user_code
    constant x1, TOP + USER_PAGE
    ldp x2, x3, [x0]
    stp x2, x3, [x1]
    ldr x2, [x0, #16]
    str x2, [x1, #16]
    dc cvau, x1
    add x1, x1, #16
    dc cvau, x1
    dsb ish
    ic ialluis
    dsb ish
    isb
    mov x0, #3
    bl level_0
    expect user_calls, 4
    expect breakpoints, 1
    passed 'H'

// Which interrupt controller there is.
    ldr w1, [x28, #4]                   // its size
    rev w1, w1
    mov w2, #0x200000
    cmp w1, w2
    csel w1, w1, w2, lo
    mov w20, #2
    adr x3, gic_v3
    ldr x3, [x3]
    mov x4, x28
1:  ldr x5, [x4], #4                    // values of properties begin at multiples of 4
    lsl x5, x5, #8                      // what fills them up is not always 0
    cmp x5, x3, lsl #8
    b.eq 2f
    subs w1, w1, #4
    b.hi 1b
    b 3f
2:  mov w20, #3
3:

// Interrupts of the timer.
    constant x21, GICD
    cmp w20, #3
    b.eq 1f
    constant x22, GICC
    mov w0, #1
    str w0, [x21]
    mov w1, #1 << TIMER
    str w1, [x21, #0x100]
    mov w2, #0xff
    str w2, [x22, #4]                   // all priorities
    str w0, [x22]
    b 2f
1:  constant x22, GICR
    mov w0, #0x13                       // affinity routing, group 1
    str w0, [x21]
    ldr w0, [x22, #0x14]                // wakes the processor's interface
    bic w0, w0, #2
    str w0, [x22, #0x14]
3:  ldr w0, [x22, #0x14]
    tbnz w0, #2, 3b
    add x22, x22, #0x10000
    mov w1, #1 << TIMER
    ldr w0, [x22, #0x80]                // group 1
    orr w0, w0, w1
    str w0, [x22, #0x80]
    str w1, [x22, #0x100]
    mov x0, #7
    msr S3_0_C12_C12_5, x0              // ICC_SRE_EL1
    isb
    mov x0, #0xff
    msr S3_0_C4_C6_0, x0                // ICC_PMR_EL1
    mov x0, #1
    msr S3_0_C12_C12_7, x0              // ICC_IGRPEN1_EL1
    isb
2:  bl arm_timer
    mov x0, #1
    msr cntv_ctl_el0, x0
    isb
1:  msr daifset, #2
    adr x0, ticks
    ldr w0, [x0]
    cmp w0, #5
    b.hs 2f
    wfi
    msr daifclr, #2
    isb
    b 1b
2:  msr cntv_ctl_el0, xzr
    isb
    passed 'I'

// The work.
    mov w27, #ROUNDS
1:  mov w0, #'<'
    bl put
    bl work
    mov w0, #'>'
    bl put
    subs w27, w27, #1
    b.ne 1b
    adr x19, marker
1:  ldrb w0, [x19], #1
    cbz w0, end
    bl put
    b 1b

failed:
    mov w0, #'!'
    bl put
end:
    constant x0, 0x84000008             // SYSTEM_OFF
    hvc #0
1:  wfi
    b 1b

// One round: arithmetic, floating point, calls, memory, page tables, page faults, system calls. Its checksum is known.
// Most of it goes to what emulators are slow at and what programs and kernels do all day: memory behind page tables, faults,
// changes between the exception levels.
work:
    mov x26, x30
    constant x9, 0x9e3779b97f4a7c15
    mov w10, #0x40000
1:  eor x9, x9, x9, lsl #13
    eor x9, x9, x9, lsr #7
    eor x9, x9, x9, lsl #17
    subs w10, w10, #1
    b.ne 1b
    mov x25, x9

    adr x0, float_start
    ldp d0, d1, [x0]
    ldr d2, [x0, #16]
    mov w10, #0x10000
1:  fmul d0, d0, d1
    fadd d0, d0, d2
    subs w10, w10, #1
    b.ne 1b
    fmov x0, d0
    add x25, x25, x0

    adr x11, leaf_0
    adr x12, leaf_1
    mov w10, #0x20000
1:  lsr w13, w9, w10
    tst w13, #1
    csel x13, x11, x12, eq
    blr x13
    subs w10, w10, #1
    b.ne 1b

    mov w15, #4
2:  constant x0, TOP + ARENA
    mov w10, #ARENA_WORDS
1:  stp x9, x9, [x0], #16
    subs w10, w10, #2
    b.ne 1b
    constant x0, TOP + ARENA
    mov w10, #ARENA_WORDS
    mov x1, #0
1:  ldr x2, [x0]
    add x1, x1, x2
    ror x1, x1, #63
    str x1, [x0], #8
    subs w10, w10, #1
    b.ne 1b
    add x25, x25, x1
    subs w15, w15, #1
    b.ne 2b

    // Every page of the window is mapped by hand, written, read and unmapped, 8 times.
    mov w15, #8
2:  constant x21, WINDOW
    constant x22, TOP + L3_TEST
    constant x23, FRAMES + PAGE
    mov w10, #512
1:  str x23, [x22]
    dsb ishst
    isb
    str x23, [x21]
    ldr x1, [x21]
    add x25, x25, x1
    str xzr, [x22], #8
    mov x0, x21
    bl flush
    add x21, x21, #0x1000
    add x23, x23, #0x1000
    subs w10, w10, #1
    b.ne 1b
    subs w15, w15, #1
    b.ne 2b

    // Every page of the window is mapped by its fault, 4 times.
    mov w15, #4
2:  constant x21, WINDOW
    mov x10, #512
1:  str x10, [x21]
    ldr x1, [x21]
    add x25, x25, x1
    add x21, x21, #0x1000
    subs x10, x10, #1
    b.ne 1b
    constant x22, TOP + L3_TEST
    mov w10, #512
1:  str xzr, [x22], #8
    subs w10, w10, #1
    b.ne 1b
    dsb ishst
    tlbi vmalle1is
    dsb ish
    isb
    subs w15, w15, #1
    b.ne 2b

    mov x0, #4096
    bl level_0
    constant x0, CHECKSUM
    cmp x25, x0
    b.ne failed
    ret x26

leaf_0:
    add x25, x25, x10
    ret
leaf_1:
    eor x25, x25, x10
    ret

// Whatever is cached of the memory from x0 to x1 is dropped.
forget:
    bic x0, x0, #63
1:  dc ivac, x0
    add x0, x0, #16                     // the smallest line
    cmp x0, x1
    b.lo 1b
    dsb sy
    ret

// No translation of the page at x0 is left.
flush:
    lsr x0, x0, #12
    and x0, x0, #0xfffffffffff
    dsb ishst
    tlbi vaae1is, x0
    dsb ish
    isb
    ret

arm_timer:
    mrs x16, cntfrq_el0
    mov x17, #1000
    udiv x16, x16, x17
    msr cntv_tval_el0, x16
    isb
    ret

// Runs the user page's code with x0, and comes back when it calls with 0.
level_0:
    mov x1, sp
    adr x2, kernel_sp
    stp x1, x30, [x2]
    msr spsr_el1, xzr
    constant x1, USER
    msr elr_el1, x1
    add x1, x1, #0x1000
    msr sp_el0, x1
    isb
    eret

.balign 8, 0
user_code:
1:  svc #0
    subs x0, x0, #1
    b.ne 1b
    brk #0
    svc #0
    b .

// From level 1, and from level 0 (class in w16).
on_synchronous:
    stp x16, x17, [sp, #-32]!
    stp x0, x1, [sp, #16]
    mrs x16, esr_el1
    lsr w16, w16, #26
    cmp w16, #0x15                      // a call
    b.eq 1f
    cmp w16, #0                         // an undefined instruction
    b.eq 2f
    cmp w16, #0x25                      // a data abort
    b.eq 3f
    b unexpected
1:  count supervisor_calls
    b 9f
2:  count undefined
    mrs x16, elr_el1
    add x16, x16, #4
    msr elr_el1, x16
    b 9f
3:  mrs x0, far_el1
    constant x1, WINDOW
    sub x0, x0, x1
    mov x1, #0x200000
    cmp x0, x1
    b.hs unexpected
    mrs x1, esr_el1
    and w1, w1, #0x3c
    cmp w1, #0x0c                       // permission
    b.eq 4f
    cmp w1, #0x04                       // translation
    b.ne unexpected
    count faults_missing
    b 5f
4:  count faults_protection
5:  lsr x0, x0, #12
    constant x1, TOP + L3_TEST
    add x1, x1, x0, lsl #3
    str xzr, [x1]
    mrs x16, far_el1
    lsr x16, x16, #12
    and x16, x16, #0xfffffffffff
    dsb ishst
    tlbi vaae1is, x16
    dsb ish
    constant x16, FRAMES + PAGE
    add x16, x16, x0, lsl #12
    str x16, [x1]
    dsb ishst
    isb
9:  ldp x0, x1, [sp, #16]
    ldp x16, x17, [sp], #32
    eret

on_user:
    mrs x16, esr_el1
    lsr w16, w16, #26
    cmp w16, #0x15
    b.ne 1f
    count user_calls
    cbz x0, 2f
    eret
1:  cmp w16, #0x3c                      // a breakpoint
    b.ne unexpected
    count breakpoints
    mrs x16, elr_el1
    add x16, x16, #4
    msr elr_el1, x16
    eret
2:  adr x1, kernel_sp
    ldp x1, x30, [x1]
    mov sp, x1
    ret

on_interrupt:
    stp x16, x17, [sp, #-48]!
    stp x0, x1, [sp, #16]
    str x30, [sp, #32]
    cmp w20, #3
    b.eq 1f
    constant x1, GICC
    ldr w0, [x1, #0xc]
    b 2f
1:  mrs x0, S3_0_C12_C12_0              // ICC_IAR1_EL1
2:  and w16, w0, #0x3ff
    cmp w16, #TIMER
    b.ne 4f                             // withdrawn before it was taken
    count ticks
    bl arm_timer
    cmp w20, #3
    b.eq 3f
    str w0, [x1, #0x10]
    b 4f
3:  msr S3_0_C12_C12_1, x0              // ICC_EOIR1_EL1
    isb
4:  ldr x30, [sp, #32]
    ldp x0, x1, [sp, #16]
    ldp x16, x17, [sp], #48
    eret

unexpected:
    mrs x19, esr_el1
    lsr w19, w19, #26
    mov w0, #'?'
    bl put
    lsr w0, w19, #4
    bl put_digit
    and w0, w19, #15
    bl put_digit
    b end

put_digit:
    cmp w0, #10
    mov w1, #'0'
    mov w2, #'a' - 10
    csel w1, w1, w2, lo
    add w0, w0, w1
put:
    constant x16, UART
1:  ldr w17, [x16, #0x18]
    tbnz w17, #5, 1b                    // full
    str w0, [x16]
    ret

.macro vector target
    .balign 128, 0
    b \target
.endm

.balign 2048, 0
vectors:
    vector unexpected
    vector unexpected
    vector unexpected
    vector unexpected
    vector on_synchronous
    vector on_interrupt
    vector unexpected
    vector unexpected
    vector on_user
    vector unexpected
    vector unexpected
    vector unexpected
    vector unexpected
    vector unexpected
    vector unexpected
    vector unexpected

.balign 64, 0
float_start:
    .double 1.5
    .double 0.99999
    .double 0.001
gic_v3:
    .ascii "gic-v3\0\0"                  // the end of "arm,gic-v3"
marker:
    .asciz "MAYFLY\n"
.balign 64, 0
counters:
kernel_sp:
    .quad 0, 0
scratch:
    .quad 0, 0
supervisor_calls:
    .long 0
undefined:
    .long 0
faults_missing:
    .long 0
faults_protection:
    .long 0
user_calls:
    .long 0
breakpoints:
    .long 0
ticks:
    .long 0
.balign 64, 0
counters_end:
