/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Queue, mutex, condition, semaphore, group. Common to all: a release chooses the waiters under the
 * guard, and wakes them after it has released the guard, since a woken coroutine may destroy the
 * lock at once. For the same reason a destroy function takes the guard: after that, no other thread
 * is about to release it.
 */
#include "co/sync.h"

#include <assert.h>

#include "co/internal.h"
#include "co/wake_list.h"

static void guard_destroy(pthread_mutex_t *guard)
{
    pthread_mutex_lock(guard);
    pthread_mutex_unlock(guard);
    pthread_mutex_destroy(guard);
}

/* --- queue */

void co_queue_init(struct co_queue *q)
{
    list_init(&q->waiters);
}

bool co_queue_is_empty(const struct co_queue *q)
{
    return list_is_empty(&q->waiters);
}

void co_queue_wait_release(struct co_queue *q, pthread_mutex_t *guard)
{
    struct co *self = co_running();

    assert(self);
    list_append(&q->waiters, &self->link);
    pthread_mutex_unlock(guard);
    co_suspend();
}

void co_queue_wait_for_release(struct co_queue *q, pthread_mutex_t *guard, const char *what,
                               const char *object, int fd)
{
    struct co *task = co_running()->task;
    struct co_wait wait = {.what = what, .object = object, .fd = fd, .outer = task->wait};

    task->wait = &wait;
    co_queue_wait_release(q, guard);
    task->wait = wait.outer;
}

static struct co *queue_pop(struct co_queue *q)
{
    struct list *link = q->waiters.next;

    if (link == &q->waiters) {
        return NULL;
    }
    list_remove(link);
    return co_from_link(link);
}

void co_queue_wake_all(struct co_queue *q)
{
    co_wake_list(&q->waiters);
}

/*
 * --- mutex
 *
 *      state        event                        next state
 *      0 free       lock                         1
 *      1 held       unlock                       0
 *                   lock by another task         2; that task waits
 *      2 waiters    unlock with 1 waiter         1; the waiter holds the mutex
 *                   unlock with more waiters     2; the first waiter holds the mutex
 *
 * State 2 is entered and left under the guard, so a task that sees 2 under the guard finds the
 * waiters. The state never becomes 0 while a task waits, so no newcomer can cut in.
 */

void co_mutex_init(struct co_mutex *m)
{
    atomic_init(&m->state, 0);
    pthread_mutex_init(&m->guard, NULL);
    co_queue_init(&m->waiters);
    atomic_init(&m->holder, NULL);
}

void co_mutex_destroy(struct co_mutex *m)
{
    assert(atomic_load(&m->state) == 0);
    guard_destroy(&m->guard);
}

static const struct co *mutex_holder(const struct co_mutex *m)
{
    return atomic_load_explicit(&m->holder, memory_order_relaxed);
}

static void mutex_set_holder(struct co_mutex *m, struct co *co)
{
    atomic_store_explicit(&m->holder, co, memory_order_relaxed);
}

static void co_mutex_lock_slow(struct co_mutex *m, const struct co *self, const void *caller)
{
    int64_t since = co_stall_now(self);

    pthread_mutex_lock(&m->guard);
    if (atomic_exchange(&m->state, 2) == 0) {
        /* Released in the meantime, hence there are no waiters. */
        atomic_store(&m->state, 1);
        pthread_mutex_unlock(&m->guard);
        return;
    }
    co_queue_wait_for_release(&m->waiters, &m->guard, "a lock", NULL, -1);
    co_stall_check_now(self, since, "mutex", m, caller);
}

void co_mutex_lock(struct co_mutex *m)
{
    struct co *self = co_running();
    unsigned expected = 0;

    assert(self && mutex_holder(m) != self->task);
    if (!atomic_compare_exchange_strong(&m->state, &expected, 1)) {
        co_mutex_lock_slow(m, self, __builtin_return_address(0));
    }
    mutex_set_holder(m, self->task);
}

bool co_mutex_trylock(struct co_mutex *m)
{
    unsigned expected = 0;

    if (!atomic_compare_exchange_strong(&m->state, &expected, 1)) {
        return false;
    }
    mutex_set_holder(m, co_running()->task);
    return true;
}

static void mutex_unlock_slow(struct co_mutex *m)
{
    struct co *next;

    pthread_mutex_lock(&m->guard);
    next = queue_pop(&m->waiters);
    atomic_store(&m->state, !next ? 0 : co_queue_is_empty(&m->waiters) ? 1 : 2);
    pthread_mutex_unlock(&m->guard);
    if (next) {
        co_wake(next);
    }
}

void co_mutex_unlock(struct co_mutex *m)
{
    unsigned expected = 1;

    assert(co_mutex_is_held(m));
    mutex_set_holder(m, NULL);
    if (!atomic_compare_exchange_strong(&m->state, &expected, 0)) {
        mutex_unlock_slow(m);
    }
}

