/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A stop of work that waits for a server: requests that it does not answer are given up, so that
 * the work ends. Main reactor.
 */
#ifndef TIDEMARK_BACKUP_GIVING_UP_H
#define TIDEMARK_BACKUP_GIVING_UP_H

#include <signal.h>
#include <stdbool.h>

#include "base/error.h"
#include "co/sync.h"
#include "loop/loop.h"

struct giving_up {
    volatile sig_atomic_t *stop; /* NULL: nobody stops the work */
    void (*co_give_up)(void *arg);
    void *arg;
    struct loop_timer timer;
    struct co_group group;
    bool runs; /* a call of co_give_up */
};

/*
 * From now on, once *stop is true, call `co_give_up(arg)` from time to time, in a coroutine: it
 * gives up the requests in flight (nbd_client_give_up(), block_co_give_up()). *g is filled in by
 * this. Does not yield.
 */
void giving_up_begin(struct giving_up *g, volatile sig_atomic_t *stop,
                     void (*co_give_up)(void *arg), void *arg);
/*
 * End that, and wait for a call under way. `r` is the result of the work: if that is a failure
 * after a stop, it becomes -EINTR, and `err` says `stopped`. Returns it. Yields.
 */
int giving_up_co_end(struct giving_up *g, int r, const char *stopped, struct error *err);

#endif
