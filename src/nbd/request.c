/* SPDX-License-Identifier: Apache-2.0 */
/* Requests of clients, carried out on the exported node. One coroutine each. */
#include <errno.h>
#include <string.h>

#include "base/byteorder.h"
#include "base/checked.h"
#include "nbd/server_internal.h"
#include "trace/events.h"

/* The reply to a read in chunks: their headers, and the vector to send. Lies in job->extra. */
struct read_layout {
    uint8_t headers[NBD_READ_CHUNKS_MAX + 1][48];
    struct iovec iov[(2 + NBD_PIPES_OF_JOB) * (NBD_READ_CHUNKS_MAX + 1)];
    unsigned chunks;
};

static int co_read_from_node(struct nbd_job *job, uint32_t from, uint32_t length)
{
    int r = 0;

    if (!job->data.data && !bufpool_get(&job->conn->worker->pool, job->rq.length, &job->data)) {
        return -ENOMEM;
    }
    while (length > 0 && r == 0) {
        uint32_t part = MIN(length, (uint32_t)NBD_READ_PART);
        struct iovec vec;
        struct iov iov = iov_from_buf(&vec, (uint8_t *)job->data.data + from, part);

        r = block_co_preadv(job->conn->export->edge, job->rq.offset + from, iov, 0);
        from += part;
        length -= part;
        if (length > 0) {
            co_reschedule();
        }
    }
    return r;
}

/*
 * Read without a copy. A read that is done in pieces is for clients that do not take their replies.
 * -ENOTSUP: it has to be copied.
 */
static int co_read_pages(struct nbd_job *job, uint32_t from, uint32_t length,
                         struct nbd_pipe **ret_pipes)
{
    struct nbd_connection *c = job->conn;

    if ((c->tls && !tls_session_uses_kernel(c->tls)) || length < NBD_PAGES_READ || job->continues ||
        job->continued) {
        return -ENOTSUP;
    }
    return nbd_pipes_co_read(&c->worker->pipes, c->export->edge, job->rq.offset + from, length,
                             ret_pipes);
}

/* Elements for pipes, which the job owns from now on. */
static void add_pipes(struct nbd_job *job, struct nbd_pipe *first)
{
    struct nbd_pipe **end = &job->pipes;

    while (*end) {
        end = &(*end)->next;
    }
    *end = first;
    for (; first; first = first->next) {
        counter_add(&job->conn->counters.values[NBD_STAT_UNCOPIED], first->bytes);
        job->iov[job->iov_count++] = (struct iovec){.iov_base = first, .iov_len = first->bytes};
    }
}

/* `pipes`: they have the data; NULL: the data are in job->data. */
static void add_chunk(struct nbd_job *job, struct read_layout *l, bool hole, uint32_t from,
                      uint32_t length, struct nbd_pipe *pipes)
{
    uint8_t *h = l->headers[l->chunks++];
    struct nbd_chunk chunk = {
        .type = hole ? NBD_CHUNK_OFFSET_HOLE : NBD_CHUNK_OFFSET_DATA,
        .length = hole ? 12 : 8 + length,
        .flags = from + length == job->rq.length && !job->continued ? NBD_CHUNK_FLAG_DONE : 0,
    };
    size_t head = nbd_reply_put_chunk(job, h, chunk);

    store_be64(h + head, job->rq.offset + from);
    if (hole) {
        store_be32(h + head + 8, length);
    }
    job->iov[job->iov_count++] = (struct iovec){.iov_base = h, .iov_len = head + (hole ? 12 : 8)};
    if (pipes) {
        add_pipes(job, pipes);
    } else if (!hole) {
        job->iov[job->iov_count++] =
            (struct iovec){.iov_base = (uint8_t *)job->data.data + from, .iov_len = length};
    }
}

/*
 * Length of the run from `from` on that is all holes, or all data. What the last possible chunk has
 * to take counts as data, and so does an area whose status is unknown: it is read.
 */
