/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Locks for coroutines. They work between coroutines of different threads, and a coroutine may hold
 * them across a yield. All are FIFO: a release hands the lock to the waiter that has waited
 * longest, so no waiter starves, and no newcomer cuts in. There are no spurious wake-ups.
 *
 * Which functions yield, and where they may be called:
 *
 *      co_mutex_lock, co_rwlock_rdlock, co_rwlock_wrlock,    in a coroutine only; yield
 *      co_cond_wait, co_semaphore_take, co_group_wait,       when they have to wait
 *      co_range_lock, co_queue_wait_release
 *      co_mutex_trylock, co_mutex_unlock                     in a coroutine only; never yield
 *      all others                                            on any thread, inside or outside a
 *                                                            coroutine; never yield
 *
 * They can neither fail nor run out of memory: a waiter's queue entry is in the coroutine or on its
 * stack. The memory of a lock is its owner's. `_init` comes before every other call, `_destroy`
 * last.
 */
#ifndef TIDEMARK_CO_SYNC_H
#define TIDEMARK_CO_SYNC_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "base/debug.h"
#include "base/list.h"
#include "base/range_index.h"
#include "co/co.h"

/* --- queue of suspended coroutines, guarded by a thread mutex of its owner */

struct co_queue {
    struct list waiters;
};

/* An empty queue; nothing has to be freed afterwards. */
void co_queue_init(struct co_queue *q);

/* Whether no coroutine waits. The owner's mutex is held. */
bool co_queue_is_empty(const struct co_queue *q);

/*
 * Wait at the end of `q` until co_queue_wake_all() removes the caller. `guard`, the owner's
 * mutex, is held on entry, released while the caller waits, and NOT held on return. Always yields.
 */
void co_queue_wait_release(struct co_queue *q, pthread_mutex_t *guard);

/*
 * As co_queue_wait_release(), with a note of what the caller waits for: see struct co_wait
 * (co/wait.h) for the arguments.
 */
void co_queue_wait_for_release(struct co_queue *q, pthread_mutex_t *guard, const char *what,
                               const char *object, int fd);

/* Wake all, the one that has waited longest first. The owner's mutex is held. */
void co_queue_wake_all(struct co_queue *q);

/* --- mutex: without contention, lock and unlock are one atomic operation each */

struct co_mutex {
    /* 0: free; 1: held; 2: held, and there may be waiters */
    atomic_uint state;
    /* guards `waiters` */
    pthread_mutex_t guard;
    struct co_queue waiters;
    /* the task that holds the mutex, for assertions */
    struct co *_Atomic holder;
};

/* Free at first. No task holds the mutex or waits for it when it is destroyed. */
void co_mutex_init(struct co_mutex *m);
void co_mutex_destroy(struct co_mutex *m);

/* Take the mutex, which the calling task must not hold yet. Yields while another task holds it. */
void co_mutex_lock(struct co_mutex *m);

/* Take the mutex if it is free; false if it is not. */
bool co_mutex_trylock(struct co_mutex *m);

/* Release the mutex, which the calling task holds. */
void co_mutex_unlock(struct co_mutex *m);

/* Whether the calling task holds the mutex; false outside a coroutine. */
bool co_mutex_is_held(const struct co_mutex *m);
/* The running coroutine becomes the holder, in place of another one that gives the mutex to it. */
void co_mutex_take_over(struct co_mutex *m);

/*
 * The first statement of a function whose name ends in `_locked`: the calling task holds the mutex.
 * Checked in debug builds. For thread mutexes there is MUTEX_ASSERT_HELD() (base/debug.h).
 */
#define CO_ASSERT_HELD(mutex) DEBUG_ASSERT(co_mutex_is_held(mutex))

/* --- readers-writer lock: many readers or one writer */

/*
 * A writer that waits keeps later readers waiting. Hence no task takes it twice, not even to read.
 */
struct co_rwlock {
    /* guards all below */
    pthread_mutex_t guard;
    /* how many hold it to read; -1: a writer holds it */
    int readers;
    /* of struct rwlock_waiter, oldest first */
    struct list waiters;
};

/* Free at first. No task holds the lock or waits for it when it is destroyed. */
void co_rwlock_init(struct co_rwlock *l);
void co_rwlock_destroy(struct co_rwlock *l);

/* Take the lock to read or to write. Yields while the lock is held otherwise, or others wait. */
void co_rwlock_rdlock(struct co_rwlock *l);
void co_rwlock_wrlock(struct co_rwlock *l);

