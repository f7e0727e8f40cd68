/* SPDX-License-Identifier: Apache-2.0 */
/*
 *      guests      the job, by reads that only fill
 *         \         /
 *        copy-on-read            put on the device for the time of the job
 *             |
 *           image                gets the data as writes that change no contents
 *             |    backing
 *          ... above_base        not needed afterwards; frozen
 *             |
 *           base                 may be exchanged meanwhile: the job looks at it at its end
 *
 * The filter excludes the guest's writes from the clusters that are being copied, so a copy never
 * overwrites newer data. A guest's read copies nothing, and fails only if it would have failed
 * without the job.
 *
 * At the end, in an order in which every step may fail and leave the disk as it is: data are
 * flushed, bitmaps merged, the header is written, the graph is changed.
 */
#include "job/stream.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/checked.h"
#include "base/cleanup.h"
#include "block/control.h"
#include "block/control_lock.h"
#include "copy/chain_bitmaps.h"
#include "filter/filter.h"
#include "job/background.h"
#include "job/chain.h"
#include "job/copy_loop.h"
#include "job/flush_behind.h"

#define GRANULARITY (64 * KiB)
#define CHUNK (512 * KiB)
#define WORKERS 4

struct stream {
    struct block_node *device;      /* held by the job, as the next two */
    struct block_node *image;       /* the device without its filters */
    struct block_node *above_base;  /* NULL: there is no backing file */
    struct block_node *bottom;      /* the last image that is copied from; NULL: there is none */
    struct block_node *filter;      /* a reference; NULL: not in the graph */
    struct block_root *root;        /* on the filter */
    struct dirty_bitmap *todo;      /* what has not been looked at */
    struct flush_behind flushes;    /* of the image */
    uint64_t run_begin, run_end;    /* looked at: all of it has to be copied */
    struct dirty_bitmap *written;   /* by guests since the job began */
    struct chain_bitmaps bitmaps;   /* of the images that leave the chain */
    struct chain_writable writable; /* the image */
    char *backing_file;             /* owned; NULL: the base's name */
    bool mask_protocol;
    enum job_on_error on_error;
};

/* --- work ------------------------------------------------------------------------------------- */

static struct block_edge *edge_of(const struct stream *s)
{
    return block_root_edge(s->root);
}

/* The base and what is below it; NULL: none. */
static struct block_node *base_of(const struct stream *s)
{
    return s->above_base ? block_node_filter_or_backing(s->above_base) : NULL;
}

/*
 * Whether [offset, offset + *length) has to be copied; *length becomes the length to which that
 * applies.
 */
static int co_needs_copy(const struct stream *s, uint64_t offset, uint64_t *length, bool *ret_copy)
{
    struct block_status status;
    bool allocated;
    int depth;
    int r = block_co_is_allocated(edge_of(s), offset, *length, &allocated, length);

    *ret_copy = false;
    if (r < 0 || allocated) {
        return r;
    }
    r = block_co_status_above(edge_of(s), block_node_backing(s->bottom), offset, *length, &status,
                              &depth);
    if (r == 0) {
        *length = MIN(*length, status.length);
        *ret_copy = depth > 0; /* what no image has reads as zeroes without them, too */
    }
    return r;
}

/* Runs that need no copy are one piece, however long. */
static int co_stream_plan(void *arg, struct copy_piece_plan *piece, uint64_t max_length)
{
    struct stream *s = arg;
    uint64_t length = max_length;
    bool copy;
    int r;

    if (piece->offset >= s->run_begin && piece->offset < s->run_end) {
        return 0;
    }
    r = co_needs_copy(s, piece->offset, &length, &copy);
    if (r == 0 && copy) {
        s->run_begin = piece->offset;
        s->run_end = piece->offset + length;
    } else if (r == 0 && (length == max_length || length >= GRANULARITY)) {
        piece->length = length == max_length ? length : round_down(length, GRANULARITY);
        piece->paced = 0;
    }
    return r;
}

static int co_flush_stream(void *arg)
{
    struct stream *s = arg;

    return block_co_flush(edge_of(s));
}

