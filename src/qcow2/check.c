/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Checking: count every reference that the metadata makes, compare with the refcounts.
 *
 *   refcount too high: a leak (space is lost)     too low: a corruption (data may be overwritten)
 *
 * The counts are kept per cluster of the file, in memory that is bounded by the size of the file.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/byteorder.h"
#include "base/cleanup.h"
#include "base/log.h"
#include "qcow2/bitmap.h"
#include "qcow2/check.h"
#include "qcow2/rebuild.h"
#include "qcow2/references.h"
#include "qcow2/snapshot.h"

/* Complaints that are printed; the rest is counted only. */
#define COMPLAINTS_MAX 1000

struct check {
    struct qcow2 *q;
    struct block_check_result *result;
    unsigned fix;
    uint32_t *counts;  /* references found, per cluster; saturates */
    uint64_t clusters; /* of the file */
    uint64_t used_end; /* index behind the last cluster that is referenced */
    unsigned complaints;
    uint64_t beyond_repair; /* clusters whose refcount has no block to be put right in */
    /*
     * What is left to be read: L1 and bitmap tables are together no longer than the file, and one L1 table leads to no more L2
     * tables than the file has clusters. Where tables lie upon each other, a small file could take hours otherwise.
     */
    uint64_t table_bytes_left, l2_tables_left;
    uint64_t last_host; /* for fragmentation: where the next data cluster would be in order */
};

