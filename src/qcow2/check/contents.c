/* SPDX-License-Identifier: Apache-2.0 */
/* Checking: the references that the header, the active tables and the bitmaps make. */
#include <errno.h>
#include <stdlib.h>

#include "base/byteorder.h"
#include "base/cleanup.h"
#include "qcow2/bitmap/bitmap.h"
#include "qcow2/check/check.h"
#include "qcow2/table/alloc.h"
#include "qcow2/table/map.h"

/* --- data ------------------------------------------------------------------------------------------ */

/* Figures of the report are of the active disk alone. `n` clusters in one piece. */
static void note_data(struct check *c, uint64_t host, uint64_t n)
{
    if (c->active) {
        c->result->allocated_clusters += n;
        c->result->fragmented_clusters += c->last_host != 0 && host != c->last_host;
    }
    c->last_host = host + (n << c->q->cluster_bits);
}

/* A place that is not aligned takes part in two clusters. What is zero anyway can do without it. */
static void count_data_cluster(struct check *c, uint64_t *place, uint64_t entry, uint64_t bitmap)
{
    struct qcow2 *q = c->q;
    uint64_t host = entry & ENTRY_OFFSET_MASK;

    c->flags_doubtful |= !(entry & ENTRY_COPIED);
    if (!is_aligned(host, q->cluster_size)) {
        bool droppable = q->extended_l2 ? !(bitmap & SUB_ALL_ALLOCATED) : (entry & L2_ZERO) != 0;

        if (droppable && c->table_writable && (c->fix & BLOCK_CHECK_FIX_ERRORS)) {
            qcow2_complain(c,
                           "Repairing offset=%llx: Preallocated cluster is not properly aligned; "
                           "L2 entry corrupted.",
                           (unsigned long long)host);
            *place = htobe64(q->extended_l2 ? 0 : L2_ZERO);
            c->table_changed = true;
            c->result->corruptions_fixed++;
            return;
        }
        qcow2_complain_corrupt(
            c, "ERROR offset=%llx: %s cluster is not properly aligned; L2 entry corrupted.",
            (unsigned long long)host, droppable ? "Preallocated" : "Data");
    }
    note_data(c, host, 1);
    if (!q->has_data_file) {
        qcow2_check_count(c, host, q->cluster_size);
    }
}

/* The `index`th of its table. */
static void count_compressed_cluster(struct check *c, uint64_t index, uint64_t entry,
                                     uint64_t bitmap)
{
    uint64_t host, size;

    qcow2_compressed_range(c->q, entry, &host, &size);
    if (entry & ENTRY_COPIED) {
        qcow2_complain_corrupt(
            c, "ERROR: coffset=%#llx: copied flag must never be set for compressed clusters",
            (unsigned long long)host);
    }
    if (c->q->has_data_file || bitmap != 0) {
        qcow2_complain_corrupt(c, "ERROR compressed cluster %llu with %s, entry=%#llx",
                               (unsigned long long)index,
                               bitmap != 0 ? "non-zero subcluster allocation bitmap" : "data file",
                               (unsigned long long)(entry & ~ENTRY_COPIED));
        return;
    }
    if (c->active) {
        c->result->allocated_clusters++;
        c->result->compressed_clusters++;
        c->result->fragmented_clusters++;
    }
    qcow2_check_count(c, host, size);
}

/*
 * The bitmap of an extended entry: no subcluster is allocated and zero, or allocated without a cluster. In an external data file
 * there is a cluster at 0, which the flag tells from none.
 */
static void check_subclusters(struct check *c, uint64_t entry, uint64_t bitmap)
{
    uint64_t host = entry & ENTRY_OFFSET_MASK;
    bool has_cluster = host != 0 || (c->q->has_data_file && (entry & ENTRY_COPIED));

    if ((bitmap & SUB_ALL_ALLOCATED) & (bitmap >> SUBCLUSTERS)) {
        qcow2_complain_corrupt(
            c, "ERROR offset=%llx: Allocated cluster has corrupted subcluster allocation bitmap",
            (unsigned long long)host);
    } else if (!has_cluster && (bitmap & SUB_ALL_ALLOCATED)) {
        qcow2_complain_corrupt(c,
                               "ERROR: Unallocated cluster has non-zero subcluster allocation map");
    }
}

