/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Switches between two stacks of one thread. Written in assembly for x86-64 and aarch64. Other
 * processors, and builds that define CO_USE_UCONTEXT, use ucontext(3), which makes system calls.
 */
#ifndef TIDEMARK_CO_CONTEXT_H
#define TIDEMARK_CO_CONTEXT_H

#include <stddef.h>

#if !defined(CO_USE_UCONTEXT) &&                                                                   \
    ((defined(__x86_64__) && !defined(__ILP32__)) || defined(__aarch64__))
#define CO_CONTEXT_ASM 1
#else
#include <ucontext.h>
#endif

/* Where a stack that is not running continues. */
struct co_context {
#ifdef CO_CONTEXT_ASM
    void *sp; /* the saved registers lie here */
#else
    ucontext_t uc;
#endif
};

/*
 * Prepare `c` so that the first switch to it calls entry() on the stack [stack, stack + size), in
 * bytes. `stack` + `size` is a multiple of 16. entry() never returns.
 */
void co_context_init(struct co_context *c, void *stack, size_t size, void (*entry)(void));

/* Save the running context to `from` and continue `to`. Returns on the switch back to `from`. */
void co_context_switch(struct co_context *from, struct co_context *to);

#endif
