/* SPDX-License-Identifier: Apache-2.0 */
#include <assert.h>

#include "co/internal.h"
#include "co/sync.h"
#include "co/wake_list.h"

/* On the stack of the waiting coroutine. */
struct rwlock_waiter {
    struct list link;
    struct co *co;
    bool writer;
};

void co_rwlock_init(struct co_rwlock *l)
{
    pthread_mutex_init(&l->guard, NULL);
    l->readers = 0;
    list_init(&l->waiters);
}

void co_rwlock_destroy(struct co_rwlock *l)
{
    /* The thread that unlocked last may be about to release the guard. */
    pthread_mutex_lock(&l->guard);
    assert(l->readers == 0 && list_is_empty(&l->waiters));
    pthread_mutex_unlock(&l->guard);
    pthread_mutex_destroy(&l->guard);
}

/* Take the lock for one more reader or a writer; false if the present holders exclude that. */
static bool rwlock_take_locked(struct co_rwlock *l, bool writer)
{
    MUTEX_ASSERT_HELD(&l->guard);
    if (l->readers < 0 || (writer && l->readers > 0)) {
        return false;
    }
    l->readers = writer ? -1 : l->readers + 1;
    return true;
}

/* Wait for the lock, with the guard held, which is released. */
static __attribute__((noinline)) void co_rwlock_wait_release(struct co_rwlock *l, bool writer,
                                                             const void *caller)
{
    struct co *self = co_running();
    struct rwlock_waiter waiter = {.co = self, .writer = writer};
    int64_t since = co_stall_now(self);
    struct co_wait wait;

    list_append(&l->waiters, &waiter.link);
    pthread_mutex_unlock(&l->guard);
    co_wait_begin(&wait, "a lock", NULL, -1);
    co_suspend(); /* co_rwlock_unlock() has taken the lock for it */
    co_wait_end(&wait);
    co_stall_check_now(self, since, "rwlock", l, caller);
}

static inline void co_rwlock_lock(struct co_rwlock *l, bool writer, const void *caller)
{
    assert(co_running());
    pthread_mutex_lock(&l->guard);
    if (list_is_empty(&l->waiters) && rwlock_take_locked(l, writer)) {
        pthread_mutex_unlock(&l->guard);
    } else {
        co_rwlock_wait_release(l, writer, caller);
    }
}

void co_rwlock_rdlock(struct co_rwlock *l)
{
    co_rwlock_lock(l, false, __builtin_return_address(0));
}

void co_rwlock_wrlock(struct co_rwlock *l)
{
    co_rwlock_lock(l, true, __builtin_return_address(0));
}

/* Give the lock to those that have waited longest, with the guard held, which is released. */
static __attribute__((noinline)) void rwlock_hand_over_release(struct co_rwlock *l)
{
    struct list woken = LIST_INIT(woken);

    while (!list_is_empty(&l->waiters)) {
        struct rwlock_waiter *w = LIST_FIRST(&l->waiters, struct rwlock_waiter, link);

        if (!rwlock_take_locked(l, w->writer)) {
            break;
        }
        list_remove(&w->link);
        list_append(&woken, co_link(w->co));
    }
    pthread_mutex_unlock(&l->guard);
    co_wake_list(&woken);
}

void co_rwlock_unlock(struct co_rwlock *l)
{
    pthread_mutex_lock(&l->guard);
    assert(l->readers != 0);
    l->readers = l->readers < 0 ? 0 : l->readers - 1;
    if (list_is_empty(&l->waiters)) {
        pthread_mutex_unlock(&l->guard);
    } else {
        rwlock_hand_over_release(l);
    }
}
