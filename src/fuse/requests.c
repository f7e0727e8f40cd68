/* SPDX-License-Identifier: Apache-2.0 */
/* Requests that concern the contents and the size of a disk. */
#include <errno.h>
#include <fcntl.h>
#include <linux/falloc.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/checked.h"
#include "fuse/internal.h"
#include "loop/loop.h"

enum {
    /* Buffers are aligned so that files without a cache can read into them. */
    BUFFER_ALIGNMENT = 4096,
    /* The kernel asks for at most that. */
    READ_MAX = 16 << 20,
    /* Zeroes that may be written as data, where the node has no other way, in bytes. */
    ZEROES_AS_DATA_MAX = 1 << 20,
    /* What most formats count the size of a disk in, in bytes. */
    SECTOR = 512,
};

/* Report a request that failed in the node, and answer it. */
static void answer_failure(struct fuse_request *rq, const char *request, int r)
{
    struct fuse_disk *d = rq->disk;

    if (r < 0 && r != -ENOTSUP && !d->detached) {
        d->config.on_error(d->config.arg, request, rq->offset, rq->length, -r);
    }
    fuse_answer(rq, r);
}

/* --- size ------------------------------------------------------------------------------------- */

struct resize_call {
    struct fuse_disk *disk;
    uint64_t size;
    bool grow_only;
    enum block_prealloc prealloc;
    int r;
};

static void co_resize_on_main(void *arg)
{
    struct resize_call *c = arg;

    c->r = c->disk->config.co_resize(c->disk->config.arg, c->size, c->grow_only, c->prealloc);
}

static int co_resize_locked(struct fuse_disk *d, uint64_t size, bool grow_only,
                            enum block_prealloc prealloc)
{
    struct resize_call call = {
        .disk = d, .size = size, .grow_only = grow_only, .prealloc = prealloc};

    CO_ASSERT_HELD(&d->resizing);
    if (size > INT64_MAX) {
        return -EFBIG;
    }
    loop_co_call_on(reactor_main(), co_resize_on_main, &call);
    return call.r;
}

int fuse_disk_co_resize(struct fuse_disk *d, uint64_t size)
{
    int r = 0;

    co_mutex_lock(&d->resizing);
    if (size != atomic_load(&d->size)) {
        r = co_resize_locked(d, size, false, BLOCK_PREALLOC_OFF);
    }
    co_mutex_unlock(&d->resizing);
    return r;
}

int fuse_disk_co_allocate(struct fuse_disk *d, uint64_t size)
{
    int r = 0;

    co_mutex_lock(&d->resizing);
    if (size > atomic_load(&d->size)) {
        r = co_resize_locked(d, size, true, BLOCK_PREALLOC_FALLOC);
    }
    co_mutex_unlock(&d->resizing);
    return r;
}

int fuse_disk_co_grow(struct fuse_disk *d, uint64_t size)
{
    int r = 0;

    co_mutex_lock(&d->resizing);
    if (size > atomic_load(&d->size)) {
        r = co_resize_locked(d, size, true, BLOCK_PREALLOC_OFF);
        if (r == -EINVAL && size % SECTOR) {
            r = co_resize_locked(d, round_up(size, SECTOR), true, BLOCK_PREALLOC_OFF);
        }
    }
    co_mutex_unlock(&d->resizing);
    return r;
}

/* --- contents --------------------------------------------------------------------------------- */

static int reserve_buffer(struct fuse_request *rq, size_t size)
{
    size_t rounded = round_up(MAX(size, (size_t)1), BUFFER_ALIGNMENT);

    if (rq->read_size < rounded) {
        free(rq->read_buffer);
        rq->read_size = 0;
        rq->read_buffer = aligned_alloc(BUFFER_ALIGNMENT, rounded);
        rq->read_size = rq->read_buffer ? rounded : 0;
    }
    return rq->read_buffer ? 0 : -ENOMEM;
}

/* Cut the range of a request off at the end of the disk. */
static void clip(struct fuse_request *rq)
{
    uint64_t size = atomic_load(&rq->disk->size);

    rq->length = rq->offset < size ? MIN(rq->length, size - rq->offset) : 0;
}

void fuse_co_read(struct fuse_request *rq)
{
    int r;

    rq->length = MIN(rq->length, READ_MAX);
    clip(rq);
    r = reserve_buffer(rq, rq->length);
    if (r == 0 && rq->length > 0) {
        r = block_co_pread(rq->disk->edge, rq->offset, rq->read_buffer, rq->length);
    }
    if (r < 0) {
        answer_failure(rq, "read", r);
    } else {
        fuse_answer_data(rq, rq->read_buffer, rq->length);
    }
}

