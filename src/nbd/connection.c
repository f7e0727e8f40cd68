/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The transmission phase: receive as much as there is, run every whole request in it, send the
 * replies together. All of a connection runs on one reactor: there are no locks.
 *
 * A job is a coroutine that begins to run at once and often ends at once (page cache), so that a
 * batch of requests costs one recv() and one sendmsg().
 */
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>

#include "base/byteorder.h"
#include "base/checked.h"
#include "nbd/server_internal.h"

/* --- checks --------------------------------------------------------------------------------- */

/* A write has a payload even if the extended header does not say so: QEMU's client never does. */
static bool has_payload(const struct nbd_connection *c, const struct nbd_request *rq)
{
    return rq->type == NBD_CMD_WRITE || (c->extended && (rq->flags & NBD_CMD_FLAG_PAYLOAD_LEN));
}

/* A block status with a list of contexts in its payload, which has a possible length. */
static bool is_narrowed_status(const struct nbd_connection *c, const struct nbd_request *rq)
{
    return rq->type == NBD_CMD_BLOCK_STATUS && has_payload(c, rq) && rq->length >= 8 + 4 &&
           rq->length % 4 == 0 && (rq->length - 8) / 4 <= c->selection.selected;
}

/* The payload of a narrowed block status: u64 length, then u32 context id for each. */
static void narrow_status(struct nbd_connection *c, struct nbd_job *job)
{
    job->context_count = (job->rq.length - 8) / 4;
    job->rq.length = load_be64(job->payload);
    if (!range_fits(job->rq.offset, job->rq.length, c->export->size)) {
        nbd_job_refuse_range(job);
        job->invalid = true;
    }
}

static void check_flags(struct nbd_job *job, unsigned allowed)
{
    if (job->rq.flags & ~allowed) {
        nbd_job_refuse(job, EINVAL, "%s has the flags 0x%x; it may have 0x%x here",
                       nbd_command_name(job->rq.type), job->rq.flags, allowed);
    }
}

/* Flags that a command may have. */
static unsigned allowed_flags(const struct nbd_connection *c, const struct nbd_request *rq)
{
    unsigned payload = c->extended && has_payload(c, rq) ? NBD_CMD_FLAG_PAYLOAD_LEN : 0;

    switch (rq->type) {
    case NBD_CMD_READ:
        return payload | NBD_CMD_FLAG_FUA | (c->structured ? NBD_CMD_FLAG_DF : 0);
    case NBD_CMD_WRITE_ZEROES:
        return payload | NBD_CMD_FLAG_FUA | NBD_CMD_FLAG_NO_HOLE | NBD_CMD_FLAG_FAST_ZERO;
    case NBD_CMD_BLOCK_STATUS:
        return payload | NBD_CMD_FLAG_FUA | NBD_CMD_FLAG_REQ_ONE;
    default:
        return payload | NBD_CMD_FLAG_FUA;
    }
}

/* Validate the request against the protocol and the export. On violation refuse the job. */
static void check_nbd_request(struct nbd_connection *c, struct nbd_job *job)
{
    const struct nbd_request *rq = &job->rq;
    bool changes =
        rq->type == NBD_CMD_WRITE || rq->type == NBD_CMD_TRIM || rq->type == NBD_CMD_WRITE_ZEROES;

    if (atomic_load_explicit(&c->ending, memory_order_relaxed)) {
        nbd_job_refuse(job, ESHUTDOWN, "%s: the server ends the connection",
                       nbd_command_name(rq->type));
        return;
    }
    if (c->extended && has_payload(c, rq) && rq->type != NBD_CMD_WRITE &&
        !is_narrowed_status(c, rq)) {
        nbd_job_refuse(job, EINVAL,
                       "%s with a payload of %" PRIu64 " bytes; only a write has one, and a block "
                       "status with ids of %zu contexts or fewer",
                       nbd_command_name(rq->type), rq->length, c->selection.selected);
        return;
    }
    if (rq->type == NBD_CMD_FLUSH) {
        check_flags(job, allowed_flags(c, rq));
        return;
    }
    if (changes && !c->export->writable) {
        nbd_job_refuse(job, EPERM, "%s: the export is read-only", nbd_command_name(rq->type));
        return;
    }
    if ((rq->type == NBD_CMD_READ || rq->type == NBD_CMD_WRITE) &&
        rq->length > NBD_MAX_BLOCK_SIZE && !c->any_length) {
        nbd_job_refuse(job, EINVAL, "%s of %" PRIu64 " bytes; at most %d are possible",
                       nbd_command_name(rq->type), rq->length, NBD_MAX_BLOCK_SIZE);
        return;
    }
    /* A narrowed block status carries its length in the payload; see narrow_status(). */
    if (!is_narrowed_status(c, rq) && !range_fits(rq->offset, rq->length, c->export->size)) {
        nbd_job_refuse_range(job);
        return;
    }
    check_flags(job, allowed_flags(c, rq));
}

