/* SPDX-License-Identifier: Apache-2.0 */
/*
 *       overlay, or several
 *             |    backing
 *        commit_top  <------ the job reads here
 *             |
 *            top                 these are not needed afterwards; frozen
 *            ...
 *             |    backing
 *            base    <------ the job writes here
 *
 * What is written into the base is what the chain shows already: nobody who reads through
 * `commit_top` sees a difference, also if the job ends half way.
 *
 * At the end, in an order in which every step may fail and leave the disk as it is: bitmaps are
 * merged, the base is flushed, the headers of the overlays are written, the graph is changed.
 */
#include "job/commit.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/checked.h"
#include "base/cleanup.h"
#include "block/block.h"
#include "block/control.h"
#include "block/control_lock.h"
#include "copy/buffer_pool.h"
#include "copy/chain_bitmaps.h"
#include "job/background.h"
#include "job/chain.h"
#include "job/copy_loop.h"
#include "job/flush_behind.h"

#define GRANULARITY (64 * KiB)
#define CHUNK (512 * KiB)
#define WORKERS 4

struct commit {
    const struct job *job;
    struct block_node *top, *base; /* held by the job */
    struct block_node *filter;     /* a reference; NULL: not in the graph */
    struct block_root *root;       /* on the filter */
    uint64_t end;                  /* bytes of the base that are written to, or left as they are */
    struct block_root *base_root;
    struct chain_guard guard;
    struct chain_writable writable; /* the base */
    struct block_node *stop;        /* the base, or a filter on it: what is below the images */
    struct buffer_pool buffers;     /* of CHUNK bytes */
    struct dirty_bitmap *todo;      /* what has not been looked at */
    uint64_t run_begin, run_end;    /* looked at: all of it is data */
    struct flush_behind flushes;    /* of the base */
    struct chain_bitmaps bitmaps;   /* of the images that leave the chain */
    char *backing_file;             /* owned; NULL: the base's name */
    bool mask_protocol;
    enum job_on_error on_error;
};

static struct block_edge *source_of(const struct commit *s)
{
    return block_root_edge(s->root);
}

/* --- copying ---------------------------------------------------------------------------------- */

enum commit_kind { COMMIT_NOTHING, COMMIT_ZEROES, COMMIT_DATA };

/*
 * What has to be done at `offset`; *length becomes the length to which that applies; *ret_depth is
 * the image that has it.
 */
static int co_look(const struct commit *s, uint64_t offset, uint64_t *length,
                   enum commit_kind *ret_kind, int *ret_depth)
{
    uint64_t size = block_node_size(s->top);
    struct block_status status = {0};
    int r = 0;

    if (offset >= size) { /* the overlay reads zeroes there, as the top ends */
        *ret_kind = COMMIT_ZEROES;
        *ret_depth = 1;
        return 0;
    }
    *length = MIN(*length, size - offset);
    r = block_co_status_above(source_of(s), s->stop, offset, *length, &status, ret_depth);
    if (r < 0) {
        return r;
    }
    *length = MIN(*length, status.length);
    if (*ret_depth > 0) {
        *ret_kind = status.flags & BLOCK_STATUS_ZERO ? COMMIT_ZEROES : COMMIT_DATA;
    } else {
        *ret_kind = COMMIT_NOTHING;
    }
    return 0;
}

/* Runs without data are one piece, however long. */
static int co_commit_plan(void *arg, struct copy_piece_plan *piece, uint64_t max_length)
{
    struct commit *s = arg;
    uint64_t length = max_length;
    enum commit_kind kind;
    int depth, r;

    if (piece->offset >= s->run_begin && piece->offset < s->run_end) {
        return 0;
    }
    r = co_look(s, piece->offset, &length, &kind, &depth);
    if (r == 0 && kind == COMMIT_DATA) {
        s->run_begin = piece->offset;
        s->run_end = piece->offset + length;
    } else if (r == 0 && (length == max_length || length >= GRANULARITY)) {
        piece->length = length == max_length ? length : round_down(length, GRANULARITY);
        piece->paced = 0;
    }
    return r;
}

struct commit_run {
    struct commit *s;
    void *buffer;
    uint64_t offset, length;
    bool reading;
    int r;
};

static void co_read_and_write(void *arg)
{
    struct commit_run *c = arg;

    c->r = block_co_pread(source_of(c->s), c->offset, c->buffer, c->length);
    c->reading = c->r < 0;
    UNLESS_FAILED(c->r, block_co_pwrite(block_root_edge(c->s->base_root), c->offset, c->buffer,
                                        c->length, 0));
}

