/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Carries the bytes of a talk between the client and one end of a pair, whose other end the user
 * has. Each direction has a coroutine.
 *
 *     client --- in --> co_carry_input  ---+
 *                                          near === user
 *     client <-- out -- co_carry_output ---+
 *                log, keep <--+
 */
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/log.h"
#include "chardev/internal.h"
#include "co/sync.h"
#include "loop/loop.h"
#include "tls/session.h"

#define CARRY_SIZE 4096
/* How often a descriptor that can't be shut down is asked whether the talk has ended. */
#define LOOK_NS (100 * NS_PER_MS)

struct carrying {
    struct chardev *c;
    struct chardev_ends *ends;
    bool done; /* a direction has ended, and the other one has to */
    struct co_group outputs;
};

/* --- descriptors ------------------------------------------------------------------------------ */

struct file_write {
    int fd;
    const char *data;
    size_t size;
};

static int write_file(void *arg)
{
    const struct file_write *w = arg;
    size_t done = 0;

    while (done < w->size) {
        ssize_t n = write(w->fd, w->data + done, w->size - done);

        if (n < 0 && errno != EINTR) {
            return -errno;
        }
        done += n > 0 ? (size_t)n : 0;
    }
    return 0;
}

static int co_write_to_backend(int fd, const char *data, size_t size)
{
    struct file_write w = {fd, data, size};

    return loop_co_offload(write_file, &w);
}

/* To a descriptor that does not block: a FIFO, a terminal. */
static int co_write_waiting(int fd, const char *data, size_t size)
{
    while (size > 0) {
        ssize_t n = write(fd, data, size);
        int r = n < 0 ? -errno : 0;

        if (r == -EAGAIN) {
            r = loop_co_poll(fd, POLLOUT, -1);
            n = 0;
        }
        if (r < 0 && r != -EINTR) {
            return r;
        }
        data += n > 0 ? n : 0;
        size -= n > 0 ? (size_t)n : 0;
    }
    return 0;
}

static int co_send_socket(int fd, const char *data, size_t size)
{
    while (size > 0) {
        struct iovec vec = {.iov_base = (char *)(uintptr_t)data, .iov_len = size};
        struct msghdr msg = {.msg_iov = &vec, .msg_iovlen = 1};
        ssize_t sent = loop_co_sendmsg(fd, &msg, 0);

        if (sent < 0) {
            return (int)sent;
        }
        data += sent;
        size -= (size_t)sent;
    }
    return 0;
}

static int co_send_tls(struct tls_session *tls, const char *data, size_t size)
{
    struct iovec vec = {.iov_base = (char *)(uintptr_t)data, .iov_len = size};

    return tls_session_co_send(tls, &vec, 1);
}

/* --- output ----------------------------------------------------------------------------------- */

static int co_put_out(const struct carrying *k, const char *data, size_t size)
{
    const struct chardev_ends *e = k->ends;

    if (k->c->log_fd >= 0) {
        co_write_to_backend(k->c->log_fd, data, size);
    }
    if (e->keep) {
        e->keep(k->c, data, size);
    }
    if (e->tls) {
        return co_send_tls(e->tls, data, size);
    }
    if (e->out < 0) {
        return 0;
    }
    if (e->is_socket) {
        return co_send_socket(e->out, data, size);
    }
    return e->out_blocks ? co_write_to_backend(e->out, data, size)
                         : co_write_waiting(e->out, data, size);
}

/* End the other direction. */
static void end_input(struct carrying *k)
{
    k->done = true;
    if (k->ends->is_socket) {
        shutdown(k->ends->in, SHUT_RDWR);
    }
}

static void co_carry_output(void *arg)
{
    struct carrying *k = arg;
    char *buf = malloc(CARRY_SIZE);
    ssize_t n;
    int r = 0;

    while (buf && r >= 0 && (n = loop_co_recv(k->ends->near, buf, CARRY_SIZE)) > 0) {
        r = co_put_out(k, buf, (size_t)n);
    }
    free(buf);
    if (k->ends->tls && r >= 0) {
        tls_session_bye(k->ends->tls);
    }
    shutdown(k->ends->near, SHUT_RDWR); /* the user learns that nothing is carried any more */
    end_input(k);
    co_group_done(&k->outputs);
}

void chardev_catch_up(struct chardev *c, struct chardev_ends *ends)
{
    char buf[CARRY_SIZE];
    ssize_t n;

    while (ends->near >= 0 && (n = recv(ends->near, buf, sizeof(buf), MSG_DONTWAIT)) > 0) {
        ends->keep(c, buf, (size_t)n);
    }
}

/* --- input ------------------------------------------------------------------------------------ */

/* As read(2), but wait, and return 0 when the talk has ended. */
static ssize_t co_read_waiting(const struct carrying *k, char *buf, size_t size)
{
    while (!k->done) {
        ssize_t n = read(k->ends->in, buf, size);

        if (n >= 0) {
            return n;
        }
        if (errno == EAGAIN) {
            int r = loop_co_poll(k->ends->in, POLLIN, LOOK_NS);

            if (r < 0 && r != -ETIMEDOUT && r != -EINTR) {
                return r;
            }
        } else if (errno != EINTR) {
            return -errno;
        }
    }
    return 0;
}

static ssize_t co_get_input(const struct carrying *k, char *buf, size_t size)
{
    if (k->ends->tls) {
        return tls_session_co_recv(k->ends->tls, buf, size);
    }
    return k->ends->is_socket ? loop_co_recv(k->ends->in, buf, size)
                              : co_read_waiting(k, buf, size);
}

static void co_carry_input(struct carrying *k)
{
    char *buf = malloc(CARRY_SIZE);
    ssize_t n;

    while (buf && (n = co_get_input(k, buf, CARRY_SIZE)) > 0) {
        bool sent = co_send_socket(k->ends->near, buf, (size_t)n) == 0;

        explicit_bzero(buf, (size_t)n); /* messages have passwords */
        if (!sent) {
            break;
        }
    }
    free(buf);
    shutdown(k->ends->near, SHUT_WR);
}

/* --- both ------------------------------------------------------------------------------------- */

int chardev_co_carry(struct chardev *c, struct chardev_ends *ends, struct error *err)
{
    struct carrying k = {.c = c, .ends = ends};
    int pair[2], r;

    if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, pair) < 0) {
        return error_set_errno(err, errno, "Failed to create a socket");
    }
    ends->near = pair[0];
    r = chardev_begin_client(c, pair[1], err);
    if (r >= 0) {
        co_group_init(&k.outputs);
        co_group_add(&k.outputs);
        if (reactor_spawn(reactor_main(), co_carry_output, &k) < 0) {
            co_carry_output(&k);
        }
        if (ends->in >= 0) {
            co_carry_input(&k);
        }
        co_group_wait(&k.outputs);
        co_group_destroy(&k.outputs);
    }
    close(pair[0]);
    ends->near = -1;
    return r;
}
