/* SPDX-License-Identifier: Apache-2.0 */
/*
 * epoll, and threads for file I/O: where io_uring is not permitted.
 *
 * A descriptor is registered when a coroutine first polls it. It stays registered, disarmed
 * (EPOLLONESHOT), while no coroutine polls it, until it is closed. Several coroutines may poll one
 * descriptor, so it is armed for the events of all of them.
 */
#include <errno.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <unistd.h>

#include "base/log.h"
#include "loop/internal.h"

#define EVENTS_PER_TURN 64

/* On the stack of the coroutine that polls. */
struct poll_waiter {
    /* on the same descriptor */
    struct poll_waiter *next;
    struct reactor *reactor;
    struct loop_timer timer;
    struct co *co;
    int fd;
    uint32_t events;
    int result;
};

struct epoll {
    int fd;
    /* the kernel lacks epoll_pwait2(2), so timeouts are whole milliseconds */
    bool no_pwait2;
    /* coroutines that poll */
    size_t waiting;
    /* lists by descriptor, `room` of them */
    struct poll_waiter **waiters;
    size_t room;
};

static struct epoll *epoll_of(struct reactor *reactor)
{
    return reactor->engine_data;
}

static void epoll_discard(void *data)
{
    struct epoll *e = data;

    close(e->fd);
    free(e->waiters);
    free(e);
}

static int epoll_prepare(void **ret_data)
{
    struct epoll *e = calloc(1, sizeof(*e));

    if (!e) {
        return -ENOMEM;
    }
    e->fd = epoll_create1(EPOLL_CLOEXEC);
    if (e->fd < 0) {
        int r = -errno;

        free(e);
        return r;
    }
    *ret_data = e;
    return 0;
}

static void epoll_adopt(struct reactor *reactor, void *data)
{
    struct epoll *e = data;
    struct epoll_event bell = {.events = EPOLLIN | EPOLLET, .data.fd = reactor->bell};

    if (reactor->engine_data) {
        /* The epoll set in use serves any thread. */
        epoll_discard(data);
        return;
    }
    /* Edge-triggered: each write to the bell is reported once, so the bell need not be read. */
    if (epoll_ctl(e->fd, EPOLL_CTL_ADD, reactor->bell, &bell) < 0) {
        log_error("Reactor '%s' cannot watch its bell: %s", reactor->name, strerror(errno));
        abort();
    }
    reactor->engine_data = e;
}

/* The new thread uses `data`, and no operation belongs to this one. */
static void epoll_abandon(void *data)
{
}

/* File I/O in flight belongs to the offload pool. */
static bool epoll_would_strand(struct reactor *reactor, int fd)
{
    return false;
}

/* --- polls */

/* Arm `fd` for the events of all its waiters. */
static int arm_fd(struct epoll *e, int fd)
{
    struct epoll_event event = {.events = EPOLLONESHOT, .data.fd = fd};

    for (struct poll_waiter *w = e->waiters[fd]; w; w = w->next) {
        event.events |= w->events;
    }
    if (epoll_ctl(e->fd, EPOLL_CTL_MOD, fd, &event) == 0) {
        return 0;
    }
    if (errno == ENOENT && epoll_ctl(e->fd, EPOLL_CTL_ADD, fd, &event) == 0) {
        return 0;
    }
    return -errno;
}

/* Take a waiter out of the list at *link, and wake it with this result. */
static void finish_waiter(struct epoll *e, struct poll_waiter **link, int result)
{
    struct poll_waiter *w = *link;

    *link = w->next;
    w->result = result;
    e->waiting--;
    co_wake(w->co);
}

static void handle_event(struct epoll *e, int fd, uint32_t events)
{
    struct poll_waiter **link = &e->waiters[fd];
    int r;

    while (*link) {
        uint32_t hit = events & ((*link)->events | EPOLLERR | EPOLLHUP);

        if (hit) {
            finish_waiter(e, link, (int)hit);
        } else {
            link = &(*link)->next;
        }
    }
    if (!e->waiters[fd]) {
        return;
    }
    r = arm_fd(e, fd);
    while (r < 0 && e->waiters[fd]) {
        finish_waiter(e, &e->waiters[fd], r);
    }
}

