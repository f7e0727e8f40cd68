/* SPDX-License-Identifier: Apache-2.0 */
/* Checking: the references that L1 and L2 tables make. */
#include <errno.h>
#include <stdlib.h>

#include "base/byteorder.h"
#include "base/cleanup.h"
#include "qcow2/check/parts.h"
#include "qcow2/table/alloc.h"
#include "qcow2/table/map.h"

/* --- data ------------------------------------------------------------------------------------- */

/* Note `n` contiguous data clusters. The figures of the result cover the active disk alone. */
static void note_data(struct check *c, uint64_t host, uint64_t n)
{
    if (c->active) {
        c->result->allocated_clusters += n;
        c->result->fragmented_clusters += c->next_in_order != 0 && host != c->next_in_order;
    }
    c->next_in_order = host + (n << c->q->cluster_bits);
}

/*
 * Count the cluster of the entry at `*place`, or repair the entry. A misaligned offset touches two
 * clusters, so both are counted. A cluster of zeroes does not need its host cluster.
 */
static void count_data_cluster(struct check *c, uint64_t *place, uint64_t entry, uint64_t bitmap)
{
    struct qcow2 *q = c->q;
    uint64_t host = entry & ENTRY_OFFSET_MASK;

    c->flags_doubtful |= !(entry & ENTRY_COPIED);
    if (!is_aligned(host, q->cluster_size)) {
        bool droppable = q->extended_l2 ? !(bitmap & SUB_ALL_ALLOCATED) : (entry & L2_ZERO) != 0;

        if (droppable && c->table_writable && (c->fix & BLOCK_CHECK_FIX_ERRORS)) {
            qcow2_check_report(
                c,
                "Repairing offset=%llx: Preallocated cluster is not properly aligned; "
                "L2 entry corrupted.",
                (unsigned long long)host);
            *place = htobe64(q->extended_l2 ? 0 : L2_ZERO);
            c->table_changed = true;
            c->result->corruptions_fixed++;
            return;
        }
        qcow2_check_report_corruption(
            c, "ERROR offset=%llx: %s cluster is not properly aligned; L2 entry corrupted.",
            (unsigned long long)host, droppable ? "Preallocated" : "Data");
    }
    note_data(c, host, 1);
    if (!q->has_data_file) {
        qcow2_check_add_reference(c, host, q->cluster_size);
    }
}

/* Count the clusters that hold the compressed data of entry `index` of its table. */
static void count_compressed_cluster(struct check *c, uint64_t index, uint64_t entry,
                                     uint64_t bitmap)
{
    uint64_t host, size;

    qcow2_compressed_range(c->q, entry, &host, &size);
    if (entry & ENTRY_COPIED) {
        qcow2_check_report_corruption(
            c, "ERROR: coffset=%#llx: copied flag must never be set for compressed clusters",
            (unsigned long long)host);
    }
    if (c->q->has_data_file || bitmap != 0) {
        qcow2_check_report_corruption(
            c, "ERROR compressed cluster %llu with %s, entry=%#llx", (unsigned long long)index,
            bitmap != 0 ? "non-zero subcluster allocation bitmap" : "data file",
            (unsigned long long)(entry & ~ENTRY_COPIED));
        return;
    }
    if (c->active) {
        c->result->allocated_clusters++;
        c->result->compressed_clusters++;
        c->result->fragmented_clusters++;
    }
    qcow2_check_add_reference(c, host, size);
}

/*
 * In the bitmap of an extended entry no subcluster is both allocated and zero, and none is
 * allocated if there is no host cluster. An external data file has a cluster at offset 0, which
 * COPIED tells from none.
 */
static void check_subclusters(struct check *c, uint64_t entry, uint64_t bitmap)
{
    uint64_t host = entry & ENTRY_OFFSET_MASK;
    bool has_cluster = host != 0 || (c->q->has_data_file && (entry & ENTRY_COPIED));

    if ((bitmap & SUB_ALL_ALLOCATED) & (bitmap >> SUBCLUSTERS)) {
        qcow2_check_report_corruption(
            c, "ERROR offset=%llx: Allocated cluster has corrupted subcluster allocation bitmap",
            (unsigned long long)host);
    } else if (!has_cluster && (bitmap & SUB_ALL_ALLOCATED)) {
        qcow2_check_report_corruption(
            c, "ERROR: Unallocated cluster has non-zero subcluster allocation map");
    }
}

/* Count the references of one entry of an L2 table. */
static void count_l2_entry(struct check *c, uint64_t *table, uint64_t index)
{
    uint64_t *place = &table[index << c->q->extended_l2], entry = be64toh(*place);
    uint64_t bitmap = c->q->extended_l2 ? be64toh(place[1]) : 0;

    if (entry & L2_COMPRESSED) {
        count_compressed_cluster(c, index, entry, bitmap);
        return;
    }
    if (entry & L2_RESERVED_MASK) {
        qcow2_check_report_corruption(c, "ERROR found l2 entry with reserved bits set: %llx",
                                      (unsigned long long)entry);
    }
    if (c->q->extended_l2) {
        check_subclusters(c, entry, bitmap);
    }
    /* The first cluster of an external data file has offset 0. */
    if ((entry & ENTRY_OFFSET_MASK) || (c->q->has_data_file && (entry & ENTRY_COPIED))) {
        count_data_cluster(c, place, entry, bitmap);
    }
}

/* --- tables ----------------------------------------------------------------------------------- */

/*
 * How many entries from the first one are of the most frequent kind: contiguous data clusters with
 * COPIED.
 */
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
    /* The last entry must be an offset too: the sum may carry into the bits above. */
    return (entry + ((i - 1) << q->cluster_bits)) & ~(ENTRY_COPIED | ENTRY_OFFSET_MASK) ? 0 : i;
}

