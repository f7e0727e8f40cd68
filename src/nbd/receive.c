/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Bytes from the socket: as many as there are, into
 *
 *   rbuf  [ consumed | request, request payload, requ...  |      room      ]
 *         0          rpos                                rend              NBD_RECEIVE_BUFFER
 *
 * A write whose payload arrived whole in rbuf uses it there, and holds a reference; rbuf is then
 * not reused but replaced. A larger payload is received straight into a buffer of the job, with the
 * next request's header behind it into rbuf.
 */
#include <errno.h>
#include <string.h>
#include <sys/socket.h>

#include "base/checked.h"
#include "nbd/server_internal.h"

enum {
    /* Receptions without a wait before others of the reactor get their turn. */
    BUSY_TURNS_MAX = 4,
    /* Looks at an empty socket before others of the reactor get their turn. */
    SPINS_MAX = 4,
};
/*
 * Between two looks. Each takes the locks of the socket, for which the client has to wait who wants
 * to send.
 */
#define LOOK_NS 2000

/*
 * Make sure that `needed` bytes from rpos on fit into rbuf, and that there is room to receive
 * something. Bytes that jobs use stay where they are.
 */
static int make_room(struct nbd_connection *c, size_t needed)
{
    struct nbd_rbuf *fresh;

    if (c->rpos == c->rend && c->rbuf->refs == 1) {
        c->rpos = c->rend = 0;
    }
    if (c->rpos + needed <= NBD_RECEIVE_BUFFER && c->rend < NBD_RECEIVE_BUFFER) {
        return 0;
    }
    if (c->rbuf->refs == 1) {
        memmove(nbd_rbuf_bytes(c), nbd_rbuf_bytes(c) + c->rpos, nbd_available(c));
    } else {
        fresh = nbd_rbuf_new(c);
        if (!fresh) {
            return -ENOMEM;
        }
        memcpy(fresh->memory.data, nbd_rbuf_bytes(c) + c->rpos, nbd_available(c));
        nbd_rbuf_unref(c, c->rbuf);
        c->rbuf = fresh;
    }
    c->rend = nbd_available(c);
    c->rpos = 0;
    return 0;
}

/* Bytes were received, of any number of requests. */
static void note_reception(struct nbd_connection *c)
{
    c->received_ns = loop_now_ns();
    counter_set(&c->counters.values[NBD_STAT_LATEST], (uint64_t)c->received_ns);
}

/* Others have had their turn, or have it now. */
static void begin_turn(struct nbd_connection *c)
{
    c->busy_turns = 0;
    c->turn_bytes = 0;
}

void nbd_connection_co_let_others(struct nbd_connection *c)
{
    begin_turn(c);
    loop_co_give_way();
}

/* Other coroutines of the reactor get their turn when a client keeps this one busy. */
static void co_be_fair(struct nbd_connection *c)
{
    if (++c->busy_turns > BUSY_TURNS_MAX) {
        nbd_connection_co_let_others(c);
    }
}

void nbd_connection_co_wait_for_jobs(struct nbd_connection *c)
{
    unsigned before = c->jobs;

    nbd_reply_flush(c);
    if (c->jobs == before) {
        c->waiter = co_self();
        co_suspend();
    }
}

/* --- two places ----------------------------------------------------------------------------- */

/* As co_receive_split(), but into the first place only: a record is decrypted into one place. */
static ssize_t co_receive_tls(struct nbd_connection *c, uint8_t *to, size_t room)
{
    ssize_t n = tls_session_recv(c->tls, to, room);

    if (n != -EAGAIN) {
        return n;
    }
    nbd_reply_flush(c);
    begin_turn(c);
    return tls_session_co_recv(c->tls, to, room);
}

/*
 * Receive into two places, one after the other. Bytes, 0 at the end of the stream, or -errno.
 * Replies leave before it waits.
 */
