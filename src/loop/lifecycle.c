/* SPDX-License-Identifier: Apache-2.0 */
/* The reactors of the process: which engine they use, and how they begin and end. */
#include <assert.h>
#include <errno.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>

#include "base/log.h"
#include "loop/internal.h"
#include "trace/trace.h"

/* Both changed by the main thread only. */
static struct reactor *reactors[REACTOR_MAX];
static const struct loop_engine *default_engine;

static atomic_bool main_quit;

struct reactor *reactor_main(void)
{
    return reactors[0];
}

struct reactor *reactor_at(unsigned index)
{
    return reactors[index];
}

unsigned reactor_index(const struct reactor *reactor)
{
    return reactor->index;
}

struct co_home *reactor_home(struct reactor *reactor)
{
    return &reactor->home;
}

const char *reactor_engine(void)
{
    return default_engine ? default_engine->name : "none";
}

/* Choose the engine of the main reactor, and make it a reactor. 0 or -errno. */
static int init_engine(struct reactor *reactor, struct error *err)
{
    const char *wanted = getenv("TIDEMARK_LOOP");
    int r;

    if (wanted && strcmp(wanted, "epoll") != 0 && strcmp(wanted, "io_uring") != 0) {
        return error_set(err, EINVAL, "TIDEMARK_LOOP is '%s', expected 'io_uring' or 'epoll'",
                         wanted);
    }
    if (!wanted || strcmp(wanted, "io_uring") == 0) {
        r = reactor_init(reactor, &loop_engine_uring);
        if (r == 0 || wanted) {
            return r == 0 ? 0 : error_set_errno(err, -r, "io_uring cannot be used");
        }
        log_debug("io_uring cannot be used (%s): using epoll", strerror(-r));
    }
    r = reactor_init(reactor, &loop_engine_epoll);
    return r == 0 ? 0 : error_set_errno(err, -r, "Neither io_uring nor epoll can be used");
}

int reactor_init_main(struct error *err)
{
    struct reactor *reactor = calloc(1, sizeof(*reactor));
    int r;

    assert(!reactors[0]);
    if (!reactor) {
        return error_set(err, ENOMEM, "Out of memory for the main reactor");
    }
    signal(SIGPIPE, SIG_IGN);
    signal(SIGXFSZ, SIG_IGN); /* so that a write beyond `ulimit -f` fails with EFBIG */
    loop_file_io_init();
    trace_thread_begin("main");
    r = init_engine(reactor, err);
    if (r < 0) {
        free(reactor);
        return r;
    }
    reactor->thread = pthread_self();
    default_engine = reactor->engine;
    atomic_store(&main_quit, false);
    reactors[0] = reactor;
    return 0;
}

void reactor_exit_main(void)
{
    struct reactor *reactor = reactors[0];

    assert(reactor && reactor == reactor_current() && !co_self());
    for (unsigned i = 1; i < REACTOR_MAX; i++) {
        if (reactors[i]) {
            reactor_destroy(reactors[i]);
        }
    }
    loop_rescue_stop();
    loop_offload_stop();
    reactor_release(reactor);
    reactors[0] = NULL;
    default_engine = NULL;
    free(reactor);
}

/* How the new thread reports to reactor_create(). */
struct reactor_startup {
    struct reactor *reactor;
    /* guards the rest */
    pthread_mutex_t lock;
    pthread_cond_t changed;
    bool finished;
    int result;
};

static int reactor_init_thread(struct reactor *reactor)
{
    int r = reactor_init(reactor, default_engine);

    if (r < 0 && default_engine != &loop_engine_epoll) {
        /* The kernel may limit the number or the memory of rings. */
        r = reactor_init(reactor, &loop_engine_epoll);
    }
    return r;
}

static void *reactor_thread(void *arg)
{
    struct reactor_startup *startup = arg;
    struct reactor *reactor = startup->reactor;
    int r;

    pthread_setname_np(pthread_self(), reactor->name);
    trace_thread_begin(reactor->name);
    loop_thread_set_priority(reactor);
    r = reactor_init_thread(reactor);

    pthread_mutex_lock(&startup->lock);
    startup->result = r;
    startup->finished = true;
    pthread_cond_signal(&startup->changed);
    pthread_mutex_unlock(&startup->lock);
    if (r < 0) {
        return NULL;
    }

    loop_rescue_serve(reactor, default_engine);
    return NULL;
}

