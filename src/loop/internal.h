/* SPDX-License-Identifier: Apache-2.0 */
/* Inside of the loop layer: the reactor object, and what an engine does for it. */
#ifndef TIDEMARK_LOOP_INTERNAL_H
#define TIDEMARK_LOOP_INTERNAL_H

#include <pthread.h>
#include <stdatomic.h>

#include "loop/loop.h"
#include "loop/stats.h"

/*
 * How a reactor waits and how its coroutines do I/O. Except for ring_bell(), all are called on the
 * reactor's own thread; those named co_ in a coroutine, which they suspend.
 */
struct loop_engine {
    const char *name;
    /* Make what a reactor of the calling thread needs. 0 or -errno. */
    int (*prepare)(void **ret_data);
    void (*discard)(void *data);
    /* Work with `data`, which the calling thread prepared. What the reactor had before was the engine's on a thread that
     * hangs: what can be moved is. */
    void (*adopt)(struct reactor *reactor, void *data);
    /* On the thread that hung, when it is back: complete what could not be moved, and discard. */
    void (*abandon)(void *data);
    /* Whether file I/O of other descriptors than fd is in flight that could not be moved. */
    bool (*would_strand)(struct reactor *reactor, int fd);
    /* Submit what is queued; wait for at most timeout_ns (0: don't, negative: without end); queue
     * the coroutines of what completed. May return early. */
    void (*turn)(struct reactor *reactor, int64_t timeout_ns);
    ssize_t (*co_preadv)(struct reactor *reactor, int fd, const struct iovec *iov, int iovcnt,
                         uint64_t offset);
    ssize_t (*co_pwritev)(struct reactor *reactor, int fd, const struct iovec *iov, int iovcnt,
                          uint64_t offset, unsigned flags);
    int (*co_fdatasync)(struct reactor *reactor, int fd);
    int (*co_fallocate)(struct reactor *reactor, int fd, int mode, uint64_t offset,
                        uint64_t length);
    int (*co_poll)(struct reactor *reactor, int fd, short events, int64_t timeout_ns);
};

extern const struct loop_engine loop_engine_uring;
extern const struct loop_engine loop_engine_epoll;

/* What is remembered about a descriptor number, for the numbers below FD_MEMORY. */
#define FD_MEMORY 1024
struct fd_memory {
    uint8_t kind;      /* enum fd_kind (file_io.c) */
    uint8_t uses_left; /* until it is asked again: numbers are used anew for other files */
    uint8_t fs;        /* index in the reactor's file_systems */
    uint8_t in_flight; /* operations that another thread does or will do */
};

/* What is remembered about the buffered writes to a file system. */
#define FILE_SYSTEMS 8
struct file_system {
    uint64_t device;
    unsigned barred;  /* so many writes still go to the engine */
    unsigned watched; /* so many more are watched for a sleep */
    unsigned bar;     /* how many the latest stall barred */
    unsigned calm;    /* inline writes since the latest stall */
    unsigned hanging; /* writes that cost this reactor a thread and have not returned */
};

struct reactor {
    struct co_home home;
    const struct loop_engine *engine;
    void *engine_data;
    unsigned index;
    char name[16];
    pthread_t thread; /* that runs it; changed by rescue.c only */

    /* --- for rescue.c */
    struct list rescue_link;       /* in the list of those that can be rescued */
    struct file_system *called;    /* by the call that may hang */
    struct co *caller;             /* who makes it */
    _Atomic int64_t blocked_since; /* its thread is in a call that may hang; 0: not, REACTOR_LOST */
    int tid;                       /* of its thread; guarded by the lock of rescue.c */
    bool is_moving;                /* to another thread; guarded likewise */
    bool is_rescued;               /* in that list */
    bool
        may_be_lost; /* what its thread does now, another one could go on with: it runs the batch */

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
    struct list batch;    /* of co_link(): those of them that are being run */
    struct list gave_way; /* of co_link(): gave way to those, in order */
    bool giving_way;      /* who is woken next goes there */
    int64_t asked_ns;     /* when a coroutine first asked for the time in this turn; 0: none has */
    struct list deferred; /* of struct reactor_deferred */
    uint64_t random;      /* state of the seeded scheduler; 0: off */
    struct loop_timer **timers; /* a binary heap, earliest first */
    size_t timer_count;
    size_t timer_room;
    struct file_system file_systems[FILE_SYSTEMS];
    unsigned next_file_system; /* to be forgotten for another */
    struct fd_memory fds[FD_MEMORY];
    struct list crowd; /* of struct crowd_waiter (file_io.c), oldest first */
    struct counter stats[REACTOR_STATS];

