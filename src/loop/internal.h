/* SPDX-License-Identifier: Apache-2.0 */
/* Inside of the loop layer: the reactor object, and what an engine does for it. */
#ifndef TIDEMARK_LOOP_INTERNAL_H
#define TIDEMARK_LOOP_INTERNAL_H

#include <pthread.h>
#include <stdatomic.h>

#include "loop/loop.h"

/*
 * How a reactor waits and how its coroutines do I/O. Except for ring_bell(), all are called on the
 * reactor's own thread; those named co_ in a coroutine, which they suspend.
 */
struct loop_engine {
    const char *name;
    /* 0 or -errno. */
    int (*init)(struct reactor *r);
    void (*release)(struct reactor *r);
    /* Submit what is queued; wait for at most timeout_ns (0: don't, negative: without end); queue
     * the coroutines of what completed. May return early. */
    void (*turn)(struct reactor *r, int64_t timeout_ns);
    ssize_t (*co_preadv)(struct reactor *r, int fd, const struct iovec *iov, int iovcnt,
                         uint64_t offset);
    ssize_t (*co_pwritev)(struct reactor *r, int fd, const struct iovec *iov, int iovcnt,
                          uint64_t offset, unsigned flags);
    int (*co_fdatasync)(struct reactor *r, int fd);
    int (*co_fallocate)(struct reactor *r, int fd, int mode, uint64_t offset, uint64_t length);
    int (*co_poll)(struct reactor *r, int fd, short events, int64_t timeout_ns);
    /* Wait until there is something to receive, and receive it; -EAGAIN: call again. NULL when the
     * engine has nothing better than co_poll(). */
    ssize_t (*co_recv)(struct reactor *r, int fd, void *buf, size_t size);
};

extern const struct loop_engine loop_engine_uring;
extern const struct loop_engine loop_engine_epoll;

/* What is remembered about a descriptor number, for the numbers below FD_MEMORY. */
#define FD_MEMORY 1024
struct fd_memory {
    uint8_t kind;      /* enum fd_kind (file_io.c) */
    uint8_t uses_left; /* until it is asked again: numbers are used anew for other files */
};

struct reactor {
    struct co_home home;
    const struct loop_engine *engine;
    void *engine_data;
    unsigned index;
    char name[16];
    pthread_t thread;

    /*
     * Coroutines woken by other threads, latest first, chained by their queue slots; or the mark
     * that the reactor sleeps (reactor.c) and wants the bell to be rung.
     */
    _Atomic(void *) inbox;
    atomic_bool kicked; /* not to sleep before its caller has looked around */
    int bell;           /* eventfd; writing to it ends the engine's wait */

    /* The rest is the reactor thread's own. */
    bool asleep;          /* the inbox was marked, and not looked at since */
    uint64_t bells_due;   /* times that the mark was taken away, each rings the bell */
    uint64_t bells_heard; /* as read from the bell */
    struct list ready;    /* of co_link(): runnable, in order */
    struct list gave_way; /* of co_link(): gave way to those, in order */
    bool giving_way;      /* who is woken next goes there */
    int64_t asked_ns;     /* when a coroutine first asked for the time in this turn; 0: none has */
    struct list deferred; /* of struct reactor_deferred */
    uint64_t random;      /* state of the seeded scheduler; 0: off */
    struct loop_timer **timers; /* a binary heap, earliest first */
    size_t timer_count;
    size_t timer_room;
    unsigned inline_writes_barred;  /* so many writes still go to the engine */
    unsigned inline_writes_watched; /* so many more are watched for a sleep */
    unsigned inline_bar;            /* how many the latest stall barred */
    unsigned inline_writes_calm;    /* inline writes since the latest stall */
    struct fd_memory fds[FD_MEMORY];

    atomic_bool stop;     /* end the thread once the coroutines have ended */
    struct co *destroyer; /* woken when the thread is about to end */
};

/* reactor.c: read the bell, so that the next ring is heard anew. */
void reactor_silence_bell(struct reactor *r);

/* file_io.c: read TIDEMARK_READ and TIDEMARK_WRITE. */
void loop_file_io_init(void);

/* timer.c: run what is due. Then: nanoseconds until the next timer is, -1 without timers. */
void loop_timers_run(struct reactor *r);
int64_t loop_timers_next(const struct reactor *r);
void loop_timers_release(struct reactor *r);

/* offload.c: whether the program has nothing to do but wait. */
bool loop_is_patient(void);

/* offload.c: join the threads of the pool; it starts again when it is used again. */
void loop_offload_stop(void);

/* threads.c: file I/O by the offload pool, for engines that have nothing better. */
ssize_t loop_threads_co_preadv(struct reactor *r, int fd, const struct iovec *iov, int iovcnt,
                               uint64_t offset);
ssize_t loop_threads_co_pwritev(struct reactor *r, int fd, const struct iovec *iov, int iovcnt,
                                uint64_t offset, unsigned flags);
int loop_threads_co_fdatasync(struct reactor *r, int fd);
int loop_threads_co_fallocate(struct reactor *r, int fd, int mode, uint64_t offset,
                              uint64_t length);

/* Start a thread that no signal is delivered to. 0 or -errno. */
int loop_thread_start(pthread_t *thread, void *(*fn)(void *arg), void *arg);

#endif
