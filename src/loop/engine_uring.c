/* SPDX-License-Identifier: Apache-2.0 */
/*
 * io_uring: one system call submits everything that was queued in a turn, and waits.
 *
 * An operation is a struct on the stack of the coroutine that waits for it. Its address is the user
 * data in the ring.
 *
 * A ring serves only the thread that made it. When that thread hangs and the reactor gets another
 * one (rescue.c), the new thread has a ring of its own. Coroutines that poll are woken and poll
 * again there; the old polls have no effect, and their completions are ignored. For that reason
 * sockets are polled and then read, instead of received from by the ring: a receive in the old ring
 * would take the data that the new one waits for. File I/O in the old ring can't be done twice; it
 * completes when the call of the old thread has returned.
 */
#include <errno.h>
#include <limits.h>
#include <liburing.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <unistd.h>

#include "base/checked.h"
#include "base/log.h"
#include "loop/internal.h"

#define SQ_ENTRIES 256
#define CQ_ENTRIES 4096

enum user_data {
    /* no coroutine waits for the completion */
    USER_DATA_NONE = 0,
    /* the poll of the bell */
    USER_DATA_BELL = 1,
    /* added to the address of an operation that is a poll */
    USER_DATA_POLL = 2,
};

/* Result of a poll that has to be made again, in another ring. */
#define MOVED INT_MIN

/*
 * Kernel threads that file I/O of one ring may block. The kernel's default may be as low as eight.
 */
#define KERNEL_WORKERS_MAX 1024

struct uring {
    struct io_uring ring;
    /* the kernel posts completions only when the ring is entered for them (DEFER_TASKRUN) */
    bool deferred;
    /* one poll of the bell reports every ring of the bell */
    bool bell_multiple;
    /* file operations in flight */
    unsigned files;
    /* their descriptor */
    int files_fd;
    /* they also have other descriptors */
    bool files_mixed;
    /* of struct uring_op, in flight */
    struct list polls;
};

struct uring_op {
    /* of a poll: in `polls` */
    struct list link;
    struct co *co;
    int result;
};

static struct uring *uring_of(struct reactor *reactor)
{
    return reactor->engine_data;
}

/* An entry of the submission queue. NULL only if the kernel accepts nothing at the moment. */
static struct io_uring_sqe *get_sqe(struct uring *u)
{
    struct io_uring_sqe *sqe = io_uring_get_sqe(&u->ring);

    if (!sqe) {
        io_uring_submit(&u->ring);
        sqe = io_uring_get_sqe(&u->ring);
    }
    return sqe;
}

static struct io_uring_sqe *co_get_sqe(struct reactor *reactor)
{
    struct io_uring_sqe *sqe = get_sqe(uring_of(reactor));

    while (!sqe) {
        co_reschedule();
        sqe = get_sqe(uring_of(reactor));
    }
    return sqe;
}

/* Wait for the file operation `sqe` on `fd`, and return its result. */
static int co_wait_for_file(struct uring *u, struct io_uring_sqe *sqe, int fd)
{
    struct uring_op op = {.co = co_self()};

    if (u->files++ == 0) {
        u->files_fd = fd;
        u->files_mixed = false;
    } else if (u->files_fd != fd) {
        u->files_mixed = true;
    }
    io_uring_sqe_set_data(sqe, &op);
    co_suspend();
    return op.result;
}

/* Wait for the poll `sqe`, and return its result or MOVED. */
static int co_wait_for_poll(struct uring *u, struct io_uring_sqe *sqe, struct uring_op *op)
{
    op->co = co_self();
    op->result = 0;
    list_append(&u->polls, &op->link);
    io_uring_sqe_set_data64(sqe, (uint64_t)(uintptr_t)op | USER_DATA_POLL);
    co_suspend();
    return op->result;
}

/* --- the bell: a poll of the eventfd reports each write, so the eventfd need not be read */

static void watch_bell(struct reactor *reactor)
{
    struct uring *u = uring_of(reactor);
    struct io_uring_sqe *sqe = get_sqe(u);

    if (!sqe) {
        log_error("Reactor '%s' cannot watch its bell", reactor->name);
        abort();
    }
    if (u->bell_multiple) {
        io_uring_prep_poll_multishot(sqe, reactor->bell, POLLIN);
    } else {
        io_uring_prep_poll_add(sqe, reactor->bell, POLLIN);
    }
    io_uring_sqe_set_data64(sqe, USER_DATA_BELL);
}

