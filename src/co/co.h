/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Coroutines: a stack each, switched by hand, pinned to one home.
 *
 * A coroutine belongs to a home (`struct co_home`, one per reactor) and only ever runs on
 * the thread of that home (which co_rescue() can change). Waking it means putting it on the home's queue, from any thread. Because
 * only the home thread runs it, a wake may come before the suspend that it answers has finished:
 * the coroutine is queued, and the queue is looked at only once it has switched out.
 *
 *      co_spawn           home thread picks it
 *   (none) ---> QUEUED ------------------------> RUNNING --- function returns ---> (none, stack
 * pooled) ^                                | |  co_wake (any thread)          | co_suspend
 *                  +----------- SUSPENDED <---------+
 *
 * Stacks are pooled per thread, have a guard page and are capped in number per process: each costs
 * two memory maps. At the cap co_spawn() fails with -EAGAIN; callers that serve requests then wait
 * for one to end.
 */
#ifndef TIDEMARK_CO_CO_H
#define TIDEMARK_CO_CO_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>

#include "base/list.h"

struct co;
struct co_home;

typedef void co_entry(void *arg);

/*
 * What a scheduler gives the coroutine layer. The loop layer embeds it in its reactor.
 */
struct co_home {
    /*
     * Put a coroutine on the run queue of this home; it is run later by the home's thread with
     * co_resume(). Called from any thread. Uses co_link() to queue it without memory.
     */
    void (*enqueue)(struct co_home *home, struct co *co);

    /* The coroutine layer's own; start with zeroes. */
    atomic_size_t spawned; /* started by co_spawn(), from any thread */
    size_t run;            /* started by co_run(); the home's thread only, as `ended` */
    size_t ended;
};

/* Coroutines of `home` that have not ended. On the home's own thread. */
size_t co_home_live(struct co_home *home);

/* Usable bytes of a coroutine's stack, and how many may exist in the process. */
#define CO_STACK_SIZE (512 * 1024)
#define CO_COUNT_MAX 16384

/*
 * Start `entry(arg)` as a coroutine of `home`; it is queued, not run at once. Any thread.
 * Returns 0, -ENOMEM, or -EAGAIN at CO_COUNT_MAX. Does not yield.
 */
int co_spawn(struct co_home *home, co_entry *entry, void *arg);

/*
 * For the home's own thread only, outside or inside a coroutine: start `entry(arg)` and run it
 * right now until it first suspends or ends; then go on here. Saves the trip through the queue on
 * the hot path.
 */
int co_run(struct co_home *home, co_entry *entry, void *arg);

/* The running coroutine; NULL outside one. */
struct co *co_self(void);

/* Yield until co_wake(). Exactly one co_wake() must answer each co_suspend(). Only in a coroutine.
 */
void co_suspend(void);

/*
 * Call `entry(arg)` as a step of a recursion of unknown depth: on the running coroutine's stack while at least
 * CO_STACK_RESERVE bytes of that are left, else on a stack of its own, whose end is waited for. Only in a coroutine.
 * Returns 0, or as co_spawn(); then `entry` was not called. Yields if `entry` does.
 */
#define CO_STACK_RESERVE ((size_t)(128 * 1024))
int co_call_deep(co_entry *entry, void *arg);

/*
 * Whose work the running coroutine does: itself, or who called co_call_deep() and waits. What belongs to "this coroutine" beyond
 * a function's own waiting belongs to the task.
 */
struct co *co_task(void);

/* Whether co_call_deep() would take another stack: for callers that do without `entry` where there is room. */
bool co_stack_is_low(void);

/* Queue a suspended coroutine, or one that is about to suspend, on its home. Any thread. Does not
 * yield. */
void co_wake(struct co *co);

/* Go to the end of the home's run queue. Yields. */
void co_reschedule(void);

/*
 * Run `entry(arg)` at another home: the calling coroutine goes there, to the end of the run queue, belongs to it until entry
 * has ended, and comes back. Nothing is needed that could be missing. Yields.
 */
void co_call_at(struct co_home *there, co_entry *entry, void *arg);

/* For schedulers: run a queued coroutine on this thread until it suspends or ends. */
void co_resume(struct co *co);

/* For schedulers: the link of a queued coroutine, and back. Guarded by the home's queue lock. */
struct list *co_link(struct co *co);
struct co *co_from_link(struct list *link);

/* For schedulers that queue without a lock: a pointer's room in the coroutine, unused while it is
 * not queued. */
void **co_queue_slot(struct co *co);

struct co_home *co_get_home(const struct co *co);

/*
 * For schedulers that move a home from a thread that hangs in a system call to another one:
 *
 *      the lost thread                              the new thread
 *      - coroutine C, which co_resume() or
 *        co_run() started, makes the call           - decides, so that C learns of it at the call's
 *                                                     return, that it runs the home from now on
 *                                                   - co_rescue(C): coroutines that wait for
 *                                                     C to suspend go on as if it had
 *        the call returns: co_rejoin()
 *        co_resume() of the outermost coroutine
 *        returns; the thread runs coroutines        - C goes on here
 *        of this home no more
 *
 * The decision orders what the lost thread did before the call before what the new one does.
 */
/* On the new thread, outside coroutines. Does not yield. */
void co_rescue(struct co *caller);
/* In C, still on the lost thread. Yields: returns on the new one. */
void co_rejoin(void);

/* Coroutines that exist now in the process (for tests and statistics). */
size_t co_count(void);

/* Free the calling thread's pooled stacks. A thread that ran coroutines calls it before it ends. */
void co_thread_cleanup(void);

#endif
