/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The driver "copy-on-read": data that a read finds in the backing chain of `file` are written into
 * `file` itself, where the next read finds them. With `bottom`, only data of that layer and the
 * layers above it are copied, and the chain down to that layer stays as it is (job_check_chain()).
 *
 * A copy covers whole allocation units. It locks them exclusively, from the look at their status
 * until the data are written; a write of the guest locks its range shared. So a copy never
 * overwrites newer data. A long read does so part by part: a write waits for the copy of the part
 * that it concerns, not for those before. Others may not write to `file` (the filter does not share
 * that permission). Reads of allocated areas take no lock.
 *
 * A job that streams copies through this filter (copy_on_read_serve_job()).
 */
#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#include "base/checked.h"
#include "base/cleanup.h"
#include "co/sync.h"
#include "copy/buffer_pool.h"
#include "filter/filter.h"
#include "schema/define.h"

#define BOUNCE_SIZE (1 * MiB)

struct copy_on_read {
    struct block_edge *file;
    struct block_node *bottom; /* a reference; NULL: the whole chain is copied */
    struct range_lock busy;
    /* Only reads of BLOCK_REQ_PREFETCH copy: those of a job. */
    bool for_job;
    /* The job is cancelled: such a read that has several parts ends after the one in flight. */
    atomic_bool cancelled;
    /* What was written through the filter; borrowed; NULL: nobody asks. */
    struct dirty_bitmap *written;
    /* guards the next */
    pthread_mutex_t pool_guard;
    /* of the job */
    struct buffer_pool buffers;
};

OBJECT(cor_options, "BlockdevOptionsCor", REQ("file", block_ref_type),
       OPT("bottom", schema_str,
           .help = "the last node of the backing chain from which data are copied; default: all"));

/* --- open and close --------------------------------------------------------------------------- */

static int take_bottom(struct copy_on_read *s, struct options *opts, struct error *err)
{
    AUTO_FREE char *name = NULL;
    struct block_node *found;
    int r = options_take_str(opts, "bottom", &name, err);

    if (r < 0 || !name) {
        return r;
    }
    found = block_node_find(name);
    if (!found) {
        return error_set(err, EINVAL, "Bottom node '%s' not found", name);
    }
    if (block_node_is_filter(found)) {
        return error_set(err, EINVAL, "Bottom node '%s' is a filter", name);
    }
    for (struct block_node *n = block_node_skip_filters(s->file->node); n != found;
         n = block_node_backing(n)) {
        if (!n) {
            return error_set(err, EINVAL, "Bottom node '%s' is not in the backing chain of '%s'",
                             name, block_node_display_name(s->file->node));
        }
    }
    s->bottom = block_node_ref(found);
    return 0;
}

static int cor_co_open(struct block_node *node, struct options *opts, struct error *err)
{
    struct copy_on_read *s = node->opaque;
    int r = block_co_open_filtered(node, opts, "file", err);

    if (r < 0) {
        return r;
    }
    s->file = node->filtered;
    if (s->file->node->read_only) {
        return error_set(err, EINVAL, "Block node is read-only");
    }
    r = take_bottom(s, opts, err);
    if (r < 0) {
        return r;
    }
    range_lock_init(&s->busy);
    pthread_mutex_init(&s->pool_guard, NULL);
    return 0;
}

static void cor_co_close(struct block_node *node)
{
    struct copy_on_read *s = node->opaque;

    buffer_pool_clear(&s->buffers);
    block_co_unref(s->bottom);
    range_lock_destroy(&s->busy);
    pthread_mutex_destroy(&s->pool_guard);
}

static void cor_child_perm(struct block_node *node, struct block_edge *edge, unsigned parents_perm,
                           unsigned parents_shared, unsigned *ret_perm, unsigned *ret_shared)
{
    const struct copy_on_read *s = node->opaque;

    /* A job's filter that is on its way in or out does not stand between others and the node. */
    if (s->for_job && parents_perm == 0) {
        *ret_perm = 0;
        *ret_shared = BLOCK_PERM_ALL;
        return;
    }
    *ret_perm = parents_perm | BLOCK_PERM_WRITE_UNCHANGED;
    *ret_shared = parents_shared & ~(BLOCK_PERM_WRITE | BLOCK_PERM_RESIZE);
}