static void count_entry(struct check *c, uint64_t *table, uint64_t index)
{
    uint64_t *place = &table[index << c->q->extended_l2], entry = be64toh(*place);
    uint64_t bitmap = c->q->extended_l2 ? be64toh(place[1]) : 0;

    if (entry & L2_COMPRESSED) {
        count_compressed_cluster(c, index, entry, bitmap);
        return;
    }
    if (entry & L2_RESERVED_MASK) {
        qcow2_complain_corrupt(c, "ERROR found l2 entry with reserved bits set: %llx",
                               (unsigned long long)entry);
    }
    if (c->q->extended_l2) {
        check_subclusters(c, entry, bitmap);
    }
    /* In an external data file the first cluster lies at 0. */
    if ((entry & ENTRY_OFFSET_MASK) || (c->q->has_data_file && (entry & ENTRY_COPIED))) {
        count_data_cluster(c, place, entry, bitmap);
    }
}

/* --- tables ---------------------------------------------------------------------------------------- */

/* How many entries from the first on are as most are: data clusters, copied, in one piece of the file. */
static uint64_t plain_run(const struct qcow2 *q, const uint64_t *table, uint64_t n)
{
    uint64_t entry = be64toh(*table), i = 1;

    if (!(entry & ENTRY_COPIED) || (entry & ~ENTRY_COPIED) == 0 ||
        ((entry & ~ENTRY_COPIED) & (~ENTRY_OFFSET_MASK | (q->cluster_size - 1)))) {
        return 0;
    }
    while (i < n && be64toh(table[i]) == entry + (i << q->cluster_bits)) {
        i++;
    }
    /* Such a run does not reach beyond the bits of an offset. */
    return (entry + ((i - 1) << q->cluster_bits)) & ~(ENTRY_COPIED | ENTRY_OFFSET_MASK) ? 0 : i;
}

/* Each cluster that the file does not reach to is told by itself, and does not hide the others. */
static void count_run(struct check *c, uint64_t host, uint64_t n)
{
    unsigned bits = c->q->cluster_bits;
    uint64_t end = div_round_up(c->file_size, c->q->cluster_size), first = host >> bits;
    uint64_t inside = first < end ? MIN(n, end - first) : 0;

    qcow2_check_count(c, host, inside << bits);
    for (uint64_t i = inside; i < n; i++) {
        qcow2_check_count(c, host + (i << bits), c->q->cluster_size);
    }
}

static void count_standard_entries(struct check *c, uint64_t *table, uint64_t entries)
{
    struct qcow2 *q = c->q;

    for (uint64_t i = 0; i < entries && !c->out_of_memory;) {
        uint64_t run;

        if (table[i] == 0) {
            i++;
            continue;
        }
        run = plain_run(q, &table[i], entries - i);
        if (run == 0) {
            count_entry(c, table, i++);
            continue;
        }
        note_data(c, be64toh(table[i]) & ENTRY_OFFSET_MASK, run);
        if (!q->has_data_file) {
            count_run(c, be64toh(table[i]) & ENTRY_OFFSET_MASK, run);
        }
        i += run;
    }
}

static void count_extended_entries(struct check *c, uint64_t *table, uint64_t entries)
{
    for (uint64_t i = 0; i < entries && !c->out_of_memory; i++) {
        if (table[2 * i] != 0 || table[2 * i + 1] != 0) {
            count_entry(c, table, i);
        }
    }
}

static int co_write_table(struct check *c, uint64_t offset, const uint64_t *table)
{
    struct qcow2 *q = c->q;
    int r = block_co_pwrite(q->node->file, offset, table, q->cluster_size, 0);

    for (uint64_t at = 0; at < q->cluster_size; at += q->caches.l2.entry_size) {
        cache_forget(&q->caches.l2, offset + at);
    }
    return r;
}