/* --- room ----------------------------------------------------------------------------------- */

/*
 * Wait until a job with buffers of `bytes` fits. *ret_pooled: they were taken out of the pool.
 * False if there is not enough memory although the connection has no other job, or never can be.
 */
static bool co_wait_for_room(struct nbd_connection *c, size_t bytes, bool *ret_pooled)
{
    *ret_pooled = false;
    for (;;) {
        if (bytes <= NBD_MAX_BLOCK_SIZE &&
            c->jobs < (nbd_connection_is_clogged(c, bytes) ? NBD_JOBS_CLOGGED : NBD_JOBS_MAX)) {
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

/* Bytes that a buffer of the pool for `length` bytes takes. */
static size_t pool_bytes(uint64_t length)
{
    size_t size = 1u << BUFPOOL_CLASS_MIN_SHIFT;

    while (size < length && size < NBD_MAX_BLOCK_SIZE) {
        size *= 2;
    }
    return length ? size : 0;
}

/* Bytes that the buffers of a request can take. */
static size_t buffers_of(const struct nbd_connection *c, const struct nbd_request *rq)
{
    switch (rq->type) {
    case NBD_CMD_READ:
    case NBD_CMD_WRITE:
        return c->any_length && rq->length > NBD_MAX_BLOCK_SIZE ? rq->length
                                                                : pool_bytes(rq->length);
    case NBD_CMD_BLOCK_STATUS:
        if (rq->flags & NBD_CMD_FLAG_REQ_ONE) {
            return 0;
        }
        return MIN(2 * c->selection.selected * NBD_STATUS_EXTENTS_MAX * NBD_EXTENDED_EXTENT_SIZE,
                   (size_t)NBD_STATUS_BYTES_MAX);
    default:
        return 0;
    }
}

/* --- requests ------------------------------------------------------------------------------- */

/* Get the payload. 0: it is there, or job->error is set and the payload was skipped. */
static int co_receive_payload(struct nbd_connection *c, struct nbd_job *job)
{
    uint64_t length = job->rq.length;
    int r;

    if (job->error) {
        return nbd_connection_co_skip(c, length);
    }
    c->bulk = length >= NBD_LARGE_WRITE;
    if (nbd_available(c) >= length || !c->bulk) {
        r = nbd_connection_co_fill(c, length);
        job->payload = nbd_rbuf_bytes(c) + c->rpos;
        job->rbuf = c->rbuf;
        c->rbuf->refs++;
        c->rpos += length;
        return r;
    }
    if (!bufpool_get(&c->worker->pool, length, &job->data)) {
        job->error = ENOMEM;
        return nbd_connection_co_skip(c, length);
    }
    job->payload = job->data.data;
    return nbd_connection_co_receive(c, job->data.data, length);
}

/*
 * Receive what belongs to the request after its header. `narrow`: there is no memory for a large
 * payload. 0 or -errno of the connection.
 */
static int co_receive_rest(struct nbd_connection *c, struct nbd_job *job, bool narrow)
{
    int r;

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
    r = co_receive_payload(c, job);
    if (r == 0 && job->rq.type == NBD_CMD_BLOCK_STATUS && !job->error) {
        narrow_status(c, job);
    }
    return r;
}

/*
 * Begin a job. What brings bytes to the client is held back while it does not take those it has
 * asked for before; what it sends is done.
 */
static void co_begin_job(struct nbd_connection *c, struct nbd_job *job)
{
    bool brings = job->rq.type == NBD_CMD_READ || job->rq.type == NBD_CMD_BLOCK_STATUS;

    c->held_bytes += job->accounted;
    if (brings && (!list_is_empty(&c->held) || nbd_connection_is_clogged(c, job->accounted))) {
        list_append(&c->held, &job->link);
        return;
    }
    c->held_bytes -= job->accounted;
    nbd_job_co_start(job);
}

/* A request whose header was taken. */
static int co_do_request(struct nbd_connection *c, const struct nbd_request *rq, size_t bytes)
{
    bool pooled, fits = co_wait_for_room(c, bytes, &pooled);
    struct nbd_job *job = nbd_job_new(c, rq);
    int r;

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
    check_nbd_request(c, job);
    job->invalid = job->error != 0;
    if (!fits && rq->type == NBD_CMD_READ && !job->error) {
        nbd_job_release(job);
        return nbd_connection_co_narrow_read(c, rq);
    }
    r = co_receive_rest(c, job, !fits && rq->type == NBD_CMD_WRITE);
    if (r < 0) {
        nbd_job_release(job);
        return r;
    }
    co_begin_job(c, job);
    c->turn_bytes += bytes;
    if (c->turn_bytes >= NBD_TURN_BYTES ||
        c->turn_bytes * c->worker->connections >= NBD_TURN_BYTES_ALL) {
        nbd_connection_co_let_others(c);
    }
    return 0;
}

/* One request, whose header begins at rpos. Negative: the connection ends. */
static int co_next_request(struct nbd_connection *c)
{
    const uint8_t *header = nbd_rbuf_bytes(c) + c->rpos;
    struct nbd_request rq;

    if (!(c->extended ? nbd_extended_request_decode(header, &rq)
                      : nbd_request_decode(header, &rq))) {
        return nbd_connection_breaks(
            c, "a request begins with 0x%08" PRIx32 ", not with the magic number 0x%08x",
            load_be32(header), c->extended ? NBD_EXTENDED_REQUEST_MAGIC : NBD_REQUEST_MAGIC);
    }
    if (c->extended && has_payload(c, &rq) && rq.length > NBD_MAX_BLOCK_SIZE) {
        return nbd_connection_breaks(
            c,
            "%s (offset %" PRIu64 ") with a payload of %" PRIu64 " bytes; at most %d are possible",
            nbd_command_name(rq.type), rq.offset, rq.length, NBD_MAX_BLOCK_SIZE);
    }
    if (rq.type == NBD_CMD_DISC) {
        return -ESHUTDOWN;
    }
    c->rpos += nbd_connection_request_size(c);
    return co_do_request(c, &rq, buffers_of(c, &rq));
}

static void co_receive_all(struct nbd_connection *c)
{
    int r = 0;

    while (r == 0 && !c->broken) {
        size_t header = nbd_connection_request_size(c);

        r = nbd_available(c) >= header ? 0 : nbd_connection_co_fill(c, header);
        UNLESS_FAILED(r, co_next_request(c));
    }
    if (r == -EIO && c->tls && !error_is_set(&c->failure) && tls_session_failure(c->tls)[0]) {
        nbd_connection_breaks(c, "TLS has failed: %s", tls_session_failure(c->tls));
    }
}

/* Wait for all jobs, and release what the phase used. */
static void co_finish_transmission(struct nbd_connection *c)
{
    while (c->jobs > 0 || c->sender_running) {
        nbd_connection_co_wait_for_jobs(c);
    }
    while (c->flush.queued) {
        co_reschedule();
    }
    while (c->all_jobs) {
        struct nbd_job *job = c->all_jobs;

        c->all_jobs = job->next;
        free(job);
    }
    nbd_rbuf_unref(c, c->rbuf);
}

void nbd_connection_co_serve(struct nbd_connection *c)
{
    list_init(&c->free_jobs);
    list_init(&c->held);
    list_init(&c->replies);
    nbd_reply_init(c, nbd_connection_co_start_held);
    nbd_batch_init(&c->batch);
    c->rbuf = nbd_rbuf_new(c);
    if (!c->rbuf) {
        return;
    }
    nbd_memory_enter();
    c->worker->connections++;
    nbd_slow_watch(c);
    co_receive_all(c);
    co_finish_transmission(c);
    nbd_slow_unwatch(c);
    if (c->tls && !c->broken) {
        tls_session_bye(c->tls);
    }
    c->worker->connections--;
    nbd_memory_leave();
    bufpool_settle(&c->worker->pool);
}
