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

/* References to so many clusters behind the end of the file keep new refcounts out of there. */
#define BEYOND_END_MAX (1u << 20)

void qcow2_complain(struct check *c, const char *fmt, ...)
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
        qcow2_complain(c, "ERROR: %s at offset %#llx lies beyond the end of the file", what,
                       (unsigned long long)offset);
        corruption(c);
        if (first < c->clusters + BEYOND_END_MAX) {
            c->beyond_end = MAX(c->beyond_end, first + 1);
        }
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
        qcow2_complain(c, "ERROR: could not read %zu bytes at offset %#llx: %s", size,
                       (unsigned long long)offset, strerror(-r));
        c->result->check_errors++;
    }
    return r;
}

/* --- L2 tables ----------------------------------------------------------------------------------- */

/* A place that is not aligned takes part in two clusters. What is zero anyway can do without it. */
static void count_data_cluster(struct check *c, uint64_t *place, uint64_t entry)
{
    struct qcow2 *q = c->q;
    uint64_t host = entry & ENTRY_OFFSET_MASK;

    if (!is_aligned(host, q->cluster_size)) {
        bool droppable = (entry & L2_ZERO) && !q->extended_l2;

        if (droppable && (c->fix & BLOCK_CHECK_FIX_ERRORS)) {
            qcow2_complain(c,
                           "Repairing offset=%llx: Preallocated cluster is not properly aligned; "
                           "L2 entry corrupted.",
                           (unsigned long long)host);
            *place = htobe64(L2_ZERO);
            c->table_changed = true;
            c->result->corruptions_fixed++;
            return;
        }
        qcow2_complain(c, "ERROR offset=%llx: %s is not properly aligned; L2 entry corrupted.",
                       (unsigned long long)host, droppable ? "Preallocated cluster" : "Cluster");
        corruption(c);
    }
    c->result->allocated_clusters++;
    if (c->last_host != 0 && host != c->last_host) {
        c->result->fragmented_clusters++;
    }
    c->last_host = host + q->cluster_size;
    count(c, "a data cluster", host, q->cluster_size);
}

static void count_entry(struct check *c, uint64_t *place)
{
    uint64_t entry = be64toh(*place), host = entry & ENTRY_OFFSET_MASK, size;

    if (entry & L2_COMPRESSED) {
        if (entry & ENTRY_COPIED) {
            qcow2_complain(c,
                           "ERROR: coffset=%#llx: copied flag must never be set for compressed "
                           "clusters",
                           (unsigned long long)entry);
            corruption(c);
        }
        qcow2_compressed_range(c->q, entry, &host, &size);
        c->result->allocated_clusters++;
        c->result->compressed_clusters++;
        c->result->fragmented_clusters++;
        /* The last sector may reach over the end of the file. */
        if (qcow2_cluster_index(c->q, host) < c->clusters) {
            size = MIN(size, (c->clusters << c->q->cluster_bits) - host);
        }
        count(c, "a compressed cluster", host, size);
        return;
    }
    if ((entry & L2_RESERVED_MASK) || (c->q->extended_l2 && (entry & L2_ZERO))) {
        qcow2_complain(c, "ERROR found l2 entry with reserved bits set: %llx",
                       (unsigned long long)entry);
        corruption(c);
    }
    if (host != 0 && !c->q->has_data_file) {
        count_data_cluster(c, place, entry);
    }
}

/* False if more tables are read than there can be. */
static bool take_table(struct check *c, uint64_t *left, uint64_t amount, const char *what)
{
    if (*left < amount) {
        if (*left > 0) {
            qcow2_complain(c, "ERROR: %s lie upon each other", what);
            corruption(c);
        }
        *left = 0;
        return false;
    }
    *left -= amount;
    return true;
}