/* What a table refers to. */
static int co_walk_table(struct check *c, uint64_t offset, uint64_t *table)
{
    struct qcow2 *q = c->q;
    int r;

    if (qcow2_co_check_is_hole(c, offset, q->cluster_size)) {
        return 0;
    }
    r = qcow2_co_check_read(c, offset, table, q->cluster_size);
    if (r < 0) {
        return r == -ENOMEM ? r : 0;
    }
    c->last_host = 0;
    c->table_changed = false;
    c->table_writable = qcow2_check_may_repair_table(c, offset);
    if (q->extended_l2) {
        count_extended_entries(c, table, qcow2_table_entries(q));
    } else {
        count_standard_entries(c, table, qcow2_table_entries(q));
    }
    if (c->table_changed) {
        r = co_write_table(c, offset, table);
    }
    return c->out_of_memory ? -ENOMEM : r;
}

/* Whether an aligned table is to be walked now; otherwise it is counted for qcow2_co_count_snapshot_tables(). */
static bool is_to_be_walked(struct check *c, uint64_t index)
{
    uint64_t done;

    if (c->active && counts_get(c->walked, index) == 0) {
        c->out_of_memory |= counts_add(c->walked, index, 1, &done) == -ENOMEM;
        return true;
    }
    if (c->active && c->again_left >= c->q->cluster_size) {
        c->again_left -= c->q->cluster_size; /* so the figures of the disk are QEMU's here too */
        return true;
    }
    c->out_of_memory |= counts_add_times(c->tables, index, 1, c->times, &done) == -ENOMEM;
    return false;
}

/* A table at a place that is not aligned is looked at all the same: what is there tells how much is lost. */
static int co_count_l2(struct check *c, uint64_t entry, uint64_t *table,
                       const struct qcow2_snapshot *s)
{
    struct qcow2 *q = c->q;
    uint64_t offset = entry & ENTRY_OFFSET_MASK;

    if (entry & L1_RESERVED_MASK) {
        qcow2_complain_corrupt(c, "ERROR found L1 entry with reserved bits set: %llx",
                               (unsigned long long)entry);
    }
    c->flags_doubtful |= !(entry & ENTRY_COPIED);
    qcow2_check_count(c, offset, q->cluster_size);
    if (!is_aligned(offset, q->cluster_size)) {
        qcow2_complain_corrupt(
            c, "ERROR l2_offset=%llx: Table is not cluster aligned; L1 entry corrupted",
            (unsigned long long)offset);
        if (offset >= c->file_size ||
            !qcow2_check_take(c, &c->again_left, q->cluster_size, "L2 tables", s)) {
            return 0;
        }
    } else if (offset >= c->file_size || !is_to_be_walked(c, qcow2_cluster_index(q, offset))) {
        return c->out_of_memory ? -ENOMEM : 0;
    }
    return co_walk_table(c, offset, table);
}

static int co_count_l1(struct check *c, const uint64_t *l1, uint64_t entries,
                       const struct qcow2_snapshot *s)
{
    AUTO_FREE uint64_t *table = malloc(c->q->cluster_size);
    int r = table ? 0 : -ENOMEM;

    for (uint64_t i = 0; i < entries && r == 0; i++) {
        if (l1[i] != 0) {
            r = co_count_l2(c, l1[i], table, s);
        }
    }
    return r;
}

int qcow2_co_count_snapshot_l1(struct check *c, const uint64_t *entries, uint64_t count, void *arg)
{
    return co_count_l1(c, entries, count, arg);
}

/* The table at `offset`, to which `times` entries lead: what is wrong in it counts as often. */
static int co_count_table_times(struct check *c, uint64_t offset, uint32_t times, uint64_t *table)
{
    uint64_t corruptions = c->result->corruptions, overflows = c->overflows, found;
    int r;

    c->times = times;
    r = co_walk_table(c, offset, table);
    c->times = 1;
    found = c->result->corruptions - corruptions - (c->overflows - overflows);
    c->result->corruptions += found * (times - 1);
    return r;
}