bool co_mutex_is_held(const struct co_mutex *m)
{
    const struct co *self = co_running();

    return self && mutex_holder(m) == self->task;
}

void co_mutex_take_over(struct co_mutex *m)
{
    assert(mutex_holder(m));
    mutex_set_holder(m, co_running()->task);
}

/* --- condition */

void co_cond_init(struct co_cond *c)
{
    pthread_mutex_init(&c->guard, NULL);
    co_queue_init(&c->waiters);
}

void co_cond_destroy(struct co_cond *c)
{
    assert(co_queue_is_empty(&c->waiters));
    guard_destroy(&c->guard);
}

void co_cond_wait(struct co_cond *c, struct co_mutex *m)
{
    struct co_wait wait;

    pthread_mutex_lock(&c->guard);
    list_append(&c->waiters.waiters, co_link(co_self()));
    pthread_mutex_unlock(&c->guard);
    /* A signal from here on is not lost, since co_wake() may come before co_suspend(). */
    co_mutex_unlock(m);
    co_wait_begin(&wait, "another operation", NULL, -1);
    co_suspend();
    co_wait_end(&wait);
    co_mutex_lock(m);
}

void co_cond_signal(struct co_cond *c)
{
    struct co *co;

    pthread_mutex_lock(&c->guard);
    co = queue_pop(&c->waiters);
    pthread_mutex_unlock(&c->guard);
    if (co) {
        co_wake(co);
    }
}

void co_cond_broadcast(struct co_cond *c)
{
    struct list woken = LIST_INIT(woken);

    pthread_mutex_lock(&c->guard);
    list_splice(&woken, &c->waiters.waiters);
    pthread_mutex_unlock(&c->guard);
    co_wake_list(&woken);
}

/* --- semaphore */

/* On the stack of the waiting coroutine. */
struct semaphore_waiter {
    struct list link;
    struct co *co;
    int64_t units;
};

void co_semaphore_init(struct co_semaphore *s, int64_t limit)
{
    pthread_mutex_init(&s->guard, NULL);
    s->available = limit;
    list_init(&s->waiters);
}

void co_semaphore_destroy(struct co_semaphore *s)
{
    assert(list_is_empty(&s->waiters));
    guard_destroy(&s->guard);
}

void co_semaphore_take(struct co_semaphore *s, int64_t units)
{
    struct co *self = co_running();
    struct semaphore_waiter waiter = {.co = self, .units = units};
    struct co_wait wait;
    int64_t since;

    pthread_mutex_lock(&s->guard);
    if (list_is_empty(&s->waiters) && s->available >= units) {
        s->available -= units;
        pthread_mutex_unlock(&s->guard);
        return;
    }
    list_append(&s->waiters, &waiter.link);
    pthread_mutex_unlock(&s->guard);
    since = co_stall_now(self);
    co_wait_begin(&wait, "room among the operations in flight", NULL, -1);
    co_suspend();
    co_wait_end(&wait);
    co_stall_check_now(self, since, "semaphore", s, __builtin_return_address(0));
}

void co_semaphore_give(struct co_semaphore *s, int64_t units)
{
    struct list woken = LIST_INIT(woken);

    pthread_mutex_lock(&s->guard);
    s->available += units;
    while (!list_is_empty(&s->waiters)) {
        struct semaphore_waiter *w = LIST_FIRST(&s->waiters, struct semaphore_waiter, link);

        if (s->available < w->units) {
            break;
        }
        s->available -= w->units;
        list_remove(&w->link);
        list_append(&woken, co_link(w->co));
    }
    pthread_mutex_unlock(&s->guard);
    co_wake_list(&woken);
}

/* --- group */

void co_group_init(struct co_group *g)
{
    pthread_mutex_init(&g->guard, NULL);
    g->running = 0;
    co_queue_init(&g->waiters);
}

void co_group_destroy(struct co_group *g)
{
    assert(co_queue_is_empty(&g->waiters));
    guard_destroy(&g->guard);
}

void co_group_add(struct co_group *g)
{
    pthread_mutex_lock(&g->guard);
    g->running++;
    pthread_mutex_unlock(&g->guard);
}

void co_group_done(struct co_group *g)
{
    struct list woken = LIST_INIT(woken);

    pthread_mutex_lock(&g->guard);
    assert(g->running > 0);
    if (--g->running == 0) {
        list_splice(&woken, &g->waiters.waiters);
    }
    pthread_mutex_unlock(&g->guard);
    co_wake_list(&woken);
}

void co_group_wait(struct co_group *g)
{
    pthread_mutex_lock(&g->guard);
    if (g->running == 0) {
        pthread_mutex_unlock(&g->guard);
        return;
    }
    co_queue_wait_for_release(&g->waiters, &g->guard, "parts of the request", NULL, -1);
}
