/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The turn of a reactor, its run queue and its life.
 *
 * Sleep and wake. The inbox is one word: NULL, a chain of coroutines, or ASLEEP.
 *
 *      reactor, nothing to do:  NULL -> ASLEEP; if that fails there is something to do
 *      another thread:          anything -> chain with its coroutine in front; if it was
 *                               ASLEEP, ring the bell
 *      reactor, awake again:    anything -> NULL, and run the chain
 *
 * Each arrow is one read-modify-write, so a wake cannot fall between the look and the sleep.
 */
#include <assert.h>
#include <errno.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "base/counters.h"
#include "base/log.h"
#include "loop/internal.h"
#include "trace/trace.h"

_Static_assert(REACTOR_MAX <= COUNTERS_SHARDS, "a shard of counters for each reactor");

#define ASLEEP ((void *)1)

static _Thread_local struct reactor *this_reactor;

/* Both changed by the main thread only. */
static struct reactor *reactors[REACTOR_MAX];
static const struct loop_engine *default_engine;

static atomic_bool main_quit;

struct reactor *reactor_current(void)
{
    return this_reactor;
}

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

void reactor_set_current(struct reactor *r)
{
    this_reactor = r;
    counters_set_index(r ? r->index : COUNTERS_SHARDS);
}

const struct loop_engine *reactor_default_engine(void)
{
    return default_engine;
}

const char *reactor_engine(void)
{
    return default_engine ? default_engine->name : "none";
}

/* --- run queue */

static void ring_bell(struct reactor *r)
{
    ssize_t n;

    do {
        n = eventfd_write(r->bell, 1);
    } while (n < 0 && errno == EINTR);
}

static void enqueue(struct co_home *home, struct co *co)
{
    struct reactor *r = container_of(home, struct reactor, home);
    void *first;

    if (r == this_reactor) {
        list_append(r->giving_way ? &r->gave_way : &r->ready, co_link(co));
        r->giving_way = false;
        return;
    }
    first = atomic_load_explicit(&r->inbox, memory_order_relaxed);
    do {
        *co_queue_slot(co) = first == ASLEEP ? NULL : first;
    } while (!atomic_compare_exchange_weak(&r->inbox, &first, co));
    if (first == ASLEEP) {
        ring_bell(r);
    }
}

static void collect_inbox(struct reactor *r)
{
    struct list batch = LIST_INIT(batch);
    struct co *co;

    if (!atomic_load(&r->inbox) && !r->asleep) {
        return;
    }
    co = atomic_exchange(&r->inbox, NULL);
    if (r->asleep && co != ASLEEP) {
        r->bells_due++; /* who took the mark away rings, or is about to */
    }
    r->asleep = false;
    while (co && co != ASLEEP) {
        struct co *next = *co_queue_slot(co);

        list_prepend(&batch, co_link(co));
        co = next;
    }
    list_splice(&r->ready, &batch);
}

void reactor_silence_bell(struct reactor *r)
{
    uint64_t count;

    if (read(r->bell, &count, sizeof(count)) == sizeof(count)) {
        r->bells_heard += count;
    }
}

/* Wait for those who are about to ring: after this nobody touches the bell. */
static void await_bells(struct reactor *r)
{
    struct pollfd bell = {.fd = r->bell, .events = POLLIN};

    while (r->bells_heard < r->bells_due) {
        poll(&bell, 1, -1);
        reactor_silence_bell(r);
    }
}

/*
 * Have the reactor look around once more before it sleeps. Any thread, any signal handler; on its own thread one may come
 * between the decision to sleep and the sleep, which the bell then ends.
 */
static void kick(struct reactor *r)
{
    void *expected = ASLEEP;

    atomic_store(&r->kicked, true);
    if (atomic_compare_exchange_strong(&r->inbox, &expected, NULL)) {
        ring_bell(r);
    }
}

/* --- the turn */

static uint64_t next_random(struct reactor *r)
{
    r->random ^= r->random << 13;
    r->random ^= r->random >> 7;
    r->random ^= r->random << 17;
    return r->random;
}