struct stream_fill {
    const struct stream *s;
    uint64_t offset, length;
    int r;
};

static void co_fill(void *arg)
{
    struct stream_fill *f = arg;
    struct iov none = {.size = f->length};

    f->r = block_co_preadv(edge_of(f->s), f->offset, none, BLOCK_REQ_PREFETCH);
}

/* What needs no copy will never need one. */
static int co_stream_copy(void *arg, const struct copy_piece_plan *piece, bool *ret_reading)
{
    struct stream *s = arg;
    struct stream_fill fill = {
        .s = s,
        .offset = piece->offset,
        .length = MIN(piece->length, block_node_size(s->image) - piece->offset),
    };

    if (piece->paced == 0) {
        return 0;
    }
    *ret_reading = true; /* a read that fills; as in QEMU */
    job_co_in_background(co_fill, &fill);
    if (fill.r == 0) {
        flush_behind_note(&s->flushes, fill.length);
    }
    return fill.r;
}

/* --- bitmaps ---------------------------------------------------------------------------------- */

/* Collect the bitmaps of the images below `image` down to the bottom. The control lock is held. */
static int co_collect_stream_bitmaps(struct stream *s, struct error *err)
{
    struct block_node *node = s->image;
    int r = 0;

    for (int depth = 2; r == 0 && node != s->bottom; depth++) {
        node = block_node_skip_filters(block_node_backing(node));
        r = chain_bitmaps_co_collect(&s->bitmaps, node, depth, block_node_size(s->image), err);
    }
    return r;
}

/* Mark in the bitmaps of images what the images above them store (docs/bitmaps.md). */
static int co_mark_layers(struct stream *s)
{
    uint64_t size = block_node_size(s->image);
    struct block_status status;
    int depth, r = 0;

    for (uint64_t at = 0; at < size && chain_bitmaps_want_marks(&s->bitmaps) && r == 0;
         at += status.length) {
        r = block_co_status_above(edge_of(s), block_node_backing(s->bottom), at, size - at, &status,
                                  &depth);
        if (r == 0 && depth > 0) {
            chain_bitmaps_mark(&s->bitmaps, at, status.length, depth);
        }
    }
    return r;
}

static int co_begin_bitmaps(struct stream *s, struct error *err)
{
    int r;

    block_co_control_lock();
    r = co_collect_stream_bitmaps(s, err);
    UNLESS_FAILED(r, chain_bitmaps_co_check(&s->bitmaps, s->image, err));
    block_control_unlock();
    return r < 0 ? r : co_mark_layers(s);
}

static void mark_written(struct stream *s)
{
    uint64_t offset = 0, length;

    while (chain_bitmaps_want_marks(&s->bitmaps) &&
           dirty_bitmap_next_dirty(s->written, offset, UINT64_MAX, &offset, &length)) {
        chain_bitmaps_mark(&s->bitmaps, offset, length, 1);
        offset += length;
    }
}

/*
 * Again, since they may have changed; and what guests have written since. No write is in flight
 * between the look at what was written and the moment from which on the image's bitmaps record.
 */
static int co_merge_bitmaps(struct job *job, struct stream *s, struct error *err)
{
    int r = co_collect_stream_bitmaps(s, err);

    UNLESS_FAILED(r, chain_bitmaps_co_check(&s->bitmaps, s->image, err));
    if (r < 0 || s->bitmaps.count == 0) {
        return r;
    }
    job_co_drain(job, &s->image, 1);
    r = co_collect_stream_bitmaps(s, err); /* other commands have run */
    UNLESS_FAILED(r, chain_bitmaps_co_check(&s->bitmaps, s->image, err));
    if (r == 0) {
        mark_written(s);
        r = chain_bitmaps_co_store(&s->bitmaps, s->image, err);
    }
    block_drain_end(s->image);
    return r;
}

/* --- the driver ------------------------------------------------------------------------------- */

