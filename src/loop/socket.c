/* SPDX-License-Identifier: Apache-2.0 */
/* Sockets: try the system call first, and poll if it would block. */
#include <assert.h>
#include <errno.h>
#include <sys/socket.h>
#include <sys/un.h>

#include "loop/internal.h"

/* Between two tries while the backlog of a Unix socket is full, which poll(2) does not report. */
#define CONNECT_RETRY_NS (5 * NS_PER_MS)

int loop_co_poll(int fd, short events, int64_t timeout_ns)
{
    struct reactor *reactor = reactor_current();
    struct co_wait wait;
    int r;

    assert(reactor && co_self());
    co_wait_begin(&wait, "the other end of the socket", NULL, -1);
    r = reactor->engine->co_poll(reactor, fd, events, timeout_ns);
    co_wait_end(&wait);
    return r;
}

static bool would_block(int errnum)
{
    return errnum == EAGAIN || errnum == EWOULDBLOCK;
}

ssize_t loop_co_recv(int fd, void *buf, size_t size)
{
    for (;;) {
        ssize_t n = recv(fd, buf, size, MSG_DONTWAIT);

        if (n >= 0) {
            return n;
        }
        if (would_block(errno)) {
            return loop_co_recv_later(fd, buf, size);
        }
        if (errno != EINTR) {
            return -errno;
        }
    }
}

ssize_t loop_co_recv_later(int fd, void *buf, size_t size)
{
    for (;;) {
        int r = loop_co_poll(fd, POLLIN, -1);
        ssize_t n;

        if (r < 0 && r != -EINTR) {
            return r;
        }
        n = recv(fd, buf, size, MSG_DONTWAIT);
        if (n >= 0) {
            return n;
        }
        if (errno != EINTR && !would_block(errno)) {
            return -errno;
        }
    }
}

ssize_t loop_co_recvmsg(int fd, struct msghdr *msg)
{
    size_t control_size = msg->msg_controllen;

    for (;;) {
        ssize_t n;
        int r;

        msg->msg_controllen = control_size;
        n = recvmsg(fd, msg, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
        if (n >= 0) {
            return n;
        }
        if (errno == EINTR) {
            continue;
        }
        if (!would_block(errno)) {
            return -errno;
        }
        r = loop_co_poll(fd, POLLIN, -1);
        if (r < 0 && r != -EINTR) {
            return r;
        }
    }
}

ssize_t loop_co_sendmsg(int fd, const struct msghdr *msg, int flags)
{
    for (;;) {
        ssize_t n = sendmsg(fd, msg, flags | MSG_DONTWAIT | MSG_NOSIGNAL);

        if (n >= 0) {
            return n;
        }
        if (errno == EINTR) {
            continue;
        }
        if (!would_block(errno)) {
            return -errno;
        }
        int r = loop_co_poll(fd, POLLOUT, -1);

        if (r < 0) {
            return r;
        }
    }
}

int loop_co_accept(int fd)
{
    int ready = 0;

    for (;;) {
        /* cppcheck-suppress nullPointer */
        int connection = accept4(fd, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);

        if (connection >= 0) {
            return connection;
        }
        if (errno == EINTR || errno == ECONNABORTED) {
            continue;
        }
        /*
         * After shutdown(2), accept4(2) fails on a TCP socket with EINVAL; on a Unix socket it
         * would block, while poll(2) reports a hangup.
         */
        if (errno == EINVAL || (would_block(errno) && (ready & POLLHUP))) {
            return -ECANCELED;
        }
        if (!would_block(errno)) {
            return -errno;
        }
        ready = loop_co_poll(fd, POLLIN, -1);
        if (ready < 0) {
            return ready;
        }
    }
}

/* The result of a connect(2) that was in progress. */
static int connect_result(int fd)
{
    int errnum = 0;
    socklen_t size = sizeof(errnum);

    if (getsockopt(fd, SOL_SOCKET, SO_ERROR, &errnum, &size) < 0) {
        return -errno;
    }
    return -errnum;
}

struct connecting {
    int fd;
    const struct sockaddr *addr;
    socklen_t len;
};

static int begin_connect(void *arg)
{
    const struct connecting *c = arg;

    return connect(c->fd, c->addr, c->len) < 0 ? -errno : 0;
}

static bool is_path(const struct sockaddr *addr)
{
    return addr->sa_family == AF_UNIX && ((const struct sockaddr_un *)addr)->sun_path[0];
}

int loop_co_connect(int fd, const struct sockaddr *addr, socklen_t len, int64_t timeout_ns)
{
    int64_t deadline = timeout_ns < 0 ? INT64_MAX : loop_now_ns() + timeout_ns;
    struct connecting c = {fd, addr, len};

    for (;;) {
        int begun = is_path(addr) ? loop_co_brief(begin_connect, &c) : begin_connect(&c);

        if (begun == 0) {
            return 0;
        }
        if (begun == -EINPROGRESS || begun == -EINTR) {
            int64_t left = timeout_ns < 0 ? -1 : deadline - loop_now_ns();
            int r = loop_co_poll(fd, POLLOUT, timeout_ns >= 0 && left < 0 ? 0 : left);

            if (r < 0) {
                return r;
            }
            return connect_result(fd);
        }
        if (!would_block(-begun)) {
            return begun;
        }
        if (loop_now_ns() >= deadline) {
            return -ETIMEDOUT;
        }
        loop_co_sleep(CONNECT_RETRY_NS);
    }
}
