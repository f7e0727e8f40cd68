/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Changing the size of the disk. The node is drained.
 *
 * The size, and offset and size of the L1 table, are in the header's first sector and are switched
 * together (R3).
 *
 *   grow     reserve room for longer tables of bitmaps -> write a longer L1 table elsewhere
 *            -> drop what is mapped beyond the end, zero what a backing file would expose, and the
 *            rest of the last cluster -> bitmaps for the new size -> switch
 *   shrink   bitmaps for the new size -> switch -> drop what is beyond the end -> cut off the free
 *            end of the file (cut.h)
 *
 * With durable bitmaps (bitmap/activity.c) the directory of those for the new size is switched to
 * together with the size: a crash finds both old or both new. Otherwise, or without space for them,
 * they are marked in use before and stored at the end, so that a crash leaves them inconsistent.
 *
 * Clusters may be mapped beyond the end: after a crash before they were dropped, or if a snapshot
 * with a VM state was applied. When the disk grows over them it has to read as zeroes.
 */
#include "qcow2/resize.h"

#include <errno.h>
#include <stdlib.h>

#include "base/cleanup.h"
#include "base/log.h"
#include "qcow2/bitmap/bitmap.h"
#include "qcow2/cut.h"
#include "qcow2/data/data.h"
#include "qcow2/header/header.h"
#include "qcow2/options.h"
#include "qcow2/table/alloc.h"
#include "qcow2/table/commit.h"
#include "qcow2/table/map.h"
#include "qcow2/table/new_table.h"
#include "qcow2/table/verdict.h"

static int failed(struct qcow2 *q, const char *what, int r, struct error *err)
{
    return error_set_errno(err, -r, "Could not resize '%s': %s", block_node_display_name(q->node),
                           what);
}

/* --- bitmaps --------------------------------------------------------------------------------- */

/*
 * An area that the disk had once, up to `greatest`, reads differently now, so bitmaps must call it
 * dirty.
 */
static void mark_regrown(struct qcow2 *q, uint64_t old_size, uint64_t new_size, uint64_t greatest)
{
    uint64_t end = MIN(new_size, greatest);
    struct block_bitmap *b;

    for (b = block_bitmap_next(q->node, NULL); b && end > old_size;
         b = block_bitmap_next(q->node, b)) {
        if (b->bits) {
            dirty_bitmap_set(b->bits, old_size, end - old_size);
        }
    }
}

/* --- switching ------------------------------------------------------------------------------- */

/*
 * What a resize zeroes or drops is beyond the end: it marks no bitmaps in use, which stay right as
 * they are stored. Ended by setting bitmaps.marked to false.
 */
static void leave_marks_off(struct qcow2 *q)
{
    if (qcow2_has_durable_bitmaps(q)) {
        atomic_store(&q->bitmaps.marked, true);
    }
}

static int co_switch_with_bitmaps(struct qcow2 *q, struct error *err)
{
    int r = qcow2_co_switch_with_bitmaps(q, err);

    leave_marks_off(q);
    return r;
}

static int co_switch_size(struct qcow2 *q, uint64_t size, struct error *err)
{
    uint64_t old_size = block_node_size(q->node), old_greatest = q->header.greatest_size;
    bool has_bitmaps = !list_is_empty(&q->node->bitmaps);
    int r = qcow2_co_commit(q);

    if (r < 0) {
        return failed(q, "its metadata can't be written", r, err);
    }
    q->header.greatest_size = has_bitmaps ? MAX(MAX(q->header.greatest_size, old_size), size) : 0;
    block_node_set_size(q->node, size);
    r = co_switch_with_bitmaps(q, err);
    if (r < 0) {
        block_node_set_size(q->node, old_size);
        q->header.greatest_size = old_greatest;
    }
    return r;
}

