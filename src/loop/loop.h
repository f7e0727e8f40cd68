/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Reactors. Each has one thread, one ring (or one epoll set) and one run queue of coroutines. One
 * turn of a reactor:
 *
 *   1. Run every coroutine that was runnable when the turn began (a seeded reactor: in random
 *      order).
 *   2. Run the deferred calls (replies that have gathered leave together here).
 *   3. Submit all queued I/O in one io_uring_enter(), and wait there if nothing is runnable.
 *   4. Reap completions, which make coroutines runnable, and run the timers that are due.
 *   5. Run coroutines that gave way (loop_co_give_way()): at least one, and more while the turn's
 *      time lasts.
 *
 * A coroutine that hangs in a write to the page cache keeps its reactor's thread; the reactor then
 * continues on another one (rescue.c).
 *
 * The engine is io_uring. It is epoll, with a pool of threads for file I/O, where io_uring is not
 * permitted, or where the environment has TIDEMARK_LOOP=epoll.
 *
 * Functions named `loop_co_...` run in a coroutine, on the reactor that the coroutine belongs to,
 * and may yield. No other function yields. Times are nanoseconds, offsets and lengths bytes.
 */
#ifndef TIDEMARK_LOOP_LOOP_H
#define TIDEMARK_LOOP_LOOP_H

#include <poll.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/socket.h>
#include <sys/types.h>
#include <sys/uio.h>

#include "base/error.h"
#include "base/time_units.h"
#include "co/co.h"

struct reactor;

/* The most reactors of the process; indices are 0 (main) to REACTOR_MAX - 1. */
#define REACTOR_MAX 64

/* --- life */

/*
 * Make the calling thread the main reactor (index 0). Called once, first in main(). Ignores SIGPIPE
 * and SIGXFSZ. Returns 0; -EINVAL if TIDEMARK_LOOP is not a name of an engine; -ENOMEM; or the
 * error of the last engine if none works.
 */
int reactor_init_main(struct error *err);

/*
 * Stop and join all other reactors and the offload pool, and free the main reactor. On the main
 * thread, outside a coroutine.
 */
void reactor_exit_main(void);

/*
 * Start a reactor in a thread of its own. `name`, of which 15 characters are used, names the
 * thread. On the main reactor, which owns the result until reactor_destroy(). Returns 0, -EAGAIN at
 * REACTOR_MAX, -ENOMEM, or the error of the engine or of pthread_create(3).
 */
int reactor_create(const char *name, struct reactor **ret_reactor, struct error *err);
/*
 * Likewise; where processors are short, the threads of this one get a tenth of what others get.
 * What they lock meanwhile, others wait for. `slice_ns`: for how long they run before they give way
 * to a thread that wakes up; 0: what is usual, a few milliseconds, in which they do more at a time.
 */
int reactor_create_background(const char *name, uint64_t slice_ns, struct reactor **ret_reactor,
                              struct error *err);

/*
 * Wait until all coroutines of the reactor have ended, join its thread, and free it. On the main
 * reactor. Yields if called in a coroutine; blocks and runs turns if called outside one.
 */
void reactor_destroy(struct reactor *reactor);

/* The main reactor; NULL before reactor_init_main(). Any thread. */
struct reactor *reactor_main(void);

/* The reactor with this index, below REACTOR_MAX; NULL if there is none. On the main reactor. */
struct reactor *reactor_at(unsigned index);

/* The reactor of the calling thread; NULL on a thread without one. */
struct reactor *reactor_current(void);

/* The index of a reactor. Any thread. */
unsigned reactor_index(const struct reactor *reactor);

/* The home of the reactor's coroutines. Any thread. */
struct co_home *reactor_home(struct reactor *reactor);

/* The main reactor's engine: "io_uring" or "epoll". */
const char *reactor_engine(void);

/* Queue `entry(arg)` as a coroutine of `reactor`. Any thread. Returns as co_spawn(). */
int reactor_spawn(struct reactor *reactor, co_entry *entry, void *arg);

