/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Locks for coroutines. All of them work between coroutines of different threads, and all are
 * FIFO: the lock is handed to the first waiter, so nobody starves. A coroutine may hold one across
 * a yield. All "co_" functions here may yield and may be called only in a coroutine; the others
 * don't yield and may be called anywhere. No spurious wake-ups, except where said.
 */
#ifndef TIDEMARK_CO_SYNC_H
#define TIDEMARK_CO_SYNC_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "base/list.h"
#include "base/range_index.h"
#include "co/co.h"

/* A queue of suspended coroutines. Guarded by a lock of its owner. */
struct co_queue {
    struct list waiters;
};

void co_queue_init(struct co_queue *q);
bool co_queue_is_empty(const struct co_queue *q);
/* Suspend on `q`. `guard` is held on entry, released while suspended, and NOT held on return. */
void co_queue_wait_release(struct co_queue *q, pthread_mutex_t *guard);
/* Wake the first waiter; false if there was none. The owner's lock is held. */
bool co_queue_wake_one(struct co_queue *q);
void co_queue_wake_all(struct co_queue *q);

/* Mutual exclusion. An uncontended lock or unlock is one atomic operation. */
struct co_mutex {
    atomic_uint state;     /* 0 free, 1 held, 2 held and there may be waiters */
    pthread_mutex_t guard; /* guards waiters */
    struct co_queue waiters;
    struct co *_Atomic holder; /* for assertions */
};

void co_mutex_init(struct co_mutex *m);
void co_mutex_destroy(struct co_mutex *m);
void co_mutex_lock(struct co_mutex *m);
bool co_mutex_trylock(struct co_mutex *m);
void co_mutex_unlock(struct co_mutex *m);
/* Whether the calling coroutine holds it: for assertions in `_locked` functions. */
bool co_mutex_is_held(struct co_mutex *m);

/* Many readers or one writer. Waiting writers keep later readers waiting (FIFO). */
struct co_rwlock {
    pthread_mutex_t guard; /* guards all below */
    int readers;           /* holders; -1 while a writer holds it */
    struct list waiters;   /* of struct rwlock_waiter, oldest first */
};

void co_rwlock_init(struct co_rwlock *l);
void co_rwlock_destroy(struct co_rwlock *l);
void co_rwlock_rdlock(struct co_rwlock *l);
void co_rwlock_wrlock(struct co_rwlock *l);
void co_rwlock_unlock(struct co_rwlock *l);

/* A condition: wait releases the mutex while suspended and holds it again on return. */
struct co_cond {
    pthread_mutex_t guard; /* guards waiters */
    struct co_queue waiters;
};

void co_cond_init(struct co_cond *c);
void co_cond_destroy(struct co_cond *c);
void co_cond_wait(struct co_cond *c, struct co_mutex *m);
/* The mutex that the waiters used should be held, else a wake-up can be missed. Any thread, also
 * outside a coroutine. */
void co_cond_signal(struct co_cond *c);
void co_cond_broadcast(struct co_cond *c);

/* A counting gate for work in flight: at most `limit` units are taken at a time. */
struct co_semaphore {
    pthread_mutex_t guard; /* guards all below */
    int64_t available;
    struct list waiters; /* of struct semaphore_waiter, oldest first */
};

void co_semaphore_init(struct co_semaphore *s, int64_t limit);
void co_semaphore_destroy(struct co_semaphore *s);
void co_semaphore_take(struct co_semaphore *s, int64_t units);
void co_semaphore_give(struct co_semaphore *s, int64_t units);

/*
 * Waiting for a group of coroutines: add before each is spawned, done at its end, wait for all.
 * Any thread may call add and done.
 */
struct co_group {
    pthread_mutex_t guard; /* guards all below */
    size_t running;
    struct co_queue waiters;
};

void co_group_init(struct co_group *g);
void co_group_destroy(struct co_group *g);
void co_group_add(struct co_group *g);
void co_group_done(struct co_group *g);
void co_group_wait(struct co_group *g);

/*
 * Byte ranges held by requests: an exclusive entry waits for every overlapping entry, a shared one
 * only for overlapping exclusive ones. Entries are granted in the order they were asked for where
 * they overlap. The entry is memory of the caller (usually on its stack) from lock to unlock.
 */
struct range_lock {
    pthread_mutex_t guard;      /* guards entries */
    struct range_index entries; /* of struct range_entry */
    uint64_t passes;            /* set before first use */
};

struct range_entry {
    struct range_item item;
    bool exclusive, granted;
    struct co_queue blocked; /* entries' owners that wait for this one */
};

void range_lock_init(struct range_lock *l);
void range_lock_destroy(struct range_lock *l);
/*
 * From now on (before the first entry), one that waits does not stop the next `passes` later ones, as far as these overlap
 * none that is granted: a request that is held up at one place then bars nobody from the others that it wants.
 */
void range_lock_let_pass(struct range_lock *l, uint64_t passes);
void co_range_lock(struct range_lock *l, struct range_entry *e, uint64_t offset, uint64_t length,
                   bool exclusive);
/* As co_range_lock(), but false (and nothing held) if it would have to wait. Does not yield. */
bool range_trylock(struct range_lock *l, struct range_entry *e, uint64_t offset, uint64_t length,
                   bool exclusive);
void range_unlock(struct range_lock *l, struct range_entry *e);

#endif
