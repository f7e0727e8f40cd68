/* SPDX-License-Identifier: Apache-2.0 */
/*
 * NBD_CMD_BLOCK_STATUS: for each context that the client selected, a chunk of extents from the
 * request's offset on. The extents of a context end where that context changes, wherever those of
 * others end.
 *
 *   job->extra  [ header, context id | extents ... ][ header, context id | extents ... ] ...
 *
 * With extended headers a count follows the context id, and length and flags have 64 bits.
 */
#include <errno.h>
#include <string.h>

#include "base/byteorder.h"
#include "base/checked.h"
#include "nbd/server_internal.h"

/* The reply as it grows. */
struct status_reply {
    struct nbd_job *job;
    /* Bytes of job->extra. */
    size_t used;
    /* Where the current chunk begins there. */
    size_t chunk;
    /* Extents that a context may have, and that the current chunk has. */
    unsigned max;
    unsigned count;
    /* Extents found so far. */
    unsigned turn;
    /* The extent that may still grow; length 0: none. */
    uint32_t last_flags;
    uint64_t last_length;
};

/* Make room for `more` bytes, if needed by copying into a buffer twice as large. */
static int reserve_reply(struct status_reply *s, size_t more)
{
    struct bufpool *pool = &s->job->conn->worker->pool;
    struct pooled *have = &s->job->extra;
    struct pooled larger;

    if (have->data && s->used + more <= pooled_size(have)) {
        return 0;
    }
    if (!bufpool_get(pool, have->data ? 2 * pooled_size(have) : more, &larger)) {
        return -ENOMEM;
    }
    if (have->data) {
        memcpy(larger.data, have->data, s->used);
        bufpool_put(pool, have);
    }
    *have = larger;
    return 0;
}

static uint8_t *reply_at(struct status_reply *s, size_t offset)
{
    return (uint8_t *)s->job->extra.data + offset;
}

static int begin_chunk(struct status_reply *s, uint32_t context)
{
    const struct nbd_connection *c = s->job->conn;
    size_t header = nbd_connection_chunk_size(c), head = header + (c->extended ? 8 : 4);
    int r = reserve_reply(s, head);

    if (r < 0) {
        return r;
    }
    s->chunk = s->used;
    store_be32(reply_at(s, s->chunk + header), context);
    s->used += head;
    s->count = 0;
    s->last_length = 0;
    return 0;
}

static int put_last_extent(struct status_reply *s)
{
    bool extended = s->job->conn->extended;
    size_t size = extended ? NBD_EXTENDED_EXTENT_SIZE : NBD_EXTENT_SIZE;
    int r = reserve_reply(s, size);

    if (r < 0) {
        return r;
    }
    if (extended) {
        store_be64(reply_at(s, s->used), s->last_length);
        store_be64(reply_at(s, s->used + 8), s->last_flags);
    } else {
        store_be32(reply_at(s, s->used), (uint32_t)s->last_length);
        store_be32(reply_at(s, s->used + 4), s->last_flags);
    }
    s->used += size;
    s->count++;
    return 0;
}

/* Extents after which others of the reactor have their turn. */
#define TURN_EXTENTS 8192

/* Add an extent; one with the flags of the last is joined to that. 1: the chunk is full. */
static int co_add_extent(struct status_reply *s, uint64_t length, uint32_t flags)
{
    int r;

    if (++s->turn % TURN_EXTENTS == 0) {
        co_reschedule();
    }
    if (s->last_length > 0 && s->last_flags == flags) {
        s->last_length += length;
        return 0;
    }
    if (s->last_length > 0) {
        r = put_last_extent(s);
        if (r < 0) {
            return r;
        }
        if (s->count == s->max) {
            s->last_length = 0;
            return 1;
        }
    }
    s->last_length = length;
    s->last_flags = flags;
    return 0;
}

