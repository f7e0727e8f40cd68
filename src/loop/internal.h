/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Internal to the loop layer: the reactor object, and what an engine does for it. Functions with
 * `co_` in their name run in a coroutine of the reactor and may yield; the others do not yield.
 *
 * Each file calls only files below it:
 *
 *      lifecycle.c
 *      file_io.c, socket.c
 *      rescue.c
 *      engine_uring.c, engine_epoll.c (called by their tables, from everywhere)
 *      reactor.c, pool_io.c
 *      offload.c
 *      timer.c
 *      thread.c
 */
#ifndef TIDEMARK_LOOP_INTERNAL_H
#define TIDEMARK_LOOP_INTERNAL_H

#include <pthread.h>
#include <stdatomic.h>

#include "co/wait.h"
#include "loop/loop.h"
#include "loop/stats.h"

/*
 * How a reactor waits and how its coroutines do I/O. The functions are called on the reactor's own
 * thread, except where it is said.
 */
struct loop_engine {
    const char *name;

    /* Make the data that a reactor of the calling thread needs. 0 or -errno. */
    int (*prepare)(void **ret_data);

    /* Free what prepare() made. */
    void (*discard)(void *data);

    /*
     * Make `data`, which the calling thread prepared, the reactor's. If the reactor has data
     * already, those belong to a thread that hangs: move what can be moved.
     */
    void (*adopt)(struct reactor *reactor, void *data);

    /* On the thread that hung, after its return: complete what was not moved, then discard. */
    void (*abandon)(void *data);

    /* Whether file I/O in flight that can't be moved concerns other descriptors than `fd`. */
    bool (*would_strand)(struct reactor *reactor, int fd);

    /*
     * Submit what is queued; wait for at most timeout_ns (0: not at all, negative: without limit);
     * queue the coroutines of what completed. May return early.
     */
    void (*turn)(struct reactor *reactor, int64_t timeout_ns);

    /* As the functions of loop.h. */
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

/* Descriptors up to this number are remembered in fd_memory. */
#define FD_MEMORY 1024

/* What a reactor remembers about a descriptor number. */
struct fd_memory {
    /* enum fd_kind (file_io.c) */
    uint8_t kind;
    /* uses until the descriptor is queried again, since numbers are reused for other files */
    uint8_t uses_left;
    /* index in the reactor's file_systems */
    uint8_t fs;
    /* operations that another thread does or will do */
    uint8_t in_flight;
};

/* How many file systems a reactor remembers. */
#define FILE_SYSTEMS 8

/* What a reactor remembers about the buffered writes to a file system. */
struct file_system {
    uint64_t device;
    /* how many more writes go to the engine */
    unsigned barred;
    /* how many more inline writes are observed for a sleep */
    unsigned watched;
    /* how many writes the latest stall barred */
    unsigned bar;
    /* inline writes since the latest stall */
    unsigned calm;
    /* writes that took this reactor's thread and have not returned */
    unsigned hanging;
};

struct reactor {
    struct co_home home;
    const struct loop_engine *engine;
    void *engine_data;
    unsigned index;
    char name[16];
    /* its threads give way to others; set once, before the first one starts */
    bool is_background;
    uint64_t slice_ns; /* of a background reactor; 0: the usual one */
    /* runs the reactor; only rescue.c changes it */
    pthread_t thread;

    /* --- for rescue.c */
    /* in the list of reactors that are watched */
    struct list rescue_link;
    /* the file system of the call that may hang */
    struct file_system *called;
    /* in the frame of the caller, to be begun when the call hangs */
    struct co_wait *called_wait;
    /* the coroutine that makes the call */
    struct co *caller;
    /* 0; the time when the thread began a call that may hang; or REACTOR_LOST */
    _Atomic int64_t blocked_since;
    /* of the thread; guarded by the lock of rescue.c */
    int tid;
    /* the reactor is changing to another thread; guarded likewise */
    bool is_moving;
    /* in the list of reactors that are watched; set once, by the reactor's thread */
    bool is_rescued;
    /* the thread runs a coroutine of the batch, hence another thread could take the reactor now */
    bool may_be_lost;

    /*
     * Coroutines that other threads woke, latest first, chained by their queue slots; or the mark
     * of a sleeping reactor (reactor.c), which asks for a ring of the bell.
     */
    _Atomic(void *) inbox;
    /* do not sleep before the thread has checked what to do */
    atomic_bool kicked;
    /* eventfd; a write ends the engine's wait */
    int bell;

    /* --- the rest is the reactor thread's own */
    /* the inbox was marked, and not read since */
    bool asleep;
    /* wake-ups for which another thread writes, or is about to write, the eventfd */
    uint64_t bells_due;
    /* writes counted in the eventfd so far */
    uint64_t bells_heard;
    /* of co_link(): runnable, in order */
    struct list ready;
    /* of co_link(): runnable, and run in this turn */
    struct list batch;
    /* of co_link(): gave way, in order */
    struct list gave_way;
    /* the coroutine that is woken next goes to gave_way */
    bool giving_way;
    /* when a coroutine first called reactor_turn_expired() in this turn; 0: none has */
    int64_t asked_ns;
    /* of struct reactor_deferred */
    struct list deferred;
    /* state of the seeded scheduler; 0: off */
    uint64_t random;
    /* a binary heap, earliest first, with room for timer_room */
    struct loop_timer **timers;
    size_t timer_count;
    size_t timer_room;
    struct file_system file_systems[FILE_SYSTEMS];
    /* the entry to be replaced next */
    unsigned next_file_system;
    struct fd_memory fds[FD_MEMORY];
    /* of struct crowd_waiter (file_io.c), oldest first */
    struct list crowd;
    struct counter stats[REACTOR_STATS];

