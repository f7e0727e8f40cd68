/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Reactors whose thread hangs in a system call.
 *
 * A write to the page cache takes microseconds, and a switch to another thread takes longer, so the
 * reactor's thread makes the call. But if the file system is frozen, its server does not answer or
 * its disk stalls, the call takes any length of time, and nothing can interrupt it. Then the
 * reactor is moved to a spare thread, with its coroutines, timers and sockets. The coroutine that
 * made the call follows when the call returns.
 *
 *      reactor's thread              watcher                         spare thread
 *
 *                                                                    prepares an engine
 *      blocked_since: 0 -> now       looks every WATCH_NS
 *      call ...
 *                                    after HANG_NS, if it sleeps:
 *                                    blocked_since: now -> LOST
 *                                    hands over the reactor
 *                                    starts the next spare thread    adopts the reactor
 *                                                                    wakes polls and callers
 *                                                                    blocked_since: LOST -> 0
 *                                                                    runs the reactor
 *      ... returns: blocked_since
 *      is not the time it set
 *      waits until the spare thread
 *      has adopted the reactor
 *      co_rejoin() ----------------------------------------------->  runs the coroutine
 *      completes file I/O in its
 *      ring, and ends
 *
 * The exchange of blocked_since decides which thread has the reactor. Times never repeat, so a
 * thread does not take a later call of another thread for its own.
 *
 * File I/O in flight in the ring can't be moved (engine_uring.c). So no call is made inline while
 * such I/O of another file is in flight, nor outside the coroutines of a turn, nor on the main
 * reactor.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/debug.h"
#include "base/log.h"
#include "loop/internal.h"
#include "trace/events.h"
#include "trace/trace.h"

/* A call that takes longer, and sleeps, hangs. */
#define HANG_NS (10 * NS_PER_MS)
#define WATCH_NS (5 * NS_PER_MS)
/* After this many looks without a call in progress, the watcher sleeps until the next call. */
#define QUIET_LOOKS 200

static struct {
    /* guards all below */
    pthread_mutex_t lock;
    /* something below has changed */
    pthread_cond_t changed;
    /* of struct reactor, by rescue_link */
    struct list reactors;
    /* for which the spare thread prepares */
    const struct loop_engine *engine;
    /* the watcher was started */
    bool started;
    bool stopping;
    /* the spare thread was started */
    bool has_spare;
    /* the spare thread has prepared its engine, and waits for a reactor */
    bool spare_ready;
    /* the reactor that the spare thread adopts */
    struct reactor *victim;
    pthread_t watcher, spare;
} rescue = {
    .lock = PTHREAD_MUTEX_INITIALIZER,
    .changed = PTHREAD_COND_INITIALIZER,
    .reactors = LIST_INIT(rescue.reactors),
};

/* The watcher sleeps, and the next call has to wake it. */
static atomic_bool watcher_asleep;

/* --- the spare thread */

/* On the spare thread: make the reactor its own. */
static void adopt_reactor(struct reactor *reactor, void *engine_data)
{
    reactor_set_current(reactor);
    reactor->may_be_lost = false;
    reactor->called->hanging++;
    reactor->engine->adopt(reactor, engine_data);
    co_wait_begin_lost(reactor->called_wait, reactor->caller, "a write to");
    co_rescue(reactor->caller);

    pthread_mutex_lock(&rescue.lock);
    pthread_setname_np(reactor->thread, "hung-io");
    pthread_detach(reactor->thread);
    pthread_setname_np(pthread_self(), reactor->name);
    trace_thread_begin(reactor->name);
    loop_thread_set_priority(reactor);
    reactor->thread = pthread_self();
    reactor->tid = gettid();
    atomic_store(&reactor->blocked_since, 0);
    reactor->is_moving = false;
    pthread_cond_broadcast(&rescue.changed);
    pthread_mutex_unlock(&rescue.lock);
}

static void serve_reactor(struct reactor *reactor);

