/* SPDX-License-Identifier: Apache-2.0 */
/* Which reactor a thread runs, and threads that receive no signals. */
#include <errno.h>
#include <sched.h>
#include <signal.h>
#include <stdint.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "base/checked.h"
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

/* As sched_setattr(2) takes it; the C library has no call for it. */
struct scheduling {
    uint32_t size, policy;
    uint64_t flags;
    int32_t nice;
    uint32_t priority;
    uint64_t runtime, deadline, period;
};

/*
 * Make the calling thread as nice as that. In short slices it gives way soon to a thread that wakes
 * up; kernels before 6.12 ignore them. 0: the usual ones.
 */
static int set_niceness(int nice, uint64_t slice_ns)
{
    struct scheduling wanted = {
        .size = sizeof(wanted),
        .policy = SCHED_OTHER,
        .nice = nice,
        .runtime = slice_ns,
    };

    return (int)syscall(SYS_sched_setattr, 0, &wanted, 0);
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
    if (nice == -1 && errno != 0) {
        return;
    }
    nice = MIN(nice + BACKGROUND_NICER, 19);
    if (set_niceness(nice, reactor->slice_ns) < 0) {
        (void)setpriority(PRIO_PROCESS, self, nice);
    }
}