    atomic_bool stop;     /* end the thread once the coroutines have ended */
    struct co *destroyer; /* woken when the thread is about to end */
};

/* --- thread.c */

/*
 * The reactor that the calling thread runs, NULL if it runs none: as reactor_current(), without a call. A coroutine may
 * continue on another thread after a yield, so a function reads it before it yields, or not at all.
 */
extern _Thread_local struct reactor *loop_this_reactor;

void reactor_set_current(struct reactor *reactor);

/* Start a thread that no signal is delivered to. 0 or -errno. */
int loop_thread_start(pthread_t *thread, void *(*fn)(void *arg), void *arg);

/* --- reactor.c */

/* Make `reactor`, which is zeroes, a reactor of the calling thread on this engine. 0 or -errno. */
int reactor_init(struct reactor *reactor, const struct loop_engine *engine);

/* The reverse. */
void reactor_release(struct reactor *reactor);

/* Run one turn. The thread may have lost `reactor` afterwards: then reactor_current() is NULL. */
void reactor_turn(struct reactor *reactor);

/* Whether `reactor` was told to stop, and its coroutines have ended. */
bool reactor_may_end(struct reactor *reactor);

/*
 * Have the reactor look around once more before it sleeps. Any thread, any signal handler; on its own thread one may come
 * between the decision to sleep and the sleep, which the bell then ends.
 */
void reactor_kick(struct reactor *reactor);

/* Read the bell, so that the next ring is heard anew. */
void reactor_silence_bell(struct reactor *reactor);

/*
 * rescue.c: threads that hang. A reactor's thread says when it enters a system call that may hang, and asks at the
 * return whether it still has the reactor.
 */
#define REACTOR_LOST (-1)
/* Run `reactor` on the calling thread until it ends, or until the thread has lost it. When a call hangs, `reactor` gets another thread,
 * which has prepared for engine `spare`. */
void loop_rescue_serve(struct reactor *reactor, const struct loop_engine *spare);
/* Whether a coroutine of `reactor` may hang in a call on fd at the cost of its thread only. */
bool loop_may_hang(struct reactor *reactor, int fd);
/* Before and after such a call, at the time now_ns, to fs. In between nothing of the reactor is touched. The latter is
 * false when it hung: the coroutine goes on on another thread, and gives fs->hanging back. It yields then, and at no
 * other time. */
void loop_hang_begin(struct reactor *reactor, struct file_system *fs, int64_t now_ns);
bool loop_co_hang_end(struct reactor *reactor, int64_t now_ns);
/* No reactor is watched any more: join the threads that watched. */
void loop_rescue_stop(void);

/* On the thread of `reactor`. */
static inline void reactor_count(struct reactor *reactor, enum reactor_stat i)
{
    counter_add(&reactor->stats[i], 1);
}

/* file_io.c: read TIDEMARK_READ and TIDEMARK_WRITE. */
void loop_file_io_init(void);

/* timer.c: run what is due. Then: nanoseconds until the next timer is, -1 without timers. */
void loop_timers_run(struct reactor *reactor);
int64_t loop_timers_next(const struct reactor *reactor);
void loop_timers_release(struct reactor *reactor);

/* offload.c: whether the program has nothing to do but wait. Whether its main reactor serves others. */
bool loop_is_patient(void);
bool loop_is_serving(void);

/* offload.c: join the threads of the pool; it starts again when it is used again. */
void loop_offload_stop(void);

/* pool_io.c: file I/O by the offload pool, for engines that have nothing better. */
ssize_t loop_pool_co_preadv(struct reactor *reactor, int fd, const struct iovec *iov, int iovcnt,
                            uint64_t offset);
ssize_t loop_pool_co_pwritev(struct reactor *reactor, int fd, const struct iovec *iov, int iovcnt,
                             uint64_t offset, unsigned flags);
int loop_pool_co_fdatasync(struct reactor *reactor, int fd);
int loop_pool_co_fallocate(struct reactor *reactor, int fd, int mode, uint64_t offset,
                           uint64_t length);

#endif
