/* SPDX-License-Identifier: Apache-2.0 */
#include "qcow2/snapshot/changed.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/checked.h"
#include "base/cleanup.h"
#include "block/bitmaps.h"
#include "qcow2/bitmap/bitmap.h"
#include "qcow2/header/header.h"
#include "qcow2/snapshot/operation.h"
#include "qcow2/table/commit.h"
#include "qcow2/table/map.h"

static bool has_any_bitmap(const struct qcow2 *q)
{
    return !list_is_empty(&q->node->bitmaps) || !list_is_empty(&q->bitmaps.stored);
}

/* --- what differs ----------------------------------------------------------------------------- */

/* Offset of the L2 table at an L1 index; 0: there is none. */
static uint64_t l2_offset(struct l1_view view, uint32_t i)
{
    return i < view.entries ? view.l1[i] & ENTRY_OFFSET_MASK : 0;
}

static int co_read_l2(struct qcow2 *q, uint64_t offset, uint64_t *table)
{
    if (offset == 0) {
        memset(table, 0, q->cluster_size);
        return 0;
    }
    return is_aligned(offset, q->cluster_size)
               ? block_co_pread(q->node->file, offset, table, q->cluster_size)
               : -EIO;
}

/*
 * Whether entry `i` of two tables, as they are on disk, maps its cluster to other contents. A
 * cluster that both map is shared, so it was never written in place.
 */
static bool entry_differs(const struct qcow2 *q, const uint64_t *a, const uint64_t *b, uint64_t i)
{
    const uint64_t at = i << q->extended_l2;

    return ((a[at] ^ b[at]) & ~htobe64(ENTRY_COPIED)) != 0 ||
           (q->extended_l2 && a[at + 1] != b[at + 1]);
}

/* Marks the clusters, from guest offset `base` on, that two L2 tables map differently. */
static void mark_differing_entries(struct qcow2 *q, uint64_t base, const uint64_t *a,
                                   const uint64_t *b)
{
    const uint64_t count = qcow2_table_entries(q);
    uint64_t begin = 0;

    for (uint64_t i = 0; i <= count; i++) {
        if (i < count && entry_differs(q, a, b, i)) {
            continue;
        }
        if (i > begin) {
            block_bitmaps_mark(q->node, base + (begin << q->cluster_bits),
                               (i - begin) << q->cluster_bits);
        }
        begin = i + 1;
    }
}

/* Marks what two L1 tables map differently; a VM state, which lies behind both disks, is not. */
static int co_mark_differing(struct qcow2 *q, struct l1_view now, struct l1_view then)
{
    AUTO_FREE uint64_t *a = malloc(q->cluster_size), *b = malloc(q->cluster_size);
    const uint32_t entries = MAX(now.entries, then.entries);
    int r = a && b ? qcow2_co_commit(q) : -ENOMEM;

    for (uint32_t i = 0; i < entries && r >= 0; i++) {
        uint64_t offset_a = l2_offset(now, i), offset_b = l2_offset(then, i);

        if (offset_a == offset_b) {
            continue;
        }
        r = co_read_l2(q, offset_a, a);
        UNLESS_FAILED(r, co_read_l2(q, offset_b, b));
        if (r >= 0) {
            mark_differing_entries(q, i * qcow2_l2_span(q), a, b);
        }
    }
    return r;
}

/* --- sizes ------------------------------------------------------------------------------------ */

/* Before the disk grows: bitmaps cover all of it, and there is room to store them. */
static int co_lengthen(struct qcow2 *q, uint64_t size, struct error *err)
{
    uint64_t old_size = block_node_size(q->node);
    int r = block_bitmaps_resize(q->node, size, err);

    if (r < 0) {
        return r;
    }
    r = qcow2_co_reserve_bitmaps(q, size, err);
    if (r < 0) {
        qcow2_co_unreserve_longer_tables(q);
        (void)block_bitmaps_resize(q->node, old_size, NULL);
    }
    return r;
}

/*
 * As in a resize. Bitmaps that are not durable are marked in use, since a table of another length
 * fits one of the sizes only. What is stored of durable ones is right until the switch, as it is.
 */
