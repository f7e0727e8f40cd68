/* SPDX-License-Identifier: Apache-2.0 */
/* The simplest scheduler, for tests of coroutines without reactors: a list, run by whoever asks. */
#ifndef TIDEMARK_TESTS_TEST_HOME_H
#define TIDEMARK_TESTS_TEST_HOME_H

#include <pthread.h>

#include "co/co.h"

struct test_home {
    struct co_home home;
    pthread_mutex_t lock; /* guards queue */
    struct list queue;
};

static inline void test_home_enqueue(struct co_home *home, struct co *co)
{
    struct test_home *h = container_of(home, struct test_home, home);

    pthread_mutex_lock(&h->lock);
    list_append(&h->queue, co_link(co));
    pthread_mutex_unlock(&h->lock);
}

static inline void test_home_init(struct test_home *h)
{
    *h = (struct test_home){.home.enqueue = test_home_enqueue};
    pthread_mutex_init(&h->lock, NULL);
    list_init(&h->queue);
}

/* Run one coroutine; false if none is runnable. */
static inline bool test_home_step(struct test_home *h)
{
    struct list *l;

    pthread_mutex_lock(&h->lock);
    l = h->queue.next;
    if (l == &h->queue) {
        pthread_mutex_unlock(&h->lock);
        return false;
    }
    list_remove(l);
    pthread_mutex_unlock(&h->lock);
    co_resume(co_from_link(l));
    return true;
}

/* Run until none is runnable. */
static inline void test_home_run(struct test_home *h)
{
    while (test_home_step(h)) {
    }
}

#endif
