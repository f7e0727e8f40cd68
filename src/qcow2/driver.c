/* SPDX-License-Identifier: Apache-2.0 */
/* Closing an image, block status, and the driver's functions. */
#include "qcow2/qcow2.h"

#include <errno.h>
#include <string.h>

#include "base/byteorder.h"
#include "base/log.h"
#include "qcow2/amend.h"
#include "qcow2/bitmap/bitmap.h"
#include "qcow2/bitmap/joint.h"
#include "qcow2/check/check.h"
#include "qcow2/create.h"
#include "qcow2/encryption.h"
#include "qcow2/data/compress.h"
#include "qcow2/data/data.h"
#include "qcow2/data/sparse.h"
#include "qcow2/data/status_runs.h"
#include "qcow2/header/header.h"
#include "qcow2/header/mark_corrupt.h"
#include "qcow2/info.h"
#include "qcow2/make_empty.h"
#include "qcow2/open.h"
#include "qcow2/options.h"
#include "qcow2/reopen.h"
#include "qcow2/resize.h"
#include "qcow2/snapshot/snapshot.h"
#include "qcow2/stats.h"
#include "qcow2/table/commit.h"
#include "qcow2/table/map.h"

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
        if (q->has_data_file && q->flush_refused) {
            q->close_failure_reported = true; /* by the flush of the data file */
            return error_set_errno(err, -r, "Could not flush '%s'",
                                   block_node_display_name(q->data->node));
        }
        if (!q->close_failure_reported) {
            log_error("Failed to flush the L2 table cache: %s", strerror(-r));
        }
        q->close_failure_reported = true;
        error_set_errno(err, -r, "Failed to flush the refcount block cache");
    }
    return r;
}

/*
 * Extend the file to whole clusters, where commits could not: a file that only its node can extend.
 * Where they could, what the last cluster lacks was not there when the file was opened either: then
 * a change of the header alone leaves it as it is.
 */
