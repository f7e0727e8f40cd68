/* SPDX-License-Identifier: Apache-2.0 */
/* File I/O by the offload pool: for engines that have nothing better. */
#include <errno.h>
#include <fcntl.h>
#include <unistd.h>

#include "loop/internal.h"

struct io_job {
    int fd;
    const struct iovec *iov;
    int iovcnt;
    uint64_t offset;
    uint64_t length;
    /* of fallocate */
    int mode;
    /* of a write: enum loop_io_flags */
    unsigned flags;
    /* bytes, or -errno */
    ssize_t done;
};

/* The result of a system call, which is made again while signals interrupt it; -errno. */
#define RESULT_OF(call)                                                                            \
    ({                                                                                             \
        ssize_t result_ = TEMP_FAILURE_RETRY(call);                                                \
        result_ < 0 ? -errno : result_;                                                            \
    })

static int read_job(void *arg)
{
    struct io_job *job = arg;

    job->done = RESULT_OF(preadv(job->fd, job->iov, job->iovcnt, (off_t)job->offset));
    return 0;
}

static int write_job(void *arg)
{
    struct io_job *job = arg;
    int flags = job->flags & LOOP_IO_DSYNC ? RWF_DSYNC : 0;

    job->done = RESULT_OF(pwritev2(job->fd, job->iov, job->iovcnt, (off_t)job->offset, flags));
    if (job->done == -EOPNOTSUPP && flags) {
        /* Old kernels, sandboxes and emulators lack the system call. */
        job->done = RESULT_OF(pwritev(job->fd, job->iov, job->iovcnt, (off_t)job->offset));
        if (job->done >= 0 && TEMP_FAILURE_RETRY(fdatasync(job->fd)) < 0) {
            job->done = -errno;
        }
    }
    return 0;
}

static int fdatasync_job(void *arg)
{
    struct io_job *job = arg;

    return (int)RESULT_OF(fdatasync(job->fd));
}

static int fallocate_job(void *arg)
{
    struct io_job *job = arg;

    return (int)RESULT_OF(fallocate(job->fd, job->mode, (off_t)job->offset, (off_t)job->length));
}

ssize_t loop_pool_co_preadv(struct reactor *reactor, int fd, const struct iovec *iov, int iovcnt,
                            uint64_t offset)
{
    struct io_job job = {.fd = fd, .iov = iov, .iovcnt = iovcnt, .offset = offset};

    loop_co_offload(read_job, &job);
    return job.done;
}

ssize_t loop_pool_co_pwritev(struct reactor *reactor, int fd, const struct iovec *iov, int iovcnt,
                             uint64_t offset, unsigned flags)
{
    struct io_job job = {.fd = fd, .iov = iov, .iovcnt = iovcnt, .offset = offset, .flags = flags};

    loop_co_offload(write_job, &job);
    return job.done;
}

int loop_pool_co_fdatasync(struct reactor *reactor, int fd)
{
    struct io_job job = {.fd = fd};

    return loop_co_offload(fdatasync_job, &job);
}

int loop_pool_co_fallocate(struct reactor *reactor, int fd, int mode, uint64_t offset,
                           uint64_t length)
{
    struct io_job job = {.fd = fd, .mode = mode, .offset = offset, .length = length};

    return loop_co_offload(fallocate_job, &job);
}