static int end_chunk(struct status_reply *s, bool done)
{
    const struct nbd_connection *c = s->job->conn;
    size_t header = nbd_connection_chunk_size(c);
    struct nbd_chunk chunk = {
        .type = c->extended ? NBD_CHUNK_BLOCK_STATUS_EXT : NBD_CHUNK_BLOCK_STATUS,
        .flags = done ? NBD_CHUNK_FLAG_DONE : 0,
    };
    int r = s->last_length > 0 ? put_last_extent(s) : 0;

    chunk.length = (uint32_t)(s->used - s->chunk - header);
    nbd_reply_put_chunk(s->job, reply_at(s, s->chunk), chunk);
    if (c->extended) {
        store_be32(reply_at(s, s->chunk + header + 4), s->count);
    }
    return r;
}

static uint32_t allocation_flags(const struct block_status *st)
{
    return (st->flags & BLOCK_STATUS_DATA ? 0 : NBD_STATE_HOLE) |
           (st->flags & BLOCK_STATUS_ZERO ? NBD_STATE_ZERO : 0);
}

/*
 * Depth 1 is the exported node. What no layer has is unallocated; it counts as from a backing file
 * where a layer below ends, as in "qemu:allocation-depth".
 */
static uint32_t layer_flags(int depth)
{
    return depth == 1 ? NBD_MERGED_LOCAL : depth > 1 ? NBD_MERGED_BACKING : 0;
}

/* The flags of a context about allocation at `offset`, and for how many bytes they hold. */
static int co_ask_node(struct block_edge *edge, enum nbd_context_kind kind, uint64_t offset,
                       uint64_t length, uint32_t *ret_flags, uint64_t *ret_length)
{
    struct block_status st;
    int depth, r;

    if (kind == NBD_CONTEXT_IS_DEPTH) {
        r = block_co_depth(edge, offset, length, &depth, ret_length);
        *ret_flags = r < 0 ? 0 : (uint32_t)depth;
        return r;
    }
    r = block_co_status_above(edge, NULL, offset, length, &st, &depth);
    if (r == 0) {
        *ret_flags = allocation_flags(&st);
        *ret_flags |= kind == NBD_CONTEXT_IS_ALLOCATION ? 0 : layer_flags(depth);
        *ret_length = st.length;
    }
    return r;
}

/*
 * Add the extent at `offset`, of `length` bytes with `flags`, cut where the bitmap changes (NULL:
 * none). A bitmap of a backing node may be shorter than the export: clean beyond its end. 1: the
 * chunk is full.
 */
static int co_add_with_bits(struct status_reply *s, const struct dirty_bitmap *bits,
                            uint32_t dirty_flag, uint64_t offset, uint64_t length, uint32_t flags)
{
    uint64_t end = offset + length, size = bits ? dirty_bitmap_size(bits) : 0;
    int r = 0;

    while (offset < end && r == 0) {
        uint64_t run = end - offset;
        bool dirty = offset < size && dirty_bitmap_status(bits, offset, end, &run);

        r = co_add_extent(s, run, flags | (dirty ? dirty_flag : 0));
        offset += run;
    }
    return r;
}

/* The extents of a context about allocation, with the bits of a bitmap or without (NULL). */
static int co_add_allocation(struct status_reply *s, enum nbd_context_kind kind,
                             const struct dirty_bitmap *bits)
{
    const struct nbd_request *rq = &s->job->rq;
    uint64_t offset = rq->offset, end = offset + rq->length;
    int r = 0;

    for (unsigned steps = 0; offset < end && r == 0 && steps < NBD_STATUS_STEPS_MAX; steps++) {
        uint64_t length = 0;
        uint32_t flags = 0;

        r = co_ask_node(s->job->conn->export->edge, kind, offset, end - offset, &flags, &length);
        if (r == 0 && (length == 0 || length > end - offset)) {
            r = -EIO;
        }
        UNLESS_FAILED(r, co_add_with_bits(s, bits, NBD_MERGED_DIRTY, offset, length, flags));
        offset += length;
    }
    return r < 0 ? r : 0;
}