void reactor_set_seed(struct reactor *r, uint64_t seed)
{
    assert(r == this_reactor);
    /* Spread, so that seeds 1, 2, 3 begin differently. */
    r->random = seed * 0x9e3779b97f4a7c15u;
}

/* In random order; one in four is put off to a later turn, to let completions come between. */
static void run_ready_at_random(struct reactor *r)
{
    struct list batch = LIST_INIT(batch);
    size_t count = 0;

    list_splice(&batch, &r->ready);
    for (struct list *l = batch.next; l != &batch; l = l->next) {
        count++;
    }
    for (; count > 0; count--) {
        struct list *l = batch.next;

        for (uint64_t skip = next_random(r) % count; skip > 0; skip--) {
            l = l->next;
        }
        list_remove(l);
        if (r->random != 0 && next_random(r) % 4 == 0) {
            list_append(&r->ready, l);
        } else {
            co_resume(co_from_link(l));
        }
    }
}

/* False when the thread has lost the reactor: it is not to touch it any more. */
static bool run_first_of_batch(struct reactor *r)
{
    struct list *l = r->batch.next;

    list_remove(l);
    r->may_be_lost = true;
    co_resume(co_from_link(l));
    if (r != this_reactor) {
        return false;
    }
    r->may_be_lost = false;
    return true;
}

static bool run_ready(struct reactor *r)
{
    list_splice(&r->batch, &r->ready);
    while (!list_is_empty(&r->batch)) {
        if (!run_first_of_batch(r)) {
            return false;
        }
    }
    return true;
}

/* --- those that gave way */

bool reactor_turn_expired(void)
{
    struct reactor *r = this_reactor;
    int64_t now;

    if (r->random) {
        return next_random(r) % 4 == 0;
    }
    now = loop_now_ns();
    if (r->asked_ns == 0) {
        r->asked_ns = now;
    }
    return now - r->asked_ns >= REACTOR_TURN_NS;
}

void loop_co_give_way(void)
{
    struct reactor *r = this_reactor;

    /* Chance decides about all that a seeded reactor runs. */
    r->giving_way = !r->random;
    co_reschedule();
}

/* One at least, or a busy reactor would starve them. Who gives way again waits for the next turn. */
static void run_gave_way(struct reactor *r)
{
    if (list_is_empty(&r->gave_way)) {
        return;
    }
    list_splice(&r->batch, &r->gave_way);
    r->asked_ns = loop_now_ns();
    do {
        if (!run_first_of_batch(r)) {
            return;
        }
    } while (!list_is_empty(&r->batch) && !reactor_turn_expired());
    /* Those that had no turn come first in the next one. */
    list_splice(&r->batch, &r->gave_way);
    list_splice(&r->gave_way, &r->batch);
}

/* --- deferred calls */

void reactor_deferred_init(struct reactor_deferred *d, void (*fn)(struct reactor_deferred *self))
{
    list_init(&d->link);
    d->fn = fn;
    d->queued = false;
}

void reactor_defer(struct reactor_deferred *d)
{
    if (!d->queued) {
        d->queued = true;
        list_append(&this_reactor->deferred, &d->link);
    }
}

/* What is deferred meanwhile waits for the next turn. */
static void run_deferred(struct reactor *r)
{
    struct list batch = LIST_INIT(batch);

    list_splice(&batch, &r->deferred);
    while (!list_is_empty(&batch)) {
        struct reactor_deferred *d = LIST_FIRST(&batch, struct reactor_deferred, link);

        list_remove(&d->link);
        d->queued = false;
        d->fn(d);
    }
}

static bool is_idle(struct reactor *r)
{
    return list_is_empty(&r->ready) && list_is_empty(&r->gave_way) && list_is_empty(&r->deferred);
}

static bool may_end(struct reactor *r)
{
    return atomic_load(&r->stop) && co_home_live(&r->home) == 0 && is_idle(r);
}