static int co_copy_run(struct commit *s, uint64_t offset, uint64_t length, bool *ret_reading)
{
    struct commit_run c = {
        .s = s, .buffer = buffer_pool_get(&s->buffers), .offset = offset, .length = length};

    *ret_reading = false;
    if (!c.buffer) {
        return -ENOMEM;
    }
    job_co_in_background(co_read_and_write, &c);
    *ret_reading = c.reading;
    buffer_pool_put(&s->buffers, c.buffer);
    return c.r;
}

static int co_commit_run(struct commit *s, uint64_t offset, uint64_t length, enum commit_kind kind,
                         bool *ret_reading)
{
    if (kind == COMMIT_NOTHING) {
        return 0;
    }
    if (kind == COMMIT_ZEROES) {
        *ret_reading = false;
        return block_co_write_zeroes(block_root_edge(s->base_root), offset, length,
                                     BLOCK_REQ_MAY_UNMAP);
    }
    return co_copy_run(s, offset, length, ret_reading);
}

static int co_flush_commit(void *arg)
{
    struct commit *s = arg;

    return block_co_flush(block_root_edge(s->base_root));
}

static int co_commit_copy(void *arg, const struct copy_piece_plan *piece, bool *ret_reading)
{
    struct commit *s = arg;
    uint64_t end = MIN(piece->offset + piece->length, dirty_bitmap_size(s->todo));
    int r = 0;

    for (uint64_t at = piece->offset, length; at < end && r == 0; at += length) {
        enum commit_kind kind;
        int depth;

        length = end - at;
        *ret_reading = true;
        r = co_look(s, at, &length, &kind, &depth);
        if (r < 0) {
            return r;
        }
        if (kind == COMMIT_DATA) {
            length = MIN(length, CHUNK);
        }
        if (kind != COMMIT_NOTHING) {
            chain_bitmaps_mark(&s->bitmaps, at, length, depth);
        }
        r = co_commit_run(s, at, length, kind, ret_reading);
        if (r == 0 && at + length < end && job_is_cancelled(s->job)) {
            return -ECANCELED;
        }
    }
    if (r == 0) {
        flush_behind_note(&s->flushes, piece->paced);
    }
    return r;
}

/* --- bitmaps ---------------------------------------------------------------------------------- */

/* Collect the bitmaps of all images that leave. The control lock is held. */
static int co_collect_commit_bitmaps(struct commit *s, struct error *err)
{
    uint64_t size = MAX(block_node_size(s->top), block_node_size(s->base));
    struct block_node *base = block_node_skip_filters(s->base);
    struct block_node *node = block_node_skip_filters(s->top);
    int r = 0;

    for (int depth = 1; r == 0 && node != base; depth++) {
        r = chain_bitmaps_co_collect(&s->bitmaps, node, depth, size, err);
        node = block_node_skip_filters(block_node_backing(node));
    }
    UNLESS_FAILED(r, chain_bitmaps_co_check(&s->bitmaps, base, err));
    return r;
}

/* --- work ------------------------------------------------------------------------------------- */

/* The base is at least as large as the top. */
static int co_grow_base(struct commit *s, struct error *err)
{
    uint64_t size = block_node_size(s->top);

    return block_node_size(s->base) < size
               ? block_co_truncate(block_root_edge(s->base_root), size, BLOCK_PREALLOC_OFF, err)
               : 0;
}

/* The largest of the images that have `node` as their backing file. */
static uint64_t size_of_overlays(const struct block_node *node)
{
    struct block_edge *edge = NULL;
    uint64_t size = 0;

    while ((edge = block_node_next_parent(node, edge))) {
        const struct block_node *parent = block_edge_parent(edge);

        if (parent) {
            uint64_t of_parent = strcmp(block_edge_name(edge), "backing") == 0
                                     ? block_node_size(parent)
                                     : size_of_overlays(parent);

            size = MAX(size, of_parent);
        }
    }
    return size;
}

/*
 * How much of the base has to be looked at: what the top has, and what an overlay shows past the
 * end of the top. There the overlay has zeroes, where a larger base has data. What nobody sees
 * stays.
 */
static uint64_t end_of_commit(const struct commit *s)
{
    uint64_t seen = MAX(block_node_size(s->top), size_of_overlays(s->filter));

    return MIN(seen, block_node_size(s->base));
}

