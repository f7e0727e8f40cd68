/* SPDX-License-Identifier: Apache-2.0 */
#include "nbd/pipes.h"

#include <errno.h>
#include <fcntl.h>
#include <stdatomic.h>
#include <sys/resource.h>
#include <unistd.h>

#include "base/checked.h"

/* Of the whole process. Any thread. */
static atomic_uint pipes_made;

/* Whether the process may have one more; then it is counted. */
static bool count_pipe(void)
{
    struct rlimit limit;
    unsigned most = NBD_PIPES;

    if (getrlimit(RLIMIT_NOFILE, &limit) == 0 && limit.rlim_cur != RLIM_INFINITY) {
        most = (unsigned)MIN(limit.rlim_cur / NBD_DESCRIPTORS_PER_PIPE, UINT32_MAX);
    }
    if (atomic_fetch_add(&pipes_made, 1) < most) {
        return true;
    }
    atomic_fetch_sub(&pipes_made, 1);
    return false;
}

/* Make a pipe that holds enough. */
static bool pipe_open(struct nbd_pipe *pipe)
{
    int fds[2];

    if (pipe2(fds, O_CLOEXEC | O_NONBLOCK) < 0) {
        return false;
    }
    (void)fcntl(fds[1], F_SETPIPE_SZ, NBD_PIPE_BYTES);
    if (fcntl(fds[1], F_GETPIPE_SZ) < NBD_PIPE_BYTES_MIN) {
        close(fds[0]);
        close(fds[1]);
        return false;
    }
    *pipe = (struct nbd_pipe){.read_fd = fds[0], .write_fd = fds[1]};
    return true;
}

/* An empty pipe; NULL: there is none. */
static struct nbd_pipe *pipe_get(struct nbd_pipes *p)
{
    struct nbd_pipe *pipe = p->free;

    if (pipe) {
        p->free = pipe->next;
        pipe->next = NULL;
        return pipe;
    }
    if (p->useless || p->made == NBD_PIPES) {
        return NULL;
    }
    if (!count_pipe()) {
        return NULL;
    }
    pipe = &p->pipe[p->made];
    if (!pipe_open(pipe)) {
        atomic_fetch_sub(&pipes_made, 1);
        p->useless = true;
        return NULL;
    }
    p->made++;
    return pipe;
}

void nbd_pipes_put(struct nbd_pipes *p, struct nbd_pipe *first)
{
    while (first) {
        struct nbd_pipe *pipe = first;

        first = pipe->next;
        if (pipe->bytes > 0) {
            /* What is left in it was not sent. */
            close(pipe->read_fd);
            close(pipe->write_fd);
            if (!pipe_open(pipe)) {
                /* It is lost; the others stay. */
                atomic_fetch_sub(&pipes_made, 1);
                continue;
            }
        }
        pipe->next = p->free;
        p->free = pipe;
    }
}

/* Where the pages of one read go. */
struct pipe_sink {
    struct block_page_sink base;
    struct nbd_pipes *pipes;
    struct nbd_pipe *first, *last;
    unsigned count;
    uint64_t bytes;
};

/* Go on with an empty pipe. */
static bool sink_grow(struct pipe_sink *s)
{
    struct nbd_pipe *pipe = s->count < NBD_PIPES_OF_JOB ? pipe_get(s->pipes) : NULL;

    if (!pipe) {
        return false;
    }
    if (s->last) {
        s->last->next = pipe;
    } else {
        s->first = pipe;
    }
    s->last = pipe;
    s->count++;
    return true;
}

static int sink_take(struct block_page_sink *base, int fd, uint64_t offset, uint64_t length)
{
    struct pipe_sink *s = (struct pipe_sink *)base;
    off64_t at = (off64_t)offset;

    while (length > 0) {
        ssize_t n = -1;

        errno = EAGAIN;
        if (s->last) {
            n = splice(fd, &at, s->last->write_fd, NULL, (size_t)length, SPLICE_F_NONBLOCK);
        }
        if (n > 0) {
            s->last->bytes += (size_t)n;
            s->bytes += (uint64_t)n;
            length -= (uint64_t)n;
        } else if (n == 0 || errno != EAGAIN || (s->last && s->last->bytes == 0) || !sink_grow(s)) {
            return -ENOTSUP;
        }
    }
    return 0;
}

int nbd_pipes_co_read(struct nbd_pipes *p, struct block_edge *edge, uint64_t offset,
                      uint64_t length, struct nbd_pipe **ret_first)
{
    struct pipe_sink s = {.base.take = sink_take, .pipes = p};
    int r;

    if (p->useless || length > (uint64_t)NBD_PIPES_OF_JOB * NBD_PIPE_BYTES) {
        return -ENOTSUP;
    }
    r = block_co_read_pages(edge, offset, length, &s.base);
    if (r == 0 && s.bytes != length) {
        r = -EIO;
    }
    if (r < 0) {
        nbd_pipes_put(p, s.first);
        return r;
    }
    *ret_first = s.first;
    return 0;
}
