/* SPDX-License-Identifier: Apache-2.0 */
/* Opening and closing an image, block status, and the driver's functions. */
#include "qcow2/qcow2.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "base/byteorder.h"
#include "base/cleanup.h"
#include "base/log.h"
#include "qcow2/amend.h"
#include "qcow2/bitmap/bitmap.h"
#include "qcow2/check/check.h"
#include "qcow2/create.h"
#include "qcow2/data/compress.h"
#include "qcow2/data/crypt.h"
#include "qcow2/data/data.h"
#include "qcow2/data/sparse.h"
#include "qcow2/header/header.h"
#include "qcow2/header/mark_corrupt.h"
#include "qcow2/info.h"
#include "qcow2/make_empty.h"
#include "qcow2/options.h"
#include "qcow2/reopen.h"
#include "qcow2/resize.h"
#include "qcow2/snapshot/snapshot.h"
#include "qcow2/stats.h"
#include "qcow2/table/commit.h"
#include "qcow2/table/map.h"

/* Bytes of a slice of refcounts. */
#define REF_SLICE 4096

/* --- open ------------------------------------------------------------------------------------ */

static int co_read_table(struct qcow2 *q, const char *what, uint64_t offset, void *buf, size_t size,
                         struct error *err)
{
    int r = block_co_pread(q->node->file, offset, buf, size);

    if (r < 0) {
        error_set_errno(err, -r, "Could not read %s of '%s'", what,
                        block_node_display_name(q->node));
    }
    return r;
}

static int co_load_tables(struct qcow2 *q, struct error *err)
{
    size_t l1_bytes = (size_t)q->l1.size * 8, reftable_bytes = (size_t)q->reftable.size * 8;
    int r;

    q->l1.entries = calloc(MAX(q->l1.size, 1u), 8);
    q->l1.dirty = calloc(div_round_up(l1_bytes, SECTOR_SIZE) + 1, 1);
    q->reftable.entries = calloc(MAX(q->reftable.size, 1u), 8);
    q->reftable.dirty = calloc(div_round_up(reftable_bytes, SECTOR_SIZE) + 1, 1);
    if (!q->l1.entries || !q->l1.dirty || !q->reftable.entries || !q->reftable.dirty) {
        return error_out_of_memory(err);
    }
    r = co_read_table(q, "the L1 table", q->l1.offset, (void *)q->l1.entries, l1_bytes, err);
    if (r < 0) {
        return r;
    }
    block_co_event(q->node->file, BLOCK_EVENT_REFTABLE_LOAD);
    if ((r = co_read_table(q, "the refcount table", q->reftable.offset, q->reftable.entries,
                           reftable_bytes, err)) < 0) {
        return r;
    }
    for (uint32_t i = 0; i < q->l1.size; i++) {
        atomic_store_explicit(
            &q->l1.entries[i],
            be64toh(atomic_load_explicit(&q->l1.entries[i], memory_order_relaxed)),
            memory_order_relaxed);
    }
    for (uint32_t i = 0; i < q->reftable.size; i++) {
        q->reftable.entries[i] = be64toh(q->reftable.entries[i]);
    }
    return 0;
}

static void init_locks(struct qcow2 *q)
{
    counters_init(&q->counters, QCOW2_STATS * sizeof(struct counter));
    co_mutex_init(&q->lock);
    co_mutex_init(&q->commit.mutex);
    co_mutex_init(&q->bitmaps.mutex);
    co_mutex_init(&q->bitmaps.bits_mutex);
    co_mutex_init(&q->header.mark_mutex);
    co_mutex_init(&q->verdicts.mutex);
    range_lock_init(&q->guest);
    list_init(&q->header.extensions);
    list_init(&q->bitmaps.stored);
    list_init(&q->bitmaps.reserve);
    list_init(&q->snapshots.list);
}

/* --- cleaning of caches ------------------------------------------------------------------ */

static int64_t clean_interval_ns(const struct qcow2 *q)
{
    return (int64_t)q->caches.clean_seconds * 1000000000;
}