void fuse_co_write(struct fuse_request *rq)
{
    struct fuse_disk *d = rq->disk;
    bool sync = d->config.writethrough || rq->flags & (O_SYNC | O_DSYNC);
    uint64_t end;
    int r = 0;

    if (!d->config.writable) {
        fuse_refuse(rq, -EACCES);
        return;
    }
    if (__builtin_add_overflow(rq->offset, rq->length, &end)) {
        fuse_refuse(rq, -EFBIG);
        return;
    }
    if (d->config.growable) {
        r = fuse_disk_co_grow(d, end);
    }
    /* Of a disk of fixed size: a writer learns how much lay before the end. */
    clip(rq);
    if (r == 0 && rq->length == 0 && end > rq->offset) {
        fuse_refuse(rq, -EIO);
        return;
    }
    if (r == 0 && rq->length > 0) {
        r = block_co_pwrite(d->edge, rq->offset, rq->data, rq->length, sync ? BLOCK_REQ_FUA : 0);
    }
    if (r < 0) {
        answer_failure(rq, "write", r);
    } else {
        fuse_answer_written(rq, rq->length);
    }
}

/* A disk that cannot be written through this file has nothing to be flushed. */
void fuse_co_flush(struct fuse_request *rq)
{
    int r = rq->disk->config.writable ? block_co_flush(rq->disk->edge) : 0;

    if (r < 0) {
        answer_failure(rq, "flush", r);
    } else {
        fuse_answer(rq, 0);
    }
}

/* --- fallocate -------------------------------------------------------------------------------- */

/*
 * Zeroes, where the node can store them without writing them; small ranges are written as data
 * otherwise.
 */
static int fuse_co_zero_range(struct fuse_request *rq, unsigned flags)
{
    struct block_edge *edge = rq->disk->edge;
    int r;

    clip(rq);
    if (rq->length == 0) {
        return 0;
    }
    r = block_co_write_zeroes(edge, rq->offset, rq->length, flags | BLOCK_REQ_NO_FALLBACK);
    if (r == -ENOTSUP && rq->length <= ZEROES_AS_DATA_MAX) {
        r = block_co_write_zeroes(edge, rq->offset, rq->length, flags);
    }
    return r;
}

/* Space past the end: the disk grows. Inside the disk no node can be asked for space. */
static int co_allocate(struct fuse_request *rq, uint64_t end)
{
    return rq->offset < atomic_load(&rq->disk->size) ? -EOPNOTSUPP
                                                     : fuse_disk_co_allocate(rq->disk, end);
}

static int co_fallocate_range(struct fuse_request *rq, uint64_t end)
{
    unsigned sync = rq->disk->config.writethrough ? BLOCK_REQ_FUA : 0;
    int r = 0;

    switch (rq->mode) {
    case 0:
        return co_allocate(rq, end);
    case FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE:
        return fuse_co_zero_range(rq, BLOCK_REQ_MAY_UNMAP | sync);
    case FALLOC_FL_ZERO_RANGE:
        r = fuse_disk_co_grow(rq->disk, end);
        return r < 0 ? r : fuse_co_zero_range(rq, sync);
    case FALLOC_FL_ZERO_RANGE | FALLOC_FL_KEEP_SIZE:
        return fuse_co_zero_range(rq, sync);
    default:
        return -EOPNOTSUPP;
    }
}

void fuse_co_fallocate(struct fuse_request *rq)
{
    uint64_t end;
    int r;

    if (!rq->disk->config.writable) {
        fuse_refuse(rq, -EACCES);
        return;
    }
    if (__builtin_add_overflow(rq->offset, rq->length, &end) || end > INT64_MAX) {
        fuse_refuse(rq, -EFBIG);
        return;
    }
    r = co_fallocate_range(rq, end);
    if (r < 0) {
        answer_failure(rq, "write-zeroes", r);
    } else {
        fuse_answer(rq, 0);
    }
}

/* --- lseek ------------------------------------------------------------------------------------ */

/* The first place from `offset` on that is data, or a hole. The end of the disk is a hole. */
static int co_find(struct fuse_disk *d, uint64_t offset, bool hole, uint64_t *ret_offset)
{
    uint64_t size = atomic_load(&d->size);

    while (offset < size) {
        struct block_status st;
        int r = block_co_status_above(d->edge, NULL, offset, size - offset, &st, NULL);

        if (r < 0) {
            return r;
        }
        if (st.length == 0) {
            break;
        }
        if (!!(st.flags & BLOCK_STATUS_ZERO) == hole) {
            *ret_offset = offset;
            return 0;
        }
        offset += st.length;
        if (reactor_turn_expired()) {
            loop_co_give_way();
        }
    }
    *ret_offset = size;
    return hole ? 0 : -ENXIO;
}

void fuse_co_lseek(struct fuse_request *rq)
{
    uint64_t offset = 0;
    int r;

    if (rq->whence != SEEK_DATA && rq->whence != SEEK_HOLE) {
        fuse_refuse(rq, -EINVAL);
        return;
    }
    if (rq->offset >= atomic_load(&rq->disk->size)) {
        fuse_refuse(rq, -ENXIO);
        return;
    }
    r = co_find(rq->disk, rq->offset, rq->whence == SEEK_HOLE, &offset);
    if (r < 0) {
        fuse_answer(rq, r);
    } else {
        fuse_answer_offset(rq, offset);
    }
}
