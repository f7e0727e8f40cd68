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

unsigned reactor_index(const struct reactor *r)
{
    return r->index;
}

struct co_home *reactor_home(struct reactor *r)
{
    return &r->home;
}

const char *reactor_engine(void)
{
    return default_engine ? default_engine->name : "none";
}

static int init_engine(struct reactor *r, struct error *err)
{
    const char *wanted = getenv("TIDEMARK_LOOP");
    int ret;

    if (wanted && strcmp(wanted, "epoll") != 0 && strcmp(wanted, "io_uring") != 0) {
        return error_set(err, EINVAL, "TIDEMARK_LOOP is '%s', expected 'io_uring' or 'epoll'",
                         wanted);
    }
    if (!wanted || strcmp(wanted, "io_uring") == 0) {
        ret = reactor_init(r, &loop_engine_uring);
        if (ret == 0 || wanted) {
            return ret == 0 ? 0 : error_set_errno(err, -ret, "io_uring cannot be used");
        }
        log_debug("io_uring cannot be used (%s): using epoll", strerror(-ret));
    }
    ret = reactor_init(r, &loop_engine_epoll);
    return ret == 0 ? 0 : error_set_errno(err, -ret, "Neither io_uring nor epoll can be used");
}

int reactor_init_main(struct error *err)
{
    struct reactor *r = calloc(1, sizeof(*r));
    int ret;

    assert(!reactors[0]);
    if (!r) {
        return error_set(err, ENOMEM, "No memory for the main reactor");
    }
    signal(SIGPIPE, SIG_IGN);
    signal(SIGXFSZ, SIG_IGN); /* a write beyond `ulimit -f` fails with -EFBIG instead */
    loop_file_io_init();
    trace_thread_begin("main");
    ret = init_engine(r, err);
    if (ret < 0) {
        free(r);
        return ret;
    }
    r->thread = pthread_self();
    default_engine = r->engine;
    atomic_store(&main_quit, false);
    reactors[0] = r;
    return 0;
}

void reactor_exit_main(void)
{
    struct reactor *r = reactors[0];

    assert(r && r == reactor_current() && !co_self());
    for (unsigned i = 1; i < REACTOR_MAX; i++) {
        if (reactors[i]) {
            reactor_destroy(reactors[i]);
        }
    }
    loop_rescue_stop();
    loop_offload_stop();
    reactor_release(r);
    reactors[0] = NULL;
    default_engine = NULL;
    free(r);
}

/* What reactor_create() and the new thread tell each other. */
struct startup {
    struct reactor *r;
    pthread_mutex_t lock; /* guards the rest */
    pthread_cond_t changed;
    bool finished;
    int result;
};

static int reactor_init_thread(struct reactor *r)
{
    int ret = reactor_init(r, default_engine);

    if (ret < 0 && default_engine != &loop_engine_epoll) {
        /* Rings may be limited in number or memory. */
        ret = reactor_init(r, &loop_engine_epoll);
    }
    return ret;
}

static void *reactor_thread(void *arg)
{
    struct startup *startup = arg;
    struct reactor *r = startup->r;
    int ret;

    pthread_setname_np(pthread_self(), r->name);
    trace_thread_begin(r->name);
    ret = reactor_init_thread(r);

    pthread_mutex_lock(&startup->lock);
    startup->result = ret;
    startup->finished = true;
    pthread_cond_signal(&startup->changed);
    pthread_mutex_unlock(&startup->lock);
    if (ret < 0) {
        return NULL;
    }

    loop_rescue_serve(r, default_engine);
    return NULL;
}

static int start_thread(struct reactor *r)
{
    struct startup startup = {.r = r};
    int ret;

    pthread_mutex_init(&startup.lock, NULL);
    pthread_cond_init(&startup.changed, NULL);
    ret = loop_thread_start(&r->thread, reactor_thread, &startup);
    if (ret == 0) {
        pthread_mutex_lock(&startup.lock);
        while (!startup.finished) {
            pthread_cond_wait(&startup.changed, &startup.lock);
        }
        ret = startup.result;
        pthread_mutex_unlock(&startup.lock);
        if (ret < 0) {
            pthread_join(r->thread, NULL);
        }
    }
    pthread_cond_destroy(&startup.changed);
    pthread_mutex_destroy(&startup.lock);
    return ret;
}

int reactor_create(const char *name, struct reactor **ret, struct error *err)
{
    struct reactor *r;
    unsigned index = 1;
    int result;

    assert(reactor_current() && reactor_current() == reactors[0]);
    while (index < REACTOR_MAX && reactors[index]) {
        index++;
    }
    if (index == REACTOR_MAX) {
        return error_set(err, EAGAIN, "Reactor '%s' would be one more than %d", name, REACTOR_MAX);
    }
    r = calloc(1, sizeof(*r));
    if (!r) {
        return error_set(err, ENOMEM, "No memory for reactor '%s'", name);
    }
    r->index = index;
    strncpy(r->name, name, sizeof(r->name) - 1);
    result = start_thread(r);
    if (result < 0) {
        free(r);
        return error_set_errno(err, -result, "Could not start reactor '%s'", name);
    }
    reactors[index] = r;
    *ret = r;
    return 0;
}

static void destroy_in_coroutine(void *arg)
{
    struct reactor *r = arg;

    r->destroyer = co_self();
    atomic_store(&r->stop, true);
    reactor_kick(r);
    co_suspend();
    pthread_join(r->thread, NULL);
    reactors[r->index] = NULL;
    free(r);
}

void reactor_destroy(struct reactor *r)
{
    assert(reactor_current() && reactor_current() == reactors[0] && r != reactor_current());
    if (co_self()) {
        destroy_in_coroutine(r);
    } else if (reactor_run_until_done(destroy_in_coroutine, r) < 0) {
        log_error("No memory to stop reactor '%s'", r->name);
        abort();
    }
}

int reactor_spawn(struct reactor *r, co_entry *entry, void *arg)
{
    return co_spawn(&r->home, entry, arg);
}

struct run_until_done {
    co_entry *entry;
    void *arg;
    bool done;
};

static void run_until_done_entry(void *opaque)
{
    struct run_until_done *run = opaque;

    run->entry(run->arg);
    run->done = true;
    reactor_kick(reactor_current());
}

int reactor_run_until_done(co_entry *entry, void *arg)
{
    struct reactor *r = reactor_current();
    struct run_until_done run = {.entry = entry, .arg = arg};
    int ret;

    assert(r && r == reactors[0] && !co_self());
    ret = co_spawn(&r->home, run_until_done_entry, &run);
    if (ret < 0) {
        return ret;
    }
    while (!run.done) {
        reactor_turn(r);
    }
    return 0;
}

void reactor_run_main(void)
{
    struct reactor *r = reactor_current();

    assert(r && r == reactors[0] && !co_self());
    while (!atomic_exchange(&main_quit, false)) {
        reactor_turn(r);
    }
}

void reactor_quit_main(void)
{
    atomic_store(&main_quit, true);
    if (reactors[0]) {
        reactor_kick(reactors[0]);
    }
}

void loop_co_call_on(struct reactor *r, co_entry *entry, void *arg)
{
    assert(co_self());
    if (r == reactor_current()) {
        entry(arg);
    } else {
        co_call_at(&r->home, entry, arg);
    }
}
