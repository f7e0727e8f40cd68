/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Transmission: receive as much as there is, run every whole request in it, send the replies together.
 *
 *   rbuf  [ consumed | request, request payload, requ... |      room      ]
 *         0          rpos                                rend              NBD_RECEIVE_BUFFER
 *
 * A job is a coroutine that begins to run at once and often ends at once (page cache), so that a batch of
 * requests costs one recv() and one sendmsg(). All of a connection runs on one reactor: no locks.
 *
 * A write whose payload arrived whole in rbuf uses it there and holds a reference; rbuf is then not
 * reused but replaced. A larger payload is received straight into a buffer of the job, with the next
 * request's header behind it into rbuf.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

#include "base/byteorder.h"
#include "base/checked.h"
#include "nbd/server_internal.h"

/* Receptions without a wait before others of the reactor get their turn. */
#define BUSY_TURNS_MAX 4

/* --- jobs and what they hold ------------------------------------------------------------------- */

static void rbuf_unref(struct nbd_connection *c, struct nbd_rbuf *b)
{
    if (b && --b->refs == 0) {
        bufpool_put(&c->worker->pool, &b->memory);
        free(b);
    }
}

static struct nbd_rbuf *rbuf_new(struct nbd_connection *c)
{
    struct nbd_rbuf *b = malloc(sizeof(*b));

    if (!b || !bufpool_get(&c->worker->pool, NBD_RECEIVE_BUFFER, &b->memory)) {
        free(b);
        return NULL;
    }
    b->refs = 1;
    return b;
}

static uint8_t *rbuf_bytes(const struct nbd_connection *c)
{
    return c->rbuf->memory.data;
}

/* Something was received, what may be any number of requests. */
static void note_reception(struct nbd_connection *c)
{
    c->received_ns = loop_now_ns();
    counter_set(&c->counters.values[NBD_STAT_LATEST], (uint64_t)c->received_ns);
}

struct nbd_job *nbd_job_new(struct nbd_connection *c, const struct nbd_request *rq)
{
    struct nbd_job *job;

    if (list_is_empty(&c->free_jobs)) {
        job = malloc(sizeof(*job));
        if (!job) {
            return NULL;
        }
    } else {
        job = LIST_FIRST(&c->free_jobs, struct nbd_job, link);
        list_remove(&job->link);
    }
    job->conn = c;
    job->rq = *rq;
    job->accounted = 0;
    job->pooled = job->continues = job->continued = job->carried_out = false;
    job->payload = NULL;
    job->context_count = 0;
    job->rbuf = NULL;
    job->data.data = NULL;
    job->extra.data = NULL;
    job->error = 0;
    job->reason = NULL;
    job->invalid = false;
    job->kind = nbd_kind_of(rq->type);
    job->received_ns = c->received_ns;
    c->jobs++;
    counter_set(&c->counters.values[NBD_STAT_DEPTH], c->jobs);
    counter_raise(&c->counters.values[NBD_STAT_DEPTH_MAX], c->jobs);
    return job;
}

static void wake_receiver(struct nbd_connection *c)
{
    if (c->waiter) {
        struct co *co = c->waiter;

        c->waiter = NULL;
        co_wake(co);
    }
}

