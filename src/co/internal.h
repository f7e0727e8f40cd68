/* SPDX-License-Identifier: Apache-2.0 */
/* Internal to the coroutine layer: the coroutine object and its pool. None of these yields. */
#ifndef TIDEMARK_CO_INTERNAL_H
#define TIDEMARK_CO_INTERNAL_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/time_units.h"
#include "co/co.h"
#include "co/context.h"
#include "co/stall.h"
#include "co/wait.h"

#ifndef __has_feature
#define __has_feature(x) 0
#endif
#if defined(__SANITIZE_ADDRESS__) || __has_feature(address_sanitizer)
#define CO_ASAN 1
#endif
#if defined(__SANITIZE_THREAD__) || __has_feature(thread_sanitizer)
#define CO_TSAN 1
#endif

/* A stack to run on: a coroutine's, or the thread's own. */
struct co_fiber {
    struct co_context context;
#ifdef CO_ASAN
    /* ASan's, while the stack is not running */
    void *fake_stack;
    const void *stack_bottom;
    size_t stack_size;
#endif
#ifdef CO_TSAN
    /* TSan's object for this stack */
    void *tsan;
#endif
};

/* The state of a thread that runs coroutines. */
struct co_thread {
    /* the running coroutine; NULL outside one */
    struct co *current;
    /* the thread's own stack */
    struct co_fiber self;
    /* the stack that the latest switch left */
    struct co_fiber *left;
    /* to be woken, on another thread, as soon as its stack is left */
    struct co *moving;
};

/*
 * At the top of its stack's memory, so that a coroutine is one allocation. It stays there when
 * the coroutine has ended and the stack is pooled.
 */
struct co {
    struct co_fiber fiber;
    struct co_home *home;
    /* the thread that runs the coroutine, or ran it last */
    struct co_thread *thread;
    /* itself, or the coroutine whose co_call_deep() waits for its end */
    struct co *task;
    /* of a task: what it waits for, innermost; NULL: nothing is noted (co/wait.h) */
    const struct co_wait *wait;
    /* runs on when this one suspends; NULL: the thread itself */
    struct co *resumer;
    co_entry *entry;
    void *arg;
    bool ended;
    /* woken, and not resumed since: to detect a second wake */
    atomic_bool queued;
    /* in a wait queue, a run queue, or the pool */
    struct list link;
    /* see co_queue_slot() */
    void *queue_slot;
    /* the mapping, beginning with the guard page */
    void *map;
    /* Valgrind's number of the stack */
    unsigned valgrind_stack;
};

/* Of the calling thread. A function that yields reads it only before, since it may move. */
extern _Thread_local struct co_thread co_this_thread;

/* co_self() without a call. */
static inline struct co *co_running(void)
{
    return co_this_thread.current;
}

/* co_stall_clock() in the coroutine `self`. */
static inline int64_t co_stall_now(const struct co *self)
{
    return self->home->turn_ns;
}

/* co_stall_check() in the coroutine `self`, without a call as a rule. */
static inline void co_stall_check_now(const struct co *self, int64_t since, const char *kind,
                                      const void *object, const void *caller)
{
    if (__builtin_expect(co_stall_now(self) - since >= CO_STALL_MS * NS_PER_MS, 0)) {
        co_stall_check(since, kind, object, caller);
    }
}

/*
 * A coroutine whose stack is ready to be switched to. A new stack begins with entry(), which never
 * returns, so it is the same for all. NULL: errno is EAGAIN at CO_COUNT_MAX, else ENOMEM.
 */
struct co *co_pool_get(void (*entry)(void));

/* Give a coroutine that has ended to the pool of the calling thread. */
void co_pool_put(struct co *co);

/* The lowest usable address of a coroutine's stack. */
uintptr_t co_pool_stack_bottom(const struct co *co);
#endif
