/* SPDX-License-Identifier: Apache-2.0 */
/* Read, write and flush of files and devices. The first lines of each function are the hot path. */
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <unistd.h>

#include "base/checked.h"
#include "base/debug.h"
#include "file/posix_file.h"
#include "loop/loop.h"
#include "trace/events.h"

/* --- the rest of a vector, after a short read or write */

/* A position in a vector. */
struct iov_cursor {
    struct iov iov;
    /* the present element, and how many bytes of it are done */
    int index;
    size_t within;
    /* bytes of the whole vector that are done */
    size_t done;
    /* storage for iov_cursor_part() */
    struct iovec rest;
};

static void iov_cursor_advance(struct iov_cursor *c, size_t bytes)
{
    c->done += bytes;
    c->within += bytes;
    while (c->index < c->iov.count && c->within >= c->iov.vec[c->index].iov_len) {
        c->within -= c->iov.vec[c->index].iov_len;
        c->index++;
    }
}

/*
 * Elements for the next system call. The rest of an element that was begun is passed alone, so that
 * the caller's array need not be copied.
 */
static const struct iovec *iov_cursor_part(struct iov_cursor *c, int *ret_count)
{
    const struct iovec *v = &c->iov.vec[c->index];

    if (c->within == 0) {
        *ret_count = MIN(c->iov.count - c->index, IOV_MAX);
        return v;
    }
    c->rest = (struct iovec){
        .iov_base = (char *)v->iov_base + c->within,
        .iov_len = v->iov_len - c->within,
    };
    *ret_count = 1;
    return &c->rest;
}

/* --- read */

/*
 * Read on after `done` bytes. Where the file has become shorter than its node, the node reads as
 * zeroes.
 */
static int co_read_file_rest(struct posix_file *f, uint64_t offset, struct iov iov, size_t done)
{
    struct iov_cursor c = {.iov = iov};

    iov_cursor_advance(&c, done);
    while (c.done < iov.size) {
        const struct iovec *vec;
        ssize_t n = 0;
        int count;

        /* O_DIRECT reads part of a block only at the end of the file. */
        if (is_aligned(c.done, f->block_size)) {
            vec = iov_cursor_part(&c, &count);
            n = loop_co_preadv(f->fd, vec, count, offset + c.done);
        }
        if (n < 0) {
            return (int)n;
        }
        if (n == 0) {
            if (f->is_device) {
                return -EIO;
            }
            iov_fill(iov, c.done, 0, iov.size - c.done);
            return 0;
        }
        iov_cursor_advance(&c, (size_t)n);
    }
    return 0;
}

struct prefetch_call {
    int fd;
    uint64_t offset, length;
};

static int prefetch_blocking(void *arg)
{
    const struct prefetch_call *c = arg;

    return -posix_fadvise(c->fd, (off_t)c->offset, (off_t)c->length, POSIX_FADV_WILLNEED);
}

int posix_file_co_preadv(struct block_node *node, uint64_t offset, struct iov iov, unsigned flags)
{
    struct posix_file *f = node->opaque;
    ssize_t n = 0;

    if (__builtin_expect(flags & BLOCK_REQ_PREFETCH, false)) {
        struct prefetch_call c = {f->fd, offset, iov.size};

        return loop_co_offload(prefetch_blocking, &c);
    }
    if (__builtin_expect(iov.count <= IOV_MAX, true)) {
        n = loop_co_preadv(f->fd, iov.vec, iov.count, offset);
        if (__builtin_expect(n == (ssize_t)iov.size, true)) {
            return 0;
        }
        if (n < 0) {
            return (int)n;
        }
    }
    return co_read_file_rest(f, offset, iov, (size_t)n);
}

/* --- write */

/* Write on after `done` bytes. */
static int co_write_file_rest(struct posix_file *f, uint64_t offset, struct iov iov, size_t done,
                              unsigned io_flags)
{
    struct iov_cursor c = {.iov = iov};

    iov_cursor_advance(&c, done);
    while (c.done < iov.size) {
        const struct iovec *vec;
        ssize_t n;
        int count;

        vec = iov_cursor_part(&c, &count);
        n = loop_co_pwritev(f->fd, vec, count, offset + c.done, io_flags);
        if (n < 0) {
            return (int)n;
        }
        if (n == 0) {
            return -EIO;
        }
        iov_cursor_advance(&c, (size_t)n);
    }
    return 0;
}

static int co_write_file(struct posix_file *f, uint64_t offset, struct iov iov, unsigned io_flags)
{
    ssize_t n = 0;

    if (__builtin_expect(iov.count <= IOV_MAX, true)) {
        n = loop_co_pwritev(f->fd, iov.vec, iov.count, offset, io_flags);
        if (__builtin_expect(n == (ssize_t)iov.size, true)) {
            return 0;
        }
        if (n < 0) {
            return (int)n;
        }
    }
    return co_write_file_rest(f, offset, iov, (size_t)n, io_flags);
}