static void clean_caches(struct loop_timer *timer)
{
    struct qcow2 *q = container_of(timer, struct qcow2, caches.cleaner);

    cache_clean(&q->caches.l2);
    cache_clean(&q->caches.refcounts);
    loop_timer_arm(timer, loop_now_ns() + clean_interval_ns(q));
}

void qcow2_cache_cleaner_start(struct qcow2 *q)
{
    loop_timer_init(&q->caches.cleaner, clean_caches);
    if (q->caches.clean_seconds > 0) {
        loop_timer_arm(&q->caches.cleaner, loop_now_ns() + clean_interval_ns(q));
    }
}

void qcow2_cache_cleaner_stop(struct qcow2 *q)
{
    if (q->caches.cleaner.fn) {
        loop_timer_disarm(&q->caches.cleaner);
    }
}

static void release_image(struct qcow2 *q)
{
    qcow2_cache_cleaner_stop(q);
    qcow2_overlap_destroy(q);
    qcow2_free_stored_bitmaps(q);
    qcow2_free_bitmap_reserve(q);
    qcow2_free_snapshots(q);
    qcow2_free_header(q);
    qcow2_crypt_close(q);
    cache_destroy(&q->caches.l2);
    cache_destroy(&q->caches.refcounts);
    if (q->caches.decompressed.max > 0) {
        cluster_cache_destroy(&q->caches.decompressed);
    }
    counters_release(&q->counters);
    free((void *)q->l1.entries);
    free(q->l1.dirty);
    free(q->reftable.entries);
    free(q->reftable.dirty);
    cluster_runs_clear(&q->alloc.frees);
    co_mutex_destroy(&q->lock);
    co_mutex_destroy(&q->commit.mutex);
    co_mutex_destroy(&q->bitmaps.mutex);
    co_mutex_destroy(&q->bitmaps.bits_mutex);
    co_mutex_destroy(&q->header.mark_mutex);
    co_mutex_destroy(&q->verdicts.mutex);
    range_lock_destroy(&q->guest);
}

static int init_caches(struct qcow2 *q, const struct qcow2_cache_options *o, struct error *err)
{
    int r = cache_init(&q->caches.l2, q->node->file, o->slice, 0);

    UNLESS_FAILED(r, qcow2_fit_l2_cache(q));
    UNLESS_FAILED(r, cache_init(&q->caches.refcounts, q->node->file,
                                MIN(REF_SLICE, q->cluster_size), o->ref_bytes));
    q->caches.l2.load_event = BLOCK_EVENT_L2_LOAD;
    q->caches.l2.update_event = BLOCK_EVENT_L2_UPDATE;
    q->caches.refcounts.update_event = BLOCK_EVENT_REFBLOCK_UPDATE_PART;
    return r < 0 ? error_out_of_memory(err) : 0;
}

static int co_repair_dirty(struct qcow2 *q, struct error *err)
{
    struct block_check_result result;
    int r;

    log_notice("image '%s' was not closed cleanly: repairing it", block_node_display_name(q->node));
    r = qcow2_co_check(q->node, BLOCK_CHECK_FIX_LEAKS | BLOCK_CHECK_FIX_ERRORS, &result, err);
    if (r == 0 && (q->header.incompatible & INCOMPAT_DIRTY)) {
        r = error_set(err, EIO,
                      "Image '%s' was not closed cleanly and could not be repaired: %llu "
                      "corruptions, %llu errors are left",
                      block_node_display_name(q->node), (unsigned long long)result.corruptions,
                      (unsigned long long)result.check_errors);
    }
    return r;
}

int qcow2_co_prepare_writable(struct qcow2 *q, struct error *err)
{
    uint64_t known = AUTOCLEAR_BITMAPS | (q->has_data_file ? AUTOCLEAR_DATA_FILE_RAW : 0);
    bool check = q->node->open_flags & BLOCK_OPEN_CHECK;
    int r;

    if ((q->header.incompatible & INCOMPAT_DIRTY) && !check && (r = co_repair_dirty(q, err)) < 0) {
        return r;
    }
    if (q->header.autoclear & ~known) {
        q->header.autoclear &= known;
        return qcow2_co_write_header(q, err);
    }
    return 0;
}

