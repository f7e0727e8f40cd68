/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Reactors whose thread hangs in a system call.
 *
 * A write to the page cache takes microseconds, and a trip to another thread takes more; so it is made on the spot. But a
 * file system that is frozen, whose server is gone or whose disk stalls keeps the caller for as long as it likes, and
 * nothing interrupts it. Then the reactor is taken away from the thread that hangs: its coroutines, timers and
 * sockets go on on a spare one. The coroutine that made the call joins them when it returns.
 *
 *      reactor's thread                  watcher                           spare thread
 *      blocked_since: 0 -> now           looks every WATCH_NS              has prepared an engine
 *      call...                           longer than HANG_NS, and asleep:
 *                                        blocked_since: that -> LOST
 *                                        hands over the reactor            adopts the engine, wakes polls
 *                                        starts the next spare             and callers, 0 <- blocked_since
 *      ...returns: blocked_since         .                                 runs the reactor
 *      is not what was set: lost.        .                                 .
 *      When it is taken over:            .                                 .
 *      co_rejoin() --------------------------------------------------->    runs the coroutine
 *      completes file I/O of its ring
 *      ends
 *
 * The exchange of blocked_since decides who has the reactor; times never repeat, so a later call of another thread is not
 * taken for the own one.
 *
 * What can't be moved is file I/O in flight in the ring (engine_uring.c). So nothing is called on the spot while such
 * I/O of another file is in flight, nor outside the coroutines of a turn, nor on the main reactor.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/log.h"
#include "loop/internal.h"
#include "trace/events.h"
#include "trace/trace.h"

/* A call that takes longer hangs, unless it is running. */
#define HANG_NS (10 * NS_PER_MS)
#define WATCH_NS INT64_C(5000000)
/* Looks without any call seen before the watcher sleeps until there is one. */
#define QUIET_LOOKS 200

static struct {
    pthread_mutex_t lock; /* guards all below */
    pthread_cond_t changed;
    struct list reactors;             /* of struct reactor, by rescue_link */
    const struct loop_engine *engine; /* of the spare thread */
    bool started;                     /* the watcher was */
    bool stopping;
    bool has_spare;         /* its thread was started, and waits or will */
    bool spare_ready;       /* it waits for a reactor */
    struct reactor *victim; /* for the spare thread */
    pthread_t watcher, spare;
} rescue = {
    .lock = PTHREAD_MUTEX_INITIALIZER,
    .changed = PTHREAD_COND_INITIALIZER,
    .reactors = LIST_INIT(rescue.reactors),
};

/* The watcher sleeps, and has to be told of the next call. */
static atomic_bool watcher_asleep;

/* --- the spare thread ------------------------------------------------------------------------------ */

static void take_over(struct reactor *reactor, void *engine_data)
{
    reactor_set_current(reactor);
    reactor->may_be_lost = false;
    reactor->called->hanging++;
    reactor->engine->adopt(reactor, engine_data);
    co_rescue(reactor->caller);

    pthread_mutex_lock(&rescue.lock);
    pthread_setname_np(reactor->thread, "hung-io");
    pthread_detach(reactor->thread);
    pthread_setname_np(pthread_self(), reactor->name);
    trace_thread_begin(reactor->name);
    reactor->thread = pthread_self();
    reactor->tid = gettid();
    atomic_store(&reactor->blocked_since, 0);
    reactor->is_moving = false;
    pthread_cond_broadcast(&rescue.changed);
    pthread_mutex_unlock(&rescue.lock);
}

static void serve(struct reactor *reactor);

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
        /* A reactor for which there was no ring. */
        engine->discard(data);
        data = NULL;
    }
    take_over(reactor, data);
    serve(reactor);
    return NULL;
}

static void start_spare_locked(void)
{
    rescue.spare_ready = false;
    rescue.has_spare =
        loop_thread_start(&rescue.spare, spare_thread, (void *)(uintptr_t)rescue.engine) == 0;
}

/* --- the watcher ------------------------------------------------------------------------------------- */

/* One that runs, or waits for a processor, does not hang. */
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

/* Whether a call was seen. */
static bool look_locked(void)
{
    int64_t now = loop_now_ns();
    struct reactor *reactor;
    bool seen = false;

    LIST_FOREACH (reactor, &rescue.reactors, rescue_link) {
        int64_t since = atomic_load(&reactor->blocked_since);

        seen = seen || since != 0;
        if (since > 0 && now - since > HANG_NS && rescue.spare_ready &&
            thread_sleeps(reactor->tid) &&
            atomic_compare_exchange_strong(&reactor->blocked_since, &since, REACTOR_LOST)) {
            log_debug("A file keeps a thread of reactor '%s' waiting: another one goes on",
                      reactor->name);
            reactor->is_moving = true;
            rescue.victim = reactor;
            rescue.spare_ready = false;
            pthread_cond_broadcast(&rescue.changed);
        }
    }
    return seen;
}

static void wait_locked(int64_t ns)
{
    struct timespec until = ns_to_timespec(loop_now_ns() + ns);

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
            wait_locked(WATCH_NS);
            continue;
        }
        /* Who begins a call sets the time before it looks here: one of us sees the other. */
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

/* --- the reactors ------------------------------------------------------------------------------------ */

static void watch(struct reactor *reactor, const struct loop_engine *spare)
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

static void unwatch(struct reactor *reactor)
{
    pthread_mutex_lock(&rescue.lock);
    if (reactor->is_rescued) {
        list_remove(&reactor->rescue_link);
    }
    pthread_mutex_unlock(&rescue.lock);
}

/* Until `reactor` ends, or the calling thread has lost it. */
static void serve(struct reactor *reactor)
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
    unwatch(reactor);
    reactor_release(reactor);
    co_wake(reactor->destroyer);
}

void loop_rescue_serve(struct reactor *reactor, const struct loop_engine *spare)
{
    watch(reactor, spare);
    serve(reactor);
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

void loop_hang_begin(struct reactor *reactor, struct file_system *fs, int64_t now_ns)
{
    reactor->called = fs;
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
    /* The new thread looks at what this one leaves behind. */
    pthread_mutex_lock(&rescue.lock);
    while (reactor->is_moving) {
        pthread_cond_wait(&rescue.changed, &rescue.lock);
    }
    pthread_mutex_unlock(&rescue.lock);
    reactor_set_current(NULL);
    co_rejoin();
    return false;
}
