/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Replies: jobs that are done queue up, and leave in as few sendmsg() calls as the socket allows,
 * once per turn of the reactor, or when the receiver has worked through all that it had received.
 *
 * A reply is a vector of headers and payloads.
 */
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/socket.h>

#include "base/byteorder.h"
#include "base/checked.h"
#include "nbd/server_internal.h"

/* Elements per sendmsg(). */
#define GATHER_MAX 256

static void set_reply_header(struct nbd_job *job, size_t size)
{
    job->iov = job->inline_iov;
    job->iov[0] = (struct iovec){.iov_base = job->header, .iov_len = size};
    job->iov_count = 1;
    job->iov_next = 0;
}

size_t nbd_reply_put_chunk(const struct nbd_job *job, uint8_t *to, struct nbd_chunk chunk)
{
    chunk.cookie = job->rq.cookie;
    if (job->conn->extended) {
        chunk.offset = job->rq.offset;
        nbd_extended_chunk_encode(to, &chunk);
    } else {
        nbd_chunk_encode(to, &chunk);
    }
    return nbd_connection_chunk_size(job->conn);
}

void nbd_reply_set_done(struct nbd_job *job)
{
    if (job->conn->structured) {
        struct nbd_chunk chunk = {.flags = NBD_CHUNK_FLAG_DONE};

        set_reply_header(job, nbd_reply_put_chunk(job, job->header, chunk));
    } else {
        nbd_simple_reply_encode(job->header, 0, job->rq.cookie);
        set_reply_header(job, NBD_SIMPLE_REPLY_SIZE);
    }
}

void nbd_reply_set_error(struct nbd_job *job, int errnum, const char *reason)
{
    struct nbd_chunk chunk = {.flags = NBD_CHUNK_FLAG_DONE, .type = NBD_CHUNK_ERROR};
    uint32_t wire = nbd_error_from_errno(errnum);
    size_t length, head;

    if (!job->conn->structured) {
        nbd_simple_reply_encode(job->header, wire, job->rq.cookie);
        set_reply_header(job, NBD_SIMPLE_REPLY_SIZE);
        return;
    }
    if (!reason) {
        reason = strerrordesc_np(errnum);
    }
    length = reason ? strlen(reason) : 0;
    chunk.length = (uint32_t)(6 + length);
    head = nbd_reply_put_chunk(job, job->header, chunk);
    store_be32(job->header + head, wire);
    store_be16(job->header + head + 4, (uint16_t)length);
    set_reply_header(job, head + 6);
    if (length > 0) {
        /* The text lives as long as the job, or is static. */
        job->iov[1] = (struct iovec){.iov_base = (void *)(uintptr_t)reason, .iov_len = length};
        job->iov_count = 2;
    }
}

void nbd_reply_set_data(struct nbd_job *job)
{
    if (job->conn->structured) {
        struct nbd_chunk chunk = {.flags = job->continued ? 0 : NBD_CHUNK_FLAG_DONE,
                                  .type = NBD_CHUNK_OFFSET_DATA,
                                  .length = 8 + (uint32_t)job->rq.length};
        size_t head = nbd_reply_put_chunk(job, job->header, chunk);

        store_be64(job->header + head, job->rq.offset);
        set_reply_header(job, head + 8);
    } else {
        nbd_simple_reply_encode(job->header, 0, job->rq.cookie);
        set_reply_header(job, NBD_SIMPLE_REPLY_SIZE);
        job->iov_next = job->continues ? 1 : 0;
    }
    job->iov[1] = (struct iovec){.iov_base = job->data.data, .iov_len = job->rq.length};
    job->iov_count = 2;
}

/* The pipe that the queued replies go on with; NULL: bytes in memory come next. */
static struct nbd_pipe *next_pipe(const struct nbd_connection *c)
{
    const struct nbd_job *job = LIST_FIRST(&c->replies, struct nbd_job, link);
    void *base = job->iov[job->iov_next].iov_base;

    return nbd_pipes_has(&c->worker->pipes, base) ? base : NULL;
}

/*
 * Elements of the queued replies, from the first unsent byte on; at most `room`, and up to the next
 * pipe.
 */