static int co_add_bits(struct status_reply *s, const struct nbd_context *context,
                       const struct dirty_bitmap *bits)
{
    const struct nbd_request *rq = &s->job->rq;
    int r;

    if (context->kind != NBD_CONTEXT_IS_BITMAP) {
        return co_add_allocation(s, context->kind, bits);
    }
    r = co_add_with_bits(s, bits, NBD_STATE_DIRTY, rq->offset, rq->length, 0);
    return r < 0 ? r : 0;
}

/*
 * A context with a bitmap. Its bits change, as by a resize of their node, only while that is
 * drained: not while they are read.
 */
static int co_add_bitmap(struct status_reply *s, const struct nbd_context *context)
{
    const struct nbd_export *e = s->job->conn->export;
    struct block_edge *edge = e->bitmap_edges[context->bitmap];
    int r;

    block_co_edge_enter(edge);
    r = co_add_bits(s, context, block_bitmap_bits(e->bitmaps[context->bitmap]));
    block_edge_leave(edge);
    return r;
}

static int co_add_context(struct status_reply *s, uint32_t id, bool last)
{
    const struct nbd_context *context = &s->job->conn->export->contexts[id];
    bool has_bitmap =
        context->kind == NBD_CONTEXT_IS_BITMAP || context->kind == NBD_CONTEXT_IS_MERGED_BITMAP;
    int r = begin_chunk(s, id);

    UNLESS_FAILED(r, has_bitmap ? co_add_bitmap(s, context)
                                : co_add_allocation(s, context->kind, NULL));
    return r < 0 ? r : end_chunk(s, last);
}

/* The i-th of the contexts that the request names. */
static uint32_t named_context(const struct nbd_job *job, size_t i)
{
    return load_be32(job->payload + 8 + 4 * i);
}

static bool context_is_named(const struct nbd_job *job, uint32_t id)
{
    for (size_t i = 0; i < job->context_count; i++) {
        if (named_context(job, i) == id) {
            return true;
        }
    }
    return job->context_count == 0;
}

/* Whether the contexts that the payload names are selected, and none is named twice. */
static bool names_are_valid(const struct nbd_job *job)
{
    const struct nbd_selection *sel = &job->conn->selection;
    size_t found = 0;

    for (uint32_t id = 0; id < sel->context_count; id++) {
        found += job->context_count > 0 && sel->contexts[id] && context_is_named(job, id);
    }
    return found == job->context_count;
}

/*
 * Extents that each context may have, so that all fit into the memory that the job accounts for, of
 * which a buffer that grows takes up to twice its size.
 */
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
    struct status_reply s = {.job = job, .max = extents_max(job, MAX(left, 1))};

    if (sel->selected == 0) {
        return nbd_job_refuse(job, EINVAL,
                              "NBD_CMD_BLOCK_STATUS, but no metadata context was selected for the "
                              "export");
    }
    if (job->rq.length == 0) {
        return nbd_job_refuse(job, EINVAL, "NBD_CMD_BLOCK_STATUS of no bytes");
    }
    if (!names_are_valid(job)) {
        return nbd_job_refuse(
            job, EINVAL,
            "NBD_CMD_BLOCK_STATUS names %zu metadata contexts, of which some were "
            "not selected, or are named twice",
            job->context_count);
    }
    for (uint32_t id = 0; left > 0; id++) {
        int r;

        if (!sel->contexts[id] || !context_is_named(job, id)) {
            continue;
        }
        left--;
        r = co_add_context(&s, id, left == 0);
        if (r < 0) {
            return r;
        }
    }
    job->iov = job->inline_iov;
    job->iov[0] = (struct iovec){.iov_base = job->extra.data, .iov_len = s.used};
    job->iov_count = 1;
    job->iov_next = 0;
    return 0;
}