static int co_count_l2(struct check *c, uint64_t entry, uint64_t *table)
{
    struct qcow2 *q = c->q;
    uint64_t offset = entry & ENTRY_OFFSET_MASK;
    int r;

    if (entry & L1_RESERVED_MASK) {
        qcow2_complain(c, "ERROR found L1 entry with reserved bits set: %llx",
                       (unsigned long long)entry);
        corruption(c);
    }
    if (offset == 0) {
        return 0;
    }
    if (!is_aligned(offset, q->cluster_size)) {
        qcow2_complain(c, "ERROR l2_offset=%llx: Table is not cluster aligned; L1 entry corrupted",
                       (unsigned long long)offset);
        corruption(c);
        return 0;
    }
    if (!take_table(c, &c->l2_tables_left, 1, "L2 tables")) {
        return 0;
    }
    count(c, "an L2 table", offset, q->cluster_size);
    if (qcow2_cluster_index(q, offset) >= c->clusters) {
        return 0;
    }
    r = co_read(c, offset, table, q->cluster_size);
    c->last_host = 0;
    c->table_changed = false;
    for (uint64_t i = 0; i < qcow2_table_entries(q) && r == 0; i++) {
        if (table[i << q->extended_l2] != 0) {
            count_entry(c, &table[i << q->extended_l2]);
        }
    }
    if (c->table_changed) {
        r = block_co_pwrite(q->node->file, offset, table, q->cluster_size, 0);
        for (uint64_t at = 0; at < q->cluster_size; at += q->l2_cache.entry_size) {
            cache_forget(&q->l2_cache, offset + at);
        }
        return r;
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
        r = co_count_l2(c, atomic_load(&c->q->l1[i]), table);
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
            qcow2_complain(c, "ERROR: the L1 table of snapshot %s can't be read", s->id);
            corruption(c);
            continue;
        }
        count(c, "the L1 table of a snapshot", s->l1_offset, (uint64_t)s->l1_size * 8);
        c->l2_tables_left = c->clusters + 1;
        for (uint32_t i = 0; i < s->l1_size; i++) {
            r = co_count_l2(c, l1[i], table);
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

/* False, and told, if a refcount block can't be one. */
static bool is_refblock(struct check *c, uint32_t index, uint64_t entry)
{
    uint64_t block = entry & REFTABLE_OFFSET_MASK;
    const char *what = NULL;

    if (entry & ~REFTABLE_OFFSET_MASK) {
        what = "has reserved bits set in its refcount table entry";
    } else if (!is_aligned(block, c->q->cluster_size)) {
        what = "is not cluster aligned; refcount table entry corrupted";
    } else if (qcow2_cluster_index(c->q, block) >= c->clusters) {
        what = "is outside image";
    }
    if (what) {
        qcow2_complain(c, "ERROR refcount block %u %s", index, what);
    }
    return !what;
}

/* After all else was counted: a refcount block has its cluster for itself, or its counts can't be trusted. */
static void count_refcount_structures(struct check *c)
{
    struct qcow2 *q = c->q;

    count(c, "the refcount table", q->reftable_offset, (uint64_t)q->reftable_entries * 8);
    for (uint32_t i = 0; i < q->reftable_entries; i++) {
        uint64_t block = q->reftable[i] & REFTABLE_OFFSET_MASK;

        if (q->reftable[i] == 0) {
            continue;
        }
        if (!is_refblock(c, i, q->reftable[i])) {
            corruption(c);
            c->rebuild = true;
            q->reftable[i] = 0;
            continue;
        }
        count(c, "a refcount block", block, q->cluster_size);
        if (c->counts[qcow2_cluster_index(q, block)] != 1) {
            qcow2_complain(c, "ERROR refcount block %u refcount=%u", i,
                           c->counts[qcow2_cluster_index(q, block)]);
            corruption(c);
            c->rebuild = true;
        }
    }
}

/* What a table entry of a dirty bitmap may not say. */
static bool is_bad_table_entry(const struct qcow2 *q, uint64_t entry)
{
    uint64_t offset = entry & ENTRY_OFFSET_MASK;

    return (entry & ~(ENTRY_OFFSET_MASK | BITMAP_TABLE_ALL_ONES)) ||
           (offset != 0 && (entry & BITMAP_TABLE_ALL_ONES)) || !is_aligned(offset, q->cluster_size);
}

static void count_bitmap(struct check *c, const struct stored_bitmap *b, const uint64_t *table)
{
    bool known = b->type == BITMAP_TYPE_DIRTY;

    if (known && (b->granularity_bits < 9 || b->granularity_bits > 31)) {
        qcow2_complain(c, "ERROR: bitmap '%s' has a granularity of 2^%u bytes", b->name,
                       b->granularity_bits);
        corruption(c);
    }
    count(c, "a bitmap table", b->table_offset, (uint64_t)b->table_entries * 8);
    for (uint32_t i = 0; i < b->table_entries; i++) {
        if (known && is_bad_table_entry(c->q, table[i])) {
            qcow2_complain(c, "ERROR: bitmap '%s' has an invalid table entry: %llx", b->name,
                           (unsigned long long)table[i]);
            corruption(c);
        }
        if (table[i] & ENTRY_OFFSET_MASK) {
            count(c, "bitmap data", table[i] & ENTRY_OFFSET_MASK, c->q->cluster_size);
        }
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
            qcow2_complain(c, "ERROR: the table of bitmap '%s' can't be read", b->name);
            corruption(c);
            continue;
        }
        count_bitmap(c, b, table);
    }
    return 0;
}

/* --- comparing ------------------------------------------------------------------------------------- */

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
        qcow2_complain(c, "Can't get refcount for cluster %llu: %s", (unsigned long long)cluster,
                       strerror(-r));
        c->result->check_errors++;
        c->inexact = true;
        return 0;
    }
    if (have > 0) {
        c->used_end = MAX(c->used_end, cluster + 1);
    }
    if (have == want) {
        return 0;
    }
    leak = have > want;
    /* Where a cluster that is in use counts for free, no other count of the block is to be trusted: all are made anew. */
    c->rebuild |= have == 0;
    fixable = have > 0 && (c->fix & (leak ? BLOCK_CHECK_FIX_LEAKS : BLOCK_CHECK_FIX_ERRORS));
    qcow2_complain(c, "%s cluster %llu refcount=%llu reference=%llu",
                   fixable ? "Repairing"
                   : leak  ? "Leaked"
                           : "ERROR",
                   (unsigned long long)cluster, (unsigned long long)have, (unsigned long long)want);
    if (fixable && co_fix_one_locked(c, cluster, have, want) == 0) {
        *(leak ? &c->result->leaks_fixed : &c->result->corruptions_fixed) += 1;
    } else {
        *(leak ? &c->result->leaks : &c->result->corruptions) += 1;
        c->inexact = true;
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

/* --- check ------------------------------------------------------------------------------------- */

/* All is repaired: the image is neither dirty nor corrupt any more. */
static int co_clear_marks(struct check *c, struct error *err)
{
    uint64_t marks = INCOMPAT_DIRTY | INCOMPAT_CORRUPT;

    if ((!(c->q->incompatible & marks) && !atomic_load(&c->q->corrupt)) || c->result->corruptions ||
        c->result->check_errors || !(c->fix & BLOCK_CHECK_FIX_ERRORS)) {
        return 0;
    }
    c->q->incompatible &= ~marks;
    atomic_store(&c->q->corrupt, false);
    c->q->refcounts_behind = false;
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

static int check_init(struct check *c)
{
    c->clusters = div_round_up(block_edge_size(c->q->node->file), c->q->cluster_size);
    c->table_bytes_left = c->clusters << c->q->cluster_bits;
    c->counts = calloc(MAX(c->clusters, 1), sizeof(*c->counts));
    return c->counts ? 0 : -ENOMEM;
}

int qcow2_co_count_references(struct qcow2 *q, uint32_t **ret, uint64_t *ret_clusters,
                              struct error *err)
{
    struct block_check_result result = {0};
    struct check c = {.q = q, .result = &result};
    int r = check_init(&c);

    r = r < 0 ? r : co_count_contents(&c);
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

/* --- rebuilding ------------------------------------------------------------------------------------ */

/* The old table and its blocks stay counted until the new ones are in force. */
static void keep_old_structures(struct check *c)
{
    struct qcow2 *q = c->q;
    uint64_t clusters = div_round_up((uint64_t)q->reftable_entries * 8, q->cluster_size);

    for (uint64_t i = 0; i < clusters + q->reftable_entries; i++) {
        uint64_t cluster =
            i < clusters ? qcow2_cluster_index(q, q->reftable_offset) + i
                         : qcow2_cluster_index(q, q->reftable[i - clusters] & REFTABLE_OFFSET_MASK);

        if (cluster < c->clusters && c->counts[cluster] == 0) {
            c->counts[cluster] = 1;
        }
    }
}

/* What new refcounts have to be made for, silently. */
static int co_count_for_rebuild(struct check *c, struct check *again,
                                struct block_check_result *result)
{
    int r;

    memset(result, 0, sizeof(*result));
    *again = (struct check){.q = c->q, .result = result, .complaints = COMPLAINTS_MAX};
    r = check_init(again);
    r = r < 0 ? r : co_count_contents(again);
    if (r == 0) {
        keep_old_structures(again);
    }
    return r;
}

/* All of it again, with the new refcounts; they still count the old ones, which are given back. */
static int co_count_rebuilt(struct check *c, struct check *again, struct block_check_result *result)
{
    int r;

    memset(result, 0, sizeof(*result));
    *again = (struct check){
        .q = c->q,
        .result = result,
        .complaints = c->complaints,
        .fix = c->fix | BLOCK_CHECK_FIX_LEAKS,
    };
    r = check_init(again);
    r = r < 0 ? r : co_count_contents(again);
    if (r == 0) {
        count_refcount_structures(again);
        r = co_compare(again);
    }
    return r;
}

/* What was wrong and is no longer has been put right by the new refcounts. */
static void take_figures(struct check *c, struct check *again)
{
    struct block_check_result *r = c->result;

    if (again->result->corruptions < r->corruptions) {
        r->corruptions_fixed += r->corruptions - again->result->corruptions;
    }
    if (again->result->leaks < r->leaks) {
        r->leaks_fixed += r->leaks - again->result->leaks;
    }
    r->corruptions = again->result->corruptions;
    r->leaks = again->result->leaks;
    r->check_errors = again->result->check_errors;
    free(c->counts);
    c->counts = again->counts;
    again->counts = NULL;
    c->clusters = again->clusters;
    c->used_end = again->used_end;
    c->inexact = again->inexact;
}

static int co_rebuild(struct check *c, struct error *err)
{
    struct block_check_result result;
    struct check again = {0};
    int r = qcow2_co_commit(c->q);

    fprintf(stderr, "Rebuilding refcount structure\n");
    r = r < 0 ? r : co_count_for_rebuild(c, &again, &result);
    if (r == 0) {
        /* References to what is not there yet must not find the new blocks there. */
        uint64_t first = MAX(again.clusters, c->beyond_end);

        r = qcow2_co_rebuild_refcounts(c->q, again.counts, again.clusters, first, err);
        if (r < 0) {
            free(again.counts);
            return r;
        }
    }
    free(again.counts);
    again.counts = NULL;
    r = r < 0 ? r : co_count_rebuilt(c, &again, &result);
    if (r == 0) {
        take_figures(c, &again);
    }
    free(again.counts);
    return r < 0 ? error_set_errno(err, -r, "Could not rebuild the refcounts of '%s'",
                                   block_node_display_name(c->q->node))
                 : 0;
}

/* --- all of it --------------------------------------------------------------------------------------- */

static int co_check_all(struct check *c, struct error *err)
{
    struct qcow2 *q = c->q;
    int r = co_count_contents(c);

    if (r == 0) {
        count_refcount_structures(c);
        r = co_compare(c);
    }
    if (r == 0 && c->rebuild && (c->fix & BLOCK_CHECK_FIX_ERRORS)) {
        r = co_rebuild(c, err);
        if (r < 0) {
            return r;
        }
    }
    r = r < 0 ? r : qcow2_co_check_copied(c);
    if (r == 0 && c->fix && !q->read_only) {
        r = qcow2_co_commit(q);
    }
    if (r < 0) {
        return error_set_errno(err, -r, "Check of '%s' failed", block_node_display_name(q->node));
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
    if (check_init(&c) < 0) {
        return error_set(err, ENOMEM, "Out of memory for the references of %llu clusters",
                         (unsigned long long)c.clusters);
    }
    ret->total_clusters = div_round_up(block_node_size(node), q->cluster_size);
    r = co_check_all(&c, err);
    ret->image_end_offset = c.used_end << q->cluster_bits;
    free(c.counts);
    return r;
}