/* The chain of a job is the job's business. */
static const struct block_node *cor_needs_chain_to(const struct block_node *node)
{
    const struct copy_on_read *s = node->opaque;

    return s->for_job ? NULL : s->bottom;
}

/* --- read ------------------------------------------------------------------------------------- */

/* The allocation unit of `file` in bytes; 1: none. */
static uint64_t unit_of(const struct copy_on_read *s)
{
    const struct block_node *node = block_node_skip_filters(s->file->node);

    return node->limits.cluster_size ? MAX(node->limits.zeroes_alignment, 1) : 1;
}

/* In bytes, of data. */
static uint64_t longest_copy(const struct copy_on_read *s)
{
    return MAX(unit_of(s), BOUNCE_SIZE);
}

void copy_on_read_serve_job(struct block_node *node, struct dirty_bitmap *written)
{
    struct copy_on_read *s = node->opaque;

    s->for_job = true;
    s->written = written;
    s->buffers.size = longest_copy(s);
}

void copy_on_read_cancel(struct block_node *node)
{
    struct copy_on_read *s = node->opaque;

    atomic_store(&s->cancelled, true);
}

enum source { SOURCE_TOP, SOURCE_BELOW, SOURCE_ZERO, SOURCE_NOT_COPIED };

/*
 * The edge to the image whose own areas need no copy: that below nodes of the format raw, which say
 * of all areas that they are their own. With an offset or a size, a raw node is the image itself.
 */
static struct block_edge *layer_of(const struct copy_on_read *s)
{
    struct block_edge *edge = s->file;

    while (edge) {
        struct block_node *node = block_node_skip_filters(edge->node);

        if (node->backing) {
            return edge;
        }
        edge = strcmp(node->driver->name, "raw") == 0 && !node->beyond_filename ? node->file : NULL;
    }
    return s->file;
}

/*
 * Where the bytes at `offset` are. *length becomes the length to which that applies, in whole units
 * except for the top layer.
 */
static int co_find_source(const struct copy_on_read *s, uint64_t offset, uint64_t *length,
                          enum source *ret_source)
{
    struct block_node *base = s->bottom ? block_node_backing(s->bottom) : NULL;
    uint64_t unit = unit_of(s);
    struct block_status status;
    bool allocated;
    int depth, r = block_co_is_allocated(layer_of(s), offset, *length, &allocated, length);

    if (r < 0) {
        return r;
    }
    if (allocated) {
        *ret_source = SOURCE_TOP;
        return 0;
    }
    r = block_co_status_above(s->file, base, offset, *length, &status, &depth);
    if (r < 0) {
        return r;
    }
    *ret_source = SOURCE_BELOW;
    if (status.length < *length && status.length < unit) {
        *length = MIN(*length, unit); /* the unit has parts in several layers */
    } else if (status.length < *length) {
        *length = round_down(status.length, unit);
    }
    if (status.length >= *length && depth == 0 && (base || s->for_job)) {
        *ret_source = SOURCE_NOT_COPIED;
    } else if (status.length >= *length && (status.flags & BLOCK_STATUS_ZERO)) {
        *ret_source = SOURCE_ZERO;
    }
    return 0;
}

/*
 * The part of [offset, offset + length) that a request has, whose iov begins at `start` on the
 * disk.
 */
struct window {
    uint64_t from;  /* on the disk */
    size_t in_iov;  /* offset in the iov */
    size_t in_data; /* offset from `offset` */
    size_t size;
};

static struct window overlap(uint64_t start, size_t size, uint64_t offset, uint64_t length)
{
    uint64_t from = MAX(start, offset), to = MIN(start + size, offset + length);