static void set_limits(struct qcow2 *q)
{
    struct block_node *node = q->node;

    node->limits.zeroes_alignment = qcow2_subcluster_size(q);
    node->limits.discard_alignment = q->cluster_size;
    node->limits.cluster_size = (uint32_t)q->cluster_size;
    if (q->crypt_method != CRYPT_NONE) {
        node->limits.request_alignment = SECTOR_SIZE;
    }
    node->supported_zero_flags = BLOCK_REQ_MAY_UNMAP;
    /* Beyond the end of a regular file nothing was ever written; devices may have any contents. */
    q->alloc.zero_from = UINT64_MAX;
    if (node->file->node->driver->keeps_zero_beyond_eof) {
        q->alloc.zero_from = round_up(block_edge_size(node->file), q->cluster_size);
    }
}

static bool is_block_device(const char *path)
{
    struct stat st;

    return stat(path, &st) == 0 && S_ISBLK(st.st_mode);
}

/*
 * Open the data file that the option gives, or else the image. The name in the image may only be a
 * plain path, since the image may come from anybody. A relative one is resolved in the working
 * directory, as by QEMU, not in the image's folder as names of backing files are.
 */
static int co_open_data_file(struct qcow2 *q, struct options *opts, struct error *err)
{
    struct options *child;
    int r;

    q->data = q->node->file;
    if (!q->has_data_file) {
        return options_has(opts, "data-file")
                   ? error_set(err, EINVAL,
                               "'data-file' can only be set for images with an external data file")
                   : 0;
    }
    if (!options_has(opts, "data-file") &&
        (q->node->open_flags & (BLOCK_OPEN_NO_IO | BLOCK_OPEN_CHECK))) {
        return 0; /* only metadata is read, so no other file is opened */
    }
    if (!options_has(opts, "data-file") && q->header.data_filename) {
        if (strncmp(q->header.data_filename, "json:", 5) == 0 ||
            block_driver_of_filename(q->header.data_filename)) {
            return error_set(
                err, EINVAL,
                "Image '%s' names '%s' as its data file, but only a plain file name is "
                "followed; give the option data-file",
                block_node_display_name(q->node), q->header.data_filename);
        }
        child = options_new();
        if (!child) {
            return error_out_of_memory(err);
        }
        options_set_str(child, "driver",
                        is_block_device(q->header.data_filename) ? "host_device" : "file");
        options_set_str(child, "filename", q->header.data_filename);
        options_set_child(opts, "data-file", child);
    }
    r = block_co_open_child(q->node, opts, "data-file", BLOCK_ROLE_DATA | BLOCK_ROLE_METADATA, true,
                            &q->data, err);
    if (r == 0 && !q->data) {
        q->data = q->node->file;
        return error_set(err, EINVAL, "'data-file' is required for this image");
    }
    return r;
}

static int co_open_image(struct qcow2 *q, struct options *opts, struct error *err)
{
    struct qcow2_cache_options cache;
    bool check = q->node->open_flags & BLOCK_OPEN_CHECK;
    int r;

    if ((r = qcow2_co_read_header(q, err)) < 0 ||
        (r = qcow2_take_options(q, opts, &cache, err)) < 0 ||
        (r = qcow2_crypt_open(q, opts, err)) < 0 || (r = co_open_data_file(q, opts, err)) < 0 ||
        (r = co_load_tables(q, err)) < 0 || (r = init_caches(q, &cache, err)) < 0) {
        return r;
    }
    cluster_cache_init(&q->caches.decompressed, q->cluster_size);
    set_limits(q);
    if ((r = block_co_open_backing(q->node, opts, q->header.backing_filename,
                                   q->header.backing_format, err)) < 0 ||
        /* A check reads snapshots itself, and reports what is wrong with them. */
        (!check && (r = qcow2_co_read_snapshots(q, err)) < 0) ||
        (r = qcow2_co_load_bitmaps(q, err)) < 0) {
        return r;
    }
    if (qcow2_co_overlap_init(q) < 0) {
        return error_out_of_memory(err);
    }
    qcow2_cache_cleaner_start(q);
    return q->read_only ? 0 : qcow2_co_prepare_writable(q, err);
}