static int co_begin_commit(struct commit *s, struct error *err)
{
    int r;

    block_co_control_lock();
    r = co_collect_commit_bitmaps(s, err);
    UNLESS_FAILED(r, co_grow_base(s, err));
    block_control_unlock();
    if (r < 0) {
        return r;
    }
    s->end = end_of_commit(s);
    s->todo = dirty_bitmap_new(s->end, GRANULARITY);
    if (!s->todo) {
        return error_out_of_memory(err);
    }
    dirty_bitmap_set(s->todo, 0, s->end);
    return 0;
}

static int commit_co_run(struct job *job, void *state, struct error *err)
{
    struct commit *s = state;
    struct copy_loop_params params = {
        .job = job,
        .chunk = CHUNK,
        .workers = WORKERS,
        .in_order = true,
        .whole_pieces = true,
        .on_source_error = s->on_error,
        .on_target_error = s->on_error,
        .co_plan = co_commit_plan,
        .co_copy = co_commit_copy,
        .arg = s,
    };
    int r;

    flush_behind_init(&s->flushes, co_flush_commit, s);
    r = co_begin_commit(s, err);
    if (r == 0) {
        params.todo = s->todo;
        job_progress_set_total(job, s->end);
        r = copy_loop_co_run(&params);
    }
    UNLESS_FAILED(r, flush_behind_co_flush_or_fail(&s->flushes, job, s->on_error));
    flush_behind_co_wait(&s->flushes);
    if (r < 0 && r != -ECANCELED && !error_is_set(err)) {
        error_set(err, -r, "%s", strerror(-r));
    }
    return r;
}

/* --- the end ---------------------------------------------------------------------------------- */

/* The users of the top become users of the base. */
static int co_leave_graph(struct commit *s, struct error *err)
{
    struct block_node *filter = s->filter;
    int r;

    block_co_root_release(s->root);
    s->root = NULL;
    chain_co_unguard(&s->guard);
    block_co_drain_begin(s->base);
    r = block_co_root_set_perm(s->base_root, 0, BLOCK_PERM_ALL | BLOCK_SHARE_CHAIN, err);
    UNLESS_FAILED(r, block_co_node_replace(filter, s->base, err));
    block_drain_end(s->base);
    if (r == 0) {
        s->filter = NULL;
        block_co_unref(filter);
    }
    return r;
}

/* Write what the images say of themselves from now on. */
static int co_write_commit_end(struct commit *s, struct error *err)
{
    struct chain_work work;
    int r;

    chain_begin_work(&work, s->base, true);
    r = end_of_commit(s) <= s->end
            ? co_collect_commit_bitmaps(s, err)
            : error_set(err, EBUSY,
                        "The image above '%s' has become larger than what was "
                        "committed",
                        block_node_display_name(s->top));

    UNLESS_FAILED(r, chain_bitmaps_co_store(&s->bitmaps, block_node_skip_filters(s->base), err));
    UNLESS_FAILED(r, chain_co_flush(s->base, err));
    UNLESS_FAILED(
        r, chain_co_write_headers(s->filter, s->base, s->backing_file, s->mask_protocol, err));
    chain_co_end_work(&work);
    return r;
}

static int commit_co_prepare(struct job *job, void *state, struct error *err)
{
    struct commit *s = state;
    int r = chain_co_ask(job, s->base, err);

    UNLESS_FAILED(r, co_write_commit_end(s, err));
    if (r < 0) {
        return error_is_set(err) ? r : error_set(err, -r, "%s", strerror(-r));
    }
    return co_leave_graph(s, err);
}

static void co_release_commit(void *state)
{
    struct commit *s = state;

    block_co_root_release(s->root);
    s->root = NULL;
    block_co_root_release(s->base_root);
    s->base_root = NULL;
    chain_co_unguard(&s->guard);
    if (s->filter) {
        chain_co_remove_filter(s->filter);
        s->filter = NULL;
    }
    chain_co_end_writable(&s->writable);
    buffer_pool_clear(&s->buffers);
    flush_behind_destroy(&s->flushes);
    dirty_bitmap_free(s->todo);
    chain_bitmaps_clear(&s->bitmaps);
    free(s->backing_file);
}

static void commit_co_clean(struct job *job, void *state)
{
    job_co_release_drained(job, ((struct commit *)state)->filter, co_release_commit, state);
}

