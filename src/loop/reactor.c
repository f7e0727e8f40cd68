/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The turn of a reactor, and its run queue.
 *
 * Sleep and wake. The inbox is one word: NULL, a chain of coroutines, or ASLEEP.
 *
 *      who                      inbox                      and then
 *      reactor without work     NULL -> ASLEEP             sleep; on failure, there is work
 *      another thread           any -> chain with its      ring the bell if it was ASLEEP
 *                               coroutine in front
 *      reactor, awake again     any -> NULL                run the chain
 *
 * Each change is one read-modify-write, so a wake cannot come between the check and the sleep.
 */
#include <assert.h>
#include <errno.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "base/checked.h"
#include "loop/internal.h"

#define ASLEEP ((void *)1)

/* --- run queue */

static void ring_bell(struct reactor *reactor)
{
    ssize_t n;

    do {
        n = eventfd_write(reactor->bell, 1);
    } while (n < 0 && errno == EINTR);
}

static void reactor_enqueue(struct co_home *home, struct co *co)
{
    struct reactor *reactor = container_of(home, struct reactor, home);
    void *first;

    if (reactor == loop_this_reactor) {
        list_append(reactor->giving_way ? &reactor->gave_way : &reactor->ready, co_link(co));
        reactor->giving_way = false;
        return;
    }
    first = atomic_load_explicit(&reactor->inbox, memory_order_relaxed);
    do {
        *co_queue_slot(co) = first == ASLEEP ? NULL : first;
    } while (!atomic_compare_exchange_weak(&reactor->inbox, &first, co));
    if (first == ASLEEP) {
        ring_bell(reactor);
    }
}

static void collect_inbox(struct reactor *reactor)
{
    struct list batch = LIST_INIT(batch);
    struct co *co;

    if (!atomic_load(&reactor->inbox) && !reactor->asleep) {
        return;
    }
    co = atomic_exchange(&reactor->inbox, NULL);
    if (reactor->asleep && co != ASLEEP) {
        reactor->bells_due++; /* the thread that replaced the mark rings, or is about to */
    }
    reactor->asleep = false;
    while (co && co != ASLEEP) {
        struct co *next = *co_queue_slot(co);

        list_prepend(&batch, co_link(co));
        co = next;
    }
    list_splice(&reactor->ready, &batch);
}

void reactor_silence_bell(struct reactor *reactor)
{
    uint64_t count;

    if (read(reactor->bell, &count, sizeof(count)) == sizeof(count)) {
        reactor->bells_heard += count;
    }
}

/* Wait for the threads that are about to ring. No thread uses the bell afterwards. */
static void await_bells(struct reactor *reactor)
{
    struct pollfd bell = {.fd = reactor->bell, .events = POLLIN};

    while (reactor->bells_heard < reactor->bells_due) {
        poll(&bell, 1, -1);
        reactor_silence_bell(reactor);
    }
}

void reactor_kick(struct reactor *reactor)
{
    void *expected = ASLEEP;

    atomic_store(&reactor->kicked, true);
    if (atomic_compare_exchange_strong(&reactor->inbox, &expected, NULL)) {
        ring_bell(reactor);
    }
}

/* --- the turn */

static uint64_t next_random(struct reactor *reactor)
{
    reactor->random ^= reactor->random << 13;
    reactor->random ^= reactor->random >> 7;
    reactor->random ^= reactor->random << 17;
    return reactor->random;
}

void reactor_set_seed(struct reactor *reactor, uint64_t seed)
{
    assert(reactor == loop_this_reactor);
    /* Multiplied, so that the sequences of the seeds 1, 2, 3 begin differently. */
    reactor->random = seed * 0x9e3779b97f4a7c15u;
}

/*
 * Run the runnable coroutines in random order. One in four is left for a later turn, so that
 * completions can come between.
 */