static int co_open(struct block_node *node, struct options *opts, struct error *err)
{
    struct qcow2 *q = qcow2_state(node);
    int r;

    q->node = node;
    q->read_only = node->read_only;
    init_locks(q);
    r = block_co_open_child(node, opts, "file", BLOCK_ROLE_DATA | BLOCK_ROLE_METADATA, false, NULL,
                            err);
    UNLESS_FAILED(r, co_open_image(q, opts, err));
    if (qcow2_co_conclude(q, r) < 0) {
        block_bitmaps_release(node);
        release_image(q);
    }
    return r;
}

/* --- close ----------------------------------------------------------------------------------- */

/*
 * Write all that is dirty. The first commit frees clusters, which makes refcounts dirty; the
 * second one writes those, and frees nothing.
 */
static int co_commit_all(struct qcow2 *q, struct error *err)
{
    int r = 0;

    if (qcow2_co_is_untouched(q)) {
        if (q->guard.refused && !q->close_failure_reported) {
            /* No write could be checked, so none was made, and each returned an error. */
            log_error("Failed to flush the refcount block cache: %s",
                      strerror(-q->guard.unreadable));
            q->close_failure_reported = true;
        }
        return 0;
    }
    for (int i = 0; i < 2 && r == 0; i++) {
        r = qcow2_co_commit(q);
    }
    if (r < 0) {
        if (!q->close_failure_reported) {
            log_error("Failed to flush the L2 table cache: %s", strerror(-r));
        }
        q->close_failure_reported = true;
        error_set_errno(err, -r, "Failed to flush the refcount block cache");
    }
    return r;
}

/*
 * Extend the file to whole clusters, where commits could not: a file that only its node can
 * extend, or one that did not end at a cluster when it was opened.
 */
static void co_complete_last_cluster(struct qcow2 *q)
{
    struct block_edge *file = q->node->file;
    uint64_t size = round_up(block_edge_size(file), q->cluster_size);

    if (size > block_edge_size(file) && !qcow2_co_is_untouched(q)) {
        (void)block_co_truncate(file, size, BLOCK_PREALLOC_OFF, NULL); /* a device can't grow */
    }
}

static int co_store_all(struct qcow2 *q, struct error *err)
{
    int r, stored;

    /* Writes acknowledged before the image broke are committed; its bitmaps stay in use. */
    r = co_commit_all(q, err);
    if (r < 0 || atomic_load(&q->broken)) {
        return r;
    }
    stored = qcow2_co_store_bitmaps(q, err);
    r = co_commit_all(q, err);
    r = r < 0 || !q->commit.refcounts_behind ? r : qcow2_co_write_lazy_refcounts(q, err);
    co_complete_last_cluster(q);
    return error_first(stored, r);
}

static int co_inactivate(struct block_node *node, struct error *err)
{
    struct qcow2 *q = qcow2_state(node);

    return q->read_only ? 0 : qcow2_co_conclude(q, co_store_all(q, err));
}

static void co_close(struct block_node *node)
{
    release_image(qcow2_state(node));
}

/* An image that was only read is not flushed, so that closing it can't fail. */
static int co_flush(struct block_node *node)
{
    struct qcow2 *q = qcow2_state(node);

    return qcow2_co_is_untouched(q) ? 0 : qcow2_co_commit_guest(q); /* concludes */
}

/* --- status ---------------------------------------------------------------------------------- */

static int co_get_status(struct block_node *node, uint64_t offset, uint64_t length,
                         struct block_status *ret_status)
{
    struct qcow2 *q = qcow2_state(node);
    uint64_t slice_span = (uint64_t)qcow2_slice_entries(q) << q->cluster_bits;
    struct qcow2_run run, next;
    int r = qcow2_co_map(q, offset, length, &run);

