/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Reopening an image with other options, read-only or writable. No request is in flight.
 *
 * Nobody else writes to the file meanwhile, so that what is in memory stays valid. An image that
 * becomes read-only is completed before. One that becomes writable is treated as by an open: its
 * bitmaps become writable, and the first write marks those that record in use.
 */
#include "qcow2/reopen.h"

#include <errno.h>
#include <stdlib.h>

#include "block/bitmaps.h"
#include "qcow2/bitmap/bitmap.h"
#include "qcow2/image.h"
#include "qcow2/header/mark_corrupt.h"
#include "qcow2/open.h"
#include "qcow2/options.h"
#include "qcow2/table/commit.h"
#include "qcow2/table/verdict.h"

const char *const qcow2_reopen_options[] = {
    "lazy-refcounts",        "cache-size",
    "l2-cache-size",         "l2-cache-entry-size",
    "refcount-cache-size",   "cache-clean-interval",
    "overlap-check",         "pass-discard-request",
    "pass-discard-snapshot", "pass-discard-other",
    "discard-no-unref",      "durable-bitmaps",
    "durable-bitmaps-size",  NULL,
};

/* What was in force, for the undo. */
struct qcow2_reopen {
    uint64_t l2_max, ref_bytes;
    unsigned clean_seconds, kinds;
    bool lazy_refcounts, read_only;
    enum block_durability durability;
    uint64_t activity_limit;
    struct qcow2_options options;
    /* Of the new options. */
    struct qcow2_cache_options cache;
    bool has_options;
};

static void set_bitmaps_read_only(struct block_node *node, bool read_only)
{
    struct block_bitmap *b = NULL;

    while ((b = block_bitmap_next(node, b))) {
        b->read_only = read_only && b->persistent;
    }
    block_activity_update(node);
}

/* What an open refuses for a writable image only. */
static int check_can_write(const struct qcow2 *q, struct error *err)
{
    if ((q->header.incompatible & INCOMPAT_CORRUPT) || atomic_load(&q->corrupt)) {
        return error_set(err, EACCES, "qcow2: Image is corrupt; cannot be opened read/write");
    }
    if (q->reftable.size == 0) {
        return error_set(err, EINVAL, "Image does not contain a reference count table");
    }
    return 0;
}

static void put_options_back(struct qcow2 *q, const struct qcow2_reopen *was)
{
    q->caches.l2_max = was->l2_max;
    q->caches.clean_seconds = was->clean_seconds;
    q->commit.lazy_refcounts = was->lazy_refcounts;
    q->guard.kinds = was->kinds;
    q->options = was->options;
    q->activity.level = was->durability;
    q->activity.limit = was->activity_limit;
}

static int take_new_options(struct qcow2 *q, struct options *opts, struct error *err)
{
    struct qcow2_reopen *was = q->reopen;
    int r = qcow2_take_options(q, opts, &was->cache, err);

    was->has_options = true;
    return r;
}

int qcow2_co_reopen_prepare(struct block_node *node, struct options *opts, struct error *err)
{
    struct qcow2 *q = qcow2_state(node);
    struct qcow2_reopen *was = calloc(1, sizeof(*was));
    int r = 0;

    if (!was) {
        return error_out_of_memory(err);
    }
    *was = (struct qcow2_reopen){.l2_max = q->caches.l2_max,
                                 .clean_seconds = q->caches.clean_seconds,
                                 .kinds = q->guard.kinds,
                                 .lazy_refcounts = q->commit.lazy_refcounts,
                                 .read_only = q->read_only,
                                 .durability = q->activity.level,
                                 .activity_limit = q->activity.limit,
                                 .options = q->options};
    q->reopen = was;
    if (q->read_only && !node->read_only) {
        r = check_can_write(q, err);
    }
    if (opts) {
        UNLESS_FAILED(r, take_new_options(q, opts, err));
    }
    if (r < 0) {
        put_options_back(q, was);
        free(was);
        q->reopen = NULL;
        return r;
    }
    if (node->read_only) {
        q->read_only = true;
        set_bitmaps_read_only(node, true);
    }
    return 0;
}

/* The guard against overlaps knows an image that is written only, and the kinds that it guards. */
static int co_renew_guard(struct qcow2 *q, struct error *err)
{
    qcow2_overlap_destroy(q);
    return qcow2_co_overlap_init(q) < 0 ? error_out_of_memory(err) : 0;
}

/*
 * With `power` regions count as hot only if that is stable, and as cold only if their bits are: it
 * was not so until now.
 */
static int co_raise_durability(struct qcow2 *q, struct error *err)
{
    int r = 0;

    if (q->activity.offset > 0 && q->activity.level == BLOCK_DURABILITY_POWER &&
        q->reopen->durability != BLOCK_DURABILITY_POWER) {
        r = block_co_flush(q->node->file);
    }
    return r < 0
               ? error_set_errno(err, -r, "Could not flush '%s'", block_node_display_name(q->node))
               : 0;
}

static bool has_new_slices(const struct qcow2 *q)
{
    return q->reopen->has_options && q->reopen->cache.slice != q->caches.l2.entry_size;
}

int qcow2_co_reopen_finish(struct block_node *node, struct error *err)
{
    struct qcow2 *q = qcow2_state(node);
    bool becomes_writable = q->read_only && !node->read_only;
    int r = 0;

    q->read_only = node->read_only;
    if (becomes_writable || q->reopen->kinds != q->guard.kinds) {
        r = co_renew_guard(q, err);
    }
    if (becomes_writable) {
        UNLESS_FAILED(r, qcow2_co_prepare_writable(q, err));
    }
    if (!q->read_only) {
        UNLESS_FAILED(r, qcow2_co_activity_open(q, err));
        UNLESS_FAILED(r, co_raise_durability(q, err));
    }
    if (r >= 0 && !q->read_only && has_new_slices(q) && (r = qcow2_co_commit(q)) < 0) {
        error_set_errno(err, -r, "Could not write metadata to '%s'", block_node_display_name(node));
    }
    return qcow2_co_conclude(q, r);
}

void qcow2_co_reopen_commit(struct block_node *node)
{
    struct qcow2 *q = qcow2_state(node);

    qcow2_activity_set_options(q);
    if (!q->read_only) {
        set_bitmaps_read_only(node, false);
    }
    if (q->reopen->has_options) {
        qcow2_cache_cleaner_stop(q);
        if (has_new_slices(q)) {
            (void)cache_set_entry_size(&q->caches.l2, q->reopen->cache.slice);
        }
        /* Without memory the caches stay as they were, and work. */
        (void)qcow2_fit_l2_cache(q, block_node_size(q->node));
        (void)cache_set_limit(&q->caches.refcounts, q->reopen->cache.ref_bytes);
        qcow2_cache_cleaner_start(q);
    }
    free(q->reopen);
    q->reopen = NULL;
}

void qcow2_co_reopen_abort(struct block_node *node)
{
    struct qcow2 *q = qcow2_state(node);
    bool new_kinds = q->guard.kinds != q->reopen->kinds;

    put_options_back(q, q->reopen);
    q->read_only = q->reopen->read_only;
    set_bitmaps_read_only(node, q->read_only);
    if (new_kinds && co_renew_guard(q, NULL) < 0) {
        q->guard.kinds = 0; /* without memory writes are not checked */
    }
    free(q->reopen);
    q->reopen = NULL;
}