static int gather_replies(struct nbd_connection *c, struct iovec *out, int room, bool *ret_goes_on)
{
    struct nbd_job *job;
    int n = 0;

    LIST_FOREACH (job, &c->replies, link) {
        for (int i = job->iov_next; i < job->iov_count; i++) {
            if (n == room || nbd_pipes_has(&c->worker->pipes, job->iov[i].iov_base)) {
                *ret_goes_on = true;
                return n;
            }
            out[n++] = job->iov[i];
        }
    }
    *ret_goes_on = false;
    return n;
}

/* Take what has left off the reply's elements, and off *sent. True: the reply is complete. */
static bool consume_reply(const struct nbd_connection *c, struct nbd_job *job, size_t *sent)
{
    for (; job->iov_next < job->iov_count; job->iov_next++) {
        struct iovec *v = &job->iov[job->iov_next];
        size_t part = MIN(*sent, v->iov_len);

        *sent -= part;
        if (job->pipes && nbd_pipes_has(&c->worker->pipes, v->iov_base)) {
            ((struct nbd_pipe *)v->iov_base)->bytes -= part;
        } else if (part < v->iov_len) {
            v->iov_base = (uint8_t *)v->iov_base + part;
        }
        if (part < v->iov_len) {
            v->iov_len -= part;
            return false;
        }
    }
    return true;
}

/* `sent` bytes have left: release the replies that are complete. */
static void consume_replies(struct nbd_connection *c, size_t sent)
{
    int64_t now = loop_now_ns();

    c->sent_bytes += sent;
    while (!list_is_empty(&c->replies)) {
        struct nbd_job *job = LIST_FIRST(&c->replies, struct nbd_job, link);

        if (!consume_reply(c, job, &sent)) {
            return;
        }
        if (!job->continued) {
            nbd_counters_latency(&c->counters, c->export->latencies, job->kind,
                                 now - job->received_ns);
        }
        list_remove(&job->link);
        nbd_job_release(job);
    }
}

static void drop_replies(struct nbd_connection *c)
{
    while (!list_is_empty(&c->replies)) {
        struct nbd_job *job = LIST_FIRST(&c->replies, struct nbd_job, link);

        list_remove(&job->link);
        nbd_job_release(job);
    }
}

/*
 * As send_some(). A reply is released when it is encrypted: records wait in the session's own
 * buffer.
 */
static int send_some_tls(struct nbd_connection *c)
{
    struct iovec vec[GATHER_MAX];
    bool goes_on;
    int r;

    while ((r = tls_session_flush(c->tls)) == 0 && !list_is_empty(&c->replies)) {
        ssize_t n = tls_session_put(c->tls, vec, gather_replies(c, vec, GATHER_MAX, &goes_on));

        if (n < 0) {
            return (int)n;
        }
        consume_replies(c, (size_t)n);
    }
    return r;
}

/* Send what comes next: bytes in memory up to the next pipe, or a pipe. Bytes, or -1 with errno. */
static ssize_t send_next(struct nbd_connection *c)
{
    struct nbd_pipe *pipe = next_pipe(c);
    struct iovec vec[GATHER_MAX];
    struct msghdr msg = {.msg_iov = vec};
    bool goes_on = false;

    if (pipe) {
        return splice(pipe->read_fd, NULL, c->fd, NULL, pipe->bytes,
                      SPLICE_F_NONBLOCK | SPLICE_F_MOVE);
    }
    msg.msg_iovlen = (size_t)gather_replies(c, vec, GATHER_MAX, &goes_on);
    return sendmsg(c->fd, &msg, MSG_DONTWAIT | MSG_NOSIGNAL | (goes_on ? MSG_MORE : 0));
}

/*
 * The socket is full. Give it a larger buffer if the client is one that takes much, which then
 * costs fewer wake-ups. False: it is as it was.
 */