static int co_prepare_for_size(struct qcow2 *q, uint64_t size, struct error *err)
{
    uint64_t old_size = block_node_size(q->node);
    int r = qcow2_co_check_bitmaps_fit(q, size, "apply a snapshot of another size to", err);

    if (q->activity.offset > 0) {
        UNLESS_FAILED(r, qcow2_co_store_bitmaps(q, err));
    }
    if (!qcow2_has_durable_bitmaps(q)) {
        UNLESS_FAILED(r, qcow2_co_mark_all_bitmaps(q, err));
    }
    if (size > old_size) {
        UNLESS_FAILED(r, co_lengthen(q, size, err));
    }
    if (r >= 0) {
        q->header.greatest_size = MAX(q->header.greatest_size, MAX(size, old_size));
    }
    return r;
}

/*
 * The bits that were set are stable before the disk changes: the activity log has no region for
 * what is about to change.
 */
static int co_store_before_switch(struct qcow2 *q, struct error *err)
{
    struct block_bitmap *b;
    int r;

    for (b = block_bitmap_next(q->node, NULL); b; b = block_bitmap_next(q->node, b)) {
        b->unstored |= b->enabled && b->persistent && !b->inconsistent;
    }
    r = qcow2_co_store_bitmaps(q, err);
    if (r < 0) {
        return r;
    }
    r = qcow2_co_mark_unusable_bitmaps(q);
    return r < 0 ? qcow2_snapshot_failed(q, "mark the bitmaps", r, err) : 0;
}

int qcow2_co_bitmaps_before_apply(struct qcow2 *q, struct l1_view now, struct l1_view then,
                                  uint64_t size, struct error *err)
{
    bool resizes = size != block_node_size(q->node);
    int r = 0;

    if (!has_any_bitmap(q)) {
        /* Bitmaps that were removed may have left the activity log, with regions of this size. */
        return resizes && q->activity.offset > 0 ? qcow2_co_store_bitmaps(q, err) : 0;
    }
    if (resizes) {
        r = co_prepare_for_size(q, size, err);
        if (r < 0) {
            return r;
        }
    }
    r = co_mark_differing(q, now, then);
    if (r < 0) {
        return qcow2_snapshot_failed(q, "record in the bitmaps what a snapshot changes", r, err);
    }
    return resizes ? 0 : co_store_before_switch(q, err);
}

/* Bits of what a disk of `old_size` bytes does not have are gone, if it was larger once. */
static void mark_from(struct qcow2 *q, uint64_t old_size, uint64_t size)
{
    struct block_bitmap *b;

    for (b = block_bitmap_next(q->node, NULL); b && size > old_size;
         b = block_bitmap_next(q->node, b)) {
        if (b->bits) {
            dirty_bitmap_set(b->bits, old_size, size - old_size);
        }
    }
}

int qcow2_co_bitmaps_switch_size(struct qcow2 *q, uint64_t old_size, struct error *err)
{
    const uint64_t size = block_node_size(q->node);
    int r;

    if (size == old_size || !has_any_bitmap(q)) {
        return qcow2_co_write_header(q, err);
    }
    mark_from(q, old_size, size);
    r = block_bitmaps_resize(q->node, size, err);
    if (r < 0) {
        return r;
    }
    r = qcow2_co_switch_with_bitmaps(q, err);
    if (r < 0 && size < old_size && block_bitmaps_resize(q->node, old_size, NULL) == 0) {
        mark_from(q, size, old_size);
    }
    return r;
}

static int co_after_apply(struct qcow2 *q, uint64_t old_size, int result, struct error *err)
{
    const uint64_t size = block_node_size(q->node);
    int r;

    if (size == old_size) {
        qcow2_co_unreserve_longer_tables(q); /* in case the disk did not grow after all */
    }
    r = block_bitmaps_resize(q->node, size, result < 0 ? NULL : err);
    if (result >= 0 && r >= 0 && size != old_size) {
        r = qcow2_co_store_bitmaps(q, err);
    }
    return error_first(result, r);
}

int qcow2_co_bitmaps_after_apply(struct qcow2 *q, uint64_t old_size, int result, struct error *err)
{
    int r = has_any_bitmap(q) ? co_after_apply(q, old_size, result, err) : result;

    /* Also if there are no bitmaps yet, or after an error: its regions are those of the size. */
    if (q->activity.log && block_node_size(q->node) != old_size) {
        qcow2_activity_close(q);
        r = error_first(r, qcow2_co_activity_open(q, r < 0 ? NULL : err));
    }
    return r;
}