/* Whether the reactor may sleep; then everybody else knows that it does. */
static bool fall_asleep(struct reactor *r)
{
    void *expected = NULL;

    if (!is_idle(r) || may_end(r) ||
        !atomic_compare_exchange_strong(&r->inbox, &expected, ASLEEP)) {
        return false;
    }
    r->asleep = true;
    /* kick() sets the flag before it looks for ASLEEP: one of us sees the other. */
    return !atomic_load(&r->kicked);
}

static void turn(struct reactor *r)
{
    int64_t timeout = 0;

    r->asked_ns = 0;
    reactor_count(r, REACTOR_STAT_TURNS);
    if (r->random) {
        run_ready_at_random(r);
    } else if (!run_ready(r)) {
        return;
    }
    run_deferred(r);
    if (fall_asleep(r)) {
        timeout = loop_timers_next(r);
        reactor_count(r, REACTOR_STAT_SLEEPS);
    }
    atomic_store(&r->kicked, false);
    r->engine->turn(r, timeout);
    collect_inbox(r);
    loop_timers_run(r);
    run_gave_way(r);
}

/* --- life */

static int reactor_init(struct reactor *r, const struct loop_engine *engine)
{
    void *data;
    int ret;

    r->home.enqueue = enqueue;
    r->engine = engine;
    list_init(&r->ready);
    list_init(&r->batch);
    list_init(&r->gave_way);
    list_init(&r->deferred);
    list_init(&r->crowd);
    r->bell = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (r->bell < 0) {
        return -errno;
    }
    ret = engine->prepare(&data);
    if (ret < 0) {
        close(r->bell);
        return ret;
    }
    engine->adopt(r, data);
    reactor_set_current(r);
    return 0;
}

static void reactor_release(struct reactor *r)
{
    r->engine->discard(r->engine_data);
    await_bells(r);
    close(r->bell);
    loop_timers_release(r);
    co_thread_cleanup();
    reactor_set_current(NULL);
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

    assert(r && r == this_reactor && !co_self());
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

int loop_thread_start(pthread_t *thread, void *(*fn)(void *arg), void *arg)
{
    sigset_t all, old;
    int ret;

    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &old);
    ret = pthread_create(thread, NULL, fn, arg);
    pthread_sigmask(SIG_SETMASK, &old, NULL);
    return -ret;
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

    loop_rescue_watch(r);
    reactor_serve(r);
    return NULL;
}

void reactor_serve(struct reactor *r)
{
    const struct loop_engine *engine = r->engine;
    void *data = r->engine_data;

    while (!may_end(r)) {
        turn(r);
        if (r != this_reactor) {
            engine->abandon(data);
            co_thread_cleanup();
            return;
        }
    }
    loop_rescue_unwatch(r);
    reactor_release(r);
    co_wake(r->destroyer);
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

    assert(this_reactor && this_reactor == reactors[0]);
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
    kick(r);
    co_suspend();
    pthread_join(r->thread, NULL);
    reactors[r->index] = NULL;
    free(r);
}

void reactor_destroy(struct reactor *r)
{
    assert(this_reactor && this_reactor == reactors[0] && r != this_reactor);
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
    kick(this_reactor);
}

int reactor_run_until_done(co_entry *entry, void *arg)
{
    struct reactor *r = this_reactor;
    struct run_until_done run = {.entry = entry, .arg = arg};
    int ret;

    assert(r && r == reactors[0] && !co_self());
    ret = co_spawn(&r->home, run_until_done_entry, &run);
    if (ret < 0) {
        return ret;
    }
    while (!run.done) {
        turn(r);
    }
    return 0;
}

void reactor_run_main(void)
{
    struct reactor *r = this_reactor;

    assert(r && r == reactors[0] && !co_self());
    while (!atomic_exchange(&main_quit, false)) {
        turn(r);
    }
}

void reactor_quit_main(void)
{
    atomic_store(&main_quit, true);
    if (reactors[0]) {
        kick(reactors[0]);
    }
}

void loop_co_call_on(struct reactor *r, co_entry *entry, void *arg)
{
    assert(co_self());
    if (r == this_reactor) {
        entry(arg);
    } else {
        co_call_at(&r->home, entry, arg);
    }
}