int qcow2_co_grow_l1(struct qcow2 *q, uint32_t entries, struct error *err)
{
    uint64_t old_offset = q->l1.offset, offset;
    uint32_t old_entries = q->l1.size;
    AUTO_FREE uint64_t *l1 = NULL;
    int r;

    if (entries <= old_entries) {
        return 0;
    }
    block_co_event(q->node->file, BLOCK_EVENT_L1_GROW_ALLOC_TABLE);
    l1 = calloc(entries, 8);
    r = l1 ? qcow2_co_commit(q) : -ENOMEM;
    for (uint32_t i = 0; r == 0 && i < old_entries; i++) {
        l1[i] = atomic_load_explicit(&q->l1.entries[i], memory_order_relaxed);
    }
    UNLESS_FAILED(r, qcow2_co_write_l1_copy(q, l1, entries, true, &offset));
    if (r < 0) {
        return failed(q, "a longer L1 table can't be written", r, err);
    }
    r = qcow2_co_commit(q);
    UNLESS_FAILED(r, qcow2_co_set_active_l1(q, l1, entries));
    if (r < 0) {
        qcow2_co_free_new_clusters(q, offset, (uint64_t)entries * 8);
        return failed(q, "a longer L1 table can't be written", r, err);
    }
    q->l1.offset = offset;
    block_co_event(q->node->file, BLOCK_EVENT_L1_GROW_ACTIVATE_TABLE);
    r = qcow2_co_write_header(q, err);
    if (r < 0) {
        q->l1.offset = old_offset;
        q->l1.size = old_entries;
        if (!atomic_load(&q->broken)) { /* else the header on disk may name the new table */
            qcow2_co_free_new_clusters(q, offset, (uint64_t)entries * 8);
        }
        return r;
    }
    if (old_entries == 0) {
        return 0; /* the old table had no clusters */
    }
    co_mutex_lock(&q->lock);
    r = qcow2_free_later_locked(q, old_offset, round_up((uint64_t)old_entries * 8, q->cluster_size),
                                false, QCOW2_FREED_BY_OTHER);
    co_mutex_unlock(&q->lock);
    return r;
}

/* --- grow ------------------------------------------------------------------------------------ */

/* Zero the rest of the last cluster, which may have data of a former larger disk. */
static int co_zero_rest_of_cluster(struct qcow2 *q, uint64_t size)
{
    uint64_t end = round_up(size, q->cluster_size);
    AUTO_FREE uint8_t *zeroes = end > size ? calloc(1, end - size) : NULL;
    struct qcow2_run run;
    struct iovec vec;
    int r = end > size && !zeroes ? -ENOMEM : 0;

    /* The subclusters may be of several types. */
    for (; size < end && r == 0; size += run.length) {
        r = qcow2_co_map(q, size, end - size, &run);
        if (r == 0 && run.type != CLUSTER_ZERO && run.type != CLUSTER_ZERO_ALLOC &&
            (run.type != CLUSTER_UNALLOCATED || q->node->backing)) {
            r = qcow2_co_pwritev(q->node, size, iov_from_buf(&vec, zeroes, run.length), 0);
        }
    }
    return r;
}

/* Version 2 has no zero flag, so data has to hide the backing file. */
static int co_write_zero_data(struct qcow2 *q, uint64_t offset, uint64_t end)
{
    size_t step = MAX(q->cluster_size, 64 * KiB);
    AUTO_FREE uint8_t *zeroes = calloc(1, step);
    int r = zeroes ? 0 : -ENOMEM;

    for (; offset < end && r == 0; offset += step) {
        struct iovec vec;

        r = qcow2_co_pwritev(q->node, offset, iov_from_buf(&vec, zeroes, MIN(step, end - offset)),
                             0);
    }
    return r;
}

static int co_hide_backing(struct qcow2 *q, uint64_t from, uint64_t to)
{
    uint64_t first = round_up(from, q->cluster_size), end;

    if (!q->node->backing) {
        return 0;
    }
    end = round_up(MIN(to, block_edge_size(q->node->backing)), q->cluster_size);
    if (end <= first) {
        return 0;
    }
    return q->version < 3 ? co_write_zero_data(q, first, end)
                          : qcow2_co_zero_clusters(q, first, end - first);
}

/* Guest bytes beyond the clusters of a disk of `size` bytes that the L1 table can map. */
static int co_drop_beyond(struct qcow2 *q, uint64_t size)
{
    uint64_t first = round_up(size, q->cluster_size), end = q->l1.size * qcow2_l2_span(q);

    return end > first ? qcow2_co_drop_clusters(q, first, end - first) : 0;
}

/* Drop a VM state beyond the end, which would become part of the disk. Snapshots keep theirs. */
static int co_drop_vmstate(struct qcow2 *q, uint64_t size)
{
    uint64_t span = qcow2_l2_span(q);
    int r = 0;

    for (uint64_t i = qcow2_vmstate_offset(q, size) / span; i < q->l1.size && r == 0; i++) {
        if (atomic_load_explicit(&q->l1.entries[i], memory_order_relaxed) & ENTRY_OFFSET_MASK) {
            r = qcow2_co_drop_clusters(q, i * span, span);
        }
    }
    return r;
}

/* A data file grows with the disk; `cut`: what is beyond the disk goes. */
static int co_fit_data_file(struct qcow2 *q, uint64_t size, bool cut, struct error *err)
{
    uint64_t now = q->has_data_file ? block_edge_size(q->data) : size;

    if (now < size || (now > size && cut)) {
        return block_co_truncate(q->data, size, BLOCK_PREALLOC_OFF, err);
    }
    return 0;
}