static uint32_t co_next_run(struct nbd_job *job, const struct read_layout *l, uint32_t from,
                            bool *ret_hole)
{
    uint32_t length = 0;

    *ret_hole = false;
    if (l->chunks + 1 >= NBD_READ_CHUNKS_MAX) {
        return (uint32_t)job->rq.length - from;
    }
    while (from + length < job->rq.length) {
        struct block_status st;
        bool hole;
        int r = block_co_status_above(job->conn->export->edge, NULL, job->rq.offset + from + length,
                                      job->rq.length - from - length, &st, NULL);

        if (r < 0 || st.length == 0) {
            /* The hole that was found before it is sent first. */
            return length > 0 && *ret_hole ? length : (uint32_t)job->rq.length - from;
        }
        hole = st.flags & BLOCK_STATUS_ZERO;
        if (length > 0 && hole != *ret_hole) {
            break;
        }
        *ret_hole = hole;
        length += (uint32_t)MIN(st.length, job->rq.length - from - length);
    }
    return length;
}

/* A large read: areas that are known to be zero are neither read nor sent. */
static int co_read_sparse(struct nbd_job *job)
{
    struct bufpool *pool = &job->conn->worker->pool;
    struct read_layout *l;
    uint32_t from = 0;

    if (!bufpool_get(pool, sizeof(*l), &job->extra)) {
        return -ENOMEM;
    }
    l = job->extra.data;
    l->chunks = 0;
    job->iov = l->iov;
    job->iov_count = job->iov_next = 0;
    while (from < job->rq.length) {
        bool hole;
        uint32_t length = co_next_run(job, l, from, &hole);
        struct nbd_pipe *pipes = NULL;
        int r = hole ? 0 : co_read_pages(job, from, length, &pipes);

        if (r == -ENOTSUP) {
            r = co_read_from_node(job, from, length);
        }
        if (r < 0) {
            return r;
        }
        add_chunk(job, l, hole, from, length, pipes);
        from += length;
    }
    return 0;
}

/* --- zeroes in what was read ---------------------------------------------------------------- */

/* Bytes. */
#define SECTOR 512u

/* Most sectors that hold data have some in their first bytes. */
static bool is_zero_sector(const uint8_t *p)
{
    uint64_t first;

    memcpy(&first, p, sizeof(first));
    return first == 0 && memcmp(p, p + sizeof(first), SECTOR - sizeof(first)) == 0;
}

/*
 * Length of the run from `from` on that is zeroes or data as its first sector. It begins and ends
 * at a sector, or at an end of the request.
 */
static uint32_t run_of_kind(const struct nbd_job *job, uint32_t from, bool *ret_zero)
{
    const uint8_t *data = job->data.data;
    uint32_t length = (uint32_t)job->rq.length;
    uint32_t at =
        from + (uint32_t)(round_up(job->rq.offset + from, SECTOR) - (job->rq.offset + from));

    *ret_zero = at == from && at + SECTOR <= length && is_zero_sector(data + at);
    while (at + SECTOR <= length && is_zero_sector(data + at) == *ret_zero) {
        at += SECTOR;
    }
    return *ret_zero ? at - from : MIN(at + SECTOR > length ? length : at, length) - from;
}

static bool has_zero_sector(const struct nbd_job *job)
{
    const uint8_t *data = job->data.data;

    for (uint64_t at = round_up(job->rq.offset, SECTOR) - job->rq.offset;
         at + SECTOR <= job->rq.length; at += SECTOR) {
        if (is_zero_sector(data + at)) {
            return true;
        }
    }
    return false;
}

/*
 * The reply to a small read: sectors of zeroes are sent as holes. Asking the node where they are
 * would cost more than looking at the data.
 */
static void set_data_and_holes(struct nbd_job *job)
{
    struct bufpool *pool = &job->conn->worker->pool;
    uint32_t length = (uint32_t)job->rq.length;
    struct read_layout *l;
    uint32_t run;

    if (!has_zero_sector(job) || !bufpool_get(pool, sizeof(*l), &job->extra)) {
        nbd_reply_set_data(job);
        return;
    }
    l = job->extra.data;
    l->chunks = 0;
    job->iov = l->iov;
    job->iov_count = job->iov_next = 0;
    for (uint32_t from = 0; from < length; from += run) {
        bool zero;

        run = run_of_kind(job, from, &zero);
        if (l->chunks + 1 >= NBD_READ_CHUNKS_MAX) {
            run = length - from;
            zero = false;
        }
        add_chunk(job, l, zero, from, run, NULL);
    }
}