/*
 * Run turns until the coroutine `entry(arg)` has ended. On the main thread, outside a coroutine.
 * Returns 0, or an error of co_spawn(), in which case `entry` did not run.
 */
int reactor_run_until_done(co_entry *entry, void *arg);

/* Run turns until reactor_quit_main(). On the main thread, outside a coroutine. */
void reactor_run_main(void);

/* End reactor_run_main(), at its next call if it does not run. Any thread, any signal handler. */
void reactor_quit_main(void);

/*
 * Have the reactor look for work for a time before it sleeps: a wake-up takes longer than a look.
 * The time adapts itself, and is at most max_ns (0: it sleeps at once). When a look was in vain,
 * but the reactor did not sleep for longer than max_ns, the time is multiplied by `grow` (0: by 2);
 * when it slept for longer, the time is divided by `shrink` (0: it becomes 0). None is negative.
 * Any thread.
 */
void reactor_set_polling(struct reactor *reactor, int64_t max_ns, int64_t grow, int64_t shrink);

/*
 * Make runs repeatable, for tests: pick the next runnable coroutine at random, from this seed, and
 * run work for the offload pool in the calling coroutine. 0 ends this. On the reactor's thread.
 */
void reactor_set_seed(struct reactor *reactor, uint64_t seed);

/*
 * Run `entry(arg)` in the calling coroutine, which moves to `reactor` for that time, and return on
 * the present reactor. Can't fail. Yields, unless `reactor` is the present one.
 */
void loop_co_call_on(struct reactor *reactor, co_entry *entry, void *arg);

/* --- long work in pieces */

/*
 * The time in one turn for coroutines that work for long without waiting (such as copies of data
 * that is in the page cache). Between two pieces of work, each well below a millisecond, such a
 * coroutine calls
 *
 *      if (reactor_turn_expired()) {
 *          loop_co_give_way();
 *      }
 *
 * The call reads the clock, which is cheap in comparison with a copy of 64 KiB.
 */
#define REACTOR_TURN_NS INT64_C(500000)

/* Whether REACTOR_TURN_NS have passed since the first such call of this turn. On a reactor. */
bool reactor_turn_expired(void);

/*
 * Yield to all runnable coroutines of this reactor, completions, messages, sockets, and timers that
 * become due in the meantime. Continues in this turn or a later one, after the coroutines that gave
 * way before. They get REACTOR_TURN_NS per turn in total, so any number of them delays the others
 * no longer than one does.
 */
void loop_co_give_way(void);

/* --- deferred calls */

/* Memory of the caller, from init until no call is queued. */
struct reactor_deferred {
    struct list link;
    void (*fn)(struct reactor_deferred *self);
    bool queued;
};

/* `fn` is called outside a coroutine. It must not yield; it may spawn coroutines and co_run(). */
void reactor_deferred_init(struct reactor_deferred *d, void (*fn)(struct reactor_deferred *self));

/*
 * Call d->fn(d) once, in step 2 of this turn, or of the next if step 2 is under way. Nothing if the
 * call is queued already. On a reactor.
 */
void reactor_defer(struct reactor_deferred *d);

/* --- file I/O */

enum loop_io_flags {
    /* a write returns when the data is on stable storage (RWF_DSYNC) */
    LOOP_IO_DSYNC = 1 << 0,
};

/*
 * As preadv(2) and pwritev(2) at `offset`, with at most IOV_MAX elements; `flags` are
 * loop_io_flags. The vector and the buffers are the caller's until the return. Returns the number
 * of bytes done, which may be less than the sum, or -errno. A buffered read that the page cache can
 * serve, and most buffered writes, do not yield.
 */
ssize_t loop_co_preadv(int fd, const struct iovec *iov, int iovcnt, uint64_t offset);
ssize_t loop_co_pwritev(int fd, const struct iovec *iov, int iovcnt, uint64_t offset,
                        unsigned flags);

/* As fdatasync(2). 0 or -errno. Yields. */
int loop_co_fdatasync(int fd);

/* As fallocate(2), with its mode bits. 0 or -errno. Yields. */
int loop_co_fallocate(int fd, int mode, uint64_t offset, uint64_t length);

