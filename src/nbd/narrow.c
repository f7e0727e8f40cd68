/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Large requests in pieces of the memory that a connection may always use, one after another. That
 * is slow, but a client that asks for much while others hold the memory is served.
 */
#include <errno.h>
#include <inttypes.h>

#include "base/checked.h"
#include "nbd/server_internal.h"

/* Bytes. */
#define PIECE NBD_GUARANTEED_BYTES

int nbd_connection_co_narrow_read(struct nbd_connection *c, const struct nbd_request *rq)
{
    uint64_t done = 0;

    c->piece_failed = false;
    do {
        uint64_t left = rq->length - done;
        struct nbd_job *job = nbd_job_new(c, rq);

        if (!job) {
            return -ENOMEM;
        }
        job->rq.offset = rq->offset + done;
        job->rq.length = MIN(left, PIECE);
        job->continues = done > 0;
        job->continued = left > PIECE;
        if (job->continued && (rq->flags & NBD_CMD_FLAG_DF)) {
            nbd_job_refuse(job, EOVERFLOW,
                           "%s of %" PRIu64 " bytes: there is no memory to answer it in one chunk",
                           nbd_command_name(rq->type), rq->length);
        }
        done += job->rq.length;
        nbd_job_co_start(job);
        while (c->jobs > 0) {
            nbd_connection_co_wait_for_jobs(c);
        }
        nbd_connection_co_let_others(c);
    } while (done < rq->length && !c->piece_failed && !c->broken);
    return c->broken ? -EPIPE : 0;
}

int nbd_connection_co_narrow_write(struct nbd_connection *c, struct nbd_job *job)
{
    const struct nbd_request *rq = &job->rq;
    bool fua = (rq->flags & NBD_CMD_FLAG_FUA) || c->export->writethrough;

    for (uint64_t done = 0; done < rq->length;) {
        size_t part = MIN(rq->length - done, PIECE);
        struct iovec vec;
        int r = nbd_connection_co_receive(c, job->data.data, part);

        if (r < 0) {
            return r;
        }
        if (job->result == 0) {
            job->co = co_self();
            job->result =
                block_co_pwritev(c->export->edge, rq->offset + done,
                                 iov_from_buf(&vec, job->data.data, part), fua ? BLOCK_REQ_FUA : 0);
            job->co = NULL;
        }
        done += part;
    }
    job->carried_out = true;
    return 0;
}
