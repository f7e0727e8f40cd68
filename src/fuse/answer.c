/* SPDX-License-Identifier: Apache-2.0 */
/* Answers to the kernel. */
#include <errno.h>

#include "fuse/internal.h"

/* Take what libfuse knows of the request. NULL: nobody can get an answer any more. */
static fuse_req_t end_request(struct fuse_request *rq, int r)
{
    struct fuse_disk *d = rq->disk;
    fuse_req_t req = rq->req;

    rq->req = NULL;
    fuse_count(rq, r);
    if (rq->kind != FUSE_KIND_OTHER) {
        atomic_fetch_sub(&d->running, 1);
    }
    if (d->detached) {
        fuse_reply_none(req);
        return NULL;
    }
    return req;
}

void fuse_answer(struct fuse_request *rq, int r)
{
    fuse_req_t req = end_request(rq, r);

    if (req) {
        fuse_reply_err(req, r == -ENOTSUP ? EOPNOTSUPP : -r);
    }
}

void fuse_refuse(struct fuse_request *rq, int r)
{
    rq->invalid = true;
    fuse_answer(rq, r);
}

void fuse_answer_data(struct fuse_request *rq, const void *data, size_t size)
{
    fuse_req_t req = end_request(rq, 0);

    if (req) {
        fuse_reply_buf(req, data, size);
    }
}

void fuse_answer_written(struct fuse_request *rq, size_t size)
{
    fuse_req_t req = end_request(rq, 0);

    if (req) {
        fuse_reply_write(req, size);
    }
}

void fuse_answer_offset(struct fuse_request *rq, uint64_t offset)
{
    fuse_req_t req = end_request(rq, 0);

    if (req) {
        fuse_reply_lseek(req, (off_t)offset);
    }
}

/* The kernel asks each time: others may resize the node. */
void fuse_answer_attr(struct fuse_request *rq, const struct stat *st)
{
    fuse_req_t req = end_request(rq, 0);

    if (req) {
        fuse_reply_attr(req, st, 0);
    }
}

void fuse_answer_statfs(struct fuse_request *rq, const struct statvfs *st)
{
    fuse_req_t req = end_request(rq, 0);

    if (req) {
        fuse_reply_statfs(req, st);
    }
}