static void bell_rang(struct reactor *reactor, const struct io_uring_cqe *cqe)
{
    if (cqe->flags & IORING_CQE_F_MORE) {
        return;
    }
    if (cqe->res == -EINVAL) {
        uring_of(reactor)->bell_multiple = false;
    }
    /* The poll has ended. Read the bell before the next one, which would end at once otherwise. */
    reactor_silence_bell(reactor);
    watch_bell(reactor);
}

/* --- life */

/*
 * Without NODROP (kernel 5.5) completions could be lost. Without EXT_ARG (5.11) liburing implements
 * a wait with a time limit by an operation of its own, whose completion would come among ours.
 */
static bool has_features(const struct io_uring_params *params)
{
    const unsigned needed = IORING_FEAT_NODROP | IORING_FEAT_EXT_ARG;

    return (params->features & needed) == needed;
}

static int init_ring(struct uring *u)
{
    /* The best first; kernels before 6.1, 5.19 and 5.18 lack some. */
    static const unsigned flags[] = {
        IORING_SETUP_SINGLE_ISSUER | IORING_SETUP_DEFER_TASKRUN | IORING_SETUP_TASKRUN_FLAG |
            IORING_SETUP_COOP_TASKRUN,
        IORING_SETUP_TASKRUN_FLAG | IORING_SETUP_COOP_TASKRUN,
        0,
    };
    int r = -EINVAL;

    for (size_t i = 0; i < sizeof(flags) / sizeof(flags[0]) && r == -EINVAL; i++) {
        struct io_uring_params params = {
            .flags = flags[i] | IORING_SETUP_CQSIZE,
            .cq_entries = CQ_ENTRIES,
        };

        r = io_uring_queue_init_params(SQ_ENTRIES, &u->ring, &params);
        u->deferred = flags[i] & IORING_SETUP_DEFER_TASKRUN;
        if (r == 0 && !has_features(&params)) {
            io_uring_queue_exit(&u->ring);
            return -ENOSYS;
        }
    }
    return r;
}

static int uring_prepare(void **ret_data)
{
    unsigned workers[2] = {KERNEL_WORKERS_MAX, 0};
    struct uring *u = calloc(1, sizeof(*u));
    int r;

    if (!u) {
        return -ENOMEM;
    }
    r = init_ring(u);
    if (r < 0) {
        free(u);
        return r;
    }
    /* Makes system calls cheaper, and allows more to hang. Optional: some kernels lack it. */
    io_uring_register_ring_fd(&u->ring);
    io_uring_register_iowq_max_workers(&u->ring, workers);
    u->bell_multiple = true;
    list_init(&u->polls);
    *ret_data = u;
    return 0;
}

static void uring_discard(void *data)
{
    struct uring *u = data;

    io_uring_queue_exit(&u->ring);
    free(u);
}

static void uring_adopt(struct reactor *reactor, void *data)
{
    struct uring *old = uring_of(reactor);

    reactor->engine_data = data;
    watch_bell(reactor);
    while (old && !list_is_empty(&old->polls)) {
        struct uring_op *op = LIST_FIRST(&old->polls, struct uring_op, link);

        list_remove(&op->link);
        op->result = MOVED;
        co_wake(op->co);
    }
}

/* --- the turn */

static void complete_op(struct uring *u, const struct io_uring_cqe *cqe)
{
    struct uring_op *op =
        (struct uring_op *)(uintptr_t)(cqe->user_data & ~(uint64_t)USER_DATA_POLL);

    if (cqe->user_data & USER_DATA_POLL) {
        list_remove(&op->link);
    } else {
        u->files--;
    }
    op->result = cqe->res;
    co_wake(op->co);
}

static void reap(struct reactor *reactor)
{
    struct uring *u = uring_of(reactor);
    struct io_uring_cqe *cqes[64];
    unsigned count;

    do {
        count = io_uring_peek_batch_cqe(&u->ring, cqes, 64);
        for (unsigned i = 0; i < count; i++) {
            uint64_t data = cqes[i]->user_data;

            if (data == USER_DATA_BELL) {
                bell_rang(reactor, cqes[i]);
            } else if (data != USER_DATA_NONE) {
                complete_op(u, cqes[i]);
            }
        }
        io_uring_cq_advance(&u->ring, count);
    } while (count == 64);
}

