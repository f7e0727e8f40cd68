/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Timers: a binary heap of pointers, earliest deadline first. Each timer records its place in it.
 */
#include <assert.h>
#include <stdlib.h>
#include <time.h>

#include "base/log.h"
#include "loop/internal.h"

#define NOT_ARMED SIZE_MAX

int64_t loop_now_ns(void)
{
    struct timespec now;

    clock_gettime(CLOCK_MONOTONIC, &now);
    return ns_from_timespec(now);
}

/* Put `t` at place i of the heap. */
static void place_timer(struct reactor *reactor, size_t i, struct loop_timer *t)
{
    reactor->timers[i] = t;
    t->heap_index = i;
}

/* Put `t` at the free place i or above, where the heap is in order. */
static void sift_up(struct reactor *reactor, size_t i, struct loop_timer *t)
{
    while (i > 0) {
        struct loop_timer *parent = reactor->timers[(i - 1) / 2];

        if (parent->deadline_ns <= t->deadline_ns) {
            break;
        }
        place_timer(reactor, i, parent);
        i = (i - 1) / 2;
    }
    place_timer(reactor, i, t);
}

/* Put `t` at the free place i or below, where the heap is in order. */
static void sift_down(struct reactor *reactor, size_t i, struct loop_timer *t)
{
    for (;;) {
        size_t child = 2 * i + 1;

        if (child >= reactor->timer_count) {
            break;
        }
        if (child + 1 < reactor->timer_count &&
            reactor->timers[child + 1]->deadline_ns < reactor->timers[child]->deadline_ns) {
            child++;
        }
        if (t->deadline_ns <= reactor->timers[child]->deadline_ns) {
            break;
        }
        place_timer(reactor, i, reactor->timers[child]);
        i = child;
    }
    place_timer(reactor, i, t);
}

/* Put `t` at place i, which is free or its own, or where the heap is in order. */
static void sift(struct reactor *reactor, size_t i, struct loop_timer *t)
{
    if (i > 0 && t->deadline_ns < reactor->timers[(i - 1) / 2]->deadline_ns) {
        sift_up(reactor, i, t);
    } else {
        sift_down(reactor, i, t);
    }
}

void loop_timer_init(struct loop_timer *t, void (*fn)(struct loop_timer *self))
{
    t->fn = fn;
    t->deadline_ns = 0;
    t->heap_index = NOT_ARMED;
}

/* Make room for one more timer in the heap. */
static void make_timer_room(struct reactor *reactor)
{
    size_t room = reactor->timer_room ? reactor->timer_room * 2 : 64;
    struct loop_timer **timers;

    if (reactor->timer_count < reactor->timer_room) {
        return;
    }
    timers = reallocarray(reactor->timers, room, sizeof(struct loop_timer *));
    if (!timers) {
        /* A pointer for each timer, whose own memory is much larger: not worth an error path. */
        log_error("Out of memory for a timer");
        abort();
    }
    reactor->timers = timers;
    reactor->timer_room = room;
}

void loop_timer_arm(struct loop_timer *t, int64_t deadline_ns)
{
    struct reactor *reactor = reactor_current();

    assert(reactor);
    t->deadline_ns = deadline_ns;
    if (t->heap_index != NOT_ARMED) {
        sift(reactor, t->heap_index, t);
        return;
    }
    make_timer_room(reactor);
    sift_up(reactor, reactor->timer_count++, t);
}

void loop_timer_disarm(struct loop_timer *t)
{
    struct reactor *reactor = reactor_current();
    size_t i = t->heap_index;
    struct loop_timer *last;

    if (i == NOT_ARMED) {
        return;
    }
    assert(reactor && reactor->timers[i] == t);
    t->heap_index = NOT_ARMED;
    last = reactor->timers[--reactor->timer_count];
    if (last != t) {
        sift(reactor, i, last);
    }
}

void loop_timers_run(struct reactor *reactor)
{
    int64_t now = loop_now_ns();

    reactor->home.turn_ns = now;
    while (reactor->timer_count > 0 && reactor->timers[0]->deadline_ns <= now) {
        struct loop_timer *t = reactor->timers[0];

        loop_timer_disarm(t);
        t->fn(t);
    }
}

int64_t loop_timers_next(const struct reactor *reactor)
{
    int64_t left;

    if (reactor->timer_count == 0) {
        return -1;
    }
    left = reactor->timers[0]->deadline_ns - loop_now_ns();
    return left > 0 ? left : 0;
}

void loop_timers_release(struct reactor *reactor)
{
    free(reactor->timers);
}

/* On the stack of a coroutine that sleeps. */
struct sleeper {
    struct loop_timer timer;
    struct co *co;
};

static void sleeper_wake(struct loop_timer *self)
{
    co_wake(container_of(self, struct sleeper, timer)->co);
}

void loop_co_sleep(int64_t ns)
{
    struct sleeper sleeper = {.co = co_self()};
    struct co_wait wait;

    if (ns <= 0) {
        co_reschedule();
        return;
    }
    loop_timer_init(&sleeper.timer, sleeper_wake);
    loop_timer_arm(&sleeper.timer, loop_now_ns() + ns);
    co_wait_begin(&wait, "a pause to end", NULL, -1);
    co_suspend();
    co_wait_end(&wait);
}