static int co_read_request(struct nbd_job *job)
{
    const struct nbd_request *rq = &job->rq;
    int r;

    if (rq->length == 0) {
        nbd_reply_set_done(job);
        return 0;
    }
    if (job->conn->structured && rq->length >= NBD_SPARSE_READ && !(rq->flags & NBD_CMD_FLAG_DF)) {
        return co_read_sparse(job);
    }
    r = co_read_from_node(job, 0, (uint32_t)rq->length);
    if (r == 0 && job->conn->structured && !(rq->flags & NBD_CMD_FLAG_DF)) {
        set_data_and_holes(job);
    } else if (r == 0) {
        nbd_reply_set_data(job);
    }
    return r;
}

static int co_write_request(struct nbd_job *job, bool fua)
{
    struct iovec vec;
    struct iov iov = iov_from_buf(&vec, job->payload, job->rq.length);

    if (job->rq.length == 0) {
        return 0;
    }
    return block_co_pwritev(job->conn->export->edge, job->rq.offset, iov, fua ? BLOCK_REQ_FUA : 0);
}

static int co_zeroes_request(struct nbd_job *job, bool fua)
{
    const struct nbd_request *rq = &job->rq;
    unsigned flags = (fua ? BLOCK_REQ_FUA : 0) |
                     (rq->flags & NBD_CMD_FLAG_NO_HOLE ? 0 : BLOCK_REQ_MAY_UNMAP) |
                     (rq->flags & NBD_CMD_FLAG_FAST_ZERO ? BLOCK_REQ_NO_FALLBACK : 0);

    if (rq->length == 0) {
        return 0;
    }
    return block_co_write_zeroes(job->conn->export->edge, rq->offset, rq->length, flags);
}

static int co_trim_request(struct nbd_job *job, bool fua)
{
    struct block_edge *edge = job->conn->export->edge;
    int r = job->rq.length ? block_co_discard(edge, job->rq.offset, job->rq.length) : 0;

    if (r == 0 && fua) {
        r = block_co_flush(edge);
    }
    return r;
}

/* Read ahead into caches, in parts that a read without a buffer can take. */
static int co_cache_request(struct nbd_job *job)
{
    uint64_t offset = job->rq.offset, end = offset + MIN(job->rq.length, NBD_CACHE_MAX);

    while (offset < end) {
        uint64_t length = MIN(end - offset, NBD_MAX_BLOCK_SIZE);
        struct iov none = {.size = length};
        int r = block_co_preadv(job->conn->export->edge, offset, none, BLOCK_REQ_PREFETCH);

        if (r < 0) {
            return r;
        }
        offset += length;
    }
    return 0;
}

/* Commands without data in the reply. */
static int co_plain_request(struct nbd_job *job)
{
    bool fua = (job->rq.flags & NBD_CMD_FLAG_FUA) || job->conn->export->writethrough;

    switch (job->rq.type) {
    case NBD_CMD_WRITE:
        return co_write_request(job, fua);
    case NBD_CMD_FLUSH:
        return block_co_flush(job->conn->export->edge);
    case NBD_CMD_TRIM:
        return co_trim_request(job, fua);
    case NBD_CMD_WRITE_ZEROES:
        return co_zeroes_request(job, fua);
    case NBD_CMD_CACHE:
        return co_cache_request(job);
    default:
        return nbd_job_refuse(job, EINVAL, "Command %u is unknown", job->rq.type);
    }
}

/* Count a request that has ended. A read that is done in pieces is one request. */
static void count_request(struct nbd_job *job, int r)
{
    struct nbd_counters *counters = &job->conn->counters;
    bool concerns_bytes = job->kind != NBD_KIND_FLUSH && job->kind != NBD_KIND_OTHER;
    uint64_t bytes = concerns_bytes ? job->rq.length : 0;

    if (r == 0 && job->continued) {
        counter_add(&counters->values[NBD_STAT(job->kind, NBD_FIGURE_BYTES)], bytes);
    } else {
        nbd_counters_end(counters, job->kind, bytes, r, job->invalid);
    }
}

/*
 * Report that a request failed in the node. What a client asks for in vain is no failure: zeroes
 * only if they are fast, or what no node can do.
 */
