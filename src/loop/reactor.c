/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The turn of a reactor, and its run queue.
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

#include "base/log.h"
#include "loop/internal.h"

#define ASLEEP ((void *)1)

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

    if (r == loop_this_reactor) {
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

void reactor_kick(struct reactor *r)
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
    assert(r == loop_this_reactor);
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
    if (r != loop_this_reactor) {
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
    struct reactor *r = loop_this_reactor;
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
    struct reactor *r = loop_this_reactor;

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
        list_append(&loop_this_reactor->deferred, &d->link);
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

bool reactor_may_end(struct reactor *r)
{
    return atomic_load(&r->stop) && co_home_live(&r->home) == 0 && is_idle(r);
}

/* Whether the reactor may sleep; then everybody else knows that it does. */
static bool fall_asleep(struct reactor *r)
{
    void *expected = NULL;

    if (!is_idle(r) || reactor_may_end(r) ||
        !atomic_compare_exchange_strong(&r->inbox, &expected, ASLEEP)) {
        return false;
    }
    r->asleep = true;
    /* reactor_kick() sets the flag before it looks for ASLEEP: one of us sees the other. */
    return !atomic_load(&r->kicked);
}

void reactor_turn(struct reactor *r)
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

int reactor_init(struct reactor *r, const struct loop_engine *engine)
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

void reactor_release(struct reactor *r)
{
    r->engine->discard(r->engine_data);
    await_bells(r);
    close(r->bell);
    loop_timers_release(r);
    co_thread_cleanup();
    reactor_set_current(NULL);
}