    /* reactor_set_polling() */
    _Atomic int64_t poll_max_ns, poll_grow, poll_shrink;
    /* how long it looks for work at present */
    int64_t poll_ns;

    /* end the thread once the coroutines have ended */
    atomic_bool stop;
    /* woken when the thread is about to end */
    struct co *destroyer;
};

/* --- thread.c */

/*
 * The reactor that the calling thread runs, NULL if it runs none: reactor_current() without a call.
 * A coroutine may continue on another thread after a yield, and the compiler may keep the address
 * of this variable, so a function that yields reads it only before.
 */
extern _Thread_local struct reactor *loop_this_reactor;

/* Set loop_this_reactor. */
void reactor_set_current(struct reactor *reactor);

/* Start a thread that receives no signals. 0 or -errno. */
int loop_thread_start(pthread_t *thread, void *(*fn)(void *arg), void *arg);
/* The calling thread serves `reactor`: it gives way if that is to, and what it starts does too. */
void loop_thread_set_priority(const struct reactor *reactor);

/* --- reactor.c */

/* Make `reactor`, which is zeroes, a reactor of the calling thread on this engine. 0 or -errno. */
int reactor_init(struct reactor *reactor, const struct loop_engine *engine);

/* Free what the reactor holds, except its own memory. On its thread, when nothing runs there. */
void reactor_release(struct reactor *reactor);

/* Run one turn. If the thread has lost the reactor in it, reactor_current() differs afterwards. */
void reactor_turn(struct reactor *reactor);

/* Whether `stop` is set, and the coroutines have ended. */
bool reactor_may_end(struct reactor *reactor);

/* Make the reactor run one more turn before it sleeps. Any thread, any signal handler. */
void reactor_kick(struct reactor *reactor);

/* Read the bell, so that its next ring ends a wait. */
void reactor_silence_bell(struct reactor *reactor);

/* Add 1 to a counter of the reactor. On its thread. */
static inline void reactor_count(struct reactor *reactor, enum reactor_stat i)
{
    counter_add(&reactor->stats[i], 1);
}

/* --- rescue.c */

/* Value of blocked_since: the thread that made the call has lost the reactor. */
#define REACTOR_LOST (-1)

/*
 * Run the reactor on the calling thread until the reactor ends or the thread has lost it. When a
 * call of its thread hangs, the reactor gets another thread, which has prepared for engine `spare`.
 */
void loop_rescue_serve(struct reactor *reactor, const struct loop_engine *spare);

/* Join the threads of the rescue. No reactor is served any more. */
void loop_rescue_stop(void);

/* Whether a coroutine may now make a call on `fd` that, if it hangs, takes only its thread. */
bool loop_may_hang(struct reactor *reactor, int fd);

/*
 * Before and after such a call, begun at now_ns, to file system `fs`. In between the caller does
 * not touch the reactor. loop_co_hang_end() returns true if the thread still has the reactor; it
 * has not yielded then. It returns false if the call hung: the coroutine continues on another
 * thread, decrements fs->hanging, and ends `wait`, whose `fd` is set, and which was begun for it.
 */
void loop_hang_begin(struct reactor *reactor, struct file_system *fs, struct co_wait *wait,
                     int64_t now_ns);
bool loop_co_hang_end(struct reactor *reactor, int64_t now_ns);

/* --- file_io.c */

/* Read the environment variables TIDEMARK_READ and TIDEMARK_WRITE. */
void loop_file_io_init(void);

/* --- timer.c */

/* Run the timers that are due; the time of the turn. */
void loop_timers_run(struct reactor *reactor);

/* Nanoseconds until the next timer is due; -1 without timers. */
int64_t loop_timers_next(const struct reactor *reactor);

/* Free the heap. */
void loop_timers_release(struct reactor *reactor);

/* --- offload.c */

/* What loop_set_may_block() set. */
bool loop_may_block(void);

/*
 * Wait for the threads of the pool to end, but not for those that hang. The pool can start again.
 */
void loop_offload_stop(void);

/* --- pool_io.c */

/* File I/O by the offload pool: as the functions of an engine, for all engines. */
ssize_t loop_pool_co_preadv(struct reactor *reactor, int fd, const struct iovec *iov, int iovcnt,
                            uint64_t offset);
ssize_t loop_pool_co_pwritev(struct reactor *reactor, int fd, const struct iovec *iov, int iovcnt,
                             uint64_t offset, unsigned flags);
int loop_pool_co_fdatasync(struct reactor *reactor, int fd);
int loop_pool_co_fallocate(struct reactor *reactor, int fd, int mode, uint64_t offset,
                           uint64_t length);

#endif
