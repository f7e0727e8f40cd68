/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Reactors. One thread, one ring (or one epoll set), one run queue of coroutines each.
 *
 * One turn of a reactor:
 *   1. run every coroutine that was runnable when the turn began (a seeded reactor: in random
 * order)
 *   2. run the deferred calls (replies that gathered leave together here)
 *   3. submit all queued I/O in one io_uring_enter(), and wait there if nothing is runnable
 *   4. reap completions, which make coroutines runnable, and run the timers that are due
 *   5. run coroutines that gave way (loop_co_give_way()): at least one, and others while the turn's time lasts
 *
 * Whoever hangs in a write to the page cache costs the reactor its thread; it goes on with another (rescue.c).
 *
 * The engine is io_uring, or epoll with a pool of threads for file I/O where io_uring is not
 * permitted or TIDEMARK_LOOP=epoll is set in the environment.
 *
 * Functions named `loop_co_...` may yield and run in a coroutine, on the reactor the coroutine
 * belongs to.
 */
#ifndef TIDEMARK_LOOP_LOOP_H
#define TIDEMARK_LOOP_LOOP_H

#include <poll.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/socket.h>
#include <sys/types.h>
#include <sys/uio.h>

#include "base/error.h"
#include "base/time_units.h"
#include "co/co.h"

struct reactor;

/* Reactors that may exist at one time in the process; indices run from 0 (main) to this minus 1. */
#define REACTOR_MAX 64

/* --- life
 * ----------------------------------------------------------------------------------------- */

/*
 * Make the calling thread the main reactor (index 0). Once, first thing in main(). Ignores SIGPIPE and SIGXFSZ.
 * Returns -ENOSYS etc. only when neither engine works.
 */
int reactor_init_main(struct error *err);

/* Stop and join all other reactors and the offload pool, release the main one. */
void reactor_exit_main(void);

/* Start a reactor in a thread of its own. `name` is for the thread (15 characters). Main reactor
 * only. */
int reactor_create(const char *name, struct reactor **ret_reactor, struct error *err);

/* Stop it once its coroutines have all ended, join, release. Main reactor only, outside coroutines
 * or in one. */
void reactor_destroy(struct reactor *reactor);

struct reactor *reactor_main(void);
/* The one with this index (below REACTOR_MAX); NULL if there is none now. Main reactor only. */
struct reactor *reactor_at(unsigned index);
/* The reactor of this thread; NULL on a thread that has none. */
struct reactor *reactor_current(void);
unsigned reactor_index(const struct reactor *reactor);
struct co_home *reactor_home(struct reactor *reactor);
/* "io_uring" or "epoll". */
const char *reactor_engine(void);

/* Run `entry(arg)` as a coroutine on `reactor`, soon. Any thread. As co_spawn(). */
int reactor_spawn(struct reactor *reactor, co_entry *entry, void *arg);

/* On the main thread, outside coroutines: run turns until the coroutine `entry(arg)` has ended. */
int reactor_run_until_done(co_entry *entry, void *arg);

/* On the main thread, outside coroutines: run turns until reactor_quit_main(), which any thread and
 * any signal handler may call. */
void reactor_run_main(void);
void reactor_quit_main(void);

/* Pick the next runnable coroutine at random with this seed (0: off), and run by itself what goes to the offload pool
 * otherwise, so that a run can be repeated. For tests; on the reactor's own thread. */
void reactor_set_seed(struct reactor *reactor, uint64_t seed);

/* Run `entry(arg)` on reactor `reactor` and return here when it has ended: the calling coroutine goes there and comes back, so
 * nothing is needed that could be missing. From a coroutine of any reactor. Yields. */
void loop_co_call_on(struct reactor *reactor, co_entry *entry, void *arg);

/* --- long work in pieces ------------------------------------------------------------------------ */

/*
 * A coroutine that works for long without waiting for anything (data in the page cache is read and written on the
 * spot) asks between two pieces of its work, each well below a millisecond:
 *
 *      if (reactor_turn_expired()) {
 *          loop_co_give_way();
 *      }
 *
 * Costs a look at the clock; cheap beside copying 64 KiB. Of this reactor's thread.
 */
#define REACTOR_TURN_NS INT64_C(500000)

/* Whether coroutines that ask have had REACTOR_TURN_NS of this turn, counted from the first time that one asked. */
bool reactor_turn_expired(void);

/*
 * Go behind everybody else on this reactor: those that are runnable, completions, messages, sockets and timers
 * that are due meanwhile. Goes on in this turn or one of the next, after those that gave way before. Each turn lets
 * them have REACTOR_TURN_NS together, so that many of them hold up the others for no longer than one. Yields.
 */
void loop_co_give_way(void);

/* --- deferred calls ------------------------------------------------------------------------------
 */

/* Memory of the caller; must live until fn has been called. */
struct reactor_deferred {
    struct list link;
    void (*fn)(struct reactor_deferred *self);
    bool queued;
};