static void *spare_thread(void *arg)
{
    const struct loop_engine *engine = arg;
    struct reactor *reactor;
    void *data = NULL;
    int r = engine->prepare(&data);

    pthread_setname_np(pthread_self(), "spare");
    pthread_mutex_lock(&rescue.lock);
    rescue.spare_ready = r == 0;
    while (!rescue.victim && !rescue.stopping) {
        pthread_cond_wait(&rescue.changed, &rescue.lock);
    }
    reactor = rescue.victim;
    rescue.victim = NULL;
    rescue.has_spare = rescue.has_spare && !reactor;
    pthread_mutex_unlock(&rescue.lock);
    if (!reactor) {
        if (r == 0) {
            engine->discard(data);
        }
        return NULL;
    }
    if (reactor->engine != engine) {
        /* The kernel had no ring left for this reactor. */
        engine->discard(data);
        data = NULL;
    }
    adopt_reactor(reactor, data);
    serve_reactor(reactor);
    return NULL;
}

static void start_spare_locked(void)
{
    MUTEX_ASSERT_HELD(&rescue.lock);
    rescue.spare_ready = false;
    rescue.has_spare =
        loop_thread_start(&rescue.spare, spare_thread, (void *)(uintptr_t)rescue.engine) == 0;
}

/* --- the watcher */

/* Whether the thread neither runs nor waits for a processor. */
static bool thread_sleeps(int tid)
{
    char path[64], text[128];
    AUTO_CLOSE int fd = -1;
    const char *state;
    ssize_t n;

    snprintf(path, sizeof(path), "/proc/self/task/%d/stat", tid);
    fd = open(path, O_RDONLY | O_CLOEXEC);
    n = fd < 0 ? -1 : read(fd, text, sizeof(text) - 1);
    if (n <= 0) {
        return true;
    }
    text[n] = '\0';
    state = strrchr(text, ')');
    return !state || state[1] == '\0' || state[2] != 'R';
}

/* Hand over the reactor of a call that hangs. Returns whether any call is in progress. */
static bool look_locked(void)
{
    int64_t now = loop_now_ns();
    struct reactor *reactor;
    bool seen = false;

    MUTEX_ASSERT_HELD(&rescue.lock);
    LIST_FOREACH (reactor, &rescue.reactors, rescue_link) {
        int64_t since = atomic_load(&reactor->blocked_since);

        seen = seen || since != 0;
        if (since > 0 && now - since > HANG_NS && rescue.spare_ready &&
            thread_sleeps(reactor->tid) &&
            atomic_compare_exchange_strong(&reactor->blocked_since, &since, REACTOR_LOST)) {
            log_debug("A file blocks the thread of reactor '%s'; continuing on another thread",
                      reactor->name);
            trace_loop_thread_hangs(reactor->name);
            reactor->is_moving = true;
            rescue.victim = reactor;
            rescue.spare_ready = false;
            pthread_cond_broadcast(&rescue.changed);
        }
    }
    return seen;
}

static void wait_rescue_locked(int64_t ns)
{
    struct timespec until = ns_to_timespec(loop_now_ns() + ns);

    MUTEX_ASSERT_HELD(&rescue.lock);
    pthread_cond_clockwait(&rescue.changed, &rescue.lock, CLOCK_MONOTONIC, &until);
}

static void *watcher_thread(void *arg)
{
    unsigned quiet = 0;

    pthread_setname_np(pthread_self(), "watcher");
    pthread_mutex_lock(&rescue.lock);
    while (!rescue.stopping) {
        if (!rescue.has_spare) {
            start_spare_locked();
        }
        quiet = look_locked() ? 0 : quiet + 1;
        if (quiet < QUIET_LOOKS) {
            wait_rescue_locked(WATCH_NS);
            continue;
        }
        /*
         * A call sets blocked_since before it reads watcher_asleep, so one of the two sees the
         * other.
         */
        atomic_store(&watcher_asleep, true);
        while (!look_locked() && atomic_load(&watcher_asleep) && !rescue.stopping) {
            pthread_cond_wait(&rescue.changed, &rescue.lock);
        }
        atomic_store(&watcher_asleep, false);
        quiet = 0;
    }
    pthread_mutex_unlock(&rescue.lock);
    return arg;
}