static bool is_file_io(uint64_t user_data)
{
    return user_data != USER_DATA_NONE && user_data != USER_DATA_BELL &&
           !(user_data & USER_DATA_POLL);
}

/* Coroutines wait for file I/O only; polls have been moved. */
static void uring_abandon(void *data)
{
    struct uring *u = data;
    struct io_uring_cqe *cqe;

    while (u->files > 0) {
        io_uring_submit_and_wait(&u->ring, 1);
        while (io_uring_peek_cqe(&u->ring, &cqe) == 0) {
            if (is_file_io(cqe->user_data)) {
                complete_op(u, cqe);
            }
            io_uring_cqe_seen(&u->ring, cqe);
        }
    }
    uring_discard(u);
}

static bool uring_would_strand(struct reactor *reactor, int fd)
{
    const struct uring *u = uring_of(reactor);

    return u->files > 0 && (u->files_mixed || u->files_fd != fd);
}

/* Whether the kernel has completions that it posts only when the ring is entered. */
static bool has_task_work(struct uring *u)
{
    return __atomic_load_n(u->ring.sq.kflags, __ATOMIC_RELAXED) &
           (IORING_SQ_TASKRUN | IORING_SQ_CQ_OVERFLOW);
}

static void submit_queued(struct uring *u)
{
    if (io_uring_sq_ready(&u->ring) > 0) {
        if (u->deferred) {
            io_uring_submit_and_get_events(&u->ring);
        } else {
            io_uring_submit(&u->ring);
        }
    } else if (has_task_work(u)) {
        io_uring_get_events(&u->ring);
    }
}

/* Errors (EINTR, EAGAIN, EBUSY) need no handling: the next turn tries again. */
static void uring_turn(struct reactor *reactor, int64_t timeout_ns)
{
    struct uring *u = uring_of(reactor);

    if (timeout_ns == 0 || io_uring_cq_ready(&u->ring) > 0) {
        submit_queued(u);
    } else if (timeout_ns < 0) {
        io_uring_submit_and_wait(&u->ring, 1);
    } else {
        struct __kernel_timespec ts = {
            .tv_sec = timeout_ns / NS_PER_SECOND,
            .tv_nsec = timeout_ns % NS_PER_SECOND,
        };
        struct io_uring_cqe *cqe;

        io_uring_submit_and_wait_timeout(&u->ring, &cqe, 1, &ts, NULL);
    }
    reap(reactor);
}

/* --- operations */

/*
 * The ring was short of memory, io_uring can't wait for this kind of descriptor, or a signal came.
 */
static bool uring_is_refused(int result)
{
    return result == -EAGAIN || result == -EINTR;
}

static ssize_t uring_co_preadv(struct reactor *reactor, int fd, const struct iovec *iov, int iovcnt,
                               uint64_t offset)
{
    struct io_uring_sqe *sqe = co_get_sqe(reactor);
    int r;

    io_uring_prep_readv(sqe, fd, iov, (unsigned)iovcnt, offset);
    r = co_wait_for_file(uring_of(reactor), sqe, fd);
    return uring_is_refused(r) ? loop_pool_co_preadv(reactor, fd, iov, iovcnt, offset) : r;
}

static ssize_t uring_co_pwritev(struct reactor *reactor, int fd, const struct iovec *iov,
                                int iovcnt, uint64_t offset, unsigned flags)
{
    int rw_flags = flags & LOOP_IO_DSYNC ? RWF_DSYNC : 0;
    struct io_uring_sqe *sqe = co_get_sqe(reactor);
    int r;

    io_uring_prep_writev2(sqe, fd, iov, (unsigned)iovcnt, offset, rw_flags);
    r = co_wait_for_file(uring_of(reactor), sqe, fd);
    return uring_is_refused(r) ? loop_pool_co_pwritev(reactor, fd, iov, iovcnt, offset, flags) : r;
}

static int uring_co_fdatasync(struct reactor *reactor, int fd)
{
    struct io_uring_sqe *sqe = co_get_sqe(reactor);
    int r;

    io_uring_prep_fsync(sqe, fd, IORING_FSYNC_DATASYNC);
    r = co_wait_for_file(uring_of(reactor), sqe, fd);
    return uring_is_refused(r) ? loop_pool_co_fdatasync(reactor, fd) : r;
}

