/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What a coroutine waits for, for reports about requests that take long.
 *
 *      struct co_wait wait;
 *
 *      co_wait_begin(&wait, "a lock", NULL, -1);
 *      co_suspend();
 *      co_wait_end(&wait);
 *
 * Waits nest: a driver that waits for a copy says so, and the copy's own wait for a file is added
 * to it. They belong to the task (co_task()), and lie on its stack. A wait costs a few stores, and
 * is noted only where a coroutine is about to suspend.
 *
 * Nothing here yields.
 */
#ifndef TIDEMARK_CO_WAIT_H
#define TIDEMARK_CO_WAIT_H

#include "base/strbuf.h"
#include "co/co.h"

struct co_wait {
    /* A noun phrase that follows "waits for": "a lock", "a read of". Static. */
    const char *what;
    /* What it concerns, by name; lives until the end of the wait. NULL: nothing that has a name. */
    const char *object;
    /* A descriptor that it concerns; -1: none. */
    int fd;
    const struct co_wait *outer;
};

/* The running coroutine begins to wait. */
void co_wait_begin(struct co_wait *wait, const char *what, const char *object, int fd);
/* It has ended the wait that it began last. */
void co_wait_end(const struct co_wait *wait);
/*
 * Begin one for `co`, which is in a system call on a thread that its home has lost; on the home's
 * new thread. wait->fd is set already.
 */
void co_wait_begin_lost(struct co_wait *wait, struct co *co, const char *what);

/*
 * Append what `co` waits for, outermost first: "a copy to 'tmp', in it a write to '/images/a'".
 * False, and nothing is appended, where no wait is noted. On the thread of its home, while it is
 * suspended.
 */
bool co_wait_describe(const struct co *co, struct strbuf *text);

#endif