void nbd_job_release(struct nbd_job *job)
{
    struct nbd_connection *c = job->conn;

    bufpool_put(&c->worker->pool, &job->data);
    bufpool_put(&c->worker->pool, &job->extra);
    rbuf_unref(c, job->rbuf);
    c->jobs--;
    counter_set(&c->counters.values[NBD_STAT_DEPTH], c->jobs);
    c->job_bytes -= job->accounted;
    if (job->pooled) {
        nbd_memory_give(job->accounted);
    }
    list_prepend(&c->free_jobs, &job->link);
    wake_receiver(c);
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

/*
 * Wait until a job with buffers of `bytes` fits in; *ret_pooled: they were taken out of the pool. False if they are not to be had
 * though the connection has no other job.
 */
static bool co_wait_for_room(struct nbd_connection *c, size_t bytes, bool *ret_pooled)
{
    *ret_pooled = false;
    for (;;) {
        if (c->jobs < NBD_JOBS_MAX) {
            if (c->job_bytes + bytes <= NBD_GUARANTEED_BYTES) {
                return true;
            }
            if (nbd_memory_take(c->job_bytes, bytes, c->jobs == 0)) {
                *ret_pooled = true;
                return true;
            }
        }
        if (c->jobs == 0) {
            return false;
        }
        nbd_connection_co_wait_for_jobs(c);
    }
}

/* At the cap of coroutines it waits for one to end. */
void nbd_job_co_start(struct nbd_job *job)
{
    struct nbd_connection *c = job->conn;

    while (co_run(reactor_home(c->worker->reactor), nbd_job_run, job) < 0) {
        nbd_reply_flush(c);
        loop_co_sleep(1000000);
    }
}

/* --- receiving --------------------------------------------------------------------------------- */

static size_t available(const struct nbd_connection *c)
{
    return c->rend - c->rpos;
}

/*
 * Make sure that `needed` bytes (at most NBD_RECEIVE_BUFFER) from rpos on fit into rbuf, and that there is room
 * to receive something. Bytes that jobs use stay where they are.
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
        memmove(rbuf_bytes(c), rbuf_bytes(c) + c->rpos, available(c));
    } else {
        fresh = rbuf_new(c);
        if (!fresh) {
            return -ENOMEM;
        }
        memcpy(fresh->memory.data, rbuf_bytes(c) + c->rpos, available(c));
        rbuf_unref(c, c->rbuf);
        c->rbuf = fresh;
    }
    c->rend = available(c);
    c->rpos = 0;
    return 0;
}

static void co_let_others(struct nbd_connection *c)
{
    c->busy_turns = 0;
    c->turn_bytes = 0;
    co_reschedule();
}

/* Other coroutines of the reactor get their turn when a client keeps this one busy. */
static void co_be_fair(struct nbd_connection *c)
{
    if (++c->busy_turns > BUSY_TURNS_MAX) {
        co_let_others(c);
    }
}

/* As co_receive_two(), into one place: records are decrypted into nothing else. */
static ssize_t co_receive_tls(struct nbd_connection *c, uint8_t *to, size_t room)
{
    ssize_t n = tls_session_recv(c->tls, to, room);

    if (n != -EAGAIN) {
        return n;
    }
    nbd_reply_flush(c);
    return tls_session_co_recv(c->tls, to, room);
}

/*
 * Receive into two places, for recv() knows only one: bytes, or -errno. Replies leave before it waits.
 */
static ssize_t co_receive_two(struct nbd_connection *c, struct iovec vec[static 2])
{
    struct msghdr msg = {.msg_iov = vec, .msg_iovlen = 2};

    co_be_fair(c);
    if (c->tls) {
        return co_receive_tls(c, vec[0].iov_base, vec[0].iov_len);
    }
    for (;;) {
        ssize_t n = recvmsg(c->fd, &msg, MSG_DONTWAIT);
        int ret;

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
        ret = loop_co_poll(c->fd, POLLIN, -1);
        if (ret < 0 && ret != -EINTR) {
            return ret;
        }
    }
}

/* Looks at an empty socket before others of the reactor get their turn. */
#define SPINS_MAX 8

static ssize_t receive_now(struct nbd_connection *c, uint8_t *to, size_t room)
{
    ssize_t n;

    if (c->tls) {
        return tls_session_recv(c->tls, to, room);
    }
    n = recv(c->fd, to, room, MSG_DONTWAIT);
    return n < 0 ? -errno : n;
}

/*
 * Bytes, 0 at the end of the stream, or -errno. What the client has sent is taken before replies leave; then it
 * may be worth to hold them back for more. They leave before a wait.
 */
static ssize_t co_receive_more(struct nbd_connection *c, uint8_t *to, size_t room)
{
    unsigned spins = 0;

    for (;;) {
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
    }
    nbd_reply_flush(c);
    return c->tls ? tls_session_co_recv(c->tls, to, room) : loop_co_recv_later(c->fd, to, room);
}

/* Receive into rbuf until `needed` bytes are there. */
static int co_fill(struct nbd_connection *c, size_t needed)
{
    while (available(c) < needed) {
        size_t room;
        ssize_t n;
        int ret = make_room(c, needed);

        if (ret < 0) {
            return ret;
        }
        /* After a large write comes likely the next: leave its payload in the socket. */
        room = c->bulk ? needed - available(c) : NBD_RECEIVE_BUFFER - c->rend;
        co_be_fair(c);
        n = co_receive_more(c, rbuf_bytes(c) + c->rend, room);
        if (n <= 0) {
            return n < 0 ? (int)n : -ECONNRESET;
        }
        c->rend += (size_t)n;
        note_reception(c);
    }
    return 0;
}

/* Receive `size` bytes to `to`, what rbuf has of them first; the next header may arrive with them. */
int nbd_connection_co_receive(struct nbd_connection *c, uint8_t *to, size_t size)
{
    size_t have = MIN(available(c), size), next = nbd_connection_request_size(c);
    int ret;

    memcpy(to, rbuf_bytes(c) + c->rpos, have);
    c->rpos += have;
    while (have < size) {
        struct iovec vec[2];
        size_t rest = size - have;
        ssize_t n;

        ret = make_room(c, next);
        if (ret < 0) {
            return ret;
        }
        vec[0] = (struct iovec){.iov_base = to + have, .iov_len = rest};
        vec[1] = (struct iovec){.iov_base = rbuf_bytes(c) + c->rend, .iov_len = next};
        n = co_receive_two(c, vec);
        if (n <= 0) {
            return n < 0 ? (int)n : -ECONNRESET;
        }
        note_reception(c);
        have += MIN((size_t)n, rest);
        c->rend += (size_t)n > rest ? (size_t)n - rest : 0;
    }
    return 0;
}

/* Read past a payload that nobody wants, in large pieces. */
static int co_drain(struct nbd_connection *c, uint64_t size)
{
    c->bulk = false;
    while (size > 0) {
        size_t part;
        int ret = co_fill(c, 1);

        if (ret < 0) {
            return ret;
        }
        part = MIN(size, available(c));
        c->rpos += part;
        size -= part;
    }
    return 0;
}

/* --- requests ---------------------------------------------------------------------------------- */

/* A write has one also if extended headers don't say so: QEMU's client never does. */
static bool has_payload(const struct nbd_connection *c, const struct nbd_request *rq)
{
    return rq->type == NBD_CMD_WRITE || (c->extended && (rq->flags & NBD_CMD_FLAG_PAYLOAD_LEN));
}

/* Get the payload of a write. 0: it is there, or job->error is set and the stream is behind it. */
static int co_receive_payload(struct nbd_connection *c, struct nbd_job *job)
{
    uint64_t length = job->rq.length;
    int ret;

    if (job->error) {
        return co_drain(c, length);
    }
    c->bulk = length >= NBD_LARGE_WRITE;
    if (available(c) >= length || !c->bulk) {
        ret = co_fill(c, length);
        job->payload = rbuf_bytes(c) + c->rpos;
        job->rbuf = c->rbuf;
        c->rbuf->refs++;
        c->rpos += length;
        return ret;
    }
    if (!bufpool_get(&c->worker->pool, length, &job->data)) {
        job->error = ENOMEM;
        return co_drain(c, length);
    }
    job->payload = job->data.data;
    return nbd_connection_co_receive(c, job->data.data, length);
}

/* A block status with a list of contexts, of a length that can be. */
static bool is_narrowed_status(const struct nbd_connection *c, const struct nbd_request *rq)
{
    return rq->type == NBD_CMD_BLOCK_STATUS && has_payload(c, rq) && rq->length >= 8 + 4 &&
           rq->length % 4 == 0 && (rq->length - 8) / 4 <= c->selection.selected;
}

/* The payload of such: u64 length, u32 context id ... */
static void narrow_status(struct nbd_connection *c, struct nbd_job *job)
{
    job->context_count = (job->rq.length - 8) / 4;
    job->rq.length = load_be64(job->payload);
    if (!range_fits(job->rq.offset, job->rq.length, c->export->size)) {
        job->error = EINVAL;
        job->reason = "Request reaches beyond the end of the export";
        job->invalid = true;
    }
}

/* Whether it may be done at all, by the rules of the protocol; else job->error. */
static void check(struct nbd_connection *c, struct nbd_job *job)
{
    const struct nbd_request *rq = &job->rq;
    bool changes =
        rq->type == NBD_CMD_WRITE || rq->type == NBD_CMD_TRIM || rq->type == NBD_CMD_WRITE_ZEROES;
    unsigned flags = NBD_CMD_FLAG_FUA;

    if (c->extended && has_payload(c, rq)) {
        if (rq->type != NBD_CMD_WRITE && !is_narrowed_status(c, rq)) {
            job->error = EINVAL;
            job->reason = "Payload that this command does not have";
            return;
        }
        flags |= NBD_CMD_FLAG_PAYLOAD_LEN;
    }
    if (rq->type == NBD_CMD_FLUSH) {
        if (rq->flags & ~flags) {
            job->error = EINVAL;
            job->reason = "Flags that this command does not have";
        }
        return;
    }
    if (changes && !c->export->writable) {
        job->error = EPERM;
        job->reason = "Export is read-only";
        return;
    }
    if (rq->type == NBD_CMD_READ || rq->type == NBD_CMD_WRITE) {
        if (rq->length > NBD_MAX_BLOCK_SIZE) {
            job->error = EINVAL;
            job->reason = "Request is longer than 32 MiB";
            return;
        }
    }
    /* The length of the one is in the payload. */
    if (!is_narrowed_status(c, rq) && !range_fits(rq->offset, rq->length, c->export->size)) {
        job->error =
            rq->type == NBD_CMD_WRITE || rq->type == NBD_CMD_WRITE_ZEROES ? ENOSPC : EINVAL;
        job->reason = "Request reaches beyond the end of the export";
        return;
    }
    if (rq->type == NBD_CMD_READ && c->structured) {
        flags |= NBD_CMD_FLAG_DF;
    } else if (rq->type == NBD_CMD_WRITE_ZEROES) {
        flags |= NBD_CMD_FLAG_NO_HOLE | NBD_CMD_FLAG_FAST_ZERO;
    } else if (rq->type == NBD_CMD_BLOCK_STATUS) {
        flags |= NBD_CMD_FLAG_REQ_ONE;
    }
    if (rq->flags & ~flags) {
        job->error = EINVAL;
        job->reason = "Flags that this command does not have";
    }
}

/* Bytes that a buffer of the pool for so many takes. */
static size_t pool_bytes(uint64_t length)
{
    size_t size = 1u << BUFPOOL_CLASS_MIN_SHIFT;

    while (size < length && size < NBD_MAX_BLOCK_SIZE) {
        size *= 2;
    }
    return length ? size : 0;
}

/* Bytes that its buffers can take. */
static size_t buffers_of(const struct nbd_connection *c, const struct nbd_request *rq)
{
    switch (rq->type) {
    case NBD_CMD_READ:
    case NBD_CMD_WRITE:
        return pool_bytes(rq->length);
    case NBD_CMD_BLOCK_STATUS:
        if (rq->flags & NBD_CMD_FLAG_REQ_ONE) {
            return 0;
        }
        return MIN(2 * c->selection.selected * NBD_STATUS_EXTENTS_MAX * NBD_EXTENDED_EXTENT_SIZE,
                   NBD_STATUS_BYTES_MAX);
    default:
        return 0;
    }
}

/* Receive what belongs to the request behind its header. `narrow`: there is no memory for a large payload. */
static int co_receive_rest(struct nbd_connection *c, struct nbd_job *job, bool narrow)
{
    int ret;

    if (!has_payload(c, &job->rq)) {
        c->bulk = false;
        return 0;
    }
    if (narrow && !job->error) {
        if (bufpool_get(&c->worker->pool, NBD_GUARANTEED_BYTES, &job->data)) {
            return nbd_connection_co_narrow_write(c, job);
        }
        job->error = ENOMEM;
    }
    ret = co_receive_payload(c, job);
    if (ret == 0 && job->rq.type == NBD_CMD_BLOCK_STATUS && !job->error) {
        narrow_status(c, job);
    }
    return ret;
}

/* A request whose header was taken. */
static int co_do_request(struct nbd_connection *c, const struct nbd_request *rq, size_t bytes)
{
    bool pooled, fits = co_wait_for_room(c, bytes, &pooled);
    struct nbd_job *job = nbd_job_new(c, rq);
    int ret;

    if (!job) {
        if (pooled) {
            nbd_memory_give(bytes);
        }
        return -ENOMEM;
    }
    job->accounted = fits ? (uint32_t)bytes : NBD_GUARANTEED_BYTES;
    job->pooled = pooled;
    c->job_bytes += job->accounted;
    nbd_batch_count(&c->batch);
    check(c, job);
    job->invalid = job->error != 0;
    if (!fits && rq->type == NBD_CMD_READ && !job->error) {
        nbd_job_release(job);
        return nbd_connection_co_narrow_read(c, rq);
    }
    ret = co_receive_rest(c, job, !fits && rq->type == NBD_CMD_WRITE);
    if (ret < 0) {
        nbd_job_release(job);
        return ret;
    }
    nbd_job_co_start(job);
    c->turn_bytes += bytes;
    if (c->turn_bytes >= NBD_TURN_BYTES ||
        c->turn_bytes * c->worker->connections >= NBD_TURN_BYTES_ALL) {
        co_let_others(c);
    }
    return 0;
}

/* One request, header at rpos. Negative: the client is done with. */
static int co_next_request(struct nbd_connection *c)
{
    struct nbd_request rq;

    if (!(c->extended ? nbd_extended_request_decode(rbuf_bytes(c) + c->rpos, &rq)
                      : nbd_request_decode(rbuf_bytes(c) + c->rpos, &rq))) {
        return -EPROTO;
    }
    if (c->extended && has_payload(c, &rq) && rq.length > NBD_MAX_BLOCK_SIZE) {
        return -EPROTO;
    }
    if (rq.type == NBD_CMD_DISC) {
        return -ESHUTDOWN;
    }
    c->rpos += nbd_connection_request_size(c);
    return co_do_request(c, &rq, buffers_of(c, &rq));
}

static void co_receive_all(struct nbd_connection *c)
{
    int ret = 0;

    while (ret == 0 && !c->broken) {
        ret = co_fill(c, nbd_connection_request_size(c));
        if (ret == 0) {
            ret = co_next_request(c);
        }
    }
}

static void co_finish(struct nbd_connection *c)
{
    while (c->jobs > 0 || c->sender_running) {
        nbd_connection_co_wait_for_jobs(c);
    }
    while (c->flush.queued) {
        co_reschedule();
    }
    while (!list_is_empty(&c->free_jobs)) {
        struct nbd_job *job = LIST_FIRST(&c->free_jobs, struct nbd_job, link);

        list_remove(&job->link);
        free(job);
    }
    rbuf_unref(c, c->rbuf);
}

void nbd_connection_co_serve(struct nbd_connection *c)
{
    list_init(&c->free_jobs);
    list_init(&c->replies);
    nbd_reply_init(c);
    nbd_batch_init(&c->batch);
    c->rbuf = rbuf_new(c);
    if (!c->rbuf) {
        return;
    }
    nbd_memory_enter();
    c->worker->connections++;
    co_receive_all(c);
    co_finish(c);
    if (c->tls && !c->broken) {
        tls_session_bye(c->tls);
    }
    c->worker->connections--;
    nbd_memory_leave();
    bufpool_settle(&c->worker->pool);
}
