/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Coroutines. Each has a stack of its own; switching between them is explicit.
 *
 * A coroutine belongs to a home (`struct co_home`, one per reactor) and runs only on the thread of
 * its home; co_rescue() can give a home another thread. Waking a coroutine means to put it on the
 * run queue of its home, from any thread. Since only the thread of the home runs it, a wake may
 * come before the suspend that it answers is complete: the coroutine is queued, and the thread
 * looks at the queue only after the coroutine has switched out.
 *
 *                co_spawn()            co_resume()
 *      (none) ------------> QUEUED ------------------> RUNNING ---> (none; the stack is pooled)
 *                            ^                            |  the entry function
 *                            |                            |  returns
 *       co_wake(), from any  |                            |  co_suspend()
 *       thread               |                            v
 *                            +------------------------ SUSPENDED
 *
 *      co_run() makes a coroutine that is RUNNING at once.
 *
 * Stacks are pooled per thread. Each has a guard page, and costs two memory maps, of which the
 * kernel allows a process a limited number; therefore their number is limited (CO_COUNT_MAX). At
 * the limit co_spawn() and co_run() return -EAGAIN, and callers that serve requests wait until a
 * coroutine ends.
 *
 * Functions yield only where it is said. Functions marked "in a coroutine" abort elsewhere.
 */
#ifndef TIDEMARK_CO_CO_H
#define TIDEMARK_CO_CO_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/counters.h"
#include "base/list.h"

struct co;
struct co_home;

/* What a coroutine runs; the coroutine ends when the function returns. `arg` is the caller's. */
typedef void co_entry(void *arg);

/* What a scheduler gives the coroutine layer. The loop layer embeds it in its reactor. */
struct co_home {
    /*
     * Put a coroutine on the run queue of this home; the home's thread runs it later with
     * co_resume(). Called from any thread. Must not fail: co_link() and co_queue_slot() are the
     * memory to queue with.
     */
    void (*enqueue)(struct co_home *home, struct co *co);

    /*
     * When the scheduler's present turn began, of any clock; for co/stall.h. The home's thread
     * writes it.
     */
    int64_t turn_ns;

    /* Counters of the coroutine layer; start with zeroes. The last two are the home's thread's. */
    /* started by co_spawn(), or brought by co_call_at() */
    atomic_size_t spawned;
    /* started by co_run(); and ended, or gone back home from co_call_at() */
    struct counter run, ended;
};

/* How many coroutines of `home` have not ended. On the home's thread. */
size_t co_home_live(struct co_home *home);

/* Usable bytes of a coroutine's stack, at least. */
#define CO_STACK_SIZE (512 * 1024)

/* How many coroutines the process may have, pooled stacks included. */
#define CO_COUNT_MAX 16384

/*
 * Make a coroutine of `home` that will run `entry(arg)`, and queue it there. Any thread. Returns 0,
 * -ENOMEM, or -EAGAIN at CO_COUNT_MAX.
 */
int co_spawn(struct co_home *home, co_entry *entry, void *arg);

/*
 * As co_spawn(), but run the coroutine on the spot, until it first suspends or ends, and return
 * then. Saves the way through the queue. On the home's thread, outside or inside a coroutine; to a
 * coroutine that calls it, this is no yield.
 */
int co_run(struct co_home *home, co_entry *entry, void *arg);

/* The running coroutine; NULL outside one. */
struct co *co_self(void);

/* Yield until co_wake(). Exactly one co_wake() answers each co_suspend(). In a coroutine. */
void co_suspend(void);

/*
 * Queue a coroutine, which is suspended or about to suspend, at its home. Any thread. As soon as
 * the coroutine runs it may end, so the caller must not use it afterwards.
 */
void co_wake(struct co *co);

/* Yield to all coroutines in the run queue of the home, and continue after them. In a coroutine. */
void co_reschedule(void);

/*
 * Run `entry(arg)` at another home, to which the calling coroutine belongs until `entry` returns,
 * and return at the present home. Both times the coroutine goes to the end of the run queue. Needs
 * no memory, so it can't fail. In a coroutine. Yields.
 */
void co_call_at(struct co_home *there, co_entry *entry, void *arg);

/* --- recursion of unknown depth */

/* Bytes that must be left of a stack for co_call_deep() to stay on it. */
#define CO_STACK_RESERVE ((size_t)(128 * 1024))

/*
 * Call `entry(arg)` as one step of a recursion: on the stack of the running coroutine if at least
 * CO_STACK_RESERVE bytes are left of it, else as a coroutine of its own, and wait for its end.
 * Returns 0, or an error of co_spawn(), in which case `entry` was not called. In a coroutine.
 * Yields if `entry` does.
 */
int co_call_deep(co_entry *entry, void *arg);

/* Whether co_call_deep() would use another stack. In a coroutine. */
bool co_stack_is_low(void);

/*
 * The coroutine on whose behalf the running one works: itself, or the one whose co_call_deep()
 * waits for it. Whatever is recorded about "this coroutine" for longer than one wait (the holder of
 * a mutex, say) is recorded about the task. NULL outside a coroutine.
 */
struct co *co_task(void);

/* --- for schedulers */

/*
 * Run a queued coroutine on the calling thread, which is its home's, until it suspends or ends. May
 * be called inside another coroutine; to that one, this is no yield.
 */
void co_resume(struct co *co);

/* The list link of a coroutine, and back; for run queues and for queues of those that wait. */
struct list *co_link(struct co *co);
struct co *co_from_link(struct list *link);

/* Room for one pointer in the coroutine, for run queues without a lock. Used only while queued. */
void **co_queue_slot(struct co *co);

/* The home that the coroutine belongs to now. */
struct co_home *co_get_home(const struct co *co);

/*
 * Give a home another thread, after its thread hangs in a system call:
 *
 *      the old thread                               the new thread
 *
 *      coroutine C, which co_resume() or
 *      co_run() started, makes the call
 *                                                   takes the home, in a way that C notices
 *                                                   when the call returns
 *                                                   co_rescue(C): the coroutines that wait for
 *                                                   C to suspend continue as if it had
 *      the call returns; C notices, and
 *      calls co_rejoin()
 *      co_resume() of the outermost coroutine       C continues here
 *      returns; from now on the thread runs
 *      no coroutine of this home
 *
 * The caller orders memory: what the old thread did before the call is visible to the new thread
 * when it takes the home.
 */

/* On the new thread, outside a coroutine. */
void co_rescue(struct co *caller);

/* In C, still on the old thread. Yields, and returns on the new thread. */
void co_rejoin(void);

/* --- the process and its threads */

/* How many coroutines exist in the process; exact only while no thread starts or ends one. */
size_t co_count(void);

/*
 * Free the pooled stacks of the calling thread. Call it before a thread that ran coroutines ends.
 */
void co_thread_cleanup(void);

#endif