static void expire_poll(struct loop_timer *self)
{
    struct poll_waiter *w = container_of(self, struct poll_waiter, timer);
    struct epoll *e = epoll_of(w->reactor);
    struct poll_waiter **link = &e->waiters[w->fd];

    while (*link && *link != w) {
        link = &(*link)->next;
    }
    if (*link) {
        finish_waiter(e, link, -ETIMEDOUT);
    }
}

/* Make room in `waiters` for this descriptor. */
static int make_waiters_room(struct epoll *e, size_t fd)
{
    size_t room = fd < 64 ? 128 : fd * 2;
    struct poll_waiter **waiters;

    if (fd < e->room) {
        return 0;
    }
    waiters = realloc(e->waiters, room * sizeof(struct poll_waiter *));
    if (!waiters) {
        return -ENOMEM;
    }
    memset(waiters + e->room, 0, (room - e->room) * sizeof(struct poll_waiter *));
    e->waiters = waiters;
    e->room = room;
    return 0;
}

static int epoll_co_poll(struct reactor *reactor, int fd, short events, int64_t timeout_ns)
{
    struct epoll *e = epoll_of(reactor);
    struct poll_waiter waiter = {
        .reactor = reactor, .co = co_self(), .fd = fd, .events = (unsigned short)events};
    int r;

    if (fd < 0) {
        return -EBADF;
    }
    r = make_waiters_room(e, (size_t)fd);
    if (r < 0) {
        return r;
    }
    waiter.next = e->waiters[fd];
    e->waiters[fd] = &waiter;
    r = arm_fd(e, fd);
    if (r < 0) {
        e->waiters[fd] = waiter.next;
        /* epoll does not support regular files, which are always ready. */
        return r == -EPERM ? events & (POLLIN | POLLOUT) : r;
    }
    e->waiting++;
    loop_timer_init(&waiter.timer, expire_poll);
    if (timeout_ns >= 0) {
        loop_timer_arm(&waiter.timer, loop_now_ns() + timeout_ns);
    }
    co_suspend();
    loop_timer_disarm(&waiter.timer);
    return waiter.result;
}

/* --- the turn */

static int wait_ms(struct epoll *e, struct epoll_event *events, int64_t timeout_ns)
{
    int64_t ms = timeout_ns < 0 ? -1 : (timeout_ns + NS_PER_MS - 1) / NS_PER_MS;

    return epoll_wait(e->fd, events, EVENTS_PER_TURN, ms > 3600000 ? 3600000 : (int)ms);
}

static int wait_events(struct epoll *e, struct epoll_event *events, int64_t timeout_ns)
{
    struct timespec ts;
    int count;

    if (timeout_ns <= 0 || e->no_pwait2) {
        return wait_ms(e, events, timeout_ns);
    }
    ts = ns_to_timespec(timeout_ns);
    count = epoll_pwait2(e->fd, events, EVENTS_PER_TURN, &ts, NULL);
    if (count < 0 && (errno == ENOSYS || errno == EPERM)) {
        e->no_pwait2 = true;
        count = wait_ms(e, events, timeout_ns);
    }
    return count;
}

static void epoll_turn(struct reactor *reactor, int64_t timeout_ns)
{
    struct epoll *e = epoll_of(reactor);
    struct epoll_event events[EVENTS_PER_TURN];
    int count;

    if (timeout_ns == 0 && e->waiting == 0) {
        return;
    }
    count = wait_events(e, events, timeout_ns);
    for (int i = 0; i < count; i++) {
        if (events[i].data.fd != reactor->bell) {
            handle_event(e, events[i].data.fd, events[i].events);
        }
    }
}

const struct loop_engine loop_engine_epoll = {
    .name = "epoll",
    .prepare = epoll_prepare,
    .discard = epoll_discard,
    .adopt = epoll_adopt,
    .abandon = epoll_abandon,
    .would_strand = epoll_would_strand,
    .turn = epoll_turn,
    .co_preadv = loop_pool_co_preadv,
    .co_pwritev = loop_pool_co_pwritev,
    .co_fdatasync = loop_pool_co_fdatasync,
    .co_fallocate = loop_pool_co_fallocate,
    .co_poll = epoll_co_poll,
};
