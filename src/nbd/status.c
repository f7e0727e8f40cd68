/* SPDX-License-Identifier: Apache-2.0 */
/*
 * NBD_CMD_BLOCK_STATUS: for each context that the client selected, a chunk of extents from the
 * request's offset on. The extents of a context end where that context changes, wherever those of
 * others end. The chain is walked through once for all contexts.
 *
 *   job->extra  [ header, context id | extents ... ][ header, context id | extents ... ] ...
 *
 * With extended headers a count follows the context id, and length and flags have 64 bits.
 */
#include <assert.h>
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
    /* The extent that may still grow; length 0: none. */
    uint32_t last_flags;
    uint64_t last_length;
};

/* Runs that are asked for at once. */
#define WALK_RUNS 512u

/* What the chain says of the bytes from the request's offset on. */
struct chain_walk {
    struct pooled memory; /* data NULL: none yet */
    struct block_run *runs;
    size_t count, room, max;
    /* What runs differ in; at least one of them. */
    bool wants_depth, wants_contents;
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

/* Add an extent; one with the flags of the last is joined to that. 1: the chunk is full. */
static int add_extent(struct status_reply *s, uint64_t length, uint32_t flags)
{
    int r;

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

/* --- what the node says ----------------------------------------------------------------------- */

static uint32_t allocation_flags(unsigned flags)
{
    return (flags & BLOCK_STATUS_DATA ? 0 : NBD_STATE_HOLE) |
           (flags & BLOCK_STATUS_ZERO ? NBD_STATE_ZERO : 0);
}

/*
 * Depth 1 is the exported node. What no layer has is unallocated; it counts as from a backing file
 * where a layer below ends, as in "qemu:allocation-depth".
 */
static uint32_t layer_flags(int depth)
{
    return depth == 1 ? NBD_MERGED_LOCAL : depth > 1 ? NBD_MERGED_BACKING : 0;
}

/* Whether the list has to tell depths apart, and contents. */
static void find_out_wanted(struct chain_walk *w, enum nbd_context_kind kind)
{
    w->wants_depth |= kind != NBD_CONTEXT_IS_ALLOCATION && kind != NBD_CONTEXT_IS_BITMAP;
    w->wants_contents |= kind != NBD_CONTEXT_IS_DEPTH && kind != NBD_CONTEXT_IS_BITMAP;
}

/* Double the room of the list. */
static int grow_walk(struct chain_walk *w, struct bufpool *pool)
{
    struct pooled larger;

    if (!bufpool_get(pool, w->memory.data ? 2 * pooled_size(&w->memory) : 1, &larger)) {
        return -ENOMEM;
    }
    if (w->memory.data) {
        memcpy(larger.data, w->memory.data, w->count * sizeof(*w->runs));
        bufpool_put(pool, &w->memory);
    }
    w->memory = larger;
    w->runs = larger.data;
    w->room = pooled_size(&larger) / sizeof(*w->runs);
    return 0;
}

/* Append a run; one that is like the last is joined to that. 1: the list is full. */
static int add_run(struct chain_walk *w, struct bufpool *pool, struct block_run run)
{
    struct block_run *last = w->count > 0 ? &w->runs[w->count - 1] : NULL;
    int r;

    run.depth = w->wants_depth ? run.depth : 0;
    run.flags = w->wants_contents ? run.flags & (BLOCK_STATUS_DATA | BLOCK_STATUS_ZERO) : 0;
    if (last && last->flags == run.flags && last->depth == run.depth) {
        last->length += run.length;
        return 0;
    }
    if (w->count == w->max) {
        return 1;
    }
    if (w->count == w->room && (r = grow_walk(w, pool)) < 0) {
        return r;
    }
    w->runs[w->count++] = run;
    return 0;
}

/* Others of the reactor get their turn when a walk has kept it busy for so long. */
#define TURN_NS INT64_C(300000)

/*
 * Make the list of what the chain says of the request; all contexts but those of bitmaps alone come
 * from it. It may end before the request does.
 */
static int co_walk_chain(struct chain_walk *w, struct nbd_job *job)
{
    uint64_t offset = job->rq.offset, end = offset + job->rq.length;
    int64_t began_ns = loop_now_ns();
    struct block_run runs[WALK_RUNS];
    int r = 0;

    for (unsigned steps = 0; offset < end && r == 0 && steps < NBD_STATUS_STEPS_MAX;) {
        unsigned count = 0;

        r = block_co_status_runs(job->conn->export->edge, w->wants_contents, offset, end - offset,
                                 runs, (unsigned)MIN(w->max + 1, WALK_RUNS), &count);
        if (r == 0 && count == 0) {
            /* The disk has become shorter since the request was checked. */
            r = w->count > 0 ? 1 : -EINVAL;
        }
        for (unsigned i = 0; i < count && r == 0; i++) {
            r = runs[i].length <= end - offset ? add_run(w, &job->conn->worker->pool, runs[i])
                                               : -EIO;
            offset += runs[i].length;
        }
        steps += count;
        if (loop_now_ns() - began_ns > TURN_NS) {
            co_reschedule();
            began_ns = loop_now_ns();
        }
    }
    return r < 0 ? r : 0;
}

/* --- contexts --------------------------------------------------------------------------------- */

/*
 * Add the extent at `offset`, of `length` bytes with `flags`, cut where the bitmap changes (NULL:
 * none). A bitmap of a backing node may be shorter than the export: clean beyond its end. 1: the
 * chunk is full.
 */
static int add_with_bits(struct status_reply *s, struct dirty_bitmap_walk *bits,
                         uint32_t dirty_flag, uint64_t offset, uint64_t length, uint32_t flags)
{
    uint64_t end = offset + length, size = bits ? dirty_bitmap_size(bits->bitmap) : 0;
    int r = 0;

    while (offset < end && r == 0) {
        uint64_t run = end - offset;
        bool dirty = offset < size && dirty_bitmap_walk_status(bits, offset, end, &run);

        r = add_extent(s, run, flags | (dirty ? dirty_flag : 0));
        offset += run;
    }
    return r;
}

/* The flags of a run in a context about allocation. */
static uint32_t run_flags(enum nbd_context_kind kind, const struct block_run *run)
{
    switch (kind) {
    case NBD_CONTEXT_IS_DEPTH:
        return (uint32_t)run->depth;
    case NBD_CONTEXT_IS_ALLOCATION:
        return allocation_flags(run->flags);
    default:
        return allocation_flags(run->flags) | layer_flags(run->depth);
    }
}

/* The extents of a context about allocation, with the bits of a bitmap or without (NULL). */
static int add_allocation(struct status_reply *s, const struct chain_walk *w,
                          enum nbd_context_kind kind, struct dirty_bitmap_walk *bits)
{
    uint64_t offset = s->job->rq.offset;
    int r = 0;

    for (size_t i = 0; i < w->count && r == 0; i++) {
        uint32_t flags = run_flags(kind, &w->runs[i]);

        r = bits ? add_with_bits(s, bits, NBD_MERGED_DIRTY, offset, w->runs[i].length, flags)
                 : add_extent(s, w->runs[i].length, flags);
        offset += w->runs[i].length;
    }
    return r < 0 ? r : 0;
}

/*
 * A context with a bitmap. Its bits change, as by a resize of their node, only while that is
 * drained: not while they are read.
 */
static int co_add_bitmap(struct status_reply *s, const struct chain_walk *w,
                         const struct nbd_context *context)
{
    const struct nbd_export *e = s->job->conn->export;
    struct block_edge *edge = e->bitmap_edges[context->bitmap];
    struct dirty_bitmap_walk bits = {.loaded = false};
    const struct nbd_request *rq = &s->job->rq;
    int r;

    block_co_edge_enter(edge);
    bits.bitmap = block_bitmap_bits(e->bitmaps[context->bitmap]);
    r = context->kind == NBD_CONTEXT_IS_BITMAP
            ? add_with_bits(s, &bits, NBD_STATE_DIRTY, rq->offset, rq->length, 0)
            : add_allocation(s, w, context->kind, &bits);
    block_edge_leave(edge);
    return r < 0 ? r : 0;
}

static int co_add_context(struct status_reply *s, const struct chain_walk *w, uint32_t id,
                          bool last)
{
    const struct nbd_context *context = &s->job->conn->export->contexts[id];
    bool has_bitmap =
        context->kind == NBD_CONTEXT_IS_BITMAP || context->kind == NBD_CONTEXT_IS_MERGED_BITMAP;
    int r = begin_chunk(s, id);

    UNLESS_FAILED(r, has_bitmap ? co_add_bitmap(s, w, context)
                                : add_allocation(s, w, context->kind, NULL));
    return r < 0 ? r : end_chunk(s, last);
}

/* --- the request ------------------------------------------------------------------------------ */

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

/* Whether the request is about a context. */
static bool is_asked(const struct nbd_job *job, uint32_t id)
{
    return job->conn->selection.contexts[id] && context_is_named(job, id);
}

/*
 * Extents that each context may have, so that all fit into the memory that the job accounts for, of
 * which a buffer that grows takes up to twice its size. The list of runs counts as a context.
 */
static unsigned extents_max(const struct nbd_job *job, size_t contexts)
{
    size_t each = job->accounted / 2 / (contexts + 1) / NBD_EXTENDED_EXTENT_SIZE;

    static_assert(sizeof(struct block_run) <= NBD_EXTENDED_EXTENT_SIZE, "an extent's memory");
    if (job->rq.flags & NBD_CMD_FLAG_REQ_ONE) {
        return 1;
    }
    return (unsigned)MIN(MAX(each, 1), NBD_STATUS_EXTENTS_MAX);
}

/* All chunks of the reply, in the order of the ids of `count` contexts. */
static int co_add_chunks(struct status_reply *s, struct chain_walk *w, size_t count)
{
    struct nbd_job *job = s->job;
    uint32_t ids = (uint32_t)job->conn->selection.context_count;
    int r = 0;

    for (uint32_t id = 0; id < ids; id++) {
        if (is_asked(job, id)) {
            find_out_wanted(w, job->conn->export->contexts[id].kind);
        }
    }
    if (w->wants_depth || w->wants_contents) {
        r = co_walk_chain(w, job);
    }
    for (uint32_t id = 0; id < ids && r == 0; id++) {
        if (is_asked(job, id)) {
            r = co_add_context(s, w, id, --count == 0);
        }
    }
    bufpool_put(&job->conn->worker->pool, &w->memory);
    return r;
}

int nbd_job_co_block_status(struct nbd_job *job)
{
    const struct nbd_selection *sel = &job->conn->selection;
    size_t count = job->context_count ? job->context_count : sel->selected;
    struct status_reply s = {.job = job, .max = extents_max(job, MAX(count, 1))};
    struct chain_walk w = {.max = s.max};
    int r;

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
    r = co_add_chunks(&s, &w, count);
    if (r < 0) {
        return r;
    }
    job->iov = job->inline_iov;
    job->iov[0] = (struct iovec){.iov_base = job->extra.data, .iov_len = s.used};
    job->iov_count = 1;
    job->iov_next = 0;
    return 0;
}