    return (struct window){
        .from = from,
        .in_iov = (size_t)(from - start),
        .in_data = (size_t)(from - offset),
        .size = to > from ? (size_t)(to - from) : 0,
    };
}

static int co_read_through(const struct copy_on_read *s, const struct window *w, struct iov iov,
                           unsigned flags)
{
    IOV_PART_AUTO(part);
    int r;

    if (w->size == 0) {
        return 0;
    }
    r = iov_part_set(&part, iov, w->in_iov, w->size);
    if (r < 0) {
        return r;
    }
    return block_co_preadv(s->file, w->from, part.iov, flags);
}

/* A buffer for a copy of at most longest_copy() bytes. NULL: no memory. */
static void *get_bounce(struct copy_on_read *s, size_t length)
{
    void *data;

    if (s->for_job) {
        pthread_mutex_lock(&s->pool_guard);
        data = buffer_pool_get(&s->buffers);
        pthread_mutex_unlock(&s->pool_guard);
        return data;
    }
    return posix_memalign(&data, 4096, length) == 0 ? data : NULL;
}

static void put_bounce(struct copy_on_read *s, void *data)
{
    if (s->for_job) {
        pthread_mutex_lock(&s->pool_guard);
        buffer_pool_put(&s->buffers, data);
        pthread_mutex_unlock(&s->pool_guard);
    } else {
        free(data);
    }
}

static int co_copy_data(struct copy_on_read *s, uint64_t offset, size_t length,
                        const struct window *w, struct iov iov, unsigned flags)
{
    void *data = get_bounce(s, length);
    int r;

    if (!data) {
        return -ENOMEM;
    }
    r = block_co_pread(s->file, offset, data, length);
    if (r == 0) {
        block_co_event(s->file, BLOCK_EVENT_COR_WRITE);
        r = buffer_is_zero(data, length)
                ? block_co_write_zeroes(s->file, offset, length, BLOCK_REQ_UNCHANGED)
                : block_co_pwrite(s->file, offset, data, length, BLOCK_REQ_UNCHANGED);
    }
    if (r == 0 && !(flags & BLOCK_REQ_PREFETCH)) {
        iov_copy_from_buf(iov, w->in_iov, (char *)data + w->in_data, w->size);
    }
    put_bounce(s, data);
    return r;
}

static int co_copy_zeroes(const struct copy_on_read *s, uint64_t offset, uint64_t length,
                          const struct window *w, struct iov iov, unsigned flags)
{
    if (!(flags & BLOCK_REQ_PREFETCH)) {
        iov_fill(iov, w->in_iov, 0, w->size);
    }
    block_co_event(s->file, BLOCK_EVENT_COR_WRITE);
    return block_co_write_zeroes(s->file, offset, length, BLOCK_REQ_UNCHANGED);
}

/*
 * Read the bytes of [offset, offset + iov.size) that the units [at, end) have, and copy these,
 * which are locked exclusively.
 */
static int cor_co_copy_locked(struct copy_on_read *s, uint64_t at, uint64_t end, uint64_t offset,
                              struct iov iov, unsigned flags)
{
    int r = 0;

    for (uint64_t length; at < end && r == 0; at += length) {
        enum source source = SOURCE_TOP;
        struct window w;

        length = end - at;
        r = co_find_source(s, at, &length, &source);
        if (r < 0) {
            break;
        }
        if (source == SOURCE_BELOW) {
            length = MIN(length, longest_copy(s));
        }
        w = overlap(offset, iov.size, at, length);
        if (source == SOURCE_BELOW) {
            r = co_copy_data(s, at, length, &w, iov, flags);
        } else if (source == SOURCE_ZERO) {
            r = co_copy_zeroes(s, at, length, &w, iov, flags);
        } else {
            r = co_read_through(s, &w, iov, flags);
        }
        if (r == 0 && at + length < end && (flags & BLOCK_REQ_PREFETCH) &&
            atomic_load(&s->cancelled)) {
            r = -ECANCELED;
        }
    }
    return r;
}