/* Requests that a server or a limit holds up end soon. */
static void commit_cancelled(struct job *job, void *state)
{
    struct commit *s = state;

    if (s->root) {
        block_root_begin_end(s->root);
    }
    if (s->base_root) {
        block_root_begin_end(s->base_root);
    }
}

static const struct job_driver commit_driver = {
    .type = "commit",
    .state_size = sizeof(struct commit),
    .block_job = true,
    .co_run = commit_co_run,
    .cancels_prepare = true,
    .prepare_is_final = true,
    .co_prepare = commit_co_prepare,
    .co_clean = commit_co_clean,
    .cancelled = commit_cancelled,
};

/* --- making it -------------------------------------------------------------------------------- */

int commit_co_check_nodes(const struct commit_params *s, struct error *err)
{
    const struct block_node *end = block_node_filter_or_backing(s->base), *node;
    int r = job_check_node(s->root, err);

    for (node = s->top; node != end && r == 0; node = block_node_filter_or_backing(node)) {
        r = job_check_node(node, err);
    }
    UNLESS_FAILED(r, job_check_links_to(s->top, err));
    UNLESS_FAILED(r, chain_co_check_overlays(s->top, err));
    UNLESS_FAILED(r, job_check_chain(s->top, s->base, err));
    return r;
}

/*
 * Not the overlays: another job may copy into one meanwhile, also by taking its place as the image
 * above the filter. Whichever has the filter as its backing node at the end gets the base.
 */
static int take_commit_nodes(struct commit *s, struct job *job, struct block_node *root,
                             struct error *err)
{
    struct block_node *node = s->top;
    int r = job_add_filter(job, s->filter, false, err);

    UNLESS_FAILED(r, job_add_node(job, root, err));
    UNLESS_FAILED(r, job_add_node(job, s->base, err));
    for (; node != s->base && r == 0; node = block_node_filter_or_backing(node)) {
        r = job_add_node(job, node, err);
    }
    UNLESS_FAILED(r, job_freeze_chain(job, s->filter, s->base, err));
    return r;
}

static int co_insert_commit_filter(struct commit *s, const char *name, struct error *err)
{
    struct options *opts = options_new();

    if (!opts) {
        return error_out_of_memory(err);
    }
    options_set_str(opts, "driver", "commit_top");
    options_set_bool(opts, "read-only", true);
    return chain_co_insert_filter(opts, name, s->top, &s->filter, err);
}

static int co_set_up_commit(struct commit *s, struct job *job, const struct commit_params *p,
                            struct error *err)
{
    int r = 0;

    s->job = job;
    s->top = p->top;
    s->base = p->base;
    s->stop = chain_stop(p->top, p->base);
    s->mask_protocol = p->mask_protocol;
    s->on_error = p->on_error;
    s->bitmaps.all = true;
    s->buffers.size = CHUNK;
    if (p->backing_file) {
        s->backing_file = strdup(p->backing_file);
        r = s->backing_file ? 0 : error_out_of_memory(err);
    }
    UNLESS_FAILED(r, co_insert_commit_filter(s, p->filter_name, err));
    UNLESS_FAILED(r, take_commit_nodes(s, job, p->root, err));
    UNLESS_FAILED(r, block_co_root_new(s->filter, job_id(job), BLOCK_PERM_CONSISTENT_READ,
                                       BLOCK_PERM_ALL | BLOCK_SHARE_CHAIN, &s->root, err));
    UNLESS_FAILED(
        r, block_co_root_new(s->base, job_id(job),
                             BLOCK_PERM_CONSISTENT_READ | BLOCK_PERM_WRITE | BLOCK_PERM_RESIZE,
                             BLOCK_PERM_CONSISTENT_READ | BLOCK_SHARE_CHAIN, &s->base_root, err));
    UNLESS_FAILED(r, chain_co_guard(&s->guard, job_id(job), s->filter, s->base, err));
    return r;
}

int commit_co_new(const struct commit_params *params, const struct job_config *config,
                  struct job **ret_job, struct error *err)
{
    struct job *job;
    int r = commit_co_check_nodes(params, err);

    UNLESS_FAILED(r, job_new(&commit_driver, config, &job, err));
    if (r < 0) {
        return r;
    }
    r = co_set_up_commit(job_state(job), job, params, err);
    if (r < 0) {
        job_co_discard(job);
        return r;
    }
    *ret_job = job;
    return 0;
}

void commit_start(struct job *job, struct chain_writable *writable)
{
    struct commit *s = job_state(job);

    s->writable = *writable;
    *writable = (struct chain_writable){0};
    job_start(job);
}