/* Release the lock, however it was taken. */
void co_rwlock_unlock(struct co_rwlock *l);

/* --- condition: wait for a state that a mutex guards */

struct co_cond {
    /* guards `waiters` */
    pthread_mutex_t guard;
    struct co_queue waiters;
};

/* No task waits when the condition is destroyed. */
void co_cond_init(struct co_cond *c);
void co_cond_destroy(struct co_cond *c);

/*
 * Release `m`, which the calling task holds, wait for a signal, and take `m` again. Another task
 * may have changed the state in between, so the caller tests the state again. Always yields.
 */
void co_cond_wait(struct co_cond *c, struct co_mutex *m);

/*
 * Wake the waiter that has waited longest, or all; without a waiter, nothing happens. Change the
 * state under the waiters' mutex, else a waiter that has tested it just before misses the signal.
 */
void co_cond_signal(struct co_cond *c);
void co_cond_broadcast(struct co_cond *c);

/* --- counting semaphore: limits work in flight */

struct co_semaphore {
    /* guards all below */
    pthread_mutex_t guard;
    /* units that can be taken now */
    int64_t available;
    /* of struct semaphore_waiter, oldest first */
    struct list waiters;
};

/* `limit` units, 0 or more, can be taken in total. No task waits when it is destroyed. */
void co_semaphore_init(struct co_semaphore *s, int64_t limit);
void co_semaphore_destroy(struct co_semaphore *s);

/*
 * Take `units`, which are at most the limit. Yields while fewer are available, or others wait: a
 * large request is not overtaken by small ones.
 */
void co_semaphore_take(struct co_semaphore *s, int64_t units);

/* Give back units that were taken, by whichever coroutine. */
void co_semaphore_give(struct co_semaphore *s, int64_t units);

/* --- group: wait until several coroutines have ended */

struct co_group {
    /* guards all below */
    pthread_mutex_t guard;
    /* calls of co_group_add() without their co_group_done() */
    size_t running;
    struct co_queue waiters;
};

/* Empty at first. No task waits when the group is destroyed. */
void co_group_init(struct co_group *g);
void co_group_destroy(struct co_group *g);

/* Count one more. The caller adds before it spawns, so that a wait does not end too early. */
void co_group_add(struct co_group *g);

/* The last act of the coroutine that was added. The group may be gone afterwards. */
void co_group_done(struct co_group *g);

/* Yields until every add has its done. Several coroutines may wait. */
void co_group_wait(struct co_group *g);

/* --- range lock: byte ranges held by requests in flight */

/*
 * An exclusive entry waits for every overlapping entry, a shared one for overlapping exclusive
 * ones. Where entries overlap they are granted in the order in which they were asked for.
 */
struct range_lock {
    /* guards `entries` */
    pthread_mutex_t guard;
    /* of struct range_entry */
    struct range_index entries;
    /* see range_lock_let_pass() */
    uint64_t passes;
};

/* One held or wanted range: memory of the caller, usually on its stack, from lock to unlock. */
struct range_entry {
    struct range_item item;
    bool exclusive;
    bool granted;
    /* owners of entries that wait for this one */
    struct co_queue blocked;
};

/* Without entries at first, and when the lock is destroyed. */
void range_lock_init(struct range_lock *l);
void range_lock_destroy(struct range_lock *l);

/*
 * Call before the first entry: an entry that waits no longer stops the next `passes` entries asked
 * for after it, as far as these conflict with no granted one. So a request that waits for one part
 * of its range does not hold up others in the rest of the range. The default is 0.
 */
void range_lock_let_pass(struct range_lock *l, uint64_t passes);

/*
 * Hold [offset, offset + length), in bytes; the sum need not fit 64 bits, and a length of 0
 * conflicts with nothing. Yields while there is a conflict. A task must not ask for a range that
 * conflicts with one of its own.
 */
void co_range_lock(struct range_lock *l, struct range_entry *e, uint64_t offset, uint64_t length,
                   bool exclusive);

/* As co_range_lock(), but false, and nothing is held, if the entry would have to wait. */
bool range_trylock(struct range_lock *l, struct range_entry *e, uint64_t offset, uint64_t length,
                   bool exclusive);

/* Release an entry that was granted. Its memory is the caller's again. */
void range_unlock(struct range_lock *l, struct range_entry *e);

#endif