/* --- sockets: descriptors that do not block */

/*
 * Wait until one of the poll(2) events holds on `fd`, at most timeout_ns (negative: without limit).
 * Returns the events that hold, which include errors and hangups, -ETIMEDOUT, or -errno.
 */
int loop_co_poll(int fd, short events, int64_t timeout_ns);

/* As recv(2), but wait for data. Returns bytes, 0 at the end of the stream, or -errno. */
ssize_t loop_co_recv(int fd, void *buf, size_t size);

/*
 * As recvmsg(2), but wait for data; received descriptors are close-on-exec. Returns bytes, 0 at the
 * end of the stream, or -errno.
 */
ssize_t loop_co_recvmsg(int fd, struct msghdr *msg);

/* As loop_co_recv(), for callers that know that there is no data yet: waits before it tries. */
ssize_t loop_co_recv_later(int fd, void *buf, size_t size);

/* As sendmsg(2), but wait for room; raises no SIGPIPE. Returns bytes, maybe not all, or -errno. */
ssize_t loop_co_sendmsg(int fd, const struct msghdr *msg, int flags);

/*
 * Wait for a connection. Returns its descriptor, non-blocking and close-on-exec, which the caller
 * owns; -ECANCELED after shutdown(2) of `fd`; or -errno.
 */
int loop_co_accept(int fd);

/*
 * As connect(2), for at most timeout_ns (negative: without limit). 0, -ETIMEDOUT or -errno. For the
 * path of a unix socket there is no limit: its file system may hang.
 */
int loop_co_connect(int fd, const struct sockaddr *addr, socklen_t len, int64_t timeout_ns);

/* --- time */

/* CLOCK_MONOTONIC. Any thread. */
int64_t loop_now_ns(void);

/* Wait for `ns`; with 0 or less, as co_reschedule(). Yields. */
void loop_co_sleep(int64_t ns);

/* A timer of the reactor on which it was armed. Memory of the caller, while armed. */
struct loop_timer {
    /* called on that reactor, outside a coroutine; must not yield */
    void (*fn)(struct loop_timer *self);
    /* of loop_now_ns() */
    int64_t deadline_ns;
    /* place in the reactor's heap; SIZE_MAX while not armed */
    size_t heap_index;
};

/* Not armed at first; nothing has to be freed afterwards. */
void loop_timer_init(struct loop_timer *t, void (*fn)(struct loop_timer *self));

/* Call t->fn(t) once at this time; replaces an earlier deadline. On the reactor's thread. */
void loop_timer_arm(struct loop_timer *t, int64_t deadline_ns);

/* Cancel the call; nothing if the timer is not armed. On the reactor's thread. */
void loop_timer_disarm(struct loop_timer *t);

/* --- offload pool: threads for work that would delay a reactor */

/*
 * Run fn(arg) on a thread of the pool and return its result. For computation above about 50 us and
 * for calls that can block. The pool has one thread per processor (at least 4), more while jobs
 * hang; work waits in FIFO order. Without any thread fn runs on the reactor. Yields.
 */
int loop_co_offload(int (*fn)(void *arg), void *arg);

/*
 * How many threads the pool has while none hangs: `min` at least, `max` at most (0: no bound).
 * Without bounds as many as there are processors, and at least 4. Threads above are ended when they
 * are idle. Any thread.
 */
void loop_offload_set_threads(unsigned min, unsigned max);

/* The most arguments of loop_co_offload_all(). */
#define LOOP_OFFLOAD_ALL_MAX 16

/*
 * As loop_co_offload() for each of `count` (1 to LOOP_OFFLOAD_ALL_MAX) elements of the array
 * `args`, `size` bytes each, in parallel and in any order. Returns when all have ended: the first
 * negative result, else the first that is not 0. Yields.
 */
int loop_co_offload_all(int (*fn)(void *arg), void *args, size_t size, unsigned count);

/*
 * As loop_co_offload(), for system calls that can block but are usually short. With
 * loop_set_may_block() the call is made on the reactor, without yielding, which saves two switches
 * between threads.
 */