int qcow2_co_count_snapshot_tables(struct check *c)
{
    AUTO_FREE uint64_t *table = malloc(c->q->cluster_size);
    uint64_t end = div_round_up(c->file_size, c->q->cluster_size), n;
    uint32_t times;
    int r = table ? 0 : -ENOMEM;

    for (uint64_t i = 0; i < end && r == 0; i += n) {
        n = counts_run(c->tables, i, end - i, &times);
        for (uint64_t k = 0; times > 0 && k < n && r == 0; k++) {
            r = co_count_table_times(c, (i + k) << c->q->cluster_bits, times, table);
        }
    }
    return r;
}

static int co_count_active(struct check *c)
{
    struct qcow2 *q = c->q;
    AUTO_FREE uint64_t *l1 = malloc(MAX((size_t)q->l1.size * 8, 8u));
    int r;

    if (!l1) {
        return -ENOMEM;
    }
    for (uint32_t i = 0; i < q->l1.size; i++) {
        l1[i] = atomic_load_explicit(&q->l1.entries[i], memory_order_relaxed);
    }
    c->active = true;
    qcow2_check_count(c, q->l1.offset, (uint64_t)q->l1.size * 8);
    r = co_count_l1(c, l1, q->l1.size, NULL);
    c->active = false;
    return r;
}

/* --- bitmaps --------------------------------------------------------------------------------------- */

/* What a table entry of a dirty bitmap may not say. */
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
            qcow2_complain_corrupt(c, "ERROR: bitmap '%s' has an invalid table entry: %llx",
                                   b->name, (unsigned long long)table[i]);
        }
        if (table[i] & ENTRY_OFFSET_MASK) {
            qcow2_check_count(c, table[i] & ENTRY_OFFSET_MASK, c->q->cluster_size);
        }
    }
    return c->out_of_memory ? -ENOMEM : 0;
}

/* `*end`: of the tables before. */
static int co_count_bitmap(struct check *c, struct stored_bitmap *b, uint64_t *end)
{
    uint64_t bytes = (uint64_t)b->table_entries * 8;

    if (bytes > BITMAP_TABLE_BYTES_MAX || !is_aligned(b->table_offset, c->q->cluster_size) ||
        !range_fits(b->table_offset, bytes, c->file_size)) {
        qcow2_complain_corrupt(c, "ERROR: the table of bitmap '%s' can't be read", b->name);
        return 0;
    }
    if (b->table_offset < *end &&
        !qcow2_check_take(c, &c->again_left, bytes, "bitmap tables", NULL)) {
        return 0;
    }
    *end = MAX(*end, b->table_offset + bytes);
    if (b->type == BITMAP_TYPE_DIRTY && (b->granularity_bits < 9 || b->granularity_bits > 31)) {
        qcow2_complain_corrupt(c, "ERROR: bitmap '%s' has a granularity of 2^%u bytes", b->name,
                               b->granularity_bits);
    }
    qcow2_check_count(c, b->table_offset, bytes);
    return qcow2_co_check_read_table(c, b->table_offset, b->table_entries, count_bitmap_entries, b);
}

static int compare_tables(const void *a, const void *b)
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

    qcow2_check_count(c, q->bitmaps.directory_offset, q->bitmaps.directory_size);
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
    qsort(all, count, sizeof(struct stored_bitmap *), compare_tables);
    for (size_t i = 0; i < count && r == 0; i++) {
        r = co_count_bitmap(c, all[i], &end);
    }
    return r;
}

/* --- all of it ------------------------------------------------------------------------------------- */

int qcow2_co_check_contents(struct check *c)
{
    int r;

    qcow2_check_count(c, 0, c->q->cluster_size);
    r = co_count_active(c);
    r = r < 0 ? r : qcow2_co_check_snapshots(c);
    r = r < 0 ? r : co_count_bitmaps(c);
    return c->out_of_memory ? -ENOMEM : r;
}