static int uring_co_fallocate(struct reactor *reactor, int fd, int mode, uint64_t offset,
                              uint64_t length)
{
    struct io_uring_sqe *sqe = co_get_sqe(reactor);
    int r;

    io_uring_prep_fallocate(sqe, fd, mode, (off_t)offset, (off_t)length);
    r = co_wait_for_file(uring_of(reactor), sqe, fd);
    return uring_is_refused(r) ? loop_pool_co_fallocate(reactor, fd, mode, offset, length) : r;
}

/* On the stack of the coroutine that polls. */
struct poll_timeout {
    struct loop_timer timer;
    struct uring_op *op;
    bool expired;
};

/* Cancel the poll. It completes as cancelled, or with events that have come in the meantime. */
static void cancel_poll(struct loop_timer *self)
{
    struct poll_timeout *timeout = container_of(self, struct poll_timeout, timer);
    struct io_uring_sqe *sqe;

    if (timeout->op->result == MOVED) {
        return; /* uring_co_poll() continues with the time that is left */
    }
    sqe = get_sqe(uring_of(reactor_current()));
    if (!sqe) {
        loop_timer_arm(self, loop_now_ns() + NS_PER_MS);
        return;
    }
    timeout->expired = true;
    io_uring_prep_poll_remove(sqe, (uint64_t)(uintptr_t)timeout->op | USER_DATA_POLL);
    io_uring_sqe_set_data64(sqe, USER_DATA_NONE);
}

/*
 * As uring_co_poll(), of a socket whose other end sends no more: there a poll in the ring ends at
 * once, since io_uring reports POLLRDHUP to who did not ask for it. An epoll set does not.
 */
static int co_poll_half_closed(struct reactor *reactor, int fd, short events, int64_t timeout_ns)
{
    struct epoll_event event = {.events = (unsigned short)events};
    int set = epoll_create1(EPOLL_CLOEXEC), r;

    if (set >= 0 && epoll_ctl(set, EPOLL_CTL_ADD, fd, &event) == 0) {
        r = reactor->engine->co_poll(reactor, set, POLLIN, timeout_ns);
        if (r > 0) {
            r = epoll_wait(set, &event, 1, 0) > 0 ? (int)event.events : POLLRDHUP;
        }
    } else {
        /* Descriptors or memory are short. The caller looks at the socket, and comes back. */
        loop_co_sleep(10 * NS_PER_MS);
        r = POLLRDHUP;
    }
    if (set >= 0) {
        close(set);
    }
    return r;
}

static int uring_co_poll(struct reactor *reactor, int fd, short events, int64_t timeout_ns)
{
    struct uring_op op;
    struct poll_timeout timeout = {.op = &op};
    int64_t deadline_ns = timeout_ns < 0 ? 0 : loop_now_ns() + timeout_ns;
    struct io_uring_sqe *sqe = co_get_sqe(reactor);
    int r;

    io_uring_prep_poll_add(sqe, fd, (unsigned short)events);
    loop_timer_init(&timeout.timer, cancel_poll);
    if (timeout_ns >= 0) {
        loop_timer_arm(&timeout.timer, deadline_ns);
    }
    r = co_wait_for_poll(uring_of(reactor), sqe, &op);
    loop_timer_disarm(&timeout.timer);
    if (r == MOVED) {
        return reactor->engine->co_poll(reactor, fd, events,
                                        timeout_ns < 0 ? -1 : MAX(deadline_ns - loop_now_ns(), 0));
    }
    if (r == -EOPNOTSUPP) {
        return events & (POLLIN | POLLOUT); /* a regular file is always ready */
    }
    if (r > 0 && !(r & (events | POLLERR | POLLHUP | POLLNVAL))) {
        return co_poll_half_closed(reactor, fd, events,
                                   timeout_ns < 0 ? -1 : MAX(deadline_ns - loop_now_ns(), 0));
    }
    return r == -ECANCELED && timeout.expired ? -ETIMEDOUT : r;
}

const struct loop_engine loop_engine_uring = {
    .name = "io_uring",
    .prepare = uring_prepare,
    .discard = uring_discard,
    .adopt = uring_adopt,
    .abandon = uring_abandon,
    .would_strand = uring_would_strand,
    .turn = uring_turn,
    .co_preadv = uring_co_preadv,
    .co_pwritev = uring_co_pwritev,
    .co_fdatasync = uring_co_fdatasync,
    .co_fallocate = uring_co_fallocate,
    .co_poll = uring_co_poll,
};
