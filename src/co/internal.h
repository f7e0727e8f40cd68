/* SPDX-License-Identifier: Apache-2.0 */
/* Inside of the coroutine layer: the coroutine object, its pool, and what sanitizers need. */
#ifndef TIDEMARK_CO_INTERNAL_H
#define TIDEMARK_CO_INTERNAL_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "co/co.h"
#include "co/context.h"

#ifndef __has_feature
#define __has_feature(x) 0
#endif
#if defined(__SANITIZE_ADDRESS__) || __has_feature(address_sanitizer)
#define CO_ASAN 1
#endif
#if defined(__SANITIZE_THREAD__) || __has_feature(thread_sanitizer)
#define CO_TSAN 1
#endif

/* A stack that something runs on: a coroutine's, or the thread's own. */
struct co_fiber {
    struct co_context context;
#ifdef CO_ASAN
    void *fake_stack; /* ASan's, while it is not running */
    const void *stack_bottom;
    size_t stack_size;
#endif
#ifdef CO_TSAN
    void *tsan; /* TSan's object for this stack */
#endif
};

/* What a thread that runs coroutines knows. */
struct co_thread {
    struct co *current;    /* the running one; NULL outside */
    struct co_fiber self;  /* the thread's own stack */
    struct co_fiber *left; /* the stack that was left by the latest switch */
    struct co *moving;     /* to be woken elsewhere once its stack is left */
};

/*
 * Lies at the top of its own stack's memory, so that a coroutine is one allocation, and stays there
 * when the coroutine ends and its stack is pooled.
 */
struct co {
    struct co_fiber fiber;
    struct co_home *home;
    struct co_thread *thread; /* that runs it, or ran it last */
    struct co *task;          /* itself, or the one that waits for its end in co_call_deep() */
    struct co *resumer;       /* who goes on when it suspends; NULL: the thread itself */
    co_entry *entry;
    void *arg;
    bool ended;
    atomic_bool queued; /* woken and not yet resumed: to catch a second wake */
    struct list link;   /* in a wait queue, a run queue, or the pool */
    void *queue_slot;
    void *map;               /* of map_size bytes, the guard page first */
    unsigned valgrind_stack; /* valgrind's number of the stack */
};

/* A coroutine with a stack ready to be switched to, which calls co_main() first. NULL at the cap
 * (errno EAGAIN) or without memory (ENOMEM). */
struct co *co_pool_get(void);

/* Give back a coroutine that ended, to the pool of the calling thread. */
void co_pool_put(struct co *co);

/* The lowest address of a coroutine's stack that can be used. */
uintptr_t co_pool_stack_bottom(const struct co *co);

/* First function on a new stack. Never returns: it runs one entry after the other. */
void co_main(void);

#endif
