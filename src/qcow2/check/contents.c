/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Checking: the references that the header, the tables of the active disk, snapshots and bitmaps
 * make.
 */
#include <errno.h>
#include <stdlib.h>

#include "base/cleanup.h"
#include "qcow2/bitmap/bitmap.h"
#include "qcow2/check/parts.h"

/* --- bitmaps ---------------------------------------------------------------------------------- */

/* Whether an entry of the table of a dirty bitmap breaks the specification. */
static bool is_bad_table_entry(const struct qcow2 *q, uint64_t entry)
{
    uint64_t offset = entry & ENTRY_OFFSET_MASK;

    return (entry & ~(ENTRY_OFFSET_MASK | BITMAP_TABLE_ALL_ONES)) ||
           (offset != 0 && (entry & BITMAP_TABLE_ALL_ONES)) || !is_aligned(offset, q->cluster_size);
}

static int count_bitmap_entries(struct check *c, const uint64_t *table, uint64_t count, void *arg)
{
    const struct stored_bitmap *b = arg;

    for (uint64_t i = 0; i < count; i++) {
        if (b->type == BITMAP_TYPE_DIRTY && is_bad_table_entry(c->q, table[i])) {
            qcow2_check_report_corruption(c, "ERROR: bitmap '%s' has an invalid table entry: %llx",
                                          b->name, (unsigned long long)table[i]);
        }
        if (table[i] & ENTRY_OFFSET_MASK) {
            qcow2_check_add_reference(c, table[i] & ENTRY_OFFSET_MASK, c->q->cluster_size);
        }
    }
    return c->out_of_memory ? -ENOMEM : 0;
}

/*
 * Count the table and the bits of a bitmap. Tables are visited by offset; *end is the end of those
 * before.
 */
static int co_count_bitmap(struct check *c, struct stored_bitmap *b, uint64_t *end)
{
    uint64_t bytes = (uint64_t)b->table_entries * 8;

    if (bytes > BITMAP_TABLE_BYTES_MAX || !is_aligned(b->table_offset, c->q->cluster_size) ||
        !range_fits(b->table_offset, bytes, c->file_size)) {
        qcow2_check_report_corruption(c, "ERROR: the table of bitmap '%s' can't be read", b->name);
        return 0;
    }
    if (b->table_offset < *end && !qcow2_check_take_overlap(c, bytes, "bitmap tables", NULL)) {
        return 0;
    }
    *end = MAX(*end, b->table_offset + bytes);
    if (b->type == BITMAP_TYPE_DIRTY && (b->granularity_bits < 9 || b->granularity_bits > 31)) {
        qcow2_check_report_corruption(c, "ERROR: bitmap '%s' has a granularity of 2^%u bytes",
                                      b->name, b->granularity_bits);
    }
    qcow2_check_add_reference(c, b->table_offset, bytes);
    return qcow2_co_check_read_table(c, b->table_offset, b->table_entries, count_bitmap_entries, b);
}

static int by_table_offset(const void *a, const void *b)
{
    const struct stored_bitmap *x = *(const struct stored_bitmap *const *)a;
    const struct stored_bitmap *y = *(const struct stored_bitmap *const *)b;

    return (x->table_offset > y->table_offset) - (x->table_offset < y->table_offset);
}

static int co_count_bitmaps(struct check *c)
{
    struct qcow2 *q = c->q;
    AUTO_FREE struct stored_bitmap **all = NULL;
    struct stored_bitmap *b;
    size_t count = 0, n = 0;
    uint64_t end = 0;
    int r = 0;

    qcow2_check_add_reference(c, q->header.luks_offset, q->header.luks_size);
    qcow2_check_add_reference(c, q->bitmaps.directory_offset, q->bitmaps.directory_size);
    qcow2_check_add_reference(c, q->activity.offset, q->activity.size);
    qcow2_check_add_reference(c, q->joint.offset, q->joint.size);
    for (size_t i = 0; i < q->joint.other_clusters.count; i++) {
        qcow2_check_add_reference(c, q->joint.other_clusters.runs[i].offset,
                                  q->joint.other_clusters.runs[i].length);
    }
    LIST_FOREACH (b, &q->bitmaps.stored, link) {
        count += b->table_entries > 0;
    }
    if (count == 0) {
        return 0;
    }
    all = calloc(count, sizeof(struct stored_bitmap *));
    if (!all) {
        return -ENOMEM;
    }
    LIST_FOREACH (b, &q->bitmaps.stored, link) {
        if (b->table_entries > 0) {
            all[n++] = b;
        }
    }
    qsort(all, count, sizeof(struct stored_bitmap *), by_table_offset);
    for (size_t i = 0; i < count && r == 0; i++) {
        r = co_count_bitmap(c, all[i], &end);
    }
    return r;
}

/* --- all of it -------------------------------------------------------------------------------- */

int qcow2_co_check_contents(struct check *c)
{
    int r;

    /* The header. */
    qcow2_check_add_reference(c, 0, c->q->cluster_size);
    r = qcow2_co_check_active_tables(c);
    UNLESS_FAILED(r, qcow2_co_check_snapshots(c));
    UNLESS_FAILED(r, co_count_bitmaps(c));
    return c->out_of_memory ? -ENOMEM : r;
}