static int co_grow(struct qcow2 *q, uint64_t old_size, uint64_t size, enum block_prealloc prealloc,
                   struct error *err)
{
    uint64_t entries = div_round_up(size, qcow2_l2_span(q));
    /* Preallocation leaves a raw data file with whole clusters; its own contents stay. */
    bool cut = q->data_file_raw && block_edge_size(q->data) <= size;
    int r;

    if (entries * 8 > L1_BYTES_MAX) {
        return error_set(err, EFBIG,
                         "The image size is too large for '%s' with clusters of %llu bytes",
                         block_node_display_name(q->node), (unsigned long long)q->cluster_size);
    }
    r = co_drop_vmstate(q, old_size);
    if (r < 0) {
        return failed(q, "the VM state behind the disk can't be dropped", r, err);
    }
    r = qcow2_co_grow_l1(q, (uint32_t)entries, err);
    /* Marked only once the table has room: without room bitmaps could not be stored again. */
    if (!qcow2_has_durable_bitmaps(q)) {
        UNLESS_FAILED(r, qcow2_co_mark_all_bitmaps(q, err));
    }
    if (r < 0) {
        return r;
    }
    if (q->data_file_raw && prealloc == BLOCK_PREALLOC_OFF) {
        prealloc = BLOCK_PREALLOC_METADATA; /* an unmapped part would read differently there */
    }
    r = co_drop_beyond(q, old_size);
    if (!q->data_file_raw) {
        /* A raw data file is the disk: what it has there already is shown, as by QEMU. */
        UNLESS_FAILED(r, co_zero_rest_of_cluster(q, old_size));
    }
    if (r >= 0 && prealloc != BLOCK_PREALLOC_OFF) {
        /* As for the size to be: the cache of a small disk would keep all new tables, unsorted. */
        (void)qcow2_fit_l2_cache(q, size);
        r = qcow2_co_preallocate(q, old_size, size, prealloc, err);
        if (r < 0) {
            return r;
        }
    }
    /* Clusters that preallocation has mapped are left alone. */
    UNLESS_FAILED(r, co_hide_backing(q, old_size, size));
    if (r < 0) {
        return failed(q, "the new area can't be zeroed", r, err);
    }
    r = co_fit_data_file(q, size, cut, err);
    return r < 0 ? r : co_switch_size(q, size, err);
}

/* --- shrink ---------------------------------------------------------------------------------- */

/* Remove L1 entries whose whole span is beyond the end, and free their tables. */
static int co_drop_tables(struct qcow2 *q, uint64_t size)
{
    int r = 0;

    co_mutex_lock(&q->lock);
    for (uint64_t i = div_round_up(size, qcow2_l2_span(q)); i < q->l1.size && r == 0; i++) {
        uint64_t table =
            atomic_load_explicit(&q->l1.entries[i], memory_order_relaxed) & ENTRY_OFFSET_MASK;

        if (table != 0) {
            qcow2_set_l1_entry_locked(q, i, 0);
            r = qcow2_free_later_locked(q, table, q->cluster_size, false, QCOW2_FREED_BY_SHRINKING);
        }
    }
    co_mutex_unlock(&q->lock);
    return r;
}

static int co_shrink(struct qcow2 *q, uint64_t size, struct error *err)
{
    int r = co_switch_size(q, size, err);

    if (r < 0) {
        return r;
    }
    r = co_drop_beyond(q, size);
    UNLESS_FAILED(r, qcow2_co_commit(q));
    block_co_event(q->node->file, BLOCK_EVENT_L1_SHRINK_FREE_L2_CLUSTERS);
    UNLESS_FAILED(r, co_drop_tables(q, size));
    block_co_event(q->node->file, BLOCK_EVENT_L1_SHRINK_WRITE_TABLE);
    UNLESS_FAILED(r, qcow2_co_commit(q));
    UNLESS_FAILED(r, qcow2_co_commit(q));
    if (r < 0) {
        return failed(q, "what lies beyond the new end can't be freed", r, err);
    }
    r = qcow2_co_cut_file(q);
    if (r < 0) {
        return failed(q, "clusters in use at the end of the file have no refcount", r, err);
    }
    return co_fit_data_file(q, size, true, err);
}

/* --- resize ---------------------------------------------------------------------------------- */