/* Make all later flushes fail with `error`. */
static void fail_flushes(struct sync_group *g, int error)
{
    pthread_mutex_lock(&g->guard);
    g->error = g->error ? g->error : error;
    pthread_mutex_unlock(&g->guard);
}

/*
 * A write with O_DSYNC failed. The kernel reports a failure of writeback only once, and this one
 * may concern other data too, so all later flushes must fail, as after a failed fdatasync (rule R10
 * of write ordering). A lack of space is an exception: the kernel usually finds it before it syncs
 * anything, and then a plain write fails as well.
 */
static int co_fail_stable_write(struct posix_file *f, uint64_t offset, struct iov iov, int error)
{
    if (error == -ENOSPC || error == -EDQUOT || error == -EFBIG) {
        int r = co_write_file(f, offset, iov, 0);

        if (r < 0) {
            return r;
        }
    }
    fail_flushes(&f->sync, error);
    return error;
}

int posix_file_co_pwritev(struct block_node *node, uint64_t offset, struct iov iov, unsigned flags)
{
    struct posix_file *f = node->opaque;
    bool stable = (flags & BLOCK_REQ_FUA) && !node->cache_no_flush;
    int r = co_write_file(f, offset, iov, stable ? LOOP_IO_DSYNC : 0);

    if (__builtin_expect(r < 0 && stable, false)) {
        r = co_fail_stable_write(f, offset, iov, r);
    }
    return r;
}

/* --- copy */

struct copy_call {
    int from, to;
    off_t from_offset, to_offset;
    size_t length;
};

/*
 * 0, or the error if there is no space. Any other error becomes -ENOTSUP: the caller then reads and
 * writes, which returns the exact error.
 */
static int copy_blocking(void *arg)
{
    struct copy_call *c = arg;

    while (c->length > 0) {
        ssize_t n = copy_file_range(c->from, &c->from_offset, c->to, &c->to_offset, c->length, 0);

        if (n > 0) {
            c->length -= (size_t)n;
        } else if (n == 0) {
            return -ENOTSUP;
        } else if (errno != EINTR) {
            return errno == ENOSPC || errno == EDQUOT || errno == EFBIG ? -errno : -ENOTSUP;
        }
    }
    return 0;
}

int posix_file_co_copy_from(struct block_node *node, uint64_t offset, struct block_node *source,
                            uint64_t source_offset, uint64_t length)
{
    const struct posix_file *from = source->opaque;
    const struct posix_file *to = node->opaque;
    struct copy_call c;

    if (source->driver->co_copy_from != posix_file_co_copy_from) {
        return -ENOTSUP;
    }
    c = (struct copy_call){from->fd, to->fd, (off_t)source_offset, (off_t)offset, (size_t)length};
    return loop_co_offload(copy_blocking, &c);
}

/* --- flush */

void sync_group_init(struct sync_group *g)
{
    pthread_mutex_init(&g->guard, NULL);
    co_queue_init(&g->waiters);
}

void sync_group_destroy(struct sync_group *g)
{
    pthread_mutex_destroy(&g->guard);
}

/* Run the next fdatasync, and release the guard during the call. */
static void co_sync_file_locked(struct posix_file *f)
{
    struct sync_group *g = &f->sync;
    uint64_t number;
    int r;

    MUTEX_ASSERT_HELD(&g->guard);
    number = ++g->started;
    g->running = true;
    pthread_mutex_unlock(&g->guard);
    trace_file_sync_begin(f->fd);
    r = loop_co_fdatasync(f->fd);
    trace_file_sync_end(f->fd, r);
    if (r == -EINVAL && f->is_device) {
        r = 0; /* a character device without storage, such as /dev/null */
    }
    pthread_mutex_lock(&g->guard);
    g->running = false;
    g->done = number;
    if (r < 0 && !g->error) {
        g->error = r;
    }
    co_queue_wake_all(&g->waiters);
}

int posix_file_co_flush(struct block_node *node)
{
    struct posix_file *f = node->opaque;
    struct sync_group *g = &f->sync;
    uint64_t wanted;
    int r;

    if (node->cache_no_flush) {
        return 0;
    }
    pthread_mutex_lock(&g->guard);
    /* A call that runs already may not cover writes that ended after it began. */
    wanted = g->started + 1;
    while (g->done < wanted && !g->error) {
        if (g->running) {
            co_queue_wait_for_release(&g->waiters, &g->guard, "a sync of", NULL, f->fd);
            pthread_mutex_lock(&g->guard);
        } else {
            co_sync_file_locked(f);
        }
    }
    r = g->error;
    pthread_mutex_unlock(&g->guard);
    return r;
}