/* Read [offset, offset + iov.size), and copy the units [at, end). */
static int cor_co_copy_range(struct copy_on_read *s, uint64_t at, uint64_t end, uint64_t offset,
                             struct iov iov, unsigned flags)
{
    uint64_t most = longest_copy(s);
    int r = 0;

    for (uint64_t length; at < end && r == 0; at += length) {
        struct range_entry range;

        length = MIN(most - at % most, end - at);
        co_range_lock(&s->busy, &range, at, length, true);
        r = cor_co_copy_locked(s, at, at + length, offset, iov, flags);
        range_unlock(&s->busy, &range);
    }
    return r;
}

static int cor_co_preadv(struct block_node *node, uint64_t offset, struct iov iov, unsigned flags)
{
    struct copy_on_read *s = node->opaque;
    uint64_t unit = unit_of(s), first = round_down(offset, unit), at = offset;
    uint64_t end = MIN(round_up(offset + iov.size, unit), block_edge_size(s->file));
    int r = 0;

    if (s->for_job && !(flags & BLOCK_REQ_PREFETCH)) {
        return block_co_preadv(s->file, offset, iov, flags);
    }
    /* Allocated areas need no copy. */
    while (at < offset + iov.size) {
        bool allocated;
        uint64_t length;

        r = block_co_is_allocated(layer_of(s), at, offset + iov.size - at, &allocated, &length);
        if (r < 0) {
            return r;
        }
        if (!allocated) {
            break;
        }
        at += length;
    }
    if (at >= offset + iov.size) {
        return block_co_preadv(s->file, offset, iov, flags);
    }
    return cor_co_copy_range(s, first, end, offset, iov, flags);
}

/* --- changes ---------------------------------------------------------------------------------- */

/* A write has ended, with success or not. */
static void end_write(struct copy_on_read *s, struct range_entry *range, uint64_t offset,
                      uint64_t length)
{
    if (s->written) {
        dirty_bitmap_set(s->written, offset, length);
    }
    range_unlock(&s->busy, range);
}

static int cor_co_pwritev(struct block_node *node, uint64_t offset, struct iov iov, unsigned flags)
{
    struct copy_on_read *s = node->opaque;
    struct range_entry range;
    int r;

    co_range_lock(&s->busy, &range, offset, iov.size, false);
    r = block_co_pwritev(s->file, offset, iov, flags);
    end_write(s, &range, offset, iov.size);
    return r;
}

static int cor_co_write_zeroes(struct block_node *node, uint64_t offset, uint64_t length,
                               unsigned flags)
{
    struct copy_on_read *s = node->opaque;
    struct range_entry range;
    int r;

    co_range_lock(&s->busy, &range, offset, length, false);
    r = block_co_write_zeroes(s->file, offset, length, flags);
    end_write(s, &range, offset, length);
    return r;
}

static int cor_co_discard(struct block_node *node, uint64_t offset, uint64_t length)
{
    struct copy_on_read *s = node->opaque;
    struct range_entry range;
    int r;

    co_range_lock(&s->busy, &range, offset, length, false);
    r = block_co_discard(s->file, offset, length);
    end_write(s, &range, offset, length);
    return r;
}

const struct block_driver copy_on_read_driver = {
    .name = "copy-on-read",
    .help = "filter: what is read from backing files is copied into the image",
    .options = &cor_options,
    .instance_size = sizeof(struct copy_on_read),
    .is_filter = true,
    .reopen_options = block_no_options,
    .exchanges_file = true,
    .co_open = cor_co_open,
    .co_close = cor_co_close,
    .child_perm = cor_child_perm,
    .needs_chain_to = cor_needs_chain_to,
    .co_preadv = cor_co_preadv,
    .co_pwritev = cor_co_pwritev,
    .co_write_zeroes = cor_co_write_zeroes,
    .co_discard = cor_co_discard,
};