int loop_co_brief(int (*fn)(void *arg), void *arg);

/*
 * Calls that look up a path, by loop_co_brief(): the file system may hang, or be served by this
 * very process. As open(2): a descriptor, which the caller owns, or -errno. As unlink(2) and
 * stat(2): 0 or -errno.
 */
struct stat;
int loop_co_open(const char *path, int flags, mode_t mode);
int loop_co_unlink(const char *path);
int loop_co_stat(const char *path, struct stat *ret_stat);
/* As close(2), by loop_co_brief(): a file system may hang then, too. */
void loop_co_close(int fd);
/* As realpath(3): the caller frees the path. NULL: there is no such file, or no memory. */
char *loop_co_real_path(const char *path);

/* --- waiting with a limit of time: for who can do without an answer */

/* How long such an answer is waited for: in general, and while an earlier one is late. */
#define LOOP_PATIENCE_NS NS_PER_SECOND
#define LOOP_LATE_PATIENCE_NS (100 * NS_PER_MS)

/*
 * An answer that one coroutine waits for and another one gives, both on the same reactor. Memory of
 * the caller, until the wait has ended and the answer has been given. The members are private.
 */
struct loop_answer {
    struct co *waiter; /* suspended, until there is an answer or the time is over; else NULL */
    bool given;
    struct loop_timer timer;
};

/* Nothing has to be freed afterwards. */
void loop_answer_init(struct loop_answer *a);
/* Wait for the answer, for at most `patience_ns`. Whether it has been given. Yields. */
bool loop_co_answer_wait(struct loop_answer *a, int64_t patience_ns);
/* Does not yield. */
void loop_answer_give(struct loop_answer *a);

/* A call that blocks, and that goes on when nobody waits for it any more. */
struct loop_call {
    /* As the argument of loop_co_offload(); on a thread of the pool. */
    int (*fn)(struct loop_call *self);
    /* The call has ended that was late: frees it. On the reactor of the caller. */
    void (*end_late)(struct loop_call *self);
    /* What `fn` has returned. */
    int result;
    /* Nobody waits any more. Any thread. */
    atomic_bool is_late;
    /* private */
    struct loop_answer answer;
};

/*
 * Make the call as loop_co_brief() does, and wait for at most `patience_ns`. `fn` and `end_late`
 * are set, the other members are not. True: `result` is set. False: the call goes on, and its
 * memory belongs to it from now on, until `end_late`. Without memory for another coroutine it waits
 * for as long as it takes. Yields.
 */
bool loop_co_call_within(struct loop_call *c, int64_t patience_ns);

/*
 * Calls about paths, by loop_co_call_within(). The main reactor of a program that serves others
 * waits for LOOP_PATIENCE_NS at most, and LOOP_LATE_PATIENCE_NS while an earlier answer is late.
 * Other callers wait for as long as it takes.
 *
 * ret_real[i] becomes the path `paths[i]` with links followed, which the caller frees; NULL: there
 * is no such file, or that is not known. -ETIMEDOUT: there was no answer in time, and none of them
 * is known; -ENOMEM: likewise.
 */
int loop_co_real_paths_soon(const char *const *paths, size_t count, char **ret_real);
/*
 * -ETIMEDOUT: the file system has not answered in time; the file stays, unless it is being removed
 * already: one that gets the same name meanwhile is never removed. Else 0 or -errno of unlink(2).
 */
int loop_co_unlink_soon(const char *path);

/*
 * Declare that the program may block in file I/O, because it has nothing else to do (off at first).
 * It then makes brief calls and buffered writes on the reactor, however long they take. Called
 * before the first coroutine runs.
 */
void loop_set_may_block(bool may_block);

/*
 * Declare that the main reactor serves others than those that wait for its I/O (off at first). It
 * then makes no buffered write on the spot. The other reactors never block in file I/O, whatever is
 * set here. Called before the first coroutine runs.
 */
void loop_set_serving(bool serving);
/* What that was set to. Any thread. */
bool loop_is_serving(void);

#endif
