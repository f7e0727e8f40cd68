/* SPDX-License-Identifier: Apache-2.0 */
#include "co/context.h"

#include <stdint.h>
#include <string.h>

#ifdef CO_CONTEXT_ASM

/*
 * A context is its stack pointer (offset 0 of struct co_context). The registers that the calling
 * convention makes a function preserve are on the stack above. The switch is an ordinary call, so
 * the compiler has saved all others.
 */
#ifdef __x86_64__

/*
 *      sp ->  0  mxcsr (4 bytes), x87 control word (2), unused (2)
 *             8  r15  r14  r13  r12  rbx  rbp
 *            56  where to continue
 */
#define FRAME_WORDS 8
#define FRAME_ENTRY 7

/* A jump instead of a return, which the processor's return address predictor would mispredict. */
__asm__(".pushsection .text\n"
        ".p2align 4\n"
        ".globl co_context_switch\n"
        ".hidden co_context_switch\n"
        ".type co_context_switch, @function\n"
        "co_context_switch:\n"
        "    pushq %rbp\n"
        "    pushq %rbx\n"
        "    pushq %r12\n"
        "    pushq %r13\n"
        "    pushq %r14\n"
        "    pushq %r15\n"
        "    subq $8, %rsp\n"
        "    stmxcsr (%rsp)\n"
        "    fnstcw 4(%rsp)\n"
        "    movq %rsp, (%rdi)\n"
        "    movq (%rsi), %rsp\n"
        "    ldmxcsr (%rsp)\n"
        "    fldcw 4(%rsp)\n"
        "    addq $8, %rsp\n"
        "    popq %r15\n"
        "    popq %r14\n"
        "    popq %r13\n"
        "    popq %r12\n"
        "    popq %rbx\n"
        "    popq %rbp\n"
        "    popq %rcx\n"
        "    jmpq *%rcx\n"
        ".size co_context_switch, . - co_context_switch\n"
        ".popsection\n");

static void save_float_control(uint64_t *word)
{
    uint32_t mxcsr;
    uint16_t control;

    __asm__ volatile("stmxcsr %0" : "=m"(mxcsr));
    __asm__ volatile("fnstcw %0" : "=m"(control));
    *word = mxcsr | (uint64_t)control << 32;
}

#else /* __aarch64__ */

/*
 *      sp ->  0  x19 ... x28
 *            80  x29 (frame pointer)  x30 (where to continue)
 *            96  d8 ... d15
 */
#define FRAME_WORDS 20
#define FRAME_ENTRY 11

__asm__(".pushsection .text\n"
        ".p2align 4\n"
        ".globl co_context_switch\n"
        ".hidden co_context_switch\n"
        ".type co_context_switch, %function\n"
        "co_context_switch:\n"
        "    sub sp, sp, #160\n"
        "    stp x19, x20, [sp, #0]\n"
        "    stp x21, x22, [sp, #16]\n"
        "    stp x23, x24, [sp, #32]\n"
        "    stp x25, x26, [sp, #48]\n"
        "    stp x27, x28, [sp, #64]\n"
        "    stp x29, x30, [sp, #80]\n"
        "    stp d8, d9, [sp, #96]\n"
        "    stp d10, d11, [sp, #112]\n"
        "    stp d12, d13, [sp, #128]\n"
        "    stp d14, d15, [sp, #144]\n"
        "    mov x9, sp\n"
        "    str x9, [x0]\n"
        "    ldr x9, [x1]\n"
        "    mov sp, x9\n"
        "    ldp x19, x20, [sp, #0]\n"
        "    ldp x21, x22, [sp, #16]\n"
        "    ldp x23, x24, [sp, #32]\n"
        "    ldp x25, x26, [sp, #48]\n"
        "    ldp x27, x28, [sp, #64]\n"
        "    ldp x29, x30, [sp, #80]\n"
        "    ldp d8, d9, [sp, #96]\n"
        "    ldp d10, d11, [sp, #112]\n"
        "    ldp d12, d13, [sp, #128]\n"
        "    ldp d14, d15, [sp, #144]\n"
        "    add sp, sp, #160\n"
        "    ret\n"
        ".size co_context_switch, . - co_context_switch\n"
        ".popsection\n");

static void save_float_control(uint64_t *word)
{
    (void)word; /* shared by all contexts of the thread */
}

#endif

void co_context_init(struct co_context *c, void *stack, size_t size, void (*entry)(void))
{
    /* Above the frame: a null return address, and on x86-64 the alignment after a call. */
    uint64_t *top = (uint64_t *)(void *)((char *)stack + size) - 2;
#ifdef __x86_64__
    uint64_t *frame = top + 1 - FRAME_WORDS;
#else
    uint64_t *frame = top - FRAME_WORDS;
#endif

    top[0] = top[1] = 0;
    memset(frame, 0, FRAME_WORDS * sizeof(*frame));
    save_float_control(&frame[0]);
    frame[FRAME_ENTRY] = (uint64_t)(uintptr_t)entry;
    c->sp = frame;
}

#else

void co_context_init(struct co_context *c, void *stack, size_t size, void (*entry)(void))
{
    getcontext(&c->uc);
    c->uc.uc_stack.ss_sp = stack;
    c->uc.uc_stack.ss_size = size;
    c->uc.uc_link = NULL;
    makecontext(&c->uc, entry, 0);
}

void co_context_switch(struct co_context *from, struct co_context *to)
{
    swapcontext(&from->uc, &to->uc);
}

#endif