/* Start the thread of a reactor, and wait until the reactor is ready. 0 or -errno. */
static int start_reactor_thread(struct reactor *reactor)
{
    struct reactor_startup startup = {.reactor = reactor};
    int r;

    pthread_mutex_init(&startup.lock, NULL);
    pthread_cond_init(&startup.changed, NULL);
    r = loop_thread_start(&reactor->thread, reactor_thread, &startup);
    if (r == 0) {
        pthread_mutex_lock(&startup.lock);
        while (!startup.finished) {
            pthread_cond_wait(&startup.changed, &startup.lock);
        }
        r = startup.result;
        pthread_mutex_unlock(&startup.lock);
        if (r < 0) {
            pthread_join(reactor->thread, NULL);
        }
    }
    pthread_cond_destroy(&startup.changed);
    pthread_mutex_destroy(&startup.lock);
    return r;
}

static int create_reactor(const char *name, bool is_background, uint64_t slice_ns,
                          struct reactor **ret_reactor, struct error *err)
{
    struct reactor *reactor;
    unsigned index = 1;
    int r;

    assert(reactor_current() && reactor_current() == reactors[0]);
    while (index < REACTOR_MAX && reactors[index]) {
        index++;
    }
    if (index == REACTOR_MAX) {
        return error_set(err, EAGAIN, "Reactor '%s' not started: %d reactors exist, the maximum",
                         name, REACTOR_MAX);
    }
    reactor = calloc(1, sizeof(*reactor));
    if (!reactor) {
        return error_set(err, ENOMEM, "Out of memory for reactor '%s'", name);
    }
    reactor->index = index;
    reactor->is_background = is_background;
    reactor->slice_ns = slice_ns;
    strncpy(reactor->name, name, sizeof(reactor->name) - 1);
    r = start_reactor_thread(reactor);
    if (r < 0) {
        free(reactor);
        return error_set_errno(err, -r, "Could not start reactor '%s'", name);
    }
    reactors[index] = reactor;
    *ret_reactor = reactor;
    return 0;
}

int reactor_create(const char *name, struct reactor **ret_reactor, struct error *err)
{
    return create_reactor(name, false, 0, ret_reactor, err);
}

int reactor_create_background(const char *name, uint64_t slice_ns, struct reactor **ret_reactor,
                              struct error *err)
{
    return create_reactor(name, true, slice_ns, ret_reactor, err);
}

static void co_destroy_reactor(void *arg)
{
    struct reactor *reactor = arg;

    reactor->destroyer = co_self();
    atomic_store(&reactor->stop, true);
    reactor_kick(reactor);
    co_suspend();
    pthread_join(reactor->thread, NULL);
    reactors[reactor->index] = NULL;
    free(reactor);
}

void reactor_destroy(struct reactor *reactor)
{
    assert(reactor_current() && reactor_current() == reactors[0] && reactor != reactor_current());
    if (co_self()) {
        co_destroy_reactor(reactor);
    } else if (reactor_run_until_done(co_destroy_reactor, reactor) < 0) {
        log_error("Out of memory to stop reactor '%s'", reactor->name);
        abort();
    }
}

int reactor_spawn(struct reactor *reactor, co_entry *entry, void *arg)
{
    return co_spawn(&reactor->home, entry, arg);
}

struct run_until_done {
    co_entry *entry;
    void *arg;
    bool done;
};

static void co_run_until_done(void *opaque)
{
    struct run_until_done *run = opaque;

    run->entry(run->arg);
    run->done = true;
    reactor_kick(reactor_current());
}

int reactor_run_until_done(co_entry *entry, void *arg)
{
    struct reactor *reactor = reactor_current();
    struct run_until_done run = {.entry = entry, .arg = arg};
    int r;

    assert(reactor && reactor == reactors[0] && !co_self());
    r = co_spawn(&reactor->home, co_run_until_done, &run);
    if (r < 0) {
        return r;
    }
    reactor->home.turn_ns = loop_now_ns();
    while (!run.done) {
        reactor_turn(reactor);
    }
    return 0;
}

void reactor_run_main(void)
{
    struct reactor *reactor = reactor_current();

    assert(reactor && reactor == reactors[0] && !co_self());
    reactor->home.turn_ns = loop_now_ns();
    while (!atomic_exchange(&main_quit, false)) {
        reactor_turn(reactor);
    }
}

void reactor_quit_main(void)
{
    atomic_store(&main_quit, true);
    if (reactors[0]) {
        reactor_kick(reactors[0]);
    }
}

void loop_co_call_on(struct reactor *reactor, co_entry *entry, void *arg)
{
    assert(co_self());
    if (reactor == reactor_current()) {
        entry(arg);
    } else {
        co_call_at(&reactor->home, entry, arg);
    }
}