static void run_ready_at_random(struct reactor *reactor)
{
    struct list batch = LIST_INIT(batch);
    size_t count = 0;

    list_splice(&batch, &reactor->ready);
    for (struct list *l = batch.next; l != &batch; l = l->next) {
        count++;
    }
    for (; count > 0; count--) {
        struct list *l = batch.next;

        for (uint64_t skip = next_random(reactor) % count; skip > 0; skip--) {
            l = l->next;
        }
        list_remove(l);
        if (reactor->random != 0 && next_random(reactor) % 4 == 0) {
            list_append(&reactor->ready, l);
        } else {
            co_resume(co_from_link(l));
        }
    }
}

/* False: the thread has lost the reactor, and must not use it any more. */
static bool run_first_of_batch(struct reactor *reactor)
{
    struct list *l = reactor->batch.next;

    list_remove(l);
    reactor->may_be_lost = true;
    co_resume(co_from_link(l));
    if (reactor != loop_this_reactor) {
        return false;
    }
    reactor->may_be_lost = false;
    return true;
}

/* Run the runnable coroutines in order. False as above. */
static bool run_ready(struct reactor *reactor)
{
    list_splice(&reactor->batch, &reactor->ready);
    while (!list_is_empty(&reactor->batch)) {
        if (!run_first_of_batch(reactor)) {
            return false;
        }
    }
    return true;
}

/* --- coroutines that gave way */

bool reactor_turn_expired(void)
{
    struct reactor *reactor = loop_this_reactor;
    int64_t now;

    if (reactor->random) {
        return next_random(reactor) % 4 == 0;
    }
    now = loop_now_ns();
    if (reactor->asked_ns == 0) {
        reactor->asked_ns = now;
    }
    return now - reactor->asked_ns >= REACTOR_TURN_NS;
}

void loop_co_give_way(void)
{
    struct reactor *reactor = loop_this_reactor;

    /* A seeded reactor chooses at random among all coroutines. */
    reactor->giving_way = !reactor->random;
    co_reschedule();
}

/*
 * Run coroutines that gave way, at least one, so that a busy reactor does not starve them. Those
 * that give way again wait for the next turn.
 */
static void run_gave_way(struct reactor *reactor)
{
    if (list_is_empty(&reactor->gave_way)) {
        return;
    }
    list_splice(&reactor->batch, &reactor->gave_way);
    reactor->asked_ns = loop_now_ns();
    do {
        if (!run_first_of_batch(reactor)) {
            return;
        }
    } while (!list_is_empty(&reactor->batch) && !reactor_turn_expired());
    /* Those that did not run come first in the next turn. */
    list_splice(&reactor->batch, &reactor->gave_way);
    list_splice(&reactor->gave_way, &reactor->batch);
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
        list_append(&loop_this_reactor->deferred, &d->link);
    }
}

/* Calls that are deferred in the meantime wait for the next turn. */
static void run_deferred(struct reactor *reactor)
{
    struct list batch = LIST_INIT(batch);

    list_splice(&batch, &reactor->deferred);
    while (!list_is_empty(&batch)) {
        struct reactor_deferred *d = LIST_FIRST(&batch, struct reactor_deferred, link);

        list_remove(&d->link);
        d->queued = false;
        d->fn(d);
    }
}

static bool is_idle(struct reactor *reactor)
{
    return list_is_empty(&reactor->ready) && list_is_empty(&reactor->gave_way) &&
           list_is_empty(&reactor->deferred);
}

bool reactor_may_end(struct reactor *reactor)
{
    return atomic_load(&reactor->stop) && co_home_live(&reactor->home) == 0 && is_idle(reactor);
}

/* Whether the reactor may sleep. If so, the inbox has the mark, and other threads ring the bell. */
static bool fall_asleep(struct reactor *reactor)
{
    void *expected = NULL;

    if (!is_idle(reactor) || reactor_may_end(reactor) ||
        !atomic_compare_exchange_strong(&reactor->inbox, &expected, ASLEEP)) {
        return false;
    }
    reactor->asleep = true;
    /* reactor_kick() sets the flag before it reads the inbox, so one of the two sees the other. */
    return !atomic_load(&reactor->kicked);
}

/* --- waiting, and looking for work before */

/* The first time that is not zero. */
#define POLL_FIRST_NS 4000