    if (r < 0) {
        return r;
    }
    /* Runs end at the end of a slice; they are continued while the next one is alike. */
    while (run.length < length && is_aligned(offset + run.length, slice_span)) {
        bool mapped = run.type == CLUSTER_NORMAL || run.type == CLUSTER_ZERO_ALLOC;

        r = qcow2_co_map(q, offset + run.length, length - run.length, &next);
        if (r < 0 || next.type != run.type || (mapped && next.host != run.host + run.length)) {
            break;
        }
        run.length += next.length;
    }
    ret_status->length = run.length;
    ret_status->file = q->data->node;
    ret_status->map = run.host;
    switch (run.type) {
    case CLUSTER_UNALLOCATED:
    case CLUSTER_UNALLOCATED_HAS_HOST:
        ret_status->flags = node->backing ? 0 : BLOCK_STATUS_ZERO;
        break;
    case CLUSTER_ZERO:
        ret_status->flags = BLOCK_STATUS_ZERO | BLOCK_STATUS_ALLOCATED;
        break;
    case CLUSTER_ZERO_ALLOC:
        ret_status->flags = BLOCK_STATUS_ZERO | BLOCK_STATUS_ALLOCATED | BLOCK_STATUS_OFFSET;
        break;
    case CLUSTER_NORMAL:
        ret_status->flags = BLOCK_STATUS_DATA | BLOCK_STATUS_ALLOCATED;
        if (q->crypt_method == CRYPT_NONE) {
            ret_status->flags |= BLOCK_STATUS_OFFSET;
            ret_status->flags |= qcow2_co_is_sparse(q) ? BLOCK_STATUS_RECURSE : 0;
        }
        break;
    case CLUSTER_COMPRESSED:
        ret_status->flags = BLOCK_STATUS_DATA | BLOCK_STATUS_ALLOCATED | BLOCK_STATUS_COMPRESSED;
        break;
    }
    return 0;
}

/* --- operations that end with acting on verdicts of corruption -------------------------------- */

/* Reading, writing and committing do so themselves. */
static int co_conclude(struct block_node *node, int r)
{
    return qcow2_co_conclude(qcow2_state(node), r);
}

static int co_check(struct block_node *node, unsigned fix, struct block_check_result *ret_result,
                    struct error *err)
{
    return co_conclude(node, qcow2_co_check(node, fix, ret_result, err));
}

static int co_truncate(struct block_node *node, uint64_t size, enum block_prealloc prealloc,
                       struct error *err)
{
    return co_conclude(node, qcow2_co_truncate(node, size, prealloc, err));
}

static int co_change_backing(struct block_node *node, const char *filename, const char *format,
                             struct error *err)
{
    return co_conclude(node, qcow2_co_change_backing(node, filename, format, err));
}

static int co_amend(struct block_node *node, struct options *opts, block_progress_fn *progress,
                    void *progress_arg, struct error *err)
{
    return co_conclude(node, qcow2_co_amend(node, opts, progress, progress_arg, err));
}

static int co_make_empty(struct block_node *node, struct error *err)
{
    return co_conclude(node, qcow2_co_make_empty(node, err));
}

static int co_snapshot_create(struct block_node *node, const char *name, struct error *err)
{
    return co_conclude(node, qcow2_co_snapshot_create(node, name, err));
}

static int co_snapshot_apply(struct block_node *node, const char *id_or_name, struct error *err)
{
    return co_conclude(node, qcow2_co_snapshot_apply(node, id_or_name, err));
}

static int co_snapshot_delete(struct block_node *node, const char *id_or_name, struct error *err)
{
    return co_conclude(node, qcow2_co_snapshot_delete(node, id_or_name, err));
}

static int co_pwritev(struct block_node *node, uint64_t offset, struct iov iov, unsigned flags)
{
    int r;

    if (__builtin_expect(!(flags & BLOCK_REQ_COMPRESSED), true)) {
        return qcow2_co_pwritev(node, offset, iov, flags);
    }
    r = qcow2_co_begin_change(qcow2_state(node));
    return r < 0 ? r : qcow2_co_write_compressed(qcow2_state(node), offset, iov);
}