static void co_complete_last_cluster(struct qcow2 *q)
{
    struct block_edge *file = q->node->file;
    uint64_t size = round_up(block_edge_size(file), q->cluster_size);
    bool commits_extend = file->node->driver->co_extend && q->alloc.zero_from != UINT64_MAX;
    /* Write generations begin at 1. */
    bool is_written = atomic_load(&q->node->write_generation) > 1;

    if ((!commits_extend || is_written) && size > block_edge_size(file) &&
        !qcow2_co_is_untouched(q)) {
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
    /* What waits for another image waits on disk, with the log. */
    stored = q->joint.waits ? 0 : qcow2_co_store_bitmaps(q, err);
    r = co_commit_all(q, err);
    r = r < 0 || !q->commit.refcounts_behind ? r : qcow2_co_write_lazy_refcounts(q, err);
    co_complete_last_cluster(q);
    return error_first(stored, r);
}

static int co_inactivate(struct block_node *node, struct error *err)
{
    struct qcow2 *q = qcow2_state(node);
    int r;

    if (q->read_only) {
        return 0;
    }
    qcow2_co_pause_activity(q);
    r = qcow2_co_conclude(q, co_store_all(q, err));
    if (q->activity.log) {
        block_activity_start(q->activity.log);
    }
    return r;
}

static void co_close(struct block_node *node)
{
    qcow2_co_pause_activity(qcow2_state(node));
    qcow2_release_image(qcow2_state(node));
}

/* An image that was only read is not flushed, so that closing it can't fail. */
static int co_flush(struct block_node *node)
{
    struct qcow2 *q = qcow2_state(node);
    int r = qcow2_co_is_untouched(q) ? 0 : qcow2_co_commit_guest(q); /* concludes */

    q->flush_refused = r < 0;
    return r;
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

static int co_amend(struct block_node *node, struct options *opts, bool force,
                    block_progress_fn *progress, void *progress_arg, struct error *err)
{
    return co_conclude(node, qcow2_co_amend(node, opts, force, progress, progress_arg, err));
}

static int co_change_keys(struct block_node *node, struct options *opts, bool force,
                          struct error *err)
{
    return co_conclude(node, qcow2_co_change_keys(qcow2_state(node), opts, force, err));
}

static int co_make_empty(struct block_node *node, struct error *err)
{
    return co_conclude(node, qcow2_co_make_empty(node, err));
}

static int co_snapshot_create(struct block_node *node, const char *name, struct error *err)
{
    return co_conclude(node, qcow2_co_snapshot_create(node, name, NULL, err));
}

static int co_snapshot_create_vm(struct block_node *node, const char *name,
                                 const struct block_snapshot_vm *vm, struct error *err)
{
    return co_conclude(node, qcow2_co_snapshot_create(node, name, vm, err));
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

static int co_commit_bitmaps(struct block_node *node, struct error *err)
{
    return co_conclude(node, qcow2_co_commit_bitmaps(node, err));
}

static int co_prepare_bitmaps(struct block_node *node, const struct block_joint *joint, size_t own,
                              struct error *err)
{
    return co_conclude(node, qcow2_co_prepare_bitmaps(node, joint, own, err));
}

static int co_settle_bitmaps(struct block_node *node, bool done, struct error *err)
{
    return co_conclude(node, qcow2_co_settle_bitmaps(node, done, err));
}

static int co_begin_activity(struct block_node *node)
{
    return co_conclude(node, qcow2_co_begin_activity(node));
}

static int co_store_bits_of(struct block_node *node, const struct block_activity_range *ranges,
                            size_t count)
{
    return co_conclude(node, qcow2_co_store_bits_of(node, ranges, count));
}

/* --- drain: the activity log makes regions cold in the background ----------------------------- */

static void drain_begin(struct block_node *node)
{
    if (node->log) {
        block_activity_stop(node->log);
    }
}

static bool drain_busy(struct block_node *node, const struct block_node *drained)
{
    (void)drained;
    return node->log && block_activity_is_busy(node->log);
}

static void drain_end(struct block_node *node)
{
    if (node->log) {
        block_activity_start(node->log);
    }
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

static int co_status_runs(struct block_node *node, bool contents, uint64_t offset, uint64_t length,
                          struct block_run *ret_runs, unsigned max, unsigned *ret_count)
{
    return co_conclude(
        node, qcow2_co_status_runs(node, contents, offset, length, ret_runs, max, ret_count));
}

static int probe(const uint8_t *head, size_t size)
{
    return size >= 8 && load_be32(head) == QCOW2_MAGIC && load_be32(head + 4) >= 2 ? 100 : 0;
}

static const struct block_driver qcow2_driver = {
    .name = "qcow2",
    .help = "format: copy-on-write images with snapshots and bitmaps",
    .options = &qcow2_options_type,
    .instance_size = sizeof(struct qcow2),
    .is_format = true,
    .compresses = true,
    .probe = probe,
    .co_open = qcow2_co_open,
    .co_inactivate = co_inactivate,
    .co_close = co_close,
    .handed_over = qcow2_handed_over,
    .co_reload = qcow2_co_reload,
    .co_exchange_image = qcow2_co_exchange_image,
    .reopen_options = qcow2_reopen_options,
    .exchanges_file = true,
    .file_head = 4096,
    .co_reopen_prepare = qcow2_co_reopen_prepare,
    .co_reopen_finish = qcow2_co_reopen_finish,
    .co_reopen_commit = qcow2_co_reopen_commit,
    .co_reopen_abort = qcow2_co_reopen_abort,
    .drain_begin = drain_begin,
    .drain_busy = drain_busy,
    .drain_end = drain_end,
    .co_create = qcow2_co_create,
    .co_format = qcow2_co_format,
    .create_options = qcow2_create_options,
    .create_type = &qcow2_create_type,
    .amend_type = &qcow2_amend_type,
    .co_change_keys = co_change_keys,
    .amend_options = qcow2_amend_options,
    .co_get_info = qcow2_co_get_info,
    .co_specific_info = qcow2_co_specific_info,
    .specific_info_type = &qcow2_specific_info_type,
    .co_check = co_check,
    .co_truncate = co_truncate,
    .co_change_backing = co_change_backing,
    .co_amend = co_amend,
    .co_make_empty = co_make_empty,
    .co_snapshot_create = co_snapshot_create,
    .co_snapshot_create_vm = co_snapshot_create_vm,
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
    .disown_bitmap = qcow2_disown_bitmap,
    .co_bitmap_will_change = co_bitmap_will_change,
    .co_commit_bitmaps = co_commit_bitmaps,
    .co_joint_name = qcow2_co_joint_name,
    .co_prepare_bitmaps = co_prepare_bitmaps,
    .co_settle_bitmaps = co_settle_bitmaps,
    .co_forget_joint = qcow2_co_forget_joint,
    .co_begin_activity = co_begin_activity,
    .co_activity_has_room = qcow2_co_activity_has_room,
    .co_write_activity = qcow2_co_write_activity,
    .co_sync_activity = qcow2_co_sync_activity,
    .co_store_bits_of = co_store_bits_of,
    .greatest_size = qcow2_greatest_size,
    .remember_size = qcow2_remember_size,
    .co_preadv = qcow2_co_preadv,
    .co_read_pages = qcow2_co_read_pages,
    .co_pwritev = co_pwritev,
    .co_write_zeroes = co_write_zeroes,
    .co_discard = co_discard,
    .co_flush = co_flush,
    .co_status = co_status,
    .co_status_runs = co_status_runs,
    .stats = qcow2_stats,
    .read_stats = qcow2_read_stats,
};

void qcow2_register_driver(void)
{
    block_register_driver(&qcow2_driver);
}