static void wake_watcher(void)
{
    pthread_mutex_lock(&rescue.lock);
    if (atomic_load(&watcher_asleep)) {
        atomic_store(&watcher_asleep, false);
        pthread_cond_broadcast(&rescue.changed);
    }
    pthread_mutex_unlock(&rescue.lock);
}

/* --- the reactors */

static void watch_reactor(struct reactor *reactor, const struct loop_engine *spare)
{
    pthread_mutex_lock(&rescue.lock);
    rescue.engine = spare;
    if (!rescue.started) {
        rescue.started = loop_thread_start(&rescue.watcher, watcher_thread, NULL) == 0;
    }
    if (rescue.started) {
        list_append(&rescue.reactors, &reactor->rescue_link);
        reactor->is_rescued = true;
        reactor->tid = gettid();
    }
    pthread_mutex_unlock(&rescue.lock);
}

static void unwatch_reactor(struct reactor *reactor)
{
    pthread_mutex_lock(&rescue.lock);
    if (reactor->is_rescued) {
        list_remove(&reactor->rescue_link);
    }
    pthread_mutex_unlock(&rescue.lock);
}

/* Until `reactor` ends, or the calling thread has lost it. */
static void serve_reactor(struct reactor *reactor)
{
    const struct loop_engine *engine = reactor->engine;
    void *data = reactor->engine_data;

    while (!reactor_may_end(reactor)) {
        reactor_turn(reactor);
        if (reactor != reactor_current()) {
            engine->abandon(data);
            co_thread_cleanup();
            return;
        }
    }
    unwatch_reactor(reactor);
    reactor_release(reactor);
    co_wake(reactor->destroyer);
}

void loop_rescue_serve(struct reactor *reactor, const struct loop_engine *spare)
{
    watch_reactor(reactor, spare);
    serve_reactor(reactor);
}

void loop_rescue_stop(void)
{
    bool has_spare;

    pthread_mutex_lock(&rescue.lock);
    rescue.stopping = true;
    pthread_cond_broadcast(&rescue.changed);
    pthread_mutex_unlock(&rescue.lock);
    if (rescue.started) {
        pthread_join(rescue.watcher, NULL);
    }
    pthread_mutex_lock(&rescue.lock);
    has_spare = rescue.has_spare;
    pthread_mutex_unlock(&rescue.lock);
    if (has_spare) {
        pthread_join(rescue.spare, NULL);
    }
    rescue.started = rescue.stopping = rescue.has_spare = rescue.spare_ready = false;
}

bool loop_may_hang(struct reactor *reactor, int fd)
{
    return reactor->is_rescued && reactor->may_be_lost &&
           !reactor->engine->would_strand(reactor, fd);
}

void loop_hang_begin(struct reactor *reactor, struct file_system *fs, struct co_wait *wait,
                     int64_t now_ns)
{
    reactor->called = fs;
    reactor->called_wait = wait;
    reactor->caller = co_self();
    atomic_store(&reactor->blocked_since, now_ns);
    if (atomic_load(&watcher_asleep)) {
        wake_watcher();
    }
}

bool loop_co_hang_end(struct reactor *reactor, int64_t now_ns)
{
    int64_t expected = now_ns;

    if (atomic_compare_exchange_strong(&reactor->blocked_since, &expected, 0)) {
        return true;
    }
    /* Do not continue before the new thread has read what this one left. */
    pthread_mutex_lock(&rescue.lock);
    while (reactor->is_moving) {
        pthread_cond_wait(&rescue.changed, &rescue.lock);
    }
    pthread_mutex_unlock(&rescue.lock);
    trace_loop_thread_returns(reactor->name);
    reactor_set_current(NULL);
    co_rejoin();
    return false;
}
