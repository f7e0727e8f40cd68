/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The switch between two stacks of one thread, and nothing else. In assembly on x86-64 and
 * aarch64; by ucontext(3), whose switch costs system calls, elsewhere and where CO_USE_UCONTEXT
 * is defined.
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

/* A stack that is not running: where to go on. */
struct co_context {
#ifdef CO_CONTEXT_ASM
    void *sp; /* what the switch saved lies here */
#else
    ucontext_t uc;
#endif
};

/*
 * Prepare `c` so that the first switch to it calls entry() on the stack [stack, stack + size).
 * `stack` + `size` is a multiple of 16. entry() never returns.
 */
void co_context_init(struct co_context *c, void *stack, size_t size, void (*entry)(void));

/* Save the running context to `from` and go on with `to`. Returns when something switches back. */
void co_context_switch(struct co_context *from, struct co_context *to);

#endif