static void report_failure(const struct nbd_job *job, int r)
{
    static const char *const requests[NBD_KINDS] = {[NBD_KIND_READ] = "read",
                                                    [NBD_KIND_WRITE] = "write",
                                                    [NBD_KIND_ZEROES] = "write-zeroes",
                                                    [NBD_KIND_TRIM] = "discard",
                                                    [NBD_KIND_FLUSH] = "flush"};
    const struct nbd_export *e = job->conn->export;
    bool concerns_bytes = job->kind != NBD_KIND_FLUSH;

    if (r < 0 && r != -ENOTSUP && !job->error && !job->invalid && requests[job->kind] &&
        e->on_error) {
        e->on_error(e->arg, requests[job->kind], concerns_bytes ? job->rq.offset : 0,
                    concerns_bytes ? job->rq.length : 0, -r);
    }
}

static void trace_job_begin(const struct nbd_job *job)
{
    if (trace_nbd_server_request_begin_is_on()) {
        trace_nbd_server_request_begin(job->conn->fd, nbd_command_name(job->rq.type),
                                       job->rq.cookie, job->rq.offset, job->rq.length,
                                       job->rq.flags);
    }
}

static void trace_job_end(const struct nbd_job *job, int result)
{
    if (trace_nbd_server_request_end_is_on()) {
        trace_nbd_server_request_end(job->conn->fd, nbd_command_name(job->rq.type), job->rq.cookie,
                                     result);
    }
}

/*
 * The result of a request that was carried out. One whose range was cut off by a resize meanwhile
 * is refused as if it had come later, and is no failure of the node.
 */
static int after_resize(struct nbd_job *job, int r)
{
    if (r >= 0 || job->error || job->kind == NBD_KIND_FLUSH || job->kind == NBD_KIND_OTHER ||
        range_fits(job->rq.offset, job->rq.length, job->conn->export->size)) {
        return r;
    }
    job->invalid = true;
    return nbd_job_refuse_range(job);
}

/* The coroutine of a job. */
static void co_run_job(void *arg)
{
    struct nbd_job *job = arg;
    int r;

    trace_job_begin(job);
    job->co = co_self();
    if (job->error) {
        r = -job->error;
    } else if (job->carried_out) {
        r = job->result;
        if (r == 0) {
            nbd_reply_set_done(job);
        }
    } else if (job->rq.type == NBD_CMD_READ) {
        r = co_read_request(job);
    } else if (job->rq.type == NBD_CMD_BLOCK_STATUS) {
        r = nbd_job_co_block_status(job);
    } else {
        r = co_plain_request(job);
        if (r == 0) {
            nbd_reply_set_done(job);
        }
    }
    job->co = NULL;
    r = after_resize(job, r);
    count_request(job, r);
    report_failure(job, r);
    if (r < 0) {
        job->conn->piece_failed = true;
        if (job->continues && !job->conn->structured) {
            /* The header of the reply, which said that all is well, has been sent. */
            nbd_reply_give_up(job->conn);
        }
        nbd_reply_set_error(job, -r, job->reason);
    }
    trace_job_end(job, r);
    nbd_reply_queue(job);
}

bool nbd_connection_is_clogged(const struct nbd_connection *c, size_t bytes)
{
    size_t begun = c->job_bytes - c->held_bytes;

    return c->sender_running && begun > 0 && begun + bytes > c->send_buffer;
}

void nbd_connection_co_start_held(struct nbd_connection *c)
{
    while (!list_is_empty(&c->held)) {
        struct nbd_job *job = LIST_FIRST(&c->held, struct nbd_job, link);

        if (nbd_connection_is_clogged(c, job->accounted) && !c->broken) {
            return;
        }
        list_remove(&job->link);
        c->held_bytes -= job->accounted;
        job->error = c->broken ? EPIPE : job->error;
        nbd_job_co_start(job);
    }
}

/* At the limit of coroutines it waits for one to end. */
void nbd_job_co_start(struct nbd_job *job)
{
    struct nbd_connection *c = job->conn;

    while (co_run(reactor_home(c->worker->reactor), co_run_job, job) < 0) {
        nbd_reply_flush(c);
        loop_co_sleep(1000000);
    }
}
