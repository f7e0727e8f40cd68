/* SPDX-License-Identifier: Apache-2.0 */
/*
 * NBD_CMD_BLOCK_STATUS: for each context that the client selected, a chunk of extents from the request's
 * offset on. Extents of different contexts are cut where each context changes, not together.
 *
 *   job->extra  [ header, context id | extents ... ][ header, context id | extents ... ] ...
 *
 * With extended headers there is also a count behind the context id, and length and flags have 64 bits.
 */
#include <errno.h>
#include <string.h>

#include "base/byteorder.h"
#include "base/checked.h"
#include "nbd/server_internal.h"

/* The reply as it grows. */
struct status_reply {
    struct nbd_job *job;
    size_t used;
    size_t chunk;        /* where the current one begins */
    unsigned max;        /* extents per context */
    unsigned count;      /* in the current chunk */
    unsigned turn;       /* extents found so far */
    uint32_t last_flags; /* of the extent that may still grow */
    uint64_t last_length;
};

/* Room for `more` bytes; grows by copying into a buffer twice as large. */
static int reserve(struct status_reply *r, size_t more)
{
    struct bufpool *pool = &r->job->conn->worker->pool;
    struct pooled *have = &r->job->extra;
    struct pooled larger;

    if (have->data && r->used + more <= pooled_size(have)) {
        return 0;
    }
    if (!bufpool_get(pool, have->data ? 2 * pooled_size(have) : more, &larger)) {
        return -ENOMEM;
    }
    if (have->data) {
        memcpy(larger.data, have->data, r->used);
        bufpool_put(pool, have);
    }
    *have = larger;
    return 0;
}

static uint8_t *at(struct status_reply *r, size_t offset)
{
    return (uint8_t *)r->job->extra.data + offset;
}

static int begin_chunk(struct status_reply *r, uint32_t context)
{
    const struct nbd_connection *c = r->job->conn;
    size_t header = nbd_connection_chunk_size(c), head = header + (c->extended ? 8 : 4);
    int ret = reserve(r, head);

    if (ret < 0) {
        return ret;
    }
    r->chunk = r->used;
    store_be32(at(r, r->chunk + header), context);
    r->used += head;
    r->count = 0;
    r->last_length = 0;
    return 0;
}

static int put_last(struct status_reply *r)
{
    bool extended = r->job->conn->extended;
    size_t size = extended ? NBD_EXTENDED_EXTENT_SIZE : NBD_EXTENT_SIZE;
    int ret = reserve(r, size);

    if (ret < 0) {
        return ret;
    }
    if (extended) {
        store_be64(at(r, r->used), r->last_length);
        store_be64(at(r, r->used + 8), r->last_flags);
    } else {
        store_be32(at(r, r->used), (uint32_t)r->last_length);
        store_be32(at(r, r->used + 4), r->last_flags);
    }
    r->used += size;
    r->count++;
    return 0;
}

/* Extents after which others of the reactor have their turn. */
#define TURN_EXTENTS 8192

/* Add an extent, joined to the one before if that has the same flags. 1: the chunk is full. */
static int co_add_extent(struct status_reply *r, uint64_t length, uint32_t flags)
{
    int ret;

    if (++r->turn % TURN_EXTENTS == 0) {
        co_reschedule();
    }
    if (r->last_length > 0 && r->last_flags == flags) {
        r->last_length += length;
        return 0;
    }
    if (r->last_length > 0) {
        ret = put_last(r);
        if (ret < 0) {
            return ret;
        }
        if (r->count == r->max) {
            r->last_length = 0;
            return 1;
        }
    }
    r->last_length = length;
    r->last_flags = flags;
    return 0;
}

static int end_chunk(struct status_reply *r, bool done)
{
    const struct nbd_connection *c = r->job->conn;
    size_t header = nbd_connection_chunk_size(c);
    struct nbd_chunk chunk = {
        .type = c->extended ? NBD_CHUNK_BLOCK_STATUS_EXT : NBD_CHUNK_BLOCK_STATUS,
        .flags = done ? NBD_CHUNK_FLAG_DONE : 0,
    };
    int ret = r->last_length > 0 ? put_last(r) : 0;

    chunk.length = (uint32_t)(r->used - r->chunk - header);
    nbd_reply_put_chunk(r->job, at(r, r->chunk), chunk);
    if (c->extended) {
        store_be32(at(r, r->chunk + header + 4), r->count);
    }
    return ret;
}

/* The value of base:allocation or qemu:allocation-depth at `offset`, and how far it holds. */
static int co_ask(struct block_edge *edge, bool want_depth, uint64_t offset, uint64_t length,
                  uint32_t *ret_flags, uint64_t *ret_length)
{
    struct block_status st;
    int depth, ret;

    if (want_depth) {
        ret = block_co_depth(edge, offset, length, &depth, ret_length);
        *ret_flags = ret < 0 ? 0 : (uint32_t)depth;
        return ret;
    }
    ret = block_co_status_above(edge, NULL, offset, length, &st, NULL);
    if (ret == 0) {
        *ret_flags = (st.flags & BLOCK_STATUS_DATA ? 0 : NBD_STATE_HOLE) |
                     (st.flags & BLOCK_STATUS_ZERO ? NBD_STATE_ZERO : 0);
        *ret_length = st.length;
    }
    return ret;
}