static int stream_co_run(struct job *job, void *state, struct error *err)
{
    struct stream *s = state;
    struct copy_loop_params params = {
        .job = job,
        .chunk = CHUNK,
        .workers = WORKERS,
        .in_order = true,
        .whole_pieces = true,
        .on_source_error = s->on_error,
        .on_target_error = s->on_error,
        .skip_ignored = true,
        .co_plan = co_stream_plan,
        .co_copy = co_stream_copy,
        .arg = s,
    };
    int r;

    if (!s->bottom || s->bottom == s->image) {
        return 0;
    }
    params.todo = s->todo;
    job_progress_set_total(job, block_node_size(s->image));
    flush_behind_init(&s->flushes, co_flush_stream, s);
    r = co_begin_bitmaps(s, err);
    UNLESS_FAILED(r, copy_loop_co_run(&params));
    /* What is ignored is not tried again. */
    UNLESS_FAILED(r, flush_behind_co_flush_or_fail(
                         &s->flushes, job,
                         s->on_error == JOB_ON_ERROR_IGNORE ? JOB_ON_ERROR_REPORT : s->on_error));
    flush_behind_co_wait(&s->flushes);
    if (r < 0 && r != -ECANCELED && !error_is_set(err)) {
        error_set(err, -r, "%s", strerror(-r));
    }
    return r;
}

/* Write what the image says of itself from now on; *ret_base: its backing node, recorded there. */
static int co_write_stream_end(struct job *job, struct stream *s, struct block_node **ret_base,
                               struct error *err)
{
    struct chain_work work;
    int r = 0;

    chain_begin_work(&work, s->image, false);
    if (s->bottom != s->image) {
        r = co_merge_bitmaps(job, s, err);
        UNLESS_FAILED(r, chain_co_flush(s->image, err));
    }
    *ret_base = base_of(s);
    UNLESS_FAILED(
        r, chain_co_write_header(s->image, *ret_base, s->backing_file, s->mask_protocol, err));
    chain_co_end_work(&work);
    return r;
}

static int stream_co_prepare(struct job *job, void *state, struct error *err)
{
    struct stream *s = state;
    struct block_node *base = NULL;
    int r = 0;

    if (!s->bottom) {
        return 0;
    }
    if (s->bottom != s->image) {
        r = chain_co_ask(job, s->image, err);
    }
    UNLESS_FAILED(r, co_write_stream_end(job, s, &base, err));
    UNLESS_FAILED(r, block_co_set_backing_node(s->image, base, err));
    if (r < 0 && !error_is_set(err)) {
        error_set(err, -r, "%s", strerror(-r));
    }
    return r;
}

static void co_release_stream(void *state)
{
    struct stream *s = state;

    block_co_root_release(s->root);
    s->root = NULL;
    if (s->filter) {
        chain_co_remove_filter(s->filter);
        s->filter = NULL;
    }
    chain_co_end_writable(&s->writable);
    dirty_bitmap_free(s->todo);
    dirty_bitmap_free(s->written);
    flush_behind_destroy(&s->flushes);
    chain_bitmaps_clear(&s->bitmaps);
    free(s->backing_file);
}

static void stream_co_clean(struct job *job, void *state)
{
    job_co_release_drained(job, ((struct stream *)state)->filter, co_release_stream, state);
}

/* Requests that a server or a limit holds up end soon. */
static void stream_cancelled(struct job *job, void *state)
{
    struct stream *s = state;

    if (s->root) {
        block_root_begin_end(s->root);
    }
    if (s->filter) {
        copy_on_read_cancel(s->filter);
    }
}

static const struct job_driver stream_driver = {
    .type = "stream",
    .state_size = sizeof(struct stream),
    .block_job = true,
    .co_run = stream_co_run,
    .cancels_prepare = true,
    .prepare_is_final = true,
    .co_prepare = stream_co_prepare,
    .co_clean = stream_co_clean,
    .cancelled = stream_cancelled,
};

/* --- making it -------------------------------------------------------------------------------- */

/* The image that `above_base` is, or filters. */
static struct block_node *find_bottom(const struct stream *s)
{
    struct block_node *bottom = s->image;

    if (!s->above_base) {
        return NULL;
    }
    for (struct block_node *n = s->device; n != s->above_base;
         n = block_node_filter_or_backing(n)) {
        if (!block_node_is_filter(n)) {
            bottom = n;
        }
    }
    return block_node_is_filter(s->above_base) ? bottom : s->above_base;
}