/*
 * Have `d->fn(d)` called once at step 2 of this turn, on this reactor's thread, outside a
 * coroutine. A `d` that is queued already stays queued once. fn must not yield; it may spawn or
 * co_run().
 */
void reactor_defer(struct reactor_deferred *d);
void reactor_deferred_init(struct reactor_deferred *d, void (*fn)(struct reactor_deferred *self));

/* --- file I/O: offsets and lengths in bytes
 * ------------------------------------------------------- */

/*
 * As preadv(2)/pwritev(2) at `offset`: returns bytes done, which may be fewer, or -errno. A
 * buffered read first tries RWF_NOWAIT and does not yield when the page cache has it. `iovcnt` <=
 * IOV_MAX. LOOP_IO_DSYNC on a write: stable when it returns (RWF_DSYNC).
 */
#define LOOP_IO_DSYNC 1u
ssize_t loop_co_preadv(int fd, const struct iovec *iov, int iovcnt, uint64_t offset);
ssize_t loop_co_pwritev(int fd, const struct iovec *iov, int iovcnt, uint64_t offset,
                        unsigned flags);
/* fdatasync(2). 0 or -errno. */
int loop_co_fdatasync(int fd);
/* fallocate(2) with its mode bits. 0 or -errno. */
int loop_co_fallocate(int fd, int mode, uint64_t offset, uint64_t length);

/* --- sockets: non-blocking descriptors -----------------------------------------------------------
 */

/* Wait until poll(2) `events` hold on fd. Returns revents (>0), -ETIMEDOUT, or -errno. timeout_ns <
 * 0: forever. */
int loop_co_poll(int fd, short events, int64_t timeout_ns);

/* recv(2)/sendmsg(2) on a non-blocking socket; wait when it would block. Bytes (0: end of stream)
 * or -errno. */
ssize_t loop_co_recv(int fd, void *buf, size_t size);
/* As loop_co_recv(), for who has found the socket empty just now: waits before it looks. */
ssize_t loop_co_recv_later(int fd, void *buf, size_t size);
ssize_t loop_co_sendmsg(int fd, const struct msghdr *msg, int flags);
/* Accept a connection (non-blocking, close-on-exec). The descriptor, or -errno; -ECANCELED after
 * shutdown(). */
int loop_co_accept(int fd);
/* Connect a non-blocking socket. 0 or -errno. timeout_ns < 0: forever. */
int loop_co_connect(int fd, const struct sockaddr *addr, socklen_t len, int64_t timeout_ns);

/* --- time
 * ------------------------------------------------------------------------------------------ */

/* CLOCK_MONOTONIC in nanoseconds. */
int64_t loop_now_ns(void);
void loop_co_sleep(int64_t ns);

/* A timer of the reactor it was armed on; memory of the caller. fn runs there, outside a coroutine;
 * it must not yield. */
struct loop_timer {
    void (*fn)(struct loop_timer *self);
    int64_t deadline_ns; /* CLOCK_MONOTONIC */
    size_t heap_index;   /* SIZE_MAX while not armed */
};
void loop_timer_init(struct loop_timer *t, void (*fn)(struct loop_timer *self));
/* Arm or move; on the reactor's own thread. */
void loop_timer_arm(struct loop_timer *t, int64_t deadline_ns);
void loop_timer_disarm(struct loop_timer *t);

/* --- offload pool
 * ---------------------------------------------------------------------------------- */

/*
 * Run fn(arg) on a thread of the pool and return what it returned. For CPU work over ~50 us and
 * for calls that can block. Yields. The pool grows to a thread per processor (at least 4) and
 * work waits its turn in FIFO order.
 */
int loop_co_offload(int (*fn)(void *arg), void *arg);

/*
 * As loop_co_offload(), for a system call that can block but seldom does so for long: a program that has nothing to do but wait
 * for it (loop_set_patient()) makes it on the spot, which spares two trips between threads.
 * It writes to the page cache on the spot, too, however long that takes.
 */
int loop_co_brief(int (*fn)(void *arg), void *arg);
/* Before the first coroutine runs. Of the whole program; off at first. */
void loop_set_patient(bool patient);
/*
 * The main reactor has others to serve than who waits for its I/O: its writes don't go to the page cache on the spot. I/O
 * reactors never wait for a file. Before the first coroutine runs; off at first.
 */
void loop_set_serving(bool serving);

/*
 * As loop_co_offload() for each of `count` (1 to LOOP_OFFLOAD_ALL_MAX) arguments of `size` bytes in an array; they run
 * beside each other, in any order. Returns when all are done: the first negative result, else the first that is not 0.
 */
#define LOOP_OFFLOAD_ALL_MAX 16
int loop_co_offload_all(int (*fn)(void *arg), void *args, size_t size, unsigned count);

#endif