static bool grow_send_buffer(struct nbd_connection *c)
{
    int size = (int)MIN(2 * c->send_buffer, (size_t)NBD_SOCKET_BUFFER);
    int64_t now = loop_now_ns();
    bool fast;

    if (c->send_buffer >= NBD_SOCKET_BUFFER ||
        c->sent_bytes < NBD_SEND_GROWS_AFTER * c->send_buffer) {
        return false;
    }
    fast =
        (uint64_t)(now - c->sent_since_ns) / 1000 * NBD_SEND_GROWS_RATE / 1000000 <= c->sent_bytes;
    c->sent_bytes = 0;
    c->sent_since_ns = now;
    if (!fast || setsockopt(c->fd, SOL_SOCKET, SO_SNDBUF, &size, sizeof(size)) < 0) {
        return false;
    }
    c->send_buffer = (size_t)size;
    return true;
}

/* 0: all sent. -EAGAIN: the socket is full. Other errors: the connection is lost. */
static int send_until_full(struct nbd_connection *c)
{
    if (c->tls && !tls_session_uses_kernel(c->tls)) {
        return send_some_tls(c);
    }
    while (!list_is_empty(&c->replies)) {
        ssize_t n = send_next(c);

        if (n < 0 && errno == EINTR) {
            continue;
        }
        if (n < 0) {
            return errno == EWOULDBLOCK ? -EAGAIN : -errno;
        }
        consume_replies(c, (size_t)n);
    }
    return 0;
}

static int send_some(struct nbd_connection *c)
{
    int r;

    do {
        r = send_until_full(c);
    } while (r == -EAGAIN && grow_send_buffer(c));
    if (r == -EAGAIN && c->tls) {
        tls_session_socket_is_full(c->tls);
    }
    return r;
}

void nbd_reply_give_up(struct nbd_connection *c)
{
    c->broken = true;
    drop_replies(c);
    /* This ends the receiver. */
    shutdown(c->fd, SHUT_RDWR);
}

/* A coroutine for a socket that is full: sends more when the socket takes more. */
static void co_send_rest(void *arg)
{
    struct nbd_connection *c = arg;
    int r = -EAGAIN;

    while (r == -EAGAIN) {
        r = loop_co_poll(c->fd, POLLOUT, -1);
        UNLESS_FAILED(r, send_some(c));
        if (r == -EAGAIN) {
            c->co_room(c);
        }
    }
    c->sender_running = false;
    if (r < 0) {
        nbd_reply_give_up(c);
    }
    c->co_room(c);
    if (c->waiter) {
        struct co *co = c->waiter;

        c->waiter = NULL;
        co_wake(co);
    }
}

void nbd_reply_flush(struct nbd_connection *c)
{
    int r;

    nbd_batch_end(&c->batch);
    if (c->sender_running || list_is_empty(&c->replies)) {
        return;
    }
    r = c->broken ? -EPIPE : send_some(c);
    if (r == -EAGAIN) {
        c->sender_running = true;
        r = co_spawn(reactor_home(c->worker->reactor), co_send_rest, c);
        if (r < 0) {
            c->sender_running = false;
        }
    }
    if (r < 0) {
        nbd_reply_give_up(c);
    }
}

/* The end of a turn. A receiver that holds replies back sends them itself. */
static void flush_deferred(struct reactor_deferred *d)
{
    struct nbd_connection *c = container_of(d, struct nbd_connection, flush);

    if (!nbd_batch_is_holding(&c->batch)) {
        nbd_reply_flush(c);
    }
}

void nbd_reply_init(struct nbd_connection *c, void (*co_room)(struct nbd_connection *c))
{
    c->co_room = co_room;
    reactor_deferred_init(&c->flush, flush_deferred);
    c->send_buffer = NBD_SEND_BUFFER_MIN;
    c->sent_bytes = 0;
    c->sent_since_ns = loop_now_ns();
}

void nbd_reply_queue(struct nbd_job *job)
{
    struct nbd_connection *c = job->conn;

    if (list_is_empty(&c->replies)) {
        c->reply_bytes = 0;
        reactor_defer(&c->flush);
    }
    list_append(&c->replies, &job->link);
    c->reply_bytes += job->accounted;
    if (c->reply_bytes >= NBD_REPLY_EAGER) {
        nbd_reply_flush(c);
    }
}