/* Count contiguous clusters. Those past the end of the file are reported one by one. */
static void count_run(struct check *c, uint64_t host, uint64_t n)
{
    unsigned bits = c->q->cluster_bits;
    uint64_t end = div_round_up(c->file_size, c->q->cluster_size), first = host >> bits;
    uint64_t inside = first < end ? MIN(n, end - first) : 0;

    qcow2_check_add_reference(c, host, inside << bits);
    for (uint64_t i = inside; i < n; i++) {
        qcow2_check_add_reference(c, host + (i << bits), c->q->cluster_size);
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
            count_l2_entry(c, table, i++);
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
            count_l2_entry(c, table, i);
        }
    }
}

/* Writes a repaired L2 table; slices of it in the cache are dropped. */
static int co_write_l2_table(struct check *c, uint64_t offset, const uint64_t *table)
{
    struct qcow2 *q = c->q;
    int r = block_co_pwrite(q->node->file, offset, table, q->cluster_size, 0);

    for (uint64_t at = 0; at < q->cluster_size; at += q->caches.l2.entry_size) {
        cache_forget(&q->caches.l2, offset + at);
    }
    return r;
}

/*
 * Count the references of an L2 table, and write it if it was repaired. `table` is a buffer for it.
 */
static int co_walk_l2_table(struct check *c, uint64_t offset, uint64_t *table)
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
    c->next_in_order = 0;
    c->table_changed = false;
    c->table_writable = qcow2_check_may_repair_table(c, offset);
    if (q->extended_l2) {
        count_extended_entries(c, table, qcow2_table_entries(q));
    } else {
        count_standard_entries(c, table, qcow2_table_entries(q));
    }
    if (c->table_changed) {
        r = co_write_l2_table(c, offset, table);
    }
    return c->out_of_memory ? -ENOMEM : r;
}

/*
 * Note a reference to the L2 table at cluster `index`. True: the caller has to walk the table now.
 * False: it is counted in c->snapshot_tables, for qcow2_co_check_snapshot_l2_tables().
 */
static bool note_l2_reference(struct check *c, uint64_t index)
{
    uint64_t done;

    if (c->active && reference_counts_get(c->active_tables, index) == 0) {
        c->out_of_memory |= reference_counts_add(c->active_tables, index, 1, &done) == -ENOMEM;
        return true;
    }
    if (c->active && c->overlap_bytes_left >= c->q->cluster_size) {
        /* A table with two references is walked twice, as by QEMU, so that the figures agree. */
        c->overlap_bytes_left -= c->q->cluster_size;
        return true;
    }
    c->out_of_memory |=
        reference_counts_add_times(c->snapshot_tables, index, 1, c->times, &done) == -ENOMEM;
    return false;
}

/*
 * Count the L2 table of an L1 entry, and what it refers to. A misaligned table is read as well: its
 * entries show what is lost. `s`: the snapshot; NULL: the active disk.
 */
static int co_count_l2(struct check *c, uint64_t entry, uint64_t *table,
                       const struct qcow2_snapshot *s)
{
    struct qcow2 *q = c->q;
    uint64_t offset = entry & ENTRY_OFFSET_MASK;

    if (entry & L1_RESERVED_MASK) {
        qcow2_check_report_corruption(c, "ERROR found L1 entry with reserved bits set: %llx",
                                      (unsigned long long)entry);
    }
    c->flags_doubtful |= !(entry & ENTRY_COPIED);
    qcow2_check_add_reference(c, offset, q->cluster_size);
    if (!is_aligned(offset, q->cluster_size)) {
        qcow2_check_report_corruption(
            c, "ERROR l2_offset=%llx: Table is not cluster aligned; L1 entry corrupted",
            (unsigned long long)offset);
        if (offset >= c->file_size ||
            !qcow2_check_take_overlap(c, q->cluster_size, "L2 tables", s)) {
            return 0;
        }
    } else if (offset >= c->file_size || !note_l2_reference(c, qcow2_cluster_index(q, offset))) {
        return c->out_of_memory ? -ENOMEM : 0;
    }
    return co_walk_l2_table(c, offset, table);
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

int qcow2_co_check_snapshot_l1(struct check *c, const uint64_t *entries, uint64_t count, void *arg)
{
    return co_count_l1(c, entries, count, arg);
}

/* Walk the L2 table at `offset`, which has `times` references. Each error in it counts as often. */
static int co_walk_shared_table(struct check *c, uint64_t offset, uint32_t times, uint64_t *table)
{
    uint64_t before = qcow2_check_unweighted_corruptions(c);
    int r;

    c->times = times;
    r = co_walk_l2_table(c, offset, table);
    c->times = 1;
    c->result->corruptions += (qcow2_check_unweighted_corruptions(c) - before) * (times - 1);
    return r;
}

int qcow2_co_check_snapshot_l2_tables(struct check *c)
{
    AUTO_FREE uint64_t *table = malloc(c->q->cluster_size);
    uint64_t end = div_round_up(c->file_size, c->q->cluster_size), n;
    uint32_t times;
    int r = table ? 0 : -ENOMEM;

    for (uint64_t i = 0; i < end && r == 0; i += n) {
        n = reference_counts_run(c->snapshot_tables, i, end - i, &times);
        for (uint64_t k = 0; times > 0 && k < n && r == 0; k++) {
            r = co_walk_shared_table(c, (i + k) << c->q->cluster_bits, times, table);
        }
    }
    return r;
}

int qcow2_co_check_active_tables(struct check *c)
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
    qcow2_check_add_reference(c, q->l1.offset, (uint64_t)q->l1.size * 8);
    r = co_count_l1(c, l1, q->l1.size, NULL);
    c->active = false;
    return r;
}