int stream_check_nodes(struct block_node *device, struct block_node *above_base, struct error *err)
{
    const struct block_node *base = above_base ? block_node_filter_or_backing(above_base) : NULL;
    const struct block_node *node;
    int r = 0;

    for (node = device; node && node != base && r == 0; node = block_node_filter_or_backing(node)) {
        r = job_check_node(node, err);
    }
    if (r == 0 && above_base) {
        r = job_check_chain(device, above_base, err);
        if (r == -EBUSY) {
            error_prepend(err, "Could not create node: "); /* of QEMU's filter, as below */
        }
    }
    if (r == 0) {
        r = job_check_links_to(device, err);
        if (r < 0) {
            error_prepend(err, "Could not replace node: ");
        }
    }
    return r;
}

static int take_stream_nodes(struct stream *s, struct job *job, struct error *err)
{
    struct block_node *base = base_of(s), *node;
    int r = 0;

    for (node = s->filter; node && node != base && r == 0;
         node = block_node_filter_or_backing(node)) {
        r = job_add_node(job, node, err);
    }
    if (s->above_base) {
        UNLESS_FAILED(r, job_freeze_chain(job, s->filter, s->above_base, err));
    }
    return r;
}

static int co_insert_stream_filter(struct stream *s, const char *name, struct error *err)
{
    struct options *opts = options_new();
    uint64_t size = block_node_size(s->image);
    int r;

    s->todo = dirty_bitmap_new(size, GRANULARITY);
    s->written = dirty_bitmap_new(size, GRANULARITY);
    if (!opts || !s->todo || !s->written) {
        options_free(opts);
        return error_out_of_memory(err);
    }
    dirty_bitmap_set(s->todo, 0, size);
    options_set_str(opts, "driver", "copy-on-read");
    if (s->bottom) {
        options_set_str(opts, "bottom", block_node_name(s->bottom));
    }
    r = chain_co_insert_filter(opts, name, s->device, &s->filter, err);
    if (r < 0) {
        error_prepend(err, "Could not create node: ");
        return r;
    }
    if (!name) {
        block_node_set_implicit(s->filter);
    }
    copy_on_read_serve_job(s->filter, s->written);
    return 0;
}

/* What can be refused without a trace: before there is a job. */
static int co_set_up_stream(struct stream *s, const struct stream_params *p, struct error *err)
{
    int r;

    *s = (struct stream){
        .device = p->device,
        .image = block_node_skip_filters(p->device),
        .above_base = p->above_base,
        .mask_protocol = p->mask_protocol,
        .on_error = p->on_error,
        .bitmaps.all = true,
    };
    s->bottom = find_bottom(s);
    r = stream_check_nodes(s->device, s->above_base, err);
    if (r == 0 && p->backing_file) {
        s->backing_file = strdup(p->backing_file);
        r = s->backing_file ? 0 : error_out_of_memory(err);
    }
    return r < 0 ? r : co_insert_stream_filter(s, p->filter_name, err);
}

int stream_co_new(const struct stream_params *params, const struct job_config *config,
                  struct job **ret_job, struct error *err)
{
    struct stream own = {0}, *s;
    struct job *job = NULL;
    int r = co_set_up_stream(&own, params, err);

    UNLESS_FAILED(r, job_new(&stream_driver, config, &job, err));
    if (r < 0) {
        co_release_stream(&own);
        return r;
    }
    s = job_state(job);
    *s = own;
    r = take_stream_nodes(s, job, err);
    UNLESS_FAILED(r, block_co_root_new(s->filter, job_id(job), BLOCK_PERM_CONSISTENT_READ,
                                       BLOCK_PERM_ALL, &s->root, err));
    if (r < 0) {
        job_co_discard(job);
        return r;
    }
    *ret_job = job;
    return 0;
}

void stream_start(struct job *job, struct chain_writable *writable)
{
    struct stream *s = job_state(job);

    s->writable = *writable;
    *writable = (struct chain_writable){0};
    job_start(job);
}
