/* SPDX-License-Identifier: Apache-2.0 */
/* Coroutines that work at the same time on several reactors, the first of which is the main one. */
#ifndef TIDEMARK_TESTS_WORKERS_H
#define TIDEMARK_TESTS_WORKERS_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "co/sync.h"
#include "loop/loop.h"

#define REACTORS_MAX 8u

static struct reactor *reactors[REACTORS_MAX];
static struct co_group group; /* each worker ends with co_group_done() of it */

/* What run_workers() starts: `count` coroutines, spread over the first `reactor_count` reactors. */
struct crew {
    co_entry *entry; /* its argument is the worker's number */
    unsigned count, reactor_count;
};

static inline int start_reactors(unsigned count)
{
    assert_true(count <= REACTORS_MAX);
    if (reactor_init_main(NULL) < 0) {
        return -1;
    }
    reactors[0] = reactor_main();
    for (unsigned i = 1; i < count; i++) {
        if (reactor_create("stress", &reactors[i], NULL) < 0) {
            return -1;
        }
    }
    return 0;
}

/* Fails if a coroutine is left. */
static inline int stop_reactors(void **state)
{
    reactor_exit_main();
    return (int)co_count();
}

static inline void co_run_workers(void *arg)
{
    const struct crew *crew = arg;

    co_group_init(&group);
    for (uintptr_t i = 0; i < crew->count; i++) {
        co_group_add(&group);
        assert_int_equal(reactor_spawn(reactors[i % crew->reactor_count], crew->entry, (void *)i),
                         0);
    }
    co_group_wait(&group);
    co_group_destroy(&group);
}

/* Returns when all have ended. */
static inline void run_workers(struct crew crew)
{
    assert_int_equal(reactor_run_until_done(co_run_workers, &crew), 0);
}

#endif