void reactor_set_polling(struct reactor *reactor, int64_t max_ns, int64_t grow, int64_t shrink)
{
    atomic_store(&reactor->poll_grow, grow);
    atomic_store(&reactor->poll_shrink, shrink);
    atomic_store(&reactor->poll_max_ns, max_ns);
}

/*
 * Look for work for poll_ns, or less if there is a lower limit meanwhile. With io_uring the engine
 * makes no system call for that.
 */
static void look_for_work(struct reactor *reactor, int64_t begin_ns)
{
    int64_t max_ns;

    do {
        reactor->engine->turn(reactor, 0);
        collect_inbox(reactor);
        loop_timers_run(reactor);
        max_ns = atomic_load_explicit(&reactor->poll_max_ns, memory_order_relaxed);
    } while (is_idle(reactor) && !atomic_load(&reactor->kicked) &&
             reactor->home.turn_ns - begin_ns < MIN(reactor->poll_ns, max_ns));
}

/* The reactor had no work for wait_ns. Choose how long it looks for work the next time. */
static void adapt_polling(struct reactor *reactor, int64_t wait_ns, int64_t max_ns)
{
    int64_t grow = atomic_load(&reactor->poll_grow), shrink = atomic_load(&reactor->poll_shrink);
    int64_t ns = reactor->poll_ns;

    if (wait_ns > max_ns) {
        ns = shrink > 0 ? ns / shrink : 0;
    } else if (wait_ns > ns) {
        ns = ns == 0 ? POLL_FIRST_NS : ns > max_ns / MAX(grow, 2) ? max_ns : ns * (grow ?: 2);
    }
    reactor->poll_ns = MIN(ns, max_ns);
}

/* Sleep until there is work, or look for work first. */
static void wait_for_work(struct reactor *reactor)
{
    int64_t max_ns = atomic_load_explicit(&reactor->poll_max_ns, memory_order_relaxed);
    int64_t begin = 0, timeout = 0;

    if (__builtin_expect(max_ns > 0, false) && is_idle(reactor)) {
        begin = loop_now_ns();
        if (reactor->poll_ns > 0) {
            look_for_work(reactor, begin);
        }
        if (!is_idle(reactor)) {
            reactor_count(reactor, REACTOR_STAT_POLLED);
            return;
        }
    }
    if (fall_asleep(reactor)) {
        timeout = loop_timers_next(reactor);
        reactor_count(reactor, REACTOR_STAT_SLEEPS);
    }
    atomic_store(&reactor->kicked, false);
    reactor->engine->turn(reactor, timeout);
    collect_inbox(reactor);
    loop_timers_run(reactor);
    if (begin > 0) {
        adapt_polling(reactor, reactor->home.turn_ns - begin, max_ns);
    }
}

void reactor_turn(struct reactor *reactor)
{
    reactor->asked_ns = 0;
    reactor_count(reactor, REACTOR_STAT_TURNS);
    if (reactor->random) {
        run_ready_at_random(reactor);
    } else if (!run_ready(reactor)) {
        return;
    }
    run_deferred(reactor);
    wait_for_work(reactor);
    run_gave_way(reactor);
}

/* --- life */

int reactor_init(struct reactor *reactor, const struct loop_engine *engine)
{
    void *data;
    int r;

    reactor->home.enqueue = reactor_enqueue;
    reactor->engine = engine;
    list_init(&reactor->ready);
    list_init(&reactor->batch);
    list_init(&reactor->gave_way);
    list_init(&reactor->deferred);
    list_init(&reactor->crowd);
    reactor->bell = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (reactor->bell < 0) {
        return -errno;
    }
    r = engine->prepare(&data);
    if (r < 0) {
        close(reactor->bell);
        return r;
    }
    engine->adopt(reactor, data);
    reactor_set_current(reactor);
    reactor->home.turn_ns = loop_now_ns();
    return 0;
}

void reactor_release(struct reactor *reactor)
{
    reactor->engine->discard(reactor->engine_data);
    await_bells(reactor);
    close(reactor->bell);
    loop_timers_release(reactor);
    co_thread_cleanup();
    reactor_set_current(NULL);
}