/* base:allocation or qemu:allocation-depth. */
static int co_add_allocation(struct status_reply *r, bool want_depth)
{
    const struct nbd_request *rq = &r->job->rq;
    uint64_t offset = rq->offset, end = offset + rq->length;

    for (unsigned steps = 0; offset < end && steps < NBD_STATUS_STEPS_MAX; steps++) {
        uint64_t length = 0;
        uint32_t flags = 0;
        int ret =
            co_ask(r->job->conn->export->edge, want_depth, offset, end - offset, &flags, &length);

        if (ret < 0) {
            return ret;
        }
        if (length == 0 || length > end - offset) {
            return -EIO;
        }
        ret = co_add_extent(r, length, flags);
        if (ret != 0) {
            return ret < 0 ? ret : 0;
        }
        offset += length;
    }
    return 0;
}

/* A bitmap may be shorter than the export (it can lie in a backing node): clean beyond its end. */
static int co_add_bits(struct status_reply *r, const struct dirty_bitmap *bits)
{
    const struct nbd_request *rq = &r->job->rq;
    uint64_t offset = rq->offset, end = offset + rq->length;
    uint64_t size = dirty_bitmap_size(bits);

    while (offset < end) {
        uint64_t length = end - offset;
        bool dirty = offset < size && dirty_bitmap_status(bits, offset, end, &length);
        int ret = co_add_extent(r, length, dirty ? NBD_STATE_DIRTY : 0);

        if (ret != 0) {
            return ret < 0 ? ret : 0;
        }
        offset += length;
    }
    return 0;
}

/* Changes of the bitmap, such as by a resize of its node, happen while that is drained: not while the bits are read. */
static int co_add_bitmap(struct status_reply *r, size_t index)
{
    const struct nbd_export *e = r->job->conn->export;
    const struct block_bitmap *bitmap = e->bitmaps[index];
    struct block_edge *edge = e->bitmap_edges[index];
    int ret;

    block_co_edge_enter(edge);
    ret = co_add_bits(r, block_bitmap_bits(bitmap));
    block_edge_leave(edge);
    return ret;
}

static int co_add_context(struct status_reply *r, uint32_t id, bool last)
{
    int ret = begin_chunk(r, id);

    if (ret == 0) {
        ret = id < NBD_CONTEXT_ID_BITMAP ? co_add_allocation(r, id == NBD_CONTEXT_ID_DEPTH)
                                         : co_add_bitmap(r, id - NBD_CONTEXT_ID_BITMAP);
    }
    return ret < 0 ? ret : end_chunk(r, last);
}

static bool is_selected(const struct nbd_selection *sel, uint32_t id)
{
    if (id == NBD_CONTEXT_ID_BASE) {
        return sel->base;
    }
    return id == NBD_CONTEXT_ID_DEPTH ? sel->depth : sel->bitmaps[id - NBD_CONTEXT_ID_BITMAP];
}

/* The i-th of the contexts that the request names. */
static uint32_t named_context(const struct nbd_job *job, size_t i)
{
    return load_be32(job->payload + 8 + 4 * i);
}

static bool is_named(const struct nbd_job *job, uint32_t id)
{
    for (size_t i = 0; i < job->context_count; i++) {
        if (named_context(job, i) == id) {
            return true;
        }
    }
    return job->context_count == 0;
}

/* Whether those are selected, and each is named once. */
static bool names_are_sound(const struct nbd_job *job)
{
    const struct nbd_selection *sel = &job->conn->selection;
    size_t found = 0;

    for (uint32_t id = 0; id < NBD_CONTEXT_ID_BITMAP + sel->bitmap_count; id++) {
        found += job->context_count > 0 && is_selected(sel, id) && is_named(job, id);
    }
    return found == job->context_count;
}

/* Extents that each of the contexts may have, so that all fit into the job's memory: twice as much while the buffer grows. */
static unsigned extents_max(const struct nbd_job *job, size_t contexts)
{
    size_t each = job->accounted / 2 / contexts / NBD_EXTENDED_EXTENT_SIZE;

    if (job->rq.flags & NBD_CMD_FLAG_REQ_ONE) {
        return 1;
    }
    return (unsigned)MIN(MAX(each, 1), NBD_STATUS_EXTENTS_MAX);
}

int nbd_job_co_block_status(struct nbd_job *job)
{
    const struct nbd_selection *sel = &job->conn->selection;
    size_t left = job->context_count ? job->context_count : sel->selected;
    struct status_reply r = {.job = job, .max = extents_max(job, MAX(left, 1))};

    if (sel->selected == 0) {
        job->reason = "No metadata context was selected for this export";
        return -EINVAL;
    }
    if (job->rq.length == 0) {
        job->reason = "Block status of no bytes";
        return -EINVAL;
    }
    if (!names_are_sound(job)) {
        job->reason = "Metadata contexts that were not selected, or are named twice";
        return -EINVAL;
    }
    for (uint32_t id = 0; left > 0; id++) {
        int ret;

        if (!is_selected(sel, id) || !is_named(job, id)) {
            continue;
        }
        left--;
        ret = co_add_context(&r, id, left == 0);
        if (ret < 0) {
            return ret;
        }
    }
    job->iov = job->inline_iov;
    job->iov[0] = (struct iovec){.iov_base = job->extra.data, .iov_len = r.used};
    job->iov_count = 1;
    job->iov_next = 0;
    return 0;
}