static int co_pwritev_vmstate(struct block_node *node, uint64_t offset, struct iov iov)
{
    return co_conclude(node, qcow2_co_pwritev_vmstate(node, offset, iov));
}

static int co_fetch_bitmap(struct block_node *node, struct block_bitmap *bitmap)
{
    return co_conclude(node, qcow2_co_fetch_bitmap(node, bitmap));
}

static int co_reserve_bitmap(struct block_node *node, const char *name, uint32_t granularity,
                             struct error *err)
{
    return co_conclude(node, qcow2_co_reserve_bitmap(node, name, granularity, err));
}

static int co_remove_stored_bitmap(struct block_node *node, const char *name, struct error *err)
{
    return co_conclude(node, qcow2_co_remove_stored_bitmap(node, name, err));
}

static int co_bitmap_will_change(struct block_node *node, struct block_bitmap *bitmap,
                                 struct error *err)
{
    return co_conclude(node, qcow2_co_bitmap_will_change(node, bitmap, err));
}

static int co_write_zeroes(struct block_node *node, uint64_t offset, uint64_t length,
                           unsigned flags)
{
    return co_conclude(node, qcow2_co_write_zeroes(node, offset, length, flags));
}

static int co_discard(struct block_node *node, uint64_t offset, uint64_t length)
{
    return co_conclude(node, qcow2_co_discard(node, offset, length));
}

static int co_status(struct block_node *node, uint64_t offset, uint64_t length,
                     struct block_status *ret_status)
{
    return co_conclude(node, co_get_status(node, offset, length, ret_status));
}

static int probe(const uint8_t *head, size_t size)
{
    return size >= 8 && load_be32(head) == QCOW2_MAGIC && load_be32(head + 4) >= 2 ? 100 : 0;
}

static const struct block_driver qcow2_driver = {
    .name = "qcow2",
    .instance_size = sizeof(struct qcow2),
    .is_format = true,
    .probe = probe,
    .co_open = co_open,
    .co_inactivate = co_inactivate,
    .co_close = co_close,
    .reopen_options = qcow2_reopen_options,
    .co_reopen_prepare = qcow2_co_reopen_prepare,
    .co_reopen_finish = qcow2_co_reopen_finish,
    .co_reopen_commit = qcow2_co_reopen_commit,
    .co_reopen_abort = qcow2_co_reopen_abort,
    .co_create = qcow2_co_create,
    .co_format = qcow2_co_format,
    .create_options = qcow2_create_options,
    .amend_options = qcow2_amend_options,
    .co_get_info = qcow2_co_get_info,
    .co_specific_info = qcow2_co_specific_info,
    .co_check = co_check,
    .co_truncate = co_truncate,
    .co_change_backing = co_change_backing,
    .co_amend = co_amend,
    .co_make_empty = co_make_empty,
    .co_snapshot_create = co_snapshot_create,
    .co_snapshot_apply = co_snapshot_apply,
    .co_snapshot_delete = co_snapshot_delete,
    .co_snapshot_list = qcow2_co_snapshot_list,
    .co_snapshot_show = qcow2_co_snapshot_show,
    .co_preadv_vmstate = qcow2_co_preadv_vmstate,
    .co_pwritev_vmstate = co_pwritev_vmstate,
    .co_fetch_bitmap = co_fetch_bitmap,
    .co_count_bitmap = qcow2_co_count_bitmap,
    .co_can_store_bitmap = qcow2_co_can_store_bitmap,
    .co_reserve_bitmap = co_reserve_bitmap,
    .co_remove_stored_bitmap = co_remove_stored_bitmap,
    .co_bitmap_will_change = co_bitmap_will_change,
    .co_preadv = qcow2_co_preadv,
    .co_pwritev = co_pwritev,
    .co_write_zeroes = co_write_zeroes,
    .co_discard = co_discard,
    .co_flush = co_flush,
    .co_status = co_status,
    .stats = qcow2_stats,
    .read_stats = qcow2_read_stats,
};

void qcow2_register_driver(void)
{
    block_register_driver(&qcow2_driver);
}