/* The disk did not shrink after all. What the bitmaps had beyond `size` counts as dirty. */
static void lengthen_again(struct qcow2 *q, uint64_t size, uint64_t old_size)
{
    struct block_bitmap *b;

    if (block_bitmaps_resize(q->node, old_size, NULL) < 0) {
        log_error("image '%s': out of memory: its bitmaps miss what is written beyond %llu",
                  block_node_display_name(q->node), (unsigned long long)size);
    }
    for (b = block_bitmap_next(q->node, NULL); b; b = block_bitmap_next(q->node, b)) {
        if (b->bits) {
            dirty_bitmap_set(b->bits, size, old_size - size);
        }
    }
}

/*
 * Bitmaps in memory are never shorter than the disk, since they would miss writes beyond their
 * end. One that stays longer, without memory to shorten it, is harmless.
 */
static int co_shrink_with_bitmaps(struct qcow2 *q, uint64_t old_size, uint64_t size,
                                  struct error *err)
{
    int r;

    if (!qcow2_has_durable_bitmaps(q)) {
        r = qcow2_co_mark_all_bitmaps(q, err);
        UNLESS_FAILED(r, co_shrink(q, size, err));
        return r < 0 ? r : block_bitmaps_resize(q->node, size, err);
    }
    r = block_bitmaps_resize(q->node, size, err);
    UNLESS_FAILED(r, co_shrink(q, size, err));
    if (r < 0 && block_node_size(q->node) == old_size) {
        lengthen_again(q, size, old_size);
    }
    return r;
}

static int co_change_size(struct qcow2 *q, uint64_t old_size, uint64_t size, uint64_t greatest,
                          enum block_prealloc prealloc, struct error *err)
{
    int r;

    if (size < old_size) {
        return co_shrink_with_bitmaps(q, old_size, size, err);
    }
    r = block_bitmaps_resize(q->node, size, err);
    if (r < 0) {
        return r;
    }
    mark_regrown(q, old_size, size, greatest);
    r = qcow2_co_reserve_bitmaps(q, size, err);
    UNLESS_FAILED(r, co_grow(q, old_size, size, prealloc, err));
    if (r < 0 && block_node_size(q->node) == old_size) {
        qcow2_co_unreserve_longer_tables(q);
        (void)block_bitmaps_resize(q->node, old_size, NULL);
    }
    return r;
}

int qcow2_co_truncate(struct block_node *node, uint64_t size, enum block_prealloc prealloc,
                      struct error *err)
{
    struct qcow2 *q = qcow2_state(node);
    uint64_t old_size = block_node_size(node);
    uint64_t greatest = block_node_greatest_size_of_chain(node);
    int r = qcow2_refuse_broken(q, err);

    if (r < 0) {
        return r;
    }
    if (!is_aligned(size, SECTOR_SIZE)) {
        return error_set(err, EINVAL, "The new size must be a multiple of 512");
    }
    if (q->snapshots.count > 0 && q->version < 3) {
        /* Version 2 does not record the sizes of snapshots. */
        return error_set(err, ENOTSUP, "Can't resize a v2 image which has snapshots");
    }
    if (size < old_size && prealloc != BLOCK_PREALLOC_OFF) {
        return error_set(err, EINVAL, "Preallocation can't be used for shrinking an image");
    }
    r = qcow2_co_check_bitmaps_fit(q, size, "resize", err);
    if (size < old_size) {
        UNLESS_FAILED(r, qcow2_co_check_refcount_blocks(q, err));
    }
    if (r < 0) {
        return r;
    }
    if (q->activity.offset > 0 && (r = qcow2_co_store_bitmaps(q, err)) < 0) {
        return r;
    }
    leave_marks_off(q);
    r = co_change_size(q, old_size, size, greatest, prealloc, err);
    atomic_store(&q->bitmaps.marked, false);
    /* Without memory the cache stays as it was, and works. */
    (void)qcow2_fit_l2_cache(q, block_node_size(q->node));
    if (r == 0 && !list_is_empty(&node->bitmaps)) {
        r = qcow2_co_store_bitmaps(q, err);
    }
    /* Also if what follows the switch has failed: its regions are those of the size. */
    if (q->activity.log && block_node_size(node) != old_size) {
        qcow2_activity_close(q);
        r = error_first(r, qcow2_co_activity_open(q, r < 0 ? NULL : err));
    }
    return r;
}

uint64_t qcow2_greatest_size(const struct block_node *node)
{
    return ((const struct qcow2 *)node->opaque)->header.greatest_size;
}

/* The header has it as soon as it is written with a directory of bitmaps. */
void qcow2_remember_size(struct block_node *node, uint64_t size)
{
    struct qcow2 *q = qcow2_state(node);

    q->header.greatest_size = MAX(q->header.greatest_size, size);
}