static ssize_t co_receive_split(struct nbd_connection *c, struct iovec vec[static 2])
{
    struct msghdr msg = {.msg_iov = vec, .msg_iovlen = 2};

    co_be_fair(c);
    if (c->tls) {
        return co_receive_tls(c, vec[0].iov_base, vec[0].iov_len);
    }
    for (;;) {
        ssize_t n = recvmsg(c->fd, &msg, MSG_DONTWAIT);
        int r;

        if (n >= 0) {
            return n;
        }
        if (errno == EINTR) {
            continue;
        }
        if (errno != EAGAIN && errno != EWOULDBLOCK) {
            return -errno;
        }
        nbd_reply_flush(c);
        begin_turn(c);
        r = loop_co_poll(c->fd, POLLIN, -1);
        if (r < 0 && r != -EINTR) {
            return r;
        }
    }
}

int nbd_connection_co_receive(struct nbd_connection *c, uint8_t *to, size_t size)
{
    size_t have = MIN(nbd_available(c), size), next = nbd_connection_request_size(c);

    memcpy(to, nbd_rbuf_bytes(c) + c->rpos, have);
    c->rpos += have;
    while (have < size) {
        struct iovec vec[2];
        size_t rest = size - have;
        ssize_t n;
        int r = make_room(c, next);

        if (r < 0) {
            return r;
        }
        vec[0] = (struct iovec){.iov_base = to + have, .iov_len = rest};
        vec[1] = (struct iovec){.iov_base = nbd_rbuf_bytes(c) + c->rend, .iov_len = next};
        n = co_receive_split(c, vec);
        if (n <= 0) {
            return n < 0 ? (int)n : -ECONNRESET;
        }
        note_reception(c);
        have += MIN((size_t)n, rest);
        c->rend += (size_t)n > rest ? (size_t)n - rest : 0;
    }
    return 0;
}

/* --- rbuf ----------------------------------------------------------------------------------- */

static ssize_t receive_now(struct nbd_connection *c, uint8_t *to, size_t room)
{
    ssize_t n;

    if (c->tls) {
        return tls_session_recv(c->tls, to, room);
    }
    n = recv(c->fd, to, room, MSG_DONTWAIT);
    return n < 0 ? -errno : n;
}

/* The client is about to send more. */
static void wait_briefly(void)
{
    int64_t end = loop_now_ns() + LOOK_NS;

    while (loop_now_ns() < end) {
    }
}

/*
 * Bytes, 0 at the end of the stream, or -errno. What the client has sent is taken before replies
 * leave; then it may be worth to hold them back for more requests. They leave before a wait.
 */
static ssize_t co_receive_to_rbuf(struct nbd_connection *c, uint8_t *to, size_t room)
{
    unsigned spins = 0;

    while (!c->drained || !nbd_batch_is_single(&c->batch)) {
        ssize_t n = receive_now(c, to, room);

        if (n >= 0) {
            return n;
        }
        if (n == -EINTR) {
            continue;
        }
        if (n != -EAGAIN && n != -EWOULDBLOCK) {
            return n;
        }
        if (!nbd_batch_hold(&c->batch)) {
            break;
        }
        if (++spins % SPINS_MAX == 0) {
            co_reschedule();
        }
        wait_briefly();
    }
    nbd_reply_flush(c);
    begin_turn(c);
    return c->tls ? tls_session_co_recv(c->tls, to, room) : loop_co_recv_later(c->fd, to, room);
}

int nbd_connection_co_fill(struct nbd_connection *c, size_t needed)
{
    while (nbd_available(c) < needed) {
        size_t room;
        ssize_t n;
        int r = make_room(c, needed);

        if (r < 0) {
            return r;
        }
        /*
         * Another large write is likely to follow a large write: leave its payload in the socket.
         */
        room = c->bulk ? needed - nbd_available(c) : NBD_RECEIVE_BUFFER - c->rend;
        co_be_fair(c);
        n = co_receive_to_rbuf(c, nbd_rbuf_bytes(c) + c->rend, room);
        if (n <= 0) {
            return n < 0 ? (int)n : -ECONNRESET;
        }
        c->rend += (size_t)n;
        c->drained = (size_t)n < room && !c->tls;
        note_reception(c);
    }
    return 0;
}

int nbd_connection_co_skip(struct nbd_connection *c, uint64_t size)
{
    c->bulk = false;
    while (size > 0) {
        size_t part;
        int r = nbd_connection_co_fill(c, 1);

        if (r < 0) {
            return r;
        }
        part = MIN(size, nbd_available(c));
        c->rpos += part;
        size -= part;
    }
    return 0;
}
