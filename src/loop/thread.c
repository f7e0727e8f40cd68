/* SPDX-License-Identifier: Apache-2.0 */
/* Which reactor a thread runs, and threads that receive no signals. */
#include <errno.h>
#include <signal.h>
#include <sys/resource.h>
#include <unistd.h>

#include "base/counters.h"
#include "loop/internal.h"

_Static_assert(REACTOR_MAX <= COUNTERS_SHARDS, "a shard of counters for each reactor");

/* The kernel gives a tenth of the processor to what is nicer by that much. */
#define BACKGROUND_NICER 10

_Thread_local struct reactor *loop_this_reactor;

struct reactor *reactor_current(void)
{
    return loop_this_reactor;
}

void reactor_set_current(struct reactor *reactor)
{
    loop_this_reactor = reactor;
    counters_set_index(reactor ? reactor->index : COUNTERS_SHARDS);
}

int loop_thread_start(pthread_t *thread, void *(*fn)(void *arg), void *arg)
{
    sigset_t all, old;
    int r;

    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &old);
    r = pthread_create(thread, NULL, fn, arg);
    pthread_sigmask(SIG_SETMASK, &old, NULL);
    return -r;
}

void loop_thread_set_priority(const struct reactor *reactor)
{
    id_t self = (id_t)gettid();
    int nice;

    if (!reactor->is_background) {
        return;
    }
    errno = 0;
    nice = getpriority(PRIO_PROCESS, self);
    if (nice != -1 || errno == 0) {
        (void)setpriority(PRIO_PROCESS, self, nice + BACKGROUND_NICER);
    }
}