static void complain(struct check *c, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

static void complain(struct check *c, const char *fmt, ...)
{
    char line[256];
    va_list ap;

    if (c->complaints++ < COMPLAINTS_MAX) {
        va_start(ap, fmt);
        vsnprintf(line, sizeof(line), fmt, ap);
        va_end(ap);
        fprintf(stderr, "%s\n", line);
    }
}

static void corruption(struct check *c)
{
    c->result->corruptions++;
}

/* --- counting ---------------------------------------------------------------------------------- */

/* A reference to the bytes [offset, offset + length). */
static void count(struct check *c, const char *what, uint64_t offset, uint64_t length)
{
    uint64_t first = qcow2_cluster_index(c->q, offset), last;

    if (length == 0) {
        return;
    }
    if (offset + length < offset ||
        (last = qcow2_cluster_index(c->q, offset + length - 1)) >= c->clusters) {
        complain(c, "ERROR: %s at offset %#llx lies beyond the end of the file", what,
                 (unsigned long long)offset);
        corruption(c);
        return;
    }
    for (uint64_t i = first; i <= last; i++) {
        if (c->counts[i] < UINT32_MAX) {
            c->counts[i]++;
        }
    }
    c->used_end = MAX(c->used_end, last + 1);
}

static int co_read(struct check *c, uint64_t offset, void *buf, size_t size)
{
    int r = block_co_pread(c->q->node->file, offset, buf, size);

    if (r < 0) {
        complain(c, "ERROR: could not read %zu bytes at offset %#llx: %s", size,
                 (unsigned long long)offset, strerror(-r));
        c->result->check_errors++;
    }
    return r;
}

/* --- L2 tables ----------------------------------------------------------------------------------- */

static void count_data_cluster(struct check *c, uint64_t guest, uint64_t host)
{
    struct qcow2 *q = c->q;

    if (!is_aligned(host, q->cluster_size)) {
        complain(c, "ERROR offset=%llx: Cluster is not properly aligned; L2 entry corrupted.",
                 (unsigned long long)host);
        corruption(c);
        return;
    }
    c->result->allocated_clusters++;
    if (c->last_host != 0 && host != c->last_host) {
        c->result->fragmented_clusters++;
    }
    c->last_host = host + q->cluster_size;
    count(c, "a data cluster", host, q->cluster_size);
}

static void count_entry(struct check *c, uint64_t guest, uint64_t entry)
{
    uint64_t host = entry & ENTRY_OFFSET_MASK, size;

    if (entry & L2_COMPRESSED) {
        if (entry & ENTRY_COPIED) {
            complain(c,
                     "ERROR: coffset=%#llx: copied flag must never be set for compressed "
                     "clusters",
                     (unsigned long long)entry);
            corruption(c);
        }
        qcow2_compressed_range(c->q, entry, &host, &size);
        c->result->allocated_clusters++;
        c->result->compressed_clusters++;
        /* The last sector may reach over the end of the file. */
        count(c, "a compressed cluster", host,
              MIN(size, (c->clusters << c->q->cluster_bits) -
                            MIN(host, c->clusters << c->q->cluster_bits)));
        return;
    }
    if ((entry & L2_RESERVED_MASK) || (c->q->extended_l2 && (entry & L2_ZERO))) {
        complain(c, "ERROR found l2 entry with reserved bits set: %llx", (unsigned long long)entry);
        corruption(c);
    }
    if (host != 0 && !c->q->has_data_file) {
        count_data_cluster(c, guest, host);
    }
}

/* False if more tables are read than there can be. */
static bool take_table(struct check *c, uint64_t *left, uint64_t amount, const char *what)
{
    if (*left < amount) {
        if (*left > 0) {
            complain(c, "ERROR: %s lie upon each other", what);
            corruption(c);
        }
        *left = 0;
        return false;
    }
    *left -= amount;
    return true;
}

static int co_count_l2(struct check *c, uint32_t l1_index, uint64_t entry, uint64_t *table)
{
    struct qcow2 *q = c->q;
    uint64_t offset = entry & ENTRY_OFFSET_MASK;
    int r;

    if (entry & L1_RESERVED_MASK) {
        complain(c, "ERROR found L1 entry with reserved bits set: %llx", (unsigned long long)entry);
        corruption(c);
    }
    if (offset == 0) {
        return 0;
    }
    if (!is_aligned(offset, q->cluster_size)) {
        complain(c, "ERROR l2_offset=%llx: Table is not cluster aligned; L1 entry corrupted",
                 (unsigned long long)offset);
        corruption(c);
        return 0;
    }
    if (!take_table(c, &c->l2_tables_left, 1, "L2 tables")) {
        return 0;
    }
    count(c, "an L2 table", offset, q->cluster_size);
    r = co_read(c, offset, table, q->cluster_size);
    for (uint64_t i = 0; i < qcow2_table_entries(q) && r == 0; i++) {
        if (table[i << q->extended_l2] != 0) {
            count_entry(
                c, ((uint64_t)l1_index << (q->cluster_bits + q->l2_bits)) + (i << q->cluster_bits),
                be64toh(table[i << q->extended_l2]));
        }
    }
    return r == -ENOMEM ? r : 0;
}

static int co_count_guest(struct check *c)
{
    AUTO_FREE uint64_t *table = malloc(c->q->cluster_size);
    int r = 0;

    if (!table) {
        return -ENOMEM;
    }
    count(c, "the L1 table", c->q->l1_offset, (uint64_t)c->q->l1_size * 8);
    c->l2_tables_left = c->clusters + 1;
    for (uint32_t i = 0; i < c->q->l1_size && r == 0; i++) {
        r = co_count_l2(c, i, atomic_load(&c->q->l1[i]), table);
    }
    return r;
}

/* What the snapshots refer to; the figures of the report are of the active disk alone. */
static int co_count_snapshots(struct check *c)
{
    AUTO_FREE uint64_t *table = malloc(c->q->cluster_size);
    struct block_check_result active = *c->result;
    const struct qcow2_snapshot *s;
    int r = 0;

    if (!table) {
        return -ENOMEM;
    }
    count(c, "the snapshot table", c->q->snapshots_offset, c->q->snapshots_size);
    LIST_FOREACH (s, &c->q->snapshots, link) {
        AUTO_FREE uint64_t *l1 = NULL;

        if (!take_table(c, &c->table_bytes_left, MAX((uint64_t)s->l1_size * 8, 8), "L1 tables")) {
            break;
        }
        r = qcow2_co_read_l1(c->q, s->l1_offset, s->l1_size, &l1);
        if (r == -ENOMEM) {
            return r;
        }
        if (r < 0) {
            complain(c, "ERROR: the L1 table of snapshot %s can't be read", s->id);
            corruption(c);
            continue;
        }
        count(c, "the L1 table of a snapshot", s->l1_offset, MAX((uint64_t)s->l1_size * 8, 8));
        c->l2_tables_left = c->clusters + 1;
        for (uint32_t i = 0; i < s->l1_size; i++) {
            r = co_count_l2(c, i, l1[i], table);
            if (r < 0) {
                return r;
            }
        }
    }
    c->result->allocated_clusters = active.allocated_clusters;
    c->result->compressed_clusters = active.compressed_clusters;
    c->result->fragmented_clusters = active.fragmented_clusters;
    return 0;
}

/* --- refcount structures and bitmaps --------------------------------------------------------------- */

static void count_refcount_structures(struct check *c)
{
    struct qcow2 *q = c->q;

    count(c, "the refcount table", q->reftable_offset, (uint64_t)q->reftable_entries * 8);
    for (uint32_t i = 0; i < q->reftable_entries; i++) {
        uint64_t block = q->reftable[i] & REFTABLE_OFFSET_MASK;

        if (block == 0) {
            continue;
        }
        if (!is_aligned(block, q->cluster_size)) {
            complain(c,
                     "ERROR refcount block %u is not cluster aligned; refcount table entry "
                     "corrupted",
                     i);
            corruption(c);
            q->reftable[i] = 0;
            continue;
        }
        if (qcow2_cluster_index(q, block) >= c->clusters) {
            complain(c, "ERROR refcount block %u is outside image", i);
            corruption(c);
            q->reftable[i] = 0;
            continue;
        }
        count(c, "a refcount block", block, q->cluster_size);
    }
}

static int co_count_bitmaps(struct check *c)
{
    struct qcow2 *q = c->q;
    struct stored_bitmap *b;

    count(c, "the bitmap directory", q->bitmap_directory_offset, q->bitmap_directory_size);
    LIST_FOREACH (b, &q->stored_bitmaps, link) {
        AUTO_FREE uint64_t *table = NULL;
        int r;

        if (b->table_entries == 0) {
            continue;
        }
        if (!take_table(c, &c->table_bytes_left, (uint64_t)b->table_entries * 8, "bitmap tables")) {
            break;
        }
        r = qcow2_co_read_bitmap_table(q, b, &table);
        if (r == -ENOMEM) {
            return r;
        }
        if (r < 0) {
            complain(c, "ERROR: the table of bitmap '%s' can't be read", b->name);
            corruption(c);
            continue;
        }
        count(c, "a bitmap table", b->table_offset, (uint64_t)b->table_entries * 8);
        for (uint32_t i = 0; i < b->table_entries; i++) {
            if (table[i] & ENTRY_OFFSET_MASK) {
                count(c, "bitmap data", table[i] & ENTRY_OFFSET_MASK, q->cluster_size);
            }
        }
    }
    return 0;
}

/* --- comparing ------------------------------------------------------------------------------------- */

/* The opposite of count_refcount_structures(), before they are replaced. */
static void uncount_refcount_structures(struct check *c)
{
    struct qcow2 *q = c->q;
    uint64_t first = qcow2_cluster_index(q, q->reftable_offset);
    uint64_t table_clusters = div_round_up((uint64_t)q->reftable_entries * 8, q->cluster_size);

    for (uint64_t i = first; i < first + table_clusters && i < c->clusters; i++) {
        c->counts[i] -= c->counts[i] > 0;
    }
    for (uint32_t i = 0; i < q->reftable_entries; i++) {
        uint64_t block = q->reftable[i] & REFTABLE_OFFSET_MASK;

        if (block != 0 && c->counts[qcow2_cluster_index(q, block)] > 0) {
            c->counts[qcow2_cluster_index(q, block)]--;
        }
    }
}

static bool has_refblock(const struct qcow2 *q, uint64_t cluster)
{
    uint64_t index = cluster >> q->refblock_bits;

    return index < q->reftable_entries && (q->reftable[index] & REFTABLE_OFFSET_MASK) != 0;
}

static int co_fix_one_locked(struct check *c, uint64_t cluster, uint64_t have, uint64_t want)
{
    return qcow2_co_refcount_add_locked(c->q, cluster, 1, (int64_t)(want - have));
}

static int co_compare_one_locked(struct check *c, uint64_t cluster)
{
    uint64_t have, want = c->counts[cluster];
    bool leak, fixable;
    int r = qcow2_co_refcount_get_locked(c->q, cluster, &have);

    if (r < 0) {
        complain(c, "Can't get refcount for cluster %llu: %s", (unsigned long long)cluster,
                 strerror(-r));
        c->result->check_errors++;
        return 0;
    }
    if (have > 0) {
        c->used_end = MAX(c->used_end, cluster + 1);
    }
    if (have == want) {
        return 0;
    }
    leak = have > want;
    fixable = c->fix & (leak ? BLOCK_CHECK_FIX_LEAKS : BLOCK_CHECK_FIX_ERRORS);
    complain(c, "%s cluster %llu refcount=%llu reference=%llu",
             fixable ? "Repairing"
             : leak  ? "Leaked"
                     : "ERROR",
             (unsigned long long)cluster, (unsigned long long)have, (unsigned long long)want);
    if (fixable && !has_refblock(c->q, cluster)) {
        c->beyond_repair++;
    } else if (fixable && co_fix_one_locked(c, cluster, have, want) == 0) {
        *(leak ? &c->result->leaks_fixed : &c->result->corruptions_fixed) += 1;
    } else {
        *(leak ? &c->result->leaks : &c->result->corruptions) += 1;
    }
    return 0;
}

static int co_compare(struct check *c)
{
    int r = 0;

    co_mutex_lock(&c->q->lock);
    for (uint64_t i = 0; i < c->clusters && r == 0; i++) {
        r = co_compare_one_locked(c, i);
    }
    co_mutex_unlock(&c->q->lock);
    return r;
}

static int co_rebuild(struct check *c, struct error *err)
{
    int r = qcow2_co_commit(c->q);

    if (r < 0) {
        return error_set_errno(err, -r, "Could not write the refcounts of '%s'",
                               block_node_display_name(c->q->node));
    }
    fprintf(stderr, "Rebuilding refcount structure\n");
    uncount_refcount_structures(c);
    r = qcow2_co_rebuild_refcounts(c->q, c->counts, c->clusters, err);
    if (r == 0) {
        c->result->corruptions_fixed += c->beyond_repair;
        c->used_end =
            MAX(c->used_end, qcow2_cluster_index(c->q, block_edge_size(c->q->node->file)));
    }
    return r;
}

/* --- the COPIED flag ------------------------------------------------------------------------------- */

/* COPIED must be there exactly when the refcount is 1. A wrong flag lets shared data be overwritten. */
static int co_check_copied(struct check *c)
{
    struct qcow2 *q = c->q;
    AUTO_FREE uint64_t *table = malloc(q->cluster_size);
    uint64_t visited = 0;

    if (!table) {
        return -ENOMEM;
    }
    for (uint32_t l1 = 0; l1 < q->l1_size && visited <= c->clusters; l1++) {
        uint64_t entry = atomic_load(&q->l1[l1]), offset = entry & ENTRY_OFFSET_MASK;
        bool dirty = false;

        if (offset == 0 || !is_aligned(offset, q->cluster_size) ||
            qcow2_cluster_index(q, offset) >= c->clusters ||
            co_read(c, offset, table, q->cluster_size) < 0) {
            continue;
        }
        visited++;
        for (uint64_t i = 0; i < qcow2_table_entries(q) && !q->has_data_file; i++) {
            uint64_t e = be64toh(table[i << q->extended_l2]), host = e & ENTRY_OFFSET_MASK;
            uint64_t index = qcow2_cluster_index(q, host);
            bool copied = e & ENTRY_COPIED;

            if ((e & L2_COMPRESSED) || host == 0 || index >= c->clusters ||
                copied == (c->counts[index] == 1)) {
                continue;
            }
            complain(c, "%s OFLAG_COPIED data cluster: l2_entry=%llx refcount=%u",
                     c->fix & BLOCK_CHECK_FIX_ERRORS ? "Repairing" : "ERROR", (unsigned long long)e,
                     c->counts[index]);
            if (c->fix & BLOCK_CHECK_FIX_ERRORS) {
                table[i << q->extended_l2] = htobe64(e ^ ENTRY_COPIED);
                dirty = true;
                c->result->corruptions_fixed++;
            } else {
                corruption(c);
            }
        }
        if (dirty) {
            int r = block_co_pwrite(q->node->file, offset, table, q->cluster_size, 0);

            if (r < 0) {
                return r;
            }
        }
    }
    return 0;
}

/* --- check ------------------------------------------------------------------------------------- */

/* All is repaired: the image is neither dirty nor corrupt any more. */
static int co_clear_marks(struct check *c, struct error *err)
{
    uint64_t marks = INCOMPAT_DIRTY | INCOMPAT_CORRUPT;

    if (!(c->q->incompatible & marks) || c->result->corruptions || c->result->check_errors ||
        !(c->fix & BLOCK_CHECK_FIX_ERRORS)) {
        return 0;
    }
    c->q->incompatible &= ~marks;
    return qcow2_co_write_header(c->q, err);
}

/* Everything but the refcount structures. */
static int co_count_contents(struct check *c)
{
    int r;

    count(c, "the header", 0, c->q->cluster_size);
    r = co_count_guest(c);
    r = r < 0 ? r : co_count_snapshots(c);
    return r < 0 ? r : co_count_bitmaps(c);
}

int qcow2_co_count_references(struct qcow2 *q, uint32_t **ret, uint64_t *ret_clusters,
                              struct error *err)
{
    struct block_check_result result = {0};
    struct check c = {.q = q, .result = &result};
    int r;

    c.clusters = div_round_up(block_edge_size(q->node->file), q->cluster_size);
    c.table_bytes_left = c.clusters << q->cluster_bits;
    c.counts = calloc(MAX(c.clusters, 1), sizeof(*c.counts));
    r = c.counts ? co_count_contents(&c) : -ENOMEM;
    if (r == 0 && (result.corruptions || result.check_errors)) {
        r = -EIO;
    }
    if (r < 0) {
        free(c.counts);
        return error_set_errno(err, -r, "Could not count the references of '%s'",
                               block_node_display_name(q->node));
    }
    *ret = c.counts;
    *ret_clusters = c.clusters;
    return 0;
}

static int co_check_all(struct check *c, struct error *err)
{
    struct qcow2 *q = c->q;
    int r;

    count_refcount_structures(c);
    r = co_count_contents(c);
    r = r < 0 ? r : co_compare(c);
    r = r < 0 ? r : co_check_copied(c);
    if (r == 0 && c->fix && !q->read_only) {
        r = qcow2_co_commit(q);
    }
    if (r < 0) {
        return error_set_errno(err, -r, "Check of '%s' failed", block_node_display_name(q->node));
    }
    if (c->beyond_repair > 0 && (r = co_rebuild(c, err)) < 0) {
        return r;
    }
    return c->fix ? co_clear_marks(c, err) : 0;
}

int qcow2_co_check(struct block_node *node, unsigned fix, struct block_check_result *ret,
                   struct error *err)
{
    struct qcow2 *q = qcow2_state(node);
    struct check c = {.q = q, .result = ret, .fix = fix};
    int r;

    memset(ret, 0, sizeof(*ret));
    r = q->read_only ? 0 : qcow2_co_commit(q);
    if (r < 0) {
        return error_set_errno(err, -r, "Could not write the metadata of '%s'",
                               block_node_display_name(node));
    }
    c.clusters = div_round_up(block_edge_size(node->file), q->cluster_size);
    c.table_bytes_left = c.clusters << q->cluster_bits;
    c.counts = calloc(MAX(c.clusters, 1), sizeof(*c.counts));
    if (!c.counts) {
        return error_set(err, ENOMEM, "Out of memory for the references of %llu clusters",
                         (unsigned long long)c.clusters);
    }
    ret->total_clusters = div_round_up(block_node_size(node), q->cluster_size);
    r = co_check_all(&c, err);
    ret->image_end_offset = c.used_end << q->cluster_bits;
    free(c.counts);
    return r;
}
